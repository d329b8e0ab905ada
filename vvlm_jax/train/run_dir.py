"""A run's folder: made, or taken up again by the same config; and the story of what happened."""

import dataclasses
import json
import time
from dataclasses import is_dataclass
from pathlib import Path

import jax

from vvlm_jax import atomic
from vvlm_jax.config import ConfigError, DataConfig, TrainConfig
from vvlm_jax.config_check import nearest
from vvlm_jax.override import differences, from_json, to_json

STORY = "events.jsonl"
FIXED = ("batch_size", "seed", "data.num_examples")
"""Options that say which examples a step sees: a run that has begun keeps them."""


def claim(config: TrainConfig, allow=()) -> Path:
    """Creates the run's folder, or takes up one left by the same config.

    Options that change no number of a run but by rounding may differ (`_without_conveniences`), and
    those that `allow` names (`optim.warmup`, or `optim` for all of them). A config without metrics
    is of a run that never started, and gives way; of one that did, `record` changes it.

    Raises ConfigError when the folder holds another run, naming the first option that differs, or
    a config that cannot be read.
    """
    _check_names(config, allow)
    out_dir = Path(config.out_dir)
    earlier = _earlier(out_dir)
    if earlier is None:
        out_dir.mkdir(parents=True, exist_ok=True)
        _write(out_dir, config)
        return out_dir
    for name, there, here in differences(*map(_without_conveniences, (earlier, config))):
        if name in FIXED:
            raise ConfigError(
                f"{out_dir} holds a run with {name} = {there!r}, not {here!r}, which says what the "
                "examples of each step are; choose another out_dir"
            )
        if not any(f"{name}.".startswith(f"{key}.") for key in allow):
            raise ConfigError(
                f"{out_dir} holds a run with {name} = {there!r}, not {here!r}; "
                f"choose another out_dir, or go on with --allow {name}"
            )
    return out_dir


def record(config: TrainConfig, step: int) -> None:
    """Puts `config` in the place of the one that a run went by so far, which the story keeps."""
    out_dir = Path(config.out_dir)
    earlier = _earlier(out_dir)
    if earlier is None or earlier == config:
        return
    changed = {name: [there, here] for name, there, here in differences(earlier, config)}
    note(out_dir, "config", step=step, changed=changed, earlier=dataclasses.asdict(earlier))
    _write(out_dir, config)


def note(out_dir: Path, event: str, **values) -> None:
    """Adds one line to the story of a run: what happened beside its steps, and when. Each host
    tells its own.
    """
    line = {"event": event, "time": round(time.time(), 3), **values}
    story = out_dir / (f"events-{i}.jsonl" if (i := jax.process_index()) else STORY)
    with story.open("ab") as file:
        # A run that was killed while it wrote left half a line.
        torn = file.tell() and not story.read_bytes().endswith(b"\n")
        file.write(b"\n" * bool(torn) + json.dumps(line).encode() + b"\n")


def _earlier(out_dir: Path) -> TrainConfig | None:
    """The config of a run that has started here."""
    file, saved = out_dir / "config.json", out_dir / "checkpoints"
    if not file.is_file():
        if saved.is_dir() and any(saved.iterdir()):
            raise ConfigError(f"{saved}: of a run without config.json; choose another out_dir")
        return None
    if not (out_dir / "metrics.jsonl").exists():
        return None
    try:
        return from_json(TrainConfig, file.read_text())
    except ValueError as e:
        raise ConfigError(f"{file}: {e}; remove {out_dir}, or choose another out_dir") from None


def _write(out_dir: Path, config: TrainConfig) -> None:
    if jax.process_index():
        return
    atomic.write_text(out_dir / "config.json", to_json(config))


def _check_names(config: TrainConfig, allow) -> None:
    """Raises ConfigError when `allow` names an option that does not exist."""
    for key in allow:
        value = config
        for part in key.split("."):
            known = [f.name for f in dataclasses.fields(value)] if is_dataclass(value) else []
            if part not in known:
                hint = f"; {nearest(part, known)}" if known else ""
                raise ConfigError(f"--allow {key}: no such option{hint}")
            value = getattr(value, part)


def _without_conveniences(config: TrainConfig) -> TrainConfig:
    """The config with what does not change a run's numbers, or by rounding alone, set to its
    default.
    """
    data, default = DataConfig(), TrainConfig()
    return dataclasses.replace(
        config,
        log_every=1,
        trackers=(),
        checkpoint_every=0,
        keep_checkpoints=default.keep_checkpoints,
        keep_every=default.keep_every,
        microbatches=1,
        mesh=default.mesh,
        model=dataclasses.replace(
            config.model, remat=default.model.remat, unroll=default.model.unroll
        ),
        data=dataclasses.replace(
            config.data,
            max_unreadable=data.max_unreadable,
            max_read_seconds=data.max_read_seconds,
            frame_cache_mb=data.frame_cache_mb,
            read_threads=data.read_threads,
        ),
    )
