"""Decisions against their definitions, and intervals against draws."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fitting.cost import PAPER
from fitting.frontiers import agreement, frontier, member_frontiers
from fitting.intervals import prediction_interval, run_noise
from fitting.sweeps import Domain
from fitting.uncertainty import decide
from tests.fitting.laws import any_law, made_up_law

DOMAIN = Domain((1e9, 2.8e9, 7.5e9), (1, 2, 4, 8, 16), (1, 9, 36, 144))
X = np.array([[7.5e9, 8, 36], [1e9, 2, 9], [2.8e9, 16, 144]])


def test_a_decision_is_the_frontiers():
    law = made_up_law(members=40, failed=2, spread=0.4)
    for budget, n in ((2e12, 1e6), (3e13, 4e6)):
        decision = decide(law, DOMAIN, PAPER, budget, n)
        best = frontier(law, DOMAIN, PAPER, [budget], [n])
        own = member_frontiers(law, DOMAIN, PAPER, [budget], [n])
        np.testing.assert_array_equal(decision.x[0], best.x[0, 0])
        np.testing.assert_allclose(decision.error[0], best.error[0, 0], rtol=1e-12)
        assert decision.probability[0] == agreement(best, own)[0, 0]
        assert decision.probability.sum() == pytest.approx(1)
        assert (np.diff(decision.error) >= 0).all()
        assert (decision.cost <= budget).all()
        assert len(decision.x) == (PAPER(DOMAIN.configurations()) <= budget).sum()


def test_regret_is_what_a_member_loses():
    law = made_up_law(members=12, spread=0.4)
    decision = decide(law, DOMAIN, PAPER, 3e13, 1e6)
    members_BX = law.predict_members(decision.x, 1e6)
    np.testing.assert_allclose(decision.regret.T, members_BX - members_BX.min(axis=1)[:, None])
    loss = np.sort(decision.regret, axis=1)
    # of 12 members, 0.9 are 11: all but the worst
    for tolerance in (0.0, 0.3, 2.0):
        np.testing.assert_array_equal(decision.regret_set(tolerance), loss[:, 10] <= tolerance)
    assert decision.regret_set(1e9).all()
    sizes = [decision.regret_set(t).sum() for t in (0.0, 0.1, 1.0, 10.0)]
    assert sizes == sorted(sizes)
    with pytest.raises(ValueError, match="tolerance must be 0 or more"):
        decision.regret_set(-1.0)


def test_a_law_without_n_decides_too():
    law = any_law(2, members=9)
    x = np.array([[a, b] for a in range(1, 6) for b in range(1, 6)], float)
    decision = decide(law, x, lambda x: x.sum(axis=1), 6.0)
    within = x[x.sum(axis=1) <= 6]
    np.testing.assert_allclose(decision.error[0], law.predict(within).min())
    assert np.isnan(decision.num_examples)


def test_a_budget_below_the_cheapest_names_it():
    with pytest.raises(ValueError, match=r"1e\+10 is below the cheapest .*lm_params=1e\+09, num_f"):
        decide(made_up_law(), DOMAIN, PAPER, 1e10, 1e6)


@pytest.mark.parametrize("space", ["log", "linear"])
def test_run_noise_is_that_of_the_residuals(space):
    law = made_up_law(noise=0.03, space=space)
    fitted, error = law.predict_whole(law.runs.z), law.runs.error
    residuals = np.log(error / fitted) if space == "log" else error - fitted
    expected = np.sqrt((residuals**2).sum() / (88 - 15))
    np.testing.assert_allclose(run_noise(law), expected)


def test_with_as_many_parameters_as_runs_noise_is_undefined_not_zero():
    law = any_law(2, size=5)  # 2 coefficients, 2 exponents, a floor
    assert np.isnan(run_noise(law))
    assert np.isnan(prediction_interval(law, [[1.0, 2.0]])).all()


@pytest.mark.parametrize("space", ["log", "linear"])
def test_the_prediction_interval_holds_its_share_of_draws(space):
    law = made_up_law(members=30, failed=3, spread=0.02, noise=0.02, space=space)
    low, high = prediction_interval(law, X, 1e6, 0.8)
    rng, sigma = np.random.default_rng(0), run_noise(law)
    members = law.predict_members(X, 1e6)[:27]
    draws = members[rng.integers(27, size=200_000)]
    noise = sigma * rng.standard_normal(draws.shape)
    draws = draws * np.exp(noise) if space == "log" else draws + noise
    np.testing.assert_allclose(((draws > low) & (draws < high)).mean(axis=0), 0.8, atol=0.01)
    np.testing.assert_allclose((draws < low).mean(axis=0), 0.1, atol=0.01)


def test_one_member_leaves_the_noise_alone():
    law = made_up_law(members=1, noise=0.05)
    low, high = prediction_interval(law, X[:1], 1e6)
    reach = 1.6449 * run_noise(law)
    np.testing.assert_allclose(
        np.log([low, high] / law.predict(X[:1], 1e6)), [[-reach], [reach]], 0.02
    )


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 1000), st.floats(0.05, 0.9), st.integers(1, 400))
def test_intervals_are_ordered_nested_and_alike_in_blocks(seed, level, count):
    law = any_law(2, members=4, seed=seed)
    x = np.random.default_rng(seed).uniform(1, 9, size=(count, 2))
    low, high = prediction_interval(law, x, level=level)
    wider_low, wider_high = prediction_interval(law, x, level=level + 0.05)
    assert low.shape == (count,)
    assert (wider_low <= low).all()
    assert (low < high).all()
    assert (high <= wider_high).all()
    np.testing.assert_allclose(prediction_interval(law, x[-1], level=level), [low[-1], high[-1]])


def test_levels_are_checked():
    with pytest.raises(ValueError, match="level must lie"):
        prediction_interval(made_up_law(), X, 1e6, 1.0)
