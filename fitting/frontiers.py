"""Find the frontier: the best configuration within a budget, over a discrete domain (eq. 4).

    x*(c; n) = argmin over x in the domain with cost(x) <= c of f(x, n)

Configurations are sorted by cost once; a running minimum of the error over that order answers every
budget at once. Ties go to the cheaper configuration, so x* is often strictly inside its budget.

A law is fast to follow in n: a term is a function of x times a power of n, so the powers of x are
computed once, and another n costs a multiplication and a median. Work is cut into pieces that stay
in a core's cache, on one thread per core (numpy releases Python's lock).
"""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from fitting.runs import RunTable

_PIECE = 20_000  # errors, configurations x members, that one thread holds at a time


@dataclass(frozen=True, eq=False)
class Frontier:
    """The best configuration of every budget [C] and data size [M].

    A budget below the cheapest configuration has NaN in x, error and cost, and is counted.

    Attributes:
      budgets: [C], in the unit of the cost model.
      num_examples: [M]; a single NaN for a law without n.
      x: x*, [C, M, K] in factor order.
      error: predicted error at x*, [C, M], on the fitted scale.
      cost: what x* costs, [C, M], never above the budget.
    """

    budgets: np.ndarray
    num_examples: np.ndarray
    x: np.ndarray
    error: np.ndarray
    cost: np.ndarray

    @property
    def unaffordable(self) -> int:
        """Return the number of budgets below the cheapest configuration."""
        return int(np.isnan(self.cost[:, 0]).sum())


@dataclass(frozen=True, eq=False)
class EmpiricalFrontier:
    """The best measured run within each budget; NaN and '' where no run is affordable.

    Attributes:
      budgets: [C].
      run_id: [C] names.
      x: [C, K].
      num_examples: [C]; NaN for runs without n.
      error, cost: [C].
    """

    budgets: np.ndarray
    run_id: np.ndarray
    x: np.ndarray
    num_examples: np.ndarray
    error: np.ndarray
    cost: np.ndarray


def frontier(model, domain, cost, budgets, num_examples=None) -> Frontier:
    """Return x*(c; n) for all budgets c and data sizes n.

    Args:
      model: a `BaggedFit`, or any function (x [X, K], n scalar) -> error [X].
      domain: the configurations on offer: anything with `configurations()`, such as a `Domain`, or
        an array [X, K].
      cost: x [X, K] -> cost [X].
      budgets: [C], in any order.
      num_examples: [M]; None for a law without n.

    Returns:
      a `Frontier`; equal to brute force.

    Raises:
      ValueError: empty budgets or data sizes; data sizes for a law without n, or none for another.
    """
    budgets, n_M = _vector(budgets, "budgets"), _data_sizes(model, num_examples)
    x_XK, cost_X = by_cost(domain, cost, budgets.max())
    if _is_law(model):
        error_MX = _bag_errors(model, x_XK, n_M)
    else:
        error_MX = np.stack([model(x_XK, n) for n in n_M])
    best_CM = _best_within(error_MX, cost_X, budgets).T
    return Frontier(
        budgets=budgets,
        num_examples=n_M,
        x=_pick(x_XK, best_CM),
        error=_pick(error_MX.T, best_CM, np.arange(len(n_M))),
        cost=_pick(cost_X, best_CM),
    )


def member_frontiers(fit, domain, cost, budgets, num_examples=None) -> np.ndarray:
    """Return x* [B', C, M, K] of every member that did not fail; NaN where none is affordable."""
    budgets, n_M = _vector(budgets, "budgets"), _data_sizes(fit, num_examples)
    x_XK, cost_X = by_cost(domain, cost, budgets.max())
    found = [_best_of_members(one, x_XK, cost_X, budgets, n_M) for one in fit.pooled]
    return _pick(x_XK, np.concatenate(found))


