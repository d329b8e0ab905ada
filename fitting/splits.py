"""Split the runs of a table into those a fit sees and those it predicts."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from fitting import expressions
from fitting.formatting import quantity
from fitting.runs import RunTable

MOST_PARTS = 5
"""More levels than this are left out in groups of neighbours, as many groups as this."""
LEAST_LEVELS = 4
"""Levels of a factor that a rollout needs: three to fit, one to predict."""


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

    The runs of a cluster are in one fold; there are no more folds than clusters.

    Raises:
      ValueError: fewer than 2 folds, fewer runs than folds, or fewer than three clusters.
    """
    if not 2 <= folds <= len(table):
        raise ValueError(f"{folds} folds need 2 or more, and no more than the {len(table)} runs")
    unit_R = np.arange(len(table))
    if table.cluster is not None:
        names, unit_R = np.unique(table.cluster, return_inverse=True)
        if len(names) < 3:
            raise ValueError(
                f"{table.source}: {len(names)} clusters are too few for folds, which need three"
            )
        folds = min(folds, len(names))
    rng = np.random.default_rng(seed)
    fold_R = rng.permutation(np.arange(unit_R.max() + 1) % folds)[unit_R]
    return _without(f"{folds}-fold", fold_R, table.cluster)


def column_split(table: RunTable, train, test) -> Split:
    """Return a split by columns: fit 'N<5e8' and predict 'N>=5e8', for example.

    Args:
      table: the runs.
      train, test: a condition of `fitting.expressions.rows`, such as 'sweep=star and N<5e8'; a
        mapping {column: value} whose entries hold together; or a mask [R].

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
    n. More than `MOST_PARTS` levels go in groups of neighbours. What is fitted shares no cluster
    with what is held out; a split that leaves nothing to fit is none.
    """
    parts = {f"without a level of {name}": _parts(table.column(name)) for name in table.factors}
    if "budget" in table.columns:
        parts["without a budget"] = _parts(table.columns["budget"])
    if table.n is not None:
        parts["without the largest n"] = np.where(table.n == table.n.max(), 0, -1)
    splits = [_without(name, part_R, table.cluster) for name, part_R in parts.items()]
    return tuple(split for split in splits if len(split.train) and _can_be_fitted(table, split))


def random_parts(rows_R, parts: int, seed: int = 0, cluster_R=None) -> np.ndarray:
    """Return bool [S, R]: the rows dealt at random into at most `parts` parts of equal size.

    Args:
      rows_R: bool [R], the runs to deal out; the others are in no part.
      parts: how many.
      seed: of the parts.
      cluster_R: labels of runs that stay together.
    """
    used, part_R = np.flatnonzero(rows_R), np.full(len(rows_R), -1)
    unit = used if cluster_R is None else np.asarray(cluster_R)[used]
    names, unit = np.unique(unit, return_inverse=True)
    parts = min(parts, len(names))
    dealt = np.random.default_rng([seed, 2]).permutation(np.arange(len(names)) % parts)
    part_R[used] = dealt[unit]
    return part_R == np.arange(parts)[:, None]


def rollout_splits(table: RunTable, cost=None) -> tuple[Split, ...]:
    """Return splits that fit the small and predict the next larger, as a law is used.

    Over each factor with `LEAST_LEVELS` levels or more, and over cost. The levels go in at most
    `MOST_PARTS` groups of neighbours; each but the first ones is predicted from all below it. The
    first ones hold three levels and a third of the runs at least: fewer identify nothing.

    Args:
      table: the runs.
      cost: [R], of each run; None for no rollout over cost.
    """
    columns = {name: table.column(name) for name in table.factors}
    if cost is not None:
        columns["cost"] = np.asarray(cost, float)
    splits = [_rollout(table, f"rollout over {name}", c) for name, c in columns.items()]
    return tuple(split for split in splits if len(split.train) and _can_be_fitted(table, split))


def _rollout(table: RunTable, name: str, value_R) -> Split:
    part_R, train, test = _parts(value_R), [], []
    enough = len(np.unique(value_R)) >= LEAST_LEVELS
    for part in range(1, part_R.max() + 1 if enough else 0):
        below_R, next_R = part_R < part, part_R == part
        if table.cluster is not None:
            below_R &= ~np.isin(table.cluster, table.cluster[next_R])
        levels = len(np.unique(value_R[below_R]))
        if levels >= LEAST_LEVELS - 1 and 3 * below_R.sum() >= len(table):
            train.append(below_R)
            test.append(next_R)
    empty = np.zeros((0, len(table)), bool)
    return Split(name, np.array(train) if train else empty, np.array(test) if test else empty)


def _can_be_fitted(table: RunTable, split: Split) -> bool:
    """Return whether each part leaves runs, of two clusters or more where there are clusters."""
    if table.cluster is None:
        return bool(split.train.any(axis=1).all())
    return all(len(np.unique(table.cluster[rows_R])) > 1 for rows_R in split.train)


def _without(name: str, part_R, cluster_R=None) -> Split:
    """Return a split that holds out each part in turn; runs with part -1 are always fitted, unless
    they are of a cluster of which a run is held out.
    """
    test_SR = part_R == np.arange(part_R.max() + 1)[:, None]
    if cluster_R is None:
        return Split(name, ~test_SR, test_SR)
    shares = [np.isin(cluster_R, cluster_R[test_R]) for test_R in test_SR]
    return Split(name, ~np.reshape(shares, test_SR.shape), test_SR)


def _parts(values_R) -> np.ndarray:
    """Return int [R]: one of at most `MOST_PARTS` groups of neighbouring levels; -1 for ''."""
    levels = [level for level in np.unique(values_R) if level != ""]
    if values_R.dtype.kind not in "fiu":  # 500B before 1T, which text would not have
        sizes = [quantity(level) for level in levels]
        if not np.isnan(sizes).any():
            levels = [levels[i] for i in np.argsort(sizes, kind="stable")]
    part_R = np.full(len(values_R), -1)
    for part, group in enumerate(np.array_split(levels, max(1, min(len(levels), MOST_PARTS)))):
        part_R[np.isin(values_R, group)] = part
    return part_R


def _rows(table: RunTable, which) -> tuple[np.ndarray, str]:
    """Return bool [R] and a name for it."""
    if isinstance(which, str):
        rows_R, name = expressions.rows(which, table.named, table.source), which.strip()
    elif isinstance(which, Mapping):
        rows_R = np.logical_and.reduce([table.where(k, v) for k, v in which.items()])
        name = " & ".join(f"{k}={v}" for k, v in which.items())
    else:
        rows_R, name = np.asarray(which, bool), "chosen runs"
    if rows_R.shape != (len(table),) or not rows_R.any():
        raise ValueError(f"{table.source}: {name} names no run")
    return rows_R, name
