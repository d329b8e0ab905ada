"""Equations 9-11 by hand, over members, and undefined where there is no x*."""

import numpy as np
import pytest

from fitting.cost import PAPER
from fitting.elasticities import BUDGETS, DELTA, NUM_EXAMPLES, elasticity, sensitivity
from fitting.frontiers import frontier, member_frontiers
from fitting.sweeps import Domain
from tests.fitting.laws import any_law, made_up_law

DOMAIN = Domain((1e9, 2.8e9, 7.5e9), (1, 2, 4, 8, 16), (1, 9, 36, 144))


def staircase(x, n):
    """Return a frontier whose best frames are 4 below 1000 examples and 8 above; best tokens 9."""
    wanted = 4 if n < 1000 else 8
    return 10 + abs(x[:, 1] - wanted) + abs(x[:, 2] - 9) + 1e-12 * x[:, 0]


def test_the_defaults_are_the_papers():
    assert (len(BUDGETS), BUDGETS[0], BUDGETS[-1]) == (300, 1e12, 1e14)
    assert (len(NUM_EXAMPLES), NUM_EXAMPLES[0], NUM_EXAMPLES[-1]) == (100, 1e6, 1e7)
    assert DELTA == 5e6
    change = elasticity(made_up_law(members=2), DOMAIN, PAPER)
    assert change.values.shape == (300, 100, 3)


def test_table_10_changes_one_choice_at_a_time():
    law = made_up_law(members=3)
    rows = {(what, value): mean for what, value, mean in sensitivity(law, DOMAIN, PAPER)}
    assert len(rows) == 6 + 5 + 6 + 12
    usual = elasticity(law, DOMAIN, PAPER, members=False)
    assert usual.members.shape == (0, 3)
    for same in (("budgets", 300), ("data sizes", 100), ("largest n", 1e7), ("step", 5e6)):
        np.testing.assert_array_equal(rows[same], usual.mean)
    for what, value, options in (
        ("budgets", 10, dict(budgets=np.linspace(1e12, 1e14, 10))),
        ("largest n", 2e6, dict(num_examples=np.linspace(1e6, 2e6, 100))),
        ("step", 1e6, dict(delta=1e6)),
    ):
        changed = elasticity(law, DOMAIN, PAPER, **options, members=False)
        np.testing.assert_array_equal(rows[what, value], changed.mean)
        assert (changed.mean != usual.mean).any()


def test_by_hand():
    change = elasticity(staircase, DOMAIN, PAPER, [1e14, 2e14], [200.0, 400.0, 2000.0], 800.0)
    # frames double over a step of 800: e = (8 - 4) / 800 * n / 4 = n / 800
    np.testing.assert_allclose(change.values[:, :, 1], [[0.25, 0.5, 0.0]] * 2)
    assert (change.values[:, :, [0, 2]] == 0).all()
    np.testing.assert_allclose(change.by_num_examples[:, 1], [0.25, 0.5, 0.0])
    np.testing.assert_allclose(change.mean, [0, 0.25, 0])
    assert change.undefined == 0
    assert np.isnan(change.interval()).all()  # a plain function has no members


def test_members_have_their_own_elasticity():
    law, fine = made_up_law(members=6, failed=1), (range(1, 30), [i * i for i in range(1, 16)])
    domain = Domain((1e9, 2.8e9, 7.5e9), *fine)
    budgets, sizes, delta = np.linspace(1e12, 4e13, 20), np.array([1e6, 3e6, 6e6]), 5e6
    change = elasticity(law, domain, PAPER, budgets, sizes, delta)
    assert change.members.shape == (5, 3)

    def slow(now, then):
        return ((then - now) / delta * sizes[:, None] / now).mean(axis=(0, 1))

    arguments = (law, domain, PAPER, budgets)
    now, then = (member_frontiers(*arguments, n) for n in (sizes, sizes + delta))
    np.testing.assert_allclose(
        change.members, [slow(*pair) for pair in zip(now, then, strict=True)]
    )
    now, then = (frontier(*arguments, n).x for n in (sizes, sizes + delta))
    np.testing.assert_allclose(change.mean, slow(now, then))
    low, high = change.interval(0.8)
    np.testing.assert_allclose(low, np.quantile(change.members, 0.1, axis=0))
    np.testing.assert_allclose(high, np.quantile(change.members, 0.9, axis=0))
    assert (high > low).any()


def test_undefined_is_left_out_and_counted():
    change = elasticity(staircase, DOMAIN, PAPER, [1.0, 1e14], [200.0, 400.0], 800.0)
    assert change.undefined == 2
    assert np.isnan(change.values[0]).all()
    np.testing.assert_allclose(change.mean, [0, 0.375, 0])
    nothing = elasticity(made_up_law(), DOMAIN, PAPER, [1.0], [200.0], 800.0)
    assert np.isnan(nothing.mean).all()
    assert np.isnan(nothing.members).all()
    assert np.isnan(nothing.interval()).all()


def test_bad_arguments():
    with pytest.raises(ValueError, match="delta must be positive"):
        elasticity(staircase, DOMAIN, PAPER, [1e14], [200.0], 0.0)
    with pytest.raises(ValueError, match="has no number of examples"):
        elasticity(any_law(1), np.ones((1, 1)), lambda x: x[:, 0], [1.0], [1.0], 1.0)
    with pytest.raises(ValueError, match="level must lie"):
        elasticity(staircase, DOMAIN, PAPER, [1e14], [200.0], 1.0).interval(1.5)
