import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from vvlm_jax.config import REMAT, ConfigError, LlamaConfig, ModelConfig, VisionConfig
from vvlm_jax.models import vlm
from vvlm_jax.models.vlm import VLM
from vvlm_jax.train.loss import token_losses, weigh

VISION = VisionConfig(width=16, depth=3, mlp_dim=24, num_heads=2, patch_size=4, image_size=16)
LLAMA = LlamaConfig(
    vocab=32, width=24, depth=2, mlp_dim=40, num_heads=4, num_kv_heads=2, head_dim=8,
    tie_embeddings=True, rope_theta=100.0,
)  # fmt: skip
VIDEO, NEWLINE, V, T = 5, 4, 4, 2
MODEL = VLM(VISION, LLAMA, V, VIDEO, jnp.float32)
L = 14
HOLES = [(2, 10), (4, 12)]  # where the T · V placeholders of each row stand


@pytest.fixture(scope="module")
def params():
    # Blocks start by adding little to the embeddings; here they are to add more.
    return jax.tree.map(
        lambda x: 2 * x, jax.jit(vlm.init, static_argnums=0)(MODEL, jax.random.key(1))
    )


@pytest.fixture(scope="module")
def inputs():
    rng = np.random.default_rng(0)
    tokens = rng.integers(6, LLAMA.vocab, (2, L), dtype=np.int32)
    for row, hole in zip(tokens, HOLES, strict=True):
        row[slice(*hole)] = VIDEO
    return tokens, rng.integers(0, 256, (2, T, 16, 16, 3), dtype=np.uint8)


@functools.cache
def applied(model, method):
    return jax.jit(lambda p, *a: model.apply({"params": p}, *a, method=method))


def run(params, *args, method=None, model=MODEL):
    return applied(model, method)(params, *args)


def assert_close(x, y):
    """Assert equality within float32 rounding."""
    np.testing.assert_allclose(x, y, atol=1e-5 * max(1, np.abs(y).max()), rtol=0)


@pytest.mark.light
def test_splice_puts_every_visual_token_in_its_place(params):
    """Give token v of frame t the value 100 · (t · V + v + 1) in its whole embedding."""
    tokens = np.full((3, 13), 9, np.int32)
    tokens[0, 1:9] = VIDEO
    tokens[1, 5:13] = VIDEO
    tokens[2, [0, 2, 3, 4, 7, 8, 9, 12]] = VIDEO
    numbers = 100.0 * np.arange(1, T * V + 1)[None] * np.array([[1], [-1], [2]])
    visual = np.broadcast_to(numbers[..., None], (3, T * V, LLAMA.width)).astype(np.float32)
    spliced = run(params, tokens, visual, method="splice")
    text = params["llm"]["embed"]["embedding"][9]
    for row in range(3):
        np.testing.assert_array_equal(spliced[row][tokens[row] == VIDEO], visual[row])
        for embedded in spliced[row][tokens[row] != VIDEO]:
            np.testing.assert_array_equal(embedded, text)


def test_encode_is_frame_major(params, inputs):
    _, frames = inputs
    together = run(params, frames, method="encode")
    assert together.shape == (2, T * V, LLAMA.width)
    for b in range(2):
        for t in range(T):
            alone = run(params, frames[b : b + 1, t : t + 1], method="encode")[0]
            assert_close(together[b, t * V : (t + 1) * V], alone)
    assert np.abs(together[0, :V] - together[0, V:]).max() > 1e-2


def test_frames_affect_only_positions_from_their_placeholders(params, inputs):
    tokens, frames = inputs
    other = frames[::-1].copy()
    seen, seen_other = (run(params, tokens, f) for f in (frames, other))
    for row, (start, _) in enumerate(HOLES):
        np.testing.assert_array_equal(seen[row, :start], seen_other[row, :start])
        assert (np.abs(seen[row, start:] - seen_other[row, start:]).max(axis=-1) > 1e-4).all()
    text = np.where(tokens == VIDEO, 9, tokens)
    np.testing.assert_array_equal(run(params, text, frames), run(params, text, other))


