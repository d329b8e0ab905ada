"""The trainer: one loop for every stage. Config in, finished model out.

    run/config.json     what was asked for
    run/metrics.jsonl   one line every `log_every` steps
    run/events.jsonl    what happened beside: resumes, checkpoints passed over, unreadable files
    run/checkpoints/    newest train states, while the stage runs; milestones stay
    run/summary.json    steps, last loss, unreadable files
    run/params/         the finished model; it is there only when the stage has finished

A stage that was interrupted continues from its newest whole checkpoint when it is run again, and
ends with the same parameters as one that was not.
"""

import contextlib
import dataclasses
import json
import shutil
import sys
from pathlib import Path

import jax
import numpy as np
from jax.sharding import NamedSharding

from vvlm_jax import distributed
from vvlm_jax.config import ConfigError, Stopped, TrainConfig
from vvlm_jax.config_check import choose, validate
from vvlm_jax.data import pipeline, tokenizer
from vvlm_jax.models import variants, vlm
from vvlm_jax.sharding import BATCH, check_batch, check_model, make_mesh
from vvlm_jax.train import checkpoint, model_dir, optim, preflight, run_dir
from vvlm_jax.train.compiled import compiled_step, initial_state
from vvlm_jax.train.cost import batch_cost
from vvlm_jax.train.log import StepLog
from vvlm_jax.train.shapes import abstract_state
from vvlm_jax.train.timing import Clock, Trace


class Preempted(Stopped):
    """The run was asked to stop and did, with all its steps saved; the message says how to go
    on.
    """


