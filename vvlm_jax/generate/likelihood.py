"""Log-likelihoods of given replies: sums of their tokens' log-probabilities."""

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from vvlm_jax.data.tokenizer import Tokenizer
from vvlm_jax.generate.generate import Prompts, on_mesh
from vvlm_jax.models.llama import unstack_layers
from vvlm_jax.models.vlm import VLM


class Likelihood(NamedTuple):
    """The likelihood of one text as the beginning of a reply to one prompt."""

    logprob: float
    """Natural logarithm of the probability that a reply begins with the text."""
    greedy: bool
    """Whether taking the likeliest token each time writes the text."""
    num_tokens: int


def loglikelihoods(
    model: VLM,
    params,
    tokenizer: Tokenizer,
    prompts: Prompts,
    visual_BVD,
    texts: Sequence[Sequence[str]],
    mesh: Mesh | None = None,
) -> list[list[Likelihood]]:
    """Return the likelihoods of each prompt's texts; the token that ends a turn is not counted.

    Each prompt is read once for all its texts.

    Args:
      prompts, visual_BVD: as in `generate.write`. Rows beyond `texts` are padding.
      texts: one or more for each prompt. Raises ValueError for one without tokens.
    """
    count = len(prompts.tokens_BL)
    most = 2 ** math.ceil(math.log2(max(map(len, texts))))
    ids = [[tokenizer.encode(text) for text in row] for row in texts]
    for row, row_ids in zip(texts, ids, strict=True):
        for text, text_ids in zip(row, row_ids, strict=True):
            if not text_ids:
                raise ValueError(f"{text!r} has no tokens, so it has no likelihood")
    longest = max(len(text_ids) for row in ids for text_ids in row)
    longest = 2 ** math.ceil(math.log2(longest))  # few shapes, few compiles
    ids_BCM = np.full((count, most, longest), -1, np.int32)
    for b, row in enumerate(ids):
        for c, text_ids in enumerate(row):
            ids_BCM[b, c, : len(text_ids)] = text_ids
    logprob_BC, greedy_BC = map(
        np.asarray,
        _program(model, mesh)(params, *prompts, visual_BVD, ids_BCM),
    )
    return [
        [
            Likelihood(float(logprob_BC[b, c]), bool(greedy_BC[b, c]), len(text_ids))
            for c, text_ids in enumerate(row)
        ]
        for b, row in enumerate(ids)
    ]


@functools.lru_cache(maxsize=8)
def _program(model: VLM, mesh: Mesh | None):
    """Return the compiled (params, tokens_BL, lengths_B, visual_BVD, ids_BCM) → ([B, C] sums,
    [B, C] greedy). Ids of -1 are padding.
    """

    def score(params, tokens_BL, lengths_B, visual_BVD, ids_BCM):
        room = ids_BCM.shape[2]
        first_Bv, cache = model.apply(
            {"params": params}, tokens_BL, lengths_B, visual_BVD, room - 1, method="prefill"
        )
        params = params | {"llm": unstack_layers(params["llm"])}

        def text_score(ids_BM):
            def step(carry, ids):
                (cache, logprob_B, greedy_B), (last_B, next_B) = carry, ids
                logits_Bv, cache = model.apply(
                    {"params": params}, jnp.maximum(last_B, 0), cache, method="decode_step"
                )
                more_B, same_B = _token_score(logits_Bv, next_B)
                return (cache, logprob_B + more_B, greedy_B & same_B), None

            ids_MB = ids_BM.T
            start = cache, *_token_score(first_Bv, ids_MB[0])
            (_, *found), _ = jax.lax.scan(step, start, (ids_MB[:-1], ids_MB[1:]))
            return found

        by_text = jax.lax.map(text_score, jnp.moveaxis(ids_BCM, 1, 0))  # one cache at a time
        return [x_CB.T for x_CB in by_text]

    return jax.jit(on_mesh(score, mesh))


def _token_score(logits_Bv, ids_B):
    """Return each row's (log-probability of its next id, whether it is the likeliest); (0, True)
    for padding.
    """
    logprob_Bv = jax.nn.log_softmax(logits_Bv.astype(jnp.float32))
    of_B = jnp.take_along_axis(logprob_Bv, jnp.maximum(ids_B, 0)[:, None], axis=1)[:, 0]
    none_B = ids_B < 0
    return jnp.where(none_B, 0.0, of_B), none_B | (logits_Bv.argmax(axis=1) == ids_B)
