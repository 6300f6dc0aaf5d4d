"""Weights of any format, packed for the kernels of this folder, and the kernels called."""

from collections.abc import Callable
from typing import Any

import numpy as np

from bitwright.kernels import PANEL_ROWS, integers, scaling
from bitwright.quant import QuantizedTensor

from . import amx, fixed_point, floating, integer, lookup, planes, simd
from .layouts import (
    COLUMNS,
    LOOKUP_ROWS,
    PLANE_ROWS,
    ROWS,
    WORD,
    aligned,
    group_starts,
    pack_nibbles,
    pack_plane_rows,
    pack_planes,
    pack_rows,
    pack_tiles,
    padded,
)

#: Tiles of rows that are decoded to float32 at a time.
_PANEL = 8
#: Codes, table, mask, extra and bias of `integer.py`.
_Operands = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def by_tile(values: np.ndarray, dtype: type) -> np.ndarray:
    """[n, groups] as [row tiles, groups, 16]; rows beyond n are zero."""
    n, groups = values.shape
    wide: np.ndarray = np.zeros((padded(n, ROWS), groups), dtype)
    wide[:n] = values
    out = aligned((len(wide) // ROWS, groups, ROWS), dtype)
    out[:] = wide.reshape(-1, ROWS, groups).transpose(0, 2, 1)
    return out


# ------------------------------------------------------------------ float


def by_panels(
    acts: np.ndarray, tiles: int, write: Callable[[slice, np.ndarray], None]
) -> np.ndarray:
    """Products with weights that become float32 in panels that stay in the cache.

    Args:
        acts: float32 [m, columns].
        tiles: Tiles of rows of weights.
        write: Decodes some tiles to a panel [columns, rows].

    Returns:
        float32 [m, 16 * tiles].
    """
    y = np.empty((len(acts), tiles * ROWS), np.float32)
    panel = aligned((acts.shape[1], _PANEL * ROWS), np.float32)
    for first in range(0, tiles, _PANEL):
        last = min(first + _PANEL, tiles)
        write(slice(first, last), panel)
        rows = (last - first) * ROWS
        np.matmul(acts, panel[:, :rows], out=y[:, ROWS * first : ROWS * last])
    return y


class FloatTiles:
    """Weights as tiles for `floating.py`: [n, k] times real activations."""

    def __init__(self, w: QuantizedTensor, decode: floating.Decode) -> None:
        self.shape, self.group_size = w.shape, min(w.group_size, w.k)
        format = w.format
        self.table, self.mask = aligned((256,), np.float32), aligned((256,), np.float32)
        self.table[: 1 << format.bits] = format.code_values()
        extra = np.zeros((w.n, w.groups), np.float32)
        if w.selectors is not None and format.special_values:
            self.table[format.special_code] = 0
            self.mask[format.special_code] = 1
            extra = np.array(format.special_values, np.float32)[w.selectors]
        elif w.zero_points is not None:
            self.mask[: 1 << format.bits] = format.zero_weights()
            extra -= w.zero_points
        self.extra = by_tile(extra, np.float32)
        self.scale = by_tile(w.scales(), np.float32)
        self.starts = group_starts(w.k, self.group_size)
        # A padded column meets an activation of 0, and all values are finite.
        self.tiles = pack_tiles(w.codes, format.bits, self.group_size)
        self._bits, self._decode = format.bits, decode

    @property
    def nbytes(self) -> int:
        """Bytes that a product reads, activations left out."""
        return self.tiles.nbytes + self.scale.nbytes + self.extra.nbytes

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return self.by_panels(x) if len(x) >= PANEL_ROWS else self.by_tiles(x)

    def by_tiles(self, x: np.ndarray) -> np.ndarray:
        """Row by row of activations, each with the same bits whatever the others are."""
        acts = pack_rows(x, self.group_size, np.float32)
        y = aligned((len(x), len(self.tiles) * ROWS), np.float32)
        product = floating.kernel(self._bits, self._decode)
        product(self.tiles, self.table, self.mask, self.extra, acts, self.starts, self.scale, y)
        return y[:, : self.shape[0]]

    def by_panels(self, x: np.ndarray) -> np.ndarray:
        """For many rows: weights become float32."""
        decode = floating.panel_kernel(self._bits, self._decode)

        def write(part: slice, panel: np.ndarray) -> None:
            decode(
                self.tiles[part], self.table, self.mask, self.extra[part], self.starts,
                self.scale[part], panel,
            )  # fmt: skip

        acts = pack_rows(x, self.group_size, np.float32)
        return by_panels(acts, len(self.tiles), write)[:, : self.shape[0]]


class FloatDense:
    """Weights that no kernel decodes: all of them become float32 for every product."""

    def __init__(self, w: QuantizedTensor) -> None:
        self._w = w
        self.nbytes = w.codes.nbytes

    def __call__(self, x: np.ndarray) -> np.ndarray:
        return x @ self._w.dequantize().T


# ------------------------------------------------------------------ integers


class _ByteTiles:
    """Weights as tiles of codes that stand for bytes u, and biases b; see `integer.py`."""

    def __init__(self, w: QuantizedTensor, decode: integer.Decode) -> None:
        self._keep(w, decode, integer_operands(w, decode))

    def _keep(self, w: QuantizedTensor, decode: integer.Decode, operands: _Operands) -> None:
        codes, table, mask, extra, bias = operands
        self.shape, self.group_size = w.shape, min(w.group_size, w.k)
        self.unit = np.float32(integers.unit_of(w.format))
        self.table, self.mask = aligned((16,), np.uint8), aligned((16,), np.uint8)
        self.table[: len(table)] = table
        self.mask[: len(mask)] = mask
        if decode == "masked":
            bytes_ = np.repeat(by_tile(extra, np.uint8), 4, axis=2)
        else:
            bytes_ = np.zeros((padded(w.n, ROWS) // ROWS, 1, 64), np.uint8)
        self.extra = np.ascontiguousarray(bytes_)
        self.bias = by_tile(bias, np.int16)
        self.scale = by_tile(w.scales(), np.float32)
        self.starts = group_starts(w.k, self.group_size)
        self.tiles = pack_tiles(codes, w.format.bits, self.group_size)
        self.bits, self.decode = w.format.bits, decode

    @property
    def nbytes(self) -> int:
        """Bytes that a product reads, activations left out."""
        parts = (self.tiles, self.extra, self.bias, self.scale)
        return sum(part.nbytes for part in parts)


class FixedPointTiles(_ByteTiles):
    """Weights as tiles for `fixed_point.py`: [n, k] times real activations."""

    def __call__(self, x: np.ndarray) -> np.ndarray:
        panels = len(x) >= PANEL_ROWS and not simd.TILES
        return self.by_panels(x) if panels else self.by_tiles(x)

    def by_tiles(self, x: np.ndarray) -> np.ndarray:
        """Row by row of activations, each with the same bits whatever the others are."""
        on_matrix_tiles = simd.TILES and len(x) >= amx.FROM_ROWS
        unit = amx.STEP if on_matrix_tiles else COLUMNS
        acts = pack_rows(x, self.group_size, np.float32, unit)
        starts = group_starts(self.shape[1], self.group_size, unit)
        m, groups = len(x), len(starts) - 1
        room = amx.activations if on_matrix_tiles else _room
        limbs = room(m, 3, acts.shape[1])
        sums, steps = np.zeros((m, 3, groups), np.float32), np.empty((m, groups), np.float32)
        fixed_point.to_limbs(acts.view(np.int32), starts, limbs, sums, steps)
        y = aligned((m, len(self.tiles) * ROWS), np.float32)
        weights = (self.tiles, self.table, self.mask, self.extra)
        if on_matrix_tiles:
            for blocks, rows in amx.chunks(limbs, m):
                amx.fixed_kernel(self.bits, self.decode)(
                    amx.CONFIGURATION, *weights, limbs[blocks], self.starts, starts,
                    _by_group(sums[rows]), self.bias, _by_group(steps[rows] * self.unit),
                    self.scale, y[rows],
                )  # fmt: skip
        else:
            fixed_point.kernel(self.bits, self.decode)(
                *weights, limbs, self.starts, sums, self.bias, steps * self.unit, self.scale, y
            )
        y = y[:, : self.shape[0]]
        strange = np.isnan(steps).any(axis=1)  # integers have no NaN and no infinity
        if strange.any():
            y[strange] = self.by_panels(x[strange])
        return y

    def by_panels(self, x: np.ndarray) -> np.ndarray:
        """For many rows: weights become float32."""
        decode = fixed_point.panel_kernel(self.bits, self.decode)

        def write(part: slice, panel: np.ndarray) -> None:
            decode(
                self.tiles[part], self.table, self.mask, self.extra[part], self.starts,
                self.bias[part], self.scale[part], self.unit, panel,
            )  # fmt: skip

        acts = pack_rows(x, self.group_size, np.float32)
        return by_panels(acts, len(self.tiles), write)[:, : self.shape[0]]


class IntegerTiles(_ByteTiles):
    """Weights as tiles for `integer.py`: [n, k] times integer activations."""

    def __init__(self, w: QuantizedTensor, decode: integer.Decode) -> None:
        operands = integer_operands(w, decode)
        self._keep(w, decode, operands)
        codes, table, mask, extra, bias = operands
        column = np.arange(w.k) // self.group_size
        u = codes.astype(np.int32)
        if decode != "code":
            u = table.astype(np.int32)[codes]
        if decode == "masked":
            u += mask.astype(np.int32)[codes] // 255 * extra[:, column]
            u &= 255
        lengths = integers.group_lengths(w.k, self.group_size)
        sums = integers.group_sums(u, self.group_size) - lengths * bias
        self.sums = by_tile(sums, np.int32)
        self._product = integer.kernel(w.format.bits, decode)

    @property
    def nbytes(self) -> int:
        """Bytes that a product reads, activations left out."""
        return super().nbytes + self.sums.nbytes

    def __call__(self, x: QuantizedTensor) -> np.ndarray:
        acts = integers.activations_of(x, self.group_size)
        return self.multiply(acts)

    def multiply(self, acts: integers.Activations) -> np.ndarray:
        """y for activations that are integers already."""
        y = aligned((len(acts.numbers), len(self.tiles) * ROWS), np.float32)
        weights = (self.tiles, self.table, self.mask, self.extra)
        if not (simd.TILES and len(y) >= amx.FROM_ROWS):
            numbers = pack_rows(acts.numbers, self.group_size, np.int8)
            self._product(
                *weights, numbers, self.starts, acts.sums, self.bias, acts.bias, self.sums,
                acts.scales, self.scale, self.unit, y,
            )  # fmt: skip
            return y[:, : self.shape[0]]
        packed = pack_rows(acts.numbers, self.group_size, np.int8, amx.STEP)
        wide = group_starts(self.shape[1], self.group_size, amx.STEP)
        m, columns = packed.shape
        numbers = amx.activations(m, 1, columns)[:, 0]
        numbers[:m, :columns] = packed
        for blocks, rows in amx.chunks(numbers, m):
            amx.kernel(self.bits, self.decode)(
                amx.CONFIGURATION, *weights, numbers[blocks], self.starts, wide,
                _by_group(acts.sums[rows]), self.bias, _by_group(acts.bias[rows]), self.sums,
                _by_group(acts.scales[rows]), self.scale, self.unit, y[rows],
            )  # fmt: skip
        return y[:, : self.shape[0]]


def _room(m: int, limbs: int, columns: int) -> np.ndarray:
    return aligned((m, limbs, columns), np.int8)


def _by_group(numbers: np.ndarray) -> np.ndarray:
    """[m, ..., groups] as [..., groups, m]: what rows need of a group lies side by side."""
    return np.ascontiguousarray(np.moveaxis(numbers, 0, -1))


def integer_operands(w: QuantizedTensor, decode: integer.Decode) -> _Operands:
    """What `integer.py` needs: codes, table, mask (uint8), extra and bias (int32 [n, groups])."""
    format, none = w.format, np.zeros(1, np.uint8)
    extra = np.zeros((w.n, w.groups), np.int32)
    if decode == "code":
        if format.kind != "int-asym":
            codes = w.codes if format.kind == "int-sym" else w.codes * (w.codes != 2)
            half = 1 << format.bits - 1  # code 2 of ternary weights is a second zero
            return codes ^ np.uint8(half), none, none, extra, extra + half
        assert w.zero_points is not None
        return w.codes, none, none, extra, w.zero_points.astype(np.int32)
    mask = np.zeros(1 << format.bits, np.uint8)
    unit = integers.unit_of(format)
    values = (np.array(format.code_values()) / unit).astype(np.int32)
    if format.kind == "dint-asym":
        # In half units a level is 2 c - 2 z and a special value +-1; plus 2 z + 1 none is negative.
        assert w.zero_points is not None
        double = 2 * w.zero_points.astype(np.int32)
        mask[-2:] = 255
        table = np.where(mask > 0, 0, values + 1)
        table[-2] = 2
        return w.codes, table.astype(np.uint8), mask, double, double + 1
    specials = np.array(format.special_values or (0.0,)) / unit
    offset = int(max(np.abs(values).max(), np.abs(specials).max()))
    table = values + offset
    if decode == "masked":
        assert w.selectors is not None
        table[format.special_code] = 0
        mask[format.special_code] = 255
        extra = specials.astype(np.int32)[w.selectors] + offset
    return w.codes, table.astype(np.uint8), mask, extra, np.full_like(extra, offset)


class _Sums:
    """A kernel that gives sums of groups, which corrections and scales turn into y."""

    unit = 1.0

    def __init__(self, w: QuantizedTensor, numbers: np.ndarray, bias: np.ndarray) -> None:
        self.shape, self.group_size = w.shape, min(w.group_size, w.k)
        self._lengths = integers.group_lengths(w.k, self.group_size)
        self._bias = bias
        self._w_sums = integers.group_sums(numbers, self.group_size)
        self._scale = w.scales()

    def _finish(self, sums: np.ndarray, acts: integers.Activations) -> np.ndarray:
        sums = scaling.corrected(
            sums, acts.bias, acts.sums, self._bias, self._w_sums, self._lengths
        )
        return scaling.scaled(sums, acts.scales, self._scale, self.unit)


class WideIntegers(_Sums):
    """Weights of any format whose values are integers; exact in float64 whatever the order."""

    def __init__(self, w: QuantizedTensor) -> None:
        values = integers.values_in_units(w)
        super().__init__(w, values, np.zeros((w.n, w.groups), np.int32))
        self.unit = integers.unit_of(w.format)
        self._values = values.astype(np.int16) if np.abs(values).max() < 1 << 15 else values

    @property
    def nbytes(self) -> int:
        return self._values.nbytes + self._scale.nbytes

    def __call__(self, x: QuantizedTensor) -> np.ndarray:
        acts = integers.activations_of(x, self.group_size)
        left = acts.numbers.astype(np.float64)
        k, size = self.shape[1], self.group_size
        # Below 2**53 every partial sum is exact, whatever the order of the library's additions.
        parts = [left[:, a : a + size] @ self._values[:, a : a + size].T for a in range(0, k, size)]
        return self._finish(np.stack(parts).astype(np.int64), acts)


class Planes(_Sums):
    """Weights as bit planes for `planes.py`."""

    def __init__(self, w: QuantizedTensor) -> None:
        codes, self.weights, bias = integers.plane_numbers(w)
        places = np.arange(1 << len(self.weights)) >> np.arange(len(self.weights))[:, None] & 1
        numbers = (places.T @ self.weights).astype(np.int32)  # what each code stands for
        super().__init__(w, numbers[codes], bias)
        self.words = pack_planes(codes, len(self.weights), self.group_size)
        self.starts = group_starts(w.k, self.group_size, WORD) // WORD

    @property
    def nbytes(self) -> int:
        """Bytes that a product reads, activations left out."""
        return self.words.nbytes + self._scale.nbytes

    def __call__(self, x: QuantizedTensor) -> np.ndarray:
        acts = integers.activations_of(x, self.group_size)
        # Planes are those of the codes: what was taken off them to fit a byte goes back.
        shift = 128 if x.format.kind != "int-sym" and x.format.bits == 8 else 0
        words = pack_plane_rows(x.codes, x.format.bits, self.group_size)
        sums = aligned((len(self.starts) - 1, x.n, len(self.words) * PLANE_ROWS), np.int32)
        signed = x.format.kind == "int-sym"
        planes.plane_sums(self.words, words, self.starts, signed, self.weights, sums)
        shifted = integers.Activations(
            acts.numbers, acts.bias + shift, acts.scales, acts.sums + shift * self._lengths
        )
        return self._finish(sums[:, :, : self.shape[0]], shifted)


class Lookup(_Sums):
    """Binary or ternary weights as indices for `lookup.py`."""

    def __init__(self, w: QuantizedTensor) -> None:
        self._ternary = w.format.name == "ternary"
        numbers = integers.values_in_units(w)
        self._each = 3 if self._ternary else 4
        if not self._ternary:
            numbers = w.codes.astype(np.int32)  # 2 bit - 1, so twice the sum and a bias of 1
        bias = np.zeros((w.n, w.groups), np.int32)
        super().__init__(w, numbers * (1 if self._ternary else 2), bias + (not self._ternary))
        unit = 2 * self._each  # two indices to a byte
        self._unit = unit
        wide = pack_rows(numbers, self.group_size, np.int32, unit)
        self.starts = group_starts(w.k, self.group_size, unit) // self._each
        parts = wide.reshape(w.n, -1, self._each)
        self.signs = np.zeros((padded(w.n, LOOKUP_ROWS) // LOOKUP_ROWS, 1, 2), np.uint32)
        if self._ternary:
            triples = parts @ np.array([9, 3, 1], np.int32)
            self.signs = lookup.pack_signs(triples < 0)
            indices = np.abs(triples)
        else:
            indices = parts @ np.array([1, 2, 4, 8], np.int32)
        self.words = pack_nibbles(indices.astype(np.uint8))

    @property
    def nbytes(self) -> int:
        """Bytes that a product reads, activations left out."""
        return self.words.nbytes + self.signs.nbytes + self._scale.nbytes

    def __call__(self, x: QuantizedTensor) -> np.ndarray:
        acts = integers.activations_of(x, self.group_size)
        numbers = pack_rows(acts.numbers, self.group_size, np.int8, self._unit)
        tables = aligned((x.n, int(self.starts[-1]), 2, 16), np.uint8)
        if self._ternary:
            lookup.ternary_tables(numbers, lookup.TRIPLES, tables)
        else:
            lookup.binary_tables(numbers, tables)
        raw = aligned((len(self.starts) - 1, x.n, len(self.words) * LOOKUP_ROWS), np.int32)
        lookup.lookup_sums(self.words, self.signs, tables, self.starts, self._ternary, raw)
        sums = np.empty_like(raw)
        tiled = (*raw.shape[:2], -1, LOOKUP_ROWS)
        sums.reshape(tiled)[..., lookup.ORDER] = raw.reshape(tiled)
        if not self._ternary:
            sums *= 2
        return self._finish(sums[:, :, : self.shape[0]], acts)


def pack(w: QuantizedTensor, method: str, kernel: str) -> Any:
    """Weights packed for a method's kernel, as `bitwright.kernels.planner` names it."""
    decode: Any = kernel.partition("-")[2]
    if method == "float":
        if not decode:
            return FloatDense(w)
        fixed = decode.removeprefix("fixed-")
        return FloatTiles(w, decode) if fixed == decode else FixedPointTiles(w, fixed)
    if method == "integer":
        return IntegerTiles(w, decode) if decode else WideIntegers(w)
    return {"planes": Planes, "lookup": Lookup}[method](w)
