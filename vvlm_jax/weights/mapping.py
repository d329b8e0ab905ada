"""Map tensors of a checkpoint to our parameters, and back, by rules.

A table is an ordered list of rules such as

    Rule("encoder.layers.{i}.self_attn.q_proj.weight",
         "Transformer/encoderblock/MultiHeadDotProductAttention_0/query/kernel",
         "(N H) D -> D N H")

Given the sizes of its letters, a rule determines the names and shapes on both sides, and the
conversion: split the axes on the left, then transpose. Reading and writing use the same rules, so
they cannot disagree, and `account` finds any tensor that no rule covers.
"""

import dataclasses
import functools
import math
import re
from collections import Counter
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

MOST_LISTED = 40
"""Problems that an error lists; the others are counted."""

DTYPES = ("bfloat16", "float16", "float32")
"""Dtypes that weights may be stored in."""


class WeightsError(ValueError):
    """Weights that cannot be read or do not fit. The first line of the message states the problem
    and what to do; the others list the tensors.
    """


def short(value) -> str:
    """Return a value for an error message: one short line, control characters escaped."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}…"


class Rule(NamedTuple):
    """One tensor of a foreign checkpoint and the parameter of ours that it becomes."""

    theirs: str
    """Name of the tensor; with `{i}` there is one for each layer i."""
    ours: str
    """Path of the parameter; the tensors of all layers are stacked along its first axis."""
    axes: str = "D -> D"
    """Axes of the tensor → axes of the parameter. `(N H)` is one axis there and two here."""
    part: tuple[int, int] = (0, 1)
    """(k, n): the parameter is the k-th of n equal parts of the tensor's first axis."""
    copy: bool = False
    """Whether the tensor duplicates a parameter (a tied head); optional, and must be equal."""


class Info(NamedTuple):
    """Dtype and shape of a tensor, from a checkpoint's header."""

    dtype: str
    shape: tuple[int, ...]


@functools.cache
def _parse(axes: str):
    """Parse "(N H) D -> D N H" into groups of letters on the left, and letters on the right."""
    left, right = axes.split(" -> ")
    groups = [g[1:-1].split() if g[0] == "(" else [g] for g in re.findall(r"\([^)]*\)|\S+", left)]
    return tuple(map(tuple, groups)), tuple(right.split())


