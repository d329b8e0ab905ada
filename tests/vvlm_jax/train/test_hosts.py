"""Two processes on loopback train as one process with two devices does, and stop together.

Three of the clips are no videos; each host discovers those that it reads.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from tests.patience import LONG, free_port, wait_until
from tests.processes import FAST_TO_COMPILE
from vvlm_jax.exit_codes import Exit
from vvlm_jax.override import to_json
from vvlm_jax.train import manifest
from vvlm_jax.train.model_dir import load_params

ROOT = Path(__file__).parents[3]
CONFIG = """
from pathlib import Path
from vvlm_jax.config import TrainConfig
from vvlm_jax.override import from_json

def config():
    return from_json(TrainConfig, Path(__file__).with_suffix(".json").read_text())
"""

BAD = 3
STEPS = 36

pytestmark = pytest.mark.slow(reason="starts two trainers several times")


def command(config, *flags):
    file = Path(config.out_dir).with_suffix(".py")
    file.write_text(CONFIG)
    file.with_suffix(".json").write_text(to_json(config))
    return ["--config", str(file), *flags]


def start(config, devices=1, *flags, main=("-m", "tools.train")):
    # Standard error must hold nothing but the messages that the tests compare.
    env = {
        **os.environ,
        "XLA_FLAGS": f"{FAST_TO_COMPILE} --xla_force_host_platform_device_count={devices}",
        "JAX_CPU_ENABLE_ASYNC_DISPATCH": "false",
        "JAX_COMPILATION_CACHE_DIR": str(Path(config.out_dir).parent / "cache"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    return subprocess.Popen(
        [sys.executable, *main, *command(config, *flags)], cwd=ROOT, env=env, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def start_both(config, **options):
    flags = ("--coordinator", f"127.0.0.1:{free_port()}", "--processes", "2", "--process")
    return [start(config, 1, *flags, str(i), **options) for i in range(2)]


def end(processes, code=0):
    """Wait for processes, assert their exit code, and return their stderr."""
    errors = [process.communicate(timeout=LONG)[1] for process in processes]
    assert [process.returncode for process in processes] == [code] * len(processes), errors
    return errors


def lines(config):
    file = Path(config.out_dir) / "metrics.jsonl"
    return [json.loads(line) for line in file.read_text().splitlines()]


def steps(config):
    return [line["step"] for line in lines(config)]


def params(config):
    flat = flatten_dict(load_params(config.out_dir), sep="/")
    return {path: np.asarray(x) for path, x in flat.items()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("hosts")


@pytest.fixture(scope="module")
def clips(world, folder):
    """Return a copy of the clips in which three files are no videos, and the names of these."""
    shutil.copytree(world, folder / "world")
    names = [row["video"] for row in json.loads((world / "train.json").read_text())][:BAD]
    for name in names:
        (folder / "world" / name).write_bytes(b"not a video")
    return folder / "world", names


@pytest.fixture(scope="module")
def run_of(stage, folder, clips):
    """Return run_of(name, …), which returns a config of 36 steps on these clips."""

    def make(name, *options, media=clips[0], **values):
        where = (f"data.annotations={media}/train.json", f"data.media_root={media}")
        # With a small eps Adam makes steps of the rounding errors of keys' biases, which have no
        # gradient.
        more = ("data.max_unreadable=0.2", "optim.eps=1e-4", *options)
        return stage(folder / name, *where, *more, epochs=STEPS // 6, **values)

    return make


@pytest.fixture(scope="module")
def one(run_of):
    """Train in one process with two devices; return the config."""
    config = run_of("one", checkpoint_every=5)
    end([start(config, 2)])
    return config


def story(config, host):
    """Return the names of the unreadable files that a host has recorded."""
    file = Path(config.out_dir) / ("events-1.jsonl" if host else "events.jsonl")
    lines = map(json.loads, file.read_text().splitlines())
    return {line["file"] for line in lines if line["event"] == "unreadable"}


def assert_near(a, b):
    a, b = params(a), params(b)
    assert a.keys() == b.keys()
    for path, x in a.items():
        np.testing.assert_allclose(x, b[path], rtol=1e-3, atol=1e-5, err_msg=path)


def test_two_hosts_train_as_one(run_of, one, clips):
    two = run_of("two", checkpoint_every=5)
    end(start_both(two))
    assert steps(two) == steps(one) == list(range(1, STEPS + 1))  # one of them writes
    assert_near(two, one)
    # Both know in the end what either has found.
    summaries = [json.loads((Path(c.out_dir) / "summary.json").read_text()) for c in (one, two)]
    assert [len(summary["unreadable"]) for summary in summaries] == [BAD, BAD]
    assert lines(two)[-1]["unreadable"] == BAD
    assert story(two, 0) | story(two, 1) == set(clips[1])


SLOW = """
import itertools, runpy, sys, time
from vvlm_jax.train import loop