def test_text_alone_needs_no_frames(params, inputs):
    tokens, frames = inputs
    text = np.where(tokens == VIDEO, 9, tokens)
    none = np.zeros((2, 0, 16, 16, 3), np.uint8)
    assert_close(run(params, text, none), run(params, text, frames))


def test_padding_on_the_right_does_not_change_states(params, inputs):
    tokens, frames = inputs
    alone = run(params, tokens, frames)
    for filler in (0, 17):
        padded = np.pad(tokens, ((0, 0), (0, 4)), constant_values=filler)
        assert_close(run(params, padded, frames)[:, :L], alone)


def test_rows_do_not_depend_on_each_other(params, inputs):
    tokens, frames = inputs
    together = run(params, tokens, frames)
    alone = run(params, tokens[1:], frames[1:])
    assert_close(together[1:], alone)


def test_rows_may_hold_two_videos_one_or_none(params, inputs):
    """A row's states do not depend on how many videos the other rows have."""
    rng = np.random.default_rng(7)
    frames = rng.integers(0, 256, (3, T, 16, 16, 3), dtype=np.uint8)
    tokens = rng.integers(6, LLAMA.vocab, (3, L), dtype=np.int32)
    tokens[0, 1 : 1 + V], tokens[0, 8 : 8 + V] = VIDEO, VIDEO  # two of one frame each
    tokens[1, 2 : 2 + V] = VIDEO  # one of one frame; its other frame is filler
    together = run(params, tokens, frames)
    assert_close(together[:1], run(params, tokens[:1], frames[:1]))
    assert_close(together[1:2], run(params, tokens[1:2], frames[1:2, :1]))
    assert_close(together[2:], run(params, tokens[2:], frames[2:, :0]))
    second = run(params, frames[:1, 1:], method="encode")
    spliced = run(params, tokens, run(params, frames, method="encode"), method="splice")
    assert_close(spliced[0, 8 : 8 + V], second[0])


def test_newlines_are_their_own_embedding(params, inputs):
    tokens, frames = inputs
    tokens = tokens.copy()
    model = dataclasses.replace(MODEL, newline_id=NEWLINE)
    newline = np.arange(LLAMA.width, dtype=np.float32)
    params = params | {"newline": newline}
    tokens[0, [10, 13]] = NEWLINE
    tokens[1, 7:9] = NEWLINE  # among the visual tokens, which go on after it
    visual = np.asarray(run(params, frames, method="encode", model=model))
    spliced = np.asarray(run(params, tokens, visual, method="splice", model=model))
    assert (spliced[tokens == NEWLINE] == newline[None]).all()
    assert_close(spliced[1][tokens[1] == VIDEO], visual[1, : T * V - 2])
    plain = run({k: v for k, v in params.items() if k != "newline"}, tokens, visual,
                method="splice")  # fmt: skip
    np.testing.assert_array_equal(spliced[tokens != NEWLINE], plain[tokens != NEWLINE])


@pytest.mark.slow(reason="compiles several models")
def test_newlines_change_nothing_else_that_is_initialised():
    init = jax.jit(vlm.init, static_argnums=0)
    made = flatten_dict(init(MODEL, jax.random.key(3)), sep="/")
    with_newline = dataclasses.replace(MODEL, newline_id=NEWLINE)
    more = flatten_dict(init(with_newline, jax.random.key(3)), sep="/")
    newline = more.pop("newline")
    assert newline.shape == (LLAMA.width,)
    np.testing.assert_allclose(np.std(newline), LLAMA.width**-0.5, rtol=0.4)
    assert made.keys() == more.keys()
    assert all((made[path] == more[path]).all() for path in made)


