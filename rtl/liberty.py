"""Liberty, the file format of standard-cell libraries: written from our facts, read from users.

`write_liberty` gives the compact file that Yosys and ABC map with. `read_liberty` turns a user's
files into a `Technology`; the mapping tools then get the files themselves, and the cells read here
serve simulation and the timing of registers.
"""

import gzip
import hashlib
import re
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from statistics import fmean

from bitwright.quant import InputError

from .cell_functions import read_function
from .technology import (
    Cell,
    EnergyTable,
    FlipFlop,
    InputPin,
    OutputPin,
    Table,
    Technology,
    WireLoad,
)

_PICOSECONDS = {"ps": 1.0, "ns": 1e3, "us": 1e6}
_FEMTOFARADS = {"ff": 1.0, "pf": 1e3}
_NANOWATTS = {"pw": 1e-3, "nw": 1.0, "uw": 1e3, "mw": 1e6}
_VOLTS = {"mv": 1e-3, "v": 1.0}


# --- writing ---------------------------------------------------------------------------------


def write_liberty(technology: Technology) -> str:
    """One Liberty file with the technology's cells: ps, fF, nW, um2, NLDM tables."""
    lines = [
        f"library ({technology.name}) {{",
        f'  comment : "{technology.source}";',
        "  delay_model : table_lookup;",
        '  time_unit : "1ps";',
        '  voltage_unit : "1V";',
        '  current_unit : "1mA";',
        '  leakage_power_unit : "1nW";',
        '  pulling_resistance_unit : "1kohm";',
        "  capacitive_load_unit (1, ff);",
        f"  nom_voltage : {technology.voltage};",
    ]
    shapes = {
        (len(o.slew_ps), len(o.load_fF))
        for cell in technology.cells.values()
        for o in cell.outputs.values()
    }
    for rows, columns in sorted(shapes):
        lines += [
            f"  lu_table_template (t{rows}x{columns}) {{",
            "    variable_1 : input_net_transition;",
            "    variable_2 : total_output_net_capacitance;",
            f"    index_1 ({_numbers(range(rows))});",
            f"    index_2 ({_numbers(range(columns))});",
            "  }",
        ]
    for cell in technology.cells.values():
        lines += _cell_lines(cell)
    return "\n".join([*lines, "}", ""])


def _cell_lines(cell: Cell) -> Iterator[str]:
    yield f"  cell ({cell.name}) {{"
    yield f"    area : {cell.area_um2};"
    yield f"    cell_leakage_power : {cell.leakage_nW};"
    if cell.ff is not None:
        yield f"    ff ({', '.join(cell.ff.state)}) {{"
        yield f'      clocked_on : "{cell.ff.clocked_on}";'
        yield f'      next_state : "{cell.ff.next_state}";'
        if cell.ff.clear:
            yield f'      clear : "{cell.ff.clear}";'
        if cell.ff.preset:
            yield f'      preset : "{cell.ff.preset}";'
        yield "    }"
    clock = next((name for name, pin in cell.pins.items() if pin.clock), None)
    for name, pin in cell.pins.items():
        yield f"    pin ({name}) {{"
        yield "      direction : input;"
        yield f"      capacitance : {pin.cap_fF};"
        if pin.clock:
            yield "      clock : true;"
        if pin.setup_ps is not None and clock is not None:
            yield "      timing () {"
            yield f'        related_pin : "{clock}";'
            yield "        timing_type : setup_rising;"
            for kind in ("rise_constraint", "fall_constraint"):
                yield f'        {kind} (scalar) {{ values ("{pin.setup_ps}"); }}'
            yield "      }"
        yield "    }"
    for name, output in cell.outputs.items():
        yield f"    pin ({name}) {{"
        yield "      direction : output;"
        yield f'      function : "{output.function}";'
        if output.max_cap_fF is not None:
            yield f"      max_capacitance : {output.max_cap_fF};"
        tables = {
            "cell_rise": output.delay_rise_ps,
            "cell_fall": output.delay_fall_ps,
            "rise_transition": output.slew_rise_ps,
            "fall_transition": output.slew_fall_ps,
        }
        for pin_name, sense in output.sense.items():
            yield "      timing () {"
            yield f'        related_pin : "{pin_name}";'
            yield f"        timing_sense : {sense};"
            if cell.ff is not None:
                yield "        timing_type : rising_edge;"
            for kind, table in tables.items():
                yield f"        {kind} (t{len(output.slew_ps)}x{len(output.load_fF)}) {{"
                yield f"          index_1 ({_numbers(output.slew_ps)});"
                yield f"          index_2 ({_numbers(output.load_fF)});"
                yield f"          values ({', '.join(_numbers(row) for row in table)});"
                yield "        }"
            yield "      }"
        yield "    }"
    yield "  }"


