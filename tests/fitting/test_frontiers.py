"""The frontier against brute force, over any domain, law and budget."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fitting.cost import PAPER
from fitting.frontiers import agreement, empirical_frontier, frontier, member_frontiers
from fitting.sweeps import Domain
from tests.fitting.laws import any_law, made_up_law
from tests.fitting.synthetic import PAPER_POINTS, synthetic_table

DOMAIN = Domain((1e9, 2.8e9, 7.5e9), (1, 2, 4, 8, 16), (1, 9, 36, 144))
BUDGETS = [8e11, 2e12, 5e12, 9e12, 4e13, 1e11]
SIZES = [3e5, 1e6, 4e6]


def brute_force(error_X, cost_X, budget):
    """Index of the least error within the budget, the cheaper of equals; None where none is."""
    within = np.flatnonzero(cost_X <= budget)
    return min(within, key=lambda i: (error_X[i], cost_X[i], i), default=None)


def check(best, members_x, law, x, cost_X, budgets, sizes):
    """Compare a frontier with one computed in loops from `predict_members`."""
    shares = agreement(best, members_x)
    for m, n in enumerate(sizes):
        members_BX = law.predict_members(x, n)
        members_BX = members_BX[~np.isnan(members_BX).any(axis=1)]
        middle = np.mean if law.config.aggregate == "mean" else np.median
        error_X = middle(members_BX, axis=0)
        np.testing.assert_allclose(error_X, law.predict(x, n), rtol=1e-12)
        for c, budget in enumerate(budgets):
            i = brute_force(error_X, cost_X, budget)
            if i is None:
                assert np.isnan([*best.x[c, m], best.error[c, m], best.cost[c, m]]).all()
                assert np.isnan([*members_x[:, c, m].ravel(), shares[c, m]]).all()
                continue
            np.testing.assert_allclose(best.error[c, m], error_X[i], rtol=1e-12)
            assert tuple(best.x[c, m]) == tuple(x[i])
            assert best.cost[c, m] == cost_X[i] <= budget
            own = [x[brute_force(row, cost_X, budget)] for row in members_BX]
            np.testing.assert_array_equal(members_x[:, c, m], own)
            assert shares[c, m] == np.mean([(row == x[i]).all() for row in own])


@pytest.mark.parametrize("aggregate", ["median", "mean"])
@pytest.mark.parametrize("form", ["mult", "add", "add-interact-s", "add-interact"])
def test_the_frontier_equals_brute_force(form, aggregate):
    law = made_up_law(form, failed=1, aggregate=aggregate)
    arguments = (law, DOMAIN, PAPER, BUDGETS, SIZES)
    best, members = frontier(*arguments), member_frontiers(*arguments)
    x = DOMAIN.configurations()
    assert members.shape == (6, len(BUDGETS), len(SIZES), 3)
    check(best, members, law, x, PAPER(x), BUDGETS, SIZES)
    assert best.unaffordable == 1


@pytest.mark.parametrize("piece", [1, 50])
def test_pieces_of_any_size_give_the_same(monkeypatch, piece):
    law = made_up_law(members=5)
    whole = frontier(law, DOMAIN, PAPER, BUDGETS, SIZES)
    members = member_frontiers(law, DOMAIN, PAPER, BUDGETS, SIZES)
    monkeypatch.setitem(frontier.__globals__, "_PIECE", piece)
    again = frontier(law, DOMAIN, PAPER, BUDGETS, SIZES)
    np.testing.assert_array_equal(again.x, whole.x)
    np.testing.assert_array_equal(again.error, whole.error)
    np.testing.assert_array_equal(member_frontiers(law, DOMAIN, PAPER, BUDGETS, SIZES), members)


@st.composite
def problems(draw):
    """Return a law of 1 to 4 factors, a domain, a cost with ties, budgets and data sizes."""
    num_factors, with_n = draw(st.integers(1, 4)), draw(st.booleans())
    forms = ("mult", "add", "add-interact") if with_n else ("mult", "add", "li")
    law = any_law(
        num_factors,
        form=draw(st.sampled_from(forms)),
        with_n=with_n,
        members=draw(st.integers(1, 6)),
        seed=draw(st.integers(0, 99)),
        aggregate=draw(st.sampled_from(["median", "mean"])),
    )
    level = st.integers(1, 9)
    levels = [draw(st.lists(level, min_size=1, max_size=4, unique=True)) for _ in law.factors]
    x = np.array(list(itertools.product(*levels)), float)
    cost_X = np.array(draw(st.lists(level, min_size=len(x), max_size=len(x))), float)
    budgets = draw(st.lists(st.integers(0, 10), min_size=1, max_size=5))
    sizes = draw(st.lists(st.sampled_from([0.5, 1.0, 3.0]), min_size=1, max_size=3))
    return law, x, cost_X, np.array(budgets, float), sizes if with_n else None


@settings(max_examples=60, deadline=None)
@given(problems())
def test_any_law_domain_and_budgets(problem):
    law, x, cost_X, budgets, sizes = problem
    arguments = (law, x, lambda _: cost_X, budgets, sizes)
    best, members = frontier(*arguments), member_frontiers(*arguments)
    check(best, members, law, x, cost_X, budgets, [None] if sizes is None else sizes)


def test_a_free_floor_may_be_negative():
    law = any_law(2, form="li", space="linear", free_floor=True)
    law.theta[:, law.layout.floor] = [-3.0, -2.0, -1.0, 0.0, 1.0]
    x = np.array(list(itertools.product([1.0, 2, 4], [1.0, 3])))
    best = frontier(law, x, lambda x: x.sum(axis=1), [3.0, 9.0])
    np.testing.assert_allclose(best.error[:, 0], law.predict(best.x[:, 0]), rtol=1e-12)


def test_an_infinite_error_is_never_the_best():
    law = made_up_law(members=3, exponent_cap=None)
    law.theta[1, law.parameters.index("b_T")] = 2000.0
    best = member_frontiers(law, DOMAIN, PAPER, [4e13], [1e6])
    with np.errstate(over="ignore"):
        x = DOMAIN.configurations()
        own = x[brute_force(law.predict_members(x, 1e6)[1], PAPER(x), 4e13)]
    np.testing.assert_array_equal(best[1, 0, 0], own)


def test_any_function_and_ties_go_to_the_cheaper():
    best = frontier(lambda x, n: np.round(1e6 / x[:, 1]) // 2e5, DOMAIN, PAPER, [4e13], [1.0])
    cheapest = min(
        (float(PAPER(x)), x) for x in itertools.product(*DOMAIN.levels) if 1e6 / x[1] < 2e5
    )
    assert tuple(best.x[0, 0]) == cheapest[1]


def test_budgets_come_in_any_order_and_more_than_once():
    law = made_up_law()
    sorted_best = frontier(law, DOMAIN, PAPER, sorted(BUDGETS), SIZES)
    order = np.argsort(BUDGETS)
    mixed = frontier(law, DOMAIN, PAPER, BUDGETS, SIZES)
    np.testing.assert_array_equal(mixed.x[order], sorted_best.x)
    twice = frontier(law, DOMAIN, PAPER, [5e12, 2e12, 5e12], SIZES)
    np.testing.assert_array_equal(twice.x[0], twice.x[2])


def test_forms_without_interaction_have_a_frontier_that_ignores_the_data():
    law = made_up_law("add", members=1)
    best = frontier(law, DOMAIN, PAPER, BUDGETS[:5], SIZES)
    assert (best.x == best.x[:, :1]).all()
    assert not law.form.frontier_moves


def test_n_is_said_where_the_law_has_it_and_only_there():
    with pytest.raises(ValueError, match="depends on num_examples: say how many"):
        frontier(made_up_law(), DOMAIN, PAPER, BUDGETS)
    with pytest.raises(ValueError, match="has no number of examples"):
        frontier(any_law(1), np.ones((1, 1)), lambda x: x[:, 0], [1.0], [1.0])


@pytest.mark.parametrize("budgets", [[], [[1e12]]])
def test_budgets_must_be_a_list(budgets):
    with pytest.raises(ValueError, match="budgets must be a list"):
        frontier(made_up_law(), DOMAIN, PAPER, budgets, [1.0])


def test_the_empirical_frontier_is_the_best_run_within_a_budget():
    table = synthetic_table("add-interact", PAPER_POINTS, noise=0.02)
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