@dataclasses.dataclass(frozen=True)
class Entry:
    """A rule applied to one tensor, with the sizes of its letters."""

    theirs: str
    ours: str
    layer: int | None
    rule: Rule
    sizes: tuple[tuple[str, int], ...] = dataclasses.field(repr=False)

    @functools.cached_property
    def split(self) -> tuple[int, ...]:
        """Shape of this entry's part of their tensor, split into our axes."""
        sizes, groups = dict(self.sizes), _parse(self.rule.axes)[0]
        return tuple(sizes[letter] for group in groups for letter in group if letter != "1")

    @functools.cached_property
    def order(self) -> tuple[int, ...]:
        """For each of our axes, but those of size 1, its axis in `split`."""
        groups, right = _parse(self.rule.axes)
        letters = [letter for group in groups for letter in group if letter != "1"]
        return tuple(letters.index(letter) for letter in right if letter != "1")

    @property
    def our_axes(self) -> tuple[str, ...]:
        """Letters of our axes; "1" is an axis that only our parameter has."""
        return _parse(self.rule.axes)[1]

    @functools.cached_property
    def their_shape(self) -> tuple[int, ...]:
        """Shape of their whole tensor."""
        sizes, groups = dict(self.sizes), _parse(self.rule.axes)[0]
        shape = [math.prod(sizes.get(letter, 1) for letter in group) for group in groups]
        return (shape[0] * self.rule.part[1], *shape[1:])

    @functools.cached_property
    def our_shape(self) -> tuple[int, ...]:
        """Shape of our parameter, or of one layer where layers are stacked."""
        sizes = dict(self.sizes)
        return tuple(1 if a == "1" else sizes[a] for a in self.our_axes)

    def to_theirs(self, x: np.ndarray) -> np.ndarray:
        """Convert our parameter, or one layer of it, to this entry's part of their tensor."""
        squeezed = x.reshape([self.split[axis] for axis in self.order])
        part = squeezed.transpose(np.argsort(self.order))
        first, *rest = self.their_shape
        return part.reshape(first // self.rule.part[1], *rest)


def expand(rules, sizes: dict[str, int], depth: int, theirs: str = "", ours: str = ""):
    """Return the entries of `rules`: one in each layer for a rule with `{i}`. `theirs` and `ours`
    are prefixes.
    """
    entries = []
    for rule in rules:
        for i in range(depth) if "{i}" in rule.theirs else [None]:
            name = theirs + (rule.theirs if i is None else rule.theirs.replace("{i}", str(i)))
            entries.append(Entry(name, ours + rule.ours, i, rule, tuple(sizes.items())))
    return entries


def tree_shapes(entries) -> dict[str, tuple[int, ...]]:
    """Return {path: shape} of all parameters that the entries fill."""
    layers = Counter(e.ours for e in entries if e.layer is not None and not e.rule.copy)
    stacked = {e.ours: (layers[e.ours],) if e.ours in layers else () for e in entries}
    return {e.ours: stacked[e.ours] + e.our_shape for e in entries}


def account(entries, infos: dict[str, Info], skip: str = "", *, where, resized=(), duplicates=()):
    """Check that a checkpoint holds the tensors of the entries, and nothing else.

    Args:
      skip: regex of names that are allowed and ignored.
      where: the checkpoint's name, for the error.
      resized: our parameters that may have another square number of patches.
      duplicates: names that the checkpoint holds more than once.

    Returns:
      Names that are ignored, sorted.

    Raises WeightsError listing every tensor that is missing, unmapped, duplicate, or of a wrong
    shape or dtype.
    """
    problems = [("duplicate", name) for name in duplicates]
    filled = Counter((e.ours, e.layer) for e in entries if not e.rule.copy)
    problems += [("duplicate", f"{e.theirs} → {e.ours}") for e in entries
                 if not e.rule.copy and filled[e.ours, e.layer] > 1]  # fmt: skip
    expected = {e.theirs: e for e in entries}
    for name, entry in expected.items():
        info = infos.get(name)
        if info is None:
            if not entry.rule.copy:
                problems.append(("missing", f"{name} {list(entry.their_shape)}"))
            continue
        if info.dtype not in DTYPES:
            problems.append(("wrong dtype", f"{name} is {info.dtype}, not {', '.join(DTYPES)}"))
        same = info.shape == entry.their_shape
        if entry.ours in resized and len(info.shape) == len(entry.their_shape):  # [(1,) P, D]
            same = info.shape[-1] == entry.their_shape[-1] and _is_square(info.shape[-2])
        if not same:
            problems.append(
                ("wrong shape", f"{name} is {list(info.shape)}, not {list(entry.their_shape)}")
            )
    others = sorted(infos.keys() - expected.keys())
    left_out = [name for name in others if skip and re.fullmatch(skip, name)]
    problems += [
        ("unmapped", f"{name} {list(infos[name].shape)}")
        for name in others
        if name not in set(left_out)
    ]
    if problems:
        raise WeightsError(describe(where, problems))
    return left_out


def _is_square(n: int) -> bool:
    return math.isqrt(n) ** 2 == n


def describe(where, problems: list[tuple[str, str]], what: str = "its config") -> str:
    """Return `WHERE: 2 missing, 1 unmapped (missing: NAME SHAPE, …)` and a line for each."""
    counts = ", ".join(f"{n} {kind}" for kind, n in Counter(kind for kind, _ in problems).items())
    lines = [f"  {kind}: {name}" for kind, name in problems[:MOST_LISTED]]
    if len(problems) > MOST_LISTED:
        lines.append(f"  … and {len(problems) - MOST_LISTED} more")
    kind, first = problems[0]
    more = ", …" if len(problems) > 1 else ""
    return "\n".join(
        [f"{where}: tensors do not fit {what}: {counts} ({kind}: {first}{more})", *lines]
    )


def param_dtypes(entries, infos: dict[str, Info]) -> dict[str, np.dtype]:
    """Return {path: dtype that represents all of its tensors exactly}."""
    dtypes: dict[str, set] = {}
    for e in entries:
        if not e.rule.copy:
            dtypes.setdefault(e.ours, set()).add(infos[e.theirs].dtype)
    return {
        path: jnp.dtype(names.pop() if len(names) == 1 else "float32")
        for path, names in dtypes.items()
    }
