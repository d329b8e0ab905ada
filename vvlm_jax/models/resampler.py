"""Resamplers from the encoder's grid of features to V tokens a frame.

Each takes features [B, P, D] of a g × g grid, P = g², and returns [B, V, D], V = r², both
row-major; `config.tokens_side` checks V. At r = g each is the identity.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np


def bilinear(x_BPD, tokens_per_frame: int):
    """Interpolate bilinearly with half-pixel centres and without antialiasing.

    This equals `torch.nn.functional.interpolate(mode="bilinear")`, which LLaVA-NeXT uses. It
    subsamples: at r = 1 and odd g the result is the centre patch alone.
    """
    return _resize(x_BPD, tokens_per_frame, antialias=False)


def antialias(x_BPD, tokens_per_frame: int):
    """Interpolate bilinearly with a triangle kernel widened by g / r, so that every patch counts.

    This equals `torch.nn.functional.interpolate(mode="bilinear", antialias=True)`.
    """
    return _resize(x_BPD, tokens_per_frame, antialias=True)


def area(x_BPD, tokens_per_frame: int):
    """Average the g/r × g/r patches of each cell, weighted by the fraction inside the cell.

    Where r divides g this is average pooling. Elsewhere a patch on a border is divided between its
    cells, so that every patch has the same total weight. (torch's `mode="area"` instead rounds
    cells to whole patches, which then overlap.)
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
"""Functions by `ModelConfig.resampler`; `quecc`, which has parameters, is in `quecc.py`."""


def _resize(x_BPD, tokens_per_frame, antialias):
    B, P, D = x_BPD.shape
    grid, side = math.isqrt(P), math.isqrt(tokens_per_frame)
    if side == grid:
        return x_BPD
    x = x_BPD.reshape(B, grid, grid, D)
    x = jax.image.resize(x, (B, side, side, D), "bilinear", antialias=antialias)
    return x.reshape(B, side * side, D)


def _overlap(cells: int, patches: int) -> np.ndarray:
    """Return float64 [cells, patches]: the weight of each patch of a row in each cell.

    Weights of a cell sum to 1.
    """
    edges = np.arange(cells + 1)[:, None] * patches / cells
    # Fraction of each patch that is left of each edge.
    before = np.clip(edges - np.arange(patches)[None, :], 0, 1)
    return np.diff(before, axis=0) * cells / patches
