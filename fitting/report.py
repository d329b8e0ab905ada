"""The report of a law: every table and figure, captions in plain words, and where not to trust it.

analysis = analyse(table, domain, cost, configs, budgets, num_examples)
report = Report("Study", "what to deploy")
add_law(report, analysis)
report.write("out")
"""

from fitting import plots, units
from fitting.analysis import (
    DEPLOYMENT_HEADERS,
    Analysis,
    analyse,
    deployment_rows,
    deployment_text,
    findings,
)
from fitting.forms import factor_labels
from fitting.html import Report
from fitting.runs import FACTORS

__all__ = ["Analysis", "Report", "add_law", "analyse", "deployment_text"]


def add_law(report: Report, analysis: Analysis, *, prefix: str = "") -> None:
    """Adds the sections Answer, Runs, Forms, Law, Frontier and Elasticity of one metric.

    Args:
      report: where to add them.
      analysis: what `analyse` returned.
      prefix: of the figures' file names; give one to each metric of a report with several.
    """
    _add_answer(report, analysis)
    _add_runs(report, analysis, prefix)
    _add_forms(report, analysis, prefix)
    _add_parameters(report, analysis, prefix)
    _add_frontier(report, analysis, prefix)


def _add_answer(report: Report, analysis: Analysis) -> None:
    law = analysis.law
    report.section(
        f"What to deploy: {law.metric}",
        f"For an inference budget and a number of finetuning examples, the configuration with the "
        f"least predicted error. The law is {law.config.form}, fitted to {law.num_runs} runs.",
    )
    for text in findings(analysis):
        report.warning(text)
    report.table(
        DEPLOYMENT_HEADERS,
        deployment_rows(analysis),
        "Best configuration on offer for each budget and data size. The interval is of the law's "
        "parameters; agreement is the share of bootstrap members that choose the same one.",
    )


def _add_runs(report: Report, analysis: Analysis, prefix: str) -> None:
    table, law = analysis.table, analysis.law
    report.section("Runs", f"{len(table)} measured runs: {', '.join(table.sweeps)}.")
    report.figure(
        f"{prefix}runs",
        plots.all_runs(table, analysis.cost),
        "Every run. The star changes one factor at a time around its centre, a line for each "
        "number of examples n; the last panel shows the other runs at what they cost.",
        f"Measured errors of {len(table)} runs against each factor and against cost",
    )
    report.figure(
        f"{prefix}performance",
        plots.iso_performance(law, table),
        "Lines of equal predicted error over one factor and the number of examples, the other "
        "factors at the star's centre. Dots are runs in the colour of their measured error.",
        "Contours of predicted error for each factor against finetuning examples",
    )
    if "isoflop" in table.sweeps:
        report.figure(
            f"{prefix}isoflop",
            plots.isoflop_curves(law, table, analysis.cost),
            "Runs of equal cost: dots are measured, curves are the law, a ring marks the best run "
            "of a cost. Right: the best measured error within each cost.",
            "Error against visual tokens per frame at equal cost, by language-model size",
        )


def _add_forms(report: Report, analysis: Analysis, prefix: str) -> None:
    comparison = analysis.comparison
    split = f"{comparison.train_sweep} to {comparison.test_sweep}"
    report.section(
        "Forms",
        "Each form is scored on runs it has not seen: five-fold cross-validation over all runs, "
        f"and extrapolation from {split}. The law is the one with the least cross-validation MSE.",
    )
    scored = ("MSE", "E%", "R²")
    report.table(
        (
            "form",
            "parameters",
            *(f"CV {s}" for s in scored),
            *(f"{split} {s}" for s in scored),
            "AICc",
        ),
        [
            (
                row.form,
                row.num_parameters,
                *(units.number(v) for v in row.cross_validation),
                *(units.number(v) for v in row.extrapolation),
                units.number(row.aicc, 4),
            )
            for row in comparison.rows
        ],
        "MSE in squared error points, E% the mean relative error; lower is better. AICc of the fit "
        "to all runs, in log error; only differences count.",
    )
    report.figure(
        f"{prefix}predicted",
        plots.predicted_vs_actual(analysis.table, comparison, analysis.law.config.form),
        "Predicted against measured error of runs the fit has not seen; on the line is right.",
        "Predicted error against measured error, cross-validated and extrapolated",
    )


def _add_parameters(report: Report, analysis: Analysis, prefix: str) -> None:
    law = analysis.law
    typical = ", ".join(
        f"{units.count(unit)} {units.LABELS[name]}"
        for unit, name in zip(law.units, (*FACTORS, "num_examples"), strict=True)
    )
    report.section(
        "Law",
        f"Coefficients are the error points of their term at a typical run ({typical}); exponents "
        "have no unit. A wide interval means that the runs do not determine the parameter, even "
        "where they determine the predictions well.",
    )
    report.table(
        ("parameter", "all runs", "median", "5%", "95%", "note"),
        [(name, *map(units.number, values), note) for name, *values, note in law.parameter_rows()],
        f"Over {len(law.theta) - law.failures} bootstrap members.",
    )
    report.figure(
        f"{prefix}parameters",
        plots.parameter_boxes(law),
        "The same: boxes hold the middle half of the members, whiskers 5% to 95%, the cross is the "
        "fit to all runs.",
        "Box plot of the bootstrapped coefficients and exponents",
    )
    report.preformatted(law.summary())


def _add_frontier(report: Report, analysis: Analysis, prefix: str) -> None:
    change = analysis.elasticity
    report.section(
        "Frontier",
        "How the best configuration moves with the budget and with the data. Steps are real: the "
        "configurations on offer are discrete, and the best is often cheaper than the budget.",
    )
    report.figure(
        f"{prefix}frontier",
        plots.frontier_paths(analysis.frontier, change),
        "Best value of each factor against the budget, a shade for each number of examples n; "
        "right, the elasticity: the percent change of the best value for one percent more data.",
        "Best language model, frames and tokens against inference budget, and their elasticity",
    )
    report.table(
        ("factor", "elasticity to n"),
        [
            (f"{label}: {units.LABELS[name]}", units.number(value))
            for label, name, value in zip(factor_labels(3), FACTORS, change.mean, strict=True)
        ],
        f"Mean over {len(change.budgets)} budgets and {len(change.num_examples)} data sizes, with "
        f"a step of {units.count(change.delta)} examples; {change.undefined} undefined pairs are "
        "left out.",
    )
