"""The compiled train step and the sharded state that it updates."""

import functools

import jax
import optax
from jax.sharding import NamedSharding, PartitionSpec

from vvlm_jax.config import ConfigError, TrainConfig
from vvlm_jax.config_check import nearest
from vvlm_jax.models import vlm
from vvlm_jax.sharding import param_shardings
from vvlm_jax.train import optim
from vvlm_jax.train.step import TrainState, first_state, make_train_step
from vvlm_jax.weights.sources import is_foreign, load_part


def initial_state(config: TrainConfig, model: vlm.VLM, mesh) -> TrainState:
    """Return the state before the first step, on the mesh.

    The parts that `config.init` names are loaded from a finished model, a Hugging Face directory or
    a big_vision `.npz`; the others are random. Every array is created with its sharding, so that no
    device ever holds the whole model.

    Raises ConfigError for an unknown part, CheckpointError or ValueError for a source that cannot
    be read or does not fit.
    """
    shardings = state_shardings(model, config.optim, mesh)
    by_part = optim.merge(shardings.trainable, shardings.frozen)
    like = jax.tree.map(_struct, vlm.shapes(model), by_part)
    for part, _ in config.init:
        if part not in like:
            raise ConfigError(f"init: unknown part {part!r}; {nearest(part, like)}")
    loaded = tuple(part for part, _ in config.init)
    params = _random_init(model, mesh, loaded)(jax.random.key(config.seed))
    if config.init:
        # model_dir imports the data readers, which compiling a step does not need.
        from vvlm_jax.train import model_dir
    for part, folder in config.init:
        params[part] = (
            load_part(folder, part, like[part])
            if is_foreign(folder)
            else model_dir.load_params(folder, {part: like[part]})[part]
        )
    trainable, frozen = optim.split(params, config.optim)
    opt_state = _first_moments(model, config.optim, mesh)(trainable)
    return jax.device_put(first_state(trainable, frozen, opt_state), shardings)


@functools.lru_cache(maxsize=8)
def _first_moments(model: vlm.VLM, optim_config, mesh):
    """Return the jitted function from trainable parameters to the optimiser's first state; cached,
    as `_random_init` is.
    """
    trainable, _ = optim.split(vlm.shapes(model), optim_config)
    tx = optim.make(optim_config, trainable)
    return jax.jit(tx.init, out_shardings=state_shardings(model, optim_config, mesh).opt_state)


@functools.lru_cache(maxsize=8)
def _random_init(model: vlm.VLM, mesh, without: tuple[str, ...]):
    """Return a jitted function from a key to random parameters of all parts but `without`.

    Parts that are loaded anyway would take memory and, in a small model, half of the compile time.
    The function is cached, so that runs of equal model and mesh in one process compile it once.
    """
    by_part = param_shardings(vlm.shapes(model), mesh)
    shardings = {part: x for part, x in by_part.items() if part not in without}
    if not shardings:
        return lambda key: {}

    def init(key):
        params = vlm.init(model, key)
        return {part: params[part] for part in shardings}

    return jax.jit(init, out_shardings=shardings)


def _struct(shape: jax.ShapeDtypeStruct, sharding: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=sharding)


@functools.lru_cache(maxsize=8)
def state_shardings(model: vlm.VLM, optim_config, mesh) -> TrainState:
    """Return the sharding of every leaf of a train state.

    Moments are sharded as their parameters are; scalars are replicated.
    """
    shapes = vlm.shapes(model)
    trainable, frozen = optim.split(param_shardings(shapes, mesh), optim_config)
    tx = optim.make(optim_config, trainable)
    opt_shapes = jax.eval_shape(tx.init, optim.split(shapes, optim_config)[0])
    everywhere = NamedSharding(mesh, PartitionSpec())
    opt_state = optax.tree_utils.tree_map_params(
        tx,
        lambda _, sharding: sharding,
        opt_shapes,
        trainable,
        transform_non_params=lambda _: everywhere,
    )
    return TrainState(everywhere, trainable, frozen, opt_state, everywhere, everywhere)


@functools.lru_cache(maxsize=8)
def compiled_step(model, optim_config, mesh, microbatches, weighting, loss_chunk=0):
    """Return the jitted train step, which donates its state.

    The step is cached: it does not depend on the data or the length of a run, so that runs of equal
    model, optimiser and mesh in one process compile it once.
    """
    shardings = state_shardings(model, optim_config, mesh)

    def shard(grads):
        # Without the constraint XLA may all-reduce whole gradients onto every device, and slice
        # them only for the optimiser.
        return jax.lax.with_sharding_constraint(grads, shardings.trainable)

    train_step = make_train_step(
        model, optim_config, shardings.trainable, microbatches, weighting, loss_chunk, shard
    )

    def step(state, batch, rate_share):
        # TPU attention kernels use shard_map, which needs the mesh.
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return train_step(state, batch, rate_share)

    return jax.jit(step, donate_argnums=0, out_shardings=(shardings, None))
