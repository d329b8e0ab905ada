"""Compiled programs of generation: encode, prefill, and a loop of single-token steps over a cache.

The loop runs up to any token and can be resumed there, so that one program writes a whole reply at
once or a few tokens at a time.
"""

import contextlib
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from vvlm_jax.data.tokenizer import Tokenizer
from vvlm_jax.generate.placement import cache_sharding
from vvlm_jax.generate.sampling import Draws, next_token
from vvlm_jax.models.kv_cache import KVCache
from vvlm_jax.models.llama import unstack_layers
from vvlm_jax.models.vlm import VLM


class Prompts(NamedTuple):
    """A batch of prompts, padded on the right."""

    tokens_BL: np.ndarray
    """int32 ids; the placeholder's id stands once for every visual token."""
    lengths_B: np.ndarray


class Replies(NamedTuple):
    """A batch of replies while they are written."""

    place: jax.Array
    """int32 scalar: tokens written to every row so far."""
    out_BM: jax.Array
    """int32 ids; the first stop id from a row's end on."""
    ended_B: jax.Array
    cache: KVCache


class Programs(NamedTuple):
    """A model's programs, compiled once a shape. Parameters may be stacked as they were trained, or
    better `laid_apart`.

    encode(params, frames_BTHWC, query_BQ, query_lengths_B) → visual tokens [B, T·V, D]; the query
    only where visual tokens depend on it (QueCC);
    begin(params, tokens_BL, lengths_B, visual_BVD, room, draws, choices_BCM) → Replies with their
    first token and `room` = M;
    go_on(params, replies, until, draws, choices_BCM) → Replies with `until` tokens, or ended. It
    takes over the memory of the replies it is given.

    With choices every row is one of its C, each filled up to M with the first stop id.
    """

    encode: Callable
    begin: Callable
    go_on: Callable


@functools.lru_cache(maxsize=8)
def programs(model: VLM, stop_ids: tuple[int, ...], mesh: Mesh | None = None) -> Programs:
    """Return the programs of a model. On a mesh, the cache is placed by `cache_sharding`."""

    def compiled(program, **options):
        return jax.jit(on_mesh(program, mesh), **options)

    def encode(params, frames_BTHWC, query_BQ=None, query_lengths_B=None):
        return model.apply(
            {"params": params}, frames_BTHWC, query_BQ, query_lengths_B, method="encode"
        )

    def begin(params, tokens_BL, lengths_B, visual_BVD, room, draws=None, choices_BCM=None):
        logits_Bv, cache = model.apply(
            {"params": params}, tokens_BL, lengths_B, visual_BVD, room - 1, method="prefill"
        )
        if mesh is not None:
            place = cache_sharding(mesh, len(tokens_BL), model.llm_config.num_kv_heads)
            k, v = jax.lax.with_sharding_constraint((cache.k_BKSH, cache.v_BKSH), place)
            cache = KVCache(k, v, cache.lengths_B)
        out_BM = jnp.full((len(tokens_BL), room), stop_ids[0], jnp.int32)
        ended_B = jnp.zeros(len(tokens_BL), bool)
        replies = Replies(jnp.int32(0), out_BM, ended_B, cache)
        return _append(replies, logits_Bv, draws, choices_BCM, stop_ids)

    def go_on(params, replies, until, draws=None, choices_BCM=None):
        params = params | {"llm": unstack_layers(params["llm"])}  # once, and not at every step

        def unfinished(replies):
            return (replies.place < until) & ~replies.ended_B.all()

        def step(replies):
            last_B = replies.out_BM[:, replies.place - 1]
            logits_Bv, cache = model.apply(
                {"params": params}, last_B, replies.cache, method="decode_step"
            )
            replies = replies._replace(cache=cache)
            return _append(replies, logits_Bv, draws, choices_BCM, stop_ids)

        return jax.lax.while_loop(unfinished, step, replies)

    return Programs(
        compiled(encode), compiled(begin, static_argnums=4), compiled(go_on, donate_argnums=1)
    )


def on_mesh(program: Callable, mesh: Mesh | None) -> Callable:
    """Return `program` traced with its mesh known, by which attention splits its TPU kernels."""

    @functools.wraps(program)
    def known(*args):
        mesh_is = jax.sharding.use_abstract_mesh(mesh.abstract_mesh) if mesh else None
        with mesh_is or contextlib.nullcontext():
            return program(*args)

    return known


