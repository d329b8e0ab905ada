"""Table 6's isoFLOP curves: 2, 5, 15 and 30 TFLOPs, all 2,192,374 examples; 49 runs.

    python -m tools.sweep plan configs/sweeps/isoflop.py

Curves of your own: `fitting.sweeps.isoflop_sweep(PAPER_DOMAIN, budgets, n, PAPER)` searches them.
"""

from fitting.sweeps import PAPER_ISOFLOP
from vvlm_jax.sweep.config import SweepConfig

from . import table6


def sweep() -> SweepConfig:
    """The isoFLOP runs of Table 6."""
    return table6.config("isoflop", PAPER_ISOFLOP)
