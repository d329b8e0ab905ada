"""From the encoder's grid of features to V tokens a frame."""

import math

import jax


def bilinear(x_BPD, tokens_per_frame: int):
    """Bilinear interpolation of a g × g grid to r × r, r = √V, half-pixel centres, no antialiasing.

    As `torch.nn.functional.interpolate(mode="bilinear")`, which the paper's code base uses. Without
    antialiasing it subsamples: at odd g, r = 1 reads the centre patch alone.

    Args:
      x_BPD: features, P = g², row-major.
      tokens_per_frame: V = r²; `config.tokens_side` checks it.

    Returns:
      [B, V, D], row-major.
    """
    B, P, D = x_BPD.shape
    grid, side = math.isqrt(P), math.isqrt(tokens_per_frame)
    if side == grid:
        return x_BPD
    x = x_BPD.reshape(B, grid, grid, D)
    x = jax.image.resize(x, (B, side, side, D), "bilinear", antialias=False)
    return x.reshape(B, side * side, D)
