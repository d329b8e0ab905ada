"""Table 6's isoFLOP curves: 2, 5, 15 and 30 TFLOPs, all 2,192,374 examples; 49 runs.

    vvlm sweep plan sweeps/isoflop

For other budgets use `fitting.sweeps.isoflop_sweep(PAPER_DOMAIN, budgets, n, PAPER)`.
"""

from fitting.sweeps import PAPER_ISOFLOP
from vvlm_jax.sweep.config import SweepConfig

from . import table6


def sweep() -> SweepConfig:
    """Return the isoFLOP runs of Table 6."""
    return table6.config("isoflop", PAPER_ISOFLOP)
