"""Splits leave out what they say, fits see no more than that, and tables add up."""

import dataclasses

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

import fitting
from fitting.ablations import ablate, variations
from fitting.config import FitConfig
from fitting.cost import PAPER
from fitting.fits import fit
from fitting.intervals import prediction_interval
from fitting.splits import column_split, leave_out_splits, random_folds, rollout_splits
from fitting.sweeps import Domain, star_sweep
from fitting.validation import compare, cross_validate, extrapolate, score
from fitting.validation_text import forms_text
from tests.fitting.synthetic import PAPER_POINTS, synthetic_table

QUICK = FitConfig(form="add", resamples=3, starts=8)
SMALL = star_sweep((1e9, 8, 49), Domain((1e9, 4e9), (2, 4, 8), (4, 16, 49)), (1e5, 1e6))
SPLIT = dict(train="num_examples=100000", test={"num_examples": 1e6})


@pytest.fixture(scope="module")
def twin():
    return synthetic_table("add", PAPER_POINTS, noise=0.01, metric="avg")


@pytest.fixture(scope="module")
def small():
    return synthetic_table("add", SMALL, noise=0.01)


def test_score_by_hand():
    got = score(np.array([1.0, np.nan, 4.0]), np.array([2.0, 9.0, 4.0]))
    assert got == (0.5, 25.0, 1 - 1 / 2)
    assert np.isnan(score(np.full(2, np.nan), np.ones(2))).all()
    assert score(np.ones(2), np.array([0.0, 2.0]))[::2] == (1.0, 0.0)
    assert np.isnan(score(np.ones(2), np.array([0.0, 2.0])).percent)
    assert np.isnan(score(np.ones(2), np.full(2, 3.0)).r2)


# Splits.


@hypothesis.settings(deadline=None, max_examples=30)
@hypothesis.given(folds=st.integers(2, 12), seed=st.integers(0, 9))
def test_folds_part_the_runs(folds, seed):
    table = synthetic_table("add", SMALL)
    split = random_folds(table, folds, seed)
    assert (split.test.sum(axis=0) == 1).all()
    assert (split.train == ~split.test).all()
    assert np.ptp(split.test.sum(axis=1)) <= 1
    assert (split.test == random_folds(table, folds, seed).test).all()
    assert split.name == f"{folds}-fold"


def test_too_many_folds(small):
    with pytest.raises(ValueError, match="99 folds"):
        random_folds(small, 99)


def test_levels_budgets_and_the_largest_n_are_left_out(twin):
    budget = np.array(["" if p.budget is None else f"{p.budget:.0f}" for p in PAPER_POINTS])
    table = dataclasses.replace(twin, columns={**twin.columns, "budget": budget})
    splits = {split.name: split for split in leave_out_splits(table)}
    assert list(splits) == [
        "without a level of lm_params",
        "without a level of num_frames",
        "without a level of tokens_per_frame",
        "without a budget",
        "without the largest n",
    ]
    for k, name in enumerate(table.factors):
        split = splits[f"without a level of {name}"]
        assert (split.test.sum(axis=0) == 1).all()
        spans = [(x.min(), x.max()) for x in (table.x[rows, k] for rows in split.test)]
        assert all(high < low for (_, high), (low, _) in zip(spans, spans[1:], strict=False))
        for train_R, test_R in zip(split.train, split.test, strict=True):
            assert not set(table.x[train_R, k]) & set(table.x[test_R, k])
    assert len(splits["without a level of lm_params"].test) == 3
    assert len(splits["without a level of num_frames"].test) == 5
    budgets = splits["without a budget"]
    assert len(budgets.test) == 4
    assert (budgets.test.any(axis=0) == (budget != "")).all()
    assert budgets.train[:, budget == ""].all()
    (largest,) = splits["without the largest n"].test
    assert (largest == (table.n == table.n.max())).all()


def test_what_has_one_level_is_not_left_out(small):
    only = small.select(lm_params=1e9, num_examples=1e5)
    names = [split.name for split in leave_out_splits(only)]
    assert names == ["without a level of num_frames", "without a level of tokens_per_frame"]


