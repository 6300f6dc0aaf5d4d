"""Constraints of a sweep: a small expression language, read with `ast` and never run as Python.

Names of settings and results, numbers, texts in quotes, comparisons (chained ones too), `and`,
`or`, `not`, and + - * / // %. Kinds are checked when an expression is read: a text
compares with texts, only numbers add up. A value that is not there (a total energy that was not
measured) meets no constraint, and neither does a division by zero.
"""

import ast
import operator
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from bitwright.quant import InputError

from .fields import KINDS, RESULTS
from .words import nearest

_LONGEST = 500  # characters; deep nesting would exhaust Python's own parser

Row = Mapping[str, Any]
Sort = Literal["number", "text", "truth"]


class _Undefined(Exception):
    """A value is not there, or a division has no result."""


@dataclass(frozen=True, slots=True)
class _Node:
    """A part of an expression: its kind, its value in a row, and the names it reads."""

    sort: Sort
    value: Callable[[Row], Any]
    names: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Constraint:
    """One expression that points have to meet."""

    text: str
    names: frozenset[str]  #: settings and results that it reads
    _value: Callable[[Row], Any]

    @property
    def on_results(self) -> bool:
        """Whether it needs a point's results, and not only its settings."""
        return any(name in RESULTS for name in self.names)

    def holds(self, row: Row) -> bool:
        """Whether a row of settings (and results) meets it."""
        try:
            return bool(self._value(row))
        except (_Undefined, ZeroDivisionError, OverflowError):
            return False


def parse_constraint(text: str) -> Constraint:
    """Read an expression.

    Raises:
        InputError: It is no expression of this language, or reads an unknown name.

    >>> fits = parse_constraint("rows * cols <= 1024 and dram != 'hbm2'")
    >>> fits.holds({"rows": 32, "cols": 32, "dram": "ddr4-3200"})
    True
    >>> fits.holds({"rows": 32, "cols": 64, "dram": "ddr4-3200"}), fits.on_results
    (False, False)
    """
    if len(text) > _LONGEST:
        raise InputError(f"a constraint of {len(text)} characters; at most {_LONGEST}, split it")
    try:
        tree = ast.parse(text.strip(), mode="eval").body
        node = _read(tree, text)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        if isinstance(error, InputError):
            raise
        reason = error.msg if isinstance(error, SyntaxError) else "nested too deeply"
        raise InputError(
            f"constraint {text!r}: {reason}; write it like rows * cols <= 1024"
        ) from None
    if node.sort != "truth":
        raise InputError(f"constraint {text!r} compares nothing; write it like area_mm2 <= 10")
    return Constraint(text, node.names, node.value)


_ARITHMETIC: dict[type[ast.AST], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
_COMPARISONS: dict[type[ast.AST], Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
}


def _read(tree: ast.expr, text: str) -> _Node:
    match tree:
        case ast.Constant(value=bool()):
            pass  # True and False would say nothing about a point
        case ast.Constant(value=int() | float() as number):
            return _Node("number", lambda row: number)
        case ast.Constant(value=str() as word):
            return _Node("text", lambda row: word)
        case ast.Name(id=name):
            return _name(name, text)
        case ast.UnaryOp(op=ast.Not(), operand=inner):
            part = _read(inner, text)
            _same(text, "truth", part)
            return _Node("truth", lambda row: not part.value(row), part.names)
        case ast.UnaryOp(op=ast.USub(), operand=inner):
            part = _read(inner, text)
            _same(text, "number", part)
            return _Node("number", lambda row: -part.value(row), part.names)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _ARITHMETIC:
            apply, a, b = _ARITHMETIC[type(op)], _read(left, text), _read(right, text)
            _same(text, "number", a, b)
            return _Node("number", lambda row: apply(a.value(row), b.value(row)), _names(a, b))
        case ast.BoolOp(op=op, values=values):
            parts = [_read(value, text) for value in values]
            _same(text, "truth", *parts)
            join = all if isinstance(op, ast.And) else any
            return _Node("truth", lambda row: join(p.value(row) for p in parts), _names(*parts))
        case ast.Compare(left=left, ops=ops, comparators=others) if all(
            type(op) in _COMPARISONS for op in ops
        ):
            parts = [_read(part, text) for part in (left, *others)]
            _same(text, "text" if parts[0].sort == "text" else "number", *parts)
            steps = [_COMPARISONS[type(op)] for op in ops]

            def compare(row: Row) -> bool:
                values = [part.value(row) for part in parts]
                pairs = zip(steps, values, values[1:], strict=False)
                return all(step(a, b) for step, a, b in pairs)

            return _Node("truth", compare, _names(*parts))
    raise InputError(
        f"constraint {text!r}: {ast.unparse(tree)} is not allowed; names, numbers, texts in "
        "quotes, comparisons, and, or, not, + - * / // %"
    )


def _name(name: str, text: str) -> _Node:
    if name not in KINDS:
        raise InputError(f"constraint {text!r}: {nearest(name, KINDS, 'name')}")

    def value(row: Row) -> Any:
        found = row[name]
        if found is None:
            raise _Undefined
        return found

    return _Node("text" if KINDS[name] == "text" else "number", value, frozenset({name}))


def _names(*parts: _Node) -> frozenset[str]:
    return frozenset().union(*(part.names for part in parts))


def _same(text: str, wanted: Sort, *parts: _Node) -> None:
    for part in parts:
        if part.sort != wanted:
            what = {"number": "a number", "text": "a text", "truth": "a comparison"}
            raise InputError(
                f"constraint {text!r} has {what[part.sort]} where {what[wanted]} belongs"
            )


def all_hold(constraints: Iterable[Constraint], row: Row) -> bool:
    """Whether a row meets all of them."""
    return all(constraint.holds(row) for constraint in constraints)
