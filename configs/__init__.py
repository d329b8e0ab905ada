"""Experiments as short Python files: stages, data mixtures, sweeps, the study."""
