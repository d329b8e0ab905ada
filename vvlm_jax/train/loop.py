"""The trainer: one loop for every stage. Config in, finished model out.

    run/config.json     what was asked for
    run/metrics.jsonl   one line every `log_every` steps
    run/checkpoints/    newest train states, while the stage runs
    run/summary.json    steps, last loss, unreadable files
    run/params/         the finished model; it is there only when the stage has finished

A stage that was interrupted continues from its newest checkpoint when it is run again, and ends
with the same parameters as one that was not.
"""

import dataclasses
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
from vvlm_jax.config import ConfigError, DataConfig, Stopped, TrainConfig, choose, validate
from vvlm_jax.data import pipeline, tokenizer
from vvlm_jax.models import variants, vlm
from vvlm_jax.sharding import BATCH, check_batch, make_mesh, param_shardings
from vvlm_jax.train import checkpoint, optim
from vvlm_jax.train.metrics import JsonlWriter, Progress
from vvlm_jax.train.state import TrainState
from vvlm_jax.train.step import make_train_step
from vvlm_jax.weights.sources import is_foreign, load_part


class TrainingDiverged(Stopped):
    """Loss or gradient is not finite; the message names the step."""


def train(config: TrainConfig, *, on_step=None) -> dict:
    """Trains one stage and writes the finished model to `config.out_dir`; a finished one is left as
    it is.

    Args:
      on_step: called as `on_step(step, num_steps, metrics)` after every logged step.

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
        shutil.rmtree(out_dir / "checkpoints", ignore_errors=True)
        return json.loads((out_dir / "summary.json").read_text())
    tok = tokenizer.load(config.data.tokenizer)
    examples = pipeline.Examples(config.data, config.model, vision, tok, config.seed)
    model = vlm.build(config.model, pipeline.video_id(tok), tok.vocab, pipeline.newline_id(tok))
    state, loss = _run_steps(config, out_dir, examples, model, on_step)
    steps = num_steps(config, examples)
    summary = {
        "steps": steps,
        "examples": steps * config.batch_size,
        "loss": loss,
        "unreadable": sorted(examples.unreadable.messages.values()),
    }
    (out_dir / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    checkpoint.save_params(out_dir, optim.merge(state.trainable, state.frozen))
    shutil.rmtree(out_dir / "checkpoints", ignore_errors=True)
    return summary


def num_steps(config: TrainConfig, examples) -> int:
    """Optimiser steps of a stage; an incomplete last batch of an epoch is dropped."""
    return len(examples) // config.batch_size * config.epochs


def _run_steps(config: TrainConfig, out_dir: Path, examples, model, on_step):
    """(state after the last step, last loss). Takes up the newest checkpoint, if there is one."""
    mesh, total = make_mesh(config.mesh), num_steps(config, examples)
    check_batch(config.batch_size, mesh)
    iterator = iter(
        pipeline.batches(
            examples,
            config.batch_size,
            config.epochs,
            config.seed,
            shard=jax.process_index(),
            num_shards=jax.process_count(),
        )
    )
    state = initial_state(config, model, mesh)
    step_fn = compiled_step(model, config.optim, mesh, config.microbatches, config.loss_weighting)
    checkpoints = (
        checkpoint.Checkpoints(out_dir / "checkpoints") if config.checkpoint_every else None
    )
    start = checkpoints.latest() or 0 if checkpoints else 0
    if start:
        state, position = checkpoints.restore(start, state)
        iterator.set_state(position["iterator"])
        examples.unreadable.messages.update(position["unreadable"])
    log, batch_sharding = _Log(config, out_dir, start, total, on_step), NamedSharding(mesh, BATCH)
    try:
        for step in range(start, total):
            batch = jax.tree.map(
                lambda x: jax.make_array_from_process_local_data(batch_sharding, x), next(iterator)
            )
            share = np.float32(optim.cosine_with_warmup(step, total, config.optim.warmup))
            state, metrics = step_fn(state, batch, share)
            log(step + 1, metrics, share, len(examples.unreadable.messages))
            if checkpoints and (step + 1) % config.checkpoint_every == 0 and step + 1 < total:
                log.check(step + 1, metrics)  # a diverged state must not replace a good one
                messages = dict(examples.unreadable.messages)
                position = {"iterator": iterator.get_state(), "unreadable": messages}
                checkpoints.save(step + 1, state, position)
    finally:
        log.close()
        if checkpoints:
            checkpoints.close()
    return state, log.loss


class _Log:
    """Every `log_every` steps: fetches the metrics, checks them, writes and shows them.

    Other steps are not waited for, so that the device always has work.
    """

    def __init__(self, config: TrainConfig, out_dir: Path, start: int, total: int, on_step):
        self.config, self.out_dir, self.on_step = config, out_dir, on_step
        self.start, self.total, self.began = start, total, time.monotonic()
        self.lines = JsonlWriter(out_dir / "metrics.jsonl", after_step=start)
        self.progress = Progress(out_dir.name, total * config.batch_size)
        self.loss = None

    def __call__(self, step: int, metrics, share, num_unreadable: int) -> None:
        """Notes that `step` steps are done."""
        if step % self.config.log_every and step != self.total:
            return
        metrics = self.check(step, metrics)
        self.loss = metrics["loss"]
        size = self.config.batch_size
        rate = (step - self.start) * size / (time.monotonic() - self.began)
        self.lines.write(
            step=step,
            **metrics,
            rate_share=float(share),
            examples_per_second=round(rate, 2),
            unreadable=num_unreadable,
        )
        self.progress.update(step * size, f"loss {metrics['loss']:.3f}")
        if self.on_step:
            self.on_step(step, self.total, metrics)

    def check(self, step: int, metrics) -> dict[str, float]:
        """The metrics as floats; raises TrainingDiverged when loss or gradient is not finite."""
        metrics = {k: float(v) for k, v in metrics.items()}
        if not np.isfinite([metrics["loss"], metrics["grad_norm"]]).all():
            raise TrainingDiverged(
                f"{self.out_dir}: step {step}: {metrics}; lower optim.learning_rates"
            )
        return metrics

    def close(self) -> None:
        """Closes the file and clears the progress line."""
        self.progress.close()
        self.lines.close()


def claim_folder(config: TrainConfig) -> Path:
    """Creates the run's folder, or takes up one left by the same config.

    Options that change no number of a run may differ (`_without_conveniences`). A config without
    metrics is of a run that never started, and gives way.

    Raises ConfigError when the folder holds another run, naming the first option that differs, or
    a config that cannot be read.
    """
    out_dir = Path(config.out_dir)
    file = out_dir / "config.json"
    if file.is_file() and (out_dir / "metrics.jsonl").exists():
        try:
            earlier = config_lib.from_json(TrainConfig, file.read_text())
        except ValueError as e:
            raise ConfigError(f"{file}: {e}; remove {out_dir}, or choose another out_dir") from None
        ours, theirs = _without_conveniences(config), _without_conveniences(earlier)
        if ours != theirs:
            name, there, here = config_lib.first_difference(theirs, ours)
            raise ConfigError(
                f"{out_dir} holds a run with {name} = {there!r}, not {here!r}; "
                "choose another out_dir"
            )
    out_dir.mkdir(parents=True, exist_ok=True)
    partial = file.with_name("config.json.partial")
    partial.write_text(config_lib.to_json(config))
    partial.replace(file)
    return out_dir


def _without_conveniences(config: TrainConfig) -> TrainConfig:
    """The config with what does not change a run's numbers set to its default."""
    data = DataConfig()
    return dataclasses.replace(
        config,
        log_every=1,
        checkpoint_every=0,
        data=dataclasses.replace(
            config.data,
            max_unreadable=data.max_unreadable,
            frame_cache_mb=data.frame_cache_mb,
            read_threads=data.read_threads,
        ),
    )


