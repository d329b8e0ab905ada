"""Cross-entropy on answer tokens."""

import jax
import jax.numpy as jnp


def token_losses(logits_BMv, target_ids_BM):
    """Return −log p(target), float32 [B, M]."""
    log_probs = jax.nn.log_softmax(logits_BMv.astype(jnp.float32), axis=-1)
    return -jnp.take_along_axis(log_probs, target_ids_BM[..., None], axis=-1)[..., 0]


def weigh(nll_BM, target_weight_BM, weighting: str):
    """Sum losses with weights, and sum the weights, so that microbatches can be added.

    Args:
      weighting: `token` gives every answer token the same weight, `sample` every example.

    Returns:
      (loss_sum, weight_sum): float32 scalars; the loss is their quotient.
    """
    weight_BM = target_weight_BM
    if weighting == "sample":
        weight_BM = weight_BM / jnp.maximum(weight_BM.sum(axis=1, keepdims=True), 1)
    return (nll_BM * weight_BM).sum(), weight_BM.sum()


def chunked_losses(logits_of, states_BMD, target_ids_BM, chunk: int):
    """Return `token_losses` [B, M] with the logits of at most `chunk` positions a row in memory.

    The backward pass recomputes each chunk's logits.

    Args:
      logits_of: function from states [B, m, D] to logits [B, m, vocab].
      chunk: 0 computes all positions at once and keeps their logits.
    """
    B, M, D = states_BMD.shape
    if not 0 < chunk < M:
        return token_losses(logits_of(states_BMD), target_ids_BM)
    chunks = -(-M // chunk)
    padding = ((0, 0), (0, chunks * chunk - M))
    states = jnp.pad(states_BMD, (*padding, (0, 0))).reshape(B, chunks, chunk, D)
    ids = jnp.pad(target_ids_BM, padding).reshape(B, chunks, chunk)

    @jax.checkpoint
    def one(part):
        states_BmD, ids_Bm = part
        return token_losses(logits_of(states_BmD), ids_Bm)

    # Chunks are cut along M and not B, because rows are sharded over devices.
    nll = jax.lax.map(one, (jnp.moveaxis(states, 1, 0), jnp.moveaxis(ids, 1, 0)))
    return jnp.moveaxis(nll, 0, 1).reshape(B, -1)[:, :M]
