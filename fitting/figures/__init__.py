"""The paper's figures from fitted objects: each function returns a matplotlib Figure.

    1, 10  iso_performance      contours of equal error over factor x n
    2, 9   isoflop_curves       runs of equal cost, and the empirical frontier
    3      parameter_boxes, predicted_vs_actual, errors_by_task
    4      frontier_paths       x* against the budget, and its elasticity to n
    5      elasticity_by_task
    6      vision_share         of the compute, over x_N and x_V
    7, 8   all_runs             of both sweeps
    -      decision_points        a decision, its rivals, and what the law predicted

One law, or a table of one metric, gives one row of panels; several give a row each, which makes
Figures 8, 9 and 10 from 7, 2 and 1. Columns may have any names; the first factor distinguishes
groups of runs (the language model), the last is an axis (tokens). Unit prefixes follow the data,
from kFLOPs to PFLOPs. Curves are predictions, dots are measured. The data that a figure shows are
attached to it (`fitting.figures.style.keep`), as rows of a CSV and as texts shown on hover.
"""

import importlib

_EXPORTS = {
    "contours": ("iso_performance", "vision_share"),
    "isoflop": ("isoflop_curves",),
    "fit": ("errors_by_task", "parameter_boxes", "predicted_vs_actual"),
    "frontier": ("elasticity_by_task", "frontier_paths"),
    "groups": ("along", "center", "cost_groups", "curve_costs"),
    "profile": ("draw_profiles",),
    "runs": ("all_runs",),
    "tested": ("decision_points",),
}
_HOME = {name: module for module, names in _EXPORTS.items() for name in names}
__all__ = sorted(_HOME)


def __getattr__(name):
    if name in _HOME:
        return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return __all__
