"""Deliberate faults in a design's logic, all in one block, to try out its verification.

A `Mutant` is one place of a design, broken in one way. `mutated` builds a design with many of them
at once (mutant schemata): each place gets a multiplexer between what is right and what is wrong,
and the new input `mutant` says which place is broken; 0 leaves the design as it is. One simulator
then serves all mutants of a design.

Places are nets of the PyRTL block, or its registers where they are read. Kinds of faults are
functions in `_NET_FAULTS` and `_REGISTER_FAULTS`: given a place they yield what becomes what, and
the wrong value. Some places are left alone, whatever becomes of the others:

- a register is bypassed only where no path leads from it back to itself, since a loop of
  combinational logic would be no circuit;
- of a constant only the highest and the lowest bit are flipped, so that padding does not crowd out
  the rest;
- neighbouring parts of a word do not change places if both come from AND, both from OR or both from
  XOR gates: they may be bits of one sum, such as a popcount's, whose order is no fault, and no SAT
  solver proves that of a large sum.
"""

import re
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyrtl
from pyrtl import Block, Const, Input, LogicNet, Output, Register, WireVector, select

#: The input that chooses the broken place.
PORT = "mutant"

_Faults = Iterator[tuple[str, Callable[[], WireVector]]]


@dataclass(frozen=True)
class Mutant:
    """One place of a design, broken in one way."""

    number: int  #: index among the design's `mutants`
    kind: str  #: a key of KINDS
    place: str  #: the register or output that the place's logic leads to first
    distance: int  #: nets from the place to that register or output
    what: str  #: what becomes what


@dataclass(frozen=True)
class _Site:
    mutant: Mutant
    wire: WireVector  #: result of the broken net, or the register whose readers are deceived
    wrong: Callable[[], WireVector]  #: adds the wrong value to the working block


# ------------------------------------------------------------------ which, and in which order


def mutants(block: Block) -> list[Mutant]:
    """Every mutant of a design, numbered alike in each build of it."""
    return [site.mutant for site in _sites(block)]


def mutant_order(candidates: Sequence[Mutant], seed: int) -> list[Mutant]:
    """The candidates in the order in which a check takes them, the same for the same seed.

    Kinds take turns, and each takes its next mutant from the place that was used least so far. What
    that leaves open is random.
    """
    waiting: dict[str, dict[str, list[Mutant]]] = {kind: {} for kind in KINDS}
    for index in np.random.default_rng(seed).permutation(len(candidates)).tolist():
        mutant = candidates[index]
        waiting[mutant.kind].setdefault(mutant.place, []).append(mutant)
    used: Counter[str] = Counter()
    order: list[Mutant] = []
    while len(order) < len(candidates):
        for places in waiting.values():
            if not places:
                continue
            place = min(places, key=lambda name: used[name])
            order.append(places[place].pop())
            used[place] += 1
            if not places[place]:
                del places[place]
    return order


# ------------------------------------------------------------------ the block with all of them


def port_bits(count: int) -> int:
    """Width of the input `mutant` for so many mutants."""
    return max(count.bit_length(), 1)


def mutated(block: Block, chosen: Sequence[Mutant]) -> Block:
    """The block, changed in place: while `mutant` is i its mutant `chosen[i - 1]` is alive.

    Args:
        block: A new block of the design that the mutants are from.
        chosen: Some of the design's mutants.
    """
    sites = _sites(block)
    by_wire: dict[WireVector, list[tuple[int, _Site]]] = defaultdict(list)
    for value, mutant in enumerate(chosen, start=1):
        site = sites[mutant.number]
        assert site.mutant == mutant, f"not a mutant of this design: {mutant}"
        by_wire[site.wire].append((value, site))

    with pyrtl.set_working_block(block, no_sanity_check=True):
        port = Input(port_bits(len(chosen)), PORT)
        # Nets read what takes a register's place; wrong values read the register, which is the same
        # thing while another mutant is alive.
        shown = {wire: WireVector(len(wire)) for wire in by_wire if isinstance(wire, Register)}
        for net in [net for net in block.logic if any(arg in shown for arg in net.args)]:
            block.logic.remove(net)
            block.add_net(net._replace(args=tuple(shown.get(arg, arg) for arg in net.args)))
        drivers = {net.dests[0]: net for net in block.logic}
        for wire, broken in by_wire.items():
            right = wire
            if wire not in shown:
                right = WireVector(len(wire))
                block.logic.remove(drivers[wire])
                block.add_net(drivers[wire]._replace(dests=(right,)))
            for value, site in broken:
                right = select(port == value, _fitted(site.wrong(), len(wire)), right)
            block.add_net(LogicNet("w", None, (right,), (shown.get(wire, wire),)))
    return block


