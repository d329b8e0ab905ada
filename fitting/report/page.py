"""The report of a law: every table and figure, captions in plain words, and where not to trust it.

analysis = analyse(table, domain, cost, configs, budgets, num_examples)
report = Report("Study", "what to deploy")
add_law(report, analysis)
report.write("out")
"""

import dataclasses
from collections.abc import Mapping

import numpy as np

from fitting import figures, formatting
from fitting.cost import CostConstants
from fitting.forms import factor_labels
from fitting.report.compute import (
    Analysis,
    analyse,
    deployment_headers,
    deployment_rows,
    deployment_text,
    edge_text,
    elasticity_extrapolates,
    findings,
    fitted_score,
    split_text,
)
from fitting.report.html import Report
from fitting.runs import FACTORS, RunTable

__all__ = ["Analysis", "Report", "add_law", "add_tasks", "analyse", "deployment_text"]


def add_law(report: Report, analysis: Analysis, *, prefix: str = "") -> None:
    """Adds the sections Answer, Runs, Forms, Law and Frontier of one metric.

    What the analysis does not hold (a comparison, costs and a frontier, an elasticity) is left out.

    Args:
      report: where to add them.
      analysis: what `analyse` or `examine` returned.
      prefix: of the figures' file names; give one to each metric of a report with several.
    """
    _add_answer(report, analysis)
    _add_runs(report, analysis, prefix)
    _add_forms(report, analysis, prefix)
    _add_parameters(report, analysis, prefix)
    if analysis.frontier is not None:
        _add_frontier(report, analysis, prefix)


def _add_answer(report: Report, analysis: Analysis) -> None:
    law, given = analysis.law, _given(analysis)
    if analysis.frontier is None:
        report.section(
            f"How far to trust it: {law.metric}",
            f"The law is {law.config.form}, fitted to {law.num_runs} runs of {law.source}. No cost "
            "is known of its configurations, so there is no frontier here.",
        )
    else:
        report.section(
            f"What to deploy: {law.metric}",
            f"For {given}, the configuration with the least predicted error. The law is "
            f"{law.config.form}, fitted to {law.num_runs} runs. {_cost_text(analysis.cost)}",
        )
    for text in findings(analysis):
        report.warning(text)
    if analysis.frontier is not None:
        report.table(
            deployment_headers(law, brief=True),
            deployment_rows(analysis),
            f"Best configuration on offer for {given}{_names(law)}. "
            "The interval is of the law's parameters; agreement is the share of bootstrap members "
            "that choose the same one. No run can have "
            f"an error outside 0 to {law.scale:g}: where the law says so, the row is marked "
            "impossible, and its value is not shown.",
        )


def _names(law) -> str:
    """What the short heads of a table stand for, where they are not the columns' names."""
    columns = zip(
        ("n", *map(formatting.short, law.factors)), (law.examples, *law.factors), strict=True
    )
    told = [
        (a, formatting.label(name)) for a, name in columns if name and formatting.label(name) != a
    ]
    return f" ({'; '.join(f'{short}: {full}' for short, full in told)})" if told else ""


def _given(analysis: Analysis) -> str:
    with_n = analysis.law.examples is not None
    return "an inference budget" + " and a number of finetuning examples" * with_n


def _cost_text(cost) -> str:
    if not isinstance(cost, CostConstants):
        return ""
    return (
        f"Costs are those of equation 1 with a vision model of {formatting.count(cost.vision_params)} "
        f"parameters and {formatting.count(cost.features_per_frame)} features a frame."
    )


def _add_runs(report: Report, analysis: Analysis, prefix: str) -> None:
    table, law, cost = analysis.table, analysis.law, analysis.cost
    sweeps = f": {', '.join(table.levels('sweep'))}" if "sweep" in table.columns else ""
    report.section("Runs", f"{len(table)} measured runs{sweeps}.")
    report.figure(
        f"{prefix}runs",
        figures.all_runs(table, cost),
        f"As the paper's Figure 7. {_runs_caption(table, cost)}",
        f"Measured errors of {len(table)} runs against each factor",
    )
    _add_figure_if(
        report,
        f"{prefix}performance",
        lambda: figures.iso_performance(law, table),
        "As the paper's Figure 1. Lines of equal predicted error, the other factors at "
        f"{'the star’s centre' if _has(table, 'star') else 'their commonest level'}. Dots are runs "
        "in the colour of their measured error; a dot that stands out is a miss of the law. Beyond "
        "a dashed line predictions leave the scale.",
        "Contours of predicted error over two columns of the runs",
    )
    if _has(table, "isoflop") and cost is not None:
        _add_figure_if(
            report,
            f"{prefix}isoflop",
            lambda: figures.isoflop_curves(law, table, cost),
            "As the paper's Figure 2. Runs of equal cost: dots are measured, curves are the law, a "
            "ring marks the best run of a cost. Right: the best measured error within each cost.",
            f"Error against {formatting.label(table.factors[-1])} at equal cost",
        )


