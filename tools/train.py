"""Train one stage of a video VLM.

Example:
    vvlm train --config finetune --set model.num_frames=8 out_dir=runs/ft8

A config is a Python file with `config() -> TrainConfig`, or a shipped one: pretrain, finetune,
quecc. After an interruption (Ctrl-C, a kill, a crash, or SIGTERM, which saves first) run the same
command again to continue.

Exit codes: 0 finished, 2 an error whose message says what to do, 75 stopped by SIGTERM and saved
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

from .arguments import read_options
from .common import die_in_one_line, load_config


@dataclasses.dataclass(frozen=True)
class Args:
    """Options of `vvlm train`."""

    config: Path
    """A Python file that defines `config() -> TrainConfig`, or a shipped one: finetune."""
    set: Annotated[tuple[str, ...], tyro.conf.arg(metavar="KEY=VALUE ...")] = ()
    """Overrides, such as model.num_frames=8 data.num_examples=250000."""
    allow: Annotated[tuple[str, ...], tyro.conf.arg(metavar="KEY ...")] = ()
    """Options, such as optim.warmup, whose value may differ from that of the interrupted run."""
    profile: Annotated[str, tyro.conf.arg(metavar="START:STOP")] = ""
    """Profile these steps (from 0) into out_dir/profile, for TensorBoard or XProf."""
    coordinator: Annotated[str | None, tyro.conf.arg(metavar="HOST:PORT")] = None
    """Address of process 0, for several hosts that are neither a TPU pod nor run under Slurm."""
    processes: int | None = None
    """Number of processes, with --coordinator."""
    process: int | None = None
    """Number of this process from 0, with --coordinator."""
    print_config: bool = False
    """Print the whole config with its overrides and exit."""


def main(args: Args) -> None:
    """Run the stage and print where the model is."""
    config = override(load_config(args.config, TrainConfig), args.set)
    if args.print_config:
        print(to_json(config), end="")
        return
    profile = _steps(args.profile)
    asked = threading.Event()
    before = signal.signal(signal.SIGTERM, lambda *_: asked.set())
    from vvlm_jax import devices

    devices.keep_freed_memory()
    from vvlm_jax import distributed
    from vvlm_jax.train.loop import Preempted, train

    # Several hosts must stop at the same step: jax then handles SIGTERM and makes them agree on it.
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
    """Parse START:STOP; None for an empty text. Raises ConfigError."""
    if not text:
        return None
    match = re.fullmatch(r"(\d+):(\d+)", text)
    if not match or int(match[1]) >= int(match[2]):
        raise ConfigError(f"--profile {text}: must be START:STOP, two steps, the second larger")
    return int(match[1]), int(match[2])


GRACE = 10.0
"""Seconds for an orderly exit after an error."""


def _exit_after_grace(code: int) -> None:
    """Exit after `GRACE` seconds if the process is still running then.

    jax's exit handlers wait for the other hosts. When one host fails alone, the others wait for it
    in a collective operation; they only notice once its process is gone.
    """
    timer = threading.Timer(GRACE, _exit_now, (code,))
    timer.daemon = True
    timer.start()


def _exit_now(code: int) -> None:
    """Exit without waiting for threads that read or write, which can take minutes.

    What they leave behind is the same as after a kill, which a resume copes with.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def cli() -> None:
    """Run the command with the options of the command line; exit promptly on Ctrl-C and errors."""
    options = []
    die_in_one_line(lambda: options.append(read_options(Args, __doc__)))
    try:
        die_in_one_line(lambda: main(*options))
    except SystemExit as e:
        if e.code == 130:
            _exit_now(e.code)
        if e.code == 2:
            _exit_after_grace(e.code)
        raise
    except Exception:
        _exit_after_grace(1)
        raise


if __name__ == "__main__":
    cli()
