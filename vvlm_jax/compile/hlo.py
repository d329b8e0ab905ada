"""Count collectives, kernels and arrays of a shape in the text of a compiled program.

XLA prints the body of a loop once, however often it runs. Here every computation is multiplied by
the trip counts of the loops around it, which are read from their conditions: all loops of our
programs count up to a constant.
"""

import math
import re
from collections import defaultdict
from dataclasses import dataclass, field

COLLECTIVES = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
)
_HEAD = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([a-z][\w\-]*)\((.*)$")
_ARRAY = re.compile(r"\b(pred|[a-z]+\d+\w*)\[([\d,]*)\]")
_CALLED = re.compile(r"\b(?:calls|to_apply|body|condition)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"\bbranch_computations=\{([^}]*)\}")


@dataclass(frozen=True)
class Collectives:
    """Collectives of one kind in one run of the program, on one chip."""

    count: int
    """Executions."""
    bytes: int
    """Bytes of whole arrays: after they are gathered, or before they are scattered."""


@dataclass
class _Computation:
    entry: bool = False
    types: dict[str, str] = field(default_factory=dict)
    constants: dict[str, int] = field(default_factory=dict)
    tuples: dict[str, list[str]] = field(default_factory=dict)
    elements: dict[str, int] = field(default_factory=dict)
    compared: list[str] = field(default_factory=list)
    """Operands of the last less-than comparison."""
    loops: dict[str, tuple[str, str]] = field(default_factory=dict)
    """{body: (condition, initial value)}"""
    collectives: list[tuple[str, int]] = field(default_factory=list)
    kernels: int = 0
    calls: list[str] = field(default_factory=list)


def collectives(text: str) -> dict[str, Collectives]:
    """Return {kind: Collectives} of a compiled program's text, for the kinds that occur."""
    computations = _read(text)
    count, total = defaultdict(int), defaultdict(int)
    for name, times in _times(computations).items():
        for kind, size in computations[name].collectives:
            count[kind] += times
            total[kind] += times * size
    return {kind: Collectives(count[kind], total[kind]) for kind in COLLECTIVES if count[kind]}


def kernels(text: str) -> int:
    """Return the number of Pallas kernels in the program's text: one inside a loop counts once."""
    return text.count('custom_call_target="tpu_custom_call"')


def squares(text: str, length: int) -> set[str]:
    """Return the shapes whose last two sides are both `length`, or `length` rounded up to a
    multiple of 128: attention scores that were written to memory.
    """
    sides = {length, -(-length // 128) * 128}
    return {
        f"{dtype}[{shape}]"
        for dtype, shape in set(_ARRAY.findall(text))
        if shape.count(",") >= 2 and {int(s) for s in shape.split(",")[-2:]} <= sides
    }


def array_bytes(type_text: str) -> list[int]:
    """Return the bytes of each array in a type, which is an array or a tuple of arrays."""
    return [
        math.prod(int(s) for s in sides.split(",") if s) * _bits(dtype) // 8
        for dtype, sides in _ARRAY.findall(re.sub(r"\{[^}]*\}", "", type_text))
    ]


def _bits(dtype: str) -> int:
    return 8 if dtype == "pred" else int(re.match(r"[a-z]+(\d+)", dtype)[1])


def _read(text: str) -> dict[str, _Computation]:
    computations, current, home = {}, None, ""
    for line in text.splitlines():
        if head := _HEAD.match(line):
            home = head[1]
            current = computations[home] = _Computation(entry=line.startswith("ENTRY"))
        elif current is not None and (found := _INSTRUCTION.match(line)):
            _add(current, home, *found.groups())
    return computations


def _add(computation: _Computation, home: str, name: str, type_text: str, op: str, rest: str):
    computation.types[name] = type_text
    operands = re.findall(r"%([\w.\-]+)", rest.partition("), ")[0])
    kind = op.removesuffix("-start")
    if kind in COLLECTIVES:
        # On TPUs a fusion of this name is a reduce-scatter: an all-reduce and a slice of its sum.
        scatters = kind == "all-reduce" and home.startswith("all-reduce-scatter")
        into = sum(sum(array_bytes(computation.types.get(o, ""))) for o in operands)
        size = _size(into, sum(array_bytes(type_text)), op)
        computation.collectives.append(("reduce-scatter" if scatters else kind, size))
    elif op == "constant" and (value := re.match(r"(\d+)\)", rest)):
        computation.constants[name] = int(value[1])
    elif op == "tuple":
        computation.tuples[name] = operands
    elif op == "get-tuple-element":
        computation.elements[name] = int(re.search(r"index=(\d+)", rest)[1])
    elif op == "compare" and "direction=LT" in rest:
        computation.compared = operands
    elif op == "while":
        condition, body = (re.search(rf"{k}=%?([\w.\-]+)", rest)[1] for k in ("condition", "body"))
        computation.loops[body] = condition, operands[0]
    computation.calls += _CALLED.findall(rest)
    for branches in _BRANCHES.findall(rest):
        computation.calls += re.findall(r"[\w.\-]+", branches)


def _size(into: int, out: int, op: str) -> int:
    """Return the larger of the input's and the output's bytes. The output of some `-start`
    instructions is a tuple of both.
    """
    return max(into, out - into if op.endswith("-start") and out > into else out)


def _times(computations: dict[str, _Computation]) -> dict[str, int]:
    """Return how often each computation runs, from the callers down to those they call."""
    times, order, seen = defaultdict(int), [], set()

    def visit(name):
        if name not in seen and name in computations:
            seen.add(name)
            for called in computations[name].calls:
                visit(called)
            order.append(name)

    for name, computation in computations.items():
        if computation.entry:
            times[name] = 1
            visit(name)
    for name in reversed(order):
        caller = computations[name]
        for called in caller.calls:
            trips = (
                _trips(computations, caller, *caller.loops[called]) if called in caller.loops else 1
            )
            times[called] += times[name] * trips
    return {name: n for name, n in times.items() if name in computations}


def _trips(computations, caller: _Computation, condition: str, start: str) -> int:
    """Return the trip count of a loop that counts up by one to a constant; 1 for any other loop."""
    test = computations.get(condition, _Computation())
    limits = [test.constants[n] for n in test.compared if n in test.constants]
    places = [test.elements[n] for n in test.compared if n in test.elements]
    if not limits:
        return 1
    begins = caller.tuples.get(start, [])
    first = begins[places[0]] if places and places[0] < len(begins) else ""
    return max(limits[0] - caller.constants.get(first, 0), 1)
