"""Parameters carry the names of the user's columns; files of earlier versions still load."""

import fitting
from fitting import naming
from fitting.config import FACTORS
from fitting.forms import get_form
from tests.fitting.laws import any_law


def test_parameters_are_named_after_columns():
    add = get_form("add")
    assert naming.parameters(add, ("params", "lr"), False) == (
        *("alpha_params", "alpha_lr", "epsilon"),
        *("a_params", "a_lr"),
    )
    assert naming.parameters(add, FACTORS, False) == add.parameters(3, False)
    assert naming.parameters(add, ("a", "b", "c"), True)[0] == "alpha_a"
    assert naming.in_form("a_params", ("params", "lr")) == "a_1"
    assert naming.in_form("a_1", ("params", "lr")) == "a_1"
    assert naming.parameters(get_form("li"), ("params", "lr"), False) == (
        *("A", "D", "alpha", "beta"),
    )


def test_a_law_of_an_earlier_version_loads_with_its_old_names(tmp_path, monkeypatch):
    law = any_law(3, form="add")
    assert law.parameters[0] == "alpha_x1"
    with monkeypatch.context() as patch:
        patch.setattr(naming, "parameters", lambda form, f, with_n: form.parameters(len(f), with_n))
        path = law.save(tmp_path)
    assert '"alpha_N"' in path.read_text()
    again = fitting.BaggedFit.load(tmp_path)
    assert again.parameters == law.parameters
    assert "alpha_x1 " in again.report()
    assert "factors  x1, x2, x3" in again.report()
