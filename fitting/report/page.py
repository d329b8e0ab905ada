"""The report page: what to deploy first, then every figure and table, by subject.

    results = compute(subjects, settings, folders)
    write_page(out, table, results, settings, title="Report", subtitle="runs.csv")

A law that exists already is shown by `Results` made with `jobs.metric_job` or `jobs.describe`.
Where the results lack something, the page leaves it out or says why it is missing.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from fitting import formatting
from fitting.cost import CostConstants, CostFormula
from fitting.figures.style import Drawn, drawn, stacked
from fitting.naming import labels as labels_of
from fitting.report import appendix
from fitting.report.analysis import elasticity_extrapolates
from fitting.report.html import Report
from fitting.report.results import MetricResults, Results, Settings, Subject
from fitting.report.summary import add_summary
from fitting.report.text import (
    deployment_headers,
    deployment_rows,
    elasticity_rows,
    elasticity_rows_by_n,
    file_names,
    frontier_alt,
    run_rows,
    runs_alt,
    runs_text,
)
from fitting.runs import FACTORS, RunTable

BETWEEN_THE_RUNS = (
    "those between the runs (the measured language models; every number of frames and every square "
    "number of tokens in the measured range)"
)


def write_page(
    out: Path,
    table: RunTable,
    results: Results,
    settings: Settings,
    *,
    title: str,
    subtitle: str,
    offer: str = BETWEEN_THE_RUNS,
    notes: Sequence[str] = (),
    add_first: Callable[[Report], None] = lambda report: None,
) -> Path:
    """Write OUT/report.html, OUT/figures and OUT/tables; return the page's path.

    Files of an earlier report that this one does not have are removed.

    Args:
      table: the runs of all metrics.
      results, settings: what was computed, and how.
      offer: the configurations to choose from, in words.
      notes: sentences for the last section, such as warnings of the reader of the table.
      add_first: adds sections before all others.
    """
    page = Page(results, settings, title, subtitle)
    add_first(page.report)
    add_summary(page, offer)
    page.runs(table)
    page.equal_error()
    page.equal_cost()
    page.law()
    page.frontier()
    page.tasks()
    page.vision(table)
    appendix.add_forms(page)
    if results.appendix is not None:
        appendix.add_appendix(page, results.appendix)
    page.about([*notes, *table.notes])
    remove_stale(out, page.report.files)
    return page.report.write(out, metric=page.first)


def remove_stale(out: Path, written) -> None:
    """Remove the figures and tables of an earlier report that are not among `written`."""
    for path in [*out.glob("figures/*.*"), *out.glob("tables/*.csv")]:
        name = f"{path.parent.name}/{path.name}"
        if path.suffix in (".svg", ".png", ".csv") and name not in written:
            path.unlink()


class Page:
    """The sections of a page, each added by a method.

    Attributes:
      report: the `Report` that they are added to.
      first: the metric that the page opens with, the first that has a law.
      slugs: metric -> its part of file names.
    """

    def __init__(self, results: Results, settings: Settings, title: str, subtitle: str):
        self.subjects, self.found, self.compared, _ = results
        self.settings = settings
        self.slugs = file_names([subject.metric for subject in self.subjects])
        lawful = [subject for subject in self.subjects if self.found[subject.metric].analysis]
        self.first = (lawful or self.subjects)[0].metric
        self.report = Report(title, subtitle, mark=settings.mark)

    def each(self):
        """Yield (subject, its `MetricResults`) inside the metric's block of the page."""
        for subject in self.subjects:
            with self.report.of(subject.metric):
                yield subject, self.found[subject.metric]

    # --- figures ---

    def figure(self, name: str, subject: Subject, caption: str, alt: str) -> None:
        """Add a metric's figure, or say why it has none."""
        drawing = self.found[subject.metric].figures[name]
        if isinstance(drawing, Drawn):
            self.report.figure(f"{name}-{self.slugs[subject.metric]}", drawing, caption, alt)
        else:
            number = name.partition("_")[0].removeprefix("figure")
            self.report.absent(f"Figure {number}", drawing)

    def figure_of_all(self, number: str, name: str, draw, caption: str, alt: str) -> None:
        """Add a figure of several metrics; `draw` makes it, or is a sentence why it is missing."""
        if isinstance(draw, str):
            self.report.absent(f"Figure {number}", draw)
            return
        drawing = drawn(draw(), mark=self.settings.mark)
        self.report.figure(f"figure{number}_{name}", drawing, caption, alt)

    def by_task(self, name: str, number: int) -> None:
        """Save the figure of all metrics in one file, as in the paper's appendix."""
        drawings = [found.figures[name] for found in self.found.values()]
        drawings = [drawing for drawing in drawings if isinstance(drawing, Drawn)]
        if len(self.subjects) < 2 or not drawings:
            one = name.partition("_")[0].removeprefix("figure")
            why = "there is one" if len(self.subjects) < 2 else "none has it"
            self.report.absent(
                f"Figure {number}", f"It is Figure {one} of every metric, and {why}."
            )
            return
        both, stem = stacked(drawings), f"figure{number}_{name.partition('_')[2]}_by_task"
        self.report.file(f"figures/{stem}.svg", both.svg)
        self.report.file(f"figures/{stem}.csv", self.report.csv_bytes(both.header, both.rows))
        self.report.paragraph(
            f"The paper's Figure {number} shows this figure for every task: choose “all metrics” "
            f"above, or open figures/{stem}.svg."
        )

    def runs(self, table: RunTable) -> None:
        """Add Figures 7 and 8, and the values."""
        self.report.section(
            "Runs",
            "All measured runs. A star sweep changes one factor at a time around its centre; "
            "isoFLOP runs trade the factors against each other at equal cost.",
            " ".join(runs_text(table)),
        )
        right = "" if self.settings.cost is None else " Right: the runs by their cost."
        for subject, _ in self.each():
            runs = subject.table
            caption = "As the paper's Figure 7: error of every run; lower is better. "
            if "star" in runs.columns.get("sweep", ()):
                caption += "Left: the star; lines join runs that differ in one factor only"
                caption += "." if runs.n is None else ", one line per number of examples n."
            else:
                caption += "There is no star sweep: lines join runs that differ in one factor only."
            bars = "" if runs.score_se is None else " Bars are one standard error to either side."
            self.figure("figure7_runs", subject, caption + right + bars, runs_alt(runs))
        self.by_task("figure7_runs", 8)
        with self.report.folded("The values of all runs, as a table"):
            headers, rows = run_rows(table, self.settings.cost)
            spread = " ± one standard error, where it is known" * (table.score_se is not None)
            bound = f", 0 to {table.scale:g}" if np.isfinite(table.scale) else ""
            caption = f"Errors{bound}{spread}."
            self.report.table(headers, rows, caption, name="runs")

    def equal_error(self) -> None:
        """Add Figures 1 and 10."""
        self.report.section(
            "Equal error",
            "Along a line the law predicts the same error: it shows how much data makes up for a "
            "smaller factor, and the reverse.",
        )
        for subject, _ in self.each():
            self.figure(
                "figure1_performance",
                subject,
                "As the paper's Figure 1: lines of equal predicted error, the other factors at the "
                "star's centre or their most common level. Dots are runs, coloured by measured "
                "error: a dot that stands out is one the law predicts poorly. Beyond a dashed line "
                "predictions leave the scale.",
                f"Contours of the predicted error of {subject.metric} over each factor and the "
                "number of examples",
            )
        self.by_task("figure1_performance", 10)

    def equal_cost(self) -> None:
        """Add Figures 2 and 9."""
        self.report.section(
            "Equal cost",
            "Runs that cost the same differ in error: on each curve one balance of the factors is "
            "best.",
        )
        for subject, _ in self.each():
            self.figure(
                "figure2_isoflop",
                subject,
                "As the paper's Figure 2: dots are runs, curves the law; a colour is a cost, and a "
                "ring marks the best run at that cost. Right: the best measured error within each "
                "cost.",
                f"Error of {subject.metric} against visual tokens per frame at equal cost",
            )
        self.by_task("figure2_isoflop", 9)

    def law(self) -> None:
        """Add Figures 3a and 3b, and the fit report."""
        report = self.report
        report.section(
            "The law",
            "How well the law fits the runs, and its parameters. Rely on predictions more than on "
            "single parameters: different parameters may predict the same.",
        )
        for subject, found in self.each():
            seen = found.analysis is not None and found.analysis.comparison is None
            self.figure(
                "figure3b_predicted",
                subject,
                "As the paper's Figure 3b: predicted against measured error; dots on the line are "
                f"exact. {'Runs the law was fitted to.' if seen else 'Runs unseen by the fits.'}",
                f"Predicted against measured error of {subject.metric}",
            )
            self.figure(
                "figure3a_parameters",
                subject,
                "As the paper's Figure 3a: boxes hold the middle half of the bootstrap members, "
                "whiskers reach from 5% to 95%, the cross is the fit to all runs. Grey boxes are "
                "parameters that the runs do not determine. A coefficient is the error of its term "
                "where every factor has the unit named in the fit report; exponents have no unit.",
                f"Box plot of the parameters of the law of {subject.metric}",
            )
            if found.analysis is not None:
                with report.folded("The fit report: parameters and residuals, as text"):
                    report.preformatted(found.analysis.law.report())

    def frontier(self) -> None:
        """Add Figure 4 and the tables of deployment and elasticity."""
        report = self.report
        report.section(
            "Frontier",
            "How the best configuration moves with the budget, and with the data. The steps are "
            "real: configurations are discrete, and the best one is often cheaper than the budget.",
        )
        for subject, found in self.each():
            self.figure(
                "figure4_frontier",
                subject,
                "As the paper's Figure 4: best value of each factor against the budget, one shade "
                "per n. Right: the elasticity, the percent change of the best value for one "
                "percent more data; open marks where n, or n plus the step, lies beyond the runs. "
                "At the edge: the mean over n, with the middle 90% of the members' own means.",
                frontier_alt(found),
            )
            if found.analysis is None or found.analysis.frontier is None:
                continue
            analysis = found.analysis
            with report.folded("More budgets and data sizes, as a table"):
                report.table(
                    deployment_headers(analysis.law, brief=True),
                    deployment_rows(analysis),
                    "Best configuration on offer. The interval is of the law's parameters; "
                    "agreement is the share of bootstrap members that choose the same one. "
                    "Impossible: the predicted error, or an end of its interval, is outside 0 to "
                    f"{analysis.law.scale:g}; its value is not shown.",
                    name=f"deploy-{self.slugs[subject.metric]}",
                )
            if analysis.elasticity is not None:
                add_elasticity(report, analysis.elasticity, analysis.law)
            elif subject.one_n is not None:
                why = f"All runs have n = {formatting.count(subject.one_n)}."
                report.absent("Elasticity to the number of examples", why)

    # --- figures of several metrics ---

    def tasks(self) -> None:
        """Add Figure 5."""
        self.report.section("Elasticity by task")
        self.figure_of_all(
            "5",
            "elasticity_by_task",
            elasticity_figure(self.found),
            "As the paper's Figure 5: percent change of the best value of a factor for one percent "
            "more data, mean over budgets and n. Dots are the bagged law, lines the middle 90% of "
            "the members' own means.",
            "Elasticity of each factor for each task",
        )

    def vision(self, table: RunTable) -> None:
        """Add Figure 6."""
        self.report.section(
            "The vision model's share",
            "The part of a video's compute that the vision model takes, by equation 1; it does not "
            "depend on the number of frames.",
        )
        self.figure_of_all(
            "6",
            "vision_share",
            vision_figure(table, self.settings.cost),
            "As the paper's Figure 6: the vision model's share of the compute. Dots are runs.",
            "Contours of the vision model's share of compute over language-model size and visual "
            "tokens per frame",
        )

    def about(self, notes) -> None:
        """Add how the page was made."""
        law, check, cost = self.settings.law, self.settings.check, self.settings.cost
        fits = f"one fit from {law.starts} random starts"
        if law.resampling != "none":
            fits = (
                f"{law.resamples} bootstrap resamples ({law.resampling}) of {law.starts} starts "
                "each (the paper uses 100 and 500)"
            )
        cap = "no bound" if law.exponent_cap is None else f"at most {law.exponent_cap:g}"
        texts = [f"Laws: {law.form}, {fits}, seed {law.seed}, absolute exponents {cap}."]
        if isinstance(cost, CostConstants):
            texts.append(
                "Costs: equation 1 with a vision model of "
                f"{formatting.count(cost.vision_params)} parameters and "
                f"{formatting.count(cost.features_per_frame)} features a frame. Text and decoding "
                "are not counted, and FLOPs are not seconds."
            )
        if isinstance(cost, CostFormula):
            texts.append(f"Costs: {cost.text}, taken as FLOPs of an example.")
        if check is not None and check.resampling == "none":
            texts.append(
                "Forms, ablations and predictions of unseen runs are single fits, not bagged, for "
                "speed; --appendix full bags them all."
            )
        texts.append("Every figure is also in figures/ as SVG and CSV, every table in tables/.")
        self.report.section("How this was made")
        self.report.items([*texts, *notes])


