"""Train one stage of a video VLM.

Example:
    python -m tools.train --config configs/finetune.py --set model.num_frames=8 out_dir=runs/ft8

A config is a Python file with `config() -> TrainConfig`. Run the same command again after an
interruption and it continues.
"""

import dataclasses
import sys
from pathlib import Path
from typing import Annotated

import tyro

from tools._shared import die_in_one_line, load_config
from vvlm_jax.config import TrainConfig, override, to_json


@dataclasses.dataclass(frozen=True)
class Args:
    """Options of `tools.train`."""

    config: Path
    """A Python file that defines `config() -> TrainConfig`, such as configs/finetune.py."""
    set: Annotated[tuple[str, ...], tyro.conf.arg(metavar="KEY=VALUE ...")] = ()
    """Overrides, such as model.num_frames=8 data.num_examples=250000."""
    print_config: bool = False
    """Print the whole config with its overrides and stop."""


def main(args: Args) -> None:
    """Runs the stage and prints where the model is."""
    config = override(load_config(args.config, TrainConfig), args.set)
    if args.print_config:
        print(to_json(config), end="")
        return
    from vvlm_jax.train.loop import train

    summary = train(config)
    for message in summary["unreadable"]:
        print(f"unreadable: {message}", file=sys.stderr)
    print(
        f"{config.out_dir}: {summary['steps']} steps, loss {summary['loss']:.4f}, "
        f"{len(summary['unreadable'])} unreadable files"
    )


if __name__ == "__main__":
    die_in_one_line(lambda: main(tyro.cli(Args, description=__doc__)))
