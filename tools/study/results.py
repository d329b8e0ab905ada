"""Results of a finished study: scores by run, controls, and the effect of each factor."""

import dataclasses
from collections import Counter

import numpy as np

from vvlm_jax.eval.scores import average
from vvlm_jax.sweep.config import SweepPoint
from vvlm_jax.sweep.store.store import Job, State, Store

MADE_FOR = {
    "num_frames": ("flash",),
    "tokens_per_frame": ("cell",),
    "lm_params": ("most", "word"),
    "num_examples": ("avg",),
}
"""Factor -> the task whose score it should raise; a world has one of them."""
NAMES = {
    "lm_params": "language-model parameters x_N",
    "num_frames": "frames x_T",
    "tokens_per_frame": "visual tokens a frame x_V",
    "num_examples": "training examples n",
}
MARGIN = 2.0
"""Standard errors by which a factor must lower its task's error to count as an effect."""


@dataclasses.dataclass(frozen=True)
class Results:
    """Scores, standard errors and numbers of questions by task, with `avg`, their mean.

    Attributes:
      by_run: run id -> the result of its evaluation.
      untrained: results of the untrained control, one for each random projector.
      other_clip: result of the control in which questions are asked about another clip.
      unreadable: messages of training files that could not be read, each naming its file.
    """

    by_run: dict[str, dict]
    untrained: list[dict]
    other_clip: dict
    unreadable: list[str]


def results(store: Store, states: dict[str, State]) -> Results:
    """Read the results of a store whose jobs are all done."""
    found: dict[str, list[tuple[Job, dict]]] = {}
    for id, job in store.jobs.items():
        found.setdefault(job.kind, []).append((job, states[id].entry.body["result"]))
    messages = {m for _, result in found["train"] for m in result["unreadable"]}
    return Results(
        {job.run: _averaged(result) for job, result in found["evaluate"]},
        [_averaged(result) for _, result in found["untrained"]],
        *(_averaged(result) for _, result in found["other-clip"]),
        sorted(messages),
    )


def _averaged(result: dict) -> dict:
    """Return the result with the mean over tasks, which are taken as independent."""
    scores, stderr = result["scores"], result["stderr"]
    mean, error = average(list(scores.values()), list(stderr.values()))
    return {**result, "scores": {**scores, "avg": mean}, "stderr": {**stderr, "avg": error}}


def mean_of(results) -> dict:
    """Return the mean scores of several results, with their standard errors."""
    scores, stderr = {}, {}
    for task in results[0]["scores"]:
        of_task = [[r[key][task] for r in results] for key in ("scores", "stderr")]
        scores[task], stderr[task] = average(*of_task)
    return {"scores": scores, "stderr": stderr}


@dataclasses.dataclass(frozen=True)
class Effect:
    """The fall of a task's error from a factor's smallest to its largest level.

    All other factors are at the star's centre.
    """

    factor: str
    task: str
    levels: tuple[float, float]
    errors: tuple[float, float]
    stderrs: tuple[float, float]

    @property
    def drop(self) -> float:
        """The fall of the error, in points."""
        return self.errors[0] - self.errors[1]

    @property
    def drop_in_stderrs(self) -> float:
        """The fall divided by the standard error of the difference."""
        return self.drop / max(np.hypot(*self.stderrs), 1e-9)


def effects(points, results: dict[str, dict]) -> list[Effect]:
    """Return the effect of each factor on the task made for it, at the largest n of the star."""
    star = [(_levels(p), results[p.run_id]) for p in points if p.sweep == "star"]
    factors = [f for f in NAMES if f != "num_examples"]
    at = common_levels([tuple(levels[f] for f in factors) for levels, _ in star])
    center = dict(zip(factors, at, strict=True))
    center["num_examples"] = max(levels["num_examples"] for levels, _ in star)
    found, scored = [], star[0][1]["scores"]
    for factor, tasks in MADE_FOR.items():
        task = next(task for task in tasks if task in scored)
        arm = sorted(
            (levels[factor], 100 - result["scores"][task], result["stderr"][task])
            for levels, result in star
            if all(levels[f] == center[f] for f in NAMES if f != factor)
        )
        low, high = arm[0], arm[-1]
        found.append(Effect(factor, task, (low[0], high[0]), (low[1], high[1]), (low[2], high[2])))
    return found


def star_center(points) -> SweepPoint:
    """Return the star's centre at the largest n: its levels are those that most runs have."""
    star = [p for p in points if p.sweep == "star"]
    at = common_levels([(p.lm_params, p.num_frames, p.tokens_per_frame) for p in star])
    center = [p for p in star if (p.lm_params, p.num_frames, p.tokens_per_frame) == at]
    return max(center, key=lambda p: p.num_examples)


def common_levels(points) -> tuple:
    """Return the level of each factor that most points have, which is a star's centre; the largest
    of several.

    Args:
      points: the levels of each point, as tuples.
    """
    counts = [Counter(levels) for levels in zip(*points, strict=True)]
    return tuple(max(count, key=lambda level: (count[level], level)) for count in counts)


def _levels(point: SweepPoint) -> dict[str, float]:
    return {factor: getattr(point, factor) for factor in NAMES}
