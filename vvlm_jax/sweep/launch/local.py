"""A sweep on this machine: worker processes that pull jobs of a store, with a share of the devices.

The store alone says what is done: any number of drivers may work on one, and one that dies leaves
what the next takes up. Workers end with their driver, however it ends.
"""

import ctypes
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from vvlm_jax.config import ConfigError, Stopped
from vvlm_jax.sweep.store.store import MAX_DEATHS, Store
from vvlm_jax.sweep.worker import AGAIN, TAKEN

_PR_SET_PDEATHSIG = 1
GRACE = 600.0
"""Seconds that a worker may take to save when it is asked to stop."""


class Share(NamedTuple):
    """What one worker has of the machine."""

    environ: dict[str, str]
    cores: frozenset[int]
    text: str


def shares(workers: int) -> list[Share]:
    """Divides the accelerators, or without any the cores, between workers. 0 workers: one with all
    accelerators, or one a core.

    Raises ConfigError when they cannot be divided.
    """
    cores, gpus, tpus = _cores(), _gpus(), list(Path("/dev").glob("accel[0-9]*"))
    if os.environ.get("JAX_PLATFORMS", "") == "cpu" or not (gpus or tpus):
        count = workers or len(cores)
        return [
            Share({}, frozenset({cores[i % len(cores)]}), f"core {cores[i % len(cores)]}")
            for i in range(count)
        ]
    count = workers or 1
    if tpus and count > 1:
        raise ConfigError(f"--workers {count}: the TPUs of a host serve one worker")
    if tpus:
        return [Share({}, frozenset(cores), f"{len(tpus)} TPU devices")]
    if count > len(gpus) or len(gpus) % count:
        raise ConfigError(f"--workers {count}: must divide the {len(gpus)} GPUs of this machine")
    each = len(gpus) // count
    return [
        Share(
            {"CUDA_VISIBLE_DEVICES": ",".join(gpus[i * each : (i + 1) * each])},
            frozenset(cores[i * len(cores) // count : (i + 1) * len(cores) // count] or cores),
            f"GPUs {', '.join(gpus[i * each : (i + 1) * each])}",
        )
        for i in range(count)
    ]


def _cores() -> list[int]:
    there = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else range(os.cpu_count())
    return sorted(there)


def _gpus() -> list[str]:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [gpu for gpu in visible.split(",") if gpu.strip()]
    return [str(i) for i in range(len(list(Path("/dev").glob("nvidia[0-9]*"))))]


def run(
    store: Store,
    command: Sequence[str],
    shares: Sequence[Share],
    on_look: Callable[[dict], None] | None = None,
    look_every: float = 1.0,
) -> bool:
    """Keeps workers at it until every job has ended; whether all are done.

    Args:
      command: starts a worker, which pulls jobs of the store until none is left (`work.pull`).
      on_look: called with the states of all jobs every now and then, and when all have ended.

    Raises Stopped when a worker gives up (a full disk), or all die again and again before they have
    claimed anything; KeyboardInterrupt after Ctrl-C: the workers have saved then what they had.
    """
    workers: dict[int, subprocess.Popen | None] = dict.fromkeys(range(len(shares)))
    driver, next_look = os.getpid(), 0.0
    entries, in_vain = 0, []
    try:
        while True:
            if time.monotonic() >= next_look:
                start = time.monotonic()
                states = store.states()
                if on_look:
                    on_look(states)
                before, entries = entries, sum(state.entry.number for state in states.values())
                if entries != before:
                    in_vain.clear()
                elif len(in_vain) >= MAX_DEATHS * len(shares):
                    raise Stopped(
                        f"{len(in_vain)} workers in a row were ended by {in_vain[-1]} before they "
                        f"began anything; try one: {shlex.join(command)}"
                    )
                # A store of thousands of runs takes a while to be looked at.
                next_look = start + max(look_every, 20 * (time.monotonic() - start))
                if all(state.is_final for state in states.values()):
                    return all(state.phase == "done" for state in states.values())
            for i, worker in workers.items():
                if worker is not None and (code := worker.poll()) is not None:
                    workers[i], next_look = None, 0.0
                    if code > 0 and code not in (TAKEN, AGAIN):
                        raise Stopped("a worker gave up, and its last line says why")
                    if code < 0:
                        in_vain.append(_signal(-code))
                        end = "\n" * sys.stderr.isatty()  # of a line of progress
                        print(f"{end}a worker was ended by {in_vain[-1]}", file=sys.stderr)
            if next_look and any(state.phase in _TO_DO for state in states.values()):
                for i, worker in workers.items():
                    if worker is None:
                        workers[i] = _start(command, shares[i], driver)
            time.sleep(min(0.1, look_every))
    except (KeyboardInterrupt, SystemExit):
        print("\nworkers save and stop; Ctrl-C again ends them at once", file=sys.stderr)
        raise
    finally:
        _stop([worker for worker in workers.values() if worker is not None])


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time one
        return f"signal {number}"


_TO_DO = ("ready", "waiting", "running")


def _start(command: Sequence[str], share: Share, driver: int) -> subprocess.Popen:
    def prepare():  # in the child: one share, no Ctrl-C of its own, death with the driver
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            os.sched_setaffinity(0, share.cores)
        if os.getppid() != driver:
            os._exit(1)

    return subprocess.Popen(
        command, env=os.environ | share.environ, stdin=subprocess.DEVNULL, preexec_fn=prepare
    )


def _stop(workers: Sequence[subprocess.Popen]) -> None:
    """Asks workers to save and leave, and waits; another Ctrl-C ends them at once."""
    for worker in workers:
        worker.terminate()
    deadline = time.monotonic() + GRACE
    try:
        for worker in workers:
            worker.wait(max(0.0, deadline - time.monotonic()))
    except (KeyboardInterrupt, subprocess.TimeoutExpired):
        pass
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()
