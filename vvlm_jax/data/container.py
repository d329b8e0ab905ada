"""List the frames of a video file from its packets: how many there are and when each is shown.

This module handles what containers state wrongly; `video.py` decodes the frames that it lists.
"""

from collections.abc import Iterator, Set
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
from av.container import InputContainer
from av.stream import Disposition
from av.video.stream import VideoStream

from vvlm_jax.storage.files import AnyPath, Fetched

File = AnyPath | Fetched

# Containers that store presentation times. For others FFmpeg guesses, wrongly for B-frames in AVI.
_KEEP_TIMES = ("mp4", "matroska", "mpegts", "flv")


AGAIN = "copy or download it again"
_CONVERT = "convert it: ffmpeg -i FILE new.mp4"


class VideoError(ValueError):
    """A video that cannot be read. One line: the path, what is wrong with it, what to do."""


class _Packet(NamedTuple):
    pts: int | None
    dts: int | None
    duration: int
    is_key: bool
    is_shown: bool
    is_whole: bool


@dataclass(frozen=True)
class Scan:
    """The N frames of a file, as its packets list them."""

    num_frames: int
    fps: float
    pts_N: np.ndarray | None  # presentation times, ascending; None if the file stores none
    key_rank_K: np.ndarray  # first frame shown after decoding starts at each keyframe, ascending
    key_time_K: np.ndarray  # where to seek for it


def scan_file(path: File) -> Scan:
    """List the frames of a file without decoding. Raises VideoError if it is cut or not a video."""
    with opened(path) as (container, stream):
        packets = list(_packets(container, stream))
        kind = container.format.name
        keeps_times = any(name in kind for name in _KEEP_TIMES)
        shown = _shown(packets)
        fps = _average_fps(stream, shown)
        expected = len(shown) + _num_lost(container, stream, packets, shown, fps)
    if expected > len(shown):
        raise truncated(path, count_decodable(path), expected)
    if not shown:
        raise VideoError(f"{path}: no frames; {AGAIN}")
    pts_N = _times(shown) if keeps_times else None
    return Scan(len(shown), fps, pts_N, *_seek_points(packets, pts_N, "mp4" in kind))


