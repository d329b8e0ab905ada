"""Read levels and grids of numbers from short texts: `1e9,7.5e9`, `1:128`, `squares:27`."""

import math
from collections.abc import Iterable

import numpy as np

from fitting.formatting import nearest

WHOLE = ("num_frames", "tokens_per_frame")  # factors that count something


def parse_domain(texts: Iterable[str], factors: tuple[str, ...]) -> dict[str, np.ndarray]:
    """Return {factor: levels} of texts FACTOR=LEVELS.

    Args:
      texts: such as num_frames=1:128, each factor at most once.
      factors: the names that are allowed.

    Raises:
      ValueError: one line that begins with the text.
    """
    found = {}
    for text in texts:
        name, _, values = text.partition("=")
        if name not in factors or not values:
            hint = "" if name in factors else nearest(name, factors)
            raise ValueError(
                f"{text}: write FACTOR=LEVELS with a factor of the law, {', '.join(factors)}{hint}"
            )
        if name in found:
            raise ValueError(f"{text}: {name} is given twice")
        found[name] = parse_levels(values, name)
    return found


def parse_levels(text: str, name: str) -> np.ndarray:
    """Return the sorted distinct levels of one factor.

    Args:
      text: numbers, LOW:HIGH (whole numbers) and squares:SIDE (1, 4, … SIDE²), separated by commas.
      name: of the factor; levels of a count must be whole.

    Raises:
      ValueError: one line that begins with NAME=TEXT.
    """
    values = []
    for item in text.split(","):
        head, _, tail = item.partition(":")
        try:
            if head == "squares":
                values += [side * side for side in range(1, int(tail) + 1)]
            elif tail:
                values += range(int(head), int(tail) + 1)
            else:
                values.append(float(item))
        except ValueError:
            values = []
        if not values or not 0 < min(values) <= max(values) < math.inf:
            raise ValueError(
                f"{name}={text}: {item!r} is no level; write positive numbers, LOW:HIGH or "
                "squares:SIDE"
            )
        if name in WHOLE and any(value % 1 for value in values):
            raise ValueError(f"{name}={text}: {item} is no whole number")
    return np.unique(np.array(values, np.float64))


def parse_grid(text: str) -> np.ndarray:
    """Return the numbers of LOW:HIGH:COUNT, evenly spaced, or of a list with commas.

    Raises:
      ValueError: one line that begins with the text.
    """
    try:
        parts = [float(part) for part in text.replace(":", ",").split(",")]
        if ":" in text:
            low, high, count = parts
            parts = np.linspace(low, high, int(count))
    except ValueError:
        parts = []
    if not len(parts) or not 0 < min(parts) <= max(parts) < math.inf:
        raise ValueError(f"{text}: write LOW:HIGH:COUNT or positive numbers with commas")
    return np.array(parts, np.float64)
