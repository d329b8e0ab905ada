"""The key-value cache of generation: arrays of its own for each layer, so that a step can write its
one new place in each of them and copy nothing.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class KVCache(NamedTuple):
    """Keys and values of each layer, and how many slots of each row are filled."""

    k_BKSH: tuple[jax.Array, ...]
    """[B, K, S, H] for each layer: a head's slots lie together, as its products read them."""
    v_BKSH: tuple[jax.Array, ...]
    lengths_B: jax.Array
    """int32; row b has seen tokens 0 … lengths_B[b] − 1."""


def grow(k_BLKH, v_BLKH, lengths_B, extra: int) -> KVCache:
    """The cache after a prefill of right-padded rows, with room for `extra` more tokens a row.

    k_BLKH and v_BLKH hold [B, L, K, H] for each layer: stacked, or a tuple.
    """

    def one(x_BLKH):
        return jnp.pad(x_BLKH.swapaxes(1, 2), ((0, 0), (0, 0), (0, extra), (0, 0)))

    return KVCache(tuple(map(one, k_BLKH)), tuple(map(one, v_BLKH)), lengths_B)


def write(cache_BKSH, new_B1KH, positions_B):
    """Puts one new key or value a row at its own position (padding slots are overwritten)."""
    return jax.vmap(lambda c, x, p: jax.lax.dynamic_update_slice_in_dim(c, x, p, axis=1))(
        cache_BKSH, new_B1KH.swapaxes(1, 2), positions_B
    )
