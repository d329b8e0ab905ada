"""One optimiser step, pure."""

import jax
import jax.numpy as jnp
import optax

from vvlm_jax.models.vlm import VLM
from vvlm_jax.train import optim
from vvlm_jax.train.loss import answer_loss
from vvlm_jax.train.state import TrainState
from vvlm_jax.types import Batch


def make_train_step(
    model: VLM, tx: optax.GradientTransformation, microbatches: int, weighting: str
):
    """Returns `train_step(state, batch, rate_share) -> (state, {"loss", "grad_norm"})`.

    `rate_share` is the schedule: the share of every group's peak learning rate to use at this step.

    Gradients of the summed loss are added over microbatches and divided by the batch's total weight
    once, so that loss and gradients do not depend on how a batch is split.
    """

    def loss_sum(trainable, frozen, batch: Batch):
        logits_BMv = model.apply(
            {"params": optim.merge(trainable, frozen)},
            batch.tokens_BL,
            batch.frames_BTHWC,
            batch.target_pos_BM,
            batch.query_BQ,
            batch.query_lengths_B,
            method="target_logits",
        )
        return answer_loss(logits_BMv, batch.target_ids_BM, batch.target_weight_BM, weighting)

    grad_fn = jax.value_and_grad(loss_sum, has_aux=True)

    def train_step(state: TrainState, batch: Batch, rate_share):
        def accumulate(total, part):
            (loss, weight), grads = grad_fn(state.trainable, state.frozen, part)
            return jax.tree.map(jnp.add, total, (loss, weight, grads)), None

        if microbatches == 1:
            (loss, weight), grads = grad_fn(state.trainable, state.frozen, batch)
        else:
            parts = jax.tree.map(
                lambda x: x.reshape(microbatches, len(x) // microbatches, *x.shape[1:]), batch
            )
            zeros = (jnp.zeros(()), jnp.zeros(()), jax.tree.map(jnp.zeros_like, state.trainable))
            (loss, weight, grads), _ = jax.lax.scan(accumulate, zeros, parts)
        grads = jax.tree.map(lambda g: g / weight, grads)
        updates, opt_state = tx.update(grads, state.opt_state, state.trainable)
        updates = jax.tree.map(lambda u: u * rate_share, updates)
        trainable = optax.apply_updates(state.trainable, updates)
        metrics = {"loss": loss / weight, "grad_norm": optax.tree.norm(grads)}
        return TrainState(state.step + 1, trainable, state.frozen, opt_state), metrics

    return train_step
