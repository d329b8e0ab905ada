"""A run's folder: its config, which must not change while the run lasts, and its log of events."""

import dataclasses
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import is_dataclass
from pathlib import Path

import jax

from vvlm_jax import atomic
from vvlm_jax.config import ConfigError, DataConfig, TrainConfig
from vvlm_jax.config_check import nearest
from vvlm_jax.override import differences, from_json, to_json

EVENTS = "events.jsonl"
FIXED = ("batch_size", "seed", "data.num_examples")
"""Options that determine the examples of each step; they cannot change within a run."""


def check(config: TrainConfig, allow=()) -> Path:
    """Return the run's folder, which need not exist, after a comparison with the run that it holds.

    Options that change results by rounding at most may differ (`_without_conveniences`), and those
    that `allow` names (`optim.warmup`, or `optim` for all of its options).

    Raises ConfigError when the folder holds another run, naming the first option that differs, or
    when its config cannot be read.
    """
    _check_names(config, allow)
    out_dir = Path(config.out_dir)
    earlier = _earlier(out_dir)
    if earlier is None:
        return out_dir
    for name, there, here in differences(*map(_without_conveniences, (earlier, config))):
        if name in FIXED:
            raise ConfigError(
                f"{out_dir} holds a run with {name} = {there!r}, not {here!r}, which determines "
                "the examples of each step; choose another out_dir"
            )
        if not any(f"{name}.".startswith(f"{key}.") for key in allow):
            raise ConfigError(
                f"{out_dir} holds a run with {name} = {there!r}, not {here!r}; "
                f"choose another out_dir, or continue with --allow {name}"
            )
    return out_dir


@contextmanager
def created(out_dir: Path) -> Iterator[None]:
    """Create a folder for the block; remove it, and parents that it needed, if it stays empty."""
    new = [folder for folder in (out_dir, *out_dir.parents) if not folder.exists()]
    out_dir.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        with suppress(OSError):  # not empty
            for folder in new:
                folder.rmdir()


def claim(config: TrainConfig) -> None:
    """Write config.json, unless a run has started here: `record` replaces its config."""
    if _earlier(out_dir := Path(config.out_dir)) is None:
        _write(out_dir, config)


def record(config: TrainConfig, step: int) -> None:
    """Replace the run's config by `config`, and record the earlier one in events.jsonl."""
    out_dir = Path(config.out_dir)
    earlier = _earlier(out_dir)
    if earlier is None or earlier == config:
        return
    changed = {name: [there, here] for name, there, here in differences(earlier, config)}
    note(out_dir, "config", step=step, changed=changed, earlier=dataclasses.asdict(earlier))
    _write(out_dir, config)


def note(out_dir: Path, event: str, **values) -> None:
    """Append an event with its time to events.jsonl, or on further hosts to events-N.jsonl."""
    line = {"event": event, "time": round(time.time(), 3), **values}
    events = out_dir / (f"events-{i}.jsonl" if (i := jax.process_index()) else EVENTS)
    with events.open("ab") as file:
        # A process that was killed while writing left a line without its end.
        truncated = file.tell() and not events.read_bytes().endswith(b"\n")
        file.write(b"\n" * bool(truncated) + json.dumps(line).encode() + b"\n")


def _earlier(out_dir: Path) -> TrainConfig | None:
    """Return the config of a run that has started here, or None."""
    file, saved = out_dir / "config.json", out_dir / "checkpoints"
    if not file.is_file():
        if saved.is_dir() and any(saved.iterdir()):
            raise ConfigError(
                f"{saved}: holds checkpoints, but {out_dir} has no config.json; choose another "
                "out_dir"
            )
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
    """Raise ConfigError when `allow` names an option that does not exist."""
    for key in allow:
        value = config
        for part in key.split("."):
            known = [f.name for f in dataclasses.fields(value)] if is_dataclass(value) else []
            if part not in known:
                hint = f"; {nearest(part, known)}" if known else ""
                raise ConfigError(f"--allow {key}: no such option{hint}")
            value = getattr(value, part)


def _without_conveniences(config: TrainConfig) -> TrainConfig:
    """Return the config with every option at its default that changes results by rounding at most.

    The mesh, microbatches and remat change the order of sums; the others do not affect results.
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
