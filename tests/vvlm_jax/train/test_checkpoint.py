"""Checkpoints of a running stage: intact ones are restored, damaged ones skipped."""

import contextlib
import json
import os
import random
import re
import resource
import shutil
import subprocess
import sys
import threading
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.patience import LONG
from vvlm_jax.train import manifest
from vvlm_jax.train.checkpoint import CheckpointError, Checkpoints, load_params

ROOT = Path(__file__).parents[3]
# After a write that failed, orbax lets the others of the same save end without their event loop.
pytestmark = [
    pytest.mark.usefixtures("collected"),
    pytest.mark.filterwarnings(
        "ignore:Exception ignored in. None:pytest.PytestUnraisableExceptionWarning"
    ),
]


class State(NamedTuple):
    step: jax.Array
    params: dict
    moments: tuple


def state(step, size=20_000):
    """Return a state that differs by step, with bfloat16, integers and an empty part."""
    keys = jax.random.split(jax.random.key(step), 3)
    params = {"a/kernel": jax.random.normal(keys[0], (size // 100, 100)), "b": jnp.arange(7) + step}
    moments = ((), {"mu": jax.random.normal(keys[1], (size,), jnp.bfloat16)})
    return State(jnp.asarray(step, jnp.int32), params, moments)


def assert_equal(tree, other):
    assert jax.tree.structure(tree) == jax.tree.structure(other)
    for x, y in zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True):
        assert x.dtype == y.dtype
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


class Saves(Checkpoints):
    """Checkpoints that collect what they report."""

    def __init__(self, folder, keep=2, keep_every=0):
        self.reported = []
        super().__init__(folder, keep, keep_every, self.reported.append)


def save(saves, *steps, size=20_000):
    for step in steps:
        saves.save(step, state(step, size), {"position": step})
        saves.wait()  # as the next save does


def there(folder):
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit())


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """Return a folder with intact checkpoints 1 and 2."""
    folder = tmp_path_factory.mktemp("two") / "checkpoints"
    save(Saves(folder), 1, 2)
    return folder


@pytest.fixture
def copy(two, tmp_path):
    return shutil.copytree(two, tmp_path / "checkpoints")


# What comes back.


@pytest.mark.light
def test_a_state_is_restored_bit_by_bit(two):
    saves = Saves(two)
    found = saves.latest()
    assert (found.step, found.about["position"], saves.reported) == (2, 2, [])
    assert_equal(saves.restore(found, state(0)), state(2))


def test_an_empty_folder_has_no_latest_checkpoint(tmp_path):
    assert Saves(tmp_path / "none").latest() is None


def test_a_later_step_does_not_change_a_state_that_is_being_saved(tmp_path):
    """The next train step overwrites the donated buffers of the state being saved."""
    step = jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)
    now, saves = state(0, 2_000_000), Saves(tmp_path, keep=4)
    expected = []
    for i in range(4):
        expected.append(jax.tree.map(np.array, now))
        saves.save(i, now, {})
        now = step(now)
    saves.wait()
    for i in range(4):
        found = saves.latest()
        assert_equal(saves.restore(found._replace(step=i), state(0, 2_000_000)), expected[i])


def test_training_is_held_for_the_copy_alone(tmp_path, monkeypatch):
    goes_on, write = threading.Event(), manifest.write

    def slowly(*args):
        assert goes_on.wait(LONG)
        write(*args)

    monkeypatch.setattr(manifest, "write", slowly)
    saves = Saves(tmp_path)
    saves.save(1, state(1), {})  # comes back though the disk has not
    assert saves.latest() is None
    assert all("has no manifest.json, so its save was interrupted" in x for x in saves.reported)
    goes_on.set()
    saves.wait()
    assert saves.latest().step == 1


# Which stay.


def test_the_newest_and_the_milestones_stay(tmp_path):
    save(Saves(tmp_path, keep=2, keep_every=4), *range(1, 12))
    assert there(tmp_path) == [4, 8, 10, 11]


def test_the_one_before_stays_until_the_new_one_has_its_manifest(tmp_path, monkeypatch):
    saves, seen, write = Saves(tmp_path, keep=1), [], manifest.write
    monkeypatch.setattr(
        manifest, "write", lambda *args: (seen.append(there(tmp_path)), write(*args))
    )
    save(saves, 1, 2)
    assert seen == [[1], [1, 2]]
    assert there(tmp_path) == [2]


def test_steps_of_a_past_that_was_given_up_go_with_the_next_save(copy):
    (copy / "2" / "manifest.json").write_text("{}")
    saves = Saves(copy, keep=1)
    assert saves.latest().step == 1
    assert there(copy) == [1, 2]  # nothing goes before something better is there
    save(saves, 2)
    assert there(copy) == [2]
    assert_equal(saves.restore(saves.latest(), state(0)), state(2))


