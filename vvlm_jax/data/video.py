"""Read chosen frames of a video exactly; write small videos reproducibly.

A frame is identified by its rank in presentation order: 0 is the first one. Headers are often wrong
about the number of frames, and `rank / fps` is wrong if the frame rate varies. So one pass over the
packets, without decoding, lists the presentation time of each frame; a decoded frame is recognised
by its time. Where a container stores no such times (AVI), the whole file is decoded and its frames
are counted.

A frame that cannot be read raises VideoError; none is made up or silently repeated. A folder of
images, sorted by name, is a video too.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream
from PIL import Image

from vvlm_jax import atomic
from vvlm_jax.data.container import (
    AGAIN,
    File,
    Scan,
    VideoError,
    decoded,
    opened,
    scan_file,
    truncated,
)
from vvlm_jax.data.frames import resize_square
from vvlm_jax.storage.files import AnyPath, Fetched, fetched, path_of

FOLDER_FPS = 2.0  # LLaVA-Hound ships folders of frames, two a second
IMAGE_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".png", ".webp")

_SEEK_GAIN = 24  # a seek must save this many decoded frames to be faster
# On small frames x264's macroblock tree reads uninitialised memory: with it, 60 encodings of one
# 48 × 48 clip give about six different files.
_X264 = {"preset": "fast", "mbtree": "0"}
# PyAV 17 and later convert colours on all threads by default; earlier versions use one.
_ONE_THREAD = {"threads": 1} if int(av.__version__.split(".")[0]) >= 17 else {}


@dataclass(frozen=True)
class VideoInfo:
    """Properties of a video for `choose`. Height and width are those of upright pixels."""

    num_frames: int
    fps: float  # average over the video
    duration_s: float
    height: int
    width: int
    rotation: int  # degrees counter-clockwise by which stored pixels were turned; 0 if mirrored


def probe(path: str | os.PathLike) -> VideoInfo:
    """Return the properties of a video file, or of a folder of images at `FOLDER_FPS`.

    The frame count is that of the packets, not of the header. One frame is decoded, for its size
    and rotation. Raises VideoError as `read_frames` does.
    """
    path = fetched(path_of(path))
    if _is_folder(path):
        return _folder_info(_folder_images(path))
    scan = scan_file(path)
    with opened(path) as (container, stream):
        return _info(scan, _first(path, scan, decoded(container, stream)))


def read_frames(
    path: str | os.PathLike,
    choose: Callable[[VideoInfo], np.ndarray],
    *,
    size: int | None = None,
) -> np.ndarray:
    """Return the chosen frames: uint8 [T, H, W, 3] RGB, upright.

    `choose(info)` returns T native indices, non-decreasing; a repeated index is decoded once.
    With `size`, each frame is resized to size × size by PIL bicubic as in `frames.resize_square`.
    Decoding uses one thread, so that many workers can read at once.

    Raises VideoError if the file is missing, empty, truncated, not a video, or lacks one of the
    chosen frames; ValueError if the choice is out of order or out of range.
    """
    path = fetched(path_of(path))
    if _is_folder(path):
        return _read_folder(path, choose, size)
    scan = scan_file(path)
    with opened(path) as (container, stream):
        wanted: set[int] = set()
        frames = decoded(container, stream, wanted)
        first = _first(path, scan, frames)
        ranks, places = _checked_choice(choose, _info(scan, first))
        convert = _converter(first, size)
        if scan.pts_N is not None:
            wanted.update(scan.pts_N[ranks].tolist())
        frames = _put_back(first, frames)
        images = _read_by_time(container, stream, frames, scan, ranks, wanted, convert)
    if images is None:
        images = _read_by_rank(path, scan, ranks, convert)
    return _stacked(path, images, places)


def write_video(
    path: str | os.PathLike,
    frames_THWC: np.ndarray,
    fps: float,
    *,
    codec: str = "libx264",
    crf: int = 18,
    options: dict[str, str] | None = None,
) -> None:
    """Encode uint8 [T, H, W, 3] RGB frames; the suffix of `path` names the container.

    Stored as yuv420p, so height and width must be even. `options` of the encoder override
    the defaults, with which libx264 gives the same bytes for the same input. The file is written
    atomically. Raises ValueError for frames that cannot be stored.
    """
    path = Path(path)
    _check_frames(frames_THWC)
    defaults = {"crf": str(crf)} | (_X264 if codec == "libx264" else {})
    with atomic.replacing(path, shared=True) as partial:
        _encode(partial, frames_THWC, fps, codec, defaults | (options or {}))


# Decoding.


def _first(path: File, scan: Scan, frames: Iterator[av.VideoFrame]) -> av.VideoFrame:
    first = next(frames, None)
    if first is None:
        raise truncated(path, 0, scan.num_frames)
    return first


def _put_back(first: av.VideoFrame, frames: Iterator[av.VideoFrame]) -> Iterator[av.VideoFrame]:
    yield first
    yield from frames


def _info(scan: Scan, first: av.VideoFrame) -> VideoInfo:
    pose = _pose(first)
    height, width = (first.width, first.height) if pose[0] else (first.height, first.width)
    rotation = _ROTATIONS.get(pose, 0)
    return VideoInfo(scan.num_frames, scan.fps, scan.num_frames / scan.fps, height, width, rotation)


def _checked_choice(
    choose: Callable[[VideoInfo], np.ndarray], info: VideoInfo
) -> tuple[np.ndarray, np.ndarray]:
    """Return the distinct indices [U], and int [T], the position of each frame among them."""
    chosen = np.asarray(choose(info))
    if chosen.ndim != 1 or not len(chosen) or not np.issubdtype(chosen.dtype, np.integer):
        raise ValueError(f"choose: must return a list of frame indices, got {chosen!r}")
    if chosen[0] < 0 or chosen[-1] >= info.num_frames or (np.diff(chosen) < 0).any():
        raise ValueError(
            f"choose: indices must be non-decreasing in 0..{info.num_frames - 1}, "
            f"got {chosen.tolist()}"
        )
    return np.unique(chosen, return_inverse=True)


def _read_by_time(
    container: InputContainer,
    stream: VideoStream,
    frames: Iterator[av.VideoFrame],
    scan: Scan,
    ranks: np.ndarray,
    wanted: set[int],
    convert: Callable[[av.VideoFrame], np.ndarray],
) -> list[np.ndarray] | None:
    """Decode or seek to each rank in turn; None if the decoder does not keep presentation times."""
    if scan.pts_N is None:
        return None
    images, position = [], 0
    for rank in ranks:
        key = np.searchsorted(scan.key_rank_K, rank, side="right") - 1
        if key >= 0 and scan.key_rank_K[key] > position + _SEEK_GAIN:
            container.seek(int(scan.key_time_K[key]), stream=stream)
            frames = decoded(container, stream, wanted)
        frame = _frame_at(frames, scan.pts_N[rank])
        if frame is None:
            return None
        images.append(convert(frame))
        position = rank + 1
    return images


def _frame_at(frames: Iterator[av.VideoFrame], pts: int) -> av.VideoFrame | None:
    for frame in frames:
        if frame.pts is None or frame.pts > pts:
            return None
        if frame.pts == pts:
            return None if frame.is_corrupt else frame
    return None


def _read_by_rank(
    path: File, scan: Scan, ranks: np.ndarray, convert: Callable[[av.VideoFrame], np.ndarray]
) -> list[np.ndarray]:
    """Decode the whole file and pick frames by count. Raises VideoError if the count is short:
    a missing frame would shift all later ones.
    """
    wanted, images, count = set(ranks.tolist()), [], 0
    with opened(path) as (container, stream):
        for frame in decoded(container, stream):
            if count in wanted:
                images.append(convert(frame))
            count += 1
    if count < scan.num_frames:
        raise truncated(path, count, scan.num_frames)
    return images


# Pixels.

# Values of `_pose` in degrees counter-clockwise; the other poses are mirrored.
_ROTATIONS = {(False, 1, 1): 0, (True, -1, 1): 90, (False, -1, -1): 180, (True, 1, -1): 270}


def _pose(frame: av.VideoFrame) -> tuple[bool, int, int]:
    """Return (swap axes, row step, column step), which turn stored pixels upright.

    The display matrix maps the stored point (x, y) to (a·x + c·y, b·x + d·y).
    """
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return False, 1, 1
    a, b, _, c, d = np.frombuffer(memoryview(matrix), np.int32)[:5].tolist()
    swapped = abs(b) > abs(a)
    down, right = (b, c) if swapped else (d, a)
    return swapped, -1 if down < 0 else 1, -1 if right < 0 else 1


def _converter(first: av.VideoFrame, size: int | None) -> Callable[[av.VideoFrame], np.ndarray]:
    """Return a function from a decoded frame to upright RGB.

    It shares one reformatter, which takes 0.2 ms to construct.
    """
    swapped, down, right = _pose(first)
    to_rgb = VideoReformatter()

    def convert(frame: av.VideoFrame) -> np.ndarray:
        image = to_rgb.reformat(frame, format="rgb24", **_ONE_THREAD).to_ndarray()
        image = (image.swapaxes(0, 1) if swapped else image)[::down, ::right]
        return image if size is None else resize_square(image, size)

    return convert


def _stacked(path: File, images: list[np.ndarray], places: np.ndarray) -> np.ndarray:
    shapes = sorted({image.shape[:2] for image in images})
    if len(shapes) > 1:
        raise VideoError(f"{path}: frames of several sizes {shapes}; pass size to make them equal")
    return np.stack([images[place] for place in places])


# Folders of images.


def _is_folder(path: File) -> bool:
    return not isinstance(path, Fetched) and path.is_dir()


def _folder_images(path: AnyPath) -> list[AnyPath]:
    visible = [p for p in path.iterdir() if not p.name.startswith(".")]
    images = sorted(p for p in visible if p.suffix.lower() in IMAGE_SUFFIXES)
    if not images:
        raise VideoError(f"{path}: no images in this folder ({' '.join(IMAGE_SUFFIXES)})")
    return images


def _folder_info(images: list[Path]) -> VideoInfo:
    height, width = _read_image(images[0]).shape[:2]
    return VideoInfo(len(images), FOLDER_FPS, len(images) / FOLDER_FPS, height, width, 0)


def _read_folder(
    path: Path, choose: Callable[[VideoInfo], np.ndarray], size: int | None
) -> np.ndarray:
    files = _folder_images(path)
    ranks, places = _checked_choice(choose, _folder_info(files))
    images = [_read_image(files[rank]) for rank in ranks]
    if size is not None:
        images = [resize_square(image, size) for image in images]
    return _stacked(path, images, places)


def _read_image(path: AnyPath) -> np.ndarray:
    file = fetched(
        path
    )  # outside of `try`: a bucket that does not answer says nothing about the file
    try:
        with Image.open(file) as image:
            return np.asarray(image.convert("RGB"))
    except OSError as error:
        raise VideoError(f"{path}: not an image: {error}; {AGAIN}") from error


# Encoding.


def _check_frames(frames_THWC: np.ndarray) -> None:
    shape, dtype = frames_THWC.shape, frames_THWC.dtype
    if dtype != np.uint8 or len(shape) != 4 or shape[3] != 3 or not shape[0]:
        raise ValueError(f"frames: must be uint8 [T, H, W, 3], got {dtype} {list(shape)}")
    if shape[1] % 2 or shape[2] % 2 or not shape[1] * shape[2]:
        raise ValueError(
            f"frames: height and width must be even for yuv420p, got {shape[1]}x{shape[2]}"
        )


def _encode(
    path: Path, frames_THWC: np.ndarray, fps: float, codec: str, options: dict[str, str]
) -> None:
    _, height, width, _ = frames_THWC.shape
    to_yuv = VideoReformatter()
    rate = Fraction(fps).limit_denominator(1001)
    with av.open(path, "w", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream(codec, rate=rate, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.codec_context.thread_count = 1
        for pixels in frames_THWC:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            container.mux(stream.encode(to_yuv.reformat(frame, format="yuv420p", **_ONE_THREAD)))
        container.mux(stream.encode())
