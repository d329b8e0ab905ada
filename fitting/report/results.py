"""The values behind a report page: what to compute, of which metrics, and what came of it."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fitting import readers
from fitting.config import FitConfig
from fitting.forms import FORMS, PAPER_FORMS, get_form, usable_forms
from fitting.runs import RunTable


@dataclasses.dataclass(frozen=True)
class Settings:
    """Options: how much to compute.

    Attributes:
      law: options of every metric's law.
      check: options of the fits behind Tables 2 and 8 and the predictions of unseen runs; None
        skips them.
      bag: options of the fits behind Table 9.
      cost: x [X, K] -> FLOPs [X]; None where the cost of a configuration is not known.
      mark: notice on every figure and CSV, such as that the data are synthetic.
      skipped: sentence shown in place of tables that were not computed.
      forms: the forms to compare.
    """

    law: FitConfig
    check: FitConfig | None = None
    bag: FitConfig | None = None
    cost: Callable | None = None
    mark: str = ""
    skipped: str = ""
    forms: tuple[str, ...] = PAPER_FORMS


class Subject(NamedTuple):
    """A metric, its runs, and how its law is fitted.

    Attributes:
      metric: name.
      table: the runs of this metric.
      config: options of the law.
      why: why these runs do not support a law; '' if they do.
      one_n: n of all runs, if they share one and the law is therefore fitted without n.
    """

    metric: str
    table: RunTable
    config: FitConfig
    why: str = ""
    one_n: float | None = None

    @property
    def form(self) -> str:
        """Return the form that variations are tried on: the first that suits, of several."""
        if not self.config.is_mixed:
            return self.config.label
        labels = [one.label for one in self.config.forms]
        return next((label for label in labels if self.supports(label)), labels[0])

    def supports(self, form: str) -> bool:
        """Return whether the form has fewer parameters than there are runs, and n if it needs n."""
        with_n, form = self.table.n is not None, form.partition("@")[0]
        count = len(FORMS[form].parameters(len(self.table.factors), with_n))
        return (with_n or not FORMS[form].frontier_moves) and count < len(self.table)


def table_file(path: Path) -> Path:
    """Return the table in a folder; a file is returned as it is."""
    if not path.is_dir():
        return path
    for name in ("runs.csv", "runs.parquet"):
        if (path / name).is_file():
            return path / name
    raise ValueError(f"{path}: the folder has neither a sweep's store nor runs.csv or runs.parquet")


def is_synthetic(path: Path, table: RunTable) -> bool:
    """Return whether a file name, comment, metric or sweep of a table says "synthetic"."""
    marked = [path.name, *table.metrics, *set(table.columns.get("sweep", ()))]
    if path.is_file():
        marked += readers.comments(path)
    return any("synthetic" in text.lower() for text in marked)


def in_percent(table: RunTable) -> RunTable:
    """Return the table with errors and standard errors from 0 to 100; a loss stays as it is."""
    if not np.isfinite(table.scale):
        return table
    factor, columns = 100 / table.scale, dict(table.columns)
    if table.score_se is not None:
        columns["score_se"] = (factor * table.score_se).astype(str)
    return dataclasses.replace(table, error=factor * table.error, scale=100.0, columns=columns)


def subject(table: RunTable, config: FitConfig) -> Subject:
    """Return the `Subject` of the runs of one metric; with a single n the law has no n."""
    metric, one_n = table.metrics[0], None
    if table.n is not None and len(np.unique(table.n)) == 1:
        one_n = float(table.n[0])
        table = dataclasses.replace(table, examples=None, n=None)
        if not config.is_mixed and get_form(config.forms[0].form).frontier_moves:
            config = config.replace(form="add")
    names = usable_forms([c.form for c in config.forms], table.n is not None)
    counts = [len(get_form(n).parameters(len(table.factors), table.n is not None)) for n in names]
    count = (min if config.is_mixed else max)(counts)
    why, perfect = "", np.flatnonzero(table.error <= 0)
    if len(table) <= count:
        runs = f"{len(table)} run{'s do' if len(table) > 1 else ' does'}"
        why = f"{runs} not determine the {count} parameters of {config.form}."
    elif np.ptp(table.error) == 0:
        why = f"All {len(table)} runs have the same error, so there is nothing to fit."
    elif perfect.size:
        name = table.run_id[perfect[0]]
        why = f"Run {name} has error 0, which has no logarithm; the law is fitted to log error."
    return Subject(metric, table, config, why, one_n)


class Recommendation(NamedTuple):
    """The configuration to deploy within a budget.

    Attributes:
      budget, cost: FLOPs per video.
      num_examples: n; None for a law without n.
      x: values [K].
      error: predicted.
      low, high: interval that holds the error of 90% of new runs.
      probability: share of the members whose own best configuration it is.
      regret: error points that 90% of the members lose at most by choosing it.
      alike: number of configurations that lose at most half a point with 90% of the members.
      affordable: number of configurations within the budget.
      outside: which values lie outside the fitted ranges, in words.
    """

    budget: float
    cost: float
    num_examples: float | None
    x: tuple
    error: float
    low: float
    high: float
    probability: float
    regret: float
    alike: int
    affordable: int
    outside: list


class MetricResults(NamedTuple):
    """Results of one metric, as a page shows them.

    Attributes:
      analysis: an `Analysis`; None without a law.
      figures: name -> `Drawn`, or a sentence that says why there is none.
      recommendations: a `Recommendation` for each of some budgets.
    """

    analysis: object
    figures: dict
    recommendations: list


class Appendix(NamedTuple):
    """Tables 8, 9 and 10: metric -> its content, or a sentence that says why there is none."""

    table8: dict
    table9: dict
    table10: dict


class Results(NamedTuple):
    """Everything a page shows.

    Attributes:
      subjects: in the order of the page; `why` now includes laws that could not be fitted.
      found: metric -> `MetricResults`.
      compared: metric -> `Comparison` of the forms, or None.
      appendix: an `Appendix`; None for a page without one.
    """

    subjects: list[Subject]
    found: dict[str, MetricResults]
    compared: dict
    appendix: Appendix | None = None
