"""The paper's figures from fitted objects: each function returns a matplotlib Figure.

    1, 10  iso_performance      contours of equal error over factor x n
    2, 9   isoflop_curves       runs of equal cost, and the empirical frontier
    3      parameter_boxes, predicted_vs_actual, errors_by_task
    4      frontier_paths       x* against the budget, and its elasticity to n
    5      elasticity_by_task
    6      vision_share         of the compute, over x_N and x_V
    7, 8   all_runs             of both sweeps

Where a figure takes one law or a table of one metric it draws one row of panels; several laws or
metrics are a row each, which makes Figures 8, 9 and 10 of 7, 2 and 1. Columns may have any names;
the first factor tells runs apart (the language model), the last is an axis (tokens). Unit prefixes
follow the data, from kFLOPs to PFLOPs. Curves are the law's, dots are measured.
"""

from collections.abc import Mapping

import numpy as np
from matplotlib import patheffects, ticker
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from fitting import summary, units
from fitting.canvas import (
    GREY,
    MARKERS,
    PALETTE,
    error_label,
    legend_below,
    log_axis,
    panel_grid,
    round_ticks,
    shades,
    styled,
)
from fitting.forms import factor_labels
from fitting.frontier import empirical_frontier
from fitting.law import BaggedFit
from fitting.runs import RunTable
from fitting.selection import score

CURVE_GAP = 1.25  # isoFLOP runs whose costs differ by more belong to different curves
ZERO_SPAN = 0.05  # elasticities: the least an axis of them spans to either side of 0
LINEAR_BELOW = 1e-6  # error points: the axis of coefficients is linear at most from here down
SKEWED = 5.0  # errors whose largest is so many times their median need a log axis
MOST_LINES = 8  # of a panel, named


# --- the runs: Figures 7 and 8 ---


@styled
def all_runs(table: RunTable, cost=None) -> Figure:
    """Every run: a panel a factor, the last panel at what the runs cost; a row a metric.

    With a star sweep the factors' panels show its arms, else all runs; lines join runs that differ
    in the panel's factor alone.

    Args:
      table: runs of one metric or several.
      cost: x [R, K] -> FLOPs [R]; None leaves the last panel out.
    """
    num_factors = len(table.factors)
    figure, axes = panel_grid(len(table.metrics), num_factors + (cost is not None), height=2.9)
    for row, metric in zip(axes, table.metrics, strict=True):
        runs = table.select(metric=metric)
        star, rest = _sweep(runs, "star"), ~_sweep(runs, "star")
        shown = runs.take(star) if star.any() else runs
        for k, axis in enumerate(row[:num_factors]):
            _draw_arm(axis, shown, k, center(runs) if star.any() else None)
        if cost is not None:
            _draw_by_cost(row[-1], runs.take(rest) if rest.any() else runs, cost)
        _name_row(row[0], metric, table)
    for axis in axes[1:].flat:  # as above them
        axis.set_title("")
    if table.n is not None:
        legend_below(figure, axes[0, 0], where="left", title="n =")
    if cost is not None:
        title = units.short(table.factors[0])
        legend_below(figure, axes[0, -1], where="right", title=title)
    return figure


def _sweep(table: RunTable, name: str) -> np.ndarray:
    """Bool [R]: the runs of a sweep; none where the table has no such column."""
    return table.columns.get("sweep", np.full(len(table), "")) == name


def _name_row(axis, metric: str, table: RunTable) -> None:
    many = len(table.metrics) > 1
    axis.set_ylabel(f"{metric}: {error_label(table.scale)}" if many else error_label(table.scale))


def _draw_arm(axis, runs: RunTable, k: int, middle) -> None:
    """Error along factor k; a line joins runs alike in all else, shaded by n or another factor."""
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
        label = None if shade in ends else units.count(shade)
        axis.plot(rows.x[order, k], rows.error[order], "o-", label=label, **style)
        ends[shade] = rows.x[order[-1], k], rows.error[order[-1]]
    log_axis(axis, runs.x[:, k], units.label(runs.factors[k]))
    if runs.n is None and len(runs.factors) > 1:
        axis.set_title(f"lines: {units.short(runs.factors[0 if k else 1])}")
        _name_lines(axis, ends, colours)


