"""Several forms in one bag: weights, pooled members, and every answer that is made of them."""

import dataclasses

import numpy as np
import pytest

from fitting import (
    PAPER,
    PAPER_DOMAIN,
    decide,
    elasticity,
    frontier,
    member_frontiers,
    planner,
    planner_text,
    prediction_interval,
)
from fitting.config import AUTO_FORMS, FitConfig
from fitting.fits import fit
from fitting.law import BaggedFit
from fitting.link import Space
from fitting.mixing import suits
from fitting.mixture import MixedLaw, form_weights, load_law, share_out
from fitting.splits import random_parts
from tests.fitting.synthetic import PAPER_POINTS, synthetic_table

SMALL = FitConfig(form="add, mult-plateau@logit", resamples=8, starts=20)
N = 2e6


@pytest.fixture(scope="module")
def table():
    """Synthetic scores whose odds of error are a product of powers, with 2% of noise."""
    table = synthetic_table("mult", PAPER_POINTS, noise=0.02)
    space = Space("logit", 1.0, 100.0)
    return dataclasses.replace(table, error=space.of_sum((table.error - 20) / 12))


@pytest.fixture(scope="module")
def law(table):
    return fit(table, SMALL)


def test_the_form_that_predicts_has_the_weight(law):
    assert isinstance(law, MixedLaw)
    assert law.lead.config.label == "mult-plateau@logit"
    assert law.weights[0] > 0.6
    assert law.weights.sum() == pytest.approx(1)
    assert [one.label for one in law.tried][0] == "mult-plateau@logit"
    assert sum(one.weight for one in law.tried) == pytest.approx(1)


def test_members_are_shared_out_in_proportion(table, law):
    assert law.num_members == SMALL.resamples
    counts = [len(one.theta) for one in law.components]
    assert counts == share_out(law.weights, law.num_members).tolist()
    members = law.predict_members(table.x, table.n)
    parts = [one.predict_members(table.x, table.n) for one in law.components]
    np.testing.assert_array_equal(members, np.concatenate(parts))
    np.testing.assert_allclose(np.median(members, axis=0), law.predict(table.x, table.n))
    assert share_out([0.4, 0.4, 0.2], 4).tolist() == [2, 1, 1]
    assert share_out([0.99, 0.01], 10).tolist() == [10, 0]


@pytest.fixture(scope="module")
def blend(law, table):
    """The law with another form of equal weight, so that both have members."""
    other = fit(table, SMALL.replace(form="add"))
    return dataclasses.replace(law, components=(law.lead, other), weights=np.array([0.5, 0.5]))


def test_all_answers_are_made_of_the_same_members(blend):
    best = frontier(blend, PAPER_DOMAIN, PAPER, [5e12, 15e12], [N, 2 * N])
    decision = decide(blend, PAPER_DOMAIN, PAPER, 15e12, N)
    np.testing.assert_array_equal(best.x[1, 0], decision.x[0])
    np.testing.assert_allclose(best.error[1, 0], decision.error[0], rtol=1e-9)
    paths = member_frontiers(blend, PAPER_DOMAIN, PAPER, [15e12], [N])[:, 0, 0]
    share = (paths == decision.x[0]).all(axis=1).mean()
    assert share == decision.probability[0]
    low, high = prediction_interval(blend, decision.x[:3], N)
    inner = blend.interval(decision.x[:3], N)
    assert (low < inner[0]).all()
    assert (inner[1] < high).all()
    np.testing.assert_allclose(
        blend.predict_grid(decision.x[:3], [N])[:, 0], decision.error[:3], rtol=1e-9
    )
    change = elasticity(blend, PAPER_DOMAIN, PAPER, [5e12, 15e12], [N], N / 2)
    assert change.members.shape == (blend.num_members, 3)


