"""Compiler flags of tests and of the processes that they start."""

from jax.version import __version_info__ as JAX

# jaxlib 0.11 aborts at this flag.
NO_EMITTERS = "--xla_cpu_use_fusion_emitters=false" if JAX < (0, 11) else ""
"""XLA_FLAGS of all tests: with XLA's older loop fusion a step compiles in two thirds of the time,
and runs as fast."""
FAST_TO_COMPILE = (
    f"--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true {NO_EMITTERS}"
)
"""XLA_FLAGS of a process that mostly compiles: a third of the time or less. LLVM optimises little;
the program and its sharding stay the same.
"""
