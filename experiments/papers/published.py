"""Published numbers: CSV files in data/, every row with its source."""

import csv
from collections.abc import Mapping
from functools import cache
from pathlib import Path

FOLDER = Path(__file__).parent / "data"


@cache
def read_published(name: str) -> tuple[Mapping[str, str], ...]:
    """Rows of data/NAME.csv; lines that begin with # are remarks."""
    with (FOLDER / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        return tuple(csv.DictReader(line for line in file if not line.startswith("#")))


def published(name: str, **wanted: str) -> list[Mapping[str, str]]:
    """Rows of data/NAME.csv whose columns have these values."""
    rows = read_published(name)
    return [row for row in rows if all(row[column] == text for column, text in wanted.items())]


def published_value(name: str, **wanted: str) -> tuple[float, str]:
    """The one number with these values, and its source."""
    (row,) = published(name, **wanted)
    return float(row["value"]), row["source"]


def gap(ours: float, theirs: float) -> float:
    """How far ours is from the published value, relative to it.

    >>> gap(3.0, 2.0)
    0.5
    """
    return ours / theirs - 1


def show_gap(gap: float) -> str:
    """In percent, or as a factor where percents say nothing.

    >>> show_gap(-0.37), show_gap(697.0)
    ('-37 %', 'x 698')
    """
    return f"{100 * gap:+.0f} %" if gap < 10 else f"x {1 + gap:.3g}"
