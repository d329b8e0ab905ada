"""Intervals for the error of a new run, which misses a law by noise too.

They take the members of a bag and the scatter of the runs (`fitting.noise`) together.
"""

from statistics import NormalDist

import numpy as np

from fitting.law import BaggedFit
from fitting.optimise.lanes import FAILED

# Midpoints of 99 equal shares of a normal; "hazen" quantiles read them back without bias.
_NORMAL = np.array([NormalDist().inv_cdf((i + 0.5) / 99) for i in range(99)])
_BLOCK = 256  # configurations whose members and noise are held at a time


def run_noise(law: BaggedFit) -> float:
    """Return the standard deviation of a run around the law, in the space it was fitted in.

    Log error, so roughly relative, points in linear space, or the units of a link. Where the noise
    of each run is known, that of a run of typical noise; with clusters, of a run of a new cluster.
    NaN where parameters exhaust the runs.
    """
    typical = 0.0
    if law.runs.noise is not None:
        typical = float(np.median(law.in_fitted_space(law.runs.noise)))
    return float(law.scatter.spread(typical))


def run_spread(law: BaggedFit) -> np.ndarray:
    """Return the standard deviation [R] of each fitted run around the law, in the fitted space."""
    known = law.runs.noise
    noise = 0.0 if known is None else law.in_fitted_space(known)
    return law.scatter.spread(noise) * np.ones(law.num_runs)


def law_interval(law, x, num_examples=None, level: float = 0.9):
    """Return the interval of the law's own error: its members, and what its form misses.

    Members know the noise and not the form. What the form misses on the runs (`Verdict.misfit`)
    widens each side as a further normal error would; a law that was not tested has none.

    Args:
      law, x, num_examples, level: as of `prediction_interval`.

    Returns:
      (low [...], high [...]).
    """
    low, high = law.interval(x, num_examples, level)
    if law.verdict is None or not law.verdict.misfit:
        return low, high
    middle = law.predict(x, num_examples)
    more = NormalDist().inv_cdf((1 + level) / 2) * law.verdict.misfit
    below, above = (np.maximum(side, 0.0) for side in (middle - low, high - middle))
    return middle - np.hypot(below, more), middle + np.hypot(above, more)


def prediction_interval(law: BaggedFit, x, num_examples=None, level: float = 0.9, noise=None):
    """Return the interval of the error of a new run: members and run noise together.

    Args:
      law: a `BaggedFit`.
      x: [..., K]; num_examples: n, broadcast against [...], or None for a law without n.
      level: share of new runs inside.
      noise: standard deviation of the new run's score, on the table's scale, broadcast against
        [...]; by default the median of the fitted runs, where the law knows theirs.

    Returns:
      (low [...], high [...]); NaN where the run noise is undefined.
    """
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, got {level}")
    if noise is None:
        noise = 0.0 if law.runs.noise is None else np.median(law.runs.noise)
    shape = np.shape(law.outside(x, num_examples))[:-1]
    noise_X = np.broadcast_to(np.asarray(noise, float), shape).reshape(-1, 1)
    parts = [_members_and_spread(one, x, num_examples, noise_X) for one in law.pooled]
    bounds_X2 = np.empty((len(noise_X), 2))
    for start in range(0, len(noise_X), _BLOCK):
        runs = []
        for space, members_XB, spread_XB in parts:
            block = members_XB[start : start + _BLOCK, :, None]
            draws = spread_XB[start : start + _BLOCK, :, None] * _NORMAL
            runs.append(space.shifted(block, draws).reshape(len(block), -1))
        runs_XD = runs[0] if len(runs) == 1 else np.concatenate(runs, axis=1)
        ends = np.quantile(runs_XD, [(1 - level) / 2, (1 + level) / 2], axis=1, method="hazen")
        bounds_X2[start : start + _BLOCK] = ends.T
    low, high = bounds_X2.T.reshape(2, *shape)
    return low, high


def _members_and_spread(law: BaggedFit, x, num_examples, noise_X) -> tuple:
    """Return the space of one form, its members' errors [X, B'] and the spread of a run there."""
    members = law.predict_members(x, num_examples)[law.status != FAILED]
    members_XB = members.reshape(len(members), -1).T
    if law.space.linked:
        noise_XB = noise_X * law.space.slope(members_XB)
    else:
        noise_XB = noise_X / members_XB if law.space.kind == "log" else noise_X + 0 * members_XB
    return law.space, members_XB, law.scatter.spread(noise_XB)
