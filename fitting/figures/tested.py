"""A decision on trial: the frontier that a law predicts, and what was trained to test it."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from fitting import formatting
from fitting.figures.style import (
    GREY,
    MARKERS,
    PALETTE,
    error_label,
    keep,
    log_axis,
    round_ticks,
    styled,
)

_RIVALS = ("#222222", *PALETTE[2:])  # the law is blue, the decision vermilion


class Frontier(NamedTuple):
    """Least predicted error by budget: [C] each, with the interval of a run."""

    budgets: np.ndarray
    error: np.ndarray
    low: np.ndarray
    high: np.ndarray


class Point(NamedTuple):
    """A trained configuration: why it was chosen, its cost, and the error of each seed."""

    rule: str
    cost: float
    errors: Sequence[float]
    text: str


@styled
def decision_points(
    frontier: Frontier,
    tests: Sequence[tuple[float, Sequence[Point]]],
    runs: tuple[np.ndarray, np.ndarray],
    *,
    level: float = 0.9,
    scale: float = 100.0,
) -> Figure:
    """Draw error against cost: the frontier with its band, and the points of each tested budget.

    Args:
      frontier: what the law predicts.
      tests: (budget, its points, the decision first) each.
      runs: costs and errors of the runs that the law was fitted to, shown small.
      level: of the band.
      scale: the error of a complete failure.
    """
    figure = Figure(figsize=(5.6, 4.6), layout="constrained")
    axis = figure.subplots()
    size, unit = formatting.flops_unit(frontier.budgets)
    axis.plot(
        runs[0] / size, runs[1], ".", color="#bdbdbd", ms=5, label="runs of the law", zorder=1
    )
    keep(axis, runs[0] / size, runs[1], None, kind="run", cost=runs[0], error=runs[1])
    x = frontier.budgets / size
    axis.fill_between(
        x, frontier.low, frontier.high, color=PALETTE[0], alpha=0.15, linewidth=0,
        label=f"{level:.0%} of runs", step="post",
    )  # fmt: skip
    axis.step(x, frontier.error, color=PALETTE[0], where="post", label="predicted, best")
    keep(axis, x, frontier.error, None, kind="predicted", cost=frontier.budgets,
         error=frontier.error, low=frontier.low, high=frontier.high)  # fmt: skip
    rules = list(dict.fromkeys(point.rule for _, points in tests for point in points))
    for number, (budget, points) in enumerate(tests):
        name = "tested budget" if number == 0 else None
        axis.axvline(budget / size, color=GREY, linewidth=0.8, linestyle=":", label=name)
        for k, point in enumerate(points):
            _draw_point(
                axis, point, point.cost / size, rules.index(point.rule), number == 0, k == 0
            )
    low, high = _reach(frontier, tests, runs)
    axis.set(ylabel=error_label(scale), ylim=(low, high))
    spent = np.concatenate([frontier.budgets, runs[0], [p.cost for _, some in tests for p in some]])
    log_axis(axis, round_ticks(spent / size), f"cost of a video ({unit})")
    axis.set_xlim(spent.min() / size / 1.1, spent.max() / size * 1.05)
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2)
    return figure


def _draw_point(axis, point: Point, cost: float, number: int, named: bool, best: bool) -> None:
    errors = np.asarray(point.errors, float)
    if not len(errors):
        return
    colour = PALETTE[1] if best else _RIVALS[number % len(_RIVALS)]
    marker = "*" if best else MARKERS[number % 6]
    axis.plot([cost] * 2, [errors.min(), errors.max()], color=colour, linewidth=1.4, zorder=3)
    axis.plot(
        cost, errors.mean(), marker, color=colour, ms=15 if best else 7, mec="white", mew=0.4,
        zorder=5 if best else 4, label=point.rule if named else None, linestyle="none",
    )  # fmt: skip
    texts = [f"{point.rule}: {point.text}\nerror {formatting.number(e)}" for e in errors]
    keep(axis, [cost] * len(errors), errors, texts, kind=point.rule, cost=point.cost, error=errors)


def _reach(frontier: Frontier, tests, runs) -> tuple[float, float]:
    """Return limits of the error axis that show all points, and the band where there are any."""
    errors = [e for _, points in tests for point in points for e in point.errors]
    values = np.concatenate([errors, runs[1], frontier.error[np.isfinite(frontier.error)]])
    room = 0.06 * np.ptp(values)
    return values.min() - room, values.max() + room
