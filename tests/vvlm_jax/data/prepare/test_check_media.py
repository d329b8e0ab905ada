"""Media are opened once, by many processes, and what is known of them survives a kill."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import psutil
import pytest
from PIL import Image

from tests.patience import LONG, wait_until
from vvlm_jax.data.prepare import check_media
from vvlm_jax.data.video import probe

VIDEOS = Path(__file__).parents[3] / "testdata" / "videos"
GOOD = ("hevc.mp4", "vp9.webm", "av1.mp4", "varying_rate.mp4", "turned_90.mp4", "one_frame.mp4")
BAD = ("audio_only.m4a", "cut_short.mp4", "zero_bytes.mp4", "missing.mp4")


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "media"
    folder.mkdir()
    for name in (*GOOD, *BAD):
        if name != "missing.mp4":
            shutil.copy(VIDEOS / name, folder)
    (folder / "frames").mkdir()
    Image.new("RGB", (8, 6)).save(folder / "frames" / "0.png")
    Image.new("RGB", (8, 6)).save(folder / "picture.jpg")
    (folder / "words.jpg").write_text("words")
    return folder


def media():
    pictures = [("image", "picture.jpg"), ("image", "words.jpg")]
    return [*(("video", name) for name in (*GOOD, *BAD, "frames")), *pictures]


@pytest.mark.light
@pytest.mark.parametrize("workers", [0, 2])
def test_every_file_is_measured_or_says_what_is_wrong(root, tmp_path, workers):
    shown = []
    found = check_media.check_media(
        root,
        media(),
        tmp_path / "j.jsonl",
        workers=workers,
        progress=lambda done, total: shown.append((done, total)),
    )
    assert list(found) == [name for _, name in media()]
    for name in GOOD:
        info, c = probe(root / name), found[name]
        assert (c.num_frames, c.duration_s) == (info.num_frames, info.duration_s)
        assert (c.height, c.width, c.problem) == (info.height, info.width, "")
    for name in BAD:
        assert found[name].problem.startswith(str(root / name))
        assert found[name].num_frames == 0
        assert "\n" not in found[name].problem
    assert (found["frames"].num_frames, found["picture.jpg"].width) == (1, 8)
    assert "not a readable image" in found["words.jpg"].problem
    assert shown[0] == (0, len(found))
    assert shown[-1] == (len(found), len(found))


def opened(monkeypatch):
    seen, real = [], check_media.look_at
    monkeypatch.setattr(
        check_media, "look_at", lambda path, *rest: seen.append(path) or real(path, *rest)
    )
    return seen


def test_what_is_known_is_not_opened_again(root, tmp_path, monkeypatch):
    journal, seen = tmp_path / "j.jsonl", opened(monkeypatch)
    first = check_media.check_media(root, media()[:4], journal)
    with journal.open("a") as file:
        file.write('{"path": "frames", "stam')  # truncated by a kill
    seen.clear()
    again = check_media.check_media(root, media(), journal)
    assert [json.loads(line)["path"] for line in journal.read_text().splitlines()[5:]] == [
        name for _, name in media()[4:]
    ]
    assert {path: again[path] for path in first} == first
    assert not {str(root / path) for path in first} & {str(path) for path in seen}
    seen.clear()
    assert check_media.check_media(root, media(), journal) == again
    assert seen == []


def test_a_file_that_changed_is_opened_again(root, tmp_path, monkeypatch):
    journal, seen = tmp_path / "j.jsonl", opened(monkeypatch)
    check_media.check_media(root, media(), journal)
    shutil.copy(VIDEOS / "hevc.mp4", root / "cut_short.mp4")
    shutil.copy(VIDEOS / "hevc.mp4", root / "missing.mp4")
    seen.clear()
    found = check_media.check_media(root, media(), journal)
    assert sorted(path.name for path in seen) == ["cut_short.mp4", "missing.mp4"]
    assert found["cut_short.mp4"].problem == found["missing.mp4"].problem == ""
    lines = [json.loads(line) for line in journal.read_text().splitlines()]
    assert [line["path"] for line in lines][-2:] == ["cut_short.mp4", "missing.mp4"]


def test_a_file_that_takes_too_long_is_broken(root, tmp_path, monkeypatch):
    stop = threading.Event()
    monkeypatch.setattr(check_media, "look_at", lambda *_: stop.wait(LONG))
    found = check_media.check_media(root, media()[:1], tmp_path / "j.jsonl", seconds=0.05)
    stop.set()
    assert "not read within 0.05 s" in found["hevc.mp4"].problem
    monkeypatch.undo()
    found = check_media.check_media(
        root, media()[:1], tmp_path / "j.jsonl"
    )  # the machine may have been busy
    assert found["hevc.mp4"].problem == ""


def _dies_at(root, chunk, seconds):
    if any(name == "vp9.webm" for _, name in chunk):
        os._exit(9)
    return [check_media._check(root, one, seconds) for one in chunk]


def _dies_alone(root, one, seconds):
    return _dies_at(root, [one], seconds)[0]


def test_a_file_that_ends_its_reader_is_named_and_the_others_are_not(root, tmp_path, monkeypatch):
    monkeypatch.setattr(check_media, "_check_all", _dies_at)
    monkeypatch.setattr(check_media, "_check", _dies_alone)
    found = check_media.check_media(root, media()[:2], tmp_path / "j.jsonl", workers=1)
    assert "its decoder crashes the process that reads it" in found["vp9.webm"].problem
    assert found["hevc.mp4"].problem == ""
    monkeypatch.undo()
    found = check_media.check_media(
        root, media()[:2], tmp_path / "j.jsonl"
    )  # there may have been no memory
    assert found["vp9.webm"].problem == ""


SCRIPT = """
import sys, time
from pathlib import Path
from tools.common import die_in_one_line
from vvlm_jax.data.prepare import check_media as check