def test_by_gradient_the_future_the_padding_and_the_neighbours_are_never_attended(params, inputs):
    tokens, frames = inputs
    lengths = (L, L - 3)
    visual = run(params, frames, method="encode")
    x_BLD = run(params, tokens, visual, method="splice")
    mix_D = np.random.default_rng(2).standard_normal(LLAMA.width).astype(np.float32)

    def states(x_BLD):
        return MODEL.apply({"params": params}, x_BLD, method=lambda m, x: m.llm(x)[0]) @ mix_D

    # [B, L, B, L]: how much the state at a position (first two) depends on what stands at another.
    depends = np.abs(jax.jit(jax.jacrev(states))(x_BLD)).max(axis=-1)
    for row, length in enumerate(lengths):
        real = depends[row, :length, row]
        assert (real[:, length:] == 0).all()  # padding on the right
        assert (real[np.triu_indices(length, 1)] == 0).all()  # the future
        assert (real[np.tril_indices(length)] > 1e-6).all()  # all of the past is
        assert (depends[row, :, 1 - row] == 0).all()  # the neighbour


def test_by_gradient_padding_frames_reach_nothing(params, inputs):
    tokens, frames = inputs
    tokens = tokens.copy()
    tokens[0, 2 + V : 10] = 9  # row 0 has one frame, row 1 two
    visual = run(params, frames, method="encode")

    def total(visual):
        x_BLD = MODEL.apply({"params": params}, tokens, visual, method="splice")
        return (MODEL.apply({"params": params}, x_BLD, method=lambda m, x: m.llm(x)[0]) ** 2).sum()

    seen = np.abs(jax.jit(jax.grad(total))(visual)).max(axis=-1)
    assert (seen[0, :V] > 0).all()
    assert (seen[0, V:] == 0).all()
    assert (seen[1] > 0).all()


def test_by_gradient_a_decoded_token_sees_what_is_filled_alone(params, inputs):
    """Empty slots of the cache and slots with padding do not affect the next token."""
    tokens, frames = inputs
    visual, lengths = run(params, frames, method="encode"), np.array([L, L - 3])

    def next_logits(keys_and_values, cache):
        cache = cache._replace(k_BKSH=keys_and_values[0], v_BKSH=keys_and_values[1])
        step = MODEL.apply({"params": params}, np.array([9, 8]), cache, method="decode_step")
        return (step[0] ** 2).sum()

    prefill = jax.jit(lambda p, *a: MODEL.apply({"params": p}, *a, 4, method="prefill"))
    cache = prefill(params, tokens, lengths, visual)[1]
    grads = jax.jit(jax.grad(next_logits))((cache.k_BKSH, cache.v_BKSH), cache)
    for seen in (np.abs(np.stack(g)).max(axis=(0, 2, 4)) for g in grads):
        for row, length in enumerate(lengths):
            assert (seen[row, :length] > 0).all()
            assert (seen[row, length:] == 0).all()


def test_target_logits_are_the_logits_at_those_positions(params, inputs):
    tokens, frames = inputs
    positions = np.array([[11, 3, 3], [13, 0, 12]])
    chosen = run(params, tokens, frames, positions, method="target_logits")
    everywhere = np.broadcast_to(np.arange(L), (2, L))
    full = run(params, tokens, frames, everywhere, method="target_logits")
    assert chosen.dtype == jnp.float32
    expected = np.take_along_axis(np.asarray(full), positions[..., None], axis=1)
    assert_close(chosen, expected)


def test_gradients_flow_to_every_parameter(params, inputs):
    """Every parameter that is built is trained, including the encoder's."""
    _, grads = loss_and_gradients(MODEL, params, inputs)
    for path, grad in jax.tree_util.tree_leaves_with_path(grads):
        if "key" in str(path) and "bias" in str(path):
            continue  # the same number added to all scores of a query: softmax does not see it
        per_layer = np.abs(grad).reshape(len(grad), -1) if grad.ndim > 2 else np.abs(grad)
        assert per_layer.max(axis=-1).min() > 0 or "embed" in str(path), path


def loss_and_gradients(model, params, inputs):
    return gradient_function(model)(params, *inputs)


