"""Ordered path regexes → trainable groups, and AdamW with one learning rate a group."""

import math
import re

import jax.numpy as jnp
import optax
from flax.traverse_util import flatten_dict, unflatten_dict

from vvlm_jax.config import ConfigError, OptimConfig


def groups(paths, config: OptimConfig) -> dict[str, str]:
    """The pattern of `learning_rates` that each parameter path belongs to: the first full match.

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
    """Peak learning rate of each parameter path, that of its group; 0 means frozen."""
    rates = dict(reversed(config.learning_rates))  # of a pattern that stands twice, the first
    return {path: rates[pattern] for path, pattern in groups(paths, config).items()}


def split(params, config: OptimConfig) -> tuple[dict, dict]:
    """(trainable, frozen): flat {path: array} dicts. Only the first is differentiated and
    optimised.
    """
    flat = flatten_dict(params, sep="/")
    rates = peak_rates(flat, config)
    trainable = {p: x for p, x in flat.items() if rates[p] > 0}
    if not trainable:
        raise ConfigError("optim.learning_rates: every parameter is frozen (rate 0)")
    return trainable, {p: x for p, x in flat.items() if rates[p] == 0}


def merge(trainable: dict, frozen: dict) -> dict:
    """Inverse of `split`."""
    return unflatten_dict({**trainable, **frozen}, sep="/")


def cosine_with_warmup(step: int, num_steps: int, warmup: float) -> float:
    """Share of the peak rate at a step: linear from 0 over ⌈warmup · num_steps⌉, then ½(1 + cos
    πp).
    """
    warm = math.ceil(warmup * num_steps)
    if step < warm:
        return step / warm
    return 0.5 * (1 + math.cos(math.pi * min((step - warm) / max(num_steps - warm, 1), 1.0)))


def make(config: OptimConfig, paths) -> optax.GradientTransformation:
    """Clip by global norm → Adam → decoupled weight decay → −peak rate of the group (Table 4).

    The schedule is left to the caller, as a factor on the updates: runs of different length then
    share one compiled step. The second moment is float32 always; in bfloat16, which resolves 1/256,
    a decay of 0.999 would change nothing.
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
