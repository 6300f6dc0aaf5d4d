"""What a report shows, whichever command made the results.

`reading.py` makes it from files; `page.py` and `publication.py` draw it and know nothing else.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from bitwright.experiments import nondominated

#: A number, a label, or nothing.
Value = str | int | float | None
Point = Mapping[str, Value]


@dataclass(frozen=True, slots=True)
class Stack:
    """A figure with one stacked bar per point."""

    title: str
    unit: str
    parts: Mapping[str, str]  #: name in the legend -> column of the points
    factor: float = 1.0  #: from the column's unit to `unit`
    times: str | None = None  #: column that every part is multiplied by, such as the clock's period

    def height(self, point: Point, part: str) -> float | None:
        """Height of a part of a point's bar in `unit`; None: not known."""
        value = point.get(self.parts[part])
        scale = 1.0 if self.times is None else point.get(self.times)
        if not isinstance(value, int | float) or not isinstance(scale, int | float):
            return None
        return value * scale * self.factor


@dataclass(frozen=True, slots=True)
class Roof:
    """What an array can do at most in one phase."""

    phase: str
    peak_ops_per_s: float
    dram_bytes_per_s: float | None  #: None: a DRAM that this version does not know


@dataclass(frozen=True, slots=True)
class Product:
    """One matrix product of a pass in a roofline; a multiply-accumulate is two operations."""

    phase: str
    name: str
    ops_per_byte: float
    ops_per_s: float


@dataclass(frozen=True, slots=True)
class Roofline:
    """All products of one design, and its roofs."""

    roofs: Sequence[Roof]
    products: Sequence[Product]


@dataclass(frozen=True, slots=True)
class Explored:
    """A folder of results, read."""

    kind: str  #: the command: codesign, sweep or search
    title: str
    origin: str  #: version, commit and seed in words
    points: Sequence[Point]  #: all have `name` and `family`
    axes: tuple[str, str]  #: columns that the Pareto figure starts with: across, up
    stacks: Sequence[Stack] = ()
    area: Stack | None = None
    rooflines: Mapping[str, Roofline] = field(default_factory=dict)  #: by design
    maps: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    """By design: "layer.linear", such as "0.attn.q" -> number format."""
    chosen: str | None = None  #: the map shown first
    cards: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  #: calibration, by design
    settings: Mapping[str, Value] = field(default_factory=dict)  #: of the run
    command: str | None = None  #: that made the results; None: the file does not say
    specification: str | None = None  #: a sweep's, resolved, as JSON
    provenance: Sequence[tuple[str, str]] = ()  #: pattern of quantities, source


def more_is_better(column: str) -> bool:
    """Whether a larger value of a column is the better one; of most columns the smaller is."""
    return column.endswith(("tokens_per_s", "utilisation"))


def pareto_front(points: Sequence[Point], x: str, y: str) -> list[Point]:
    """Points that no other beats in both columns, the best in `x` first.

    Points without a number in one of the columns are left out; of equal ones the first stays.
    """
    known = [
        (place, (a, b))
        for place, point in enumerate(points)
        if isinstance(a := point.get(x), int | float) and isinstance(b := point.get(y), int | float)
    ]
    if not known:
        return []
    signs = [-1 if more_is_better(column) else 1 for column in (x, y)]
    values = np.array([pair for _, pair in known], np.float64) * signs
    front = nondominated(values)
    return [points[known[number][0]] for number in front[np.argsort(values[front, 0])]]
