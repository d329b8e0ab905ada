"""Resample runs as weights [B, R], so that array shapes never change, or as wild targets."""

import numpy as np


def resample_weights(
    num_runs: int, resamples: int, seed: int, *, rows=None, strata=None, kind: str = "count"
):
    """Return the weight of each run in each resample.

    An iid resample of a small star can lose a whole language-model size (8.5% of the resamples of
    the paper's 39 star runs); strata keep every group at its own size.

    Args:
      num_runs: R.
      resamples: B.
      seed: of numpy's generator.
      rows: bool [R], the runs to draw from; the others get weight 0. All by default.
      strata: [R] labels; runs are drawn within each label. One stratum by default.
      kind: 'count', how often a run is drawn (multinomial); or 'dirichlet', the Bayesian
        bootstrap's flat Dirichlet weights, of which none is 0.

    Returns:
      [B, R] float64; each row sums to the number of runs drawn from.

    Raises:
      ValueError: no run to draw from.
    """
    rows = np.ones(num_runs, bool) if rows is None else np.asarray(rows, bool)
    strata = np.zeros(num_runs, int) if strata is None else np.asarray(strata)
    if not rows.any():
        raise ValueError("a resample needs at least one run to draw from")
    rng = np.random.default_rng(seed)
    weights_BR = np.zeros((resamples, num_runs))
    for label in np.unique(strata[rows]):
        members = np.flatnonzero(rows & (strata == label))
        if kind == "dirichlet":
            drawn = len(members) * rng.dirichlet(np.ones(len(members)), size=resamples)
        else:
            share = np.full(len(members), 1 / len(members))
            drawn = rng.multinomial(len(members), share, size=resamples)
        weights_BR[:, members] = drawn
    return weights_BR


def wild_targets(fitted, target, jacobian, weights, resamples: int, seed: int) -> np.ndarray:
    """Return targets [B, R] of the wild bootstrap: the fit plus residuals with random signs.

    The design stays as it is, so no level is ever lost, and each run keeps its own noise. A fitted
    residual is smaller than the noise, by sqrt(1 - leverage); HC2 makes up for that.

    Args:
      fitted, target: [R], both in the space of the loss.
      jacobian: of fitted by theta, [R, P].
      weights: [R], of the fit; runs with weight 0 keep their target.
      resamples: B.
      seed: of numpy's generator.
    """
    used = weights > 0
    root = np.sqrt(weights[used])[:, None]
    basis, singular, _ = np.linalg.svd(root * jacobian[used], full_matrices=False)
    basis = basis[:, singular > 1e-10 * singular.max(initial=1e-300)]
    leverage = np.minimum((basis**2).sum(axis=1), 1 - 1e-3)  # a run fitted exactly says nothing
    noise = (target - fitted)[used] / np.sqrt(1 - leverage)
    signs_BR = np.random.default_rng(seed).choice([-1.0, 1.0], size=(resamples, used.sum()))
    targets_BR = np.tile(np.asarray(target, float), (resamples, 1))
    targets_BR[:, used] = fitted[used] + signs_BR * noise
    return targets_BR


def fewest_levels(x) -> int:
    """Return the index of the column of x [R, K] with the fewest levels, two or more."""
    counts = [len(np.unique(column)) for column in x.T]
    return min(range(len(counts)), key=lambda k: (counts[k] == 1, counts[k]))


def lost_levels(weights, levels) -> np.ndarray:
    """Return bool [B]: which resamples, weights [B, R], contain no run of some level [R].

    A level that no resample holds (left out on purpose) does not count.
    """
    held_BL = np.stack([weights[:, levels == level].sum(axis=1) for level in np.unique(levels)], 1)
    return (held_BL[:, held_BL.any(axis=0)] == 0).any(axis=1)
