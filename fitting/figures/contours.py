"""Figures 1 and 10, contours of equal error; Figure 6, of the vision model's share."""

import numpy as np
from matplotlib import patheffects, ticker
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from fitting import formatting
from fitting.figures.groups import center, keep_law, keep_runs, listed, predict
from fitting.figures.style import (
    PALETTE,
    error_label,
    keep,
    legend_below,
    log_axis,
    panel_grid,
    plain,
    styled,
)
from fitting.law import BaggedFit
from fitting.runs import RunTable


@styled
def iso_performance(laws, table: RunTable) -> Figure:
    """Draw contours of equal predicted error over factor x n, a panel per factor, a row per law.

    The other factors are at the star's centre, or their most common level. Dots are the runs
    measured there, in the colour of their own error, so a dot that stands out from its surroundings
    is poorly predicted. A law without n has a panel for each pair of factors.

    Args:
      laws: a `BaggedFit` or several, of as many metrics.
      table: the runs of these metrics.

    Raises:
      ValueError: the runs vary in less than two columns, or no run is of a law's metric.
    """
    laws = listed(laws)
    pairs = _pairs(laws[0])
    figure, axes = panel_grid(len(laws), len(pairs), width=3.9, height=3.2, sharey=False)
    for row, law in zip(axes, laws, strict=True):
        runs = table.select(metric=law.metric)
        _draw_contours(figure, row, law, runs, pairs)
        if len(laws) > 1:
            row[0].set_ylabel(f"{plain(law.metric)}\n{row[0].get_ylabel()}")
    return figure


def _pairs(law: BaggedFit) -> list[tuple[int, int]]:
    """Return the columns (across, up) of the panels: each factor against n, or the others."""
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
        if grid[2].max() > law.scale:  # no run can have such an error
            axis.contour(*grid, [law.scale], colors=PALETTE[1], linestyles="--", linewidths=1.5)
        marks = dict(s=46, edgecolors="white", linewidths=1.2, zorder=3, clip_on=False)
        axis.scatter(z[dot, across], z[dot, up], c=table.error[dot], **style, **marks)
        panel = f"{formatting.label(names[across])} x {formatting.label(names[up])}"
        columns = dict(panel=panel, predicted=predict(law, z[dot]))
        keep_runs(axis, table.take(dot), z[dot, across], z[dot, up], **columns)
        _keep_surface(axis, law, middle, (across, up), grid, panel)
        ticks = np.concatenate([z[dot, across], law.ranges[across]])
        log_axis(axis, ticks, formatting.label(names[across]))
        log_axis(axis, z[:, up], None, which="y")
        if rest:
            held = ", ".join(
                f"{formatting.short(names[k])} = {formatting.count(middle[k])}" for k in rest
            )
            axis.set_title(f"at {held}")
        axis.grid(False)
        if axis is axes[0] or law.examples is None:
            axis.set_ylabel(formatting.label(names[up]))
    figure.colorbar(filled, ax=axes, label=error_label(law.scale), pad=0.01)


def _keep_surface(axis, law: BaggedFit, middle, pair, grid, panel: str) -> None:
    """Attach every sixth line of the surface, which is enough to draw it again."""
    thin = [values[::6, ::6].ravel() for values in grid]
    z = np.tile(middle, (len(thin[0]), 1))
    z[:, pair[0]], z[:, pair[1]] = thin[:2]
    keep_law(axis, law, z, thin[2], panel=panel)


def _span_log(axis, across, up) -> None:
    """Set log axes over the grid, before contours are drawn: labels are placed by the view."""
    limits = dict(xlim=(across.min(), across.max()), ylim=(up.min(), up.max()))
    axis.set(xscale="log", yscale="log", **limits)


def _name_contours(axis, lines, text: str) -> None:
    """Label contour lines, except in the outermost 5% of the panel, where labels are cut off.

    A line whose automatic labels all fall there gets one in the middle of its inner part.
    """
    named = _inner_labels(axis, axis.clabel(lines, fmt=text, **_LABEL))
    for level, path in zip(lines.levels, lines.get_paths(), strict=True):
        inner = path.vertices[_is_inner(axis, path.vertices)]
        if len(inner) and text % level not in named:
            middle = inner[len(inner) // 2]
            _inner_labels(axis, lines.clabel([level], fmt=text, manual=[middle], **_LABEL))


_LABEL = dict(fontsize=7, colors="black", inline=False)


def _inner_labels(axis, labels) -> set:
    """Hide the labels near the frame and return the texts of the others."""
    for label in labels:
        label.set_visible(bool(_is_inner(axis, np.array([label.get_position()]))[0]))
        label.set_path_effects([patheffects.withStroke(linewidth=2.5, foreground="white")])
    return {label.get_text() for label in labels if label.get_visible()}


def _is_inner(axis, points) -> np.ndarray:
    """Return bool [V]: points [V, 2] that are not in the outermost 5% of the panel."""
    if not len(points):
        return np.zeros(0, bool)
    place = axis.transAxes.inverted().transform(axis.transData.transform(points))
    return (abs(place - 0.5) < 0.45).all(axis=1)


def _surface(law: BaggedFit, middle, pair):
    """Return grids (across, up, error), each [60, 60], over the fitted ranges, others fixed."""
    across, up = np.meshgrid(*(np.geomspace(*law.ranges[k], 60) for k in pair))
    z = np.broadcast_to(middle, (*across.shape, len(middle))).copy()
    z[..., pair[0]], z[..., pair[1]] = across, up
    return across, up, predict(law, z)


@styled
def vision_share(cost, lm_params, tokens_per_frame, table: RunTable | None = None) -> Figure:
    """Draw Figure 6: the vision model's share of the inference compute, over (x_N, x_V).

    Under equation 1 it is x_M x_W / (x_M x_W + x_N x_V), whatever the number of frames.

    Args:
      cost: `CostConstants`.
      lm_params, tokens_per_frame: values whose range is drawn.
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
    thin = [values[::6, ::6].ravel() for values in (across, up, share)]
    columns = dict(zip((*ranges, "percent"), thin, strict=True))
    keep(axis, thin[0], thin[1], None, kind="equation 1", **columns)
    drawn = axis.contour(across, up, share, np.arange(10, 100, 10), colors="white", linewidths=0.7)
    _name_contours(axis, drawn, "%g%%")
    if table is not None:
        x, y = (table.column(name) for name in ranges)
        marks = dict(s=22, c="white", edgecolors="black", linewidths=0.8, zorder=3, clip_on=False)
        axis.scatter(x, y, label="runs", **marks)
        at = 100 * vision / (vision + x * y)
        texts = [
            f"{formatting.count(a)} LM, {b:g} tokens a frame\nvision {share:.0f}%"
            for a, b, share in zip(x, y, at, strict=True)
        ]
        keep(axis, x, y, texts, kind="run", **dict(zip(ranges, (x, y), strict=True)), percent=at)
        legend_below(figure, axis)
    log_axis(axis, np.asarray(lm_params, float), formatting.LABELS["lm_params"])
    log_axis(
        axis, np.asarray(tokens_per_frame, float), formatting.LABELS["tokens_per_frame"], which="y"
    )
    axis.grid(False)
    figure.colorbar(filled, ax=axis, label="vision model's share of compute (%)", pad=0.02)
    return figure
