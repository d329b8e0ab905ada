"""Levels and grids that people write on a command line."""

import numpy as np
import pytest

from fitting.grids import parse_domain, parse_grid, parse_levels


@pytest.mark.parametrize(
    ("text", "levels"),
    [
        ("1e9,7.5e9", [1e9, 7.5e9]),
        ("2:5", [2, 3, 4, 5]),
        ("squares:3", [1, 4, 9]),
        ("squares:2,3:4,10,3", [1, 3, 4, 10]),
    ],
)
def test_levels(text, levels):
    assert parse_levels(text, "width").tolist() == levels


@pytest.mark.parametrize("text", ["", "a", "5:2", "0:3", "-1", "squares:x", "1,,2", "nan", "inf"])
def test_bad_levels(text):
    with pytest.raises(ValueError, match="^width="):
        parse_levels(text, "width")


@pytest.mark.parametrize("text", ["1:100", "1:2:3:4", "a", "0,1", "1:5:0", "", "inf"])
def test_bad_grids(text):
    with pytest.raises(ValueError, match="write LOW:HIGH:COUNT"):
        parse_grid(text)


@pytest.mark.parametrize(
    ("text", "numbers"), [("1:3:3", [1, 2, 3]), ("5", [5]), ("2,1.5", [2, 1.5])]
)
def test_grids(text, numbers):
    np.testing.assert_array_equal(parse_grid(text), numbers)


def test_a_domain_names_each_factor_once():
    found = parse_domain(("b=2:3", "a=1.5"), ("a", "b"))
    assert {name: levels.tolist() for name, levels in found.items()} == {"b": [2, 3], "a": [1.5]}
    with pytest.raises(ValueError, match="b=1: b is given twice"):
        parse_domain(("b=2", "b=1"), ("a", "b"))
    with pytest.raises(ValueError, match="num_frames=2.5: 2.5 is no whole number"):
        parse_domain(("num_frames=2.5",), ("num_frames",))
