"""Figures 7 and 8: every run of both sweeps."""

import numpy as np
from matplotlib.figure import Figure

from fitting import formatting
from fitting.figures.groups import (
    along,
    center,
    curve_costs,
    error_bars,
    keep_runs,
    name_row,
    of_sweep,
)
from fitting.figures.style import (
    MARKERS,
    PALETTE,
    legend_below,
    log_axis,
    panel_grid,
    plain,
    shades,
    styled,
)
from fitting.runs import RunTable

MOST_LINES = 8  # labelled lines per panel


@styled
def all_runs(table: RunTable, cost=None) -> Figure:
    """Draw every run against each factor and, in the last panel, against cost; a row per metric.

    With a star sweep the factors' panels show its arms, else all runs; lines join runs that differ
    in the panel's factor only. Bars are one standard error, where it is known.

    Args:
      table: runs of one metric or several.
      cost: x [R, K] -> FLOPs [R]; None leaves the last panel out.
    """
    num_factors = len(table.factors)
    figure, axes = panel_grid(len(table.metrics), num_factors + (cost is not None), height=2.9)
    for row, metric in zip(axes, table.metrics, strict=True):
        runs = table.select(metric=metric)
        star, rest = of_sweep(runs, "star"), ~of_sweep(runs, "star")
        shown = runs.take(star) if star.any() else runs
        for k, axis in enumerate(row[:num_factors]):
            _draw_arm(axis, shown, k, center(runs) if star.any() else None)
        if cost is not None:
            _draw_by_cost(row[-1], runs.take(rest) if rest.any() else runs, cost)
        name_row(row[0], metric, table)
    for axis in axes[1:].flat:  # the same titles as in the first row
        axis.set_title("")
    if table.n is not None:
        legend_below(figure, axes[0, 0], where="left", title="n =")
    if cost is not None:
        title = formatting.short(table.factors[0])
        legend_below(figure, axes[0, -1], where="right", title=title)
    return figure


def _draw_arm(axis, runs: RunTable, k: int, middle) -> None:
    """Draw the error along factor k, with a line for each n, or level of another factor."""
    axis.set_title("all runs" if middle is None else "star")
    if middle is not None:
        runs = runs.take(along(runs, middle, k))
    others = np.delete(runs.x, k, axis=1)
    if runs.n is not None:
        others = np.column_stack([runs.n, others])
    if not others.shape[1]:
        others = np.zeros((len(runs), 1))
    colours, ends = shades(others[:, 0]), {}
    for level in np.unique(others, axis=0):
        rows = runs.take((others == level).all(axis=1))
        order = np.argsort(rows.x[:, k])
        shade = level[0]
        style = dict(color=colours[shade], ms=4)
        label = None if shade in ends else formatting.count(shade)
        axis.plot(rows.x[order, k], rows.error[order], "o-", label=label, **style)
        error_bars(axis, rows, rows.x[:, k], rows.error, ecolor=colours[shade])
        keep_runs(axis, rows, rows.x[:, k], rows.error, panel=formatting.label(runs.factors[k]))
        ends[shade] = rows.x[order[-1], k], rows.error[order[-1]]
    log_axis(axis, runs.x[:, k], formatting.label(runs.factors[k]))
    if runs.n is None and len(runs.factors) > 1:
        axis.set_title(f"lines: {formatting.short(runs.factors[0 if k else 1])}")
        _name_lines(axis, ends, colours)


def _name_lines(axis, ends: dict, colours: dict) -> None:
    """Label at most eight lines at their right ends, where there is room."""
    levels, taken = sorted(ends), []
    low, high = axis.get_ylim()
    most = min(MOST_LINES, len(levels))
    for i in np.unique(np.linspace(0, len(levels) - 1, most).round().astype(int)):
        x, y = ends[levels[i]]
        if any(abs(np.log(x / a)) < 0.1 and abs(y - b) < 0.04 * (high - low) for a, b in taken):
            continue
        taken.append((x, y))
        style = dict(xytext=(5, 0), textcoords="offset points", va="center", fontsize=7)
        axis.annotate(formatting.count(levels[i]), (x, y), color=colours[levels[i]], **style)


def _draw_by_cost(axis, table: RunTable, cost) -> None:
    size, unit = formatting.flops_unit(cost(table.x))
    for index, level in enumerate(np.unique(table.x[:, 0])):
        rows = table.take(table.x[:, 0] == level)
        style = dict(color=PALETTE[index % 6], ms=4.5, alpha=0.85, label=formatting.count(level))
        axis.plot(cost(rows.x) / size, rows.error, MARKERS[index % 6], **style)
        error_bars(axis, rows, cost(rows.x) / size, rows.error, ecolor=style["color"])
        spent = dict(panel="inference cost", flops=cost(rows.x))
        keep_runs(axis, rows, cost(rows.x) / size, rows.error, **spent)
    log_axis(axis, curve_costs(cost(table.x)) / size, f"inference cost ({unit})", digits=2)
    sweeps = ", ".join(table.levels("sweep")) if "sweep" in table.columns else "all runs"
    axis.set_title(plain(sweeps))
