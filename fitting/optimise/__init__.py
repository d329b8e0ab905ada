"""Solvers of the fits."""