@functools.cache
def gradient_function(model):
    positions = np.array([[11, 12], [12, 12]])
    targets, weight = np.array([[7, 8], [9, 0]]), np.array([[1.0, 1.0], [1.0, 0.0]], np.float32)

    def loss(params, tokens, frames):
        logits = model.apply({"params": params}, tokens, frames, positions, method="target_logits")
        return weigh(token_losses(logits, targets), weight, "token")[0]

    return jax.jit(jax.value_and_grad(loss))


@pytest.mark.parametrize(
    "policy",
    [
        *(pytest.param(x, marks=pytest.mark.slow(reason="compiles a model")) for x in REMAT[1:-1]),
        REMAT[-1],
    ],
)
def test_remat_does_not_change_the_gradients(params, inputs, policy):
    again = dataclasses.replace(MODEL, remat=policy, frame_chunk=policy == "chunks")
    gentle = jax.tree.map(lambda x: x / 2, params)  # larger ones make much of rounding
    loss, grads = loss_and_gradients(MODEL, gentle, inputs)
    loss_again, grads_again = loss_and_gradients(again, gentle, inputs)
    np.testing.assert_allclose(loss_again, loss, rtol=1e-6)
    assert_same_gradients(grads_again, grads)


def assert_same_gradients(found, expected):
    for path, y in jax.tree_util.tree_leaves_with_path(expected):
        x = functools.reduce(lambda tree, key: tree[key.key], path, found)
        np.testing.assert_allclose(
            x, y, rtol=0, atol=2e-5 * np.abs(y).max() + 1e-6, err_msg=str(path)
        )


def test_unrolled_blocks_have_the_same_gradients(params, inputs):
    again = dataclasses.replace(MODEL, unroll=9)  # more than there are blocks: all are unrolled
    gentle = jax.tree.map(lambda x: x / 2, params)
    loss, grads = loss_and_gradients(MODEL, gentle, inputs)
    loss_again, grads_again = loss_and_gradients(again, gentle, inputs)
    np.testing.assert_allclose(loss_again, loss, rtol=1e-6)
    assert_same_gradients(grads_again, grads)


@pytest.mark.parametrize(("remat", "wrapped"), [("none", 0), ("attention", 2), ("full", 2)])
def test_remat_wraps_both_towers(remat, wrapped, params, inputs):
    tokens, frames = inputs
    model = dataclasses.replace(MODEL, remat=remat)

    def total(params):
        return model.apply({"params": params}, tokens, frames).sum()

    assert str(jax.make_jaxpr(jax.grad(total))(params)).count("prevent_cse=") == wrapped


def memory_of_gradients(model, frames=4, length=96):
    """Return the bytes of temporaries of the compiled gradient, at sizes large enough to matter."""
    vision = dataclasses.replace(VISION, width=64, mlp_dim=128, depth=6, image_size=32)
    llm = dataclasses.replace(LLAMA, width=64, mlp_dim=192, depth=6, vocab=64)
    model = dataclasses.replace(model, vision_config=vision, llm_config=llm)
    tokens = jax.ShapeDtypeStruct((2, length), np.int32)
    pixels = jax.ShapeDtypeStruct((2, frames, 32, 32, 3), np.uint8)

    def total(params, tokens, pixels):
        return (model.apply({"params": params}, tokens, pixels) ** 2).sum()

    compiled = jax.jit(jax.grad(total)).lower(vlm.shapes(model), tokens, pixels).compile()
    return compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.slow(reason="compiles several programs")
def test_every_policy_needs_less_memory_than_the_one_before():
    models = [dataclasses.replace(MODEL, remat=policy, frame_chunk=1) for policy in REMAT]
    sizes = [memory_of_gradients(model) for model in models]
    for larger, smaller in itertools.pairwise(sizes):
        assert smaller < 0.95 * larger, dict(zip(REMAT, sizes, strict=True))


