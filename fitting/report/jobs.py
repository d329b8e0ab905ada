"""The jobs of a report: functions of plain values, so that any process can run them.

Those that fit return a sentence where nothing could be fitted; it then stands on the page.
"""

import functools

import numpy as np

from fitting.config import FitConfig
from fitting.report.results import MetricResults, Recommendation, Settings, Subject
from fitting.runs import FACTORS, RunTable
from fitting.sweeps import Domain

FOLDS = 5
MOST_BUDGETS = 6  # recommendations of a metric


def law_job(table: RunTable, config: FitConfig):
    """Fit a law and test its form; return it, or a sentence why it could not be fitted."""
    from fitting.fits import fit
    from fitting.lack_of_fit import judged

    try:
        return judged(fit(table, config), table)
    except ValueError as e:
        return str(e)


def entries_job(tables: dict[str, RunTable], name: str, config: FitConfig) -> dict:
    """Score a form or variation on unseen runs; return metric -> `Entry`, or why there is none."""
    return {metric: _entry(table, name, config) for metric, table in tables.items()}


def _entry(table: RunTable, name: str, config: FitConfig):
    from fitting import splits, validation

    found = [splits.random_folds(table, FOLDS, config.seed)]
    if has_both_sweeps(table):
        found.append(splits.column_split(table, "sweep=star", "sweep=isoflop"))
    try:
        law, validations = validation.validate(table, config, found)
    except ValueError as e:
        return str(e)
    return validation.Entry(name, law, validations)


def has_both_sweeps(table: RunTable) -> bool:
    """Return whether there is a star to fit and isoFLOP runs to predict from it."""
    return {"star", "isoflop"} <= set(table.columns.get("sweep", ()))


def comparison(table: RunTable, entries: list):
    """Return a `Comparison` of those entries that are not sentences; None if there is none."""
    from fitting.validation import Comparison

    entries = tuple(entry for entry in entries if not isinstance(entry, str))
    split = entries[0].validations[-1].name if entries and has_both_sweeps(table) else None
    return Comparison(entries, table, split) if entries else None


def metric_job(subject: Subject, law, compared, settings: Settings) -> MetricResults:
    """Compute the frontier, elasticity, recommendations and figures of one metric.

    Args:
      law: a `BaggedFit`, or a sentence that says why there is none.
      compared: a `Comparison` of forms, or None.
    """
    from fitting.report.analysis import Analysis, examine

    if isinstance(law, str):
        return MetricResults(None, draw_figures(subject, law, None, settings), [])
    if compared and law.lead.label not in [entry.name for entry in compared.entries]:
        compared = None
    if settings.cost is None or law.factors != FACTORS:
        return describe(subject, Analysis(subject.table, law, compared), settings)
    domain = measured_domain(subject.table)
    analysis = examine(subject.table, law, domain, settings.cost, comparison=compared)
    return describe(subject, analysis, settings, domain)


def describe(subject: Subject, analysis, settings: Settings, domain=None) -> MetricResults:
    """Compute recommendations and draw the figures of a law whose `Analysis` exists.

    Args:
      domain: the configurations to choose from; None for a law without a frontier.
    """
    found = draw_figures(subject, "", analysis, settings)
    return MetricResults(analysis, found, recommend(analysis, domain) if domain else [])


def draw_figures(subject: Subject, why: str, analysis, settings: Settings) -> dict:
    """Return name -> `Drawn`, or a sentence that says why there is none."""
    from fitting import figures

    table, cost, one_n = subject.table, settings.cost, subject.one_n
    draw = functools.partial(_drawn, subject.metric, settings.mark)
    found = {"figure7_runs": draw(lambda: figures.all_runs(table, cost))}
    names = ("figure1_performance", "figure2_isoflop", "figure3a_parameters", "figure3b_predicted")
    if analysis is None:
        return found | dict.fromkeys((*names, "figure4_frontier"), why)
    law, change, unpriced = analysis.law, analysis.elasticity, "It needs costs, which are unknown."
    fitted_n = (0.0, np.inf) if change is None else tuple(law.ranges[-1])
    ways = (
        lambda: figures.iso_performance(law, table),
        lambda: figures.isoflop_curves(law, table, cost),
        lambda: figures.parameter_boxes(law),
        lambda: figures.predicted_vs_actual(table, _predictions(analysis)),
    )
    found |= {name: draw(way) for name, way in zip(names, ways, strict=True)}
    if one_n is not None and isinstance(found["figure1_performance"], str):
        found["figure1_performance"] += f" All runs have n = {one_n:g}."
    if cost is None:
        found["figure2_isoflop"] = unpriced
    if analysis.frontier is None:
        return found | {"figure4_frontier": unpriced}
    paths = functools.partial(figures.frontier_paths, fitted_n=fitted_n)
    return found | {"figure4_frontier": draw(lambda: paths(analysis.frontier, law.factors, change))}


