"""Which runs belong together, and what several figures share."""

import numpy as np

from fitting import formatting
from fitting.figures.style import error_label, keep, plain
from fitting.law import BaggedFit
from fitting.runs import RunTable

CURVE_GAP = 1.25  # isoFLOP runs whose costs differ by more belong to different curves


def center(table: RunTable) -> np.ndarray:
    """The star's centre [K]: the commonest level of each factor among the star's runs."""
    star = of_sweep(table, "star")
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


def of_sweep(table: RunTable, name: str) -> np.ndarray:
    """Bool [R]: the runs of a sweep; none where the table has no such column."""
    return table.columns.get("sweep", np.full(len(table), "")) == name


def name_row(axis, metric: str, table: RunTable) -> None:
    """The y label of a row of panels: the metric's, where there are several."""
    many = len(table.metrics) > 1
    label = error_label(table.scale)
    axis.set_ylabel(f"{plain(metric)}: {label}" if many else label)


def listed(laws) -> list[BaggedFit]:
    """One law or several, as a list."""
    return [laws] if isinstance(laws, BaggedFit) else list(laws)


def predict(law: BaggedFit, z) -> np.ndarray:
    """Error [...] at z [..., C], the factors and, with examples, n."""
    size = len(law.factors)
    return law.predict(z[..., :size], None if law.examples is None else z[..., -1])


def name_tasks(axis, tasks: list[str]) -> None:
    """A line a task, the first on top."""
    axis.set_yticks(np.arange(len(tasks)), [plain(task) for task in tasks])
    axis.set_ylim(len(tasks) - 0.5, -0.5)


def keep_runs(axis, runs: RunTable, x, y, **columns) -> None:
    """Keeps measured runs with a panel: their columns, and what the pointer finds at (x, y) [R]."""
    n = {} if runs.n is None else {runs.examples: runs.n}
    own = dict(zip(runs.factors, runs.x.T, strict=True)) | n
    texts = [_run_text(runs, own, r, columns) for r in range(len(runs))]
    named = dict(metric=runs.metric, kind="run", run_id=runs.run_id, **own, error=runs.error)
    keep(axis, x, y, texts, **named, **columns)


def keep_law(axis, law: BaggedFit, z, predicted, **columns) -> None:
    """Keeps what the law says at z [V, C], for the CSV alone."""
    named = dict(metric=law.metric, kind="law", **dict(zip(law.columns, z.T, strict=True)))
    keep(axis, z[:, 0], predicted, None, **named, predicted=predicted, **columns)


def _run_text(runs: RunTable, own: dict, row: int, columns: dict) -> str:
    digits = 1 if runs.scale == 100 else 3
    lines = [str(runs.run_id[row]), f"{runs.metric[row]}: error {runs.error[row]:.{digits}f}"]
    if "predicted" in columns:
        lines[1] += f", predicted {columns['predicted'][row]:.{digits}f}"
    lines.append(
        ", ".join(f"{formatting.short(k)} {formatting.count(v[row])}" for k, v in own.items())
    )
    if "flops" in columns:
        lines.append(f"costs {formatting.flops(columns['flops'][row])}")
    return "\n".join(lines)
