"""`python -m tools.bench.bench_data`: mistakes, one small run."""

import itertools
import os
import re
import sys
import threading
import time
import types

import grain
import pytest

from tests.patience import LONG
from tools.bench import bench_data as bench
from tools.bench import other_decoders
from tools.bench.bench_data import Args
from vvlm_jax.config import ConfigError
from vvlm_jax.data import video


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """Return a clip of 4 s with a keyframe every second, and B-frames."""
    return bench.make_clip(tmp_path_factory.mktemp("clips"), 64, 48, 4, gop=30)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(repeats=0), "repeats = 0: must be at least 1"),
        (dict(gop=0), "gop = 0: must be at least 1"),
        (dict(frames=(8, 0)), r"frames = \(8, 0\): must be numbers of at least 1"),
        (dict(sizes=()), r"sizes = \(\): must be numbers of at least 0"),
    ],
)
def test_options_that_cannot_work_are_named(options, message):
    with pytest.raises(ConfigError, match=message):
        bench.check(Args(**options))


def test_waiting_needs_two_cores(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3})
    with pytest.raises(ConfigError, match="wait: needs a core for the decoder"):
        bench.check(Args())
    bench.check(Args(wait=False))


@pytest.mark.parametrize("size", [0, 32])
@pytest.mark.parametrize(("count", "distinct"), [(3, 3), (8, 4)])
def test_bare_pyav_delivers_the_same_frames(clip, size, count, distinct):
    """8 frames of 4 s are one a second, each twice."""
    taken, seconds, beside = bench.read_in_turn(clip, count, size, repeats=1)
    assert taken == distinct
    assert min(seconds) > 0
    assert beside == {}


def test_other_decoders_read_in_the_same_turns(clip):
    def right(path, count, size):
        calls.append(count)
        return bench.bare(path, count, size, seeking=False) ^ 1  # another conversion of colours

    def wrong(path, count, size):
        return bench.bare(path, count, size, seeking=False)[::-1]

    calls = []
    _, _, beside = bench.read_in_turn(clip, 3, 0, 2, {"right": right, "wrong": wrong})
    assert beside["right"] > 0
    assert beside["wrong"] is None
    assert len(calls) == 3


def test_decoders_that_are_not_there_are_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "decord", None)
    monkeypatch.setitem(sys.modules, "torchcodec", types.ModuleType("torchcodec"))
    broken = types.ModuleType("torchcodec.decoders")
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", broken)
    readers, missing = other_decoders.installed()
    assert readers == {}
    assert missing[0] == "decord: not installed"
    assert missing[1].startswith("torchcodec: installed, and cannot be used here (cannot import")


@pytest.mark.parametrize("name", ["decord", "torchcodec"])
@pytest.mark.parametrize("size", [0, 32])
def test_decoders_that_are_installed_deliver_our_frames(clip, name, size):
    readers, missing = other_decoders.installed()
    if name not in readers:
        pytest.skip(next(line for line in missing if line.startswith(name)))
    ours = bench.bare(clip, 8, size, seeking=False)
    assert other_decoders.same_frames(ours, readers[name](clip, 8, size))
    assert not other_decoders.same_frames(ours, readers[name](clip, 8, size)[::-1])


def test_other_frames_are_not_compared(clip, monkeypatch):
    original = video.read_frames
    monkeypatch.setattr(video, "read_frames", lambda *a, **k: original(*a, **k)[::-1])
    with pytest.raises(bench.Disagreement, match="bare PyAV delivers other frames"):
        bench.read_in_turn(clip, 3, 0, repeats=1)


def test_a_clip_is_made_once(clip):
    made = clip.stat().st_mtime_ns
    assert bench.make_clip(clip.parent, 64, 48, 4, gop=30) == clip
    assert clip.stat().st_mtime_ns == made
    assert [p.name for p in clip.parent.iterdir()] == ["64x48-4s-30.mp4"]


def test_waiting_is_what_is_spent_beside_steps_and_reading_ends_with_them(monkeypatch):
    def pass_by(seconds):
        now[0] += seconds

    def slow():
        try:
            for i in itertools.count():
                pass_by(4)
                yield i
        finally:
            ended.append(True)

    ended, opened, now = [], [], [7.0]
    monkeypatch.setattr(bench, "time", types.SimpleNamespace(perf_counter=lambda: now[0]))

    def reading():
        batches = slow()
        opened.append(batches)  # else it would end with the last reference to it
        return batches, next(batches)

    assert bench.run_steps(reading, lambda _: pass_by(1), 10) == (10.0, 40.0)
    assert ended


@pytest.fixture
def own_threads(monkeypatch):
    """Return the threads that a test starts; readers of other tests may wait for ever."""
    others = set(threading.enumerate())
    own = types.SimpleNamespace(enumerate=lambda: set(threading.enumerate()) - others)
    monkeypatch.setattr(bench, "threading", own)
    return own.enumerate


def test_readers_that_were_closed_are_waited_for(own_threads):
    """Their remaining work would slow down the readers that are measured next."""
    read, begun, goes_on = [], threading.Event(), threading.Event()

    def slowly(i):
        if i:
            begun.set()
            goes_on.wait(LONG)
        read.append(i)
        return i

    options = grain.ReadOptions(num_threads=1, prefetch_buffer_size=8)
    batches = iter(grain.MapDataset.range(99).map(slowly).to_iter_dataset(options))
    next(batches)
    assert begun.wait(LONG)
    later = threading.Timer(0.3, goes_on.set)
    later.start()
    batches.close()
    bench.wait_for_readers()
    assert goes_on.is_set()
    later.join()
    now = len(read)
    assert 2 <= now <= 10, "those that were begun, but not all there are"
    assert not [t for t in own_threads() if t.name.startswith("grain")]
    time.sleep(0.3)
    assert len(read) == now


@pytest.mark.slow(reason="trains on files for some seconds")
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two cores")
def test_a_small_run_prints_both_tables(clip, own_threads, monkeypatch, capsys):
    monkeypatch.setattr(bench, "QUICK_CLIPS", ((64, 48, 4),))
    everywhere = os.sched_getaffinity(0)
    bench.main(Args(quick=True, gop=30, folder=clip.parent))
    assert os.sched_getaffinity(0) == everywhere
    shown = capsys.readouterr().out
    assert re.search(r"^64x48-4s-30 +own +4( +[\d,]+){3} +[\d.]+$", shown, re.M)
    assert re.search(r"^64x48-4s-30 +384 +4( +[\d,]+){3} +[\d.]+$", shown, re.M)
    assert len(re.findall(r"^\d+% +[\d.]+% +\d+%$", shown, re.M)) == 2
