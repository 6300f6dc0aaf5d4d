"""Round-to-nearest: every group of a row on its own, no data needed.

`rtn_reference` is the definition, one group at a time; `rtn` is its jitted twin and gives the same
codes, scales, selectors and zero points bit for bit. Unless said otherwise every operation below is
one float32 operation, in this order, for a group of weights w:

**Levels.** For each special value, in the order of `special_values` (once if there are none):

1. delta = max|w| / absmax(grid), the grid being the levels plus the special value;
2. x = w / delta; the level is grid[i] where mid[i-1] < x <= mid[i] and mid[i] is halfway between
   grid[i] and grid[i+1]: an exact midpoint goes to the lower (more negative) level;
3. in float64: squares (w - level * delta)**2, summed by folding (`fold`).

The grid with the strictly smallest sum wins; in a tie the earlier one does (BitMoD, Algorithm 1).
The sum is kept in float64 so that the choice depends neither on rounding nor on the size of the
weights: a tie is a tie of the mathematics. A grid whose delta is 0 (max|w| is subnormal) is left
out; if all are, or w is all zero, delta is 0, the selector 0 and all codes 0. Among the tables of a
format with `alternatives` the choice is the same.

**Symmetric integers.** delta = max|w| / qmax; q = w / delta rounded half to even, clipped to
+-qmax.

**Asymmetric integers.** low = min(w, 0), high = max(w, 0); delta = (high - low) / qmax;
zero = -low / delta rounded half to even, clipped to 0 .. qmax; q = w / delta rounded half to even,
plus zero, clipped to 0 .. qmax.
With delta 0, codes and zero point are 0.

**Asymmetric dINT.** As asymmetric integers with qmax = 2**bits - 3; but a weight with
1/4 < |w / delta| < 3/4 gets the code of plus or minus one half. On exactly 1/4 and 3/4 a weight is
an integer as any other: 0, and plus or minus 1. (This project's choice; no tie rule of the paper is
known. Symmetric dINT is a table of levels, where exact midpoints go to the lower level.)

**Mean magnitude** (binary, ternary). delta = the mean of |w|, summed in float64 by folding and
rounded to float32. Binary: +1 if w >= 0, else -1. Ternary: w / delta rounded half to even, clipped
to +-1 (BitNet b1.58, without its floor of 1e-5 for delta). With delta 0 ternary codes are 0 and
binary ones follow their rule.

**Levels with `fp16_error`**, as the released quantiser (authors' repo BitMoD-HPCA-25,
quant_weight.py) chooses its special values: weights and the result of every operation are float16;
the tables are scaled to integers (FP4 is doubled); delta, in units of that table, is clipped to
1e-5 .. 1e4; the mean of the squares is a float32 sum by folding, divided by the size of the group,
rounded to float16; the search starts at an error of 1e3, and a group that no grid brings below it
gets codes of zero. Errors of usual weights lie among the float16 subnormals, 6e-8 apart, so some
groups choose differently.
"""

from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float32, UInt8

from bitwright.quant import Format, InputError, spread_rows

#: Limits of delta and start of the error in the released quantiser.
FP16_DELTA_MIN, FP16_DELTA_MAX, FP16_ERROR_START = 1e-5, 1e4, 1e3


class Rounded(NamedTuple):
    """What rounding decides; scales are still unquantised."""

    codes: UInt8[np.ndarray, "n k"]
    deltas: Float32[np.ndarray, "n groups"]  #: group scales, 0 for an all-zero group
    selectors: UInt8[np.ndarray, "n groups"]  #: all zero for formats without a choice
    zero_points: UInt8[np.ndarray, "n groups"]  #: all zero for formats without zero points


class _Grids(NamedTuple):
    """The grids of a format as arrays, one row per special value."""

    values: np.ndarray  # float32 [choices, levels], ascending
    mids: np.ndarray  # float32 [choices, levels - 1]
    codes: np.ndarray  # uint8 [choices, levels]
    absmaxes: np.ndarray  # float32 [choices]


def _grids(format: Format, factor: int = 1) -> _Grids:
    selectors = range(format.choices)
    values = np.array([format.grid(s) for s in selectors], np.float32) * np.float32(factor)
    return _Grids(
        values,
        (values[:, 1:] + values[:, :-1]) / np.float32(2),
        np.array([format.grid_codes(s) for s in selectors], np.uint8),
        np.abs(values).max(axis=1),
    )


