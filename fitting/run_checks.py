"""Checks of the columns of a table of runs; `table` is a `runs.RunTable`."""

import dataclasses
import math
from collections.abc import Iterator, Mapping

import numpy as np

from fitting.config import FACTORS
from fitting.formatting import nearest

TARGETS = ("score", "error", "loss")
FEW_CLUSTERS = 8
MISSING = ("", "nan", "none", "null")  # texts of a missing value, in lower case


def check_roles(
    columns: Mapping[str, list],
    wheres: list[str],
    source: str,
    factors: tuple[str, ...],
    examples: str | None,
    score: str | None,
    error: str | None,
    weights: str | None,
    scale: float | None,
    group: str | None,
    target: str,
) -> list[str]:
    """Return the columns that a table is read from: factors, examples, score or error, weights.

    Raises ValueError when one is missing or has two roles, or when options exclude each other.
    """
    if not wheres:
        raise ValueError(f"{source}: no runs; at least one row is needed")
    if score is not None and error is not None:
        raise ValueError(f"give a score column or an error column, not both ({score}, {error})")
    if scale is not None and not 0 < scale < math.inf:
        raise ValueError(f"scale must be a positive number, got {scale!r}")
    if target == "loss" and scale is not None:
        raise ValueError("scale is the best score or the worst error; a loss has neither")
    values_of = error or score or target
    needed = [*factors, examples, values_of, weights]
    needed = [name for name in needed if name is not None]
    if not factors:
        raise ValueError(f"{source}: at least one factor is needed")
    for name in needed:
        if needed.count(name) > 1:
            raise ValueError(f"{source}: column {name!r} has two parts among {', '.join(needed)}")
    check_columns([*needed, *([group] if group else [])], columns, source)
    if group not in (None, "metric") and len(kinds := sorted(set(columns.get("metric", ())))) > 1:
        raise ValueError(
            f"{source}: grouped by {group}, each group would mix the metrics {', '.join(kinds)}; "
            "choose one metric"
        )
    return needed


def target_of(target: str | None, score: str | None, error: str | None) -> str:
    """Return what the column of values holds: one of `TARGETS`.

    Raises ValueError for another word, or one that the columns contradict.
    """
    if target is None:
        return "error" if error else "score"
    if target not in TARGETS:
        raise ValueError(f"target must be one of {', '.join(TARGETS)}, got {target!r}")
    if (target == "score" and error) or (target == "error" and score):
        raise ValueError(f"target {target} contradicts the column {error or score!r}")
    return target


def warnings(table, value_R: np.ndarray) -> Iterator[str]:
    """Yield warnings about rows that are allowed but are probably mistakes.

    Args:
      value_R: the column of scores or errors [R], as it is in the file.
    """
    source = table.source
    if idle := int((table.weights == 0).sum()):
        yield f"{source}: {idle} runs have weight 0 and take no part"
    n = () if table.n is None else (table.n,)
    rows = list(zip(*table.x.T, *n, value_R, table.metric, strict=True))
    if doubled := len(rows) - len(set(rows)):
        yield (
            f"{source}: {doubled} rows have the configuration, examples and value of another row; "
            "each counts"
        )
    texts = [str(text).strip().lower() for text in table.columns.get("score_se", ())]
    if unknown := sum(text in MISSING and text != "" for text in texts):
        yield f"{source}: score_se is no number in {unknown} of {len(table)} runs: unknown there"
    yield from mixed_protocols(table)


def mixed_protocols(table) -> Iterator[str]:
    """Yield a line for each metric whose scores come from several protocols."""
    for metric in table.metrics if table.protocol is not None else ():
        names = sorted({name or "unknown" for name in table.protocol[table.metric == metric]})
        if len(names) > 1:
            yield (
                f"{table.source}: scores of {metric} come from {len(names)} protocols "
                f"({', '.join(names)}), which may not be comparable"
            )


def check_optional(table, wheres: list[str]) -> None:
    """Raise ValueError for a seed or standard error that is neither empty nor a valid number.

    Empty, nan, none and null stand for unknown.
    """
    if table.factors != FACTORS:  # a user's table, whose column `seed` may hold anything
        return
    rules = {
        "seed": ("a whole number, 0 or above, or empty", lambda v: v >= 0 and v.is_integer()),
        "score_se": ("0 or a positive number, or empty", lambda v: 0 <= v < math.inf),
    }
    for name in rules.keys() & table.columns.keys():
        allowed, good = rules[name]
        texts = table.columns[name].tolist()
        for text in dict.fromkeys(texts):
            if text.strip().lower() not in MISSING and not good(number(text)):
                raise ValueError(
                    f"{table.source}, {wheres[texts.index(text)]}: column {name!r} is {text!r}; it "
                    f"must be {allowed}"
                )


