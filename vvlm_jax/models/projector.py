"""From encoder features to the language model's embedding space."""

import flax.linen as nn
import jax.numpy as jnp


class Projector(nn.Module):
    """LLaVA's `mlp2x_gelu`: Dense, exact GELU, Dense. [..., D_vision] → [..., width]."""

    width: int
    dtype: jnp.dtype = jnp.bfloat16

    @nn.compact
    def __call__(self, x):
        x = nn.gelu(nn.Dense(self.width, dtype=self.dtype, name="fc1")(x), approximate=False)
        return nn.Dense(self.width, dtype=self.dtype, name="fc2")(x)
