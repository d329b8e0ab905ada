"""Choose the frames of a video that the model sees, and resize them.

The rules are those of LLaVA-NeXT (`llava/utils.py`, `SigLipImageProcessor`): one frame a second,
thinned evenly when that is more than the model takes; each frame resized straight to a square,
aspect not kept. The paper adds that a short video repeats its frames, so that every example has
exactly `num_frames` of them. Frames stay uint8 up to the device, where the model scales them.
"""

import math

import numpy as np
from PIL import Image

MODES = ("uniform", "force")


def choose_frames(
    num_native: int, fps: float, num_frames: int, mode: str = "uniform"
) -> np.ndarray:
    """Return the native indices of the chosen frames: int64 [num_frames], non-decreasing.

    `uniform` takes every round(fps)-th frame, one a second. If that grid is longer than
    `num_frames`, an even spread over all native frames (truncated linspace) replaces it; if it is
    shorter, its frames are repeated in order, as evenly as possible. `force` always spreads over
    all native frames.

    Example: 10 s at 2 fps is 20 native frames with grid 0, 2, …, 18. Four frames of them are
    0, 6, 12, 19; twenty are 0, 0, 2, 2, …, 18, 18 (`uniform`) or 0, 1, …, 19 (`force`).

    Raises ValueError for a count below 1, an fps that is not positive, an unknown mode.
    """
    _check_choice(num_native, fps, num_frames, mode)
    grid = np.arange(0, num_native, max(1, round(fps)), dtype=np.int64)
    if mode == "force" or len(grid) > num_frames:
        return np.linspace(0, num_native - 1, num_frames, dtype=np.int64)
    return grid[np.arange(num_frames) * len(grid) // num_frames]


def _check_choice(num_native: int, fps: float, num_frames: int, mode: str) -> None:
    for field, value in (("num_native", num_native), ("num_frames", num_frames)):
        if value < 1:
            raise ValueError(f"{field}={value}: must be 1 or more")
    if not (math.isfinite(fps) and fps > 0):
        raise ValueError(f"fps={fps}: must be a positive number")
    if mode not in MODES:
        raise ValueError(f"mode={mode!r}: must be one of {', '.join(MODES)}")


def resize_square(frame: np.ndarray, size: int) -> np.ndarray:
    """Resize uint8 [H, W, 3] to [size, size, 3] by PIL bicubic, unless it has that size."""
    if frame.shape[:2] == (size, size):
        return frame
    return np.asarray(Image.fromarray(frame).resize((size, size), Image.Resampling.BICUBIC))
