"""`fitting.design`: designs stay within the purse, and are judged by what they let one decide."""

import numpy as np
import pytest

from fitting import design
from fitting.cost import PAPER
from fitting.next_runs import Question
from fitting.sweeps import Domain

DOMAIN = Domain((1e9, 2.8e9, 7.5e9), tuple(range(2, 17)), (9, 25, 49, 100, 196))
QUESTIONS = (Question(8e12, 1e6), Question(4e12, 1e6))


def price(points) -> float:
    return sum(3 * float(PAPER(np.array(point.x, float))) * point.num_examples for point in points)


@pytest.mark.parametrize("spend", [5e19, 1e21])
def test_designs_stay_within_the_purse_and_differ(spend):
    found = design.designs(DOMAIN, PAPER, QUESTIONS, spend)
    assert len({one.points for one in found}) == len(found) >= 2
    for one in found:
        assert one.cost == pytest.approx(price(one.points))
        assert one.cost <= spend
        assert design.FEWEST <= len(one.points) <= design.MOST
        assert (one.center is None) == (not one.star_examples)
        assert (one.isoflop_examples is None) == (not one.budgets)


def test_no_runs_for_too_small_a_purse():
    with pytest.raises(ValueError, match="costs"):
        design.designs(DOMAIN, PAPER, QUESTIONS, 1e15)


def test_a_design_that_shows_more_loses_less(monkeypatch):
    monkeypatch.setattr(design, "FIT", design.FIT.replace(starts=8))
    rich, poor = (max(design.designs(DOMAIN, PAPER, QUESTIONS, spend), key=lambda d: d.cost)
                  for spend in (1e21, 2e19))  # fmt: skip
    judged = design.judge([poor, rich], DOMAIN, PAPER, QUESTIONS, laws=5)
    assert judged[0].points == rich.points
    assert 0 <= judged[0].regret < judged[1].regret
    assert all(one.error > 0 for one in judged)
