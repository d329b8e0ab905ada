"""A user's form, tied and fixed parameters: fitted, saved, loaded and planned with."""

import json
import re

import numpy as np
import pytest

import fitting
from fitting import own_forms, planner
from fitting.forms import OWN, get_form
from fitting.runs import read_runs

FILE = """
from fitting.forms import N, Form, Term

def list_terms(labels):
    falls = tuple(Term(f"c_{s}", ((f"p_{s}", -1, k),)) for k, s in enumerate(labels))
    return (*falls, Term("floor"))

mine = Form("ignored", list_terms, frontier_moves=False)
with_n = lambda labels: (Term("a", (("p", -1, 0), ("d", -1, N))), Term("b", (("q", -1, 0),)))
twice = lambda labels: (Term("a", (("p", -1, 0),)), Term("a"))
same = lambda labels: (Term("p", (("p", -1, 0),)),)
column = lambda labels: (Term("a", (("p", -1, 7),)),)
breaks = lambda labels: (labels[9],)
empty = lambda labels: ()
number = 3
"""
QUICK = fitting.FitConfig(form="add", resamples=4, starts=12)


@pytest.fixture
def file(tmp_path):
    (tmp_path / "my.py").write_text(FILE)
    return tmp_path / "my.py"


@pytest.fixture(scope="module")
def table():
    """Synthetic: loss = 1.6 + 2 x^-.5 + 3 y^-.5, times 0.1% noise."""
    x, y = (axis.ravel() for axis in np.meshgrid([1, 2, 4, 8, 16.0], [1, 2, 4, 8, 16.0]))
    noise = np.exp(0.001 * np.random.default_rng(0).standard_normal(25))
    loss = (1.6 + 2 * x**-0.5 + 3 * y**-0.5) * noise
    return read_runs(dict(x=x, y=y, loss=loss), factors=("x", "y"), error="loss", target="loss")


def test_a_form_of_a_file_is_fitted_saved_and_planned_with(file, table, tmp_path):
    name = own_forms.resolve(f"{file}:mine")
    assert re.fullmatch(r"my\.py:mine#[0-9a-f]{8}", name)
    law = fitting.fit(table, QUICK.replace(form=name))
    assert law.parameters == ("c_x", "c_y", "floor", "p_x", "p_y")
    assert law.values[0][2] == pytest.approx(1.6, abs=0.1)
    saved = law.save(tmp_path / "law")
    kept = json.loads(saved.read_text())["own_form"]
    assert kept["source"] == FILE
    file.unlink()
    del OWN[name]  # as in another process
    again = fitting.BaggedFit.load(tmp_path / "law")
    np.testing.assert_array_equal(again.predict(table.x), law.predict(table.x))
    offer = planner.make_offer(again, "x*y")
    assert planner.choose(again, offer, 20.0)["best"]["cost"] <= 20
    assert own_forms.to_json(get_form("add"), 2) is None
    assert not get_form(name).has_n


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nothing", "the file holds no 'nothing'; it holds list_terms, mine, with_n"),
        ("number", "number is neither a Form nor a function that lists terms"),
        ("twice", "names the parameter 'a' twice"),
        ("same", "names the parameter 'p' twice"),
        ("column", r"power \('p', -1, 7\) is not"),
        (
            "breaks",
            "listing terms for . factors failed: IndexError",
        ),
        ("empty", "must list one or more fitting.forms.Term"),
    ],
)
def test_what_is_no_form_is_refused_in_one_line(file, name, message):
    with pytest.raises(ValueError, match=message) as caught:
        own_forms.resolve(f"{file}:{name}")
    assert str(caught.value).startswith(f"{file}:{name}: ")
    assert "\n" not in str(caught.value)


def test_files_that_do_not_load(file):
    with pytest.raises(ValueError, match=r"gone\.py:mine: No such file"):
        own_forms.resolve(f"{file.parent / 'gone.py'}:mine")
    file.write_text("x = 1\ny = 1 / 0\n")
    with pytest.raises(ValueError, match="does not load, line 2: ZeroDivisionError: division"):
        own_forms.resolve(f"{file}:mine")
    file.write_text("x = (\n")
    with pytest.raises(ValueError, match="does not load, line 1: SyntaxError"):
        own_forms.resolve(f"{file}:mine")
    file.write_text(FILE)
    form = get_form(own_forms.resolve(f"{file}:with_n"))
    assert (form.has_n, form.frontier_moves) == (True, True)


def test_tied_exponents_are_one_parameter(table, tmp_path):
    law = fitting.fit(table, QUICK.replace(form=own_forms.resolve("add", ("a_x=a_y",), ("x", "y"))))
    assert law.parameters == ("alpha_x", "alpha_y", "epsilon", "a_x")
    np.testing.assert_allclose(law.predict(table.x), table.error, rtol=0.01)
    assert law.values[0][3] == pytest.approx(0.5, abs=0.03)
    law.save(tmp_path)
    assert fitting.BaggedFit.load(tmp_path).parameters == law.parameters
    with pytest.raises(ValueError, match="--tie a_1=a_3: 'a_3' is no exponent of 'add'; there are"):
        fitting.fit(table, QUICK.replace(form="add~a_1=a_3"))
    for tie in ("a_1", "a_1=a_1", "a=b=c"):
        with pytest.raises(ValueError, match=f"--tie {tie}: write EXPONENT=EXPONENT"):
            own_forms.resolve("add", (tie,))


@pytest.mark.parametrize("units", [None, "geomean"])
def test_fixed_parameters_stay_and_count_as_known(table, tmp_path, units):
    fix = {"epsilon": 1.6, "a_x": 0.5, "alpha_y": 3.0} if units is None else {"epsilon": 1.5}
    law = fitting.fit(table, QUICK.replace(fix=fix, units=units))
    for name, value in fix.items():
        np.testing.assert_allclose(law.values[:, law.parameters.index(name)], value, rtol=1e-12)
    np.testing.assert_allclose(law.predict(table.x), table.error, rtol=0.02)
    assert law.num_free == len(law.parameters) - len(fix)
    assert re.search(r"^epsilon .* fixed$", law.report(), re.MULTILINE)
    assert "blind" not in law.report()
    law.save(tmp_path)
    assert fitting.BaggedFit.load(tmp_path).config.fix == fix


@pytest.mark.parametrize(
    ("fix", "message"),
    [
        ({"epsilom": 1}, r"fixed 'epsilom' \(the nearest is 'epsilon'\) is no parameter of 'add'"),
        ({"a_x": 5.0}, "a_x fixed at 5 is outside its bounds, -4 to 4"),
        ({"epsilon": -1.0}, "epsilon fixed at -1 is outside its bounds, 0 to"),
    ],
)
def test_values_outside_bounds_are_refused(table, fix, message):
    with pytest.raises(ValueError, match=message):
        fitting.fit(table, QUICK.replace(fix=fix))


def test_options_of_fixed_parameters_are_checked():
    for fix, message in (({"a": "x"}, "must be a number, got 'x'"), ({}, "must be None or NAME")):
        with pytest.raises(ValueError, match=message):
            QUICK.replace(fix=fix)
    with pytest.raises(ValueError, match="fix needs solver='lm'"):
        QUICK.replace(fix={"epsilon": 1.0}, solver="lbfgs")
    assert "fix" not in QUICK.to_dict()
