"""Cross-entropy on answer tokens."""

import jax
import jax.numpy as jnp


def answer_loss(logits_BMv, target_ids_BM, target_weight_BM, weighting: str):
    """Weighted sum of −log p(target), and the total weight, so that microbatches can be added up.

    `token`: every answer token weighs the same; `sample`: every example does, whatever its length.

    Returns:
      (loss_sum, weight_sum): float32 scalars; the loss is their quotient.
    """
    log_probs = jax.nn.log_softmax(logits_BMv.astype(jnp.float32), axis=-1)
    nll_BM = -jnp.take_along_axis(log_probs, target_ids_BM[..., None], axis=-1)[..., 0]
    weight_BM = target_weight_BM
    if weighting == "sample":
        weight_BM = weight_BM / jnp.maximum(weight_BM.sum(axis=1, keepdims=True), 1)
    return (nll_BM * weight_BM).sum(), weight_BM.sum()
