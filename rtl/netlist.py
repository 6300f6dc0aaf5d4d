"""Mapped netlists: read from Yosys JSON or Verilog, checked, and put into order of evaluation.

A netlist is one flat module of standard cells. What a simulation without delays cannot mean is
refused here: cells that the technology lacks, nets without a driver or with two, combinational
loops, latches, and flip-flops that are not clocked by the rising edge of one input.
"""

import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from bitwright.quant import InputError

from .cell_functions import Expression, read_function
from .technology import Cell, FlipFlop, Technology
from .yosys import run_yosys

#: Net numbers of the constants; the others follow.
ZERO, ONE = 0, 1


@dataclass(frozen=True, slots=True)
class Instance:
    """A cell of a netlist."""

    name: str
    cell: Cell
    pins: Mapping[str, int]  #: every connected pin, inputs and outputs -> net
    where: str  #: where it stands, "netlist.v line 12"; empty if the file does not say

    @property
    def outputs(self) -> list[tuple[str, int]]:
        """Connected output pins and their nets."""
        return [(pin, self.pins[pin]) for pin in self.cell.outputs if pin in self.pins]

    @property
    def inputs(self) -> list[tuple[str, int]]:
        """Input pins and their nets."""
        return [(pin, self.pins[pin]) for pin in self.cell.pins]


@dataclass(frozen=True, eq=False)
class Netlist:
    """A checked netlist. Nets are numbered; 0 and 1 are the constants."""

    top: str
    technology: Technology
    nets: tuple[str, ...]  #: name of each net, "total[3]"
    inputs: Mapping[str, tuple[int, ...]]  #: port -> nets, lowest bit first; the clock left out
    outputs: Mapping[str, tuple[int, ...]]
    clock: str | None  #: input that clocks the flip-flops; None if there are none
    instances: tuple[Instance, ...]  #: in order of evaluation: flip-flops first, then by level
    levels: int  #: cells on the longest path between registers, inputs and outputs

    @cached_property
    def flip_flops(self) -> tuple[Instance, ...]:
        """The sequential cells."""
        return tuple(instance for instance in self.instances if instance.cell.ff is not None)

    @cached_property
    def sinks(self) -> tuple[tuple[tuple[Instance, str], ...], ...]:
        """For each net the input pins on it; clock pins are on no net."""
        found: list[list[tuple[Instance, str]]] = [[] for _ in self.nets]
        for instance in self.instances:
            for pin, net in instance.inputs:
                if not is_clock(instance.cell, pin):
                    found[net].append((instance, pin))
        return tuple(map(tuple, found))

    @cached_property
    def depth(self) -> int:
        """Clock cycles until every flip-flop has seen every input that can reach it.

        A stream shorter than this says nothing about the end of the pipeline.
        """
        state = {net: i for i, flip in enumerate(self.flip_flops) for _, net in flip.outputs}
        # Flip-flops that a net reaches within one cycle.
        after: list[set[int]] = [set() for _ in self.nets]
        for i, flip in enumerate(self.flip_flops):
            for pin, net in flip.inputs:
                if not is_clock(flip.cell, pin):
                    after[net].add(i)
        for instance in reversed(self.instances):
            if instance.cell.ff is None:
                reached = set().union(*(after[net] for _, net in instance.outputs))
                for _, net in instance.inputs:
                    after[net] |= reached
        following: list[set[int]] = [set() for _ in self.flip_flops]
        for net, i in state.items():
            following[i] |= after[net]
        deepest = 0
        for nets in self.inputs.values():
            for net in nets:
                seen, front, cycles = set(after[net]), set(after[net]), 0
                while front:
                    cycles += 1
                    front = set().union(*(following[i] for i in front)) - seen
                    seen |= front
                deepest = max(deepest, cycles)
        return deepest


def is_clock(cell: Cell, pin: str) -> bool:
    """Whether a pin is what the cell's flip-flop is clocked on."""
    return cell.ff is not None and (cell.pins[pin].clock or _clocked_on(cell.ff) == pin)


def _clocked_on(ff: FlipFlop) -> str:
    """The clock pin; an expression of it if the edge is not a rising one."""
    return ff.clocked_on.strip("() ")


# ------------------------------------------------------------------ reading


