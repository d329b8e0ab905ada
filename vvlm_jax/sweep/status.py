"""How far a sweep is, and its table of runs, from the store alone."""

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from vvlm_jax.config import ConfigError
from vvlm_jax.eval.scores import average
from vvlm_jax.storage.bucket import Key
from vvlm_jax.sweep.store import backends
from vvlm_jax.sweep.store.store import Job, State, Store

QUESTIONS = "questions"
"""Protocol of the scores of question files, in the table of runs."""
_TAIL = 8192
"""Bytes at the end of a run's metrics that hold its last line."""


@dataclass(frozen=True)
class RunStatus:
    """One run, stage 1's among them."""

    run: str
    phase: str
    """`failed`, `running`, `done`, `cancelled`, `blocked`, or `waiting` to begin or go on."""
    progress: float
    """Share of its work that is done."""
    doing: str
    """What is running, or failed."""
    loss: float | None
    seconds_left: float | None
    """Of the training that runs."""
    error: str
    """Last line of what failed."""


@dataclass(frozen=True)
class Overview:
    """A sweep at a glance."""

    runs: list[RunStatus]
    phases: Counter
    """Runs by phase."""
    seconds_left: float | None
    """At the speed of what is done, with as many workers as there are now; None before."""
    workers: int


def overview(store: Store, states: dict[str, State]) -> Overview:
    """The status of every run. Reads metrics of those alone that have begun and are not done."""
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
    """The newest line of metrics of a training that is not done; empty without one."""
    for job in jobs:
        if job.kind == "train" and _has_begun(states[job.id]):
            return last_metrics(store.folder(job.run) / "metrics.jsonl")
    return {}


def _has_begun(state: State) -> bool:
    """Whether somebody is at it, or left it with a part done."""
    return state.entry.number > 0 and state.phase not in ("done", "cancelled")


def last_metrics(file: Path | Key) -> dict:
    """The last whole line of a file of metrics; empty when there is none."""
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
    """Share of a job that is done, as its metrics say."""
    steps = job.argument.get("steps")
    return min(1.0, line.get("step", 0) / steps) if steps and job.kind == "train" else 0.0


def _seconds_left(store: Store, job: Job, line: dict) -> float | None:
    steps, rate = job.argument.get("steps"), line.get("examples_per_second")
    if job.kind != "train" or not steps or not rate:
        return None
    batch = store.shared[job.argument["stage"]]["batch_size"]
    return max(0, steps - line["step"]) * batch / rate


# --- the table of runs ---


@dataclass(frozen=True)
class Collected:
    """The rows of the runs table that a store can give, and what is missing."""

    rows: list[dict]
    """Keys: run_id, sweep, lm_params, num_frames, tokens_per_frame, num_examples, seed, protocol,
    metric, score, score_se; the last is None where the evaluation gave none."""
    missing: list[tuple[str, str]]
    """(run, or run and metric; why there is no score)."""
    milestones: list[dict]
    """Scores of checkpoints before the last: run_id, step, seed, protocol, metric, score,
    score_se."""


def collect(store: Store, states: dict[str, State]) -> Collected:
    """Return every score that the jobs have given, and for each run whose scores are complete
    `avg`, the mean over its metrics.

    A run with a missing score has no `avg`.

    Raises ConfigError when two evaluations have a task of the same name.
    """
    asked: dict[str, list[Job]] = {run["run_id"]: [] for run in store.runs}
    for job in store.jobs.values():
        if job.kind == "evaluate" and job.run in asked:
            asked[job.run].append(job)
    rows, missing, milestones = [], [], []
    for run in store.runs:
        run = {**run, "seed": _seed(store, run)}
        scores, whole = {}, True
        for job in asked[run["run_id"]]:
            state, early = states[job.id], job.argument.get("milestone")
            if state.phase != "done":
                whole = whole and bool(early)
                missing.append((job.id, state.entry.body.get("error") or state.phase))
                continue
            found = _measured(state.entry.body["result"])
            if early:
                at = {key: run[key] for key in ("run_id", "seed")} | {"step": job.argument["step"]}
                order = ("run_id", "step", "seed", "protocol", "metric", "score", "score_se")
                milestones += [{key: (at | row)[key] for key in order} for row in found]
                continue
            for row in found:
                if row["metric"] in scores:
                    name = row["metric"]
                    raise ConfigError(f"{job.id}: {name!r} is a task of another evaluation too")
                scores[row["metric"]] = row
        for metric, row in scores.items():
            if row["score"] is None:
                whole = False
                missing.append((f"{run['run_id']} {metric}", "no question could be scored"))
            else:
                rows.append({**run, **row})
        protocols = {row["protocol"] for row in scores.values()}
        if len(protocols) == 1 and whole and "avg" not in scores:
            score, error = average(
                [row["score"] for row in scores.values()],
                [row["score_se"] for row in scores.values()],
            )
            one = dict(protocol=protocols.pop(), metric="avg", score=score, score_se=error)
            rows.append({**run, **one})
    return Collected(rows, missing, milestones)


def _measured(result: dict) -> list[dict]:
    """Return an evaluation's result as rows: protocol, metric, score, score_se."""
    protocol, errors = result.get("protocol", QUESTIONS), result.get("stderr", {})
    return [
        dict(protocol=protocol, metric=metric, score=score, score_se=errors.get(metric))
        for metric, score in result["scores"].items()
    ]


def _seed(store: Store, run: dict) -> int | None:
    """Return the seed of a run; a store of an older version names it in its training stage."""
    return run["seed"] if "seed" in run else store.shared.get("finetune", {}).get("seed")