def _numbers(values: Sequence[float]) -> str:
    return '"' + ", ".join(str(v) for v in values) + '"'


# --- looking up ------------------------------------------------------------------------------


def interpolate(
    rows: Sequence[float], columns: Sequence[float], table: Table, row: float, column: float
) -> float:
    """The table's value at a point, bilinear; outside, the outermost cell is extended."""

    def bracket(axis: Sequence[float], x: float) -> tuple[int, float]:
        if len(axis) == 1:
            return 0, 0.0
        i = 0
        while i < len(axis) - 2 and x > axis[i + 1]:
            i += 1
        return i, (x - axis[i]) / (axis[i + 1] - axis[i])

    i, y = bracket(rows, row)
    j, x = bracket(columns, column)

    def along(values: Sequence[float]) -> float:
        return values[j] if len(columns) == 1 else values[j] + x * (values[j + 1] - values[j])

    first = along(table[i])
    return first if len(rows) == 1 else first + y * (along(table[i + 1]) - first)


# --- reading ---------------------------------------------------------------------------------


@dataclass
class Group:
    """`kind (args) { ... }` of a Liberty file."""

    kind: str
    args: tuple[str, ...]
    attributes: dict[str, str] = field(default_factory=dict)  #: `name : value;`
    lists: dict[str, tuple[str, ...]] = field(default_factory=dict)  #: `name (values);`, the last
    #: All of them in their order, with those that repeat a name.
    statements: list[tuple[str, tuple[str, ...]]] = field(default_factory=list)
    groups: list["Group"] = field(default_factory=list)

    def children(self, kind: str) -> list["Group"]:
        return [group for group in self.groups if group.kind == kind]

    def repeated(self, name: str) -> list[tuple[str, ...]]:
        """The values of every `name (values);`."""
        return [values for stated, values in self.statements if stated == name]


_GAP = re.compile(r"(?:\s|\\\n|/\*.*?\*/|//[^\n]*)*", re.DOTALL)
_NAME = re.compile(r"[A-Za-z_][\w.\[\]]*")
_VALUE = re.compile(r'[ \t]*("(?:[^"\\]|\\.)*"|[^;\n{}]*)', re.DOTALL)
_ARGS = re.compile(r'((?:"(?:[^"\\]|\\.)*"|/\*.*?\*/|[^")])*)\)', re.DOTALL)
_ARG = re.compile(r'"((?:[^"\\]|\\.)*)"|([^\s,"\\]+)', re.DOTALL)


def parse_liberty(text: str, file: str = "Liberty text") -> Group:
    """The tree of a Liberty file's `library` group.

    Raises:
        InputError: It is not Liberty or it ends too early; the message names file and line.
    """
    root = Group("file", ())
    open_groups = [root]
    at = _end_of_gap(text, 0)
    while at < len(text):
        if text[at] == "}":
            if len(open_groups) == 1:
                raise _syntax_error(text, at, file, "'}' closes nothing")
            open_groups.pop()
            at += 1
        elif text[at] == ";":
            at += 1
        else:
            name = _NAME.match(text, at)
            if name is None:
                raise _syntax_error(text, at, file, f"expected a name, found {text[at]!r}")
            at = _end_of_gap(text, name.end())
            if text.startswith(":", at):
                value = _VALUE.match(text, at + 1)
                assert value is not None  # it matches the empty string
                open_groups[-1].attributes[name[0]] = value[1].strip().strip('"')
                at = value.end()
            elif text.startswith("(", at):
                inside = _ARGS.match(text, at + 1)
                if inside is None:
                    raise _syntax_error(text, at, file, f"{name[0]} ( is never closed")
                args = tuple(quoted or bare for quoted, bare in _ARG.findall(inside[1]))
                at = _end_of_gap(text, inside.end())
                if text.startswith("{", at):
                    group = Group(name[0], args)
                    open_groups[-1].groups.append(group)
                    open_groups.append(group)
                    at += 1
                else:
                    open_groups[-1].lists[name[0]] = args
                    open_groups[-1].statements.append((name[0], args))
            else:
                raise _syntax_error(text, at, file, f"expected ':' or '(' after {name[0]}")
        at = _end_of_gap(text, at)
    if len(open_groups) > 1:
        raise InputError(
            f"{file} is cut short: {open_groups[-1].kind} ({', '.join(open_groups[-1].args)}) "
            "is never closed; give the whole Liberty file"
        )
    if len(root.groups) != 1 or root.groups[0].kind != "library":
        raise InputError(f"{file} holds no library group; give a Liberty file (.lib or .lib.gz)")
    return root.groups[0]


