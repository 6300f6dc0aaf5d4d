"""Energy of a netlist by OpenSTA, beside our own: same netlist, same activity.

    python -m bitwright.experiments.opensta --pe dint4,bitmod,fp16 --liberty FILE.lib

Two comparisons. *Bookkeeping*: OpenSTA reads a Liberty file written from our own tables, so that
only the adding up differs. *Independent*: it reads the library's full Liberty files. What its
version 0~20191111 adds up differently from what Liberty means is set right here, and shown as it
comes, too; docs/energy_check.md says what and why.
"""

import argparse
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import TypeVar

import numpy as np

from bitwright.quant import InputError, write_text
from bitwright.rtl import (
    Technology,
    activity,
    find_design,
    liberty,
    netlist,
    power,
    resolve_technology,
    synthesise,
    technology,
    tools,
    wire_load,
)

CYCLES, WARMUP, LANES = 200, 50, 64

Pin = TypeVar("Pin", technology.InputPin, technology.OutputPin)

_TIMEOUT_S = 600
_FREE_DELAY = " ".join(
    f'{kind} (scalar) {{ values ("0"); }}' for kind in ("cell_rise", "cell_fall")
)


@dataclass(frozen=True, eq=False)
class Stream:
    """What a netlist did under a random stream."""

    net: netlist.Netlist
    activity: activity.Activity
    duty: np.ndarray  #: float64 [nets]: part of the time at 1
    clock_ps: float

    @property
    def rate(self) -> np.ndarray:
        """float64 [nets]: toggles per cycle."""
        return self.activity.total / (self.activity.cycles * self.activity.lanes)


@dataclass(frozen=True)
class StaEnergy:
    """OpenSTA's energies, fJ per cycle."""

    switching: float  #: nets that cells drive
    inputs: float  #: nets from outside
    clock_nets: float
    internal: float  #: as OpenSTA adds it up, clock pins included
    leakage: float
    #: From its energies of single arcs, with edges and weights set right; 0 without `arcs`.
    internal_right: float = 0.0  #: outputs and data inputs
    clock_pins_right: float = 0.0


@dataclass(frozen=True)
class Row:
    """One component of a netlist in both tools, fJ per cycle."""

    component: str
    ours: float
    theirs: float

    @property
    def ratio(self) -> float:
        return self.ours / self.theirs if self.theirs else float("nan")


# ------------------------------------------------------------------ netlist and stream


def synthesised(pe: str, technology: Technology) -> str:
    """Verilog of a PE mapped at the technology's clock."""
    verilog = find_design(pe).blocks()["total"]
    top = re.findall(r"^\s*module\s+(\w+)", verilog, re.MULTILINE)[-1]
    return synthesise(verilog, top, technology, technology.clock_ps).netlist


def random_stream(net: netlist.Netlist, clock_ps: float, seed: int = 0) -> Stream:
    """Every input bit random in every cycle, in 64 lanes."""
    cycles = CYCLES + max(WARMUP, net.depth + 1)
    generator = np.random.default_rng(seed)
    inputs = {
        port: generator.integers(0, 2, (cycles, LANES, len(nets)), np.uint8).astype(bool)
        for port, nets in net.inputs.items()
    }
    warmup = cycles - CYCLES
    # Every net as an output, 64 to a port: what is recorded gives the duty.
    count = len(net.nets)
    ports = {f"{i}": tuple(range(i, min(i + 64, count))) for i in range(0, count, 64)}
    seen = activity.simulate(replace(net, outputs=ports), inputs, warmup=warmup, record=list(ports))
    duty = [
        (seen.outputs[port][warmup:] >> np.uint64(bit) & np.uint64(1)).mean()
        for port, nets in ports.items()
        for bit in range(len(nets))
    ]
    return Stream(net, seen, np.array(duty), clock_ps)


# ------------------------------------------------------------------ Liberty


