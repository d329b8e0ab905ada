"""Questions in, scores out."""
