"""Looking things up: the package's data tables, and a user's name in a table of names."""

import csv
import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

from bitwright.quant import InputError

_DATA = Path(__file__).parent / "data"
_Value = TypeVar("_Value")


def read_table(name: str) -> list[dict[str, str]]:
    """Rows of a CSV file of this package; lines that begin with # are left out."""
    with (_DATA / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(line for line in file if not line.startswith("#")))


def pick(table: Mapping[str, _Value], name: str, what: str) -> _Value:
    """The entry of that name.

    Raises:
        InputError: There is none; the nearest names and all names are told.
    """
    if name not in table:
        near = difflib.get_close_matches(name.lower(), table, n=3, cutoff=0.4)
        hint = f"did you mean {', '.join(near)}? Known" if near else "known"
        raise InputError(f"unknown {what} {name!r}; {hint}: {', '.join(table)}")
    return table[name]
