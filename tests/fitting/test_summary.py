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
