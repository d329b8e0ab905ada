"""The trainer: one loop for every stage. Config in, finished model out.

    run/config.json     what was asked for
    run/metrics.jsonl   one line every `log_every` steps
    run/checkpoints/    newest train states, while the stage runs
    run/summary.json    steps, last loss, unreadable files
    run/params/         the finished model; it is there only when the stage has finished

A stage that was interrupted continues from its newest checkpoint when it is run again, and ends
with the same parameters as one that was not.
"""

import json
import shutil
from pathlib import Path

import jax
import numpy as np
from jax.sharding import NamedSharding

from vvlm_jax.config import TrainConfig, choose, validate
from vvlm_jax.data import pipeline, tokenizer
from vvlm_jax.models import variants, vlm
from vvlm_jax.sharding import BATCH, check_batch, check_model, make_mesh
from vvlm_jax.train import checkpoint, optim, run_dir
from vvlm_jax.train.log import StepLog
from vvlm_jax.train.program import compiled_step, initial_state


def train(config: TrainConfig, *, on_step=None) -> dict:
    """Trains one stage and writes the finished model to `config.out_dir`; a finished one is left as
    it is.

    Args:
      on_step: called as `on_step(step, num_steps, metrics)` after every logged step.

    Returns:
      {"steps", "examples", "loss", "unreadable"}: the loss of the last step, and the messages of
      media files that could not be read.

    Raises ConfigError before any compile for options that cannot work, TrainingDiverged when NaN,
    Inf or spikes of the loss go on.
    """
    vision = choose(variants.VISION, config.model.vision, "model.vision")
    validate(config, vision)
    out_dir = run_dir.claim(config)
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
    check_batch(config.batch_size, mesh, config.microbatches)
    check_model(model.llm_config, mesh)
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
    step_fn = compiled_step(
        model, config.optim, mesh, config.microbatches, config.loss_weighting, config.loss_chunk
    )
    checkpoints = (
        checkpoint.Checkpoints(out_dir / "checkpoints") if config.checkpoint_every else None
    )
    start = checkpoints.latest() or 0 if checkpoints else 0
    if start:
        state, position = checkpoints.restore(start, state)
        iterator.set_state(position["iterator"])
        examples.unreadable.messages.update(position["unreadable"])
    log = StepLog(config, out_dir, start, total, on_step)
    batch_sharding = NamedSharding(mesh, BATCH)
    try:
        for step in range(start, total):
            ours = next(iterator)
            batch = jax.tree.map(
                lambda x: jax.make_array_from_process_local_data(batch_sharding, x), ours
            )
            share = np.float32(optim.cosine_with_warmup(step, total, config.optim.warmup))
            state, metrics = step_fn(state, batch, share)
            log(step + 1, metrics, share, len(examples.unreadable.messages), ours)
            if checkpoints and (step + 1) % config.checkpoint_every == 0 and step + 1 < total:
                log.catch_up()  # a line that is due must not be lost with the process
                messages = dict(examples.unreadable.messages)
                position = {"iterator": iterator.get_state(), "unreadable": messages}
                checkpoints.save(step + 1, state, position)
    finally:
        log.close()
        if checkpoints:
            checkpoints.close()
    return state, log.loss
