"""Greedy generation: prefill, then a jitted loop of single-token steps over a key-value cache."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from vvlm_jax.data.tokenizer import EOT, Tokenizer
from vvlm_jax.models.vlm import VLM
from vvlm_jax.types import Prompts


@functools.lru_cache(maxsize=8)
def jitted(model: VLM, max_new_tokens: int, stop_id: int):
    """(encode, continue_) for a model: both are compiled once a shape.

    encode(params, frames_BTHWC) → visual tokens [B, T·V, D];
    continue_(params, tokens_BL, lengths_B, visual_BVD, choices_BCM) → int32 [B, max_new_tokens],
    `stop_id` from the first stop on. With choices, M = max_new_tokens, every row is one of its C.
    """

    def encode(params, frames_BTHWC):
        return model.apply({"params": params}, frames_BTHWC, method="encode")

    def continue_(params, tokens_BL, lengths_B, visual_BVD, choices_BCM=None):
        variables = {"params": params}
        logits_Bv, cache = model.apply(
            variables, tokens_BL, lengths_B, visual_BVD, max_new_tokens - 1, method="prefill"
        )
        empty_BM = jnp.full((len(tokens_BL), max_new_tokens), stop_id, jnp.int32)
        place_1M = jnp.arange(max_new_tokens)[None, :]

        def likeliest(logits_Bv, out_BM, i):
            if choices_BCM is None:
                return jnp.argmax(logits_Bv, axis=-1).astype(jnp.int32)
            # Only the choices that go on as this reply has begun may give its next token.
            same_BCM = (choices_BCM == out_BM[:, None]) | (place_1M[None] >= i)
            next_BC = choices_BCM[:, :, i]
            logits_BC = jnp.take_along_axis(logits_Bv, next_BC, axis=1)
            best_B1 = jnp.argmax(
                jnp.where(same_BCM.all(axis=2), logits_BC, -jnp.inf), axis=1, keepdims=True
            )
            return jnp.take_along_axis(next_BC, best_B1, axis=1)[:, 0]

        out_BM = empty_BM.at[:, 0].set(likeliest(logits_Bv, empty_BM, 0))

        def stopped(out_BM, i):
            return ((out_BM == stop_id) & (place_1M < i)).any(axis=1)

        def unfinished(carry):
            i, out_BM, _ = carry
            return (i < max_new_tokens) & ~stopped(out_BM, i).all()

        def step(carry):
            i, out_BM, cache = carry
            last_B = out_BM[:, i - 1]
            logits_Bv, cache = model.apply(variables, last_B, cache, method="decode_step")
            next_B = jnp.where(stopped(out_BM, i), stop_id, likeliest(logits_Bv, out_BM, i))
            return i + 1, out_BM.at[:, i].set(next_B), cache

        return jax.lax.while_loop(unfinished, step, (1, out_BM, cache))[1]

    return jax.jit(encode), jax.jit(continue_)


def generate(
    model: VLM,
    params,
    tokenizer: Tokenizer,
    prompts: Prompts,
    visual_BVD,
    max_new_tokens: int,
    choices: list[list[str]] | None = None,
) -> list[str]:
    """Greedy continuations of `prompts` as text, up to <|eot_id|>; a list of B strings.

    Args:
      prompts: right-padded; `video_B` picks the row of `visual_BVD` each one asks about, so that
        several questions share one encoded video.
      visual_BVD: from `jitted(...)[0]`.
      choices: the only replies allowed to each prompt; the likeliest next token that leads to one
        of them is taken.

    Raises ValueError when a choice has more than `max_new_tokens` tokens.
    """
    stop_id = tokenizer.special[EOT]
    _, continue_ = jitted(model, max_new_tokens, stop_id)
    out_BM = np.asarray(
        continue_(
            params,
            prompts.tokens_BL,
            prompts.lengths_B,
            visual_BVD[prompts.video_B],
            choices and _encode_choices(choices, tokenizer, max_new_tokens, stop_id),
        )
    )
    return [tokenizer.decode(_until(row, stop_id)) for row in out_BM]


def _encode_choices(choices, tokenizer: Tokenizer, max_new_tokens: int, stop_id: int) -> np.ndarray:
    """int32 [B, C, M] ids, filled up with `stop_id`; shorter lists repeat their first choice."""
    most = max(map(len, choices))
    choices_BCM = np.full((len(choices), most, max_new_tokens), stop_id, np.int32)
    for b, texts in enumerate(choices):
        for c in range(most):
            text = texts[c if c < len(texts) else 0]
            ids = tokenizer.encode(text)
            if len(ids) > max_new_tokens:
                raise ValueError(
                    f"choice {text!r} has {len(ids)} tokens; max_new_tokens is {max_new_tokens}"
                )
            choices_BCM[b, c, : len(ids)] = ids
    return choices_BCM


def _until(ids, stop_id):
    hits = np.flatnonzero(ids == stop_id)
    return ids[: hits[0]] if len(hits) else ids
