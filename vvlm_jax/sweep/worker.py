"""One worker: takes a job of a store, keeps its claim alive, does it, and writes how it ended."""

import contextlib
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from vvlm_jax import devices
from vvlm_jax.config import ConfigError, Stopped
from vvlm_jax.storage.bucket import Unreachable
from vvlm_jax.sweep.store import journal
from vvlm_jax.sweep.store.store import Claim, Job, NotClaimed, Store
from vvlm_jax.sweep.store.sync import Copies

DONE, FAILED, BAD, TAKEN, AGAIN = 0, 1, 2, 3, 75
"""Exit codes: finished; failed, and the store says why; bad input; not to be had now (somebody
alive has it, or it waits for another job); stopped with its work saved, run it again."""
_BEATS = 6
"""Touches of a claim in the time of a lease."""


class Interrupted(Exception):
    """A job was asked to stop and did; doing it again continues."""


class Full(Stopped):
    """Nothing more can be written; the message names the disk's complaint and what to do."""


@dataclass
class Stop:
    """Whether this process was asked to stop; a handler of signals."""

    asked: bool = False
    at_once: bool = False

    def __call__(self, *_) -> None:
        """Somebody asks. Raises Interrupted where a job has said that it may be left anywhere."""
        self.asked = True
        if self.at_once:
            self.at_once = False
            raise Interrupted

    @contextlib.contextmanager
    def anywhere(self) -> Iterator[None]:
        """Within, being asked to stop raises Interrupted at once."""
        self.at_once = True
        try:
            if self.asked:
                raise Interrupted
            yield
        finally:
            self.at_once = False


@dataclass(frozen=True)
class Context:
    """What a job's function gets."""

    store: Store
    job: Job
    stop: Stop
    agreed: Callable[[int], bool] | None = None
    """Of several hosts: whether to stop before a step, the same on all."""
    copies: Copies | None = None
    """Of a bucket's store: the folders on this machine."""

    @property
    def folder(self) -> Path:
        """The run's folder."""
        return self.folder_of(self.job.run)

    def folder_of(self, run: str) -> Path:
        """The folder of another run, to read."""
        return self.copies.folder(run) if self.copies else self.store.folder(run)

    def should_stop(self, step: int) -> bool:
        """For trainers: whether to save before this step and raise Interrupted."""
        return self.agreed(step) if self.agreed else self.stop.asked


Kinds = Mapping[str, Callable[[Context], dict]]
"""{kind of job: function that does one and returns its result, as JSON}. Doing a job again must
continue or repeat it, never spoil it."""


@dataclass(frozen=True)
class Hosts:
    """The processes of one job: alone by default. The first keeps the journal."""

    index: int = 0
    agreed: Callable[[int], bool] | None = None
    tell: Callable[[int], int] = field(default=lambda code: code)
    """The first one's number, to all of them."""


_GO = -1


def run_job(
    store: Store, job_id: str, kinds: Kinds, stop: Stop, hosts: Hosts | None = None
) -> tuple[int, str]:
    """Does one job. Returns its exit code and a line for people.

    Raises Full when the store's disk takes no more: the job is as it was, and others would fail
    the same way.
    """
    hosts, job = hosts or Hosts(), store.job(job_id)
    if store.in_bucket and hosts.agreed is not None:
        raise ConfigError(
            f"{store.path}: the hosts of a job write one folder; mount a filesystem for the store "
            "(Filestore, FSx, NFS), or use one host a run"
        )
    if job.kind not in kinds:
        raise ConfigError(f"{job_id}: unknown kind {job.kind!r}; of another version's store?")
    claim, code, line = None, _GO, ""
    if hosts.index == 0:
        try:
            claim = store.claim(job_id)
        except NotClaimed as e:
            codes = {"done": DONE, "running": TAKEN, "waiting": TAKEN}
            code, line = codes.get(e.phase, FAILED), str(e)
        except OSError as e:
            hosts.tell(FAILED)
            raise _full(store, e) from e
    if (code := hosts.tell(code)) != _GO:
        return code, line
    context = Context(store, job, stop, hosts.agreed)
    if claim is None:  # another host of the job
        if job.kind == "train":  # the rest is done by the first host, on its own devices
            try:
                kinds[job.kind](context)
            except Interrupted:
                pass  # all hosts are, at one step
            except Exception:
                traceback.print_exc()  # the first one writes how the job ended
        return hosts.tell(FAILED), ""
    if store.in_bucket:
        copies = Copies(store.folder, job.run, claim.is_held, store.lease / 4)
        context = replace(context, copies=copies)
    code = FAILED
    try:
        code, line = _do(store, claim, kinds[job.kind], context)
    finally:
        hosts.tell(code)
    return code, line


