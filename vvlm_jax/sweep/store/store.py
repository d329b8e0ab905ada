"""The store of a sweep: its jobs and the state of each, in a folder or a bucket.

    STORE/sweep.json           version, runs, jobs and what they share (`sweep_json.py`)
    STORE/runs/RUN/            a run: config, metrics, checkpoints and model of the trainer
    STORE/runs/RUN/jobs/       the journals of its jobs (`journal.py`): claims and results; in a
                               bucket STORE/jobs/RUN/, where one request lists all of them
    STORE/index.json           a cache of results, which may be deleted

The name of a job is `RUN/NAME`; a job may wait for others. Stage 1 is a run of its own,
`stage1-LLM`.
"""

import fnmatch
import json
import os
import socket
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from vvlm_jax.config import ConfigError
from vvlm_jax.config_check import nearest
from vvlm_jax.storage.bucket import Key, Listed
from vvlm_jax.sweep.store import backends, journal, sweep_json
from vvlm_jax.sweep.store.journal import Entry

LEASE = 120.0
"""Seconds without a touch after which another worker may take a claim over."""
MAX_DEATHS = 10
"""A job fails once this many of its workers in a row have died without recording an error."""
INDEX_AFTER = 200
"""The index is rewritten once it lacks this many results."""
RETRIED = ("failed", "cancelled")
"""Phases that `Store.retry` ends."""
CANCELLED = ("ready", "waiting", "blocked", "running")
"""Phases that `Store.cancel` ends."""


@dataclass(frozen=True)
class Job:
    """One piece of work."""

    id: str
    """`RUN/NAME`."""
    kind: str
    """Which function does it (`worker.Kinds`)."""
    argument: dict = field(default_factory=dict)
    """What the function needs beside `Store.shared`, as JSON."""
    after: tuple[str, ...] = ()
    """Ids of the jobs that must be done before."""
    cost: float = 1.0
    """Relative to other jobs: costly ones run first, and remaining time is estimated by it."""

    @property
    def run(self) -> str:
        """Return the run that the job belongs to."""
        return self.id.rpartition("/")[0]

    @property
    def name(self) -> str:
        """Return the name within the run."""
        return self.id.rpartition("/")[2]


class State(NamedTuple):
    """The state of a job."""

    phase: str
    """done, failed, cancelled or running; or not begun: ready, waiting (for other jobs), or blocked
    (by one that failed or was cancelled).
    """
    entry: Entry

    @property
    def is_final(self) -> bool:
        """Return whether the phase stays unless a user retries or cancels."""
        return self.phase in ("done", "failed", "cancelled", "blocked")


class Claim(NamedTuple):
    """The right to do a job, until someone writes the next entry of its journal."""

    job: Job
    folder: Path | Key
    number: int

    @property
    def file(self) -> Path | Key:
        """Return the path of the claim's entry."""
        return journal.entry_file(self.folder, self.job.name, self.number)

    def is_held(self) -> bool:
        """Return whether the claim still is the newest entry."""
        return not journal.entry_file(self.folder, self.job.name, self.number + 1).exists()


class NotClaimed(RuntimeError):
    """A job cannot be claimed; `phase` is its phase."""

    def __init__(self, phase: str, message: str):
        super().__init__(message)
        self.phase = phase


