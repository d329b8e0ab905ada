"""Compute elasticities: the percentage by which x* moves per percent more data (eqs. 8-11).

    e_k(c, n) = (x*_k(c; n + dn) - x*_k(c; n)) / dn * n / x*_k(c; n)                    equation 9

A budget below the cheapest configuration has no x*, hence no elasticity: NaN, left out of the
means and counted, never 0.
"""

from dataclasses import dataclass

import numpy as np

from fitting.frontiers import frontier, member_frontiers

BUDGETS = np.linspace(1e12, 100e12, 300)
NUM_EXAMPLES = np.linspace(1e6, 10e6, 100)
DELTA = 5e6
"""Appendix E: 300 budgets over 1-100 TFLOPs, 100 data sizes over 1-10M, a step of 5M."""


@dataclass(frozen=True, eq=False)
class Elasticity:
    """Forward differences of the frontier.

    Attributes:
      budgets: [C].
      num_examples: [M], n of each difference.
      delta: the step in n.
      values: e_k(c, n), [C, M, K]; NaN where undefined.
      members: equation 11 of every member's own frontier, [B', K]; [0, K] for a plain function.
    """

    budgets: np.ndarray
    num_examples: np.ndarray
    delta: float
    values: np.ndarray
    members: np.ndarray

    @property
    def by_num_examples(self) -> np.ndarray:
        """Return equation 10: the mean over budgets, [M, K]; NaN where no budget defines it."""
        return _mean(self.values, axis=0)

    @property
    def mean(self) -> np.ndarray:
        """Return equation 11: the mean over budgets and data sizes, [K]."""
        return _mean(self.values, axis=(0, 1))

    @property
    def undefined(self) -> int:
        """Return the number of pairs (budget, n) that the means leave out."""
        return int(np.isnan(self.values).any(axis=-1).sum())

    def interval(self, level: float = 0.9) -> tuple[np.ndarray, np.ndarray]:
        """Return the central interval (low [K], high [K]) of equation 11 over members, or NaN."""
        if not 0 < level < 1:
            raise ValueError(f"level must lie between 0 and 1, got {level}")
        defined = self.members[~np.isnan(self.members).any(axis=1)]
        if not len(defined):
            return (np.full(self.members.shape[1], np.nan),) * 2
        low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2], axis=0)
        return low, high


def elasticity(
    model,
    domain,
    cost,
    budgets=BUDGETS,
    num_examples=NUM_EXAMPLES,
    delta: float = DELTA,
    *,
    members: bool = True,
) -> Elasticity:
    """Return equation 9 at every budget and data size, on the exact discrete frontier.

    Args:
      model, domain, cost, budgets: as in `fitting.frontiers.frontier`; a law needs n.
      num_examples: [M].
      delta: dn > 0.
      members: whether every member's own mean is followed too.

    Raises:
      ValueError: delta is not positive, or the law has no n.
    """
    if not delta > 0:
        raise ValueError(f"delta must be positive, got {delta}")
    n_M = np.atleast_1d(np.asarray(num_examples, np.float64))
    both, where = np.unique(np.concatenate([n_M, n_M + delta]), return_inverse=True)
    now, then = where[: len(n_M)], where[len(n_M) :]

    def differences(x):
        """Return equation 9 of x* [..., all n, K]."""
        x_now, x_then = x[..., now, :], x[..., then, :]
        return (x_then - x_now) / delta * n_M[:, None] / x_now

    best = frontier(model, domain, cost, budgets, both)
    values = differences(best.x)
    means = np.empty((0, values.shape[-1]))
    if members and hasattr(model, "pooled"):
        paths = member_frontiers(model, domain, cost, budgets, both)
        means = np.stack([_mean(differences(path), axis=(0, 1)) for path in paths])
    return Elasticity(best.budgets, n_M, float(delta), values, means)


def sensitivity(model, domain, cost, top: float = 100e12, unit: float = 1e6) -> list[tuple]:
    """Return Table 10: equation 11 with other budgets, data sizes and steps than Appendix E's.

    Args:
      model, domain, cost: as in `fitting.frontiers.frontier`.
      top: the largest budget; the least is a hundredth of it.
      unit: the least data size; the largest is ten times that, the step five times.

    Returns:
      (what is changed, its value, e [K]) a row.
    """

    def mean(budgets=300, sizes=100, most=10.0, delta=5.0):
        grid = np.linspace(top / 100, top, budgets), np.linspace(unit, most * unit, sizes)
        return elasticity(model, domain, cost, *grid, delta * unit, members=False).mean

    rows = [("budgets", count, mean(budgets=count)) for count in (1, 10, 50, 100, 200, 300)]
    rows += [("data sizes", count, mean(sizes=count)) for count in (1, 10, 20, 50, 100)]
    rows += [("largest n", most * unit, mean(most=most)) for most in (1, 2, 4, 6, 8, 10)]
    steps = (0.1, 0.5, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10)
    return rows + [("step", delta * unit, mean(delta=delta)) for delta in steps]


def _mean(values, axis) -> np.ndarray:
    """Return the mean over defined values; NaN, without a warning, where there are none."""
    defined = ~np.isnan(values)
    total = np.where(defined, values, 0.0).sum(axis=axis)
    count = defined.sum(axis=axis)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)
