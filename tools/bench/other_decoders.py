"""Decoders that `bench_data` reads with too, where they are installed: decord and torchcodec.

Each reads as a user of it would, on one thread: chosen frames in one call, uint8 [T, H, W, 3].
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np

Reader = Callable[[Path, int, int], np.ndarray]
"""(file, how many frames, pixels along a side or 0) → frames."""

_TOLERANCE = 4.0
"""Mean difference, of 255, that other conversions to RGB may make; another frame differs more."""


def installed() -> tuple[dict[str, Reader], list[str]]:
    """Return {name: reader} of those that work here, and a line for each that does not."""
    readers, missing = {}, []
    for name, make in (("decord", _decord), ("torchcodec", _torchcodec)):
        try:
            readers[name] = make()
        except ModuleNotFoundError:
            missing.append(f"{name}: not installed")
        except (ImportError, OSError, RuntimeError) as e:  # it wants FFmpeg's own libraries
            missing.append(f"{name}: installed, and cannot be used here ({e})".split("\n")[0])
    return readers, missing


def same_frames(ours_THWC: np.ndarray, theirs_THWC: np.ndarray) -> bool:
    """Return whether the pictures are the same up to colour conversion."""
    if ours_THWC.shape != theirs_THWC.shape:
        return False
    differences = np.abs(ours_THWC.astype(np.int16) - theirs_THWC)
    return bool(differences.mean((1, 2, 3)).max() <= _TOLERANCE)


def _decord() -> Reader:
    import decord

    def read(path: Path, count: int, size: int) -> np.ndarray:
        reader = decord.VideoReader(str(path), ctx=decord.cpu(0), num_threads=1)
        ranks, places = _chosen(len(reader), reader.get_avg_fps(), count)
        return _resized(reader.get_batch(ranks).asnumpy(), size)[places]

    return read


def _torchcodec() -> Reader:
    from torchcodec.decoders import VideoDecoder

    def read(path: Path, count: int, size: int) -> np.ndarray:
        decoder = VideoDecoder(str(path), dimension_order="NHWC", num_ffmpeg_threads=1)
        about = decoder.metadata
        ranks, places = _chosen(about.num_frames, about.average_fps, count)
        return _resized(decoder.get_frames_at(ranks.tolist()).data.numpy(), size)[places]

    return read


def _chosen(num_frames: int, fps: float, count: int) -> tuple[np.ndarray, np.ndarray]:
    from vvlm_jax.data.frames import choose_frames

    return np.unique(choose_frames(num_frames, fps, count), return_inverse=True)


def _resized(frames_THWC: np.ndarray, size: int) -> np.ndarray:
    from vvlm_jax.data.frames import resize_square

    return np.stack([resize_square(f, size) for f in frames_THWC]) if size else frames_THWC