def test_a_split_is_said_in_three_ways(twin):
    splits = [
        column_split(twin, "sweep=star", "sweep=isoflop"),
        column_split(twin, {"sweep": "star"}, {"sweep": "isoflop", "metric": "avg"}),
        column_split(twin, twin.column("sweep") == "star", "num_examples=2192374"),
    ]
    for split in splits:
        assert (split.train[0] == (twin.column("sweep") == "star")).all()
        assert (split.test == ~split.train).all()
    assert splits[0].name == "sweep=star → sweep=isoflop"


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        ("sweep=star", "sweep=star", "is in both --train sweep=star and --test sweep=star"),
        ("sweep=sta", "sweep=star", "no runs with sweep 'sta' .the nearest is 'star'"),
        ("sweeps=star", "sweep=star", "no column 'sweeps' .the nearest is 'sweep'"),
        ("star", "sweep=star", "'star' compares nothing"),
        (np.zeros(88, bool), "sweep=star", "chosen runs names no run"),
    ],
)
def test_bad_splits_say_what_is_there(twin, train, test, message):
    with pytest.raises(ValueError, match=message):
        column_split(twin, train, test)


# Fits.


def test_each_run_is_predicted_by_the_fit_without_it(twin):
    found = cross_validate(twin, QUICK, seed=3)
    assert found.name == "5-fold"
    for rows_R in random_folds(twin, 5, 3).test:
        law = fit(twin, QUICK, rows=~rows_R)
        alone = law.predict(twin.x[rows_R], twin.n[rows_R])
        np.testing.assert_allclose(found.predicted[rows_R], alone, rtol=1e-4)
    assert found.score == score(found.predicted, twin.error)
    assert found.score.r2 > 0.9


def test_nothing_of_the_runs_left_out_leaks(twin):
    star_R = twin.column("sweep") == "star"
    spoilt = dataclasses.replace(twin, error=np.where(star_R, twin.error, 99.0))
    options = dict(train="sweep=star", test="sweep=isoflop")
    good, bad = extrapolate(twin, QUICK, **options), extrapolate(spoilt, QUICK, **options)
    assert np.isnan(good.predicted[star_R]).all()
    np.testing.assert_allclose(good.predicted[~star_R], bad.predicted[~star_R], rtol=1e-9)
    assert good.score.mse < 4 < bad.score.mse


