"""The towers, and the whole model put together from them, against transformers in float32."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vvlm_jax.config import LlamaConfig, RopeScaling, VisionConfig
from vvlm_jax.models.llama import Llama
from vvlm_jax.models.projector import Projector
from vvlm_jax.models.resampler import bilinear
from vvlm_jax.models.sovit import SoViT
from vvlm_jax.models.vlm import VLM, init
from vvlm_jax.train.loss import answer_loss

pytestmark = pytest.mark.torch

# 18 = 4 · 4 + 2 pixels: as with 384 = 27 · 14 + 6, the last ones are unused.
VISION = VisionConfig(width=32, depth=3, mlp_dim=48, num_heads=4, patch_size=4, image_size=18)
LLAMA = LlamaConfig(
    vocab=50, width=40, depth=2, mlp_dim=56, num_heads=4, num_kv_heads=2, head_dim=12,
    tie_embeddings=True, rope_theta=1e4,
)  # fmt: skip
VIDEO = 7


def varied(params, seed=0):
    """Parameters with noise on all of them, so that biases and scales are not 0 and 1."""
    leaves, tree = jax.tree.flatten(params)
    rng = np.random.default_rng(seed)
    noisy = [x + 0.1 * rng.standard_normal(x.shape).astype(np.float32) for x in leaves]
    return jax.tree.unflatten(tree, noisy)


def assert_close(ours, theirs):
    """As the reference to 1e-4 of its largest value."""
    theirs = theirs.detach().numpy()
    assert np.shape(ours) == theirs.shape
    assert np.abs(np.asarray(ours) - theirs).max() <= 1e-4 * np.abs(theirs).max()


def load(module, arrays):
    """Fills a torch module; what `arrays` lacks may only be the unused final norm of the tower."""
    import torch

    state = {k: torch.from_numpy(np.array(x, dtype=np.float32)) for k, x in arrays.items()}
    missing, unexpected = module.load_state_dict(state, strict=False)
    assert unexpected == []
    assert all(name.startswith("post_layernorm") for name in missing), missing
    return module.eval()


def siglip(params, config: VisionConfig):
    from transformers import SiglipVisionConfig, SiglipVisionModel

    model = SiglipVisionModel(
        SiglipVisionConfig(
            hidden_size=config.width, intermediate_size=config.mlp_dim,
            num_hidden_layers=config.blocks_run, num_attention_heads=config.num_heads,
            image_size=config.image_size, patch_size=config.patch_size,
            vision_use_head=False, attn_implementation="eager",
        )
    )  # fmt: skip
    blocks, D = params["Transformer"]["encoderblock"], config.width
    arrays = {
        "embeddings.patch_embedding.weight": params["embedding"]["kernel"].transpose(3, 2, 0, 1),
        "embeddings.patch_embedding.bias": params["embedding"]["bias"],
        "embeddings.position_embedding.weight": params["pos_embedding"][0],
    }
    attention, mlp = blocks["MultiHeadDotProductAttention_0"], blocks["MlpBlock_0"]
    for i in range(config.blocks_run):
        at = f"encoder.layers.{i}."
        for theirs, norm in (("layer_norm1", "LayerNorm_0"), ("layer_norm2", "LayerNorm_1")):
            arrays[f"{at}{theirs}.weight"] = blocks[norm]["scale"][i]
            arrays[f"{at}{theirs}.bias"] = blocks[norm]["bias"][i]
        for theirs, ours in (("q_proj", "query"), ("k_proj", "key"), ("v_proj", "value")):
            arrays[f"{at}self_attn.{theirs}.weight"] = attention[ours]["kernel"][i].reshape(D, D).T
            arrays[f"{at}self_attn.{theirs}.bias"] = attention[ours]["bias"][i].reshape(D)
        arrays[f"{at}self_attn.out_proj.weight"] = attention["out"]["kernel"][i].reshape(D, D).T
        arrays[f"{at}self_attn.out_proj.bias"] = attention["out"]["bias"][i]
        for theirs, ours in (("fc1", "Dense_0"), ("fc2", "Dense_1")):
            arrays[f"{at}mlp.{theirs}.weight"] = mlp[ours]["kernel"][i].T
            arrays[f"{at}mlp.{theirs}.bias"] = mlp[ours]["bias"][i]
    return load(model, arrays)


def llama(params, config: LlamaConfig):
    import transformers

    rope = dict(rope_type="default", rope_theta=config.rope_theta)
    if (s := config.rope_scaling) is not None:
        rope |= dict(
            rope_type="llama3", factor=s.factor, low_freq_factor=s.low_freq_factor,
            high_freq_factor=s.high_freq_factor,
            original_max_position_embeddings=s.original_max_position,
        )  # fmt: skip
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=config.vocab, hidden_size=config.width, intermediate_size=config.mlp_dim,
            num_hidden_layers=config.depth, num_attention_heads=config.num_heads,
            num_key_value_heads=config.num_kv_heads, head_dim=config.head_dim,
            tie_word_embeddings=config.tie_embeddings, rms_norm_eps=config.norm_eps,
            max_position_embeddings=4096, rope_parameters=rope, attn_implementation="eager",
            bos_token_id=0, eos_token_id=1,
        )
    )  # fmt: skip
    layers, D = params["layers"], config.width
    embedding = params["embed"]["embedding"]
    head = embedding if config.tie_embeddings else params["lm_head"]["kernel"].T
    arrays = {
        "model.embed_tokens.weight": embedding,
        "model.norm.weight": params["norm"]["scale"],
        "lm_head.weight": head,
    }
    for i in range(config.depth):
        at = f"model.layers.{i}."
        arrays[f"{at}input_layernorm.weight"] = layers["attn_norm"]["scale"][i]
        arrays[f"{at}post_attention_layernorm.weight"] = layers["mlp_norm"]["scale"][i]
        for name in "qkv":
            kernel = layers["attn"][name]["kernel"][i]
            arrays[f"{at}self_attn.{name}_proj.weight"] = kernel.reshape(D, -1).T
        arrays[f"{at}self_attn.o_proj.weight"] = layers["attn"]["o"]["kernel"][i].reshape(-1, D).T
        for name in ("gate", "up", "down"):
            arrays[f"{at}mlp.{name}_proj.weight"] = layers["mlp"][name]["kernel"][i].T
    return load(model, arrays)


def mlp2x_gelu(params):
    """LLaVA's projector."""
    from torch import nn

    fc1, fc2 = params["fc1"], params["fc2"]
    (d_in, width), d_out = fc1["kernel"].shape, fc2["kernel"].shape[1]
    model = nn.Sequential(nn.Linear(d_in, width), nn.GELU(), nn.Linear(width, d_out))
    arrays = {"0.weight": fc1["kernel"].T, "0.bias": fc1["bias"]}
    return load(model, arrays | {"2.weight": fc2["kernel"].T, "2.bias": fc2["bias"]})


