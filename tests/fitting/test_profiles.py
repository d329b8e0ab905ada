"""Profile-likelihood intervals: against arithmetic, the bag, and what the search may reach."""

import dataclasses

import numpy as np
import pytest

from fitting.config import FitConfig
from fitting.figures.profile import draw_profiles
from fitting.figures.style import drawn
from fitting.fits import fit
from fitting.profiles import names_of, profile, text
from tests.fitting.laws import made_up_law
from tests.fitting.synthetic import table_of

CONFIG = FitConfig(form="li", resamples=12, starts=12)


@pytest.fixture(scope="module")
def law():
    """A power law without a floor: log error is a line in log x, so that t intervals are exact."""
    rng = np.random.default_rng(0)
    x = np.geomspace(1, 100, 30)[:, None]
    return fit(table_of(50 * x[:, 0] ** -0.4 * np.exp(0.05 * rng.standard_normal(30)), x), CONFIG)


@pytest.fixture(scope="module")
def found(law):
    return profile(law)


def test_the_interval_of_a_line_is_that_of_students_t(law, found):
    a = {one.name: one for one in found}["alpha"]
    x, y = np.log(law.runs.z[:, 0]), np.log(law.runs.error)
    slope, offset = np.polyfit(x, y, 1)
    spread = np.sqrt(((y - offset - slope * x) ** 2).sum() / (30 - 3))  # the floor is the third
    error = spread / np.sqrt(((x - x.mean()) ** 2).sum())
    if a.estimate == pytest.approx(-slope, rel=1e-3):  # the floor is absent: below it can only rise
        assert a.low == pytest.approx(-slope - 1.7033 * error, rel=5e-3)
    assert a.low < -slope < a.high
    assert (a.open_low, a.open_high) == (False, False)
    assert a.high > a.bag[0]


def test_the_deviance_is_what_a_refit_with_the_parameter_held_loses(law, found):
    floor = {one.name: one for one in found}["D"]
    assert floor.values[0] == 0
    inside = floor.deviance <= floor.threshold
    assert floor.low == 0
    assert "0 is possible" in floor.note
    assert floor.high == pytest.approx(floor.values[inside].max(), rel=0.2)
    # At a floor of 0 the law is a line, whose squares are known.
    x, y = np.log(law.runs.z[:, 0]), np.log(law.runs.error)
    squares = ((y - np.polyval(np.polyfit(x, y, 1), x)) ** 2).sum()
    least = law.whole.objective[0] * 30
    np.testing.assert_allclose(floor.deviance[0], (squares / least - 1) * 27, atol=1e-3)


def test_what_the_runs_do_not_bound_is_open_at_the_cap():
    x = np.array([1.0, 1.0, 2.0, 2.0, 2.0, 1.0])[:, None]
    error = 30 * np.exp(0.01 * np.arange(6)) * np.where(x[:, 0] > 1, 0.8, 1.0)
    law = fit(table_of(error, x), CONFIG.replace(form="li"))  # two levels, three parameters
    (alone,) = profile(law, "alpha")
    assert alone.high == 4.0
    assert alone.open_high
    assert "upper end is the limit of the search" in text([alone])


def test_clusters_widen_the_interval(law):
    cluster = np.repeat(np.arange(10), 3).astype(str)
    runs = law.runs._replace(cluster=cluster)
    rng = np.random.default_rng(1)
    shared = 0.05 * rng.standard_normal(10)[np.arange(30) // 3]
    runs = runs._replace(error=50 * runs.z[:, 0] ** -0.4 * np.exp(shared))
    with_clusters = dataclasses.replace(law, runs=runs)
    (wide,) = profile(with_clusters, "alpha")
    (narrow,) = profile(dataclasses.replace(law, runs=runs._replace(cluster=None)), "alpha")
    assert wide.threshold > 1.3 * narrow.threshold
    assert wide.high - wide.low > narrow.high - narrow.low


def test_only_exponents_and_floors_have_a_profile(law):
    assert names_of(law, "all") == ("alpha", "D")
    with pytest.raises(ValueError, match="no profile of 'A'.*exponents and the floor"):
        profile(law, "A")
    with pytest.raises(ValueError, match="no profile of 'alpa' .the nearest is 'alpha'"):
        profile(law, "alpa")
    with pytest.raises(ValueError, match="Huber's loss is no likelihood"):
        profile(made_up_law("add", loss="huber"), "all")


def test_the_figure_holds_what_the_csv_holds(found):
    figure = drawn(draw_profiles(found))
    rows = [row for one in found for row in one.rows()]
    assert len(figure.rows) == len(rows)
    assert set(rows[0]) <= set(figure.header)
