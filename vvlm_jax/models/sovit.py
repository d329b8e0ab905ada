"""SoViT, the shape-optimised vision transformer of SigLIP, as in big_vision (`models/vit.py`, scan
layout).

Parameter names are big_vision's, so that its checkpoints map name by name. Only the blocks up to
the one whose output the language model uses are built (`VisionConfig.blocks_run`); the final norm
and the pooling head are built only with `head = "map"`.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from vvlm_jax.config import VisionConfig
from vvlm_jax.models import remat
from vvlm_jax.models.attention import attend, self_attend
from vvlm_jax.models.dense import Dense, DenseGeneral
from vvlm_jax.models.remat import keep
from vvlm_jax.sharding import split_rows


class MultiHeadAttention(nn.Module):
    """Multi-head attention with biases and without a mask.

    Queries come from `queries_BLD` or, by default, from `x_BPD` as keys and values do.
    """

    num_heads: int
    dtype: jnp.dtype
    backend: str = "auto"

    @nn.compact
    def __call__(self, x_BPD, queries_BLD=None):
        D = x_BPD.shape[-1]
        heads = (self.num_heads, D // self.num_heads)
        to_itself = queries_BLD is None
        queries_BLD = x_BPD if to_itself else queries_BLD
        q, k, v = (
            keep(
                DenseGeneral(
                    heads, dtype=self.dtype, kernel_init=nn.initializers.xavier_uniform(), name=name
                )(x),
                name,
            )
            for name, x in (("query", queries_BLD), ("key", x_BPD), ("value", x_BPD))
        )
        if to_itself:
            y_BLNH = self_attend(q, k, v, causal=False, backend=self.backend)
        else:
            y_BLNH = attend(q, k, v)
        y_BLD = DenseGeneral(
            D,
            axis=(-2, -1),
            dtype=self.dtype,
            kernel_init=nn.initializers.xavier_uniform(),
            name="out",
        )(y_BLNH)
        return keep(y_BLD, "attended")


class Mlp(nn.Module):
    """Feed-forward network: Dense, tanh-approximated GELU, Dense."""

    mlp_dim: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x_BPD):
        dense = dict(
            dtype=self.dtype,
            kernel_init=nn.initializers.xavier_uniform(),
            bias_init=nn.initializers.normal(1e-6),
        )
        up_BPF = keep(Dense(self.mlp_dim, **dense)(x_BPD), "up")
        x_BPF = nn.gelu(up_BPF, approximate=True)
        return Dense(x_BPD.shape[-1], **dense)(x_BPF)


class EncoderBlock(nn.Module):
    """Pre-norm transformer block for `nn.scan`; with `keep` its scanned output is its carry."""

    config: VisionConfig
    dtype: jnp.dtype
    keep: bool = False
    backend: str = "auto"

    @nn.compact
    def __call__(self, x_BPD, _):
        c = self.config
        y = _layer_norm("LayerNorm_0", self.dtype)(x_BPD)
        x_BPD = x_BPD + MultiHeadAttention(
            c.num_heads, self.dtype, self.backend, name="MultiHeadDotProductAttention_0"
        )(y)
        y = _layer_norm("LayerNorm_1", self.dtype)(x_BPD)
        x_BPD = x_BPD + Mlp(c.mlp_dim, self.dtype, name="MlpBlock_0")(y)
        return x_BPD, x_BPD if self.keep else None


def _layer_norm(name, dtype):
    return nn.LayerNorm(epsilon=1e-6, dtype=dtype, name=name)


class Transformer(nn.Module):
    """Scanned blocks, whose parameters have a leading depth axis, and with a head the final norm.

    Returns [B, P, D]; with `layers`, numbers of blocks from 1, a pair of that and a list of those
    blocks' outputs.
    """

    config: VisionConfig
    dtype: jnp.dtype
    remat: str
    backend: str = "auto"
    unroll: int = 1

    @nn.compact
    def __call__(self, x_BPD, layers=()):
        c = self.config
        blocks = remat.blocks(EncoderBlock, c.blocks_run, self.remat, self.unroll)
        stack = blocks(c, self.dtype, bool(layers), self.backend, name="encoderblock")
        x_BPD, kept = stack(x_BPD, None)
        if c.head == "map":
            x_BPD = _layer_norm("encoder_norm", self.dtype)(x_BPD)
        return (x_BPD, [kept[layer - 1] for layer in layers]) if layers else x_BPD


class MAPHead(nn.Module):
    """Multi-head attention pooling: a learnt query looks at all patches. [B, P, D] → [B, 1, D]."""

    config: VisionConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x_BPD):
        c = self.config
        probe_11D = self.param("probe", nn.initializers.xavier_uniform(), (1, 1, c.width))
        probe_B1D = jnp.tile(probe_11D.astype(self.dtype), (len(x_BPD), 1, 1))
        attention = MultiHeadAttention(
            c.num_heads, self.dtype, name="MultiHeadDotProductAttention_0"
        )
        x_B1D = attention(x_BPD, probe_B1D)
        y = _layer_norm("LayerNorm_0", self.dtype)(x_B1D)
        return x_B1D + Mlp(c.mlp_dim, self.dtype, name="MlpBlock_0")(y)


class SoViT(nn.Module):
    """Vision encoder from frames to features.

    `apply(params, pixels_BHWC)` takes float pixels in [−1, 1] and returns the output of block
    `feature_layer`, [B, P, D], row-major patches before any norm, or the pooled [B, 1, D] with
    `head = "map"`. With `layers`, block numbers from 1 to `blocks_run`, it returns a pair of that
    and a list of those blocks' outputs [B, P, D]; the outputs of all blocks are then in memory.
    """

    config: VisionConfig
    dtype: jnp.dtype = jnp.bfloat16
    remat: str = "none"
    """See `ModelConfig.remat`."""
    backend: str = "auto"
    """Attention backend, see `attention.self_attend`."""
    unroll: int = 1
    """See `ModelConfig.unroll`."""

    @nn.compact
    def __call__(self, pixels_BHWC, layers=()):
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
        transformer = Transformer(
            c, self.dtype, self.remat, self.backend, self.unroll, name="Transformer"
        )
        out = transformer(split_rows(x_BPD), layers)
        if c.head == "none":
            return out
        x_BPD, *kept = out if layers else (out,)
        pooled_B1D = MAPHead(c, self.dtype, name="MAPHead_0")(x_BPD)
        return (pooled_B1D, *kept) if layers else pooled_B1D
