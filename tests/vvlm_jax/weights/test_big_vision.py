"""big_vision's `.npz` in all of its layouts."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage
from flax.traverse_util import flatten_dict

from vvlm_jax.config import VisionConfig
from vvlm_jax.models.sovit import SoViT
from vvlm_jax.models.variants import VISION
from vvlm_jax.weights import big_vision, export, sources
from vvlm_jax.weights.mapping import WeightsError, tree_shapes

WHOLE = VisionConfig(
    width=32, depth=3, mlp_dim=48, num_heads=4, patch_size=4, image_size=20, feature_layer=-1,
    head="map",
)  # fmt: skip


@pytest.fixture(scope="module")
def params():
    """Return a whole random tower in our (scan) layout, {path: array}."""
    shapes = tree_shapes(big_vision.entries(WHOLE, "", True, True, True))
    rng = np.random.default_rng(0)
    return {k: rng.standard_normal(s).astype(np.float32) for k, s in shapes.items()}


def looped(params):
    """Return big_vision's loop layout, written out by hand."""
    arrays = {}
    for path, x in params.items():
        name, block = path.removeprefix("vision/"), "Transformer/encoderblock"
        if name.startswith(block):
            arrays |= {name.replace(block, f"{block}_{i}"): x[i] for i in range(len(x))}
        else:
            arrays[name] = x
    return arrays


def scanned(params):
    return {path.removeprefix("vision/"): x for path, x in params.items()}


def save(file, arrays, prefix="", **others):
    np.savez(file, **{prefix + name: x for name, x in arrays.items()}, **others)
    return file


def load(path, **options):
    source = sources.open_source(path, **options)
    return source, sources.load(source, sources.like(source))


@pytest.mark.light
@pytest.mark.parametrize("layout", [looped, scanned])
@pytest.mark.parametrize("prefix", ["params/img/", "img/", "params/", "", "opt/target/img/"])
def test_every_layout_gives_the_same_tower(params, tmp_path, layout, prefix):
    others = {"params/t": np.ones(1), "params/txt/head/kernel": A} if "params/img" in prefix else {}
    source, found = load(save(tmp_path / "x.npz", layout(params), prefix, **others))
    assert source.left_out == sorted(others)
    assert source.model.vision == WHOLE
    assert found.keys() == params.keys()
    for path, x in params.items():
        np.testing.assert_array_equal(found[path], x)


A = np.ones((2, 2), np.float32)


def test_a_subtree_can_be_named(params, tmp_path):
    file = save(tmp_path / "x.npz", looped(params), "params/image_tower/")
    with pytest.raises(WeightsError, match=r"x\.npz: no image tower .*name its subtree as"):
        sources.open_source(file)
    _, found = load(f"{file}:image_tower")
    assert found.keys() == params.keys()
    with pytest.raises(WeightsError, match=r"no image tower under 'img'"):
        sources.open_source(f"{file}:img")


def test_a_part_of_it_starts_a_model(params, tmp_path):
    """Layer −2 takes the first two blocks, no norm and no head, in the model's dtype."""
    file = save(tmp_path / "x.npz", looped(params), "params/img/")
    module = SoViT(dataclasses.replace(WHOLE, feature_layer=-2, head="none"))
    like = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 20, 20, 3)))["params"]
    found = flatten_dict(sources.load_part(file, "vision", like), sep="/")
    assert found.keys() == flatten_dict(like, sep="/").keys()
    for path, x in found.items():
        whole = params[f"vision/{path}"]
        np.testing.assert_array_equal(x, whole[:2] if "encoderblock" in path else whole)
    with pytest.raises(WeightsError, match="holds vision, and no llm"):
        sources.load_part(file, "llm", like)
    wide = jax.tree.map(lambda x: jax.ShapeDtypeStruct((*x.shape[:-1], 99), x.dtype), like)
    with pytest.raises(WeightsError, match=r"tensors do not fit this model: \d+ wrong shape"):
        sources.load_part(file, "vision", wide)


@pytest.mark.parametrize(("old", "new"), [(27, 16), (16, 27), (5, 7), (7, 3), (3, 1), (1, 3)])
def test_positions_are_resampled_as_big_vision_does(old, new):
    """big_vision's resample_posemb calls scipy.ndimage.zoom(order=1)."""
    x = np.random.default_rng(0).standard_normal((1, old * old, 6)).astype(np.float32)
    zoom = (new / old, new / old, 1)
    expected = scipy.ndimage.zoom(x.reshape(old, old, 6), zoom, order=1).reshape(1, new * new, 6)
    np.testing.assert_allclose(big_vision.resample_posemb(x, new), expected, atol=1e-6)


def test_another_resolution(params, tmp_path):
    file = save(tmp_path / "x.npz", scanned(params))
    source, found = load(file, image_size=30)
    assert source.model.vision == dataclasses.replace(WHOLE, image_size=30)
    expected = big_vision.resample_posemb(params["vision/pos_embedding"], 7)
    np.testing.assert_array_equal(found["vision/pos_embedding"], expected)
    kernel = "vision/embedding/kernel"
    np.testing.assert_array_equal(found[kernel], params[kernel])
    # A model of another size takes it too.
    module = SoViT(dataclasses.replace(WHOLE, image_size=30, head="none"))
    like = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, 30, 30, 3)))["params"]
    again = sources.load_part(file, "vision", like)
    np.testing.assert_array_equal(again["pos_embedding"], expected)


def test_bfloat16(params, tmp_path):
    halved = {k: x.astype(jnp.bfloat16) for k, x in looped(params).items()}
    _, found = load(save(tmp_path / "x.npz", halved))
    assert {str(x.dtype) for x in found.values()} == {"bfloat16"}
    name = "vision/Transformer/encoderblock/MlpBlock_0/Dense_1/kernel"
    np.testing.assert_array_equal(found[name], params[name].astype(jnp.bfloat16))


def test_the_known_tower_has_384_pixels_and_not_378():
    config = dataclasses.replace(VISION["so400m/14-384"], image_size=378)
    assert big_vision._known_size(config) == 384
    assert big_vision._known_size(WHOLE) == 20


def test_every_name_is_accounted_for(params, tmp_path):
    arrays = looped(params)
    del arrays["MAPHead_0/LayerNorm_0/bias"]
    arrays["head/kernel"] = A
    with pytest.raises(WeightsError) as raised:
        sources.open_source(save(tmp_path / "x.npz", arrays))
    assert "1 missing, 1 unmapped" in str(raised.value)
    assert "unmapped: head/kernel [2, 2]" in str(raised.value)


def test_it_goes_back_out(params, tmp_path):
    source, found = load(save(tmp_path / "x.npz", scanned(params)))
    export.write_big_vision(tmp_path / "y.npz", found, source.model)
    with np.load(tmp_path / "y.npz") as there:
        expected = {f"params/img/{name}": x for name, x in looped(params).items()}
        assert set(there.files) == expected.keys()
        for name, x in expected.items():
            np.testing.assert_array_equal(there[name], x)
    with pytest.raises(WeightsError, match="holds an image tower, not llm; add --part vision"):
        export.write_big_vision(tmp_path / "z.npz", found | {"llm/x": A}, source.model)
