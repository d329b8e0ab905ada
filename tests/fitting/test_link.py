"""Links: the space of a bounded score, fits in it, and chance levels that no link can take."""

import dataclasses

import numpy as np
import pytest

from fitting import PAPER, PAPER_DOMAIN, decide, frontier, prediction_interval, run_noise
from fitting.config import FitConfig
from fitting.fits import fit
from fitting.law import BaggedFit
from fitting.link import Space
from tests.fitting.synthetic import PAPER_POINTS, synthetic_table

LINKS = ("logit", "log-accuracy")
SMALL = FitConfig(form="add", resamples=6, starts=30)


def linked_table(link: str, chance: float, noise=0.0):
    """A synthetic table whose odds of error, or -log accuracy, follow the known law `add`."""
    table = synthetic_table("add", PAPER_POINTS, noise=noise)
    space = Space(link, 1.0, 100.0 - chance)
    return dataclasses.replace(table, error=space.of_sum(table.error / 40))


@pytest.mark.parametrize("kind", ["log", "linear", *LINKS])
def test_a_space_goes_there_and_back(kind):
    space = Space(kind, 100.0, 75.0)
    error = np.array([1e-3, 5.0, 40.0, 74.9])
    np.testing.assert_allclose(space.back(space.forward(error)), error, rtol=1e-12)
    np.testing.assert_allclose(
        space.forward(space.shifted(error, 0.1)), space.forward(error) + 0.1, rtol=1e-9
    )
    step = 1e-7 * error
    slope = (space.forward(error + step) - space.forward(error)) / step
    np.testing.assert_allclose(space.slope(error), slope, rtol=1e-4)


@pytest.mark.parametrize("link", LINKS)
def test_a_linked_law_is_recovered_and_answers_everywhere_alike(link, tmp_path):
    table = linked_table(link, 20.0)
    law = fit(table, SMALL.replace(link=link, chance=20.0))
    np.testing.assert_allclose(law.predict(table.x, table.n), table.error, rtol=1e-6)
    grid = law.predict_grid(table.x[:5], [5e5, 2e6])
    np.testing.assert_allclose(grid[:, 1], law.predict(table.x[:5], 2e6), rtol=1e-9)
    best = frontier(law, PAPER_DOMAIN, PAPER, [15e12], [2e6])
    decision = decide(law, PAPER_DOMAIN, PAPER, 15e12, 2e6)
    np.testing.assert_array_equal(best.x[0, 0], decision.x[0])
    np.testing.assert_allclose(best.error[0, 0], decision.error[0], rtol=1e-9)
    law.save(tmp_path)
    again = BaggedFit.load(tmp_path)
    np.testing.assert_array_equal(again.predict(table.x, table.n), law.predict(table.x, table.n))
    assert "chance 20" in again.report()


@pytest.mark.parametrize("link", LINKS)
def test_noise_lives_in_the_linked_space_and_intervals_stay_on_the_scale(link):
    noise = 0.3
    table = linked_table(link, 0.0, noise)
    law = fit(table, SMALL.replace(link=link))
    assert run_noise(law) == pytest.approx(noise, rel=0.25)
    low, high = prediction_interval(law, table.x, table.n)
    assert (low > 0).all()
    assert (high < 100).all()
    assert np.mean((low <= table.error) & (table.error <= high)) == pytest.approx(0.9, abs=0.08)
    assert not law.off_scale(low, high).any()


def test_the_better_link_has_the_lower_aicc():
    table = synthetic_table("mult", PAPER_POINTS, noise=0.02)
    odds = (table.error - 20) / 12  # a product of powers
    table = dataclasses.replace(table, error=Space("logit", 1.0, 100.0).of_sum(odds))
    config = SMALL.replace(form="mult", resampling="none")
    values = [fit(table, config.replace(link=link)).aicc for link in ("none", "logit")]
    assert values[1] < values[0] - 10


def test_a_score_at_chance_is_refused_in_one_line():
    table = linked_table("logit", 20.0)
    worst = 100 - table.error.max()
    with pytest.raises(ValueError, match="not above it; lower the chance") as e:
        fit(table, SMALL.replace(link="logit", chance=worst))
    assert str(table.run_id[table.error.argmax()]) in str(e.value)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(link="probit"), "link must be one of none, logit"),
        (dict(link="logit", space="linear"), "leave space='log'"),
        (dict(chance=25.0), "chance is for a link"),
        (dict(link="logit", chance=-1.0), "chance must be a number >= 0"),
    ],
)
def test_bad_links_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        FitConfig(**change)


def test_options_without_a_link_are_written_as_before():
    assert "link" not in FitConfig().to_dict()
    linked = FitConfig(link="logit", chance=25.0)
    assert FitConfig(**linked.to_dict()) == linked