def _best_of_members(fit, x_XK, cost_X, budgets, n_M) -> np.ndarray:
    """Return the index [B', C, M] of each member's x*, of a law of one form."""
    powers = _Powers.of(fit)
    best_BCM = np.empty((powers.size, len(budgets), len(n_M)), np.int32)

    def search(members):
        parts_GBX = np.moveaxis(powers.parts(x_XK, members), 1, 2).copy()
        for m, n in enumerate(n_M):
            factors_GB = powers.factors(n, members)
            error_BX = _sum_of_products(parts_GBX, factors_GB[..., None])
            # A link is increasing, so the sum of terms has its minimum where the error has it.
            best_BCM[members, :, m] = _best_within(error_BX, cost_X, budgets)

    _in_pieces(search, powers.size, max(1, 4 * _PIECE // max(1, len(x_XK))))
    return best_BCM


def agreement(best: Frontier, members_x) -> np.ndarray:
    """Return the share of members [C, M] with the same x* as the bag; NaN where there is none."""
    same_BCM = (members_x == best.x).all(axis=-1)
    return np.where(np.isnan(best.cost), np.nan, same_BCM.mean(axis=0))


def empirical_frontier(table: RunTable, cost, budgets=None) -> EmpiricalFrontier:
    """Return the measured run of least error within each budget.

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
    best_C = _best_within(error_R[None], cost_R, budgets)[0]
    n_R = np.full(len(table), np.nan) if table.n is None else table.n
    return EmpiricalFrontier(
        budgets=budgets,
        run_id=np.where(best_C >= 0, table.run_id[order][best_C], ""),
        x=_pick(table.x[order], best_C),
        num_examples=_pick(n_R[order], best_C),
        error=_pick(error_R, best_C),
        cost=_pick(cost_R, best_C),
    )


def by_cost(domain, cost, budget=np.inf) -> tuple[np.ndarray, np.ndarray]:
    """Return configurations [X, K] and costs [X] within the budget, cheapest first.

    The cheapest configuration of all stays in, however small the budget.
    """
    x_XK = domain.configurations() if hasattr(domain, "configurations") else np.asarray(domain)
    cost_X = np.asarray(cost(x_XK), np.float64)
    order = np.argsort(cost_X, kind="stable")
    order = order[: max(1, np.searchsorted(cost_X[order], budget, side="right"))]
    return x_XK[order], cost_X[order]


def _best_within(error_LX, cost_X, budgets) -> np.ndarray:
    """Return the index [L, C] of the least error per lane L among costs <= budget; -1 for none."""
    running_LX = np.fmin.accumulate(error_LX, axis=1)
    improves_LX = np.ones(error_LX.shape, bool)
    np.less(error_LX[:, 1:], running_LX[:, :-1], out=improves_LX[:, 1:])
    lane, index = np.divmod(np.flatnonzero(improves_LX), len(cost_X))
    last_C = np.searchsorted(cost_X, budgets, side="right")
    order = np.argsort(last_C)
    # An improvement leads from the first budget that affords it until the next one.
    first = np.searchsorted(last_C[order], index, side="right")
    leader_LC = np.full((len(error_LX), len(budgets) + 1), -1)
    np.maximum.at(leader_LC, (lane, first), index)
    best_LC = np.empty((len(error_LX), len(budgets)), int)
    best_LC[:, order] = np.maximum.accumulate(leader_LC[:, :-1], axis=1)
    return best_LC


class _Powers(NamedTuple):
    """A law as f (y of a link) = sum over g of part_g(x) n^slope_g, g terms of one power of n.

    Members that failed are left out. Attributes: the law, theta [B', P] of the others, and for
    every group g its terms and its powers of n, (parameter, sign) each.
    """

    law: object
    theta: np.ndarray
    terms: tuple
    slopes: tuple

    @classmethod
    def of(cls, law) -> "_Powers":
        groups, n_column = {}, len(law.factors)
        for m in range(law.layout.num_terms):
            own = [power[1:] for power in law.layout.powers if power[0] == m]
            of_n = tuple((p, sign) for p, sign, column in own if column == n_column)
            of_x = tuple(power for power in own if power[2] != n_column)
            groups.setdefault(of_n, []).append((m, of_x))
        theta_BP = law.theta[np.isfinite(law.theta).all(axis=1)]
        return cls(law, theta_BP, tuple(groups.values()), tuple(groups))

    @property
    def size(self) -> int:
        return len(self.theta)

    def parts(self, x_XK, members=slice(None)) -> np.ndarray:
        """Return part_g(x) [G, X, B] for x [X, K] and some of the members."""
        theta_PB, law = self.theta[members].T, self.law
        log_x = np.log(x_XK / law.units[: len(law.factors)])
        parts_GXB = np.zeros((len(self.terms), len(x_XK), theta_PB.shape[1]))
        for part_XB, terms in zip(parts_GXB, self.terms, strict=True):
            for m, powers in terms:
                if law.config.free_floor and m == law.layout.floor:
                    part_XB += theta_PB[m]  # the floor itself, which may be negative
                    continue
                own = sum(theta_PB[q] for q in law.layout.coefficients_of(m))
                log_part_XB = own + sum(
                    sign * log_x[:, column, None] * theta_PB[p] for p, sign, column in powers
                )
                part_XB += np.exp(log_part_XB)
        return parts_GXB

    def factors(self, n, members=slice(None)) -> np.ndarray:
        """Return n^slope_g [G, B]; ones for what does not depend on n."""
        theta_PB = self.theta[members].T
        log_n = np.log(n / self.law.units[-1])
        exponents = [
            sum((sign * theta_PB[p] * log_n for p, sign in slope), np.zeros(theta_PB.shape[1]))
            for slope in self.slopes
        ]
        return np.exp(exponents)


def _bag_errors(law, x_XK, n_M) -> np.ndarray:
    """Return `law.predict` [M, X]."""
    pooled = [_Powers.of(one) for one in law.pooled]
    size = sum(powers.size for powers in pooled)
    error_MX = np.empty((len(n_M), len(x_XK)))
    half = size // 2

    def predict(rows):
        parts = [powers.parts(x_XK[rows]) for powers in pooled]
        for m, n in enumerate(n_M):
            errors = [
                powers.law.space.of_sum(_sum_of_products(parts_GXB, powers.factors(n)[:, None]))
                for powers, parts_GXB in zip(pooled, parts, strict=True)
            ]
            error_XB = errors[0] if len(errors) == 1 else np.concatenate(errors, axis=1)
            if law.config.aggregate == "mean":
                error_MX[m, rows] = error_XB.mean(axis=1)
            else:  # a sort is several times faster than np.median
                error_XB.sort(axis=1)
                error_MX[m, rows] = (error_XB[:, half] + error_XB[:, -1 - half]) / 2

    _in_pieces(predict, len(x_XK), max(1, _PIECE // size))
    return error_MX


def _sum_of_products(parts, factors) -> np.ndarray:
    total = parts[0] * factors[0]
    for part, factor in zip(parts[1:], factors[1:], strict=True):
        total += part * factor
    return total


def _in_pieces(work, count: int, size: int) -> None:
    """Call work(slice) for pieces of range(count), on one thread per core."""

    def quietly(piece):  # an uncapped exponent may overflow: an infinite error is never the best
        with np.errstate(over="ignore", invalid="ignore"):
            work(piece)

    pieces = [slice(start, min(start + size, count)) for start in range(0, count, size)]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        list(pool.map(quietly, pieces))


def _pick(values, index, *rest) -> np.ndarray:
    """Return values[index, *rest], NaN where index is -1."""
    picked = values[(index, *rest)]
    found = (index >= 0).reshape(index.shape + (1,) * (picked.ndim - index.ndim))
    return np.where(found, picked, np.nan)


def _is_law(model) -> bool:
    return hasattr(model, "pooled")


def _data_sizes(model, num_examples) -> np.ndarray:
    if num_examples is None:
        if _is_law(model) and model.examples is not None:
            raise ValueError(f"the law depends on {model.examples}: say how many")
        return np.array([np.nan])
    if _is_law(model) and model.examples is None:
        raise ValueError("the law has no number of examples; leave it out")
    return _vector(num_examples, "num_examples")


def _vector(values, name: str) -> np.ndarray:
    values = np.atleast_1d(np.asarray(values, np.float64))
    if values.ndim != 1 or not values.size:
        raise ValueError(f"{name} must be a list of one or more numbers, got shape {values.shape}")
    return values
