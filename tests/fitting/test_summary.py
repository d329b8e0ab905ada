"""The fit report: what it says of parameters, options and spread."""

import numpy as np
import pytest

from fitting.summary import undetermined
from tests.fitting.laws import made_up_law


@pytest.mark.parametrize(("gone", "unknown"), [(0, False), (1, False), (2, True), (11, True)])
def test_members_that_disagree_whether_a_term_is_there_do_not_determine_it(gone, unknown):
    law = made_up_law("add", members=20, spread=0.01)
    floor = law.parameters.index("epsilon")
    law.theta[:gone, floor] = -60.0
    assert undetermined(law)[floor] == unknown
    law.theta[:19, floor] = law.whole.theta[0, floor] = -60.0
    assert not undetermined(law)[floor]  # absent in nearly all: an answer


def test_aicc_of_hubers_loss_is_not_printed():
    law = made_up_law("add", loss="huber")
    assert np.isnan(law.aicc)
    assert "AICc - (Huber's loss" in law.report()
    assert np.isfinite(made_up_law("add").aicc)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (dict(exponent_cap=None), "; exponents free"),
        (dict(bound_exponents=True), "; 0 <= exponent <= 4"),
        (dict(bound_exponents=True, exponent_cap=None), "; exponents >= 0, without a cap"),
        ({}, "; |exponent| <= 4"),
        (dict(init="zero"), "one start at zero, lm"),
    ],
)
def test_the_card_says_what_was_done(options, text):
    assert text in made_up_law("add", **options).report()


def test_a_fit_without_a_bag_shows_no_spread():
    text = made_up_law("add", members=1, resampling="none", init="zero").report()
    assert "median" not in text
    assert "95%" not in text
    assert "members" not in text
    assert "of the starts" not in text


@pytest.mark.parametrize(
    ("low", "high", "unknown"),
    [
        (0.05, 0.74, True),  # by a factor of 15
        (-0.2, 0.4, True),  # of either sign
        (0.35, 0.45, False),
        (-0.02, 0.03, False),  # next to none, and well known
        (1.0, 2.4, False),
    ],
)
def test_an_exponent_is_measured_against_its_own_size(low, high, unknown):
    law = made_up_law("add", members=201, spread=0.0, noise=1e-6)
    p = law.parameters.index("a_N")
    law.theta[:, p] = np.linspace(low, high, 201)
    assert undetermined(law)[p] == unknown


@pytest.mark.parametrize(("spread", "unknown"), [(0.1, False), (0.5, True)])
def test_the_floor_is_measured_against_the_least_error(spread, unknown):
    law = made_up_law("add", members=201, spread=0.0, noise=1e-6)
    floor = law.parameters.index("epsilon")
    law.theta[:, floor] = np.log(law.runs.error.min() * np.linspace(0.4, 0.4 + spread, 201))
    assert undetermined(law)[floor] == unknown


def test_a_cap_is_said_to_exclude_what_the_runs_allow():
    law = made_up_law("add", members=20, spread=0.0)
    p = law.parameters.index("a_N")
    law.theta[:5, p] = 4.0
    note = law.parameter_rows()[p][-1]
    assert note == "at its bound in 5 of 20, the bound excludes values that the runs allow"
