"""Choice of the next token: the likeliest, or a seeded draw with temperature and top-p."""

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Draws(NamedTuple):
    """Parameters of a draw."""

    keys_B: jax.Array
    """One random key a row, so that a reply does not depend on the rows beside it."""
    temperature: jax.Array
    """Above 0: logits are divided by it."""
    top_p: jax.Array
    """Above 0, up to 1: share of the probability to draw from."""


def draws(seed: int, rows, temperature: float, top_p: float) -> Draws | None:
    """Return how to draw for the prompts numbered `rows`; None, the likeliest, at temperature 0.

    Raises ValueError for a temperature below 0 or a share outside (0, 1].
    """
    if not 0 <= temperature < float("inf"):
        raise ValueError(f"temperature = {temperature}: must be 0 (the likeliest token) or above")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p = {top_p}: must be a share above 0 and up to 1")
    if temperature == 0:
        return None
    keys_B = jax.vmap(jax.random.fold_in, (None, 0))(jax.random.key(seed), jnp.asarray(rows))
    return Draws(keys_B, jnp.float32(temperature), jnp.float32(top_p))


def next_token(logits_Bv, draws: Draws | None, place):
    """Return int32 [B]: each row's likeliest token, or a draw by its key and `place`."""
    if draws is None:
        return jnp.argmax(logits_Bv, axis=-1).astype(jnp.int32)
    order_Bv, logits_Bv = likeliest_share(logits_Bv / draws.temperature, draws.top_p)
    keys_B = jax.vmap(jax.random.fold_in, (0, None))(draws.keys_B, place)
    rank_B = jax.vmap(jax.random.categorical)(keys_B, logits_Bv)
    return jnp.take_along_axis(order_Bv, rank_B[:, None], axis=1)[:, 0].astype(jnp.int32)


def likeliest_share(logits_Bv, top_p):
    """Return the fewest tokens that hold `top_p` of the probability.

    Returns:
      (ids by falling probability, their logits with −inf on those left out), both [B, vocab]. The
      likeliest token always stays.
    """
    order_Bv = jnp.argsort(logits_Bv, axis=-1, descending=True)
    sorted_Bv = jnp.take_along_axis(logits_Bv, order_Bv, axis=-1)
    probs_Bv = jax.nn.softmax(sorted_Bv.astype(jnp.float32), axis=-1)
    before_Bv = jnp.cumsum(probs_Bv, axis=-1) - probs_Bv
    first_1v = jnp.arange(logits_Bv.shape[-1])[None, :] == 0
    return order_Bv, jnp.where((before_Bv < top_p) | first_1v, sorted_Bv, -jnp.inf)