def _has(table: RunTable, sweep: str) -> bool:
    return sweep in table.columns.get("sweep", ())


def _runs_caption(table: RunTable, cost) -> str:
    if not _has(table, "star"):
        text = "Every run; lines join runs that differ in one factor alone."
    else:
        text = "Every run. The star changes one factor at a time around its centre"
        text += "." if table.n is None else ", a line for each number of examples n."
    return text + " The last panel shows the other runs at what they cost." * (cost is not None)


def _add_figure_if(report: Report, name: str, draw, caption: str, alt: str) -> None:
    """A figure, or a line that says why there is none."""
    try:
        figure = draw()
    except ValueError as e:
        report.paragraph(f"No figure: {e}.")
        return
    report.figure(name, figure, caption, alt)


def _add_forms(report: Report, analysis: Analysis, prefix: str) -> None:
    comparison, law, table = analysis.comparison, analysis.law, analysis.table
    fitted = law.predict(table.x, table.n)
    if comparison is None:
        report.section("Fit", "How the law meets the runs it was fitted to.")
        cells = [formatting.number(value) for value in fitted_score(analysis)]
        report.table(("MSE", "E%", "R²"), [cells], f"Of {len(table)} runs, all fitted.")
        predictions = {"all runs (fitted)": fitted}
    else:
        _add_form_table(report, analysis)
        found = comparison.entry(law.config.form).validations
        chosen = (comparison.splits[0], comparison.extrapolation)
        predictions = {v.name: v.predicted for v in found if v.name in chosen}
    report.figure(
        f"{prefix}predicted",
        figures.predicted_vs_actual(table, predictions),
        "As the paper's Figure 3b. Predicted against measured error, on the line is right. "
        + ("Of the runs fitted." if comparison is None else "Of runs the fit has not seen."),
        "Predicted error against measured error",
    )


def _add_form_table(report: Report, analysis: Analysis) -> None:
    comparison, scored = analysis.comparison, ("MSE", "E%", "R²")
    chosen, split = comparison.extrapolation, split_text(analysis)
    tested = f", and extrapolation{split}" if chosen else ""
    report.section(
        "Forms",
        "Each form is scored on runs it has not seen: cross-validation over all runs "
        f"({comparison.splits[0]}){tested}. The least cross-validation MSE is that of "
        f"{comparison.best}; the law of this page is {analysis.law.config.form}.",
    )
    heads, rows = [f"CV {s}" for s in scored], []
    if chosen:
        name = split.removeprefix(" from ").removeprefix(", ")
        heads += [f"{name} {s}" for s in scored]
    for entry in comparison.entries:
        values = list(entry.cross_validation)
        values += comparison.score(entry.name, chosen) if chosen else ()
        alike = _residual_space(entry.law) == _residual_space(analysis.law)
        aicc = formatting.number(entry.law.aicc, 4) if alike else "-"
        rows.append((entry.name, entry.num_parameters, *map(formatting.number, values), aicc))
    report.table(
        ("form", "parameters", *heads, "AICc"),
        rows,
        "MSE in squared error points, E% the mean relative error; lower is better. "
        + _aicc_text(analysis.law),
    )


def _residual_space(law) -> tuple[str, str]:
    return law.config.space, law.config.loss


def _aicc_text(law) -> str:
    if law.config.loss == "huber":
        return "No AICc: it compares likelihoods, and Huber's loss is none."
    what = "log error" if law.config.space == "log" else "error"
    return f"AICc of the fit to all runs, in {what}; only differences count."


