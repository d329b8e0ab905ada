"""The paper's figures from fitted objects: each function returns a matplotlib Figure.

Unit prefixes follow the data, from kFLOPs to PFLOPs, so that a tiny study reads as well as the
paper's. Curves are the law's, dots are measured.
"""

import numpy as np
from matplotlib import ticker
from matplotlib.colors import Normalize
from matplotlib.figure import Figure

from fitting import units
from fitting.canvas import (
    ERROR,
    GREY,
    MARKERS,
    PALETTE,
    legend_below,
    log_axis,
    panel_row,
    round_ticks,
    shades,
    styled,
)
from fitting.forms import factor_labels
from fitting.frontier import empirical_frontier
from fitting.runs import FACTORS, RunTable

CURVE_GAP = 1.25  # isoFLOP runs whose costs differ by more belong to different curves
FLOOR = 1e-3  # error points: smaller coefficients are drawn here


@styled
def all_runs(table: RunTable, cost) -> Figure:
    """Figure 7: every run of both sweeps; the star's arms by factor, the other runs by cost.

    Args:
      table: runs of one metric.
      cost: x [R, K] -> FLOPs [R].
    """
    figure, axes = panel_row(len(FACTORS) + 1, ERROR)
    is_star = table.sweep == "star"
    for k, name in enumerate(FACTORS):
        axes[k].set_title("star" if is_star.any() else "no star runs")
        if is_star.any():
            _draw_arm(axes[k], table.take(is_star), k)
        log_axis(axes[k], table.x[is_star | ~is_star.any(), k], units.LABELS[name])
    rest = table if is_star.all() else table.take(~is_star)
    _draw_by_cost(axes[-1], rest, cost)
    axes[-1].set_title(", ".join(rest.sweeps))
    if is_star.any():
        legend_below(figure, axes[0], where="left", title="n =")
    legend_below(figure, axes[-1], where="right", title="LM")
    return figure


def _draw_arm(axis, star: RunTable, k: int) -> None:
    """The star's runs along factor k, a line for each data size."""
    arm = star.take(along(star, center(star), k))
    for n, colour in shades(star.n).items():
        at_n = arm.take(arm.n == n)
        order = np.argsort(at_n.x[:, k])
        label = units.count(n)
        axis.plot(at_n.x[order, k], at_n.error[order], "o-", color=colour, ms=4, label=label)


def _draw_by_cost(axis, table: RunTable, cost) -> None:
    size, unit = units.flops_unit(cost(table.x))
    for index, lm in enumerate(np.unique(table.lm_params)):
        rows = table.take(table.lm_params == lm)
        style = dict(color=PALETTE[index % 6], ms=4.5, alpha=0.85, label=units.count(lm))
        axis.plot(cost(rows.x) / size, rows.error, MARKERS[index % 6], **style)
    log_axis(axis, curve_costs(cost(table.x)) / size, f"inference cost ({unit})", digits=2)


@styled
def iso_performance(fit, table: RunTable) -> Figure:
    """Figure 1: contours of equal predicted error over factor x data, one panel a factor.

    The other factors stay at the star's centre; dots are the runs measured there, in the colour of
    their own error, so that a dot that stands out of its surroundings is a miss of the law.
    """
    middle = center(table)
    figure, axes = panel_row(len(FACTORS), units.LABELS["num_examples"], width=3.9)
    surfaces = [_surface(fit, middle, k) for k in range(len(FACTORS))]
    runs = [table.take(along(table, middle, k)) for k in range(len(FACTORS))]
    values = np.concatenate([s[2].ravel() for s in surfaces] + [t.error for t in runs])
    levels = ticker.MaxNLocator(12).tick_values(values.min(), values.max())
    style = dict(cmap="cividis_r", norm=Normalize(levels[0], levels[-1]))
    for k, axis in enumerate(axes):
        filled = axis.contourf(*surfaces[k], levels, **style)
        lines = axis.contour(*surfaces[k], levels, colors="white", linewidths=0.7)
        axis.clabel(lines, fmt="%g", fontsize=7, colors="black")
        dots = dict(s=46, edgecolors="white", linewidths=1.2, zorder=3, clip_on=False)
        axis.scatter(runs[k].x[:, k], runs[k].n, c=runs[k].error, **style, **dots)
        log_axis(axis, runs[k].x[:, k], units.LABELS[FACTORS[k]])
        log_axis(axis, table.n, None, which="y")
        fixed = [f"{units.count(middle[j])} {SHORT[j]}" for j in range(len(middle)) if j != k]
        axis.set_title("at " + ", ".join(fixed))
        axis.grid(False)
    figure.colorbar(filled, ax=axes, label=ERROR, pad=0.01)
    return figure


SHORT = ("LM", "frames", "tokens")


