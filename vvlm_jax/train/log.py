"""What a stage tells while it runs: a line of metrics every few steps, and where it stands."""

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
"""Steps that may run before the outcome of one is looked at."""
SPEEDS = ("examples_per_second", "tokens_per_second", "tflops", "mfu", "waiting")
"""Starts of the names of metrics that differ from run to run of the same config."""


class TrainingDiverged(Stopped):
    """Too many steps in a row were skipped; the message names them and what was left behind."""


class StepLog:
    """Every `log_every` steps: fetches the metrics, writes and shows them.

    Other steps are looked at when they have been over for a while, so that the device always has
    work; one that was skipped gets a line too. `optim.max_skipped` of them in a row end the run:
    `diverged.json` then holds their metrics and rows of the annotations, `diverged.npz` what was in
    their batches but for the frames. (With several hosts, each writes its own share of these, and
    the first one all the rest.)

    A line's speeds are of the time since the line before: `examples_per_second`,
    `tokens_per_second`, `tflops` (10¹² FLOP/s of one chip, also by tower; `flops.train_flops` says
    what counts) and, for chips whose peak is known, `mfu`, the share of it. `waiting/data`,
    `waiting/save` and `waiting/compile` are shares of that time.

    Args:
      cost: counts of a batch of this host, as `cost.batch_cost` gives.
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
        """Notes that `step` steps were begun, the last of them with this host's `batch`."""
        self._done.update(self.cost(batch), examples=len(batch.tokens_BL))
        batch = batch._replace(frames_BTHWC=None)  # too large to be kept, and it can be read again
        self._waiting.append((step, metrics, share, num_unreadable, batch))
        if self.is_due(step):
            self.catch_up()
        elif len(self._waiting) > LAG:
            self._look(*self._waiting.popleft())

    def catch_up(self) -> None:
        """Waits for the steps that were begun. Raises TrainingDiverged."""
        while self._waiting:
            self._look(*self._waiting.popleft())

    def close(self) -> None:
        """Closes the files and clears the progress line."""
        self.progress.close()
        for writer in [*self.trackers, *([self.lines] if self.writes else [])]:
            writer.close()

    def is_due(self, step: int) -> bool:
        """Whether a line is written of this step."""
        return step % self.config.log_every == 0 or step == self.total

    def _look(self, step, metrics, share, num_unreadable, batch):
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
        """Of the steps since the last call."""
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
            f"are in {file.name}: mend the data, lower optim.learning_rates, or raise "
            "optim.max_skipped"
        )


def _json_numbers(metrics: dict) -> dict:
    """JSON has no NaN and no infinity: null."""
    return {name: x if math.isfinite(x) else None for name, x in metrics.items()}
