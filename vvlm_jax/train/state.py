"""What a train step takes and gives back."""

from typing import Any, NamedTuple

import jax


class TrainState(NamedTuple):
    """Everything that changes from step to step. Frozen parameters have no optimiser state."""

    step: jax.Array
    """int32 scalar: steps done."""
    trainable: dict[str, jax.Array]
    """Flat {path: float32}."""
    frozen: dict[str, jax.Array]
    opt_state: Any
