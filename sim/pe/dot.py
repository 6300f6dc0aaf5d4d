"""Dot-product PEs: the exact sum of a step's products, then one accumulator.

Every step of such a PE takes one cycle. Its products are added exactly to a *partial sum* D, and D
joins the accumulator: an integer that wraps, or binary32, where D has an exponent E and every sum
is rounded once. docs/numerics.md, "Dot-product PEs", is the definition.

A PE derives from `DotUnit` and says what its ports are and what D and E are, once for plain
integers (`partial`) and once for whole streams (`partials`). `DotReference` is the cycle-by-cycle
definition of all of them, `run_model` its fast twin.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numba import njit, prange

from bitwright.quant import Format, InputError, QuantizedTensor, quantize

from .bitmod import float32_add

_BITMOD_UNIT = 28  #: exponent bias of `float32_add`
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
    @abstractmethod
    def weight_formats(self) -> tuple[str, ...]:
        """Names of the weight formats that the PE runs."""

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
    def finish(self, results: np.ndarray, x: Any, w: QuantizedTensor) -> np.ndarray:
        """y [m, n] float32 from the results (uint32 bits) of `tensor_stream`, outside the PE."""

    @abstractmethod
    def gemm(self, x: Any, w: QuantizedTensor) -> np.ndarray:
        """y[m, n] = x[m, k] @ w[n, k].T in the PE's arithmetic, float32.

        Args:
            x: Activations, finite; or a QuantizedTensor, tokens as rows.
            w: Weights.

        Raises:
            InputError: A format or shape that the PE does not run.
        """

    def reference(self, x: Any, w: QuantizedTensor) -> np.ndarray:
        """The same y[m, n] through `DotReference`, cycle by cycle; for small cases."""
        self.check(w)
        act = self.activations(x, w)
        stream = self.tensor_stream(act, w)
        values, _ = run_reference(self, stream)
        return self.finish(np.array(values, np.uint32), act, w)

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


@njit(cache=True, parallel=True)
def multiply_groups(x, w, group_size, out):  # type: ignore[no-untyped-def]
    """Exact integer products by group.

    x int16 [m, k], w int16 [n, k], out int32 [m, n, groups]; sums must fit 32 bits.
    """
    n, k = w.shape
    for j in prange(n):
        for i in range(x.shape[0]):
            for g in range(out.shape[2]):
                acc = np.int32(0)
                for c in range(g * group_size, min((g + 1) * group_size, k)):
                    acc += np.int32(x[i, c]) * np.int32(w[j, c])
                out[i, j, g] = acc


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

    #: What one unit of `decode_act` times one of `decode_weight` is worth.
    unit_value: float = 1.0

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

    def gemm(self, x: Any, w: QuantizedTensor) -> np.ndarray:
        self.check(w)
        act = self.activations(x, w)
        table, codes = self.weight_table(), self.weight_codes(w)
        if w.zero_points is not None:
            column = np.arange(w.k) // w.group_size
            values = table[w.zero_points[:, column], codes]
        else:
            values = table[0][codes]
        out = np.empty((act.n, w.n, w.groups), np.int32)
        multiply_groups(self.act_table()[act.codes], values, w.group_size, out)
        return self.finish(out.reshape(-1).view(np.uint32), act, w)

    def finish(self, results: np.ndarray, x: QuantizedTensor, w: QuantizedTensor) -> np.ndarray:
        sums = signed(results, self.accumulator.bits).reshape(x.n, w.n, w.groups)
        if w.zero_points is not None:
            rows = group_sums(self.act_table()[x.codes].astype(np.int64), w.group_size)
            sums = sums - self.zero_weight * rows[:, None, :] * w.zero_points[None].astype(np.int64)
        return dequantise(sums, x.scales(), w.scales(), self.unit_value)


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
    """y [m, n] float32 from a PE's integers, outside the PE; docs/numerics.md, "Outside the PE".

    y = fl32(y + fl32(fl32(sum) * fl32(fl32(x * w) * unit))) for each group in turn.

    Args:
        sums: Integers [m, n, groups].
        x: Scales of the activations, float32 [m, groups] or [m, 1].
        w: Scales of the weights, float32 [n, groups].
        unit: What one unit of `sums` is worth; a power of two.
    """
    y = np.zeros(sums.shape[:2], np.float32)
    for group in range(sums.shape[2]):
        scale = np.outer(x[:, min(group, x.shape[1] - 1)], w[:, group]) * np.float32(unit)
        y += sums[:, :, group].astype(np.float32) * scale
    return y


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
