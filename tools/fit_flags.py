"""The flags of a fit: the table of runs, and `FitConfig` with readers for two of its types."""

import dataclasses
import re
from pathlib import Path
from typing import Annotated, Literal

import tyro

from fitting import own_forms, run_checks
from fitting.config import AUTO, FACTORS, FitConfig
from fitting.cost import CostConstants, CostFormula
from fitting.forms import get_form
from fitting.runs import RunTable, read_runs

from .common import flag

Column = Annotated[str | None, tyro.conf.arg(metavar="COLUMN")]
Condition = Annotated[str | None, tyro.conf.arg(metavar="CONDITION")]
"""Comparisons of columns with values, joined by and, or: `fitting.expressions.rows`."""
Cost = Annotated[str | None, tyro.conf.arg(metavar="FORMULA")]
Flag = Annotated[bool, tyro.conf.FlagCreatePairsOff]


@dataclasses.dataclass(frozen=True)
class Rows:
    """The rows of the table that take part."""

    where: Condition = None
    """Keeps the rows for which this holds, such as "N<5e8 and protocol=questions"."""
    skip_missing: Flag = False
    """Leaves out rows without a score; otherwise such a row is an error."""
    skip_duplicates: Flag = False
    """Leaves out rows that equal an earlier one in every column."""
    mixed_protocols: Flag = False
    """Fits scores of several evaluation protocols (column 'protocol') together."""

    def read(self, path, **options) -> RunTable:
        """Return the runs; ValueError as `read_runs`, or where protocols are mixed unasked."""
        names = ("where", "skip_missing", "skip_duplicates")
        table = read_runs(path, **{name: getattr(self, name) for name in names}, **options)
        self.check(table)
        return table

    def check(self, table: RunTable) -> None:
        """Raise ValueError where scores of a metric come from several protocols, unless told."""
        for line in run_checks.mixed_protocols(table) if not self.mixed_protocols else ():
            first = next(name for name in table.protocol if name)
            raise ValueError(
                f"{line}; keep those of one (--where protocol={first}), or fit them together "
                "(--mixed-protocols)"
            )


@dataclasses.dataclass(frozen=True)
class Data:
    """The meaning of the table's columns."""

    runs: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUNS.csv")]
    """The table of runs: .csv, .csv.gz, .parquet or .xlsx."""
    factors: Annotated[str, tyro.conf.arg(metavar="COLUMN,...")] = ",".join(FACTORS)
    """Columns x_1, x_2 ... of a configuration: any number, positive."""
    examples: Column = None
    """Column of the number of training examples n; left out, the law has no n."""
    score: Column = None
    """Column of scores, 0 to --scale, higher is better; 'score' unless said."""
    error: Column = None
    """Column of errors, in place of a score."""
    target: Literal["score", "error", "loss"] | None = None
    """loss: lower is better, no ceiling (nats; a perplexity, better its logarithm); in --error, or
    a column 'loss'. By default what the column was named as."""
    scale: Annotated[float | None, tyro.conf.arg(metavar="NUMBER")] = None
    """The best score, 100 unless said (1, 5, or for CIDEr a ceiling that no model will reach)."""
    metric: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    """Keeps the rows with this value in the column 'metric'."""
    group: Column = None
    """Fits each value of this column, such as 'metric': one batch, a folder OUT/VALUE each."""
    weights: Column = None
    """Column of the runs' weights."""
    noise: Column = None
    """Column of the scores' standard errors, in score points, such as score_se: weighs runs."""
    cluster: Column = None
    """Column that is equal for runs of one seed, parent run or data draw: resampled together."""

    @property
    def columns(self) -> tuple[str, ...]:
        """Return the factors' names."""
        return tuple(name.strip() for name in self.factors.split(",") if name.strip())


@dataclasses.dataclass(frozen=True)
class Ties:
    """Parameters that share a value; --fix holds one at a value of yours."""

    tie: Annotated[tuple[str, ...], tyro.conf.arg(metavar="EXPONENT=EXPONENT ...")] = ()
    """Exponents that are one parameter, such as a_T=a_V."""


@dataclasses.dataclass(frozen=True)
class FitFlags(FitConfig):
    """How the law is fitted; defaults are the paper's but for the forms, the cap and the solver."""

    form: str = AUTO
    """auto, several forms in one bag, weighted by their predictions of held-out runs; or NAME,
    NAME@LINK, or a list: mult, add, add-interact (equation 3), others of fitting/forms.py."""

    def __post_init__(self):
        """Leave the check to `fit_config`, which names the flag in one line."""


READERS = tyro.constructors.ConstructorRegistry()


@READERS.primitive_rule
def read_cap_or_units(kind: tyro.constructors.PrimitiveTypeInfo):
    """Return how to read the two fields of FitConfig that are no plain number or text.

    Text that cannot be read stays text, for FitConfig to refuse.
    """
    types = {field.name: field.type for field in dataclasses.fields(FitConfig)}
    if kind.type == types["exponent_cap"]:
        return _reader("NUMBER|none", _number_or_none)
    if kind.type == types["fix"]:
        return _reader("NAME=NUMBER,...", _units)
    if kind.type == types["units"]:
        return _reader("geomean|COLUMN=NUMBER,...", _units)
    return None


def _reader(metavar: str, read) -> tyro.constructors.PrimitiveConstructorSpec:
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar=metavar,
        instance_from_str=lambda texts: read(texts[0]),
        is_instance=lambda value: True,
        str_from_instance=lambda value: ["none" if value is None else f"{value}"],
    )


def _number_or_none(text: str):
    try:
        return None if text == "none" else float(text)
    except ValueError:
        return text


def _units(text: str):
    if text == "none":
        return None
    pairs = [part.partition("=") for part in text.split(",")]
    if not all(equals for _, equals, _ in pairs):
        return text
    return {name.strip(): _number_or_none(unit) for name, _, unit in pairs}


def fit_config(flags: FitFlags, tie: tuple[str, ...] = (), factors=FACTORS) -> FitConfig:
    """Return the checked options of the fit; ValueError names the flag."""
    form = own_forms.resolve(flags.form, tie, factors)
    try:
        config = FitConfig(**vars(flags) | {"form": form})
        for one in config.forms:
            get_form(one.form)
        return config
    except ValueError as e:
        text = re.sub(r"FitConfig\.(\w+)", lambda m: "--" + m[1].replace("_", "-"), str(e))
        text = text.replace("space='linear'", "--space linear").replace("None", "none")
        text = text.replace("solver='lm'", "--solver lm")
        raise ValueError(text.replace("a mapping {column: number}", "COLUMN=NUMBER,...")) from None


def read_table(data: Data, rows: Rows) -> RunTable:
    """Return the runs that the options name; raise ValueError where a metric must be chosen."""
    options = vars(data) | {"factors": data.columns}
    table = rows.read(options.pop("runs"), **options)
    if len(table.metrics) > 1 and not data.group:
        raise ValueError(
            f"{data.runs}: metrics {', '.join(table.metrics)}; choose one with --metric, or fit "
            "each with --group metric"
        )
    return table


def page_cost(formula: str | None, vision_params: float, features: int):
    """Return the cost of a page: a formula of the default factors in FLOPs, or equation 1."""
    if formula is None:
        return CostConstants(vision_params, features)
    with flag("--cost"):
        return CostFormula(formula, FACTORS)