def _seek_points(
    packets: list[_Packet], pts_N: np.ndarray | None, by_pts: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Return for each of K keyframes the rank of the first frame it gives, and its seek time.

    In MP4 FFmpeg seeks by presentation time: any earlier time leads to the previous keyframe. Other
    containers may be searched by decoding time.
    """
    keys = sorted((p.pts, p.dts) for p in packets if p.is_key and None not in (p.pts, p.dts))
    if pts_N is None or not keys:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    pts_K, dts_K = np.array(keys, np.int64).T
    return np.searchsorted(pts_N, pts_K), pts_K if by_pts else np.minimum(pts_K, dts_K)


def _packets(container: InputContainer, stream: VideoStream) -> Iterator[_Packet]:
    is_vp8 = stream.codec_context.name == "vp8"
    for packet in container.demux(stream):
        if packet.size:
            # In VP8, frames that are only references have packets of their own, without bit 4.
            hidden = packet.is_discard or (is_vp8 and not memoryview(packet)[0] & 0x10)
            times = packet.pts, packet.dts, packet.duration or 0
            yield _Packet(*times, packet.is_keyframe, not hidden, not packet.is_corrupt)


def _shown(packets: list[_Packet]) -> list[_Packet]:
    """Return the packets that become frames, in presentation order where that is known.

    Edit lists hide packets. Packets presented before the first keyframe refer to frames that were
    cut off, and no decoder outputs them.
    """
    shown = [p for p in packets if p.is_shown and p.is_whole]
    if any(p.pts is None for p in shown):
        return shown
    start = min((p.pts for p in packets if p.is_key and p.pts is not None), default=None)
    return sorted(p for p in shown if start is None or p.pts >= start)


def _times(shown: list[_Packet]) -> np.ndarray | None:
    if any(p.pts is None for p in shown):
        return None
    pts_N = np.array([p.pts for p in shown], np.int64)
    return pts_N if (np.diff(pts_N) > 0).all() else None


def _average_fps(stream: VideoStream, shown: list[_Packet]) -> float:
    """Return the header's average rate, unless the packets differ from it by a tenth or more."""
    header = float(stream.average_rate or stream.guessed_rate or 0)
    seconds = _seconds(stream, shown)
    measured = len(shown) / seconds if seconds > 0 else 0.0
    if not measured or abs(header / measured - 1) < 0.1:
        return header or 1.0
    return measured


def _seconds(stream: VideoStream, shown: list[_Packet]) -> float:
    """Return the time from the first frame to the end of the last; 0 where times are missing."""
    if _times(shown) is None or not shown:
        return 0.0
    span = shown[-1].pts - shown[0].pts
    last = shown[-1].duration or span / max(1, len(shown) - 1)
    return float((span + last) * stream.time_base)


def _num_lost(
    container: InputContainer,
    stream: VideoStream,
    packets: list[_Packet],
    shown: list[_Packet],
    fps: float,
) -> int:
    """Return how many frames the header announces beyond those in the packets.

    MP4 lists every packet in its header, so the difference is exact (PyAV 17 exposes the list).
    Other files count as truncated if their packets end before 90% of the announced duration.
    """
    whole = sum(p.is_whole for p in packets)
    if "mp4" in container.format.name and hasattr(stream, "index_entries"):
        return max(len(stream.index_entries), len(packets)) - whole
    announced = _announced_seconds(container, stream)
    if 0 < _seconds(stream, shown) < 0.9 * announced:
        return max(1, round(announced * fps) - len(shown))
    return len(packets) - whole


def _announced_seconds(container: InputContainer, stream: VideoStream) -> float:
    """Return the duration of the video stream by the header, 0 if it has none."""
    if stream.duration:
        return float(stream.duration * stream.time_base)
    if tag := stream.metadata.get("DURATION"):  # Matroska, "00:01:02.500000000"
        hours, minutes, seconds = tag.split(":")
        return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
    return (container.duration or 0) / av.time_base if len(container.streams) == 1 else 0.0


# Decoding.


@contextmanager
def opened(path: File) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Open a file for decoding on one thread, other streams skipped; close it at the end.

    Raises VideoError for a missing or empty file, one that is not a video, or an unknown codec.
    """
    if isinstance(path, Fetched):
        path.seek(0)
        size = path.size
    elif isinstance(path, Path) and path.exists():
        size = path.stat().st_size
    else:
        raise VideoError(f"{path}: no such file; check the path")
    if not size:
        raise VideoError(f"{path}: zero bytes; {AGAIN}")
    try:
        with av.open(path) as container:
            yield container, _video_stream(path, container)
    except av.error.FFmpegError as error:
        raise VideoError(
            f"{path}: not a video: {error.strerror}; {AGAIN}, or {_CONVERT}"
        ) from error


def _video_stream(path: File, container: InputContainer) -> VideoStream:
    # FFmpeg reports the cover picture of an audio file as a video stream.
    videos = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not videos:
        kinds = {s.type for s in container.streams} - {"video"}
        only = " and ".join(sorted(kinds)) or "empty"
        raise VideoError(f"{path}: no video stream ({only} only); give a file with a video stream")
    stream = videos[0]
    if stream.codec_context is None:
        raise VideoError(f"{path}: no decoder for its video codec; {_CONVERT}")
    for other in container.streams:
        if other.index != stream.index and hasattr(other, "discard"):  # PyAV 18
            other.discard = av.stream.Discard.all
    stream.codec_context.thread_type = "NONE"
    stream.codec_context.thread_count = 1
    return stream


def decoded(
    container: InputContainer, stream: VideoStream, wanted: Set[int] = frozenset()
) -> Iterator[av.VideoFrame]:
    """Yield frames from the current position on. Damaged packets yield none; callers check times.

    `wanted` holds the presentation times of the frames that the caller needs; it may be filled
    after the first frame. With it, H.264 frames that no other frame refers to are skipped, every
    other frame of x264. Other codecs do not allow it: in HEVC higher layers refer to such frames.
    """
    codec, before = stream.codec_context, True
    can_skip = codec.name == "h264"
    for packet in container.demux(stream):
        if packet.is_corrupt:
            continue
        if can_skip and wanted:
            # The next packet may hold the other field of the same frame.
            now = packet.pts in wanted
            codec.skip_frame = "DEFAULT" if now or before else "NONREF"
            before = now
        try:
            frames = packet.decode()
        except av.error.InvalidDataError:
            continue
        yield from frames


def count_decodable(path: File) -> int:
    """Return the number of frames that decoding the whole file yields."""
    with opened(path) as (container, stream):
        return sum(1 for _ in decoded(container, stream))


def truncated(path: File, num_decoded: int, num_expected: int) -> VideoError:
    """Return the error for a file that holds fewer frames than it announces."""
    return VideoError(
        f"{path}: truncated: {num_decoded} of {num_expected} frames could be decoded; {AGAIN}"
    )
