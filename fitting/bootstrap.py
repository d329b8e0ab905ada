"""Resamples of the runs as count weights [B, R], so that array shapes never change."""

import numpy as np


def resample_weights(num_runs: int, resamples: int, seed: int, *, rows=None, strata=None):
    """How often each resample holds each run.

    An iid resample of a small star can lose a whole language-model size (8.5% of the resamples of
    the paper's 39 star runs); strata keep every group at its own size.

    Args:
      num_runs: R.
      resamples: B.
      seed: of numpy's generator.
      rows: bool [R], the runs to draw from; the others get weight 0. All by default.
      strata: [R] labels; runs are drawn within each label. One stratum by default.

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
        share = np.full(len(members), 1 / len(members))
        weights_BR[:, members] = rng.multinomial(len(members), share, size=resamples)
    return weights_BR


def lost_levels(weights, levels) -> np.ndarray:
    """Bool [B]: the resamples of weights [B, R] that miss some level of levels [R] altogether.

    A level that no resample holds (left out on purpose) does not count.
    """
    held_BL = np.stack([weights[:, levels == level].sum(axis=1) for level in np.unique(levels)], 1)
    return (held_BL[:, held_BL.any(axis=0)] == 0).any(axis=1)
