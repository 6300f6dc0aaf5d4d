"""Test vectors: streams of steps for a PE's verified design, and traces of clock cycles.

A `Stream` says what goes in, step by step; every realisation can run it back to back. A `Trace`
says for each clock cycle what goes in and, from the reference, what must come out: gaps, stalls
and resets included, with the coverage bins that the reference went through.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from .coverage import ProtocolWatch

#: Finite FP16 patterns at the edges: zero, each single bit of a subnormal and of an exponent, the
#: ends of both ranges and what lies next to them, full and alternating significands.
_POSITIVE_CORNERS = (
    0x0000, 0x0001, 0x0002, 0x0004, 0x0008, 0x0010, 0x0020, 0x0040, 0x0080, 0x0100, 0x0200,
    0x0155, 0x03FF, 0x0400, 0x0401, 0x07FF, 0x0800, 0x1000, 0x2000, 0x2800, 0x3800, 0x3BFF,
    0x3C00, 0x3C01, 0x3D55, 0x4000, 0x5000, 0x6AAA, 0x7400, 0x7800, 0x7BFE, 0x7BFF,
)  # fmt: skip
ACTIVATION_CORNERS = np.array(
    [*_POSITIVE_CORNERS, *(0x8000 | bits for bits in _POSITIVE_CORNERS)], np.uint16
)


@dataclass(frozen=True)
class Stream:
    """Steps of one mode, taken back to back after some set-up cycles."""

    mode: str
    setup: Sequence[Mapping[str, int]]  #: port values, one mapping per cycle before the first step
    ports: Mapping[str, np.ndarray]  #: one row per step; all of the same length
    ends: np.ndarray  #: bool, the step ends a dot product

    @property
    def steps(self) -> int:
        return len(self.ends)

    @property
    def dots(self) -> int:
        """Dot products in the stream."""
        return int(self.ends.sum())

    def sample(self, dots: int) -> "Stream":
        """At most `dots` of the dot products, evenly spaced, in their order."""
        if dots >= self.dots:
            return self
        chosen = np.zeros(self.dots, bool)
        chosen[np.arange(dots) * self.dots // dots] = True
        keep = chosen[np.cumsum(self.ends) - self.ends]
        ports = {name: values[keep] for name, values in self.ports.items()}
        return Stream(self.mode, self.setup, ports, self.ends[keep])

    def rows(self) -> list[dict[str, int]]:
        """The steps as mappings of plain integers."""
        names = list(self.ports)
        columns = [values.tolist() for values in self.ports.values()]
        return [dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)]


# ------------------------------------------------------------------ random data


def random_lengths(rng: np.random.Generator, count: int, longest: int) -> np.ndarray:
    """Lengths from 1 to `longest`, mostly short: one in five is 1, the average is about 4."""
    lengths = np.minimum(rng.geometric(0.28, count), longest)
    some = rng.random(count)
    lengths[some < 0.02] = rng.integers(1, longest + 1, int((some < 0.02).sum()))
    return lengths


def random_activations(
    rng: np.random.Generator, step_dot: np.ndarray, step_of_dot: np.ndarray, lanes: int
) -> np.ndarray:
    """FP16 patterns, uint16 [steps, lanes]; each dot product is drawn in one of eight styles.

    Styles: any exponent; a narrow band of exponents; exponents that rise or fall along the dot
    product; one large lane among small ones; the second half of the lanes cancelling the first;
    corner patterns; large values with full significands. One lane in sixteen is zero.

    Args:
        rng: Source of randomness.
        step_dot: Dot product of each step, counted from 0.
        step_of_dot: Index of each step in its dot product.
        lanes: Activations of a step.
    """
    steps = len(step_dot)
    dots = int(step_dot[-1]) + 1 if steps else 0
    style = rng.integers(0, 8, dots)[step_dot][:, None]
    base = rng.integers(0, 31, dots)[step_dot][:, None]
    slope = rng.integers(1, 8, dots)[step_dot][:, None]
    along = step_of_dot[:, None]
    shape = (steps, lanes)
    sign, fraction = rng.integers(0, 2, shape), rng.integers(0, 1024, shape)
    jitter = rng.integers(-2, 3, shape)
    outlier = rng.integers(0, lanes, (steps, 1)) == np.arange(lanes)
    exponent = np.select(
        [style == 0, style == 1, style == 2, style == 3, style == 4, style == 5],
        [
            rng.integers(0, 31, shape),
            base + jitter,
            base // 2 + slope * along + jitter,
            30 - base // 2 - slope * along + jitter,
            np.where(outlier, base + 14 + jitter, base - 8 + jitter),
            base + jitter,
        ],
        default=30 - rng.integers(0, 3, shape),
    )
    fraction = np.where((style == 7) & (rng.random(shape) < 0.7), 1023, fraction)
    bits = (sign << 15) | (np.clip(exponent, 0, 30) << 10) | fraction
    if lanes > 1:  # nearly or exactly opposite
        opposite = np.roll(bits, lanes // 2, axis=1) ^ 0x8000
        opposite = opposite ^ (rng.random(shape) < 0.3)
        second = np.arange(lanes) >= lanes // 2
        bits = np.where((style == 5) & second, opposite, bits)
    bits = np.where(style == 6, rng.choice(ACTIVATION_CORNERS, shape), bits)
    return np.where(rng.random(shape) < 1 / 16, 0, bits).astype(np.uint16)


# ------------------------------------------------------------------ traces


class Reference(Protocol):
    """A plain-Python model of a verified design, one clock cycle per call."""

    def reset(self) -> None:
        """One cycle with `rst`."""

    def setup(self, values: Mapping[str, int]) -> None:
        """One cycle that writes the set-up ports."""

    def tick(self, step: Mapping[str, int] | None) -> tuple[bool, int | None]:
        """One cycle: whether the shown step is taken, and y's bits if y_valid is high."""

    def covered(self) -> Iterable[str]:
        """The coverage bins that the last `tick` hit; one that it hit twice may come twice."""


