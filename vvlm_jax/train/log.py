"""What a stage tells while it runs: a line of metrics every few steps, and where it stands."""

import time
from pathlib import Path

import numpy as np

from vvlm_jax.config import Stopped, TrainConfig
from vvlm_jax.train.metrics import JsonlWriter, Progress


class TrainingDiverged(Stopped):
    """Loss or gradient is not finite; the message names the step."""


class StepLog:
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