root, journal, last = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
look = check.look_at

def some(path, *rest):
    while int(path.stem) >= last:  # however long nobody stops it, it does not come to an end
        time.sleep(1)
    return look(path, *rest)

check.look_at = some  # in its workers, too, which import this file
if __name__ == "__main__":
    paths = [("video", f"{i}.mp4") for i in range(400)]
    die_in_one_line(lambda: check.check_media(root, paths, journal, workers=2))
"""


@pytest.fixture
def started(root, tmp_path):
    """Yield started(last) -> the script's process, which comes to the last of 400 files and no
    further, once some more are in the journal.
    """
    for i in range(400):
        (root / f"{i}.mp4").hardlink_to(root / "hevc.mp4")
    (tmp_path / "script.py").write_text(SCRIPT)
    journal, processes = tmp_path / "j.jsonl", []

    def start(last):
        process = subprocess.Popen(
            [sys.executable, tmp_path / "script.py", root, journal, str(last)],
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[4])},
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        processes.append(process)
        known = size()
        wait_until(lambda: size() > known, lambda: process.poll() is None)
        return process

    def size():
        return journal.stat().st_size if journal.exists() else 0

    yield start
    for process in processes:
        process.kill()
        process.communicate()


def test_interrupts_and_kills_leave_what_is_known_and_nobody_behind(started, tmp_path):
    process = started(100)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all of them
    said = process.communicate(timeout=LONG)[1]
    assert said.strip() == "interrupted; run the same command again to continue"
    assert process.returncode == 130
    process = started(200)
    workers = psutil.Process(process.pid).children(recursive=True)
    assert len(workers) >= 2
    process.kill()
    _, alive = psutil.wait_procs(workers, timeout=LONG)
    assert alive == []
    known = [json.loads(line)["path"] for line in (tmp_path / "j.jsonl").read_text().splitlines()]
    assert len(known) == len({*known})  # none was opened twice