def test_a_plan_and_its_text_name_the_forms(blend):
    offer = planner.make_offer(blend)
    answer = {"law": planner.describe_law(blend), "offer": {"configurations": 1, "cost": "paper"}}
    assert answer["law"]["form"] == "mult-plateau@logit 50%, add 50%"
    answer["plan"] = planner.choose(blend, offer, 15e12, N)
    assert answer["plan"]["run_noise"] > 0
    answer["lack_of_fit"] = planner.lack_of_fit(blend)
    assert "mult-plateau@logit 50%" in planner_text.as_text(answer, blend, offer.unit)


def test_a_saved_law_answers_the_same(law, blend, table, tmp_path):
    for one in (law, blend):
        one.save(tmp_path)
        again = load_law(tmp_path)
        np.testing.assert_array_equal(
            again.predict(table.x, table.n), one.predict(table.x, table.n)
        )
        assert again.report() == one.report()
        assert again.config == one.config
    with pytest.raises(ValueError, match="several forms"):
        BaggedFit.load(tmp_path)
    law.lead.save(tmp_path)
    assert isinstance(load_law(tmp_path), BaggedFit)


def test_the_report_lists_every_form_that_was_tried(law):
    text = law.report()
    assert all(name in text for name in ("add ", "mult-plateau@logit", "held-out runs"))


def test_one_form_with_a_link_is_a_plain_fit(table):
    one = fit(table, SMALL.replace(form="add@logit"))
    assert isinstance(one, BaggedFit)
    assert one.config == SMALL.replace(form="add", link="logit")


# --- weights ---


def test_equal_forms_share_and_a_hopeless_one_has_nothing():
    squares = np.random.default_rng(0).chisquare(1, 60)
    weights = form_weights([squares, squares, 9 * squares, np.full(60, np.nan)])
    np.testing.assert_allclose(weights, [0.5, 0.5, 0, 0], atol=0.01)


def test_luck_in_a_few_runs_does_not_decide():
    squares = np.random.default_rng(1).chisquare(1, 60)
    lucky = squares.copy()
    lucky[squares.argmax()] = 0.0
    plain = np.exp(-30 * np.log([squares.mean(), lucky.mean()]))
    weights = form_weights([squares, lucky])
    assert 0.02 < weights[0] < 0.5
    assert weights[0] > plain[0] / plain.sum()


def test_each_run_is_held_out_once():
    rows = np.arange(20) % 3 > 0
    parts = random_parts(rows, 5)
    np.testing.assert_array_equal(parts.sum(axis=0), rows)
    assert np.ptp(parts.sum(axis=1)) <= 1
    assert len(random_parts(rows, 50)) == rows.sum()


# --- auto ---


def suited(table, **options) -> set[str]:
    entries = FitConfig(form="auto", **options).forms
    return {one.label for one in entries if suits(one, table, np.ones(len(table), bool))}


def test_auto_leaves_out_what_does_not_suit(table):
    assert suited(table) == set(AUTO_FORMS)
    failed = dataclasses.replace(table, error=np.where(table.error > 55, 100, table.error))
    assert not any("@logit" in label for label in suited(failed))
    assert suited(table, chance=5.0) == set(AUTO_FORMS)
    assert not any("@logit" in label for label in suited(table, chance=60.0))
    without = dataclasses.replace(table, examples=None, n=None)
    assert suited(without) == {name for name in AUTO_FORMS if "interact" not in name}
    few = np.arange(len(table)) % 9 == 0
    assert suited(table.take(few)) == {"add", "mult-plateau"}


def test_a_named_form_that_does_not_suit_is_an_error(table):
    without = dataclasses.replace(table, examples=None, n=None)
    with pytest.raises(ValueError, match="no examples column"):
        fit(without, FitConfig(form="add,add-interact", resamples=2, starts=8))


@pytest.mark.parametrize("form", ["add,,mult", "add,auto", "add@probit"])
def test_bad_lists_are_refused(form):
    with pytest.raises(ValueError, match="names no form|link must be one of"):
        FitConfig(form=form)
