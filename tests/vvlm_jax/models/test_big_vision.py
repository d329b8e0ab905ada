"""SoViT compared with big_vision's `vit.py`, from a checkout that BIG_VISION_PATH names.

big_vision is not on PyPI; without the variable these tests are skipped.
"""

import dataclasses
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from tests.vvlm_jax.models.reference import varied
from vvlm_jax.config import VisionConfig
from vvlm_jax.models.sovit import SoViT
from vvlm_jax.weights.big_vision import resample_posemb

VISION = VisionConfig(
    width=32, depth=3, mlp_dim=48, num_heads=4, patch_size=4, image_size=18,
    feature_layer=-1, head="map",
)  # fmt: skip


@pytest.fixture(scope="module")
def vit():
    """Import big_vision's vit.py, with empty modules in place of those that need TensorFlow."""
    root = os.environ.get("BIG_VISION_PATH")
    if not root:
        pytest.skip("set BIG_VISION_PATH to a checkout of google-research/big_vision")
    pytest.importorskip("scipy")
    empty = ("big_vision", "big_vision.utils", "big_vision.models", "big_vision.models.common")
    before = {name: sys.modules.get(name) for name in empty}
    for name in empty:
        sys.modules[name] = ModuleType(name)
        owner, _, attribute = name.rpartition(".")
        if owner:
            setattr(sys.modules[owner], attribute, sys.modules[name])
    try:
        file = Path(root) / "big_vision" / "models" / "vit.py"
        spec = importlib.util.spec_from_file_location("their_vit", file)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    finally:
        for name, there in before.items():
            sys.modules.pop(name) if there is None else sys.modules.__setitem__(name, there)
    return module


@pytest.fixture(scope="module")
def theirs(vit):
    """Return (big_vision's model, its parameters with noise, pixels)."""
    pixels = np.random.default_rng(0).uniform(-1, 1, (2, 18, 18, 3)).astype(np.float32)
    model = vit.Model(
        width=32, depth=3, mlp_dim=48, num_heads=4, patch_size=(4, 4), pool_type="map", scan=True
    )
    return model, varied(model.init(jax.random.key(0), pixels)["params"]), pixels


def test_names_and_shapes_are_theirs(theirs):
    _, params, pixels = theirs
    ours = jax.eval_shape(SoViT(VISION, jnp.float32).init, jax.random.key(0), pixels)["params"]
    assert jax.tree.map(jnp.shape, flatten_dict(ours)) == jax.tree.map(
        jnp.shape, flatten_dict(params)
    )


@pytest.mark.parametrize(("layer", "block"), [(-1, 2), (-2, 1), (-3, 0)])
def test_every_layer_gives_their_numbers(vit, theirs, layer, block):
    model, params, pixels = theirs
    loop = model.clone(scan=False)
    _, out = loop.apply({"params": vit.scan_to_pyloop(params)}, pixels)
    config = dataclasses.replace(VISION, feature_layer=layer, head="none")
    ours = SoViT(config, jnp.float32)
    first = jax.tree.map(lambda x: x[: config.blocks_run], params["Transformer"]["encoderblock"])
    x_BPD = ours.apply({"params": params | {"Transformer": {"encoderblock": first}}}, pixels)
    np.testing.assert_allclose(x_BPD, out["encoder"][f"block{block:02d}"]["+mlp"], atol=2e-5)


def test_the_pooling_head_gives_their_numbers(theirs):
    model, params, pixels = theirs
    _, out = model.apply({"params": params}, pixels)
    pooled = SoViT(VISION, jnp.float32).apply({"params": params}, pixels)
    np.testing.assert_allclose(np.squeeze(pooled), np.squeeze(out["head_input"]), atol=2e-5)


@pytest.mark.parametrize("grid", [3, 6, 9])
def test_position_embeddings_are_resized_as_theirs(vit, grid):
    old = np.random.default_rng(0).normal(size=(1, 36, 8)).astype(np.float32)
    new = np.zeros((1, grid * grid, 8), np.float32)
    np.testing.assert_allclose(resample_posemb(old, grid), vit.resample_posemb(old, new), atol=1e-5)
