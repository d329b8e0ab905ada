"""Running the command, and what lies in the folders it writes."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from tools import convert
from vvlm_jax.config import VisionConfig
from vvlm_jax.train import model_dir
from vvlm_jax.weights import huggingface
from vvlm_jax.weights.mapping import tree_shapes

TOWER = VisionConfig(
    width=48, depth=3, mlp_dim=96, num_heads=3, patch_size=12, image_size=48, feature_layer=-1,
    head="map",
)  # fmt: skip
"""All of study/12."""


def random_params(model, parts, norm=False, head=False, dtype="float32"):
    entries = huggingface.entries(model, parts, huggingface.TOWER, norm, head)
    rng = np.random.default_rng(0)
    return {
        path: (0.1 * rng.standard_normal(shape)).astype(jnp.dtype(dtype))
        for path, shape in tree_shapes(entries).items()
    }


def run(*arguments, **options):
    src, dst = arguments
    convert.main(convert.Args(str(src), Path(dst), **options))


def params_of(folder):
    return flatten_dict(model_dir.load_params(folder), sep="/")


def same(found, expected):
    assert found.keys() == expected.keys()
    for path, x in expected.items():
        assert found[path].dtype == x.dtype
        np.testing.assert_array_equal(found[path], x, err_msg=path)
