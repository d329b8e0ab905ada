"""Elasticity: by how many percent x* moves when the data grow by one percent (eqs. 8-11).

    e_k(c, n) = (x*_k(c; n + dn) - x*_k(c; n)) / dn * n / x*_k(c; n)                    equation 9

A budget below the cheapest configuration has no x*, hence no elasticity: NaN, left out of the
means and counted, never 0.
"""

from dataclasses import dataclass

import numpy as np

from fitting.frontier import frontier
from fitting.sweeps import Domain


@dataclass(frozen=True, eq=False)
class Elasticity:
    """Forward differences of the frontier.

    Attributes:
      budgets: [C].
      num_examples: [M], n of each difference.
      delta: the step in n.
      values: e_k(c, n), [C, M, K]; NaN where undefined.
    """

    budgets: np.ndarray
    num_examples: np.ndarray
    delta: float
    values: np.ndarray

    @property
    def by_num_examples(self) -> np.ndarray:
        """Equation 10: the mean over budgets, [M, K]; NaN where no budget defines it."""
        return _mean(self.values, axis=0)

    @property
    def mean(self) -> np.ndarray:
        """Equation 11: the mean over budgets and data sizes, [K]."""
        return _mean(self.values.reshape(-1, self.values.shape[-1]), axis=0)

    @property
    def undefined(self) -> int:
        """Pairs (budget, n) that no mean contains."""
        return int(np.isnan(self.values).any(axis=-1).sum())


def elasticity(model, domain: Domain, cost, budgets, num_examples, delta: float) -> Elasticity:
    """Equation 9 at every budget and data size, on the exact discrete frontier.

    Args:
      model, domain, cost, budgets: as in `fitting.frontier.frontier`.
      num_examples: [M].
      delta: dn > 0; the paper uses 5M with n from 1M to 10M.

    Raises:
      ValueError: delta is not positive.
    """
    if not delta > 0:
        raise ValueError(f"delta must be positive, got {delta}")
    num_examples = np.atleast_1d(np.asarray(num_examples, np.float64))
    both = np.unique(np.concatenate([num_examples, num_examples + delta]))
    best = frontier(model, domain, cost, budgets, both)
    now = best.x[:, np.searchsorted(both, num_examples)]
    then = best.x[:, np.searchsorted(both, num_examples + delta)]
    values = (then - now) / delta * num_examples[:, None] / now
    return Elasticity(best.budgets, num_examples, float(delta), values)


def _mean(values, axis: int) -> np.ndarray:
    """Mean over what is defined; NaN, without a warning, where nothing is."""
    defined = ~np.isnan(values)
    total = np.where(defined, values, 0.0).sum(axis=axis)
    count = defined.sum(axis=axis)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)
