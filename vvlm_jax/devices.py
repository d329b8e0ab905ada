"""Accelerators: which are here, and their peak rates, as their makers state them."""

import ctypes
import gc
import sys
from pathlib import Path

_FILES = ("nvidia[0-9]*", "accel[0-9]*", "vfio/[0-9]*")
"""In /dev: NVIDIA GPUs; TPUs, by either of their drivers."""

_PEAK_BF16 = {
    "TPU v4": 275e12,
    "TPU v5 lite": 197e12,
    "TPU v5e": 197e12,
    "TPU v5p": 459e12,
    "TPU v5": 459e12,
    "TPU v6 lite": 918e12,
    "TPU v6e": 918e12,
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA B200": 2250e12,
}
"""Start of jax's `device_kind` → dense bfloat16 FLOP/s of one chip. The longest match counts."""


def peak_flops(device_kind: str) -> float | None:
    """bfloat16 FLOP/s of a chip; None for one that is not known, such as a CPU."""
    known = [name for name in _PEAK_BF16 if device_kind.startswith(name)]
    return _PEAK_BF16[max(known, key=len)] if known else None


def known_devices() -> tuple[str, ...]:
    """Names that `peak_flops` knows."""
    return tuple(_PEAK_BF16)


def device_files() -> list[Path]:
    """Files of accelerators that the system knows, whether or not jax can use them."""
    return [path for pattern in _FILES for path in sorted(Path("/dev").glob(pattern))]


def keep_freed_memory() -> None:
    """Without an accelerator: what a step frees stays with the process, for the next step.

    glibc hands large blocks back at once, and every step then takes a page fault for each 4 KiB of
    its activations, up to a sixth of its time. To be called before jax is: threads that have run
    have heaps of their own. `malloc_trim` still gives back what is free.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None or device_files():
        return
    for option, value in ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1), (_ARENA_MAX, 1)):
        mallopt(option, value)


def release_memory() -> None:
    """Drops compiled programs, and returns what compiling freed to the system.

    Else a worker grows by some 100 MB with every new shape, to several GB in a sweep of 45 runs.
    A program that is needed again is read from the compilation cache on disk.
    """
    if jax := sys.modules.get("jax"):
        jax.clear_caches()
    gc.collect()
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        trim(0)


_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8
"""Of glibc's malloc.h: no block outside the heap, never trimmed, one heap for all threads."""
