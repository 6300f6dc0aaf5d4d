"""Energy of a netlist from its switching activity.

Per clock cycle

    switching   1/2 C V^2 for every toggle of a net that a cell drives; C is the pins on it and its
                wire (`wire_load`)
    inputs      the same for nets that come from outside: somebody else's cells pay for them
    internal    energy inside a cell for every toggle of its outputs, and of its data inputs where
                the library has it
    clock       both edges at every flip-flop: C V^2 of the clock net, and energy inside the cells
    leakage     of all cells, whatever happens

Slews follow the netlist from its inputs to its outputs (mean of rise and fall, mean of the inputs),
so that internal energies are looked up where a cell works. At another supply, dynamic energy goes
with its square and leakage power with the supply itself (constant current: it leaves out that
leakage current falls with the supply, too).

Left out: glitches (nets toggle at most once a cycle), the buffers and the trunk of the clock tree,
wires longer than the wire-load model says, and the dependence of leakage on the cells' states.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from bitwright.quant import InputError

from .activity import Activity
from .liberty import interpolate
from .netlist import Instance, Netlist, is_clock
from .synth import fanout_of_four_slew_ps
from .technology import EnergyTable, InputPin, OutputPin, Technology
from .wire_load import WireLoad, wire_load

COMPONENTS = ("switching", "internal", "inputs", "clock", "leakage")
UNNAMED = "other"  #: block of cells that lead to no named register

_FJ_PER_NW_PS = 1e-6


@dataclass(frozen=True)
class Energy:
    """Energy of one lane and clock cycle, in fJ."""

    fJ: Mapping[str, Mapping[str, float]]  #: block -> component -> energy
    dynamic_fJ: np.ndarray  #: float64 [words]: each word's own, leakage left out  # noqa: N815

    def component(self, name: str) -> float:
        """Energy of a component over all blocks."""
        return sum(parts[name] for parts in self.fJ.values())

    @property
    def components(self) -> dict[str, float]:
        """Energy by component, all blocks."""
        return {name: self.component(name) for name in COMPONENTS}

    @property
    def blocks(self) -> dict[str, float]:
        """Energy by block, all components."""
        return {block: sum(parts.values()) for block, parts in self.fJ.items()}

    @property
    def total_fJ(self) -> float:  # noqa: N802
        """Everything, nets from outside included."""
        return sum(self.blocks.values())


@dataclass(frozen=True, eq=False)
class PowerModel:
    """What a toggle of each net costs, by block and component, and what every cycle costs."""

    netlist: Netlist
    blocks: tuple[str, ...]
    toggle_fJ: np.ndarray  #: float64 [blocks, 3, nets]: switching, internal, inputs
    clock_fJ: np.ndarray  #: float64 [blocks], per cycle
    leakage_nW: np.ndarray  #: float64 [blocks]

    def energy(self, activity: Activity, clock_ps: float) -> Energy:
        """Energy per lane and cycle under an activity.

        Args:
            activity: Of the same netlist.
            clock_ps: Period, for the leakage.
        """
        if not clock_ps > 0:
            raise InputError(f"clock_ps is {clock_ps:g}; a period above 0 ps")
        cycles = activity.cycles * activity.lanes
        parts = self.toggle_fJ @ activity.total / cycles  # [blocks, 3]
        leakage = self.leakage_nW * clock_ps * _FJ_PER_NW_PS
        table = {
            block: dict(zip(COMPONENTS, (*map(float, row), float(clock), float(leak)), strict=True))
            for block, row, clock, leak in zip(
                self.blocks, parts, self.clock_fJ, leakage, strict=True
            )
        }
        lanes = np.full(activity.toggles.shape[1], 64)
        lanes[-1] = activity.lanes - 64 * (len(lanes) - 1)
        cost = self.toggle_fJ.sum(axis=(0, 1))
        words = cost @ activity.toggles / (activity.cycles * lanes) + self.clock_fJ.sum()
        return Energy(table, words)


def power_model(
    netlist: Netlist,
    *,
    wires: WireLoad | None = None,
    voltage: float | None = None,
    registers: Mapping[str, Sequence[str]] | None = None,
    output_load_fF: float = 0.0,  # noqa: N803
) -> PowerModel:
    """What toggles of a netlist cost.

    Args:
        netlist: The netlist.
        wires: Wire-load model; None for the technology's.
        voltage: Supply in V; None for the technology's.
        registers: Block -> names of the registers that it ends in, numbers at their ends left out;
            in the order of the pipeline. A cell belongs to the first block whose registers it
            leads to. None: one block for all.
        output_load_fF: Load outside on each bit of an output.

    Raises:
        InputError: The technology has no energies; the message names the cell or what is missing.
    """
    technology = netlist.technology
    if technology.no_power:
        raise InputError(technology.no_power)
    wires = wires or wire_load(technology)
    supply = technology.voltage if voltage is None else voltage
    if not supply > 0:
        raise InputError(f"voltage is {supply:g} V; above 0")
    blocks, block_number = _blocks(netlist, registers or {})
    loads = _loads(netlist, wires, output_load_fF)
    slews = _slews(netlist, loads)
    toggle = np.zeros((len(blocks), 3, len(netlist.nets)))
    clock = np.zeros(len(blocks))
    leakage = np.zeros(len(blocks))
    nominal = fanout_of_four_slew_ps(technology)
    half_v2 = technology.voltage**2 / 2
    block_of = {id(i): block for i, block in zip(netlist.instances, block_number, strict=True)}
    for instance, block in zip(netlist.instances, block_number, strict=True):
        cell = instance.cell
        leakage[block] += cell.leakage_nW
        inputs = [slews[net] for pin, net in instance.inputs if not is_clock(cell, pin)]
        slew = nominal if cell.ff is not None else fmean(inputs or [nominal])
        for pin, net in instance.outputs:
            toggle[block, 0, net] += half_v2 * loads[net]
            toggle[block, 1, net] += _internal(
                technology, cell.name, pin, cell.outputs[pin], slew, loads[net]
            )
        if cell.ff is not None and instance.outputs:
            # An output that leads nowhere toggles, too: as often as the one that does not.
            for pin in cell.outputs.keys() - instance.pins.keys():
                energy = _internal(technology, cell.name, pin, cell.outputs[pin], slew, 0.0)
                toggle[block, 1, instance.outputs[0][1]] += energy
        for pin, net in instance.inputs:
            data = cell.pins[pin]
            if is_clock(cell, pin):
                # Two edges a cycle; of the wire every flip-flop has the length of a net to itself.
                edge = half_v2 * (data.cap_fF + wires.cap_fF(1))
                clock[block] += 2 * (edge + _passive(data, nominal))
            else:
                toggle[block, 1, net] += _passive(data, slews[net])
    for nets in netlist.inputs.values():
        for net in nets:
            sinks = netlist.sinks[net]
            for instance, pin in sinks:
                block = block_of[id(instance)]
                share = wires.cap_fF(len(sinks)) / len(sinks)
                toggle[block, 2, net] += half_v2 * (instance.cell.pins[pin].cap_fF + share)
    used = [i for i in range(len(blocks)) if i in set(block_number)]
    blocks = tuple(blocks[i] for i in used)
    toggle, clock, leakage = toggle[used], clock[used], leakage[used]
    scale = (supply / technology.voltage) ** 2
    return PowerModel(
        netlist,
        blocks,
        toggle * scale,
        clock * scale,
        leakage * supply / technology.voltage,
    )


# ------------------------------------------------------------------ looking up


def _internal(
    technology: Technology, cell: str, pin: str, output: OutputPin, slew: float, load: float
) -> float:
    """Energy inside a cell per toggle of an output: the mean of a rise and a fall."""
    if output.internal is None:
        raise InputError(
            f"cell {cell} of {technology.name} has no power table (internal_power) for output "
            f"{pin}; give Liberty files with one, or mark the cell dont_use"
        )
    return _at(output.internal, slew, load)


def _passive(pin: InputPin, slew: float) -> float:
    """The same for an input by itself; libraries leave it out where it is nothing."""
    return 0.0 if pin.internal is None else _at(pin.internal, slew, 0.0)


def _at(table: EnergyTable, slew: float, load: float) -> float:
    """Within the table's range; beyond it the edge's value, not a continued slope."""
    slew = min(max(slew, table.slew_ps[0]), table.slew_ps[-1])
    load = min(max(load, table.load_fF[0]), table.load_fF[-1])
    return interpolate(table.slew_ps, table.load_fF, table.fJ, slew, load)


def _loads(netlist: Netlist, wires: WireLoad, output_load: float) -> list[float]:
    """fF on each net: pins, wire, and what is outside."""
    ports = [0] * len(netlist.nets)
    for nets in netlist.outputs.values():
        for net in nets:
            ports[net] += 1
    return [
        sum(instance.cell.pins[pin].cap_fF for instance, pin in sinks)
        + wires.cap_fF(len(sinks) + bool(ports[net]))
        + output_load * ports[net]
        for net, sinks in enumerate(netlist.sinks)
    ]


def _slews(netlist: Netlist, loads: Sequence[float]) -> list[float]:
    """Slew of each net, ps: mean of rise and fall."""
    nominal = fanout_of_four_slew_ps(netlist.technology)
    slews = [nominal] * len(netlist.nets)
    for instance in netlist.instances:
        inputs = [slews[net] for pin, net in instance.inputs if not is_clock(instance.cell, pin)]
        slew = nominal if instance.cell.ff is not None else fmean(inputs or [nominal])
        for pin, net in instance.outputs:
            output = instance.cell.outputs[pin]
            tables = [t for t in (output.slew_rise_ps, output.slew_fall_ps) if t]
            if tables:
                slews[net] = fmean(
                    max(0.0, interpolate(output.slew_ps, output.load_fF, t, slew, loads[net]))
                    for t in tables
                )
    return slews


# ------------------------------------------------------------------ blocks


def _blocks(
    netlist: Netlist, registers: Mapping[str, Sequence[str]]
) -> tuple[tuple[str, ...], list[int]]:
    """Names of the blocks, and each instance's number."""
    names = (*registers, UNNAMED)
    other = len(registers)
    number = {prefix: i for i, prefixes in enumerate(registers.values()) for prefix in prefixes}
    own: list[int] = []
    follows = [other] * len(netlist.nets)  # the first block that a net leads to
    for instance in netlist.instances:
        block = other
        if instance.cell.ff is not None:
            for net in _names_of(netlist, instance):
                name = re.sub(r"\d*(\[\d+\])?$", "", netlist.nets[net])
                block = min(block, number.get(name, other))
            for pin, net in instance.inputs:
                if not is_clock(instance.cell, pin):
                    follows[net] = min(follows[net], block)
        own.append(block)
    for i in reversed(range(len(netlist.instances))):
        instance = netlist.instances[i]
        if instance.cell.ff is None:
            own[i] = min((follows[net] for _, net in instance.outputs), default=other)
            for _, net in instance.inputs:
                follows[net] = min(follows[net], own[i])
    return names, own


def _names_of(netlist: Netlist, flip_flop: Instance) -> list[int]:
    """Nets that may bear a register's name: its outputs and, where a technology's flip-flops have
    inverted outputs alone, what stands behind an inverter."""
    nets = [net for _, net in flip_flop.outputs]
    for net in list(nets):
        for sink, _ in netlist.sinks[net]:
            if len(sink.cell.pins) == 1:
                nets += [behind for _, behind in sink.outputs]
    return nets
