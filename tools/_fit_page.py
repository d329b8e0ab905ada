"""The pages of `tools.fit --report`: a law's, and one that compares the laws of several groups."""

from pathlib import Path

import numpy as np

from fitting.cost import CostConstants
from fitting.report.compute import Analysis, examine, findings
from fitting.report.html import Report
from fitting.report.page import add_law, add_tasks
from fitting.runs import FACTORS, RunTable
from fitting.sweeps import Domain


def write_page(folder: Path, table: RunTable, law, comparison, cost: CostConstants) -> Analysis:
    """Writes folder/report.html and folder/figures.

    Equation 1 counts the house's factors; a law of others has no costs, hence no frontier. What is
    on offer lies between the runs: the measured language models, every number of frames and every
    square of tokens.
    """
    analysis = Analysis(table, law, comparison)
    if law.factors == FACTORS:
        analysis = examine(table, law, measured_domain(table), cost, comparison=comparison)
    page = Report(f"A scaling law of {law.metric}", f"{law.config.form}, from {law.source}")
    add_law(page, analysis)
    say(page.write(folder), findings(analysis))
    return analysis


def write_tasks_page(folder: Path, table: RunTable, analyses: list[Analysis]) -> None:
    """Writes folder/report.html and folder/figures, of all groups side by side."""
    first = analyses[0].law
    page = Report("Scaling laws by task", f"{first.config.form}, from {first.source}")
    add_tasks(page, table, {analysis.law.metric: analysis for analysis in analyses})
    say(page.write(folder), [])


def say(path: Path, doubts: list[str]) -> None:
    """The path, and how much there is to doubt."""
    print(f"\n{path}" + f" ({len(doubts)} warnings)" * bool(doubts))


def measured_domain(table: RunTable) -> Domain:
    """Configurations between the runs, so that an answer extrapolates in n at most."""
    sizes, frames, tokens = (np.unique(column) for column in table.x.T)
    squares = np.arange(1, int(tokens[-1] ** 0.5) + 1) ** 2
    whole = np.arange(1, int(frames[-1]) + 1)
    return Domain(
        tuple(sizes),
        tuple(np.union1d(frames, whole[whole >= frames[0]])),
        tuple(np.union1d(tokens, squares[squares >= tokens[0]])),
    )