def _append(replies: Replies, logits_Bv, draws, choices_BCM, stop_ids) -> Replies:
    """Return the replies with one more token a row; ended rows stay as they are."""
    i, out_BM = replies.place, replies.out_BM
    if choices_BCM is None:
        token_B = next_token(logits_Bv, draws, i)
    else:
        token_B = _likeliest_choice(logits_Bv, out_BM, i, choices_BCM)
    token_B = jnp.where(replies.ended_B, stop_ids[0], token_B)
    ended_B = replies.ended_B | jnp.isin(token_B, jnp.array(stop_ids))
    return Replies(i + 1, out_BM.at[:, i].set(token_B), ended_B, replies.cache)


def _likeliest_choice(logits_Bv, out_BM, i, choices_BCM):
    # Only choices that begin with the reply so far may give its next token.
    place_11M = jnp.arange(out_BM.shape[1])[None, None, :]
    same_BCM = (choices_BCM == out_BM[:, None]) | (place_11M >= i)
    next_BC = choices_BCM[:, :, i]
    logits_BC = jnp.take_along_axis(logits_Bv, next_BC, axis=1)
    best_B1 = jnp.argmax(
        jnp.where(same_BCM.all(axis=2), logits_BC, -jnp.inf), axis=1, keepdims=True
    )
    return jnp.take_along_axis(next_BC, best_B1, axis=1)[:, 0]


def write(
    run: Programs,
    params,
    prompts: Prompts,
    visual_BVD,
    max_new_tokens: int,
    *,
    room: int | None = None,
    chunk: int | None = None,
    draws: Draws | None = None,
    choices_BCM=None,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Write replies, yielding them as they grow.

    Args:
      visual_BVD: visual tokens of each row in the order of its placeholders; surplus ones are not
        used.
      room: at least `max_new_tokens`; rounding it up saves compiles.
      chunk: tokens between two yields; None yields once, at the end.
      choices_BCM: from `encode_choices`, with M = `room`.

    Yields:
      (ids [B, tokens so far], whether each row has ended [B]). A row ends with its first stop id;
      ids behind it mean nothing (`until_stop`).
    """
    room, place = room or max_new_tokens, 1
    replies = run.begin(params, *prompts, visual_BVD, room, draws, choices_BCM)
    while True:
        place = min(place + chunk, max_new_tokens) if chunk else max_new_tokens
        replies = run.go_on(params, replies, np.int32(place), draws, choices_BCM)
        ended_B = np.asarray(replies.ended_B)
        yield np.asarray(replies.out_BM)[:, :place], ended_B
        if place == max_new_tokens or ended_B.all():
            return


def encode_choices(
    choices: Sequence[Sequence[str]],
    tokenizer: Tokenizer,
    max_new_tokens: int,
    room: int | None = None,
) -> np.ndarray:
    """Return each row's only allowed replies as int32 ids [B, C, M], M = `room` or
    `max_new_tokens`, filled up with the first stop id.

    C is rounded up to a power of two, so that few shapes are compiled; shorter lists repeat their
    first choice. Raises ValueError for a choice of more than `max_new_tokens` tokens.
    """
    most = 2 ** math.ceil(math.log2(max(map(len, choices))))
    shape = len(choices), most, room or max_new_tokens
    choices_BCM = np.full(shape, tokenizer.stop_ids[0], np.int32)
    for b, texts in enumerate(choices):
        for c in range(most):
            text = texts[c if c < len(texts) else 0]
            ids = tokenizer.encode(text)
            if len(ids) > max_new_tokens:
                raise ValueError(
                    f"choice {text!r} has {len(ids)} tokens, more than the {max_new_tokens} that a "
                    "reply may have"
                )
            choices_BCM[b, c, : len(ids)] = ids
    return choices_BCM


def until_stop(ids: np.ndarray, stop_ids: tuple[int, ...]) -> np.ndarray:
    """Return the ids before the first stop id; all when there is none."""
    hits = np.flatnonzero(np.isin(ids, stop_ids))
    return ids[: hits[0]] if len(hits) else ids


class ReplyText:
    """A reply's text as its ids grow, in pieces that end with whole characters."""

    def __init__(self, tokenizer: Tokenizer):
        self.tokenizer, self.given, self.done = tokenizer, "", False

    def more(self, ids, done: bool) -> str:
        """Return the new text. Bytes of an incomplete character wait for the rest."""
        if self.done:
            return ""
        self.done = done
        text = self.tokenizer.decode(ids)
        if not done:
            text = text.rstrip("\N{REPLACEMENT CHARACTER}").rstrip()
        piece = text[len(self.given) :]
        self.given += piece
        return piece


def bucket(count: int) -> int:
    """Return `count` rounded up to a multiple of 32, or of a sixteenth of the next power of two:
    few sizes, and from 256 on less than an eighth more than was asked for.
    """
    step = max(32, 2 ** math.ceil(math.log2(count)) // 16)
    return step * math.ceil(count / step)
