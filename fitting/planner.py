"""Choose what to deploy within an inference budget by a fitted law, and say how sure that is.

The best configuration of a discrete domain is found exactly: the one of least predicted error that
the budget affords (equation 4). Every answer is a mapping of texts, numbers and lists; undefined
numbers are NaN. `fitting.planner_text` prints the answers, `json_ready` makes them JSON.
"""

import math
import re
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from fitting import extent, formatting
from fitting.config import FACTORS
from fitting.cost import PAPER, ActualFlops, CostConstants, CostFormula, CostTable, read_costs
from fitting.elasticities import Elasticity, elasticity
from fitting.expressions import resolve
from fitting.frontiers import agreement, by_cost, frontier, member_frontiers
from fitting.intervals import law_interval, prediction_interval, run_noise
from fitting.law import BaggedFit
from fitting.planner_text import amount, describe, span
from fitting.sweeps import PAPER_DOMAIN
from fitting.uncertainty import decide, default_tolerance
from fitting.verdict import DOUBTFUL, Verdict

LEVEL = 0.9  # of every interval, and of the regret set
FLOPS = "FLOPs"
NOT_TESTED = Verdict(
    DOUBTFUL,
    ("The law's form was not tested against its runs.",),
    "vvlm fit, or fitting.lack_of_fit.judged, tests it.",
)
DEFAULT_LEVELS = {name: getattr(PAPER_DOMAIN, name) for name in ("num_frames", "tokens_per_frame")}
"""Levels of the domain unless said; any other factor has the levels of the fitted runs."""


class Offer(NamedTuple):
    """The configurations to choose from and what they cost.

    Attributes:
      domain: configurations [X, K] in the law's order of factors.
      cost: x [..., K] -> cost [...].
      unit: of the costs and budgets.
      equation_1, actual: the two ways of counting FLOPs, for comparison with the cost.
    """

    domain: np.ndarray
    cost: Callable
    unit: str = FLOPS
    equation_1: CostConstants = PAPER
    actual: ActualFlops = ActualFlops()  # noqa: B008  immutable


def make_offer(
    law: BaggedFit,
    cost: str = "paper",
    levels: dict | None = None,
    vision_params: float | None = None,
    features: int | None = None,
    text_tokens: int = ActualFlops.text_tokens,
) -> Offer:
    """Return what a law may choose from.

    Args:
      law: the fitted law.
      cost: 'paper', equation 1; 'actual', the actual FLOPs; FILE.csv or FILE.csv:COLUMN, a
        measured table; or a formula of the factors, such as 6*N*D.
      levels: factor -> its levels, as in `configurations`.
      vision_params: x_M of equation 1; the paper's by default.
      features: per frame; by default 768 in equation 1 and 729 in the actual FLOPs.
      text_tokens: of the prompt, in the actual FLOPs.

    Raises:
      ValueError: the law lacks a factor that the cost needs, or as `read_costs`.
    """
    equation_1, actual = flops_models(vision_params, features, text_tokens)
    models = {"paper": equation_1, "actual": actual}
    if cost in models:
        missing = [name for name in FACTORS if name not in law.factors]
        if missing:
            raise ValueError(
                f"{cost} needs the factor {missing[0]!r}; the law has "
                f"{', '.join(law.factors)}: give --cost FILE.csv or a formula"
            )
        unit = FLOPS

        def function(x):
            return models[cost](_paper_order(x, law.factors))

    elif is_formula(cost):
        if cost.isidentifier() and resolve(cost, law.factors) not in law.factors:
            raise ValueError(f"{cost}: write paper, actual, FILE.csv[:COLUMN] or a formula")
        function, unit = CostFormula(cost, law.factors), "units"
    else:
        path, ending, column = cost.partition(".csv")
        function = read_costs(path + ending, law.factors, column[1:] or None)
        unit = function.column
    domain = configurations(law, function, levels or {})
    return Offer(domain, function, unit, equation_1, actual)


