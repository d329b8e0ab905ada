"""Meshes and sharding rules. Training steps run in a child process that simulates 8 devices, which
runs this file.
"""

import dataclasses
import functools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

from tests.processes import FAST_TO_COMPILE
from vvlm_jax.config import ConfigError, ModelConfig, OptimConfig, TrainConfig
from vvlm_jax.models import vlm
from vvlm_jax.models.variants import LLAMA, VISION
from vvlm_jax.sharding import (
    AXES,
    BATCH,
    RULES,
    check_batch,
    check_model,
    make_mesh,
    spec_for,
    split_microbatches,
)
from vvlm_jax.train import compiled
from vvlm_jax.types import Batch

ROOT = Path(__file__).parents[2]
ONE = (1, 1, 1, 1)
QUICK = (1, 2, 2, 2)
"""Sizes of replica, data, fsdp and tensor; the mesh that covers most."""
OTHERS = (
    *((1, 1, 2, 1), (1, 1, 1, 2)),
    *((1, 4, 1, 1), (1, 1, 4, 1), (1, 1, 2, 2)),
    *((1, 8, 1, 1), (1, 1, 8, 1), (1, 1, 4, 2), (1, 2, 4, 1), (2, 1, 2, 2), (2, 2, 2, 1)),
)
"""On 2, 4 and 8 devices, each axis alone (but replica, which is data by another name) and with
others.
"""
EVERY_MESH = pytest.mark.parametrize(
    "sizes",
    [
        QUICK,
        *(
            pytest.param(sizes, marks=pytest.mark.slow(reason="11 meshes compile a train step"))
            for sizes in OTHERS
        ),
    ],
)
CONFIG = TrainConfig(
    model=ModelConfig("study/12", "study-l", 2, 4, "float32", remat="none"),
    # A large eps keeps the step proportional to the gradient: no rounding error becomes a sign.
    optim=OptimConfig((("vision/.*", 1e-2), ("(projector|llm)/.*", 5e-2)), eps=0.1),
    batch_size=16,
)
STEPS = 2


def batch():
    rng = np.random.default_rng(0)
    tokens = rng.integers(10, 150, (16, 24), dtype=np.int32)
    tokens[:, 3:11] = 4
    positions = rng.integers(12, 23, (16, 3), dtype=np.int32)
    weight = (np.arange(3)[None] < rng.integers(1, 4, (16, 1))).astype(np.float32)
    targets = np.take_along_axis(tokens, positions + 1, axis=1)
    frames = rng.integers(0, 256, (16, 2, 48, 48, 3), dtype=np.uint8)
    return Batch(tokens, positions, targets, weight, frames)


def first_state(mesh):
    """Return the state before the first step, created on the mesh."""
    return compiled.initial_state(CONFIG, vlm.build(CONFIG.model, 4), mesh)


@functools.cache
def on_one():
    return jax.device_get(first_state(make_mesh((), jax.devices()[:1])))


def moved(mesh):
    """Return the same state, moved to the mesh and not compiled for it."""
    shardings = compiled.state_shardings(vlm.build(CONFIG.model, 4), CONFIG.optim, mesh)
    return jax.device_put(on_one(), shardings, may_alias=False)  # the step takes its buffers


def steps_on(sizes):
    """Train on a mesh; return metrics, final parameters, shards, and the number of compiles."""
    # Results must not depend on microbatches, chunks or remat either.
    microbatches, chunk, policy = (1, 0, "none") if sizes == ONE else (2, 1, "attention")
    mesh = make_mesh(tuple(zip(AXES, sizes, strict=True)), jax.devices()[: np.prod(sizes)])
    model = vlm.build(dataclasses.replace(CONFIG.model, remat=policy, frame_chunk=chunk), 4)
    state = first_state(mesh) if sizes in (ONE, QUICK) else moved(mesh)
    step = compiled.compiled_step(model, CONFIG.optim, mesh, microbatches, "token", 2 * chunk)
    on_mesh = jax.device_put(batch(), jax.sharding.NamedSharding(mesh, BATCH))
    metrics, born = [], jax.tree.map(lambda x: x.sharding, state)
    for i in range(STEPS):
        state, found = step(state, on_mesh, np.float32(1 - i / 4))
        metrics.append({k: float(v) for k, v in found.items()})
    stays = jax.tree.map(lambda x, s: x.sharding.is_equivalent_to(s, x.ndim), state, born)
    moments = state.opt_state[1].mu
    return {
        "metrics": metrics,
        "params": {path: np.asarray(x).tolist() for path, x in state.trainable.items()},
        "moments": {path: np.asarray(x).tolist() for path, x in moments.items()},
        "shares": {
            path: [x.addressable_shards[0].data.size / x.size for x in (leaf, moments[path])]
            for path, leaf in state.trainable.items()
        },
        "in_place": all(jax.tree.leaves(stays)),
        "compiled": step._cache_size(),
    }


