"""How a sweep tells a user of a name that it does not know."""

import difflib
import reprlib
from collections.abc import Iterable
from typing import Any


def nearest(name: str, known: Iterable[str], what: str) -> str:
    """One line on an unknown name: the nearest ones, or all of them.

    >>> nearest("row", ["rows", "cols"], "axis")
    "unknown axis 'row'; did you mean rows? Known: rows, cols"
    """
    names = list(known)
    near = difflib.get_close_matches(str(name).lower(), names, n=2, cutoff=0.6)
    hint = f"did you mean {' or '.join(near)}? Known" if near else "known"
    return f"unknown {what} {short(name)}; {hint}: {', '.join(names)}"


_BRIEF = reprlib.Repr()
_BRIEF.maxlevel = 2  # aliases of YAML can nest lists that would take gigabytes to write
_BRIEF.maxstring = _BRIEF.maxother = 60


def short(value: Any) -> str:
    """A value as it is written in Python, cut short if it is long."""
    return _BRIEF.repr(value)


def one_line(text: str) -> str:
    """A message on one line, for a record and a terminal."""
    return " ".join(text.split())
