"""Key-value cache for generation.

Each layer has its own arrays, so that a decoding step updates one slot in place and copies nothing.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class KVCache(NamedTuple):
    """Keys and values of each layer, and the number of filled slots of each row."""

    k_BKSH: tuple[jax.Array, ...]
    """[B, K, S, H] for each layer; the slots of one head are contiguous for the products."""
    v_BKSH: tuple[jax.Array, ...]
    lengths_B: jax.Array
    """int32 [B]; slots 0 … lengths_B[b] − 1 of row b are filled."""


def grow(k_BLKH, v_BLKH, lengths_B, extra: int) -> KVCache:
    """Return the cache after a prefill of right-padded rows, with `extra` empty slots a row.

    Args:
      k_BLKH, v_BLKH: [B, L, K, H] for each layer, stacked along a leading axis or in a tuple.
      lengths_B: int32 [B], tokens of each row without padding.
    """

    def one(x_BLKH):
        return jnp.pad(x_BLKH.swapaxes(1, 2), ((0, 0), (0, 0), (0, extra), (0, 0)))

    return KVCache(tuple(map(one, k_BLKH)), tuple(map(one, v_BLKH)), lengths_B)


def write(cache_BKSH, new_B1KH, positions_B):
    """Write one new key or value [B, 1, K, H] into each row's slot `positions_B`.

    Slots that held padding are overwritten.
    """
    return jax.vmap(lambda c, x, p: jax.lax.dynamic_update_slice_in_dim(c, x, p, axis=1))(
        cache_BKSH, new_B1KH.swapaxes(1, 2), positions_B
    )
