"""The table of runs: what every fit starts from, and the one file format of this package.

A CSV with the columns below, one row a run and metric. Lines that start with # are comments.
Scores lie on a 0-100 scale, higher is better; a law describes the error, 100 - score.
"""

import csv
import difflib
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

FACTORS = ("lm_params", "num_frames", "tokens_per_frame")
NUMBERS = (*FACTORS, "num_examples", "score")
COLUMNS = ("run_id", "sweep", *FACTORS, "num_examples", "metric", "score")


@dataclass(frozen=True, eq=False)
class RunTable:
    """Columns of equal length R; texts as str, numbers as float64.

    Attributes:
      run_id: name of the run; unique together with the metric.
      sweep: 'star', 'isoflop', or another name.
      lm_params, num_frames, tokens_per_frame: the configuration x.
      num_examples: n, finetuning examples.
      metric: name of the score.
      score: 0-100, higher is better.
    """

    run_id: np.ndarray
    sweep: np.ndarray
    lm_params: np.ndarray
    num_frames: np.ndarray
    tokens_per_frame: np.ndarray
    num_examples: np.ndarray
    metric: np.ndarray
    score: np.ndarray

    @classmethod
    def from_rows(cls, rows: Iterable[Mapping], source="rows") -> "RunTable":
        """Validates mappings with the keys `COLUMNS`, and sorts them by run_id and metric.

        Raises:
          ValueError: one line, naming the source, the row (counted from 1), the column and value.
        """
        rows = [
            _check_row(row, f"{source}, row {number}") for number, row in enumerate(rows, start=1)
        ]
        return cls._from_checked(rows, source)

    @classmethod
    def _from_checked(cls, rows: list[dict], source) -> "RunTable":
        if not rows:
            raise ValueError(f"{source}: no runs; at least one row is needed")
        seen = set()
        for row in rows:
            key = row["run_id"], row["metric"]
            if key in seen:
                raise ValueError(
                    f"{source}: run_id {key[0]!r} has metric {key[1]!r} twice; "
                    "each pair may appear once"
                )
            seen.add(key)
        rows = sorted(rows, key=lambda row: (row["run_id"], row["metric"]))
        return cls(**{name: np.array([row[name] for row in rows]) for name in COLUMNS})

    def __len__(self) -> int:
        return len(self.run_id)

    @property
    def x(self) -> np.ndarray:
        """Configurations [R, 3], in factor order."""
        return np.stack([getattr(self, name) for name in FACTORS], axis=-1)

    @property
    def n(self) -> np.ndarray:
        """Data sizes [R]."""
        return self.num_examples

    @property
    def error(self) -> np.ndarray:
        """f = 100 - score, [R]."""
        return 100.0 - self.score

    @property
    def metrics(self) -> tuple[str, ...]:
        """The distinct metrics, sorted."""
        return tuple(str(name) for name in np.unique(self.metric))

    @property
    def sweeps(self) -> tuple[str, ...]:
        """The distinct sweeps, sorted."""
        return tuple(str(name) for name in np.unique(self.sweep))

    def take(self, rows) -> "RunTable":
        """The rows of a boolean mask [R] or of indices."""
        return RunTable(**{f.name: getattr(self, f.name)[rows] for f in fields(self)})

    def select(self, *, metric: str | None = None, sweep: str | None = None) -> "RunTable":
        """The rows of one metric and/or one sweep.

        Raises:
          ValueError: no such row; names what there is.
        """
        keep_R = np.ones(len(self), bool)
        for column, value, present in (
            ("metric", metric, self.metrics),
            ("sweep", sweep, self.sweeps),
        ):
            if value is None:
                continue
            if value not in present:
                raise ValueError(f"no runs with {column} {value!r}; there are {', '.join(present)}")
            keep_R &= getattr(self, column) == value
        if not keep_R.any():
            raise ValueError(f"no runs with metric {metric!r} and sweep {sweep!r} together")
        return self.take(keep_R)

    def rows(self) -> list[dict]:
        """The table as mappings, which `write_runs` takes."""
        return [{name: getattr(self, name)[i].item() for name in COLUMNS} for i in range(len(self))]


def read_runs(path) -> RunTable:
    """Reads and validates a CSV of runs.

    Raises:
      ValueError: one line, naming file, line, column, value and what is allowed.
    """
    with open(path, newline="", encoding="utf-8") as file:
        numbered = [
            (number, line)
            for number, line in enumerate(file, start=1)
            if line.strip() and not line.startswith("#")
        ]
    if not numbered:
        raise ValueError(f"{path}: empty; the first line must name the columns {','.join(COLUMNS)}")
    records = list(csv.reader(line for _, line in numbered))
    header = tuple(name.strip() for name in records[0])
    _check_header(header, path)
    rows = []
    for (number, _), record in zip(numbered[1:], records[1:], strict=True):
        where = f"{path}, line {number}"
        if len(record) != len(header):
            raise ValueError(f"{where}: {len(record)} values for {len(header)} columns")
        rows.append(_check_row(dict(zip(header, record, strict=True)), where))
    return RunTable._from_checked(rows, path)


def write_runs(path, rows: RunTable | Iterable[Mapping]) -> None:
    """Writes validated runs as CSV, sorted by run_id and metric; the same runs, the same bytes.

    The file is replaced in one step, so that a reader never sees half of it.

    Raises:
      ValueError: as `RunTable.from_rows`.
    """
    table = rows if isinstance(rows, RunTable) else RunTable.from_rows(rows, path)
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    with open(partial, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        for row in table.rows():
            writer.writerow([_text(name, row[name]) for name in COLUMNS])
    os.replace(partial, path)


def _text(name: str, value) -> str:
    if name == "score":
        return f"{value:.4f}"
    if name in NUMBERS:
        return str(int(value)) if value.is_integer() else repr(value)
    return value


def _check_header(header: tuple, path) -> None:
    if len(set(header)) != len(header):
        raise ValueError(f"{path}: a column appears twice in {','.join(header)}")
    unknown = [name for name in header if name not in COLUMNS]
    for name in COLUMNS:
        if name not in header:
            near = difflib.get_close_matches(name, unknown, n=1)
            hint = f"; is {near[0]!r} misspelt?" if near else ""
            raise ValueError(f"{path}: no column {name!r}{hint} Columns: {', '.join(COLUMNS)}")
    if unknown:
        raise ValueError(f"{path}: unknown column {unknown[0]!r}; allowed: {', '.join(COLUMNS)}")


def _check_row(row: Mapping, where: str) -> dict:
    """One row with its numbers parsed; ValueError names the column, the value, what is allowed."""
    missing = [name for name in COLUMNS if name not in row]
    if missing:
        raise ValueError(f"{where}: no {missing[0]!r}; a run needs {', '.join(COLUMNS)}")
    checked = {}
    for name in COLUMNS:
        value = row[name]
        if name in NUMBERS:
            checked[name] = _number(name, value, where)
        else:
            checked[name] = str(value).strip()
            if not checked[name]:
                raise ValueError(f"{where}: column {name!r} is empty; it needs a text")
    return checked


def _number(name: str, value, where: str) -> float:
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if name == "score":
        good, allowed = 0 <= number <= 100, "a number from 0 to 100"
    else:
        good, allowed = 0 < number < math.inf, "a positive number"
    if not good:
        raise ValueError(f"{where}: column {name!r} is {value!r}; it must be {allowed}")
    return number