def test_the_true_form_is_best_and_differences_are_paired(small):
    lines = []
    configs = {"m": QUICK.replace(form="mult"), "a": QUICK}
    found = compare(small, configs, on_progress=lambda *said: lines.append(said), **SPLIT)
    assert found.best == "a"
    assert ("1/2: m", 0, 1) in lines
    assert found.splits[:2] == ("5-fold", "num_examples=100000 → num_examples=1000000.0")
    assert found.extrapolation == found.splits[1]
    squares = [
        (found.entry(name).validations[0].predicted - small.error) ** 2 for name in ("m", "a")
    ]
    above, spread = found.difference("m", "5-fold")
    assert above == pytest.approx(np.mean(squares[0] - squares[1]))
    assert spread == pytest.approx(np.std(squares[0] - squares[1], ddof=1) / np.sqrt(len(small)))
    assert found.difference("a", "5-fold")[0] == 0
    assert np.isnan(found.score("a", "no such split")).all()
    rows = found.rows()
    assert len(rows) == 2 * (1 + len(found.splits))
    assert [row["parameters"] for row in rows[:: len(rows) // 2]] == [6, 9]
    assert rows[1]["mse_above_best"] == above
    assert rows[0]["split"] == "all runs"
    assert rows[0]["mse"] < rows[1]["mse"]
    # The largest n is also what the chosen split tests: the same runs are fitted once.
    assert found.entry("a").validations[-1].fits[0] is found.entry("a").validations[1].fits[0]


def test_comparisons_refuse_what_they_cannot_compare(small):
    with pytest.raises(ValueError, match="different form"):
        compare(small, ["mult", "mult"])
    with pytest.raises(ValueError, match="needs both"):
        compare(small, ["mult"], train="sweep=star")


def test_a_variation_changes_one_option():
    config = FitConfig(resamples=7)
    found = variations(config)
    fields = [{k for k, v in other.to_dict().items() if v != config.to_dict()[k]}
              for other in found.values()]  # fmt: skip
    assert fields == [set(), {"loss"}, {"init"}, {"starts"}, {"bound_exponents"}, {"space"}]
    assert found["100 starts"].starts == 100


def test_ablations_use_the_same_members(small):
    found = ablate(small, QUICK.replace(form="mult", resamples=4), leave_out=False, **SPLIT)
    compared = found.variations
    assert [line[:2] for line in found.bagging] == [
        (4, "mean"),
        (1, "median"),
        (2, "median"),
        (4, "median"),
    ]
    last, first = found.bagging[-1], compared.entries[0]
    assert last.cross_validation == pytest.approx(first.cross_validation)
    assert last.extrapolation == pytest.approx(compared.score(first.name, compared.extrapolation))
    law = first.law
    alone = score(law.predict_members(small.x, small.n)[0], small.error)
    assert found.bagging[1].train == pytest.approx(alone)
    assert first.cross_validation != compared.entry("not in log space").cross_validation
    rows = found.rows()
    assert {row["name"] for row in rows} >= {"as asked", "huber", "4 resamples, mean"}
    assert len(rows) == 6 * 3 + 4 * 3
    assert all(rows[0].keys() == row.keys() for row in rows)


def test_the_packages_verbs(small):
    assert fitting.cross_validate is cross_validate
    assert fitting.extrapolate is extrapolate
    found = fitting.cross_validate(small, QUICK.replace(form="mult"), folds=2)
    assert len(found.fits) == 2


def test_errors_that_differ_by_rounding_alone_have_no_r2():
    error = np.array([100 * (1 / 3), 100 / 3, 33.333333333333336, 33.33333333333333])
    assert np.isnan(score(error + 1, error).r2)
    assert score(np.array([1.0, 2.5]), np.array([1.0, 2.0])).r2 == 0.5


def test_rollouts_fit_the_small_and_predict_the_next_larger(twin):
    cost = PAPER(twin.x)
    splits = {split.name: split for split in rollout_splits(twin, cost)}
    names = ("num_frames", "tokens_per_frame", "cost")  # three sizes of lm_params are too few
    assert list(splits) == [f"rollout over {name}" for name in names]
    for name, values in zip(names, (*twin.x.T[1:], cost), strict=True):
        split = splits[f"rollout over {name}"]
        for train, test in zip(split.train, split.test, strict=True):
            assert values[train].max() < values[test].min()
            assert len(np.unique(values[train])) >= 3
            assert train.sum() >= len(twin) / 3


def test_budgets_are_sorted_as_numbers(twin):
    names = np.array(["10T", "500B", "1T", "2.5T", "800B", "3T"])
    table = dataclasses.replace(twin, columns={"budget": names[np.arange(88) % 6]})
    split = next(s for s in leave_out_splits(table) if s.name == "without a budget")
    groups = [sorted(set(table.columns["budget"][rows])) for rows in split.test]
    assert groups == [["500B", "800B"], ["1T"], ["2.5T"], ["3T"], ["10T"]]


def test_the_coverage_of_held_out_runs_stands_beside_the_errors(small):
    found = compare(small, [QUICK.replace(form="mult")], leave_out=False, folds=3)
    v = found.entries[0].validations[0]
    held, law = v.test[0], v.fits[0]
    x, n = small.x[held], small.n[held]
    low, high = prediction_interval(law, x, n)
    np.testing.assert_allclose([v.low[held], v.high[held]], [low, high])
    inside = (v.low <= small.error) & (small.error <= v.high)
    assert v.coverage == inside.mean()
    assert v.half_width == pytest.approx(np.median(v.high - v.low) / 2)
    row = found.rows()[1]
    assert (row["coverage_90"], row["half_width_90"]) == (v.coverage, v.half_width)
    assert np.isnan(found.rows()[0]["coverage_90"])  # runs that were fitted
    text = forms_text(found)
    assert "in the 90% interval" in text
    assert f"{100 * v.coverage:.3g} ±{v.half_width:.3g}" in text
    rows = v.rows(small)
    assert [row["inside"] for row in rows] == inside.tolist()
