"""A run's folder: made, or taken up again by the same config."""

import dataclasses
from pathlib import Path

from vvlm_jax import config as config_lib
from vvlm_jax.config import ConfigError, DataConfig, TrainConfig


def claim(config: TrainConfig) -> Path:
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
