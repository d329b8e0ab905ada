"""A sweep on this machine: workers that run a store's jobs, each with a part of the devices.

All state is in the store, so several drivers may work on one, and a launch continues what an
earlier one left. Workers end with their driver, even when it is killed.
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
from vvlm_jax.exit_codes import Exit
from vvlm_jax.progress import printable
from vvlm_jax.sweep.status import overview
from vvlm_jax.sweep.store.store import MAX_DEATHS, State, Store
from vvlm_jax.sweep.text import failures, summary

_PR_SET_PDEATHSIG = 1
GRACE = 600.0
"""Seconds that a worker may take to save when it is asked to stop."""
LOOK_EVERY = 1.0
"""Seconds between looks at the store, at least; a slow store is looked at less."""
LOG_EVERY = 20.0
"""Seconds after which a log has a new line of progress."""
_TO_DO = ("ready", "waiting", "running")


class Share(NamedTuple):
    """The part of this machine that one worker uses."""

    environ: dict[str, str]
    cores: frozenset[int]
    text: str


def shares(workers: int) -> list[Share]:
    """Divide the accelerators between workers, or the cores if there are none.

    0 workers means one with all accelerators, or one for each core.

    Raises ConfigError when the accelerators cannot be divided by that number.
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


def drive(
    store: Store,
    command: Sequence[str],
    shares: Sequence[Share],
    on_look: Callable[[dict[str, State]], str | None] | None = None,
    line: Callable[[dict[str, State]], str] | None = None,
) -> bool:
    """Run workers until every job has ended, showing progress; return whether all are done.

    Failures are printed at the end. After SIGTERM this process ends with 75, once the workers have
    saved.

    Args:
      command: as `run` takes it.
      on_look: called with the states of all jobs from time to time; it may return a line to print.
      line: as `Watch` takes it.
    """
    before, watch = signal.signal(signal.SIGTERM, _terminate), Watch(store, line)

    def look(states: dict[str, State]) -> None:
        if on_look and (line := on_look(states)):
            watch.note(line)
        watch.show(states)

    try:
        done = run(store, command, shares, look, LOOK_EVERY)
    finally:
        watch.clear()
        signal.signal(signal.SIGTERM, before)
    if not done:
        for line in failures(store, store.states()):
            watch.note(line)
    return done


def _terminate(*_) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # a second one must not cut the saving short
    sys.exit(Exit.RETRY)


def run(
    store: Store,
    command: Sequence[str],
    shares: Sequence[Share],
    on_look: Callable[[dict[str, State]], None] | None = None,
    look_every: float = LOOK_EVERY,
) -> bool:
    """Keep workers running until every job has ended; return whether all are done.

    Args:
      command: the command line of a worker, which runs jobs until none is left (`worker.pull`).
      on_look: called with the states of all jobs from time to time, and when all have ended.
      look_every: as `LOOK_EVERY`.

    Raises Stopped when a worker gives up (a full disk), or when worker after worker dies before it
    has claimed a job; KeyboardInterrupt after Ctrl-C, once the workers have saved.
    """
    workers: dict[int, subprocess.Popen | None] = dict.fromkeys(range(len(shares)))
    driver, next_look = os.getpid(), 0.0
    entries, deaths = 0, []
    try:
        while True:
            if time.monotonic() >= next_look:
                start = time.monotonic()
                states = store.states()
                if on_look:
                    on_look(states)
                before, entries = entries, sum(state.entry.number for state in states.values())
                if entries != before:  # some worker has claimed or ended a job
                    deaths.clear()
                elif len(deaths) >= MAX_DEATHS * len(shares):
                    raise Stopped(
                        f"{len(deaths)} workers in a row were killed by {deaths[-1]} before they "
                        f"began a job; run one by hand: {shlex.join(command)}"
                    )
                next_look = start + max(look_every, 20 * (time.monotonic() - start))
                if all(state.is_final for state in states.values()):
                    return all(state.phase == "done" for state in states.values())
            for i, worker in workers.items():
                if worker is not None and worker.poll() is not None:
                    workers[i], next_look = None, 0.0
                    _check_end(worker.returncode, deaths)
            # After a worker ends, read the states again first: its job may have been the last one.
            if next_look and any(state.phase in _TO_DO for state in states.values()):
                for i, worker in workers.items():
                    if worker is None:
                        workers[i] = start_worker(command, shares[i], driver)
            time.sleep(min(0.1, look_every))
    except (KeyboardInterrupt, SystemExit):
        print("\nworkers are saving; Ctrl-C again kills them", file=sys.stderr)
        raise
    finally:
        _stop([worker for worker in workers.values() if worker is not None])