def interpolate(x_BPD, side):
    """torch [B, g², D] → [B, side², D] as LLaVA-NeXT pools."""
    import torch.nn.functional as F

    B, P, D = x_BPD.shape
    grid = round(P**0.5)
    x = x_BPD.reshape(B, grid, grid, D).permute(0, 3, 1, 2)
    x = F.interpolate(x, (side, side), mode="bilinear", align_corners=False, antialias=False)
    return x.permute(0, 2, 3, 1).reshape(B, side * side, D)


def run_siglip(params, config, pixels_BHWC):
    """Output of the last block that is run, before the final norm."""
    import torch

    tower = siglip(params, config)
    pixels = torch.from_numpy(pixels_BHWC).permute(0, 3, 1, 2)
    return tower(pixels, output_hidden_states=True).hidden_states[-1]


@pytest.mark.parametrize("feature_layer", [-2, -1])
def test_sovit_is_siglip(feature_layer):
    config = dataclasses.replace(VISION, feature_layer=feature_layer)
    pixels = np.random.default_rng(0).uniform(-1, 1, (2, 18, 18, 3)).astype(np.float32)
    model = SoViT(config, jnp.float32)
    params = varied(model.init(jax.random.key(0), pixels)["params"])
    ours = model.apply({"params": params}, pixels)
    assert_close(ours, run_siglip(params, config, pixels))


SCALINGS = {
    "plain": None,
    # A short original length, so that within 40 tokens all three branches of the rule matter.
    "factor 8": RopeScaling(8.0, original_max_position=64),
    "factor 32": RopeScaling(32.0, original_max_position=64),
}


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
@pytest.mark.parametrize("scaling", SCALINGS)
def test_llama_is_llama(scaling, tied):
    import torch

    config = dataclasses.replace(LLAMA, rope_scaling=SCALINGS[scaling], tie_embeddings=tied)
    tokens = np.random.default_rng(1).integers(0, config.vocab, (2, 40), dtype=np.int32)
    model = Llama(config, jnp.float32)

    def logits(llm, tokens_BL):
        return llm.logits(llm(llm.embed(tokens_BL))[0])

    params = varied(model.init(jax.random.key(0), tokens, method=logits)["params"])
    ours = model.apply({"params": params}, tokens, method=logits)
    theirs = llama(params, config)(torch.from_numpy(tokens).long()).logits
    assert_close(ours, theirs)


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
    loss_sum, weight_sum = answer_loss(logits, ids, weight, weighting)
    labels = torch.from_numpy(np.where(weight > 0, ids, -100)).long()
    rows = [F.cross_entropy(torch.from_numpy(x), y) for x, y in zip(logits, labels, strict=True)]
    everything = F.cross_entropy(torch.from_numpy(logits).flatten(0, 1), labels.flatten())
    assert_close(loss_sum / weight_sum, torch.stack(rows).mean() if weighting == "sample" else
                 everything)  # fmt: skip


def test_the_whole_model_from_pixels_to_loss():
    import torch

    rng = np.random.default_rng(4)
    T, side = 3, 2
    model = VLM(VISION, LLAMA, side**2, VIDEO, jnp.float32)
    params = varied(init(model, jax.random.key(0)), 5)
    frames = rng.integers(0, 256, (2, T, 18, 18, 3), dtype=np.uint8)
    tokens = rng.integers(8, LLAMA.vocab, (2, 24), dtype=np.int32)
    starts = (2, 5)
    for row, start in enumerate(starts):
        tokens[row, start : start + T * side**2] = VIDEO
    positions = np.array([[18, 19, 20], [19, 20, 22]])
    targets = np.take_along_axis(tokens, positions + 1, axis=1)
    logits = model.apply({"params": params}, tokens, frames, positions, method="target_logits")
    loss_sum, weight_sum = answer_loss(logits, targets, np.ones((2, 3), np.float32), "token")

    pixels = (frames.reshape(2 * T, 18, 18, 3).astype(np.float32) / 255 - 0.5) / 0.5
    features = mlp2x_gelu(params["projector"])(run_siglip(params["vision"], VISION, pixels))
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
    assert_close(loss_sum / weight_sum, theirs.loss)
