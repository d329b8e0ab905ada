"""Compare forms, fit the best one, compute its frontier and elasticity, and list reasons for doubt.

`analyse` does all of it in one call; `examine` starts from a fitted law. Both return an `Analysis`,
and `findings` lists in plain words where not to trust it.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fitting import formatting, summary
from fitting.elasticities import Elasticity, elasticity
from fitting.forms import PAPER_FORMS
from fitting.frontiers import Frontier, agreement, frontier, member_frontiers
from fitting.lack_of_fit import judged
from fitting.law import BaggedFit
from fitting.optimise.lanes import STOPPED
from fitting.runs import RunTable
from fitting.sweeps import Domain
from fitting.validation import Comparison, Score, compare, score
from fitting.verdict import HOLDS

GOOD_R2 = 0.8  # warn below this R² on unseen runs
GOOD_EXTRAPOLATION = 0.5  # warn below this R² on the train/test split by column
MOST_NAMES = 4  # a warning names at most this many parameters and counts the rest
OFTEN = 0.1  # warn when more than 10% of members stopped early or hit a bound


@dataclass(frozen=True, eq=False)
class Analysis:
    """A fitted law with everything computed from it.

    Attributes:
      table: the runs, of one metric.
      law: the `BaggedFit`.
      comparison: forms scored on unseen runs, the law's form among them; or None.
      cost: x [X, K] -> FLOPs [X]; None where costs are unknown, which leaves no frontier.
      frontier: x*(c; n), or None.
      agreement: share of the law's members that choose the same x*, [C, M], or None.
      elasticity: of x* to n; None for a law without n or without a frontier.
      offered: smallest and largest level of each factor in the domain, [K, 2], or None.
    """

    table: RunTable
    law: BaggedFit
    comparison: Comparison | None = None
    cost: Callable | None = None
    frontier: Frontier | None = None
    agreement: np.ndarray | None = None
    elasticity: Elasticity | None = None
    offered: np.ndarray | None = None


def analyse(
    table: RunTable,
    domain: Domain,
    cost,
    configs,
    budgets,
    num_examples,
    *,
    delta: float | None = None,
    folds: int = 5,
    seed: int = 0,
    on_progress: Callable[[str], None] = lambda text: None,
) -> Analysis:
    """Compare forms, keep the best by cross-validation, and compute its frontier.

    Args:
      table: runs of one metric.
      domain: the configurations to choose from.
      cost: x [X, K] -> FLOPs [X].
      configs: a `FitConfig` or a form's name each; None for the paper's forms, default options.
      budgets: inference budgets [C], in FLOPs.
      num_examples: data sizes [M]; None for laws without n.
      delta: step of the elasticity, as in `examine`.
      folds, seed: for the cross-validation.
      on_progress: called with a line of text before each step.

    Raises:
      ValueError: from `compare`, `frontier` or `elasticity`.
    """
    configs = PAPER_FORMS if configs is None else configs
    sweeps, split = {"star", "isoflop"}, {}
    if sweeps <= set(table.columns.get("sweep", ())):
        split = dict(train="sweep=star", test="sweep=isoflop")

    def say(label, done, total):
        if done == 0:
            on_progress(f"form {label}")

    options = dict(folds=folds, seed=seed, leave_out=False, on_progress=say)
    comparison = compare(table, configs, **split, **options)
    on_progress("lack of fit")
    law = judged(comparison.entry(comparison.best).law, table)
    on_progress(f"frontier of {comparison.best}: {len(domain.configurations())} configurations")
    return examine(table, law, domain, cost, budgets, num_examples, comparison, delta)


def examine(
    table: RunTable,
    law: BaggedFit,
    domain,
    cost,
    budgets=None,
    num_examples=None,
    comparison: Comparison | None = None,
    delta: float | None = None,
) -> Analysis:
    """Compute the frontier and the elasticity of a law.

    Args:
      table: the runs it was fitted to.
      law: a `BaggedFit`.
      domain: the configurations to choose from, as in `frontier`.
      cost: x [X, K] -> FLOPs [X].
      budgets: [C]; by default 60 from the cheapest configuration to the dearest.
      num_examples: [M]; by default five from the smallest n of the runs to twice their largest.
      comparison: kept in the result.
      delta: step of the elasticity; half the runs' largest n by default, so that n plus the
        step stays within the runs for some n.

    Raises:
      ValueError: from `frontier` or `elasticity`.
    """
    offers = domain.configurations() if hasattr(domain, "configurations") else np.asarray(domain)
    if budgets is None:
        reach = cost(offers)
        budgets = np.geomspace(reach.min() * 1.05, reach.max(), 60)
    if num_examples is None and law.examples is not None:
        num_examples = np.geomspace(table.n.min(), 2 * table.n.max(), 5)
    best = frontier(law, domain, cost, budgets, num_examples)
    shares = agreement(best, member_frontiers(law, domain, cost, budgets, num_examples))
    change = None
    if law.examples is not None:
        delta = 0.5 * float(law.ranges[-1, 1]) if delta is None else delta
        change = elasticity(law, domain, cost, budgets, num_examples, delta)
    offered = np.stack([offers.min(axis=0), offers.max(axis=0)], axis=1)
    return Analysis(table, law, comparison, cost, best, shares, change, offered)


def findings(analysis: Analysis) -> list[str]:
    """List reasons for doubt, one sentence or two each; empty if there are none."""
    found = [*_form(analysis.law), *_fit_quality(analysis), *_fit_health(analysis.law)]
    return found if analysis.frontier is None else [*found, *_reach(analysis), *_bounds(analysis)]


def _form(law: BaggedFit) -> list[str]:
    if law.verdict is None or law.verdict.verdict == HOLDS:
        return []
    return [f"Lack of fit, {law.verdict.text}"]


def fitted_score(analysis: Analysis) -> Score:
    """Score the law on the runs it was fitted to."""
    return score(analysis.law.predict(analysis.table.x, analysis.table.n), analysis.table.error)


def _fit_quality(analysis: Analysis) -> list[str]:
    comparison, law, found = analysis.comparison, analysis.law, []
    if comparison is None:
        r2, how = fitted_score(analysis).r2, "The law fits its own runs poorly: R²"
        if len(law.lead.parameters) >= law.num_runs:
            found.append(
                f"{law.num_runs} runs for {len(law.lead.parameters)} parameters: the law can fit "
                "every run exactly, which says nothing about other runs."
            )
        found.append(
            "No run was left out to test the law, so its accuracy on unseen runs is not measured."
        )
    else:
        r2 = comparison.entry(law.lead.label).cross_validation.r2
        how = "The law predicts unseen runs poorly: cross-validation R²"
    if not r2 >= GOOD_R2:
        found.append(
            f"{how} is {r2:.2f}, below {GOOD_R2}. Do not base decisions on it; more runs or less "
            "noisy scores would help."
        )
    if comparison is not None:
        reach = comparison.score(law.lead.label, comparison.extrapolation).r2
        if not reach >= GOOD_EXTRAPOLATION:
            text = "not measured" if np.isnan(reach) else f"R² is {reach:.2f}"
            found.append(
                f"Extrapolation{split_text(analysis)}: {text}. Trust the law only near the runs."
            )
    if np.isnan(law.lead.aicc):  # whatever the loss: too few runs
        found.append(
            f"{law.num_runs} runs hardly determine {len(law.lead.parameters)} parameters: AICc is "
            "undefined."
        )
    return found


def split_text(analysis: Analysis) -> str:
    """Return ' from star to isoflop' for a table of sweeps, else the split's name."""
    split = analysis.comparison.extrapolation
    if split == "sweep=star → sweep=isoflop" or (not split and "sweep" in analysis.table.columns):
        return " from star to isoflop"
    return f", {split}" if split else ""


