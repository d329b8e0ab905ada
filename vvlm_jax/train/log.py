"""Metrics and progress of a running stage, and the end of a run that diverged."""

import json
import math
from collections import Counter, deque
from pathlib import Path

import jax
import numpy as np

from vvlm_jax.config import Stopped, TrainConfig
from vvlm_jax.devices import peak_flops
from vvlm_jax.progress import JsonlWriter, Progress
from vvlm_jax.train.timing import Clock
from vvlm_jax.train.trackers import start_trackers
from vvlm_jax.types import Batch

LAG = 2
"""Number of later steps that may be dispatched before the metrics of one are fetched."""


class TrainingDiverged(Stopped):
    """Too many steps in a row were skipped; the message names them and their batches' file."""


class StepLog:
    """Writer of a stage's metrics: a line every `log_every` steps and for every skipped step.

    Metrics of a step without a line are fetched `LAG` steps later, so that the device never waits
    for the host. `optim.max_skipped` skipped steps in a row end the run: `diverged.json` then holds
    their metrics and the rows of the annotations in their batches, `diverged.npz` the batches
    without the frames. With several hosts, each writes its own `diverged-N` files, and the first
    one writes everything else.

    Speeds cover the time since the previous line: `examples_per_second`, `tokens_per_second`,
    `tflops` (10¹² FLOP/s a chip, also by tower; `flops.train_flops` defines what counts) and, for
    chips whose peak is known, `mfu`, the fraction of the peak. `waiting/data`, `waiting/save` and
    `waiting/compile` are fractions of that time.

    Args:
      start, total: the first step of this call and the number of steps of the stage.
      clock: measures the time of this call.
      cost: function from a batch of this host to {"tokens", "vision", "projector", "llm"}, the
        last three in FLOPs.
      on_step: see `loop.train`.
    """

    def __init__(
        self, config: TrainConfig, start: int, total: int, clock: Clock, cost, on_step=None
    ):
        self.config, self.out_dir, self.on_step = config, Path(config.out_dir), on_step
        self.total, self.clock, self.cost = total, clock, cost
        self.writes = jax.process_index() == 0
        self.trackers = start_trackers(config, start) if self.writes else []
        self.lines = JsonlWriter(self.out_dir / "metrics.jsonl", start) if self.writes else None
        self.progress = Progress(self.out_dir.name, total * config.batch_size)
        self.loss, self._done = None, Counter()
        self._waiting = deque()
        self._skipped = deque(maxlen=config.optim.max_skipped)

    def __call__(self, step: int, metrics, share, num_unreadable: int, batch: Batch) -> None:
        """Record that `step` steps were dispatched, the last of them with this host's `batch`.

        Raises TrainingDiverged.
        """
        self._done.update(self.cost(batch), examples=len(batch.tokens_BL))
        batch = batch._replace(frames_BTHWC=None)  # frames are large and can be read again
        self._waiting.append((step, metrics, share, num_unreadable, batch))
        if self.is_due(step):
            self.catch_up()
        elif len(self._waiting) > LAG:
            self._process(*self._waiting.popleft())

    def catch_up(self) -> None:
        """Wait for all dispatched steps and write their lines. Raises TrainingDiverged."""
        while self._waiting:
            self._process(*self._waiting.popleft())

    def close(self) -> None:
        """Close the files and clear the progress line."""
        self.progress.close()
        for writer in [*self.trackers, *([self.lines] if self.writes else [])]:
            writer.close()

    def is_due(self, step: int) -> bool:
        """Return whether this step gets a line even if it is not skipped."""
        return step % self.config.log_every == 0 or step == self.total

    def _process(self, step, metrics, share, num_unreadable, batch):
        metrics = {name: x.item() for name, x in jax.device_get(metrics).items()}
        if metrics["skipped"]:
            self._skipped.append((step, metrics, batch))
        if not (metrics["skipped"] or self.is_due(step)):
            return
        line = {
            **metrics,
            "rate_share": float(share),
            **{
                f"rate/{pattern}": peak * float(share)
                for pattern, peak in reversed(self.config.optim.learning_rates)
                if peak > 0
            },
            **(self._speeds() if self.is_due(step) else {}),
            "unreadable": num_unreadable,
        }
        if self.writes:
            self.lines.write(step=step, **_json_numbers(line))
        for tracker in self.trackers:
            tracker.write(step, line)
        if metrics["skips_in_row"] >= self.config.optim.max_skipped:
            self._diverged(metrics)
        if self.loss is None or not metrics["skipped"]:
            self.loss = metrics["loss"]
        done = step * self.config.batch_size
        self.progress.update(done, f"loss {metrics['loss']:.3f}")
        if self.on_step and self.is_due(step):
            self.on_step(step, self.total, metrics)

    def _speeds(self) -> dict[str, float]:
        """Return the speeds of the steps since the last call."""
        seconds, waiting = self.clock.shares()
        done, self._done = self._done, Counter()
        rate = {name: jax.process_count() * n / seconds for name, n in done.items()}
        chips, peak = jax.device_count(), peak_flops(jax.devices()[0].device_kind)
        towers = {tower: rate[tower] / chips for tower in ("vision", "projector", "llm")}
        total, shown = sum(towers.values()), ("vision", "llm")
        speeds = {
            "examples_per_second": round(rate["examples"], 2),
            "tokens_per_second": round(rate["tokens"], 1),
            "tflops": total / 1e12,
            **{f"tflops/{tower}": towers[tower] / 1e12 for tower in shown},
        }
        if peak:
            speeds |= {"mfu": total / peak, **{f"mfu/{t}": towers[t] / peak for t in shown}}
        for purpose in ("data", "save", "compile"):
            speeds[f"waiting/{purpose}"] = round(waiting.get(purpose, 0.0), 4)
        return speeds

    def _diverged(self, metrics):
        host = f"-{jax.process_index()}" if jax.process_count() > 1 else ""
        file = self.out_dir / f"diverged{host}.npz"
        np.savez(
            file,
            **{
                f"{step}/{name}": np.asarray(x)
                for step, _, batch in self._skipped
                for name, x in batch._asdict().items()
                if x is not None
            },
        )
        steps = [
            {"step": step, **_json_numbers(found), "rows": np.asarray(batch.index_B).tolist()}
            for step, found, batch in self._skipped
        ]
        file.with_suffix(".json").write_text(json.dumps(steps, indent=1) + "\n")
        first, last = self._skipped[0][0], self._skipped[-1][0]
        raise TrainingDiverged(
            f"{self.out_dir}: steps {first} to {last} were skipped, the last with loss "
            f"{metrics['loss']:.4g} and gradient norm {metrics['grad_norm']:.4g}; their batches "
            f"are in {file.name}: fix the data, lower optim.learning_rates, or raise "
            "optim.max_skipped"
        )


def _json_numbers(metrics: dict) -> dict:
    """Replace NaN and infinity, which JSON does not have, by None."""
    return {name: x if math.isfinite(x) else None for name, x in metrics.items()}
