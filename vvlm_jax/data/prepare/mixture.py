"""Mixtures of data sets: which annotation files they are, of how many examples, and where their
media lie. A mixture is data (`configs/mixtures.py`); nothing here reads a file.
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
    """Glob below the root of all sources: `LLaVA-Video-178K/*_academic_v0_1/*cap*.json`. As a
    file, `.json` holds a list and `.jsonl` a row a line.
    """
    media: tuple[str, ...] = ("{folder}",)
    """Folders below the root that the rows' paths are relative to; a file is taken from the first
    in which it is. `{folder}` is the annotation file's own.
    """
    archives: str = ""
    """Glob of archives, below the root, that are extracted into the first of the folders; it may
    have `{folder}`, too.
    """
    sampling: str = "all"
    """Which rows of each file: `all`, `first:N`, `end:N`, `random:N`; N may be a per cent, rounded
    up, as LLaVA-NeXT's mixtures have it.
    """


@dataclass(frozen=True)
class SubsetConfig:
    """One row of a mixture's table."""

    name: str
    sources: tuple[SourceConfig, ...]
    examples: int | None = None
    """How many examples it has as published; None where nobody knows."""
    published: str = ""
    """Where its files come from, for whoever misses them."""


@dataclass(frozen=True)
class MixtureConfig:
    """Subsets one after another: the order in which examples are numbered."""

    name: str
    """Of the data set that is made of it: letters, digits and `_`."""
    subsets: tuple[SubsetConfig, ...]
    seed: int = 0
    """Of the sampling strategy `random`."""


def without(mixture: MixtureConfig, names) -> MixtureConfig:
    """The mixture but for some of its subsets. Raises ConfigError for one that it does not have."""
    known = [subset.name for subset in mixture.subsets]
    for name in names:
        if name not in known:
            raise ConfigError(f"--without {name}: no such subset; {nearest(name, known)}")
    left = tuple(subset for subset in mixture.subsets if subset.name not in names)
    if not left:
        raise ConfigError(f"--without {' '.join(names)}: nothing is left of {mixture.name}")
    return replace(mixture, subsets=left)


def validate(mixture: MixtureConfig) -> MixtureConfig:
    """Returns the mixture, or raises ConfigError on what cannot be one."""
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
    """Which of a file's rows a strategy takes, int64.

    `random` draws with a seed and the file's name, where LLaVA-NeXT's draw has none, and keeps the
    file's order. More rows than there are means all of them. Raises ConfigError naming the file.
    """
    if strategy == "all":
        return np.arange(num_rows)
    match = _STRATEGY.fullmatch(strategy)
    if not match:
        raise ConfigError(
            f"{name}: sampling {strategy!r}: must be all, first:N, end:N or random:N, "
            "N a number or a per cent"
        )
    kind, count, percent = match[1], int(match[2]), match[3]
    count = min(num_rows, math.ceil(count * num_rows / 100) if percent else count)
    if kind == "first":
        return np.arange(count)
    if kind == "end":
        return np.arange(num_rows - count, num_rows)
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    return np.sort(rng.permutation(num_rows)[:count])
