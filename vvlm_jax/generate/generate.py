"""Greedy generation: prefill, then a jitted loop of single-token steps over a key-value cache."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from vvlm_jax.data.tokenizer import EOT, Tokenizer
from vvlm_jax.models.vlm import VideoVLM
from vvlm_jax.types import Prompts


@functools.lru_cache(maxsize=8)
def jitted(model: VideoVLM, max_new_tokens: int, stop_id: int):
    """(encode, continue_) for a model: both are compiled once a shape.

    encode(params, frames_BTHWC) → visual tokens [B, T·V, D];
    continue_(params, tokens_BL, lengths_B, visual_BVD) → int32 [B, max_new_tokens], `stop_id` from
    the first stop on.
    """

    def encode(params, frames_BTHWC):
        return model.apply({"params": params}, frames_BTHWC, method="encode")

    def continue_(params, tokens_BL, lengths_B, visual_BVD):
        variables = {"params": params}
        logits_Bv, cache = model.apply(
            variables, tokens_BL, lengths_B, visual_BVD, max_new_tokens - 1, method="prefill"
        )
        first_B = jnp.argmax(logits_Bv, axis=-1).astype(jnp.int32)
        out_BM = (
            jnp.full((len(tokens_BL), max_new_tokens), stop_id, jnp.int32).at[:, 0].set(first_B)
        )

        def stopped(out_BM, i):
            written_1M = jnp.arange(max_new_tokens)[None, :] < i
            return ((out_BM == stop_id) & written_1M).any(axis=1)

        def unfinished(carry):
            i, out_BM, _ = carry
            return (i < max_new_tokens) & ~stopped(out_BM, i).all()

        def step(carry):
            i, out_BM, cache = carry
            last_B = out_BM[:, i - 1]
            logits_Bv, cache = model.apply(variables, last_B, cache, method="decode_step")
            next_B = jnp.where(stopped(out_BM, i), stop_id, jnp.argmax(logits_Bv, axis=-1))
            return i + 1, out_BM.at[:, i].set(next_B.astype(jnp.int32)), cache

        return jax.lax.while_loop(unfinished, step, (1, out_BM, cache))[1]

    return jax.jit(encode), jax.jit(continue_)


def generate(
    model: VideoVLM, params, tokenizer: Tokenizer, prompts: Prompts, visual_BVD, max_new_tokens: int
):
    """Greedy continuations of `prompts` as text, up to <|eot_id|>.

    Args:
      prompts: right-padded; `video_B` picks the row of `visual_BVD` each one asks about, so that
      several
        questions share one encoded video.
      visual_BVD: from `jitted(...)[0]`.

    Returns:
      list of B strings.
    """
    stop_id = tokenizer.special[EOT]
    _, continue_ = jitted(model, max_new_tokens, stop_id)
    out_BM = np.asarray(
        continue_(params, prompts.tokens_BL, prompts.lengths_B, visual_BVD[prompts.video_B])
    )
    return [tokenizer.decode(_until(row, stop_id)) for row in out_BM]


def _until(ids, stop_id):
    hits = np.flatnonzero(ids == stop_id)
    return ids[: hits[0]] if len(hits) else ids
