"""Which law to trust: predictions of runs that a fit has not seen, and the paper's ablations.

A `Split` says which runs each of several fits sees and which it predicts. `validate` fits one
config to everything and to every part of every split as lanes of one batch; `compare` does so for
several configs (Table 2), `ablate` for the variations of Tables 8 and 9.

All scores are on the fitted scale, 0 to `table.scale`, and every run counts once, whatever its
weight in the fit.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from fitting.config import FitConfig
from fitting.fits import fit_many
from fitting.law import BaggedFit
from fitting.runs import RunTable

MOST_PARTS = 5
"""Levels beyond so many are left out with their neighbours, in as many groups."""


class Score(NamedTuple):
    """How well predictions meet errors; NaN where there is nothing to score.

    Attributes:
      mse: mean squared difference, on the fitted scale squared.
      percent: E%, mean |f_hat - f| / f in percent; NaN where some error is 0.
      r2: 1 - squared differences / squared deviations from the mean.
    """

    mse: float
    percent: float
    r2: float


def score(predicted, error) -> Score:
    """MSE, E% and R^2 of predicted [R] against error [R]; NaNs in predicted are not scored."""
    known = ~np.isnan(predicted)
    if not known.any():
        return Score(np.nan, np.nan, np.nan)
    predicted, error = predicted[known], error[known]
    squares = (predicted - error) ** 2
    spread = ((error - error.mean()) ** 2).sum()
    r2 = 1 - squares.sum() / spread if spread > 0 else np.nan
    percent = np.nan
    if error.min() > 0:
        percent = 100 * np.mean(np.abs(predicted - error) / error)
    return Score(float(squares.mean()), float(percent), float(r2))


# --- splits ---


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
    """Each run in one of so many random folds, left out together.

    Raises:
      ValueError: fewer than 2 folds, or fewer runs than folds.
    """
    if not 2 <= folds <= len(table):
        raise ValueError(f"{folds} folds need 2 or more, and no more than the {len(table)} runs")
    fold_R = np.random.default_rng(seed).permutation(np.arange(len(table)) % folds)
    return _without(f"{folds}-fold", fold_R)


def column_split(table: RunTable, train, test) -> Split:
    """Fit to some rows, predict others, such as 'sweep=star' and 'sweep=isoflop'.

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
    """Splits that take away what neighbours would give away (random folds leak on a star).

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
    """Leaves out each part in turn; runs with part -1 are always fitted."""
    test_SR = part_R == np.arange(part_R.max() + 1)[:, None]
    return Split(name, ~test_SR, test_SR)


def _parts(values_R) -> np.ndarray:
    """Int [R]: which of at most `MOST_PARTS` groups of neighbouring levels; -1 for no text."""
    levels = [level for level in np.unique(values_R) if level != ""]
    part_R = np.full(len(values_R), -1)
    for part, group in enumerate(np.array_split(levels, max(1, min(len(levels), MOST_PARTS)))):
        part_R[np.isin(values_R, group)] = part
    return part_R


def _rows(table: RunTable, which) -> tuple[np.ndarray, str]:
    """Bool [R] and a name for it."""
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


# --- one config ---


@dataclass(frozen=True, eq=False)
class Validation:
    """What fits said about runs they had not seen.

    Attributes:
      name: of the split.
      predicted: error [R] of each run by the fit without it; NaN for runs never left out.
      error: [R], measured.
      train, test: bool [S, R], the split.
      fits: [S] fits.
    """

    name: str
    predicted: np.ndarray
    error: np.ndarray
    train: np.ndarray
    test: np.ndarray
    fits: tuple[BaggedFit, ...]

    @property
    def score(self) -> Score:
        """Of all runs left out, pooled."""
        return score(self.predicted, self.error)


def validate(
    table: RunTable,
    config: FitConfig,
    splits: Sequence[Split],
    *,
    whole: bool = True,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[BaggedFit | None, tuple[Validation, ...]]:
    """Fits to all runs (or not) and to every part of every split, as lanes of one batch.

    Raises:
      ValueError: as `fitting.fits.fit`.
    """
    everything = np.ones(len(table), bool)
    masks = [everything] * whole + [rows_R for split in splits for rows_R in split.train]
    lanes = {rows_R.tobytes(): (table, rows_R) for rows_R in masks}  # the same runs, one fit
    fits = fit_many(list(lanes.values()), config, on_progress=on_progress)
    by_rows = dict(zip(lanes, fits, strict=True))
    validations = [
        _validation(table, split, tuple(by_rows[rows_R.tobytes()] for rows_R in split.train))
        for split in splits
    ]
    return by_rows.get(everything.tobytes()), tuple(validations)


def _validation(table: RunTable, split: Split, fits, predict=BaggedFit.predict) -> Validation:
    predicted_R = np.full(len(table), np.nan)
    for fit, rows_R in zip(fits, split.test, strict=True):
        n = None if table.n is None else table.n[rows_R]
        predicted_R[rows_R] = predict(fit, table.x[rows_R], n)
    return Validation(split.name, predicted_R, table.error, split.train, split.test, fits)


def cross_validate(
    table: RunTable, config: FitConfig | None = None, folds: int = 5, seed: int = 0
) -> Validation:
    """Each run predicted by the fit to the other folds.

    Args:
      table: runs of one metric.
      config: the defaults if None.
      folds: how many.
      seed: of the folds.

    Raises:
      ValueError: as `random_folds` and `fitting.fits.fit`.
    """
    splits = [random_folds(table, folds, seed)]
    return validate(table, config or FitConfig(), splits, whole=False)[1][0]


def extrapolate(table: RunTable, config: FitConfig | None = None, *, train, test) -> Validation:
    """Fit to some runs, predict others, such as train='sweep=star', test='sweep=isoflop'.

    Args:
      table: runs of one metric.
      config: the defaults if None.
      train, test: as in `column_split`.

    Raises:
      ValueError: as `column_split` and `fitting.fits.fit`.
    """
    splits = [column_split(table, train, test)]
    return validate(table, config or FitConfig(), splits, whole=False)[1][0]


# --- several configs ---


class Entry(NamedTuple):
    """One line of a comparison.

    Attributes:
      name: of the form or variation.
      law: the fit to all runs.
      validations: one a split; the first is the random cross-validation.
    """

    name: str
    law: BaggedFit
    validations: tuple[Validation, ...]

    def validation(self, split: str | None) -> Validation | None:
        """The one of that name; None if there is none."""
        return next((v for v in self.validations if v.name == split), None)

    @property
    def cross_validation(self) -> Score:
        """Of the random folds."""
        return self.validations[0].score

    @property
    def num_parameters(self) -> int:
        """P."""
        return self.law.theta.shape[1]


@dataclass(frozen=True, eq=False)
class Comparison:
    """Several laws on the same splits of the same runs.

    Attributes:
      entries: in the order given.
      table: the runs.
      extrapolation: name of the chosen train → test split, None without one.
    """

    entries: tuple[Entry, ...]
    table: RunTable
    extrapolation: str | None

    @property
    def best(self) -> str:
        """The entry of least cross-validation MSE."""
        return min(self.entries, key=lambda entry: entry.cross_validation.mse).name

    @property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits."""
        return tuple(v.name for v in self.entries[0].validations)

    def entry(self, name: str) -> Entry:
        """The entry of that name."""
        return next(entry for entry in self.entries if entry.name == name)

    def score(self, name: str, split: str | None) -> Score:
        """Of the entry in that split; NaNs if there is no such split."""
        found = self.entry(name).validation(split)
        return found.score if found else Score(np.nan, np.nan, np.nan)

    def difference(self, name: str, split: str) -> tuple[float, float]:
        """MSE above the best entry's in a split, ± its standard error, paired over runs.

        Zero, and NaN for its error, for the best itself.
        """
        found = {entry.name: entry.validation(split) for entry in self.entries}
        squares = {
            key: (v.predicted - v.error)[v.test.any(axis=0)] ** 2 for key, v in found.items()
        }
        best = min(squares, key=lambda key: squares[key].mean())
        above_R = squares[name] - squares[best]
        if name == best or len(above_R) < 2:
            return float(above_R.mean()), float("nan")
        return float(above_R.mean()), float(above_R.std(ddof=1) / np.sqrt(len(above_R)))

    def rows(self) -> list[dict]:
        """One mapping an entry and split, and one for the fit to all runs ('all runs')."""
        found = []
        for entry in self.entries:
            law = entry.law
            whole = score(law.predict(self.table.x, self.table.n), self.table.error)
            head = {"name": entry.name, "parameters": entry.num_parameters, "aicc": law.aicc}
            found.append(head | _cells("all runs", len(self.table), whole))
            for v in entry.validations:
                above, spread = self.difference(entry.name, v.name)
                cells = _cells(v.name, int(v.test.sum()), v.score)
                found.append(head | cells | {"mse_above_best": above, "standard_error": spread})
        return found