def _surface(fit, middle, k: int):
    """Grids (x, n, error), each [60, 60], over the fitted range with the other factors fixed."""
    x_line, n_line = np.geomspace(*fit.ranges[k], 60), np.geomspace(*fit.ranges[-1], 60)
    x_grid, n_grid = np.meshgrid(x_line, n_line)
    x = np.broadcast_to(middle, (*x_grid.shape, len(middle))).copy()
    x[..., k] = x_grid
    return x_grid, n_grid, fit.predict(x, n_grid)


@styled
def isoflop_curves(fit, table: RunTable, cost) -> Figure:
    """Figure 2: isoFLOP runs and the law's curves, a panel for each language model.

    A colour is a cost; a ring marks its best measured run. The last panel is the empirical
    frontier: the best run within each cost, and what the law says there.

    Raises:
      ValueError: the table holds no isoFLOP runs.
    """
    runs = table.select(sweep="isoflop")
    curve_R, costs = cost_groups(cost(runs.x)), curve_costs(cost(runs.x))
    models, colours = np.unique(runs.lm_params), shades(costs)
    figure, axes = panel_row(len(models) + 1, ERROR, sharey=True)
    for curve, (middle, colour) in enumerate(colours.items()):
        style = dict(color=colour, marker=MARKERS[curve % 6], label=units.flops(middle, 2))
        rows = runs.take(curve_R == curve)
        best = np.argmin(rows.error)
        for axis, lm in zip(axes, models, strict=False):
            if (rows.lm_params == lm).any():
                _draw_curve(axis, fit, rows.take(rows.lm_params == lm), **style)
            if rows.lm_params[best] == lm:
                ring = dict(ms=12, mfc="none", mec="black", mew=1.3)
                axis.plot(rows.tokens_per_frame[best], rows.error[best], "o", **ring)
        axes[-1].plot([], [], linestyle="none", **style)
    for axis, lm in zip(axes, models, strict=False):
        at_lm = runs.take(runs.lm_params == lm)
        log_axis(axis, at_lm.tokens_per_frame, units.LABELS["tokens_per_frame"])
        axis.set_title(f"{units.count(lm)} language model")
    legend_below(figure, axes[-1], title="about")
    _draw_empirical(axes[-1], fit, runs, cost)
    return figure


def _draw_curve(axis, fit, rows: RunTable, *, color, marker: str, label: str) -> None:
    """One curve: measured dots, and the law along the straight log-log path through them."""
    rows = rows.take(np.lexsort((rows.num_frames, rows.tokens_per_frame)))
    _, first = np.unique(rows.tokens_per_frame, return_index=True)
    log_x, log_n = np.log(rows.x[first]), np.log(rows.n[first])
    path = np.linspace(log_x[0, 2], log_x[-1, 2], 60)
    x = np.exp(np.stack([np.interp(path, log_x[:, 2], log_x[:, k]) for k in range(3)], axis=1))
    n = np.exp(np.interp(path, log_x[:, 2], log_n))
    axis.plot(x[:, 2], fit.predict(x, n), color=color, alpha=0.9)
    axis.plot(rows.tokens_per_frame, rows.error, marker, color=color, ms=5, label=label)


def _draw_empirical(axis, fit, runs: RunTable, cost) -> None:
    size, unit = units.flops_unit(cost(runs.x))
    best = empirical_frontier(runs, cost)
    axis.plot(cost(runs.x) / size, runs.error, "o", color="#c4c4c4", ms=3.5)
    axis.step(best.cost / size, best.error, where="post", color="black")
    (measured,) = axis.plot(best.cost / size, best.error, "o", ms=8, mfc="none", mec="black")
    law = fit.predict(best.x, best.num_examples)
    (crosses,) = axis.plot(best.cost / size, law, "x", color=PALETTE[1], ms=6, mew=1.8)
    axis.set_title("empirical frontier")
    axis.legend([measured, crosses], ["best measured", "the law there"])
    log_axis(axis, curve_costs(cost(runs.x)) / size, f"inference cost ({unit})", digits=2)


@styled
def parameter_boxes(fit) -> Figure:
    """Figure 3a: the members' parameters; coefficients in error points, exponents without unit.

    Boxes span the middle half, whiskers 5% to 95%; the cross is the fit to all runs.
    """
    is_exponent = fit.form.is_exponent(len(fit.units) - 1)
    good_BP = fit.values[np.isfinite(fit.theta).all(axis=1)]
    drawn_BP = np.where(is_exponent, good_BP, np.maximum(good_BP, FLOOR))
    whole_P = np.array([row[1] for row in fit.parameter_rows()])
    whole_P = np.where(is_exponent, whole_P, np.maximum(whole_P, FLOOR))
    figure, axes = panel_row(2, f"error points (below {FLOOR:g} drawn there)", width=4.2)
    for axis, part in ((axes[0], ~is_exponent), (axes[1], is_exponent)):
        names = [_symbol(name) for name, keep in zip(fit.parameters, part, strict=True) if keep]
        axis.boxplot(
            list(drawn_BP[:, part].T),
            whis=(5, 95),
            showfliers=False,
            patch_artist=True,
            boxprops=dict(facecolor="#cfe3f1", edgecolor=PALETTE[0]),
            medianprops=dict(color=PALETTE[1], linewidth=2),
            whiskerprops=dict(color=PALETTE[0]),
            capprops=dict(color=PALETTE[0]),
        )
        at = np.arange(1, len(names) + 1)
        axis.plot(at, whole_P[part], "kx", ms=6)
        axis.set_xticks(at, names)
    axes[0].set(yscale="log", title="coefficients, at a typical run")
    axes[1].set_title("exponents")
    axes[1].axhline(0, color=GREY, linewidth=0.8)
    if fit.at_cap.any():
        axes[1].axhline(fit.config.exponent_cap, color=GREY, linewidth=1, linestyle=":")
        axes[1].axhline(-fit.config.exponent_cap, color=GREY, linewidth=1, linestyle=":")
        axes[1].set_title("exponents (dotted: the cap)")
    return figure


