import contextlib
import importlib.util
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from vvlm_jax.data import video
from vvlm_jax.data.video import VideoError, VideoInfo, probe, read_frames, write_video

TESTDATA = Path(__file__).parents[2] / "testdata"
VIDEOS = TESTDATA / "videos"
# What the ffmpeg command saw when the files were made: name → [height, width, frame numbers].
SEEN = json.loads((VIDEOS / "frames.json").read_text())

spec = importlib.util.spec_from_file_location("make_videos", TESTDATA / "make_videos.py")
make_videos = importlib.util.module_from_spec(spec)
spec.loader.exec_module(make_videos)

every_file = pytest.mark.parametrize("name", SEEN)


def numbers(frames):
    return [make_videos.read_number(frame) for frame in frames]


def everything(info):
    return np.arange(info.num_frames)


def at(*indices):
    return lambda info: np.array(indices)


def moving_square(count=32, side=48):
    frames = np.full((count, side, side, 3), (60, 90, 40), np.uint8)
    for number, frame in enumerate(frames):
        frame[5 + number // 2 : 17 + number // 2, number : number + 12] = 220, 30, 60
    return frames


# Which frame is which.


@every_file
def test_every_frame_is_the_one_ffmpeg_sees(name):
    height, width, expected = SEEN[name]
    frames = read_frames(VIDEOS / name, everything)
    assert frames.dtype == np.uint8
    assert frames.shape == (len(expected), height, width, 3)
    assert numbers(frames) == expected


@every_file
def test_ffmpeg_saw_them_in_order_and_upright(name):
    first = {"trimmed.mp4": 12, "cut_at_keyframe.ts": 36}.get(name, 0)
    assert SEEN[name][2] == list(range(first, first + len(SEEN[name][2])))


@pytest.mark.light
@every_file
def test_any_index_alone_equals_straight_decoding(name):
    straight = read_frames(VIDEOS / name, everything)
    for index in {0, 1, *range(0, len(straight), 7), len(straight) - 1}:
        alone = read_frames(VIDEOS / name, at(index % len(straight)))
        np.testing.assert_array_equal(alone[0], straight[index % len(straight)])


@every_file
def test_leaps_and_repeats_equal_straight_decoding(name):
    straight = read_frames(VIDEOS / name, everything)
    last = len(straight) - 1
    chosen = sorted([0, 0, last // 3, last // 2, last // 2, last // 2 + last // 4, last, last])
    np.testing.assert_array_equal(read_frames(VIDEOS / name, at(*chosen)), straight[chosen])


def count_decoded(monkeypatch):
    decoded, original = [], video.decoded

    def counting(*args):
        for frame in original(*args):
            decoded.append(frame.pts)
            yield frame

    monkeypatch.setattr(video, "decoded", counting)
    return decoded


@pytest.mark.parametrize(
    "name", ["h264_open_gop.mp4", "h264.mkv", "hevc.mp4", "vp9.webm", "av1.mp4", "varying_rate.mp4"]
)
def test_seeks_to_the_keyframe_before_a_distant_frame(name, monkeypatch):
    decoded = count_decoded(monkeypatch)
    assert numbers(read_frames(VIDEOS / name, at(2, 65))) == [2, 65]
    assert len(decoded) < 30  # of 66; keyframes are 9 frames apart


def test_a_seek_in_an_mp4_with_b_frames_starts_at_the_nearest_keyframe(tmp_path, monkeypatch):
    # FFmpeg takes the keyframe before, when told the time at which this one is decoded.
    write_video(tmp_path / "b.mp4", moving_square(96), 24, options={"g": "32", "bf": "2"})
    counted = count_decoded(monkeypatch)
    read_frames(tmp_path / "b.mp4", at(0, 65))
    assert len(counted) <= 1 + 2 + 4  # the first frame; 64 and 65; what was decoded ahead


def test_without_keyframes_nearby_decodes_each_frame_once(monkeypatch):
    decoded = count_decoded(monkeypatch)
    assert numbers(read_frames(VIDEOS / "h264_one_gop.mp4", at(2, 65, 65))) == [2, 65, 65]
    assert len(decoded) == len(set(decoded)) <= 66


def test_of_hours_of_video_only_what_is_near_is_decoded(tmp_path, monkeypatch):
    """The video has three hours at one frame a second, brighter by the minute."""
    minutes = np.arange(180, dtype=np.uint8)
    frames = np.broadcast_to(minutes.repeat(60)[:, None, None, None], (10_800, 16, 16, 3))
    write_video(tmp_path / "long.mp4", frames, 1, options={"g": "60", "preset": "ultrafast"})
    assert probe(tmp_path / "long.mp4").duration_s == 10_800
    counted, ranks = count_decoded(monkeypatch), np.linspace(0, 10_799, 8, dtype=int)
    seen = read_frames(tmp_path / "long.mp4", at(*ranks)).mean((1, 2, 3))
    np.testing.assert_allclose(seen, minutes[ranks // 60], atol=3)
    assert len(counted) < 8 * 75  # keyframes are 60 apart, and a decoder runs a little ahead


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bf": "3", "x264-params": "b-pyramid=strict:ref=5"},
        {"bf": "8"},
        {"x264-params": "tff=1"},
    ],
    ids=["plain", "pyramid", "many", "fields"],
)
def test_frames_that_no_other_refers_to_are_left_out_and_change_nothing(
    tmp_path, monkeypatch, options
):
    clip = tmp_path / "b.mp4"
    write_video(clip, moving_square(), 24, options={"g": "250", "b_strategy": "0", **options})
    straight, counted = read_frames(clip, everything), count_decoded(monkeypatch)
    for index in range(len(straight)):
        np.testing.assert_array_equal(read_frames(clip, at(index))[0], straight[index])
    counted.clear()
    np.testing.assert_array_equal(read_frames(clip, at(3, 30)), straight[[3, 30]])
    assert len(counted) == len(set(counted)) <= 24  # of 31


def test_counts_frames_where_packet_times_are_wrong(monkeypatch):
    decoded = count_decoded(monkeypatch)
    assert numbers(read_frames(VIDEOS / "h264.avi", at(3, 50))) == [3, 50]
    assert len(decoded) >= 72  # AVI with B-frames: the whole file, to be sure of the count


def test_a_seek_that_lands_too_late_is_made_good(monkeypatch):
    original = video.scan_file

    def late(path):
        scan = original(path)
        scan.key_time_K[:] += 12_000
        return scan

    monkeypatch.setattr(video, "scan_file", late)
    assert numbers(read_frames(VIDEOS / "h264_open_gop.mp4", at(40))) == [40]


# What a file says about itself.


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("h264_one_gop.mp4", VideoInfo(72, 12.0, 6.0, 48, 64, 0)),
        ("vp9.webm", VideoInfo(72, 12.0, 6.0, 48, 64, 0)),
        ("vp8.webm", VideoInfo(72, 12.0, 6.0, 48, 64, 0)),  # of 77 packets
        ("trimmed.mp4", VideoInfo(60, 12.0, 5.0, 48, 64, 0)),
        ("cut_at_keyframe.ts", VideoInfo(36, 12.0, 3.0, 48, 64, 0)),  # of 39 packets
        ("one_frame.mp4", VideoInfo(1, 12.0, 1 / 12, 48, 64, 0)),
        ("odd_35x51.mp4", VideoInfo(12, 12.0, 1.0, 35, 51, 0)),
        ("really_mp4.avi", VideoInfo(72, 12.0, 6.0, 48, 64, 0)),
        ("with_audio.mp4", VideoInfo(12, 12.0, 1.0, 48, 64, 0)),
        ("mirrored.mp4", VideoInfo(12, 12.0, 1.0, 48, 64, 0)),
    ],
)
def test_probe(name, expected):
    assert probe(VIDEOS / name) == expected


@every_file
def test_choose_is_shown_what_probe_finds(name):
    shown = []
    read_frames(VIDEOS / name, lambda info: shown.append(info) or np.array([0]))
    assert shown == [probe(VIDEOS / name)]
    assert shown[0].num_frames == len(SEEN[name][2])


def test_average_rate_of_a_varying_one():
    # Frame n is shown at (n + floor(n² / 9)) / 12 s: from 12 frames a second to less than 1.
    info = probe(VIDEOS / "varying_rate.mp4")
    assert info.duration_s == pytest.approx((71 + 71 * 71 // 9) / 12, rel=0.06)
    assert info.fps == pytest.approx(72 / info.duration_s)


def test_a_header_whose_rate_cannot_be_true_is_overruled():
    with av.open(VIDEOS / "h264.avi") as container:
        assert container.streams.video[0].average_rate == 24
    assert probe(VIDEOS / "h264.avi").fps == pytest.approx(12, rel=0.02)


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_turned_pixels_come_out_upright(degrees):
    name = f"turned_{degrees}.mp4"
    assert probe(VIDEOS / name) == VideoInfo(12, 12.0, 1.0, 48, 64, degrees)
    with av.open(VIDEOS / name) as container:
        stored = next(container.decode(video=0)).to_ndarray(format="rgb24")
    upright = read_frames(VIDEOS / name, at(0))[0]
    np.testing.assert_array_equal(upright, np.rot90(stored, degrees // 90))


@pytest.mark.parametrize(
    "name", ["turned_90.mp4", "turned_180.mp4", "turned_270.mp4", "mirrored.mp4"]
)
def test_corners_stay_where_they_were_filmed(name):
    red, blue = np.array([220, 20, 20]), np.array([20, 20, 220])
    frame = read_frames(VIDEOS / name, at(5))[0].astype(int)
    assert np.abs(frame[-7:-3, 3:9] - red).mean() < 25
    assert np.abs(frame[-7:-3, -9:-3] - blue).mean() < 25


@pytest.mark.parametrize("name", ["odd_35x51.mp4", "turned_90.mp4", "hevc.mp4"])
def test_size_is_pil_bicubic_on_the_upright_frame(name):
    native = read_frames(VIDEOS / name, at(0, 7))
    square = [Image.fromarray(frame).resize((28, 28), Image.BICUBIC) for frame in native]
    np.testing.assert_array_equal(
        read_frames(VIDEOS / name, at(0, 7), size=28), np.stack([np.asarray(s) for s in square])
    )


# What is refused.

AGAIN, CONVERT = "copy or download it again", "convert it: ffmpeg -i FILE new.mp4"
NO_VIDEO = f"not a video: Invalid data found when processing input; {AGAIN}, or {CONVERT}"
BROKEN = {
    "zero_bytes.mp4": f"zero bytes; {AGAIN}",
    "missing.mp4": "no such file; check the path",
    "audio_only.m4a": "no video stream (audio only); give a file with a video stream",
    "audio_with_cover.mp3": "no video stream (audio only); give a file with a video stream",
    "notes.mp4": NO_VIDEO,
    "headless.mp4": NO_VIDEO,
    "cut_short.mp4": f"truncated: 15 of 72 frames could be decoded; {AGAIN}",
    "cut_short.webm": f"truncated: 47 of 72 frames could be decoded; {AGAIN}",
    "cut_short.mkv": f"truncated: 45 of 72 frames could be decoded; {AGAIN}",
}


@pytest.mark.parametrize("read", [probe, lambda path: read_frames(path, at(0))])
@pytest.mark.parametrize(("name", "problem"), BROKEN.items())
def test_says_in_one_line_what_is_wrong(read, name, problem):
    with pytest.raises(VideoError) as caught:
        read(VIDEOS / name)
    assert str(caught.value) == f"{VIDEOS / name}: {problem}"


def test_a_cut_avi_is_refused():
    # Cutting an AVI loses its index, and with it the exact number of frames.
    with pytest.raises(VideoError, match=r"cut_short.avi: truncated: 45 of \d+ frames could be"):
        probe(VIDEOS / "cut_short.avi")


def test_a_frame_lost_inside_the_file_is_not_papered_over(tmp_path):
    with av.open(VIDEOS / "vp9.webm") as container:
        packets = [bytes(p) for p in container.demux(video=0) if p.size]
    whole = (VIDEOS / "vp9.webm").read_bytes()
    damaged = tmp_path / "damaged.webm"
    # Packet 40 becomes noise of the same length: the container is intact, the frame is not.
    damaged.write_bytes(whole.replace(packets[40], b"\xff" * len(packets[40]), 1))
    with pytest.raises(VideoError, match=r"damaged.webm: truncated: \d+ of 72 frames could be"):
        read_frames(damaged, at(0, 40))


@pytest.mark.parametrize(
    ("chosen", "message"),
    [
        ([3, 1], "choose: indices must be non-decreasing in 0..11, got [3, 1]"),
        ([0, 12], "choose: indices must be non-decreasing in 0..11, got [0, 12]"),
        ([-1, 2], "choose: indices must be non-decreasing in 0..11, got [-1, 2]"),
        ([0.5], "choose: must return a list of frame indices, got array([0.5])"),
        ([[1]], "choose: must return a list of frame indices, got array([[1]])"),
    ],
)
def test_a_wrong_choice_is_not_the_videos_fault(chosen, message):
    with pytest.raises(ValueError) as caught:  # noqa: PT011 the whole message is compared
        read_frames(VIDEOS / "with_audio.mp4", at(*chosen))
    assert str(caught.value) == message
    assert not isinstance(caught.value, VideoError)


def test_the_error_survives_the_way_back_from_a_worker_process():
    error = pickle.loads(pickle.dumps(VideoError("a.mp4: zero bytes")))
    assert isinstance(error, VideoError)
    assert str(error) == "a.mp4: zero bytes"


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="counts descriptors in /proc")
def test_two_hundred_reads_leave_no_file_open():
    def refuse(info):
        raise RuntimeError("no frames today")

    def read_all_ways():
        read_frames(VIDEOS / "h264_open_gop.mp4", at(0, 50))
        with pytest.raises(VideoError):
            probe(VIDEOS / "cut_short.mp4")
        with pytest.raises(VideoError):
            probe(VIDEOS / "audio_only.m4a")
        with pytest.raises(RuntimeError):
            read_frames(VIDEOS / "with_audio.mp4", refuse)

    for _ in range(50):
        read_all_ways()
    assert open_files(VIDEOS) == []


def open_files(folder):
    """Return those below a folder: what other tests have left may come and go."""
    found = []
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            found.append(Path(os.readlink(link)))
    return [path for path in found if folder.resolve() in path.parents]


def test_open_files_are_seen():
    with (VIDEOS / "hevc.mp4").open():
        assert [path.name for path in open_files(VIDEOS)] == ["hevc.mp4"]


def test_nothing_is_printed(capfd):
    for name in ("cut_short.mp4", "cut_short.mkv", "notes.mp4"):
        with pytest.raises(VideoError):
            probe(VIDEOS / name)
    read_frames(VIDEOS / "hevc.mp4", at(0, 60))
    assert capfd.readouterr() == ("", "")


def test_reading_needs_no_jax():
    code = "import sys; sys.modules['jax'] = None; import vvlm_jax.data.video"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=TESTDATA.parents[1])


# Folders of images.


@pytest.fixture
def folder(tmp_path):
    for number, frame in enumerate(make_videos.numbered_frames(12)):
        Image.fromarray(frame).save(tmp_path / f"frame_{number:03d}.png")
    (tmp_path / "notes.txt").write_text("not a frame")
    return tmp_path


def test_a_folder_of_images_is_a_video(folder):
    assert probe(folder) == VideoInfo(12, 2.0, 6.0, 48, 64, 0)
    frames = read_frames(folder, at(0, 5, 5, 11))
    np.testing.assert_array_equal(frames, make_videos.numbered_frames(12)[[0, 5, 5, 11]])
    assert read_frames(folder, everything, size=28).shape == (12, 28, 28, 3)


def test_folders_that_cannot_be_read(folder):
    (folder / "frame_003.png").write_bytes(b"noise")
    with pytest.raises(VideoError, match="frame_003.png: not an image"):
        read_frames(folder, at(3))
    Image.new("RGB", (10, 10)).save(folder / "frame_003.png")
    with pytest.raises(VideoError, match="frames of several sizes .*pass size"):
        read_frames(folder, everything)
    (folder / "empty").mkdir()
    with pytest.raises(VideoError, match="empty: no images in this folder"):
        probe(folder / "empty")


# Writing.


def test_what_is_written_reads_back(tmp_path):
    frames = moving_square()
    write_video(tmp_path / "a.mp4", frames, 8)
    assert probe(tmp_path / "a.mp4") == VideoInfo(32, 8.0, 4.0, 48, 48, 0)
    back = read_frames(tmp_path / "a.mp4", everything)
    assert np.abs(back.astype(int) - frames).mean() < 4  # lossy, and colour is stored at half size


def grainy_square():
    noise = np.random.default_rng(0).integers(-3, 4, (32, 48, 48, 3))
    return np.clip(moving_square() + noise, 0, 255).astype(np.uint8)


def test_the_same_frames_give_the_same_bytes(tmp_path):
    # Often, and with other clips in between: x264 has options that let old memory shine through.
    written = set()
    for clip in range(40):
        write_video(tmp_path / "other.mp4", np.roll(grainy_square(), clip, axis=2), 8)
        write_video(tmp_path / "a.mp4", grainy_square(), 8)
        written.add((tmp_path / "a.mp4").read_bytes())
    assert len(written) == 1


def test_a_rate_that_is_no_whole_number(tmp_path):
    write_video(tmp_path / "a.mp4", moving_square(), 29.97)
    assert probe(tmp_path / "a.mp4").fps == pytest.approx(29.97, abs=1e-3)


def test_options_and_codec_are_obeyed(tmp_path):
    sizes = {}
    for crf in (10, 40):
        write_video(tmp_path / "a.mp4", moving_square(), 8, crf=crf)
        sizes[crf] = (tmp_path / "a.mp4").stat().st_size
    assert sizes[40] < sizes[10]
    write_video(tmp_path / "b.webm", moving_square(), 8, codec="libvpx-vp9", options={"g": "4"})
    with av.open(tmp_path / "b.webm") as container:
        assert container.streams.video[0].codec_context.name == "vp9"
        keys = [p.is_keyframe for p in container.demux(video=0) if p.size]
    assert sum(keys) == 8


@pytest.mark.parametrize(
    ("frames", "message"),
    [
        (np.zeros((2, 35, 51, 3), np.uint8), "even for yuv420p, got 35x51"),
        (np.zeros((0, 48, 48, 3), np.uint8), r"must be uint8 \[T, H, W, 3\], got uint8 \[0, 48"),
        (np.zeros((2, 48, 48, 3), np.float32), "must be uint8 .*, got float32"),
        (np.zeros((2, 48, 48), np.uint8), r"must be uint8 .*, got uint8 \[2, 48, 48\]"),
    ],
)
def test_frames_that_cannot_be_stored(frames, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        write_video(tmp_path / "a.mp4", frames, 8)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "a.mp4"
    write_video(path, moving_square(), 8)
    before = path.read_bytes()

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(video.os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_video(path, moving_square()[::-1], 8)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.mp4"]