def _fitted(wire: WireVector, bits: int) -> WireVector:
    return wire[:bits] if len(wire) > bits else wire.zero_extended(bits)


# ------------------------------------------------------------------ places


class _View:
    """A block's connections, in an order that does not depend on addresses in memory."""

    def __init__(self, block: Block) -> None:
        # Temporary wires are numbered as they are made; the numbers differ, their order does not.
        self.nets = sorted(block.logic, key=lambda net: _natural(net.dests[0].name))
        self.driver: Mapping[WireVector, LogicNet] = {net.dests[0]: net for net in self.nets}
        self.registers = [net for net in self.nets if net.op == "r"]
        self._pipeline = self._without_feedback()

    def leads_to(self) -> dict[WireVector, tuple[str, int]]:
        """Wire -> the nearest register or output that it leads to, and the nets between."""
        found: dict[WireVector, tuple[str, int]] = {}
        queue: deque[tuple[LogicNet, str, int]] = deque()
        for net in self.nets:
            if net.op == "r" or isinstance(net.dests[0], Output):
                found[net.dests[0]] = net.dests[0].name, 0
                queue.append((net, net.dests[0].name, 1))
        while queue:
            net, name, distance = queue.popleft()
            for wire in net.args:
                if wire in found or wire not in self.driver:
                    continue
                found[wire] = name, distance
                queue.append((self.driver[wire], name, distance + 1))
        return found

    def cone(self, wire: WireVector) -> set[WireVector]:
        """The inputs, registers and constants that a wire depends on within a cycle."""
        leaves, seen, stack = set(), {wire}, [wire]
        while stack:
            at = stack.pop()
            net = self.driver.get(at)
            if net is None or net.op == "r":
                leaves.add(at)
                continue
            new = [arg for arg in net.args if arg not in seen]
            seen.update(new)
            stack += new
        return leaves

    def is_pipeline(self, register: WireVector) -> bool:
        """Whether no path leads from the register back to itself."""
        return register in self._pipeline

    def is_reset(self, wire: WireVector) -> bool:
        """Whether a wire is `rst`, inverted or copied, and nothing else."""
        return all(isinstance(leaf, Input) and leaf.name == "rst" for leaf in self.cone(wire))

    def plain(self, wire: WireVector) -> WireVector:
        """The wire itself, seen through nets that only rename it."""
        while wire in self.driver:
            net = self.driver[wire]
            whole = net.op == "s" and net.op_param == tuple(range(len(net.args[0])))
            if net.op != "w" and not whole:
                break
            wire = net.args[0]
        return wire

    def alike(self, a: WireVector, b: WireVector) -> bool:
        """Whether two wires are the same, equal constants, or results of like gates."""
        if isinstance(a, Const) and isinstance(b, Const):
            return a.val == b.val
        gates = {self.driver[wire].op for wire in (a, b) if wire in self.driver}
        return a is b or (len(gates) == 1 and gates <= set("&|^"))

    def _without_feedback(self) -> set[WireVector]:
        reads = {
            net.dests[0]: {w for w in self.cone(net.args[0]) if isinstance(w, Register)}
            for net in self.registers
        }
        behind: set[WireVector] = set()
        while True:
            more = {reg for reg, sources in reads.items() if reg not in behind}
            ready = {reg for reg in more if reads[reg] <= behind}
            if not ready:
                break
            behind |= ready
        # What is left lies on a loop or behind one; only those that reach themselves are on it.
        for reg in set(reads) - behind:
            seen: set[WireVector] = set()
            stack = list(reads[reg])
            while stack:
                at = stack.pop()
                if at not in seen:
                    seen.add(at)
                    stack += reads[at]
            if reg not in seen:
                behind.add(reg)
        return behind


