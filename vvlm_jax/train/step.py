"""One optimiser step as a pure function, and the state that it updates."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from vvlm_jax.config import OptimConfig
from vvlm_jax.models.vlm import VLM
from vvlm_jax.sharding import split_microbatches
from vvlm_jax.train import optim
from vvlm_jax.train.loss import chunked_losses, weigh
from vvlm_jax.types import Batch

RECENT = 0.05
"""Weight of the newest loss in the running mean, which so covers about 20 steps."""


class TrainState(NamedTuple):
    """State of a training run on the devices, as a step updates it and checkpoints save it."""

    step: jax.Array
    """int32 scalar, batches so far, including those of skipped steps."""
    trainable: dict[str, jax.Array]
    """Trained parameters, flat {path: float32}."""
    frozen: dict[str, jax.Array]
    """Parameters with rate 0, flat {path: float32}; they have no optimiser state."""
    opt_state: Any
    loss_mean: jax.Array
    """float32 scalar, running mean of the losses of steps not skipped; inf before the first."""
    skips_in_row: jax.Array
    """int32 scalar, number of steps skipped since the last one that was not."""


def first_state(trainable, frozen, opt_state) -> TrainState:
    """Return the state before the first step; its scalars are NumPy arrays."""
    zero = np.zeros((), jnp.int32)
    return TrainState(zero, trainable, frozen, opt_state, np.full((), np.inf, np.float32), zero)


def make_train_step(
    model: VLM,
    config: OptimConfig,
    paths,
    microbatches: int,
    weighting: str,
    loss_chunk: int = 0,
    shard=lambda grads: grads,
):
    """Return `train_step(state, batch, rate_share) -> (state, metrics)`.

    `rate_share` is the value of the schedule: the fraction of every group's peak learning rate.

    Gradients of the summed loss are added over microbatches and divided by the batch's total weight
    once, so that loss and gradients do not depend on how a batch is split.

    A step is skipped when its loss or gradient norm is not finite, or when its loss exceeds
    `config.spike_factor` times the running mean. A skipped step leaves parameters, optimiser and
    running mean unchanged. The device decides this, so that no step waits for the host.

    Args:
      paths: paths of the trainable parameters.
      microbatches: number of parts of a batch, whose gradients are computed one after another.
      weighting: see `loss.weigh`.
      loss_chunk: see `loss.chunked_losses`.
      shard: constrains a tree of gradients to the shardings of the parameters.

    Metrics are the scalars `loss`, `grad_norm`, `grad_norm/PATTERN` for every group, `loss_mean`,
    `skipped` (0 or 1) and `skips_in_row`.
    """
    tx = optim.make(config, paths)
    groups = optim.groups(paths, config)
    gradients = _gradients(_loss_sum(model, weighting, loss_chunk), microbatches, shard)

    def train_step(state: TrainState, batch: Batch, rate_share):
        loss, weight, grads = gradients(state, batch)
        loss, grads = loss / weight, jax.tree.map(lambda g: g / weight, grads)
        grad_norm = optax.tree.norm(grads)
        taken = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
        if config.spike_factor:
            # loss_mean is inf before the first step, so that the first is never a spike.
            taken &= loss <= config.spike_factor * state.loss_mean
        updates, opt_state = tx.update(grads, state.opt_state, state.trainable)
        # The schedule multiplies the updates, after clipping and Adam, which it must not affect.
        updates = jax.tree.map(lambda u: u * rate_share, updates)
        trainable = optax.apply_updates(state.trainable, updates)
        first = jnp.isinf(state.loss_mean)
        mean = jnp.where(first, loss, (1 - RECENT) * state.loss_mean + RECENT * loss)
        new = (trainable, opt_state, mean, jnp.zeros_like(state.skips_in_row))
        old = (state.trainable, state.opt_state, state.loss_mean, state.skips_in_row + 1)
        # A select and not lax.cond: both states exist anyway, and a NaN in `new` is not propagated.
        trainable, opt_state, mean, skips = jax.tree.map(
            lambda n, o: jnp.where(taken, n, o), new, old
        )
        metrics = {
            "loss": loss,
            "grad_norm": grad_norm,
            **_norms_of_groups(grads, groups),
            "loss_mean": mean,
            "skipped": (~taken).astype(jnp.int32),
            "skips_in_row": skips,
        }
        state = TrainState(state.step + 1, trainable, state.frozen, opt_state, mean, skips)
        return state, metrics

    return train_step


def _loss_sum(model: VLM, weighting: str, loss_chunk: int):
    """Return `loss_sum(trainable, frozen, batch) -> (summed loss, total weight)`."""

    def loss_sum(trainable, frozen, batch: Batch):
        variables = {"params": optim.merge(trainable, frozen)}
        states_BMD = model.apply(
            variables,
            batch.tokens_BL,
            batch.frames_BTHWC,
            batch.target_pos_BM,
            batch.query_BQ,
            batch.query_lengths_B,
            method="target_states",
        )
        nll_BM = chunked_losses(
            lambda states: model.apply(variables, states, method="logits"),
            states_BMD,
            batch.target_ids_BM,
            loss_chunk,
        )
        return weigh(nll_BM, batch.target_weight_BM, weighting)

    return loss_sum


def _gradients(loss_sum, microbatches: int, shard):
    """Return `gradients(state, batch) -> (summed loss, total weight, gradients)`.

    All three are sums over the microbatches, which run one after another.
    """
    grad_fn = jax.value_and_grad(loss_sum, has_aux=True)

    def gradients(state: TrainState, batch: Batch):
        if microbatches == 1:
            (loss, weight), grads = grad_fn(state.trainable, state.frozen, batch)
            return loss, weight, shard(grads)

        def accumulate(total, part):
            (loss, weight), grads = grad_fn(state.trainable, state.frozen, part)
            *sums, grads = jax.tree.map(jnp.add, total, (loss, weight, grads))
            return (*sums, shard(grads)), None

        parts = jax.tree.map(lambda x: split_microbatches(x, microbatches), batch)
        zeros = jax.tree.map(jnp.zeros_like, state.trainable)
        return jax.lax.scan(accumulate, (jnp.zeros(()), jnp.zeros(()), shard(zeros)), parts)[0]

    return gradients


def _norms_of_groups(grads: dict, groups: dict[str, str]) -> dict[str, jax.Array]:
    """Return {"grad_norm/PATTERN": norm of the gradients of the paths in that group}."""
    return {
        f"grad_norm/{group}": optax.tree.norm(
            {path: g for path, g in grads.items() if groups[path] == group}
        )
        for group in dict.fromkeys(groups.values())
    }
