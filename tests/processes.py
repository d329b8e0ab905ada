"""Processes of their own that tests start."""

from jax.version import __version_info__ as JAX

FAST_TO_COMPILE = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
"""XLA_FLAGS of a process that mostly compiles: a third of the time or less. LLVM optimises little;
what is computed, and how it is split over devices, stays the same.
"""
if JAX < (0, 11):  # later ones know no such flag, and end at once
    FAST_TO_COMPILE += " --xla_cpu_use_fusion_emitters=false"