def read_netlist(
    source: str | Path, technology: Technology, top: str | None = None, name: str = "netlist"
) -> Netlist:
    """A netlist from Verilog or from Yosys' JSON.

    Args:
        source: A file, or the text itself.
        technology: Where the cells are described.
        top: The module wanted; None for the only one that no other module uses.
        name: What messages call a text that is no file.

    Raises:
        InputError: The file cannot be read, or the netlist is not one that can be simulated; the
            message names the cell, net or file and line.
    """
    if isinstance(source, Path):
        name = source.name
        try:
            source = source.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            why = getattr(error, "strerror", None) or "it is not text"
            raise InputError(
                f"{name} cannot be read: {why}; give a netlist as Verilog or Yosys JSON"
            ) from None
    text = source if source.lstrip().startswith("{") else _json_of(source, name)
    modules = {
        key: body
        for key, body in _modules(text, name).items()
        if not body.get("attributes", {}).get("blackbox") and key not in technology.cells
    }
    if not modules:
        raise InputError(f"{name} holds no module")
    if top is None:
        used = {cell["type"] for body in modules.values() for cell in body["cells"].values()}
        tops = [key for key in modules if key not in used]
        if len(tops) != 1:
            raise InputError(
                f"{name} holds several modules, {', '.join(tops or modules)}; say which one is the "
                "netlist"
            )
        top = tops[0]
    if top not in modules:
        raise InputError(f"{name} has no module {top!r}; it has {', '.join(modules)}")
    return _build(top, modules[top], set(modules), technology)


def _modules(text: str, name: str) -> dict[str, Any]:
    """The modules of a JSON document, each with what `_build` reads."""
    try:
        modules = dict(json.loads(text)["modules"])
        for body in modules.values():
            for key in ("ports", "cells", "netnames"):
                body[key].items()
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"{name} is neither Verilog nor the JSON of Yosys (write_json)") from None
    return modules


_WHY = re.compile(r"^(?:\S+:(\d+): )?ERROR: ?(.*)", re.MULTILINE)


def _json_of(verilog: str, name: str) -> str:
    file = re.sub(r"[^\w.-]", "_", name)
    file = file if file.endswith(".v") else f"{file}.v"
    # `proc` turns what is not a netlist into cells that can be named.
    script = f"read_verilog {file}\nproc\nwrite_json netlist.json\n"
    try:
        _, files = run_yosys(script, {file: verilog}, ["netlist.json"])
    except RuntimeError as error:
        line, why = (_WHY.findall(str(error)) or [("", str(error).splitlines()[-1])])[-1]
        at = f" (line {line})" if line else ""
        raise InputError(f"{name} is not Verilog that Yosys reads{at}: {why}") from None
    return files["netlist.json"]


def _build(
    top: str, module: Mapping[str, Any], modules: Collection[str], technology: Technology
) -> Netlist:
    numbers: dict[Any, int] = {"0": ZERO, "1": ONE}
    names = ["1'b0", "1'b1"]
    # Names that people gave come first, then those of tools.
    made = re.compile(r"tmp\d+")  # by PyRTL
    for label, entry in sorted(
        module["netnames"].items(),
        key=lambda item: (item[1]["hide_name"], made.fullmatch(item[0]) is not None),
    ):
        for i, bit in enumerate(entry["bits"]):
            if isinstance(bit, int) and bit not in numbers:
                numbers[bit] = len(names)
                names.append(label if len(entry["bits"]) == 1 else f"{label}[{i}]")

    def net(bit: Any, what: str) -> int:
        if bit not in ("x", "z"):
            return numbers[bit]
        raise InputError(f"{what} is {bit} in {top}; every pin of a netlist needs a net or 0 or 1")

    inputs: dict[str, tuple[int, ...]] = {}
    outputs: dict[str, tuple[int, ...]] = {}
    for port, entry in module["ports"].items():
        nets = tuple(net(bit, f"port {port}") for bit in entry["bits"])
        if entry["direction"] == "inout":
            raise InputError(
                f"port {port} of {top} is inout; inputs and outputs alone are simulated"
            )
        (inputs if entry["direction"] == "input" else outputs)[port] = nets

    # Latches first: around one that is not mapped stands other logic that is not, either.
    cells = sorted(module["cells"].items(), key=lambda item: "latch" not in item[1]["type"])
    instances = [_instance(label, entry, top, modules, technology, net) for label, entry in cells]
    driver = _drivers(top, names, inputs, instances)
    for instance in instances:
        for pin, number in instance.inputs:
            if number not in driver:
                raise InputError(
                    f"net {names[number]} of {top} has no driver, and {_called(instance)} reads it "
                    f"at pin {pin}; connect it"
                )
    for port, nets in outputs.items():
        for number in nets:
            if number not in driver:
                raise InputError(
                    f"net {names[number]} of {top} has no driver, and output {port} shows it; "
                    "connect it"
                )
    clock = _clock(top, names, inputs, outputs, instances)
    ordered, levels = _levelise(top, names, instances, driver)
    data = {port: nets for port, nets in inputs.items() if port != clock}
    return Netlist(top, technology, tuple(names), data, outputs, clock, ordered, levels)


