"""The encoder: the blocks that are built, and their outputs compared with transformers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from tests.vvlm_jax.models.reference import assert_close, run_siglip, varied
from vvlm_jax.config import ConfigError, LlamaConfig, TrainConfig, VisionConfig
from vvlm_jax.config_check import validate
from vvlm_jax.models import variants, vlm
from vvlm_jax.models.sovit import SoViT

# 18 = 4 · 4 + 2 pixels: as with 384 = 27 · 14 + 6, the last ones are unused.
VISION = VisionConfig(width=32, depth=3, mlp_dim=48, num_heads=4, patch_size=4, image_size=18)
WHOLE = dataclasses.replace(VISION, feature_layer=-1, head="map")
LLAMA = LlamaConfig(
    vocab=32, width=24, depth=1, mlp_dim=40, num_heads=4, num_kv_heads=2, head_dim=8,
    tie_embeddings=True,
)  # fmt: skip


def pixels(batch=2, size=18):
    return np.random.default_rng(0).uniform(-1, 1, (batch, size, size, 3)).astype(np.float32)


def made(config):
    """Return (model, parameters with noise on all of them)."""
    model = SoViT(config, jnp.float32)
    init = jax.jit(model.init)
    return model, varied(init(jax.random.key(0), pixels())["params"])


@pytest.mark.torch
@pytest.mark.parametrize(
    ("layer", "block"),
    [
        *((-2, 2), (3, 3)),
        *(
            pytest.param(*case, marks=pytest.mark.slow(reason="compiles an encoder"))
            for case in ((-3, 1), (-1, 3), (1, 1), (2, 2))
        ),
    ],
)
def test_every_feature_layer_is_that_of_siglip(layer, block):
    model, params = made(dataclasses.replace(VISION, feature_layer=layer))
    hidden_states, _ = run_siglip(params, model.config, pixels())
    assert len(hidden_states) == block + 1  # embeddings, then the blocks that are built
    assert_close(model.apply({"params": params}, pixels()), hidden_states[-1])


@pytest.mark.torch
def test_the_pooling_head_is_that_of_siglip():
    model, params = made(WHOLE)
    (pooled, kept), state = model.apply(
        {"params": params}, pixels(), (1, 3, 2), capture_intermediates=True
    )
    hidden_states, out = run_siglip(params, WHOLE, pixels())
    assert pooled.shape == (2, 1, 32)
    assert_close(pooled[:, 0], out.pooler_output)
    for layer, x_BPD in zip((1, 3, 2), kept, strict=True):
        assert_close(x_BPD, hidden_states[layer])
    (encoded,) = state["intermediates"]["Transformer"]["encoder_norm"]["__call__"]
    assert_close(encoded, out.last_hidden_state)


@pytest.mark.light
def test_parameters_have_big_visions_names():
    """Names and shapes are those of big_vision's `vit.py` with scan and pool_type "map"."""
    config = dataclasses.replace(variants.VISION["so400m/14-384"], feature_layer=-1, head="map")
    frame = jax.ShapeDtypeStruct((1, 384, 384, 3), jnp.float32)
    shapes = jax.eval_shape(SoViT(config).init, jax.random.key(0), frame)["params"]
    found = {path: x.shape for path, x in flatten_dict(shapes, sep="/").items()}

    def block(at, lead=()):
        attention = f"{at}/MultiHeadDotProductAttention_0"
        each = {f"{attention}/{x}/kernel": (*lead, 1152, 16, 72) for x in ("query", "key", "value")}
        each |= {f"{attention}/{x}/bias": (*lead, 16, 72) for x in ("query", "key", "value")}
        return each | {
            f"{attention}/out/kernel": (*lead, 16, 72, 1152),
            f"{attention}/out/bias": (*lead, 1152),
            f"{at}/MlpBlock_0/Dense_0/kernel": (*lead, 1152, 4304),
            f"{at}/MlpBlock_0/Dense_0/bias": (*lead, 4304),
            f"{at}/MlpBlock_0/Dense_1/kernel": (*lead, 4304, 1152),
            f"{at}/MlpBlock_0/Dense_1/bias": (*lead, 1152),
            f"{at}/LayerNorm_0/scale": (*lead, 1152),
            f"{at}/LayerNorm_0/bias": (*lead, 1152),
        }

    blocks = "Transformer/encoderblock"
    expected = block("MAPHead_0") | block(blocks, (27,))
    expected |= {f"{blocks}/LayerNorm_1/{x}": (27, 1152) for x in ("scale", "bias")}
    expected |= {f"Transformer/encoder_norm/{x}": (1152,) for x in ("scale", "bias")}
    expected |= {
        "embedding/kernel": (14, 14, 3, 1152),
        "embedding/bias": (1152,),
        "pos_embedding": (1, 729, 1152),
        "MAPHead_0/probe": (1, 1, 1152),
    }
    assert found == expected


