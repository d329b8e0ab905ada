"""Validate laws by their predictions of runs that a fit has not seen.

`validate` fits one config to all runs and to the training runs of every `Split` as lanes of one
batch; `compare` does so for several configs (Table 2).

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
from fitting.intervals import prediction_interval
from fitting.law import BaggedFit
from fitting.runs import RunTable
from fitting.splits import Split, column_split, leave_out_splits, random_folds, rollout_splits

LEVEL = 0.9  # of the intervals whose coverage is reported


class Score(NamedTuple):
    """Accuracy of predictions; NaN where there is nothing to score.

    Attributes:
      mse: mean squared difference, on the fitted scale squared.
      percent: E%, mean |f_hat - f| / f in percent; NaN where some error is 0.
      r2: 1 - squared differences / squared deviations from the mean.
    """

    mse: float
    percent: float
    r2: float


def score(predicted, error) -> Score:
    """Return MSE, E% and R^2 of predicted [R] against error [R]; NaNs are not scored."""
    known = ~np.isnan(predicted)
    if not known.any():
        return Score(np.nan, np.nan, np.nan)
    predicted, error = predicted[known], error[known]
    squares = (predicted - error) ** 2
    spread = ((error - error.mean()) ** 2).sum()
    differ = np.ptp(error) > 1e-9 * np.abs(error).max()  # equal but for rounding: no R^2
    r2 = 1 - squares.sum() / spread if differ else np.nan
    percent = np.nan
    if error.min() > 0:
        percent = 100 * np.mean(np.abs(predicted - error) / error)
    return Score(float(squares.mean()), float(percent), float(r2))


# --- one config ---


@dataclass(frozen=True, eq=False)
class Validation:
    """Predictions of held-out runs.

    Attributes:
      name: of the split.
      predicted: error [R] of each run by the fit without it; NaN for runs never left out.
      error: [R], measured.
      train, test: bool [S, R], the split.
      fits: [S] fits.
      low, high: [R], ends of the interval that should hold `LEVEL` of new runs; NaN where there is
        none.
    """

    name: str
    predicted: np.ndarray
    error: np.ndarray
    train: np.ndarray
    test: np.ndarray
    fits: tuple[BaggedFit, ...]
    low: np.ndarray
    high: np.ndarray

    @property
    def score(self) -> Score:
        """Return the score of all held-out runs, pooled."""
        return score(self.predicted, self.error)

    @property
    def coverage(self) -> float:
        """Return the share of held-out runs inside their intervals; NaN without intervals."""
        known = ~np.isnan(self.low)
        inside = (self.low <= self.error) & (self.error <= self.high)
        return float(inside[known].mean()) if known.any() else float("nan")

    def rows(self, table: RunTable) -> list[dict]:
        """Return one mapping per held-out run: measured, predicted, and its 90% interval."""
        inside = (self.low <= self.error) & (self.error <= self.high)
        named = {
            "run_id": table.run_id,
            "error": self.error,
            "predicted": self.predicted,
            "low_90": self.low,
            "high_90": self.high,
            "inside": inside,
        }
        held = np.flatnonzero(self.test.any(axis=0))
        return [{name: values[r].item() for name, values in named.items()} for r in held]

    @property
    def half_width(self) -> float:
        """Return the median half-width of these intervals, on the fitted scale."""
        known = ~np.isnan(self.low)
        return float(np.median((self.high - self.low)[known]) / 2) if known.any() else float("nan")


def validate(
    table: RunTable,
    config: FitConfig,
    splits: Sequence[Split],
    *,
    whole: bool = True,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[BaggedFit | None, tuple[Validation, ...]]:
    """Fit all runs (unless `whole` is False) and every part of every split, in one batch.

    Raises:
      ValueError: as `fitting.fits.fit`.
    """
    everything = np.ones(len(table), bool)
    masks = [everything] * whole + [rows_R for split in splits for rows_R in split.train]
    lanes = {rows_R.tobytes(): (table, rows_R) for rows_R in masks}  # the same runs, one fit
    fits = fit_many(list(lanes.values()), config, on_progress=on_progress)
    by_rows = dict(zip(lanes, fits, strict=True))
    validations = [
        predict_split(table, split, tuple(by_rows[rows_R.tobytes()] for rows_R in split.train))
        for split in splits
    ]
    return by_rows.get(everything.tobytes()), tuple(validations)


def predict_split(
    table: RunTable, split: Split, fits: Sequence[BaggedFit], predict=None
) -> Validation:
    """Return what fits [S] predict of the runs that they have not seen.

    Args:
      table: the runs.
      split: which runs each fit saw.
      fits: one for each part of the split.
      predict: (fit, x, n) -> error; by default `fit.predict`, with the interval of a new run.
    """
    predicted_R, low_R, high_R = np.full((3, len(table)), np.nan)
    for fit, rows_R in zip(fits, split.test, strict=True):
        x, n = table.x[rows_R], None if table.n is None else table.n[rows_R]
        if predict is not None:
            predicted_R[rows_R] = predict(fit, x, n)
            continue
        noise = None if table.noise is None else table.noise[rows_R]
        predicted_R[rows_R] = fit.predict(x, n)
        low_R[rows_R], high_R[rows_R] = prediction_interval(fit, x, n, LEVEL, noise)
    return Validation(
        split.name, predicted_R, table.error, split.train, split.test, fits, low_R, high_R
    )


def cross_validate(
    table: RunTable, config: FitConfig | None = None, folds: int = 5, seed: int = 0
) -> Validation:
    """Predict each run by the fit to the other folds.

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
    """Fit some runs and predict others, such as train='sweep=star', test='sweep=isoflop'.

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
        """Return the validation of that name; None if there is none."""
        return next((v for v in self.validations if v.name == split), None)

    @property
    def cross_validation(self) -> Score:
        """Return the score on the random folds."""
        return self.validations[0].score

    @property
    def num_parameters(self) -> int:
        """Return the number of parameters, P; of several forms, that of the weightiest."""
        return self.law.lead.num_free


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
        """Return the name of the entry of least cross-validation MSE."""
        return min(self.entries, key=lambda entry: entry.cross_validation.mse).name

    @property
    def splits(self) -> tuple[str, ...]:
        """Return the names of the splits."""
        return tuple(v.name for v in self.entries[0].validations)

    def entry(self, name: str) -> Entry:
        """Return the entry of that name."""
        return next(entry for entry in self.entries if entry.name == name)

    def score(self, name: str, split: str | None) -> Score:
        """Return the score of an entry in a split; NaNs if there is no such split."""
        found = self.entry(name).validation(split)
        return found.score if found else Score(np.nan, np.nan, np.nan)

    def difference(self, name: str, split: str) -> tuple[float, float]:
        """Return (MSE above the best entry's in a split, its standard error), paired over runs.

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
        """Return one mapping per entry and split, and one for the fit to all runs ('all runs')."""
        found = []
        for entry in self.entries:
            law = entry.law
            whole = score(law.predict(self.table.x, self.table.n), self.table.error)
            head = {"name": entry.name, "parameters": entry.num_parameters, "aicc": law.lead.aicc}
            found.append(head | score_cells("all runs", len(self.table), whole))
            for v in entry.validations:
                above, spread = self.difference(entry.name, v.name)
                cells = score_cells(v.name, int(v.test.sum()), v.score)
                cells |= {"mse_above_best": above, "standard_error": spread}
                cells |= {"coverage_90": v.coverage, "half_width_90": v.half_width}
                found.append(head | cells)
        return found


def score_cells(split: str, runs: int, scored: Score) -> dict:
    """Return the columns of one split in `Comparison.rows`, without a comparison to the best."""
    unknown = ("mse_above_best", "standard_error", "coverage_90", "half_width_90")
    empty = dict.fromkeys(unknown, float("nan"))
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
    cost=None,
    on_progress: Callable[[str, int, int], None] = lambda label, done, total: None,
) -> Comparison:
    """Compare configs on random folds, on a chosen split and on all runs (Table 2).

    Args:
      table: runs of one metric.
      configs: names of forms, `FitConfig`s, or a mapping from names to `FitConfig`s.
      folds: of the cross-validation.
      seed: of the folds.
      train, test: the chosen split, as in `column_split`; none if both are None.
      leave_out: whether `leave_out_splits` and `rollout_splits` are scored too.
      cost: [R], of each run, for a rollout over cost; None for none.
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
    splits += (*leave_out_splits(table), *rollout_splits(table, cost)) if leave_out else ()
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
    named = {config.label: config for config in configs}
    if not configs or len(named) != len(configs):
        raise ValueError("a comparison needs one or more configs, each of a different form")
    return named