@dataclass(frozen=True)
class Trace:
    """What goes in and what must come out, for each clock cycle.

    The first cycle has `rst` high, and its outputs are not compared.
    """

    mode: str
    kind: str  #: what it tries
    inputs: Sequence[Mapping[str, int]]  #: port -> value; ports left out are 0
    outputs: Sequence[tuple[int, int, int]]  #: ready, y_valid, y (0 where y_valid is 0)
    covers: Mapping[str, int] = field(default_factory=dict)  #: coverage bin -> times hit

    @property
    def name(self) -> str:
        return f"{self.mode}_{self.kind}"

    @property
    def dots(self) -> int:
        """Dot products that come out."""
        return sum(valid for _, valid, _ in self.outputs)


class TraceRecorder:
    """Drives a reference and writes down every cycle.

    A coverage bin counts once a result has come out after it; a reset drops those that wait.
    """

    def __init__(self, reference: Reference, patience: int = 100) -> None:
        self._reference = reference
        self._patience = patience
        self._inputs: list[Mapping[str, int]] = []
        self._outputs: list[tuple[int, int, int]] = []
        self._protocol = ProtocolWatch()
        self._waiting: Counter[str] = Counter()
        self._covers: Counter[str] = Counter()
        self.reset()

    def _tick(self, inputs: Mapping[str, int], step: Mapping[str, int] | None) -> tuple[bool, bool]:
        """One cycle; returns `ready` and `y_valid`."""
        ready, y = self._reference.tick(step)
        self._inputs.append(inputs)
        self._outputs.append((int(ready), int(y is not None), y or 0))
        if y is not None:
            self._covers.update(self._waiting)
            self._waiting.clear()
        return ready, y is not None

    def _cycle(self, inputs: Mapping[str, int], step: Mapping[str, int] | None = None) -> bool:
        """One cycle without `rst`; returns `ready`."""
        ready, result = self._tick(inputs, step)
        self._waiting.update(self._reference.covered())
        self._waiting.update(self._protocol.cycle(step, ready, result))
        return ready

    def reset(self, step: Mapping[str, int] | None = None) -> None:
        """A cycle with `rst`, perhaps while a step is shown; what is under way is lost."""
        shown = {} if step is None else {**step, "valid": 1}
        _, result = self._tick({**shown, "rst": 1}, step)
        self._reference.reset()
        self._waiting = Counter(self._protocol.reset(step, result))

    def setup(self, cycles: Sequence[Mapping[str, int]]) -> None:
        """Cycles without a step that write the set-up ports."""
        for values in cycles:
            self._cycle(values)
            self._reference.setup(values)

    def idle(self, cycles: int) -> None:
        """Cycles with `valid` low."""
        for _ in range(cycles):
            self._cycle({})

    def step(self, values: Mapping[str, int]) -> None:
        """Show a step until it is taken."""
        shown = {**values, "valid": 1}
        for _ in range(self._patience):
            if self._cycle(shown, values):
                return
        raise AssertionError(f"the reference did not take a step in {self._patience} cycles")

    def stream(
        self, stream: Stream, rng: np.random.Generator | None = None, gaps: float = 0.0
    ) -> None:
        """A whole stream; before a step there is a gap with probability `gaps`."""
        self.setup(stream.setup)
        for row in stream.rows():
            if rng is not None and rng.random() < gaps:
                self.idle(int(rng.integers(1, 4)))
            self.step(row)

    def trace(self, kind: str, mode: str = "", drain: int = 30) -> Trace:
        """All cycles so far and `drain` idle ones."""
        self.idle(drain)
        return Trace(mode, kind, self._inputs, self._outputs, dict(self._covers))