def _fit_health(law: BaggedFit) -> list[str]:
    failures, law = law.failures, law.lead  # of several forms, the weightiest
    size, found = len(law.theta), []
    if law.degenerate:
        return [f"The law is degenerate: {law.degenerate}. Do not read its parameters."]
    if failures:
        found.append(f"{failures} of {size} bootstrap fits failed and were left out.")
    stopped = int((law.status == STOPPED).sum())
    if stopped > OFTEN * size:
        found.append(
            f"{stopped} of {size} bootstrap fits stopped at the iteration limit, where the "
            "objective is flat: use their predictions, not their parameters."
        )
    capped_P = law.at_cap > OFTEN * size
    if capped_P.any():
        capped = [
            f"{law.parameters[p]} ({law.at_cap[p]} of {size})" for p in np.flatnonzero(capped_P)
        ]
        found.append(
            f"Exponents at a bound: {_few(capped)}. The bound excludes more: values beyond it were "
            "not tried. A larger exponent_cap shows whether the runs want them."
        )
    unknown = summary.undetermined(law)
    unknown &= ~capped_P  # named above
    if unknown.any():
        names = _few([name for name, no in zip(law.parameters, unknown, strict=True) if no])
        found.append(
            f"{unknown.sum()} of {len(unknown)} parameters are not determined by the runs: {names}."
            " Use predictions and frontiers, not these values."
        )
    if law.lost_levels:
        found.append(
            f"{law.lost_levels} of {size} resamples contain no run of some level of "
            f"{formatting.label(law.level_factor)}; stratified resampling avoids this."
        )
    return found


