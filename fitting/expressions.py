"""Short expressions over the columns of a table: which rows (`N<5e8 and sweep=star`), what a
configuration costs (`6*N*D`). They are parsed here and never evaluated by Python.
"""

import ast
import math
import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fitting.config import FACTORS
from fitting.formatting import nearest
from fitting.readers import plain
from fitting.run_checks import no_column, number

ALIASES = dict(zip(("N", "T", "V"), FACTORS, strict=True)) | {"n": "num_examples"}
"""Short names of the default columns; a column of that very name goes before."""
MOST = 500  # characters of an expression

_ORDER = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}
_FLIPPED = {"<": ">", "<=": ">=", ">": "<", ">=": "<="}
_TOKEN = re.compile(
    r"""\s*(?:(?P<quoted>"[^"]*"|'[^']*')|(?P<op><=|>=|==|!=|=|<|>)|(?P<word>\b(?:and|or)\b)"""
    r"""|(?P<open>\()|(?P<close>\))|(?P<text>(?:(?!\s(?:and|or)(?:\s|$))[^<>=!"'()])+|.))"""
)


def resolve(name: str, columns) -> str:
    """Return the column that a name or alias stands for; a name that is none stays."""
    alias = ALIASES.get(name)
    return alias if name not in columns and alias in columns else name


# --- rows ---


def rows(text: str, columns: Mapping[str, Sequence], source: str) -> np.ndarray:
    """Return bool [R]: the rows for which a condition holds.

    Args:
      text: comparisons of a column with a value (=, ==, !=, <, <=, >, >=), joined by `and` and
        `or`; `and` binds first, parentheses group. A value with such words or marks needs quotes.
      columns: name -> values [R], numbers or texts; an empty cell is in no order.
      source: of the columns, for messages.

    Raises:
      ValueError: one line; not such an expression, no such column, or no such value.
    """
    reader = _Reader(text, columns, source)
    keep_R = reader.any_of()
    reader.expect_end()
    return keep_R


class _Reader:
    """A recursive descent over the tokens of one condition."""

    def __init__(self, text: str, columns: Mapping[str, Sequence], source: str):
        self.text, self.columns, self.source = text, columns, source
        if len(text) > MOST:
            self.fail(f"is longer than {MOST} characters")
        self.tokens = [
            (found.lastgroup, found[found.lastgroup].strip()) for found in _TOKEN.finditer(text)
        ]
        self.tokens = [token for token in self.tokens if token[1]]
        self.at = 0

    def fail(self, why: str):
        raise ValueError(
            f"{self.source}: {self.text!r} {why}; write COLUMN=VALUE, with =, !=, <, <=, > or >=, "
            "and join by and, or"
        )

    def peek(self) -> tuple[str, str]:
        return self.tokens[self.at] if self.at < len(self.tokens) else ("end", "")

    def take(self, kind: str, value: str = "") -> bool:
        found = self.peek()
        taken = found[0] == kind and value in ("", found[1])
        self.at += taken
        return taken

    def any_of(self) -> np.ndarray:
        keep_R = self.all_of()
        while self.take("word", "or"):
            keep_R = keep_R | self.all_of()
        return keep_R

    def all_of(self) -> np.ndarray:
        keep_R = self.one()
        while self.take("word", "and"):
            keep_R = keep_R & self.one()
        return keep_R

    def one(self) -> np.ndarray:
        if self.take("open"):
            keep_R = self.any_of()
            if not self.take("close"):
                self.fail("lacks a closing parenthesis")
            return keep_R
        left, keep_R = self.operand(), None
        while self.peek()[0] == "op":
            sign = self.tokens[self.at][1]
            self.at += 1
            right = self.operand()
            found_R = self.compare(left, sign, right)
            keep_R, left = found_R if keep_R is None else keep_R & found_R, right
        if keep_R is None:
            self.fail("compares nothing")
        return keep_R

    def operand(self) -> str:
        """Return a column or value: a quoted text, or all up to the next operator or word."""
        kind, value = self.peek()
        if kind == "quoted":
            self.at += 1
            return value[1:-1]
        parts, depth = [], 0
        while True:
            kind, value = self.peek()
            depth += (kind == "open") - (kind == "close")
            if kind not in ("text", "open", "close") or depth < 0:
                break
            parts.append(value)
            self.at += 1
        if not parts:
            self.fail("lacks a column or value" + f" before {value!r}" * bool(value))
        return " ".join(parts).replace("( ", "(").replace(" )", ")")

    def expect_end(self) -> None:
        if self.peek()[0] != "end":
            self.fail(f"is not understood from {self.peek()[1]!r} on")

    def compare(self, left: str, sign: str, right: str) -> np.ndarray:
        column, value = resolve(left, self.columns), right
        if column not in self.columns and resolve(right, self.columns) in self.columns:
            column, value, sign = resolve(right, self.columns), left, _FLIPPED.get(sign, sign)
        if column not in self.columns:
            raise ValueError(f"{self.source}: {no_column(column, self.columns)}")
        if sign in _ORDER:
            return self.in_order(column, sign, value)
        same_R = equal(self.columns[column], value)
        if not same_R.any():
            raise ValueError(f"{self.source}: {no_value(column, value, self.columns[column])}")
        return ~same_R if sign == "!=" else same_R

    def in_order(self, column: str, sign: str, value: str) -> np.ndarray:
        limit = number(value)
        if math.isnan(limit):
            self.fail(f"orders by {value!r}, which is no number")
        values_R = np.array([number(cell) for cell in self.columns[column]])
        if np.isnan(values_R).all():
            self.fail(f"orders {column!r}, which holds no numbers")
        with np.errstate(invalid="ignore"):
            return _ORDER[sign](values_R, limit)


