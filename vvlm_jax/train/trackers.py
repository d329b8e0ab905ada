"""Optional trackers of metrics: TensorBoard and Weights & Biases."""

import dataclasses
import secrets
from pathlib import Path

from vvlm_jax.config import ConfigError, TrainConfig
from vvlm_jax.override import to_json


class TensorBoard:
    """Event files in `out_dir/tensorboard`; a resumed run hides the steps that it repeats."""

    def __init__(self, config: TrainConfig, start: int):
        from tensorboardX import SummaryWriter

        folder = Path(config.out_dir) / "tensorboard"
        self._writer = SummaryWriter(str(folder), purge_step=start + 1, filename_suffix=f".{start}")
        if not start:
            self._writer.add_text("config", f"```\n{to_json(config)}```", 0)

    def write(self, step: int, values: dict[str, float]) -> None:
        """Write the scalars of one step."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write pending events and close the file."""
        self._writer.close()


class WandB:
    """Run of Weights & Biases, which a resumed stage continues.

    Its environment variables (WANDB_PROJECT, WANDB_MODE …) apply.
    """

    def __init__(self, config: TrainConfig, start: int):
        import wandb

        file = Path(config.out_dir) / "wandb-id"
        if not file.exists():
            file.write_text(secrets.token_hex(4))
        self._run = wandb.init(
            id=file.read_text(),
            resume="allow",
            name=Path(config.out_dir).name,
            dir=config.out_dir,
            config=dataclasses.asdict(config),
        )

    def write(self, step: int, values: dict[str, float]) -> None:
        """Write the scalars of one step; steps that were logged before are ignored."""
        self._run.log(values, step=step)

    def close(self) -> None:
        """Send pending metrics and end the run."""
        self._run.finish()


TRACKERS = {"tensorboard": TensorBoard, "wandb": WandB}
_PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb"}


def start_trackers(config: TrainConfig, start: int) -> list[TensorBoard | WandB]:
    """Return the trackers that `config.trackers` names; their first step is `start`.

    Raises ConfigError naming the package that is not installed.
    """
    trackers = []
    for name in config.trackers:
        try:
            trackers.append(TRACKERS[name](config, start))
        except ImportError:
            raise ConfigError(
                f"trackers: {name} is not installed: pip install {_PACKAGES[name]}"
            ) from None
    return trackers