def _instance(
    name: str,
    entry: Mapping[str, Any],
    top: str,
    modules: Collection[str],
    technology: Technology,
    net: Any,
) -> Instance:
    kind, where = entry["type"], _where(entry)
    at = f" ({where})" if where else ""
    cell = technology.cells.get(kind)
    if cell is None:
        if "latch" in kind.lower() or technology.refused.get(kind) == "latch":
            raise InputError(
                f"cell {name} of {top}{at} is a latch ({kind}); only flip-flops are simulated"
            )
        if kind in modules:
            raise InputError(
                f"cell {name} of {top}{at} is module {kind}; flatten the netlist first"
            )
        if kind.startswith("$"):
            raise InputError(
                f"cell {name} of {top}{at} is {kind}, logic that is not mapped to cells; "
                "synthesise it first"
            )
        why = technology.refused.get(kind)
        raise InputError(
            f"cell {name} of {top}{at} is a {kind}, which technology {technology.name} "
            + (f"describes as {why}" if why else "does not describe")
            + "; use the Liberty files that it was mapped with"
        )
    pins = {}
    for pin, bits in entry["connections"].items():
        if pin not in cell.pins and pin not in cell.outputs:
            if pin.startswith("$"):
                raise InputError(f"cell {name} of {top}{at}: connect its pins by their names")
            raise InputError(
                f"cell {name} of {top}{at}: {kind} has no pin {pin}; it has "
                f"{', '.join([*cell.pins, *cell.outputs])}"
            )
        if pin in cell.outputs and bits and bits[0] in ("x", "z"):
            continue
        if bits:
            pins[pin] = net(bits[0], f"pin {pin} of cell {name}{at}")
    for pin in cell.pins:
        if pin not in pins:
            raise InputError(f"cell {name} of {top}{at}: pin {pin} of {kind} is not connected")
    return Instance(name, cell, pins, where)


_SOURCE = re.compile(r"([^:|]+):(\d+)")


def _where(entry: Mapping[str, Any]) -> str:
    match = _SOURCE.match(entry.get("attributes", {}).get("src", ""))
    return f"{match[1]} line {int(match[2])}" if match else ""


def _called(instance: Instance) -> str:
    at = f", {instance.where}" if instance.where else ""
    return f"cell {instance.name} ({instance.cell.name}{at})"


def _drivers(
    top: str,
    names: Sequence[str],
    inputs: Mapping[str, Sequence[int]],
    instances: Iterable[Instance],
) -> dict[int, Instance | None]:
    """What drives each net; None for inputs and constants."""
    driver: dict[int, Instance | None] = {ZERO: None, ONE: None}
    for nets in inputs.values():
        driver |= dict.fromkeys(nets)
    for instance in instances:
        for _, number in instance.outputs:
            if number in driver:
                other = driver[number]
                what = "an input" if other is None else _called(other)
                if number in (ZERO, ONE):
                    what = "a constant"
                raise InputError(
                    f"net {names[number]} of {top} has two drivers: {_called(instance)} and {what}"
                )
            driver[number] = instance
    return driver


