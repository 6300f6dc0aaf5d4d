"""Values from files as a report can show them: printable labels and finite numbers."""

import json
import math
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

from .explored import Value

_LONGEST = 300  # characters of a label


@lru_cache(maxsize=4096)
def label(value: object) -> str:
    """One line of printable text, at most 300 characters.

    >>> label("a\\nb")
    'a b'
    """
    text = " ".join(str(value).split())
    text = "".join(character if character.isprintable() else "\ufffd" for character in text)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."


def plain(value: Any) -> Value:
    """A value of a table: numbers stay, what is not finite or too large becomes None."""
    if value is None or isinstance(value, str):
        return None if value is None else label(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        try:
            number = float(value)
        except OverflowError:
            return None
        if not math.isfinite(number):
            return None
        return value if isinstance(value, float) or abs(value) < 2**53 else number
    return label(json.dumps(value))


def text_of(value: str) -> str:
    """A text of any length, printable."""
    return "".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in value)


def unique(names: Iterable[str]) -> list[str]:
    """Labels, later equal ones numbered."""
    seen: dict[str, int] = {}
    unique = []
    for name in map(label, names):
        seen[name] = seen.get(name, 0) + 1
        unique.append(name if seen[name] == 1 else f"{name} ({seen[name]})")
    return unique
