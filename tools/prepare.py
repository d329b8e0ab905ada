"""Prepare a mixture of public data: check what is on disk, count it, write what training reads.

Example:
    vvlm prepare --mixture paper --source /data --out /data/prepared

The result is a TFDS data set of ArrayRecord files, for `data.annotations`, with a card. Media are
not copied: `data.media_root` is the source. Interrupted, the same command continues.
"""

import dataclasses
from inspect import isfunction
from pathlib import Path
from typing import Annotated

import tyro

from vvlm_jax.config import ConfigError
from vvlm_jax.config_check import nearest

from .arguments import read_options
from .common import die_in_one_line, load_config, shipped


@dataclasses.dataclass(frozen=True)
class Args:
    """Options of `vvlm prepare`."""

    mixture: str
    """A shipped mixture (paper, lcs), FILE.py:FUNCTION that returns a MixtureConfig, a LLaVA
    mixture (.yaml), or annotations (.json, .jsonl, folder/{a,b}.json).
    """
    source: str
    """Folder of all sources as they are published; may be in a bucket, gs:// or s3://."""
    out: str
    """Folder of this machine for the data set, OUT/NAME/1.0.0, and the findings about media."""
    without: Annotated[tuple[str, ...], tyro.conf.arg(metavar="SUBSET ...")] = ()
    """Subsets to leave out."""
    allow_counts: bool = False
    """Accept subsets with another number of examples than published."""
    drop_broken: bool = False
    """Leave out rows that cannot be examples, and those whose media are missing or broken."""
    extract: bool = False
    """Extract the archives that media are published in, next to them. By default they must be
    extracted already.
    """
    workers: int = 4
    """Processes that open media; 0 opens them in this one."""
    seconds: float = 300.0
    """Time limit for one media file; one that takes longer counts as broken."""


def main(args: Args) -> None:
    """Print a line for each subset, and the folder of the data set."""
    from vvlm_jax.data.prepare import mixture, run
    from vvlm_jax.storage import files
    from vvlm_jax.storage.bucket import is_url

    if is_url(args.out):
        raise ValueError(
            f"--out {args.out}: must be a folder of this machine; its data set can be copied into "
            "the bucket afterwards"
        )
    for flag, value, good in (
        ("workers", args.workers, args.workers >= 0),
        ("seconds", args.seconds, args.seconds > 0),
    ):
        if not good:
            least = "0 or more" if flag == "workers" else "above 0"
            raise ValueError(f"--{flag} {value}: must be {least}")
    config = mixture.without(mixture.validate(_mixture(args.mixture)), args.without)
    options = run.Options(
        args.allow_counts, args.drop_broken, args.extract, args.workers, args.seconds
    )
    root = files.path_of(args.source)
    folder, card = run.prepare(config, root, Path(args.out), options)
    print(run.text(card), end="")
    print(f"data.annotations={folder} data.media_root={args.source}")


def _mixture(text: str):
    """Return the MixtureConfig that --mixture names. Raises ValueError."""
    from vvlm_jax.data.prepare import sources
    from vvlm_jax.data.prepare.mixture import MixtureConfig
    from vvlm_jax.storage import files

    if text.endswith((".yaml", ".yml", ".json", ".jsonl")):
        return sources.from_file(files.path_of(text))
    if text.endswith(".py"):
        return load_config(Path(text), MixtureConfig, "config", "--mixture ")
    file, _, function = text.rpartition(":")
    if file.endswith(".py"):
        return load_config(Path(file), MixtureConfig, function, "--mixture ")
    module = shipped("mixtures")
    names = [name for name, value in vars(module).items() if isfunction(value) and name[0] != "_"]
    if function in names and file in ("", "mixtures"):
        return getattr(module, function)()
    raise ConfigError(
        f"--mixture {text}: is neither a file (FILE.py:FUNCTION, .yaml, .json, .jsonl) nor a "
        f"shipped mixture; {nearest(function, names)}"
    )


def cli() -> None:
    """Read the command line and run the command."""
    die_in_one_line(lambda: main(read_options(Args, __doc__)))


if __name__ == "__main__":
    cli()