def _add_parameters(report: Report, analysis: Analysis, prefix: str) -> None:
    law = analysis.law
    typical = ", ".join(
        f"{formatting.count(unit)} {formatting.label(name)}"
        for unit, name in zip(law.units, law.columns, strict=True)
    )
    values = [
        (name, *map(formatting.number, row), note) for name, *row, note in law.parameter_rows()
    ]
    report.section(
        "Law",
        f"A coefficient is the error of its term, of {law.scale:g}, where every factor is one unit "
        f"({typical}); exponents have no unit. A wide interval means that the runs do not "
        "determine the parameter, even where they determine the predictions well.",
    )
    if law.config.resampling == "none" and not law.degenerate:
        values = [(name, whole, note) for name, whole, *_, note in values]
        report.table(
            ("parameter", "all runs", "note"), values, "One fit: no resampling, no spread."
        )
    elif not law.degenerate:
        report.table(
            ("parameter", "all runs", "median", "5%", "95%", "note"),
            values,
            f"Over {len(law.theta) - law.failures} bootstrap members.",
        )
    _add_figure_if(
        report,
        f"{prefix}parameters",
        lambda: figures.parameter_boxes(law),
        "As the paper's Figure 3a. The same: boxes hold the middle half of the members, whiskers "
        "5% to 95%, the cross is the fit to all runs. Grey boxes are of parameters that the runs "
        "do not determine.",
        "Box plot of the bootstrapped coefficients and exponents",
    )
    report.preformatted(law.report())


def _add_frontier(report: Report, analysis: Analysis, prefix: str) -> None:
    change, law = analysis.elasticity, analysis.law
    report.section(
        "Frontier",
        "How the best configuration moves with the budget"
        + " and with the data" * (change is not None)
        + ". Steps are real: the configurations on offer are discrete, and the best is often "
        "cheaper than the budget.",
    )
    shaded, fitted_n = "", (0.0, np.inf)
    if change is not None:
        shaded = (
            ", a shade for each number of examples n. Right, the elasticity: the percent change of "
            "the best value for one percent more data; open where n, or n with its step, lies "
            "beyond the runs. Beside it the mean over all n: the point is that of the bag's "
            "frontier, the bar the middle 90% of the members' own means, and so the point may lie "
            "outside its bar"
        )
        fitted_n = tuple(law.ranges[-1])
    _add_figure_if(
        report,
        f"{prefix}frontier",
        lambda: figures.frontier_paths(analysis.frontier, law.factors, change, fitted_n=fitted_n),
        "As the paper's Figure 4. Best value of each factor against the budget"
        f"{shaded}. {edge_text(analysis)}".strip(),
        "Best value of each factor against the inference budget",
    )
    if change is not None:
        add_elasticity_tables(report, change, law)
    if isinstance(analysis.cost, CostConstants) and law.factors == FACTORS:
        table = analysis.table
        sizes, tokens = table.x[:, 0], table.x[:, 2]
        _add_figure_if(
            report,
            f"{prefix}vision",
            lambda: figures.vision_share(analysis.cost, sizes, tokens, table),
            "As the paper's Figure 6. Share of the inference compute that the vision model takes "
            "(equation 1), whatever the number of frames. Dots are the runs.",
            "Contours of the vision model's share of compute over model size and visual tokens",
        )


def add_elasticity_tables(report: Report, change, law) -> None:
    """Adds the mean elasticity of each factor, then by data size; what extrapolates is marked."""
    outside_M, ends = elasticity_extrapolates(law, change), np.stack(change.interval(), axis=1)
    labels = factor_labels(len(law.factors))
    within = dataclasses.replace(
        change, num_examples=change.num_examples[~outside_M], values=change.values[:, ~outside_M]
    )
    report.table(
        ("factor", "elasticity to n", "90% of members", "within the runs"),
        [
            (
                f"{label}: {formatting.label(name)}",
                formatting.number(value),
                text,
                formatting.number(inside),
            )
            for label, name, value, inside, text in zip(
                labels,
                law.factors,
                change.mean,
                within.mean,
                (_interval_text(*pair) for pair in ends),
                strict=True,
            )
        ],
        f"Mean over {len(change.budgets)} budgets and {len(change.num_examples)} data sizes, with "
        f"a step of {formatting.count(change.delta)} examples; {change.undefined} undefined pairs are "
        "left out. The value is of the bag's frontier, the range of the members' own means. "
        f"{outside_M.sum()} of the data sizes extrapolate: within the runs is the mean of the "
        "others.",
    )
    shown = np.unique(np.linspace(0, len(outside_M) - 1, min(8, len(outside_M))).round())
    report.table(
        ("examples n", "n with its step", *labels, "extrapolates"),
        [
            (
                formatting.count(change.num_examples[m]),
                formatting.count(change.num_examples[m] + change.delta),
                *map(formatting.number, change.by_num_examples[m]),
                "yes" if outside_M[m] else "no",
            )
            for m in shown.astype(int)
        ],
        f"The same by data size; the runs have n from {formatting.count(law.ranges[-1, 0])} to "
        f"{formatting.count(law.ranges[-1, 1])}.",
    )


