"""Scores of predictions: every metric of every task, its standard error and its 95% interval.

Questions about one video are not independent draws. Standard errors are therefore clustered by
video, and each mean has Wilson's interval for the number of independent questions that would give
that standard error (Korn and Graubard's proposal for surveys): it stays within 0-100 and has a
width above zero even where all questions are right. Averages over tasks treat tasks as independent.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from vvlm_jax.eval.answers import right_answers
from vvlm_jax.eval.grading import Verdict

_Z = 1.959964  # 95% of a normal distribution lie within so many standard deviations

MAIN = ("mixed", "letters", "judge", "normalised")
"""The metric that stands for a task in an average: the first of these that the task has."""


@dataclass(frozen=True)
class Score:
    """The mean of one metric over the questions of one task, 0-100.

    Metrics:
      letters: share of replies that name the right option's letter.
      likelihood: share of questions whose likeliest letter is the right one.
      exact, normalised: share of replies equal to an answer, as written or after
        `answers.normalise`.
      judge, judge_score: share that the judge finds correct, and its 0-5 times 20.
      mixed: of a task that has both multiple choice and open questions, the share that is right:
        by letters for the former, by `judge` (without one, `normalised`) for the latter.
    """

    task: str
    metric: str
    score: float
    """NaN when no question has a value."""
    score_se: float
    """Standard error of `score`, clustered by video; above 0. Where all questions agree, so that
    the sample's own is 0, the one that the interval's width implies."""
    low: float
    """Lower end of the 95% interval."""
    high: float
    num_questions: int
    """Questions with a value."""
    left_out: int
    """Questions without a value: an unreadable video, or a reply that the judge did not grade."""

    def __str__(self) -> str:
        left_out = f", {self.left_out} left out" if self.left_out else ""
        return (
            f"{self.task:12s} {self.metric:12s} {self.score:6.2f}  95% {self.low:6.2f} to "
            f"{self.high:6.2f}  ({self.num_questions} questions{left_out})"
        )


def measure(
    questions: Sequence[dict],
    predictions: Mapping[str, dict],
    verdicts: Mapping[str, Verdict | None] | None = None,
) -> list[Score]:
    """Return the scores of every task, tasks in alphabetical order.

    Args:
      predictions: by question id (`runner.read_predictions`), one for every question.
      verdicts: by id, the judge's verdicts on open questions whose video could be read; None for a
        reply without a grade.
    """
    found = []
    for task in sorted({q["task"] for q in questions}):
        mine = [q for q in questions if q["task"] == task]
        asked: dict[str, list[dict]] = {}
        for q in mine:
            for metric in _metrics(q, predictions[q["id"]], verdicts):
                asked.setdefault(metric, []).append(q)
        if len({bool(q.get("options")) for q in mine}) == 2:
            asked = {"mixed": mine, **asked}
        for metric, rows in asked.items():
            values = [_value(metric, q, predictions[q["id"]], verdicts) for q in rows]
            there = [(v, q["video"]) for v, q in zip(values, rows, strict=True) if v is not None]
            numbers = interval([v for v, _ in there], [video for _, video in there])
            left_out = len(rows) - len(there)
            found.append(Score(task, metric, *(100 * x for x in numbers), len(there), left_out))
    return found


def main_scores(scores: Sequence[Score]) -> dict[str, Score]:
    """Return {task: the score of its main metric}."""
    by_task: dict[str, dict[str, Score]] = {}
    for s in scores:
        by_task.setdefault(s.task, {})[s.metric] = s
    return {task: next(of[m] for m in MAIN if m in of) for task, of in by_task.items()}


def average(scores: Sequence[float], errors: Sequence[float | None]) -> tuple[float, float | None]:
    """Return the mean of k scores (the paper's Metrics/Avg) and its standard error sqrt(Σ se²) / k.

    The error treats the scores as independent; it is None where one of `errors` is None or NaN.
    """
    mean = sum(scores) / len(scores)
    if any(error is None or math.isnan(error) for error in errors):
        return mean, None
    return mean, math.sqrt(sum(error**2 for error in errors)) / len(errors)


def overall(scores: Sequence[Score]) -> Score:
    """Return the average of the tasks' main metrics as a Score of task `avg`."""
    mains = list(main_scores(scores).values())
    mean, error = average([s.score for s in mains], [s.score_se for s in mains])
    count = len(mains)
    below = math.sqrt(sum((s.score - s.low) ** 2 for s in mains)) / count
    above = math.sqrt(sum((s.high - s.score) ** 2 for s in mains)) / count
    asked = sum(s.num_questions for s in mains)
    left_out = sum(s.left_out for s in mains)
    error = math.nan if error is None else error
    return Score("avg", "main", mean, error, mean - below, mean + above, asked, left_out)


def as_json(scores: Sequence[Score]) -> dict[str, dict]:
    """Return {task: {metric: its numbers}} for JSON, which has no NaN: None stands for it."""
    found: dict[str, dict] = {}
    for score in scores:
        row = dataclasses.asdict(score)
        task, metric = row.pop("task"), row.pop("metric")
        numbers = {name: None if math.isnan(value) else value for name, value in row.items()}
        found.setdefault(task, {})[metric] = numbers
    return found


def interval(values: Sequence[float], groups: Sequence) -> tuple[float, float, float, float]:
    """Return (mean, standard error, low, high) of values in 0-1 that come in groups; NaN of none.

    Example: 8 of 10 right, each about its own video, is 0.8 with an error of 0.13, 0.49 to 0.94.
    """
    n = len(values)
    if not n:
        return (math.nan,) * 4
    x_N = np.asarray(values, float)
    _, group_N = np.unique(np.asarray(groups), return_inverse=True)
    num_groups, p = int(group_N.max()) + 1, float(x_N.mean())
    independent = float(num_groups)
    if num_groups > 1 and 0 < p < 1:
        off_G = np.bincount(group_N, x_N - p)
        variance = num_groups / (num_groups - 1) * float(off_G @ off_G) / n**2
        independent = p * (1 - p) / variance if variance > 0 else float(n)
        if np.isin(x_N, (0, 1)).all():
            # By luck videos may agree more than independent questions would.
            independent = min(independent, n)
    z2 = _Z**2 / independent
    middle, half = p + z2 / 2, _Z * math.sqrt(p * (1 - p) / independent + z2 / 4 / independent)
    low, high = max(0.0, (middle - half) / (1 + z2)), min(1.0, (middle + half) / (1 + z2))
    error = math.sqrt(p * (1 - p) / independent) or (high - low) / 2 / _Z
    return p, error, low, high


def _metrics(q: dict, prediction: dict, verdicts) -> tuple[str, ...]:
    if q.get("options"):
        # An unreadable video has no likelihood either; the task's other questions show the metric.
        return ("letters", "likelihood") if "likeliest" in prediction else ("letters",)
    return ("normalised", "exact", *(("judge", "judge_score") if verdicts is not None else ()))


def _value(metric: str, q: dict, prediction: dict, verdicts) -> float | None:
    """Return a value in 0-1, or None when the question has none."""
    if "error" in prediction:
        return None
    if metric == "mixed":
        metric = "letters" if q.get("options") else "normalised" if verdicts is None else "judge"
    if metric == "likelihood":
        return float(prediction["likeliest"] == q["answer"])
    if metric == "exact":
        return float(prediction["reply"].strip() in [a.strip() for a in right_answers(q)])
    if metric.startswith("judge"):
        verdict = verdicts[q["id"]]
        if verdict is None:
            return None
        return float(verdict.correct) if metric == "judge" else verdict.score / 5
    return float(prediction["correct"])
