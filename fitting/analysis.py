"""From a table of runs to a decision, in one call: compare forms, fit, frontier, elasticity.

`analyse` returns everything as one value; `findings` says in plain words where not to trust it.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from fitting import units
from fitting.elasticity import Elasticity, elasticity
from fitting.fit import BaggedFit
from fitting.forms import FORMS
from fitting.frontier import Frontier, agreement, frontier, member_frontiers
from fitting.runs import FACTORS, RunTable
from fitting.selection import Comparison, compare_forms
from fitting.solve import STOPPED
from fitting.sweeps import Domain

GOOD_R2 = 0.8  # cross-validation below this: a poor description
GOOD_EXTRAPOLATION = 0.5  # star to isoFLOP below this: no better guide than a rough guess
OFTEN = 0.1  # share of members from which a habit of the solver is worth a sentence


@dataclass(frozen=True, eq=False)
class Analysis:
    """Everything `analyse` found.

    Attributes:
      table: the runs, of one metric.
      cost: x [X, K] -> FLOPs [X].
      comparison: of all forms.
      law: the `BaggedFit` of the form of least cross-validation MSE.
      frontier: x*(c; n).
      elasticity: of x* to n.
      agreement: share of the law's members with the same x*, [C, M].
    """

    table: RunTable
    cost: Callable
    comparison: Comparison
    law: BaggedFit
    frontier: Frontier
    elasticity: Elasticity
    agreement: np.ndarray


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
      configs: a `FitConfig` (or a name) for each form; None for all forms with default options.
      budgets: inference budgets [C], in FLOPs.
      num_examples: data sizes [M].
      delta: step of the elasticity; half the largest n by default, as the paper's 5M is of 10M.
      folds, seed: of the cross-validation.
      on_progress: called with a line of text before each step.

    Raises:
      ValueError: as `compare_forms`, `frontier` and `elasticity`.
    """
    configs = tuple(FORMS) if configs is None else configs
    comparison = compare_forms(table, configs, folds=folds, seed=seed, on_progress=on_progress)
    law = comparison.fits[comparison.best]
    on_progress(f"frontier of {comparison.best}: {len(domain.configurations())} configurations")
    best = frontier(law, domain, cost, budgets, num_examples)
    shares = agreement(best, member_frontiers(law, domain, cost, budgets, num_examples))
    on_progress("elasticity")
    delta = 0.5 * float(np.max(num_examples)) if delta is None else delta
    change = elasticity(law, domain, cost, budgets, num_examples, delta)
    return Analysis(table, cost, comparison, law, best, change, shares)


def findings(analysis: Analysis) -> list[str]:
    """Reasons for doubt, in plain words; empty where there are none."""
    return [*_fit_quality(analysis), *_fit_health(analysis.law), *_reach(analysis)]


def _fit_quality(analysis: Analysis) -> list[str]:
    row, law, found = analysis.comparison.row(analysis.law.config.form), analysis.law, []
    r2, reach = row.cross_validation.r2, row.extrapolation.r2
    if not r2 >= GOOD_R2:
        found.append(
            f"The law describes unseen runs poorly: cross-validation R² is {r2:.2f}, below "
            f"{GOOD_R2}. Do not decide by it before there are more runs or less noise."
        )
    if not reach >= GOOD_EXTRAPOLATION:
        names = f"{analysis.comparison.train_sweep} to {analysis.comparison.test_sweep}"
        text = "not measured" if np.isnan(reach) else f"R² is {reach:.2f}"
        found.append(f"Extrapolation from {names}: {text}. Trust it only near the runs.")
    if np.isnan(row.aicc):
        found.append(
            f"{law.num_runs} runs hardly determine {row.num_parameters} parameters: "
            "AICc is undefined."
        )
    return found


def _fit_health(law: BaggedFit) -> list[str]:
    size, found = len(law.theta), []
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
        found.append(
            f"Exponents at the cap of {law.config.exponent_cap:g}: {', '.join(capped)}. "
            "The runs do not determine them."
        )
    if law.lost_levels:
        found.append(
            f"{law.lost_levels} of {size} resamples hold no run of some language-model size; "
            "resampling='stratified' avoids it."
        )
    return found


def _reach(analysis: Analysis) -> list[str]:
    best, found = analysis.frontier, []
    outside_CM = extrapolates(analysis.law, best)
    answers = int((~np.isnan(best.cost)).sum())
    if outside_CM.any():
        found.append(
            f"{int(outside_CM.sum())} of {answers} frontier answers extrapolate: they use a "
            "configuration or a data size outside the fitted range."
        )
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


def extrapolates(law: BaggedFit, best: Frontier) -> np.ndarray:
    """Bool [C, M]: x* or n lies outside the range of the fitted runs."""
    low, high = law.ranges.T
    x_out_CM = ((best.x < low[:-1]) | (best.x > high[:-1])).any(axis=-1)
    n_out_M = (best.num_examples < low[-1]) | (best.num_examples > high[-1])
    return (x_out_CM | n_out_M) & ~np.isnan(best.cost)


DEPLOYMENT_HEADERS = (
    "budget",
    "examples",
    *(units.LABELS[name] for name in FACTORS),
    "error",
    "90% interval",
    "cost",
    "agreement",
    "extrapolates",
)


def deployment_rows(analysis: Analysis, *, max_budgets=6, max_num_examples=4) -> list[tuple]:
    """What to deploy, as texts under `DEPLOYMENT_HEADERS`: a spread of budgets and data sizes."""
    best, law, rows = analysis.frontier, analysis.law, []
    outside_CM = extrapolates(law, best)
    for m in _spread(best.num_examples, max_num_examples):
        for c in _spread(best.budgets, max_budgets):
            head = units.flops(best.budgets[c]), units.count(best.num_examples[m])
            if np.isnan(best.cost[c, m]):
                rows.append((*head, *["-"] * (len(DEPLOYMENT_HEADERS) - 2)))
                continue
            low, high = law.interval(best.x[c, m], best.num_examples[m])
            rows.append(
                (
                    *head,
                    *(units.count(value) for value in best.x[c, m]),
                    f"{best.error[c, m]:.1f}",
                    f"{low:.1f} to {high:.1f}",
                    units.flops(best.cost[c, m]),
                    f"{100 * analysis.agreement[c, m]:.0f}%",
                    "yes" if outside_CM[c, m] else "no",
                )
            )
    return rows


def deployment_text(analysis: Analysis, **limits) -> str:
    """`deployment_rows` as an aligned text table, then the findings."""
    headers = ("budget", "examples", "LM", "frames", "tokens", *DEPLOYMENT_HEADERS[5:])
    rows = [headers, *deployment_rows(analysis, **limits)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(headers))]
    lines = [
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    ]
    return "\n".join([*lines, *(f"Warning: {text}" for text in findings(analysis))])


def _spread(values, most: int) -> np.ndarray:
    """Indices of at most so many values, evenly spread over the sorted ones, both ends in."""
    order = np.argsort(values)
    return order[
        np.unique(np.linspace(0, len(order) - 1, min(most, len(order))).round()).astype(int)
    ]