def is_formula(cost: str) -> bool:
    """Return whether a cost is a formula: neither a name nor a file of measured costs."""
    return cost not in ("paper", "actual") and not re.fullmatch(r".*\.csv(:.+)?", cost)


def flops_models(
    vision_params: float | None, features: int | None, text_tokens: int
) -> tuple[CostConstants, ActualFlops]:
    """Return equation 1 and the actual FLOPs, with the defaults of `make_offer` for None."""
    return (
        CostConstants(vision_params or PAPER.vision_params, features or PAPER.features_per_frame),
        ActualFlops(features or ActualFlops.features_per_frame, text_tokens),
    )


def configurations(law: BaggedFit, cost: Callable, levels: dict) -> np.ndarray:
    """Return the domain [X, K]: every combination of the levels, or the rows of a cost table.

    Args:
      law: the fitted law.
      cost: a `CostTable` brings its own domain, used when no levels are given.
      levels: factor -> its levels; `DEFAULT_LEVELS`, then those of the runs, for the others.
    """
    if isinstance(cost, CostTable) and not levels:
        return cost.configurations()
    fitted = dict(zip(law.factors, map(np.unique, law.runs.z.T), strict=False))
    axes = [levels.get(name, DEFAULT_LEVELS.get(name, fitted[name])) for name in law.factors]
    mesh = np.meshgrid(*(np.asarray(axis, np.float64) for axis in axes), indexing="ij")
    return np.stack([axis.ravel() for axis in mesh], axis=1)


# --- one budget ---


def lack_of_fit(law: BaggedFit) -> dict:
    """Return the verdict of the law's test as it stands at the top of an answer."""
    return (law.verdict or NOT_TESTED).answer()


def describe_law(law: BaggedFit) -> dict:
    """Return which law answers, and the reasons to doubt it."""
    members = law.num_members - law.failures
    doubts = [law.degenerate] if law.degenerate else []
    if law.failures:
        doubts.append(f"{law.failures} of {law.num_members} members failed and were left out")
    if members == 1:
        doubts.append("a single member has no spread: intervals hold run noise alone")
    return {
        "form": law.label,
        "metric": law.metric,
        "runs": law.num_runs,
        "members": members,
        "scale": law.scale,
        "doubts": doubts,
    }


def choose(
    law: BaggedFit,
    offer: Offer,
    budget: float,
    num_examples: float | None = None,
    *,
    alternatives: int = 5,
    tolerance: float | None = None,
) -> dict:
    """Return the best configuration within one budget, the next best, and the regret set.

    Args:
      law: the fitted law.
      offer: the configurations and their cost.
      budget: of one example, in the offer's unit.
      num_examples: n; None for a law without n.
      alternatives: how many of the next-best configurations to list.
      tolerance: error points of the regret set; by default half a point of 100, or, for a loss,
        what a run scatters.

    Raises:
      ValueError: the budget is below the cheapest configuration, which is named.
    """
    x_XK, cost_X = by_cost(offer.domain, offer.cost, budget)
    if cost_X[0] > budget:
        raise ValueError(
            f"a budget of {amount(budget, offer.unit)} is below the cheapest configuration, "
            f"{describe(law.factors, x_XK[0])}, which costs {amount(cost_X[0], offer.unit)}"
        )
    tolerance = default_tolerance(law) if tolerance is None else tolerance
    decision = decide(law, x_XK, offer.cost, budget, num_examples)
    inside = decision.x[decision.regret_set(tolerance, LEVEL)]
    spans = zip(inside.min(axis=0), inside.max(axis=0), strict=True) if len(inside) else ()
    rows = range(min(1 + alternatives, len(decision.x)))
    options = [_option(law, decision, i, num_examples) for i in rows]
    return {
        "budget": budget,
        "examples": num_examples,
        "affordable": len(decision.x),
        "best": options[0],
        "next_best": options[1:],
        "run_noise": run_noise(law),
        "regret_set": {
            "tolerance": tolerance,
            "confidence": LEVEL,
            "configurations": len(inside),
            "ranges": dict(zip(law.factors, map(list, spans), strict=False)),
        },
        "flops": _flops(law, decision.x[0], offer),
    }


