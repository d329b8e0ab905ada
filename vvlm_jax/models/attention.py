"""Scaled dot-product attention: one reference path."""

import jax
import jax.numpy as jnp


def attend(q_BLNH, k_BSKH, v_BSKH, mask=None):
    """softmax(q kᵀ / √H) v with grouped key-value heads.

    Args:
      q_BLNH: queries; N is a multiple of K.
      k_BSKH, v_BSKH: keys and values.
      mask: bool, broadcastable to [B, 1, 1, L, S]; False positions are never attended. None sees
      all.

    Returns:
      [B, L, N, H] in the dtype of `v`. Scores and softmax are float32.
    """
    B, L, N, H = q_BLNH.shape
    K = k_BSKH.shape[2]
    # The G query heads of a key-value head are folded into its rows: two plain batched products.
    q_BKMH = (q_BLNH * H**-0.5).reshape(B, L, K, N // K, H).transpose(0, 2, 3, 1, 4)
    q_BKMH = q_BKMH.reshape(B, K, N // K * L, H)
    scores = jnp.einsum("BKMH,BSKH->BKMS", q_BKMH, k_BSKH, preferred_element_type=jnp.float32)
    scores_BKGLS = scores.reshape(B, K, N // K, L, -1)
    if mask is not None:
        scores_BKGLS = jnp.where(mask, scores_BKGLS, jnp.finfo(jnp.float32).min)
    probs_BKGLS = jax.nn.softmax(scores_BKGLS, axis=-1).astype(v_BSKH.dtype)
    out_BKMH = jnp.einsum("BKMS,BSKH->BKMH", probs_BKGLS.reshape(scores.shape), v_BSKH)
    out_BLKGH = out_BKMH.reshape(B, K, N // K, L, H).transpose(0, 3, 1, 2, 4)
    return out_BLKGH.reshape(B, L, N, H)


def causal_mask(length: int):
    """[1, 1, 1, L, L]: position i sees j ≤ i. With padding on the right no real token sees
    padding.
    """
    return jnp.tril(jnp.ones((length, length), bool))[None, None, None]
