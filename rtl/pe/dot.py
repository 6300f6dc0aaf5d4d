"""PyRTL generator of the dot-product PEs, and what verifies them.

All of them are one pipeline: decode the operands, sum the products, accumulate. A PE's own file
says how it decodes and sums; registers, accumulator, control, blocks and vectors are here.
docs/numerics.md, "Dot-product PEs", is the definition.

With one register level the sum goes straight into the accumulator; with two it is registered first;
with three the decoded operands are registered too.
"""

import itertools
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

import numpy as np
from pyrtl import Block, Input, Output, Register, WireVector

from bitwright.quant import quantize
from bitwright.rtl import Stream, Trace, TraceRecorder, coverage, random_lengths
from bitwright.sim import dot

from .decoders import Decoder
from .design import TensorCase
from .dot_bins import accumulator_bins, port_bin, port_bins, sum_bins
from .logic import cleared, design, float32_addend, float32_sum, register, to_verilog

#: Steps within which the bench makes an accumulator wrap; PEs that need more wrap in the bulk
#: vectors (`DotDesign.overflow`) alone.
_WRAP_STEPS = 10_000

Wires = Mapping[str, WireVector]
Unit = TypeVar("Unit", bound=dot.DotUnit)


@dataclass(frozen=True)
class DotDesign(ABC, Generic[Unit]):
    """A dot-product PE as a generator, with its vectors (`Design`).

    Ports: `clk`, `rst`, `valid`, those of the unit, `last`; out `y` as wide as the accumulator and
    `y_valid`. Always ready; a step taken in cycle i is in `y` in cycle i + stages.
    """

    unit: Unit

    has_ready: ClassVar[bool] = False
    setup_ports: ClassVar[Mapping[str, int]] = {}
    #: Blocks that the PEs of a column share.
    shared: ClassVar[tuple[str, ...]] = ()

    #: Blocks and the registers that they end in, in the order of the pipeline.
    registers: ClassVar[Mapping[str, Sequence[str]]] = {
        "decode": ("operand",),
        "multiply": ("total", "exponent"),
        "accumulate": ("acc", "y"),
    }

    # ------------------------------------------------------------------ what a PE says

    @abstractmethod
    def decode(self, ports: Wires) -> list[WireVector]:
        """Operands as the multipliers take them; combinational."""

    @abstractmethod
    def combine(self, operands: Sequence[WireVector]) -> tuple[WireVector, WireVector | None]:
        """The exact sum D, two's complement, and its exponent E for binary32; combinational."""

    # ------------------------------------------------------------------ hardware

    @property
    def name(self) -> str:
        return self.unit.name

    @property
    def macs(self) -> float:
        """Multiply-accumulates a cycle."""
        return self.unit.lanes

    @property
    def top(self) -> str:
        """Name with lanes, accumulator bits and register levels."""
        name = self.unit.name.replace("-", "_")
        return f"{name}_l{self.unit.lanes}_acc{self.unit.accumulator.bits}_s{self.unit.stages}"

    @property
    def step_ports(self) -> Mapping[str, int]:
        return {**self.unit.ports, "last": 1}

    def addend(self, operands: Sequence[WireVector]) -> tuple[WireVector, WireVector | None]:
        """What the accumulator takes: D, or D * 2**(E - unit) in binary32."""
        total, exponent = self.combine(operands)
        kind = self.unit.accumulator
        if isinstance(kind, dot.FloatAccumulator):
            assert exponent is not None
            return float32_addend(total, exponent, kind.unit), None
        return total, exponent

    def accumulate(
        self, total: WireVector, exponent: WireVector | None, clear: WireVector
    ) -> WireVector:
        """The accumulator; with `clear` it starts again from the sum alone. Returns y."""
        kind = self.unit.accumulator
        acc = Register(kind.bits, "acc")
        kept = cleared(acc, clear)
        if isinstance(kind, dot.FloatAccumulator):
            acc.next <<= float32_sum(kept, total)
        else:
            acc.next <<= (kept + total.sign_extended(kind.bits))[: kind.bits]
        return acc

    def pipeline(self, ports: Wires, clear: WireVector) -> WireVector:
        """Ports to y: the PE without its control."""
        operands = self.decode(ports)
        if self.unit.stages > 2:
            operands = [register(wire, f"operand{i}") for i, wire in enumerate(operands)]
        total, exponent = self.addend(operands)
        if self.unit.stages > 1:
            total = register(total, "total")
            exponent = None if exponent is None else register(exponent, "exponent")
        return self.accumulate(total, exponent, clear)

    def block(self) -> Block:
        """The PE and its control: ports and timing as in docs/numerics.md."""
        with design() as block:
            rst, valid, last = (Input(1, name) for name in ("rst", "valid", "last"))
            taken = valid & ~rst
            ports = {}
            for name, bits in self.unit.ports.items():
                port = Input(bits, name)
                # A cycle without a step adds zero, so that no register has an enable.
                ports[name] = cleared(port, ~taken) if carries_activations(name) else port
            arrived, ends = taken, taken & last
            for level in range(1, self.unit.stages):
                arrived = register(cleared(arrived, rst), f"valid{level}")
                ends = register(cleared(ends, rst), f"last{level}")
            running = Register(1, "running")
            running.next <<= cleared((arrived & ~ends) | (~arrived & running), rst)
            _output("y", self.pipeline(ports, ~running))
            _output("y_valid", register(cleared(ends, rst), "done"))
        return block

    def pe(self) -> Block:
        """One PE of an array: no reset, control (`clear`) comes from the array."""
        with design() as block:
            ports = {name: Input(bits, name) for name, bits in self.unit.ports.items()}
            _output("y", self.pipeline(ports, Input(1, "clear")))
        return block

    def verilog(self) -> str:
        return to_verilog(self.block(), self.top)

    def blocks(self) -> dict[str, str]:
        """Decoder, sum and accumulator as modules with the registers they end in, and the PE."""
        stages = self.unit.stages
        with design() as decoder:
            inputs = {name: Input(bits, name) for name, bits in self.unit.ports.items()}
            operands = self.decode(inputs)
            widths = [len(wire) for wire in operands]
            for i, wire in enumerate(operands):
                _output(f"o{i}", register(wire, f"operand{i}") if stages > 2 else wire)
            plain = all(any(wire is port for port in inputs.values()) for wire in operands)
        with design() as multiplier:
            total, exponent = self.addend([Input(bits, f"o{i}") for i, bits in enumerate(widths)])
            shape = len(total), None if exponent is None else len(exponent)
            _output("total", register(total, "d") if stages > 1 else total)
            if exponent is not None:
                _output("exponent", register(exponent, "e") if stages > 1 else exponent)
        with design() as accumulator:
            e = None if shape[1] is None else Input(shape[1], "exponent")
            _output("y", self.accumulate(Input(shape[0], "total"), e, Input(1, "clear")))
        parts = {
            **({} if plain and stages < 3 else {"decode": decoder}),
            "multiply": multiplier,
            "accumulate": accumulator,
            "total": self.pe(),
        }
        return {
            name: to_verilog(part, f"{self.top}_{'pe' if name == 'total' else name}")
            for name, part in parts.items()
        }

    def decoders(self) -> list[Decoder]:
        """None: the operands are used as they come."""
        return []

    # ------------------------------------------------------------------ vectors

    @property
    def modes(self) -> tuple[str, ...]:
        """Weight formats whose tensors differ: the widest one unless a PE says more."""
        return self.unit.weight_formats[-1:]

    def patterns(self, port: str, compact: bool) -> np.ndarray:
        """Patterns that corners show on a port: all of up to 8 bits, else those at the edges."""
        bits = self.unit.ports[port]
        low, high = self.unit.limits.get(port, (0, (1 << bits) - 1))
        if bits <= 8:
            return np.arange(low, high + 1, dtype=np.uint64)
        singles = [1 << i for i in range(bits)]
        ends = [0, 1, high, high - 1, 1 << bits - 1, (1 << bits - 1) - 1]
        alternating = [0x5555_5555_5555_5555 & high, 0xAAAA_AAAA_AAAA_AAAA & high]
        chosen = sorted({*ends, *alternating, *(singles if not compact else singles[::3])})
        return np.array([p for p in chosen if low <= p <= high], np.uint64)

    def lane_groups(self) -> list[list[str]]:
        """Ports that meet each other in every combination of their patterns, lane by lane."""
        return [[f"act{i}", f"code{i}"] for i in range(self.unit.lanes)]

    def random_port(
        self, port: str, rng: np.random.Generator, dot: np.ndarray, along: np.ndarray
    ) -> np.ndarray:
        """Random patterns for a port, one per step.

        Dot products are drawn in three styles: any pattern; patterns at the edges; one pattern for
        the whole dot product, so that sums grow.

        Args:
            port: Its name.
            rng: Source of randomness.
            dot: Dot product of each step.
            along: Index of each step in its dot product.
        """
        bits = self.unit.ports[port]
        low, high = self.unit.limits.get(port, (0, (1 << bits) - 1))
        edges = self.patterns(port, True)
        style = rng.integers(0, 3, int(dot[-1]) + 1)[dot]
        free = rng.integers(low, high, len(dot), np.uint64, endpoint=True)
        same = rng.choice(edges, int(dot[-1]) + 1)[dot]
        return np.select([style == 0, style == 1], [free, rng.choice(edges, len(dot))], same)

    def corners(self, mode: str, compact: bool = False) -> Stream:
        """Every combination of the patterns of a lane's ports, as dot products of one step.

        The lanes run through the combinations at different places. Where a lane's ports have up to
        16 bits together this is every possible input of a lane.
        """
        groups = self.lane_groups()
        shared = [port for port in self.unit.ports if not any(port in group for group in groups)]
        sets = {port: self.patterns(port, compact) for port in self.unit.ports}
        lane = math.prod(len(sets[port]) for port in groups[0])
        total = lane * math.prod(len(sets[port]) for port in shared)
        count = min(total, 1_500 if compact else 70_000)
        # A stride without a common divisor visits every combination, or an even choice of them.
        stride = next(s for s in itertools.count(int(total * 0.618)) if math.gcd(s, total) == 1)
        index = [i * stride % total for i in range(count)]
        ports = _digits(shared, sets, [i // lane for i in index])
        for number, group in enumerate(groups):
            offset = number * (lane // len(groups) + 1)
            ports |= _digits(group, sets, [(i + offset) % lane for i in index])
        # A sum of nothing ends the list.
        for port, values in ports.items():
            ports[port] = np.append(values, values[-1:] * (not carries_activations(port)))
        return self.stream(mode, ports, np.ones(count + 1, bool))

    def random(self, mode: str, dots: int, rng: np.random.Generator) -> Stream:
        """Dot products of 1 to 40 steps, most of them short."""
        lengths = random_lengths(rng, dots, 40)
        dot = np.repeat(np.arange(dots), lengths)
        along = np.arange(len(dot)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        ports = {port: self.random_port(port, rng, dot, along) for port in self.unit.ports}
        return self.stream(mode, ports, np.append(dot[1:] != dot[:-1], True))

    def stream(self, mode: str, ports: Mapping[str, np.ndarray], last: np.ndarray) -> Stream:
        """Port values as a stream of this design."""
        arrays = {
            name: np.ascontiguousarray(ports[name], _unsigned(bits))
            for name, bits in self.unit.ports.items()
        }
        return Stream(mode, [], {**arrays, "last": last.astype(np.uint8)}, last)

    @property
    def wrap_steps(self) -> int | None:
        """Steps of the largest sums after which the accumulator wraps; None for binary32."""
        if isinstance(self.unit.accumulator, dot.FloatAccumulator):
            return None
        low, high = (int(total) for total in self.unit.partials(self.extremes())[0])
        half = 1 << self.unit.accumulator.bits - 1
        return max(half // high, -(-half // -low)) + 1

    def extremes(self) -> dict[str, np.ndarray]:
        """Port values of the smallest and of the largest sum, all lanes alike: two steps."""
        corners = self.corners(self.modes[0])
        groups = self.lane_groups()
        ports = {name: corners.ports[name] for name in self.unit.ports}
        for group in groups[1:]:
            ports |= {p: ports[first] for p, first in zip(group, groups[0], strict=True)}
        total, _ = self.unit.partials(ports)
        chosen = [int(total.argmin()), int(total.argmax())]
        return {name: values[chosen] for name, values in ports.items()}

    def overflow(self, mode: str, limit: int = 2_500_000) -> Stream | None:
        """A dot product that wraps downwards, and one that wraps upwards.

        None for binary32, and where it takes more than `limit` steps: such PEs are made to wrap in
        the tests, with a narrower accumulator.
        """
        steps = self.wrap_steps
        if steps is None or steps > limit:
            return None
        ports = {name: np.repeat(values, steps) for name, values in self.extremes().items()}
        last = np.zeros(2 * steps, bool)
        last[[steps - 1, 2 * steps - 1]] = True
        return self.stream(mode, ports, last)

    def bins(self, mode: str) -> tuple[str, ...]:
        """Codes on the ports, signs of sums, and what the accumulator does."""
        ports = [name for port in self.unit.ports for name in port_bins(self.unit, port)]
        wraps = (self.wrap_steps or 0) <= _WRAP_STEPS
        return (
            *dict.fromkeys(ports),
            *coverage.sign_bins("sum"),
            *accumulator_bins(self.unit, wraps),
        )

    def tensor(self, mode: str, x: np.ndarray, w: np.ndarray) -> TensorCase:
        """Rows of a layer, weights and activations quantised as the PE takes them."""
        qt = quantize(w, mode, group_size=self.group_size(mode, w.shape[1]))
        act = self.unit.activations(x, qt)
        whole = self.unit.tensor_stream(act, qt)

        def finish(y: np.ndarray) -> np.ndarray:
            return self.unit.finish(y, act, qt).reshape(-1)

        gemm = self.unit.gemm(act, qt).reshape(-1)
        return TensorCase(self.stream(mode, whole.ports, whole.last), gemm, finish)

    def group_size(self, mode: str, k: int) -> int | None:
        """Columns per group in `tensor`; groups of 128 end in a ragged one in some layers."""
        return 128

    def traces(self, mode: str, rng: np.random.Generator) -> list[Trace]:
        """Operands and `last` that change while `valid` is low, and long waits."""
        recorder = TraceRecorder(self.reference())
        for row in self.random(mode, 60, rng).rows():
            recorder.step(row)
            if rng.random() < 0.5:
                count = int(rng.integers(1, 6))
                noise = self.random(mode, count, rng).rows()[:count]
                recorder.setup([{**values, "last": i % 2} for i, values in enumerate(noise)])
        traces = [recorder.trace("noise")]
        overflow = self.overflow(mode, _WRAP_STEPS)
        if overflow is not None:
            recorder = TraceRecorder(self.reference())
            recorder.stream(overflow)
            traces.append(recorder.trace("overflow"))
        return traces

    # ------------------------------------------------------------------ realisations

    def reference(self) -> "_Reference":
        return _Reference(self.unit)

    def model(self, stream: Stream) -> tuple[np.ndarray, np.ndarray]:
        ports = {name: stream.ports[name] for name in self.unit.ports}
        return dot.run_model(self.unit, dot.DotStream(ports, stream.ends))

    @abstractmethod
    def kernel(self, function: Callable[..., np.ndarray], stream: Stream) -> np.ndarray:
        """y bits, uint32, through the software kernel."""


class _Reference:
    """`DotReference` behind the port names, and the coverage bins that it goes through."""

    def __init__(self, unit: dot.DotUnit) -> None:
        self._reference = dot.DotReference(unit)
        self._unit = unit
        self._step: Mapping[str, int] | None = None

    def reset(self) -> None:
        self._reference.reset()
        self._step = None

    def setup(self, values: Mapping[str, int]) -> None:
        """Nothing to set up: a cycle in which `valid` is low."""

    def tick(self, step: Mapping[str, int] | None) -> tuple[bool, int | None]:
        self._step = step
        return True, self._reference.tick(step)

    def covered(self) -> Iterable[str]:
        found: list[str] = []
        if self._step is not None:
            for port in self._unit.ports:
                found += port_bin(self._unit, port, self._step[port])
        if self._reference.added is not None:
            found += sum_bins(self._unit, *self._reference.added)
        return found


def _digits(
    ports: Sequence[str], sets: Mapping[str, np.ndarray], index: Sequence[int]
) -> dict[str, np.ndarray]:
    """The patterns that a number in mixed radix chooses, the first port its lowest digit."""
    chosen = {}
    for port in ports:
        size = len(sets[port])
        chosen[port] = sets[port][[i % size for i in index]]
        index = [i // size for i in index]
    return chosen


def carries_activations(port: str) -> bool:
    """Whether a port is one of those that, all zero, make D zero: act0, x3, x1_2."""
    return re.fullmatch(r"(act|x)\d[\d_]*", port) is not None


def _output(name: str, wire: WireVector) -> None:
    out = Output(len(wire), name)
    out <<= wire


def _unsigned(bits: int) -> type[np.unsignedinteger[Any]]:
    for size, kind in ((8, np.uint8), (16, np.uint16), (32, np.uint32)):
        if bits <= size:
            return kind
    return np.uint64
