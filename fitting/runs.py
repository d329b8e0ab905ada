"""The table of runs, which every fit reads: from a file, a data frame or mappings.

A table has one row for each run and metric. A higher score is better; a law describes the error,
scale - score. Without options `read_runs` reads the default columns, `run_files.COLUMNS`; options
name those of other tables. `fitting.readers` says which files there are and what is a comment.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import EllipsisType

import numpy as np

from fitting import expressions, readers, run_checks, run_files, views
from fitting.atomic import replacing
from fitting.config import FACTORS
from fitting.formatting import nearest
from fitting.run_files import OPTIONAL, REQUIRED

TINY = 1e-100  # powers of numbers below it, or above its inverse, overflow float64

LI2024 = Path(__file__).parent / "data" / "li2024.csv"
"""The published grid of Li et al. (arXiv 2411.03312): lm_params, visual_tokens, error (0 to 1)."""


@dataclass(frozen=True, eq=False)
class RunTable:
    """R runs as arrays, in the order of the file.

    Attributes:
      factors: names of the K factors.
      x: configurations [R, K], in the file's units.
      examples: name of the column of data sizes; None for laws without n.
      n: data sizes [R], or None.
      error: errors [R], 0 to `scale`; losses, which may be any number, where that is infinite.
      scale: the error of a complete failure, such as 100 or 1; infinite for a loss.
      weights: weights [R] in a fit, 1 by default.
      run_id: names [R]; 'row 7' where the file has none.
      metric: names [R] of the metrics.
      columns: the other columns as text [R] each, such as 'sweep'.
      source: the file's name, for messages.
      notes: warnings for the user, such as skipped lines or runs that look like duplicates.
      noise: standard deviations [R] of the scores, on the table's scale, or None.
      cluster: labels [R] of the runs that share a cause (a seed, a parent run), or None.
    """

    factors: tuple[str, ...]
    x: np.ndarray
    examples: str | None
    n: np.ndarray | None
    error: np.ndarray
    scale: float
    weights: np.ndarray
    run_id: np.ndarray
    metric: np.ndarray
    columns: dict[str, np.ndarray]
    source: str
    notes: tuple[str, ...] = ()
    noise: np.ndarray | None = None
    cluster: np.ndarray | None = None

    @classmethod
    def from_rows(cls, rows: Iterable[Mapping], source="rows") -> "RunTable":
        """Return a table of mappings with the keys `REQUIRED` and, where known, the others of
        `COLUMNS`; None stands for an unknown seed, protocol or standard error.

        Raises:
          ValueError: one line, naming the source, the row (counted from 1), the column and value.
        """
        rows = list(rows)
        for number, row in enumerate(rows, start=1):
            missing = [name for name in REQUIRED if name not in row]
            if missing:
                raise ValueError(
                    f"{source}, row {number}: no {missing[0]!r}; a run needs {', '.join(REQUIRED)}"
                )
        wheres = [f"row {number}" for number in range(1, len(rows) + 1)]
        records = {name: [row[name] for row in rows] for name in REQUIRED}
        for name in OPTIONAL:
            if any(row.get(name) is not None for row in rows):
                values = [row.get(name) for row in rows]
                records[name] = ["" if value is None else value for value in values]
        return _table(
            records, wheres, str(source), FACTORS, "num_examples", score="score", scale=100.0
        )

    def __len__(self) -> int:
        return len(self.error)

    @property
    def seed(self) -> np.ndarray | None:
        """Return the trainings' seeds [R], float64, NaN where unknown; None if no row has one."""
        return self._numbers("seed")

    @property
    def score_se(self) -> np.ndarray | None:
        """Return the scores' standard errors [R], on the table's scale, NaN where unknown; None if
        no row has one.
        """
        return self._numbers("score_se")

    @property
    def protocol(self) -> np.ndarray | None:
        """Return the evaluation protocols [R], '' where unknown; None when no row has one."""
        value_R = self.columns.get("protocol")
        return value_R if value_R is not None and any(value_R) else None

    def _numbers(self, name: str) -> np.ndarray | None:
        if name not in self.columns:
            return None
        value_R = np.array([run_checks.number(value) for value in self.columns[name]])
        return None if np.isnan(value_R).all() else value_R

    def rows(self) -> list[dict]:
        """Return the rows as mappings with the keys `COLUMNS`, the inverse of `from_rows`.

        Raises:
          ValueError: the table has other columns than the default ones.
        """
        if (self.factors, self.examples, self.scale) != (FACTORS, "num_examples", 100.0):
            raise ValueError(
                f"{self.source}: only tables with the columns {', '.join(REQUIRED)} can be written"
            )
        unknown, protocol = [None] * len(self), self.protocol
        seed, score_se = (
            unknown if v is None else [None if math.isnan(x) else x for x in v.tolist()]
            for v in (self.seed, self.score_se)
        )
        values = {
            "run_id": self.run_id.tolist(),
            "sweep": self.column("sweep").tolist(),
            **dict(zip(self.factors, self.x.T.tolist(), strict=True)),
            "num_examples": self.n.tolist(),
            "seed": [None if v is None else int(v) for v in seed],
            "protocol": unknown if protocol is None else [v or None for v in protocol.tolist()],
            "metric": self.metric.tolist(),
            "score": (100 - self.error).tolist(),
            "score_se": score_se,
        }
        return [dict(zip(values, row, strict=True)) for row in zip(*values.values(), strict=True)]

    def __repr__(self) -> str:
        return views.table_text(self)

    def to_frame(self):
        """Return the runs as a pandas data frame: all columns, the error and the weight."""
        return views.table_frame(self)

    @property
    def reference(self) -> float:
        """Return the size that errors are measured by: the scale, or the largest loss."""
        return reference(self.scale, self.error)

    @property
    def metrics(self) -> tuple[str, ...]:
        """Return the distinct metrics, sorted."""
        return self.levels("metric")

    def column(self, name: str) -> np.ndarray:
        """Return a column [R]: numbers for factors and n, text for the rest.

        Raises:
          ValueError: no such column; names the nearest.
        """
        named = self.named
        if name not in named:
            raise ValueError(f"{self.source}: {run_checks.no_column(name, named)}")
        return named[name]

    @property
    def named(self) -> dict[str, np.ndarray]:
        """Return all columns by name: factors and n as numbers, the others as text."""
        named = dict(zip(self.factors, self.x.T, strict=True))
        if self.examples is not None:
            named[self.examples] = self.n
        return named | {**self.columns, "run_id": self.run_id, "metric": self.metric}

    def levels(self, column: str) -> tuple:
        """Return the distinct values of a column, sorted: floats for factors and n, else text."""
        return tuple(np.unique(self.column(column)).tolist())

    def take(self, rows) -> "RunTable":
        """Return the table of the rows of a boolean mask [R] or of indices."""
        return RunTable(
            self.factors,
            self.x[rows],
            self.examples,
            None if self.n is None else self.n[rows],
            self.error[rows],
            self.scale,
            self.weights[rows],
            self.run_id[rows],
            self.metric[rows],
            {name: values[rows] for name, values in self.columns.items()},
            self.source,
            self.notes,
            None if self.noise is None else self.noise[rows],
            None if self.cluster is None else self.cluster[rows],
        )

    def where(self, column: str, value) -> np.ndarray:
        """Return a mask [R] of the rows with a value in a column; 2e12 equals 2000000000000.

        Raises:
          ValueError: no such column, or no such row; names the values that exist.
        """
        values_R = self.column(column)
        same_R = expressions.equal(values_R, value)
        if not same_R.any():
            raise ValueError(f"{self.source}: {expressions.no_value(column, value, values_R)}")
        return same_R

    def select(self, **values) -> "RunTable":
        """Return the rows with these values, as in `select(metric='avg', sweep='star')`.

        A value of None selects all.

        Raises:
          ValueError: no such column, value or combination; names the values that exist.
        """
        keep_R = np.ones(len(self), bool)
        chosen = {column: value for column, value in values.items() if value is not None}
        for column, value in chosen.items():
            keep_R &= self.where(column, value)
        if not keep_R.any():
            text = " and ".join(f"{column} {str(value)!r}" for column, value in chosen.items())
            raise ValueError(f"{self.source}: no runs with {text} together")
        return self.take(keep_R)


