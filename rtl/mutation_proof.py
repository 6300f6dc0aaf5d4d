"""Proof that a mutant is no fault: no input, after a reset, makes it differ in what is observed.

Observed is what the benches compare: `y_valid`, `y` while `y_valid` is high, `ready` while `valid`
is. The design gets a twin of the logic behind the mutant's place, and ABC proves by SAT that the
output `differs` stays 0. It rises if the two sides

- differ in what is observed, or
- would write different values to a register that they share, or
- differ in a wire where the twin logic ends and the shared logic goes on.

The last two only make the proof easier to find, and they are sound: as long as nothing has
differed, sharing is right. A register is shared unless it is in a chosen set.

The first proof shares all registers and lets them hold anything, so it is about one clock cycle
(registers as cut points). If it fails, the difference may be in states that never occur or in
values that nobody looks at. Then registers are real: anything at the start, the same on both sides,
then a cycle of reset, then any inputs. With nothing shared, bounded model checking looks for a
difference; if there is none, property-directed reachability searches for an inductive invariant,
with more and more registers not shared and more and more logic doubled. Inputs may be anything,
also patterns that a PE is never shown, so a difference that was found may be one of those.
"""

import re
from collections import deque
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import pyrtl
from pyrtl import Block, Const, Input, Output, Register, WireVector, select

from .mutation import PORT, Mutant, mutated
from .pe import Design
from .pe.logic import to_verilog
from .yosys import run_yosys

#: Register levels behind the place whose registers are not shared, tried in turn.
_LEVELS = 4

#: Clock cycles in which a difference is looked for.
_LONGEST = 40

#: Nets behind the place, and behind registers that are not shared, up to which logic is doubled.
_DEPTHS = (6, 12, 1_000_000)

_SCRIPT = """\
read_verilog miter.v
hierarchy -top miter
proc
flatten
opt -full
setundef -init -zero
techmap
opt -full
dffunmap
aigmap
opt_clean
write_aiger miter.aig
exec -- {abc} -f abc.script
"""


class Verdict(NamedTuple):
    """What is known about a mutant that no vector caught."""

    unobservable: bool  #: proved
    note: str  #: how it was proved, that some input shows it, or that neither was found


def judge(design: Design, mutant: Mutant, timeout_s: float = 10) -> Verdict:
    """Whether some input shows the mutant.

    Args:
        design: The design.
        mutant: One of `mutants(design.block())`.
        timeout_s: For each of the proofs that are tried, up to about ten.

    Raises:
        InputError: pyosys is missing.
        RuntimeError: Yosys fails.
    """
    if "UNSATISFIABLE" in _abc(_one_cycle(design, mutant), "iprove", timeout_s):
        return Verdict(True, "proved in one cycle")
    *some, everything = _own_registers(design, mutant)
    # With nothing shared a difference is a real one.
    search = f"scorr; bmc3 -F {_LONGEST} -T {max(timeout_s / 2, 1):.0f}"
    log = _abc(_from_reset(design, mutant, everything, _DEPTHS[-1]), search, timeout_s)
    found = re.search(r"asserted in frame (\d+)", log)
    if found:
        return Verdict(False, f"some input shows it {int(found[1]) - 1} cycles after a reset")
    for own in some:
        for depth in _DEPTHS:
            log = _abc(
                _from_reset(design, mutant, own, depth),
                f"scorr; pdr -T {timeout_s:.0f}",
                timeout_s,
            )
            if "Property proved" in log:
                return Verdict(True, "proved by induction from reset")
    return Verdict(False, f"neither proved nor refuted in {timeout_s:g} s a proof")


def _abc(miter: str, commands: str, timeout_s: float) -> str:
    """What ABC says; nothing if it takes much longer than it may."""
    package = find_spec("pyosys")
    folder = Path(package.origin).parent if package is not None and package.origin else Path()
    script = _SCRIPT.format(abc=folder / "yosys-abc")
    inputs = {"miter.v": miter, "abc.script": f"read_aiger miter.aig; {commands}\n"}
    try:
        return run_yosys(script, inputs, [], timeout_s=timeout_s + 30)[0]
    except RuntimeError as error:
        if "took longer" in str(error):
            return ""
        raise


# ------------------------------------------------------------------ miters


def _one_cycle(design: Design, mutant: Mutant) -> str:
    """Verilog of the miter in which registers are inputs."""
    block = mutated(design.block(), [mutant])
    with pyrtl.set_working_block(block, no_sanity_check=True):
        observed, shared = _doubled(block, _observed(block), set(), _DEPTHS[-1])
        state = {}
        for net in [net for net in block.logic if net.op == "r"]:
            wire = net.dests[0]
            block.logic.remove(net)
            state[wire] = Input(len(wire), f"{wire.name}__now")
        _rewire(block, {**state, block.get_wirevector_by_name(PORT): Const(0, 1)})
        for wire in state:
            block.remove_wirevector(wire)
        return _finished(block, observed | shared)


