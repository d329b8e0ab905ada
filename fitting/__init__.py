"""Scaling laws of a video VLM, from any table of runs: fit, compare, find the frontier, report.

Exports are lazy (PEP 562): importing `fitting`, or `fitting.config`, loads neither jax nor
matplotlib. A verb lives in the module of its name, and that name always means the module:

    from fitting.fit import fit
    from fitting.frontier import frontier

    table = fitting.read_runs('runs.csv')
    law = fit(table, fitting.FitConfig(form='add-interact'))
    best = frontier(law, fitting.PAPER_DOMAIN, fitting.PAPER, budgets=[5e12], num_examples=[1e6])
"""

import importlib

_EXPORTS = {
    "analysis": ("Analysis", "analyse", "deployment_text", "findings"),
    "bootstrap": ("resample_weights",),
    "config": ("FitConfig",),
    "cost": ("PAPER", "CostConstants", "inference_flops"),
    "elasticity": ("Elasticity",),
    "fit": ("BaggedFit",),
    "forms": ("FORMS", "Form", "get_form"),
    "frontier": ("EmpiricalFrontier", "Frontier", "empirical_frontier"),
    "html": ("Report",),
    "objective": (),
    "plots": (),
    "report": ("add_law",),
    "runs": ("RunTable", "read_runs", "write_runs"),
    "selection": ("Comparison", "compare_forms"),
    "solve": ("Solution",),
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
}
_HOME = {name: module for module, names in _EXPORTS.items() for name in names}
__all__ = sorted([*_HOME, *_EXPORTS])


def __getattr__(name):
    if name in _EXPORTS:
        return importlib.import_module(f"{__name__}.{name}")
    if name in _HOME:
        return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return __all__
