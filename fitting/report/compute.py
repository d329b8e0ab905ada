"""From a table of runs to a decision: compare forms, fit, frontier, elasticity.

`analyse` does it all in one call and `examine` starts from a law that is fitted already; both
return one value, and `findings` says in plain words where not to trust it.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fitting import formatting, summary
from fitting.elasticities import Elasticity, elasticity
from fitting.forms import PAPER_FORMS
from fitting.frontiers import Frontier, agreement, frontier, member_frontiers
from fitting.law import BaggedFit
from fitting.optimise.lanes import STOPPED
from fitting.runs import RunTable
from fitting.sweeps import Domain
from fitting.validation import Comparison, Score, compare, score

GOOD_R2 = 0.8  # on unseen runs below this: a poor description
GOOD_EXTRAPOLATION = 0.5  # of the chosen split below this: no better guide than a rough guess
MOST_NAMES = 4  # parameters named in a sentence; of more, their number
OFTEN = 0.1  # share of members from which a habit of the solver is worth a sentence


@dataclass(frozen=True, eq=False)
class Analysis:
    """A law and what was found out about it.

    Attributes:
      table: the runs, of one metric.
      law: the `BaggedFit`.
      comparison: of several forms, the law's among them; None without one.
      cost: x [X, K] -> FLOPs [X]; None where costs are unknown, and then no frontier.
      frontier: x*(c; n), or None.
      agreement: share of the law's members with the same x*, [C, M], or None.
      elasticity: of x* to n; None for a law without n, or without a frontier.
      offered: least and largest level of each factor on offer to the frontier, [K, 2], or None.
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
    """Compares forms, keeps the best by cross-validation, and follows its frontier.

    Args:
      table: runs of one metric.
      domain: the configurations on offer.
      cost: x [X, K] -> FLOPs [X].
      configs: a `FitConfig` (or a name) for each form; None for the paper's with default options.
      budgets: inference budgets [C], in FLOPs.
      num_examples: data sizes [M]; None for laws without n.
      delta: step of the elasticity, as in `examine`.
      folds, seed: of the cross-validation.
      on_progress: called with a line of text before each step.

    Raises:
      ValueError: as `compare`, `frontier` and `elasticity`.
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
    law = comparison.entry(comparison.best).law
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
    """The frontier and the elasticity of a law.

    Args:
      table: the runs it was fitted to.
      law: a `BaggedFit`.
      domain: the configurations on offer, as in `frontier`.
      cost: x [X, K] -> FLOPs [X].
      budgets: [C]; by default 60 from the cheapest configuration to the dearest.
      num_examples: [M]; by default five from the smallest n of the runs to twice their largest.
      comparison: kept beside it.
      delta: step of the elasticity; half the runs' largest n by default, so that there are data
        sizes whose step stays within the runs.

    Raises:
      ValueError: as `frontier` and `elasticity`.
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


# --- reasons for doubt ---


def findings(analysis: Analysis) -> list[str]:
    """Reasons for doubt, in plain words; empty where there are none."""
    found = [*_fit_quality(analysis), *_fit_health(analysis.law)]
    return found if analysis.frontier is None else [*found, *_reach(analysis), *_bounds(analysis)]


def fitted_score(analysis: Analysis) -> Score:
    """Of the law on its own runs."""
    return score(analysis.law.predict(analysis.table.x, analysis.table.n), analysis.table.error)


def _fit_quality(analysis: Analysis) -> list[str]:
    comparison, law, found = analysis.comparison, analysis.law, []
    if comparison is None:
        r2, how = fitted_score(analysis).r2, "The law describes its own runs poorly: R²"
        if len(law.parameters) >= law.num_runs:
            found.append(
                f"{law.num_runs} runs for {len(law.parameters)} parameters: the law can pass "
                "through every run, whatever the truth."
            )
        found.append(
            "No run was left out to test the law: how well it predicts runs it has not seen is "
            "not measured."
        )
    else:
        r2 = comparison.entry(law.config.form).cross_validation.r2
        how = "The law describes unseen runs poorly: cross-validation R²"
    if not r2 >= GOOD_R2:
        found.append(
            f"{how} is {r2:.2f}, below {GOOD_R2}. Do not decide by it before there are more runs "
            "or less noise."
        )
    if comparison is not None:
        reach = comparison.score(law.config.form, comparison.extrapolation).r2
        if not reach >= GOOD_EXTRAPOLATION:
            text = "not measured" if np.isnan(reach) else f"R² is {reach:.2f}"
            found.append(
                f"Extrapolation{split_text(analysis)}: {text}. Trust the law only near the runs."
            )
    if np.isnan(law.aicc):  # of any loss: too few runs
        found.append(
            f"{law.num_runs} runs hardly determine {len(law.parameters)} parameters: "
            "AICc is undefined."
        )
    return found