def _natural(name: str) -> tuple[str, int]:
    """Sorts tmp9 before tmp10."""
    match = re.fullmatch(r"(.*?)(\d*)", name)
    assert match is not None
    return match[1], int(match[2] or -1)


def _sites(block: Block) -> list[_Site]:
    view = _View(block)
    sites: list[_Site] = []
    leads_to = view.leads_to()
    for net in view.nets:
        wire = net.dests[0]
        if wire not in leads_to:  # read by nobody
            continue
        faults = _REGISTER_FAULTS if net.op == "r" else _NET_FAULTS
        for kind, fault in faults.items():
            for what, wrong in fault(net, view):
                mutant = Mutant(len(sites), kind, *leads_to[wire], what)
                sites.append(_Site(mutant, wire, wrong))
    return sites


# ------------------------------------------------------------------ kinds of faults in a net


def _operands_swapped(net: LogicNet, view: _View) -> _Faults:
    if net.op in ("-", ">", "<"):
        a, b = net.args
        yield f"a {net.op} b becomes b {net.op} a", lambda: _again(net, (b, a))


def _select_swapped(net: LogicNet, view: _View) -> _Faults:
    if net.op == "x":
        condition, false, true = net.args
        yield "the arms of a select change places", lambda: select(condition, false, true)


def _slice_moved(net: LogicNet, view: _View) -> _Faults:
    if net.op != "s":
        return
    wire, bits = net.args[0], net.op_param
    low, high = bits[0], bits[-1]
    if bits != tuple(range(low, high + 1)):
        return
    name = f"[{high}:{low}] of {len(wire)} bits"
    if high + 1 < len(wire):
        yield f"{name} becomes [{high + 1}:{low + 1}]", lambda: wire[low + 1 : high + 2]
    if low > 0:
        yield f"{name} becomes [{high - 1}:{low - 1}]", lambda: wire[low - 1 : high]


def _or_input_dropped(net: LogicNet, view: _View) -> _Faults:
    yield from _dropped(net, "|", "a | b")


def _and_input_dropped(net: LogicNet, view: _View) -> _Faults:
    if not any(view.is_reset(arg) for arg in net.args):
        yield from _dropped(net, "&", "a & b")


def _xor_input_dropped(net: LogicNet, view: _View) -> _Faults:
    yield from _dropped(net, "^", "a ^ b")


def _dropped(net: LogicNet, op: str, name: str) -> _Faults:
    if net.op == op:
        a, b = net.args
        yield f"{name} becomes a", _wire(a)
        yield f"{name} becomes b", _wire(b)


def _other_gate(net: LogicNet, view: _View) -> _Faults:
    other = {"&": "|", "|": "&", "^": "|"}.get(net.op)
    if other:
        yield f"a {net.op} b becomes a {other} b", lambda: _again(net._replace(op=other), net.args)


def _inverter_removed(net: LogicNet, view: _View) -> _Faults:
    if net.op == "~":
        yield "~a becomes a", _wire(net.args[0])


def _other_sign(net: LogicNet, view: _View) -> _Faults:
    other = {"+": "-", "-": "+"}.get(net.op)
    if other:
        yield f"a {net.op} b becomes a {other} b", lambda: _again(net._replace(op=other), net.args)


def _carry_dropped(net: LogicNet, view: _View) -> _Faults:
    if net.op != "+":
        return
    for carry, other in (net.args, net.args[::-1]):
        source = view.driver.get(carry)
        padded = (
            source is not None
            and source.op == "c"
            and len(source.args[-1]) == 1
            and all(isinstance(arg, Const) and arg.val == 0 for arg in source.args[:-1])
        )
        if len(carry) == 1 or padded:
            yield "the carry into an adder is dropped", _wire(other)


def _comparison_bound(net: LogicNet, view: _View) -> _Faults:
    if net.op in (">", "<"):
        a, b = net.args
        yield f"a {net.op} b becomes a {net.op}= b", lambda: _again(net, (a, b)) | (a == b)


def _constant_flipped(net: LogicNet, view: _View) -> _Faults:
    for position, arg in enumerate(net.args):
        if not isinstance(arg, Const):
            continue
        for bit in sorted({0, len(arg) - 1}):
            wrong = arg.val ^ 1 << bit
            text = f"the constant {arg.val} of {len(arg)} bits becomes {wrong}"
            yield text, partial(_with_constant, net, position, wrong)