def _cells(split: str, runs: int, scored: Score) -> dict:
    empty = {"mse_above_best": float("nan"), "standard_error": float("nan")}
    return {"split": split, "runs_predicted": runs, **scored._asdict(), **empty}


def compare(
    table: RunTable,
    configs,
    *,
    folds: int = 5,
    seed: int = 0,
    train=None,
    test=None,
    leave_out: bool = True,
    on_progress: Callable[[str, int, int], None] = lambda label, done, total: None,
) -> Comparison:
    """Table 2's procedure: every config on random folds, on a chosen split, and on all runs.

    Args:
      table: runs of one metric.
      configs: names of forms, `FitConfig`s, or a mapping from names to `FitConfig`s.
      folds: of the cross-validation.
      seed: of the folds.
      train, test: the chosen split, as in `column_split`; none if both are None.
      leave_out: whether `leave_out_splits` are scored too.
      on_progress: called with ('2/4: add', done, total): 0 of 1 before each config, then as its
        `fit_many` goes on.

    Raises:
      ValueError: no config, a name twice, train without test, or as `random_folds`,
        `column_split` and `fitting.fits.fit`.
    """
    named = _named(configs)
    chosen = None
    if train is not None or test is not None:
        if train is None or test is None:
            raise ValueError("a split needs both, the runs to train on and the runs to test on")
        chosen = column_split(table, train, test)
    splits = [random_folds(table, folds, seed), *([chosen] if chosen else [])]
    splits += leave_out_splits(table) if leave_out else ()
    entries = []
    for index, (name, config) in enumerate(named.items(), start=1):
        say = functools.partial(on_progress, f"{index}/{len(named)}: {name}")
        say(0, 1)
        law, validations = validate(table, config, splits, on_progress=say)
        entries.append(Entry(name, law, validations))
    return Comparison(tuple(entries), table, chosen.name if chosen else None)


