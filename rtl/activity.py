"""Switching activity of a netlist: how often every net toggles under given streams.

Each clock cycle the inputs and the flip-flops' outputs change together and the logic settles
without delay; a net toggles at most once a cycle, so glitches are not counted (`unit_delay` counts
those that there are if all cells are equally slow). Many independent
streams run side by side, one per bit of a machine word: *lanes*, 64 to a word.

`simulate` is the fast one (numba), `simulate_reference` its plain twin; Verilator is the third,
in `saif.py`. All three count the same toggles on every net.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, prange, types
from numba.extending import intrinsic

from bitwright.quant import InputError

from .cell_functions import Expression, read_function
from .netlist import ONE, ZERO, Instance, Netlist, cell_function
from .technology import Cell

WORD = 64  #: lanes of a machine word
_BLOCK = 8  #: words that go through the netlist side by side: a vector register of 512 bits


@dataclass(frozen=True, eq=False)
class Activity:
    """What a netlist did."""

    cycles: int  #: clock cycles counted, warm-up left out
    lanes: int
    toggles: np.ndarray  #: int64 [nets, words]: changes of each net, summed over a word's lanes
    clock_edges: int  #: of each flip-flop's clock pin: two a cycle and lane
    outputs: Mapping[str, np.ndarray]  #: uint64 [all cycles, lanes] of the recorded ports

    @property
    def total(self) -> np.ndarray:
        """int64 [nets]: toggles over all lanes."""
        return self.toggles.sum(axis=1)


def simulate(
    netlist: Netlist,
    inputs: Mapping[str, np.ndarray],
    *,
    warmup: int = 1,
    record: Sequence[str] = (),
    unit_delay: bool = False,
) -> Activity:
    """Run streams through a netlist and count.

    Flip-flops start at 0. The first cycle settles the nets from nothing and never counts.

    Args:
        netlist: What runs.
        inputs: Port -> unsigned integers [cycles, lanes]; [cycles, 1] is the same in all lanes.
            Ports left out are 0. Ports of more than 64 bits take bits, bool [cycles, lanes, bits].
        warmup: Cycles at the beginning whose toggles do not count, at least 1.
        record: Output ports whose values are wanted.
        unit_delay: Every cell takes one unit of time, and every change of a net counts: glitches
            included, as if none were too short to pass. Settled values are the same.

    Raises:
        InputError: An unknown port, shapes that differ, a value too wide for its port, or a stream
            that is not longer than warm-up and pipeline.
    """
    cycles, lanes = _shape(netlist, inputs, warmup)
    for port in record:
        if port not in netlist.outputs:
            raise InputError(
                f"{netlist.top} has no output {port!r}; it has {', '.join(netlist.outputs)}"
            )
        if len(netlist.outputs[port]) > WORD:
            raise InputError(f"output {port} of {netlist.top} has more than 64 bits to record")
    words = -(-lanes // WORD)
    blocks = -(-words // _BLOCK)
    # [cycles, blocks, nets of the ports, words of a block]
    driven = [net for port in netlist.inputs.values() for net in port]
    packed = np.zeros((cycles, blocks * _BLOCK, len(driven)), np.uint64)
    at = 0
    for port, nets in netlist.inputs.items():
        if port in inputs:
            _pack_port(inputs[port], packed[:, :, at : at + len(nets)], lanes)
        at += len(nets)
    streams = packed.reshape(cycles, blocks, _BLOCK, -1).transpose(1, 0, 3, 2)
    program = _program(netlist)
    shown = [net for port in record for net in netlist.outputs[port]]
    # Bits beyond the last lane run, too, but have no say.
    lane = np.arange(blocks * _BLOCK * WORD).reshape(blocks, _BLOCK, WORD)
    counted = np.packbits(lane < lanes, axis=-1, bitorder="little").view(np.uint64)[..., 0]
    run = _run_unit_delay if unit_delay else _run
    toggles, seen = run(
        np.ascontiguousarray(streams),
        np.array(driven, np.int32),
        program.ops,
        program.states,
        program.values,
        len(netlist.nets),
        np.array(shown, np.int32),
        counted,
        warmup,
    )
    toggles = toggles.transpose(1, 0, 2).reshape(len(netlist.nets), -1)[:, :words]
    outputs, at = {}, 0
    for port in record:
        count = len(netlist.outputs[port])
        outputs[port] = _unpack(seen[:, :, at : at + count], lanes)
        at += count
    cycles -= warmup
    return Activity(cycles, lanes, toggles, 2 * cycles * lanes, outputs)


def _shape(netlist: Netlist, inputs: Mapping[str, np.ndarray], warmup: int) -> tuple[int, int]:
    """Cycles and lanes of the streams, checked."""
    if warmup < 1:
        raise InputError(f"warmup is {warmup}; at least 1, the cycle in which the nets settle")
    if unknown := [port for port in inputs if port not in netlist.inputs]:
        raise InputError(
            f"{netlist.top} has no input {unknown[0]!r}; it has {', '.join(netlist.inputs)}"
        )
    if not inputs:
        raise InputError(f"no stream was given for {netlist.top}; give at least one input")
    cycles = max(len(values) for values in inputs.values())
    lanes = max(values.shape[1] for values in inputs.values())
    for port, values in inputs.items():
        if len(values) != cycles or values.shape[1] not in (1, lanes):
            raise InputError(
                f"stream of {port} has {len(values)} cycles and {values.shape[1]} lanes; others "
                f"have {cycles} and {lanes}"
            )
        bits = len(netlist.inputs[port])
        if values.shape[2:] != ((bits,) if values.ndim == 3 or bits > WORD else ()):
            raise InputError(
                f"stream of {port} has the shape {values.shape}; its {bits} bits need "
                f"[cycles, lanes{'' if values.ndim == 2 and bits <= WORD else f', {bits}'}]"
            )
        for value in (int(values.min()), int(values.max())) if values.size else ():
            if value >> (bits if values.ndim == 2 else 1):
                raise InputError(
                    f"stream of {port} holds {value}, which does not fit "
                    + (f"its {bits} bits" if values.ndim == 2 else "one bit")
                )
    if cycles <= max(warmup, netlist.depth):
        raise InputError(
            f"the stream has {cycles} cycles, too few for {netlist.top}, whose pipeline is full "
            f"after {netlist.depth}, behind a warm-up of {warmup}; give a longer stream"
        )
    return cycles, lanes


# ------------------------------------------------------------------ reference: plain Python


def simulate_reference(
    netlist: Netlist, inputs: Mapping[str, np.ndarray], *, warmup: int = 1
) -> tuple[list[int], dict[str, list[list[int]]]]:
    """`simulate` in plain Python: toggles of each net over all lanes, and every output's values.

    A net's value is one integer, a bit a lane; cells are evaluated by their Liberty functions.
    """
    cycles, lanes = _shape(netlist, inputs, warmup)
    ones = (1 << lanes) - 1
    values = [0] * len(netlist.nets)
    values[ONE] = ones
    toggles = [0] * len(netlist.nets)
    state = {flip.name: 0 for flip in netlist.flip_flops}
    outputs: dict[str, list[list[int]]] = {port: [] for port in netlist.outputs}

    def set_and_cleared(cell: Cell, held: int, pins: Mapping[str, int]) -> int:
        assert cell.ff is not None
        if cell.ff.preset:
            held |= read_function(cell.ff.preset, cell.pins).value(pins, ones)
        if cell.ff.clear:
            held &= ~read_function(cell.ff.clear, cell.pins).value(pins, ones)
        return held

    def change(net: int, value: int, counts: bool) -> None:
        if counts:
            toggles[net] += (values[net] ^ value).bit_count()
        values[net] = value

    for cycle in range(cycles):
        counts = cycle >= warmup
        for port, nets in netlist.inputs.items():
            if port in inputs:
                row = inputs[port][cycle].tolist()
                if inputs[port].ndim == 3:
                    row = [sum(bit << i for i, bit in enumerate(bits)) for bits in row]
                row *= lanes // len(row)
                for bit, net in enumerate(nets):
                    value = sum((word >> bit & 1) << lane for lane, word in enumerate(row))
                    change(net, value, counts)
        for instance in netlist.instances:
            cell = instance.cell
            pins = {pin: values[net] for pin, net in instance.inputs}
            if cell.ff is not None:
                held = set_and_cleared(cell, state[instance.name], pins)
                state[instance.name] = held
                pins |= {cell.ff.state[0]: held, cell.ff.state[1]: held ^ ones}
            for pin, net in instance.outputs:
                change(net, cell_function(cell, pin).value(pins, ones), counts)
        for flip in netlist.flip_flops:
            assert flip.cell.ff is not None
            held = state[flip.name]
            pins = {pin: values[net] for pin, net in flip.inputs}
            pins |= {flip.cell.ff.state[0]: held, flip.cell.ff.state[1]: held ^ ones}
            known = [*flip.cell.pins, *flip.cell.ff.state]
            following = read_function(flip.cell.ff.next_state, known).value(pins, ones)
            state[flip.name] = set_and_cleared(flip.cell, following, pins)
        for port, nets in netlist.outputs.items():
            outputs[port].append(
                [
                    sum((values[net] >> lane & 1) << bit for bit, net in enumerate(nets))
                    for lane in range(lanes)
                ]
            )
    return toggles, outputs


# ------------------------------------------------------------------ cells as two-input operations


@dataclass(frozen=True)
class _Program:
    """A netlist as AND and XOR of two values each, in order."""

    #: int32 [operations, 6]: XOR (else AND), a, whether a is inverted, b, the same, destination;
    #: the result is inverted if bit 1 of the first field is set.
    ops: np.ndarray
    states: np.ndarray  #: int32 [flip-flops, 2]: value that holds the state, value of the next one
    values: int  #: nets, states and what lies between


class _Assembler:
    """Turns expressions into operations; a value is its number and whether it is inverted."""

    def __init__(self, nets: int) -> None:
        self.values = nets
        self.ops: list[tuple[int, int, int, int, int, int]] = []

    def new(self) -> int:
        self.values += 1
        return self.values - 1

    def emit(
        self,
        xor: bool,
        a: tuple[int, bool],
        b: tuple[int, bool],
        inverted: bool,
        to: int | None,
    ) -> int:
        to = self.new() if to is None else to
        self.ops.append((xor | inverted << 1, a[0], a[1], b[0], b[1], to))
        return to

    def value(self, tree: Expression, names: Mapping[str, tuple[int, bool]]) -> tuple[int, bool]:
        """Where the expression's value is."""
        if tree.op == "name":
            return names[tree.text]
        if tree.op == "constant":
            return (ONE if tree.text == "1" else ZERO), False
        first, *rest = (self.value(part, names) for part in tree.parts)
        if tree.op == "~":
            return first[0], not first[1]
        for other in rest:
            if tree.op == "^":
                flip = first[1] ^ other[1]
                first = self.emit(True, (first[0], False), (other[0], False), False, None), flip
            elif tree.op == "&":
                first = self.emit(False, first, other, False, None), False
            else:  # a | b = ~(~a & ~b)
                inverse = (first[0], not first[1]), (other[0], not other[1])
                first = self.emit(False, *inverse, False, None), True
        return first

    def assign(self, tree: Expression, names: Mapping[str, tuple[int, bool]], to: int) -> None:
        """The expression's value at a number of one's own."""
        before = len(self.ops)
        number, inverted = self.value(tree, names)
        if len(self.ops) > before and self.ops[-1][5] == number:
            # The last operation can write there itself.
            kind, *operands, _ = self.ops[-1]
            self.ops[-1] = (kind ^ inverted << 1, *operands, to)  # type: ignore[assignment]
        else:
            self.emit(False, (number, False), (number, False), inverted, to)


