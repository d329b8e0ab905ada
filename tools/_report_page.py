"""The page of `tools.report`: what to deploy first, then every figure and table, by subject."""

from fitting import formatting
from fitting.figures.style import Drawn, drawn, stacked
from fitting.report.compute import (
    GOOD_R2,
    deployment_headers,
    deployment_rows,
    findings,
    fitted_score,
)
from fitting.report.html import Report
from fitting.report.page import add_elasticity_tables

from ._report_jobs import Findings, Settings, Subject
from ._report_text import (
    CHOICE_HEADERS,
    best_text,
    choice_row,
    choice_text,
    frontier_alt,
    path_text,
    runs_alt,
    values,
)


class Page:
    """Lays out the report.

    Args:
      subjects: a `Subject` a metric, in the page's order.
      found: metric -> `Findings`.
      compared: metric -> `Comparison` of the forms, or None.
      first: the metric that the page opens with.
      settings: what was computed.
      title, subtitle: of the page.
      slugs: metric -> its name in file names.
    """

    def __init__(
        self, subjects, found, compared, first, settings: Settings, title, subtitle, slugs
    ):
        self.subjects: list[Subject] = subjects
        self.found: dict[str, Findings] = found
        self.compared, self.first, self.settings, self.slugs = compared, first, settings, slugs
        self.report = Report(title, subtitle, mark=settings.mark, kinds=("svg",))

    def each(self):
        """(subject, its `Findings`), inside the metric's block of the page."""
        for subject in self.subjects:
            with self.report.of(subject.metric):
                yield subject, self.found[subject.metric]

    # --- what to deploy ---

    def summary(self) -> None:
        """The answer in words, for each metric."""
        report = self.report
        intro = (
            "What to deploy within a budget: the configuration with the least predicted error among"
            " those between the runs (the measured language models; every number of frames and "
            "square number of tokens in the measured range). A budget is the compute of one video, "
            "by the paper's equation 1."
        )
        if all(found.analysis is None for found in self.found.values()):
            intro = "There is no law of these runs, so nothing says what to deploy within a budget."
        report.section("In short", intro)
        for subject, found in self.each():
            if found.analysis is None:
                report.absent(f"A law of {subject.metric}", subject.why)
                report.paragraph(best_text(subject))
                continue
            law = found.analysis.law
            if self.unseen_r2(found) < GOOD_R2:
                report.warning(
                    "Do not decide by this law: it predicts runs that it has not seen poorly (R² "
                    f"{self.unseen_r2(found):.2f}). What follows is what it says."
                )
            report.paragraph(path_text(found.decisions))
            report.items(choice_text(choice, law) for choice in found.decisions)
            report.paragraph(self.trust_text(found))
            report.table(
                CHOICE_HEADERS,
                [choice_row(choice, law) for choice in found.decisions],
                "The same in numbers. Best for: share of the bootstrap members whose own best it "
                "is. Regret: error points that 90% of the members lose at most by it. Alike: "
                f"configurations within the budget that lose at most {0.005 * law.scale:g} points "
                "with 90% of the members.",
                name=f"choice-{self.slugs[subject.metric]}",
            )
            doubts = findings(found.analysis)
            if doubts:
                report.heading("Where to doubt it")
                report.items(doubts)
        rows = [self.metric_row(subject) for subject in self.subjects]
        report.table(
            ("metric", "runs", "law", "R² unseen", "E% unseen", "R² fitted", "doubts"),
            rows,
            "All metrics. Unseen: predicted by fits without the run (5-fold cross-validation); E% "
            "is the mean relative error.",
            name="metrics",
        )

    def unseen_r2(self, found: Findings) -> float:
        """Of the law on runs that its fits have not seen; NaN where none were left out."""
        if found.analysis.comparison is None:
            return float("nan")
        law = found.analysis.law
        return found.analysis.comparison.entry(law.config.form).cross_validation.r2

    def trust_text(self, found: Findings) -> str:
        """How well the law does on runs, seen and unseen."""
        law, compared = found.analysis.law, found.analysis.comparison
        text = f"How sure: the law ({law.config.form}, {law.num_runs} runs) "
        if compared is None:
            return text + "was not tested on runs that it has not seen."
        unseen = compared.entry(law.config.form).cross_validation
        text += (
            "predicts runs that it has not seen with a mean relative error of "
            f"{unseen.percent:.2g}% (R² {unseen.r2:.2f})"
        )
        if compared.extrapolation:
            reach = compared.score(law.config.form, compared.extrapolation)
            text += (
                "; fitted to the star alone it predicts the isoFLOP runs with "
                f"{reach.percent:.2g}% (R² {reach.r2:.2f})"
            )
        return text + "."

    def metric_row(self, subject: Subject) -> list:
        """Of the table of all metrics."""
        analysis = self.found[subject.metric].analysis
        if analysis is None:
            return [subject.metric, len(subject.table), "none", "-", "-", "-", "-"]
        scores = ["-", "-"]
        if analysis.comparison:
            unseen = analysis.comparison.entry(analysis.law.config.form).cross_validation
            scores = [formatting.number(unseen.r2), formatting.number(unseen.percent)]
        fitted = formatting.number(fitted_score(analysis).r2)
        name = analysis.law.config.form
        doubts = len(findings(analysis))
        return [subject.metric, len(subject.table), name, *scores, fitted, doubts]

    # --- figures ---

    def figure(self, name: str, subject: Subject, found: Findings, caption: str, alt: str) -> None:
        """A metric's figure, or why it has none."""
        drawing = found.figures[name]
        if isinstance(drawing, Drawn):
            self.report.figure(f"{name}-{self.slugs[subject.metric]}", drawing, caption, alt)
        else:
            number = name.partition("_")[0].removeprefix("figure")
            self.report.absent(f"Figure {number}", drawing)

    def by_task(self, name: str, number: int) -> None:
        """The same figure of all metrics in one file, as the paper's appendix has it."""
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
        self.report.file(f"figures/{stem}.svg", both.files["svg"])
        self.report.file(f"figures/{stem}.csv", self.report.csv_bytes(both.header, both.rows))
        self.report.paragraph(
            f"The paper's Figure {number} is this figure for every task: choose “all metrics” "
            f"above, or open figures/{stem}.svg."
        )

    def runs(self, table) -> None:
        """Figures 7 and 8, and the values."""
        self.report.section(
            "Runs",
            "All that was measured. A star sweep changes one factor at a time around its centre; "
            "isoFLOP runs trade the factors against each other at equal cost.",
        )
        for subject, found in self.each():
            runs = subject.table
            caption = "As the paper's Figure 7: error of every run; lower is better. "
            if "star" in runs.columns.get("sweep", ()):
                caption += "Left, the star: lines join runs that differ in one factor alone"
                caption += ". " if runs.n is None else ", a line for each number of examples n. "
            else:
                caption += "There is no star sweep: all runs are shown, lines join what is alike. "
            caption += "Right, the runs at what they cost."
            self.figure("figure7_runs", subject, found, caption, runs_alt(runs))
        self.by_task("figure7_runs", 8)
        with self.report.folded("The values of all runs, as a table"):
            headers, rows = values(table, self.settings.cost)
            self.report.table(headers, rows, "Errors, 0 to 100.", name="runs")

    def laws(self) -> None:
        """Figures 1, 2, 9, 10 and 3."""
        report = self.report
        report.section(
            "Equal error",
            "Along a line the law predicts the same error: how much data makes up for a smaller "
            "factor, and the reverse.",
        )
        for subject, found in self.each():
            self.figure(
                "figure1_performance",
                subject,
                found,
                "As the paper's Figure 1: lines of equal predicted error, the other factors at the "
                "star's centre or their commonest level. Dots are runs in the colour of their "
                "measured error: one that stands out is a miss of the law.",
                f"Contours of the predicted error of {subject.metric} over each factor and the "
                "number of examples",
            )
        self.by_task("figure1_performance", 10)
        report.section(
            "Equal cost",
            "Runs that cost the same differ in error: on each curve one balance is best.",
        )
        for subject, found in self.each():
            self.figure(
                "figure2_isoflop",
                subject,
                found,
                "As the paper's Figure 2: dots are runs, curves the law, a colour is a cost, a "
                "ring the best run of that cost. Right: the best measured error within each cost.",
                f"Error of {subject.metric} against visual tokens per frame at equal cost",
            )
        self.by_task("figure2_isoflop", 9)
        report.section(
            "The law",
            "How the law meets the runs, and its parameters. Predictions are worth more than "
            "single parameters, which may be far apart and predict the same.",
        )
        for subject, found in self.each():
            seen = found.analysis is not None and found.analysis.comparison is None
            self.figure(
                "figure3b_predicted",
                subject,
                found,
                "As the paper's Figure 3b: predicted against measured error; on the line is right. "
                + ("Of the runs fitted." if seen else "Of runs that the fits have not seen."),
                f"Predicted against measured error of {subject.metric}",
            )
            self.figure(
                "figure3a_parameters",
                subject,
                found,
                "As the paper's Figure 3a: boxes hold the middle half of the bootstrap members, "
                "whiskers 5% to 95%, the cross is the fit to all runs; grey boxes are of "
                "parameters that the runs do not determine. A coefficient is the error of its term "
                "where every factor has its geometric mean over the runs; exponents have no unit.",
                f"Box plot of the parameters of the law of {subject.metric}",
            )
            if found.analysis is not None:
                with report.folded("Parameters and residuals, as text"):
                    report.preformatted(found.analysis.law.report())

    def frontier(self) -> None:
        """Figures 4, 5 and 6."""
        report = self.report
        report.section(
            "Frontier",
            "How the best configuration moves with the budget, and with the data. Steps are real: "
            "configurations are discrete, and the best is often cheaper than the budget.",
        )
        for subject, found in self.each():
            self.figure(
                "figure4_frontier",
                subject,
                found,
                "As the paper's Figure 4: best value of each factor against the budget, a shade "
                "for each n. Right, the elasticity: percent change of the best value for one "
                "percent more data, open where n, or n with its step, lies beyond the runs; at its "
                "edge the mean over n and the middle 90% of the members' own means.",
                frontier_alt(found),
            )
            if found.analysis is None:
                continue
            analysis = found.analysis
            with report.folded("More budgets and data sizes, as a table"):
                report.table(
                    deployment_headers(analysis.law, brief=True),
                    deployment_rows(analysis),
                    "Best configuration on offer. The interval is of the law's parameters; "
                    "agreement is the share of bootstrap members that choose the same one.",
                    name=f"deploy-{self.slugs[subject.metric]}",
                )
            if analysis.elasticity is not None:
                add_elasticity_tables(report, analysis.elasticity, analysis.law)
            elif subject.one_n is not None:
                why = f"All runs have n = {formatting.count(subject.one_n)}."
                report.absent("Elasticity to the number of examples", why)

    def tasks(self, draw_elasticity, draw_vision) -> None:
        """Figures 5 and 6: each a function that draws it, or why there is none."""
        report, mark = self.report, self.settings.mark
        report.section("Elasticity by task")
        if isinstance(draw_elasticity, str):
            report.absent("Figure 5", draw_elasticity)
        else:
            report.figure(
                "figure5_elasticity_by_task",
                drawn(draw_elasticity(), mark=mark),
                "As the paper's Figure 5: percent change of the best value of a factor for one "
                "percent more data, mean over budgets and n. Dots are of the bag's frontier, lines "
                "hold the middle 90% of the members' own means.",
                "Elasticity of each factor for each task",
            )
        report.section(
            "Vision's share",
            "Of the compute of a video, by equation 1, whatever the number of frames.",
        )
        if isinstance(draw_vision, str):
            report.absent("Figure 6", draw_vision)
        else:
            report.figure(
                "figure6_vision_share",
                drawn(draw_vision(), mark=mark),
                "As the paper's Figure 6: the vision model's share of the compute. Dots are runs.",
                "Contours of the vision model's share of compute over language-model size and "
                "visual tokens per frame",
            )

    def about(self, notes) -> None:
        """What was computed."""
        report, law = self.report, self.settings.law
        report.section("How this was made")
        cost, check = self.settings.cost, self.settings.check
        texts = [
            f"Laws: {law.form}, {law.resamples} bootstrap resamples ({law.resampling}) of "
            f"{law.starts} starts, seed {law.seed}, |exponent| at most {law.exponent_cap:g}; the "
            "paper uses 100 resamples and 500 starts. They are kept in laws/, for "
            "python -m tools.plan.",
            f"Costs: equation 1 with a vision model of {formatting.count(cost.vision_params)} "
            f"parameters and {formatting.count(cost.features_per_frame)} features a frame; text and "
            "decoding are not counted, and FLOPs are not seconds.",
        ]
        if check is not None and check.resampling == "none":
            texts.append(
                "Forms, ablations and predictions of unseen runs are single fits, not bagged, to "
                "be quick: --appendix full bags them all."
            )
        texts.append("Every figure is also in figures/ as SVG and as CSV, every table in tables/.")
        report.items([*texts, *notes])