def _from_reset(design: Design, mutant: Mutant, own: set[str], depth: int) -> str:
    """Verilog of the miter with registers, of which those in `own` are not shared."""
    block = mutated(design.block(), [mutant])
    with pyrtl.set_working_block(block, no_sanity_check=True):
        observed, shared = _doubled(block, _observed(block), own, depth)
        started, cleared = Register(1, "started__"), Register(1, "cleared__")
        for net in [net for net in block.logic if net.op == "r"]:
            wire = net.dests[0]
            name = f"{wire.name.removesuffix(_WRONG)}__free"
            free = block.wirevector_by_name.get(name)
            free = Input(len(wire), name) if free is None else free
            block.logic.remove(net)
            block.add_net(net._replace(args=(select(started, net.args[0], free),)))
        rst = block.get_wirevector_by_name("rst")
        reset = WireVector(1)
        _rewire(block, {rst: reset, block.get_wirevector_by_name(PORT): Const(0, 1)})
        reset <<= rst | ~cleared
        started.next <<= Const(1, 1)
        cleared.next <<= started
        return _finished(block, (observed & cleared) | (shared & started))


_WRONG = "__wrong"


def _doubled(
    block: Block, observed: Sequence[WireVector], own: set[str], depth: int
) -> tuple[WireVector, WireVector]:
    """Adds the twin logic; whether observed wires differ, and whether anything shared would."""
    readers: dict[WireVector, list[pyrtl.LogicNet]] = {}
    for net in block.logic:
        for arg in dict.fromkeys(net.args):
            readers.setdefault(arg, []).append(net)
    twin: dict[WireVector, WireVector] = {block.get_wirevector_by_name(PORT): Const(1, 1)}
    for name in sorted(own):
        wire = block.get_wirevector_by_name(name)
        twin[wire] = Register(len(wire), name + _WRONG)
    distance = dict.fromkeys(twin, 0)
    queue, doubled, pairs = deque(twin), [], {}
    seen: set[pyrtl.LogicNet] = set()
    while queue:
        wire = queue.popleft()
        for net in readers.get(wire, ()):
            dest = net.dests[0]
            if net.op == "r" and dest in twin:
                doubled.append(net)
            elif net.op == "r" or distance[wire] >= depth:
                pairs[wire] = twin[wire]
            elif net not in seen:
                seen.add(net)
                doubled.append(net)
                distance[dest] = distance[wire] + 1
                twin[dest] = WireVector(len(dest))
                queue.append(dest)
    for net in doubled:
        args = tuple(twin.get(arg, arg) for arg in net.args)
        block.add_net(net._replace(args=args, dests=(twin[net.dests[0]],)))
    stepped = {net.dests[0].name for net in doubled}
    for net in [net for net in block.logic if net.op == "r" and net.dests[0].name in own - stepped]:
        block.add_net(net._replace(dests=(twin[net.dests[0]],)))  # the twin logic ends before it
    seen_pairs = {wire: twin[wire] for wire in observed if wire in twin}
    return _any_differs(seen_pairs), _any_differs(pairs)


def _any_differs(pairs: Mapping[WireVector, WireVector]) -> WireVector:
    result: WireVector = Const(0, 1)
    for right, wrong in pairs.items():
        result = result | (right != wrong)
    return result


def _finished(block: Block, differs: WireVector) -> str:
    out = Output(1, "differs")
    out <<= differs
    return to_verilog(block, "miter")


def _rewire(block: Block, moved: Mapping[WireVector, WireVector]) -> None:
    """Nets that read a key read its value."""
    for net in [net for net in block.logic if any(arg in moved for arg in net.args)]:
        block.logic.remove(net)
        block.add_net(net._replace(args=tuple(moved.get(arg, arg) for arg in net.args)))


def _observed(block: Block) -> list[WireVector]:
    """What a bench sees of the outputs, 0 where it does not look; the outputs go."""
    driver = {net.dests[0]: net for net in block.logic}
    values = {}
    for wire in block.wirevector_subset(Output):
        values[wire.name] = WireVector(len(wire))
        block.logic.remove(driver[wire])
        block.add_net(driver[wire]._replace(dests=(values[wire.name],)))
        block.remove_wirevector(wire)
    looks = {"y": values["y_valid"], "ready": block.get_wirevector_by_name("valid")}
    return [
        value & looks[name].sign_extended(len(value)) if name in looks else value
        for name, value in sorted(values.items())
    ]


def _own_registers(design: Design, mutant: Mutant) -> list[set[str]]:
    """Sets of registers not to share: those that 0, 1, 2, ... levels reach; last all reached."""
    block = mutated(design.block(), [mutant])
    registers = {wire.name for wire in design.block().wirevector_subset(Register)}
    # Registers that the mutant added belong to its place.
    added = {w.name for w in block.wirevector_subset(Register)} - registers
    readers: dict[WireVector, list[WireVector]] = {}
    for net in block.logic:
        for arg in net.args:
            readers.setdefault(arg, []).append(net.dests[0])
    level = [block.get_wirevector_by_name(PORT)]
    seen, levels = set(level), [set[str]()]
    while level:
        found: list[WireVector] = []
        stack = list(level)
        while stack:
            for wire in readers.get(stack.pop(), ()):
                if wire not in seen:
                    seen.add(wire)
                    (found if isinstance(wire, Register) else stack).append(wire)
        levels.append(levels[-1] | added | {wire.name for wire in found})
        level = found
    everything = levels.pop()
    some = [own for i, own in enumerate(levels[:_LEVELS]) if own not in levels[:i]]
    return [*some, everything]