def reference(scale: float, error) -> float:
    """Return the scale, or for losses, which have none, the largest absolute one (1 for zeros)."""
    return scale if math.isfinite(scale) else float(np.abs(error).max()) or 1.0


def read_runs(
    source,
    *,
    factors=FACTORS,
    examples: str | None | EllipsisType = ...,
    score: str | None = None,
    error: str | None = None,
    metric: str | None = None,
    where: str | None = None,
    weights: str | None = None,
    scale: float | None = None,
    group: str | None = None,
    target: str | None = None,
    noise: str | None = None,
    cluster: str | None = None,
    skip_missing: bool = False,
    skip_duplicates: bool = False,
) -> RunTable:
    """Read and validate a table of runs; without options, one with the columns `COLUMNS`.

    Args:
      source: a file that `fitting.readers` reads, with a header and one row for each run and
        metric: CSV, `.csv.gz`, `.parquet` or `.xlsx`; or a data frame, or a mapping of columns.
      factors: names of the K columns that make up a configuration.
      examples: name of the column of data sizes n, None for laws without n; by default
        'num_examples' if the file has it or the factors are the default ones.
      score: column of scores, 0 to `scale`, higher is better; 'score' if `error` is None too.
      error: column of errors, in place of scores.
      metric: keep only rows with this value in the column 'metric'.
      where: keep only rows for which this condition holds, such as 'N<5e8 and protocol=questions';
        see `fitting.expressions.rows`.
      weights: column of the runs' weights, 0 or more.
      scale: the best score, and so the error of a complete failure; 100 by default. It must be
        given when no value is above 1, or when one is above 100, as CIDEr is.
      group: column whose values take the place of metrics, 'metric' by default; a run may appear
        once in each group.
      target: what the column of values holds: 'score'; 'error'; or 'loss', lower is better and
        without a ceiling, in the column `error` (or `score`, or one named 'loss'). By default what
        the column was named as. A perplexity is a loss; its logarithm follows these laws better.
      noise: column of the scores' standard deviations, in the unit of the scores, such as
        'score_se'. Runs are weighted by it and by what trainings differ in beside.
      cluster: column of labels; the runs of one label share a seed, a parent run or a data draw,
        and are resampled and left out together.
      skip_missing: leave out rows without a score (or error), with a note.
      skip_duplicates: leave out rows that equal an earlier one in every column, with a note.

    Raises:
      ValueError: one line, naming file, row, column, value and what is allowed.
      FileNotFoundError: one line.
    """
    factors = (factors,) if isinstance(factors, str) else tuple(factors)
    texts = readers.read(source)
    source, wheres, columns, notes = texts.source, texts.wheres, texts.columns(), list(texts.notes)
    if examples is ...:
        has_n = "num_examples" in columns or factors == FACTORS
        examples = "num_examples" if has_n and "num_examples" not in factors else None
    target = run_checks.target_of(target, score, error)
    values_of = error or score or target

    def keep(rows: list[int]) -> None:
        nonlocal wheres, columns
        wheres = [wheres[i] for i in rows]
        columns = {name: [values[i] for i in rows] for name, values in columns.items()}

    if where is not None:
        chosen_R = expressions.rows(where, columns, source)
        if not chosen_R.any():
            raise ValueError(f"{source}: no run is left where {where}")
        keep(np.flatnonzero(chosen_R).tolist())
    if skip_missing and values_of in columns:
        there = [v.lower() not in run_checks.MISSING for v in columns[values_of]]
        if not all(there):
            what = f"{there.count(False)} rows have no {values_of}"
            notes.append(f"{source}: {what}, the first is {wheres[there.index(False)]}")
            keep([i for i, known in enumerate(there) if known])
    if skip_duplicates:
        first = run_checks.first_equal(columns)
        copies = [i for i, earlier in enumerate(first) if earlier != i]
        if copies:
            copy, earlier = wheres[copies[0]], wheres[first[copies[0]]]
            what = f"{len(copies)} rows are exact copies of others and were left out"
            notes.append(f"{source}: {what}, the first is {copy}, of {earlier}")
            keep([i for i, earlier in enumerate(first) if earlier == i])
    if metric is not None:
        run_checks.check_columns(["metric"], columns, source)
        kept = [i for i, value in enumerate(columns["metric"]) if value == metric]
        if not kept:
            there = sorted(set(columns["metric"]))
            raise ValueError(
                f"{source}: no runs with metric {metric!r}{nearest(metric, there)}; "
                f"there are {', '.join(there)}"
            )
        keep(kept)
    table = _table(
        columns,
        wheres,
        source,
        factors,
        examples,
        score,
        error,
        weights,
        scale,
        group,
        noise,
        cluster,
        target,
    )
    return dataclasses.replace(table, notes=(*notes, *table.notes))


