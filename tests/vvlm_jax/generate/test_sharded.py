"""Generation on a mesh, in a process of its own that simulates 8 devices: this very file."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh, PartitionSpec

from vvlm_jax.generate.generate import cache_sharding, programs
from vvlm_jax.generate.video_vlm import VideoVLM
from vvlm_jax.sharding import AXES

ROOT = Path(__file__).parents[3]
CLIP = ROOT / "tests" / "testdata" / "videos" / "h264_one_gop.mp4"
TEXTS = [f"{'x' * n}?" for n in (1, 9, 4, 30, 2)]


def answers(folder, num_devices):
    """Replies, and how parameters and cache lie on the devices."""
    vlm = VideoVLM.load(folder, jax.devices()[:num_devices])
    replies = vlm.generate(CLIP, TEXTS, max_tokens=20)
    said = {"replies": replies, "streamed": ["" for _ in TEXTS]}
    for index, piece in vlm.generate(CLIP, TEXTS, max_tokens=20, stream=True):
        said["streamed"][index] += piece
    if vlm.mesh is None:
        return said
    run = programs(vlm.model, vlm.tokenizer.stop_ids, vlm.mesh)
    rows, _ = vlm._rows(CLIP, TEXTS, None, None, 20)
    prompts = vlm._prompts(rows, 8)
    visual = vlm._on_rows(np.zeros((8, 12, 24), np.float32))
    replies = run.begin(vlm.params, prompts.tokens_BL, prompts.lengths_B, visual, 32)
    begun = replies.cache.k_DBSKH.sharding.spec
    program = run.go_on.lower(vlm.params, replies, np.int32(20)).compile().as_text()
    replies = run.go_on(vlm.params, replies, np.int32(20))
    shards = replies.cache.k_DBSKH.addressable_shards
    up = vlm.params["llm"]["layers"]["mlp"]["up"]["kernel"]
    return said | {
        "mesh": dict(vlm.mesh.shape),
        "begun": str(begun),
        "cache": replies.cache.k_DBSKH.shape,
        "shard": shards[0].data.shape,
        "devices": len(shards),
        "up": [up.shape, up.addressable_shards[0].data.shape],
        "gathered": re.findall(r"= (\S+) all-gather\(", program),
    }


@pytest.fixture(scope="module")
def run(model_folder):
    environ = os.environ | {"PYTHONPATH": str(ROOT), "JAX_NUM_CPU_DEVICES": "8"}
    command = [sys.executable, __file__, str(model_folder)]
    done = subprocess.run(command, env=environ, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def test_a_mesh_answers_as_one_device_does(run):
    one, many = run
    assert len(set(one["replies"])) == len(TEXTS)
    assert many["replies"] == many["streamed"] == one["replies"] == one["streamed"]


def test_model_and_cache_are_shared_out(run):
    many = run[1]
    assert many["mesh"] == {"replica": 1, "data": 4, "fsdp": 1, "tensor": 2}
    (depth, width, hidden), shard = many["up"]
    assert shard == [depth, width, hidden // 2]
    depth, batch, length, heads, size = many["cache"]
    assert many["shard"] == [depth, batch // 4, length, heads // 2, size]
    assert many["devices"] == 8


def test_a_step_moves_no_cache_between_devices(run):
    length = run[1]["cache"][2]
    assert not [shape for shape in run[1]["gathered"] if f",{length}," in shape]


@pytest.mark.parametrize(
    ("batch", "heads", "spec"),
    [
        (8, 4, (None, ("data", "fsdp"), None, "tensor", None)),
        (6, 4, (None, None, None, "tensor", None)),
        (8, 3, (None, ("data", "fsdp"), None, None, None)),
    ],
)
def test_what_does_not_divide_is_on_every_device(batch, heads, spec):
    mesh = AbstractMesh((2, 2, 2), AXES[1:])
    assert cache_sharding(mesh, batch, heads).spec == PartitionSpec(*spec)


if __name__ == "__main__":
    print(json.dumps([answers(sys.argv[1], n) for n in (1, 8)]))
