"""The baseline: an FP16 multiply-accumulate PE, one activation times one weight a cycle.

docs/numerics.md is the definition. Two variants differ in the accumulator: binary32 (`fp16`), in
which the only rounding is that of each sum, and binary16 (`fp16acc16`), an FP16 multiplier followed
by an FP16 adder as in the published baseline (BitMoD, HPCA 2025). This file holds both twice:
`Fp16Mac` in plain Python integers, one clock cycle per call, and the numba model that runs a layer
of a language model.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numba import njit, prange

from bitwright.quant import Format, InputError, QuantizedTensor

from .activations import fp16_bits
from .bitmod import decode_fp16, round_nearest_even

Accumulator = Literal["fp32", "fp16"]

#: Every product and sum is a multiple of 2**-UNIT: the smallest subnormal squared.
UNIT = 48
FP16_MAX = 65504
LATENCY = 2  #: cycles from accepting the last pair of a dot product to `y_valid`
_BLOCK = 64  #: outputs that the numba model works on side by side


@dataclass(frozen=True, slots=True)
class Fp16Config:
    """One FP16 multiply-accumulate PE."""

    acc: Accumulator = "fp32"  #: binary32, or binary16 that saturates at +-65504

    def __post_init__(self) -> None:
        if self.acc not in get_args(Accumulator):
            raise InputError(f"acc (={self.acc!r}) must be 'fp32' or 'fp16'")

    @property
    def name(self) -> str:
        """The PE's name: `fp16` or `fp16acc16`."""
        return "fp16" if self.acc == "fp32" else "fp16acc16"

    @property
    def acc_bits(self) -> int:
        """Width of the accumulator and of `y`."""
        return 32 if self.acc == "fp32" else 16


class Pair(NamedTuple):
    """What the PE takes in a cycle."""

    act: int  #: FP16 bit pattern
    weight: int  #: FP16 bit pattern
    last: int = 1  #: ends its dot product


# ------------------------------------------------------------------ reference: plain Python


def exact_product(act: int, weight: int) -> int:
    """The product of two finite FP16 patterns in units of 2**-48."""
    sign_a, exponent_a, significand_a = decode_fp16(act)
    sign_w, exponent_w, significand_w = decode_fp16(weight)
    magnitude = significand_a * significand_w << exponent_a + exponent_w - 2
    return -magnitude if sign_a ^ sign_w else magnitude


def round_fp32(value: int) -> int:
    """`value` units of 2**-48 to the nearest multiple that binary32 holds, ties to even."""
    places = max(abs(value).bit_length() - 24, 0)
    return round_nearest_even(value, places) << places


def round_fp16(value: int) -> int:
    """As `round_fp32` for binary16: no finer than 2**-24, and no larger than +-65504."""
    places = max(abs(value).bit_length() - 11, UNIT - 24)
    limit = FP16_MAX << UNIT
    return min(max(round_nearest_even(value, places) << places, -limit), limit)


def fp32_bits(value: int) -> int:
    """Binary32 pattern of `value` units of 2**-48, which binary32 holds and which is normal."""
    if value == 0:
        return 0
    magnitude = abs(value)
    top = magnitude.bit_length() - 1
    fraction = (magnitude << 23 >> top) & 0x7FFFFF
    return (int(value < 0) << 31) | ((top - UNIT + 127) << 23) | fraction


def fp16_pattern(value: int) -> int:
    """Binary16 pattern of `value` units of 2**-48, which binary16 holds."""
    magnitude = abs(value) >> UNIT - 24
    places = max(magnitude.bit_length() - 11, 0)
    # The leading one of a normal number adds 1 to the exponent field.
    return (int(value < 0) << 15) | ((places << 10) + (magnitude >> places))


class Fp16Mac:
    """Multiplier and accumulator, one clock cycle per `tick`: the reference.

    The ports, widths and cycle numbers are those of docs/numerics.md. What was multiplied and added
    in the last cycle stays in `multiplied` and `added`, for functional coverage.

    >>> mac = Fp16Mac()
    >>> pairs = [Pair(0x3C00, 0x4200, 0), Pair(0x3C00, 0x4000, 1)]  # 1 * 3 + 1 * 2
    >>> results = [mac.tick(pairs[cycle] if cycle < 2 else None) for cycle in range(5)]
    >>> [(cycle, hex(y)) for cycle, y in enumerate(results) if y is not None]
    [(3, '0x40a00000')]
    """

    def __init__(self, config: Fp16Config = Fp16Config()) -> None:  # noqa: B008 - frozen
        self.config = config
        self.reset()

    def reset(self) -> None:
        """Clear every register, as `rst` does."""
        self._product: tuple[int, int] | None = None  # value, last
        self._acc = 0  # in units of 2**-48
        self._done = False  # `_acc` is a finished dot product
        self.multiplied: Pair | None = None
        self.added: tuple[int, int, int] | None = None  # accumulator, product, last

    def tick(self, pair: Pair | None) -> int | None:
        """One clock cycle.

        Args:
            pair: What the input shows this cycle, None for `valid` = 0.

        Returns:
            The bits of `y` if `y_valid` is high in this cycle.
        """
        narrow = self.config.acc == "fp16"
        y = None
        if self._done:
            y = (fp16_pattern if narrow else fp32_bits)(self._acc)
            self._acc, self._done = 0, False
        self.multiplied, self.added = pair, None
        if self._product is not None:
            product, last = self._product
            self.added = (self._acc, product, last)
            self._acc = (round_fp16 if narrow else round_fp32)(self._acc + product)
            self._done = bool(last)
        self._product = None
        if pair is not None:
            product = exact_product(pair.act, pair.weight)
            self._product = (round_fp16(product) if narrow else product, pair.last)
        return y