@pytest.mark.slow(reason="compiles several models")
def test_frames_in_chunks_need_less_memory():
    again = dataclasses.replace(MODEL, remat="full")
    whole, chunked = (
        memory_of_gradients(dataclasses.replace(again, frame_chunk=c), frames=16) for c in (0, 2)
    )
    assert chunked < 0.8 * whole


@pytest.mark.slow(reason="compiles several models")
@pytest.mark.parametrize("chunk", [1, 2])
def test_frames_in_chunks_are_the_frames_at_once(params, chunk):
    """Use 5 frames, which 2 does not divide."""
    frames = np.random.default_rng(3).integers(0, 256, (2, 5, 16, 16, 3), dtype=np.uint8)
    model = dataclasses.replace(MODEL, frame_chunk=chunk)

    def tokens_and_gradient(model):
        def total(params):
            visual = model.apply({"params": params}, frames, method="encode")
            return (visual**2).sum(), visual

        grads, visual = jax.jit(jax.grad(total, has_aux=True))(params)
        return visual, grads

    params = jax.tree.map(lambda x: x / 2, params)  # larger ones make much of rounding
    visual, grads = tokens_and_gradient(MODEL)
    visual_again, grads_again = tokens_and_gradient(model)
    assert visual_again.shape == (2, 5 * V, LLAMA.width)
    assert_close(visual_again, visual)
    assert_same_gradients(grads_again, grads)


@pytest.mark.slow(reason="compiles several models")
def test_bfloat16_computes_in_bfloat16_and_keeps_float32_parameters(params, inputs):
    model = dataclasses.replace(MODEL, dtype=jnp.bfloat16)
    made = vlm.shapes(model)
    assert {x.dtype for x in jax.tree.leaves(made)} == {jnp.dtype("float32")}
    assert run(params, *inputs, model=model).dtype == jnp.bfloat16
    assert run(params, inputs[1], model=model, method="encode").dtype == jnp.bfloat16
    gentle = jax.tree.map(lambda x: x / 2, params)  # as they are at the start of training
    loss, grads = loss_and_gradients(model, gentle, inputs)
    assert loss.dtype == jnp.float32
    assert {x.dtype for x in jax.tree.leaves(grads)} == {jnp.dtype("float32")}
    exact, exact_grads = loss_and_gradients(MODEL, gentle, inputs)
    np.testing.assert_allclose(loss, exact, rtol=0.02)
    ours, theirs = (
        np.concatenate([np.ravel(x) for x in jax.tree.leaves(g)]) for g in (grads, exact_grads)
    )
    assert ours @ theirs / np.linalg.norm(ours) / np.linalg.norm(theirs) > 0.98


def test_build_reads_the_config():
    model = vlm.build(
        ModelConfig("study/12", "study-m", 2, 9, "float32", remat="full"), 4, vocab=192
    )
    assert (model.dtype, model.remat, model.tokens_per_frame) == (jnp.float32, "full", 9)
    assert (model.vision_config.width, model.llm_config.width, model.video_id) == (48, 48, 4)


def test_build_reads_resampler_and_newline():
    config = ModelConfig("study/12", "study-s", resampler="area", newline="grid")
    model = vlm.build(config, 4, newline_id=6)
    assert (model.resampler, model.newline_id) == ("area", 6)
    plain = dataclasses.replace(config, newline="none")
    assert vlm.build(plain, 4, newline_id=6).newline_id is None
    with pytest.raises(ValueError, match=r"^model\.newline = 'grid' needs the id"):
        vlm.build(config, 4)


def test_build_refuses_what_it_does_not_know():
    with pytest.raises(ValueError, match="has 193 ids but study-m embeds 192"):
        vlm.build(ModelConfig("study/12", "study-m"), 4, vocab=193)
    with pytest.raises(ConfigError, match=r"^model\.llm = 'llama3\.2-2b': unknown; did you mean"):
        vlm.build(ModelConfig(llm="llama3.2-2b"), 4)
    with pytest.raises(ConfigError, match=r"^model\.vision = 'clip': unknown; known: so400m"):
        vlm.build(ModelConfig(vision="clip"), 4)
