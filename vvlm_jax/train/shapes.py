"""Shapes and shardings of a train step's arguments, to compile it without allocating anything."""

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vvlm_jax.config import TrainConfig, visual_length
from vvlm_jax.config_check import choose
from vvlm_jax.models import variants, vlm
from vvlm_jax.sharding import BATCH
from vvlm_jax.train import optim
from vvlm_jax.train.compiled import compiled_step, state_shardings
from vvlm_jax.train.step import TrainState, first_state
from vvlm_jax.types import Batch


def abstract_state(model: vlm.VLM, optim_config, mesh: Mesh) -> TrainState:
    """Return `compiled.initial_state` as `ShapeDtypeStruct`s with shardings on `mesh`."""

    def make():
        params = vlm.init(model, jax.random.key(0))
        trainable, frozen = optim.split(params, optim_config)
        opt_state = optim.make(optim_config, trainable).init(trainable)
        return first_state(trainable, frozen, opt_state)

    return jax.tree.map(_on, jax.eval_shape(make), state_shardings(model, optim_config, mesh))


def abstract_batch(config: TrainConfig, mesh: Mesh) -> Batch:
    """Return the shapes of the longest batch of a stage, sharded by rows.

    Every row holds one video and `data.max_text_tokens` of text: tokens [B, L] with L = visual
    positions + text, targets [B, M] with M = text, uint8 frames [B, T, H, W, 3]. Raises ConfigError
    for an unknown vision encoder.
    """
    vision = choose(variants.VISION, config.model.vision, "model.vision")
    B, T, M = config.batch_size, config.model.num_frames, config.data.max_text_tokens
    L = visual_length(T, config.model.tokens_per_frame, config.model.newline) + M
    rows = NamedSharding(mesh, BATCH)

    def struct(*shape, dtype=np.int32):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=rows)

    has_query = config.model.resampler == "quecc"
    return Batch(
        tokens_BL=struct(B, L),
        target_pos_BM=struct(B, M),
        target_ids_BM=struct(B, M),
        target_weight_BM=struct(B, M, dtype=np.float32),
        frames_BTHWC=struct(B, T, vision.image_size, vision.image_size, 3, dtype=np.uint8),
        query_BQ=struct(B, M) if has_query else None,
        query_lengths_B=struct(B) if has_query else None,
        index_B=struct(B),
    )


def lower_step(config: TrainConfig, model: vlm.VLM, mesh: Mesh) -> jax.stages.Lowered:
    """Lower the trainer's step (`compiled.compiled_step`) for the platform of the mesh.

    Neither lowering nor the result's `compile()` needs a device of that platform.
    """
    weighting, chunk = config.loss_weighting, config.loss_chunk
    step = compiled_step(model, config.optim, mesh, config.microbatches, weighting, chunk)
    share = jax.ShapeDtypeStruct((), np.float32, sharding=NamedSharding(mesh, PartitionSpec()))
    return step.lower(
        abstract_state(model, config.optim, mesh), abstract_batch(config, mesh), share
    )


def _on(x, sharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)
