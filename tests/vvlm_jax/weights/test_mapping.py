"""Rules as data: they name our whole tree, read both ways, and account for every tensor."""

import dataclasses

import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from vvlm_jax.config import ModelConfig
from vvlm_jax.models import vlm
from vvlm_jax.models.variants import LLAMA, VISION
from vvlm_jax.weights import big_vision, huggingface
from vvlm_jax.weights.mapping import (
    Info,
    Rule,
    WeightsError,
    account,
    expand,
    param_dtypes,
    tree_shapes,
)

PARTS = ("vision", "projector", "llm", "newline")


PAIRS = [("study/12", llm) for llm in LLAMA] + [(vision, "study-s") for vision in VISION]


@pytest.mark.parametrize(("vision", "llm"), PAIRS)
def test_the_rules_name_every_parameter_of_the_model_with_its_shape(vision, llm):
    config = ModelConfig(vision, llm, tokens_per_frame=4, newline="per-video")
    shapes = flatten_dict(vlm.shapes(vlm.build(config, 1, newline_id=2)), sep="/")
    sizes = dataclasses.replace(config, vision=VISION[vision], llm=LLAMA[llm])
    entries = huggingface.entries(sizes, PARTS, huggingface.ONEVISION, norm=False, head=False)
    assert tree_shapes(entries) == {path: x.shape for path, x in shapes.items()}


def test_so400m_has_the_parameters_of_the_table():
    """At 384 pixels it has 428,225,600 with the MAP head, 397,745,440 as LLaVA uses it."""
    tower = VISION["so400m/14-384"]
    whole = dataclasses.replace(tower, feature_layer=-1)

    def count(config, *more):
        shapes = tree_shapes(huggingface.vision_entries(config, "", *more))
        return sum(int(np.prod(shape)) for shape in shapes.values())

    assert count(whole, True, True) == 428_225_600
    assert count(whole, True, False) == 412_987_248
    assert count(tower, False, False) == 397_745_440


SMALL = VISION["study/12"]
ENTRIES = huggingface.vision_entries(
    dataclasses.replace(SMALL, feature_layer=-1), "vision_model.", True, True
)


@pytest.mark.parametrize("scan", [True, False], ids=["scan", "loop"])
def test_both_tables_of_the_tower_give_one_tree(scan):
    config = dataclasses.replace(SMALL, feature_layer=-1)
    theirs = big_vision.entries(config, "params/img/", scan, True, True)
    assert tree_shapes(theirs) == tree_shapes(ENTRIES)
    names = {e.theirs for e in theirs}
    block = "encoderblock" if scan else "encoderblock_2"
    assert f"params/img/Transformer/{block}/MlpBlock_0/Dense_0/kernel" in names
    assert len(names) == len(theirs)


@pytest.mark.parametrize(
    ("axes", "theirs", "ours"),
    [
        ("(N H) D -> D N H", "oi->io", (8, 2, 3)),
        ("D (N H) -> N H D", "oi->io", (2, 3, 8)),
        ("D C Y X -> Y X C D", "abcd->cdba", (4, 5, 3, 8)),
        ("P D -> 1 P D", "ab->ab", (1, 7, 8)),
        ("1 1 D -> 1 1 D", "abc->abc", (1, 1, 8)),
    ],
)
def test_axes_are_split_and_transposed(axes, theirs, ours):
    sizes = dict(N=2, H=3, D=8, C=3, Y=4, X=5, P=7)
    (entry,) = expand([Rule("x", "y", axes)], sizes, 1)
    x = np.random.default_rng(0).standard_normal(entry.their_shape)
    assert entry.our_shape == ours
    mine = np.einsum(theirs, x).reshape(ours)
    np.testing.assert_array_equal(entry.to_theirs(mine), x)
    # The way in, as stream does it.
    split = x.reshape(entry.split).transpose(entry.order).reshape(ours)
    np.testing.assert_array_equal(split, mine)


def good():
    return {e.theirs: Info("float32", e.their_shape) for e in ENTRIES}


def test_what_fits_passes_and_what_is_left_out_is_named():
    infos = good() | {"text_model.a": Info("int64", (3,)), "logit_scale": Info("float32", ())}
    skip = huggingface.SKIP["siglip"]
    assert account(ENTRIES, infos, skip, where="x") == ["logit_scale", "text_model.a"]


def test_everything_that_does_not_fit_is_listed():
    infos = good()
    del infos["vision_model.encoder.layers.1.mlp.fc1.bias"]
    infos["vision_model.encoder.layers.0.mlp.fc2.bias"] = Info("float32", (47,))
    infos["vision_model.head.probe"] = Info("float8_e4m3fn", (1, 1, 48))
    infos["vision_model.encoder.layers.3.mlp.fc2.bias"] = Info("float32", (48,))
    with pytest.raises(WeightsError) as raised:
        account(ENTRIES, infos, where="dir", duplicates=["vision_model.post_layernorm.bias"])
    first, *rest = str(raised.value).split("\n")
    assert first.startswith(
        "dir: tensors do not fit its config: 1 duplicate, 1 missing, 1 wrong shape, 1 wrong dtype, "
        "1 unmapped (duplicate: vision_model.post_layernorm.bias, …)"
    )
    assert sorted(line.strip() for line in rest) == [
        "duplicate: vision_model.post_layernorm.bias",
        "missing: vision_model.encoder.layers.1.mlp.fc1.bias [96]",
        "unmapped: vision_model.encoder.layers.3.mlp.fc2.bias [48]",
        "wrong dtype: vision_model.head.probe is float8_e4m3fn, not bfloat16, float16, float32",
        "wrong shape: vision_model.encoder.layers.0.mlp.fc2.bias is [47], not [48]",
    ]


def test_a_long_list_is_cut_and_counted():
    with pytest.raises(WeightsError) as raised:
        account(ENTRIES, {}, where="dir")
    lines = str(raised.value).split("\n")
    names = {e.theirs for e in ENTRIES}
    assert f"{len(names)} missing" in lines[0]
    assert len(lines) == 42
    assert lines[-1] == f"  … and {len(names) - 40} more"


def test_two_tensors_for_one_parameter_are_duplicates():
    entries = expand([Rule("a", "x"), Rule("b", "x")], {"D": 3}, 1)
    with pytest.raises(WeightsError, match=r"2 duplicate \(duplicate: a → x"):
        account(entries, {n: Info("float32", (3,)) for n in "ab"}, where="dir")


def test_a_parameter_keeps_the_dtype_that_holds_all_of_its_layers():
    entries = expand([Rule("{i}", "x"), Rule("y{i}", "y")], {"D": 3}, 2)
    dtypes = {"0": "bfloat16", "1": "float16", "y0": "float16", "y1": "float16"}
    infos = {name: Info(dtype, (3,)) for name, dtype in dtypes.items()}
    found = param_dtypes(entries, infos)
    assert {path: str(dtype) for path, dtype in found.items()} == {"x": "float32", "y": "float16"}
