"""Figures 4 and 5: x* against the budget, and how it moves with n."""

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure

from fitting import formatting
from fitting.figures.groups import name_tasks
from fitting.figures.style import (
    GREY,
    MARKERS,
    PALETTE,
    keep,
    legend_below,
    log_axis,
    panel_grid,
    round_ticks,
    shades,
    styled,
)
from fitting.naming import labels as labels_of

ZERO_SPAN = 0.05  # an axis of elasticities spans at least this to either side of 0


@styled
def frontier_paths(
    best, factors, change=None, unit: str | None = None, *, fitted_n=(0.0, np.inf)
) -> Figure:
    """Draw Figure 4: x* of each factor against the budget, a shade per n, and the elasticity.

    Args:
      best: a `Frontier`.
      factors: names of its K factors.
      change: an `Elasticity`, drawn in a last panel against n (equation 10), with the interval of
        the mean over members beside it; None leaves the panel out.
      unit: of the budgets; None for FLOPs.
      fitted_n: smallest and largest n of the fitted runs; where n, or n plus the step, is outside,
        elasticities are open marks and do not set the axis.

    Raises:
      ValueError: no budget affords any configuration.
    """
    if np.isnan(best.cost).all():
        raise ValueError(f"no budget up to {best.budgets.max():g} affords any configuration")
    panels = len(factors) + (change is not None)
    figure, axes = panel_grid(1, panels, sharey=False)
    size, unit = formatting.flops_unit(best.budgets) if unit is None else (1.0, unit)
    order = np.argsort(best.budgets)
    for k, (axis, name) in enumerate(zip(axes[0], factors, strict=False)):
        for column, (n, colour, width) in enumerate(_shaded(best.num_examples)):
            style = dict(color=colour, linewidth=width, label=formatting.count(n, 2))
            path = best.x[order, column, k]
            axis.step(best.budgets[order] / size, path, where="post", **style)
            columns = dict(panel=name, budget=best.budgets[order], num_examples=n, value=path)
            columns |= dict(error=best.error[order, column], cost=best.cost[order, column])
            keep(axis, best.budgets[order] / size, path, None, **columns)
        axis.set_title(f"best {formatting.label(name)}")
        log_axis(axis, best.x[..., k], None, which="y")
        log_axis(axis, round_ticks(best.budgets / size), f"inference budget ({unit})")
    if np.isfinite(best.num_examples).all():
        legend_below(figure, axes[0, 0], where="left", title="n =")
    if change is not None:
        _draw_elasticity(axes[0, -1], change, factors, fitted_n)
        legend_below(figure, axes[0, -1], where="right")
    return figure


def _shaded(num_examples):
    """Return (n, colour, line width) each; widths differ so that coinciding paths stay visible."""
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
    for k, label in enumerate(labels_of(factors)):
        colour, marker, mean = PALETTE[k % 6], MARKERS[k % 6], change.mean[k]
        number = f"{mean:+.2f}".replace("-", "−")
        text = f"{label}: mean {number}" if np.isfinite(mean) else f"{label}: undefined"
        axis.plot(n_M, lines_MK[:, k], color=colour, linewidth=1, linestyle=":")
        axis.plot(n_M, lines_MK[:, k], marker, color=colour, ms=4, mfc="white")
        texts = [
            f"{label} at n = {formatting.count(n)}: {formatting.number(value)}"
            for n, value in zip(n_M, lines_MK[:, k], strict=True)
        ]
        columns = dict(panel="elasticity", num_examples=n_M, value=lines_MK[:, k])
        keep(axis, n_M, lines_MK[:, k], texts, **columns, factor=factors[k])
        style = dict(color=colour, ms=4, label=text)
        axis.plot(n_M[inside_M], lines_MK[inside_M, k], marker + "-", **style)
        if np.isfinite(low_K[k]):
            bar = dict(color=colour, transform=axis.get_yaxis_transform())
            right = 0.96 - 0.14 * (1 - (k + 0.5) / len(factors))
            axis.plot([right, right], [low_K[k], high_K[k]], linewidth=2.5, alpha=0.6, **bar)
            axis.plot([right], [mean], marker, ms=5, mec="white", mew=0.6, **bar)
    axis.axhline(0, color=GREY, linewidth=0.8)
    log_axis(axis, n_M, formatting.LABELS["num_examples"], digits=2)
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
    """Return axis limits around 0 and the values, never so narrow that noise looks large."""
    values = np.append(values[np.isfinite(values)], 0.0)
    low, high = values.min(), values.max()
    room = 0.1 * (high - low)
    return min(low - room, -ZERO_SPAN), max(high + room, ZERO_SPAN)


@styled
def elasticity_by_task(changes: Mapping, factors) -> Figure:
    """Draw Figure 5: the mean elasticity of each factor to n, with its interval, by task.

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
            mean = changes[task].mean[k]
            axis.plot(mean, row, MARKERS[k % 6], color=PALETTE[k % 6], ms=6)
            span = f"{formatting.number(low)} to {formatting.number(high)}"
            text = f"{task}\n{formatting.number(mean)}, 90% {span}"
            columns = dict(metric=task, factor=name, elasticity=mean, low=low, high=high)
            keep(axis, [mean], [row], [text], **columns)
        axis.set(title=formatting.label(name), xlabel="elasticity of x* to n")
    name_tasks(axes[0, 0], tasks)
    return figure
