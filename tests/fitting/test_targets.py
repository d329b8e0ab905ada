"""Targets without a ceiling: losses are read, fitted, saved and planned with in their own unit."""

import json
import math

import numpy as np
import pytest

import fitting
from fitting import planner, planner_text
from fitting.formatting import decimals
from fitting.runs import read_runs

QUICK = fitting.FitConfig(form="add", resamples=12, starts=16)


def losses(noise=0.003, shift=0.0) -> dict:
    """Synthetic: loss = 1.7 + 400 / params^.34 + 900 / tokens^.3, times 0.3% noise."""
    params, tokens = (
        axis.ravel() for axis in np.meshgrid([1e8, 2e8, 5e8, 1e9], [2e9, 5e9, 2e10, 1e11])
    )
    loss = 1.7 + 400 / params**0.34 + 900 / tokens**0.3
    loss *= np.exp(noise * np.random.default_rng(0).standard_normal(len(loss)))
    return dict(params=params, tokens=tokens, val=loss + shift)


def read(columns, **options):
    return read_runs(columns, factors=("params", "tokens"), **options)


@pytest.fixture(scope="module")
def law():
    return fitting.fit(read(losses(), target="loss", error="val"), QUICK)


def test_a_loss_is_fitted_as_it_is_and_kept(law, tmp_path):
    assert math.isinf(law.scale)
    true = 1.7 + 400 / 1e9**0.34 + 900 / 1e11**0.3
    assert law.predict([1e9, 1e11]) == pytest.approx(true, rel=0.005)
    assert "in units of the loss" in law.report()
    assert not law.off_scale(np.array([-1.0, 200.0])).any()
    law.save(tmp_path)
    again = fitting.BaggedFit.load(tmp_path)
    assert math.isinf(again.scale)
    np.testing.assert_array_equal(again.theta, law.theta)
    part = fitting.fit(read(losses(), error="val", scale=100), QUICK)  # the same numbers, bounded
    np.testing.assert_allclose(part.predict(law.runs.z), law.predict(law.runs.z), rtol=2e-3)


def test_a_plan_on_a_loss_tells_rows_apart(law):
    levels = {"params": np.geomspace(1e8, 1e9, 40), "tokens": np.geomspace(2e9, 1e11, 40)}
    domain = planner.configurations(law, None, levels)
    offer = planner.Offer(domain, lambda x: 6 * x[..., 0] * x[..., 1], "FLOPs")
    plan = planner.choose(law, offer, 1e20)
    tolerance = plan["regret_set"]["tolerance"]
    assert 0.002 < tolerance < 0.02  # 0.3% of a loss near 3
    assert plan["regret_set"]["configurations"] < 0.2 * plan["affordable"]
    lines = planner_text.plan_lines(plan, law, "FLOPs")
    table = "\n".join(lines).splitlines()
    shown = [line.split()[3] for line in table if line.startswith(tuple("123456"))]
    assert table[2].startswith("  predicted loss 2.7")
    assert len(set(shown)) == len(shown) == 6
    assert not any("Impossible" in line for line in lines)
    answer = planner.json_ready({"law": planner.describe_law(law), "plan": plan})
    assert json.loads(json.dumps(answer, allow_nan=False))["law"]["scale"] is None


def test_decimals_show_the_least_and_tell_values_apart():
    assert decimals([1.0, 2.0], 0.5) == 2
    assert decimals([2.98312, 2.98317], 0.01) == 4
    assert decimals([2.98312, 2.98313], 0.01) == 5
    assert decimals([1.0, 1.0, math.nan], 0.0) == 2
    assert decimals([1.0, 1.0 + 1e-15], 0.1) == 9


def test_losses_below_zero_need_linear_space():
    table = read(losses(shift=-2.5), target="loss", score="val")
    assert table.error.min() < 0
    with pytest.raises(
        ValueError, match=r"has a loss of -0\.\d+, which has no logarithm; .*linear"
    ):
        fitting.fit(table, QUICK)
    free = QUICK.replace(space="linear", free_floor=True, resamples=2)
    law = fitting.fit(table, free)
    np.testing.assert_allclose(law.predict(table.x), table.error, atol=0.05)


def test_other_best_scores_are_named():
    cider = losses() | {"val": np.linspace(80, 131, 16)}
    with pytest.raises(ValueError, match=r"from 0 to 100; --target loss .*--scale names another"):
        read(cider, score="val")
    assert read(cider, score="val", scale=200).error.max() == 120
    small = losses() | {"val": np.linspace(0.2, 0.9, 16)}
    assert read(small, error="val", target="loss").error.max() == 0.9  # no scale to ask for


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(target="loss", error="val", scale=100), "a loss has neither"),
        (dict(target="los", error="val"), "target must be one of score, error, loss, got 'los'"),
        (dict(target="score", error="val"), "target score contradicts the column 'val'"),
        (dict(target="loss"), "no column 'loss'"),
        (dict(error="val", scale=-1), "scale must be a positive number"),
    ],
)
def test_targets_that_contradict_themselves(options, message):
    with pytest.raises(ValueError, match=message):
        read(losses(), **options)
