"""What a law and a table show in a session, and data frames of both."""

import sys

import numpy as np
import pandas
import pytest

import fitting
from fitting.sweeps import Domain, star_sweep
from tests.fitting.laws import any_law, made_up_law
from tests.fitting.synthetic import synthetic_table

POINTS = star_sweep((1e9, 8, 49), Domain((1e9, 4e9), (2, 4, 8), (4, 16, 49)), (1e5, 1e6))


def test_a_law_shows_itself_in_a_few_lines():
    law = made_up_law(noise=0.01)
    lines = repr(law).splitlines()
    assert lines[0] == "BaggedFit(add-interact on synthetic: 88 runs of synthetic, 7 members)"
    assert len(lines) <= 7
    assert "epsilon " in repr(law)
    assert len(repr(law)) < 1000


def test_a_notebook_shows_a_table_with_escaped_text():
    law = any_law(2, form="add")
    object.__setattr__(law, "metric", "<b>acc")
    shown = law._repr_html_()
    assert "&lt;b&gt;acc" in shown
    assert "<b>" not in shown
    assert shown.count("<tr>") == 1 + len(law.parameters)


def test_frames_hold_the_parameters_and_the_runs(monkeypatch):
    law = any_law(2, form="add")
    frame = law.to_frame()
    assert list(frame.index) == list(law.parameters)
    np.testing.assert_allclose(frame["median"], [row[2] for row in law.parameter_rows()])
    table = synthetic_table("add", POINTS, metric="avg")
    runs = table.to_frame()
    assert list(runs["run_id"]) == list(table.run_id)
    np.testing.assert_array_equal(runs["lm_params"], table.x[:, 0])
    np.testing.assert_array_equal(runs["error"], table.error)
    assert repr(table).startswith(f"RunTable({len(table)} runs of avg from ")
    assert len(repr(table)) < 300
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ValueError, match="pip install pandas"):
        law.to_frame()


def test_a_data_frame_is_fitted_as_its_table():
    table = synthetic_table("add", POINTS, noise=0.01, metric="avg")
    config = fitting.FitConfig(form="add", resamples=2, starts=6)
    law = fitting.fit(pandas.DataFrame(table.rows()), config)
    assert law.source == "DataFrame"
    whole = fitting.fit(table, config)
    np.testing.assert_allclose(law.predict(table.x, table.n), whole.predict(table.x, table.n))
