import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vvlm_jax.config import LlamaConfig, VisionConfig
from vvlm_jax.data.tokenizer import EOT, NEWLINE, SPECIAL, VIDEO, Tokenizer, word_level
from vvlm_jax.generate.generate import Prompts, encode_choices, programs, until_stop, write
from vvlm_jax.generate.placement import laid_apart
from vvlm_jax.generate.sampling import draws
from vvlm_jax.models import vlm
from vvlm_jax.models.llama import unstack_layers
from vvlm_jax.models.vlm import VLM

WORDS = [f"w{i}" for i in range(40)]
NAMES = [*SPECIAL, "<unk>", "\n\n", "\n", *WORDS, NEWLINE]
BACKEND = word_level(WORDS)
SPECIAL_IDS = {token: BACKEND.token_to_id(token) for token in SPECIAL}
VISION = VisionConfig(width=16, depth=2, mlp_dim=24, num_heads=2, patch_size=4, image_size=8)
LLAMA = LlamaConfig(
    vocab=BACKEND.get_vocab_size(), width=24, depth=2, mlp_dim=40, num_heads=4, num_kv_heads=2,
    head_dim=8, tie_embeddings=False, rope_theta=100.0,
)  # fmt: skip
MODEL = VLM(VISION, LLAMA, 1, SPECIAL_IDS[VIDEO], jnp.float32)
T = 3
LENGTHS = np.array([8, 5, 6, 11], np.int32)
VIDEO_OF = np.array([0, 1, 0, 1], np.int32)
NEW = 7


@pytest.fixture(scope="module")
def params():
    params = jax.jit(vlm.init, static_argnums=0)(MODEL, jax.random.key(2))
    return jax.tree.map(lambda x: 2 * x, params)


