"""Whether a train step, a prefill or a decode fits a TPU pod, before anyone pays for one.

Example:
    python -m tools.compile --config configs/finetune.py --topology v5p:2x2x4 \\
        --set model.llm=llama3.1-8b microbatches=8

Compiles the program that would run, by the TPU's own compiler, on a machine without TPUs, and
prints what one chip needs by kind, what goes between chips, and exact FLOPs. It says nothing of
speed. Needs libtpu: pip install -r tests/requirements-tpu.txt
Exit code: 0 fits, 1 does not, 2 bad input.

Batches are the longest there can be: every row a video and data.max_text_tokens of text. Table 6:
    python -m tools.compile --config configs/finetune.py --topology v5p:2x2x4 --sweep star \\
        --out runs/compile
There each configuration gets the largest microbatch, then the least remat, that fits. It takes
minutes a row; interrupted, the same command continues. A row that does not fit is a result, too:
the exit code is 0 once the table is whole.
"""

import dataclasses
import sys
from pathlib import Path
from typing import Annotated, Literal

import tyro

from vvlm_jax.config import ConfigError, TrainConfig
from vvlm_jax.config_check import choose, validate
from vvlm_jax.override import override

from .common import die_in_one_line, load_config


@dataclasses.dataclass(frozen=True)
class Args:
    """Options of `tools.compile`."""

    config: Path
    """A Python file that defines `config() -> TrainConfig`, such as configs/finetune.py."""
    topology: str
    """Kind and chips along each side, such as v5p:2x2x4, v5e:8x8 or v6e:4x4."""
    set: Annotated[tuple[str, ...], tyro.conf.arg(metavar="KEY=VALUE ...")] = ()
    """Overrides, such as model.llm=llama3.1-8b microbatches=8 'mesh=[["fsdp",8],["tensor",2]]'."""
    program: Literal["train", "encode", "prefill", "decode"] = "train"
    """`train`: the step; the others are generation's, on the mesh that `VideoVLM` makes."""
    prompts: int = 8
    """Of prefill and decode: prompts at a time, rounded up to what the chips can share."""
    hbm: float | None = None
    """GiB a chip may use, in place of the chip's own (v5p 95.74, v5e 15.75, v6e 31.25)."""
    effort: float = 0.0
    """Of the compiler, from -1 to 1. At -1 it is four times as fast, and its program, another one,
    needs less memory; what it calls a fit holds where JAX_EXEC_TIME_OPTIMIZATION_EFFORT says so.
    """
    sweep: Literal["star", "isoflop"] | None = None
    """The table of Table 6's star (13 configurations) or isoFLOP curves (49)."""
    out: Path = Path("runs/compile")
    """Of a sweep: where every compile is kept, one line each. Those of another topology there say
    where to look first, which saves compiles.
    """
    table: bool = False
    """Of a sweep: print the Markdown table of what is kept, and compile nothing."""


def main(args: Args) -> None:
    """Compiles, prints and exits with 1 when it does not fit."""
    from vvlm_jax.compile import programs as programs

    config = check(args)
    programs.parse_topology(args.topology)
    if args.sweep:
        from vvlm_jax.compile import table as sweep

        sweep.run(config, args)
        return
    programs.prepare_environment()
    from ._compile_text import report

    measured = programs.measure(
        config, args.topology, args.program, args.hbm, args.prompts, effort=args.effort
    )
    print(report(config, args, measured))
    if not measured.fits:
        sys.exit(1)


def check(args: Args) -> TrainConfig:
    """The config with its overrides. ConfigError for what cannot work, before anything slow."""
    from vvlm_jax.models.variants import LLAMA, VISION

    config = override(load_config(args.config, TrainConfig), args.set)
    choose(LLAMA, config.model.llm, "model.llm")
    validate(config, choose(VISION, config.model.vision, "model.vision"))
    if args.hbm is not None and not args.hbm > 0:
        raise ConfigError(f"--hbm {args.hbm}: must be above 0, in GiB")
    if not -1 <= args.effort <= 1:
        raise ConfigError(f"--effort {args.effort}: must be between -1 and 1")
    if args.prompts < 1:
        raise ConfigError(f"--prompts {args.prompts}: must be at least 1")
    if args.table and not args.sweep:
        raise ConfigError("--table: say which, --sweep star or --sweep isoflop")
    if args.sweep and args.program != "train":
        raise ConfigError(f"--program {args.program}: a sweep is of train steps")
    return config


def cli() -> None:
    """Read the command line and run the command."""
    die_in_one_line(lambda: main(tyro.cli(Args, description=__doc__)))


if __name__ == "__main__":
    cli()
