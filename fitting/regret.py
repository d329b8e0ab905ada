"""Measure what a chosen configuration loses against rivals that were trained too.

All configurations are trained with the same seeds and answer the same questions. A difference of
two errors then has two sources of noise:

- runs: another seed gives another model. The differences are paired by seed. Their variance is the
  residual of a two-way analysis of variance (configurations x seeds), pooled over all
  configurations: (C - 1)(S - 1) degrees of freedom instead of the S - 1 of one pair.
- questions: other videos give other scores. The differences are paired by question, and summed by
  video, since questions about one video are not independent draws.

The two are added and what both contain, the noise of one run on one video, is taken off once
(two-way clustering: Cameron, Gelbach & Miller 2011). Intervals are Student's, with Satterthwaite's
degrees of freedom. Simulations in tests/fitting/test_regret.py check their coverage: 90% hold 88 to
92%, and 81% where the runs of x* vary three times as much as those of the others, which pooling
does not see.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

CONFIRMED, REFUTED, NOT_RESOLVED = "confirmed", "refuted", "not resolved"
RULE = (
    "confirmed: the {level:.0%} interval of the regret against every rival ends at or below the "
    "bound; refuted: against some rival the interval, widened for {rivals} comparisons, lies "
    "entirely above the bound; not resolved: neither"
)
"""The rule of `outcome` in words."""


class PairedRegret(NamedTuple):
    """Errors of C configurations with S seeds, and the regret of the first against the others.

    Attributes:
      error: measured error [C, S], 0-100: the mean over tasks.
      regret: [C - 1], mean over seeds of the first one's error minus a rival's, in points.
      stderr, dof: [C - 1], its standard error and that error's degrees of freedom.
      low, high: [C - 1], the interval of each regret alone.
      low_together: [C - 1], lower ends that hold for all rivals at once (Bonferroni).
      rank: of the first by mean error, 1 is the best.
      run_sd, run_dof: standard deviation between runs of one configuration, seeds' common shift
        removed, and its degrees of freedom.
    """

    error: np.ndarray
    regret: np.ndarray
    stderr: np.ndarray
    dof: np.ndarray
    low: np.ndarray
    high: np.ndarray
    low_together: np.ndarray
    rank: int
    run_sd: float
    run_dof: int


def paired_regret(
    correct_CSQ, task_Q: Sequence, cluster_Q: Sequence, level: float = 0.9
) -> PairedRegret:
    """Return the regret of the first of C configurations against each of the others.

    Args:
      correct_CSQ: 0 to 1 for each configuration, seed and question.
      task_Q: task of each question; the error is the mean over tasks of their errors.
      cluster_Q: what a question is about, such as its video.
      level: of the intervals.

    Raises:
      ValueError: fewer than 2 configurations, seeds or clusters, or values that are missing.
    """
    wrong_CSQ = 100 * (1 - np.asarray(correct_CSQ, np.float64))
    if wrong_CSQ.ndim != 3 or min(wrong_CSQ.shape[:2]) < 2:
        raise ValueError(
            "a regret needs 2 or more configurations and 2 or more seeds of each, got shape "
            f"{wrong_CSQ.shape}"
        )
    if np.isnan(wrong_CSQ).any():
        raise ValueError("an answer is missing; leave its question out for all configurations")
    part_CSV, error_CS = _by_cluster(wrong_CSQ, task_Q, cluster_Q)
    num_configs, num_seeds, _ = part_CSV.shape
    off_CS = (
        error_CS - error_CS.mean(axis=1, keepdims=True) - error_CS.mean(axis=0) + error_CS.mean()
    )
    run_dof = (num_configs - 1) * (num_seeds - 1)
    run_variance = float((off_CS**2).sum()) / run_dof
    regret_R = (error_CS[0] - error_CS[1:]).mean(axis=1)
    found = [_spread(part_CSV[0] - part_SV, run_variance, run_dof) for part_SV in part_CSV[1:]]
    stderr_R, dof_R = np.array(found).T
    half_R = stderr_R * _student(dof_R, (1 - level) / 2)
    wide_R = stderr_R * _student(dof_R, (1 - level) / 2 / len(regret_R))
    mean_C = error_CS.mean(axis=1)
    return PairedRegret(
        error=error_CS,
        regret=regret_R,
        stderr=stderr_R,
        dof=dof_R,
        low=regret_R - half_R,
        high=regret_R + half_R,
        low_together=regret_R - wide_R,
        rank=1 + int((mean_C[1:] < mean_C[0]).sum()),
        run_sd=run_variance**0.5,
        run_dof=run_dof,
    )


def _by_cluster(wrong_CSQ, task_Q, cluster_Q) -> tuple[np.ndarray, np.ndarray]:
    """Return (part [C, S, V], error [C, S]): parts of an error by cluster, about their task's mean.

    Parts sum to 0 over clusters.
    """
    _, task_Q = np.unique(np.asarray(task_Q), return_inverse=True)
    _, cluster_Q = np.unique(np.asarray(cluster_Q), return_inverse=True)
    num_tasks, num_clusters = task_Q.max() + 1, cluster_Q.max() + 1
    if num_clusters < 2:
        raise ValueError("a regret needs questions about 2 or more videos")
    asked_T = np.bincount(task_Q)
    weight_Q = 1 / (num_tasks * asked_T[task_Q])
    error_CS = wrong_CSQ @ weight_Q
    of_task_QT = np.eye(num_tasks)[task_Q] / asked_T
    off_CSQ = (wrong_CSQ - (wrong_CSQ @ of_task_QT)[..., task_Q]) * weight_Q
    rows = off_CSQ.reshape(-1, off_CSQ.shape[-1])
    parts = np.stack([np.bincount(cluster_Q, row, num_clusters) for row in rows])
    return parts.reshape(*error_CS.shape, num_clusters), error_CS


def _spread(part_SV, run_variance: float, run_dof: int) -> tuple[float, float]:
    """Return (standard error, degrees of freedom) of one regret, of its parts [S, V]."""
    num_seeds, num_clusters = part_SV.shape
    scale = num_clusters / (num_clusters - 1)
    of_mean = scale * float((part_SV.mean(axis=0) ** 2).sum())
    of_one = scale * float((part_SV**2).sum()) / num_seeds
    both = max(0.0, (of_one - of_mean) / (num_seeds - 1))  # in the runs' variance already
    questions, runs = max(0.0, of_mean - both), 2 * run_variance / num_seeds
    total = questions + runs
    if total == 0:
        return 0.0, float(run_dof)
    dof = total**2 / (questions**2 / (num_clusters - 1) + runs**2 / run_dof)
    return total**0.5, dof


def _student(dof, tail: float):
    """Return the quantile of Student's t that leaves `tail` above it."""
    from scipy.special import stdtrit

    return stdtrit(dof, 1 - tail)


