"""Projector from encoder features to the language model's embedding space."""

import flax.linen as nn
import jax.numpy as jnp

from vvlm_jax.models.dense import Dense


class Projector(nn.Module):
    """LLaVA's `mlp2x_gelu`: Dense, exact GELU, Dense. [..., D_vision] → [..., width]."""

    width: int
    dtype: jnp.dtype = jnp.bfloat16

    @nn.compact
    def __call__(self, x):
        x = nn.gelu(Dense(self.width, dtype=self.dtype, name="fc1")(x), approximate=False)
        # Visual tokens start at the scale of word embeddings (std D^-½), see llama._residual_init.
        init = nn.initializers.normal(1 / self.width)
        return Dense(self.width, dtype=self.dtype, kernel_init=init, name="fc2")(x)
