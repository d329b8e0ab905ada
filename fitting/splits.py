"""Split the runs of a table into those a fit sees and those it predicts."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from fitting.runs import RunTable

MOST_PARTS = 5
"""More levels than this are left out in groups of neighbours, as many groups as this."""


class Split(NamedTuple):
    """Several pairs of runs to fit and runs to predict; each run is predicted at most once.

    Attributes:
      name: as it stands in tables.
      train, test: bool [S, R].
    """

    name: str
    train: np.ndarray
    test: np.ndarray


def random_folds(table: RunTable, folds: int = 5, seed: int = 0) -> Split:
    """Return a split into random folds; the runs of a fold are held out together.

    Raises:
      ValueError: fewer than 2 folds, or fewer runs than folds.
    """
    if not 2 <= folds <= len(table):
        raise ValueError(f"{folds} folds need 2 or more, and no more than the {len(table)} runs")
    fold_R = np.random.default_rng(seed).permutation(np.arange(len(table)) % folds)
    return _without(f"{folds}-fold", fold_R)


def column_split(table: RunTable, train, test) -> Split:
    """Return a split by columns: fit 'sweep=star' and predict 'sweep=isoflop', for example.

    Args:
      table: the runs.
      train, test: 'column=value', a mapping {column: value} whose entries hold together, or a
        mask [R].

    Raises:
      ValueError: no such column or value, or a run on both sides.
    """
    (train_R, train_name), (test_R, test_name) = _rows(table, train), _rows(table, test)
    both = np.flatnonzero(train_R & test_R)
    if both.size:
        raise ValueError(
            f"{table.source}: {table.run_id[both[0]]} is in both --train {train_name} and --test "
            f"{test_name}"
        )
    return Split(f"{train_name} → {test_name}", train_R[None], test_R[None])


def leave_out_splits(table: RunTable) -> tuple[Split, ...]:
    """Return splits that hold out whole levels of a factor.

    On a star random folds would test on levels that they trained on, which is too easy.
    Leave-one-level-out of each factor, the budgets of a column 'budget' likewise, and the largest
    n. More than `MOST_PARTS` levels go in groups of neighbours.
    """
    splits = [
        _without(f"without a level of {name}", _parts(table.column(name))) for name in table.factors
    ]
    if "budget" in table.columns:
        splits.append(_without("without a budget", _parts(table.columns["budget"])))
    if table.n is not None:
        largest_R = table.n == table.n.max()
        splits.append(_without("without the largest n", np.where(largest_R, 0, -1)))
    return tuple(split for split in splits if len(split.train) and split.train.any(axis=1).all())


def _without(name: str, part_R) -> Split:
    """Return a split that holds out each part in turn; runs with part -1 are always fitted."""
    test_SR = part_R == np.arange(part_R.max() + 1)[:, None]
    return Split(name, ~test_SR, test_SR)


def _parts(values_R) -> np.ndarray:
    """Return int [R]: one of at most `MOST_PARTS` groups of neighbouring levels; -1 for ''."""
    levels = [level for level in np.unique(values_R) if level != ""]
    part_R = np.full(len(values_R), -1)
    for part, group in enumerate(np.array_split(levels, max(1, min(len(levels), MOST_PARTS)))):
        part_R[np.isin(values_R, group)] = part
    return part_R


def _rows(table: RunTable, which) -> tuple[np.ndarray, str]:
    """Return bool [R] and a name for it."""
    if isinstance(which, str):
        column, equals, value = which.partition("=")
        if not equals:
            raise ValueError(f"a split is said as column=value, got {which!r}")
        which = {column.strip(): value.strip()}
    if isinstance(which, Mapping):
        rows_R = np.logical_and.reduce([table.where(k, v) for k, v in which.items()])
        name = " & ".join(f"{k}={v}" for k, v in which.items())
    else:
        rows_R, name = np.asarray(which, bool), "chosen runs"
    if rows_R.shape != (len(table),) or not rows_R.any():
        raise ValueError(f"{table.source}: {name} names no run")
    return rows_R, name