@lru_cache(maxsize=64)
def _program(netlist: Netlist) -> _Program:
    assembler = _Assembler(len(netlist.nets))
    held = {flip.name: assembler.new() for flip in netlist.flip_flops}
    now: dict[str, int] = {}  # the state, set and cleared

    def names(instance: Instance) -> dict[str, tuple[int, bool]]:
        found = {pin: (net, False) for pin, net in instance.inputs}
        if instance.cell.ff is not None:
            state = now[instance.name]
            found |= dict(zip(instance.cell.ff.state, ((state, False), (state, True)), strict=True))
        return found

    def set_and_cleared(instance: Instance, state: int) -> int:
        """The state under preset and clear, which hold it at the clock's edge, too."""
        cell = instance.cell
        assert cell.ff is not None
        pins = {pin: (net, False) for pin, net in instance.inputs}
        for condition, sets in ((cell.ff.preset, True), (cell.ff.clear, False)):
            if condition:
                number, inverted = assembler.value(read_function(condition, cell.pins), pins)
                # state | c = ~(~state & ~c); state & ~c
                state = assembler.emit(False, (state, sets), (number, not inverted), sets, None)
        return state

    for instance in netlist.instances:
        cell = instance.cell
        if cell.ff is not None:
            now[instance.name] = set_and_cleared(instance, held[instance.name])
        for pin, net in instance.outputs:
            assembler.assign(cell_function(cell, pin), names(instance), net)
    following = []
    for flip in netlist.flip_flops:
        assert flip.cell.ff is not None
        known = [*flip.cell.pins, *flip.cell.ff.state]
        to = assembler.new()
        assembler.assign(read_function(flip.cell.ff.next_state, known), names(flip), to)
        following.append((held[flip.name], set_and_cleared(flip, to)))
    return _Program(
        np.array(assembler.ops, np.int32).reshape(-1, 6),
        np.array(following, np.int32).reshape(-1, 2),
        assembler.values,
    )


