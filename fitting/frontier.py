"""The frontier: the best configuration a budget affords, exactly, over a discrete domain (eq. 4).

    x*(c; n) = argmin over x in the domain with cost(x) <= c of f(x, n)

Configurations are sorted by cost once; a running minimum of the error over that order answers every
budget at once. Ties go to the cheaper configuration, so x* is often strictly inside its budget.
"""

from dataclasses import dataclass

import numpy as np

from fitting.runs import RunTable
from fitting.sweeps import Domain


@dataclass(frozen=True, eq=False)
class Frontier:
    """The best configuration of every budget [C] and data size [M].

    A budget below the cheapest configuration has NaN in x, error and cost, and is counted.

    Attributes:
      budgets: [C], in the unit of the cost model.
      num_examples: [M].
      x: x*, [C, M, K] in factor order.
      error: predicted error at x*, [C, M], 0-100.
      cost: what x* costs, [C, M], never above the budget.
    """

    budgets: np.ndarray
    num_examples: np.ndarray
    x: np.ndarray
    error: np.ndarray
    cost: np.ndarray

    @property
    def unaffordable(self) -> int:
        """Budgets below the cheapest configuration."""
        return int(np.isnan(self.cost[:, 0]).sum())


@dataclass(frozen=True, eq=False)
class EmpiricalFrontier:
    """The best measured run within each budget; NaN and '' where there is none.

    Attributes:
      budgets: [C].
      run_id: [C] names.
      x: [C, K].
      num_examples, error, cost: [C].
    """

    budgets: np.ndarray
    run_id: np.ndarray
    x: np.ndarray
    num_examples: np.ndarray
    error: np.ndarray
    cost: np.ndarray


def frontier(model, domain: Domain, cost, budgets, num_examples) -> Frontier:
    """x*(c; n) for all budgets c and data sizes n.

    Args:
      model: a `BaggedFit`, or any function (x [X, K], n scalar) -> error [X].
      domain: the configurations on offer.
      cost: x [X, K] -> cost [X].
      budgets: [C], in any order.
      num_examples: [M].

    Returns:
      a `Frontier`; equal to brute force.

    Raises:
      ValueError: empty budgets or data sizes.
    """
    budgets, num_examples = _vector(budgets, "budgets"), _vector(num_examples, "num_examples")
    x_XK, cost_X = _by_cost(domain, cost)
    if hasattr(model, "predict_grid"):
        error_XM = model.predict_grid(x_XK, num_examples)
    else:
        error_XM = np.stack([model(x_XK, n) for n in num_examples], axis=1)
    best_CM = _best_within(error_XM, cost_X, budgets)
    affordable_CM = best_CM >= 0
    columns = np.arange(len(num_examples))
    return Frontier(
        budgets=budgets,
        num_examples=num_examples,
        x=np.where(affordable_CM[..., None], x_XK[best_CM], np.nan),
        error=np.where(affordable_CM, error_XM[best_CM, columns], np.nan),
        cost=np.where(affordable_CM, cost_X[best_CM], np.nan),
    )


def member_frontiers(fit, domain: Domain, cost, budgets, num_examples) -> np.ndarray:
    """x* of every member that did not fail, [B', C, M, K]; NaN where a budget affords nothing."""
    budgets, num_examples = _vector(budgets, "budgets"), _vector(num_examples, "num_examples")
    x_XK, cost_X = _by_cost(domain, cost)
    best_MCB = np.stack(
        [
            _best_within(error_XB, cost_X, budgets)
            for error_XB in fit.predict_members_grid(x_XK, num_examples)
        ]
    )
    x_MCBK = np.where((best_MCB >= 0)[..., None], x_XK[best_MCB], np.nan)
    return x_MCBK.transpose(2, 1, 0, 3)


def agreement(best: Frontier, members_x) -> np.ndarray:
    """Share of members [C, M] whose own x* is the one of the bag; NaN where there is none."""
    same_BCM = (members_x == best.x).all(axis=-1)
    return np.where(np.isnan(best.cost), np.nan, same_BCM.mean(axis=0))


def empirical_frontier(table: RunTable, cost, budgets=None) -> EmpiricalFrontier:
    """The measured run of least error within each budget.

    Args:
      table: runs of one metric.
      cost: x [R, K] -> cost [R].
      budgets: [C]; by default the costs of the runs that improve on every cheaper run.
    """
    cost_R = np.asarray(cost(table.x))
    order = np.lexsort((table.error, cost_R))
    cost_R, error_R = cost_R[order], table.error[order]
    if budgets is None:
        running = np.minimum.accumulate(error_R)
        budgets = np.unique(cost_R[error_R < np.concatenate([[np.inf], running[:-1]])])
    budgets = _vector(budgets, "budgets")
    best_C = _best_within(error_R[:, None], cost_R, budgets)[:, 0]
    found_C = best_C >= 0

    def pick(values):
        return np.where(found_C, values[best_C], np.nan)

    return EmpiricalFrontier(
        budgets=budgets,
        run_id=np.where(found_C, table.run_id[order][best_C], ""),
        x=np.where(found_C[:, None], table.x[order][best_C], np.nan),
        num_examples=pick(table.n[order]),
        error=pick(error_R),
        cost=pick(cost_R),
    )


def _by_cost(domain: Domain, cost) -> tuple[np.ndarray, np.ndarray]:
    """Configurations [X, K] and their costs [X], cheapest first."""
    x_XK = domain.configurations()
    cost_X = np.asarray(cost(x_XK), np.float64)
    order = np.argsort(cost_X, kind="stable")
    return x_XK[order], cost_X[order]


def _best_within(error_XM, cost_X, budgets) -> np.ndarray:
    """Index [C, M] of the least error among costs <= budget; -1 where none is affordable."""
    running_XM = np.minimum.accumulate(error_XM, axis=0)
    improves_XM = np.ones(error_XM.shape, bool)
    improves_XM[1:] = error_XM[1:] < running_XM[:-1]
    index_X1 = np.arange(len(error_XM))[:, None]
    leader_XM = np.maximum.accumulate(np.where(improves_XM, index_X1, 0), axis=0)
    last_C = np.searchsorted(cost_X, budgets, side="right") - 1
    return np.where(last_C[:, None] >= 0, leader_XM[last_C], -1)


def _vector(values, name: str) -> np.ndarray:
    values = np.atleast_1d(np.asarray(values, np.float64))
    if values.ndim != 1 or not values.size:
        raise ValueError(f"{name} must be a list of one or more numbers, got shape {values.shape}")
    return values
