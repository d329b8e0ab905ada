"""Format numbers for people: 7.5B parameters, 250k examples, 15 TFLOPs; aligned tables."""

import difflib
import math
import re
from collections.abc import Iterable

import numpy as np

LABELS = {
    "lm_params": "language-model parameters",
    "num_frames": "frames per video",
    "tokens_per_frame": "visual tokens per frame",
    "num_examples": "finetuning examples",
}
SHORT = {
    "lm_params": "LM",
    "num_frames": "frames",
    "tokens_per_frame": "tokens",
    "num_examples": "examples",
}
_QUANTITY = re.compile(
    r"([+-]?(?:\d+\.?\d*|\.\d+)(?:e[+-]?\d+)?)\s*([kmgbtp]?)\s*(?:flops?|tokens?)?", re.I
)
_COUNT = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"), (1.0, ""))
_FLOPS = ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""))


def label(column: str) -> str:
    """Return a column's name in words, for an axis; other names lose their underscores."""
    return LABELS.get(column, column.replace("_", " "))


def short(column: str) -> str:
    """Return a column's name in one word, for a title or a narrow table."""
    return SHORT.get(column, column.replace("_", " "))


def nearest(word: str, known: Iterable[str]) -> str:
    """Return ` (the nearest is '…')` for the closest of `known`, '' when none is close."""
    near = difflib.get_close_matches(word, known, n=1)
    return f" (the nearest is {near[0]!r})" if near else ""


def count(value: float, digits: int = 3) -> str:
    """Return a count with `digits` significant digits: 7.5B, 250k, 32; '-' where undefined."""
    if not math.isfinite(value):
        return "-"
    size, prefix = _scale(value, _COUNT)
    return f"{_digits(value / size, digits)}{prefix}"


def quantity(text) -> float:
    """Return the number of a text such as 2e12, 500B, 1.5T, 15 TFLOPs; NaN where it is none."""
    found = _QUANTITY.fullmatch(str(text).strip())
    if not found:
        return math.nan
    prefixes = {name.upper(): size for size, name in (*_COUNT, *_FLOPS)}
    return float(found[1]) * prefixes[found[2].upper()]


def flops(value: float, digits: int = 3) -> str:
    """Return a cost with its unit: 15 TFLOPs, 3.2 MFLOPs; '-' where undefined."""
    if not math.isfinite(value):
        return "-"
    size, prefix = _scale(value, _FLOPS)
    return f"{_digits(value / size, digits)} {prefix}FLOPs"


def flops_unit(values) -> tuple[float, str]:
    """Return (divisor, unit) for a whole axis, by the geometric middle of the values."""
    values = np.asarray(values, np.float64)
    middle = math.sqrt(np.nanmin(values) * np.nanmax(values))
    size, prefix = _scale(middle, _FLOPS)
    return size, f"{prefix}FLOPs"


def decimals(values, least: float, most: int = 9) -> int:
    """Return how many decimals show `least` with two digits and tell the distinct values apart."""
    count = max(0, 1 - math.floor(math.log10(least))) if 0 < least < math.inf else 2
    distinct = {value for value in values if math.isfinite(value)}
    while count < most and len({f"{value:.{count}f}" for value in distinct}) < len(distinct):
        count += 1
    return min(count, most)


def number(value: float, digits: int = 3) -> str:
    """Return a plain number with `digits` significant digits; '-' where undefined."""
    return f"{value:.{digits}g}" if math.isfinite(value) else "-"


def aligned(headers, rows) -> str:
    """Return a table of texts as lines, first column left-aligned, others right-aligned."""
    rows = [tuple(headers), *map(tuple, rows)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for first, *others in rows:
        cells = [text.rjust(width) for text, width in zip(others, widths[1:], strict=True)]
        lines.append("  ".join([first.ljust(widths[0]), *cells]).rstrip())
    return "\n".join(lines)


def _scale(value: float, prefixes) -> tuple[float, str]:
    rounded = float(f"{abs(value):.3g}")  # 999.9k reads 1M
    return next((pair for pair in prefixes if rounded >= pair[0]), prefixes[-1])


def _digits(value: float, digits: int) -> str:
    return f"{float(f'{value:.{digits}g}'):g}"
