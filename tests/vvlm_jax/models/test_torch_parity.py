"""Language model, projector and the whole model compared with transformers in float32."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.vvlm_jax.models.reference import (
    assert_close,
    interpolate,
    llama,
    mlp2x_gelu,
    siglip,
    varied,
)
from vvlm_jax.config import LlamaConfig, RopeScaling, VisionConfig
from vvlm_jax.models.llama import Llama
from vvlm_jax.models.projector import Projector
from vvlm_jax.models.resampler import bilinear
from vvlm_jax.models.vlm import VLM, init
from vvlm_jax.train.loss import token_losses, weigh

pytestmark = pytest.mark.torch

# 18 = 4 · 4 + 2 pixels: as with 384 = 27 · 14 + 6, the last ones are unused.
VISION = VisionConfig(width=32, depth=3, mlp_dim=48, num_heads=4, patch_size=4, image_size=18)
LLAMA = LlamaConfig(
    vocab=50, width=40, depth=2, mlp_dim=56, num_heads=4, num_kv_heads=2, head_dim=12,
    tie_embeddings=True, rope_theta=1e4,
)  # fmt: skip
VIDEO = 7


SCALINGS = {
    "plain": None,
    # A short original length, so that within 40 tokens all three branches of the rule matter.
    "factor 8": RopeScaling(8.0, original_max_position=64),
    "factor 32": RopeScaling(32.0, original_max_position=64),
}


def logits(llm, tokens_BL):
    return llm.logits(llm(llm.embed(tokens_BL))[0])


def assert_logits_agree(config):
    import torch

    tokens = np.random.default_rng(1).integers(0, config.vocab, (2, 40), dtype=np.int32)
    model = Llama(config, jnp.float32)
    init = jax.jit(lambda key: model.init(key, tokens, method=logits)["params"])
    params = varied(init(jax.random.key(0)))
    ours = jax.jit(lambda p: model.apply({"params": p}, tokens, method=logits))(params)
    theirs = llama(params, config)(torch.from_numpy(tokens).long()).logits
    assert_close(ours, theirs)


OTHERS = pytest.mark.slow(reason="compiles a model for a combination of options tested apart")


@pytest.mark.parametrize(
    ("scaling", "tied"),
    [
        *(("factor 8", False), ("factor 32", True)),
        *(pytest.param("plain", tied, marks=OTHERS) for tied in (True, False)),
        pytest.param("factor 8", True, marks=OTHERS),
        pytest.param("factor 32", False, marks=OTHERS),
    ],
)
def test_llama_equals_transformers(scaling, tied):
    assert_logits_agree(
        dataclasses.replace(LLAMA, rope_scaling=SCALINGS[scaling], tie_embeddings=tied)
    )


@pytest.mark.parametrize("tied", [True, pytest.param(False, marks=OTHERS)], ids=["tied", "untied"])
def test_llama_with_biases_equals_qwen(tied):
    # 0.1 of noise on biases that start at 0; eps and rope base as Qwen2.5 has them.
    qwen = dict(qkv_bias=True, rope_theta=1e6, norm_eps=1e-6, tie_embeddings=tied)
    assert_logits_agree(dataclasses.replace(LLAMA, **qwen))


@pytest.mark.parametrize("side", [1, 3, 10, 14, 25, 27])
def test_projector_and_resampling(side):
    import torch

    x_BPD = np.random.default_rng(2).standard_normal((2, 27 * 27, 6)).astype(np.float32)
    model = Projector(10, jnp.float32)
    params = varied(model.init(jax.random.key(0), x_BPD)["params"])
    ours = bilinear(model.apply({"params": params}, x_BPD), side**2)
    assert_close(ours, interpolate(mlp2x_gelu(params)(torch.from_numpy(x_BPD)), side))


@pytest.mark.parametrize("weighting", ["token", "sample"])
def test_answer_loss_is_cross_entropy_with_ignored_labels(weighting):
    import torch
    import torch.nn.functional as F

    rng = np.random.default_rng(3)
    logits = 5 * rng.standard_normal((3, 6, 11)).astype(np.float32)
    ids = rng.integers(0, 11, (3, 6), dtype=np.int32)
    weight = (np.arange(6)[None] < np.array([6, 2, 3])[:, None]).astype(np.float32)
    loss_sum, weight_sum = weigh(token_losses(logits, ids), weight, weighting)
    labels = torch.from_numpy(np.where(weight > 0, ids, -100)).long()
    rows = [F.cross_entropy(torch.from_numpy(x), y) for x, y in zip(logits, labels, strict=True)]
    everything = F.cross_entropy(torch.from_numpy(logits).flatten(0, 1), labels.flatten())
    assert_close(loss_sum / weight_sum, torch.stack(rows).mean() if weighting == "sample" else
                 everything)  # fmt: skip


@pytest.mark.slow(reason="compiles the whole model; weights/test_gradients.py compares it, too")
def test_the_whole_model_from_pixels_to_loss_and_back():
    """Compare logits, the loss with masked labels, and its gradient in every part."""
    import torch

    rng = np.random.default_rng(4)
    T, side = 3, 2
    model = VLM(VISION, LLAMA, side**2, VIDEO, jnp.float32)
    params = varied(jax.jit(init, static_argnums=0)(model, jax.random.key(0)), 5)
    frames = rng.integers(0, 256, (2, T, 18, 18, 3), dtype=np.uint8)
    tokens = rng.integers(8, LLAMA.vocab, (2, 24), dtype=np.int32)
    starts = (2, 5)
    for row, start in enumerate(starts):
        tokens[row, start : start + T * side**2] = VIDEO
    positions = np.array([[18, 19, 20], [19, 20, 22]])
    targets = np.take_along_axis(tokens, positions + 1, axis=1)

    def loss(params):
        logits = model.apply({"params": params}, tokens, frames, positions, method="target_logits")
        loss_sum, weight = weigh(
            token_losses(logits, targets), np.ones((2, 3), np.float32), "token"
        )
        return loss_sum / weight, logits

    (ours, logits), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)

    pixels = (frames.reshape(2 * T, 18, 18, 3).astype(np.float32) / 255 - 0.5) / 0.5
    tower, projector = siglip(params["vision"], VISION), mlp2x_gelu(params["projector"])
    states = tower(torch.from_numpy(pixels).permute(0, 3, 1, 2), output_hidden_states=True)
    features = projector(states.hidden_states[-1])
    visual = interpolate(features, side).reshape(2, T * side**2, -1)
    reference = llama(params["llm"], LLAMA)
    embedded = reference.get_input_embeddings()(torch.from_numpy(tokens).long())
    embedded = torch.stack(
        [
            torch.cat([row[:start], video, row[start + len(video) :]])
            for row, video, start in zip(embedded, visual, starts, strict=True)
        ]
    )
    labels = np.full_like(tokens, -100)
    np.put_along_axis(labels, positions + 1, targets, axis=1)
    theirs = reference(inputs_embeds=embedded, labels=torch.from_numpy(labels).long())
    at = torch.from_numpy(positions)[..., None].expand(-1, -1, LLAMA.vocab)
    assert_close(logits, theirs.logits.gather(1, at))
    assert_close(ours, theirs.loss)

    theirs.loss.backward()
    blocks, layers = grads["vision"]["Transformer"]["encoderblock"], grads["llm"]["layers"]
    attention, D = blocks["MultiHeadDotProductAttention_0"], VISION.width
    patch = grads["vision"]["embedding"]["kernel"].transpose(3, 2, 0, 1)
    for mine, parameter in (
        (patch, tower.embeddings.patch_embedding.weight),
        (grads["vision"]["pos_embedding"][0], tower.embeddings.position_embedding.weight),
        (
            attention["query"]["kernel"][0].reshape(D, D).T,
            tower.encoder.layers[0].self_attn.q_proj.weight,
        ),
        (blocks["LayerNorm_1"]["scale"][1], tower.encoder.layers[1].layer_norm2.weight),
        (grads["projector"]["fc1"]["kernel"].T, projector[0].weight),
        (grads["projector"]["fc2"]["bias"], projector[2].bias),
        (grads["llm"]["embed"]["embedding"], reference.model.embed_tokens.weight),
        (
            layers["attn"]["k"]["kernel"][1].reshape(LLAMA.width, -1).T,
            reference.model.layers[1].self_attn.k_proj.weight,
        ),
        (layers["mlp"]["down"]["kernel"][0].T, reference.model.layers[0].mlp.down_proj.weight),
        (grads["llm"]["norm"]["scale"], reference.model.norm.weight),
    ):
        assert_close(mine, parameter.grad)
