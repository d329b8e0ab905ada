"""Rivals follow their rules, none twice, all nearly as dear as the budget."""

import numpy as np
import pytest

from fitting.cost import PAPER
from fitting.rivals import BEST, RULES, choose_rivals, within
from fitting.sweeps import Domain
from fitting.uncertainty import decide
from tests.fitting.laws import made_up_law
from tests.fitting.synthetic import PAPER_POINTS, synthetic_table

DOMAIN = Domain((1e9, 2.8e9, 7.5e9), tuple(range(1, 41)), (1, 4, 9, 16, 25, 36, 49, 64, 100, 144))
TABLE = synthetic_table("add-interact", PAPER_POINTS, noise=0.02)
BUDGET, N = 2e13, 2e6


def choose(law=None, additive=None, **options):
    law = law or made_up_law(members=20, spread=0.05)
    return choose_rivals(law, additive, TABLE, DOMAIN, PAPER, BUDGET, N, **options)


def test_each_rule_names_its_own_rival():
    law, additive = made_up_law(members=20, spread=0.05), made_up_law("add", members=3)
    found = choose(law, additive, tolerance=0.3, seed=4)
    by_rule = {tested.rule: tested for tested in found.tested}
    assert tuple(by_rule) == (BEST, *RULES)
    assert len({tested.x for tested in found.tested}) == 6
    decision = decide(law, DOMAIN, PAPER, BUDGET, N)
    assert by_rule[BEST].x == tuple(decision.x[0])
    assert found.regret_bound == np.quantile(decision.regret[0], 0.9)
    assert found.low < by_rule[BEST].predicted < found.high
    for tested in found.tested[1:]:
        assert 0.85 * BUDGET <= tested.cost <= BUDGET
        assert tested.cost == PAPER(np.array(tested.x))
    assert by_rule["largest"].x[0] == 7.5e9
    near = within(decision.cost, BUDGET, (0.85, 1.0))
    outside = near & ~decision.regret_set(0.3)
    assert by_rule["outside"].predicted == decision.error[outside].min()
    wanted = decision.x[near][additive.predict(decision.x[near], N).argmin()]
    assert by_rule["add"].x == tuple(wanted) or by_rule["add"].note
    again = choose(law, additive, tolerance=0.3, seed=4)
    assert again == found
    assert choose(law, additive, tolerance=0.3, seed=5).tested[-1] != found.tested[-1]


def test_a_rule_whose_choice_is_taken_takes_its_next_and_says_so():
    law = made_up_law(members=20, spread=0.05)
    found = choose(law, law, tolerance=0.3)  # a law that agrees with x*
    (add,) = [tested for tested in found.tested if tested.rule == "add"]
    best = found.tested[0]
    if within([best.cost], BUDGET, (0.85, 1.0))[0]:
        assert "its first choice is that of x*" in add.note
    assert add.x != best.x


def test_the_neighbour_is_near_the_best_affordable_run():
    found = choose(rules=("neighbour",))
    affordable = PAPER(TABLE.x) <= BUDGET
    at_n = affordable & (TABLE.n == N)
    rows = at_n if at_n.any() else affordable
    best = TABLE.x[rows][TABLE.error[rows].argmin()]
    x = DOMAIN.configurations()
    x = x[within(PAPER(x), BUDGET, (0.85, 1.0))]
    nearest = np.linalg.norm(np.log2(x / best), axis=1).min()
    assert np.linalg.norm(np.log2(np.array(found.tested[1].x) / best)) == pytest.approx(nearest)


def test_where_the_law_calls_all_alike_the_largest_regret_stands_in():
    (tested,) = choose(rules=("outside",), tolerance=1000.0).tested[1:]
    assert "none is outside" in tested.note


def test_without_candidates_there_is_x_alone():
    found = choose(spend=(0.999999, 1.0))
    assert found.candidates == 0
    assert [tested.rule for tested in found.tested] == [BEST]


def test_an_unknown_rule_is_refused():
    with pytest.raises(ValueError, match="unknown rule 'cheapest'"):
        choose(rules=("cheapest",))
