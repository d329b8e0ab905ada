"""The data that the solvers pass around: problems, solutions, and lanes between the two.

A lane is one descent under way: one start, for one resample of one problem. Lanes are kept as
columns, so that thousands of them are one array program. This module imports no jax.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

CONVERGED, STOPPED, FAILED = 0, 1, 2
"""Status of a fit: the gradient is within tolerance, or so small that a Newton step would gain less
than float64 resolves; the best point when iterations ran out; not finite.
"""

STATUSES = ("converged", "stopped", "failed")
SAME = 1e-6  # relative difference of objectives that counts as one optimum


class Problem(NamedTuple):
    """One data set with B weightings of it (resamples), and where to start.

    Attributes:
      log_z: [R, C], logs of the normalised factors and of n.
      target: [B, R], log errors, or errors, as the loss has it.
      weights: [B, R], >= 0; 0 leaves a run out and keeps the shapes.
      starts: [I, P], shared by all resamples.
    """

    log_z: np.ndarray
    target: np.ndarray
    weights: np.ndarray
    starts: np.ndarray


class Solution(NamedTuple):
    """The best optimum found for each resample.

    Attributes:
      theta: parameters [B, P]; NaN where no lane stayed finite.
      objective: mean weighted squared residual [B], equation 7 over the sum of weights.
      gradient_norm: [B], relative to the objective; parameters pressed against a bound are left
        out.
      status: CONVERGED, STOPPED or FAILED, [B].
      basin_share: [B], share of the lanes followed to the last stage that reach the optimum.
      arrivals: [I, P], where each start was after the first stage; None unless all were followed.
    """

    theta: np.ndarray
    objective: np.ndarray
    gradient_norm: np.ndarray
    status: np.ndarray
    basin_share: np.ndarray
    arrivals: np.ndarray | None


class Lanes(NamedTuple):
    """State of N descents.

    Attributes:
      fit: int [N], the fit (a resample of a problem) that each lane belongs to.
      theta: [N, P].
      damping: [N], of Levenberg-Marquardt; 0 has the solver choose it.
      objective: [N].
      slope: [N], norm of the gradient by the parameters that no bound holds.
    """

    fit: np.ndarray
    theta: np.ndarray
    damping: np.ndarray
    objective: np.ndarray
    slope: np.ndarray

    def take(self, chosen) -> "Lanes":
        """Return some of the lanes, by a mask, indices or a slice."""
        return Lanes(*(column[chosen] for column in self))

    def best(self, kept: int) -> "Lanes":
        """Return the `kept` lanes of least objective of each fit, ordered by fit and objective."""
        order = np.lexsort((np.nan_to_num(self.objective, nan=np.inf), self.fit))
        fit = self.fit[order]
        rank = np.arange(len(fit)) - np.searchsorted(fit, fit)
        return self.take(order[rank < kept])

    def replace_rows(self, rows, new: "Lanes") -> None:
        """Overwrite some lanes in place."""
        for column, values in zip(self, new, strict=True):
            column[rows] = values


def start_lanes(fit, theta) -> Lanes:
    """Return new lanes at theta [N, P] that have not been evaluated yet."""
    unknown = np.full(len(fit), np.inf)
    return Lanes(fit, np.array(theta), np.zeros(len(fit)), unknown, unknown.copy())


def concatenate(parts: Sequence[Lanes]) -> Lanes:
    """Return the lanes of all parts."""
    return Lanes(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


def lowest_distinct(value_BC, kept: int) -> np.ndarray:
    """Return indices [B, kept] of the lowest values of each row, repeated values last."""
    order_BC = np.argsort(value_BC, axis=1, kind="stable")
    sorted_BC = np.take_along_axis(value_BC, order_BC, axis=1)
    with np.errstate(invalid="ignore"):
        repeats = np.diff(sorted_BC, axis=1) <= SAME * sorted_BC[:, 1:]
    repeats_BC = np.concatenate([np.zeros((len(value_BC), 1), bool), repeats], axis=1)
    last = np.argsort(repeats_BC, axis=1, kind="stable")[:, :kept]
    return np.take_along_axis(order_BC, last, axis=1)