def run_reference(
    pairs: Sequence[Pair], config: Fp16Config | None = None
) -> tuple[list[int], list[int]]:
    """Stream pairs back to back through the reference: y bits and y_valid cycle per dot product."""
    mac = Fp16Mac(config or Fp16Config())
    values: list[int] = []
    cycles: list[int] = []
    for cycle in range(len(pairs) + LATENCY):
        y = mac.tick(pairs[cycle] if cycle < len(pairs) else None)
        if y is not None:
            values.append(y)
            cycles.append(cycle)
    return values, cycles


# ------------------------------------------------------------------ model: numba
#
# Products of FP16 numbers are exact in float32, so a float32 sum in the order of k is the fp16 PE.
# For fp16acc16, p = a * w is exact too, and a float32 sum of two FP16 numbers that is then rounded
# to FP16 equals the sum rounded once, because float32 has 2 * 11 + 2 significant bits and sums
# below 2**-14 are exact. Rounding to FP16 adds and takes away 1.5 * 2**13 times the number's power
# of two, so that float32's own rounding falls on the eleventh bit. No fastmath anywhere: the order
# and the rounding of every operation are the definition.

_BIG = np.float32(FP16_MAX)
_EXPONENT = np.int32(0x7F800000)
_SMALLEST_NORMAL = np.int32((127 - 14) << 23)
_MAGIC = np.int32((13 << 23) | 0x400000)


@njit(cache=True, inline="always")
def _round_fp16(value):  # type: ignore[no-untyped-def]
    """float32 to the nearest FP16 value, ties to even, saturating; never -0."""
    exponent = max(np.float32(value).view(np.int32) & _EXPONENT, _SMALLEST_NORMAL)
    magic = np.int32(exponent + _MAGIC).view(np.float32)
    rounded = (value + magic) - magic
    return min(max(rounded, -_BIG), _BIG)


@njit(cache=True)
def _gemm_fp32_block(x, w, out):  # type: ignore[no-untyped-def]
    """x float32 [m, k], w float32 [k, block], out float32 [m, block] of zeros."""
    for row in range(x.shape[0]):
        for i in range(x.shape[1]):
            a = x[row, i]
            for j in range(_BLOCK):
                out[row, j] += a * w[i, j]


@njit(cache=True)
def _gemm_fp16_block(x, w, out):  # type: ignore[no-untyped-def]
    for row in range(x.shape[0]):
        for i in range(x.shape[1]):
            a = x[row, i]
            for j in range(_BLOCK):
                out[row, j] = _round_fp16(out[row, j] + _round_fp16(a * w[i, j]))


@njit(cache=True, parallel=True)
def _gemm(x, w, out, narrow):  # type: ignore[no-untyped-def]
    for block in prange(w.shape[0]):
        if narrow:
            _gemm_fp16_block(x, w[block], out[block])
        else:
            _gemm_fp32_block(x, w[block], out[block])


@njit(cache=True)
def _stream(act, weight, last, narrow, y, cycle):  # type: ignore[no-untyped-def]
    """Dot products one after the other: `y` float32 and `cycle` int64 per dot product."""
    acc, dots = np.float32(0), 0
    for i in range(act.shape[0]):
        if narrow:
            acc = _round_fp16(acc + _round_fp16(act[i] * weight[i]))
        else:
            acc += act[i] * weight[i]
        if last[i]:
            y[dots] = acc
            cycle[dots] = i + LATENCY
            dots += 1
            acc = np.float32(0)


class PairArrays(NamedTuple):
    """A stream of operand pairs as arrays; see `Pair` for the fields."""

    act: np.ndarray  #: uint16 [pairs]
    weight: np.ndarray  #: uint16 [pairs]
    last: np.ndarray  #: bool [pairs]

    def pairs(self) -> Iterator[Pair]:
        """The same stream, pair by pair, for the reference."""
        for act, weight, last in zip(self.act, self.weight, self.last, strict=True):
            yield Pair(int(act), int(weight), int(last))


