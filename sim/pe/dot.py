"""Dot-product PEs: the exact sum of a step's products, then one accumulator.

Every step of such a PE takes one cycle. Its products are added exactly to a *partial sum* D, and D
joins the accumulator: an integer that wraps, or binary32, where D has an exponent E and every sum
is rounded once. docs/numerics.md, "Dot-product PEs", is the definition.

A PE derives from `DotUnit` and says what its ports are and what D and E are, once for plain
integers (`partial`) and once for whole streams (`partials`). `DotReference` is the cycle-by-cycle
definition of all of them, `run_model` its fast twin.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numba import njit, prange

from bitwright.quant import Format, InputError, QuantizedTensor, quantize, scale_code_values

from .bitmod import float32_add

_BITMOD_UNIT = 28  #: exponent bias of `float32_add`
_SMALL = 1 << 20  #: results below which starting threads costs more than they save
STAGES = (1, 2, 3)  #: register levels that a dot-product PE can have, the accumulator included

Ports = Mapping[str, np.ndarray]


@dataclass(frozen=True, slots=True)
class IntAccumulator:
    """A two's complement accumulator; overflow wraps."""

    bits: int = 32

    def __post_init__(self) -> None:
        if not 8 <= self.bits <= 32:
            raise InputError(f"acc_bits (={self.bits}) must be in 8 .. 32")

    def add(self, acc: int, total: int, exponent: int) -> int:
        """The register's bits after adding `total`."""
        return (acc + total) & ((1 << self.bits) - 1)


@dataclass(frozen=True, slots=True)
class FloatAccumulator:
    """A binary32 accumulator: acc = fl32(acc + D * 2**(E - unit)), a zero result being +0."""

    unit: int
    bits: ClassVar[int] = 32

    def add(self, acc: int, total: int, exponent: int) -> int:
        """The register's bits after adding `total * 2**(exponent - unit)`."""
        return float32_add(acc, total, exponent - self.unit + _BITMOD_UNIT)


class DotStream(NamedTuple):
    """Steps of dot products that follow each other."""

    ports: dict[str, np.ndarray]  #: one row per step
    last: np.ndarray  #: bool, ends its dot product


class ZeroPoints(NamedTuple):
    """What zero points add to the accumulators, int64: x_sum * w_zero + x_zero * w_sum."""

    x_sum: np.ndarray  #: [m, groups]
    w_zero: np.ndarray  #: [n, groups]
    x_zero: np.ndarray  #: [m, groups]
    w_sum: np.ndarray  #: [n, groups]