def add_elasticity(report: Report, change, law) -> None:
    """Add the mean elasticity of each factor, and elasticities by data size."""
    labels = labels_of(law.factors)
    outside = elasticity_extrapolates(law, change).sum()
    report.table(
        ("factor", "elasticity to n", "90% of members", "within the runs"),
        elasticity_rows(change, law),
        f"Mean over {len(change.budgets)} budgets and {len(change.num_examples)} data sizes, with "
        f"a step of {formatting.count(change.delta)} examples; {change.undefined} undefined pairs "
        "are left out. The value is that of the bagged law, the range that of the members' own "
        f"means. Within the runs: the mean without the {outside} data sizes that extrapolate.",
    )
    report.table(
        ("examples n", "n plus the step", *labels, "extrapolates"),
        elasticity_rows_by_n(change, law),
        f"The same by data size; the runs have n from {formatting.count(law.ranges[-1, 0])} to "
        f"{formatting.count(law.ranges[-1, 1])}.",
    )


def elasticity_figure(found: dict[str, MetricResults]):
    """Return a function that draws Figure 5, or a sentence that says why it cannot be drawn."""
    from fitting import figures

    analyses = {metric: one.analysis for metric, one in found.items() if one.analysis is not None}
    changes = {m: a.elasticity for m, a in analyses.items() if a.elasticity is not None}
    if not changes:
        return "No metric has a law, known costs, and runs of several n."
    factors = next(iter(analyses.values())).law.factors
    return lambda: figures.elasticity_by_task(changes, factors)


def vision_figure(table: RunTable, cost):
    """Return a function that draws Figure 6, or a sentence that says why it cannot be drawn."""
    from fitting import figures

    if not isinstance(cost, CostConstants) or table.factors != FACTORS:
        return "It needs costs by equation 1."
    _, first = np.unique(table.x, axis=0, return_index=True)
    once = table.take(np.sort(first))
    for column, name in ((0, "language-model size"), (2, "number of visual tokens")):
        if len(np.unique(table.x[:, column])) < 2:
            return f"All runs have the same {name}."
    return lambda: figures.vision_share(cost, table.x[:, 0], table.x[:, 2], once)