def _option(law: BaggedFit, decision, i: int, n) -> dict:
    """Return row i of a decision."""
    x = decision.x[i]
    interval = prediction_interval(law, x, n, LEVEL)
    return {
        "x": dict(zip(law.factors, x, strict=True)),
        "error": decision.error[i],
        "interval": interval,
        "law_interval": law_interval(law, x, n, LEVEL),
        "cost": decision.cost[i],
        "best_for": decision.probability[i],
        "regret": np.quantile(decision.regret[i], LEVEL),
        "extrapolates": extrapolations(law, x, n),
        "distance": float(law.distance(x, n)),
        "impossible": bool(law.off_scale(*interval)),
    }


def extrapolations(law: BaggedFit, x, n=None) -> list[str]:
    """Return a text for each value of x [K] and n outside the range of the fitted runs.

    Values that are inside one by one may still be far from every run together: one text then names
    the distance from the hull of the runs and the nearest run.
    """
    values = x if n is None else (*x, n)
    found = [
        f"{name} {formatting.count(value, 4)} is outside the fitted {span(low, high)}"
        for name, value, (low, high), outside in zip(
            law.columns, values, law.ranges, law.outside(x, n), strict=True
        )
        if outside
    ]
    distance = float(law.distance(x, n))
    if not found and distance > extent.FAR:
        nearest = law.runs.run_id[extent.nearest_run(law.runs.z, values)]
        found.append(
            f"each value is in its range, but together they are {distance:.2f} of the runs' range "
            f"outside them; the nearest run is {nearest}"
        )
    return found


def _flops(law: BaggedFit, x, offer: Offer) -> dict | None:
    """Return equation 1 and the actual FLOPs of x [K]; None where the law has other factors."""
    if not set(FACTORS) <= set(law.factors):
        return None
    x, actual = _paper_order(x, law.factors), offer.actual
    answer = {
        "equation_1": offer.equation_1(x),
        "features_per_frame": actual.features_per_frame,
        "text_tokens": actual.text_tokens,
    }
    try:
        parts = actual.parts(x)
    except ValueError as e:  # a size of language model whose shape is not known
        return answer | {"actual": None, "why": str(e)}
    return answer | {"actual": sum(parts), **parts._asdict()}


def _paper_order(x, factors: tuple[str, ...]) -> np.ndarray:
    """Return x [..., K] as lm_params, num_frames, tokens_per_frame."""
    return x[..., [factors.index(name) for name in FACTORS]]


def serving(cost: float, unit: str, num_examples: float, videos_per_day: float, days: float):
    """Return the compute of serving against that of finetuning (Appendix A.1).

    Serving takes videos x c, finetuning 3 c n (a forward pass, and twice that backwards). Both are
    proportional to the cost c of an example, so the ratio does not depend on c.
    """
    videos, known = videos_per_day * days, unit == FLOPS
    return {
        "videos": videos,
        "serving_flops": videos * cost if known else None,
        "finetuning_flops": 3 * cost * num_examples if known else None,
        "ratio": videos / (3 * num_examples),
        "even_after_days": 3 * num_examples / videos_per_day,
    }


# --- many budgets and data sizes ---