class DotUnit(ABC):
    """What makes one dot-product PE: ports, partial sums, and the tensors it runs.

    Final classes are frozen dataclasses. All codes of 0 on the activation ports must give D = 0.
    """

    stages: int  #: register levels; a step accepted in cycle i is in `y` in cycle i + stages

    @property
    @abstractmethod
    def name(self) -> str:
        """Its name in tables and on the command line."""

    @property
    @abstractmethod
    def lanes(self) -> int:
        """Multiply-accumulates of one step."""

    @property
    @abstractmethod
    def accumulator(self) -> IntAccumulator | FloatAccumulator:
        """What D is added to."""

    @property
    @abstractmethod
    def ports(self) -> Mapping[str, int]:
        """Input ports of a step and their widths, `last` left out."""

    @property
    def limits(self) -> Mapping[str, tuple[int, int]]:
        """Port -> least and largest pattern that may be shown; ports left out take all."""
        return {}

    @abstractmethod
    def partial(self, step: Mapping[str, int]) -> tuple[int, int]:
        """D and E of one step, in plain integers: the definition. E is 0 for integers."""

    @abstractmethod
    def partials(self, ports: Ports) -> tuple[np.ndarray, np.ndarray]:
        """The same for a stream: int64 [steps] twice."""

    # -------------------------------------------------------------- tensors

    @property
    @abstractmethod
    def act_format(self) -> str:
        """The format to which `gemm` quantises activations that are not quantised yet."""

    @property
    def act_formats(self) -> tuple[str, ...]:
        """Names of the activation formats that the PE runs; "fp16" for plain numbers."""
        return (self.act_format,)

    @property
    @abstractmethod
    def weight_formats(self) -> tuple[str, ...]:
        """Names of the weight formats that the PE runs."""

    #: What one unit of the accumulator is worth before the scales; a power of two.
    unit_value: float = 1.0

    def step_cycles(self, fmt: Format | None) -> int:
        """Cycles of one step: 1.

        Raises:
            InputError: The PE does not run the format.
        """
        self.check_format(fmt)
        return 1

    def check_format(self, fmt: Format | None) -> None:
        """Refuse a weight format that the PE cannot run.

        Raises:
            InputError: It cannot.
        """
        name = "fp16" if fmt is None else fmt.name
        if name not in self.weight_formats:
            raise InputError(
                f"the {self.name} PE cannot run weight format {name}; "
                f"it runs {', '.join(self.weight_formats)}"
            )

    @abstractmethod
    def check(self, w: QuantizedTensor) -> None:
        """Refuse a tensor that the PE cannot run.

        Raises:
            InputError: Its format, or a group too long for the accumulator.
        """

    @abstractmethod
    def tensor_stream(self, x: Any, w: QuantizedTensor) -> DotStream:
        """The dot products of activations [m, k] and weights [n, k], row by row of x.

        Where weights have groups with scales of their own, each group is a dot product.
        """

    @abstractmethod
    def results(self, x: Any, w: QuantizedTensor) -> Iterator[np.ndarray]:
        """The accumulator at the end of each group in turn, [m, n]: the fast model.

        They are those of `tensor_stream`, as numbers of any type that holds them exactly.

        Args:
            x: What `activations` gives.
            w: Weights that passed `check`.
        """

    def zero_points(self, x: Any, w: QuantizedTensor) -> ZeroPoints | None:
        """What has to be taken off the accumulators, outside the PE; None: nothing."""
        return None

    def outer_scales(
        self, x: Any, w: QuantizedTensor, exact: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """The scales that are applied outside the PE, of activations and of weights.

        Args:
            x: What `activations` gives.
            w: Weights.
            exact: float64, in which scales of several levels are multiplied out without rounding.

        Returns:
            float32 [m, groups] or [m, 1] if all groups of a row share one, and [n, groups].
        """
        return (float64_scales(x), float64_scales(w)) if exact else (x.scales(), w.scales())

    def finish(
        self, results: np.ndarray, x: Any, w: QuantizedTensor, exact_scales: bool = False
    ) -> np.ndarray:
        """y [m, n] from the results (uint32 bits) of `tensor_stream`, outside the PE."""
        left, right = self.outer_scales(x, w, exact_scales)
        return dequantise(self._sums(results, x, w), left, right, self.unit_value)

    def gemm(self, x: Any, w: QuantizedTensor, exact_scales: bool = False) -> np.ndarray:
        """y[m, n] = x[m, k] @ w[n, k].T in the PE's arithmetic, float32.

        Args:
            x: Activations, finite; or a QuantizedTensor, tokens as rows.
            w: Weights.
            exact_scales: Apply the scales to the PE's accumulators in float64 instead, and give
                float64: what is left of the error is that of the accumulators.

        Raises:
            InputError: A format or shape that the PE does not run.
        """
        self.check(w)
        act = self.activations(x, w)
        left, right = self.outer_scales(act, w, exact_scales)
        zeros = self.zero_points(act, w)
        y = np.zeros((len(left), len(right)), left.dtype)
        none = [np.zeros(len(side)) for side in (left, right, left, right)]
        add: Any = _add_scaled if y.size < _SMALL else _add_scaled_parallel
        for group, result in enumerate(self.results(act, w)):
            corrections = none
            if zeros is not None:
                # Below 2**53, so float64 holds them.
                corrections = [part[:, group].astype(np.float64) for part in zeros]
            add(
                np.ascontiguousarray(result),
                *corrections,
                left[:, min(group, left.shape[1] - 1)].copy(),
                right[:, group].copy(),
                left.dtype.type(self.unit_value),
                y,
            )
        return y

    def reference(self, x: Any, w: QuantizedTensor, exact_scales: bool = False) -> np.ndarray:
        """The same y[m, n] through `DotReference`, cycle by cycle; for small cases."""
        self.check(w)
        act = self.activations(x, w)
        values, _ = run_reference(self, self.tensor_stream(act, w))
        return self.finish(np.array(values, np.uint32), act, w, exact_scales)

    def group_sums(self, x: Any, w: QuantizedTensor) -> np.ndarray:
        """What the PE makes of each group before any scale is applied, float64 [m, n, groups].

        Zero points are corrected; arguments as for `gemm`.
        """
        self.check(w)
        act = self.activations(x, w)
        results = np.stack(list(self.results(act, w)), axis=2).astype(np.float64)
        return self._corrected(results, act, w) * self.unit_value

    def reference_group_sums(self, x: Any, w: QuantizedTensor) -> np.ndarray:
        """The same through `DotReference`, cycle by cycle; for small cases."""
        self.check(w)
        act = self.activations(x, w)
        values, _ = run_reference(self, self.tensor_stream(act, w))
        return self._sums(np.array(values, np.uint32), act, w).astype(np.float64) * self.unit_value

    def _sums(self, results: np.ndarray, x: Any, w: QuantizedTensor) -> np.ndarray:
        """Corrected accumulators [m, n, groups] from the bits of `tensor_stream`'s results."""
        if isinstance(self.accumulator, FloatAccumulator):
            values = results.view(np.float32)
        else:
            values = signed(results, self.accumulator.bits)
        rows = len(self.outer_scales(x, w)[0])
        return self._corrected(values.reshape(rows, w.n, -1), x, w)

    def _corrected(self, results: np.ndarray, x: Any, w: QuantizedTensor) -> np.ndarray:
        zeros = self.zero_points(x, w)
        if zeros is None:
            return results
        x_sum, w_zero, x_zero, w_sum = zeros
        return results - x_sum[:, None] * w_zero[None] - x_zero[:, None] * w_sum[None]

    def activations(self, x: Any, w: QuantizedTensor) -> Any:
        """Activations as the PE takes them, one group a row.

        Raises:
            InputError: They are not finite, of another format, or k differs.
        """
        if not isinstance(x, QuantizedTensor):
            x = quantize(x, self.act_format, group_size=np.shape(x)[-1])
        if x.format.name != self.act_format:
            raise InputError(
                f"the {self.name} PE cannot run activation format {x.format.name}; "
                f"it runs {self.act_format}"
            )
        if x.k != w.k:
            raise InputError(f"x has shape {(x.n, x.k)}; it must be [m, k] with k = {w.k}")
        if x.groups > 1 and x.group_size != w.group_size:
            raise InputError(
                f"activations have groups of {x.group_size}, weights of {w.group_size}; give "
                "activations the same groups, or one per row"
            )
        return x

    def cycles(self, k: int, dots: int = 1) -> int:
        """Cycles from the first step accepted to the last `y_valid`, both counted from 0.

        `dots` dot products of length k follow each other on one PE.
        """
        return dots * -(-k // self.lanes) - 1 + self.stages


# ------------------------------------------------------------------ reference: plain Python


class DotReference:
    """Any dot-product PE, one clock cycle per `tick`: the reference.

    Ports and cycle numbers are those of docs/numerics.md.
    """

    def __init__(self, unit: DotUnit) -> None:
        self.unit = unit
        self.reset()

    def reset(self) -> None:
        """Clear every register, as `rst` does."""
        self._waiting: list[tuple[int, int, int] | None] = [None] * (self.unit.stages - 1)
        self._acc = 0
        self._done = False  # `_acc` is a finished dot product
        #: D, E and the accumulator's bits before and after, if the last `tick` added a sum.
        self.added: tuple[int, int, int, int] | None = None

    def tick(self, step: Mapping[str, int] | None) -> int | None:
        """One clock cycle.

        Args:
            step: What the ports show in this cycle, `last` included; None for `valid` = 0.

        Returns:
            The bits of `y` if `y_valid` is high in this cycle.
        """
        y = None
        if self._done:
            y, self._acc, self._done = self._acc, 0, False
        arriving = None if step is None else (*self.unit.partial(step), step["last"])
        self._waiting.append(arriving)
        waiting = self._waiting.pop(0)
        self.added = None
        if waiting is not None:
            total, exponent, last = waiting
            before = self._acc
            self._acc = self.unit.accumulator.add(before, total, exponent)
            self._done = bool(last)
            self.added = (total, exponent, before, self._acc)
        return y


def run_reference(unit: DotUnit, stream: DotStream) -> tuple[list[int], list[int]]:
    """Stream steps back to back through the reference: y bits and y_valid cycle per dot product."""
    reference = DotReference(unit)
    names = [*stream.ports, "last"]
    columns = [*(values.tolist() for values in stream.ports.values()), stream.last.tolist()]
    steps = [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]
    values: list[int] = []
    cycles: list[int] = []
    for cycle in range(len(steps) + unit.stages):
        y = reference.tick(steps[cycle] if cycle < len(steps) else None)
        if y is not None:
            values.append(y)
            cycles.append(cycle)
    return values, cycles


# ------------------------------------------------------------------ model: numba


@njit(cache=True)
def _sum_integers(partial, last, y):  # type: ignore[no-untyped-def]
    acc, dots = np.int64(0), 0
    for i in range(partial.shape[0]):
        acc += partial[i]
        if last[i]:
            y[dots] = acc
            dots += 1
            acc = np.int64(0)


@njit(cache=True)
def _sum_floats(addend, last, y):  # type: ignore[no-untyped-def]
    """No fastmath: the order and the rounding of every addition are the definition."""
    acc, dots = np.float32(0), 0
    for i in range(addend.shape[0]):
        acc += addend[i]
        if last[i]:
            y[dots] = acc
            dots += 1
            acc = np.float32(0)


@njit(cache=True)
def _add_rows(first, last, result, x_sum, w_zero, x_zero, w_sum, x_scale, w_scale, unit, y):  # type: ignore[no-untyped-def]
    """Rows first .. last of `_add_scaled`."""
    for i in range(first, last):
        for j in range(y.shape[1]):
            total = np.float64(result[i, j]) - x_sum[i] * w_zero[j] - x_zero[i] * w_sum[j]
            y[i, j] += y.dtype.type(total) * (x_scale[i] * w_scale[j] * unit)


@njit(cache=True)
def _add_scaled(result, x_sum, w_zero, x_zero, w_sum, x_scale, w_scale, unit, y):  # type: ignore[no-untyped-def]
    """One group of `dequantise`, with zero points: result and y [m, n], the rest [m] and [n].

    Integers below 2**53 are exact in float64, so the only roundings are those of the scales' type.
    """
    _add_rows(0, y.shape[0], result, x_sum, w_zero, x_zero, w_sum, x_scale, w_scale, unit, y)


@njit(cache=True, parallel=True)
def _add_scaled_parallel(result, x_sum, w_zero, x_zero, w_sum, x_scale, w_scale, unit, y):  # type: ignore[no-untyped-def]
    rows = 64
    for part in prange((y.shape[0] + rows - 1) // rows):
        last = min((part + 1) * rows, y.shape[0])
        _add_rows(
            part * rows, last, result, x_sum, w_zero, x_zero, w_sum, x_scale, w_scale, unit, y
        )


def exact_products(x: np.ndarray, w: np.ndarray, group_size: int) -> Iterator[np.ndarray]:
    """x[m, k] @ w[n, k].T of int16 numbers, group by group, exact: [m, n] float32 or float64.

    The float32 product of the linear algebra library adds in an order of its own. Here that does
    not matter: it gets as many columns at a time as keep every sum within 2**24, and integers up to
    there are exact in binary32, whatever their order.
    """
    largest = max(1, int(np.abs(x).max())) * max(1, int(np.abs(w).max()))
    run = (1 << 24) // largest
    left, right = x.astype(np.float32), w.astype(np.float32)
    for start, stop in group_bounds(x.shape[1], group_size):
        bounds = [(a, min(a + run, stop)) for a in range(start, stop, run)]
        products = (left[:, a:b] @ right[:, a:b].T for a, b in bounds)
        total = next(products)
        for product in products:
            total = total + product.astype(np.float64)
        yield total


def run_model(unit: DotUnit, stream: DotStream) -> tuple[np.ndarray, np.ndarray]:
    """Stream steps back to back through the fast model.

    Returns:
        The bits of `y`, uint32, and its y_valid cycle, int64, of each dot product.
    """
    total, exponent = unit.partials(stream.ports)
    ends = np.flatnonzero(stream.last)
    cycle = ends + unit.stages
    if isinstance(unit.accumulator, FloatAccumulator):
        y = np.empty(len(ends), np.float32)
        # D has at most 24 bits and the result is a normal number or 0: exact in binary32.
        addend = np.ldexp(total.astype(np.float32), exponent - unit.accumulator.unit)
        _sum_floats(addend, stream.last, y)
        return y.view(np.uint32), cycle
    wide = np.empty(len(ends), np.int64)
    _sum_integers(total, stream.last, wide)
    return (wide & ((1 << unit.accumulator.bits) - 1)).astype(np.uint32), cycle


# ------------------------------------------------------------------ lanes: one code times one code


class LaneUnit(DotUnit):
    """A dot-product PE whose lanes multiply one activation code with one weight code each.

    D is the sum over the lanes of decode_act(act) * decode_weight(code, zero).
    """

    act_bits: int
    weight_bits: int
    zero_bits: int = 0  #: width of the port `zero`, 0 for none

    @abstractmethod
    def decode_act(self, code: int) -> int:
        """The integer that an activation code stands for: the bit rule, in plain Python."""

    @abstractmethod
    def decode_weight(self, code: int, zero: int) -> int:
        """The integer that a weight code stands for, as the multiplier gets it."""

    #: Times the zero point: what `decode_weight` adds to the values of all codes alike.
    zero_weight: int = 0

    @property
    def ports(self) -> Mapping[str, int]:
        acts = {f"act{i}": self.act_bits for i in range(self.lanes)}
        codes = {f"code{i}": self.weight_bits for i in range(self.lanes)}
        return {**acts, **codes, **({"zero": self.zero_bits} if self.zero_bits else {})}

    def partial(self, step: Mapping[str, int]) -> tuple[int, int]:
        zero = step.get("zero", 0)
        return sum(
            self.decode_act(step[f"act{i}"]) * self.decode_weight(step[f"code{i}"], zero)
            for i in range(self.lanes)
        ), 0

    def act_table(self) -> np.ndarray:
        """int16 [codes]: `decode_act` of every code."""
        return np.array([self.decode_act(code) for code in range(1 << self.act_bits)], np.int16)

    def weight_table(self) -> np.ndarray:
        """int16 [zero points, codes]: `decode_weight` of every code."""
        zeros, codes = range(1 << self.zero_bits), range(1 << self.weight_bits)
        return np.array([[self.decode_weight(c, z) for c in codes] for z in zeros], np.int16)

    def partials(self, ports: Ports) -> tuple[np.ndarray, np.ndarray]:
        acts, weights = self.act_table(), self.weight_table()
        zero = ports["zero"] if self.zero_bits else 0
        total = np.zeros(len(ports["act0"]), np.int64)
        for i in range(self.lanes):
            product = acts[ports[f"act{i}"]].astype(np.int64) * weights[zero, ports[f"code{i}"]]
            total += product
        return total, np.zeros_like(total)

    # -------------------------------------------------------------- tensors

    def longest(self) -> int:
        """Products that the accumulator surely holds."""
        largest = int(np.abs(self.act_table()).max()) * int(np.abs(self.weight_table()).max())
        return ((1 << self.accumulator.bits - 1) - 1) // largest

    def check(self, w: QuantizedTensor) -> None:
        self.check_format(w.format)
        check_length(self.name, self.accumulator.bits, self.longest(), min(w.group_size, w.k))

    def weight_codes(self, w: QuantizedTensor) -> np.ndarray:
        """Codes as the ports take them, uint8 [n, k]."""
        return w.codes

    def tensor_stream(self, x: QuantizedTensor, w: QuantizedTensor) -> DotStream:
        acts = lane_layout(x.codes, w.group_size, self.lanes)
        codes = lane_layout(self.weight_codes(w), w.group_size, self.lanes)
        ports = pair_ports(acts, codes)
        if self.zero_bits:
            zero = np.zeros((w.n, w.groups), np.uint8) if w.zero_points is None else w.zero_points
            group = step_groups(w, self.lanes)
            ports["zero"] = np.tile(zero[:, group].reshape(-1), x.n)
        return DotStream(ports, pair_ends(w, self.lanes, x.n))

    def results(self, x: QuantizedTensor, w: QuantizedTensor) -> Iterator[np.ndarray]:
        table, codes = self.weight_table(), self.weight_codes(w)
        if w.zero_points is not None:
            column = np.arange(w.k) // w.group_size
            values = table[w.zero_points[:, column], codes]
        else:
            values = table[0][codes]
        return exact_products(self.act_table()[x.codes], values, w.group_size)

    def zero_points(self, x: QuantizedTensor, w: QuantizedTensor) -> ZeroPoints | None:
        if w.zero_points is None:
            return None
        rows = group_sums(self.act_table()[x.codes].astype(np.int64), w.group_size)
        zeros = w.zero_points.astype(np.int64)
        return ZeroPoints(rows * self.zero_weight, zeros, 0 * rows, 0 * zeros)


def check_length(name: str, acc_bits: int, longest: int, length: int) -> None:
    """Refuse a dot product that could overflow the accumulator.

    Raises:
        InputError: It could; the message says what fits.
    """
    if length > longest:
        need = acc_bits + (-(-length // max(longest, 1)) - 1).bit_length()
        raise InputError(
            f"the {name} PE's accumulator of {acc_bits} bits holds dot products of up to k = "
            f"{longest}, not {length}; use groups of at most {longest} or acc_bits {need}"
        )


def signed(bits: np.ndarray, width: int) -> np.ndarray:
    """Patterns of `width` bits as two's complement numbers, int64."""
    half = 1 << width - 1
    return ((bits.astype(np.int64) & ((1 << width) - 1)) ^ half) - half


def dequantise(sums: np.ndarray, x: np.ndarray, w: np.ndarray, unit: float) -> np.ndarray:
    """y [m, n] from a PE's accumulators, outside the PE; docs/numerics.md, "Outside the PE".

    y = fl32(y + fl32(fl32(sum) * fl32(fl32(x * w) * unit))) for each group in turn; the same in
    float64 if the scales are.

    Args:
        sums: Numbers [m, n, groups].
        x: Scales of the activations, float32 [m, groups] or [m, 1].
        w: Scales of the weights, float32 [n, groups].
        unit: What one unit of `sums` is worth; a power of two.
    """
    y = np.zeros(sums.shape[:2], x.dtype)
    for group in range(sums.shape[2]):
        scale = np.outer(x[:, min(group, x.shape[1] - 1)], w[:, group]) * x.dtype.type(unit)
        y += sums[:, :, group].astype(x.dtype) * scale
    return y


def float64_scales(t: QuantizedTensor) -> np.ndarray:
    """Scale of each group, float64 [rows, groups]: `t.scales()` without its rounding.

    Products of two stored scales have at most 32 significant bits.
    """
    if t.scale_format in ("e8m0", "e4m3"):
        scales = np.array(scale_code_values(t.scale_format))[t.group_scales]
    else:
        scales = t.group_scales.astype(np.float64)
    if t.tensor_scale is not None:
        scales = scales * t.tensor_scale.astype(np.float64)
    if t.channel_scales is not None:
        scales = scales * t.channel_scales.astype(np.float64)[:, None]
    return scales


def float64_values(t: QuantizedTensor) -> np.ndarray:
    """The numbers that a tensor stands for, float64 [rows, k]: `t.dequantize()` without rounding.

    A value of at most 9 bits times a scale of at most 32.
    """
    lengths = [stop - start for start, stop in group_bounds(t.k, t.group_size)]
    return t.values() * np.repeat(float64_scales(t), lengths, axis=1)


# ------------------------------------------------------------------ layout of steps


def group_bounds(k: int, group_size: int) -> list[tuple[int, int]]:
    """First and past-the-last column of each group."""
    return [(start, min(start + group_size, k)) for start in range(0, k, group_size)]


def lane_layout(codes: np.ndarray, group_size: int, lanes: int) -> np.ndarray:
    """Columns in steps of `lanes`, each group padded with codes of 0: [rows, steps, lanes]."""
    parts = []
    for start, stop in group_bounds(codes.shape[1], group_size):
        pad = -(stop - start) % lanes
        parts.append(np.pad(codes[:, start:stop], ((0, 0), (0, pad))))
    return np.concatenate(parts, axis=1).reshape(len(codes), -1, lanes)


def step_groups(w: QuantizedTensor, lanes: int) -> np.ndarray:
    """The group of each step of a row."""
    lengths = [-(-(stop - start) // lanes) for start, stop in group_bounds(w.k, w.group_size)]
    return np.repeat(np.arange(len(lengths)), lengths)


def pair_ports(
    acts: np.ndarray, codes: np.ndarray, names: Sequence[str] = ("act", "code")
) -> dict[str, np.ndarray]:
    """Ports act0 .., code0 ..: each row of `acts` with each of `codes` [rows, steps, lanes]."""
    m, n = len(acts), len(codes)
    left = np.broadcast_to(acts[:, None], (m, n, *acts.shape[1:])).reshape(-1, acts.shape[2])
    right = np.broadcast_to(codes[None], (m, n, *codes.shape[1:])).reshape(-1, codes.shape[2])
    ports = {f"{names[0]}{i}": left[:, i] for i in range(left.shape[1])}
    return {**ports, **{f"{names[1]}{i}": right[:, i] for i in range(right.shape[1])}}


def pair_ends(w: QuantizedTensor, lanes: int, m: int) -> np.ndarray:
    """bool: the last step of each group, for m rows of activations with every row of `w`."""
    group = step_groups(w, lanes)
    return np.tile(np.append(group[1:] != group[:-1], True), m * w.n)


def group_sums(values: np.ndarray, group_size: int) -> np.ndarray:
    """Sums over the columns of each group, [rows, groups]."""
    starts = np.arange(0, values.shape[1], group_size)
    return np.add.reduceat(values, starts, axis=1)