def memory_on(devices):
    """Return the bytes of temporaries a device of an FSDP step dominated by activations."""
    mesh = make_mesh((("fsdp", devices),), jax.devices()[:devices])
    model = vlm.build(ModelConfig("study/12", "study-l", 16, 16, "float32", frame_chunk=4), 4)
    state = jax.tree.map(
        lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
        jax.eval_shape(lambda: compiled.initial_state(CONFIG, model, mesh)),
        compiled.state_shardings(model, CONFIG.optim, mesh),
    )
    rows = jax.sharding.NamedSharding(mesh, BATCH)
    small = batch()
    large = small._replace(
        tokens_BL=np.pad(small.tokens_BL, ((0, 0), (0, 256))),
        frames_BTHWC=np.tile(small.frames_BTHWC, (1, 8, 1, 1, 1)),
    )
    large = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=rows), large)
    step = compiled.compiled_step(model, CONFIG.optim, mesh, 2, "token", 2)
    program = step.lower(state, large, np.float32(1)).compile()
    return program.memory_analysis().temp_size_in_bytes


@functools.cache
def in_child(*words):
    """Run this file with 8 simulated devices; return the JSON that it prints."""
    environ = os.environ | {"PYTHONPATH": str(ROOT), "JAX_NUM_CPU_DEVICES": "8"}
    environ["XLA_FLAGS"] = FAST_TO_COMPILE
    command = [sys.executable, __file__, *words]
    done = subprocess.run(command, env=environ, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def run(sizes):
    """Return the result of `steps_on`; one process runs the quick meshes, one all others."""
    group = (ONE, QUICK) if sizes in (ONE, QUICK) else OTHERS
    return in_child("steps", json.dumps(group))[group.index(sizes)]


@EVERY_MESH
def test_training_on_a_mesh_equals_training_on_one_device(sizes):
    one, many = run(ONE), run(sizes)
    for step in range(STEPS):
        for name in ("loss", "grad_norm"):
            expected = one["metrics"][step][name]
            np.testing.assert_allclose(many["metrics"][step][name], expected, rtol=1e-5)
    assert one["metrics"][1]["loss"] < one["metrics"][0]["loss"] - 0.01  # it did learn
    for kind in ("moments", "params"):
        assert one[kind].keys() == many[kind].keys()
        for path, expected in one[kind].items():
            atol = 2e-5 * np.abs(expected).max() + 1e-8
            np.testing.assert_allclose(many[kind][path], expected, rtol=0, atol=atol, err_msg=path)


@EVERY_MESH
def test_parameters_are_sharded_with_their_moments(sizes):
    *_, fsdp, tensor = sizes
    shares = run(sizes)["shares"]
    for path, (of_param, of_moment) in shares.items():
        assert of_param == of_moment, path
    # Widths of study-l divide by 8; of study/12, whose 3 heads fit no tensor axis, as well.
    block = "vision/Transformer/encoderblock"
    for path in (
        "llm/embed/embedding",
        "llm/layers/attn/q/kernel",
        "llm/layers/mlp/up/kernel",
        "projector/fc1/kernel",
        f"{block}/MlpBlock_0/Dense_0/kernel",
    ):
        assert shares[path][0] == 1 / (fsdp * tensor), path
    assert shares["vision/embedding/kernel"][0] == 1 / fsdp
    assert shares[f"{block}/MultiHeadDotProductAttention_0/query/kernel"][0] == 1 / fsdp
    assert shares["llm/norm/scale"][0] == 1


@EVERY_MESH
def test_the_step_is_compiled_once_and_keeps_the_shardings(sizes):
    assert run(sizes)["compiled"] == 1
    assert run(sizes)["in_place"]


@pytest.mark.slow(reason="compiles two larger steps, to look at their memory")
def test_eight_devices_need_an_eighth_of_the_memory_for_activations():
    one, eight = in_child("memory")
    assert eight < one / 6


# The mesh.


def test_minus_one_takes_what_is_left():
    devices = list(range(12))
    mesh = make_mesh((("data", 2), ("fsdp", -1), ("tensor", 3)), devices)
    assert dict(mesh.shape) == {"replica": 1, "data": 2, "fsdp": 2, "tensor": 3}
    assert mesh.devices.tolist() == np.arange(12).reshape(1, 2, 2, 3).tolist()


def test_the_order_in_a_config_does_not_matter():
    mesh = make_mesh((("tensor", 3), ("data", 2), ("fsdp", -1)), list(range(12)))
    assert mesh == make_mesh((("data", 2), ("fsdp", -1), ("tensor", 3)), list(range(12)))


@pytest.mark.parametrize(
    "sizes", [(3, 1, 1), (3, -1, 1), (1, 16, 1), (-1, -1, 1), (0, -1, 1), (0, 1, 1), (-2, -4, 1)]
)
def test_a_mesh_that_does_not_fit_the_devices_is_refused_in_one_line(sizes):
    with pytest.raises(ConfigError) as raised:
        make_mesh(tuple(zip(AXES[1:], sizes, strict=True)), list(range(8)))
    message = str(raised.value)
    assert f"(data={sizes[0]}, fsdp={sizes[1]}, tensor={sizes[2]})" in message
    assert "8 devices" in message
    assert "\n" not in message


def test_axes_that_are_unknown_or_stand_twice_are_refused():
    with pytest.raises(ConfigError, match=r"^mesh: no axis 'tenser'; did you mean 'tensor'\?$"):
        make_mesh((("data", 1), ("fsdp", 8), ("tenser", 1)), list(range(8)))
    with pytest.raises(ConfigError, match=r"^mesh = .*: an axis stands twice$"):
        make_mesh((("data", 2), ("fsdp", 2), ("data", 2)), list(range(8)))


@dataclasses.dataclass(frozen=True)
class Device:
    """Device with the attributes that `make_mesh` reads."""

    id: int
    slice_index: int
    platform: str = "cpu"
    device_kind: str = "cpu"


@pytest.mark.parametrize("axis", ["replica", "data"])
def test_slices_are_spread_over_the_outermost_axis(axis):
    devices = [Device(i, i % 2) for i in range(8)]  # in no order
    mesh = make_mesh(((axis, 2), ("fsdp", -1), ("tensor", 2)), devices)
    first, second = mesh.devices.reshape(2, 4)
    assert [d.slice_index for d in first] == [0] * 4
    assert [d.slice_index for d in second] == [1] * 4
    with pytest.raises(ConfigError, match=r"^mesh \(fsdp=8\): the 2 slices must divide replica"):
        make_mesh((("fsdp", 8),), devices)


def test_a_batch_that_the_devices_cannot_share_is_refused():
    mesh = AbstractMesh((1, 2, 3, 4), AXES)
    check_batch(12, mesh)
    check_batch(24, mesh, microbatches=4)
    with pytest.raises(
        ConfigError,
        match=r"^batch_size = 8: must be divisible by replica × data × fsdp = 6 of the mesh$",
    ):
        check_batch(8, mesh)
    with pytest.raises(ConfigError, match=r"^batch_size = 24 / microbatches = 8: must be .* 6 of"):
        check_batch(24, mesh, microbatches=8)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((1, 1, 16), "tensor = 16 must divide the language model's key-value heads, 8"),
        ((1, 1, 5), "tensor = 5 must divide the language model's query heads, 32"),
        ((1, 6, 1), "fsdp = 6 must divide the language model's width, 4096"),
    ],
)
def test_an_axis_that_is_no_use_to_the_model_is_refused(sizes, message):
    check_model(LLAMA["llama3.1-8b"], AbstractMesh((3, 8, 8), AXES[1:]))
    with pytest.raises(ConfigError, match=f"^mesh: {message}$"):
        check_model(LLAMA["llama3.1-8b"], AbstractMesh(sizes, AXES[1:]))


