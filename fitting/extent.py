"""Measure how far a configuration lies outside the runs of a fit, in the logs of its columns.

A box of ranges calls a corner inside that no run is near: small model, few frames and few tokens
together, on a star whose arms each change one factor. The convex hull of the runs does not.
"""

import numpy as np

FAR = 0.05
"""Distance from which a prediction extrapolates: a twentieth of the runs' range in one column."""

_STEPS = 300  # of Frank-Wolfe
_CLOSE = 0.005  # gap between the bounds of a distance that is small enough
_BLOCK = 2048  # configurations at a time


def distance(runs_z, z) -> np.ndarray:
    """Return the distance [X] of z [X, C] from the convex hull of runs_z [R, C], both positive.

    Each column counts in its log, as a share of the runs' range in it; a column in which all runs
    agree counts in doublings. 0 is inside; 0.5 is half of the range of one column beyond the hull.

    Frank-Wolfe steps walk from the nearest run towards z within the hull. Each step also gives a
    plane between z and the hull, if there is one; the largest distance from such a plane is
    returned, so that a point inside is never called outside. No triangulation is needed: any
    number of columns will do, and columns that depend on each other.
    """
    runs, queries = np.log(np.asarray(runs_z, float)), np.log(np.asarray(z, float))
    low, span = runs.min(axis=0), _span(runs)
    runs, queries = (runs - low) / span, (queries - low) / span
    blocks = [_distance(runs, queries[i : i + _BLOCK]) for i in range(0, len(queries), _BLOCK)]
    return np.concatenate(blocks) if blocks else np.zeros(0)


def _distance(runs_RC, query_XC) -> np.ndarray:
    """Return the distance [X] from the hull, by at most `_STEPS` steps for each query."""
    squares_XR = ((query_XC[:, None] - runs_RC) ** 2).sum(axis=-1)
    at_XC, best_X = runs_RC[squares_XR.argmin(axis=1)], np.zeros(len(query_XC))
    left = np.arange(len(query_XC))
    for _ in range(_STEPS):
        way_XC = query_XC[left] - at_XC[left]
        length_X = np.linalg.norm(way_XC, axis=1)
        reach_XR = way_XC @ runs_RC.T
        farthest_X = reach_XR.argmax(axis=1)
        beyond_X = (way_XC * query_XC[left]).sum(axis=1) - reach_XR.max(axis=1)
        best_X[left] = np.maximum(best_X[left], beyond_X / np.maximum(length_X, 1e-300))
        open_X = length_X - best_X[left] > _CLOSE
        left, way_XC, farthest_X = left[open_X], way_XC[open_X], farthest_X[open_X]
        if not len(left):
            break
        move_XC = runs_RC[farthest_X] - at_XC[left]
        step_X = (way_XC * move_XC).sum(axis=1) / np.maximum((move_XC**2).sum(axis=1), 1e-300)
        at_XC[left] += np.clip(step_X, 0.0, 1.0)[:, None] * move_XC
    return np.where(best_X > 1e-9, best_X, 0.0)


def nearest_run(runs_z, z) -> int:
    """Return the index of the run of runs_z [R, C] nearest to z [C], in the measure of `distance`.

    Ties go to the first run.
    """
    runs, query = np.log(np.asarray(runs_z, float)), np.log(np.asarray(z, float))
    return int((((runs - query) / _span(runs)) ** 2).sum(axis=1).argmin())


def _span(log_runs) -> np.ndarray:
    """Return the range [C] of log runs [R, C]; ln 2 where they all agree."""
    span = np.ptp(log_runs, axis=0)
    return np.where(span > 0, span, np.log(2.0))
