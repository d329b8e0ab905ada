"""Sweeps: many training runs, the store that records them, and the workers that do them."""
