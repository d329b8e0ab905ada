"""A sweep's folder: what is to be done, and how far it is. Any shared filesystem serves, and
buckets do (`buckets.py`).

    STORE/sweep.json           version, runs, jobs and what they share (`document.py`)
    STORE/runs/RUN/            a run: config, metrics, checkpoints and model of the trainer
    STORE/runs/RUN/jobs/       the journals of its jobs (`journal.py`): claims and results; in a
                               bucket STORE/jobs/RUN/, where one listing has all
    STORE/index.json           a copy of results, for speed alone; it may be removed

A job is `RUN/NAME` with what it comes after. Stage 1 is a run of its own, `stage1-LLM`.
"""

import json
import os
import socket
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from vvlm_jax.config import ConfigError, nearest
from vvlm_jax.storage.bucket import Key, Listed
from vvlm_jax.sweep.store import backends, journal, sweep_json
from vvlm_jax.sweep.store.journal import Entry

LEASE = 120.0
"""Seconds without a touch after which anybody may take a claim over."""
MAX_DEATHS = 10
"""Workers of a job that may die without a word, one after another, before it counts as failed."""
FAR = 200
"""Results that are not in the index from which on it is written again."""


@dataclass(frozen=True)
class Job:
    """One piece of work."""

    id: str
    """`RUN/NAME`."""
    kind: str
    """Which function does it (`work.Kinds`)."""
    argument: dict = field(default_factory=dict)
    """What the function needs beside what all share, as JSON."""
    after: tuple[str, ...] = ()
    """Jobs that must be done before."""
    cost: float = 1.0
    """Relative; costly jobs come first, and times left follow from it."""

    @property
    def run(self) -> str:
        """The run it belongs to."""
        return self.id.rpartition("/")[0]

    @property
    def name(self) -> str:
        """Its name within the run."""
        return self.id.rpartition("/")[2]


class State(NamedTuple):
    """How far a job is."""

    phase: str
    """`done failed cancelled running`, or not begun: `ready`, `waiting` for what comes before, or
    `blocked` by what failed.
    """
    entry: Entry

    @property
    def is_final(self) -> bool:
        """Whether nothing more happens by itself."""
        return self.phase in ("done", "failed", "cancelled", "blocked")


class Claim(NamedTuple):
    """The right to do a job, until somebody writes the next entry."""

    job: Job
    folder: Path | Key
    number: int

    @property
    def file(self) -> Path | Key:
        """Its entry."""
        return journal.file_of(self.folder, self.job.name, self.number)

    def is_held(self) -> bool:
        """Whether nobody has written the next entry."""
        return not journal.file_of(self.folder, self.job.name, self.number + 1).exists()


class NotClaimed(RuntimeError):
    """A job cannot be had; `phase` says why."""

    def __init__(self, phase: str, line: str):
        super().__init__(line)
        self.phase = phase


