"""Llama 3.x decoder: RMSNorm, rotary positions (rotate-half layout), grouped-query attention,
SwiGLU. With biases on queries, keys and values it is Qwen2.5.

The same block serves training, prefill and decoding. Without a cache it attends causally over its
input and returns the keys and values; with a cache it writes its single new token and attends to
the filled slots.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vvlm_jax.config import LlamaConfig
from vvlm_jax.models import kv_cache, remat
from vvlm_jax.models.attention import attend, self_attend
from vvlm_jax.models.dense import Dense, DenseGeneral
from vvlm_jax.models.kv_cache import KVCache
from vvlm_jax.models.remat import keep
from vvlm_jax.sharding import split_rows


def rope_frequencies(config: LlamaConfig) -> np.ndarray:
    """Return float32 angular frequencies [H/2], with Llama 3.1's scaling when the config has one.

    Frequencies with wavelengths above original/low are divided by `factor`, those with wavelengths
    below original/high are kept, and between the two the factor is interpolated linearly in
    original/wavelength.
    """
    exponent = np.arange(0, config.head_dim, 2, dtype=np.float64) / config.head_dim
    freq = config.rope_theta**-exponent
    s = config.rope_scaling
    if s is not None:
        turns = s.original_max_position * freq / (2 * np.pi)
        keep = np.clip((turns - s.low_freq_factor) / (s.high_freq_factor - s.low_freq_factor), 0, 1)
        freq = freq * (keep + (1 - keep) / s.factor)
    return freq.astype(np.float32)


def rotate(x_BLNH, positions_BL, frequencies_h):
    """Apply rotary positions in float32; element i is paired with element i + H/2."""
    angle = positions_BL[..., None, None].astype(jnp.float32) * frequencies_h[None, None, None, :]
    sin, cos = jnp.sin(angle), jnp.cos(angle)
    a, b = jnp.split(x_BLNH.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x_BLNH.dtype)


def _residual_init(config: LlamaConfig, fan_in: int):
    """Return an initialiser with which a block's output has the scale of embeddings (std D^-½).

    With larger weights the first layers' random output outweighs the embeddings in the residual
    stream, and tasks that need a look-up are learnt late or never.
    """
    return nn.initializers.normal((fan_in * config.width) ** -0.5)


class RMSNorm(nn.Module):
    """RMS norm: x / rms(x) in float32, cast to `dtype`, then scaled (the order of transformers)."""

    eps: float
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x):
        scale = self.param("scale", nn.initializers.ones, (x.shape[-1],))
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + self.eps)
        return y.astype(self.dtype) * jnp.expand_dims(scale, range(x.ndim - 1)).astype(self.dtype)


class Attention(nn.Module):
    """Grouped-query attention with rotary positions; see the module docstring for `cache`."""

    config: LlamaConfig
    dtype: jnp.dtype
    backend: str = "auto"

    @nn.compact
    def __call__(self, x_BLD, positions_BL, cache=None):
        c = self.config
        dense = dict(
            use_bias=False, dtype=self.dtype, kernel_init=nn.initializers.normal(c.width**-0.5)
        )
        into = dense | dict(use_bias=c.qkv_bias)
        q = DenseGeneral((c.num_heads, c.head_dim), name="q", **into)(x_BLD)
        k = DenseGeneral((c.num_kv_heads, c.head_dim), name="k", **into)(x_BLD)
        v = DenseGeneral((c.num_kv_heads, c.head_dim), name="v", **into)(x_BLD)
        frequencies_h = rope_frequencies(c)
        q, k = rotate(q, positions_BL, frequencies_h), rotate(k, positions_BL, frequencies_h)
        q, k, v = keep(q, "query"), keep(k, "key"), keep(v, "value")
        if cache is None:
            y = self_attend(q, k, v, causal=True, backend=self.backend)
        else:
            k = kv_cache.write(cache[0], k, positions_BL[:, 0])
            v = kv_cache.write(cache[1], v, positions_BL[:, 0])
            filled_BS = jnp.arange(k.shape[2])[None, :] <= positions_BL
            y = attend(q, k, v, filled_BS[:, None, None, None, :], heads_first=True)
        dense["kernel_init"] = _residual_init(c, c.num_heads * c.head_dim)
        y = DenseGeneral(c.width, axis=(-2, -1), name="o", **dense)(y)
        return keep(y, "attended"), (k, v)


class Mlp(nn.Module):
    """SwiGLU: down(silu(gate(x)) · up(x))."""

    config: LlamaConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x_BLD):
        c = self.config
        dense = dict(use_bias=False, dtype=self.dtype)
        up_init, down_init = nn.initializers.normal(c.width**-0.5), _residual_init(c, c.mlp_dim)
        gate = Dense(c.mlp_dim, name="gate", kernel_init=up_init, **dense)(x_BLD)
        up = Dense(c.mlp_dim, name="up", kernel_init=up_init, **dense)(x_BLD)
        gate, up = keep(gate, "gate"), keep(up, "up")
        return Dense(c.width, name="down", kernel_init=down_init, **dense)(nn.silu(gate) * up)


class DecoderBlock(nn.Module):
    """Pre-norm decoder block; returns (x, (k, v)).

    Without a cache, k and v are [B, L, K, H] of the input. With a cache (k, v) [B, K, S, H] they
    are the updated cache.
    """

    config: LlamaConfig
    dtype: jnp.dtype
    backend: str = "auto"

    @nn.compact
    def __call__(self, x_BLD, positions_BL, cache):
        c = self.config
        y = RMSNorm(c.norm_eps, self.dtype, name="attn_norm")(x_BLD)
        y, kv = Attention(c, self.dtype, self.backend, name="attn")(y, positions_BL, cache)
        x_BLD = x_BLD + y
        y = RMSNorm(c.norm_eps, self.dtype, name="mlp_norm")(x_BLD)
        return x_BLD + Mlp(c, self.dtype, name="mlp")(y), kv


class Llama(nn.Module):
    """Decoder from embeddings [B, L, D] to final hidden states [B, L, D].

    `logits` is a separate method, so that callers compute logits at the positions they need only.
    Layers are scanned over stacked parameters `layers/…` [depth, …], as training uses them. Given
    unstacked parameters (see `unstack_layers`), they run one after another.
    """

    config: LlamaConfig
    dtype: jnp.dtype = jnp.bfloat16
    remat: str = "none"
    """See `ModelConfig.remat`."""
    backend: str = "auto"
    """Attention backend, see `attention.self_attend`."""
    unroll: int = 1
    """See `ModelConfig.unroll`."""

    def setup(self):
        c = self.config
        self.embedding = nn.Embed(
            c.vocab, c.width, embedding_init=nn.initializers.normal(c.width**-0.5), name="embed"
        )
        blocks = remat.blocks(DecoderBlock, c.depth, self.remat, self.unroll, in_axes=nn.broadcast)
        self.layers = blocks(c, self.dtype, self.backend)
        self.norm = RMSNorm(c.norm_eps, self.dtype)
        if not c.tie_embeddings:
            self.lm_head = Dense(c.vocab, use_bias=False, dtype=self.dtype)

    def embed(self, tokens_BL):
        """Embed token ids [B, L] to [B, L, D]."""
        return self.embedding(tokens_BL).astype(self.dtype)

    def __call__(self, x_BLD):
        """Run all layers causally over right-padded embeddings.

        Returns:
          (hidden_BLD after the final norm, (k, v)); k and v hold [B, L, K, H] for each layer,
          stacked for stacked parameters and otherwise in a tuple.
        """
        B, L, _ = x_BLD.shape
        positions_BL = jnp.broadcast_to(jnp.arange(L), (B, L))
        x_BLD = split_rows(x_BLD)
        if self.is_initializing() or "layers" in self.variables["params"]:
            x_BLD, kv = self.layers(x_BLD, positions_BL, None)
        else:
            x_BLD, kv = self._one_by_one(x_BLD, positions_BL, [None] * self.config.depth)
        return self.norm(x_BLD), kv

    def decode_step(self, x_B1D, cache: KVCache):
        """Decode one more token a row, at position `cache.lengths_B`.

        Returns:
          (hidden_B1D, cache with one more filled slot a row).

        Unstack the parameters (`unstack_layers`) before a loop of steps: slicing stacked parameters
        copies each layer's weights at every step.
        """
        positions_B1 = cache.lengths_B[:, None]
        caches = zip(cache.k_BKSH, cache.v_BKSH, strict=True)
        x_B1D, (k, v) = self._one_by_one(x_B1D, positions_B1, caches)
        return self.norm(x_B1D), KVCache(k, v, cache.lengths_B + 1)

    def _one_by_one(self, x_BLD, positions_BL, caches):
        block = DecoderBlock(self.config, self.dtype, self.backend, parent=None)
        params, kv = unstack_layers(self.variables["params"]), []
        for i, cache in enumerate(caches):
            x_BLD, kv_i = block.apply({"params": params[layer_name(i)]}, x_BLD, positions_BL, cache)
            kv.append(kv_i)
        return x_BLD, tuple(zip(*kv, strict=True))

    def logits(self, hidden):
        """Map hidden states [..., D] to float32 logits [..., vocab]."""
        if self.config.tie_embeddings:
            hidden = self.embedding.attend(hidden.astype(self.dtype))
        else:
            hidden = self.lm_head(hidden)
        return hidden.astype(jnp.float32)


def unstack_layers(params: dict) -> dict:
    """Unstack a Llama's parameters: `layers_0/…`, `layers_1/…` in place of `layers/…` [depth, …].

    Parameters that are unstacked already are returned unchanged.
    """
    rest = {name: x for name, x in params.items() if name != "layers"}
    if len(rest) == len(params):
        return rest
    depth = len(jax.tree.leaves(params["layers"])[0])
    one = {layer_name(i): jax.tree.map(lambda x, i=i: x[i], params["layers"]) for i in range(depth)}
    return rest | one


def layer_name(i: int) -> str:
    """Return the name of layer i among unstacked parameters."""
    return f"layers_{i}"
