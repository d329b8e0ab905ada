"""Conditions on rows and arithmetic of columns: what they select and compute, what they refuse."""

import contextlib

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from fitting.expressions import Formula, rows

COLUMNS = dict(
    lm_params=[1e8, 5e8, 1e9],
    num_frames=np.array([4.0, 8.0, 16.0]),
    sweep=["star", "isoflop", "star"],
    metric=["a / b", "acc (val)", "x-1.0"],
    seen=["1", "", "3"],
)


@pytest.mark.parametrize(
    ("text", "chosen"),
    [
        ("N<5e8", [0]),
        ("N <= 5e8 and sweep=star", [0]),
        ("sweep=isoflop or N>=1e9 and T=4 or T==16", [1, 2]),
        ("(sweep=star or T=8) and N>1e8", [1, 2]),
        ("1e8 < N <= 1e9", [1, 2]),
        ("8<T", [2]),
        ("metric=acc (val)", [1]),
        ("metric = a / b", [0]),
        ("metric='x-1.0' and num_frames=16.0", [2]),
        ("sweep != star", [1]),
        ("seen<3", [0]),  # an empty cell is in no order
    ],
)
def test_conditions_select_rows(text, chosen):
    assert np.flatnonzero(rows(text, COLUMNS, "runs.csv")).tolist() == chosen


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "sweep=stat",
            "no runs with sweep 'stat' (the nearest is 'star'); there are isoflop, star",
        ),
        ("swep!=star", "no column 'swep' (the nearest is 'sweep')"),
        ("sweep<3", "orders 'sweep', which holds no numbers"),
        ("N<many", "orders by 'many', which is no number"),
        ("N<", "lacks a column or value"),
        ("N", "compares nothing; write COLUMN=VALUE"),
        ("", "lacks a column or value"),
        ("T=4 and", "lacks a column or value"),
        ("T=4 or or T=8", "lacks a column or value before 'or'"),
        ("(N<5e9", "lacks a closing parenthesis"),
        ("N<5e9)", "is not understood from ')' on"),
        ("T=4 or " * 100, "is longer than 500 characters"),
    ],
)
def test_what_is_no_condition_is_refused_in_one_line(text, message):
    with pytest.raises(ValueError, match=".") as caught:
        rows(text, COLUMNS, "runs.csv")
    assert str(caught.value).startswith("runs.csv: ")
    assert message in str(caught.value)


def test_a_formula_computes_from_columns():
    x = np.array([[1e9, 4.0], [2e9, 8.0]])
    names = ("lm_params", "num_frames")
    assert Formula("6*N*num_frames", names)(x).tolist() == [2.4e10, 9.6e10]
    assert Formula("2*T*(0.43e9*768 + N) - -1", names)(x[0]) == 8 * (0.43e9 * 768 + 1e9) + 1
    assert Formula("N**0.5 / 2", names)(x[:1]).tolist() == [1e9**0.5 / 2]
    assert Formula("7", names)(x).tolist() == [7, 7]
    assert Formula("9**9**9**9", names)(x[0]) == np.inf  # at once, in floating point


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("6*N*D", "no column 'D'; a formula may use lm_params, num_frames"),
        ("6*lm_param", "(the nearest is 'lm_params')"),
        ("__import__('os').system('true')", "calls a function"),
        ("max(N, T)", "calls a function, which a formula may not"),
        ("N^2", "write ** for powers"),
        ("N.real", "has 'N.real'"),
        ("'a'", "which a formula may not"),
        ("True*N", "has 'True'"),
        ("N if T else 1", "which a formula may not"),
        ("N < T", "which a formula may not"),
        ("[N][0]", "which a formula may not"),
        ("(x := N)", "which a formula may not"),
        ("6*", "is no formula"),
        ("", "is no formula"),
        ("(" * 400, "is no formula"),
        ("N+" * 400 + "N", "is no formula"),
    ],
)
def test_what_is_no_formula_is_refused_in_one_line(text, message):
    with pytest.raises(ValueError, match=".") as caught:
        Formula(text, ("lm_params", "num_frames"))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@hypothesis.settings(deadline=None, max_examples=150)
@hypothesis.given(text=st.text("NT=<>!()'\"andor *+-/1e. ", max_size=16))
def test_any_text_is_an_answer_or_a_value_error(text):
    for ask in (lambda: rows(text, COLUMNS, "x"), lambda: Formula(text, ("N", "T"))([1.0, 2.0])):
        with contextlib.suppress(ValueError):
            assert np.asarray(ask()).dtype in (bool, np.float64)