def initial_state(config: TrainConfig, model: vlm.VLM, mesh) -> TrainState:
    """Random parameters with the parts named by `config.init` loaded over them, sharded from
    birth. A part comes from a finished model, a Hugging Face directory or a big_vision `.npz`.
    """
    shardings = state_shardings(model, config.optim, mesh)
    by_part = optim.merge(shardings.trainable, shardings.frozen)
    init = jax.jit(functools.partial(vlm.init, model), out_shardings=by_part)
    params = init(jax.random.key(config.seed))
    for part, folder in config.init:
        if part not in params:
            raise ConfigError(f"init: unknown part {part!r}; {config_lib.nearest(part, params)}")
        like = {part: jax.tree.map(_struct, params[part])}
        params[part] = None  # makes room for what is loaded in its place
        params[part] = (
            load_part(folder, part, like[part])
            if is_foreign(folder)
            else checkpoint.load_params(folder, like)[part]
        )
    trainable, frozen = optim.split(params, config.optim)
    tx = optim.make(config.optim, trainable)
    opt_state = jax.jit(tx.init, out_shardings=shardings.opt_state)(trainable)
    return TrainState(
        jax.device_put(jnp.zeros((), jnp.int32), shardings.step), trainable, frozen, opt_state
    )


def _struct(x: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)


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
    return TrainState(everywhere, trainable, frozen, opt_state)


@functools.lru_cache(maxsize=8)
def compiled_step(model, optim_config, mesh, microbatches, weighting):
    """The jitted train step; runs that differ in data or length alone share it. The state is
    donated.
    """
    shardings = state_shardings(model, optim_config, mesh)
    tx = optim.make(optim_config, shardings.trainable)
    on_one = make_train_step(model, tx, microbatches, weighting)

    def step(state, batch, rate_share):
        # Attention kernels of TPUs are split by hand, and need to know the mesh.
        with jax.sharding.use_abstract_mesh(mesh.abstract_mesh):
            return on_one(state, batch, rate_share)

    return jax.jit(step, donate_argnums=0, out_shardings=(shardings, None))