def test_what_a_killed_save_left_goes_with_the_next(copy):
    (copy / "3.orbax-checkpoint-tmp" / "d").mkdir(parents=True)
    (copy / "3").mkdir()
    saves = Saves(copy)
    assert saves.latest().step == 2
    save(saves, 3)
    assert sorted(p.name for p in copy.iterdir()) == ["2", "3"]
    assert saves.latest().step == 3


# Files that are not what they were.


def files(folder):
    return sorted(p for p in folder.rglob("*") if p.is_file())


def test_every_flipped_bit_is_found_or_does_no_harm(two, copy):
    rng, found_out = random.Random(0), 0
    everything = files(copy / "2")
    # Of each file some bytes, and of all of them together in proportion to their sizes.
    chosen = everything * 3 + rng.choices(everything, [p.stat().st_size for p in everything], k=40)
    for path in chosen:
        data = bytearray(path.read_bytes())
        if not data:
            continue
        at, bit = rng.randrange(len(data)), rng.randrange(8)
        data[at] ^= 1 << bit
        before = path.read_bytes()
        path.write_bytes(data)
        saves = Saves(copy)
        found = saves.latest()
        if found.step == 1:
            found_out += 1
            (line,) = saves.reported
            assert line.startswith("checkpoint 2 is skipped: ")
            assert "\n" not in line
            assert str(path) in line
        else:  # white space of the manifest
            assert path.name == "manifest.json"
            assert_equal(saves.restore(found, state(0)), state(2))
        path.write_bytes(before)
    assert found_out >= len(chosen) - 5
    assert Saves(copy).latest().step == 2


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (lambda p: p.unlink(), "is missing|has no manifest"),
        (lambda p: os.truncate(p, p.stat().st_size // 2), "has \\d+ bytes, not|is damaged"),
        (lambda p: p.write_bytes(p.read_bytes() + b"\0"), "has \\d+ bytes, not|is damaged"),
        (lambda p: p.write_bytes(b""), "has 0 bytes, not|is damaged"),
    ],
    ids=["missing", "truncated", "longer", "empty"],
)
def test_a_file_that_is_missing_or_of_another_size_is_found(copy, harm, says):
    for path in files(copy / "2"):
        before = path.read_bytes()
        if not before:
            continue
        harm(path)
        saves = Saves(copy)
        found = saves.latest()
        assert found.step == 1
        assert_equal(saves.restore(found, state(0)), state(1))
        (line,) = saves.reported
        assert line.startswith(f"checkpoint 2 is skipped: {copy / '2'}")
        assert re.search(says, line), line
        path.write_bytes(before)


def test_with_damaged_ones_alone_nothing_is_decided_for_people(copy):
    for step in ("1", "2"):
        max(files(copy / step), key=lambda p: p.stat().st_size).write_bytes(b"?")
    with pytest.raises(CheckpointError, match=rf"no intact .* is left; remove {copy} to start"):
        Saves(copy).latest()


def test_saves_that_did_not_end_alone_are_no_checkpoints(copy):
    for step in ("1", "2"):
        (copy / step / "manifest.json").unlink()
    saves = Saves(copy)
    assert saves.latest() is None
    assert len(saves.reported) == 2


# A state of another shape.


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s._replace(params={**s.params, "c": jnp.ones(2)}),
         r"2: params/c is absent; this run needs float32 \[2\]"),
        (lambda s: s._replace(params={"b": s.params["b"]}),
         r"2: params/a/kernel is float32 \[200, 100\]; this run needs absent"),
        (lambda s: s._replace(params={**s.params, "b": jnp.arange(8)}),
         r"2: params/b is int32 \[7\]; this run needs int32 \[8\]"),
        (lambda s: s._replace(moments=((), {"mu": s.moments[1]["mu"].astype(jnp.float32)})),
         r"2: moments/1/mu is bfloat16 \[20000\]; this run needs float32 \[20000\]"),
    ],
)  # fmt: skip
def test_a_leaf_that_does_not_fit_is_named(two, change, message):
    saves = Saves(two)
    with pytest.raises(CheckpointError, match=message):
        saves.restore(saves.latest(), change(state(0)))


# Disks that refuse.


