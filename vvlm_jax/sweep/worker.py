"""A worker: claims a job of a store, keeps the claim alive, runs the job and records its end."""

import contextlib
import json
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
from vvlm_jax.exit_codes import Exit
from vvlm_jax.storage.bucket import Unreachable
from vvlm_jax.sweep.store import journal
from vvlm_jax.sweep.store.store import Claim, Job, NotClaimed, Store
from vvlm_jax.sweep.store.sync import RunSync

_TOUCHES_PER_LEASE = 6
_CLAIMED = -1
"""What the first host tells the others when it has claimed the job; exit codes are never < 0."""


class Interrupted(Exception):
    """A job stopped because it was asked to; running it again continues it."""


class StoreFull(Stopped):
    """The store's disk is full; the message names the error and what to do."""


@dataclass
class Stop:
    """A request to stop this process. An instance is a signal handler."""

    asked: bool = False
    at_once: bool = False

    def __call__(self, *_) -> None:
        """Record the request. Raises Interrupted inside a block of `anywhere`."""
        self.asked = True
        if self.at_once:
            self.at_once = False
            raise Interrupted

    @contextlib.contextmanager
    def anywhere(self) -> Iterator[None]:
        """Allow a block to be interrupted at any point: a request raises Interrupted in it."""
        self.at_once = True
        try:
            if self.asked:
                raise Interrupted
            yield
        finally:
            self.at_once = False


@dataclass(frozen=True)
class Context:
    """The argument of a job's function."""

    store: Store
    job: Job
    stop: Stop
    agreed: Callable[[int], bool] | None = None
    """With several hosts: whether to stop before a step; all hosts get the same answer."""
    sync: RunSync | None = None
    """With a store in a bucket: the copies of run folders on this machine."""

    @property
    def folder(self) -> Path:
        """Return the run's folder on this machine."""
        return self.folder_of(self.job.run)

    def folder_of(self, run: str) -> Path:
        """Return the folder of a run on this machine; only the job's own may be written."""
        return self.sync.folder(run) if self.sync else self.store.folder(run)

    def should_stop(self, step: int) -> bool:
        """Return whether a trainer should save before this step and raise Interrupted."""
        return self.agreed(step) if self.agreed else self.stop.asked


Kinds = Mapping[str, Callable[[Context], dict]]
"""{kind of job: function that does one and returns its result, as JSON}. A function may be called
again for a job that was begun before: it must continue or repeat the work."""


@dataclass(frozen=True)
class Hosts:
    """The processes that do one job together, one by default. The first writes the journal."""

    index: int = 0
    agreed: Callable[[int], bool] | None = None
    broadcast: Callable[[int], int] = field(default=lambda code: code)
    """Returns the first process's number on every process."""


def join_hosts(coordinator: str | None, processes: int | None, process: int | None) -> Hosts:
    """Join the other processes of this job, if there are any, by jax.distributed.

    Args:
      coordinator, processes, process: as `distributed.join` takes them; None where a TPU pod or
        Slurm tells.
    """
    from vvlm_jax import distributed

    agreed = distributed.join(coordinator, processes, process)
    if agreed is None:
        return Hosts()
    import jax
    import numpy as np
    from jax.experimental import multihost_utils

    def broadcast(code: int) -> int:
        return int(multihost_utils.broadcast_one_to_all(np.int32(code)))

    return Hosts(jax.process_index(), agreed, broadcast)


def run_job(
    store: Store, job_id: str, kinds: Kinds, stop: Stop, hosts: Hosts | None = None
) -> tuple[int, str]:
    """Run one job. Return its exit code and a message.

    Raises StoreFull when the store's disk is full: the job stays as it was, and other jobs would
    fail the same way.
    """
    hosts, job = hosts or Hosts(), store.job(job_id)
    if store.in_bucket and hosts.agreed is not None:
        raise ConfigError(
            f"{store.path}: the hosts of a job write one folder; mount a filesystem for the store "
            "(Filestore, FSx, NFS), or use one host a run"
        )
    if job.kind not in kinds:
        raise ConfigError(
            f"{job_id}: unknown kind {job.kind!r}; was the store made by another version?"
        )
    claim, code, message = None, _CLAIMED, ""
    if hosts.index == 0:
        try:
            claim = store.claim(job_id)
        except NotClaimed as e:
            codes = {"done": Exit.DONE, "running": Exit.CLAIMED, "waiting": Exit.CLAIMED}
            code, message = codes.get(e.phase, Exit.FAILED), str(e)
        except OSError as e:
            hosts.broadcast(Exit.FAILED)  # or the others would wait for ever
            raise _store_full(store, e) from e
    if (code := hosts.broadcast(code)) != _CLAIMED:
        return code, message
    context = Context(store, job, stop, hosts.agreed)
    if claim is None:
        return _follow(kinds[job.kind], context, hosts), ""
    if store.in_bucket:
        sync = RunSync(store.folder, job.run, claim.is_held, store.lease / 4)
        context = replace(context, sync=sync)
    code = Exit.FAILED
    try:
        code, message = _run_claimed(store, claim, kinds[job.kind], context)
    finally:
        hosts.broadcast(code)
    return code, message


def _follow(function, context: Context, hosts: Hosts) -> int:
    """Do the part of a host that is not the first; return the exit code that the first one tells.

    Only trainings use all hosts: the first does other jobs alone, on its own devices.
    """
    if context.job.kind == "train":
        try:
            function(context)
        except Interrupted:
            pass  # on all hosts, at the same step
        except Exception:
            traceback.print_exc()  # the first host records how the job ended
    return hosts.broadcast(Exit.FAILED)


