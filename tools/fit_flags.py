"""The flags of a fit: the table of runs, and `FitConfig` with readers for two of its types."""

import dataclasses
import re
from pathlib import Path
from typing import Annotated, Literal

import tyro

from fitting.config import FACTORS, FitConfig
from fitting.forms import get_form
from fitting.runs import RunTable, read_runs

Column = Annotated[str | None, tyro.conf.arg(metavar="COLUMN")]


@dataclasses.dataclass(frozen=True)
class Data:
    """The meaning of the table's columns."""

    runs: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUNS.csv")]
    """The table of runs."""
    factors: Annotated[str, tyro.conf.arg(metavar="COLUMN,...")] = ",".join(FACTORS)
    """Columns x_1, x_2 ... of a configuration: any number, positive."""
    examples: Column = None
    """Column of the number of training examples n; left out, the law has no n."""
    score: Column = None
    """Column of scores, 0 to --scale, higher is better; 'score' if there is no --error."""
    error: Column = None
    """Column of errors, in place of a score."""
    scale: Literal["100", "1"] | None = None
    """The error of a complete failure; 100, but values never above 1 need it said."""
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


class FitFlags(FitConfig):
    """How the law is fitted; the defaults are the paper's but for the cap and the solver."""

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


def fit_config(flags: FitFlags) -> FitConfig:
    """Return the checked options of the fit; ValueError names the flag."""
    get_form(flags.form)
    try:
        return FitConfig(**vars(flags))
    except ValueError as e:
        text = re.sub(r"FitConfig\.(\w+)", lambda m: "--" + m[1].replace("_", "-"), str(e))
        text = text.replace("space='linear'", "--space linear").replace("None", "none")
        raise ValueError(text.replace("a mapping {column: number}", "COLUMN=NUMBER,...")) from None


def read_table(data: Data) -> RunTable:
    """Return the runs that the options name; raise ValueError where a metric must be chosen."""
    options = dataclasses.asdict(data) | {
        "factors": tuple(name.strip() for name in data.factors.split(",") if name.strip()),
        "scale": None if data.scale is None else float(data.scale),
    }
    table = read_runs(options.pop("runs"), **options)
    if len(table.metrics) > 1 and not data.group:
        raise ValueError(
            f"{data.runs}: metrics {', '.join(table.metrics)}; choose one with --metric, or fit "
            "each with --group metric"
        )
    return table
