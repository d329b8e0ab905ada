"""What is compiled: the train step, and the state that it takes, sharded from birth."""

import functools

import jax
import optax
from jax.sharding import NamedSharding, PartitionSpec

from vvlm_jax.config import ConfigError, TrainConfig
from vvlm_jax.config_check import nearest
from vvlm_jax.models import vlm
from vvlm_jax.sharding import param_shardings
from vvlm_jax.train import optim
from vvlm_jax.train.state import TrainState, first_state
from vvlm_jax.train.step import make_train_step
from vvlm_jax.weights.sources import is_foreign, load_part


def initial_state(config: TrainConfig, model: vlm.VLM, mesh) -> TrainState:
    """Parameters, those of parts named by `config.init` loaded and the others random, sharded from
    birth. A part comes from a finished model, a Hugging Face directory or a big_vision `.npz`.
    """
    shardings = state_shardings(model, config.optim, mesh)
    by_part = optim.merge(shardings.trainable, shardings.frozen)
    like = jax.tree.map(_struct, vlm.shapes(model), by_part)
    for part, _ in config.init:
        if part not in like:
            raise ConfigError(f"init: unknown part {part!r}; {nearest(part, like)}")
    params = _random(model, config.seed, by_part, [part for part, _ in config.init])
    if config.init:
        from vvlm_jax.train import model_dir  # and with it readers of data, which a step needs not
    for part, folder in config.init:
        params[part] = (
            load_part(folder, part, like[part])
            if is_foreign(folder)
            else model_dir.load_params(folder, {part: like[part]})[part]
        )
    trainable, frozen = optim.split(params, config.optim)
    tx = optim.make(config.optim, trainable)
    opt_state = jax.jit(tx.init, out_shardings=shardings.opt_state)(trainable)
    return jax.device_put(first_state(trainable, frozen, opt_state), shardings)


def _random(model: vlm.VLM, seed: int, by_part: dict, without) -> dict:
    """Random parameters of all parts but some: those would take memory, and half of the time that
    it takes to compile a small model, to be thrown away.
    """
    places = {part: place for part, place in by_part.items() if part not in without}
    if not places:
        return {}

    def init(key):
        params = vlm.init(model, key)
        return {part: params[part] for part in places}

    return jax.jit(init, out_shardings=places)(jax.random.key(seed))


def _struct(shape: jax.ShapeDtypeStruct, place: NamedSharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=place)


def state_shardings(model: vlm.VLM, optim_config, mesh) -> TrainState:
    """Where every leaf of a train state lives: moments with their parameters, scalars
    everywhere.
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
    """The jitted train step; runs that differ in data or length alone share it. The state is
    donated.
    """
    shardings = state_shardings(model, optim_config, mesh)

    def place(grads):
        # Else XLA may add up whole gradients on every device, and cut them only for the optimiser.
        return jax.lax.with_sharding_constraint(grads, shardings.trainable)

    on_one = make_train_step(
        model, optim_config, shardings.trainable, microbatches, weighting, loss_chunk, place
    )

    def step(state, batch, rate_share):
        # Attention kernels of TPUs are split by hand, and need to know the mesh.
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return on_one(state, batch, rate_share)

    return jax.jit(step, donate_argnums=0, out_shardings=(shardings, None))