def equal(values: Sequence, value) -> np.ndarray:
    """Return bool [R]: which values equal one, as text or as numbers: 2e12 equals 2000000000000."""
    same_R, wanted = np.array([str(v) == str(value) for v in values]), number(value)
    if not math.isnan(wanted):
        same_R |= np.array([number(v) == wanted for v in values])
    return same_R


def no_value(column: str, value, values: Sequence) -> str:
    """Return the message about a value that no row has; it names those that exist."""
    levels = np.unique(np.asarray(values)).tolist()
    present = [plain(level) for level in levels]
    shown = ", ".join(present[:12]) + ", …" * (len(present) > 12)
    return f"no runs with {column} {str(value)!r}{nearest(str(value), present)}; there are {shown}"


# --- arithmetic ---

_OPERATIONS: dict[type, Callable] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.Pow: operator.pow,
    ast.UAdd: operator.pos,
    ast.USub: operator.neg,
}


@dataclass(frozen=True)
class Formula:
    """An arithmetic expression of columns: numbers, names, + - * / ** and parentheses.

    Attributes:
      text: as it was written.
      names: the columns that it may use.
    """

    text: str
    names: tuple[str, ...]

    def __post_init__(self):
        self._check(self._tree())

    def __call__(self, values) -> np.ndarray:
        """Return the value [...] at values [..., K], in the order of `names`."""
        values = np.asarray(values, np.float64)
        columns = dict(zip(self.names, np.moveaxis(values, -1, 0), strict=True))
        with np.errstate(all="ignore"):
            return np.broadcast_to(self._value(self._tree(), columns), values.shape[:-1]) + 0.0

    def _tree(self) -> ast.expr:
        try:
            if len(self.text) > MOST:
                raise ValueError
            return ast.parse(self.text.strip(), mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            raise ValueError(
                f"{self.text[:60]!r} is no formula; write numbers, columns, + - * / ** and "
                "parentheses, such as 6*N*D"
            ) from None

    def _check(self, node: ast.expr) -> None:
        """Raise ValueError for whatever is neither a number, nor a column, nor an operation."""
        if isinstance(node, ast.BinOp) and type(node.op) in _OPERATIONS:
            self._check(node.left)
            self._check(node.right)
        elif isinstance(node, ast.UnaryOp) and type(node.op) in _OPERATIONS:
            self._check(node.operand)
        elif isinstance(node, ast.Name):
            if (name := resolve(node.id, self.names)) not in self.names:
                raise ValueError(
                    f"{self.text!r}: no column {name!r}{nearest(name, self.names)}; a formula may "
                    f"use {', '.join(self.names)}"
                )
        elif not (isinstance(node, ast.Constant) and type(node.value) in (int, float)):
            what = ast.unparse(node)
            why = (
                "calls a function, which" if isinstance(node, ast.Call) else f"has {what!r}, which"
            )
            if isinstance(node, ast.BinOp) and isinstance(node.op, ast.BitXor):
                why = "has ^ (write ** for powers), which"
            raise ValueError(f"{self.text!r} {why} a formula may not; it takes + - * / ** alone")

    def _value(self, node: ast.expr, columns: Mapping):
        if isinstance(node, ast.BinOp):
            left, right = self._value(node.left, columns), self._value(node.right, columns)
            return _OPERATIONS[type(node.op)](left, right)
        if isinstance(node, ast.UnaryOp):
            return _OPERATIONS[type(node.op)](self._value(node.operand, columns))
        if isinstance(node, ast.Name):
            return columns[resolve(node.id, self.names)]
        return np.float64(node.value)
