"""The trainer: one loop for every stage. Config in, finished model out.

    run/config.json     what was asked for
    run/metrics.jsonl   one line every `log_every` steps
    run/checkpoints/    newest train states, while the stage runs
    run/summary.json    steps, last loss, unreadable files
    run/params/         the finished model; it is there only when the stage has finished

A stage that was interrupted continues from its newest checkpoint when it is run again, and ends
with the same parameters as one that was not.
"""

import functools
import json
import shutil
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import NamedSharding, PartitionSpec

from vvlm_jax import config as config_lib
from vvlm_jax.config import ConfigError, TrainConfig, choose, validate
from vvlm_jax.data import pipeline, tokenizer
from vvlm_jax.models import variants, vlm
from vvlm_jax.sharding import BATCH, make_mesh, param_shardings
from vvlm_jax.train import checkpoint, optim
from vvlm_jax.train.metrics import JsonlWriter, Progress
from vvlm_jax.train.state import TrainState
from vvlm_jax.train.step import make_train_step


class TrainingDiverged(RuntimeError):
    """Loss or gradient is not finite; the message names the step."""


def train(config: TrainConfig, *, on_step=None, keep_checkpoints: bool = False) -> dict:
    """Trains one stage and writes the finished model to `config.out_dir`; a finished one is left as
    it is.

    Args:
      on_step: called as `on_step(step, num_steps, metrics)` after every logged step.
      keep_checkpoints: leave the train states in place after the stage has finished.

    Returns:
      {"steps", "examples", "loss", "unreadable"}: the loss of the last step, and the messages of
      media files that could not be read.

    Raises ConfigError before any compile for options that cannot work, TrainingDiverged on NaN or
    Inf.
    """
    vision = choose(variants.VISION, config.model.vision, "model.vision")
    validate(config, vision)
    out_dir = claim_folder(config)
    if checkpoint.is_finished(out_dir):
        return json.loads((out_dir / "summary.json").read_text())
    tok = tokenizer.load(config.data.tokenizer)
    examples = pipeline.Examples(config.data, config.model, vision, tok, config.seed)
    num_steps = len(examples) // config.batch_size * config.epochs
    data = pipeline.batches(
        examples,
        config.batch_size,
        config.epochs,
        config.seed,
        shard=jax.process_index(),
        num_shards=jax.process_count(),
    )

    mesh = make_mesh(config.mesh)
    model = vlm.build(config.model, pipeline.video_id(tok), tok.vocab)
    state = initial_state(config, model, mesh)
    step_fn = compiled_step(model, config.optim, mesh, config.microbatches, config.loss_weighting)

    checkpoints = (
        checkpoint.Checkpoints(out_dir / "checkpoints") if config.checkpoint_every else None
    )
    iterator = iter(data)
    start = 0
    if checkpoints and (start := checkpoints.latest() or 0):
        state, position = checkpoints.restore(start, state)
        iterator.set_state(position["iterator"])
        examples.unreadable.messages.update(position["unreadable"])

    metrics = {}
    log = JsonlWriter(out_dir / "metrics.jsonl", after_step=start)
    progress = Progress(out_dir.name, num_steps * config.batch_size)
    began, batch_sharding = time.monotonic(), NamedSharding(mesh, BATCH)
    try:
        for step in range(start, num_steps):
            batch = jax.tree.map(
                lambda x: jax.make_array_from_process_local_data(batch_sharding, x), next(iterator)
            )
            share = np.float32(optim.cosine_with_warmup(step, num_steps, config.optim.warmup))
            state, metrics = step_fn(state, batch, share)
            done = step + 1
            if done % config.log_every == 0 or done == num_steps:
                metrics = {k: float(v) for k, v in metrics.items()}
                if not np.isfinite([metrics["loss"], metrics["grad_norm"]]).all():
                    raise TrainingDiverged(
                        f"{out_dir}: step {done}: {metrics}; lower optim.learning_rates"
                    )
                rate = (done - start) * config.batch_size / (time.monotonic() - began)
                log.write(
                    step=done,
                    **metrics,
                    rate_share=float(share),
                    examples_per_second=round(rate, 2),
                    unreadable=len(examples.unreadable.messages),
                )
                progress.update(done * config.batch_size, f"loss {metrics['loss']:.3f}")
                if on_step:
                    on_step(done, num_steps, metrics)
            if checkpoints and done % config.checkpoint_every == 0 and done < num_steps:
                position = {
                    "iterator": iterator.get_state(),
                    "unreadable": dict(examples.unreadable.messages),
                }
                checkpoints.save(done, state, position)
    finally:
        progress.close()
        log.close()
        if checkpoints:
            checkpoints.close()
    summary = {
        "steps": num_steps,
        "examples": num_steps * config.batch_size,
        "loss": metrics.get("loss"),
        "unreadable": sorted(examples.unreadable.messages.values()),
    }
    (out_dir / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    checkpoint.save_params(out_dir, optim.merge(state.trainable, state.frozen))
    if not keep_checkpoints:
        shutil.rmtree(out_dir / "checkpoints", ignore_errors=True)
    return summary


def claim_folder(config: TrainConfig) -> Path:
    """Creates the run's folder, or takes up one left by the same config.

    Raises ConfigError when the folder holds another run, naming the first option that differs. A
    config without metrics is of a run that never started, and gives way.
    """
    out_dir = Path(config.out_dir)
    file = out_dir / "config.json"
    if file.is_file() and (out_dir / "metrics.jsonl").exists():
        earlier = config_lib.from_json(TrainConfig, file.read_text())
        if earlier != config:
            name, there, here = config_lib.first_difference(earlier, config)
            raise ConfigError(
                f"{out_dir} holds a run with {name} = {there!r}, not {here!r}; "
                "choose another out_dir"
            )
    out_dir.mkdir(parents=True, exist_ok=True)
    file.write_text(config_lib.to_json(config))
    return out_dir


def initial_state(config: TrainConfig, model: vlm.VideoVLM, mesh) -> TrainState:
    """Random parameters with the parts named by `config.init` loaded over them, sharded from
    birth.
    """
    shardings = state_shardings(model, config.optim, mesh)
    by_part = optim.merge(shardings.trainable, shardings.frozen)
    init = jax.jit(functools.partial(vlm.init, model), out_shardings=by_part)
    params = init(jax.random.key(config.seed))
    for part, folder in config.init:
        if part not in params:
            raise ConfigError(f"init: unknown part {part!r}; {config_lib.nearest(part, params)}")
        params[part] = checkpoint.load_params(folder, params, [part])[part]
    trainable, frozen = optim.split(params, config.optim)
    tx = optim.make(config.optim, trainable)
    opt_state = jax.jit(tx.init, out_shardings=shardings.opt_state)(trainable)
    return TrainState(
        jax.device_put(jnp.zeros((), jnp.int32), shardings.step), trainable, frozen, opt_state
    )


def state_shardings(model: vlm.VideoVLM, optim_config, mesh) -> TrainState:
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
    return TrainState(everywhere, trainable, frozen, opt_state)


@functools.lru_cache(maxsize=8)
def compiled_step(model, optim_config, mesh, microbatches, weighting):
    """The jitted train step; runs that differ in data or length alone share it. The state is
    donated.
    """
    shardings = state_shardings(model, optim_config, mesh)
    tx = optim.make(optim_config, shardings.trainable)
    step = make_train_step(model, tx, microbatches, weighting)
    return jax.jit(step, donate_argnums=0, out_shardings=(shardings, None))