def single_energies(technology: Technology) -> Technology:
    """The technology with one energy for each pin: that at the nominal slew and a middle load.

    Slews are calculated differently in the two tools; where they do not matter, the rest is exact.
    """
    slew = power.fanout_of_four_slew_ps(technology)

    def single(pin: Pin) -> Pin:
        table = pin.internal
        if table is None:
            return pin
        load = table.load_fF[len(table.load_fF) // 2]
        energy = liberty.interpolate(table.slew_ps, table.load_fF, table.fJ, slew, load)
        return replace(
            pin, internal=replace(table, slew_ps=(slew,), load_fF=(load,), fJ=((energy,),))
        )

    cells = {
        name: replace(
            cell,
            pins={pin: single(data) for pin, data in cell.pins.items()},
            outputs={pin: single(data) for pin, data in cell.outputs.items()},
        )
        for name, cell in technology.cells.items()
    }
    return replace(technology, cells=cells)


def energy_liberty(technology: Technology) -> str:
    """Tables of `single_energies` as Liberty, so that OpenSTA's arithmetic gets them right.

    A group without `related_pin` and `when` weighs one half (rise and fall, half the toggles each),
    at clock pins one: there half the energy is written. search/Power.cc, lines 588 to 591.
    """
    thresholds = [
        f"  {kind}_threshold_pct_{edge} : {percent};"
        for kind, percent in (("input", 50), ("output", 50), ("slew_lower", 30), ("slew_upper", 70))
        for edge in ("rise", "fall")
    ]
    # Without operating conditions OpenSTA's supply is 0 V.
    head = [
        "  nom_process : 1;",
        "  nom_temperature : 25;",
        "  operating_conditions (typ) {",
        f"    process : 1; temperature : 25; voltage : {technology.voltage};",
        "  }",
        "  default_operating_conditions : typ;",
        *thresholds,
    ]
    lines: list[str] = []
    cell = None
    for line in liberty.write_liberty(technology).splitlines():
        lines.append(line)
        if line.startswith("  nom_voltage"):
            lines += head
        elif match := re.match(r"  cell \((\S+)\)", line):
            cell = technology.cells[match[1]]
        elif cell is not None and (match := re.match(r"    pin \((\S+)\)", line)):
            name = match[1]
            table = (cell.pins.get(name) or cell.outputs[name]).internal
            if table is not None:
                clock = name in cell.pins and netlist.is_clock(cell, name)
                energy = table.fJ[0][0] / 2 if clock else table.fJ[0][0]
                tables = " ".join(
                    f'{edge}_power (scalar) {{ values ("{energy:.9g}"); }}'
                    for edge in ("rise", "fall")
                )
                lines.append(f"      internal_power () {{ {tables} }}")
    return "\n".join([*lines, ""])


_THRESHOLD = re.compile(
    r"^\s*((?:slew_(?:lower|upper)|input|output)_threshold_pct_(?:rise|fall)|"
    r"slew_derate_from_library)\s*:\s*([\d.]+)",
    re.MULTILINE,
)


def free_liberty(first: str, technology: Technology, wires: wire_load.WireLoad) -> str:
    """Liberty of the cells that cost nothing, and of the wires.

    OpenSTA reads it before the others: units, thresholds and a default wire load are those of the
    first library.

    Args:
        first: The first of the other Liberty texts, whose thresholds count.
        technology: For supply and slew.
        wires: Wire-load model of both tools.
    """
    thresholds = "".join(f"  {name} : {value};\n" for name, value in _THRESHOLD.findall(first))
    slew = power.fanout_of_four_slew_ps(technology)
    arc = _FREE_DELAY + "".join(
        f' {kind} (scalar) {{ values ("{slew:.6g}"); }}'
        for kind in ("rise_transition", "fall_transition")
    )
    lengths = "".join(
        f"    fanout_length ({fanout}, {wires.length_um(fanout):.6g});\n"
        for fanout in range(len(wires.um) + 1)
    )
    return f"""library (free) {{
  delay_model : table_lookup;
  time_unit : "1ps";
  voltage_unit : "1V";
  current_unit : "1mA";
  pulling_resistance_unit : "1kohm";
  leakage_power_unit : "1nW";
  capacitive_load_unit (1, ff);
  nom_process : 1;
  nom_temperature : 25;
  nom_voltage : {technology.voltage};
  operating_conditions (typ) {{
    process : 1; temperature : 25; voltage : {technology.voltage}; tree_type : "balanced_tree";
  }}
  default_operating_conditions : typ;
  default_input_pin_cap : 0;
  default_output_pin_cap : 0;
  default_inout_pin_cap : 0;
{thresholds}  wire_load ("wires") {{
    resistance : 0;
    capacitance : {wires.fF_per_um:.9g};
    slope : {wires.slope_um:.9g};
{lengths}  }}
  default_wire_load : "wires";
  cell (ZDFF) {{
    area : 0;
    cell_leakage_power : 0;
    ff (IQ, IQN) {{ next_state : "D"; clocked_on : "CK"; }}
    pin (D) {{ direction : input; capacitance : 0; }}
    pin (CK) {{ direction : input; clock : true; capacitance : 0; }}
    pin (Q) {{ direction : output; function : "IQ";
      timing () {{ related_pin : "CK"; timing_type : rising_edge; {arc} }} }}
  }}
  cell (ZBUF) {{
    area : 0;
    cell_leakage_power : 0;
    pin (A) {{ direction : input; capacitance : 0; }}
    pin (Z) {{ direction : output; function : "A";
      timing () {{ related_pin : "A"; timing_sense : positive_unate; {arc} }} }}
  }}
}}
"""


# ------------------------------------------------------------------ what OpenSTA reads


def free_sources(net: netlist.Netlist) -> tuple[str, dict[str, int]]:
    """Verilog that OpenSTA can be given activities for, and the net of each of its pins.

    OpenSTA propagates activities from inputs and overwrites what it was told (search/Power.cc,
    lines 281 to 327). It stops at flip-flops: so every net from outside, and each constant, comes
    from a flip-flop ZDFF that costs nothing. Each flip-flop's clock comes from its own free buffer
    ZBUF, which makes the energy of clock nets that of an instance. Cells are i0, i1, ... in the
    order of `net.instances`.

    Raises:
        InputError: An output has no net.
    """
    for instance in net.instances:
        for pin in instance.cell.outputs:
            if pin not in instance.pins:
                raise InputError(
                    f"output {pin} of {instance.name} ({instance.cell.name}) has no net; OpenSTA "
                    "counts its energy, power_model does not"
                )
    lines: list[str] = []
    pins: dict[str, int] = {}
    driven: set[int] = set()
    used: dict[int, None] = {}
    for i, instance in enumerate(net.instances):
        connections = []
        for pin, number in instance.pins.items():
            if pin in instance.cell.pins and netlist.is_clock(instance.cell, pin):
                lines.append(f"  ZBUF k{i} (.A(clk), .Z(c{i}));")
                connections.append(f".{pin}(c{i})")
                continue
            connections.append(f".{pin}(n{number})")
            pins[f"i{i}/{pin}"] = number
            used[number] = None
            if pin in instance.cell.outputs:
                driven.add(number)
        lines.append(f"  {instance.cell.name} i{i} ({', '.join(connections)});")
    for number in used:
        if number not in driven:
            lines.append(f"  ZDFF z{number} (.CK(clk), .Q(n{number}));")
            pins[f"z{number}/Q"] = number
    # A port is a sink more; of nets from outside the load there is somebody else's.
    ports = sorted({bit for nets in net.outputs.values() for bit in nets} & driven)
    names = ", ".join(["clk", *(f"n{number}" for number in ports)])
    head = [f"module top ({names});", "  input clk;", *(f"  output n{number};" for number in ports)]
    head += [f"  wire n{number};" for number in used if number not in set(ports)]
    return "\n".join([*head, *lines, "endmodule", ""]), pins


def sta_energy(
    stream: Stream,
    technology: Technology,
    liberties: Sequence[str],
    wires: wire_load.WireLoad,
    arcs: bool = False,
) -> StaEnergy:
    """What OpenSTA says of a netlist under a stream.

    Args:
        stream: Netlist and activity.
        technology: For the supply of the free cells and the slew at inputs.
        liberties: Liberty texts.
        wires: Wire-load model.
        arcs: Put internal energies together from single arcs, too.

    Raises:
        InputError: OpenSTA is not installed.
        RuntimeError: It refused its input; the message ends with why.
    """
    verilog, pins = free_sources(stream.net)
    files = {
        "free.lib": free_liberty(liberties[0], technology, wires),
        **{f"cells{i}.lib": text for i, text in enumerate(liberties)},
    }
    commands = [
        *(f"read_liberty {file}" for file in files),
        "read_verilog netlist.v",
        "link_design top",
        f"create_clock -name clk -period {stream.clock_ps:.9g} [get_ports clk]",
        "set_propagated_clock clk",  # else clock pins see the ideal clock's slew, 0
        "set_wire_load_model -name wires -library free",
        *(
            f"sta::set_power_pin_activity [sta::find_pin {pin}] "
            f"{stream.rate[number]:.9g} {stream.duty[number]:.9g}"
            for pin, number in pins.items()
        ),
        *(["sta::set_debug power 3"] if arcs else []),
        "set file [open power w]",
        "foreach i [get_cells *] {",
        '  puts $file "[get_full_name $i] [sta::instance_power $i [sta::cmd_corner]]"',
        "}",
        "close $file",
    ]
    files |= {"netlist.v": verilog, "run.tcl": "\n".join([*commands, ""])}
    program = sta_program()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for file, text in files.items():
            (folder / file).write_text(text, encoding="utf-8")
        command = [program, "-no_init", "-no_splash", "-exit", "run.tcl"]
        log = tools.run_tool("OpenSTA", command, folder, os.environ, _TIMEOUT_S)
        wrong = [line for line in log.splitlines() if line.startswith("Error")]
        if wrong or not (folder / "power").exists():
            raise RuntimeError(f"OpenSTA failed: {(wrong or [log[-500:].strip()])[0]}")
        reported = (folder / "power").read_text(encoding="utf-8")
    return _added_up(reported, log, stream)


def sta_program() -> str:
    """Where OpenSTA is.

    Raises:
        InputError: It is not installed.
    """
    program = shutil.which("sta")
    if program is None:
        raise InputError("OpenSTA (sta) is not installed; apt-get install opensta")
    return program


# ------------------------------------------------------------------ what OpenSTA says

_PIN = re.compile(r"^power: internal i(\d+)/(\w+) \(", re.MULTILINE)
_EDGE = re.compile(r"^power:  [v^] energy = +(\S+) \* +(\S+) = ", re.MULTILINE)


def arc_energies(log: str) -> Iterator[tuple[int, str, float]]:
    """Number of the instance, pin, and joules of a toggle.

    OpenSTA writes two lines for an arc, rise and fall, each with the table's energy and the arc's
    weight. A toggle is a rise or a fall, and it takes one of the arcs.
    """
    parts = _PIN.split(log)
    for number, pin, text in zip(parts[1::3], parts[2::3], parts[3::3], strict=True):
        edges = [(float(energy), float(weight)) for energy, weight in _EDGE.findall(text)]
        if not edges:
            continue
        total = sum(weight for _, weight in edges)
        if total > 0:
            yield int(number), pin, sum(energy * weight for energy, weight in edges) / total
        else:  # a pin at rest, or conditions that never hold
            yield int(number), pin, fmean(energy for energy, _ in edges)


def _added_up(reported: str, log: str, stream: Stream) -> StaEnergy:
    net, per_watt = stream.net, stream.clock_ps * 1e3  # 1 W for 1 ps is 1000 fJ
    sums = dict.fromkeys(("switching", "inputs", "clock_nets", "internal", "leakage"), 0.0)
    cells = 0
    for line in reported.splitlines():
        name, internal, switching, leakage, _ = line.split()
        cells += name[0] == "i"
        sums[{"k": "clock_nets", "z": "inputs"}.get(name[0], "switching")] += (
            float(switching) * per_watt
        )
        sums["internal"] += float(internal) * per_watt
        sums["leakage"] += float(leakage) * per_watt
    if cells != len(net.instances):
        raise RuntimeError(f"OpenSTA reported {cells} of {len(net.instances)} cells")
    data, clock = 0.0, 0.0
    for i, pin, joule in arc_energies(log):
        instance = net.instances[i]
        if pin in instance.cell.pins and netlist.is_clock(instance.cell, pin):
            clock += 2 * joule * 1e15
        else:
            data += float(stream.rate[instance.pins[pin]]) * joule * 1e15
    return StaEnergy(**sums, internal_right=data, clock_pins_right=clock)


# ------------------------------------------------------------------ comparisons


def bookkeeping(stream: Stream, technology: Technology) -> list[Row]:
    """Our energies beside OpenSTA's from the same tables: they should be equal.

    Args:
        stream: Netlist and activity.
        technology: Of the netlist; of its energies one a pin is used.
    """
    wires = wire_load.wire_load(technology)
    single = single_energies(technology)
    instances = tuple(replace(i, cell=single.cells[i.cell.name]) for i in stream.net.instances)
    net = replace(stream.net, technology=single, instances=instances)
    ours = _ours(stream, net, wires)
    theirs = sta_energy(stream, single, [energy_liberty(single)], wires)
    rows = [
        Row("switching", ours["switching"], theirs.switching),
        Row("inputs", ours["inputs"], theirs.inputs),
        # OpenSTA does not tell clock pins from others.
        Row(
            "internal and clock",
            ours["internal"] + ours["clock"],
            theirs.internal + theirs.clock_nets,
        ),
        Row("leakage", ours["leakage"], theirs.leakage),
    ]
    return [*rows, _total(rows)]


@dataclass(frozen=True)
class Independent:
    """A netlist's energies from a library's full Liberty files."""

    shipped: list[Row]  #: ours from the shipped, reduced tables
    full: list[Row]  #: ours from the same files
    theirs: StaEnergy


def independent(
    stream: Stream, verilog: str, technology: Technology, paths: Sequence[Path]
) -> Independent:
    """Our energies beside OpenSTA's from the full Liberty files.

    Args:
        stream: Netlist on the shipped technology, and activity.
        verilog: The netlist's text.
        technology: The shipped technology.
        paths: The Liberty files that it was made from.

    Raises:
        InputError: A file is none of these, or has tables for each supply.
    """
    wires = wire_load.wire_load(technology)
    read = liberty.read_liberty(paths, technology.clock_ps)
    for path, text in zip(paths, read.liberty, strict=True):
        if "related_pg_pin" in text:
            raise InputError(
                f"{path} has energies for each supply (related_pg_pin), which OpenSTA adds up in "
                "ways that its log does not tell; compare with nangate45 or sky130hd"
            )
    other = netlist.read_netlist(verilog, read, stream.net.top)
    if [i.name for i in other.instances] != [i.name for i in stream.net.instances]:
        raise InputError(f"{read.source} is not what {technology.name} was made from")
    theirs = sta_energy(stream, read, read.liberty, wires, arcs=True)
    shipped, full = _ours(stream, stream.net, wires), _ours(stream, other, wires)
    return Independent(_against(shipped, theirs), _against(full, theirs), theirs)


def _ours(stream: Stream, net: netlist.Netlist, wires: wire_load.WireLoad) -> dict[str, float]:
    model = power.power_model(net, wires=wires)
    return model.energy(stream.activity, stream.clock_ps).components


def _against(ours: Mapping[str, float], theirs: StaEnergy) -> list[Row]:
    rows = [
        Row("switching", ours["switching"], theirs.switching),
        Row("inputs", ours["inputs"], theirs.inputs),
        Row("internal", ours["internal"], theirs.internal_right),
        Row("clock", ours["clock"], theirs.clock_nets + theirs.clock_pins_right),
        Row("leakage", ours["leakage"], theirs.leakage),
    ]
    return [*rows, _total(rows)]


def _total(rows: Sequence[Row]) -> Row:
    return Row("total", sum(row.ours for row in rows), sum(row.theirs for row in rows))


# ------------------------------------------------------------------ tables


def compare(pes: Sequence[str], technology: Technology, paths: Sequence[Path], seed: int) -> str:
    """The comparisons of some PEs as Markdown tables.

    Raises:
        InputError: OpenSTA is not installed, or a PE or a file is not there.
    """
    same = ["| PE | cells | component | bitwright, fJ | OpenSTA, fJ | ratio - 1 |"]
    same += ["|---|---|---|---|---|---|"]
    other = ["| PE | component | shipped, fJ | full, fJ | OpenSTA, fJ | shipped / | full / |"]
    other += ["|---|---|---|---|---|---|---|"]
    raw = ["| PE | as OpenSTA adds it up, fJ | set right, fJ | factor |"]
    raw += ["|---|---|---|---|"]
    sta_program()  # before anything is synthesised
    for pe in pes:
        verilog = synthesised(pe, technology)
        net = netlist.read_netlist(verilog, technology)
        stream = random_stream(net, technology.clock_ps, seed)
        for row in bookkeeping(stream, technology):
            same.append(
                f"| {pe} | {len(net.instances)} | {row.component} | {row.ours:.2f} | "
                f"{row.theirs:.2f} | {row.ratio - 1:+.1e} |"
            )
        if not paths:
            continue
        found = independent(stream, verilog, technology, paths)
        for reduced, full in zip(found.shipped, found.full, strict=True):
            other.append(
                f"| {pe} | {full.component} | {reduced.ours:.1f} | {full.ours:.1f} | "
                f"{full.theirs:.1f} | {reduced.ratio:.3f} | {full.ratio:.3f} |"
            )
        theirs = found.theirs
        right = theirs.internal_right + theirs.clock_pins_right
        raw.append(
            f"| {pe} | {theirs.internal:.1f} | {right:.1f} | {theirs.internal / right:.2f} |"
        )
    title = f"{technology.name}, {technology.clock_ps:g} ps, energy per cycle"
    parts = [f"Same tables in both ({title})", "", *same]
    if paths:
        parts += ["", f"OpenSTA with the full Liberty files ({title})", "", *other]
        parts += ["", "Internal energy, clock pins included, from the full Liberty files", "", *raw]
    return "\n".join([*parts, ""])


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; its exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m bitwright.experiments.opensta",
        description="Energy of mapped PEs by bitwright and by OpenSTA, with the same activity.",
    )
    parser.add_argument("--pe", default="dint4,bitmod,fp16", help="names, separated by commas")
    parser.add_argument("--technology", default="nangate45", help="a shipped technology")
    parser.add_argument(
        "--liberty",
        type=Path,
        nargs="+",
        default=[],
        metavar="FILE",
        help="full Liberty files (.lib or .lib.gz) of that technology; left out: only the "
        "comparison with the same tables",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the random stream")
    parser.add_argument("--out", type=Path, help="write the tables to this file, too")
    options = parser.parse_args(arguments)
    try:
        text = compare(
            options.pe.split(","),
            resolve_technology(options.technology),
            options.liberty,
            options.seed,
        )
        print(text, end="")
        if options.out:
            write_text(options.out, text)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