original = loop.compiled_step

def compiled_step(*args):
    step_fn, numbers = original(*args), itertools.count()

    def step(*args):
        if next(numbers) >= 7:
            time.sleep(1)  # the hosts hear of a signal a while later, and agree on a step to come
        return step_fn(*args)

    return step

loop.compiled_step = compiled_step
sys.argv[0] = "tools.train"
runpy.run_module("tools.train", run_name="__main__", alter_sys=True)
"""


def test_a_sigterm_to_one_host_stops_both_at_one_step_and_a_resume_goes_on_alike(
    run_of, folder, one, world, clips
):
    media = shutil.copytree(clips[0], folder / "media")
    config = run_of("stopped", media=media, checkpoint_every=0)
    both = start_both(config, main=("-c", SLOW))
    metrics = Path(config.out_dir) / "metrics.jsonl"

    def is_alive():
        assert both[0].poll() is None, both[0].communicate()
        return True

    wait_until(lambda: metrics.exists() and len(metrics.read_text().splitlines()) >= 7, is_alive)
    both[1].send_signal(signal.SIGTERM)
    end(both, Exit.RETRY)
    (saved,) = (Path(config.out_dir) / "checkpoints").iterdir()
    assert int(saved.name) == steps(config)[-1]  # nothing that was done is lost
    assert 7 <= int(saved.name) < STEPS
    # In an epoch either host has met a file: together they know all.
    ours, theirs = manifest.read(saved)["about"]["unreadable"]
    assert {*ours, *theirs} == set(clips[1])
    assert (ours.keys(), theirs.keys()) == (story(config, 0), story(config, 1))
    # Files that come back to life stay replaced where they failed.
    on_both = ours.keys() & theirs.keys()
    assert on_both
    for name in on_both:
        shutil.copy(world / name, media / name)
    end(start_both(config))
    assert steps(config) == list(range(1, STEPS + 1))
    assert lines(config)[-1]["unreadable"] == BAD
    assert_near(config, one)


DISK_IS_FULL = """
import runpy, sys
from vvlm_jax.train import manifest

def write(*_):
    raise OSError(28, "No space left on device")

manifest.write = write
sys.argv[0] = "tools.train"
runpy.run_module("tools.train", run_name="__main__", alter_sys=True)
"""


def test_a_save_that_fails_on_the_first_host_ends_both_by_the_next(run_of):
    config = run_of("full", checkpoint_every=5)
    for error in end(start_both(config, main=("-c", DISK_IS_FULL)), 2):
        (line,) = error.splitlines()
        assert line.endswith(
            "checkpoints: the checkpoint of step 5 could not be written: "
            "[Errno 28] No space left on device"
        )
    assert steps(config)[-1] == 10


A_WORKER_DIES = """
import runpy, sys
from vvlm_jax.data.media import FrameReader

read, names = FrameReader.video, []

def video(reader, name):
    names.append(name)
    if sys.argv[-1] == "1" and len(names) > 20:
        raise MemoryError("a worker died")
    return read(reader, name)

FrameReader.video = video
sys.argv[0] = "tools.train"
runpy.run_module("tools.train", run_name="__main__", alter_sys=True)
"""


def test_a_host_that_fails_alone_ends_the_other(run_of):
    first, second = start_both(run_of("alone"), main=("-c", A_WORKER_DIES))
    assert "MemoryError: a worker died" in second.communicate(timeout=LONG)[1]
    assert second.returncode == 1
    first.communicate(timeout=LONG)
    assert first.returncode != 0
