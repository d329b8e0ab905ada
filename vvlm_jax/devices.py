"""Accelerators: peak rates and memory as their makers state them, and which are present here."""

import ctypes
import gc
import math
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from vvlm_jax.config import ConfigError
from vvlm_jax.config_check import nearest

GIB = 2**30

_FILES = ("nvidia[0-9]*", "accel[0-9]*", "vfio/[0-9]*")
"""In /dev: NVIDIA GPUs; TPUs, by either of their drivers."""


@dataclass(frozen=True)
class TpuGeneration:
    """A generation of TPUs: its hardware, and its names in jax, gcloud and GKE."""

    name: str
    """As topologies have it: v5p in v5p:2x2x4."""
    device_kinds: tuple[str, ...]
    """jax's `device_kind` on such a chip starts with one of these."""
    peak_flops: float
    """Dense bfloat16 FLOP/s of one chip."""
    memory: int
    """GiB on the chip, from Google's documentation of Cloud TPU."""
    usable_memory: float | None
    """GiB that a program may use, as the compiler states when it refuses one ("Used … of 95.74G
    hbm", libtpu 0.0.42.1); None where that has not been seen. The system takes the rest.
    """
    topologies: tuple[str, ...]
    """Shapes on sale, for error messages; the compiler accepts others. All have as many sides."""
    accelerator: str
    """Start of gcloud's --accelerator-type."""
    units_per_chip: int
    """Units that its number counts in each chip: 2 cores, or 1 chip."""
    runtime: str
    """gcloud's --runtime-version."""
    gke: str
    """Value of the node label cloud.google.com/gke-tpu-accelerator."""
    chips_per_host: int = 4
    """In slices of several hosts."""

    @property
    def dimensions(self) -> int:
        """Dimensions of the torus that its chips form."""
        return self.topologies[0].count("x") + 1


_CUBES = ("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8")
_SQUARES = ("2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")

TPUS = {
    tpu.name: tpu
    for tpu in (
        TpuGeneration(
            "v4", ("TPU v4",), 275e12, 32, None, _CUBES,
            "v4", 2, "tpu-ubuntu2204-base", "tpu-v4-podslice",
        ),
        TpuGeneration(
            "v5e", ("TPU v5e", "TPU v5 lite"), 197e12, 16, 15.75, _SQUARES,
            "v5litepod", 1, "v2-alpha-tpuv5-lite", "tpu-v5-lite-podslice",
        ),
        TpuGeneration(
            "v5p", ("TPU v5p", "TPU v5"), 459e12, 95, 95.74, _CUBES,
            "v5p", 2, "v2-alpha-tpuv5", "tpu-v5p-slice",
        ),
        TpuGeneration(
            "v6e", ("TPU v6e", "TPU v6 lite"), 918e12, 32, 31.25, _SQUARES,
            "v6e", 1, "v2-alpha-tpuv6e", "tpu-v6e-slice",
        ),
    )
}  # fmt: skip
"""TPU generations by name."""

_PEAK_BF16 = {kind: tpu.peak_flops for tpu in TPUS.values() for kind in tpu.device_kinds} | {
    "NVIDIA A100": 312e12,
    "NVIDIA H100": 989e12,
    "NVIDIA H200": 989e12,
    "NVIDIA B200": 2250e12,
}
"""Start of jax's `device_kind` → dense bfloat16 FLOP/s of one chip. The longest match counts."""


@dataclass(frozen=True)
class Topology:
    """A slice of a TPU pod, such as v5p:2x2x4."""

    generation: TpuGeneration
    shape: tuple[int, ...]
    """Chips along each side."""

    @property
    def chips(self) -> int:
        """Chips in the slice."""
        return math.prod(self.shape)

    @property
    def sides(self) -> str:
        """Chips along each side as text, such as 2x2x4."""
        return "x".join(map(str, self.shape))

    def __str__(self) -> str:
        return f"{self.generation.name}:{self.sides}"


def parse_topology(name: str, option: str = "--topology ") -> Topology:
    """Parse a topology such as "v5p:2x2x4".

    Args:
      option: what errors put in front of the name.

    Raises ConfigError for an unknown generation, or a shape that it does not have.
    """
    kind, _, sides = name.partition(":")
    if kind not in TPUS:
        known = [f"{k}:{shape}" for k, tpu in TPUS.items() for shape in tpu.topologies]
        raise ConfigError(f"{option}{name}: unknown TPU generation; {nearest(name, known)}")
    shape = tuple(int(s) for s in sides.split("x")) if re.fullmatch(r"\d+(x\d+)*", sides) else ()
    if len(shape) != TPUS[kind].dimensions or not math.prod(shape):
        raise ConfigError(f"{option}{name}: must be like {known_topologies(kind)}")
    return Topology(TPUS[kind], shape)


def known_topologies(generation: str) -> str:
    """List the topologies on sale of a TPU generation, for messages."""
    return ", ".join(f"{generation}:{shape}" for shape in TPUS[generation].topologies)


def peak_flops(device_kind: str) -> float | None:
    """Return the bfloat16 FLOP/s of one chip; None when it is unknown, as for a CPU."""
    known = [name for name in _PEAK_BF16 if device_kind.startswith(name)]
    return _PEAK_BF16[max(known, key=len)] if known else None


def known_devices() -> tuple[str, ...]:
    """Return the device names that `peak_flops` knows."""
    return tuple(_PEAK_BF16)


def device_files() -> list[Path]:
    """Return the device files of accelerators, whether or not jax can use them."""
    return [path for pattern in _FILES for path in sorted(Path("/dev").glob(pattern))]


def keep_freed_memory() -> None:
    """Keep memory that a step frees in the process, for the next step, on machines without
    accelerators.

    By default glibc returns large blocks to the system at once, and every step then takes a page
    fault for each 4 KiB of its activations, up to a sixth of its time. Call this before jax starts
    threads: those that already run have heaps of their own. `malloc_trim` still returns free
    memory.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None or device_files():
        return
    for option, value in ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1), (_ARENA_MAX, 1)):
        mallopt(option, value)


def release_memory() -> None:
    """Drop compiled programs, and return the memory that compiling freed to the system.

    Without this a worker grows by about 100 MB with every new shape, to several GB in a sweep of 45
    runs. A program that is needed again is read from the compilation cache on disk.
    """
    if jax := sys.modules.get("jax"):
        jax.clear_caches()
    gc.collect()
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)):
        trim(0)


_TRIM_THRESHOLD, _MMAP_MAX, _ARENA_MAX = -1, -4, -8
"""Options of mallopt, from glibc's malloc.h."""
