"""The progress of a sweep, read from its store."""

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from vvlm_jax.storage.bucket import Key
from vvlm_jax.sweep.store import backends
from vvlm_jax.sweep.store.store import Job, State, Store

_TAIL = 8192
"""Bytes at the end of a file of metrics that surely contain its last line."""


@dataclass(frozen=True)
class RunStatus:
    """The progress of one run; stage 1 of a language model counts as a run."""

    run: str
    phase: str
    """failed, running, done, cancelled, blocked, or waiting to begin or continue."""
    progress: float
    """Share of its work that is done, 0 to 1."""
    doing: str
    """Name of the job that is running or failed."""
    loss: float | None
    seconds_left: float | None
    """Of the training that is running."""
    error: str
    """Last line of the failed job's error."""


@dataclass(frozen=True)
class Overview:
    """The progress of a sweep."""

    runs: list[RunStatus]
    phases: Counter
    """Number of runs in each phase."""
    seconds_left: float | None
    """With the present number of workers, at the speed so far; None before the first job ended."""
    workers: int


def overview(store: Store, states: dict[str, State]) -> Overview:
    """Return the status of every run. Reads metrics only of runs that are under way."""
    by_run: dict[str, list[Job]] = {}
    for job in store.jobs.values():
        by_run.setdefault(job.run, []).append(job)
    spent = done = left = 0.0
    workers, runs = 0, []
    for run, jobs in by_run.items():
        line = _last_line(store, jobs, states)
        runs.append(_run_status(store, run, jobs, states, line))
        for job in jobs:
            state = states[job.id]
            if state.phase == "done":
                done, spent = done + job.cost, spent + state.entry.body.get("seconds", 0.0)
            elif not state.is_final:
                left += job.cost * (1 - (_share(job, line) if _has_begun(state) else 0))
            workers += state.phase == "running"
    known = done > 0 and spent > 0 and workers > 0
    seconds = left * spent / done / workers if known else None
    return Overview(runs, Counter(r.phase for r in runs), seconds, workers)


def _run_status(store: Store, run: str, jobs: list[Job], states, line: dict) -> RunStatus:
    mine = [(job, states[job.id]) for job in jobs]
    phases = {state.phase for _, state in mine}
    order = ("failed", "running", "cancelled", "blocked", "waiting")
    phase = next((p for p in order if p in phases), "waiting" if "ready" in phases else "done")
    total, done, doing, error, left = 0.0, 0.0, "", "", None
    for job, state in mine:
        total += job.cost
        done += job.cost if state.phase == "done" else 0
        if _has_begun(state):
            done += job.cost * _share(job, line)
        if state.phase == "running":
            doing, left = job.name, _seconds_left(store, job, line)
        elif state.phase == "failed":
            doing, error = job.name, state.entry.body.get("error", "?")
    loss = line.get("loss")
    for job, state in mine:
        if job.kind == "train" and state.phase == "done":
            loss = state.entry.body["result"].get("loss")
    return RunStatus(run, phase, done / total, doing, loss, left, error)


def _last_line(store: Store, jobs: list[Job], states) -> dict:
    """Return the newest line of metrics of a training under way; empty without one."""
    for job in jobs:
        if job.kind == "train" and _has_begun(states[job.id]):
            return last_metrics(store.folder(job.run) / "metrics.jsonl")
    return {}


def _has_begun(state: State) -> bool:
    """Return whether a worker has begun the job and it has not ended."""
    return state.entry.number > 0 and state.phase not in ("done", "cancelled")


def last_metrics(file: Path | Key) -> dict:
    """Return the last complete line of a file of metrics; empty when there is none."""
    try:
        text = backends.of(file).tail(file, _TAIL)
    except OSError:
        return {}
    for line in reversed(text[: text.rfind(b"\n") + 1].splitlines()):
        try:
            values = json.loads(line)
        except ValueError:
            continue
        if isinstance(values, dict):
            return values
    return {}


def _share(job: Job, line: dict) -> float:
    """Return the share of a training's steps that are done, by its metrics; 0 of other jobs."""
    steps = job.argument.get("steps")
    return min(1.0, line.get("step", 0) / steps) if steps and job.kind == "train" else 0.0


def _seconds_left(store: Store, job: Job, line: dict) -> float | None:
    steps, rate = job.argument.get("steps"), line.get("examples_per_second")
    if job.kind != "train" or not steps or not rate:
        return None
    batch = store.shared[job.argument["stage"]]["batch_size"]
    return max(0, steps - line["step"]) * batch / rate
