"""From axes to points: grid, list, random and Latin hypercube.

A point is a tuple of values, one for each varied setting. Samples hang on the sweep's seed and on
the axis' name only, so that another axis changes none of them.
"""

import math
import zlib
from collections.abc import Iterator
from itertools import product
from typing import Any

import numpy as np

from bitwright.quant import InputError

from .fields import SETTINGS
from .spec import Range, Spec, Value

MOST_POINTS = 2_000_000  #: of a grid


def varied(spec: Spec) -> tuple[str, ...]:
    """Settings that differ between points, in the file's order."""
    if spec.sampling.method == "list":
        return tuple(dict.fromkeys(name for point in spec.points for name in point))
    return tuple(spec.axes)


def sample(spec: Spec) -> Iterator[tuple[Value, ...]]:
    """The points of a sweep, in order; a setting that a listed point leaves out is `fixed`'s.

    Raises:
        InputError: A grid of more than 2,000,000 points.
    """
    method = spec.sampling.method
    if method == "list":
        names = varied(spec)
        return (tuple({**spec.fixed, **point}.get(name) for name in names) for point in spec.points)
    if method == "grid":
        axes = [grid_values(name, axis) for name, axis in spec.axes.items()]
        count = math.prod(map(len, axes))
        if count > MOST_POINTS:
            sizes = " x ".join(str(len(axis)) for axis in axes)
            raise InputError(
                f"the grid has {count:,} points ({sizes}), more than {MOST_POINTS:,}; draw from it "
                "with sampling: {method: random, points: N}"
            )
        return product(*axes)
    assert spec.sampling.points is not None  # checked with the file
    columns = [
        _column(name, axis, spec.sampling.points, spec.seed, method == "latin-hypercube")
        for name, axis in spec.axes.items()
    ]
    return zip(*columns, strict=True)


def grid_values(name: str, axis: "list[Value] | Range") -> list[Value]:
    """All values of an axis.

    >>> grid_values("cols", Range(low=16, high=64, step=16))
    [16, 32, 48, 64]
    >>> grid_values("cols", Range(low=16, high=100, scale="log2"))
    [16, 32, 64]
    """
    if isinstance(axis, list):
        return axis
    whole = SETTINGS[name].kind == "int"
    if axis.count is not None:
        places = np.arange(axis.count) / max(axis.count - 1, 1)
        return list(dict.fromkeys(_within(axis, whole, float(place)) for place in places))
    if axis.scale == "log2":
        doublings = int(math.log2(axis.high / axis.low) + 1e-9)
        return [axis.low * 2**power for power in range(doublings + 1)]
    assert axis.step is not None  # checked with the file
    # A last step that rounding puts just behind the end still counts.
    steps = int((axis.high - axis.low) / axis.step + 1e-9)
    return [axis.low + place * axis.step for place in range(steps + 1)]


def _within(axis: Range, whole: bool, place: float) -> int | float:
    """The value at a place in [0, 1] of a range, both ends included."""
    if axis.scale == "log2":
        value = axis.low * (axis.high / axis.low) ** place
    else:
        value = axis.low + (axis.high - axis.low) * place
    return round(value) if whole else float(min(max(value, axis.low), axis.high))


def _column(
    name: str, axis: "list[Value] | Range", count: int, seed: int, strata: bool
) -> list[Any]:
    """`count` values of an axis: drawn, or one in each of `count` equal strata in random order."""
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    places = rng.random(count)
    if strata:
        places = (rng.permutation(count) + places) / count
    if isinstance(axis, Range) and axis.step is None and axis.count is None:
        if SETTINGS[name].kind == "float":
            return [_within(axis, False, float(place)) for place in places]
        return [_whole(axis, float(place)) for place in places]
    values = grid_values(name, axis)
    return [values[min(int(place * len(values)), len(values) - 1)] for place in places]


def _whole(axis: Range, place: float) -> int:
    """The whole number at a place in [0, 1): each has the same share of it, or of its logarithm."""
    low, end = axis.low, axis.high + 1
    if axis.scale == "log2":
        return min(int(low * (end / low) ** place), int(axis.high))
    return min(int(low + (end - low) * place), int(axis.high))