# ------------------------------------------------------------------ the fast simulation


@intrinsic
def _ones(typing_context: Any, word: Any) -> Any:
    """Bits set in a word."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        count = builder.module.declare_intrinsic("llvm.ctpop", [ir.IntType(64)])
        return builder.call(count, [args[0]])

    return types.uint64(types.uint64), generate


@njit(cache=True, parallel=True)
def _run(packed, driven, ops, states, values, nets, shown, counted, warmup):  # type: ignore[no-untyped-def]
    """Blocks of words are independent of each other, and so are their lanes.

    packed: uint64 [blocks, cycles, nets of the ports, words]. Returns toggles, int64 [blocks, nets,
    words], and the shown nets, uint64 [blocks, cycles, shown, words].
    """
    blocks, cycles = packed.shape[0], packed.shape[1]
    toggles = np.zeros((blocks, nets, _BLOCK), np.int64)
    seen = np.zeros((blocks, cycles, len(shown), _BLOCK), np.uint64)
    full = np.uint64(0xFFFFFFFFFFFFFFFF)
    none = np.uint64(0)
    for block in prange(blocks):
        value = np.zeros((values, _BLOCK), np.uint64)
        value[1, :] = full
        count = toggles[block]
        for cycle in range(cycles):
            counting = cycle >= warmup
            for i in range(len(driven)):
                net = driven[i]
                for w in range(_BLOCK):
                    new = packed[block, cycle, i, w]
                    if counting:
                        count[net, w] += np.int64(_ones((new ^ value[net, w]) & counted[block, w]))
                    value[net, w] = new
            for i in range(ops.shape[0]):
                kind, a, b, to = ops[i, 0], ops[i, 1], ops[i, 3], ops[i, 5]
                flip_a = full if ops[i, 2] else none
                flip_b = full if ops[i, 4] else none
                flip = full if kind & 2 else none
                if to < nets and counting:
                    if kind & 1:
                        for w in range(_BLOCK):
                            new = value[a, w] ^ value[b, w] ^ flip
                            count[to, w] += np.int64(
                                _ones((new ^ value[to, w]) & counted[block, w])
                            )
                            value[to, w] = new
                    else:
                        for w in range(_BLOCK):
                            new = ((value[a, w] ^ flip_a) & (value[b, w] ^ flip_b)) ^ flip
                            count[to, w] += np.int64(
                                _ones((new ^ value[to, w]) & counted[block, w])
                            )
                            value[to, w] = new
                elif kind & 1:
                    for w in range(_BLOCK):
                        value[to, w] = value[a, w] ^ value[b, w] ^ flip
                else:
                    for w in range(_BLOCK):
                        value[to, w] = ((value[a, w] ^ flip_a) & (value[b, w] ^ flip_b)) ^ flip
            for i in range(len(shown)):
                for w in range(_BLOCK):
                    seen[block, cycle, i, w] = value[shown[i], w]
            for i in range(states.shape[0]):
                for w in range(_BLOCK):
                    value[states[i, 0], w] = value[states[i, 1], w]
    return toggles, seen


@njit(cache=True, parallel=True)
def _run_unit_delay(  # type: ignore[no-untyped-def]
    packed, driven, ops, states, values, nets, shown, counted, warmup
):
    """As `_run`, step by step in time: every cell sees the nets of the step before."""
    blocks, cycles = packed.shape[0], packed.shape[1]
    toggles = np.zeros((blocks, nets, _BLOCK), np.int64)
    seen = np.zeros((blocks, cycles, len(shown), _BLOCK), np.uint64)
    full = np.uint64(0xFFFFFFFFFFFFFFFF)
    none = np.uint64(0)
    for block in prange(blocks):
        value = np.zeros((values, _BLOCK), np.uint64)
        value[1, :] = full
        before = value[:nets].copy()
        count = toggles[block]
        for cycle in range(cycles):
            counting = cycle >= warmup
            # Inputs come from registers like those inside: both change one step after the edge.
            for i in range(len(driven)):
                for w in range(_BLOCK):
                    value[driven[i], w] = packed[block, cycle, i, w]
            moving = True
            while moving:
                for i in range(ops.shape[0]):
                    kind, a, b, to = ops[i, 0], ops[i, 1], ops[i, 3], ops[i, 5]
                    flip_a = full if ops[i, 2] else none
                    flip_b = full if ops[i, 4] else none
                    flip = full if kind & 2 else none
                    for w in range(_BLOCK):
                        x = before[a, w] if a < nets else value[a, w]
                        y = before[b, w] if b < nets else value[b, w]
                        if kind & 1:
                            value[to, w] = x ^ y ^ flip
                        else:
                            value[to, w] = ((x ^ flip_a) & (y ^ flip_b)) ^ flip
                moving = False
                for net in range(nets):
                    for w in range(_BLOCK):
                        changed = value[net, w] ^ before[net, w]
                        if changed:
                            moving = True
                            before[net, w] = value[net, w]
                            if counting:
                                count[net, w] += np.int64(_ones(changed & counted[block, w]))
            for i in range(len(shown)):
                for w in range(_BLOCK):
                    seen[block, cycle, i, w] = value[shown[i], w]
            for i in range(states.shape[0]):
                for w in range(_BLOCK):
                    value[states[i, 0], w] = value[states[i, 1], w]
    return toggles, seen


# ------------------------------------------------------------------ lanes and words


def _pack_port(values: np.ndarray, out: np.ndarray, lanes: int) -> None:
    """Streams [cycles, lanes] (or bits [cycles, lanes, bits]) into uint64 [cycles, words, bits]."""
    if values.shape[1] == 1 and lanes > 1:
        values = np.broadcast_to(values, (len(values), lanes, *values.shape[2:]))
    if values.ndim == 3:
        _pack_bits(np.ascontiguousarray(values, np.uint8), out)
    else:
        _pack_words(np.ascontiguousarray(values, np.uint64), out)


@njit(cache=True)
def _transpose(square):  # type: ignore[no-untyped-def]
    """Bit j of word i and bit i of word j change places; uint64 [64] (Warren, Hacker's Delight)."""
    half, mask = 32, np.uint64(0x00000000FFFFFFFF)
    while half:
        shift = np.uint64(half)
        for k in range(64):
            if not k & half:
                moved = ((square[k] >> shift) ^ square[k + half]) & mask
                square[k] ^= moved << shift
                square[k + half] ^= moved
        half >>= 1
        mask ^= mask << np.uint64(half)


@njit(cache=True)
def _pack_words(values, out):  # type: ignore[no-untyped-def]
    square = np.empty(64, np.uint64)
    lanes = values.shape[1]
    for cycle in range(values.shape[0]):
        for word in range((lanes + 63) >> 6):
            for i in range(64):
                lane = 64 * word + i
                square[i] = values[cycle, lane] if lane < lanes else np.uint64(0)
            _transpose(square)
            for bit in range(out.shape[2]):
                out[cycle, word, bit] = square[bit]


@njit(cache=True)
def _pack_bits(values, out):  # type: ignore[no-untyped-def]
    for cycle in range(values.shape[0]):
        for lane in range(values.shape[1]):
            word, place = lane >> 6, np.uint64(lane & 63)
            for bit in range(out.shape[2]):
                out[cycle, word, bit] |= np.uint64(values[cycle, lane, bit]) << place


@njit(cache=True)
def _unpack(seen, lanes):  # type: ignore[no-untyped-def]
    """Words [blocks, cycles, bits, words] as unsigned integers [cycles, lanes]."""
    words = seen.shape[3]
    square = np.empty(64, np.uint64)
    out = np.zeros((seen.shape[1], lanes), np.uint64)
    for cycle in range(seen.shape[1]):
        for word in range((lanes + 63) >> 6):
            square[:] = 0
            for bit in range(seen.shape[2]):
                square[bit] = seen[word // words, cycle, bit, word % words]
            _transpose(square)
            for i in range(min(64, lanes - 64 * word)):
                out[cycle, 64 * word + i] = square[i]
    return out
