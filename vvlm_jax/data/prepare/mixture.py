"""Describe mixtures of data sets: annotation files, numbers of examples, and folders of media.

A mixture is data (`configs/mixtures.py`); this module reads no files.
"""

import math
import re
import zlib
from dataclasses import dataclass, replace

import numpy as np

from vvlm_jax.config import ConfigError
from vvlm_jax.config_check import nearest

_STRATEGY = re.compile(r"(first|end|random):(\d+)(%?)")


@dataclass(frozen=True)
class SourceConfig:
    """Annotation files of one kind."""

    annotations: str
    """Glob relative to the root of all sources: `LLaVA-Video-178K/*_academic_v0_1/*cap*.json`. A
    `.json` file holds a list, a `.jsonl` file one row on each line.
    """
    media: tuple[str, ...] = ("{folder}",)
    """Folders, relative to the root, that the rows' paths are relative to; the first that has the
    file counts. `{folder}` is the annotation file's own.
    """
    archives: str = ""
    """Glob of archives, relative to the root, that are extracted into the first of the folders; it
    may contain `{folder}`, too.
    """
    sampling: str = "all"
    """Rows to take from each file: `all`, `first:N`, `end:N`, `random:N`; N may be a percentage,
    rounded up, as in LLaVA-NeXT's mixtures.
    """


@dataclass(frozen=True)
class SubsetConfig:
    """One row of a mixture's table."""

    name: str
    sources: tuple[SourceConfig, ...]
    examples: int | None = None
    """Published number of examples; None if unknown."""
    published: str = ""
    """Where the files can be downloaded, for error messages."""


@dataclass(frozen=True)
class MixtureConfig:
    """A mixture of subsets. Examples are numbered in their order."""

    name: str
    """Name of the resulting data set: letters, digits and `_`."""
    subsets: tuple[SubsetConfig, ...]
    seed: int = 0
    """Seed of the sampling strategy `random`."""


def without(mixture: MixtureConfig, names) -> MixtureConfig:
    """Return the mixture without some of its subsets. Raise ConfigError for an unknown subset."""
    known = [subset.name for subset in mixture.subsets]
    for name in names:
        if name not in known:
            raise ConfigError(f"--without {name}: no such subset; {nearest(name, known)}")
    left = tuple(subset for subset in mixture.subsets if subset.name not in names)
    if not left:
        raise ConfigError(f"--without {' '.join(names)}: nothing is left of {mixture.name}")
    return replace(mixture, subsets=left)


def validate(mixture: MixtureConfig) -> MixtureConfig:
    """Return the mixture, or raise ConfigError if it is invalid."""
    if not re.fullmatch(r"[a-z][a-z0-9_]*", mixture.name):
        raise ConfigError(f"mixture.name = {mixture.name!r}: must be like `paper` or `my_mixture`")
    names = [subset.name for subset in mixture.subsets]
    if not names or len({*names}) < len(names):
        raise ConfigError(f"mixture.subsets: must be at least one, of different names: {names}")
    for subset in mixture.subsets:
        for source in subset.sources:
            sample(0, source.sampling, 0, subset.name)
    return mixture


def sample(num_rows: int, strategy: str, seed: int, name: str) -> np.ndarray:
    """Return the indices of the rows that a strategy takes, int64.

    `random` is seeded with `seed` and the file's name, where LLaVA-NeXT uses no seed, and keeps the
    file's order. If N exceeds the number of rows, all are taken.

    Raises ConfigError naming the file.
    """
    if strategy == "all":
        return np.arange(num_rows)
    match = _STRATEGY.fullmatch(strategy)
    if not match:
        raise ConfigError(
            f"{name}: sampling {strategy!r}: must be all, first:N, end:N or random:N, "
            "N a number or a percentage"
        )
    kind, count, percent = match[1], int(match[2]), match[3]
    count = min(num_rows, math.ceil(count * num_rows / 100) if percent else count)
    if kind == "first":
        return np.arange(count)
    if kind == "end":
        return np.arange(num_rows - count, num_rows)
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    return np.sort(rng.permutation(num_rows)[:count])