def split_text(analysis: Analysis) -> str:
    """' from star to isoflop' of a table of sweeps; of any other split, its name."""
    split = analysis.comparison.extrapolation
    if split == "sweep=star → sweep=isoflop" or (not split and "sweep" in analysis.table.columns):
        return " from star to isoflop"
    return f", {split}" if split else ""


def _fit_health(law: BaggedFit) -> list[str]:
    size, found = len(law.theta), []
    if law.degenerate:
        return [f"The law is degenerate: {law.degenerate}. Its parameters mean nothing."]
    if law.failures:
        found.append(f"{law.failures} of {size} bootstrap fits failed and were left out.")
    stopped = int((law.status == STOPPED).sum())
    if stopped > OFTEN * size:
        found.append(
            f"{stopped} of {size} bootstrap fits stopped at the iteration limit, in a flat valley; "
            "their predictions are usable, their single parameters are not."
        )
    capped = [
        f"{name} ({count} of {size})"
        for name, count in zip(law.parameters, law.at_cap, strict=True)
        if count > OFTEN * size
    ]
    if capped:
        found.append(f"Exponents at a bound: {_few(capped)}. The runs do not determine them.")
    unknown = summary.undetermined(law)
    if unknown.any():
        names = _few([name for name, no in zip(law.parameters, unknown, strict=True) if no])
        found.append(
            f"{unknown.sum()} of {len(unknown)} parameters are not determined by the runs: {names}."
            " Read predictions and frontiers, not these numbers."
        )
    if law.lost_levels:
        found.append(
            f"{law.lost_levels} of {size} resamples hold no run of some level of "
            f"{formatting.label(law.level_factor)}; resampling 'stratified' avoids it."
        )
    return found


def _few(names: list[str]) -> str:
    """At most four of the names, and how many more there are."""
    more = len(names) - MOST_NAMES
    return ", ".join(names[:MOST_NAMES]) + (f" and {more} more" if more > 0 else "")


def _reach(analysis: Analysis) -> list[str]:
    best, found = analysis.frontier, []
    outside_CM = extrapolates(analysis.law, best)
    answers = int((~np.isnan(best.cost)).sum())
    if outside_CM.any():
        found.append(
            f"{int(outside_CM.sum())} of {answers} frontier answers extrapolate: they use a "
            "configuration or a data size outside the fitted range."
        )
    if edge := edge_text(analysis):
        found.append(edge)
    if best.unaffordable:
        found.append(
            f"{best.unaffordable} of {len(best.budgets)} budgets do not pay for the cheapest "
            "configuration; they have no answer."
        )
    if answers and np.nanmedian(analysis.agreement) < 0.5:
        found.append(
            "At a typical budget, fewer than half of the bootstrap members choose the same "
            "configuration: near ties. Read the frontier as a region."
        )
    return found


def _bounds(analysis: Analysis) -> list[str]:
    law, (error_A, low_A, high_A) = analysis.law, _answers(analysis)
    wrong = law.off_scale(error_A, low_A, high_A)
    if not wrong.any():
        return []
    return [
        f"{wrong.sum()} of {len(wrong)} frontier answers have a predicted error, or an end of its "
        f"interval, outside 0 to {law.scale:g}, which no run can have: the law is extrapolating, "
        "or its runs do not determine it there."
    ]


