import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from configs import quecc as full_size
from tests.vvlm_jax.models.reference import assert_close, varied
from vvlm_jax.config import ConfigError, LlamaConfig, ModelConfig, TrainConfig, VisionConfig
from vvlm_jax.config_check import validate
from vvlm_jax.models import vlm
from vvlm_jax.models.quecc import QueCC
from vvlm_jax.models.variants import VISION as ENCODERS
from vvlm_jax.models.vlm import VLM
from vvlm_jax.train.loss import token_losses, weigh

VISION = VisionConfig(width=16, depth=4, mlp_dim=24, num_heads=2, patch_size=4, image_size=24)
LLAMA = LlamaConfig(
    vocab=32, width=24, depth=2, mlp_dim=40, num_heads=4, num_kv_heads=2, head_dim=8,
    tie_embeddings=True, rope_theta=100.0,
)  # fmt: skip
VIDEO, V, T, L = 5, 4, 2, 14  # cells of 3 × 3 patches
MODEL = VLM(VISION, LLAMA, V, VIDEO, jnp.float32, resampler="quecc", quecc_layers=(1, 2, 3))
QUERY, LENGTHS = np.array([[9, 11, 8, 0], [7, 10, 0, 0]]), np.array([3, 2])


@pytest.fixture(scope="module")
def params():
    return varied(jax.jit(vlm.init, static_argnums=0)(MODEL, jax.random.key(1)))


@pytest.fixture(scope="module")
def inputs():
    rng = np.random.default_rng(0)
    tokens = rng.integers(6, LLAMA.vocab, (2, L), dtype=np.int32)
    tokens[:, 3 : 3 + T * V] = VIDEO
    return tokens, rng.integers(0, 256, (2, T, 24, 24, 3), dtype=np.uint8)


ENCODE = jax.jit(lambda p, *x: MODEL.apply({"params": p}, *x, method="encode"))


def encode(params, frames, query=QUERY, lengths=LENGTHS):
    return ENCODE(params, frames, query, lengths)


def test_frames_in_chunks_are_the_frames_at_once(params, inputs):
    """Every chunk of frames uses the same question."""
    _, frames = inputs
    frames = np.concatenate([frames, frames[:, :1, ::-1]], axis=1)  # 3, which 2 does not divide
    model = dataclasses.replace(MODEL, frame_chunk=2)
    apply = jax.jit(lambda p, *x: model.apply({"params": p}, *x, method="encode"))
    chunked = apply(params, frames, QUERY, LENGTHS)
    np.testing.assert_allclose(chunked, encode(params, frames), rtol=1e-4, atol=1e-4)


def reference(params, x_BPD, layers, text_BE, side):
    """Compute QueCC with torch layers: Linear, GELU, LayerNorm, Conv2d, MultiheadAttention."""
    import torch
    from torch import nn

    B, P, D = x_BPD.shape
    grid = round(P**0.5)
    stride = grid // side

    def fill(module, **arrays):
        state = {k: torch.from_numpy(np.array(x, np.float32)) for k, x in arrays.items()}
        module.load_state_dict(state)
        return module

    def linear(p):
        return fill(nn.Linear(*p["kernel"].shape), weight=p["kernel"].T, bias=p["bias"])

    def norm(p):
        return fill(nn.LayerNorm(D, eps=1e-6), weight=p["scale"], bias=p["bias"])

    def branch(p):
        return nn.Sequential(linear(p["fc1"]), nn.GELU(), linear(p["fc2"]), norm(p["norm"]))

    x, layers, text = (torch.from_numpy(np.array(a)) for a in (x_BPD, np.stack(layers), text_BE))
    text = norm(params["text_norm"])(linear(params["text"])(text))
    q = branch(params["query"])(x + text[:, None])
    compress = fill(
        nn.Conv2d(D, D, stride, stride, groups=D),
        weight=params["compress"]["kernel"].transpose(3, 2, 0, 1), bias=params["compress"]["bias"],
    )  # fmt: skip
    q = compress(q.transpose(1, 2).reshape(B, D, grid, grid))
    q = q.permute(0, 2, 3, 1).reshape(B * side * side, 1, D)

    def cells(y):
        y = y.reshape(B, grid, grid, D).permute(0, 3, 1, 2)
        y = nn.functional.unfold(y, stride, stride=stride)  # [B, D · s², V]
        y = y.reshape(B, D, stride * stride, side * side)
        return y.permute(0, 3, 2, 1).reshape(-1, stride * stride, D)

    everything = torch.cat(list(layers), dim=-1)
    p = params["attention"]
    parts = [p[name] for name in ("query", "key", "value")]
    attention = nn.MultiheadAttention(D, 8, batch_first=True)
    fill(
        attention,
        in_proj_weight=np.concatenate([x["kernel"].reshape(D, D).T for x in parts]),
        in_proj_bias=np.concatenate([x["bias"].reshape(D) for x in parts]),
        **{
            "out_proj.weight": p["out"]["kernel"].reshape(D, D).T,
            "out_proj.bias": p["out"]["bias"],
        },
    )
    keys, values = (cells(branch(params[name])(everything)) for name in ("key", "value"))
    return attention(q, keys, values)[0].reshape(B, side * side, D)


