"""The key-value cache of generation, a pytree with a leading layer axis."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class KVCache(NamedTuple):
    """Keys and values of all layers, and how many slots of each row are filled."""

    k_DBSKH: jax.Array
    """[depth, B, S, K, H]"""
    v_DBSKH: jax.Array
    lengths_B: jax.Array
    """int32; row b has seen tokens 0 … lengths_B[b] − 1."""


def grow(k_DBLKH, v_DBLKH, lengths_B, extra: int) -> KVCache:
    """The cache after a prefill of right-padded rows, with room for `extra` more tokens a row."""
    pad = ((0, 0), (0, 0), (0, extra), (0, 0), (0, 0))
    return KVCache(jnp.pad(k_DBLKH, pad), jnp.pad(v_DBLKH, pad), lengths_B)


def write(cache_BSKH, new_B1KH, positions_B):
    """Puts one new key or value a row at its own position (padding slots are overwritten)."""
    return jax.vmap(lambda c, x, p: jax.lax.dynamic_update_slice_in_dim(c, x, p, axis=0))(
        cache_BSKH, new_B1KH, positions_B
    )
