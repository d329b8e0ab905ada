"""Two processes on loopback train as one does with two devices, and stop together."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from tools.train import STOPPED
from vvlm_jax.config import to_json
from vvlm_jax.train.model_dir import load_model

ROOT = Path(__file__).parents[3]
CONFIG = """
from pathlib import Path
from vvlm_jax.config import TrainConfig, from_json

def config():
    return from_json(TrainConfig, Path(__file__).with_suffix(".json").read_text())
"""

pytestmark = pytest.mark.slow(reason="starts two trainers several times")


def command(config, *flags):
    file = Path(config.out_dir).with_suffix(".py")
    file.write_text(CONFIG)
    file.with_suffix(".json").write_text(to_json(config))
    return [sys.executable, "-m", "tools.train", "--config", str(file), *flags]


def start(config, devices=1, *flags):
    # "Two processes" are then told from one by what they print, so nothing else may.
    env = {
        **os.environ,
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "JAX_CPU_ENABLE_ASYNC_DISPATCH": "false",
    }
    return subprocess.Popen(
        command(config, *flags), cwd=ROOT, env=env, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def start_both(config):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        where = f"127.0.0.1:{s.getsockname()[1]}"
    flags = ("--coordinator", where, "--processes", "2", "--process")
    return [start(config, 1, *flags, str(i)) for i in range(2)]


def end(processes, code=0):
    for process in processes:
        _, err = process.communicate(timeout=300)
        assert process.returncode == code, err


def steps(config):
    file = Path(config.out_dir) / "metrics.jsonl"
    return [json.loads(line)["step"] for line in file.read_text().splitlines()]


def params(config):
    flat = flatten_dict(load_model(config.out_dir)[1], sep="/")
    return {path: np.asarray(x) for path, x in flat.items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("hosts")


@pytest.fixture(scope="module")
def one(stage, folder):
    """The run of one process that has both devices."""
    config = stage(folder / "one", epochs=4, checkpoint_every=5)
    end([start(config, 2)])
    return config


def assert_near(a, b):
    a, b = params(a), params(b)
    assert a.keys() == b.keys()
    for path, x in a.items():
        np.testing.assert_allclose(x, b[path], rtol=1e-3, atol=1e-5, err_msg=path)


def test_two_hosts_train_as_one(stage, folder, one):
    two = stage(folder / "two", epochs=4, checkpoint_every=5)
    end(start_both(two))
    assert steps(two) == steps(one) == list(range(1, 25))  # one of them writes
    assert_near(two, one)


def test_a_sigterm_to_one_host_stops_both_at_one_step(stage, folder, one):
    config = stage(folder / "stopped", epochs=4, checkpoint_every=0)
    both = start_both(config)
    metrics = Path(config.out_dir) / "metrics.jsonl"
    until = time.monotonic() + 200
    while not metrics.exists() or len(metrics.read_text().splitlines()) < 3:
        assert time.monotonic() < until
        assert both[0].poll() is None, both[0].communicate()
        time.sleep(0.02)
    both[1].send_signal(signal.SIGTERM)
    end(both, STOPPED)
    saved = [int(p.name) for p in (Path(config.out_dir) / "checkpoints").iterdir()]
    assert saved == [steps(config)[-1]]  # nothing that was done is lost
    assert 3 <= saved[0] < 24
    end(start_both(config))
    assert steps(config) == list(range(1, 25))
    assert_near(config, one)