class Store:
    """An open sweep's folder. `Store.open(path)`, or `Store.create(path, name, …)`."""

    def __init__(self, path: Path | Key, asked: dict):
        self.path, self.name = path, asked["name"]
        self.shared, self.runs = asked["shared"], asked["runs"]
        self.lease, self.encoder = asked["lease"], asked.get("encoder")
        self.jobs = {
            id: Job(id, kind, argument, tuple(after), cost)
            for id, kind, argument, after, cost in asked["jobs"]
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
        """Makes the folder, or takes up the one that is there, to which jobs may have been added.

        Args:
          runs: rows of the runs table without metric and score, one a run that is scored.
          shared: what all jobs need, as JSON.
          encoder: x_M and x_W of equation 1 (`plan.encoder`), for who reports on the runs.
          dry_run: write nothing, and return the store that is there, or None.

        Raises ConfigError, with nothing changed, when the folder holds another sweep or no sweep.
        """
        path, asked = sweep_json.folder(path), _asked(name, jobs, runs, shared, lease, encoder)
        if not sweep_json.is_there(path):
            if dry_run:
                return None
            sweep_json.write_first(path, asked)
        if sweep_json.check_same(path, sweep_json.read(path), asked) and not dry_run:
            sweep_json.write_again(path, asked)
        return cls.open(path)

    @classmethod
    def renew(
        cls,
        path: str | Path,
        name: str,
        jobs: Iterable[Job],
        runs: Iterable[dict] = (),
        shared: dict | None = None,
        lease: float = LEASE,
        encoder: dict | None = None,
    ) -> "Store":
        """As `create`, but jobs may be left out, too, and the folder may hold other files. For who
        holds the folder alone and gives it a name of its own for all that jobs depend on: a job
        that was done is done, whatever is said of it now.
        """
        path = sweep_json.folder(path)
        sweep_json.write_again(path, _asked(name, jobs, runs, shared, lease, encoder))
        return cls.open(path)

    @classmethod
    def open(cls, path: str | Path | Key) -> "Store":
        """ConfigError when there is no sweep, one of another version, or a damaged one."""
        path = sweep_json.folder(path)
        if isinstance(path, Path):
            path = path.resolve()  # the trainer remembers the folder by this name
        return cls(path, sweep_json.read(path))

    @property
    def in_bucket(self) -> bool:
        """Whether runs have to be copied from and to the store (`copies.py`)."""
        return isinstance(self.path, Key)

    # --- what is there ---

    def states(self) -> dict[str, State]:
        """The state of every job: one listing a run, one file for what the index does not have."""
        self._load_index()
        newest = self._newest()
        ids = [id for id in self.jobs if id in newest]
        found = backends.of(self.path).each(lambda id: self._entry(id, *newest[id]), ids)
        entries = dict(zip(ids, found, strict=True))
        self._save_index()
        return self._judge(self.jobs, entries)

    def _newest(self) -> dict[str, tuple]:
        if self.in_bucket:
            return journal.numbers(self.path / "jobs")
        newest, runs = {}, str(self.path / "runs")  # a Path for each of thousands takes its time
        for run in dict.fromkeys(job.run for job in self.jobs.values()):
            for name, (number, file) in journal.numbers(f"{runs}/{run}/jobs").items():
                newest[f"{run}/{name}"] = number, file
        return newest

    def state(self, job_id: str) -> State:
        """The state of one job, read afresh."""
        wanted, entries = [self.job(job_id).id], {}
        while wanted:
            id = wanted.pop()
            job = self.jobs[id]
            found = journal.numbers(self._journals(job.run)).get(job.name)
            if found:
                entries[id] = journal.read(found[1].path, found[0])
            wanted += [other for other in job.after if other not in entries]
        return self._judge([job_id], entries)[job_id]

    def job(self, job_id: str) -> Job:
        """ConfigError names the nearest when there is none."""
        if job_id not in self.jobs:
            raise ConfigError(f"{self.path}: no job {job_id!r}; {nearest(job_id, self.jobs)}")
        return self.jobs[job_id]

    def folder(self, run: str) -> Path | Key:
        """A run's folder; a bucket's is worked on in a copy (`Context.folder`)."""
        return self.path / "runs" / run

    def _journals(self, run: str) -> Path | Key:
        return self.path / "jobs" / run if self.in_bucket else self.folder(run) / "jobs"

    def _entry(self, id: str, number: int, file: os.DirEntry | Listed) -> Entry:
        known = self._results.get(id)
        if known and known.number == number and known.touched == file.stat().st_mtime:
            return known
        entry = journal.read(file.path, number)
        if entry.event == journal.DONE:
            self._results[id] = entry
            self._unsaved += 1
        return entry

    def _judge(self, ids: Iterable[str], entries: dict[str, Entry]) -> dict[str, State]:
        """States from the newest entries, their own and of what comes before them."""
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

        return {id: State(phase(id), entries.get(id, journal.NONE)) for id in ids}

    def _now(self) -> float:
        try:
            return journal.now(self.path / "clock")
        except OSError:  # somebody who may only look: nothing is stale to them
            return 0.0

    def _was_touched(self, id: str, entry: Entry, now: float) -> bool:
        """Whether a claim that seems stale is not: it was touched between its reading and now."""
        if journal.is_dead(entry.body.get("life")):
            return False
        job = self.jobs[id]
        file = journal.file_of(self._journals(job.run), job.name, entry.number)
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
        if self._unsaved < FAR:
            return
        try:
            sweep_json.write_json(self.path / "index.json", self._results, indent=None)
            self._unsaved = 0
        except OSError:
            return  # a disk that is full, or not ours: it is for speed alone

    # --- what happens ---

    def claim(self, job_id: str) -> Claim:
        """Takes a job that is ready, or whose worker is dead. Raises NotClaimed."""
        state, job = self.state(job_id), self.job(job_id)
        if state.phase != "ready":
            raise NotClaimed(state.phase, f"{job_id}: {_why(state)}")
        entry, number = state.entry, state.entry.number + 1
        claim, deaths = Claim(job, self._journals(job.run), number), 0
        if entry.event == journal.CLAIM:
            deaths = entry.body.get("deaths", 0) + 1
        if deaths >= MAX_DEATHS:
            line = f"its worker died {deaths} times in a row without a word; out of memory?"
            journal.create(claim.file, journal.FAILED, error=line)
            raise NotClaimed("failed", f"{job_id}: {line}")
        made = journal.create(
            claim.file,
            journal.CLAIM,
            worker=f"{socket.gethostname()}:{os.getpid()}",
            life=journal.life(),
            lease=self.lease,
            deaths=deaths,
        )
        if not made:
            raise NotClaimed("running", f"{job_id}: somebody else was quicker")
        return claim

    def end(self, claim: Claim, event: str, **values) -> bool:
        """Writes how a claimed job ended, unless somebody else has taken it: then False."""
        return journal.create(claim._replace(number=claim.number + 1).file, event, **values)

    def retry(self, job_id: str) -> bool:
        """Makes a failed or cancelled job ready again; False when it is neither."""
        return self._write_next(job_id, journal.RETRY, ("failed", "cancelled"))

    def cancel(self, job_id: str) -> bool:
        """Takes a job that is not done from whoever does it; False when it had ended."""
        phases = ("ready", "waiting", "blocked", "running")
        return self._write_next(job_id, journal.CANCELLED, phases)

    def _write_next(self, job_id: str, event: str, phases) -> bool:
        job = self.job(job_id)
        while (state := self.state(job_id)).phase in phases:
            file = journal.file_of(self._journals(job.run), job.name, state.entry.number + 1)
            if journal.create(file, event):
                return True
        return False


def _why(state: State) -> str:
    """Why a job cannot be claimed."""
    body = state.entry.body
    return {
        "done": "done already",
        "running": f"claimed by {body.get('worker', '?')}",
        "failed": f"failed: {body.get('error', '?')}; tools.sweep retry makes it ready again",
        "cancelled": "cancelled; tools.sweep retry makes it ready again",
        "waiting": "waits for what comes before it",
        "blocked": "what comes before it has failed",
    }[state.phase]


def _asked(name: str, jobs: Iterable[Job], runs, shared: dict | None, *about) -> dict:
    rows = [[job.id, job.kind, job.argument, list(job.after), job.cost] for job in jobs]
    return sweep_json.of(name, rows, runs, shared or {}, *about)