def _run_claimed(store: Store, claim: Claim, function, context: Context) -> tuple[int, str]:
    """Run a job that this process has claimed and write the next entry of its journal."""
    start, id = time.monotonic(), claim.job.id
    try:
        with Heartbeat(store, claim):
            try:
                result = _call(function, context)
                event, values, code = journal.DONE, {"result": result}, Exit.DONE
            except Interrupted:
                event, values, code = journal.STOPPED, {}, Exit.RETRY
            except KeyboardInterrupt:
                store.end(claim, journal.STOPPED)
                raise
            except Exception as e:
                if _is_the_stores(e):
                    raise
                event, code = journal.FAILED, Exit.FAILED
                values = {"error": last_line(e), "traceback": traceback.format_exc()}
            seconds = round(time.monotonic() - start, 3)
            if not store.end(claim, event, seconds=seconds, **values):
                return Exit.CLAIMED, f"{id}: another worker took the job; this result is discarded"
    except Exception as e:
        if not _is_the_stores(e):
            raise
        # The store failed, not the job: release the claim so that the job can run again.
        with contextlib.suppress(OSError):
            store.end(claim, journal.STOPPED)
        raise _store_full(store, e) from e
    messages = {
        Exit.DONE: "done",
        Exit.RETRY: "stopped; run it again to continue",
        Exit.FAILED: values.get("error"),
    }
    return code, f"{id}: {messages[code]}"


def _call(function, context: Context) -> dict:
    """Return a job's result; a bucket then has all files that the job wrote, also if it raised."""
    with context.sync or contextlib.nullcontext() as sync:
        try:
            return function(context)
        finally:
            if sync is not None:
                sync.finish()


class Heartbeat(threading.Thread):
    """A thread that touches a claim while its job runs, and ends the process if the claim is lost.

    A process that could not touch its claim for most of the lease must end before another worker
    may take the job over, or both would write to the run's folder. The journal itself would stay
    right: only one of them can create the next entry.
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
        """Touch the claim several times a lease until the job is over."""
        last = time.monotonic()
        while not self.over.wait(self.lease / _TOUCHES_PER_LEASE):
            try:
                if not self.claim.is_held():
                    self._leave("another worker has taken it")
                # The store sets the time on arrival, which may be at once: count from the request.
                before = time.monotonic()
                journal.touch(self.claim.file)
                last = before
            except FileNotFoundError:
                self._leave("its claim was removed")
            except OSError as e:
                if time.monotonic() - last > self.lease * (1 - 1.5 / _TOUCHES_PER_LEASE):
                    self._leave(f"the store cannot be reached ({e.strerror})")

    def _leave(self, why: str) -> None:
        if self.over.is_set():
            return
        print(f"{self.claim.job.id}: {why}; leaving it", file=sys.stderr, flush=True)
        os._exit(Exit.CLAIMED)  # no clean-up: it would write to the run's folder


def pull(store: Store, kinds: Kinds, stop: Stop, poll: float = 1.0) -> None:
    """Run jobs until all have ended: first those of the last job's model, which need no compile,
    then those of models that no other worker compiles now; of these the costliest first.

    Waits while other workers run the last jobs: a worker may die, and its job become ready again.

    Raises StoreFull as `run_job` does, Interrupted when asked to stop.
    """
    models, last = {id: _model_of(store, job) for id, job in store.jobs.items()}, None
    while True:
        states = store.states()
        if all(state.is_final for state in states.values()):
            return
        ready = [id for id, state in states.items() if state.phase == "ready"]
        elsewhere = {models[id] for id, state in states.items() if state.phase == "running"}

        def rank(id: str, last=last, elsewhere=elsewhere) -> tuple:
            known = models[id] is not None and models[id] == last
            return not known, models[id] in elsewhere, -store.jobs[id].cost

        for id in sorted(ready, key=rank):
            if stop.asked:
                raise Interrupted
            if models[id] is None or models[id] != last:
                devices.release_memory()
            code, _ = run_job(store, id, kinds, stop)
            if code == Exit.RETRY:
                raise Interrupted
            if code != Exit.CLAIMED:
                last = models[id]
                break  # other jobs may be ready now
        else:
            time.sleep(poll)
        if stop.asked:
            raise Interrupted


def _model_of(store: Store, job: Job) -> str | None:
    """Return what decides which programs a job compiles: the model that its run trains.

    None where the run trains none, as data do.
    """
    trained = store.jobs.get(f"{job.run}/train")
    model = trained and trained.argument.get("model")
    return json.dumps([trained.argument.get("stage"), model]) if model else None


def last_line(error: BaseException) -> str:
    """Return the last line of an error's message, after the name of its type."""
    text = str(error).strip().splitlines()
    return f"{type(error).__name__}: {text[-1][:500]}" if text else type(error).__name__


def _is_the_stores(error: BaseException) -> bool:
    """Return whether the store, not the job, caused an error; the job can be run again later."""
    return isinstance(error, Unreachable) or journal.is_full(error)


def _store_full(store: Store, error: BaseException) -> Exception:
    """Return the exception to raise for an error that the store caused."""
    if not journal.is_full(error):
        return error
    return StoreFull(f"{store.path}: {last_line(error)}; free some, and run the same command again")
