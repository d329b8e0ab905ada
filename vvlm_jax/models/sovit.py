"""SoViT, the shape-optimised vision transformer of SigLIP, as in big_vision (`models/vit.py`, scan
layout).

Parameter names are big_vision's, so that its checkpoints map name for name. Only the blocks up to
the one the language model reads are built (`VisionConfig.blocks_run`), and neither final norm nor
pooling head.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from vvlm_jax.config import VisionConfig
from vvlm_jax.models.attention import attend


class SelfAttention(nn.Module):
    """Multi-head self-attention with biases; every position sees every other."""

    num_heads: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x_BPD):
        D = x_BPD.shape[-1]
        heads = (self.num_heads, D // self.num_heads)
        q, k, v = (
            nn.DenseGeneral(
                heads, dtype=self.dtype, kernel_init=nn.initializers.xavier_uniform(), name=name
            )(x_BPD)
            for name in ("query", "key", "value")
        )
        return nn.DenseGeneral(
            D,
            axis=(-2, -1),
            dtype=self.dtype,
            kernel_init=nn.initializers.xavier_uniform(),
            name="out",
        )(attend(q, k, v))


class Mlp(nn.Module):
    """Dense, tanh-approximated GELU, Dense."""

    mlp_dim: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x_BPD):
        dense = dict(
            dtype=self.dtype,
            kernel_init=nn.initializers.xavier_uniform(),
            bias_init=nn.initializers.normal(1e-6),
        )
        x_BPF = nn.gelu(nn.Dense(self.mlp_dim, **dense)(x_BPD), approximate=True)
        return nn.Dense(x_BPD.shape[-1], **dense)(x_BPF)


class EncoderBlock(nn.Module):
    """Pre-norm transformer block; carry in, carry out, for `nn.scan`."""

    config: VisionConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x_BPD, _):
        c = self.config
        y = _layer_norm("LayerNorm_0", self.dtype)(x_BPD)
        x_BPD = x_BPD + SelfAttention(
            c.num_heads, self.dtype, name="MultiHeadDotProductAttention_0"
        )(y)
        y = _layer_norm("LayerNorm_1", self.dtype)(x_BPD)
        return x_BPD + Mlp(c.mlp_dim, self.dtype, name="MlpBlock_0")(y), None


def _layer_norm(name, dtype):
    return nn.LayerNorm(epsilon=1e-6, dtype=dtype, name=name)


class Transformer(nn.Module):
    """The stack of blocks, scanned: parameters carry a leading depth axis."""

    config: VisionConfig
    dtype: jnp.dtype
    remat: bool

    @nn.compact
    def __call__(self, x_BPD):
        block = nn.remat(EncoderBlock, prevent_cse=False) if self.remat else EncoderBlock
        scan = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            length=self.config.blocks_run,
        )
        return scan(self.config, self.dtype, name="encoderblock")(x_BPD, None)[0]


class SoViT(nn.Module):
    """Frames to patch features.

    `apply(params, pixels_BHWC)` takes float pixels in [−1, 1] and returns [B, P, D], row-major
    patches.
    """

    config: VisionConfig
    dtype: jnp.dtype = jnp.bfloat16
    remat: bool = False

    @nn.compact
    def __call__(self, pixels_BHWC):
        c = self.config
        x = nn.Conv(
            c.width,
            (c.patch_size, c.patch_size),
            strides=c.patch_size,
            padding="VALID",
            dtype=self.dtype,
            name="embedding",
        )(pixels_BHWC.astype(self.dtype))
        x_BPD = x.reshape(x.shape[0], c.num_patches, c.width)
        pos_1PD = self.param(
            "pos_embedding", jax.nn.initializers.normal(c.width**-0.5), (1, c.num_patches, c.width)
        )
        x_BPD = x_BPD + pos_1PD.astype(self.dtype)
        return Transformer(c, self.dtype, self.remat, name="Transformer")(x_BPD)
