"""Make the small videos in `videos/`, with tools that are not ours.

    python tests/testdata/make_videos.py        # needs the ffmpeg command; the tests do not

Every frame carries its number, so that a test can tell which frame it was given: eight blocks
along the top are the bits of the number, white for 1, most significant first. Below them a red
corner (left), a blue corner (right) and a wandering square, so that no turn or mirror image can
pass for upright. `frames.json` holds, for each readable file, the numbers and the size that the
ffmpeg command itself sees: [height, width, [number, …]].

One file, mirrored.mp4, comes from PyAV: the ffmpeg command of Debian 12 cannot write a mirroring
display matrix.
"""

import json
import shutil
import subprocess
import tempfile
from pathlib import Path

import av
import numpy as np

OUT = Path(__file__).parent / "videos"
FPS = 12

X264 = ("-c:v", "libx264", "-crf", "30", "-preset", "medium", "-bf", "3", "-threads", "1")
X265 = ("-c:v", "libx265", "-crf", "34", "-tag:v", "hvc1", "-threads", "1")
COPY = ("-c", "copy")
FASTSTART = ("-movflags", "+faststart")

# name → options of the ffmpeg command, its input being 72 numbered frames of 64 × 48.
ENCODED = {
    "h264_one_gop.mp4": (*X264, "-g", "250", *FASTSTART),
    "h264_open_gop.mp4": (*X264, "-x264-params", "keyint=9:min-keyint=9:scenecut=0:open-gop=1"),
    "h264.ts": (*X264, "-x264-params", "keyint=9:min-keyint=9:scenecut=0:open-gop=1"),
    "hevc.mp4": (*X265, "-x265-params", "keyint=9:min-keyint=9:open-gop=1:log-level=error"),
    "vp9.webm": ("-c:v", "libvpx-vp9", "-g", "9", "-crf", "45", "-b:v", "0", "-row-mt", "0"),
    "av1.mp4": ("-c:v", "libaom-av1", "-g", "9", "-crf", "50", "-b:v", "0", "-cpu-used", "6"),
    "mpeg4.avi": ("-c:v", "mpeg4", "-bf", "2", "-g", "18", "-q:v", "12"),
    "varying_rate.mp4": (
        *("-vf", "setpts='(N+floor(N*N/9))/(12*TB)'", "-vsync", "vfr", "-video_track_timescale"),
        *("12000", *X264, "-g", "9"),
    ),
}

# name → (source, options before the input, options after it).
REMUXED = {
    "h264.mkv": ("h264_open_gop.mp4", (), COPY),
    "h264.avi": ("h264_open_gop.mp4", (), COPY),
    "trimmed.mp4": ("h264_one_gop.mp4", ("-ss", "1"), COPY),  # an edit list hides the start
}


def numbered_frames(count: int, height: int = 48, width: int = 64) -> np.ndarray:
    """Return uint8 [count, height, width, 3]; see the top of this file."""
    frames = np.full((count, height, width, 3), (70, 110, 90), np.uint8)
    edges = np.arange(9) * width // 8
    for number, frame in enumerate(frames):
        for bit in range(8):
            frame[:16, edges[bit] : edges[bit + 1]] = 235 if number >> (7 - bit) & 1 else 16
        frame[-10:, :12] = 220, 20, 20
        frame[-10:, -12:] = 20, 20, 220
        x = 14 + number % (width - 34)
        frame[20:28, x : x + 8] = 230, 220, 40
    return frames


def ffmpeg(*arguments: str | Path, stdin: bytes | None = None) -> bytes:
    """Run the ffmpeg command; its complaints are ours."""
    command = ["ffmpeg", "-v", "error", "-y", *map(str, arguments)]
    return subprocess.run(command, input=stdin, stdout=subprocess.PIPE, check=True).stdout


def encode(name: str, options: tuple[str, ...], frames: np.ndarray, *more_inputs: str) -> None:
    """Pipe raw frames through the ffmpeg command into `name`."""
    _, height, width, _ = frames.shape
    raw = ("-f", "rawvideo", "-pix_fmt", "rgb24", "-s", f"{width}x{height}", "-r", str(FPS))
    pixels = () if "-pix_fmt" in options else ("-pix_fmt", "yuv420p")
    bitexact = ("-fflags", "+bitexact", "-flags:v", "+bitexact")
    inputs = (*raw, "-i", "-", *more_inputs)
    ffmpeg(*inputs, *options, *pixels, *bitexact, OUT / name, stdin=frames.tobytes())


