"""Helpers of several figures: which runs belong together, error bars, data kept with a panel."""

import numpy as np

from fitting import formatting
from fitting.figures.style import error_label, keep, plain
from fitting.predictions import Law
from fitting.runs import RunTable

CURVE_GAP = 1.25  # a larger ratio between neighbouring costs separates two isoFLOP curves


def center(table: RunTable) -> np.ndarray:
    """Return the star's centre [K]: the most common level of each factor among the star's runs."""
    star = of_sweep(table, "star")
    rows = table.take(star) if star.any() else table
    counted = [np.unique(column, return_counts=True) for column in rows.x.T]
    return np.array([levels[np.argmax(counts)] for levels, counts in counted])


def along(table: RunTable, middle, k: int) -> np.ndarray:
    """Return bool [R]: the runs at the centre `middle` [K] in every factor but k."""
    others = [j for j in range(len(middle)) if j != k]
    return (table.x[:, others] == middle[others]).all(axis=1)


def cost_groups(cost_R) -> np.ndarray:
    """Return int [R]: the isoFLOP curve of each run, cheapest first; curves differ in cost."""
    order = np.argsort(cost_R, kind="stable")
    steps = np.concatenate([[False], cost_R[order][1:] / cost_R[order][:-1] > CURVE_GAP])
    groups_R = np.empty(len(order), int)
    groups_R[order] = np.cumsum(steps)
    return groups_R


def curve_costs(cost_R) -> np.ndarray:
    """Return the geometric mean cost of every group of `cost_groups`."""
    groups_R = cost_groups(cost_R)
    return np.array([np.exp(np.log(cost_R[groups_R == g]).mean()) for g in np.unique(groups_R)])


def of_sweep(table: RunTable, name: str) -> np.ndarray:
    """Return bool [R]: the runs of a sweep; none if the table has no column sweep."""
    return table.columns.get("sweep", np.full(len(table), "")) == name


def name_row(axis, metric: str, table: RunTable) -> None:
    """Set the y label of a row of panels; it names the metric if there are several."""
    many = len(table.metrics) > 1
    label = error_label(table.scale)
    axis.set_ylabel(f"{plain(metric)}: {label}" if many else label)


def listed(laws) -> list[Law]:
    """Return one law or several as a list."""
    return [laws] if isinstance(laws, Law) else list(laws)


def predict(law: Law, z) -> np.ndarray:
    """Return the error [...] at z [..., C], the factors and n if the law has it."""
    size = len(law.factors)
    return law.predict(z[..., :size], None if law.examples is None else z[..., -1])


def name_tasks(axis, tasks: list[str]) -> None:
    """Set a tick per task on the y axis, the first on top."""
    axis.set_yticks(np.arange(len(tasks)), [plain(task) for task in tasks])
    axis.set_ylim(len(tasks) - 0.5, -0.5)


def keep_runs(axis, runs: RunTable, x, y, **columns) -> None:
    """Attach measured runs to a panel: their columns, and a text for each point (x, y) [R]."""
    n = {} if runs.n is None else {runs.examples: runs.n}
    own = dict(zip(runs.factors, runs.x.T, strict=True)) | n
    texts = [_run_text(runs, own, r, columns) for r in range(len(runs))]
    named = dict(metric=runs.metric, kind="run", run_id=runs.run_id, **own, error=runs.error)
    if runs.score_se is not None:
        named["score_se"] = runs.score_se
    keep(axis, x, y, texts, **named, **columns)


def error_bars(axis, runs: RunTable, x, y, *, across: bool = False, **style) -> None:
    """Draw one standard error to either side of runs at (x, y) [R], if any is known.

    Args:
      across: horizontal bars, for measured errors on the x axis.
    """
    spread_R = runs.score_se
    if spread_R is None:
        return
    known = np.isfinite(spread_R)
    bars = {"xerr" if across else "yerr": spread_R[known]}
    look = dict(fmt="none", elinewidth=0.8, alpha=0.6, zorder=1) | style
    axis.errorbar(np.asarray(x)[known], np.asarray(y)[known], **bars, **look)


def keep_law(axis, law: Law, z, predicted, **columns) -> None:
    """Attach the law's predictions at z [V, C] to a panel, for the CSV only."""
    named = dict(metric=law.metric, kind="law", **dict(zip(law.columns, z.T, strict=True)))
    keep(axis, z[:, 0], predicted, None, **named, predicted=predicted, **columns)


def _run_text(runs: RunTable, own: dict, row: int, columns: dict) -> str:
    digits = 3 if runs.scale < 100 else 1 if np.isfinite(runs.scale) else 4
    lines = [str(runs.run_id[row]), f"{runs.metric[row]}: error {runs.error[row]:.{digits}f}"]
    if runs.score_se is not None and np.isfinite(runs.score_se[row]):
        lines[1] += f" ± {runs.score_se[row]:.{digits}f}"
    if "predicted" in columns:
        lines[1] += f", predicted {columns['predicted'][row]:.{digits}f}"
    lines.append(
        ", ".join(f"{formatting.short(k)} {formatting.count(v[row])}" for k, v in own.items())
    )
    if "flops" in columns:
        lines.append(f"costs {formatting.flops(columns['flops'][row])}")
    return "\n".join(lines)