def _do(store: Store, claim: Claim, function, context: Context) -> tuple[int, str]:
    start, id = time.monotonic(), claim.job.id
    try:
        with Heartbeat(store, claim):
            try:
                event, values, code = journal.DONE, {"result": _call(function, context)}, DONE
            except Interrupted:
                event, values, code = journal.STOPPED, {}, AGAIN
            except KeyboardInterrupt:
                store.end(claim, journal.STOPPED)
                raise
            except Exception as e:
                if _is_the_stores(e):
                    raise
                event, code = journal.FAILED, FAILED
                values = {"error": last_line(e), "traceback": traceback.format_exc()}
            seconds = round(time.monotonic() - start, 3)
            if not store.end(claim, event, seconds=seconds, **values):
                return TAKEN, f"{id}: somebody else has taken it; what it gave is thrown away"
    except Exception as e:
        if not _is_the_stores(e):
            raise
        with contextlib.suppress(OSError):
            store.end(claim, journal.STOPPED)
        raise _full(store, e) from e
    told = {DONE: "done", AGAIN: "stopped; run it again to continue", FAILED: values.get("error")}
    return code, f"{id}: {told[code]}"


def _call(function, context: Context) -> dict:
    """A job's result, or error. Of a bucket's store all that it wrote is up then."""
    with context.copies or contextlib.nullcontext() as copies:
        try:
            return function(context)
        finally:
            if copies is not None:
                copies.finish()


class Heartbeat(threading.Thread):
    """Touches a claim while its job is done, and ends the process when it is somebody else's.

    A process that could not touch its claim for most of its lease must be gone before another
    takes the job over: both would write to the run's folder. (What counts is safe anyway: only one
    can write the next entry.)
    """

    def __init__(self, store: Store, claim: Claim):
        super().__init__(daemon=True, name=f"heartbeat of {claim.job.id}")
        self.claim, self.lease = claim, store.lease
        self.over = threading.Event()

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.over.set()
        self.join()

    def run(self) -> None:
        """Until the job is over."""
        last = time.monotonic()
        while not self.over.wait(self.lease / _BEATS):
            try:
                if not self.claim.is_held():
                    self._leave("somebody else has taken it")
                before = time.monotonic()  # a touch may take a while to be answered
                journal.touch(self.claim.file)
                last = before
            except FileNotFoundError:
                self._leave("its claim was removed")
            except OSError as e:
                if time.monotonic() - last > self.lease * (1 - 1.5 / _BEATS):
                    self._leave(f"the store cannot be reached ({e.strerror})")

    def _leave(self, why: str) -> None:
        if self.over.is_set():
            return
        print(f"{self.claim.job.id}: {why}; leaving it", file=sys.stderr, flush=True)
        os._exit(TAKEN)


def pull(store: Store, kinds: Kinds, stop: Stop, poll: float = 1.0) -> None:
    """Does jobs, costly ones first, until nothing is left that anybody may do. Waits for jobs that
    others do: they may die.

    Raises Full as `run_job`, Interrupted when asked to stop.
    """
    while True:
        states = store.states()
        if all(state.is_final for state in states.values()):
            return
        ready = [id for id, state in states.items() if state.phase == "ready"]
        for id in sorted(ready, key=lambda id: -store.jobs[id].cost):
            if stop.asked:
                raise Interrupted
            code, _ = run_job(store, id, kinds, stop)
            if code == AGAIN:
                raise Interrupted
            if code != TAKEN:
                devices.release_memory()
                break  # what is ready may have changed
        else:
            time.sleep(poll)
        if stop.asked:
            raise Interrupted


def last_line(error: BaseException) -> str:
    """The last line of what an error says."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[-1][:500]}" if text else type(error).__name__


def _is_the_stores(error: BaseException) -> bool:
    """Whether an error says nothing about the job: it is as it was, and done again later."""
    return isinstance(error, Unreachable) or journal.is_full(error)


def _full(store: Store, error: BaseException) -> Exception:
    """What to raise when the store could not be written."""
    if not journal.is_full(error):
        return error
    return Full(f"{store.path}: {last_line(error)}; free some, and run the same command again")
