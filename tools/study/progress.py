"""The study's line of progress: `run 17 of 81 · sweep and evaluation · 6 min left`.

Time left is estimated from the costs of the jobs left, in FLOPs, at the rate of the jobs of the
same kind that are done, and a constant for each job beside (compiling, loading). Jobs that are not
known yet, since the law has not named them, are counted with costs like those it may name.
"""

import contextlib
import sys
import threading
import time
from collections.abc import Iterable

import numpy as np

from vvlm_jax.progress import duration
from vvlm_jax.sweep.status import last_metrics
from vvlm_jax.sweep.store.store import Job, State, Store

from ..common import shipped
from . import decision_jobs, jobs

study_lib = shipped("study")

EVERY = 20.0
"""Seconds between lines of a phase without jobs."""
FEW = 4
"""Jobs of a kind that give a rate of their own..."""
SPREAD = 3.0
"""...if the costliest costs so many times as much as the cheapest."""


class Progress:
    """The line of progress of a study's store.

    Args:
      store: its jobs.
      workers: how many jobs run at a time.
      ahead: jobs that will be added to the store.
      after: seconds of the phases that follow the jobs.
    """

    def __init__(self, store: Store, workers: int, ahead: Iterable[Job] = (), after: float = 0.0):
        self.store, self.workers = store, workers
        self.ahead, self.after = list(ahead), after
        here = {row["run_id"] for row in store.runs}
        self.trained = [f"{run}/train" for run in here]
        self.total = len(here) + len({j.run for j in self.ahead if _is_run(j)})

    def __call__(self, states: dict[str, State]) -> str:
        """Return the line."""
        done = sum(states[id].phase == "done" for id in self.trained)
        begun = sum(states[id].phase in ("done", "running") for id in self.trained)
        phase = jobs.phase(self.store, states)
        left = self.seconds_left(states)
        text = "" if left is None else f" · {duration(left)} left"
        count = f"run {begun} of {self.total} ({done} trained)"
        return f"{count} · {phase or 'jobs done'}{text}"

    def seconds_left(self, states: dict[str, State]) -> float | None:
        """Return the estimate for the whole study; None before enough has been measured."""
        seconds = estimate(self.store, states)
        if seconds is None:
            return None
        left = sum(seconds(job) for job in self.ahead)
        for id, job in self.store.jobs.items():
            if not states[id].is_final:
                left += seconds(job) * (1 - self._share(job, states[id]))
        return left / self.workers + self.after

    def _share(self, job: Job, state: State) -> float:
        """Return the share of a running training's steps that are done."""
        steps = job.argument.get("steps")
        if state.phase != "running" or job.kind != "train" or not steps:
            return 0.0
        step = last_metrics(self.store.folder(job.run) / "metrics.jsonl").get("step", 0)
        return min(1.0, step / steps)


def estimate(store: Store, states: dict[str, State]):
    """Return a function from a job to its seconds, by the jobs that are done; None without any."""
    done: dict[str, list[tuple[float, float]]] = {}
    for id, job in store.jobs.items():
        took = states[id].entry.body.get("seconds") if states[id].phase == "done" else None
        if took is not None:
            done.setdefault(_kind(job), []).append((job.cost, took))
    if not done:
        return None
    pairs = {kind: np.array(some) for kind, some in done.items()}
    trained = [some for kind, some in pairs.items() if kind != "data"]
    shared = _line(np.concatenate(trained or list(pairs.values())))
    lines = {kind: _own_line(some, shared) for kind, some in pairs.items()}

    def seconds(job: Job) -> float:
        constant, rate = lines.get(_kind(job), shared)
        return constant + rate * job.cost

    return seconds


def _own_line(pairs, shared: tuple[float, float]) -> tuple[float, float]:
    """Return the line of a kind [J, 2]; where its costs differ little, the shared one, scaled."""
    cost, seconds = pairs.T
    if len(pairs) >= FEW and cost.max() >= SPREAD * cost.min():
        return _line(pairs)
    scale = float(seconds.sum() / (shared[0] + shared[1] * cost).sum())
    return scale * shared[0], scale * shared[1]


def _line(pairs) -> tuple[float, float]:
    """Return (constant, rate), both 0 or more, that fit seconds to costs [J, 2] best."""
    cost, seconds = pairs.T
    through_zero = 0.0, float(seconds.sum() / cost.sum())
    if len(pairs) < FEW or cost.max() < SPREAD * cost.min():
        return through_zero
    rate, constant = np.polyfit(cost, seconds, 1, w=1 / seconds)  # by relative distances
    if rate < 0:
        return float(seconds.mean()), 0.0
    return (float(constant), float(rate)) if constant > 0 else through_zero


def _kind(job: Job) -> str:
    """Return the group of jobs whose seconds are alike for the same cost."""
    if job.kind == "train" and job.argument["stage"] != "finetune":
        return "pretrain"
    return "evaluate" if job.kind in ("evaluate", "untrained", "other-clip") else job.kind


def _is_run(job: Job) -> bool:
    return job.kind == "train" and job.argument["stage"] == "finetune"


def jobs_ahead(study, folder: str) -> list[Job]:
    """Return jobs like those that will test the decision, before it is known what they are.

    At each budget, as many configurations as will be tested, spread over those near it.
    """
    from fitting.rivals import within

    x_XK, cost = study_lib.domain(study).configurations(), study_lib.inference_cost(study)
    order = np.argsort(cost(x_XK))
    tested, count = [], 1 + len(study.decision.rivals)
    for budget in study_lib.tested_budgets(study):
        near = order[within(cost(x_XK), budget, study.decision.spend)[order]]
        picks = np.linspace(0, len(near) - 1, min(count, len(near))).round().astype(int)
        tested += [tuple(x) for x in x_XK[near[picks]].tolist()]
    if not tested:
        return []
    return decision_jobs.jobs(study, decision_jobs.sweeps(study, folder, tested))


@contextlib.contextmanager
def ticking(phase: str):
    """Print a line at the start of a block without jobs, and one every `EVERY` seconds in it.

    Yields a function that says what is being done.
    """
    start, over, doing = time.monotonic(), threading.Event(), [""]

    def say():
        print(f"— {phase}{doing[0]}", file=sys.stderr, flush=True)

    def tick():
        while not over.wait(EVERY):
            took = duration(time.monotonic() - start)
            print(f"{phase}{doing[0]}, {took} so far", file=sys.stderr, flush=True)

    def set_doing(text: str) -> None:
        doing[0] = f": {text}"

    say()
    thread = threading.Thread(target=tick, daemon=True)
    thread.start()
    try:
        yield set_doing
    finally:
        over.set()
        thread.join()