def _interval_text(low: float, high: float) -> str:
    return f"{formatting.number(low)} to {formatting.number(high)}" if np.isfinite(low) else "-"


def _r2(analysis: Analysis) -> float:
    """Of the runs left out, or of the fitted ones where none was."""
    if analysis.comparison is None:
        return fitted_score(analysis).r2
    return analysis.comparison.entry(analysis.law.config.form).cross_validation.r2


def _beyond_text(analyses) -> str:
    """How much of the elasticities' means extrapolates."""
    found = [elasticity_extrapolates(a.law, a.elasticity).mean() for a in analyses]
    if not any(found):
        return ""
    return f"Up to {100 * max(found):.0f}% of the data sizes lie, with their step, beyond the runs."


# --- several tasks ---


def add_tasks(report: Report, table: RunTable, analyses: Mapping[str, Analysis]) -> None:
    """Adds what compares the laws of several metrics: Figures 3c, 5, 8, 9 and 10.

    Args:
      report: where to add them.
      table: the runs of all the metrics.
      analyses: metric -> what `analyse` or `examine` returned.
    """
    all_of = list(analyses.values())
    laws, cost = [a.law for a in all_of], all_of[0].cost
    report.section(
        "Tasks",
        f"One law for each of {len(laws)} metrics, all {laws[0].config.form}; their own pages say "
        "more.",
    )
    doubts = {metric: findings(analysis) for metric, analysis in analyses.items()}
    compared = all(a.comparison for a in all_of)
    report.table(
        ("task", "runs", "R² unseen" if compared else "R² fitted", "warnings"),
        [
            (m, a.law.num_runs, formatting.number(_r2(a)), len(doubts[m]))
            for m, a in analyses.items()
        ],
        "R² of the law on "
        + (f"runs left out ({all_of[0].comparison.splits[0]})." if compared else "its own runs."),
    )
    for metric, texts in doubts.items():
        report.folded_warnings(f"{metric}: {len(texts)} warning{'s' * (len(texts) > 1)}", texts)
    if compared:
        report.figure(
            "errors_by_task",
            figures.errors_by_task({m: a.comparison for m, a in analyses.items()}),
            "As the paper's Figure 3c. Mean relative error of each form on runs it has not seen.",
            "Relative error of every form for each task",
        )
    if all(a.elasticity for a in all_of):
        report.figure(
            "elasticity_by_task",
            figures.elasticity_by_task(
                {m: a.elasticity for m, a in analyses.items()}, table.factors
            ),
            "As the paper's Figure 5. Percent change of the best value of a factor for one percent "
            "more data, mean over budgets and n: the point is that of the bag, the line holds the "
            f"middle 90% of the members' own means. {_beyond_text(all_of)}".strip(),
            "Elasticity of each factor for each task",
        )
    report.figure(
        "runs_by_task",
        figures.all_runs(table, cost),
        f"As the paper's Figure 8. {_runs_caption(table, cost)} A row a task.",
        "Measured errors against each factor, a row a task",
    )
    _add_figure_if(
        report,
        "performance_by_task",
        lambda: figures.iso_performance(laws, table),
        "As the paper's Figure 10. Lines of equal predicted error, a row a task. Beyond a dashed "
        "line predictions leave the scale.",
        "Contours of predicted error, a row a task",
    )
    if _has(table, "isoflop") and cost is not None:
        _add_figure_if(
            report,
            "isoflop_by_task",
            lambda: figures.isoflop_curves(laws, table, cost),
            "As the paper's Figure 9. Runs of equal cost: dots are measured, curves are the law. A "
            "row a task.",
            "Error at equal cost, a row a task",
        )