def train(config: TrainConfig, *, on_step=None, should_stop=None, allow=(), profile=None) -> dict:
    """Trains one stage and writes the finished model to `config.out_dir`; a finished one is left as
    it is.

    Args:
      on_step: called as `on_step(step, num_steps, metrics)` after every logged step.
      should_stop: called as `should_stop(step)` before every step; once it answers True the state
        is saved and Preempted raised. Several hosts must all get the same answer at the same step.
      allow: names of options that may differ from those the run began with (`optim.warmup`).
      profile: (first, last + 1) of the steps to trace, from 0.

    Returns:
      {"steps", "examples", "loss", "unreadable"}: the loss of the last step, and the messages of
      media files that could not be read.

    Raises ConfigError before any compile for options that cannot work, CheckpointError when a save
    failed or what is saved does not fit, TrainingDiverged when NaN, Inf or spikes of the loss go
    on.
    """
    vision = choose(variants.VISION, config.model.vision, "model.vision")
    validate(config, vision)
    out_dir = run_dir.claim(config, allow)
    if model_dir.is_finished(out_dir):
        _remove_checkpoints(config, out_dir)
        return json.loads((out_dir / "summary.json").read_text())
    tok = tokenizer.load(config.data.tokenizer)
    examples = pipeline.Examples(config.data, config.model, vision, tok, config.seed)
    model = vlm.build(config.model, pipeline.video_id(tok), tok.vocab, pipeline.newline_id(tok))
    state, loss = _run_steps(config, out_dir, examples, model, on_step, should_stop, allow, profile)
    steps = num_steps(config, examples)
    summary = {
        "steps": steps,
        "examples": steps * config.batch_size,
        "loss": loss,
        "unreadable": sorted(unreadable_files(examples).values()),
    }
    (out_dir / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    model_dir.save_params(out_dir, optim.merge(state.trainable, state.frozen))
    _remove_checkpoints(config, out_dir)
    return summary


def num_steps(config: TrainConfig, examples) -> int:
    """Optimiser steps of a stage; an incomplete last batch of an epoch is dropped."""
    return len(examples) // config.batch_size * config.epochs


def _remove_checkpoints(config: TrainConfig, out_dir: Path) -> None:
    """Of a finished stage, milestones alone stay."""
    if not config.keep_every:
        shutil.rmtree(out_dir / "checkpoints", ignore_errors=True)
        return
    for path in (out_dir / "checkpoints").glob("*"):
        if not path.name.isdigit() or int(path.name) % config.keep_every:
            shutil.rmtree(path, ignore_errors=True)


class _Run:
    """One call's share of a stage: its data, its saves, and what it has told so far."""

    def __init__(self, config: TrainConfig, out_dir: Path, examples: pipeline.Examples):
        self.config, self.out_dir, self.examples = config, out_dir, examples
        self.saves = checkpoint.Checkpoints(
            out_dir / "checkpoints", config.keep_checkpoints, config.keep_every, self.warn
        )
        self.fingerprint = examples.fingerprint()
        self.known: set[str] = set()
        if jax.process_count() > 1:  # in which nobody stops alone
            examples.unreadable.everywhere = {}
        self.batches = None

    def warn(self, line: str) -> None:
        """One line for whoever watches, and for the run's story."""
        print(f"{self.out_dir}: {line}", file=sys.stderr)
        run_dir.note(self.out_dir, "warning", text=line)

    def start(self, allow) -> checkpoint.Found | None:
        """Opens the data where the newest whole checkpoint left it."""
        found = self.saves.latest()
        if found:
            self._check_data(found.about["data"], allow)
            # Before anything is read ahead: the same files are replaced as before.
            unreadable = self.examples.unreadable
            unreadable.resume(found.about["unreadable"], jax.process_index(), jax.process_count())
            self.known.update(unreadable.messages)
        config = self.config
        self.batches = iter(
            pipeline.batches(
                self.examples,
                config.batch_size,
                config.epochs,
                config.seed,
                shard=jax.process_index(),
                num_shards=jax.process_count(),
            )
        )
        if found:
            self.batches.set_state(found.about["iterator"])
            run_dir.note(self.out_dir, "resume", step=found.step)
        self.batches.start_prefetch()  # while the state is made and the step compiles
        return found

    def _check_data(self, there: list, allow) -> None:
        here = self.fingerprint
        if there != here and not {"data", "data.annotations"} & set(allow):
            raise ConfigError(
                f"{self.config.data.annotations}: holds other examples, or in another order, than "
                f"when {self.out_dir} began ({there[0]} then, {here[0]} now); choose another "
                "out_dir, or go on with --allow data.annotations"
            )

    def save(self, step: int, state) -> None:
        """Begins a checkpoint of all that a resume needs."""
        about = {
            "step": step,
            "seed": self.config.seed,  # every random number of a run comes from it and the step
            "config": dataclasses.asdict(self.config),
            "data": self.fingerprint,
            "iterator": self.batches.get_state(),
            "unreadable": self.share_unreadable(),
        }
        self.saves.save(step, state, about)

    def finish(self) -> None:
        """Waits for the save under way; steps that are done do not depend on its success."""
        if error := self.saves.close():
            self.warn(str(error))

    def close(self) -> None:
        """Ends reading ahead."""
        if self.batches is not None:
            self.batches.close()

    def share_unreadable(self) -> list[dict[str, str]]:
        """What each host could not read so far. All of them call it at the same step, and stop
        together when it is too much.
        """
        found = distributed.gather(self.examples.unreadable.found())
        if len(found) > 1:
            self.examples.unreadable.gathered(found)
        return found

    def tell_unreadable(self) -> int:
        """Notes each file that has turned out unreadable here; how many there are so far, on all
        hosts when they last told.
        """
        messages = self.examples.unreadable.found()
        for name in messages.keys() - self.known:
            self.known.add(name)
            run_dir.note(self.out_dir, "unreadable", file=name, error=messages[name])
        return len(unreadable_files(self.examples))


def unreadable_files(examples: pipeline.Examples) -> dict[str, str]:
    """{file: what is wrong with it}, of all hosts."""
    unreadable = examples.unreadable
    return unreadable.found() | (unreadable.everywhere or {})


def _run_steps(config, out_dir, examples, model, on_step, should_stop, allow, profile):
    """(state after the last step, last loss). Takes up the newest checkpoint, if there is one."""
    mesh, total = make_mesh(config.mesh), num_steps(config, examples)
    check_batch(config.batch_size, mesh, config.microbatches)
    check_model(model.llm_config, mesh)
    preflight.check(config, model, out_dir, total)
    with contextlib.closing(_Run(config, out_dir, examples)) as run:
        found = run.start(allow)
        if found and found.step >= total:
            raise ConfigError(
                f"{out_dir} has done {found.step} steps, and epochs = {config.epochs} makes {total}"
            )
        state, start = _first_state(config, model, mesh, run.saves, found)
        run_dir.record(config, start)
        return _steps(run, model, mesh, state, (start, total), on_step, should_stop, profile)


def _steps(run: _Run, model, mesh, state, steps: tuple[int, int], on_step, should_stop, profile):
    """(state, last loss) behind the last of the steps (first, last + 1)."""
    config, (start, total) = run.config, steps
    step_fn = compiled_step(
        model, config.optim, mesh, config.microbatches, config.loss_weighting, config.loss_chunk
    )
    batch_sharding, trace, before = NamedSharding(mesh, BATCH), Trace(run.out_dir, profile), None
    with Clock() as clock:
        log = StepLog(config, start, total, clock, _cost(config, model, state), on_step)
        try:
            for step in range(start, total):
                if should_stop and should_stop(step):
                    _stop(run, log, step, start, state)
                trace.before(step)
                with clock.waiting(before):
                    ours = next(run.batches)
                batch = jax.tree.map(
                    lambda x: jax.make_array_from_process_local_data(batch_sharding, x), ours
                )
                share = np.float32(optim.cosine_with_warmup(step, total, config.optim.warmup))
                with clock.dispatching(), trace.naming(step):
                    state, metrics = step_fn(state, batch, share)
                before = metrics["loss"]
                if jax.process_count() > 1 and log.is_due(step + 1):
                    run.share_unreadable()
                log(step + 1, metrics, share, run.tell_unreadable(), ours)
                trace.after(step, before)
                every = config.checkpoint_every
                if every and (step + 1) % every == 0 and step + 1 < total:
                    log.catch_up()  # a line that is due must not be lost with the process
                    with clock.timing("save"):
                        run.save(step + 1, state)
        except Exception:
            run.finish()
            raise
        finally:  # at once on Ctrl-C: a save that is still under way is never offered
            trace.close()
            log.close()
    run.finish()
    return state, log.loss


def _cost(config: TrainConfig, model: vlm.VLM, state):
    """batch → `cost.batch_cost` of a step of this stage."""
    towers = {path.partition("/")[0] for path in state.trainable}
    return lambda batch: batch_cost(
        batch, config.model, model.vision_config, model.llm_config, towers
    )


def _first_state(config, model, mesh, saves, found):
    """(state, steps done): the checkpoint's, or a new one."""
    if found is None:
        return initial_state(config, model, mesh), 0
    like = abstract_state(model, config.optim, mesh)
    return saves.restore(found, like), found.step


def _stop(run: _Run, log: StepLog, step: int, start: int, state) -> None:
    """Saves what this call has done, waits for it, and raises Preempted."""
    if step > start:
        log.catch_up()
        run.save(step, state)
        run.saves.wait()
    run_dir.note(run.out_dir, "stopped", step=step)
    raise Preempted(
        f"{run.out_dir}: stopped as asked, with {step} steps saved; run the same command again to "
        "continue"
    )
