"""What a stage tells while it runs: a line of metrics every few steps, and where it stands."""

import json
import math
import time
from collections import deque
from pathlib import Path

import jax
import numpy as np

from vvlm_jax.config import Stopped, TrainConfig
from vvlm_jax.train.metrics import JsonlWriter, Progress
from vvlm_jax.types import Batch

LAG = 2
"""Steps that may run before the outcome of one is looked at."""


class TrainingDiverged(Stopped):
    """Too many steps in a row were skipped; the message names them and what was left behind."""


class StepLog:
    """Every `log_every` steps: fetches the metrics, writes and shows them.

    Other steps are looked at when they have been over for a while, so that the device always has
    work; one that was skipped gets a line too. `optim.max_skipped` of them in a row end the run:
    `diverged.json` then holds their metrics and rows of the annotations, `diverged.npz` what was in
    their batches but for the frames. (With several hosts, each writes its own share.)
    """

    def __init__(self, config: TrainConfig, out_dir: Path, start: int, total: int, on_step):
        self.config, self.out_dir, self.on_step = config, out_dir, on_step
        self.start, self.total, self.began = start, total, time.monotonic()
        self.lines = JsonlWriter(out_dir / "metrics.jsonl", after_step=start)
        self.progress = Progress(out_dir.name, total * config.batch_size)
        self.loss = None
        self._waiting = deque()
        self._skipped = deque(maxlen=config.optim.max_skipped)

    def __call__(self, step: int, metrics, share, num_unreadable: int, batch: Batch) -> None:
        """Notes that `step` steps were begun, the last of them with this host's `batch`."""
        batch = batch._replace(frames_BTHWC=None)  # too large to be kept, and it can be read again
        self._waiting.append((step, metrics, share, num_unreadable, batch))
        if self._is_due(step):
            self.catch_up()
        elif len(self._waiting) > LAG:
            self._look(*self._waiting.popleft())

    def catch_up(self) -> None:
        """Waits for the steps that were begun. Raises TrainingDiverged."""
        while self._waiting:
            self._look(*self._waiting.popleft())

    def close(self) -> None:
        """Closes the file and clears the progress line."""
        self.progress.close()
        self.lines.close()

    def _is_due(self, step: int) -> bool:
        return step % self.config.log_every == 0 or step == self.total

    def _look(self, step, metrics, share, num_unreadable, batch):
        metrics = {name: x.item() for name, x in jax.device_get(metrics).items()}
        if metrics["skipped"]:
            self._skipped.append((step, metrics, batch))
        if not (metrics["skipped"] or self._is_due(step)):
            return
        size = self.config.batch_size
        rate = (step - self.start) * size / (time.monotonic() - self.began)
        rates = {
            f"rate/{pattern}": peak * float(share)
            for pattern, peak in reversed(self.config.optim.learning_rates)
            if peak > 0
        }
        self.lines.write(
            step=step,
            **_json_numbers(metrics),
            rate_share=float(share),
            **rates,
            examples_per_second=round(rate, 2),
            unreadable=num_unreadable,
        )
        if metrics["skips_in_row"] >= self.config.optim.max_skipped:
            self._diverged(metrics)
        if self.loss is None or not metrics["skipped"]:
            self.loss = metrics["loss"]
        self.progress.update(step * size, f"loss {metrics['loss']:.3f}")
        if self.on_step and self._is_due(step):
            self.on_step(step, self.total, metrics)

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
