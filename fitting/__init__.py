"""Scaling laws from any table of runs: fit, compare, find the frontier, report.

    table = fitting.read_runs('runs.csv')
    law = fitting.fit(table, fitting.FitConfig(form='add-interact'))
    best = fitting.frontier(law, fitting.PAPER_DOMAIN, fitting.PAPER, [5e12], [1e6])

Exports are lazy (PEP 562): importing `fitting`, or `fitting.config`, loads neither jax nor
matplotlib. Where a module bears the name of its verb (fit, frontier, elasticity), the package's
attribute is the verb, always; `from fitting.fit import fit_many` reaches the module.
"""

import importlib
import sys
from types import ModuleType

_EXPORTS = {
    "analysis": ("Analysis", "analyse", "deployment_text", "examine", "findings"),
    "bootstrap": ("resample_weights",),
    "config": ("FitConfig",),
    "cost": ("PAPER", "ActualFlops", "CostConstants", "CostTable", "inference_flops", "read_costs"),
    "elasticity": ("Elasticity", "elasticity"),
    "fit": ("fit", "fit_many"),
    "forms": ("FORMS", "Form", "get_form"),
    "frontier": (
        "EmpiricalFrontier",
        "Frontier",
        "agreement",
        "empirical_frontier",
        "frontier",
        "member_frontiers",
    ),
    "html": ("Report",),
    "law": ("BaggedFit",),
    "objective": (),
    "plots": (),
    "report": ("add_law", "add_tasks"),
    "runs": ("LI2024", "RunTable", "read_runs", "write_runs"),
    "selection": ("ablate", "compare", "cross_validate", "extrapolate", "score"),
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
    "uncertainty": ("Decision", "decide", "prediction_interval", "run_noise"),
}
_HOME = {name: module for module, names in _EXPORTS.items() for name in names}
__all__ = sorted({*_HOME, *_EXPORTS})


class _Package(ModuleType):
    """Importing a submodule binds it to its name in the package, unless a verb has that name."""

    def __setattr__(self, name, value):
        if not (name in _HOME and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


def __getattr__(name):
    if name in _HOME:
        return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    if name in _EXPORTS:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
    return __all__