def _with_constant(net: LogicNet, position: int, value: int) -> WireVector:
    args = list(net.args)
    args[position] = Const(value, len(args[position]))
    return _again(net, args)


def _zero_extended(net: LogicNet, view: _View) -> _Faults:
    """A sign extension: copies of the top bit of what stands behind them."""
    if net.op != "c":
        return
    *copies, value = net.args
    if not copies or len(value) == 1 or any(copy is not copies[0] for copy in copies):
        return
    source = view.driver.get(copies[0])
    if source is None or source.op != "s" or source.args[0] is not value:
        return
    if source.op_param == (len(value) - 1,):
        bits = len(net.dests[0])
        text = f"the sign extension of {len(value)} to {bits} bits becomes zeros"
        yield text, lambda: value.zero_extended(bits)


def _parts_swapped(net: LogicNet, view: _View) -> _Faults:
    if net.op != "c":
        return
    for i, pair in enumerate(zip(net.args, net.args[1:], strict=False)):
        a, b = (view.plain(wire) for wire in pair)
        if len(a) == len(b) and not view.alike(a, b):
            args = [*net.args[:i], b, a, *net.args[i + 2 :]]
            text = f"parts {i} and {i + 1} of {len(net.args)} of a word change places"
            yield text, partial(_again, net, args)


def _reset_missing(net: LogicNet, view: _View) -> _Faults:
    if net.op == "&":
        for arg, other in (net.args, net.args[::-1]):
            if view.is_reset(arg) and not view.is_reset(other):
                yield "rst no longer clears it", _wire(other)


def _hold_ignored(net: LogicNet, view: _View) -> _Faults:
    """A select whose one arm is the register that it ends in, perhaps behind a reset."""
    if net.op != "x":
        return
    condition, false, true = net.args
    for arm, other in ((false, true), (true, false)):
        arm = view.plain(arm)
        if not isinstance(arm, Register):
            continue
        stack = [view.driver[arm].args[0]]
        while stack:
            wire = stack.pop()
            source = view.driver.get(wire)
            if source is net:
                yield f"{arm.name} no longer keeps its value", _wire(other)
                break
            if source is not None and source.op in "w&x":
                stack += source.args


def _wire(wire: WireVector) -> Callable[[], WireVector]:
    return lambda: wire


def _again(net: LogicNet, args: Sequence[WireVector]) -> WireVector:
    """The net's operation on other wires."""
    result = WireVector(len(net.dests[0]))
    pyrtl.working_block().add_net(net._replace(args=tuple(args), dests=(result,)))
    return result


# ------------------------------------------------------------------ kinds of faults in a register


def _bypassed(net: LogicNet, view: _View) -> _Faults:
    if view.is_pipeline(net.dests[0]):
        yield "a register is bypassed", _wire(net.args[0])


def _delayed(net: LogicNet, view: _View) -> _Faults:
    def build() -> WireVector:
        late = Register(len(net.dests[0]), f"{net.dests[0].name}_late")
        late.next <<= net.dests[0]
        return late

    yield "a register comes a cycle late", build


_NET_FAULTS: Mapping[str, Callable[[LogicNet, _View], _Faults]] = {
    "operands swapped": _operands_swapped,
    "select arms swapped": _select_swapped,
    "slice off by one": _slice_moved,
    "OR input dropped": _or_input_dropped,
    "AND input dropped": _and_input_dropped,
    "XOR input dropped": _xor_input_dropped,
    "other gate": _other_gate,
    "inverter removed": _inverter_removed,
    "add and subtract exchanged": _other_sign,
    "carry dropped": _carry_dropped,
    "comparison off by one": _comparison_bound,
    "constant bit flipped": _constant_flipped,
    "sign extension dropped": _zero_extended,
    "parts swapped": _parts_swapped,
    "reset missing": _reset_missing,
    "hold ignored": _hold_ignored,
}
_REGISTER_FAULTS: Mapping[str, Callable[[LogicNet, _View], _Faults]] = {
    "register bypassed": _bypassed,
    "register delayed": _delayed,
}

#: Every kind of fault, in the order in which `mutant_order` takes turns.
KINDS = (*_NET_FAULTS, *_REGISTER_FAULTS)
