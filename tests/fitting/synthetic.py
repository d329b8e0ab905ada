"""Synthetic tables for the fitting tests: known laws, with and without noise. Not measurements."""

import numpy as np

from fitting import forms
from fitting.runs import RunTable
from fitting.sweeps import PAPER_ISOFLOP, PAPER_STAR, star_sweep

PAPER_POINTS = star_sweep(*PAPER_STAR) + PAPER_ISOFLOP

TRUTH = {  # theta in normalised units: coefficients in error points at the typical run
    "alpha": 15.0,
    "alpha_N": 9.0,
    "alpha_T": 5.0,
    "alpha_V": 3.0,
    "beta_N": 2.0,
    "beta_T": 1.5,
    "beta_V": 2.5,
    "xi": 4.0,
    "epsilon": 20.0,
    "a_N": 0.25,
    "a_T": 0.4,
    "a_V": 0.2,
    "b_N": 0.5,
    "b_T": 0.3,
    "b_V": 0.45,
    "d": 0.6,
}
PAPER_UNITS = np.array([4e9, 16.0, 60.0, 8e5])


def true_theta(form: forms.Form) -> np.ndarray:
    """Return theta [P] of the known law of a paper's form, three factors."""
    value = np.array([TRUTH[name] for name in form.parameters(3)])
    return np.where(form.is_exponent(3), value, np.log(value))


def true_error(form_name: str, x, n, units=PAPER_UNITS) -> np.ndarray:
    """Return errors [R] of the known law at x [R, 3], n [R]."""
    form = forms.get_form(form_name)
    log_z = np.log(np.concatenate([x, np.asarray(n)[:, None]], axis=1) / units)
    return np.exp(form.log_error(true_theta(form), log_z[:, :3], log_z[:, 3]))


def synthetic_table(form_name, points, *, noise=0.0, seed=0, units=PAPER_UNITS, metric="acc"):
    """Return a `RunTable` whose scores follow a known law; noise is relative, on the error."""
    x = np.array([point.x for point in points], float)
    n = np.array([point.num_examples for point in points], float)
    ripple = noise * np.random.default_rng(seed).standard_normal(len(points))
    error = true_error(form_name, x, n, units) * np.exp(ripple)
    return RunTable.from_rows(
        {
            "run_id": point.run_id,
            "sweep": point.sweep,
            "lm_params": point.lm_params,
            "num_frames": point.num_frames,
            "tokens_per_frame": point.tokens_per_frame,
            "num_examples": point.num_examples,
            "metric": metric,
            "score": 100.0 - float(value),
        }
        for point, value in zip(points, error, strict=True)
    )


def table_of(error, x, n=None, *, scale=100.0, weights=None, factors=None, metric="error"):
    """Return a `RunTable` from arrays: error [R], x [R, K], n [R] or None."""
    x, error = np.asarray(x, float), np.asarray(error, float)
    count, num_factors = x.shape
    return RunTable(
        factors=tuple(f"x{k + 1}" for k in range(num_factors)) if factors is None else factors,
        x=x,
        examples=None if n is None else "n",
        n=None if n is None else np.asarray(n, float),
        error=error,
        scale=scale,
        weights=np.ones(count) if weights is None else np.asarray(weights, float),
        run_id=np.array([f"row {r + 1}" for r in range(count)]),
        metric=np.full(count, metric),
        columns={},
        source="synthetic",
    )