def follow_elasticity(law: BaggedFit, offer: Offer, budgets, num_examples, delta: float):
    """Return equations 10 and 11 with intervals over members, and the `Elasticity` itself.

    Args:
      law: a law with n.
      offer: the configurations and their cost.
      budgets: [C], in the offer's unit.
      num_examples: [M].
      delta: step in n of equation 9.
    """
    change = elasticity(law, offer.domain, offer.cost, budgets, num_examples, delta)
    low, high = change.interval(LEVEL)
    answer = {
        "budgets": [budgets.min(), budgets.max(), len(budgets)],
        "examples": [num_examples.min(), num_examples.max(), len(num_examples)],
        "delta": delta,
        "mean": dict(zip(law.factors, change.mean, strict=True)),
        "low": dict(zip(law.factors, low, strict=True)),
        "high": dict(zip(law.factors, high, strict=True)),
        "by_examples": [
            {"examples": n, **dict(zip(law.factors, row, strict=True))}
            for n, row in zip(num_examples, change.by_num_examples, strict=True)
        ],
        "undefined": change.undefined,
        "pairs": len(budgets) * len(num_examples),
        "fitted_examples": list(law.ranges[-1]),
        "sizes_outside": int(law.step_extrapolates(num_examples, delta).sum()),
    }
    return answer, change


def follow_frontier(
    law: BaggedFit, offer: Offer, budgets, num_examples, change: Elasticity | None = None
) -> tuple[dict, list[dict]]:
    """Return a summary of the frontier, and its table: one row per budget and data size.

    Args:
      law: the fitted law.
      offer: the configurations and their cost.
      budgets: [C], in the offer's unit.
      num_examples: [M]; None for a law without n.
      change: the elasticity on the same grid, for columns of its own.

    Returns:
      (summary, rows); a row maps a column to its text, '' where undefined.
    """
    grid = law, offer.domain, offer.cost, budgets, num_examples
    best = frontier(*grid)
    shares_CM = agreement(best, member_frontiers(*grid))
    rows = _frontier_rows(law, best, shares_CM, change)
    summary = {
        "rows": len(rows),
        "budgets": len(budgets),
        "unaffordable": best.unaffordable,
        "extrapolate": sum(row["extrapolates"] == "yes" for row in rows),
        "agreement": float(np.median(shares_CM[~np.isnan(shares_CM)])) if rows else math.nan,
    }
    return summary, rows


def _frontier_rows(law: BaggedFit, best, shares_CM, change: Elasticity | None) -> list[dict]:
    found = ~np.isnan(best.cost)
    with_n = law.examples is not None
    n_CM = np.broadcast_to(best.num_examples, best.cost.shape)
    low, high, outside, distance = (np.full(best.cost.shape, np.nan) for _ in range(4))
    x, n = best.x[found], n_CM[found] if with_n else None
    low[found], high[found] = prediction_interval(law, x, n, LEVEL)
    outside[found], distance[found] = law.extrapolates(x, n), law.distance(x, n)
    if change is not None:  # NaN, of a budget that affords nothing, stays
        outside = np.maximum(outside, law.step_extrapolates(change.num_examples, change.delta))
    rows = []
    for c, m in np.ndindex(best.cost.shape):
        row = {"budget": best.budgets[c]}
        row |= {law.examples: best.num_examples[m]} if with_n else {}
        row |= dict(zip(law.factors, best.x[c, m], strict=True))
        row |= {"error": best.error[c, m], "error_low": low[c, m], "error_high": high[c, m]}
        row |= {"cost": best.cost[c, m], "agreement": shares_CM[c, m]}
        row["distance"] = distance[c, m]
        if change is not None:
            names = (f"elasticity_{name}" for name in law.factors)
            row |= dict(zip(names, change.values[c, m], strict=True))
        row = {name: "" if math.isnan(value) else f"{value:.10g}" for name, value in row.items()}
        rows.append(row | {"extrapolates": {0: "no", 1: "yes"}.get(outside[c, m], "")})
    return rows


def json_ready(value):
    """Return an answer as Python's own numbers, texts, lists and dicts; not finite is None."""
    if isinstance(value, dict):
        return {key: json_ready(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [json_ready(item) for item in value]
    if isinstance(value, (np.generic, np.ndarray)):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