def _end_of_gap(text: str, at: int) -> int:
    match = _GAP.match(text, at)
    assert match is not None  # it matches the empty string
    return match.end()


def _syntax_error(text: str, at: int, file: str, what: str) -> InputError:
    line = text.count("\n", 0, at) + 1
    return InputError(f"{file}, line {line}: {what}; give a Liberty file (.lib or .lib.gz)")


def read_liberty(paths: Sequence[str | Path], clock_ps: float = 1000.0) -> Technology:
    """A technology made of Liberty files, which count as one library.

    Args:
        paths: Liberty files, plain or compressed with gzip.
        clock_ps: The period that synthesis aims at.

    Returns:
        A technology named after its files. Cells that synthesis cannot use (marked dont_use,
        latches, tri-state and bus cells, outputs without a function) are left out of `cells`.
        Timing tables are averaged over the arcs of each output. The default wire load is that of
        the first file that has one.

    Raises:
        InputError: A file is missing or is not Liberty, or there is no cell to map with.
    """
    if not paths:
        raise InputError("no Liberty file was given")
    texts: list[str] = []
    cells: dict[str, Cell] = {}
    voltages: list[float] = []
    refused: dict[str, str] = {}
    wires: WireLoad | None = None
    no_power = ""
    for path in map(Path, paths):
        text = _read_text(path)
        library = parse_liberty(text, str(path))
        voltages.append(_number(library.attributes.get("nom_voltage", "0"), "nom_voltage", path))
        try:
            for cell in _cells(library, refused):
                cells.setdefault(cell.name, cell)
            wires = wires or _default_wire_load(library, path)
        except KeyError as error:
            raise InputError(f"{path} is not a usable Liberty file: no {error.args[0]}") from None
        except (ValueError, IndexError) as error:
            raise InputError(f"{path} is not a usable Liberty file: {error}") from None
        no_power = no_power or _no_power(library, path)
        texts.append(text)
    names = ", ".join(Path(path).name for path in paths)
    if not any(cell.ff for cell in cells.values()):
        raise InputError(f"{names}: no flip-flop; give the library's sequential cells as well")
    if not any(_is_inverter(cell) for cell in cells.values()):
        raise InputError(f"{names}: no inverter; give the library's inverters as well")
    digest = hashlib.sha256("\0".join(texts).encode()).hexdigest()[:12]
    stem = "+".join(re.sub(r"\.lib(\.gz)?$", "", Path(path).name) for path in paths)
    return Technology(
        name=stem,
        cells=cells,
        voltage=max(voltages),
        source=f"Liberty {names} (sha256 {digest})",
        clock_ps=clock_ps,
        liberty=tuple(texts),
        wire_load=wires,
        no_power=no_power,
        refused=refused,
    )


def _no_power(library: Group, path: Path) -> str:
    """Why a library cannot say what energy is used; empty if it can."""
    stated = library.attributes.keys() | library.lists.keys()
    for unit in ("capacitive_load_unit", "leakage_power_unit", "voltage_unit"):
        if unit not in stated:
            return f"{path} states no {unit}, so its energies have no unit; add the line"
    if not _number(library.attributes.get("nom_voltage", "0"), "nom_voltage", path) > 0:
        return f"{path} states no nom_voltage, so its energies have no voltage; add the line"
    for cell in library.children("cell"):
        if any(pin.children("internal_power") for pin in cell.children("pin")):
            return ""
    return f"{path} has no power tables (internal_power); give a Liberty file with them"


