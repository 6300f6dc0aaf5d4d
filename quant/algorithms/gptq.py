"""GPTQ: columns are rounded one after the other, and the columns behind make up for each error.

After GPTQ (Frantar et al., ICLR 2023, arXiv 2210.17323, algorithm 1) and the authors' code
(IST-DASLab/gptq, gptq.py). `gptq_reference` is the definition, `gptq` its jitted twin; both give
the same tensor and the same error bit for bit. For weights w [n, k] and the Hessian H of the
layer's squared output error, H = 2/N * sum x x^T:

1. *Dead* columns, H_jj = 0: the input is always zero. Their weights become 0, and nothing else of
   H touches them.
2. H + damping * mean(diag H) * I over the live columns; damping is multiplied by 10 until this is
   positive definite (every pivot of the Cholesky factorisation above k * 2**-52 of its diagonal).
3. U, upper triangular, U^T U = H^-1: in float64, then float32. With H = R R^T, R upper triangular,
   U is the inverse of R; H itself is never inverted.
4. Column by column, in float32: q_j is the dequantised value of w_j rounded,
   e_j = (w_j - q_j) / U_jj, and w_i -= e_j * U_ji for the columns i behind j within the block.
5. After a block of columns: w_later -= E @ U[block, later], one matrix product.

The result depends on H up to a positive factor only through the rounding of U, and not at all
through a power of 4: H is divided by one first. Matrix products and factorisations are those of the
machine's BLAS, so another machine may round the last bits of w otherwise.

**Rounding.** w_j is rounded as `quantize` would: with the float32 delta of its group
(`algorithms/rtn.py`, `olive.py`), while q_j has the stored scale; formats with a fixed block round
with the stored scale (`block_scales.py`). So the codes for an H that is a multiple of the identity
are those of round-to-nearest.

**Groups.** Delta, selector and zero point come from the current weights of the whole group, once
its first column is reached. No error may then be on its way to one of its columns, so a block ends
early, at the first column of a group that it does not hold whole. With `act_order` columns are
taken by falling H_jj (stable), groups stay those of the stored layout, and all their parameters
come from the original weights ("static groups"). What belongs to a row or to the tensor always
comes from the original weights: the channel scale of "int8" scales, so that a group whose delta
has grown beyond 255 channel scales gets 255, and the tensor scale of NVFP4.

**Pairs** (OliVe). Both columns are coded in one step, before the error of either has moved. Then
step 4 runs as always, which adds e_j * U_j,j+1 to the error of the second; that is the best update
of the columns behind, as (e_j, e_j+1) = (error of both) U_pair^-1. With `act_order` pairs move
together, by the sum of their H_jj, and a last column without a partner stays last.

Where this differs from the authors' code: a group that starts within a block of columns sees the
errors of that block, which theirs does not; mean(diag H) leaves out dead columns, where theirs
counts 1 for each; a singular H is damped more instead of being an error.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Float32, Int64, UInt8

from bitwright.quant import (
    Format,
    InputError,
    QuantizedTensor,
    ScaleFormat,
    olive_pair_values,
    scale_code_values,
    spread_rows,
)

from .block_scales import E2M1_MAX, E4M3_MAX, _mx, _nearest_code, _nearest_even, quantize_blocks
from .olive import _MIDS, ABFLOAT, _encode, olive, olive_reference
from .rtn import Rounded, _grids, rtn, rtn_reference

#: A damping above this is given up, and one of 0 is raised to _FIRST_DAMPING.
_LAST_DAMPING, _FIRST_DAMPING = 1e3, 1e-4
#: Triangular matrices up to this size are inverted in one piece.
_LEAF = 64
#: A weight here costs about as much as this many in round-to-nearest; for `spread_rows`.
_COST = 16


class Gptq(NamedTuple):
    """Quantised weights, and what became of the Hessian."""

    tensor: QuantizedTensor
    error: float  #: sum of (w_j - q_j)**2 / (2 U_jj**2) = sum of e_j**2 / 2; dead columns add 0
    damping: float  #: the fraction of mean(diag H) that was added in the end
    damping_raised: int  #: how many times it had to be multiplied by 10 (singular Hessian)
    dead: tuple[int, ...]  #: columns whose input is always zero: their weights became 0


def gptq(
    w: Float32[np.ndarray, "n k"],
    hessian: Float[np.ndarray, "k k"],
    format: Format,
    group_size: int,
    scale_format: ScaleFormat,
    *,
    act_order: bool = False,
    damping: float = 0.01,
    block_columns: int = 128,
) -> Gptq:
    """The jitted twin of `gptq_reference`, with the rows of a large matrix spread over threads."""
    options = _Options(act_order, damping, block_columns)
    return _gptq(w, hessian, format, group_size, scale_format, options, _round, _sweep)


def gptq_reference(
    w: Float32[np.ndarray, "n k"],
    hessian: Float[np.ndarray, "k k"],
    format: Format,
    group_size: int,
    scale_format: ScaleFormat,
    *,
    act_order: bool = False,
    damping: float = 0.01,
    block_columns: int = 128,
) -> Gptq:
    """Quantise `w` as this module defines it; slow and plain.

    Args:
        w: Finite weights (output channel x input channel).
        hessian: Symmetric, 2/N * sum x x^T over calibration inputs x of the layer, or any positive
            multiple; only one of two mirrored entries is read.
        format: The format of the codes.
        group_size: Columns per group, at least 1; the last group of a row may be shorter, and more
            than k means k.
        scale_format: How group scales are stored.
        act_order: Take columns by falling H_jj, with static groups.
        damping: Fraction of mean(diag H) to add to the diagonal, 0 .. 1000. 0 is raised to 1e-4
            if it has to be.
        block_columns: Columns between two updates of all later columns; pairs round it up to even.

    Returns:
        The tensor, and the error in units of H: half of tr((w - q) (H + damping) (w - q)^T) up to
        rounding, with dead columns left out.

    Raises:
        InputError: NaN or Inf in `w` or `hessian`, shapes that do not fit, a group size or scale
            format that the format does not have, a Hessian that no damping up to 1000 makes
            positive definite, or a scale outside float16.

    >>> from bitwright.quant import FORMATS
    >>> w, h = np.array([[3.0, 1.4, 0.3]], np.float32), np.array([[2, 1, 0], [1, 2, 1], [0, 1, 1]])
    >>> result = gptq_reference(w, h, FORMATS["int3-sym"], 3, "fp16", damping=0.0)
    >>> result.tensor.codes, round(result.error, 3)  # error 0.4 moves on: 0.3 + 0.4 -> 1
    (array([[3, 1, 1]], dtype=uint8), 0.125)
    """
    options = _Options(act_order, damping, block_columns)
    return _gptq(
        w, hessian, format, group_size, scale_format, options, _round_reference, _sweep_reference
    )


class _Options(NamedTuple):
    act_order: bool
    damping: float
    block_columns: int


class _Factor(NamedTuple):
    """The Hessian as the columns need it, in the order of quantisation."""

    u: Float32[np.ndarray, "k k"]  # upper triangular, U^T U = unit * H^-1
    unit: float  # power of 4 that H was divided by
    damping: float
    raised: int


@dataclass
class _Work:
    """What the column loops read and write; columns are in the order of quantisation."""

    format: Format
    w: Float32[np.ndarray, "n k"]
    u: Float32[np.ndarray, "k k"]
    group_of: Int64[np.ndarray, " k"]
    groups: "_Groups"
    codes: UInt8[np.ndarray, "n k"]
    errors: Float32[np.ndarray, "n k"]  # e_j


#: Rounds [n, k] in groups: weights, format, group size.
_Rounder = Callable[[np.ndarray, Format, int], Rounded]
#: Quantises columns start .. stop - 1 of the block that ends before last, and moves their errors
#: within the block: work, start, stop, last.
_Sweeper = Callable[[_Work, int, int, int], None]


def _gptq(
    w: np.ndarray,
    hessian: np.ndarray,
    format: Format,
    group_size: int,
    scale_format: ScaleFormat,
    options: _Options,
    rounder: _Rounder,
    sweep: _Sweeper,
) -> Gptq:
    w = np.asarray(w, np.float32)
    _check_finite("w", w, "scale the weights down")
    n, k = w.shape
    if group_size < 1:
        raise InputError(f"group_size (={group_size}) must be at least 1; 128 is usual")
    group_size = min(group_size, k)
    format.check_group_size(group_size, k)
    format.check_scale_format(scale_format)
    if options.block_columns < 1:
        raise InputError(f"block_columns (={options.block_columns}) must be at least 1")
    h = _checked(hessian, k)
    dead = np.diagonal(h) == 0
    w = np.where(dead, np.float32(0), w)
    pairs = format.kind == "olive"
    order = _order(np.diagonal(h), pairs) if options.act_order else np.arange(k)
    factor = _factorise(h, dead, order, options.damping)
    groups = _Groups(w, format, group_size, scale_format, rounder)
    if options.act_order:
        for group in range(groups.count):
            groups.settle(w[:, group * group_size : (group + 1) * group_size], group)
    work = _Work(
        format,
        np.ascontiguousarray(w[:, order]),
        factor.u,
        order // group_size,
        groups,
        np.empty((n, k), np.uint8),
        np.empty((n, k), np.float32),
    )
    squares = 0.0
    width = options.block_columns + (options.block_columns % 2 if pairs else 0)
    for first, last in _blocks(k, width, k if options.act_order else group_size):
        start = first
        while start < last:
            stop = last
            if not options.act_order:
                group, offset = divmod(start, group_size)
                stop = min(last, (group + 1) * group_size)
                if offset == 0:
                    groups.settle(work.w[:, start : start + group_size], group)
            sweep(work, start, stop, last)
            start = stop
        errors = work.errors[:, first:last]
        with np.errstate(over="ignore", invalid="ignore"):
            work.w[:, last:] -= errors @ factor.u[first:last, last:]
            # Binary has no 0 for a dead column; its error meets no input.
            errors[:, dead[order[first:last]]] = 0
            squares += float(np.square(errors, dtype=np.float64).sum())
        if not np.isfinite(squares):
            raise InputError("the compensated weights exceed float32; scale the weights down")
    codes = np.empty_like(work.codes)
    codes[:, order] = work.codes
    return Gptq(
        groups.tensor(codes),
        squares / 2 * factor.unit,
        factor.damping,
        factor.raised,
        tuple(np.flatnonzero(dead).tolist()),
    )


def _blocks(k: int, width: int, group_size: int) -> Iterator[tuple[int, int]]:
    """Column blocks of at most `width`, cut where a group begins that would reach beyond."""
    first = 0
    while first < k:
        last = min(first + width, k)
        begin = last // group_size * group_size  # of the group of column `last`
        if last < k and begin > first:
            last = begin
        yield first, last
        first = last


def _order(diagonal: np.ndarray, pairs: bool) -> Int64[np.ndarray, " k"]:
    """Columns by falling H_jj, the earlier one first in a tie."""
    if not pairs:
        return np.argsort(-diagonal, kind="stable")
    whole = len(diagonal) // 2
    key = diagonal[: 2 * whole].reshape(whole, 2).sum(axis=1)
    first = 2 * np.argsort(-key, kind="stable")
    return np.append(np.stack([first, first + 1], axis=1), np.arange(2 * whole, len(diagonal)))


def _checked(hessian: np.ndarray, k: int) -> np.ndarray:
    """A float64 copy of the Hessian."""
    h = np.array(hessian, np.float64)
    if h.shape != (k, k):
        raise InputError(f"hessian has shape {h.shape}; w has {k} columns and needs ({k}, {k})")
    _check_finite("hessian", h, "check the calibration inputs")
    return h


def _check_finite(name: str, matrix: np.ndarray, advice: str) -> None:
    finite = np.isfinite(matrix)
    if not finite.all():
        row, column = np.argwhere(~finite)[0]
        raise InputError(
            f"{name}[{row}, {column}] is {matrix[row, column]}; it must be finite: {advice}"
        )


def _factorise(
    h: np.ndarray, dead: np.ndarray, order: Int64[np.ndarray, " k"], damping: float
) -> _Factor:
    """Steps 1 to 3 of the module's docstring; `h` is overwritten."""
    if not 0 <= damping <= _LAST_DAMPING:
        raise InputError(f"damping (={damping}) must be in 0 .. {_LAST_DAMPING:g}; 0.01 is usual")
    k = len(h)
    # Float64 carries U for any H of float32 then; exact, as the square root of a power of 4 is.
    exponent = int(np.clip(np.frexp(np.diagonal(h).max())[1] // 2, -500, 500))
    h *= 4.0**-exponent
    mean = 1.0 if dead.all() else float(np.diagonal(h)[~dead].mean())
    h[dead] = 0
    h[:, dead] = 0
    h[dead, dead] = mean
    # Rows and columns in reverse: the lower factor L of that, reversed again, is upper.
    h = h[np.ix_(order[::-1], order[::-1])]
    diagonal = np.diagonal(h).copy()
    raised = 0
    while True:
        np.fill_diagonal(h, diagonal + damping * mean)
        try:
            lower = np.linalg.cholesky(h)
            pivots = np.square(np.diagonal(lower))
            # Rounding alone moves a pivot by so much; NaN is not above it either.
            if (pivots > k * np.finfo(np.float64).eps * np.diagonal(h)).all():
                break
        except np.linalg.LinAlgError:
            pass
        if damping * 10 > _LAST_DAMPING:
            raise InputError(
                f"the Hessian is not positive definite, even with {damping:g} times its mean "
                "diagonal added; it must be a sum of x x^T"
            )
        damping = damping * 10 or _FIRST_DAMPING
        raised += 1
    u = _inverse(np.ascontiguousarray(lower[::-1, ::-1])).astype(np.float32)
    return _Factor(u, 4.0**exponent, damping, raised)


def _inverse(r: np.ndarray) -> np.ndarray:
    """Inverse of an upper triangular matrix, by halves."""
    k = len(r)
    if k <= _LEAF:
        return np.linalg.inv(r)
    half = k // 2
    result = np.zeros_like(r)
    result[:half, :half] = _inverse(r[:half, :half])
    result[half:, half:] = _inverse(r[half:, half:])
    result[:half, half:] = -result[:half, :half] @ r[:half, half:] @ result[half:, half:]
    return result


class _Groups:
    """Parameters of all groups, [n, groups] each, known group by group."""

    def __init__(
        self,
        w: Float32[np.ndarray, "n k"],
        format: Format,
        group_size: int,
        scale_format: ScaleFormat,
        rounder: _Rounder,
    ) -> None:
        n, k = w.shape
        self.count = -(-k // group_size)
        self._format, self._group_size, self._scale_format = format, group_size, scale_format
        self._rounder = rounder
        shape = (n, self.count)
        #: A weight is divided by this before it is rounded (with a block: multiplied).
        self.units = np.zeros(shape, np.float32)
        self.scales = np.zeros(shape, np.float32)  #: as stored
        self.selectors = np.zeros(shape, np.uint8)
        self.zero_points = np.zeros(shape, np.uint8)
        self._stored = np.zeros(shape, np.float16 if scale_format == "fp16" else np.uint8)
        self._channel_scales: np.ndarray | None = None
        self._tensor_scale: np.ndarray | None = None
        if scale_format == "int8":
            deltas = rounder(w, format, group_size).deltas
            _check_spread(deltas)
            self._channel_scales = deltas.max(axis=1) / np.float32(255)
        elif scale_format == "e4m3":
            self._largest = np.abs(w).max()
            self._tensor_scale = quantize_blocks(
                np.full((1, 1), self._largest), format
            ).tensor_scale

    def settle(self, w: Float32[np.ndarray, "n size"], group: int) -> None:
        """Choose the parameters of a group from its weights."""
        if self._scale_format == "e8m0":
            largest = np.abs(w).max(axis=1, keepdims=True)
            stored = _mx(w[:, None, :], largest, self._format)[0][:, 0]
            scales = np.array(scale_code_values("e8m0"), np.float32)[stored]
            units = np.array(scale_code_values("e8m0"), np.float32)[254 - stored]
        elif self._scale_format == "e4m3":
            stored, scales, units = self._nvfp4(w)
        else:
            rounded = self._rounder(w, self._format, w.shape[1])
            deltas = rounded.deltas[:, 0]
            self.selectors[:, group] = rounded.selectors[:, 0]
            self.zero_points[:, group] = rounded.zero_points[:, 0]
            stored, scales = self._store(deltas, group)
            # x = 0 for a delta of 0; binary codes are the signs of the weights themselves.
            units = np.where(deltas == 0, np.float32(np.inf), deltas)
            if self._format.bits == 1:
                units = np.ones_like(deltas)
        self._stored[:, group], self.scales[:, group], self.units[:, group] = stored, scales, units

    def _store(
        self, deltas: Float32[np.ndarray, " n"], group: int
    ) -> tuple[np.ndarray, Float32[np.ndarray, " n"]]:
        """The scale of a group as stored, and its value; see `quantize`."""
        _check_spread(deltas)
        if self._channel_scales is not None:
            channel = self._channel_scales
            divisors = np.where(channel == 0, np.float32(1), channel)
            ratios = np.clip(np.rint(deltas / divisors), 0, 255)
            return ratios, ratios * channel
        with np.errstate(over="ignore", under="ignore"):
            stored = deltas.astype(np.float16)
        wrong = ~np.isfinite(stored) | ((stored == 0) & (deltas > 0))
        if wrong.any():
            row = np.flatnonzero(wrong)[0]
            raise InputError(
                f"the scale of row {row}, group {group} (={deltas[row]:.3g}), errors of other "
                "columns included, is outside FP16 (6e-08 .. 65504); use scale_format='int8' (-s8 "
                "in a recipe) or rescale the weights"
            )
        return stored, stored.astype(np.float32)

    def _nvfp4(self, w: Float32[np.ndarray, "n size"]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """E4M3 codes, scales and factors of a block, with the tensor scale of the original w."""
        assert self._tensor_scale is not None
        one, top = np.float32(1), np.float32(E2M1_MAX)
        encode = np.float32(E2M1_MAX * E4M3_MAX) / self._largest if self._largest else one
        scales = np.minimum(np.abs(w).max(axis=1) / top * encode, np.float32(E4M3_MAX))
        table = np.array(scale_code_values("e4m3")[:127])
        codes = _nearest_even(scales, table)
        stored = table[codes].astype(np.float32) * self._tensor_scale
        with np.errstate(divide="ignore"):
            return codes, stored, np.where(stored == 0, np.float32(0), one / stored)

    def tensor(self, codes: UInt8[np.ndarray, "n k"]) -> QuantizedTensor:
        """The tensor of these codes, once all groups are settled."""
        return QuantizedTensor(
            format=self._format,
            group_size=self._group_size,
            codes=codes,
            scale_format=self._scale_format,
            group_scales=self._stored,
            channel_scales=self._channel_scales,
            zero_points=self.zero_points if self._format.zero_point_bits else None,
            selectors=self.selectors if self._format.selector_bits else None,
            tensor_scale=self._tensor_scale,
        )


def _check_spread(deltas: np.ndarray) -> None:
    if not np.isfinite(deltas).all():
        raise InputError("the spread of a group of weights exceeds float32; scale the weights down")


def _round_reference(w: np.ndarray, format: Format, group_size: int) -> Rounded:
    if format.kind == "olive":
        return olive_reference(w, group_size)
    return rtn_reference(w, format, group_size)


def _round(w: np.ndarray, format: Format, group_size: int) -> Rounded:
    if format.kind == "olive":
        return olive(w, group_size)
    return rtn(w, format, group_size)


def _sweep_reference(work: _Work, start: int, stop: int, last: int) -> None:
    value = _pair_column if work.format.kind == "olive" else _column
    for j in range(start, stop):
        with np.errstate(over="ignore", invalid="ignore"):
            q = value(work, j) * work.groups.scales[:, work.group_of[j]]
            work.errors[:, j] = (work.w[:, j] - q) / work.u[j, j]
            work.w[:, j + 1 : last] -= work.errors[:, j, None] * work.u[j, j + 1 : last]


def _column(work: _Work, j: int) -> Float32[np.ndarray, " n"]:
    """Code column j; its values before the scale."""
    format, groups, group = work.format, work.groups, work.group_of[j]
    w, unit = work.w[:, j], groups.units[:, group]
    selectors, zero = groups.selectors[:, group], groups.zero_points[:, group].astype(np.float32)
    if format.block is not None:
        codes = _nearest_code(w * unit, format)
    elif format.scale_rule == "absmean":
        codes = w >= 0 if format.bits == 1 else np.clip(np.rint(w / unit), -1, 1).astype(int) & 3
    elif format.kind == "levels":
        grids = _grids(format)
        x = w / unit
        codes = np.empty(len(w), np.uint8)
        for selector in range(format.choices):
            rows = selectors == selector
            rank = np.searchsorted(grids.mids[selector], x[rows], side="left")
            codes[rows] = grids.codes[selector][rank]
    elif format.kind == "int-sym":
        q = np.clip(np.rint(w / unit), -format.qmax, format.qmax)
        codes = q.astype(int) & ((1 << format.bits) - 1)
    else:
        x = w / unit
        codes = np.clip(np.rint(x) + zero, 0, format.qmax).astype(int)
        if format.kind == "dint-asym":
            near = (np.abs(x) > np.float32(0.25)) & (np.abs(x) < np.float32(0.75))
            codes[near] = format.qmax + np.where(x[near] > 0, 1, 2)
    work.codes[:, j] = codes
    tables = np.array([format.code_values(s) for s in range(format.choices)], np.float32)
    zero_weights = np.array(format.zero_weights(), np.float32)
    codes = work.codes[:, j]
    return tables[selectors, codes] - zero_weights[codes] * zero


def _pair_column(work: _Work, j: int) -> Float32[np.ndarray, " n"]:
    """Code columns j and j + 1 if j is even; the values of column j before the scale."""
    n, k = work.w.shape
    if j % 2 == 0:
        units = work.groups.units[:, work.group_of[j]]
        for row in range(n):
            work.codes[row, j : j + 2] = _encode(work.w[row, j : j + 2], units[row])[0]
    partner = work.codes[:, j ^ 1] if j ^ 1 < k else np.zeros(n, np.uint8)
    codes = zip(work.codes[:, j].tolist(), partner.tolist(), strict=True)
    return np.array([olive_pair_values(*pair)[0] for pair in codes], np.float32)


def _sweep(work: _Work, start: int, stop: int, last: int) -> None:
    from . import gptq_numba as jitted

    format, groups, n = work.format, work.groups, len(work.w)
    columns = (start, stop, last, work.w, work.u, work.group_of, groups.units, groups.scales)
    written = (work.codes, work.errors)
    if format.kind == "olive":
        pairs = [[olive_pair_values(a, b)[0] for b in range(16)] for a in range(16)]
        constants = (np.array(pairs, np.float32), ABFLOAT, _MIDS)

        def work_pairs(first: int, end: int) -> None:
            jitted.pair_columns(first, end, *columns, *constants, *written)

        return spread_rows(work_pairs, n, _COST * (stop - start))
    selectors = range(format.choices)
    tables = np.array([format.code_values(s) for s in selectors], np.float32)
    zero_weights = np.array(format.zero_weights(), np.float32)
    chosen = (groups.selectors, groups.zero_points, tables, zero_weights)
    if format.kind == "levels":
        thresholds, grid_codes = _thresholds(format)
        grid = (thresholds, grid_codes, format.block is not None)

        def work_levels(first: int, end: int) -> None:
            jitted.level_columns(first, end, *columns, *chosen, *grid, *written)

        return spread_rows(work_levels, n, _COST * (stop - start))
    low = -format.qmax if format.kind == "int-sym" else 0
    integers = (low, format.qmax, (1 << format.bits) - 1, format.kind == "dint-asym")

    def work_integers(first: int, end: int) -> None:
        jitted.integer_columns(first, end, *columns, *chosen, *integers, *written)

    spread_rows(work_integers, n, _COST * (stop - start))


def _thresholds(format: Format) -> tuple[np.ndarray, np.ndarray]:
    """Grid index = number of thresholds below x; [choices, thresholds], and the codes by index.

    A threshold is the midpoint if an exact midpoint belongs to the level below, else the float32
    before it: the tie rules of `rtn.py` and `block_scales.py` as a table. Inf fills up the number
    of thresholds to a power of two less one, for a search by halves.
    """
    grids = _grids(format)
    if format.bits == 1:
        up = np.ones(grids.mids.shape, bool)  # 0 counts as +1
    elif format.block is not None or format.scale_rule == "absmean":
        up = grids.codes[:, :-1] % 2 == 1  # to the even code
    else:
        up = np.zeros(grids.mids.shape, bool)
    choices, count = grids.mids.shape
    thresholds = np.full((choices, (1 << count.bit_length()) - 1), np.inf, np.float32)
    before = np.nextafter(grids.mids, np.float32(-np.inf))
    thresholds[:, :count] = np.where(up, before, grids.mids)
    return thresholds, grids.codes
