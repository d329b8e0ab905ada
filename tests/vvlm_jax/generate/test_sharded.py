"""The engine on 1, 2 and 8 simulated devices, in a process of its own: this very file."""

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, NamedSharding, PartitionSpec

from tests.processes import FAST_TO_COMPILE
from vvlm_jax.config import LlamaConfig, VisionConfig
from vvlm_jax.eval import runner
from vvlm_jax.generate.generate import programs
from vvlm_jax.generate.placement import cache_sharding, laid_apart
from vvlm_jax.generate.video_vlm import VideoVLM
from vvlm_jax.models import vlm as vlm_module
from vvlm_jax.models.llama import unstack_layers
from vvlm_jax.models.vlm import VLM
from vvlm_jax.sharding import AXES, BATCH, make_mesh, param_shardings
from vvlm_jax.train.model_dir import load_params, open_model

ROOT = Path(__file__).parents[3]
CLIP = ROOT / "tests" / "testdata" / "videos" / "h264_one_gop.mp4"
TEXTS = [f"{'x' * n}?" for n in (1, 9, 4, 30, 2)]


def answers(folder, num_devices):
    """Return replies, likelihoods, and where parameters and cache are on the devices."""
    vlm = VideoVLM.load(folder, jax.devices()[:num_devices])
    replies = vlm.generate(CLIP, TEXTS, max_tokens=20)
    likely = vlm.loglikelihoods(CLIP, TEXTS, [["A", "B"]] * len(TEXTS))
    said = {
        "replies": replies,
        "likely": [[x.logprob for x in row] for row in likely],
        "evaluated": evaluated(vlm),
        "bytes": [sum(x.nbytes for x in jax.tree.leaves(vlm.params)), bytes_on_devices(vlm.params)],
        "streamed": ["" for _ in TEXTS],
    }
    for index, piece in vlm.generate(CLIP, TEXTS, max_tokens=20, stream=True):
        said["streamed"][index] += piece
    if num_devices < 8:
        return said
    run = programs(vlm.model, vlm.tokenizer.stop_ids, vlm.mesh)
    rows, _ = vlm._rows(CLIP, TEXTS, None, None, 20)
    prompts = vlm._prompts(rows, 8)
    visual = vlm._on_rows(np.zeros((8, 12, 24), np.float32))
    replies = run.begin(vlm.params, prompts.tokens_BL, prompts.lengths_B, visual, 32)
    begun = replies.cache.k_BKSH[0].sharding.spec
    program = run.go_on.lower(vlm.params, replies, np.int32(20)).compile().as_text()
    replies = run.go_on(vlm.params, replies, np.int32(20))
    last = replies.cache.k_BKSH[-1]
    shards = last.addressable_shards
    up = vlm.params["llm"]["layers_1"]["mlp"]["up"]["kernel"]
    return said | {
        "mesh": dict(vlm.mesh.shape),
        "begun": str(begun),
        "cache": last.shape,
        "shard": shards[0].data.shape,
        "devices": len(shards),
        "up": [up.shape, up.addressable_shards[0].data.shape],
        "gathered": re.findall(r"= (\S+) all-gather\(", program),
    }


def evaluated(vlm):
    """Return [reply, log-probabilities of the letters] of each text as a question of a file."""
    questions = [
        dict(id=f"{i}", task="t", video=CLIP.name, question="?", prompt=text, answer="A",
             options=["x", "y"])
        for i, text in enumerate(TEXTS)
    ]  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "predictions.jsonl"
        runner.evaluate(
            vlm, questions, file, media_root=CLIP.parent, max_new_tokens=20, likelihood=True,
            prompts_per_batch=5,
        )  # fmt: skip
        found = runner.read_predictions(file)
    return [[found[q["id"]]["reply"], list(found[q["id"]]["logprobs"].values())] for q in questions]


def bytes_on_devices(params):
    """Return the bytes of the parameters' shards, device by device."""
    held = {}
    for x in jax.tree.leaves(params):
        for shard in x.addressable_shards:
            held[shard.device.id] = held.get(shard.device.id, 0) + shard.data.nbytes
    return sorted(held.values())


def on_2x2x2(folder):
    """Return replies where rows, weights and heads are all sharded, and kernels for 8 TPUs."""
    model, tok, config = open_model(folder)
    params = load_params(folder)
    mesh = make_mesh(tuple((axis, 2) for axis in AXES[1:]))
    params = jax.device_put(params, param_shardings(params, mesh))
    vlm = VideoVLM(model, laid_apart(params), tok, config, mesh)
    down = vlm.params["llm"]["layers_1"]["mlp"]["down"]["kernel"]
    return {
        "replies": vlm.generate(CLIP, TEXTS, max_tokens=20),
        "down": [down.shape, down.addressable_shards[0].data.shape],
        "kernels": kernels_for_tpus(mesh),
    }