def _name_lines(axis, ends: dict, colours: dict) -> None:
    """The level of at most eight lines, beside their right ends, where there is room."""
    levels, taken = sorted(ends), []
    low, high = axis.get_ylim()
    most = min(MOST_LINES, len(levels))
    for i in np.unique(np.linspace(0, len(levels) - 1, most).round().astype(int)):
        x, y = ends[levels[i]]
        if any(abs(np.log(x / a)) < 0.1 and abs(y - b) < 0.04 * (high - low) for a, b in taken):
            continue
        taken.append((x, y))
        style = dict(xytext=(5, 0), textcoords="offset points", va="center", fontsize=7)
        axis.annotate(units.count(levels[i]), (x, y), color=colours[levels[i]], **style)


def _draw_by_cost(axis, table: RunTable, cost) -> None:
    size, unit = units.flops_unit(cost(table.x))
    for index, level in enumerate(np.unique(table.x[:, 0])):
        rows = table.take(table.x[:, 0] == level)
        style = dict(color=PALETTE[index % 6], ms=4.5, alpha=0.85, label=units.count(level))
        axis.plot(cost(rows.x) / size, rows.error, MARKERS[index % 6], **style)
    log_axis(axis, curve_costs(cost(table.x)) / size, f"inference cost ({unit})", digits=2)
    axis.set_title(", ".join(table.levels("sweep")) if "sweep" in table.columns else "all runs")


# --- contours: Figures 1 and 10 ---


@styled
def iso_performance(laws, table: RunTable) -> Figure:
    """Contours of equal predicted error over factor x n, a panel a factor; a row a law.

    The other factors stay at the star's centre, or the commonest level. Dots are the runs measured
    there, in the colour of their own error, so that a dot that stands out of its surroundings is a
    miss of the law. A law without n has a panel for each pair of factors.

    Args:
      laws: a `BaggedFit` or several, of as many metrics.
      table: the runs of these metrics.

    Raises:
      ValueError: the runs vary in less than two columns, or no run is of a law's metric.
    """
    laws = _listed(laws)
    pairs = _pairs(laws[0])
    figure, axes = panel_grid(len(laws), len(pairs), width=3.9, height=3.2, sharey=False)
    for row, law in zip(axes, laws, strict=True):
        runs = table.select(metric=law.metric)
        _draw_contours(figure, row, law, runs, pairs)
        if len(laws) > 1:
            row[0].set_ylabel(f"{law.metric}\n{row[0].get_ylabel()}")
    return figure


def _listed(laws) -> list[BaggedFit]:
    return [laws] if isinstance(laws, BaggedFit) else list(laws)


def _pairs(law: BaggedFit) -> list[tuple[int, int]]:
    """Columns (across, up) of the panels: each factor against n, or against the others."""
    low, high = law.ranges.T
    varied = [k for k in range(len(law.columns)) if low[k] < high[k]]
    last = len(law.factors)
    if law.examples is not None:
        pairs = [(k, last) for k in varied if k < last and last in varied]
    else:
        pairs = [(i, j) for i in varied for j in varied if i < j]
    if not pairs:
        names = ", ".join(law.columns[k] for k in varied) or "nothing"
        what = f"a factor and {law.examples}" if law.examples else "two factors"
        raise ValueError(f"contours need runs that vary in {what}; these vary in {names}")
    return pairs


def _draw_contours(figure, axes, law: BaggedFit, table: RunTable, pairs) -> None:
    z = table.x if table.n is None else np.column_stack([table.x, table.n])
    middle = center(table) if table.n is None else np.append(center(table), np.median(table.n))
    names = law.columns
    grids = [_surface(law, middle, pair) for pair in pairs]
    fixed = [[k for k in range(len(law.factors)) if k not in pair] for pair in pairs]
    dots = [(z[:, rest] == middle[rest]).all(axis=1) for rest in fixed]
    values = np.concatenate([g[2].ravel() for g in grids] + [table.error[d] for d in dots])
    levels = ticker.MaxNLocator(12).tick_values(values.min(), values.max())
    style = dict(cmap="cividis_r", norm=Normalize(levels[0], levels[-1]))
    for axis, (across, up), rest, grid, dot in zip(axes, pairs, fixed, grids, dots, strict=True):
        _span_log(axis, *grid[:2])
        filled = axis.contourf(*grid, levels, **style)
        lines = axis.contour(*grid, levels, colors="white", linewidths=0.7)
        _name_contours(axis, lines, "%g")
        if grid[2].max() > law.scale:  # beyond lies the impossible
            axis.contour(*grid, [law.scale], colors=PALETTE[1], linestyles="--", linewidths=1.5)
        marks = dict(s=46, edgecolors="white", linewidths=1.2, zorder=3, clip_on=False)
        axis.scatter(z[dot, across], z[dot, up], c=table.error[dot], **style, **marks)
        ticks = np.concatenate([z[dot, across], law.ranges[across]])
        log_axis(axis, ticks, units.label(names[across]))
        log_axis(axis, z[:, up], None, which="y")
        if rest:
            held = ", ".join(f"{units.short(names[k])} = {units.count(middle[k])}" for k in rest)
            axis.set_title(f"at {held}")
        axis.grid(False)
        if axis is axes[0] or law.examples is None:
            axis.set_ylabel(units.label(names[up]))
    figure.colorbar(filled, ax=axes, label=error_label(law.scale), pad=0.01)