@pytest.mark.parametrize(
    "remat",
    [pytest.param("none", marks=pytest.mark.slow(reason="compiles several encoders")), "full"],
)
def test_outputs_of_several_blocks_are_those_of_shallower_towers(remat):
    model, params = made(dataclasses.replace(VISION, feature_layer=3))
    model = dataclasses.replace(model, remat=remat)
    x_BPD, kept = jax.jit(lambda p, x: model.apply({"params": p}, x, (2, 1)))(params, pixels())
    np.testing.assert_allclose(x_BPD, model.apply({"params": params}, pixels()), atol=1e-5)
    for layer, got in zip((2, 1), kept, strict=True):
        shallow = SoViT(dataclasses.replace(VISION, feature_layer=layer), jnp.float32)
        first = jax.tree.map(lambda x, n=layer: x[:n], params["Transformer"])
        cut = params | {"Transformer": first}
        np.testing.assert_allclose(got, shallow.apply({"params": cut}, pixels()), atol=1e-5)


@pytest.mark.slow(reason="compiles several encoders")
def test_with_the_head_a_frame_is_one_token():
    model = vlm.VLM(WHOLE, LLAMA, 1, 5, jnp.float32)
    params = jax.jit(vlm.init, static_argnums=0)(model, jax.random.key(0))
    frames = np.random.default_rng(0).integers(0, 256, (2, 3, 18, 18, 3), dtype=np.uint8)
    visual = model.apply({"params": params}, frames, method="encode")
    assert visual.shape == (2, 3, 24)
    alone = model.apply({"params": params}, frames[1:, 2:], method="encode")
    np.testing.assert_allclose(visual[1, 2], alone[0, 0], atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(feature_layer=0), "feature_layer = 0: must be from 1 to 3, or from -1 to -3"),
        (dict(feature_layer=4), "feature_layer = 4: must be from 1 to 3"),
        (dict(feature_layer=-4), "feature_layer = -4: must be from 1 to 3"),
        (dict(head="gap"), "head = 'gap': must be none or map"),
        (dict(head="map"), "feature_layer = -2: must be -1 with head = 'map'"),
    ],
)
def test_a_tower_that_cannot_be_built_is_refused(changes, message):
    with pytest.raises(ConfigError) as raised:
        validate(TrainConfig(), dataclasses.replace(VISION, **changes))
    assert str(raised.value).startswith(f"model.vision.{message}")


def test_behind_the_head_there_is_one_token_to_resample():
    with pytest.raises(ConfigError, match=r"^model\.tokens_per_frame = 196: .* from 1 to 1² = 1"):
        validate(TrainConfig(), WHOLE)


@pytest.mark.torch
@pytest.mark.slow(reason="428 million parameters, half a minute")
def test_so400m_at_full_size_is_siglip():
    """Run one 384 × 384 frame through all 27 blocks and the head in float32."""
    config = dataclasses.replace(variants.VISION["so400m/14-384"], feature_layer=-1, head="map")
    model, rng = SoViT(config, jnp.float32), np.random.default_rng(0)
    frame = pixels(1, 384)
    shapes = jax.eval_shape(model.init, jax.random.key(0), frame)["params"]

    def drawn(path, shape):
        x = rng.random(shape, dtype=np.float32)
        x -= 0.5
        if path.endswith("scale"):
            return 1 + 0.2 * x
        rows = 1152 if x.ndim >= 3 else 12  # so that products keep their size; biases below 0.3
        return np.multiply(x, np.float32((12 / rows) ** 0.5), out=x)

    flat = flatten_dict(shapes, sep="/")
    params = unflatten_dict({k: drawn(k, x.shape) for k, x in flat.items()}, sep="/")
    pooled, (x_BPD,) = jax.jit(lambda p, x: model.apply({"params": p}, x, (26,)))(params, frame)
    hidden_states, out = run_siglip(params, config, frame, assign=True)
    assert x_BPD.shape == (1, 729, 1152)
    assert_close(x_BPD, hidden_states[26])
    assert_close(pooled[:, 0], out.pooler_output)
