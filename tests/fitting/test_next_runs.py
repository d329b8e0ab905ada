"""`fitting.next_runs`: the value of a run against simulation, purse and count, what it chooses."""

import dataclasses

import numpy as np
import pytest

from fitting import next_runs, planner, planner_runs, planner_text
from fitting.cost import PAPER
from fitting.next_runs import Question
from fitting.sweeps import Domain
from fitting.verdict import DOUBTFUL, HOLDS, Verdict
from tests.fitting.laws import any_law, made_up_law

DOMAIN = Domain((1e9, 2.8e9, 7.5e9), (2, 4, 8, 16), (9, 49, 196)).configurations()
SIZES = [2.5e5, 1e6]
QUESTIONS = [Question(5e12, 2e6), Question(15e12, 2e6)]


@pytest.fixture(scope="module")
def law():
    return made_up_law(members=200, spread=0.15)


@pytest.fixture(scope="module")
def offered():
    return next_runs.candidates(DOMAIN, PAPER, SIZES)


def choose(law, offered, count=3, spend=1e20):
    options = dict(count=count, spend=spend)
    return next_runs.next_runs(law, QUESTIONS, DOMAIN, PAPER, offered, **options)


def test_candidates_are_priced_at_three_passes_over_the_examples(offered):
    assert len(offered.x) == len(offered.cost) == len(DOMAIN) * 2
    q = 17
    assert offered.cost[q] == 3 * PAPER(offered.x[q]) * offered.num_examples[q]
    many = Domain((1e9,), range(1, 129), (9,)).configurations()
    kept = next_runs.candidates(many, PAPER, SIZES).x[:, 1]
    assert len(np.unique(kept)) <= next_runs.MOST_LEVELS
    assert {kept.min(), kept.max()} == {1, 128}


def test_runs_stay_within_purse_and_count(law, offered):
    runs = choose(law, offered)
    assert len(runs) == 3
    assert sum(run.cost for run in runs) <= 1e20
    for run in runs:
        assert run.cost == pytest.approx(run.repeats * 3 * PAPER(run.x) * run.num_examples)
        assert run.gain > 0
    assert len(choose(law, offered, count=50, spend=3e18)) < 50


def test_the_gain_is_what_members_gain_when_one_of_them_is_the_truth(law, offered):
    """Each member in turn is the truth: it is measured, the beliefs move, the choice moves."""
    (run,) = choose(law, offered, count=1)
    rng = np.random.default_rng(0)
    g_B = law.predict_members(run.x, run.num_examples)
    noise = 0.0097 * g_B.mean() / np.sqrt(run.repeats)
    gain = 0.0
    for budget, n in QUESTIONS:
        f_BX = law.predict_members(DOMAIN[PAPER(DOMAIN) <= budget], n)
        mean_X = f_BX.mean(axis=0)
        slope_X = (f_BX - mean_X).T @ (g_B - g_B.mean()) / len(g_B) / (g_B.var() + noise**2)
        before = f_BX[:, mean_X.argmin()]
        seen = np.repeat(g_B, 50) + noise * rng.standard_normal(50 * len(g_B))
        chosen = (mean_X + slope_X * (seen - g_B.mean())[:, None]).argmin(axis=1)
        gain += before.mean() - np.repeat(f_BX, 50, axis=0)[np.arange(len(seen)), chosen].mean()
    assert run.gain == pytest.approx(gain, rel=0.1)


def test_members_that_agree_gain_nothing(offered):
    assert choose(made_up_law(members=20, spread=0.0), offered) == ()


def test_what_cannot_be_asked_is_one_line(law, offered):
    with pytest.raises(ValueError, match="the cheapest costs"):
        choose(law, offered, spend=1.0)
    with pytest.raises(ValueError, match="--resamples"):
        choose(made_up_law(members=2), offered)


def test_the_plan_stops_where_the_regret_is_within_the_tolerance(law):
    offer = planner.make_offer(law, levels={"num_frames": [2, 4, 8], "tokens_per_frame": [9, 49]})
    ask = dict(count=3, spend=1e20)
    stop = planner_runs.next_step(law, offer, [5e12], [2e6], tolerance=50.0, **ask)
    assert stop["stop"]
    assert stop["runs"] == []
    go = planner_runs.next_step(law, offer, [5e12, 8e12], [2e6], tolerance=0.01, **ask)
    assert not go["stop"]
    assert go["regret_bound"] > 0.01
    assert go["expected_regret"] >= go["runs"][0]["gain"] > 0


def test_a_law_in_doubt_is_no_reason_to_stop(law):
    offer = planner.make_offer(law, levels={"num_frames": [2, 4, 8], "tokens_per_frame": [9, 49]})
    doubted = dataclasses.replace(law, verdict=Verdict(DOUBTFUL, ("The form is wrong.",)))
    ask = dict(count=1, spend=1e20, tolerance=50.0)
    found = planner_runs.next_step(doubted, offer, [5e12], [2e6], **ask)
    assert not found["stop"]
    assert "contradict" in planner_text.next_lines(found, doubted, "FLOPs")[0]
    holds = dataclasses.replace(law, verdict=Verdict(HOLDS))
    assert planner_runs.next_step(holds, offer, [5e12], [2e6], **ask)["stop"]


def test_a_law_without_examples_and_other_factors():
    law = any_law(2, members=40, size=30)
    domain = np.array([[a, b] for a in range(1, 9) for b in range(1, 9)], float)
    offered = next_runs.candidates(domain, lambda x: x.prod(axis=-1))
    asked = [Question(10.0, None)], domain, lambda x: x.prod(axis=-1), offered
    (run, *_) = next_runs.next_runs(law, *asked, count=2, spend=60.0)
    assert run.num_examples is None
    assert run.cost == 3 * run.x.prod() * run.repeats
