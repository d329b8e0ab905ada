"""Read the pixels of one example: frames of a video or an image, chosen, resized and cached."""

import queue
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from vvlm_jax.data.frames import choose_frames, resize_square
from vvlm_jax.data.video import VideoError, VideoInfo, read_frames
from vvlm_jax.storage import files

_WHOLE_CLIP_BYTES = 2**20
"""Clips up to this size (decoded, resized) are cached whole, to serve any x_T from memory."""


@contextmanager
def open_image(path: Path) -> Iterator[Image.Image]:
    """Open and load a still image. Raises VideoError naming the file."""
    file = files.fetched(
        path
    )  # outside of `try`: a bucket that does not answer says nothing about the file
    if isinstance(file, files.Key):
        raise VideoError(f"{path}: no such file")
    try:
        with Image.open(file) as image:
            image.load()
            yield image
    except FileNotFoundError:
        raise VideoError(f"{path}: no such file") from None
    except (OSError, SyntaxError, Image.DecompressionBombError) as e:  # PIL raises all of these
        raise VideoError(f"{path}: not a readable image: {e}") from None


class ClipCache:
    """A thread-safe cache of decoded clips that evicts the least recently used."""

    def __init__(self):
        self._clips: OrderedDict = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def get(self, key):
        """Return the (frames, info) cached under `key`, or None."""
        with self._lock:
            if key in self._clips:
                self._clips.move_to_end(key)
            return self._clips.get(key)

    def put(self, key, frames: np.ndarray, info: VideoInfo, limit_mb: int) -> None:
        """Cache (frames, info), and evict old clips above `limit_mb` MiB in all."""
        with self._lock:
            if key not in self._clips:
                self._clips[key] = frames, info
                self._bytes += frames.nbytes
            while self._bytes > limit_mb * 2**20:
                self._bytes -= self._clips.popitem(last=False)[1][0].nbytes


_CACHE = ClipCache()
"""One cache a process: consecutive runs of a sweep read the same clips."""


@dataclass(frozen=True)
class FrameReader:
    """A reader of exactly `num_frames` frames a video, as uint8 [T, H, H, 3].

    With `cache_mb` above 0, short clips are cached in memory after they are read once.
    """

    root: str | Path
    num_frames: int
    image_size: int
    sampling: str = "uniform"
    cache_mb: int = 0

    def video(self, name: str) -> np.ndarray:
        """Return the frames of a video, chosen by `sampling`. Raises VideoError naming the file."""
        path = files.path_of(self.root) / name
        if not self.cache_mb:
            return read_frames(path, self._choose, size=self.image_size)
        key = (str(path), self.image_size)
        if (kept := _CACHE.get(key)) is None:
            kept = self._read_whole_if_short(path)
            if kept[0] is None:
                return kept[1]
            _CACHE.put(key, *kept, self.cache_mb)
        frames, info = kept
        return frames[self._choose(info)]

    def image(self, name: str, num_frames: int | None = None) -> np.ndarray:
        """Return an image repeated to `num_frames` frames, the reader's own number by default.

        Raises VideoError naming the file.
        """
        with open_image(files.path_of(self.root) / name) as image:
            pixels = resize_square(np.asarray(image.convert("RGB")), self.image_size)
        return np.repeat(pixels[None], num_frames or self.num_frames, axis=0)

    def _choose(self, info: VideoInfo) -> np.ndarray:
        return choose_frames(info.num_frames, info.fps, self.num_frames, self.sampling)

    def _read_whole_if_short(self, path: Path):
        """Return (all frames, info) of a clip that fits the cache, else (None, chosen frames)."""
        seen = []

        def choose(info):
            seen.append(info)
            return np.arange(info.num_frames) if self._fits(info) else self._choose(info)

        frames = read_frames(path, choose, size=self.image_size)
        return (frames, seen[0]) if self._fits(seen[0]) else (None, frames)

    def _fits(self, info: VideoInfo) -> bool:
        return info.num_frames * self.image_size**2 * 3 <= _WHOLE_CLIP_BYTES


class TooLate(VideoError):
    """A file that was not read within the time limit; it may be readable later."""


def within(seconds: float, name: str, read, *args):
    """Return `read(*args)`, called in a daemon thread that is abandoned after `seconds`.

    A decoder that hangs cannot be stopped; abandoned, it delays neither the run nor its exit.

    Raises what `read` raises, or TooLate naming the file.
    """
    outcome = queue.SimpleQueue()

    def work():
        try:
            outcome.put((read(*args), None))
        except BaseException as e:  # re-raised in the caller's thread
            outcome.put((None, e))

    threading.Thread(target=work, daemon=True, name=f"read {name}").start()
    try:
        value, error = outcome.get(timeout=seconds)
    except queue.Empty:
        raise TooLate(f"{name}: not read within {seconds:g} s (data.max_read_seconds)") from None
    if error is not None:
        raise error
    return value
