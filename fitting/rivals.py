"""Choose the rivals that a decision is tested against, by rules that are fixed before any run.

The decision is x*, the law's best within a budget. A rival costs nearly as much, and each rule is
what someone might have chosen instead:

- outside: the law's best among those it calls worse, outside the regret set.
- add: the choice of a law whose factors act separately (the form `add`).
- largest: the largest language model that fits, with the law's best frames and tokens for it.
- neighbour: without a law, what is nearest to the best run measured within the budget.
- random: any, drawn with a seed.

A rule ranks all candidates, so that where its first is taken, by x* or by a rule before it, its
next one stands in.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from fitting.intervals import prediction_interval
from fitting.runs import RunTable
from fitting.uncertainty import decide

BEST = "x*"
RULES = ("outside", "add", "largest", "neighbour", "random")


class Tested(NamedTuple):
    """A configuration to train.

    Attributes:
      rule: `BEST`, or one of `RULES`.
      x: its factors, in the law's order.
      cost: in the unit of the budget.
      predicted: error by the law.
      note: '' where the rule's first choice stands; else what stands in, and why.
    """

    rule: str
    x: tuple[float, ...]
    cost: float
    predicted: float
    note: str


class Choice(NamedTuple):
    """What the planner claims at one budget, and what it is to be tested against.

    Attributes:
      budget, num_examples: what was asked.
      tested: x* first, then its rivals.
      low, high: interval of the error of one run of x*.
      regret_bound: error points that x* loses at most with `level` of the law's members.
      candidates: number of configurations that cost nearly as much as the budget.
      alike: size of the regret set, among all within the budget.
    """

    budget: float
    num_examples: float
    tested: tuple[Tested, ...]
    low: float
    high: float
    regret_bound: float
    candidates: int
    alike: int


def within(cost_X, budget: float, spend: tuple[float, float]) -> np.ndarray:
    """Return bool [X]: which costs are nearly the budget, a share of it between both ends."""
    cost_X = np.asarray(cost_X)
    return (cost_X >= spend[0] * budget) & (cost_X <= spend[1] * budget)


def choose_rivals(
    law,
    additive,
    table: RunTable,
    domain,
    cost: Callable,
    budget: float,
    num_examples: float,
    *,
    rules: Sequence[str] = RULES,
    spend: tuple[float, float] = (0.85, 1.0),
    tolerance: float = 0.5,
    level: float = 0.9,
    seed: int = 0,
) -> Choice:
    """Return x* of a budget and its rivals, none twice.

    There are fewer rivals than rules only where fewer candidates cost nearly as much.

    Args:
      law: of the factors lm_params, num_frames, tokens_per_frame and n.
      additive: a law of the form `add`, or None where none could be fitted.
      table: the measured runs.
      domain, cost: as in `fitting.frontiers.frontier`.
      budget: of one example.
      num_examples: n of the test.
      rules: some of `RULES`, in the order in which they choose.
      spend: the share of the budget that a rival may cost.
      tolerance: error points of the regret set.
      level: of the interval, the regret set and the regret bound.
      seed: of the random draw.

    Raises:
      ValueError: an unknown rule, or as `decide`.
    """
    if unknown := set(rules) - set(RULES):
        raise ValueError(f"rivals: unknown rule {min(unknown)!r}; the rules are {', '.join(RULES)}")
    decision = decide(law, domain, cost, budget, num_examples)
    low, high = prediction_interval(law, decision.x[:1], num_examples, level)
    inside_X = decision.regret_set(tolerance, level)
    near_X = within(decision.cost, budget, spend)
    bound_X = np.quantile(decision.regret, level, axis=1)
    ways = {
        "outside": lambda: _outside(inside_X, bound_X),
        "add": lambda: _additive(additive, decision, num_examples),
        "largest": lambda: (np.lexsort([decision.error, -decision.x[:, 0]]), ""),
        "neighbour": lambda: _neighbour(decision, table, cost, budget, num_examples),
        "random": lambda: (np.random.default_rng(seed).permutation(len(near_X)), ""),
    }
    chosen, taken = [_tested(BEST, decision, 0, "")], {0: BEST}
    for rule in rules:
        order, note = ways[rule]()
        ranked = [i for i in order.tolist() if near_X[i]]
        free = [i for i in ranked if i not in taken]
        if not free:
            continue
        if free[0] != ranked[0]:
            stands = f"its first choice is that of {taken[ranked[0]]}; this is its next"
            note = f"{note}; {stands}" if note else stands
        taken[free[0]] = rule
        chosen.append(_tested(rule, decision, free[0], note))
    return Choice(
        budget=float(budget),
        num_examples=float(num_examples),
        tested=tuple(chosen),
        low=float(low[0]),
        high=float(high[0]),
        regret_bound=float(bound_X[0]),
        candidates=int(near_X.sum()),
        alike=int(inside_X.sum()),
    )


def _tested(rule: str, decision, i: int, note: str) -> Tested:
    x = tuple(decision.x[i].tolist())
    return Tested(rule, x, float(decision.cost[i]), float(decision.error[i]), note)


def _outside(inside_X, bound_X) -> tuple[np.ndarray, str]:
    """Rank those outside the regret set by predicted error, then the others by regret, the largest
    first.
    """
    outside, inside = np.flatnonzero(~inside_X), np.flatnonzero(inside_X)
    inside = inside[np.argsort(-bound_X[inside], kind="stable")]
    note = "" if len(outside) else "none is outside the regret set; this has the largest regret"
    return np.concatenate([outside, inside]), note


def _additive(additive, decision, n) -> tuple[np.ndarray, str]:
    if additive is None:
        return np.arange(len(decision.x)), "add could not be fitted; this is the law's next"
    return np.argsort(additive.predict(decision.x, n), kind="stable"), ""


def _neighbour(decision, table: RunTable, cost, budget, n) -> tuple[np.ndarray, str]:
    """Rank by the distance, in octaves, to the best run measured within the budget."""
    affordable_R = np.asarray(cost(table.x)) <= budget
    at_n_R = affordable_R & (table.n == n)
    rows_R = at_n_R if at_n_R.any() else affordable_R
    if not rows_R.any():
        return np.arange(len(decision.x)), "no run was measured within the budget"
    best = table.x[rows_R][table.error[rows_R].argmin()]
    far_X = np.linalg.norm(np.log2(decision.x / best), axis=1)
    return np.lexsort([-decision.cost, far_X]), ""
