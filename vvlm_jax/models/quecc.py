"""QueCC: visual tokens compressed with the question in view.

Li et al. 2024, "Inference Optimal VLMs Need Fewer Visual Tokens and More Parameters";
`llava/model/multimodal_projector/quecc.py` of locuslab/llava-token-compression (reference,
section 6).

The question's last state in the language model is added to every patch. The g × g patches are
compressed to r × r by a depthwise convolution with kernel and stride s = g / r; each of these looks
by attention at the s × s patches it was made from, as several layers of the encoder saw them. The
projector comes after it.
"""

import math

import flax.linen as nn
import jax.numpy as jnp

from vvlm_jax.config import QUECC_HEADS
from vvlm_jax.models.attention import attend
from vvlm_jax.models.dense import Dense, DenseGeneral


class QueCC(nn.Module):
    """(x_BPD, layers: [B, P, D] each, text_BE) → [B, V, D], row-major.

    `x_BPD` are the features that queries come from, `layers` those that keys and values come from,
    `text_BE` a state of the question, of the language model's width.
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
    """Dense, exact GELU, Dense, LayerNorm."""

    width: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x):
        x = nn.gelu(Dense(self.width, dtype=self.dtype, name="fc1")(x), approximate=False)
        return _layer_norm("norm", self.dtype)(Dense(self.width, dtype=self.dtype, name="fc2")(x))


class CellAttention(nn.Module):
    """`torch.nn.MultiheadAttention`: queries [C, 1, D] over keys and values [C, s², D]."""

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
    """[B, P, D] → [B · (g/s)², s², D]: the patches of each s × s cell."""
    B, P, D = x_BPD.shape
    side = math.isqrt(P) // stride
    x = x_BPD.reshape(B, side, stride, side, stride, D).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(B * side * side, stride * stride, D)


def _layer_norm(name, dtype):
    return nn.LayerNorm(epsilon=1e-6, dtype=dtype, name=name)
