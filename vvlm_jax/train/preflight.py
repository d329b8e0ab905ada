"""Checks before anything is compiled, of conditions that would stop a run minutes later."""

import math
import shutil
from pathlib import Path

import jax

from vvlm_jax import devices
from vvlm_jax.config import ConfigError, ModelConfig, TrainConfig
from vvlm_jax.config_check import nearest
from vvlm_jax.models import vlm
from vvlm_jax.storage import files
from vvlm_jax.train import model_dir, optim
from vvlm_jax.weights import big_vision
from vvlm_jax.weights.sources import is_foreign

LARGE = 100_000_000
"""Number of parameters from which training on a CPU is an error unless it was asked for."""


def check_inputs(config: TrainConfig) -> None:
    """Raise ConfigError, one line, for unknown parts of `init` and all inputs that do not exist."""
    parts = _parts(config.model)
    for part, _ in config.init:
        if part not in parts:
            raise ConfigError(f"init: unknown part {part!r}; {nearest(part, parts)}")
    inputs = {f"data.{name}": getattr(config.data, name) for name in ("annotations", "tokenizer")}
    inputs |= {f"init[{part}]": big_vision.split_path(path)[0] for part, path in config.init}
    missing = [
        f"{name} = {path}" for name, path in inputs.items() if not files.exists(files.path_of(path))
    ]
    if missing:
        raise ConfigError(f"no such file or folder: {', '.join(missing)}")
    for part, folder in config.init:
        if not is_foreign(folder) and not model_dir.is_finished(folder):
            raise ConfigError(f"init[{part}] = {folder}: no finished model here")


def _parts(model: ModelConfig) -> list[str]:
    """Return the top-level names of a model's parameters."""
    more = {"quecc": model.resampler == "quecc", "newline": model.newline != "none"}
    return ["vision", "projector", "llm", *(name for name, used in more.items() if used)]


def check(config: TrainConfig, model: vlm.VLM, out_dir: Path, steps: int) -> None:
    """Raise ConfigError for a large model without an accelerator, or too little disk space."""
    shapes = vlm.shapes(model)
    _check_device(sum(math.prod(x.shape) for x in jax.tree.leaves(shapes)))
    _check_room(config, shapes, out_dir, steps)


def _check_device(num_params: int) -> None:
    """Raise ConfigError for a large model without an accelerator; jax falls back to the CPU."""
    if num_params < LARGE or jax.default_backend() != "cpu" or "cpu" in _platforms():
        return
    seen = devices.device_files()
    found = f"{seen[0]} exists, but this jax cannot use it" if seen else "no accelerator found"
    raise ConfigError(
        f"{found}, and {num_params / 1e9:.1f} billion parameters are too many for a CPU; "
        "install vvlm_jax[cuda] or vvlm_jax[tpu], or set JAX_PLATFORMS=cpu to train on the CPU"
    )


def _platforms() -> str:
    return jax.config.jax_platforms or ""


def _check_room(config: TrainConfig, shapes: dict, out_dir: Path, steps: int) -> None:
    """Raise ConfigError when the disk cannot hold the run's checkpoints or its model.

    The kept checkpoints and the one being written exist together; the model is written last.
    """
    trainable, frozen = optim.split(shapes, config.optim)
    tx = optim.make(config.optim, trainable)
    model = _bytes((trainable, frozen))
    state = model + _bytes(jax.eval_shape(tx.init, trainable))
    saves = (steps - 1) // config.checkpoint_every if config.checkpoint_every else 0
    kept = min(saves, config.keep_checkpoints + 1)
    if config.keep_every:
        kept += max(0, (steps - 1) // config.keep_every - config.keep_checkpoints)
    needed = max(kept * state, model)
    used = sum(p.stat().st_size for p in out_dir.rglob("*") if p.is_file())
    free = shutil.disk_usage(out_dir).free
    if free + used < needed:  # a resumed run replaces its own files
        raise ConfigError(
            f"{out_dir}: {free / 1e9:.3g} GB free; {kept} checkpoints of {state / 1e9:.3g} GB and "
            f"a model of {model / 1e9:.3g} GB need {needed / 1e9:.3g}; free some, choose another "
            "out_dir, or lower keep_checkpoints"
        )


def _bytes(tree) -> int:
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(tree))
