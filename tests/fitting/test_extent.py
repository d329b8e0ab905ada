"""`fitting.extent`: the distance from the hull of the runs, against an exact computation."""

import numpy as np
from scipy.optimize import nnls

from fitting import extent, planner
from tests.fitting.laws import PAPER_Z, any_law, made_up_law


def exact(runs_z, z) -> float:
    """Return the distance of z [C] from the hull of runs_z [R, C], by NNLS."""
    runs, query = np.log(runs_z), np.log(z)
    span = np.ptp(runs, axis=0)
    corners = ((runs - query) / span).T
    sums_to_one = 1e3 * np.ones((1, len(runs)))
    share, _ = nnls(np.vstack([corners, sums_to_one]), [*np.zeros(len(span)), 1e3])
    return float(np.linalg.norm(corners @ share / share.sum()))


def test_the_distance_is_that_of_the_convex_hull():
    rng = np.random.default_rng(3)
    low, high = np.log(PAPER_Z.min(axis=0)), np.log(PAPER_Z.max(axis=0))
    z = np.exp(rng.uniform(low - 0.3, high + 0.3, (60, 4)))
    found, right = extent.distance(PAPER_Z, z), [exact(PAPER_Z, row) for row in z]
    assert (found <= np.array(right) + 1e-6).all()
    np.testing.assert_allclose(found, right, atol=0.02)
    far = np.array(right) > extent.FAR
    assert 0.2 < far.mean() < 1
    assert ((found > extent.FAR) == far).mean() > 0.95


def test_runs_and_their_mixtures_are_inside():
    assert (extent.distance(PAPER_Z, PAPER_Z) == 0).all()
    share = np.random.default_rng(0).dirichlet(np.ones(len(PAPER_Z)), size=20)
    assert (extent.distance(PAPER_Z, np.exp(share @ np.log(PAPER_Z))) == 0).all()


def test_half_a_range_beyond_one_column_is_a_half():
    runs = np.array([[1.0, 1.0], [16.0, 1.0], [1.0, 16.0], [16.0, 16.0]])
    found = extent.distance(runs, [[64.0, 4.0], [4.0, 0.25], [64.0, 64.0]])
    np.testing.assert_allclose(found, [0.5, 0.5, np.sqrt(0.5)], atol=1e-3)


def test_a_column_without_levels_counts_in_doublings():
    runs = np.array([[1.0, 8.0], [4.0, 8.0]])
    found = extent.distance(runs, [[2.0, 8.0], [2.0, 16.0]])
    np.testing.assert_allclose(found, [0.0, 1.0], atol=1e-3)


def test_columns_that_move_together_have_an_outside():
    runs = np.array([[1.0, 1.0], [4.0, 4.0], [16.0, 16.0]])
    near, far = extent.distance(runs, [[8.0, 8.0], [16.0, 1.0]])
    assert near == 0
    assert abs(far - np.sqrt(0.5)) < 0.01


def test_any_number_of_columns():
    law = any_law(9, with_n=True, size=60)
    inside = np.exp(np.log(law.runs.z).mean(axis=0))
    assert law.distance(inside[:-1], inside[-1]) == 0
    assert law.distance(inside[:-1] * 4, inside[-1]) > 0.2


def test_a_corner_within_every_range_extrapolates_and_is_told():
    law = made_up_law()
    corner, n = np.array([1e9, 4.0, 4.0]), 2.5e5
    assert not law.outside(corner, n).any()
    assert law.extrapolates(corner, n)
    (text,) = planner.extrapolations(law, corner, n)
    assert "together" in text
    assert "nearest run" in text
    center = np.array([7.5e9, 32.0, 196.0])
    assert law.distance(center, n) == 0
    assert planner.extrapolations(law, center, n) == []