def check_noise(table, column: str | None) -> None:
    """Raise ValueError where most of the noise exceeds the spread of a metric's scores."""
    for metric in table.metrics if column else ():
        of_metric = table.metric == metric
        noise, spread = np.median(table.noise[of_metric]), table.error[of_metric].std()
        if noise > spread > 0:
            raise ValueError(
                f"{table.source}: column {column!r}: a noise of {noise:.3g} (median) exceeds the "
                f"spread of the scores of {metric}, {spread:.3g}; it must be in the scores' unit"
            )


def without_single_clusters(table, column: str | None) -> tuple:
    """Return the table and notes; clusters of a single run each are left out, with a note.

    Raises:
      ValueError: all runs are of one cluster.
    """
    if column is None:
        return table, ()
    few, notes = [], ()
    for metric in table.metrics:
        counts = np.unique(table.cluster[table.metric == metric], return_counts=True)[1]
        few.append(len(counts))
        if len(counts) == 1:
            raise ValueError(
                f"{table.source}: column {column!r} puts all runs of {metric} into one cluster; "
                "resampling needs several"
            )
    pairs = np.char.add(np.char.add(table.metric.astype(str), "\n"), table.cluster)
    if np.unique(pairs, return_counts=True)[1].max() == 1:
        note = f"every run has a {column} of its own: clusters of one change nothing"
        return dataclasses.replace(table, cluster=None), (f"{table.source}: {note}",)
    if min(few) < FEW_CLUSTERS:
        notes = (
            f"{table.source}: {min(few)} clusters of {column} say little about how clusters "
            f"differ; intervals may be too narrow below {FEW_CLUSTERS}",
        )
    return table, notes


def check_texts(columns, wheres, source, names) -> None:
    """Raise ValueError for an empty cell in a column of names."""
    for name in names:
        for where, value in zip(wheres, columns[name], strict=True):
            if not str(value).strip():
                raise ValueError(f"{source}, {where}: column {name!r} is empty; it needs a text")


def check_unique(table, columns: Mapping[str, list], wheres: list[str]) -> None:
    """Raise ValueError when a run has two scores of a metric (and protocol) or, in a table without
    run_id, when two rows are equal in all columns.
    """
    if "run_id" in columns:
        what = "run_id {!r} with metric {!r}"
        keys = list(zip(table.run_id, table.metric, strict=True))
        if table.protocol is not None:
            what += " and protocol {!r}"
            keys = [(*key, name) for key, name in zip(keys, table.protocol, strict=True)]
    else:
        n = () if table.n is None else (table.n,)
        alike = (*table.x.T, *n, table.error, table.weights, table.metric, *table.columns.values())
        keys, what = zip(*alike, strict=True), "the same values in all columns"
    seen, equal = {}, first_equal(columns)
    for i, key in enumerate(keys):
        if key in seen:
            copy = equal[i] == seen[key]
            raise ValueError(
                f"{table.source}, {wheres[i]}: {what.format(*map(str, key))} again, first in "
                f"{wheres[seen[key]]}; a run may appear once"
                + "; skip_duplicates (--skip-duplicates) leaves out exact copies"
                * copy
            )
        seen[key] = i


def first_equal(columns: Mapping[str, list]) -> list[int]:
    """Return, for each row, the first row that equals it in every column; 2e3 equals 2000."""
    found = {}

    def value(cell):
        as_number = number(cell)
        return str(cell) if math.isnan(as_number) else as_number

    rows = zip(*columns.values(), strict=True)
    return [found.setdefault(tuple(map(value, row)), i) for i, row in enumerate(rows)]


def check_columns(names: list[str], columns, source) -> None:
    """Raise ValueError for the first of `names` that is no column."""
    for name in names:
        if name not in columns:
            raise ValueError(f"{source}: {no_column(name, columns)}")


def no_column(name: str, columns) -> str:
    """Return the message about a column that is missing; it names the nearest."""
    there = [column for column in columns if column]
    return f"no column {name!r}{nearest(name, there)}; there are {', '.join(there)}"


def number(value) -> float:
    """Return a number, or NaN for other text; 1_000, which Python would read, is other text."""
    if isinstance(value, str) and "_" in value:
        return math.nan
    try:
        return float(value)
    except (TypeError, ValueError):
        return math.nan
