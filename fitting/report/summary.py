"""The page's first section: what to deploy, how sure that is, and where to doubt it."""

import numpy as np

from fitting import formatting
from fitting.report.analysis import GOOD_R2, Analysis, findings, fitted_score
from fitting.report.results import MetricResults, Subject
from fitting.report.text import (
    STAR_TO_ISOFLOP,
    best_text,
    choice_headers,
    choice_row,
    choice_text,
    path_text,
)
from fitting.uncertainty import default_tolerance
from fitting.verdict import HOLDS


def add_summary(page, offer: str) -> None:
    """Add the recommendations of each metric in words and numbers, and a table of all metrics.

    Args:
      page: a `Page`.
      offer: the configurations to choose from, in words.
    """
    report, found = page.report, page.found.values()
    intro = (
        "What to deploy within a budget: the configuration with the least predicted error among"
        f" {offer}. A budget is the compute of one video, by equation 1 of the paper."
    )
    if all(one.analysis is None for one in found):
        intro = "No law fits these runs, so nothing can be recommended."
    elif not any(one.recommendations for one in found):
        intro = (
            "The cost of a configuration is not known, so there is no frontier and nothing can "
            "be recommended for a budget."
        )
    report.section("In short", intro)
    for subject, one in page.each():
        if one.analysis is None:
            report.absent(f"A law of {subject.metric}", subject.why)
            report.paragraph(best_text(subject))
        else:
            _add_answer(page, subject, one)
    report.table(
        ("metric", "runs", "law", "R² unseen", "E% unseen", "R² fitted", "doubts"),
        [metric_row(subject, page.found[subject.metric].analysis) for subject in page.subjects],
        "All metrics. Unseen: predicted by fits without the run (5-fold cross-validation); E% "
        "is the mean relative error.",
        name="metrics",
    )


def _add_answer(page, subject: Subject, found: MetricResults) -> None:
    report, law = page.report, found.analysis.law
    if law.verdict is not None and law.verdict.verdict == HOLDS:
        report.paragraph(f"Lack of fit: {law.verdict.text}")
    elif law.verdict is not None:
        report.warning(f"Lack of fit: {law.verdict.text}")
    if unseen_r2(found.analysis) < GOOD_R2:
        report.warning(
            "Do not base decisions on this law: it predicts unseen runs poorly (R² "
            f"{unseen_r2(found.analysis):.2f})."
        )
    if found.recommendations:
        report.paragraph(path_text(found.recommendations, law))
        report.items(choice_text(choice, law) for choice in found.recommendations)
    report.paragraph(trust_text(found.analysis))
    if found.recommendations:
        report.table(
            choice_headers(law),
            [choice_row(choice, law) for choice in found.recommendations],
            "The same in numbers. Best for: share of the bootstrap members whose own best "
            "configuration it is. Regret: error points that 90% of the members lose at most by "
            "choosing it. Alike: configurations within the budget that lose at most "
            f"{default_tolerance(law):.3g} points with 90% of the members.",
            name=f"choice-{page.slugs[subject.metric]}",
        )
    if doubts := findings(found.analysis):
        report.heading("Reasons for doubt")
        report.items(doubts)


def unseen_r2(analysis: Analysis) -> float:
    """Return the law's R² on unseen runs; NaN where none were left out."""
    compared = analysis.comparison
    if compared is None:
        return float("nan")
    return compared.entry(analysis.law.lead.label).cross_validation.r2


def trust_text(analysis: Analysis) -> str:
    """Say how well the law predicts runs that its fits have not seen."""
    law, compared = analysis.law, analysis.comparison
    text = f"How sure: the law ({law.label}, {law.num_runs} runs) "
    if compared is None:
        return text + "was not tested on unseen runs."
    unseen = compared.entry(law.lead.label).cross_validation
    text += (
        f"predicts unseen runs with a mean relative error of {unseen.percent:.2g}% ("
        f"{_r2_text(unseen.r2)})"
    )
    if compared.extrapolation:
        reach = compared.score(law.lead.label, compared.extrapolation)
        how = f"on the split {compared.extrapolation} it predicts"
        if compared.extrapolation == STAR_TO_ISOFLOP:
            how = "fitted to the star alone it predicts the isoFLOP runs"
        text += f"; {how} with {reach.percent:.2g}% ({_r2_text(reach.r2)})"
    return text + "."


def _r2_text(value: float) -> str:
    return f"R² {value:.2f}" if np.isfinite(value) else "R² undefined: all errors are equal"


def metric_row(subject: Subject, analysis: Analysis | None) -> list:
    """Return a metric's row of the table of all metrics."""
    if analysis is None:
        return [subject.metric, len(subject.table), "none", "-", "-", "-", "-"]
    scores = ["-", "-"]
    if analysis.comparison:
        unseen = analysis.comparison.entry(analysis.law.lead.label).cross_validation
        scores = [formatting.number(unseen.r2), formatting.number(unseen.percent)]
    fitted = formatting.number(fitted_score(analysis).r2)
    name = analysis.law.lead.label
    doubts = len(findings(analysis))
    return [subject.metric, len(subject.table), name, *scores, fitted, doubts]
