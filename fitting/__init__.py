"""Scaling laws from any table of runs: fit, compare, find the frontier, report.

    table = fitting.read_runs('runs.csv')
    law = fitting.fit(table, fitting.FitConfig(form='add-interact'))
    best = fitting.frontier(law, fitting.PAPER_DOMAIN, fitting.PAPER, [5e12], [1e6])

Exports are lazy (PEP 562): importing `fitting`, or `fitting.config`, loads neither jax nor
matplotlib. No module has the name of an export, so `fitting.fit` is always the function.
"""

import importlib

_EXPORTS = {
    "ablations": ("ablate",),
    "bootstrap": ("resample_weights",),
    "config": ("FitConfig",),
    "cost": ("PAPER", "ActualFlops", "CostConstants", "CostTable", "inference_flops", "read_costs"),
    "elasticities": ("Elasticity", "elasticity"),
    "fits": ("fit", "fit_many"),
    "forms": ("FORMS", "Form", "get_form"),
    "frontiers": (
        "EmpiricalFrontier",
        "Frontier",
        "agreement",
        "empirical_frontier",
        "frontier",
        "member_frontiers",
    ),
    "intervals": ("law_interval", "prediction_interval", "run_noise", "run_spread"),
    "lack_of_fit": ("check", "judged"),
    "law": ("BaggedFit",),
    "mixture": ("MixedLaw", "load_law"),
    "next_runs": ("Question", "Run", "candidates"),
    "optimise.lanes": ("Solution",),
    "profiles": ("Profile", "profile"),
    "report.analysis": ("Analysis", "analyse", "examine", "findings"),
    "report.html": ("Report",),
    "report.page": ("write_page",),
    "report.text": ("deployment_text",),
    "runs": ("LI2024", "RunTable", "read_runs", "write_runs"),
    "sweeps": (
        "PAPER_DOMAIN",
        "PAPER_ISOFLOP",
        "PAPER_STAR",
        "Domain",
        "Point",
        "isoflop_candidates",
        "isoflop_sweep",
        "star_sweep",
    ),
    "uncertainty": ("Decision", "decide"),
    "verdict": ("Verdict",),
    "validation": ("compare", "cross_validate", "extrapolate", "score"),
}
_HOME = {name: module for module, names in _EXPORTS.items() for name in names}
__all__ = sorted(_HOME)


def __getattr__(name):
    if name in _HOME:
        return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    try:
        return importlib.import_module(f"{__name__}.{name}")
    except ModuleNotFoundError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None


def __dir__():
    return __all__