def _clock(
    top: str,
    names: Sequence[str],
    inputs: Mapping[str, Sequence[int]],
    outputs: Mapping[str, Sequence[int]],
    instances: Iterable[Instance],
) -> str | None:
    port_of = {nets[0]: port for port, nets in inputs.items() if len(nets) == 1}
    clock = None
    for instance in instances:
        ff = instance.cell.ff
        if ff is None:
            continue
        if _clocked_on(ff) not in instance.pins:
            raise InputError(
                f"{_called(instance)} of {top} is clocked on {ff.clocked_on!r}; only rising edges "
                "are simulated, map with a flip-flop that has one"
            )
        number = instance.pins[_clocked_on(ff)]
        port = port_of.get(number)
        if port is None:
            raise InputError(
                f"{_called(instance)} of {top} is clocked by net {names[number]}, which is no "
                "input; gated and divided clocks are not simulated"
            )
        if clock not in (None, port):
            raise InputError(
                f"{_called(instance)} of {top} is clocked by {port}, others by {clock}; "
                "one clock is simulated"
            )
        clock = port
    if clock is not None:
        number = inputs[clock][0]
        for instance in instances:
            for pin, other in instance.inputs:
                if other == number and not is_clock(instance.cell, pin):
                    raise InputError(
                        f"{_called(instance)} of {top} reads the clock {clock} at pin {pin}; "
                        "gated clocks are not simulated"
                    )
        for port, nets in outputs.items():
            if number in nets:
                raise InputError(
                    f"output {port} of {top} shows the clock {clock}; a clock that leaves the "
                    "netlist is not simulated"
                )
    return clock


# ------------------------------------------------------------------ order of evaluation


def after(instance: Instance) -> list[int]:
    """The nets that an instance's outputs follow within the same cycle.

    A flip-flop's outputs follow its asynchronous set and reset alone.
    """
    cell = instance.cell
    if cell.ff is None:
        return [net for _, net in instance.inputs]
    names = set(asynchronous_pins(cell))
    return [net for pin, net in instance.inputs if pin in names]


def asynchronous_pins(cell: Cell) -> list[str]:
    """Pins of a flip-flop's clear and preset."""
    assert cell.ff is not None
    conditions = [c for c in (cell.ff.clear, cell.ff.preset) if c]
    return [name for text in conditions for name in read_function(text, cell.pins).names()]


def cell_function(cell: Cell, pin: str) -> Expression:
    """The function of an output pin: of the inputs, or of a flip-flop's states.

    Raises:
        InputError: The function cannot be read.
    """
    known = [*cell.pins, *(cell.ff.state if cell.ff else ())]
    return read_function(cell.outputs[pin].function, known)


def _levelise(
    top: str,
    names: Sequence[str],
    instances: Sequence[Instance],
    driver: Mapping[int, Instance | None],
) -> tuple[tuple[Instance, ...], int]:
    """Instances behind all that they follow, flip-flops first, and the number of levels."""
    number = {id(instance): i for i, instance in enumerate(instances)}
    follows: list[list[int]] = []
    users: list[list[int]] = [[] for _ in instances]
    for i, instance in enumerate(instances):
        before = [driver[net] for net in after(instance)]
        own = [number[id(other)] for other in before if other is not None]
        follows.append(own)
        for j in own:
            users[j].append(i)
    waiting = [len(own) for own in follows]
    level = [0] * len(instances)
    ready = [i for i, count in enumerate(waiting) if not count]
    done: list[int] = []
    while ready:
        i = ready.pop()
        done.append(i)
        for j in users[i]:
            level[j] = max(level[j], level[i] + (instances[i].cell.ff is None))
            waiting[j] -= 1
            if not waiting[j]:
                ready.append(j)
    if len(done) < len(instances):
        raise _loop(top, names, instances, follows, waiting)
    levels = max((level[i] + 1 for i in done if instances[i].cell.ff is None), default=0)
    if any(follows[i] for i in done if instances[i].cell.ff is not None):
        # A flip-flop with a reset that is computed cannot come before the cells that compute it,
        # and is on the level of the cells that read it: `done` has them in order.
        done.sort(key=level.__getitem__)
    else:
        done.sort(key=lambda i: (instances[i].cell.ff is None, level[i], i))
    return tuple(instances[i] for i in done), levels


def _loop(
    top: str,
    names: Sequence[str],
    instances: Sequence[Instance],
    follows: Sequence[Sequence[int]],
    waiting: Sequence[int],
) -> InputError:
    """Walks backwards among the instances that wait until one comes again."""
    i = next(i for i, count in enumerate(waiting) if count)
    path: list[int] = []
    while i not in path:
        path.append(i)
        i = next(j for j in follows[i] if waiting[j])
    loop = path[path.index(i) :]
    shown = [f"{names[instances[j].outputs[0][1]]} ({_called(instances[j])})" for j in loop[:4]]
    more = f" and {len(loop) - 4} more" if len(loop) > 4 else ""
    return InputError(
        f"{top} has a combinational loop through net {' <- '.join(shown)}{more}; break it with a "
        "flip-flop"
    )
