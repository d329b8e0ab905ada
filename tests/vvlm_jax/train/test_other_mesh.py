"""A run continues on other devices: a checkpoint of eight devices is restored on other meshes.

The devices are simulated in a child process, which runs this file.
"""

import contextlib
import json
import os
import subprocess
import sys
import zlib
from pathlib import Path

import jax
import numpy as np
import pytest

from tests.processes import FAST_TO_COMPILE
from vvlm_jax.config import TrainConfig
from vvlm_jax.models import vlm
from vvlm_jax.override import from_json, override, to_json
from vvlm_jax.sharding import AXES, make_mesh
from vvlm_jax.train import compiled, loop
from vvlm_jax.train.checkpoint import Checkpoints
from vvlm_jax.train.loop import Preempted, train

ROOT = Path(__file__).parents[3]
FROM = (1, 8, 1)
TO = ((1, 1, 8), (2, 2, 2), (1, 4, 1), (1, 1, 4), (1, 2, 1), (1, 1, 1))
"""data, fsdp, tensor: FSDP to tensor parallel; 8 devices to 4, 2 and 1."""


def child(devices, *args):
    """Run this file in a process with `devices` devices; return the JSON that it prints."""
    environ = os.environ | {"PYTHONPATH": str(ROOT), "JAX_NUM_CPU_DEVICES": str(devices)}
    environ["XLA_FLAGS"] = FAST_TO_COMPILE
    command = [sys.executable, __file__, *map(str, args)]
    done = subprocess.run(command, env=environ, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.fixture
def file(stage, tmp_path):
    """Write the config of a stage of six steps of eight examples; return the file."""
    config = stage(tmp_path / "run", "batch_size=8", "checkpoint_every=0", epochs=2)
    (tmp_path / "c.json").write_text(to_json(config))
    return tmp_path / "c.json"


# What comes back.


def test_all_leaves_are_restored_on_every_mesh(file, tmp_path):
    found = child(8, "restore", file, tmp_path / "saved")
    before = found.pop("before")
    assert len(found) == len(TO)
    for sizes, after in found.items():
        assert after["digests"] == before["digests"], sizes
        assert after["in_place"], sizes
    # Not all alike: most is split eight ways before, and as the new mesh says afterwards.
    assert before["share"] < 0.2
    assert found["(1, 1, 1)"]["share"] == 1
    assert found["(1, 4, 1)"]["share"] < 0.35


def restore(config, folder):
    model = vlm.build(config.model, 4)
    state = compiled.initial_state(config, model, mesh_of(FROM))
    rng = np.random.default_rng(0)
    # Moments are zeros at first, which would come back equal from anywhere.
    state = jax.tree.map(
        lambda x: jax.device_put(rng.integers(0, 99, x.shape).astype(x.dtype), x.sharding), state
    )
    saves = Checkpoints(folder, keep=1)
    saves.save(1, state, {})
    saves.wait()
    found = {"before": describe(state)}
    for sizes in TO:
        shardings = compiled.state_shardings(model, config.optim, mesh_of(sizes))
        like = jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, shardings
        )
        back = saves.restore(saves.latest(), like)
        ok = jax.tree.map(lambda x, s: x.sharding.is_equivalent_to(s, x.ndim), back, shardings)
        found[str(sizes)] = {**describe(back), "in_place": all(jax.tree.leaves(ok))}
    return found


def mesh_of(sizes):
    return make_mesh(tuple(zip(AXES[1:], sizes, strict=True)), jax.devices()[: np.prod(sizes)])


def describe(state):
    leaves = jax.tree.leaves(state)
    held = sum(x.addressable_shards[0].data.size for x in leaves)
    return {
        "digests": [zlib.crc32(np.asarray(x).tobytes()) for x in leaves],
        "share": held / sum(x.size for x in leaves),
    }


# What comes next.


@pytest.mark.slow(reason="compiles a train step three times")
def test_the_data_continue_where_they_stopped(file):
    """Compare three steps on two devices and three on one with six on one.

    Batches are equal, losses equal within rounding.
    """
    config = from_json(TrainConfig, file.read_text())
    first = child(2, "train", file, config.out_dir, 3)
    assert first["steps"] == [0, 1, 2]
    rest = child(1, "train", file, config.out_dir, 99)
    assert rest["steps"] == [3, 4, 5]
    whole = child(1, "train", file, f"{config.out_dir}-whole", 99)
    assert first["batches"] + rest["batches"] == whole["batches"]
    losses = first["losses"] + rest["losses"]
    np.testing.assert_allclose(losses, whole["losses"], rtol=1e-4)
    assert rest["losses"] != whole["losses"]


def steps(config, stop):
    """Train up to a step; return its steps, batches and losses."""
    seen = {"steps": [], "batches": [], "losses": []}
    original = loop.compiled_step

    def compiled_step(*args):
        step_fn = original(*args)

        def step(state, batch, share):
            seen["steps"].append(int(state.step))
            seen["batches"].append(describe(batch)["digests"])
            return step_fn(state, batch, share)

        return step

    loop.compiled_step = compiled_step
    with contextlib.suppress(Preempted):
        train(
            config,
            should_stop=lambda step: len(seen["steps"]) == stop,
            on_step=lambda step, total, metrics: seen["losses"].append(metrics["loss"]),
        )
    return seen


if __name__ == "__main__":
    kind, file, folder, *rest = sys.argv[1:]
    config = from_json(TrainConfig, Path(file).read_text())
    if kind == "restore":
        print(json.dumps(restore(config, folder)))
    else:
        print(json.dumps(steps(override(config, [f"out_dir={folder}"]), int(rest[0]))))
