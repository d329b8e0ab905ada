"""Which form to trust: cross-validation, extrapolation from one sweep to the other, AICc.

Metrics on held-out runs, as in Table 2: MSE on the 0-100 scale, E% = mean |f_hat - f| / f in
percent, and R^2. Folds leave runs out by weight, so each form compiles once.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from fitting.config import FitConfig
from fitting.fit import BaggedFit, fit
from fitting.runs import RunTable


class Score(NamedTuple):
    """How well predictions [R] meet errors [R]; NaN where there is nothing to score."""

    mse: float
    percent: float
    r2: float


class FormRow(NamedTuple):
    """One form in a comparison.

    Attributes:
      form: its name.
      num_parameters: P.
      cross_validation: `Score` of 5 folds over all runs, pooled.
      extrapolation: `Score` of train sweep -> test sweep.
      aicc: of the fit to all runs; lower is better.
    """

    form: str
    num_parameters: int
    cross_validation: Score
    extrapolation: Score
    aicc: float


@dataclass(frozen=True, eq=False)
class Comparison:
    """What `compare_forms` measured.

    Attributes:
      rows: one `FormRow` a form, in the order given.
      fits: form -> `BaggedFit` of all runs.
      held_out: form -> error [R] of each run as predicted by the fold without it.
      extrapolated: form -> error [R] of the test sweep's runs; NaN at the others.
      train_sweep, test_sweep: names of the split.
    """

    rows: tuple[FormRow, ...]
    fits: dict[str, BaggedFit]
    held_out: dict[str, np.ndarray]
    extrapolated: dict[str, np.ndarray]
    train_sweep: str
    test_sweep: str

    @property
    def best(self) -> str:
        """The form of least cross-validation MSE."""
        return min(self.rows, key=lambda row: row.cross_validation.mse).form

    def row(self, form: str) -> FormRow:
        """The row of a form."""
        return next(row for row in self.rows if row.form == form)


def score(predicted, error) -> Score:
    """MSE, E% and R^2 of predicted [R] against error [R]; NaNs in predicted are not scored."""
    known = ~np.isnan(predicted)
    if not known.any():
        return Score(np.nan, np.nan, np.nan)
    predicted, error = predicted[known], error[known]
    squares = (predicted - error) ** 2
    spread = ((error - error.mean()) ** 2).sum()
    r2 = 1 - squares.sum() / spread if spread > 0 else np.nan
    percent = 100 * np.mean(np.abs(predicted - error) / error)
    return Score(float(squares.mean()), float(percent), float(r2))


def compare_forms(
    table: RunTable,
    configs,
    *,
    folds: int = 5,
    seed: int = 0,
    train_sweep: str = "star",
    test_sweep: str = "isoflop",
    on_progress: Callable[[str], None] = lambda text: None,
) -> Comparison:
    """Fits every form to all runs, to each fold's complement, and to one sweep.

    Args:
      table: runs of one metric.
      configs: a `FitConfig` for each form, or names of forms (default options).
      folds: of the cross-validation, seeded, over all runs.
      seed: of the folds.
      train_sweep, test_sweep: the extrapolation; NaN if the table lacks either.
      on_progress: called with a line of text before each form.

    Raises:
      ValueError: fewer runs than folds, the same form twice, or as `fitting.fit.fit`.
    """
    configs = [FitConfig(form=c) if isinstance(c, str) else c for c in configs]
    if len({config.form for config in configs}) != len(configs) or not configs:
        raise ValueError("compare_forms needs one or more configs, each of a different form")
    if not 2 <= folds <= len(table):
        raise ValueError(f"{folds} folds need 2 or more, and no more than the {len(table)} runs")
    fold_R = np.random.default_rng(seed).permutation(np.arange(len(table)) % folds)
    train_R, test_R = table.sweep == train_sweep, table.sweep == test_sweep
    rows, fits, held_out, extrapolated = [], {}, {}, {}
    for index, config in enumerate(configs, start=1):
        on_progress(f"form {index}/{len(configs)}: {config.form}")
        name = config.form
        fits[name] = fit(table, config)
        held_out[name] = _predict_folds(table, config, fold_R)
        extrapolated[name] = np.full(len(table), np.nan)
        if train_R.any() and test_R.any():
            law = fit(table, config, rows=train_R)
            extrapolated[name][test_R] = law.predict(table.x[test_R], table.n[test_R])
        rows.append(
            FormRow(
                name,
                fits[name].theta.shape[1],
                score(held_out[name], table.error),
                score(extrapolated[name], table.error),
                fits[name].aicc,
            )
        )
    return Comparison(tuple(rows), fits, held_out, extrapolated, train_sweep, test_sweep)


def _predict_folds(table: RunTable, config: FitConfig, fold_R) -> np.ndarray:
    """Error [R] of each run, predicted by the fit to the other folds."""
    predicted_R = np.empty(len(table))
    for fold in np.unique(fold_R):
        out_R = fold_R == fold
        law = fit(table, config, rows=~out_R)
        predicted_R[out_R] = law.predict(table.x[out_R], table.n[out_R])
    return predicted_R
