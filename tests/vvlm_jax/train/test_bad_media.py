"""Media files that cannot be read or that hang: they are counted and replaced, equally after a
resume, and no run waits for them for ever.
"""

import json
import shutil
import threading
import time

import pytest

from tests.patience import LONG
from tests.vvlm_jax.train.test_loop import Stopped, assert_equal, lines, params_of, stop_after
from vvlm_jax.config import ConfigError
from vvlm_jax.data import pipeline
from vvlm_jax.data.media import FrameReader, within
from vvlm_jax.data.pipeline import TooManyUnreadable
from vvlm_jax.data.video import VideoError
from vvlm_jax.train import loop
from vvlm_jax.train.loop import train

BAD = 3


@pytest.fixture(scope="module")
def media(world, tmp_path_factory):
    """Return a copy of the clips in which three files are no videos, and the names of these."""
    folder = tmp_path_factory.mktemp("media") / "world"
    shutil.copytree(world, folder)
    names = [row["video"] for row in json.loads((folder / "train.json").read_text())][:BAD]
    for name in names:
        (folder / name).write_bytes(b"not a video")
    return folder, names


def options(media, *more):
    folder = media[0]
    root = (f"data.annotations={folder}/train.json", f"data.media_root={folder}")
    return (*root, "data.max_unreadable=0.2", *more)


@pytest.fixture(scope="module")
def replaced(stage, media, tmp_path_factory):
    """Return the folder of a finished run of two epochs in which three examples were replaced."""
    folder = tmp_path_factory.mktemp("replaced") / "run"
    summary = train(stage(folder, *options(media), epochs=2))
    assert len(summary["unreadable"]) == BAD
    assert lines(folder)[-1]["unreadable"] == BAD
    return folder


def events(folder, kind):
    story = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    return [line for line in story if line["event"] == kind]


def test_each_bad_file_is_logged_once(replaced, media):
    logged = events(replaced, "unreadable")
    assert sorted(line["file"] for line in logged) == sorted(media[1])
    assert all(line["file"] in line["error"] for line in logged)


def test_the_replacement_is_the_same_after_a_resume(stage, media, replaced, tmp_path):
    config = stage(tmp_path, *options(media), epochs=2, checkpoint_every=5)
    with pytest.raises(Stopped):
        train(config, on_step=stop_after(6))
    summary = train(config)
    assert summary == json.loads((replaced / "summary.json").read_text())
    assert_equal(params_of(tmp_path), params_of(replaced))
    # What was noted after the newest checkpoint may be noted again.
    assert {e["file"] for e in events(tmp_path, "unreadable")} == set(media[1])


def test_a_repaired_file_stays_replaced_until_the_run_ends(stage, media, replaced, world, tmp_path):
    """Otherwise the examples of a run would depend on when it was interrupted."""
    folder = tmp_path / "world"
    shutil.copytree(media[0], folder)
    config = stage(tmp_path / "run", *options((folder, None)), epochs=2, checkpoint_every=6)
    with pytest.raises(Stopped):
        train(config, on_step=stop_after(7))
    for name in media[1]:
        shutil.copy(world / name, folder / name)
    train(config)
    assert_equal(params_of(tmp_path / "run"), params_of(replaced))


def test_a_decoder_that_hangs_is_left_behind(stage, world, media, replaced, tmp_path, monkeypatch):
    """The files that are damaged in `replaced` hang here, so that both runs must be equal.

    Other files have no time limit, because the machine may be busy.
    """
    goes_on, read = threading.Event(), FrameReader.video

    def video(reader, name):
        if name in media[1]:
            goes_on.wait(LONG)
        return read(reader, name)

    def patiently(seconds, name, *call):
        return within(seconds if name in media[1] else LONG, name, *call)

    monkeypatch.setattr(FrameReader, "video", video)
    monkeypatch.setattr(pipeline, "within", patiently)
    config = stage(
        tmp_path, "data.max_unreadable=0.2", "data.max_read_seconds=2", "data.read_threads=3",
        epochs=2,
    )  # fmt: skip
    try:
        summary = train(config)
    finally:
        goes_on.set()
    assert sorted(summary["unreadable"]) == sorted(
        f"{name}: not read within 2 s (data.max_read_seconds)" for name in media[1]
    )
    assert_equal(params_of(tmp_path), params_of(replaced))


def test_a_worker_that_dies_ends_the_run(stage, tmp_path, monkeypatch):
    def video(reader, name):
        raise MemoryError("a worker died")

    monkeypatch.setattr(FrameReader, "video", video)
    with pytest.raises(MemoryError, match="a worker died"):
        train(stage(tmp_path, "data.read_threads=2"))


def test_reading_begins_before_there_is_a_state_and_ends_with_the_run(stage, tmp_path, monkeypatch):
    """Prefetching overlaps with compiling, and does not compete with a worker's next run."""
    begun, read, initial_state = threading.Event(), FrameReader.video, loop.initial_state
    others = readers()

    def video(reader, name):
        begun.set()
        time.sleep(0.05)
        return read(reader, name)

    def after_reading_began(*args):
        assert begun.wait(LONG)
        return initial_state(*args)

    monkeypatch.setattr(FrameReader, "video", video)
    monkeypatch.setattr(loop, "initial_state", after_reading_began)
    with pytest.raises(Stopped) as kept:
        train(stage(tmp_path, epochs=9), on_step=stop_after(1))
    for thread in readers() - others:
        thread.join(LONG)  # what it is at; without work it would wait for more
    assert not readers() - others
    assert kept.tb  # which holds the iterator: it has not just been collected


def readers():
    return {t for t in threading.enumerate() if t.name.startswith("grain-prefetch")}


def test_too_many_stop_the_run_also_after_a_resume(stage, media, tmp_path):
    """Two of 24 are allowed; the third is found after a resume that remembers the first two."""
    config = stage(tmp_path, *options(media, "data.max_unreadable=0.1"), epochs=2)
    with pytest.raises(TooManyUnreadable, match=r"3 unreadable media files, more than the 2 "):
        train(config)
    unreadable = pipeline.Unreadable(2)
    unreadable.messages.update(a="a: gone", b="b: gone")
    unreadable.add("a", VideoError("a: gone"))  # the same again is no other
    with pytest.raises(TooManyUnreadable, match="3 unreadable"):
        unreadable.add("c", VideoError("c: gone"))


def test_other_examples_than_a_run_began_with_are_an_error(stage, media, tmp_path):
    folder = tmp_path / "world"
    shutil.copytree(media[0], folder)
    config = stage(tmp_path / "run", *options((folder, None)), checkpoint_every=2)
    with pytest.raises(Stopped):
        train(config, on_step=stop_after(4))
    rows = json.loads((folder / "train.json").read_text())
    (folder / "train.json").write_text(json.dumps(rows[1:] + rows[:1]))
    with pytest.raises(ConfigError, match=r"train\.json: holds other examples.*--allow data\.ann"):
        train(config)
    train(config, allow=("data.annotations",))


# The time limit.


def test_within_gives_back_what_is_read_or_raised():
    assert within(10, "a", lambda x: x + 1, 2) == 3

    def fail():
        raise VideoError("a: broken")

    with pytest.raises(VideoError, match="a: broken"):
        within(10, "a", fail)


def test_within_does_not_wait_longer():
    goes_on, start = threading.Event(), time.monotonic()
    with pytest.raises(VideoError, match=r"^a: not read within 0\.05 s \(data\.max_read_seconds\)"):
        within(0.05, "a", goes_on.wait, LONG)
    assert time.monotonic() - start < LONG / 2
    goes_on.set()