@pytest.fixture
def no_large_files():
    """Return a switch that limits files to 64 KiB, which simulates a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def switch(on):
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**16 if on else soft, hard))

    yield switch
    switch(False)


def assert_fails_by_the_next_save(saves, break_disk, repair_disk):
    """Assert that save 2 fails on a broken disk, and that 1 before and 3 after it are intact."""
    save(saves, 1)
    break_disk()
    with pytest.raises(CheckpointError) as raised:  # at once, or when it has been tried
        save(saves, 2, size=400_000)
    message = str(raised.value)
    assert message.startswith(f"{saves.folder}: the checkpoint of step 2 could not be written: ")
    assert "\n" not in message
    again = Saves(saves.folder)
    found = again.latest()
    assert found.step == 1
    assert_equal(again.restore(found, state(0)), state(1))
    repair_disk()
    save(saves, 3)
    assert Saves(saves.folder).latest().step == 3
    return message


def test_a_write_that_fails_is_told_by_the_next_save(tmp_path, no_large_files, capfd):
    assert_fails_by_the_next_save(
        Saves(tmp_path), lambda: no_large_files(True), lambda: no_large_files(False)
    )
    assert "Traceback" not in capfd.readouterr().err


def test_a_full_disk_is_told_by_the_next_save(small_disk):
    message = assert_fails_by_the_next_save(
        Saves(small_disk / "checkpoints"), lambda: None, lambda: None
    )
    assert "No space left on device" in message


def test_a_disk_that_turns_read_only_is_told_by_the_next_save(small_disk):
    def remount(how):
        subprocess.run(["mount", "-o", f"remount,{how}", str(small_disk)], check=True)

    message = assert_fails_by_the_next_save(
        Saves(small_disk / "checkpoints"), lambda: remount("ro"), lambda: remount("rw")
    )
    assert "Read-only file system" in message


def test_a_manifest_that_cannot_be_written_is_told_and_its_step_not_offered(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    def break_disk():
        monkeypatch.setattr(manifest, "write", full)

    assert_fails_by_the_next_save(Saves(tmp_path), break_disk, monkeypatch.undo)


# Memory, in a process of its own: this very file.


def measure(kind):
    command = [sys.executable, __file__, kind]
    # One malloc arena for all threads: each of several would keep freed memory unpredictably.
    environ = os.environ | {"PYTHONPATH": str(ROOT), "MALLOC_ARENA_MAX": "1"}
    done = subprocess.run(command, env=environ, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.mark.slow(reason="writes a checkpoint of 256 MiB")
def test_a_save_takes_half_again_its_size_of_memory_at_most():
    found = measure("peak")
    assert found["peak"] <= 1.5 * found["state"], found


@pytest.mark.slow(reason="writes 80 checkpoints")
def test_memory_is_flat_over_fifty_saves():
    """Compare the minimum over ten saves each, since some are still being written."""
    found = measure("flat")
    early, late = (min(found[f"after_{i}"] for i in range(n, n + 10)) for n in (21, 71))
    assert late - early < 4 * 2**20, found


def _resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def _peak(folder):
    """Measure the peak of resident memory during a save, minus that before it."""
    save(Saves(folder / "first"), 1)
    now = jax.block_until_ready({str(i): jnp.full((2**23,), i, jnp.float32) for i in range(8)})
    size, before = sum(x.nbytes for x in now.values()), _resident()
    peak, done = [before], threading.Event()

    def watch():
        while not done.wait(0.002):
            peak.append(_resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    saves = Saves(folder / "second")
    saves.save(1, now, {})
    saves.wait()
    done.set()
    watcher.join()
    return {"state": size, "peak": max(peak) - before}


def _flat(folder):
    saves, now, found = Saves(folder), state(0), {}
    for step in range(1, 81):
        saves.save(step, now, {})
        saves.wait()
        found[f"after_{step}"] = _resident()
    return found


if __name__ == "__main__":
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        measured = {"peak": _peak, "flat": _flat}[sys.argv[1]](Path(folder))
        print(json.dumps(measured))


class Stage(NamedTuple):
    step: jax.Array
    trainable: dict
    frozen: dict
    opt_state: tuple


def shapes(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16), tree)


def test_a_milestone_gives_its_parameters_alone(tmp_path):
    flat = state(1).params
    trainable, frozen = {"llm/w/kernel": flat["a/kernel"]}, {"vision/b": flat["a/kernel"][0]}
    whole = Stage(jnp.asarray(4), trainable, frozen, ({"mu": jnp.ones(7)},))
    with contextlib.closing(Saves(tmp_path / "checkpoints")) as saves:
        saves.save(4, whole, {})
    wanted = {"llm": {"w": {"kernel": flat["a/kernel"]}}, "vision": {"b": flat["a/kernel"][0]}}
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), wanted)
    assert_equal(load_params(tmp_path, 4, like), wanted)
    half = load_params(tmp_path, 4, shapes(wanted))
    assert {x.dtype for x in jax.tree.leaves(half)} == {jnp.bfloat16.dtype}
    like["vision"]["c"] = like["vision"]["b"]
    with pytest.raises(CheckpointError, match="vision/c is absent; this model needs"):
        load_params(tmp_path, 4, like)
    with pytest.raises(CheckpointError, match="checkpoints/3.*milestones are every keep_every"):
        load_params(tmp_path, 3, like)
