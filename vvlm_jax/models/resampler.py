"""From the encoder's grid of features to V tokens a frame.

All three take [B, P, D] features of a g × g grid, P = g², row-major, and give [B, V, D], V = r²,
row-major; `config.tokens_side` checks V. At r = g each is the identity.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np


def bilinear(x_BPD, tokens_per_frame: int):
    """Bilinear interpolation, half-pixel centres, no antialiasing.

    As `torch.nn.functional.interpolate(mode="bilinear")`, which the paper's code base uses. Without
    antialiasing it subsamples: at odd g, r = 1 reads the centre patch alone.
    """
    return _resize(x_BPD, tokens_per_frame, antialias=False)


def antialias(x_BPD, tokens_per_frame: int):
    """Bilinear interpolation whose triangle kernel is widened by g / r, so every patch counts.

    As `torch.nn.functional.interpolate(mode="bilinear", antialias=True)`.
    """
    return _resize(x_BPD, tokens_per_frame, antialias=True)


def area(x_BPD, tokens_per_frame: int):
    """Each token is the average of its cell, g/r × g/r patches, a patch counting by its share
    inside.

    Where r divides g this is average pooling; elsewhere patches on a border are shared between
    cells, so that every patch weighs the same in the whole (torch's `mode="area"` instead rounds
    cells to whole patches, which then overlap).
    """
    B, P, D = x_BPD.shape
    grid, side = math.isqrt(P), math.isqrt(tokens_per_frame)
    if side == grid:
        return x_BPD
    share_rg = jnp.asarray(_overlap(side, grid), x_BPD.dtype)
    x = x_BPD.reshape(B, grid, grid, D)
    x = jnp.einsum("rg,sh,BghD->BrsD", share_rg, share_rg, x, precision="highest")
    return x.reshape(B, side * side, D)


METHODS = {"bilinear": bilinear, "area": area, "antialias": antialias}
"""By `ModelConfig.resampler`; `quecc`, which needs the question, is a room of its own."""


def _resize(x_BPD, tokens_per_frame, antialias):
    B, P, D = x_BPD.shape
    grid, side = math.isqrt(P), math.isqrt(tokens_per_frame)
    if side == grid:
        return x_BPD
    x = x_BPD.reshape(B, grid, grid, D)
    x = jax.image.resize(x, (B, side, side, D), "bilinear", antialias=antialias)
    return x.reshape(B, side * side, D)


def _overlap(cells: int, patches: int) -> np.ndarray:
    """[cells, patches] float64: share of each cell of a line that each patch covers; rows sum to
    1.
    """
    edges = np.arange(cells + 1)[:, None] * patches / cells
    before = np.clip(edges - np.arange(patches)[None, :], 0, 1)  # of each patch, left of an edge
    return np.diff(before, axis=0) * cells / patches
