"""Table 6's star: one factor at a time around (7.5B, 32, 196), at three data sizes; 39 runs.

    vvlm sweep plan sweeps/star

For another star give a centre, levels and data sizes, and `seeds` for replicates:

    levels = Domain(lm_params=(1e9, 2.8e9), num_frames=(8, 16, 32), tokens_per_frame=(16, 49, 196))
    table6.config("mine", star_sweep((2.8e9, 32, 196), levels, num_examples=(100_000, 200_000)))
"""

from fitting.sweeps import PAPER_STAR, star_sweep
from vvlm_jax.sweep.config import SweepConfig

from . import table6


def sweep() -> SweepConfig:
    """Return the star of Table 6."""
    return table6.config("star", star_sweep(*PAPER_STAR))