def write_runs(path, rows: RunTable | Iterable[Mapping]) -> None:
    """Write runs with the columns `COLUMNS`, sorted by run_id, metric and protocol.

    A path that ends in .parquet gets a Parquet file with types, for which pyarrow must be
    installed; any other a CSV. Scores and their errors have four decimals in both. The same runs
    give the same CSV, in whatever order they come. The file is replaced in one step.

    Raises:
      ValueError: as `RunTable.from_rows`, or a table with other columns than the default ones.
    """
    table = rows if isinstance(rows, RunTable) else RunTable.from_rows(rows, path)
    records, path = table.rows(), Path(path)
    records.sort(key=lambda row: (row["run_id"], row["metric"], row["protocol"] or ""))
    write = run_files.write_parquet if path.suffix == ".parquet" else run_files.write_csv
    with replacing(path) as partial:
        write(partial, records)


def add_runs(path, rows: Iterable[Mapping]) -> None:
    """Add rows to a file of runs, which may be missing. Those of the same run, protocol and metric
    are replaced.

    Raises:
      ValueError: as `read_runs` and `write_runs`.
    """

    def key(row: Mapping) -> tuple:
        return row["run_id"], row["protocol"], row["metric"]

    rows = list(rows)
    old = read_runs(path).rows() if Path(path).exists() else []
    replaced = {key(row) for row in rows}
    write_runs(path, [row for row in old if key(row) not in replaced] + rows)


