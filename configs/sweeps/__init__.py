"""Sweeps: files that define `sweep() -> SweepConfig`."""