def pack(values: Mapping[str, int], widths: Mapping[str, int]) -> int:
    """Port values as one word, ports in the order of `widths`, the first one in the highest bits.

    Ports without a value are 0.

    >>> hex(pack({"b": 0xFF, "a": 1}, {"a": 4, "b": 8}))
    '0x1ff'
    """
    word = 0
    for name, bits in widths.items():
        word = word << bits | values.get(name, 0)
    return word


def pack_lines(words: Iterable[tuple[int, int, int]]) -> str:
    """Text for the bench, one line a cycle: inputs, expected outputs, compared bits of these."""
    return "".join(f"{inputs:x} {outputs:x} {mask:x}\n" for inputs, outputs, mask in words)


def pack_trace(trace: Trace, inputs: Mapping[str, int], outputs: Mapping[str, int]) -> str:
    """A PE's trace as text for the bench.

    `ready` is compared while `valid` is shown, `y` while `y_valid` is expected; nothing is in the
    first cycle, the reset itself.

    Args:
        trace: The cycles.
        inputs: Input ports and their widths.
        outputs: Output ports and theirs, `ready` among them if the design has it.
    """
    lines = []
    for cycle, (shown, (ready, valid, y)) in enumerate(
        zip(trace.inputs, trace.outputs, strict=True)
    ):
        known = {"ready": shown.get("valid", 0), "y_valid": 1, "y": valid * 0xFFFF_FFFF}
        lines.append(
            (
                pack(shown, inputs),
                pack({"ready": ready, "y_valid": valid, "y": y}, outputs),
                pack(known, outputs) if cycle else 0,
            )
        )
    return pack_lines(lines)


def results_of(trace: Trace) -> tuple[np.ndarray, np.ndarray]:
    """y bits (uint32) of a trace and the cycle of each, counted from the first step's."""
    start = next(i for i, inputs in enumerate(trace.inputs) if inputs.get("valid"))
    found = [(y, i - start) for i, (_, valid, y) in enumerate(trace.outputs) if valid]
    values = np.array([y for y, _ in found], np.uint32)
    return values, np.array([cycle for _, cycle in found], np.int64)


def count_mismatches(got: tuple[Any, Any], wanted: tuple[Any, Any]) -> int:
    """Dot products whose bits or cycle differ; each missing or extra one counts."""
    (y, cycle), (y_wanted, cycle_wanted) = got, wanted
    common = min(len(y), len(y_wanted))
    differ = (y[:common] != y_wanted[:common]) | (cycle[:common] != cycle_wanted[:common])
    return int(differ.sum()) + abs(len(y) - len(y_wanted))