def _few(names: list[str]) -> str:
    """Join at most four names, and say how many more there are."""
    more = len(names) - MOST_NAMES
    return ", ".join(names[:MOST_NAMES]) + (f" and {more} more" if more > 0 else "")


def _reach(analysis: Analysis) -> list[str]:
    best, found = analysis.frontier, []
    outside_CM = extrapolates(analysis.law, best)
    answers = int((~np.isnan(best.cost)).sum())
    if outside_CM.any():
        found.append(
            f"{int(outside_CM.sum())} of {answers} frontier answers extrapolate: their "
            "configuration and data size lie outside the hull of the fitted runs."
        )
    if edge := edge_text(analysis):
        found.append(edge)
    if best.unaffordable:
        found.append(
            f"{best.unaffordable} of {len(best.budgets)} budgets are below the cheapest "
            "configuration and have no answer."
        )
    if answers and np.nanmedian(analysis.agreement) < 0.5:
        found.append(
            "At a typical budget, fewer than half of the bootstrap members choose the same "
            "configuration: several are nearly as good. Read the frontier as a region."
        )
    return found


def _bounds(analysis: Analysis) -> list[str]:
    law, (error_A, low_A, high_A) = analysis.law, _answers(analysis)
    wrong = law.off_scale(error_A, low_A, high_A)
    if not wrong.any():
        return []
    return [
        f"{wrong.sum()} of {len(wrong)} frontier answers have a predicted error, or an end of its "
        f"interval, outside 0 to {law.scale:g}, which no run can have: the law extrapolates, or "
        "the runs do not determine it there."
    ]


def _answers(analysis: Analysis) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the error at every defined x* and both ends of its interval, [A] each."""
    best, law = analysis.frontier, analysis.law
    known_CM = ~np.isnan(best.cost)
    n_CM = np.broadcast_to(best.num_examples, known_CM.shape)
    low, high = law.interval(best.x[known_CM], None if law.examples is None else n_CM[known_CM])
    return best.error[known_CM], low, high


def extrapolates(law: BaggedFit, best: Frontier) -> np.ndarray:
    """Return bool [C, M]: whether x* and n lie outside the hull of the fitted runs."""
    known_CM = ~np.isnan(best.cost)
    x = np.where(known_CM[..., None], best.x, law.lead.units[: len(law.factors)])
    return known_CM & law.extrapolates(x, None if law.examples is None else best.num_examples)


def elasticity_extrapolates(law: BaggedFit, change: Elasticity) -> np.ndarray:
    """Return bool [M]: whether n or n plus the step lies outside the range of the fitted runs."""
    return law.step_extrapolates(change.num_examples, change.delta)


def edge_text(analysis: Analysis) -> str:
    """Name the factors whose x* stays at the largest level on offer, and from which budget on.

    Return '' if there is none.
    """
    if analysis.offered is None:
        return ""
    best, edges = analysis.frontier, []
    order = np.argsort(best.budgets)
    for k, name in enumerate(analysis.law.factors):
        low, high = analysis.offered[k]
        at_CM = best.x[order, :, k] == high
        stays_CM = np.logical_and.accumulate(at_CM[::-1], axis=0)[::-1]
        if low < high and stays_CM.any():
            first_M = np.where(stays_CM.any(axis=0), stays_CM.argmax(axis=0), len(order))
            m = int(first_M.argmin())
            text = f"{formatting.label(name)} ({formatting.count(high)}, from "
            text += f"{formatting.flops(best.budgets[order[first_M[m]]])} on"
            if np.ptp(first_M) > 0:
                text += f" with n = {formatting.count(best.num_examples[m])}"
            edges.append(f"{text})")
    if not edges:
        return ""
    return (
        f"x* reaches the largest level on offer of {' and '.join(edges)}: there the choice is "
        "limited by what is on offer, and a larger value may be better."
    )