def _is_inverter(cell: Cell) -> bool:
    return (
        cell.ff is None
        and len(cell.pins) == 1
        and all(set(o.sense.values()) == {"negative_unate"} for o in cell.outputs.values())
    )


def _read_text(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(
            f"Liberty file {path} cannot be read: {error.strerror}; give a .lib or .lib.gz file"
        ) from None
    if data[:2] == b"\x1f\x8b":
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise InputError(f"Liberty file {path} is damaged: {error}; fetch it again") from None
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("latin-1")  # names of people in comments; Liberty itself is ASCII


@dataclass(frozen=True)
class _Units:
    ps: float
    ff: float
    nw: float
    fj: float


def _cells(library: Group, refused: dict[str, str]) -> Iterator[Cell]:
    """The cells that can be used; `refused` gets the others and what they are."""
    volt = _unit(library.attributes.get("voltage_unit", "1V"), _VOLTS)
    ff = _load_unit_fF(library)
    units = _Units(
        ps=_unit(library.attributes.get("time_unit", "1ns"), _PICOSECONDS),
        ff=ff,
        nw=_unit(library.attributes.get("leakage_power_unit", "1nW"), _NANOWATTS),
        fj=ff * volt**2,  # Liberty: energies are in units of the load times the voltage squared
    )
    templates = {
        template.args[0]: template
        for kind in ("lu_table_template", "power_lut_template")
        for template in library.children(kind)
        if template.args
    }
    for group in library.children("cell"):
        cell = _read_cell(group, units, templates)
        if isinstance(cell, Cell):
            yield cell
        elif group.args:
            refused[group.args[0]] = cell


_REFUSED = {
    "latch": "latch",
    "latch_bank": "latch",
    "ff_bank": "flip-flop bank",
    "statetable": "state table",
    "bus": "bus cell",
    "bundle": "bus cell",
    "memory": "memory",
}


def _read_cell(group: Group, units: _Units, templates: Mapping[str, Group]) -> Cell | str:
    """The cell, or what it is that cannot be used."""
    if group.attributes.get("dont_use", "").lower() == "true":
        return "dont_use"
    for child in group.groups:
        if child.kind in _REFUSED:
            return _REFUSED[child.kind]
    flip_flops = group.children("ff")
    if len(flip_flops) > 1:
        return "two flip-flops in one"
    ff = None
    if flip_flops:
        found = flip_flops[0]
        ff = FlipFlop(
            clocked_on=found.attributes["clocked_on"],
            next_state=found.attributes["next_state"],
            state=(found.args[0], found.args[1]),
            clear=found.attributes.get("clear"),
            preset=found.attributes.get("preset"),
        )
    pins: dict[str, InputPin] = {}
    outputs: dict[str, OutputPin] = {}
    for pin in group.children("pin"):
        direction = pin.attributes.get("direction")
        if direction == "input":
            for name in pin.args:
                pins[name] = _input_pin(pin, group, units, templates)
        elif direction == "output" and "function" in pin.attributes:
            if "three_state" in pin.attributes:
                return "tri-state cell"
            for name in pin.args:
                outputs[name] = _output_pin(pin, units, templates)
        elif direction != "internal":
            return "cell with a pin that is neither input nor output with a function"
    if not outputs:
        return "cell without an output"
    for pin in group.children("pin") if ff is not None else ():
        if pin.args and pin.args[0] in pins and pins[pin.args[0]].clock:
            rise = _clock_rise(pin, units, templates)
            if rise is not None:
                outputs = {
                    name: _without_clock(output, rise, len(outputs))
                    for name, output in outputs.items()
                }
    return Cell(
        name=group.args[0],
        area_um2=float(group.attributes.get("area", "0")),
        leakage_nW=_leakage(group) * units.nw,
        pins=pins,
        outputs=outputs,
        ff=ff,
    )


def _leakage(cell: Group) -> float:
    """Leakage in the library's unit: the cell's own number, else the mean over its states."""
    stated = cell.attributes.get("cell_leakage_power")
    if stated:
        return float(stated)
    states: dict[str, float] = {}
    for group in cell.children("leakage_power"):
        # A state's supplies deliver its power together.
        state = group.attributes.get("when", "")
        states[state] = states.get(state, 0.0) + float(group.attributes["value"])
    default = states.pop("", 0.0)  # for the states that are not listed
    return fmean(states.values()) if states else default


def _default_wire_load(library: Group, path: Path) -> WireLoad | None:
    """The wire load that a library sets for every net; None: it sets none, or no capacitance."""
    name = library.attributes.get("default_wire_load")
    for group in library.children("wire_load"):
        if group.args == (name,) and "capacitance" in group.attributes:
            slope = float(group.attributes.get("slope", "0"))
            return WireLoad(
                name=group.args[0],
                fF_per_um=float(group.attributes["capacitance"]) * _load_unit_fF(library),
                um=_lengths(group, slope),
                slope_um=slope,
                source=f"wire_load {group.args[0]} of {path.name}",
            )
    return None


def _lengths(wires: Group, slope: float) -> tuple[float, ...]:
    """Lengths of nets with 1, 2, 3 ... sinks; linear between those that the library has."""
    points = {0: 0.0}
    for values in wires.repeated("fanout_length"):
        fanout, length = " ".join(values).replace(",", " ").split()[:2]
        points[int(float(fanout))] = float(length)
    if len(points) == 1:
        return (slope,)  # nothing but a slope: it starts at no sinks
    given = sorted(points)
    return tuple(
        points[low] + (points[high] - points[low]) * (fanout - low) / (high - low)
        for low, high in pairwise(given)
        for fanout in range(low + 1, high + 1)
    )


def _input_pin(pin: Group, cell: Group, units: _Units, templates: Mapping[str, Group]) -> InputPin:
    # The middle of each table, whose corners are extreme slews; of the edges the slower.
    setups = []
    for timing in pin.children("timing"):
        if timing.attributes.get("timing_type", "").startswith("setup_"):
            for table in timing.groups:
                values = " ".join(table.lists.get("values", ())).replace("\\\n", " ")
                numbers = sorted(float(v) for v in values.replace(",", " ").split())
                setups += numbers[len(numbers) // 2 :][:1]
    clock = pin.attributes.get("clock", "").lower() == "true"
    return InputPin(
        cap_fF=float(pin.attributes.get("capacitance", "0")) * units.ff,
        clock=clock,
        setup_ps=max(setups) * units.ps if setups else None,
        internal=(
            _clock_internal(pin, units, templates)
            if clock
            else _passive(pin, cell, units, templates)
        ),
    )


_TABLES = ("cell_rise", "cell_fall", "rise_transition", "fall_transition")
_DELAY_ARCS = {"", "combinational", "rising_edge", "falling_edge"}


def _output_pin(pin: Group, units: _Units, templates: Mapping[str, Group]) -> OutputPin:
    sense: dict[str, str] = {}
    slews: tuple[float, ...] = ()
    loads: tuple[float, ...] = ()
    tables: dict[str, list[Table]] = {kind: [] for kind in _TABLES}
    for timing in pin.children("timing"):
        if timing.attributes.get("timing_type", "") not in _DELAY_ARCS:
            continue
        for related in timing.attributes.get("related_pin", "").split():
            sense[related] = timing.attributes.get("timing_sense", "non_unate")
        for kind in _TABLES:
            for group in timing.children(kind):
                rows, columns, table = _read_table(group, units, templates, units.ps)
                slews, loads = slews or rows, loads or columns
                if (rows, columns) != (slews, loads):  # an average needs common points
                    table = tuple(
                        tuple(interpolate(rows, columns, table, s, c) for c in loads) for s in slews
                    )
                tables[kind].append(table)
    maximum = pin.attributes.get("max_capacitance")
    return OutputPin(
        function=pin.attributes["function"],
        sense=sense,
        max_cap_fF=float(maximum) * units.ff if maximum else None,
        slew_ps=slews,
        load_fF=loads,
        delay_rise_ps=_mean(tables["cell_rise"]),
        delay_fall_ps=_mean(tables["cell_fall"]),
        slew_rise_ps=_mean(tables["rise_transition"]),
        slew_fall_ps=_mean(tables["fall_transition"]),
        internal=_internal(pin, units, templates),
    )


#: Edges that a table is for; others are named after one.
_EDGES = {"power": ("rise", "fall")}
#: Slews, loads and values of a table.
_Points = tuple[tuple[float, ...], tuple[float, ...], Table]


def _internal(pin: Group, units: _Units, templates: Mapping[str, Group]) -> EnergyTable | None:
    """An output's energy per transition: the mean of its conditions and related pins, of rises and
    falls; what different supplies deliver is added up. None: the pin has no such tables."""
    return _combined(_edges(pin, units, templates), 0.5)


def _clock_internal(
    pin: Group, units: _Units, templates: Mapping[str, Group]
) -> EnergyTable | None:
    """The same of a clock whose flip-flop keeps its value.

    Edges at which an output changes have tables of zeros, because their energy is in the output's
    table. They are left out, and `_without_clock` takes this energy off the output's.
    """
    edges = _edges(pin, units, templates)
    held = {edge: [t for t in tables if _any(t)] or tables for edge, tables in edges.items()}
    return _combined(held, 0.5)


def _passive(
    pin: Group, cell: Group, units: _Units, templates: Mapping[str, Group]
) -> EnergyTable | None:
    """The same of a data input by itself, by the part of the cell's states that each condition
    holds in: in states without a table nothing is used."""
    edges = _edges(pin, units, templates)
    scaled: dict[tuple[str, str], list[_Points]] = {}
    for edge, tables in edges.items():
        shares = [_share(power.attributes.get("when"), cell) for power in _powers(pin, *edge)]
        most = max(1.0, sum(shares))
        scaled[edge] = [
            (rows, columns, tuple(tuple(v * len(tables) * share / most for v in r) for r in table))
            for (rows, columns, table), share in zip(tables, shares, strict=True)
        ]
    return _combined(scaled, 0.5)


def _powers(pin: Group, supply: str, edge: str) -> Iterator[Group]:
    """The groups that have a table for an edge, once for each table; the order is `_edges`'."""
    for power in pin.children("internal_power"):
        if power.attributes.get("related_pg_pin", "") == supply:
            for group in power.groups:
                if edge in _EDGES.get(group.kind, (group.kind[:4],)):
                    yield power


def _share(when: str | None, cell: Group) -> float:
    """The part of a cell's states in which a condition holds, all inputs and states alike."""
    if not when:
        return 1.0
    functions, states = {}, {}
    for flip_flop in cell.children("ff"):
        states[flip_flop.args[1]] = flip_flop.args[0]
    inputs = [*states.values()]
    for pin in cell.children("pin"):
        for name in pin.args:
            if pin.attributes.get("direction") == "output" and "function" in pin.attributes:
                functions[name] = pin.attributes["function"]
            else:
                inputs.append(name)
    try:
        condition = read_function(when, [*inputs, *functions])
        trees = {name: read_function(text, [*inputs, *states]) for name, text in functions.items()}
    except InputError:
        return 1.0  # a condition on what is no function of inputs and states
    holds = 0
    for case in range(1 << len(inputs)):
        values = {name: case >> i & 1 for i, name in enumerate(inputs)}
        values |= {inverse: values[state] ^ 1 for inverse, state in states.items()}
        values |= {name: tree.value(values) for name, tree in trees.items()}
        holds += condition.value(values)
    return holds / (1 << len(inputs))


def _without_clock(output: OutputPin, rise: EnergyTable, outputs: int) -> OutputPin:
    """The output without its share of a clock edge that is counted in every cycle."""
    table = output.internal
    if table is None:
        return output
    values = tuple(
        tuple(
            value - interpolate(rise.slew_ps, rise.load_fF, rise.fJ, slew, 0.0) / outputs
            for value in row
        )
        for slew, row in zip(table.slew_ps, table.fJ, strict=True)
    )
    return replace(output, internal=replace(table, fJ=values))


def _clock_rise(pin: Group, units: _Units, templates: Mapping[str, Group]) -> EnergyTable | None:
    """Energy of a clock's rise while the flip-flop keeps its value, if libraries tell that apart
    from a rise that changes it."""
    edges = _edges(pin, units, templates)
    rises = {edge: tables for edge, tables in edges.items() if edge[1] == "rise"}
    if all(_any(table) for tables in rises.values() for table in tables):
        return None
    return _combined({e: [t for t in tables if _any(t)] for e, tables in rises.items()}, 1.0)


def _any(table: _Points) -> bool:
    return any(value for row in table[2] for value in row)


def _edges(
    pin: Group, units: _Units, templates: Mapping[str, Group]
) -> dict[tuple[str, str], list[_Points]]:
    """Supply and edge -> the tables of all conditions and related pins."""
    edges: dict[tuple[str, str], list[_Points]] = {}
    for power in pin.children("internal_power"):
        supply = power.attributes.get("related_pg_pin", "")
        for group in power.groups:
            table = _read_table(group, units, templates, units.fj)
            for edge in _EDGES.get(group.kind, (group.kind[:4],)):
                edges.setdefault((supply, edge), []).append(table)
    return edges


def _combined(
    edges: Mapping[tuple[str, str], Sequence[_Points]], weight: float
) -> EnergyTable | None:
    """The sum over supplies and edges of the mean of their tables, times the weight."""
    tables = [table for each in edges.values() for table in each]
    if not tables:
        return None
    # The largest axes of the pin: those of a scalar are a single point.
    slews, loads, _ = max(tables, key=lambda table: len(table[0]) * len(table[1]))
    total = [[0.0] * len(loads) for _ in slews]
    for each in edges.values():
        for rows, columns, table in each:
            for i, slew in enumerate(slews):
                for j, load in enumerate(loads):
                    value = interpolate(rows, columns, table, slew, load)
                    total[i][j] += value / len(each) * weight
    return EnergyTable(slews, loads, tuple(map(tuple, total)))


def _mean(tables: Sequence[Table]) -> Table:
    return tuple(
        tuple(fmean(points) for points in zip(*rows, strict=True))
        for rows in zip(*tables, strict=True)
    )


def _read_table(
    group: Group, units: _Units, templates: Mapping[str, Group], scale: float
) -> tuple[tuple[float, ...], tuple[float, ...], Table]:
    """Slews in ps, loads in fF, and the table's values times `scale`."""
    values = tuple(
        tuple(float(v) * scale for v in row.replace("\\\n", " ").replace(",", " ").split())
        for row in group.lists["values"]
    )
    template = templates.get(group.args[0]) if group.args else None
    axes: dict[str, tuple[float, ...]] = {}
    order = []
    for i in ("1", "2"):
        variable = template.attributes.get(f"variable_{i}") if template else None
        if template is None or variable is None:
            continue
        index = group.lists.get(f"index_{i}") or template.lists[f"index_{i}"]
        variable = {"input_transition_time": "input_net_transition"}.get(variable, variable)
        axes[variable] = tuple(float(v) for part in index for v in part.replace(",", " ").split())
        order.append(variable)
    slews = tuple(s * units.ps for s in axes.pop("input_net_transition", (0.0,)))
    loads = tuple(c * units.ff for c in axes.pop("total_output_net_capacitance", (0.0,)))
    if axes:
        raise ValueError(f"table over {', '.join(axes)} is not supported")
    flat = [v for row in values for v in row]
    if len(flat) != len(slews) * len(loads):
        raise ValueError(f"a table holds {len(flat)} values for {len(slews)} x {len(loads)} points")
    if order[:1] == ["total_output_net_capacitance"]:
        return slews, loads, tuple(tuple(flat[i :: len(slews)]) for i in range(len(slews)))
    width = len(loads)
    return slews, loads, tuple(tuple(flat[i : i + width]) for i in range(0, len(flat), width))


def _load_unit_fF(library: Group) -> float:  # noqa: N802
    return _unit("".join(library.lists.get("capacitive_load_unit", ("1", "pf"))), _FEMTOFARADS)


def _unit(text: str, scales: Mapping[str, float]) -> float:
    match = re.fullmatch(r"\s*([\d.eE+-]+)\s*([a-zA-Z]+)\s*", text)
    if match is None or match[2].lower() not in scales:
        raise ValueError(f"unit {text!r} is not one of {', '.join(scales)}")
    return float(match[1]) * scales[match[2].lower()]


def _number(text: str, what: str, path: Path) -> float:
    try:
        return float(text)
    except ValueError:
        raise InputError(f"{path}: {what} {text!r} is not a number") from None