def test_a_microbatch_takes_rows_from_every_device():
    rows = np.arange(16)[:, None]
    on_one = split_microbatches(rows, 4)
    assert on_one[..., 0].tolist() == np.arange(16).reshape(4, 4).tolist()
    mesh = AbstractMesh((2, 1), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)
    with jax.sharding.use_abstract_mesh(mesh):
        on_two = jax.eval_shape(lambda x: split_microbatches(x, 4), rows)
        assert on_two.shape == (4, 4, 1)


# The rules.


WHOLE = dataclasses.replace(VISION["so400m/14-384"], feature_layer=-1, head="map")


@functools.cache
def all_shapes(vision, llm, **options):
    model = vlm.build(ModelConfig(vision=vision, llm=llm, **options), video_id=0, newline_id=1)
    return flatten_dict(vlm.shapes(model), sep="/")


@pytest.mark.parametrize(
    ("vision", "llm"),
    [(v, "study-s") for v in (*VISION, WHOLE)] + [("study/12", m) for m in LLAMA],
)
def test_every_kernel_has_a_rule_of_its_own(vision, llm):
    *rules, (catch_all, nowhere) = RULES
    assert (catch_all, nowhere) == (".*", ())
    options = {} if vision is WHOLE else dict(resampler="quecc", quecc_layers=(1, 2))
    options["tokens_per_frame"] = 1
    for path, x in all_shapes(vision, llm, newline="grid", **options).items():
        ranks = [len(axes) for pattern, axes in rules if re.fullmatch(pattern, path)]
        assert len(ranks) == path.endswith(("kernel", "llm/embed/embedding")), path
        assert all(rank == x.ndim for rank in ranks), path