def _named(configs) -> dict[str, FitConfig]:
    if isinstance(configs, Mapping):
        return dict(configs)
    configs = [FitConfig(form=c) if isinstance(c, str) else c for c in configs]
    named = {config.form: config for config in configs}
    if not configs or len(named) != len(configs):
        raise ValueError("a comparison needs one or more configs, each of a different form")
    return named


# --- ablations ---


def variations(config: FitConfig) -> dict[str, FitConfig]:
    """The config and the paper's departures from it (Table 8), by name."""
    few = max(1, config.starts // 5)  # the paper's 100 of 500
    return {
        "as asked": config,
        "huber": config.replace(loss="huber"),
        "zero init": config.replace(init="zero"),
        f"{few} starts": config.replace(starts=few),
        "exponents bounded": config.replace(bound_exponents=True),
        "not in log space": config.replace(space="linear"),
    }


class Bagging(NamedTuple):
    """One line of Table 9: fewer members of the same fits, and how they become one prediction.

    Attributes:
      resamples: members used.
      aggregate: 'median' or 'mean'.
      train: `Score` of the fit to all runs, on these runs.
      cross_validation, extrapolation: of runs not seen; NaN without that split.
    """

    resamples: int
    aggregate: str
    train: Score
    cross_validation: Score
    extrapolation: Score


@dataclass(frozen=True, eq=False)
class Ablation:
    """Tables 8 and 9.

    Attributes:
      variations: Table 8, the `Comparison` of `variations`.
      bagging: Table 9, from the members of the first variation.
    """

    variations: Comparison
    bagging: tuple[Bagging, ...]

    def rows(self) -> list[dict]:
        """`variations.rows()`, then a mapping for each line of `bagging` and split."""
        table, found = self.variations.table, self.variations.rows()
        first = self.variations.entries[0]
        head = {"parameters": first.num_parameters, "aicc": float("nan")}
        tests = {v.name: int(v.test.sum()) for v in first.validations}
        for line in self.bagging:
            named = {"name": f"{line.resamples} resamples, {line.aggregate}"} | head
            found.append(named | _cells("all runs", len(table), line.train))
            for split, scored in (
                (self.variations.splits[0], line.cross_validation),
                (self.variations.extrapolation, line.extrapolation),
            ):
                if split is not None:
                    found.append(named | _cells(split, tests[split], scored))
        return found


def ablate(table: RunTable, config: FitConfig | None = None, **options) -> Ablation:
    """The ablations of Tables 8 and 9 around a config.

    Table 8 changes one option at a time; Table 9 uses all, half or one of the resamples with the
    median, and all with the mean. Free exponents (`exponent_cap=None`) show how the mean breaks.

    Args:
      table: runs of one metric.
      config: the defaults if None.
      options: as in `compare`.

    Raises:
      ValueError: as `compare`.
    """
    compared = compare(table, variations(config or FitConfig()), **options)
    return Ablation(compared, bagging(compared))


def bagging(compared: Comparison) -> tuple[Bagging, ...]:
    """Table 9, from the members of the first entry: all with the mean, then one, half, all."""
    first, size, table = compared.entries[0], len(compared.entries[0].law.theta), compared.table
    everything = Split("all runs", *np.ones((2, 1, len(table)), bool))
    split = first.validation(compared.extrapolation)

    def scored(members: int, aggregate: str) -> Bagging:
        def predict(fit, x, n):
            predicted_BR = fit.predict_members(x, n)
            good_B = ~np.isnan(predicted_BR).any(axis=1)  # failed members are NaN
            return getattr(np, aggregate)(predicted_BR[good_B][:members], axis=0)

        def again(v: Split | Validation, fits) -> Score:
            return _validation(table, Split(v.name, v.train, v.test), fits, predict).score

        return Bagging(
            members,
            aggregate,
            again(everything, (first.law,)),
            again(first.validations[0], first.validations[0].fits),
            again(split, split.fits) if split else compared.score(first.name, None),
        )

    medians = [scored(members, "median") for members in sorted({1, max(1, size // 2), size})]
    return scored(size, "mean"), *medians
