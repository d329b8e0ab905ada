"""Figure 3: parameters, predicted against measured error, errors by task."""

from collections.abc import Mapping

import numpy as np
from matplotlib import ticker
from matplotlib.figure import Figure

from fitting import formatting, summary
from fitting.figures.groups import error_bars, keep_runs, name_tasks
from fitting.figures.style import (
    GREY,
    MARKERS,
    PALETTE,
    keep,
    legend_below,
    log_axis,
    panel_grid,
    plain,
    round_ticks,
    styled,
)
from fitting.law import BaggedFit
from fitting.runs import RunTable
from fitting.validation import score

LINEAR_BELOW = 1e-6  # error points; the axis of coefficients is logarithmic above this
SKEWED = 5.0  # a log axis if the largest error is this many times the median


@styled
def parameter_boxes(law: BaggedFit) -> Figure:
    """Draw Figure 3a: the members' parameters, coefficients in error points and exponents.

    Boxes span the middle half, whiskers 5% to 95%; the cross is the fit to all runs. Grey boxes
    are of parameters that the runs do not determine.

    Raises:
      ValueError: the law is degenerate, so that its parameters mean nothing.
    """
    law = law.lead  # of several forms, the weightiest
    if law.degenerate:
        raise ValueError(f"the parameters of {law.metric} mean nothing: {law.degenerate}")
    rows, unknown_P = law.parameter_rows(), summary.undetermined(law)
    values_BP = np.where(law.absent, 0.0, law.values)[np.isfinite(law.theta).all(axis=1)]
    terms = law.layout.num_coefficients
    shares = [terms, law.layout.num_parameters - terms]
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
        keep_parameters(axis, at, [rows[p] for p in where], unknown_P[part], law.metric)
        axis.set_xticks(at, [_symbol(law.parameters[p]) for p in where])
        axis.grid(axis="x", visible=False)
    axes[0].set(
        title="coefficients",
        ylabel=f"error (of {law.scale:g})" if np.isfinite(law.scale) else "loss",
    )
    ends = [row[1:5] for row in rows[: shares[0]]]  # whole fit, median, 5%, 95%
    _room_for(axes[0], np.array(ends), LINEAR_BELOW * law.reference / 100)
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


def keep_parameters(axis, at, rows, unknown, metric: str) -> None:
    """Attach the data of a panel of boxes: `BaggedFit.parameter_rows` of some parameters."""
    names, whole, median, low, high, _ = map(list, zip(*rows, strict=True))
    texts = [
        f"{name}: {formatting.number(mid)}\n5% {formatting.number(a)}, 95% {formatting.number(b)}\n"
        f"fit to all runs {formatting.number(all_runs)}" + "\nnot determined by the runs" * bool(no)
        for name, mid, a, b, all_runs, no in zip(
            names, median, low, high, whole, unknown, strict=True
        )
    ]
    columns = dict(metric=metric, parameter=names, all_runs=whole, median=median)
    columns |= {"5%": low, "95%": high, "determined": ["no" if no else "yes" for no in unknown]}
    keep(axis, at, median, texts, **columns)


def _room_for(axis, shown, least: float) -> None:
    """Set a symlog axis from the smallest nonzero value (at least `least`) to the largest.

    If some value is 0 or negative, a linear part around 0 is included.
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
    """Return the mathtext of a parameter, such as alpha_N."""
    symbol, _, index = name.partition("_")
    symbol = "\\" + symbol if len(symbol) > 1 else symbol
    if len(index) > 1:  # a column of the user: no formula
        return f"{name.partition('_')[0]} {plain(index)}"
    return f"${symbol}_{{{index}}}$" if index else f"${symbol}$"


@styled
def predicted_vs_actual(table: RunTable, predictions: Mapping[str, np.ndarray]) -> Figure:
    """Draw Figure 3b: predicted against measured error, a panel for each set of predictions.

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
                style = dict(color=PALETTE[index % 6], ms=5, alpha=0.8, label=plain(sweep))
                axis.plot(table.error[rows], predicted[rows], MARKERS[index % 6], **style)
                shown, said = table.take(rows), predicted[rows]
                error_bars(axis, shown, shown.error, said, across=True, ecolor=style["color"])
                keep_runs(axis, shown, shown.error, said, split=title, predicted=said)
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
    """Draw Figure 3c: mean relative error of each form on unseen runs, a row per task.

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
            texts = [f"{t}\n{entry.name}: {p:.3g}%" for t, p in zip(tasks, percents, strict=True)]
            columns = dict(metric=tasks, form=entry.name, split=split, percent=percents)
            keep(axis, percents, at + apart, texts, **columns)
        axis.set(title=split, xlabel="mean relative error E (%)")
        if np.nanmax(percents_ET) > SKEWED * np.nanmedian(percents_ET) > 0:
            known = percents_ET[percents_ET > 0]
            ends = np.array([known.min() / 1.5, known.max() * 1.5])
            log_axis(axis, round_ticks(ends), "mean relative error E (%), log")
            axis.set_xlim(*ends)
        else:
            axis.set_xlim(left=0)
    name_tasks(axes[0, 0], tasks)
    legend_below(figure, axes[0, 0])
    return figure
