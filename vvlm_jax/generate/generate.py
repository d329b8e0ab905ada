"""Generation: prefill, then a jitted loop of single-token steps over a key-value cache.

The loop runs up to any place and can be taken up there, so that one program writes a whole reply at
once or a few tokens at a time.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from vvlm_jax.data.tokenizer import Tokenizer
from vvlm_jax.generate.sampling import Draws, next_token
from vvlm_jax.models.kv_cache import KVCache
from vvlm_jax.models.llama import apart, layer_name
from vvlm_jax.models.vlm import VLM
from vvlm_jax.sharding import BATCH, row_shards
from vvlm_jax.types import Prompts


class Replies(NamedTuple):
    """A batch of replies while they are written."""

    place: jax.Array
    """int32 scalar: tokens written to every row so far."""
    out_BM: jax.Array
    """int32 ids; the first stop id from a row's end on."""
    ended_B: jax.Array
    cache: KVCache


class Programs(NamedTuple):
    """Compiled once a shape, for parameters as they were trained or, better, `laid_apart`.

    encode(params, frames_BTHWC, query_BQ, query_lengths_B) → visual tokens [B, T·V, D]; a question
    only where they depend on it (QueCC);
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
    """The programs of a model. On a mesh, the cache is placed as `cache_sharding` says."""

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
        params = params | {"llm": apart(params["llm"])}  # once, and not at every step

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
    """A program whose attention knows its mesh: kernels of TPUs are split by hand."""

    @functools.wraps(program)
    def known(*args):
        mesh_is = jax.sharding.use_abstract_mesh(mesh.abstract_mesh) if mesh else None
        with mesh_is or contextlib.nullcontext():
            return program(*args)

    return known


def laid_apart(params: dict) -> dict:
    """The parameters as generation wants them: each layer's in arrays of its own (`llama.apart`).

    A step then reads each weight where it lies. Given stacked ones, `go_on` copies them at every
    call, so that they are in memory twice. The stacked arrays' memory is given up, one after
    another. Leaves may be `ShapeDtypeStruct`s.
    """
    rest = dict(params["llm"])
    if "layers" not in rest:
        return params
    depth_first, layers = flatten_dict(rest.pop("layers")), {}
    for path, x in depth_first.items():
        on = x.sharding
        if isinstance(on, NamedSharding):
            on = NamedSharding(on.mesh, PartitionSpec(*on.spec[1:]))
        if isinstance(x, jax.ShapeDtypeStruct):
            parts = [jax.ShapeDtypeStruct(x.shape[1:], x.dtype, sharding=on)] * x.shape[0]
        else:
            parts = jax.jit(jnp.unstack, out_shardings=on)(x)
            x.delete()
        for i, part in enumerate(parts):
            layers[layer_name(i), *path] = part
    return params | {"llm": rest | unflatten_dict(layers)}


def cache_sharding(mesh: Mesh, batch: int, num_kv_heads: int) -> NamedSharding:
    """How a layer's cache [B, K, S, H] lies on a mesh: as the model that fills it, rows over the
    data-parallel axes and key-value heads over `tensor`, where they divide.
    """
    rows = BATCH[0] if batch % row_shards(mesh) == 0 else None
    heads = "tensor" if num_kv_heads % mesh.shape["tensor"] == 0 else None
    return NamedSharding(mesh, PartitionSpec(rows, heads, None, None))


def _append(replies: Replies, logits_Bv, draws, choices_BCM, stop_ids) -> Replies:
    """The replies with one more token a row; ended rows stay as they are."""
    i, out_BM = replies.place, replies.out_BM
    if choices_BCM is None:
        token_B = next_token(logits_Bv, draws, i)
    else:
        token_B = _likeliest_choice(logits_Bv, out_BM, i, choices_BCM)
    token_B = jnp.where(replies.ended_B, stop_ids[0], token_B)
    ended_B = replies.ended_B | jnp.isin(token_B, jnp.array(stop_ids))
    return Replies(i + 1, out_BM.at[:, i].set(token_B), ended_B, replies.cache)


def _likeliest_choice(logits_Bv, out_BM, i, choices_BCM):
    # Only the choices that go on as this reply has begun may give its next token.
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
    """Writes replies, handing them out as they grow.

    Args:
      prompts: right-padded ids and lengths; `video_B` is not looked at.
      visual_BVD: visual tokens of each row, in its placeholders' order; what is over is unused.
      room: at least `max_new_tokens`; rounding it up saves compiles.
      chunk: tokens between two hand-outs; None hands out the whole.

    Yields:
      (ids [B, tokens so far], whether each row has ended [B]). A row ends with its first stop id;
      what stands behind is to be passed over (`until_stop`).
    """
    tokens_BL, lengths_B = prompts.tokens_BL, prompts.lengths_B
    room, place = room or max_new_tokens, 1
    replies = run.begin(params, tokens_BL, lengths_B, visual_BVD, room, draws, choices_BCM)
    while True:
        place = min(place + chunk, max_new_tokens) if chunk else max_new_tokens
        replies = run.go_on(params, replies, np.int32(place), draws, choices_BCM)
        ended_B = np.asarray(replies.ended_B)
        yield np.asarray(replies.out_BM)[:, :place], ended_B
        if place == max_new_tokens or ended_B.all():
            return


def generate(
    model: VLM,
    params,
    tokenizer: Tokenizer,
    prompts: Prompts,
    visual_BVD,
    max_new_tokens: int,
    choices: list[list[str]] | None = None,
) -> list[str]:
    """Greedy continuations of `prompts` as text, up to a stop id; a list of B strings.

    Args:
      prompts: right-padded; `video_B` picks the row of `visual_BVD` each one asks about, so that
        several questions share one encoded video.
      visual_BVD: from `programs(...).encode`.
      choices: the only replies allowed to each prompt; the likeliest next token that leads to one
        of them is taken.

    Raises ValueError when a choice has more than `max_new_tokens` tokens.
    """
    stop_ids = tokenizer.stop_ids
    choices_BCM = (
        _encode_choices(choices, tokenizer, max_new_tokens, stop_ids[0]) if choices else None
    )
    [(out_BM, _)] = write(
        programs(model, stop_ids),
        params,
        prompts,
        visual_BVD[prompts.video_B],
        max_new_tokens,
        choices_BCM=choices_BCM,
    )
    return [tokenizer.decode(until_stop(row, stop_ids)) for row in out_BM]


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


def until_stop(ids: np.ndarray, stop_ids: tuple[int, ...]) -> np.ndarray:
    """The ids before the first stop id; all when there is none."""
    hits = np.flatnonzero(np.isin(ids, stop_ids))
    return ids[: hits[0]] if len(hits) else ids