@pytest.mark.torch
@pytest.mark.parametrize(
    "side",
    [3, *(pytest.param(x, marks=pytest.mark.slow(reason="compiles QueCC")) for x in (1, 2, 6))],
)
def test_the_same_as_its_torch_layers(side):
    rng = np.random.default_rng(side)
    x_BPD = rng.standard_normal((3, 36, 16)).astype(np.float32)
    layers = list(rng.standard_normal((2, 3, 36, 16)).astype(np.float32))
    text_BE = rng.standard_normal((3, 24)).astype(np.float32)
    model = QueCC(side**2, jnp.float32)
    params = varied(jax.jit(model.init)(jax.random.key(0), x_BPD, layers, text_BE)["params"])
    ours = jax.jit(lambda p: model.apply({"params": p}, x_BPD, layers, text_BE))(params)
    assert ours.shape == (3, side**2, 16)
    assert_close(ours, reference(params, x_BPD, layers, text_BE, side))


def test_a_token_depends_on_the_patches_of_its_cell_only(params, inputs):
    """QueCC's own inputs reach a token from its cell only; the encoder before it mixes patches."""
    rng = np.random.default_rng(3)
    x_BPD = rng.standard_normal((1, 36, 16)).astype(np.float32)
    layers = [rng.standard_normal((1, 36, 16)).astype(np.float32)]
    text_BE = rng.standard_normal((1, 24)).astype(np.float32)
    model = QueCC(4, jnp.float32)
    params = jax.jit(model.init)(jax.random.key(0), x_BPD, layers, text_BE)

    def tokens(x_BPD, layer):
        return model.apply(params, x_BPD, [layer], text_BE).sum(axis=-1)

    seen = jax.jit(jax.jacrev(tokens, argnums=(0, 1)))(x_BPD, layers[0])
    for kind in seen:
        depends = np.abs(kind[0, :, 0]).max(axis=-1).reshape(4, 6, 6) > 0
        for token in range(4):
            row, column = 3 * (token // 2), 3 * (token % 2)
            assert depends[token, row : row + 3, column : column + 3].all()
            assert depends[token].sum() == 9


def test_tokens_depend_on_the_question_up_to_its_end(params, inputs):
    _, frames = inputs
    plain = encode(params, frames)
    assert plain.shape == (2, T * V, LLAMA.width)
    padding = np.where(QUERY == 0, 13, QUERY)
    np.testing.assert_array_equal(encode(params, frames, padding), plain)
    other = QUERY.copy()
    other[0, 0] = 12
    changed = np.abs(encode(params, frames, other) - plain).max(axis=(1, 2))
    assert changed[0] > 1e-3
    assert changed[1] == 0
    shorter = np.abs(encode(params, frames, lengths=np.array([2, 2])) - plain).max(axis=(1, 2))
    assert shorter[0] > 1e-3


def test_encode_is_frame_major(params, inputs):
    _, frames = inputs
    together = encode(params, frames)
    for b in range(2):
        for t in range(T):
            alone = encode(
                params, frames[b : b + 1, t : t + 1], QUERY[b : b + 1], LENGTHS[b : b + 1]
            )
            np.testing.assert_allclose(together[b, t * V : (t + 1) * V], alone[0], atol=1e-5)


def test_no_gradient_passes_through_the_question(params, inputs):
    """The question's path gives the language model no gradient; QueCC and encoder have one."""
    _, frames = inputs

    def total(params):
        return (MODEL.apply({"params": params}, frames, QUERY, LENGTHS, method="encode") ** 2).sum()

    grads = flatten_dict(jax.jit(jax.grad(total))(params), sep="/")
    for path, grad in grads.items():
        if path.startswith("llm/"):
            assert (grad == 0).all(), path
        elif not path.endswith("key/bias"):  # the same added to all scores: softmax does not see it
            assert np.abs(grad).max() > 0, path


@pytest.mark.slow(reason="compiles a train step; train/test_quecc.py trains")
def test_a_few_steps_of_descent_learn(params, inputs):
    """Gradient descent on one batch reduces its loss."""
    tokens, frames = inputs
    positions, targets = np.array([[11, 12], [11, 12]]), np.array([[7, 8], [9, 6]])

    def loss(params):
        logits = MODEL.apply(
            {"params": params}, tokens, frames, positions, QUERY, LENGTHS, method="target_logits"
        )
        return weigh(token_losses(logits, targets), np.ones((2, 2), np.float32), "token")[0]

    step = jax.jit(jax.value_and_grad(loss))
    losses = []
    for _ in range(8):
        value, grads = step(params)
        losses.append(float(value))
        params = jax.tree.map(lambda p, g: p - 0.05 * g, params, grads)
    assert losses[-1] < 0.5 * losses[0]


def test_text_alone_needs_no_question(params, inputs):
    tokens, frames = inputs
    text = np.where(tokens == VIDEO, 9, tokens)
    states = MODEL.apply({"params": params}, text, frames[:, :0])
    assert states.shape == (2, L, LLAMA.width)


def test_frames_without_a_question_are_refused(params, inputs):
    _, frames = inputs
    with pytest.raises(ValueError, match=r"^model\.resampler = 'quecc' needs each row's question"):
        MODEL.apply({"params": params}, frames, method="encode")


def test_build_reads_the_config():
    config = ModelConfig(
        "study/12", "study-s", 1, 4, "float32", resampler="quecc", quecc_layers=(1, 2)
    )
    model = vlm.build(config, 4)
    assert (model.resampler, model.quecc_layers) == ("quecc", (1, 2))
    shapes = flatten_dict(vlm.shapes(model), sep="/")
    assert shapes["quecc/key/fc1/kernel"].shape == (2 * 48, 48)
    assert shapes["quecc/text/kernel"].shape == (32, 48)
    assert shapes["quecc/compress/kernel"].shape == (2, 2, 1, 48)


# Sizes.


def test_the_full_size_config_reads_layers_at_the_depths_of_li_et_al():
    config = full_size.config()
    vision = ENCODERS[config.model.vision]
    validate(config, vision)
    theirs = [layer / 24 for layer in (12, 16, 22, 23)]
    assert tuple(round(share * vision.depth) for share in theirs) == full_size.LAYERS
    assert full_size.LAYERS[-1] == vision.blocks_run  # 23 of 24 is their layer -2 as well


@pytest.mark.parametrize(
    ("vision", "tokens"), [("so400m/14-384", (1, 9, 81, 729)), ("study/12", (1, 4, 16))]
)
def test_cells_divide_the_grid(vision, tokens):
    sizes = ENCODERS[vision]
    grid = sizes.grid
    for side in range(1, grid + 1):
        model = ModelConfig(
            vision, "study-s", tokens_per_frame=side**2, resampler="quecc", quecc_layers=(1,)
        )
        if side**2 in tokens:
            validate(TrainConfig(model), sizes)
            continue
        with pytest.raises(ConfigError) as raised:
            validate(TrainConfig(model), sizes)
        first = ", ".join(map(str, tokens[:-1]))
        assert str(raised.value) == (
            f"model.tokens_per_frame = {side**2}: must be {first} or {tokens[-1]} with quecc, "
            f"whose cells divide the {grid} × {grid} grid"
        )


@pytest.mark.parametrize(
    ("options", "field"),
    [
        (dict(resampler="quecc"), "quecc_layers = ()"),
        (dict(resampler="quecc", quecc_layers=(0,)), "quecc_layers = (0,)"),
        (dict(resampler="quecc", quecc_layers=(14, 27)), "quecc_layers = (14, 27)"),
        (dict(quecc_layers=(14,)), "quecc_layers = (14,)"),
    ],
)
def test_layers_that_are_not_there_are_refused(options, field):
    with pytest.raises(ConfigError, match="must be blocks from 1 to 26") as raised:
        validate(TrainConfig(ModelConfig(**options)), ENCODERS["so400m/14-384"])
    assert str(raised.value).startswith(f"model.{field}: ")


def test_an_encoder_whose_width_has_no_eight_heads_is_refused():
    odd = dataclasses.replace(VISION, width=20)
    model = ModelConfig(odd, LLAMA, 2, 4, resampler="quecc", quecc_layers=(1,))
    with pytest.raises(ConfigError, match=r"^model\.vision\.width = 20: must be a multiple of 8"):
        validate(TrainConfig(model), odd)


def test_the_parameters_of_li_et_al_are_21_million():
    clip = dataclasses.replace(VISION, width=1024, image_size=4 * VISION.patch_size)
    vicuna = dataclasses.replace(LLAMA, width=4096)
    model = ModelConfig(clip, vicuna, 1, 1, resampler="quecc", quecc_layers=(1,) * 4)
    shapes = vlm.shapes(vlm.build(model, 4))["quecc"]
    assert sum(x.size for x in jax.tree.leaves(shapes)) == 21_008_384
