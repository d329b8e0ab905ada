"""QueCC: query-based compression of visual tokens, which depends on the question.

Li et al. 2024, "Inference Optimal VLMs Need Fewer Visual Tokens and More Parameters";
`llava/model/multimodal_projector/quecc.py` of locuslab/llava-token-compression.

The language model's state at the question's last token is added to every patch. A depthwise
convolution with kernel and stride s = g / r compresses the g × g patches to r × r queries. Each
query attends to the s × s patches of its cell, whose keys and values come from several encoder
layers. The projector is applied to the result.
"""

import math

import flax.linen as nn
import jax.numpy as jnp

from vvlm_jax.config import QUECC_HEADS
from vvlm_jax.models.attention import attend
from vvlm_jax.models.dense import Dense, DenseGeneral


class QueCC(nn.Module):
    """Question-dependent compressor: (x_BPD, layers, text_BE) → [B, V, D], row-major.

    Queries come from the features `x_BPD`, keys and values from `layers`, a list of [B, P, D].
    `text_BE` is the question's state [B, E], E being the language model's width.
    """

    tokens_per_frame: int
    dtype: jnp.dtype = jnp.bfloat16

    @nn.compact
    def __call__(self, x_BPD, layers, text_BE):
        B, P, D = x_BPD.shape
        grid, side = math.isqrt(P), math.isqrt(self.tokens_per_frame)
        stride = grid // side
        text_BD = Dense(D, dtype=self.dtype, name="text")(text_BE)
        text_BD = _layer_norm("text_norm", self.dtype)(text_BD)
        q_BPD = Branch(D, self.dtype, name="query")(x_BPD + text_BD[:, None])
        q_BrsD = nn.Conv(
            D,
            (stride, stride),
            strides=stride,
            padding="VALID",
            feature_group_count=D,
            dtype=self.dtype,
            name="compress",
        )(q_BPD.reshape(B, grid, grid, D))
        all_BPE = jnp.concatenate(layers, axis=-1)
        keys, values = (
            _cells(Branch(D, self.dtype, name=name)(all_BPE), stride) for name in ("key", "value")
        )
        queries = q_BrsD.reshape(B * side * side, 1, D)
        y = CellAttention(self.dtype, name="attention")(queries, keys, values)
        return y.reshape(B, side * side, D)


class Branch(nn.Module):
    """Feed-forward network with a norm: Dense, exact GELU, Dense, LayerNorm."""

    width: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x):
        x = nn.gelu(Dense(self.width, dtype=self.dtype, name="fc1")(x), approximate=False)
        return _layer_norm("norm", self.dtype)(Dense(self.width, dtype=self.dtype, name="fc2")(x))


class CellAttention(nn.Module):
    """Multi-head attention of queries [C, 1, D] over keys and values [C, s², D].

    It has the parameters of `torch.nn.MultiheadAttention`, with biases on all four projections.
    """

    dtype: jnp.dtype

    @nn.compact
    def __call__(self, queries, keys, values):
        D = queries.shape[-1]
        heads = (QUECC_HEADS, D // QUECC_HEADS)
        init = dict(dtype=self.dtype, kernel_init=nn.initializers.xavier_uniform())
        q, k, v = (
            DenseGeneral(heads, name=name, **init)(x)
            for name, x in (("query", queries), ("key", keys), ("value", values))
        )
        return DenseGeneral(D, axis=(-2, -1), name="out", **init)(attend(q, k, v))


def _cells(x_BPD, stride: int):
    """Group patches [B, P, D] by cells of s × s: [B · (g/s)², s², D]."""
    B, P, D = x_BPD.shape
    side = math.isqrt(P) // stride
    x = x_BPD.reshape(B, side, stride, side, stride, D).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(B * side * side, stride * stride, D)


def _layer_norm(name, dtype):
    return nn.LayerNorm(epsilon=1e-6, dtype=dtype, name=name)
