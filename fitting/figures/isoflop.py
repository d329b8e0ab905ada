"""Figures 2 and 9: runs of equal cost, and the empirical frontier."""

import numpy as np
from matplotlib.figure import Figure

from fitting import formatting
from fitting.figures.groups import (
    cost_groups,
    curve_costs,
    keep_law,
    keep_runs,
    listed,
    name_row,
    of_sweep,
    predict,
)
from fitting.figures.style import (
    MARKERS,
    PALETTE,
    legend_below,
    log_axis,
    panel_grid,
    shades,
    styled,
)
from fitting.frontiers import empirical_frontier
from fitting.law import BaggedFit
from fitting.runs import RunTable


@styled
def isoflop_curves(laws, table: RunTable, cost) -> Figure:
    """Draw isoFLOP runs and the law's curves, a panel per level of the first factor, a row per law.

    A colour is a cost; a ring marks its best measured run. The last panel is the empirical
    frontier: the best run within each cost, and what the law says there.

    Args:
      laws: a `BaggedFit` or several, of as many metrics.
      table: the runs of these metrics.
      cost: x [R, K] -> FLOPs [R].

    Raises:
      ValueError: the table holds no isoFLOP runs, or a single factor.
    """
    laws = listed(laws)
    if len(table.factors) < 2:
        raise ValueError(f"isoFLOP curves trade two or more factors; there is {table.factors[0]}")
    if not of_sweep(table, "isoflop").any():
        raise ValueError(f"{table.source}: no runs with sweep 'isoflop', so no isoFLOP curves")
    runs = table.select(sweep="isoflop")
    models = np.unique(runs.x[:, 0]) if len(table.factors) > 2 else [None]
    figure, axes = panel_grid(len(laws), len(models) + 1)
    for row, law in zip(axes, laws, strict=True):
        _draw_isoflop(row, law, runs.select(metric=law.metric), models, cost)
        name_row(row[0], law.metric, runs)
    legend_below(figure, axes[0, 0], where="left")
    legend_below(figure, axes[0, -1], where="right")
    return figure


def _draw_isoflop(axes, law: BaggedFit, runs: RunTable, models, cost) -> None:
    curve_R, costs = cost_groups(cost(runs.x)), curve_costs(cost(runs.x))
    for curve, (middle, colour) in enumerate(shades(costs).items()):
        style = dict(color=colour, marker=MARKERS[curve % 6])
        rows = runs.take(curve_R == curve)
        best = np.argmin(rows.error)
        label = _budget_text(rows) or f"about {formatting.flops(middle, 2)}"
        for axis, level in zip(axes, models, strict=False):
            at_level = np.ones(len(rows), bool) if level is None else rows.x[:, 0] == level
            if at_level.any():
                _draw_curve(axis, law, rows.take(at_level), label, **style)
            if at_level[best]:
                ring = dict(ms=12, mfc="none", mec="black", mew=1.3)
                axis.plot(rows.x[best, -1], rows.error[best], "o", **ring)
        axes[0].plot([], [], linestyle="none", label=label, **style)
    for axis, level in zip(axes, models, strict=False):
        at_level = runs if level is None else runs.take(runs.x[:, 0] == level)
        log_axis(axis, at_level.x[:, -1], formatting.label(runs.factors[-1]))
        name = formatting.short(runs.factors[0])
        axis.set_title(f"all {name}" if level is None else f"{formatting.count(level)} {name}")
    _draw_empirical(axes[-1], law, runs, cost)


def _budget_text(rows: RunTable) -> str:
    """Return the nominal cost of a curve from the column 'budget'; '' where it is unknown."""
    try:
        meant = {float(text) for text in rows.columns.get("budget", ())}
    except ValueError:
        return ""
    return formatting.flops(meant.pop()) if len(meant) == 1 and min(meant) > 0 else ""


def _draw_curve(axis, law: BaggedFit, rows: RunTable, budget, *, color, marker: str) -> None:
    """Draw one curve: measured dots, and the law along the log-log path between them."""
    z = rows.x if rows.n is None else np.column_stack([rows.x, rows.n])
    order = np.lexsort((*z.T, z[:, len(rows.factors) - 1]))
    along_path, first = np.unique(z[order, len(rows.factors) - 1], return_index=True)
    log_z, log_path = np.log(z[order][first]), np.log(along_path)
    path = np.linspace(log_path[0], log_path[-1], 60)
    dense = np.exp(np.stack([np.interp(path, log_path, column) for column in log_z.T], axis=1))
    said = predict(law, dense)
    axis.plot(np.exp(path), said, color=color, alpha=0.9)
    axis.plot(rows.x[:, -1], rows.error, marker, color=color, ms=5)
    columns = dict(panel=formatting.count(rows.x[0, 0]), budget=budget)
    keep_law(axis, law, dense, said, **columns)
    keep_runs(axis, rows, rows.x[:, -1], rows.error, **columns, predicted=predict(law, z))


def _draw_empirical(axis, law: BaggedFit, runs: RunTable, cost) -> None:
    size, unit = formatting.flops_unit(cost(runs.x))
    best = empirical_frontier(runs, cost)
    axis.plot(cost(runs.x) / size, runs.error, "o", color="#c4c4c4", ms=3.5)
    axis.step(best.cost / size, best.error, where="post", color="black")
    ring = dict(ms=8, mfc="none", mec="black", label="best measured")
    axis.plot(best.cost / size, best.error, "o", **ring)
    said = law.predict(best.x, None if law.examples is None else best.num_examples)
    cross = dict(color=PALETTE[1], ms=6, mew=1.8, label="the law there")
    axis.plot(best.cost / size, said, "x", **cross)
    where = np.array([np.flatnonzero(runs.run_id == name)[0] for name in best.run_id])
    columns = dict(panel="empirical frontier", flops=best.cost, predicted=said)
    keep_runs(axis, runs.take(where), best.cost / size, best.error, **columns)
    axis.set_title("empirical frontier")
    log_axis(axis, curve_costs(cost(runs.x)) / size, f"inference cost ({unit})", digits=2)