def _answers(analysis: Analysis) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Error and the ends of its interval at every x* there is, [A] each."""
    best, law = analysis.frontier, analysis.law
    known_CM = ~np.isnan(best.cost)
    n_CM = np.broadcast_to(best.num_examples, known_CM.shape)
    low, high = law.interval(best.x[known_CM], None if law.examples is None else n_CM[known_CM])
    return best.error[known_CM], low, high


def extrapolates(law: BaggedFit, best: Frontier) -> np.ndarray:
    """Bool [C, M]: x* or n lies outside the range of the fitted runs."""
    known_CM = ~np.isnan(best.cost)
    x = np.where(known_CM[..., None], best.x, law.units[: len(law.factors)])
    return known_CM & law.extrapolates(x, None if law.examples is None else best.num_examples)


def elasticity_extrapolates(law: BaggedFit, change: Elasticity) -> np.ndarray:
    """Bool [M]: n, or n with its step, lies outside the range of the fitted runs."""
    return law.step_extrapolates(change.num_examples, change.delta)


def edge_text(analysis: Analysis) -> str:
    """Which factors end at the largest level on offer, from which budget on; '' where none does."""
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
            text += f" with n = {formatting.count(best.num_examples[m])}" * bool(
                np.ptp(first_M) > 0
            )
            edges.append(f"{text})")
    if not edges:
        return ""
    return (
        f"x* ends at the largest level on offer of {' and '.join(edges)}: there the domain decides"
        " and not the law, and more may be better."
    )


# --- what to deploy ---


def deployment_headers(law: BaggedFit, brief: bool = False) -> tuple[str, ...]:
    """Of `deployment_rows`; brief for a text."""
    name = formatting.short if brief else formatting.label
    n = () if law.examples is None else ("n" if brief else "examples",)
    factors = (name(factor) for factor in law.factors)
    return ("budget", *n, *factors, "error", "90% interval", "cost", "agreement", "extrapolates")


def deployment_rows(analysis: Analysis, *, max_budgets=6, max_num_examples=4) -> list[tuple]:
    """What to deploy, as texts under the headers: a spread of budgets and data sizes."""
    best, law, rows = analysis.frontier, analysis.law, []
    outside_CM, width = extrapolates(law, best), len(deployment_headers(law))
    for m in _spread(best.num_examples, max_num_examples):
        n = None if law.examples is None else best.num_examples[m]
        for c in _spread(best.budgets, max_budgets):
            head = (
                formatting.flops(best.budgets[c]),
                *([] if n is None else [formatting.count(n)]),
            )
            if np.isnan(best.cost[c, m]):
                rows.append((*head, *["-"] * (width - len(head))))
                continue
            errors = [best.error[c, m], *law.interval(best.x[c, m], n)]
            error, low, high = (error_text(value, law.scale) for value in errors)
            doubt = "yes" if outside_CM[c, m] else "no"
            if law.off_scale(*errors):
                doubt = "impossible"
            rows.append(
                (
                    *head,
                    *(formatting.count(value) for value in best.x[c, m]),
                    error,
                    f"{low} to {high}",
                    formatting.flops(best.cost[c, m]),
                    f"{100 * analysis.agreement[c, m]:.0f}%",
                    doubt,
                )
            )
    return rows


def error_text(error: float, scale: float) -> str:
    """A predicted error; outside the scale its value means nothing, and only the side is said."""
    if not 0 <= error <= scale:
        return f">{scale:g}" if error > scale else "<0"
    return f"{error:.1f}" if scale == 100 else f"{error:.3f}"


def deployment_text(analysis: Analysis, **limits) -> str:
    """`deployment_rows` as an aligned text table, then the findings."""
    headers = deployment_headers(analysis.law, brief=True)
    text = formatting.aligned(headers, deployment_rows(analysis, **limits))
    return "\n".join([text, *(f"Warning: {doubt}" for doubt in findings(analysis))])


def _spread(values, most: int) -> np.ndarray:
    """Indices of at most so many values, evenly spread over the sorted ones, both ends in."""
    order = np.argsort(values)
    return order[
        np.unique(np.linspace(0, len(order) - 1, min(most, len(order))).round().astype(int))
    ]