def run_model(
    stream: PairArrays, config: Fp16Config | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Stream pairs back to back through the numba model.

    Returns:
        The bits of `y`, uint32 (for fp16acc16 the upper 16 are 0), and its y_valid cycle, int64, of
        each dot product.
    """
    narrow = (config or Fp16Config()).acc == "fp16"
    dots = int(stream.last.sum())
    y, cycle = np.empty(dots, np.float32), np.empty(dots, np.int64)
    _stream(_float32(stream.act), _float32(stream.weight), stream.last, narrow, y, cycle)
    return (y.astype(np.float16).view(np.uint16) if narrow else y.view(np.uint32)).astype(
        np.uint32
    ), cycle


def _float32(bits: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(bits).view(np.float16).astype(np.float32)


# ------------------------------------------------------------------ the PE on whole tensors


@dataclass(frozen=True, slots=True)
class Fp16PE:
    """The FP16 multiply-accumulate PE, as the array and the evaluation use it.

    One product a cycle, whatever the weights' format: quantised weights are dequantised and rounded
    to FP16 before they reach the PE. Results are bit-exact with the RTL.
    """

    config: Fp16Config = Fp16Config()  # noqa: RUF009 - frozen

    @property
    def name(self) -> str:
        """`fp16` or `fp16acc16`."""
        return self.config.name

    @property
    def lanes(self) -> int:
        """Weights multiplied in one step."""
        return 1

    def step_cycles(self, fmt: Format | None) -> int:
        """Cycles of one step: 1. Every format runs as FP16."""
        return 1

    def check(self, w: Any) -> None:
        """Refuse weights that the PE cannot run.

        Raises:
            InputError: They are not a matrix, or not all finite in FP16.
        """
        weight_bits(w)

    @property
    def act_formats(self) -> tuple[str, ...]:
        """Activations are plain numbers, taken as FP16."""
        return ("fp16",)

    def gemm(self, x: Any, w: Any, exact_scales: bool = False) -> np.ndarray:
        """y[m, n] = x[m, k] @ w[n, k].T in the PE's arithmetic, float32.

        Args:
            x: Activations, rounded to FP16 where they are not FP16 already.
            w: Weights: an array [n, k] or a QuantizedTensor, likewise.
            exact_scales: Give the same numbers as float64: weights come with their scales applied.

        Raises:
            InputError: A value is not finite in FP16, or the shapes do not fit.
        """
        act, weight = _operands(x, w)
        n, k = weight.shape
        blocks = -(-n // _BLOCK)
        columns = np.zeros((blocks * _BLOCK, k), np.float32)
        columns[:n] = _float32(weight)
        columns = np.ascontiguousarray(columns.reshape(blocks, _BLOCK, k).transpose(0, 2, 1))
        out = np.zeros((blocks, len(act), _BLOCK), np.float32)
        _gemm(_float32(act), columns, out, self.config.acc == "fp16")
        y = out.transpose(1, 0, 2).reshape(len(act), -1)[:, :n]
        return y.astype(np.float64) if exact_scales else y

    def reference(self, x: Any, w: Any, exact_scales: bool = False) -> np.ndarray:
        """The same y[m, n] through `Fp16Mac`, cycle by cycle; for small cases."""
        act, weight = _operands(x, w)
        y = np.zeros((len(act), len(weight)), np.uint32)
        if act.shape[1]:
            for i, row in enumerate(act):
                y[i], _ = run_reference(list(dot_products(row, weight).pairs()), self.config)
        wide = self.config.acc == "fp32"
        values = y.view(np.float32) if wide else _float32(y.astype(np.uint16))
        return values.astype(np.float64) if exact_scales else values

    def cycles(self, k: int, dots: int = 1) -> int:
        """Cycles from the first pair accepted to the last `y_valid`, both counted from 0.

        `dots` dot products of length k follow each other on one PE; docs/numerics.md, Timing.
        """
        return dots * k - 1 + LATENCY


def dot_products(act: np.ndarray, weight: np.ndarray) -> PairArrays:
    """The stream of one activation row (uint16 [k]) against rows of weights (uint16 [n, k])."""
    n, k = weight.shape
    last = np.arange(k) == k - 1
    return PairArrays(np.tile(act, n), np.ascontiguousarray(weight).reshape(-1), np.tile(last, n))


def weight_bits(w: Any) -> np.ndarray:
    """FP16 bit patterns, uint16 [n, k], of weights; a QuantizedTensor is dequantised first.

    Raises:
        InputError: `w` is not a matrix, or a value is not finite in FP16.
    """
    values = np.asarray(w.dequantize() if isinstance(w, QuantizedTensor) else w)
    if values.ndim != 2:
        raise InputError(f"weights have shape {values.shape}; they must be [n, k]")
    with np.errstate(over="ignore"):
        half = values.astype(np.float16)
    if not np.isfinite(half).all():
        row, column = (int(i) for i in np.argwhere(~np.isfinite(half))[0])
        raise InputError(
            f"weight {values[row, column]} at {(row, column)} is not finite in FP16; "
            "weights must lie in -65504 .. 65504"
        )
    return half.view(np.uint16)


def _operands(x: Any, w: Any) -> tuple[np.ndarray, np.ndarray]:
    act, weight = fp16_bits(x), weight_bits(w)
    if act.ndim != 2 or act.shape[1] != weight.shape[1]:
        raise InputError(f"x has shape {act.shape}; it must be [m, k] with k = {weight.shape[1]}")
    return act, weight
