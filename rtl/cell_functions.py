"""Functions of standard cells: Liberty's expression language, read once for every use.

Liberty binds `!` and `'` tightest, then `^`, then AND (`&`, `*`, or nothing between two operands),
then OR (`|`, `+`).
"""

import re
from collections.abc import Collection, Iterator, Mapping
from typing import NamedTuple

from bitwright.quant import InputError

_TOKEN = re.compile(r"\s*([A-Za-z_][\w.\[\]]*|[01!'^&*|+()])")


class Expression(NamedTuple):
    """A node of an expression; `op` is "|", "&", "^", "~", "name" or "constant".

    "~" has one part, the others two or more; `text` is the name, or "0" or "1".
    """

    op: str
    parts: tuple["Expression", ...] = ()
    text: str = ""

    def names(self) -> Iterator[str]:
        """Every name in it, in order, repeated as it stands there."""
        if self.op == "name":
            yield self.text
        for part in self.parts:
            yield from part.names()

    def value(self, values: Mapping[str, int], ones: int = 1) -> int:
        """Its value bit by bit, every bit of the integers a case of its own.

        Args:
            values: Of each name; only the bits of `ones` may be set.
            ones: The bits that count.

        >>> read_function("!(A B)", ("A", "B")).value({"A": 0b0011, "B": 0b0101}, ones=0b1111)
        14
        """
        if self.op == "name":
            return values[self.text]
        if self.op == "constant":
            return ones if self.text == "1" else 0
        first, *rest = (part.value(values, ones) for part in self.parts)
        if self.op == "~":
            return first ^ ones
        for other in rest:
            first = {"&": first & other, "|": first | other, "^": first ^ other}[self.op]
        return first


def read_function(function: str, names: Collection[str]) -> Expression:
    """A Liberty expression as a tree.

    Args:
        function: E.g. "(A1 & A2)'".
        names: Every name that may occur.

    Raises:
        InputError: A name or the grammar is wrong.

    >>> read_function("A' + 0", ("A",)).op
    '|'
    """
    tokens: list[str] = []
    at = 0
    text = function.rstrip()
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None:
            raise InputError(
                f"cell function {function!r}: {text[at:].lstrip()[0]!r} is not understood"
            )
        tokens.append(match[1])
        at = match.end()
    tokens.append("")

    def joined(op: str, parts: list[Expression]) -> Expression:
        return parts[0] if len(parts) == 1 else Expression(op, tuple(parts))

    def either() -> Expression:
        parts = [both()]
        while tokens[0] and tokens[0] in "|+":
            tokens.pop(0)
            parts.append(both())
        return joined("|", parts)

    def both() -> Expression:
        parts = [differ()]
        while tokens[0] and (tokens[0] in "&*!(" or tokens[0][0].isalnum() or tokens[0][0] == "_"):
            if tokens[0] in "&*":
                tokens.pop(0)
            parts.append(differ())
        return joined("&", parts)

    def differ() -> Expression:
        parts = [operand()]
        while tokens[0] == "^":
            tokens.pop(0)
            parts.append(operand())
        return joined("^", parts)

    def operand() -> Expression:
        token = tokens.pop(0)
        if token == "!":
            return Expression("~", (operand(),))
        if token == "(":
            value = either()
            if tokens.pop(0) != ")":
                raise InputError(f"cell function {function!r}: a parenthesis is not closed")
        elif token in ("0", "1"):
            value = Expression("constant", text=token)
        elif token in names:
            value = Expression("name", text=token)
        else:
            raise InputError(
                f"cell function {function!r}: expected one of {', '.join(names)}, "
                f"found {token or 'its end'!r}"
            )
        while tokens[0] == "'":
            tokens.pop(0)
            value = Expression("~", (value,))
        return value

    value = either()
    if tokens != [""]:
        raise InputError(f"cell function {function!r}: {tokens[0]!r} is not expected there")
    return value