def _check_end(code: int, deaths: list[str]) -> None:
    """Note a worker that a signal killed. Raises Stopped for one that gave up."""
    if code > 0 and code not in (Exit.CLAIMED, Exit.RETRY):
        raise Stopped("a worker gave up, and its last line says why")
    if code < 0:
        deaths.append(_signal_name(-code))
        newline = "\n" * sys.stderr.isatty()  # after a line of progress
        print(f"{newline}a worker was killed by {deaths[-1]}", file=sys.stderr)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:  # a real-time signal
        return f"signal {number}"


def start_worker(command: Sequence[str], share: Share, driver: int) -> subprocess.Popen:
    """Start a worker with its share of the machine.

    Args:
      driver: id of this process, with which the worker ends.
    """

    def prepare():  # in the child: die with the driver, and leave Ctrl-C to it
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            os.sched_setaffinity(0, share.cores)
        if os.getppid() != driver:  # the driver died before prctl
            os._exit(1)

    return subprocess.Popen(
        command, env=os.environ | share.environ, stdin=subprocess.DEVNULL, preexec_fn=prepare
    )


def _stop(workers: Sequence[subprocess.Popen]) -> None:
    """Ask workers to save and end, and wait; another Ctrl-C kills them."""
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


class Watch:
    """The progress of a launch on standard error.

    On a terminal one line is rewritten; in a log there is a line for each run that ends, and at
    least one every `LOG_EVERY` seconds.

    Args:
      line: the states of all jobs -> the line of progress, in place of a summary of all runs; a log
        then has this line alone, and no line for each run.
    """

    def __init__(self, store: Store, line: Callable[[dict[str, State]], str] | None = None):
        self._store, self._live, self._line = store, sys.stderr.isatty(), line
        self._ended: dict[str, str] | None = None
        self._said = time.monotonic()

    def show(self, states: dict[str, State]) -> None:
        """Show what has changed."""
        found = overview(self._store, states)
        ended = {r.run: r for r in found.runs if r.phase in ("done", "failed", "cancelled")}
        if self._ended is None:  # jobs of earlier launches are not reported again
            self._ended = {run: r.phase for run, r in ended.items()}
        for run, r in ended.items():
            if self._ended.get(run) != r.phase:
                self._ended[run] = r.phase
                if r.error or not (self._live or self._line):
                    error = f": {r.doing}: {r.error}" if r.error else ""
                    self.note(f"{len(ended)}/{len(found.runs)} {run} {r.phase}{error}")
        shown = self._line(states) if self._line else summary(found)
        if not self._live and time.monotonic() - self._said >= LOG_EVERY:
            self.note(shown)
        if self._live:
            running = next((r for r in found.runs if r.phase == "running"), None)
            now = ""
            if running:
                loss = f" loss {running.loss:.3f}" if running.loss is not None else ""
                now = f" · {running.run} {running.progress:.0%}{loss}"
            sys.stderr.write(f"\r\x1b[K{shown}{now}")
            sys.stderr.flush()

    def note(self, line: str) -> None:
        """Print a line above the progress line."""
        self.clear()
        self._said = time.monotonic()
        print(printable(line), file=sys.stderr, flush=True)

    def clear(self) -> None:
        """Clear the progress line."""
        if self._live:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
