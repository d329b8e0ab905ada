"""Runs of a sweep on one machine: a pool of worker processes, one core each.

One core a worker keeps small runs efficient and makes their numbers independent of how many workers
or cores there are. Workers end with their parent, however it ends.
"""

import ctypes
import gc
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

from vvlm_jax import devices
from vvlm_jax.train.metrics import Progress

_PR_SET_PDEATHSIG = 1
_updates = None


class RunFailed(RuntimeError):
    """A run raised an error; the message names the run and the error."""


@dataclass(frozen=True)
class Job:
    """A picklable function and its argument; `cost` orders jobs and weighs progress."""

    name: str
    function: Callable[[Any], Any]
    argument: Any
    cost: float


def run_local(jobs: Iterable[Job], num_workers: int, on_update=None) -> dict[str, Any]:
    """Runs jobs in `num_workers` processes, costly ones first, and returns {name: result}.

    Args:
      on_update: called as `on_update(name, message)` with whatever jobs `report`, and as
        `on_update(name, None)` when one has finished.

    Raises RunFailed as soon as a job fails; the other running ones are stopped. KeyboardInterrupt
    stops everything at once.
    """
    jobs = sorted(jobs, key=lambda job: -job.cost)
    if not jobs:
        return {}
    context = multiprocessing.get_context("spawn")
    # Not a Queue: its put returns before the message is sent, so the last ones would get lost.
    updates, core_index = context.SimpleQueue(), context.Value("i", 0)
    pool = ProcessPoolExecutor(
        min(num_workers, len(jobs)),
        context,
        initializer=_start_worker,
        initargs=(updates, core_index, os.getpid()),
    )
    results, running = {}, {pool.submit(_call, job): job for job in jobs}
    try:
        while running:
            done, _ = wait(running, timeout=0.2, return_when=FIRST_COMPLETED)
            _drain(updates, on_update)
            for future in done:
                job = running.pop(future)
                try:
                    results[job.name] = future.result()
                except Exception as e:
                    raise RunFailed(f"{job.name}: {type(e).__name__}: {e}") from e
                if on_update:
                    on_update(job.name, None)
    except BaseException:
        _kill(pool)
        raise
    pool.shutdown()
    return results


def report(message: Any) -> None:
    """From inside a job: sends a message to the parent's `on_update`."""
    if _updates is not None:
        _updates.put((_current, message))


_current = ""


def _call(job: Job):
    global _current
    _current = job.name
    try:
        return job.function(job.argument)
    finally:
        release_memory()


def release_memory() -> None:
    """Drops compiled programs, and returns what compiling freed to the system.

    Else a worker grows by some 100 MB with every new shape, to several GB in a sweep of 45 runs.
    A program that is needed again is read from the compilation cache on disk.
    """
    if jax := sys.modules.get("jax"):
        jax.clear_caches()
    gc.collect()
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        trim(0)


def _start_worker(updates, core_index, parent: int) -> None:
    """In the child, before jax is imported: one core, no progress line or Ctrl-C of its own, death
    with the parent.
    """
    global _updates
    _updates = updates
    Progress.shown = False
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    devices.keep_freed_memory()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        with core_index.get_lock():
            index, core_index.value = core_index.value, core_index.value + 1
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[index % len(cores)]})
    if os.getppid() != parent:
        os._exit(1)


def _drain(updates, on_update):
    while not updates.empty():
        name, message = updates.get()
        if on_update:
            on_update(name, message)


def _kill(pool):
    for process in list((pool._processes or {}).values()):
        process.kill()
    pool.shutdown(wait=False, cancel_futures=True)
    time.sleep(0.05)