@pytest.fixture(scope="module")
def frames():
    return np.random.default_rng(1).integers(0, 256, (2, T, 8, 8, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def visual(params, frames):
    """Return visual tokens of each row's video."""
    return programs(MODEL, (0,)).encode(params, frames)[VIDEO_OF]


@pytest.fixture(scope="module")
def prompts():
    """Return ragged questions about two videos; what stands behind a prompt is noise."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(8, LLAMA.vocab, (len(LENGTHS), LENGTHS.max()), dtype=np.int32)
    tokens[:, 1 : 1 + T] = SPECIAL_IDS[VIDEO]
    return Prompts(tokens, LENGTHS)


@jax.jit
def all_logits(params, tokens_BL, frames_BTHWC):
    positions = jnp.broadcast_to(jnp.arange(tokens_BL.shape[1]), tokens_BL.shape)
    return MODEL.apply(
        {"params": params}, tokens_BL, frames_BTHWC, positions, method="target_logits"
    )


@pytest.fixture(scope="module")
def greedy(params, frames, prompts):
    """Return [B, NEW] by repeating the full forward pass."""
    B = len(LENGTHS)
    tokens = np.pad(prompts.tokens_BL, ((0, 0), (0, NEW)))
    for i in range(NEW):
        logits = all_logits(params, tokens, frames[VIDEO_OF])
        tokens[np.arange(B), LENGTHS + i] = logits[np.arange(B), LENGTHS + i - 1].argmax(axis=-1)
    return np.stack([row[n : n + NEW] for row, n in zip(tokens, LENGTHS, strict=True)])


def tokenizer(stop_id):
    """Return the tokenizer, with another id to stop at."""
    return Tokenizer(BACKEND, SPECIAL_IDS | {EOT: int(stop_id)})


def generate(params, tok, prompts, visual, new, choices=None):
    """Return greedy replies as texts."""
    choices_BCM = encode_choices(choices, tok, new) if choices else None
    run = programs(MODEL, tok.stop_ids)
    [(out, _)] = write(run, params, prompts, visual, new, choices_BCM=choices_BCM)
    return [tok.decode(until_stop(ids, tok.stop_ids)) for ids in out]


def words(ids):
    return " ".join(NAMES[i] for i in ids if len(SPECIAL) <= i < len(NAMES) - 1).strip()


def test_prefill_and_decode_are_the_full_forward_pass(params, frames, visual, prompts):
    """Every row has its own position and is given fixed tokens, not its own replies."""
    extra = 4
    B, fed = len(LENGTHS), np.random.default_rng(3).integers(8, LLAMA.vocab, (len(LENGTHS), extra))
    tokens = np.pad(prompts.tokens_BL, ((0, 0), (0, extra)))
    for row, n, more in zip(tokens, LENGTHS, fed, strict=True):
        row[n : n + extra] = more
    full = np.asarray(all_logits(params, tokens, frames[VIDEO_OF]))
    rows, variables = np.arange(B), {"params": params}
    prefill = jax.jit(lambda v, *x: MODEL.apply(v, *x, extra, method="prefill"))
    logits, cache = prefill(variables, prompts.tokens_BL, LENGTHS, visual)
    np.testing.assert_allclose(logits, full[rows, LENGTHS - 1], atol=1e-4)
    step = jax.jit(lambda v, t, c: MODEL.apply(v, t, c, method="decode_step"))
    for i in range(extra):
        logits, cache = step(variables, fed[:, i], cache)
        np.testing.assert_array_equal(cache.lengths_B, LENGTHS + i + 1)
        np.testing.assert_allclose(logits, full[rows, LENGTHS + i], atol=1e-4)


def test_greedy_is_the_argmax_of_repeated_full_passes(params, visual, prompts, greedy):
    assert all(len(set(row)) > 2 for row in greedy.tolist())  # else many bugs would not show
    never = 0
    assert never not in greedy
    texts = generate(params, tokenizer(never), prompts, visual, NEW)
    assert texts == [words(row) for row in greedy]


def test_layers_laid_apart_write_the_same(params, visual, prompts, greedy):
    ours = laid_apart(jax.tree.map(jnp.copy, params))
    assert "layers" not in ours["llm"]
    stacked = params["llm"]["layers"]["mlp"]["up"]["kernel"]
    for i in range(LLAMA.depth):
        np.testing.assert_array_equal(ours["llm"][f"layers_{i}"]["mlp"]["up"]["kernel"], stacked[i])
    assert laid_apart(ours) is ours
    texts = generate(ours, tokenizer(0), prompts, visual, NEW)
    assert texts == [words(row) for row in greedy]


def test_a_step_copies_neither_weights_nor_cache():
    """The compiler counts bytes, at shapes where either copy would be large."""
    config = dataclasses.replace(LLAMA, width=256, depth=4, mlp_dim=1024)
    model, (B, L) = VLM(VISION, config, 1, SPECIAL_IDS[VIDEO], jnp.float32), (2, 2000)
    run, i32 = programs(model, (0,)), jnp.int32
    stacked = vlm.shapes(model)
    ours = stacked | {"llm": jax.eval_shape(unstack_layers, stacked["llm"])}
    replies = jax.eval_shape(
        lambda params, *x: run.begin(params, *x, 48),
        ours,
        *(jax.ShapeDtypeStruct(*x) for x in [((B, L), i32), ((B,), i32), ((B, 0, 1), "float32")]),
    )

    def size(tree):
        return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))

    def memory(params):
        until = jax.ShapeDtypeStruct((), i32)
        return run.go_on.lower(params, replies, until).compile().memory_analysis()

    layer, cache = size(ours["llm"]["layers_0"]), size(replies.cache)
    assert layer > 3e6
    assert cache > config.depth * 5e5
    found = memory(ours)
    assert found.temp_size_in_bytes < 4e5
    assert found.alias_size_in_bytes >= cache
    assert memory(stacked).temp_size_in_bytes > 0.9 * config.depth * layer  # it would be seen


@pytest.mark.parametrize(("row", "at"), [(0, 3), (1, 0)])
def test_generation_stops_at_eot(params, visual, prompts, greedy, row, at):
    stop_id = greedy[row, at]
    ends = [ids.index(stop_id) if stop_id in ids else NEW for ids in greedy.tolist()]
    assert max(ends) == NEW  # another row goes on
    run = programs(MODEL, (int(stop_id),))
    [(out, ended)] = write(run, params, prompts, visual, NEW)
    assert ended.tolist() == [end < NEW for end in ends]
    for found, expected, end in zip(out, greedy, ends, strict=True):
        np.testing.assert_array_equal(found[:end], expected[:end])
        assert (found[end:] == stop_id).all()
    texts = generate(params, tokenizer(stop_id), prompts, visual, NEW)
    assert texts == [words(ids[:end]) for ids, end in zip(greedy, ends, strict=True)]
    assert (texts[row] == "") == (at == 0)


@pytest.mark.parametrize("chunk", [1, 3, 100])
@pytest.mark.parametrize("how", [None, draws(5, range(4), 1.5, 0.9)], ids=["likeliest", "drawn"])
def test_a_few_tokens_at_a_time_are_the_same_reply(params, visual, prompts, how, chunk):
    run, given = programs(MODEL, (0,)), (params, prompts, visual, NEW)
    [(whole, _)] = write(run, *given, draws=how)
    parts = [ids for ids, _ in write(run, *given, draws=how, chunk=chunk, room=NEW + 2)]
    assert [ids.shape[1] for ids in parts] == [*range(1 + chunk, NEW, chunk), NEW]
    for ids in parts:
        np.testing.assert_array_equal(ids, whole[:, : ids.shape[1]])


def test_any_of_several_stop_ids_ends_a_reply(params, visual, prompts, greedy):
    stop_ids = (0, int(greedy[0, 3]), int(greedy[1, 1]))
    ends = [next((i for i, t in enumerate(row) if t in stop_ids), NEW) for row in greedy.tolist()]
    assert max(ends) > min(ends)
    [(out, ended)] = write(programs(MODEL, stop_ids), params, prompts, visual, NEW)
    assert ended.tolist() == [end < NEW for end in ends]
    for found, expected, end in zip(out, greedy, ends, strict=True):
        np.testing.assert_array_equal(until_stop(found, stop_ids), expected[:end])


def test_writing_ends_when_all_rows_have(params, visual, prompts, greedy):
    stop_ids = tuple(set(greedy[:, 1].tolist()))
    handed_out = list(write(programs(MODEL, stop_ids), params, prompts, visual, NEW, chunk=2))
    assert len(handed_out) == 1
    assert handed_out[0][1].all()


def test_one_new_token(params, visual, prompts, greedy):
    texts = generate(params, tokenizer(0), prompts, visual, 1)
    assert texts == [words(row[:1]) for row in greedy]


def test_neither_padding_rows_nor_more_padding_matter(params, visual, prompts, greedy):
    B, L = prompts.tokens_BL.shape
    tokens = np.zeros((B + 2, L + 3), np.int32)
    tokens[:B, :L] = prompts.tokens_BL
    padded = Prompts(tokens, np.append(LENGTHS, [1, 1]).astype(np.int32))
    more = np.concatenate([visual, visual[:2]])
    texts = generate(params, tokenizer(0), padded, more, NEW)
    assert texts[:B] == [words(row) for row in greedy]


def choice_texts(rows):
    return [[" ".join(f"w{i}" for i in choice) for choice in choices] for choices in rows]


def test_only_the_given_choices_are_replied(params, frames, visual, prompts):
    """Each reply is built from the likeliest next token of its own choices, which share prefixes,
    differ in length and in number."""
    choices = [[(1, 2, 3), (1, 2, 4), (5,)], [(1, 2), (1, 3)], [(7,)], [(9, 8), (8, 9), (9, 9)]]
    texts = generate(params, tokenizer(SPECIAL_IDS[EOT]), prompts, visual, 4, choice_texts(choices))
    ids = [[[NAMES.index(f"w{i}") for i in c] + [SPECIAL_IDS[EOT]] for c in row] for row in choices]
    for b, row in enumerate(ids):
        begun = []
        while begun not in row:
            tokens = prompts.tokens_BL[b : b + 1, : LENGTHS[b]]
            tokens = np.append(tokens, [begun], axis=1).astype(np.int32) if begun else tokens
            padded = np.pad(tokens, ((0, 0), (0, 16 - tokens.shape[1])))
            logits = all_logits(params, padded, frames[VIDEO_OF[b : b + 1]])[0]
            allowed = [c[len(begun)] for c in row if c[: len(begun)] == begun]
            begun.append(max(allowed, key=lambda i: float(logits[tokens.shape[1] - 1, i])))
        assert texts[b] == words(begun[:-1])


def test_a_choice_that_does_not_fit_is_named(params, visual, prompts):
    choices = [["w1 w2 w3"]] * len(LENGTHS)
    with pytest.raises(ValueError, match="choice 'w1 w2 w3' has 3 tokens, more than the 2"):
        generate(params, tokenizer(0), prompts, visual, 2, choices)