def _predictions(analysis) -> dict[str, np.ndarray]:
    """Return the predictions of Figure 3b: of unseen runs if forms were compared, else of all."""
    law, table, compared = analysis.law, analysis.table, analysis.comparison
    if compared is None:
        return {"all runs (fitted)": law.predict(table.x, table.n)}
    shown = (compared.splits[0], compared.extrapolation)
    validations = compared.entry(law.lead.label).validations
    return {v.name: v.predicted for v in validations if v.name in shown}


def _drawn(metric: str, mark: str, draw):
    from fitting.figures import style

    try:
        return style.drawn(draw(), title=metric, mark=mark)
    except ValueError as e:
        text = str(e)
        return text[:1].upper() + text[1:] + "." * (not text.endswith("."))


def recommend(analysis, domain, most: int = MOST_BUDGETS) -> list[Recommendation]:
    """Choose the best configuration at round budgets that the runs span, with their largest n."""
    from fitting.intervals import prediction_interval
    from fitting.planner import extrapolations
    from fitting.uncertainty import decide, default_tolerance

    law, table, cost = analysis.law, analysis.table, analysis.cost
    n = None if law.examples is None else float(table.n.max())
    found = []
    for budget in budgets(cost(table.x), cost(domain.configurations()), most):
        decision = decide(law, domain, cost, float(budget), n)
        low, high = prediction_interval(law, decision.x[:1], n)
        found.append(
            Recommendation(
                budget=float(budget),
                cost=float(decision.cost[0]),
                num_examples=n,
                x=tuple(decision.x[0]),
                error=float(decision.error[0]),
                low=float(low[0]),
                high=float(high[0]),
                probability=float(decision.probability[0]),
                regret=float(np.quantile(decision.regret[0], 0.9)),
                alike=int(decision.regret_set(default_tolerance(law)).sum()),
                affordable=len(decision.x),
                outside=extrapolations(law, decision.x[0], n),
            )
        )
    return found


def budgets(measured, offered, most: int) -> np.ndarray:
    """Return at most `most` round costs within the runs' range that pay for some configuration.

    Args:
      measured: costs of the runs [R].
      offered: costs of the configurations to choose from [X].
    """
    from fitting.figures.style import round_ticks

    ticks = np.unique(np.maximum(round_ticks(measured), np.min(offered)))
    spread = np.linspace(0, len(ticks) - 1, min(most, len(ticks))).round()
    return ticks[np.unique(spread).astype(int)]


def sensitivity_job(table: RunTable, law, cost) -> tuple[float, float, list]:
    """Compute Table 10 on a grid around the runs.

    Returns:
      (largest budget, smallest n, rows). The largest budget is the cost of the most expensive run,
      the smallest n half the largest of the runs, to one digit: for the paper's runs 100 TFLOPs and
      1M, the grid of Appendix E.
    """
    from fitting.elasticities import sensitivity

    top, unit = float(f"{cost(table.x).max():.0e}"), float(f"{table.n.max():.0e}") / 2
    return top, unit, sensitivity(law, measured_domain(table), cost, top, unit)


def measured_domain(table: RunTable) -> Domain:
    """Return the configurations between the runs, so that answers extrapolate in n at most.

    They are the measured language models with every number of frames and every square number of
    tokens in the measured range.
    """
    sizes, frames, tokens = (np.unique(column) for column in table.x.T)
    squares = np.arange(1, int(tokens[-1] ** 0.5) + 1) ** 2
    whole = np.arange(1, int(frames[-1]) + 1)
    return Domain(
        tuple(sizes),
        tuple(np.union1d(frames, whole[whole >= frames[0]])),
        tuple(np.union1d(tokens, squares[squares >= tokens[0]])),
    )
