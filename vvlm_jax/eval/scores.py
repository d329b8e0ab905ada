"""What predictions are worth: every metric of every task with its confidence interval.

Questions about one video are no independent draws. Each mean therefore has Wilson's interval for
the number of independent questions that would give the standard error found between videos (as
Korn and Graubard propose for surveys): never outside 0–100, and of a width above zero even where
all are right. The mean over tasks takes its interval from theirs, as if tasks were independent.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from vvlm_jax.eval.grading import Verdict, grading, parse_verdict
from vvlm_jax.eval.judge import Judge
from vvlm_jax.eval.runner import answers

_Z = 1.959964  # 95 % of a normal distribution lie within so many standard deviations

MAIN = ("letters", "judge", "normalised")
"""The metric that stands for a task in the average: the first of these that it has."""


@dataclass(frozen=True)
class Score:
    """One mean, 0–100.

    Metrics: `letters` (option letters in replies), `likelihood` (the likeliest letter), `exact` and
    `normalised` (replies equal to an answer as they are, and after `mcq.normalise`), `judge` (share
    that the judge finds correct) and `judge_score` (its 0–5 × 20).
    """

    task: str
    metric: str
    score: float
    """NaN when there is nothing to take the mean of."""
    low: float
    """95 % interval, from `low` to `high`."""
    high: float
    num_questions: int
    left_out: int
    """Questions without a value: an unreadable video, or a judge's reply without a grade."""


def measure(
    questions: Sequence[dict],
    predictions: dict[str, dict],
    verdicts: dict[str, Verdict | None] | None = None,
) -> list[Score]:
    """Scores of every task, tasks in alphabetical order.

    Args:
      predictions: of every question, by id (`runner.read_predictions`).
      verdicts: of the open questions whose video could be read; None for what has no grade.
    """
    found = []
    for task in sorted({q["task"] for q in questions}):
        mine = [q for q in questions if q["task"] == task]
        kinds = {}
        for q in mine:
            for metric in _metrics(q, predictions[q["id"]], verdicts):
                kinds.setdefault(metric, []).append(q)
        for metric, asked in kinds.items():
            values = [_value(metric, q, predictions[q["id"]], verdicts) for q in asked]
            there = [(v, q["video"]) for v, q in zip(values, asked, strict=True) if v is not None]
            mean, low, high = interval([v for v, _ in there], [video for _, video in there])
            left_out = len(asked) - len(there)
            found.append(
                Score(task, metric, 100 * mean, 100 * low, 100 * high, len(there), left_out)
            )
    return found


def average(scores: Sequence[Score]) -> Score:
    """The mean of the tasks' main metrics (the paper's Metrics/Avg), every task weighing alike."""
    by_task: dict[str, dict[str, Score]] = {}
    for s in scores:
        by_task.setdefault(s.task, {})[s.metric] = s
    mains = [next(of[m] for m in MAIN if m in of) for of in by_task.values()]
    mean = float(np.mean([s.score for s in mains]))
    below = math.sqrt(sum((s.score - s.low) ** 2 for s in mains)) / len(mains)
    above = math.sqrt(sum((s.high - s.score) ** 2 for s in mains)) / len(mains)
    asked, left = (sum(getattr(s, name) for s in mains) for name in ("num_questions", "left_out"))
    return Score("avg", "main", mean, mean - below, mean + above, asked, left)


def interval(values: Sequence[float], groups: Sequence) -> tuple[float, float, float]:
    """(mean, low, high) of values in 0–1 that come in groups; NaN of none.

    Example: 8 of 10 right, each about its own video, is 0.8 with 0.49 to 0.94.
    """
    n = len(values)
    if not n:
        return math.nan, math.nan, math.nan
    x_N = np.asarray(values, float)
    _, group_N = np.unique(np.asarray(groups), return_inverse=True)
    num_groups, p = int(group_N.max()) + 1, float(x_N.mean())
    independent = float(num_groups)
    if num_groups > 1 and 0 < p < 1:
        off_G = np.bincount(group_N, x_N - p)
        variance = num_groups / (num_groups - 1) * float(off_G @ off_G) / n**2
        independent = p * (1 - p) / variance if variance > 0 else float(n)
        if np.isin(x_N, (0, 1)).all():
            independent = min(independent, n)  # luck may make videos more alike than chance does
    z2 = _Z**2 / independent
    middle, half = p + z2 / 2, _Z * math.sqrt(p * (1 - p) / independent + z2 / 4 / independent)
    return p, max(0.0, (middle - half) / (1 + z2)), min(1.0, (middle + half) / (1 + z2))


def grade(
    questions: Sequence[dict], predictions: dict[str, dict], judge: Judge, file: str | Path
) -> dict[str, Verdict | None]:
    """The judge's verdict on every reply to an open question, by id; None where it gave none.

    Writes them to `file` as JSON lines {id, task, correct, score, judge} with the judge's own
    words. Raises JudgeError, after which the same call goes on where it stopped.
    """
    asked, requests = judged(questions, predictions)
    replies = judge.ask(requests)
    verdicts = {q["id"]: parse_verdict(r.text) for q, r in zip(asked, replies, strict=True)}
    lines = []
    for q, reply in zip(asked, replies, strict=True):
        verdict = verdicts[q["id"]]
        values = verdict._asdict() if verdict else dict(correct=None, score=None)
        said = reply.refused or reply.text
        lines.append(json.dumps(dict(id=q["id"], task=q["task"], **values, judge=said)) + "\n")
    Path(file).write_text("".join(lines))
    return verdicts


def judged(questions: Sequence[dict], predictions: dict[str, dict]) -> tuple[list[dict], list]:
    """(open questions that have a reply, what a judge is asked about each)."""
    asked = [
        q for q in questions if not q.get("options") and "reply" in predictions.get(q["id"], {})
    ]
    return asked, [grading(q["question"], answers(q), predictions[q["id"]]["reply"]) for q in asked]


def _metrics(q: dict, prediction: dict, verdicts) -> tuple[str, ...]:
    if q.get("options"):
        # A video that cannot be read has no likelihood either; its task's other questions tell.
        return ("letters", "likelihood") if "likeliest" in prediction else ("letters",)
    return ("normalised", "exact", *(("judge", "judge_score") if verdicts is not None else ()))


def _value(metric: str, q: dict, prediction: dict, verdicts) -> float | None:
    """0–1, or None when there is none."""
    if "error" in prediction:
        return None
    if metric == "likelihood":
        return float(prediction["likeliest"] == q["answer"])
    if metric == "exact":
        return float(prediction["reply"].strip() in [a.strip() for a in answers(q)])
    if metric.startswith("judge"):
        verdict = verdicts[q["id"]]
        if verdict is None:
            return None
        return float(verdict.correct) if metric == "judge" else verdict.score / 5
    return float(prediction["correct"])
