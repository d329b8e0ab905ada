"""Train one stage of a video VLM.

Example:
    python -m tools.train --config configs/finetune.py --set model.num_frames=8 out_dir=runs/ft8

A config is a Python file with `config() -> TrainConfig`. Run the same command again after any
interruption and it continues: Ctrl-C, a kill, a crash, SIGTERM (which saves first).

Exit codes: 0 finished, 2 an error that its line says how to mend, 75 stopped by SIGTERM and saved
(run it again), 130 interrupted by Ctrl-C.
"""

import dataclasses
import os
import signal
import sys
import threading
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
    allow: Annotated[tuple[str, ...], tyro.conf.arg(metavar="KEY ...")] = ()
    """Options, such as optim.warmup, that an interrupted run may go on with at another value."""
    print_config: bool = False
    """Print the whole config with its overrides and stop."""


STOPPED = 75
"""Exit code after SIGTERM: sysexits' EX_TEMPFAIL, "try again later"."""


def main(args: Args) -> None:
    """Runs the stage and prints where the model is."""
    config = override(load_config(args.config, TrainConfig), args.set)
    if args.print_config:
        print(to_json(config), end="")
        return
    asked = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: asked.set())  # a second one finds it set
    from vvlm_jax.train.loop import Preempted, train

    try:
        summary = train(config, should_stop=asked.is_set, allow=args.allow)
    except Preempted as e:
        print(e, file=sys.stderr)
        sys.exit(STOPPED)
    finally:
        signal.signal(signal.SIGTERM, before)
    for message in summary["unreadable"]:
        print(f"unreadable: {message}", file=sys.stderr)
    print(
        f"{config.out_dir}: {summary['steps']} steps, loss {summary['loss']:.4f}, "
        f"{len(summary['unreadable'])} unreadable files"
    )


def _leave_at_once(code: int) -> None:
    """Ends the process though threads still read or write: they can take minutes, and whatever
    they leave behind is what a kill leaves.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    try:
        die_in_one_line(lambda: main(tyro.cli(Args, description=__doc__)))
    except SystemExit as e:
        if e.code == 130:
            _leave_at_once(e.code)
        raise
