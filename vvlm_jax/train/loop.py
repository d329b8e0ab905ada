"""The training loop of every stage, from a config to a finished model in the run's folder:

    run/config.json     the config
    run/metrics.jsonl   one line every `log_every` steps
    run/events.jsonl    resumes, skipped checkpoints, unreadable files, changes of the config
    run/checkpoints/    newest train states while the stage runs, and milestones
    run/summary.json    steps, last loss, unreadable files
    run/params/         parameters of the finished model, written last

An interrupted stage continues from its newest intact checkpoint when it is run again, and ends with
the same parameters as an uninterrupted one.
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

from vvlm_jax import distributed, flops
from vvlm_jax.config import ConfigError, Stopped, TrainConfig
from vvlm_jax.config_check import choose, validate
from vvlm_jax.data import pipeline, tokenizer
from vvlm_jax.models import variants, vlm
from vvlm_jax.sharding import BATCH, check_batch, check_model, make_mesh
from vvlm_jax.train import checkpoint, model_dir, optim, preflight, run_dir
from vvlm_jax.train.compiled import compiled_step, initial_state
from vvlm_jax.train.log import StepLog
from vvlm_jax.train.shapes import abstract_state
from vvlm_jax.train.timing import Clock, Trace
from vvlm_jax.types import Batch


class Preempted(Stopped):
    """The run stopped on request with all its steps saved; the message says how to continue."""


def train(config: TrainConfig, *, on_step=None, should_stop=None, allow=(), profile=None) -> dict:
    """Train one stage and write the finished model to `config.out_dir`.

    A stage that is finished already is left unchanged.

    Args:
      on_step: called as `on_step(step, num_steps, metrics)` after every logged step.
      should_stop: called as `should_stop(step)` before every step; once it returns True the state
        is saved and Preempted raised. It must return the same on all hosts.
      allow: names of options that may differ from those of the run so far (`optim.warmup`).
      profile: (first, last + 1) of the steps to trace, from 0.

    Returns:
      {"steps", "examples", "loss", "unreadable"}: the loss of the last step, and a message for each
      media file that could not be read.

    Raises ConfigError before any compile for options that cannot work, CheckpointError when a save
    failed or a checkpoint does not fit, TrainingDiverged after too many skipped steps in a row.
    """
    vision = choose(variants.VISION, config.model.vision, "model.vision")
    choose(variants.LLAMA, config.model.llm, "model.llm")
    validate(config, vision)
    out_dir = run_dir.check(config, allow)
    if model_dir.is_finished(out_dir):
        _remove_checkpoints(config, out_dir)
        return json.loads((out_dir / "summary.json").read_text())
    preflight.check_inputs(config)
    with run_dir.created(out_dir):
        return _train(config, vision, out_dir, on_step, should_stop, allow, profile)


def _train(config, vision, out_dir, on_step, should_stop, allow, profile) -> dict:
    """Run the steps that are left and write the model; return the summary."""
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
    """Return the number of optimiser steps of a stage; partial batches are dropped."""
    return len(examples) // config.batch_size * config.epochs


def _remove_checkpoints(config: TrainConfig, out_dir: Path) -> None:
    """Remove the checkpoints of a finished stage except milestones."""
    if not config.keep_every:
        shutil.rmtree(out_dir / "checkpoints", ignore_errors=True)
        return
    for path in (out_dir / "checkpoints").glob("*"):
        if not path.name.isdigit() or int(path.name) % config.keep_every:
            shutil.rmtree(path, ignore_errors=True)


class _Run:
    """Data and checkpoints of one call of `train`, and the unreadable files recorded so far."""

    def __init__(self, config: TrainConfig, out_dir: Path, examples: pipeline.Examples):
        self.config, self.out_dir, self.examples = config, out_dir, examples
        self.saves = checkpoint.Checkpoints(
            out_dir / "checkpoints", config.keep_checkpoints, config.keep_every, self.warn
        )
        self.fingerprint = examples.fingerprint()
        self.known: set[str] = set()
        # With several hosts the limit applies to the sum over hosts, which all compare to it at the
        # same step: a host that stopped alone would leave the others waiting.
        if jax.process_count() > 1:
            examples.unreadable.everywhere = {}
        self.batches = None

    def warn(self, line: str) -> None:
        """Print one line and record it in events.jsonl."""
        print(f"{self.out_dir}: {line}", file=sys.stderr)
        run_dir.note(self.out_dir, "warning", text=line)

    def start(self, allow) -> checkpoint.Found | None:
        """Open the data at the position of the newest intact checkpoint, and return that.

        Raises ConfigError when the data has changed since the run began.
        """
        found = self.saves.latest()
        if found:
            self._check_data(found.about["data"], allow)
            # Before prefetching starts, so that files found unreadable earlier stay replaced.
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
        self.batches.start_prefetch()  # reads while the state is created and the step compiles
        return found

    def _check_data(self, before: list, allow) -> None:
        now = self.fingerprint
        if before != now and not {"data", "data.annotations"} & set(allow):
            raise ConfigError(
                f"{self.config.data.annotations}: holds other examples, or in another order, than "
                f"when {self.out_dir} began ({before[0]} then, {now[0]} now); choose another "
                "out_dir, or continue with --allow data.annotations"
            )

    def save(self, step: int, state) -> None:
        """Start a checkpoint of everything that a resume needs."""
        about = {
            "step": step,
            "seed": self.config.seed,  # with the step, it determines every random number of a run
            "config": dataclasses.asdict(self.config),
            "data": self.fingerprint,
            "iterator": self.batches.get_state(),
            "unreadable": self.gather_unreadable(),
        }
        self.saves.save(step, state, about)

    def finish(self) -> None:
        """Wait for the running save; warn if it failed, since the steps themselves succeeded."""
        if error := self.saves.close():
            self.warn(str(error))

    def close(self) -> None:
        """Stop prefetching."""
        if self.batches is not None:
            self.batches.close()

    def gather_unreadable(self) -> list[dict[str, str]]:
        """Return {file: message} of unreadable files, one dict for each host.

        A collective call: every host makes it at the same step. Raises TooManyUnreadable on all.
        """
        found = distributed.gather(self.examples.unreadable.found())
        if len(found) > 1:
            self.examples.unreadable.gathered(found)
        return found

    def record_unreadable(self) -> int:
        """Record newly unreadable files of this host in events.jsonl; return how many there are.

        The number includes those of other hosts as of the last `gather_unreadable`.
        """
        messages = self.examples.unreadable.found()
        for name in messages.keys() - self.known:
            self.known.add(name)
            run_dir.note(self.out_dir, "unreadable", file=name, error=messages[name])
        return len(unreadable_files(self.examples))


def unreadable_files(examples: pipeline.Examples) -> dict[str, str]:
    """Return {file: message} of the unreadable files of all hosts."""
    unreadable = examples.unreadable
    return unreadable.found() | (unreadable.everywhere or {})


def _run_steps(config, out_dir, examples, model, on_step, should_stop, allow, profile):
    """Run the steps that remain; return (final state, last loss)."""
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
        run_dir.claim(config)  # from here on nothing is refused
        run_dir.record(config, start)
        return _steps(run, model, mesh, state, (start, total), on_step, should_stop, profile)


def _steps(run: _Run, model, mesh, state, steps: tuple[int, int], on_step, should_stop, profile):
    """Run steps from first to last, given as (first, last + 1); return (state, last loss)."""
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
                # Dispatching does not wait for the device, so that the next batch is prepared while
                # this step runs. `log` waits, for a step that is over or a line that is due.
                with clock.dispatching(), trace.naming(step):
                    state, metrics = step_fn(state, batch, share)
                before = metrics["loss"]
                if jax.process_count() > 1 and log.is_due(step + 1):
                    run.gather_unreadable()
                log(step + 1, metrics, share, run.record_unreadable(), ours)
                trace.after(step, before)
                every = config.checkpoint_every
                if every and (step + 1) % every == 0 and step + 1 < total:
                    log.catch_up()  # a resume from this checkpoint does not repeat earlier lines
                    with clock.timing("save"):
                        run.save(step + 1, state)
        except Exception:
            run.finish()
            raise
        finally:  # does not wait for a running save, which has no manifest yet: Ctrl-C ends at once
            trace.close()
            log.close()
    run.finish()
    return state, log.loss


def _cost(config: TrainConfig, model: vlm.VLM, state):
    """Return a function from this host's batch to {"tokens", "vision", "projector", "llm"}.

    These are the batch's tokens and the FLOPs of a training step by tower (`flops.train_flops`).
    Positions up to a row's last answer token count; padding does not.
    """
    towers = {path.partition("/")[0] for path in state.trainable}

    def cost(batch: Batch) -> dict[str, int]:
        is_answer_BM = np.asarray(batch.target_weight_BM) > 0
        lengths_B = np.where(is_answer_BM, np.asarray(batch.target_pos_BM) + 1, 0).max(axis=1)
        frames = batch.frames_BTHWC.shape[0] * batch.frames_BTHWC.shape[1]
        by_tower = flops.train_flops(
            config.model, model.vision_config, model.llm_config, lengths_B,
            int(is_answer_BM.sum()), frames, towers,
        )  # fmt: skip
        return {"tokens": int(lengths_B.sum()), **by_tower}

    return cost


def _first_state(config, model, mesh, saves, found):
    """Return (state, steps done) of the checkpoint, or a new state."""
    if found is None:
        return initial_state(config, model, mesh), 0
    like = abstract_state(model, config.optim, mesh)
    return saves.restore(found, like), found.step


def _stop(run: _Run, log: StepLog, step: int, start: int, state) -> None:
    """Save the steps of this call, wait for the save, and raise Preempted."""
    if step > start:
        log.catch_up()
        run.save(step, state)
        run.saves.wait()
    run_dir.note(run.out_dir, "stopped", step=step)
    raise Preempted(
        f"{run.out_dir}: stopped on request, with {step} steps saved; run the same command again "
        "to continue"
    )
