"""Any-precision weights: one stored tensor whose leading bits are narrower models of themselves.

Codes are stored as bit planes, the top one first, and for each width a table of values per row; a
product at b bits reads b planes and nothing of the others. After Any-Precision LLM (Park et al.,
ICML 2024, arXiv 2402.10517), which fits the tables by clustering; `from_quantized` makes the
uniform variant, in which the narrow codes are the leading bits of 8-bit integers.
"""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Float32, UInt8

from bitwright.quant import InputError, QuantizedTensor

WIDTHS = range(1, 9)


class AnyPrecisionTensor:
    """Weights [n, k] at several widths.

    Args:
        codes: uint8 [n, k] of `bits` bits; the code at b bits is `codes >> (bits - b)`.
        tables: Width b -> values float16 or float32 [n, 2**b] of a row's codes at that width.

    Raises:
        InputError: Types, shapes or widths that do not fit together.

    >>> import numpy as np
    >>> codes = np.array([[0, 5, 7]], np.uint8)
    >>> tables = {3: np.arange(8.0)[None], 2: np.arange(0.5, 8, 2)[None]}
    >>> w = AnyPrecisionTensor(codes, {b: t.astype(np.float32) for b, t in tables.items()})
    >>> w.dequantize(3).tolist(), w.dequantize(2).tolist()
    ([[0.0, 5.0, 7.0]], [[0.5, 4.5, 6.5]])
    """

    def __init__(self, codes: UInt8[np.ndarray, "n k"], tables: Mapping[int, np.ndarray]) -> None:
        if codes.dtype != np.uint8 or codes.ndim != 2 or 0 in codes.shape:
            raise InputError(f"codes are {codes.dtype} {codes.shape}; uint8 [n, k] is needed")
        if not tables or not set(tables) <= set(WIDTHS):
            raise InputError(f"tables have widths {sorted(tables)}; give some of 1 .. 8")
        self.bits = max(tables)
        if codes.max() >= 1 << self.bits:
            raise InputError(
                f"codes hold {codes.max()}; the widest table has {self.bits} bits, so codes are "
                f"0 .. {(1 << self.bits) - 1}"
            )
        for bits, table in tables.items():
            shape = (len(codes), 1 << bits)
            if table.dtype not in (np.float16, np.float32) or table.shape != shape:
                raise InputError(
                    f"the table of {bits} bits is {table.dtype} {table.shape}; float16 or float32 "
                    f"{shape} is needed"
                )
        self.codes, self.tables = codes, {bits: tables[bits] for bits in sorted(tables)}
        self.n, self.k = codes.shape

    @classmethod
    def from_quantized(cls, w: QuantizedTensor) -> "AnyPrecisionTensor":
        """All widths of an integer tensor with one group per row: its leading bits.

        A code at b bits means the middle of the codes that share those bits.

        Raises:
            InputError: No integers, or several groups per row.
        """
        if w.format.kind not in ("int-sym", "int-asym") or w.groups > 1:
            raise InputError(
                f"weights are {w.format.name} in groups of {w.group_size}; any-precision planes "
                "need integers with one group per row, such as w8-int-asym"
            )
        bits = w.format.bits
        codes = w.codes
        if w.zero_points is None:  # offset binary, in which leading bits nest
            codes = codes ^ np.uint8(1 << bits - 1)
            zeros = np.full((w.n, 1), 1 << bits - 1, np.float32)
        else:
            zeros = w.zero_points.astype(np.float32)
        tables = {}
        for width in range(1, bits + 1):
            step = 1 << bits - width
            middles = np.arange(1 << width, dtype=np.float32) * step + np.float32((step - 1) / 2)
            tables[width] = (middles - zeros) * w.scales()
        return cls(codes, tables)

    @property
    def widths(self) -> tuple[int, ...]:
        """The widths that can be asked for, ascending."""
        return tuple(self.tables)

    def codes_at(self, bits: int) -> UInt8[np.ndarray, "n k"]:
        """The codes' leading bits.

        Raises:
            InputError: There is no table of that width.
        """
        if bits not in self.tables:
            raise InputError(f"bits (={bits}) must be one of {', '.join(map(str, self.tables))}")
        return self.codes >> np.uint8(self.bits - bits)

    def dequantize(self, bits: int) -> Float32[np.ndarray, "n k"]:
        """The weights at a width."""
        codes = self.codes_at(bits).astype(np.int64)
        return np.take_along_axis(self.tables[bits].astype(np.float32), codes, axis=1)

    def traffic_bits(self, bits: int) -> float:
        """Bits per weight that a product at a width reads, with values of 16 bits."""
        return bits + 16 * (1 << bits) / self.k

    @property
    def bits_per_weight(self) -> float:
        """Bits per weight of the store: planes, and tables of all widths with 16 bits a value."""
        return self.bits + 16 * sum(1 << bits for bits in self.tables) / self.k


class PackedAnyPrecision:
    """An `AnyPrecisionTensor` as planes, once for all widths."""

    def __init__(self, w: AnyPrecisionTensor) -> None:
        from .cpu import any_precision

        self._kernel = any_precision.kernel
        self._run = any_precision.RUN
        self._w = w
        self._planes = any_precision.pack_any_planes(w.codes, w.bits)
        self._tables: dict[int, np.ndarray] = {}

    def product(self, x: np.ndarray, bits: int) -> np.ndarray:
        """y float32 [m, n] of x float32 [m, k] at a width."""
        if bits not in self._tables:
            self._w.codes_at(bits)  # refuses a width that is not there
            table = np.zeros((self._w.n, max(16, 1 << bits)), np.float32)
            table[:, : 1 << bits] = self._w.tables[bits]
            self._tables[bits] = table
        wide = np.zeros((len(x), self._planes.shape[2] * self._run), np.float32)
        wide[:, : self._w.k] = x
        y = np.zeros((len(x), self._w.n), np.float32)
        self._kernel(bits)(self._planes, self._tables[bits], wide, y)
        return y