def _integer_factor(format: Format) -> int:
    """The power of two that makes all levels integers: 1 for FP3, 2 for FP4.

    Raises:
        InputError: None up to 2**10 does.
    """
    values = [value for s in range(format.choices) for value in format.grid(s)]
    for exponent in range(11):
        if all((value * 2**exponent).is_integer() for value in values):
            return 2**exponent
    raise InputError(f"fp16_error needs levels in steps of a power of two; {format.name} has none")


def fold(terms: np.ndarray) -> Any:
    """Sum by halving: the second half is added to the first, element by element, until one is left.

    Of an odd number the middle element waits. Every addition is in the type of `terms`. The order
    is part of the definition of rounding, and it vectorises.

    >>> float(fold(np.array([1.0, 2.0, 3.0, 4.0, 5.0])))  # (1+4)+3, 2+5; then (8)+(7)
    15.0
    """
    terms = terms.copy()
    while len(terms) > 1:
        half = (len(terms) + 1) // 2
        terms[: len(terms) - half] += terms[half:]
        terms = terms[:half]
    return terms[0]


def rtn_reference(
    w: Float32[np.ndarray, "n k"], format: Format, group_size: int, fp16_error: bool = False
) -> Rounded:
    """Round `w` as this module defines it; slow and plain.

    Args:
        w: Finite weights.
        format: The format of the codes.
        group_size: Columns per group, at least 1; the last group of a row may be shorter.
        fp16_error: Choose special values in float16, as the released quantiser does.

    Raises:
        InputError: `fp16_error` with a format that has no choice of special values.

    >>> from bitwright.quant import FORMATS
    >>> w = np.array([[4.0, -3.0, 2.0, 0.1]], np.float32)
    >>> rtn_reference(w, FORMATS["bitmod3"], 4).selectors  # -3 wins
    array([[1]], dtype=uint8)
    """
    _check_fp16_error(format, fp16_error)
    n, k = w.shape
    groups = -(-k // group_size)
    result = empty(n, k, groups)
    for row in range(n):
        for group in range(groups):
            columns = slice(group * group_size, min((group + 1) * group_size, k))
            if format.kind == "int-sym":
                decided = _int_sym(w[row, columns], format)
            elif format.kind == "int-asym":
                decided = _int_asym(w[row, columns], format)
            elif format.kind == "dint-asym":
                decided = _dint_asym(w[row, columns], format)
            elif format.scale_rule == "absmean":
                decided = _absmean(w[row, columns], format)
            elif fp16_error:
                decided = _levels_fp16(w[row, columns], format)
            else:
                decided = _levels(w[row, columns], format)
            result.codes[row, columns] = decided[0]
            result.deltas[row, group] = decided[1]
            result.selectors[row, group] = decided[2]
            result.zero_points[row, group] = decided[3]
    return result


#: Codes, delta, selector and zero point of one group.
_Group = tuple[np.ndarray, np.float32, int, int]


def _levels(w: np.ndarray, format: Format) -> _Group:
    grids = _grids(format)
    zeros = np.zeros(len(w), np.uint8)
    best: _Group = (zeros, np.float32(0), 0, 0)
    least = np.inf
    for selector in range(format.choices):
        delta = np.abs(w).max() / grids.absmaxes[selector]
        if delta == 0:
            continue
        with np.errstate(under="ignore"):
            # side="left" counts the midpoints below x: mid[i-1] < x <= mid[i] gives i.
            rank = np.searchsorted(grids.mids[selector], w / delta, side="left")
        level = grids.values[selector][rank]
        error = w.astype(np.float64) - level.astype(np.float64) * np.float64(delta)
        total = fold(error * error)
        if total < least:
            least = total
            best = (grids.codes[selector][rank], delta, selector, 0)
    return best


def _levels_fp16(w: np.ndarray, format: Format) -> _Group:
    factor = _integer_factor(format)
    grids = _grids(format, factor)
    w = w.astype(np.float16)
    least = np.float16(FP16_ERROR_START)
    best: _Group | None = None
    for selector in range(format.choices):
        delta = np.abs(w).max() / np.float16(grids.absmaxes[selector])
        delta = np.clip(delta, np.float16(FP16_DELTA_MIN), np.float16(FP16_DELTA_MAX))
        rank = np.searchsorted(grids.mids[selector].astype(np.float16), w / delta, side="left")
        if best is None:
            zeros = np.zeros(len(w), np.uint8)
            best = (zeros, np.float32(delta) * np.float32(factor), selector, 0)
        with np.errstate(over="ignore"):
            error = grids.values[selector][rank].astype(np.float16) * delta - w
            total = fold((error * error).astype(np.float32))
            mean = np.float16(total / np.float32(len(w)))
        if mean < least:
            least = mean
            codes = grids.codes[selector][rank]
            best = (codes, np.float32(delta) * np.float32(factor), selector, 0)
    assert best is not None
    return best


def _int_sym(w: np.ndarray, format: Format) -> _Group:
    qmax = np.float32(format.qmax)
    delta = np.abs(w).max() / qmax
    if delta == 0:
        return np.zeros(len(w), np.uint8), np.float32(0), 0, 0
    q = np.clip(np.rint(w / delta), -qmax, qmax)
    return q.astype(np.int32) & ((1 << format.bits) - 1), delta, 0, 0


def _int_asym(w: np.ndarray, format: Format) -> _Group:
    qmax = np.float32(format.qmax)
    low, high = min(w.min(), np.float32(0)), max(w.max(), np.float32(0))
    with np.errstate(over="ignore"):
        delta = (high - low) / qmax
    if delta == 0:
        return np.zeros(len(w), np.uint8), np.float32(0), 0, 0
    zero = np.clip(np.rint(-low / delta), np.float32(0), qmax)
    q = np.clip(np.rint(w / delta) + zero, np.float32(0), qmax)
    return q.astype(np.uint8), delta, 0, int(zero)


def _dint_asym(w: np.ndarray, format: Format) -> _Group:
    codes, delta, _, zero = _int_asym(w, format)
    if delta == 0:
        return codes, delta, 0, 0
    x = w / delta
    plus, minus = np.uint8(format.qmax + 1), np.uint8(format.qmax + 2)
    special = np.where(x > 0, plus, minus)
    near = (np.abs(x) > np.float32(0.25)) & (np.abs(x) < np.float32(0.75))
    return np.where(near, special, codes), delta, 0, zero


def _absmean(w: np.ndarray, format: Format) -> _Group:
    delta = np.float32(fold(np.abs(w).astype(np.float64)) / len(w))
    if format.bits == 1:
        return (w >= 0).astype(np.uint8), delta, 0, 0
    if delta == 0:
        return np.zeros(len(w), np.uint8), delta, 0, 0
    q = np.clip(np.rint(w / delta), np.float32(-1), np.float32(1))
    return q.astype(np.int32) & 3, delta, 0, 0


def rtn(
    w: Float32[np.ndarray, "n k"], format: Format, group_size: int, fp16_error: bool = False
) -> Rounded:
    """The jitted twin of `rtn_reference`, with the rows of a large matrix spread over threads."""
    from .rtn_numba import (
        round_absmean,
        round_dint_asym,
        round_int_asym,
        round_int_sym,
        round_levels,
        round_levels_fp16,
    )

    _check_fp16_error(format, fp16_error)
    w = np.ascontiguousarray(w)
    n, k = w.shape
    result = empty(n, k, -(-k // group_size))
    codes, deltas, selectors, zero_points = result
    kernel: Any
    inputs: tuple[Any, ...]
    outputs: tuple[np.ndarray, ...]
    factor = 1
    if format.kind == "int-sym":
        kernel, inputs, outputs = round_int_sym, (format.bits,), (codes, deltas)
    elif format.kind == "int-asym":
        kernel, inputs, outputs = round_int_asym, (format.qmax,), (codes, deltas, zero_points)
    elif format.kind == "dint-asym":
        kernel, inputs, outputs = round_dint_asym, (format.bits,), (codes, deltas, zero_points)
    elif format.scale_rule == "absmean":
        kernel, inputs, outputs = round_absmean, (format.bits,), (codes, deltas)
    elif not fp16_error:
        kernel, inputs, outputs = round_levels, _grids(format), (codes, deltas, selectors)
    else:
        factor = _integer_factor(format)
        limits = (FP16_DELTA_MIN, FP16_DELTA_MAX, FP16_ERROR_START)
        inputs = (*_grids(format, factor), *(np.float32(np.float16(limit)) for limit in limits))
        kernel, outputs = round_levels_fp16, (codes, deltas, selectors)
        w = w.astype(np.float16).astype(np.float32)
    spread_rows(lambda first, last: kernel(w, first, last, group_size, *inputs, *outputs), n, k)
    if factor != 1:
        deltas *= np.float32(factor)
    return result


def empty(n: int, k: int, groups: int) -> Rounded:
    """Arrays to write into; selectors and zero points start at 0."""
    return Rounded(
        np.empty((n, k), np.uint8),
        np.empty((n, groups), np.float32),
        np.zeros((n, groups), np.uint8),
        np.zeros((n, groups), np.uint8),
    )


def _check_fp16_error(format: Format, fp16_error: bool) -> None:
    if fp16_error and len(format.special_values) < 2:
        raise InputError(
            f"fp16_error follows the released search for special values, and {format.name} has "
            "none; leave it out"
        )