def _table(
    columns: Mapping[str, list],
    wheres: list[str],
    source: str,
    factors: tuple[str, ...],
    examples: str | None,
    score: str | None = None,
    error: str | None = None,
    weights: str | None = None,
    scale: float | None = None,
    group: str | None = None,
    noise: str | None = None,
    cluster: str | None = None,
    target: str = "score",
) -> RunTable:
    """Validate columns and return them as a `RunTable`; `wheres` name the rows in messages."""
    values_of = error or score or target
    needed = run_checks.check_roles(
        columns, wheres, source, factors, examples, score, error, weights, scale, group, target
    )

    def numbers(name: str, allowed: str, good) -> np.ndarray:
        found = [run_checks.number(value) for value in columns[name]]
        for where, value, number in zip(wheres, columns[name], found, strict=True):
            if not good(number):
                remedy = ""
                if name == values_of and math.isfinite(number):
                    remedy = "; --target loss has no ceiling, --scale names another best score"
                elif name == values_of and str(value).strip().lower() in run_checks.MISSING:
                    remedy = "; skip_missing (--skip-missing) leaves out rows without one"
                raise ValueError(
                    f"{source}, {where}: column {name!r} is {str(value)!r}; it must be {allowed}"
                    f"{remedy}"
                )
        return np.array(found)

    def texts(name: str, default: list[str]) -> np.ndarray:
        return np.array([str(value) for value in columns.get(name, default)])

    def positive(name: str) -> np.ndarray:
        return numbers(name, "a positive number", lambda v: TINY < v < 1 / TINY)

    x_RK = np.stack([positive(name) for name in factors], axis=1)
    n_R = None if examples is None else positive(examples)
    top = math.inf if target == "loss" else scale or 100.0
    if target == "loss":
        value_R = numbers(values_of, "a number", math.isfinite)
    else:
        value_R = numbers(values_of, f"a number from 0 to {top:g}", lambda v: 0 <= v <= top)
    if scale is None and target != "loss" and value_R.max() <= 1:
        raise ValueError(
            f"{source}: column {values_of!r} has values from {value_R.min():g} to "
            f"{value_R.max():g}, never above 1; say scale 1 if 1 is the best score, else scale 100"
        )
    weight_R = np.ones(len(wheres))
    if weights is not None:
        weight_R = numbers(weights, "0 or a positive number", lambda v: 0 <= v < math.inf)
        if not weight_R.any():
            raise ValueError(f"{source}: column {weights!r}: no run has a weight above 0")
    run_checks.check_columns([name for name in (noise, cluster) if name], columns, source)
    noise_R = None
    if noise is not None:
        if weights is not None:
            raise ValueError(
                f"{source}: weights follow from the noise {noise!r}; leave {weights!r} out"
            )
        noise_R = numbers(noise, "a positive number of score points", lambda v: 0 < v < math.inf)
    metric = group or "metric"
    taken = {*needed, "run_id", "metric"}
    table = RunTable(
        factors=factors,
        x=x_RK,
        examples=examples,
        n=n_R,
        error=top - value_R if target == "score" else value_R,
        scale=float(top),
        weights=weight_R,
        run_id=texts("run_id", [where.split(" (")[0] for where in wheres]),
        metric=texts(metric, [values_of] * len(wheres)),
        columns={name: texts(name, []) for name in columns if name not in taken},
        source=source,
        noise=noise_R,
        cluster=None if cluster is None else texts(cluster, []),
    )
    named = [name for name in ("run_id", metric, cluster) if name in columns]
    run_checks.check_texts(columns, wheres, source, named)
    run_checks.check_noise(table, noise)
    table, alone = run_checks.without_single_clusters(table, cluster)
    run_checks.check_optional(table, wheres)
    run_checks.check_unique(table, columns, wheres)
    return dataclasses.replace(table, notes=(*run_checks.warnings(table, value_R), *alone))
