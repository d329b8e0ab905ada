"""Public sets, prepared once before training."""