def make_readable() -> None:
    """Write files that must be read without a warning."""
    frames = numbered_frames(72)
    for name, options in ENCODED.items():
        encode(name, options, frames)
    for name, (source, before, after) in REMUXED.items():
        ffmpeg(*before, "-i", OUT / source, *after, "-fflags", "+bitexact", OUT / name)
    encode("one_frame.mp4", X264, frames[:1])
    odd = numbered_frames(12, 35, 51)
    encode("odd_35x51.mp4", (*X264, "-pix_fmt", "yuv444p"), odd)
    for quarters in (1, 2, 3):  # stored turned one way, to be shown turned the other way
        turned = np.ascontiguousarray(np.rot90(frames[:12], -quarters, (1, 2)))
        turn = (*COPY, "-metadata:s:v", f"rotate={90 * quarters}", "-fflags", "+bitexact")
        encode("turned.mp4", X264, turned)
        ffmpeg("-i", OUT / "turned.mp4", *turn, OUT / f"turned_{90 * quarters}.mp4")
    (OUT / "turned.mp4").unlink()
    tone = ("-f", "lavfi", "-i", "sine=frequency=440:duration=1:sample_rate=8000")
    encode("with_audio.mp4", (*X264, "-c:a", "aac", "-b:a", "8k"), frames[:12], *tone)
    shutil.copy(OUT / "h264_one_gop.mp4", OUT / "really_mp4.avi")
    make_vp8()
    make_cut_at_keyframe()
    make_mirrored(frames[:12, :, ::-1])


def make_vp8() -> None:
    """Encode in two passes: VP8 then puts hidden reference frames between those that are shown."""
    vp8 = ("-c:v", "libvpx", "-auto-alt-ref", "1", "-lag-in-frames", "16", "-b:v", "60k")
    with tempfile.TemporaryDirectory() as logs:
        once = ("-i", OUT / "h264_one_gop.mp4", *vp8, "-g", "72", "-passlogfile", f"{logs}/vp8")
        ffmpeg(*once, "-pass", "1", "-f", "null", "-")
        ffmpeg(
            *once, "-pass", "2", "-fflags", "+bitexact", "-flags:v", "+bitexact", OUT / "vp8.webm"
        )


def make_cut_at_keyframe() -> None:
    """Write the second half of an open-GOP file: its first packets refer to the first half."""
    with tempfile.TemporaryDirectory() as parts:
        halves = ("-c", "copy", "-f", "segment", "-segment_times", "3")
        ffmpeg("-i", OUT / "h264.ts", *halves, "-fflags", "+bitexact", f"{parts}/%d.ts")
        shutil.copy(f"{parts}/1.ts", OUT / "cut_at_keyframe.ts")


def make_mirrored(frames: np.ndarray) -> None:
    """Write a file whose display matrix mirrors left and right, as front cameras do."""
    with av.open(OUT / "mirrored.mp4", "w", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("libx264", rate=FPS, options={"crf": "30"})
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        stream.codec_context.thread_count = 1
        stream.set_display_rotation(0, hflip=True)
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame.copy())))
        container.mux(stream.encode())


def make_broken() -> None:
    """Write files that must be refused, each for its own reason."""
    tone = ("-f", "lavfi", "-i", "sine=frequency=440:duration=0.5:sample_rate=8000")
    ffmpeg(*tone, "-c:a", "aac", "-b:a", "8k", OUT / "audio_only.m4a")
    cover = ("-f", "lavfi", "-i", "color=red:size=16x16:rate=1:duration=1")
    maps = ("-map", "0", "-map", "1", "-c:a", "libmp3lame", "-b:a", "8k", "-c:v", "png")
    ffmpeg(*tone, *cover, *maps, "-disposition:v", "attached_pic", OUT / "audio_with_cover.mp3")
    for source in ("h264_one_gop.mp4", "vp9.webm", "h264.mkv", "h264.avi"):
        whole = (OUT / source).read_bytes()
        (OUT / f"cut_short{Path(source).suffix}").write_bytes(whole[: len(whole) * 7 // 10])
    (OUT / "headless.mp4").write_bytes((OUT / "hevc.mp4").read_bytes()[:1500])
    (OUT / "zero_bytes.mp4").write_bytes(b"")
    (OUT / "notes.mp4").write_text("This is not a video.\n" * 20)


def read_number(frame: np.ndarray) -> int:
    """Return the number in the top blocks of an upright frame."""
    width = frame.shape[1]
    blocks = [frame[4:12, width * bit // 8 + 2 : width * (bit + 1) // 8 - 2] for bit in range(8)]
    return sum(int(block.mean() > 125) << (7 - bit) for bit, block in enumerate(blocks))


def seen_by_ffmpeg(path: Path) -> list:
    """Return [height, width, numbers] as the ffmpeg command decodes, turns and passes on the
    frames.
    """
    png = ffmpeg("-i", path, "-frames:v", "1", "-f", "image2pipe", "-c:v", "png", "-")
    width, height = (int.from_bytes(png[at : at + 4], "big") for at in (16, 20))
    raw = ffmpeg("-i", path, "-vsync", "passthrough", "-f", "rawvideo", "-pix_fmt", "rgb24", "-")
    frames = np.frombuffer(raw, np.uint8).reshape(-1, height, width, 3)
    return [height, width, [read_number(frame) for frame in frames]]


def main() -> None:
    """Make all files anew."""
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir()
    make_readable()
    seen = {path.name: seen_by_ffmpeg(path) for path in sorted(OUT.iterdir())}
    rows = ",\n".join(f"{json.dumps(name)}: {json.dumps(row)}" for name, row in seen.items())
    (OUT / "frames.json").write_text(f"{{\n{rows}\n}}\n")
    make_broken()


if __name__ == "__main__":
    main()
