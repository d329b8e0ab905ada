"""Numbers as texts."""

import pytest

from fitting import formatting


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (formatting.count(7.5e9), "7.5B"),
        (formatting.count(250_000), "250k"),
        (formatting.count(999_999), "1M"),
        (formatting.count(0.25), "0.25"),
        (formatting.count(float("nan")), "-"),
        (formatting.flops(3.2e6), "3.2 MFLOPs"),
        (formatting.flops(1.5e13), "15 TFLOPs"),
    ],
)
def test_units_read_well(text, expected):
    assert text == expected