def _span_log(axis, across, up) -> None:
    """Log axes over the grid, before contours are drawn: their labels go by what is seen."""
    limits = dict(xlim=(across.min(), across.max()), ylim=(up.min(), up.max()))
    axis.set(xscale="log", yscale="log", **limits)


def _name_contours(axis, lines, text: str) -> None:
    """Labels over whole lines, read on light and dark; none in the outermost 5%, cut there.

    A line whose automatic labels all fall there gets one in the middle of what is left of it.
    """
    named = _inner_labels(axis, axis.clabel(lines, fmt=text, **_LABEL))
    for level, path in zip(lines.levels, lines.get_paths(), strict=True):
        inner = path.vertices[_is_inner(axis, path.vertices)]
        if len(inner) and text % level not in named:
            middle = inner[len(inner) // 2]
            _inner_labels(axis, lines.clabel([level], fmt=text, manual=[middle], **_LABEL))


_LABEL = dict(fontsize=7, colors="black", inline=False)


def _inner_labels(axis, labels) -> set:
    """Hides the labels near the frame and returns the texts of the others."""
    for label in labels:
        label.set_visible(bool(_is_inner(axis, np.array([label.get_position()]))[0]))
        label.set_path_effects([patheffects.withStroke(linewidth=2.5, foreground="white")])
    return {label.get_text() for label in labels if label.get_visible()}


def _is_inner(axis, points) -> np.ndarray:
    """Bool [V]: points [V, 2] that are not in the outermost 5% of the panel."""
    if not len(points):
        return np.zeros(0, bool)
    place = axis.transAxes.inverted().transform(axis.transData.transform(points))
    return (abs(place - 0.5) < 0.45).all(axis=1)


def _surface(law: BaggedFit, middle, pair):
    """Grids (across, up, error), each [60, 60], over the fitted ranges; other columns fixed."""
    across, up = np.meshgrid(*(np.geomspace(*law.ranges[k], 60) for k in pair))
    z = np.broadcast_to(middle, (*across.shape, len(middle))).copy()
    z[..., pair[0]], z[..., pair[1]] = across, up
    return across, up, _predict(law, z)


def _predict(law: BaggedFit, z) -> np.ndarray:
    """Error [...] at z [..., C], the factors and, with examples, n."""
    size = len(law.factors)
    return law.predict(z[..., :size], None if law.examples is None else z[..., -1])


# --- equal cost: Figures 2 and 9 ---


@styled
def isoflop_curves(laws, table: RunTable, cost) -> Figure:
    """isoFLOP runs and the law's curves, a panel for each level of the first factor; a row a law.

    A colour is a cost; a ring marks its best measured run. The last panel is the empirical
    frontier: the best run within each cost, and what the law says there.

    Args:
      laws: a `BaggedFit` or several, of as many metrics.
      table: the runs of these metrics.
      cost: x [R, K] -> FLOPs [R].

    Raises:
      ValueError: the table holds no isoFLOP runs, or a single factor.
    """
    laws = _listed(laws)
    if len(table.factors) < 2:
        raise ValueError(f"isoFLOP curves trade two or more factors; there is {table.factors[0]}")
    if not _sweep(table, "isoflop").any():
        raise ValueError(f"{table.source}: no runs with sweep 'isoflop', so no isoFLOP curves")
    runs = table.select(sweep="isoflop")
    models = np.unique(runs.x[:, 0]) if len(table.factors) > 2 else [None]
    figure, axes = panel_grid(len(laws), len(models) + 1)
    for row, law in zip(axes, laws, strict=True):
        _draw_isoflop(row, law, runs.select(metric=law.metric), models, cost)
        _name_row(row[0], law.metric, runs)
    legend_below(figure, axes[0, 0], where="left")
    legend_below(figure, axes[0, -1], where="right")
    return figure


def _draw_isoflop(axes, law: BaggedFit, runs: RunTable, models, cost) -> None:
    curve_R, costs = cost_groups(cost(runs.x)), curve_costs(cost(runs.x))
    for curve, (middle, colour) in enumerate(shades(costs).items()):
        style = dict(color=colour, marker=MARKERS[curve % 6])
        rows = runs.take(curve_R == curve)
        best = np.argmin(rows.error)
        for axis, level in zip(axes, models, strict=False):
            at_level = np.ones(len(rows), bool) if level is None else rows.x[:, 0] == level
            if at_level.any():
                _draw_curve(axis, law, rows.take(at_level), **style)
            if at_level[best]:
                ring = dict(ms=12, mfc="none", mec="black", mew=1.3)
                axis.plot(rows.x[best, -1], rows.error[best], "o", **ring)
        label = _budget_text(rows) or f"about {units.flops(middle, 2)}"
        axes[0].plot([], [], linestyle="none", label=label, **style)
    for axis, level in zip(axes, models, strict=False):
        at_level = runs if level is None else runs.take(runs.x[:, 0] == level)
        log_axis(axis, at_level.x[:, -1], units.label(runs.factors[-1]))
        name = units.short(runs.factors[0])
        axis.set_title(f"all {name}" if level is None else f"{units.count(level)} {name}")
    _draw_empirical(axes[-1], law, runs, cost)


def _budget_text(rows: RunTable) -> str:
    """What the runs of a curve were meant to cost, by their column 'budget'; '' where unknown."""
    try:
        meant = {float(text) for text in rows.columns.get("budget", ())}
    except ValueError:
        return ""
    return units.flops(meant.pop()) if len(meant) == 1 and min(meant) > 0 else ""


def _draw_curve(axis, law: BaggedFit, rows: RunTable, *, color, marker: str) -> None:
    """One curve: measured dots, and the law along the straight log-log path through them."""
    z = rows.x if rows.n is None else np.column_stack([rows.x, rows.n])
    order = np.lexsort((*z.T, z[:, len(rows.factors) - 1]))
    along_path, first = np.unique(z[order, len(rows.factors) - 1], return_index=True)
    log_z, log_path = np.log(z[order][first]), np.log(along_path)
    path = np.linspace(log_path[0], log_path[-1], 60)
    dense = np.exp(np.stack([np.interp(path, log_path, column) for column in log_z.T], axis=1))
    axis.plot(np.exp(path), _predict(law, dense), color=color, alpha=0.9)
    axis.plot(rows.x[:, -1], rows.error, marker, color=color, ms=5)


def _draw_empirical(axis, law: BaggedFit, runs: RunTable, cost) -> None:
    size, unit = units.flops_unit(cost(runs.x))
    best = empirical_frontier(runs, cost)
    axis.plot(cost(runs.x) / size, runs.error, "o", color="#c4c4c4", ms=3.5)
    axis.step(best.cost / size, best.error, where="post", color="black")
    ring = dict(ms=8, mfc="none", mec="black", label="best measured")
    axis.plot(best.cost / size, best.error, "o", **ring)
    said = law.predict(best.x, None if law.examples is None else best.num_examples)
    cross = dict(color=PALETTE[1], ms=6, mew=1.8, label="the law there")
    axis.plot(best.cost / size, said, "x", **cross)
    axis.set_title("empirical frontier")
    log_axis(axis, curve_costs(cost(runs.x)) / size, f"inference cost ({unit})", digits=2)


# --- the fit: Figure 3 ---


@styled
def parameter_boxes(law: BaggedFit) -> Figure:
    """Figure 3a: the members' parameters; coefficients in error points, exponents without unit.

    Boxes span the middle half, whiskers 5% to 95%; the cross is the fit to all runs. Grey boxes
    are of parameters that the runs do not determine.

    Raises:
      ValueError: the law is degenerate, so that its parameters mean nothing.
    """
    if law.degenerate:
        raise ValueError(f"the parameters of {law.metric} mean nothing: {law.degenerate}")
    rows, unknown_P = law.parameter_rows(), summary.undetermined(law)
    values_BP = np.where(law.absent, 0.0, law.values)[np.isfinite(law.theta).all(axis=1)]
    shares = [law.layout.num_terms, law.layout.num_parameters - law.layout.num_terms]
    figure = Figure(figsize=(2.2 + 0.52 * len(rows), 3.4), layout="constrained")
    axes = figure.subplots(1, 2, width_ratios=[max(2, s) for s in shares])
    for axis, part in ((axes[0], ~law.is_exponent), (axes[1], law.is_exponent)):
        at, where = np.arange(1, part.sum() + 1), np.flatnonzero(part)
        boxes = axis.boxplot(
            list(values_BP[:, part].T),
            whis=(5, 95),
            showfliers=False,
            patch_artist=True,
            widths=0.55,
            boxprops=dict(facecolor="#cfe3f1", edgecolor=PALETTE[0]),
            medianprops=dict(color=PALETTE[1], linewidth=2),
            whiskerprops=dict(color=PALETTE[0]),
            capprops=dict(color=PALETTE[0]),
        )
        for box, unknown in zip(boxes["boxes"], unknown_P[part], strict=True):
            if unknown:
                box.set(facecolor="#d4d4d4", edgecolor=GREY)
        axis.plot(at, [rows[p][1] for p in where], "kx", ms=6)
        axis.set_xticks(at, [_symbol(law.parameters[p]) for p in where])
        axis.grid(axis="x", visible=False)
    axes[0].set(title="coefficients", ylabel=f"error (of {law.scale:g})")
    ends = [row[1:5] for row in rows[: shares[0]]]  # whole fit, median, 5%, 95%
    _room_for(axes[0], np.array(ends), LINEAR_BELOW * law.scale / 100)
    cap, title = law.config.exponent_cap, "exponents"
    axes[1].axhline(0, color=GREY, linewidth=0.8)
    if law.at_cap.any() and cap is not None:
        for side in (cap, -cap):
            axes[1].axhline(side, color=GREY, linewidth=1, linestyle=":")
        title += " (dotted: the cap)"
    axes[1].set_title(title)
    if unknown_P.any():
        figure.supxlabel("grey: not determined by the runs", fontsize=8, color=GREY)
    return figure


def _room_for(axis, shown, least: float) -> None:
    """A symlog axis from the smallest value but 0 (never below `least`) to the largest.

    Below it the axis is linear down to 0, where a value is 0 or smaller; else it is left out.
    """
    size = np.abs(shown[np.abs(shown) > least])
    low, high = (size.min(), size.max()) if len(size) else (least, least)
    powers = np.arange(np.floor(np.log10(low)), max(np.ceil(np.log10(high)), 1 + np.log10(low)) + 1)
    threshold, bottom = 10.0 ** powers[0], shown.min()
    axis.set_yscale("symlog", linthresh=threshold)
    ticks = 10.0 ** powers[:: 1 + len(powers) // 7]
    axis.set_yticks([0, *ticks], ["0", *(f"{tick:g}" for tick in ticks)])
    axis.yaxis.set_minor_locator(ticker.NullLocator())
    start = low / 2 if bottom >= low else min(2 * bottom, -threshold / 4)
    axis.set_ylim(start, high * 2)


def _symbol(name: str) -> str:
    """alpha_N -> mathtext of the same symbol."""
    symbol, _, index = name.partition("_")
    symbol = "\\" + symbol if len(symbol) > 1 else symbol
    return f"${symbol}_{{{index}}}$" if index else f"${symbol}$"


@styled
def predicted_vs_actual(table: RunTable, predictions: Mapping[str, np.ndarray]) -> Figure:
    """Figure 3b: predicted against measured error, a panel each.

    Args:
      table: runs of one metric.
      predictions: title -> error [R], NaN where a run is not predicted.

    Raises:
      ValueError: predictions of no run at all.
    """
    for title, predicted in predictions.items():
        if np.isnan(predicted).all():
            raise ValueError(f"{title}: no run is predicted")
    figure, axes = panel_grid(1, len(predictions), width=3.7, height=3.6)
    known = np.concatenate([p[~np.isnan(p)] for p in predictions.values()])
    shown = np.concatenate([table.error, known])
    margin = 0.04 * np.ptp(shown) or 1.0
    span = shown.min() - margin, shown.max() + margin
    ticks = ticker.MaxNLocator(6).tick_values(*span)
    ticks = ticks[(ticks >= span[0]) & (ticks <= span[1])]
    sweep_R = table.columns.get("sweep", np.full(len(table), "runs"))
    for axis, (title, predicted) in zip(axes[0], predictions.items(), strict=True):
        axis.plot(span, span, color=GREY, linewidth=1)
        for index, sweep in enumerate(np.unique(sweep_R)):
            rows = (sweep_R == sweep) & ~np.isnan(predicted)
            if rows.any():
                style = dict(color=PALETTE[index % 6], ms=5, alpha=0.8, label=sweep)
                axis.plot(table.error[rows], predicted[rows], MARKERS[index % 6], **style)
        axis.legend(loc="lower right")
        axis.set(xticks=ticks, yticks=ticks, aspect="equal", title=title, xlabel="measured error")
        axis.set(xlim=span, ylim=span)
        text = _score_text(score(predicted, table.error))
        axis.text(0.04, 0.96, text, transform=axis.transAxes, va="top")
    axes[0, 0].set_ylabel("predicted error")
    return figure


def _score_text(found) -> str:
    return f"R² = {found.r2:.3f}\nMSE = {found.mse:.3g}\nE = {found.percent:.2g}%"


@styled
def errors_by_task(comparisons: Mapping) -> Figure:
    """Figure 3c: mean relative error of each form on runs it has not seen, a line a task.

    Args:
      comparisons: task -> `Comparison`, all of the same forms.
    """
    first = next(iter(comparisons.values()))
    splits = [first.splits[0], *([first.extrapolation] if first.extrapolation else [])]
    tasks, at = list(comparisons), np.arange(len(comparisons))
    figure, axes = panel_grid(1, len(splits), width=4.2, height=1.3 + 0.32 * len(tasks))
    for axis, split in zip(axes[0], splits, strict=True):
        percents_ET = np.array(
            [[comparisons[t].score(e.name, split).percent for t in tasks] for e in first.entries]
        )
        for index, (entry, percents) in enumerate(zip(first.entries, percents_ET, strict=True)):
            style = dict(color=PALETTE[index % 6], ms=5.5, label=entry.name)
            apart = 0.14 * (index - (len(first.entries) - 1) / 2)
            axis.plot(percents, at + apart, MARKERS[index % 6], **style)
        axis.set(title=split, xlabel="mean relative error E (%)")
        if np.nanmax(percents_ET) > SKEWED * np.nanmedian(percents_ET) > 0:
            known = percents_ET[percents_ET > 0]
            ends = np.array([known.min() / 1.5, known.max() * 1.5])
            log_axis(axis, round_ticks(ends), "mean relative error E (%), log")
            axis.set_xlim(*ends)
        else:
            axis.set_xlim(left=0)
    _name_tasks(axes[0, 0], tasks)
    legend_below(figure, axes[0, 0])
    return figure


def _name_tasks(axis, tasks: list[str]) -> None:
    axis.set_yticks(np.arange(len(tasks)), tasks)
    axis.set_ylim(len(tasks) - 0.5, -0.5)


# --- the frontier: Figures 4, 5 and 6 ---


@styled
def frontier_paths(
    best, factors, change=None, unit: str | None = None, *, fitted_n=(0.0, np.inf)
) -> Figure:
    """Figure 4: x* of each factor against the budget, a shade for each n, and the elasticity.

    Args:
      best: a `Frontier`.
      factors: names of its K factors.
      change: an `Elasticity`, drawn in a last panel against n (equation 10), with the interval of
        the mean over members beside it; None leaves it out.
      unit: of the budgets; None for FLOPs.
      fitted_n: least and largest n of the fitted runs; where n, or n with its step, lies beyond,
        elasticities are open marks and do not set the axis.

    Raises:
      ValueError: no budget affords any configuration.
    """
    if np.isnan(best.cost).all():
        raise ValueError(f"no budget up to {best.budgets.max():g} affords any configuration")
    panels = len(factors) + (change is not None)
    figure, axes = panel_grid(1, panels, sharey=False)
    size, unit = units.flops_unit(best.budgets) if unit is None else (1.0, unit)
    order = np.argsort(best.budgets)
    for k, (axis, name) in enumerate(zip(axes[0], factors, strict=False)):
        for column, (n, colour, width) in enumerate(_shaded(best.num_examples)):
            style = dict(color=colour, linewidth=width, label=units.count(n, 2))
            path = best.x[order, column, k]
            axis.step(best.budgets[order] / size, path, where="post", **style)
        axis.set_title(f"best {units.label(name)}")
        log_axis(axis, best.x[..., k], None, which="y")
        log_axis(axis, round_ticks(best.budgets / size), f"inference budget ({unit})")
    if np.isfinite(best.num_examples).all():
        legend_below(figure, axes[0, 0], where="left", title="n =")
    if change is not None:
        _draw_elasticity(axes[0, -1], change, factors, fitted_n)
        legend_below(figure, axes[0, -1], where="right")
    return figure


def _shaded(num_examples):
    """(n, colour, line width): paths that coincide stay visible, the later one is thinner."""
    if not np.isfinite(num_examples).all():
        return [(n, PALETTE[0], 1.6) for n in num_examples]
    colours, rank = shades(num_examples), np.argsort(np.argsort(num_examples))
    widths = 3.4 - 2.2 * rank / max(1, len(num_examples) - 1)
    return [(n, colours[n], w) for n, w in zip(num_examples, widths, strict=True)]


def _draw_elasticity(axis, change, factors, fitted_n) -> None:
    lines_MK, (low_K, high_K) = change.by_num_examples, change.interval()
    order = np.argsort(change.num_examples)
    n_M, lines_MK = change.num_examples[order], lines_MK[order]
    inside_M = (n_M >= fitted_n[0] * (1 - 1e-9)) & (n_M + change.delta <= fitted_n[1] * (1 + 1e-9))
    for k, label in enumerate(factor_labels(len(factors))):
        colour, marker, mean = PALETTE[k % 6], MARKERS[k % 6], change.mean[k]
        number = f"{mean:+.2f}".replace("-", "−")
        text = f"{label}: mean {number}" if np.isfinite(mean) else f"{label}: undefined"
        axis.plot(n_M, lines_MK[:, k], color=colour, linewidth=1, linestyle=":")
        axis.plot(n_M, lines_MK[:, k], marker, color=colour, ms=4, mfc="white")
        style = dict(color=colour, ms=4, label=text)
        axis.plot(n_M[inside_M], lines_MK[inside_M, k], marker + "-", **style)
        if np.isfinite(low_K[k]):
            bar = dict(color=colour, transform=axis.get_yaxis_transform())
            right = 0.96 - 0.14 * (1 - (k + 0.5) / len(factors))
            axis.plot([right, right], [low_K[k], high_K[k]], linewidth=2.5, alpha=0.6, **bar)
            axis.plot([right], [mean], marker, ms=5, mec="white", mew=0.6, **bar)
    axis.axhline(0, color=GREY, linewidth=0.8)
    log_axis(axis, n_M, units.LABELS["num_examples"], digits=2)
    if len(change.members) and n_M[0] < n_M[-1]:  # room for the bars at the right
        room = n_M[-1] / n_M[0]
        axis.set_xlim(n_M[0] / room**0.05, n_M[-1] * room**0.3)
        axis.text(0.89, 0.99, "mean", transform=axis.transAxes, ha="center", va="top", fontsize=7)
    held = lines_MK[inside_M] if inside_M.any() else lines_MK
    axis.set_ylim(*_span_elasticities(np.concatenate([*held, change.mean, low_K, high_K])))
    if not inside_M.all():
        note = dict(transform=axis.transAxes, va="bottom", fontsize=7, color=GREY)
        axis.text(0.02, 0.01, "open: beyond the runs", **note)
    axis.set_title("elasticity of x* to n")


def _span_elasticities(values) -> tuple[float, float]:
    """Limits of an axis that holds 0 and the values; zeros do not look like findings."""
    values = np.append(values[np.isfinite(values)], 0.0)
    low, high = values.min(), values.max()
    room = 0.1 * (high - low)
    return min(low - room, -ZERO_SPAN), max(high + room, ZERO_SPAN)


@styled
def elasticity_by_task(changes: Mapping, factors) -> Figure:
    """Figure 5: the mean elasticity of each factor to n and its interval over members, by task.

    Args:
      changes: task -> `Elasticity`.
      factors: names of the K factors.
    """
    tasks = list(changes)
    figure, axes = panel_grid(1, len(factors), height=1.2 + 0.32 * len(tasks))
    for k, (axis, name) in enumerate(zip(axes[0], factors, strict=True)):
        axis.axvline(0, color=GREY, linewidth=0.8)
        ends = [[c.mean[k], *(end[k] for end in c.interval())] for c in changes.values()]
        axis.set_xlim(*_span_elasticities(np.ravel(ends)))
        for row, task in enumerate(tasks):
            _, low, high = ends[row]
            axis.plot([low, high], [row, row], color=PALETTE[k % 6], linewidth=2.5, alpha=0.45)
            axis.plot(changes[task].mean[k], row, MARKERS[k % 6], color=PALETTE[k % 6], ms=6)
        axis.set(title=units.label(name), xlabel="elasticity of x* to n")
    _name_tasks(axes[0, 0], tasks)
    return figure


@styled
def vision_share(cost, lm_params, tokens_per_frame, table: RunTable | None = None) -> Figure:
    """Figure 6: share of the inference compute that the vision model takes, over (x_N, x_V).

    Under equation 1 it is x_M x_W / (x_M x_W + x_N x_V), whatever the number of frames.

    Args:
      cost: `CostConstants`.
      lm_params, tokens_per_frame: the ranges to cover; their least and largest values count.
      table: runs to mark, with columns of these names; or None.

    Raises:
      ValueError: a cost model without a vision model of its own, or a range of one value.
    """
    if not hasattr(cost, "vision_params"):
        raise ValueError("the share of vision compute needs equation 1, a CostConstants")
    ranges = {"lm_params": lm_params, "tokens_per_frame": tokens_per_frame}
    for name, values in ranges.items():
        if np.min(values) == np.max(values):
            raise ValueError(f"the share of vision compute needs two values of {name} or more")
    lines = [np.geomspace(np.min(v), np.max(v), 120) for v in ranges.values()]
    across, up = np.meshgrid(*lines)
    vision = cost.vision_params * cost.features_per_frame
    share = 100 * vision / (vision + across * up)
    figure, ((axis,),) = panel_grid(1, 1, width=5.6, height=4.0)
    _span_log(axis, across, up)
    filled = axis.contourf(across, up, share, np.arange(0, 101, 10), cmap="cividis")
    drawn = axis.contour(across, up, share, np.arange(10, 100, 10), colors="white", linewidths=0.7)
    _name_contours(axis, drawn, "%g%%")
    if table is not None:
        x, y = (table.column(name) for name in ranges)
        marks = dict(s=22, c="white", edgecolors="black", linewidths=0.8, zorder=3, clip_on=False)
        axis.scatter(x, y, label="runs", **marks)
        legend_below(figure, axis)
    log_axis(axis, np.asarray(lm_params, float), units.LABELS["lm_params"])
    log_axis(axis, np.asarray(tokens_per_frame, float), units.LABELS["tokens_per_frame"], which="y")
    axis.grid(False)
    figure.colorbar(filled, ax=axis, label="vision model's share of compute (%)", pad=0.02)
    return figure


# --- which runs belong together ---


def center(table: RunTable) -> np.ndarray:
    """The star's centre [K]: the commonest level of each factor among the star's runs."""
    star = _sweep(table, "star")
    rows = table.take(star) if star.any() else table
    counted = [np.unique(column, return_counts=True) for column in rows.x.T]
    return np.array([levels[np.argmax(counts)] for levels, counts in counted])


def along(table: RunTable, middle, k: int) -> np.ndarray:
    """Bool [R]: the runs at the centre `middle` [K] in every factor but k."""
    others = [j for j in range(len(middle)) if j != k]
    return (table.x[:, others] == middle[others]).all(axis=1)


def cost_groups(cost_R) -> np.ndarray:
    """Int [R]: which isoFLOP curve a run belongs to, cheapest first; curves lie apart in cost."""
    order = np.argsort(cost_R, kind="stable")
    steps = np.concatenate([[False], cost_R[order][1:] / cost_R[order][:-1] > CURVE_GAP])
    groups_R = np.empty(len(order), int)
    groups_R[order] = np.cumsum(steps)
    return groups_R


def curve_costs(cost_R) -> np.ndarray:
    """Geometric mean cost of every group of `cost_groups`."""
    groups_R = cost_groups(cost_R)
    return np.array([np.exp(np.log(cost_R[groups_R == g]).mean()) for g in np.unique(groups_R)])