def test_every_rule_is_used():
    quecc = dict(resampler="quecc", quecc_layers=(1,), tokens_per_frame=81)
    paths = {*all_shapes("so400m/14-384", "llama3.1-8b", **quecc), *all_shapes(WHOLE, "study-s")}
    for pattern, _ in RULES:
        assert any(re.fullmatch(pattern, path) for path in paths), pattern


@pytest.mark.parametrize("vision", ["so400m/14-384", WHOLE], ids=["features", "pooled"])
@pytest.mark.parametrize("llm", ["llama3.2-1b", "llama3.2-3b", "llama3.1-8b"])
def test_a_large_mesh_splits_all_large_tensors(llm, vision):
    """On 8 × 8 devices each holds a 64th of every large tensor but for the encoder's heads."""
    mesh = AbstractMesh((1, 8, 8), AXES[1:])
    quecc = {} if vision is WHOLE else dict(
        resampler="quecc", quecc_layers=(14, 18, 25, 26), tokens_per_frame=81
    )  # fmt: skip
    for path, x in all_shapes(vision, llm, **quecc).items():
        if x.size > 1_000_000:
            axes = spec_for(path, x.shape, mesh)
            assert {"fsdp", "tensor"} <= set(axes), path


def test_an_axis_that_does_not_divide_is_left_out():
    mesh = AbstractMesh((1, 4, 2), AXES[1:])
    kernel = "llm/layers/attn/k/kernel"
    assert spec_for(kernel, (2, 64, 2, 16), mesh) == PartitionSpec(None, "fsdp", "tensor", None)
    assert spec_for(kernel, (2, 64, 1, 16), mesh) == PartitionSpec(None, "fsdp", None, None)
    assert spec_for(kernel, (2, 66, 2, 16), mesh) == PartitionSpec(None, None, "tensor", None)
    assert spec_for("llm/norm/scale", (64,), mesh) == PartitionSpec()


if __name__ == "__main__":
    if sys.argv[1] == "memory":
        print(json.dumps([memory_on(1), memory_on(8)]))
    else:
        print(json.dumps([steps_on(tuple(sizes)) for sizes in json.loads(sys.argv[2])]))
