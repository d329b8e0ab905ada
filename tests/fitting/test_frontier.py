"""Frontier and elasticity against brute force and against a case solved by hand."""

import itertools

import numpy as np
import pytest

from fitting.config import FitConfig
from fitting.cost import PAPER
from fitting.elasticity import elasticity
from fitting.fit import fit
from fitting.frontier import agreement, empirical_frontier, frontier, member_frontiers
from fitting.sweeps import Domain
from tests.fitting.synthetic import PAPER_POINTS, synthetic_table

DOMAIN = Domain((1e9, 2.8e9, 7.5e9), (1, 2, 4, 8, 16), (1, 9, 36, 144))
BUDGETS = [8e11, 2e12, 5e12, 9e12, 4e13, 1e11]
SIZES = [3e5, 1e6, 4e6]


@pytest.fixture(scope="module")
def table():
    return synthetic_table("add-interact", PAPER_POINTS, noise=0.02)


@pytest.fixture(scope="module")
def law(table):
    return fit(table, FitConfig(resamples=7, starts=40))


def brute_force(predict, budget, n):
    """(x, error) of the least error within the budget, or None."""
    within = [x for x in itertools.product(*DOMAIN.levels) if PAPER(x) <= budget]
    return min(((predict(np.array([x], float), n)[0], x) for x in within), default=None)


def test_frontier_equals_brute_force(law):
    best = frontier(law, DOMAIN, PAPER, BUDGETS, SIZES)
    for c, budget in enumerate(BUDGETS):
        for m, n in enumerate(SIZES):
            expected = brute_force(law.predict, budget, n)
            if expected is None:
                assert np.isnan([*best.x[c, m], best.error[c, m], best.cost[c, m]]).all()
                continue
            assert tuple(best.x[c, m]) == expected[1]
            np.testing.assert_allclose(best.error[c, m], expected[0], rtol=1e-12)
            assert best.cost[c, m] == PAPER(best.x[c, m]) <= budget
    assert best.unaffordable == 1


def test_frontier_takes_any_function_and_ties_go_to_the_cheaper():
    best = frontier(lambda x, n: np.round(1e6 / x[:, 1]) // 2e5, DOMAIN, PAPER, [4e13], [1.0])
    cheapest = min(
        (float(PAPER(x)), x) for x in itertools.product(*DOMAIN.levels) if 1e6 / x[1] < 2e5
    )
    assert tuple(best.x[0, 0]) == cheapest[1]


def test_agreement_counts_members(law):
    best = frontier(law, DOMAIN, PAPER, BUDGETS, SIZES)
    members = member_frontiers(law, DOMAIN, PAPER, BUDGETS, SIZES)
    assert members.shape == (7, 6, 3, 3)
    shares = agreement(best, members)
    assert np.isnan(shares[-1]).all()
    for c, m in itertools.product(range(5), range(3)):
        own = [
            brute_force(lambda x, n, b=b: law.predict_members(x, n)[b], BUDGETS[c], SIZES[m])[1]
            for b in range(7)
        ]
        assert shares[c, m] == sum(x == tuple(best.x[c, m]) for x in own) / 7


def test_empirical_frontier_is_the_best_run_within_a_budget(table):
    cost, budgets = PAPER(table.x), [1e9, 2.5e12, 1e13, 1e14]
    best = empirical_frontier(table, PAPER, budgets)
    assert best.run_id[0] == ""
    assert np.isnan(best.error[0])
    for c, budget in enumerate(budgets[1:], start=1):
        within = np.flatnonzero(cost <= budget)
        row = within[np.argmin(table.error[within])]
        assert best.run_id[c] == table.run_id[row]
        assert best.error[c] == table.error[row]
    own = empirical_frontier(table, PAPER)
    assert (np.diff(own.error) < 0).all()
    assert own.error[-1] == table.error.min()


def staircase(x, n):
    """Best frames are 4 below 1000 examples and 8 from there on; best tokens always 9."""
    wanted = 4 if n < 1000 else 8
    return 10 + abs(x[:, 1] - wanted) + abs(x[:, 2] - 9) + 1e-12 * x[:, 0]


def test_elasticity_by_hand():
    change = elasticity(staircase, DOMAIN, PAPER, [1e14, 2e14], [200.0, 400.0, 2000.0], 800.0)
    # frames double over a step of 800: e = (8 - 4) / 800 * n / 4 = n / 800
    np.testing.assert_allclose(change.values[:, :, 1], [[0.25, 0.5, 0.0]] * 2)
    assert (change.values[:, :, [0, 2]] == 0).all()
    np.testing.assert_allclose(change.by_num_examples[:, 1], [0.25, 0.5, 0.0])
    np.testing.assert_allclose(change.mean, [0, 0.25, 0])
    assert change.undefined == 0


def test_undefined_elasticity_is_left_out_and_counted():
    change = elasticity(staircase, DOMAIN, PAPER, [1.0, 1e14], [200.0, 400.0], 800.0)
    assert change.undefined == 2
    assert np.isnan(change.values[0]).all()
    np.testing.assert_allclose(change.mean, [0, 0.375, 0])
    nothing = elasticity(staircase, DOMAIN, PAPER, [1.0], [200.0], 800.0)
    assert np.isnan(nothing.mean).all()
    with pytest.raises(ValueError, match="delta must be positive"):
        elasticity(staircase, DOMAIN, PAPER, [1e14], [200.0], 0.0)


def test_forms_without_interaction_have_a_frontier_that_ignores_the_data(table):
    law = fit(table, FitConfig(form="add", resamples=1, starts=40))
    best = frontier(law, DOMAIN, PAPER, BUDGETS[:5], SIZES)
    assert (best.x == best.x[:, :1]).all()
    assert not law.form.frontier_moves


@pytest.mark.parametrize("budgets", [[], [[1e12]]])
def test_budgets_must_be_a_list(budgets):
    with pytest.raises(ValueError, match="budgets must be a list"):
        frontier(staircase, DOMAIN, PAPER, budgets, [1.0])
