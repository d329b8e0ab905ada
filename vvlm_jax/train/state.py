"""What a train step takes and gives back."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class TrainState(NamedTuple):
    """Everything that changes from step to step. Frozen parameters have no optimiser state."""

    step: jax.Array
    """int32 scalar: batches seen, those of skipped steps too."""
    trainable: dict[str, jax.Array]
    """Flat {path: float32}."""
    frozen: dict[str, jax.Array]
    opt_state: Any
    loss_mean: jax.Array
    """float32 scalar: running mean of the losses of steps that were taken; inf before the first."""
    skips_in_row: jax.Array
    """int32 scalar: steps skipped since the last one that was taken."""


def first_state(trainable, frozen, opt_state) -> TrainState:
    """The state before the first step; scalars are NumPy's."""
    zero = np.zeros((), jnp.int32)
    return TrainState(zero, trainable, frozen, opt_state, np.full((), np.inf, np.float32), zero)