def outcome(found: PairedRegret, bound: float) -> str:
    """Return what a test says of the claim "the regret is at most `bound` points" (`RULE`).

    Every rival must agree for *confirmed*, so single intervals do; one is enough for *refuted*, so
    its interval is widened for the number of rivals.
    """
    if (found.high <= bound).all():
        return CONFIRMED
    return REFUTED if (found.low_together > bound).any() else NOT_RESOLVED


class RunNoise(NamedTuple):
    """The standard deviation of scores between runs that differ in their seed alone.

    Attributes:
      sd: in points, pooled over configurations; NaN without replicates.
      dof: degrees of freedom.
      low, high: its interval.
      groups: number of configurations with replicates.
    """

    sd: float
    dof: int
    low: float
    high: float
    groups: int


def pooled_noise(groups: Sequence[Sequence[float]], level: float = 0.9) -> RunNoise:
    """Return the run noise of several groups of scores, pooled.

    Args:
      groups: scores of the runs of each configuration; a group of one says nothing.
      level: of the interval, by the chi-square distribution.
    """
    from scipy.special import chdtri

    groups = [np.asarray(group, np.float64) for group in groups if len(group) > 1]
    dof = sum(len(group) - 1 for group in groups)
    if not dof:
        return RunNoise(np.nan, 0, np.nan, np.nan, 0)
    squares = sum(float(((group - group.mean()) ** 2).sum()) for group in groups)
    tails = (1 - level) / 2, (1 + level) / 2  # chdtri takes the share above
    low, high = ((squares / chdtri(dof, tail)) ** 0.5 for tail in tails)
    return RunNoise((squares / dof) ** 0.5, dof, float(low), float(high), len(groups))
