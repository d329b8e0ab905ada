"""Train one stage of a video VLM.

Example:
    vvlm train --config finetune --set model.num_frames=8 out_dir=runs/ft8

A config is a Python file with `config() -> TrainConfig`. Run the same command again after any
interruption and it continues: Ctrl-C, a kill, a crash, SIGTERM (which saves first).

Exit codes: 0 finished, 2 an error that its line says how to mend, 75 stopped by SIGTERM and saved
(run it again), 130 interrupted by Ctrl-C.
"""

import dataclasses
import os
import re
import signal
import sys
import threading
from pathlib import Path
from typing import Annotated

import tyro

from vvlm_jax.config import ConfigError, TrainConfig
from vvlm_jax.exit_codes import Exit
from vvlm_jax.override import override, to_json

from .common import die_in_one_line, load_config


@dataclasses.dataclass(frozen=True)
class Args:
    """Options of `vvlm train`."""

    config: Path
    """A Python file that defines `config() -> TrainConfig`, such as configs/finetune.py."""
    set: Annotated[tuple[str, ...], tyro.conf.arg(metavar="KEY=VALUE ...")] = ()
    """Overrides, such as model.num_frames=8 data.num_examples=250000."""
    allow: Annotated[tuple[str, ...], tyro.conf.arg(metavar="KEY ...")] = ()
    """Options, such as optim.warmup, that an interrupted run may go on with at another value."""
    profile: Annotated[str, tyro.conf.arg(metavar="START:STOP")] = ""
    """Trace these steps (from 0) into out_dir/profile, for TensorBoard or XProf."""
    coordinator: Annotated[str | None, tyro.conf.arg(metavar="HOST:PORT")] = None
    """Of several hosts that are neither a TPU pod nor under Slurm: where process 0 is."""
    processes: int | None = None
    """How many there are."""
    process: int | None = None
    """Which one this is, from 0."""
    print_config: bool = False
    """Print the whole config with its overrides and stop."""


def main(args: Args) -> None:
    """Runs the stage and prints where the model is."""
    config = override(load_config(args.config, TrainConfig), args.set)
    if args.print_config:
        print(to_json(config), end="")
        return
    profile = _steps(args.profile)
    asked = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: asked.set())  # a second one finds it set
    from vvlm_jax import devices

    devices.keep_freed_memory()
    from vvlm_jax import distributed
    from vvlm_jax.train.loop import Preempted, train

    # Several hosts stop at the same step: jax listens to SIGTERM, and they agree on it.
    agreed = distributed.join(args.coordinator, args.processes, args.process)
    should_stop = agreed or (lambda step: asked.is_set())
    try:
        summary = train(config, should_stop=should_stop, allow=args.allow, profile=profile)
    except Preempted as e:
        print(e, file=sys.stderr)
        sys.exit(Exit.RETRY)
    finally:
        if not agreed:
            signal.signal(signal.SIGTERM, before)
    for message in summary["unreadable"]:
        print(f"unreadable: {message}", file=sys.stderr)
    print(
        f"{config.out_dir}: {summary['steps']} steps, loss {summary['loss']:.4f}, "
        f"{len(summary['unreadable'])} unreadable files"
    )


def _steps(text: str) -> tuple[int, int] | None:
    """START:STOP as numbers."""
    if not text:
        return None
    match = re.fullmatch(r"(\d+):(\d+)", text)
    if not match or int(match[1]) >= int(match[2]):
        raise ConfigError(f"--profile {text}: must be START:STOP, two steps, the second larger")
    return int(match[1]), int(match[2])


GRACE = 10.0
"""Seconds for an orderly end after an error."""


def _leave_soon(code: int) -> None:
    """Of several hosts, one that fails alone would wait for the others to end while they wait for
    it to go on. Once it has gone they notice.
    """
    timer = threading.Timer(GRACE, _leave_at_once, (code,))
    timer.daemon = True
    timer.start()


def _leave_at_once(code: int) -> None:
    """Ends the process though threads still read or write: they can take minutes, and whatever
    they leave behind is what a kill leaves.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def cli() -> None:
    """Read the command line and run the command; end at once, or soon, after Ctrl-C and errors."""
    try:
        die_in_one_line(lambda: main(tyro.cli(Args, description=__doc__)))
    except SystemExit as e:
        if e.code == 130:
            _leave_at_once(e.code)
        if e.code == 2:
            _leave_soon(e.code)
        raise
    except Exception:
        _leave_soon(1)
        raise


if __name__ == "__main__":
    cli()