def _symbol(name: str) -> str:
    """alpha_N -> mathtext of the same symbol."""
    symbol, _, index = name.partition("_")
    symbol = "\\" + symbol if len(symbol) > 1 else symbol
    return f"${symbol}_{{{index}}}$" if index else f"${symbol}$"


@styled
def predicted_vs_actual(table: RunTable, comparison, form: str) -> Figure:
    """Figure 3b: predictions of runs the fit has not seen, against what was measured."""
    figure, axes = panel_row(2, "predicted error", width=3.7)
    row = comparison.row(form)
    split = f"{comparison.train_sweep} to {comparison.test_sweep}"
    for axis, predicted, score, title in (
        (axes[0], comparison.held_out[form], row.cross_validation, "cross-validation"),
        (axes[1], comparison.extrapolated[form], row.extrapolation, split),
    ):
        shown = np.concatenate([table.error, predicted[~np.isnan(predicted)]])
        margin = 0.04 * np.ptp(shown)
        span = shown.min() - margin, shown.max() + margin
        axis.plot(span, span, color=GREY, linewidth=1)
        for index, sweep in enumerate(table.sweeps):
            rows = (table.sweep == sweep) & ~np.isnan(predicted)
            if rows.any():
                style = dict(color=PALETTE[index % 6], ms=5, alpha=0.8, label=sweep)
                axis.plot(table.error[rows], predicted[rows], MARKERS[index % 6], **style)
                axis.legend(loc="lower right")
        axis.set(xlim=span, ylim=span, aspect="equal", title=title, xlabel="measured error")
        axis.text(0.04, 0.95, _score_text(score), transform=axis.transAxes, va="top")
    return figure


def _score_text(score) -> str:
    if np.isnan(score.mse):
        return "no runs for this split"
    return f"R² = {score.r2:.3f}\nMSE = {score.mse:.3g}\nE = {score.percent:.2g}%"


@styled
def frontier_paths(best, change=None) -> Figure:
    """Figure 4: x* of each factor against the budget, a shade for each n, and the elasticity.

    Args:
      best: a `Frontier`.
      change: an `Elasticity`, drawn in a last panel against n (equation 10); None leaves it out.
    """
    figure, axes = panel_row(len(FACTORS) + (change is not None), None, width=3.2)
    size, unit = units.flops_unit(best.budgets)
    order = np.argsort(best.budgets)
    colours = shades(best.num_examples)
    for k, name in enumerate(FACTORS):
        for column, n in enumerate(best.num_examples):
            style = dict(color=colours[n], alpha=0.9, label=units.count(n, 2))
            path = best.x[order, column, k]
            axes[k].step(best.budgets[order] / size, path, where="post", **style)
        axes[k].set_title(f"best {units.LABELS[name]}")
        log_axis(axes[k], best.x[..., k], None, which="y")
        log_axis(axes[k], round_ticks(best.budgets / size), f"inference budget ({unit})")
    legend_below(figure, axes[0], title="n =")
    if change is not None:
        _draw_elasticity(axes[-1], change)
    return figure


def _draw_elasticity(axis, change) -> None:
    lines_MK = change.by_num_examples
    for k, (label, mean) in enumerate(zip(factor_labels(3), change.mean, strict=True)):
        text = f"{label}: mean {mean:+.2f}" if np.isfinite(mean) else f"{label}: undefined"
        style = dict(color=PALETTE[k], ms=4, label=text)
        axis.plot(change.num_examples, lines_MK[:, k], MARKERS[k] + "-", **style)
    axis.axhline(0, color=GREY, linewidth=0.8)
    log_axis(axis, change.num_examples, units.LABELS["num_examples"], digits=2)
    axis.set_title("elasticity of x* to n")
    axis.legend()


def center(table: RunTable) -> np.ndarray:
    """The star's centre [K]: the commonest level of each factor among the star's runs."""
    is_star = table.sweep == "star"
    star = table.take(is_star) if is_star.any() else table
    counted = [np.unique(column, return_counts=True) for column in star.x.T]
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
