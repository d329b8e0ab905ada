"""AdamW with one learning rate a group of parameters; ordered path regexes define the groups."""

import math
import re

import jax.numpy as jnp
import optax
from flax.traverse_util import flatten_dict, unflatten_dict

from vvlm_jax.config import ConfigError, OptimConfig


def groups(paths, config: OptimConfig) -> dict[str, str]:
    """Return the first pattern of `learning_rates` that matches each whole parameter path.

    Raises ConfigError naming a parameter that no pattern covers.
    """
    found = {}
    for path in paths:
        matches = [pattern for pattern, _ in config.learning_rates if re.fullmatch(pattern, path)]
        if not matches:
            raise ConfigError(f"optim.learning_rates: no pattern covers parameter {path}")
        found[path] = matches[0]
    return found


def peak_rates(paths, config: OptimConfig) -> dict[str, float]:
    """Return the peak learning rate of each parameter path; 0 means frozen."""
    rates = dict(reversed(config.learning_rates))  # the first of duplicate patterns wins
    return {path: rates[pattern] for path, pattern in groups(paths, config).items()}


def split(params, config: OptimConfig) -> tuple[dict, dict]:
    """Split parameters into (trainable, frozen), flat {path: array}.

    Only the trainable ones are differentiated and optimised. Raises ConfigError when every
    parameter is frozen, or when no pattern covers one.
    """
    flat = flatten_dict(params, sep="/")
    rates = peak_rates(flat, config)
    trainable = {p: x for p, x in flat.items() if rates[p] > 0}
    if not trainable:
        raise ConfigError("optim.learning_rates: every parameter is frozen (rate 0)")
    return trainable, {p: x for p, x in flat.items() if rates[p] == 0}


def merge(trainable: dict, frozen: dict) -> dict:
    """Merge what `split` returned into nested parameters."""
    return unflatten_dict({**trainable, **frozen}, sep="/")


def cosine_with_warmup(step: int, num_steps: int, warmup: float) -> float:
    """Return the fraction of the peak rate at a step.

    It rises linearly from 0 over ⌈warmup · num_steps⌉ steps, then falls as ½(1 + cos πp), p being
    the fraction of the remaining steps.
    """
    warm = math.ceil(warmup * num_steps)
    if step < warm:
        return step / warm
    return 0.5 * (1 + math.cos(math.pi * min((step - warm) / max(num_steps - warm, 1), 1.0)))


def make(config: OptimConfig, paths) -> optax.GradientTransformation:
    """Return the optimiser of Table 4: clipping by global norm, Adam, decoupled weight decay, and
    scaling by the negative peak rate of each group.

    The caller multiplies the updates by the schedule, so that runs of different length share one
    compiled step. The second moment is always float32: bfloat16 has 8 significant bits, too few to
    represent a decay of 0.999.
    """
    rates = peak_rates(paths, config)
    return optax.chain(
        optax.clip_by_global_norm(config.clip_norm),
        optax.scale_by_adam(
            b1=config.b1, b2=config.b2, eps=config.eps, mu_dtype=jnp.dtype(config.mu_dtype)
        ),
        optax.add_decayed_weights(config.weight_decay),
        optax.multi_transform({rate: optax.scale(-rate) for rate in set(rates.values())}, rates),
    )