class Store:
    """An open store. Made by `Store.open(path)`, or `Store.create(path, name, …)`."""

    def __init__(self, path: Path | Key, content: dict):
        self.path, self.name = path, content["name"]
        self.shared, self.runs = content["shared"], content["runs"]
        self.lease, self.encoder = content["lease"], content.get("encoder")
        self.jobs = {
            id: Job(id, kind, argument, tuple(after), cost)
            for id, kind, argument, after, cost in content["jobs"]
        }
        self._results: dict[str, tuple[int, Entry]] | None = None
        self._unsaved = 0

    @classmethod
    def create(
        cls,
        path: str | Path | Key,
        name: str,
        jobs: Iterable[Job],
        runs: Iterable[dict] = (),
        shared: dict | None = None,
        lease: float = LEASE,
        encoder: dict | None = None,
        dry_run: bool = False,
    ) -> "Store | None":
        """Create a store, or open the one that exists and add the jobs that it lacks.

        Args:
          runs: rows of the table of runs without scores, one for each run that is scored.
          shared: what all jobs need, as JSON.
          encoder: x_M and x_W of equation 1 (`plan.encoder`), for reports.
          dry_run: write nothing, and return the store that exists, or None.

        Raises ConfigError, with nothing changed, when the folder holds another sweep or other
        files.
        """
        path, content = sweep_json.folder(path), _content(name, jobs, runs, shared, lease, encoder)
        if not sweep_json.is_there(path):
            if dry_run:
                return None
            sweep_json.write_first(path, content)
        if sweep_json.check_same(path, sweep_json.read(path), content) and not dry_run:
            sweep_json.write_again(path, content)
        return cls.open(path)

    @classmethod
    def renew(
        cls,
        path: str | Path,
        name: str,
        jobs: Iterable[Job],
        runs: Iterable[dict] = (),
        shared: dict | None = None,
        encoder: dict | None = None,
    ) -> "Store":
        """Create a store, or replace its jobs and runs; finished jobs stay finished.

        Unlike `create` this compares nothing, so the caller must hold the folder alone and give it
        a name that changes with all that jobs depend on.
        """
        path = sweep_json.folder(path)
        sweep_json.write_again(path, _content(name, jobs, runs, shared, LEASE, encoder))
        return cls.open(path)

    @classmethod
    def open(cls, path: str | Path | Key) -> "Store":
        """Open a store. Raises ConfigError as `sweep_json.read`."""
        path = sweep_json.folder(path)
        if isinstance(path, Path):
            path = path.resolve()  # the trainer remembers its folder, and compares it, by this name
        return cls(path, sweep_json.read(path))

    @property
    def in_bucket(self) -> bool:
        """Return whether workers need local copies of run folders (`sync.py`)."""
        return isinstance(self.path, Key)

    # --- states ---

    def states(self) -> dict[str, State]:
        """Return the state of every job.

        Lists each run's journals, or a bucket's all at once, and reads the newest entries that the
        index does not have.
        """
        self._load_index()
        newest = self._newest()
        ids = [id for id in self.jobs if id in newest]
        found = backends.of(self.path).each(lambda id: self._entry(id, *newest[id]), ids)
        entries = dict(zip(ids, found, strict=True))
        self._save_index()
        return self._states_of(self.jobs, entries)

    def _newest(self) -> dict[str, tuple]:
        if self.in_bucket:
            return journal.newest(self.path / "jobs")
        newest, runs = {}, str(self.path / "runs")  # str, because thousands of Paths take seconds
        for run in dict.fromkeys(job.run for job in self.jobs.values()):
            for name, (number, file) in journal.newest(f"{runs}/{run}/jobs").items():
                newest[f"{run}/{name}"] = number, file
        return newest

    def state(self, job_id: str) -> State:
        """Return the state of one job, without the index."""
        wanted, entries = [self.job(job_id).id], {}
        while wanted:
            id = wanted.pop()
            job = self.jobs[id]
            found = journal.newest(self._journals(job.run)).get(job.name)
            if found:
                entries[id] = journal.read(found[1].path, found[0])
            wanted += [other for other in job.after if other not in entries]
        return self._states_of([job_id], entries)[job_id]

    def job(self, job_id: str) -> Job:
        """Return a job. Raises ConfigError naming the nearest id when it does not exist."""
        if job_id not in self.jobs:
            raise ConfigError(f"{self.path}: no job {job_id!r}; {nearest(job_id, self.jobs)}")
        return self.jobs[job_id]

    def matching(self, pattern: str) -> list[str]:
        """Return the ids of a job, of all jobs of a run, or of what a pattern with * matches.

        Raises ConfigError naming the nearest run when nothing matches.
        """
        found = [
            id
            for id, job in self.jobs.items()
            if fnmatch.fnmatchcase(id, pattern) or fnmatch.fnmatchcase(job.run, pattern)
        ]
        if not found:
            runs = dict.fromkeys(job.run for job in self.jobs.values())
            raise ConfigError(f"{pattern}: no such run or job; {nearest(pattern, runs)}")
        return found

    def folder(self, run: str) -> Path | Key:
        """Return a run's folder in the store; workers use `worker.Context.folder`."""
        return self.path / "runs" / run

    def _journals(self, run: str) -> Path | Key:
        return self.path / "jobs" / run if self.in_bucket else self.folder(run) / "jobs"

    def _entry(self, id: str, number: int, file: os.DirEntry | Listed) -> Entry:
        known = self._results.get(id)
        # Compare times, too: a run that was removed by hand and run again has the same numbers.
        if known and known.number == number and known.touched == file.stat().st_mtime:
            return known
        entry = journal.read(file.path, number)
        if entry.event == journal.DONE:
            self._results[id] = entry
            self._unsaved += 1
        return entry

    def _states_of(self, ids: Iterable[str], entries: dict[str, Entry]) -> dict[str, State]:
        """Return states from the newest entries of jobs and of those that they wait for."""
        now, phases = None, {}
        for id, entry in entries.items():
            if entry.event == journal.CLAIM:
                if now is None:
                    now = self._now()
                if self._is_alive(entry, now) or self._was_touched(id, entry, now):
                    phases[id] = "running"
            elif entry.event in journal.TERMINAL:
                phases[id] = entry.event

        def phase(id: str) -> str:
            if id not in phases:
                before = [phase(other) for other in self.jobs[id].after]
                if any(p in ("failed", "cancelled", "blocked") for p in before):
                    phases[id] = "blocked"
                else:
                    phases[id] = "ready" if all(p == "done" for p in before) else "waiting"
            return phases[id]

        return {id: State(phase(id), entries.get(id, journal.NO_ENTRY)) for id in ids}

    def _now(self) -> float:
        try:
            return journal.now(self.path / "clock")
        except OSError:  # a user who may only read: show every claim as running
            return 0.0

    def _was_touched(self, id: str, entry: Entry, now: float) -> bool:
        """Read a stale claim again: reading thousands takes long, and it may have been touched
        between its reading and `now`.
        """
        if journal.is_dead(entry.body.get("life")):
            return False
        job = self.jobs[id]
        file = journal.entry_file(self._journals(job.run), job.name, entry.number)
        try:
            return self._is_alive(journal.read(file, entry.number), now)
        except FileNotFoundError:  # removed by hand
            return False

    def _is_alive(self, entry: Entry, now: float) -> bool:
        lease = entry.body.get("lease", self.lease)
        return now - entry.touched <= lease and not journal.is_dead(entry.body.get("life"))

    # --- the index ---

    def _load_index(self) -> None:
        if self._results is not None:
            return
        try:
            index = json.loads((self.path / "index.json").read_text())
            self._results = {id: Entry(*values) for id, values in index.items()}
        except (OSError, ValueError, TypeError, AttributeError):  # none, or a damaged one
            self._results = {}

    def _save_index(self) -> None:
        if self._unsaved < INDEX_AFTER:
            return
        try:
            sweep_json.write_json(self.path / "index.json", self._results, indent=None)
            self._unsaved = 0
        except OSError:
            return  # a full or read-only disk; the index is a cache

    # --- changes ---

    def claim(self, job_id: str) -> Claim:
        """Claim a job that is ready, or whose worker is dead. Raises NotClaimed."""
        state, job = self.state(job_id), self.job(job_id)
        if state.phase != "ready":
            raise NotClaimed(state.phase, f"{job_id}: {_why(state)}")
        entry, number = state.entry, state.entry.number + 1
        claim, deaths = Claim(job, self._journals(job.run), number), 0
        if entry.event == journal.CLAIM:
            deaths = entry.body.get("deaths", 0) + 1
        if deaths >= MAX_DEATHS:
            error = f"its worker died {deaths} times in a row without an error; out of memory?"
            journal.create(claim.file, journal.FAILED, error=error)
            raise NotClaimed("failed", f"{job_id}: {error}")
        made = journal.create(
            claim.file,
            journal.CLAIM,
            worker=f"{socket.gethostname()}:{os.getpid()}",
            life=journal.identity(),
            lease=self.lease,
            deaths=deaths,
        )
        if not made:
            raise NotClaimed("running", f"{job_id}: another worker claimed it first")
        return claim

    def end(self, claim: Claim, event: str, **values) -> bool:
        """Record how a claimed job ended; return False if the claim was lost before."""
        return journal.create(claim._replace(number=claim.number + 1).file, event, **values)

    def retry(self, job_id: str) -> bool:
        """Make a failed or cancelled job ready again; return False when it is neither."""
        return self._write_next(job_id, journal.RETRY, RETRIED)

    def cancel(self, job_id: str) -> bool:
        """Cancel a job, running or not; return False when it has ended."""
        return self._write_next(job_id, journal.CANCELLED, CANCELLED)

    def change(self, patterns: Iterable[str], what: str) -> int:
        """Retry or cancel all jobs that match and can be; return how many were.

        Args:
          patterns: as `matching` takes them.
          what: 'retry' or 'cancel'.
        """
        chosen = dict.fromkeys(id for pattern in patterns for id in self.matching(pattern))
        states, phases = self.states(), {"retry": RETRIED, "cancel": CANCELLED}[what]
        return sum(getattr(self, what)(id) for id in chosen if states[id].phase in phases)

    def _write_next(self, job_id: str, event: str, phases) -> bool:
        job = self.job(job_id)
        while (state := self.state(job_id)).phase in phases:
            number = state.entry.number + 1
            if journal.create(journal.entry_file(self._journals(job.run), job.name, number), event):
                return True
            # Another process wrote this number first: look at the state that it made.
        return False


def _why(state: State) -> str:
    """Return why a job in this state cannot be claimed."""
    body = state.entry.body
    return {
        "done": "done already",
        "running": f"claimed by {body.get('worker', '?')}",
        "failed": f"failed: {body.get('error', '?')}; vvlm sweep retry makes it ready again",
        "cancelled": "cancelled; vvlm sweep retry makes it ready again",
        "waiting": "waits for other jobs",
        "blocked": "a job that it waits for has failed",
    }[state.phase]


def _content(name: str, jobs: Iterable[Job], runs, shared: dict | None, *about) -> dict:
    rows = [[job.id, job.kind, job.argument, list(job.after), job.cost] for job in jobs]
    return sweep_json.of(name, rows, runs, shared or {}, *about)
