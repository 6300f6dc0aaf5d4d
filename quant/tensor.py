"""A quantised weight matrix: codes, and the metadata that turns them back into numbers."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float, Float32, UInt8

from .errors import InputError
from .formats import Format, ScaleFormat, olive_pair_values, scale_code_values
from .threads import spread_rows

#: The arrays that a tensor may store.
STORED = ("codes", "group_scales", "channel_scales", "zero_points", "selectors", "tensor_scale")


@dataclass(frozen=True, eq=False)
class QuantizedTensor:
    """Weights [n, k] (output channel x input channel) in one format, in groups along k.

    Group g covers columns [g*group_size, min((g+1)*group_size, k)); the last group may be shorter.
    The weight is `values() * scales()`:

    - "fp16" scales: the group's scale is `group_scales`.
    - "int8" scales: the group's scale is group_scales * channel_scales in float32, with
      group_scales unsigned 0 .. 255 (a scale has no sign, so 255 levels are used as in the
      authors' repo yc2367/BitMoD, quant_weight_double.py; equation 1 of the paper would give 127).
    - "e8m0" scales: the group's scale is 2**(group_scales - 127); 255 (NaN) is refused.
    - "e4m3" scales: the group's scale is the E4M3 number of the code (0 .. 126: finite, not
      negative) times tensor_scale, in float32.

    Two tensors are equal if their formats and all stored arrays are.

    >>> from bitwright.quant import quantize
    >>> import numpy as np
    >>> qt = quantize(np.array([[4.0, -3.0, 2.0, 0.1]]), "fp3-er", group_size=4)
    >>> qt.codes, qt.selectors, qt.group_scales
    (array([[3, 4, 2, 0]], dtype=uint8), array([[1]], dtype=uint8), array([[1.]], dtype=float16))
    >>> qt.dequantize(), qt.bits_per_weight  # (4*3 + 16 + 1) / 4
    (array([[ 4., -3.,  2.,  0.]], dtype=float32), 7.25)

    Raises:
        InputError: Shapes, types or code ranges do not fit together.
    """

    format: Format
    group_size: int  #: columns per group, 1 .. k; k means one group per row ("per channel")
    codes: UInt8[np.ndarray, "n k"]  #: as stored, in the low `bits` bits
    scale_format: ScaleFormat
    group_scales: Float[np.ndarray, "n groups"] | UInt8[np.ndarray, "n groups"]  #: float16 | codes
    channel_scales: Float32[np.ndarray, " n"] | None = None  #: "int8" scales only
    zero_points: UInt8[np.ndarray, "n groups"] | None = None  #: int-asym and dint-asym only
    selectors: UInt8[np.ndarray, "n groups"] | None = None  #: with more than one grid to choose
    tensor_scale: Float32[np.ndarray, " one"] | None = None  #: "e4m3" scales only

    def __post_init__(self) -> None:
        self.format.check_scale_format(self.scale_format)
        if self.codes.ndim != 2 or 0 in self.codes.shape:
            raise InputError(f"codes have shape {self.codes.shape}; a matrix [n, k] is needed")
        if not 1 <= self.group_size <= self.k:
            raise InputError(f"group_size (={self.group_size}) must be in 1 .. k (={self.k})")
        self.format.check_group_size(self.group_size, self.k)
        grouped = (self.n, self.groups)
        int8 = self.scale_format == "int8"
        asymmetric = self.format.zero_point_bits > 0
        chosen = self.format.selector_bits > 0
        self._check("codes", self.codes, np.uint8, (self.n, self.k), True)
        scale_type = np.float16 if self.scale_format == "fp16" else np.uint8
        self._check("group_scales", self.group_scales, scale_type, grouped, True)
        self._check("channel_scales", self.channel_scales, np.float32, (self.n,), int8)
        self._check("zero_points", self.zero_points, np.uint8, grouped, asymmetric)
        self._check("selectors", self.selectors, np.uint8, grouped, chosen)
        two_levels = self.scale_format == "e4m3"
        self._check("tensor_scale", self.tensor_scale, np.float32, (1,), two_levels)
        self._check_range("codes", self.codes, 1 << self.format.bits)
        if self.format.invalid_codes:
            self._check_valid()
        if self.zero_points is not None:
            self._check_range("zero_points", self.zero_points, self.format.qmax + 1)
        if self.selectors is not None:
            self._check_range("selectors", self.selectors, self.format.choices)
        if self.scale_format in ("e8m0", "e4m3"):
            self._check_scale_codes()
        for name in ("group_scales", "channel_scales", "tensor_scale"):
            scales = getattr(self, name)
            if scales is not None and not _finite_and_not_negative(scales):
                raise InputError(f"{name} must be finite and not negative")

    def _check(
        self, name: str, array: np.ndarray | None, dtype: type, shape: tuple[int, ...], needed: bool
    ) -> None:
        what = f"{self.format.name} with {self.scale_format} scales"
        if array is None or not needed:
            if (array is not None) != needed:
                raise InputError(f"{name} {'missing' if needed else 'not allowed'} for {what}")
        elif array.dtype != dtype or array.shape != shape:
            raise InputError(
                f"{name} are {array.dtype} {array.shape}; {what} needs "
                f"{np.dtype(dtype)} {shape} (n={self.n}, k={self.k}, group_size={self.group_size})"
            )

    def _check_range(self, name: str, array: np.ndarray, limit: int) -> None:
        if limit <= 255 and array.max() >= limit:
            raise InputError(
                f"{name} hold {array.max()}, outside 0 .. {limit - 1} of {self.format.name}"
            )

    def _check_valid(self) -> None:
        invalid = np.zeros(1 << self.format.bits, bool)
        invalid[list(self.format.invalid_codes)] = True
        wrong = invalid[self.codes]
        if wrong.any():
            row, column = np.argwhere(wrong)[0]
            raise InputError(
                f"codes[{row}, {column}] is {self.codes[row, column]}, which is no number of "
                f"{self.format.name}"
            )

    def _check_scale_codes(self) -> None:
        last = 254 if self.scale_format == "e8m0" else 126
        if self.group_scales.max() > last:
            raise InputError(
                f"group_scales hold the {self.scale_format} code {self.group_scales.max()}; codes "
                f"of finite scales that are not negative are 0 .. {last}"
            )

    @property
    def n(self) -> int:
        """Rows: output channels."""
        return self.codes.shape[0]

    @property
    def k(self) -> int:
        """Columns: input channels."""
        return self.codes.shape[1]

    @property
    def shape(self) -> tuple[int, int]:
        """(n, k)."""
        return self.n, self.k

    @property
    def groups(self) -> int:
        """Groups per row, a ragged last one included."""
        return -(-self.k // self.group_size)

    def scales(self) -> Float32[np.ndarray, "n groups"]:
        """Scale of each group; channel and tensor scales are multiplied out in float32."""
        if self.scale_format in ("e8m0", "e4m3"):
            table = np.array(scale_code_values(self.scale_format), np.float32)
            scales = table[self.group_scales]
        else:
            scales = self.group_scales.astype(np.float32)
        if self.tensor_scale is not None:
            scales *= self.tensor_scale
        if self.channel_scales is not None:
            scales *= self.channel_scales[:, None]
        return scales

    def values(self) -> Float32[np.ndarray, "n k"]:
        """Value of each weight before the scale; special values, pairs and zero points applied."""
        return self._decode(np.ones((self.n, self.groups), np.float32))

    def dequantize(self) -> Float32[np.ndarray, "n k"]:
        """The weights: values() * scale, each product rounded once to float32."""
        return self._decode(self.scales())

    def _decode(self, scales: Float32[np.ndarray, "n groups"]) -> Float32[np.ndarray, "n k"]:
        from .decoding_numba import decode, decode_pairs

        out = np.empty(self.shape, np.float32)
        codes = np.ascontiguousarray(self.codes)
        if self.format.kind == "olive":
            pairs = [[olive_pair_values(a, b)[0] for b in range(16)] for a in range(16)]
            decode_pairs(codes, np.array(pairs, np.float32), scales, self.group_size, out)
            return out
        tables = np.array(
            [self.format.code_values(selector) for selector in range(self.format.choices)],
            np.float32,
        )
        none = np.zeros((self.n, self.groups), np.uint8)
        selectors = none if self.selectors is None else np.ascontiguousarray(self.selectors)
        zero_points = none if self.zero_points is None else np.ascontiguousarray(self.zero_points)
        weights = np.array(self.format.zero_weights(), np.float32)

        def work(first: int, last: int) -> None:
            rows = slice(first, last)
            each = (selectors[rows], zero_points[rows], scales[rows])
            decode(codes[rows], tables, weights, *each, self.group_size, out[rows])

        spread_rows(work, self.n, self.k)
        return out

    def rows(self, index: Sequence[int] | np.ndarray) -> "QuantizedTensor":
        """The tensor of those rows alone, in that order.

        Args:
            index: Numbers of rows, 0 .. n - 1; one may come several times.
        """
        chosen: dict[str, Any] = {}
        for name in STORED:
            values = getattr(self, name)
            if values is not None and name != "tensor_scale":
                chosen[name] = values[np.asarray(index)]
        return replace(self, **chosen)

    @property
    def stored_bits(self) -> int:
        """True stored bits: codes, scales of all levels, zero points, selectors."""
        return self.format.stored_bits(self.n, self.k, self.group_size, self.scale_format)

    @property
    def bits_per_weight(self) -> float:
        """True stored bits per weight."""
        return self.stored_bits / (self.n * self.k)

    @property
    def nominal_bits(self) -> float:
        """Bits of a code."""
        return self.format.bits

    def relative_mse(self, w: Float32[np.ndarray, "n k"]) -> float:
        """Mean square of dequantize() - w over the mean square of w; 0.0 if both are zero.

        Raises:
            InputError: `w` has another shape.
        """
        if w.shape != self.shape:
            raise InputError(f"w has shape {w.shape}, the quantised tensor {self.shape}")
        power = float(np.square(w, dtype=np.float64).sum())
        error = float(np.square(self.dequantize() - w, dtype=np.float64).sum())
        return error / power if power else (0.0 if error == 0.0 else float("inf"))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, QuantizedTensor):
            return NotImplemented
        return (
            self.format == other.format
            and self.group_size == other.group_size
            and self.scale_format == other.scale_format
            and all(_same(getattr(self, name), getattr(other, name)) for name in STORED)
        )

    __hash__ = None  # type: ignore[assignment]  # equal by content, and the content can change


def _finite_and_not_negative(scales: np.ndarray) -> bool:
    if scales.dtype == np.float16:
        # numpy compares float16 slowly. Patterns below infinity's are those numbers, and -0.
        bits = np.ascontiguousarray(scales).view(np.uint16)
        return bool(((bits < 0x7C00) | (bits == 0x8000)).all())
    return bool(np.isfinite(scales).all() and (scales >= 0).all())


def _same(left: np.ndarray | None, right: np.ndarray | None) -> bool:
    if left is None or right is None:
        return left is right
    return left.dtype == right.dtype and np.array_equal(left, right)
