"""A pool of processes for the jobs of a report."""

import contextlib
import functools
import os
import signal
import threading
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import active_children, get_context, parent_process

from fitting.report.compute import run_here


@contextlib.contextmanager
def pool(workers: int):
    """Give `run(jobs, on_done)`, which shares jobs among `workers` processes.

    `run` takes {key: (function, *arguments)} and returns {key: value}; on_done(key, value) is
    called in this process as each job ends. One worker means this process.

    Raises:
      ValueError: a process was killed.
    """
    if workers == 1:
        yield run_here
        return
    context = get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_prepare) as executor:
        try:
            yield functools.partial(_run_apart, executor)
        except BrokenProcessPool:
            raise ValueError(
                "a process of the report was killed, perhaps for lack of memory; fewer --workers "
                "need less"
            ) from None
        except BaseException:
            for child in active_children():  # results of unfinished jobs are of no use
                child.terminate()
            executor.shutdown(cancel_futures=True)
            raise


def _run_apart(executor, jobs: dict, on_done=lambda key, value: None) -> dict:
    futures, done = {executor.submit(*job): key for key, job in jobs.items()}, {}
    for future in as_completed(futures):
        done[futures[future]] = future.result()
        on_done(futures[future], done[futures[future]])
    return done


def _prepare() -> None:
    """Leave Ctrl-C and accelerators to the parent, and end when the parent ends.

    A worker blocks on a queue that a killed parent never closes, hence the thread.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.environ["JAX_PLATFORMS"] = "cpu"
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent_process().join()
    os._exit(1)
