"""The report page of laws that are fitted already, as `vvlm fit --report` writes it."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from fitting.ablations import Ablation
from fitting.cost import CostConstants
from fitting.predictions import Law
from fitting.report.analysis import findings
from fitting.report.jobs import metric_job
from fitting.report.page import write_page
from fitting.report.results import Appendix, Results, Settings, Subject
from fitting.runs import FACTORS, RunTable
from fitting.validation import Comparison


class Fitted(NamedTuple):
    """A law, the runs it was fitted to, and how it was tested, if it was."""

    table: RunTable
    law: Law
    comparison: Comparison | None = None
    ablation: Ablation | None = None


def write_fits(
    out: Path, table: RunTable, fits: Sequence[Fitted], cost: CostConstants
) -> tuple[Path, int]:
    """Write one page of all the laws to OUT; return its path and the number of doubts it names.

    Equation 1 needs the default factors: laws of other factors have no costs and no frontier.

    Args:
      table: the runs of all laws.
    """
    first = fits[0].law
    check = first.config if any(fit.comparison or fit.ablation for fit in fits) else None
    settings = Settings(
        first.config,
        check,
        check,
        cost if first.factors == FACTORS else None,
        skipped="Forms were not compared: vvlm fit --compare does.",
    )
    subjects = [Subject(fit.law.metric, fit.table, fit.law.config) for fit in fits]
    compared = {fit.law.metric: fit.comparison for fit in fits}
    found = {
        one.metric: metric_job(one, fit.law, fit.comparison, settings)
        for one, fit in zip(subjects, fits, strict=True)
    }
    page = write_page(
        out,
        table,
        Results(subjects, found, compared, _appendix(fits)),
        settings,
        title=f"A scaling law of {first.metric}" if len(fits) == 1 else "Scaling laws",
        subtitle=f"{first.label}, from {Path(first.source).name}",
    )
    return page, sum(len(findings(one.analysis)) for one in found.values())


def _appendix(fits: Sequence[Fitted]) -> Appendix | None:
    """Return Tables 8 and 9 of the ablations; None if there are none."""
    tested = {fit.law.metric: fit.ablation.variations for fit in fits if fit.ablation}
    if not tested:
        return None
    return Appendix(tested, tested, dict.fromkeys(tested, "vvlm report computes it."))