def kernels_for_tpus(mesh):
    """Return the types of the queries that a TPU's attention kernels take, in bfloat16."""
    vision = VisionConfig(width=16, depth=2, mlp_dim=24, num_heads=2, patch_size=4, image_size=64)
    llama = LlamaConfig(
        vocab=40, width=32, depth=2, mlp_dim=40, num_heads=4, num_kv_heads=2, head_dim=16,
        tie_embeddings=True,
    )  # fmt: skip
    model = VLM(vision, llama, 4, 5, jnp.bfloat16)
    shapes = vlm_module.shapes(model)
    params = jax.tree.map(
        lambda x, at: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at),
        shapes,
        param_shardings(shapes, mesh),
    )
    params |= {"llm": jax.eval_shape(unstack_layers, params["llm"])}
    run, rows = programs(model, (0,), mesh), NamedSharding(mesh, BATCH)

    def array(dtype, *shape):
        return jax.ShapeDtypeStruct(shape, dtype, sharding=rows)

    traced = {
        "encode": run.encode.trace(params, array("uint8", 8, 2, 64, 64, 3)),
        "prefill": run.begin.trace(
            params, array("int32", 8, 300), array("int32", 8), array("bfloat16", 8, 8, 32), 4
        ),
    }
    lowered = {k: x.lower(lowering_platforms=("tpu",)).as_text() for k, x in traced.items()}
    call = re.compile(r"@tpu_custom_call\(.*?tensor<(\S+)xbf16>")
    return {k: call.findall(text) for k, text in lowered.items()}


@pytest.fixture(scope="module")
def run(model_folder):
    environ = os.environ | {"PYTHONPATH": str(ROOT), "JAX_NUM_CPU_DEVICES": "8"}
    environ["XLA_FLAGS"] = FAST_TO_COMPILE
    command = [sys.executable, __file__, str(model_folder)]
    done = subprocess.run(command, env=environ, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def test_a_mesh_answers_as_one_device_does(run):
    one, two, many, _ = run
    assert len(set(one["replies"])) == len(TEXTS)
    for found in (one, two, many):
        assert found["replies"] == found["streamed"] == one["replies"]


def test_evaluation_answers_as_generation_does_on_any_number_of_devices(run):
    one = run[0]
    for found in run[:3]:
        replies, letters = zip(*found["evaluated"], strict=True)
        assert list(replies) == found["replies"]
        np.testing.assert_allclose(letters, found["likely"], atol=2e-4)
        np.testing.assert_allclose(found["likely"], one["likely"], atol=2e-4)


def test_every_device_holds_its_share_of_the_parameters(run):
    """Two key-value heads: matrices are halved over `tensor`, vectors are on every device."""
    (whole, [alone]), (_, two), (_, eight) = (found["bytes"] for found in run[:3])
    assert alone == whole
    assert (len(two), len(eight)) == (2, 8)
    assert set(two) == set(eight)
    assert len(set(two)) == 1
    assert 0.5 <= two[0] / whole < 0.7


def test_model_and_cache_are_shared_out(run):
    many = run[2]
    assert many["mesh"] == {"replica": 1, "data": 4, "fsdp": 1, "tensor": 2}
    (width, hidden), shard = many["up"]
    assert shard == [width, hidden // 2]
    batch, heads, length, size = many["cache"]
    assert many["shard"] == [batch // 4, heads // 2, length, size]
    assert many["devices"] == 8


def test_a_step_moves_no_cache_between_devices(run):
    length = run[2]["cache"][2]
    assert not [shape for shape in run[2]["gathered"] if f",{length}," in shape]


def test_rows_weights_and_heads_may_all_be_shared_out(run):
    one, *_, cube = run
    assert cube["replies"] == one["replies"]
    (hidden, width), shard = cube["down"]
    assert shard == [hidden // 2, width // 2]


def test_each_tpu_runs_attention_on_its_rows_and_heads(run):
    """8 rows (and 16 frames) over 4, heads over 2; 300 positions are padded to 384."""
    kernels = run[3]["kernels"]
    assert kernels == {"prefill": ["2x2x384x16"], "encode": ["4x1x256x8"]}  # one, for all layers


@pytest.mark.parametrize(
    ("batch", "heads", "spec"),
    [
        (8, 4, (("replica", "data", "fsdp"), "tensor", None, None)),
        (6, 4, (None, "tensor", None, None)),
        (8, 3, (("replica", "data", "fsdp"), None, None, None)),
    ],
)
def test_what_does_not_divide_is_on_every_device(batch, heads, spec):
    mesh = AbstractMesh((1, 2, 2, 2), AXES)
    assert cache_sharding(mesh, batch, heads).spec == PartitionSpec(*spec)


if __name__ == "__main__":
    print(json.dumps([*(answers(sys.argv[1], n) for n in (1, 2, 8)), on_2x2x2(sys.argv[1])]))
