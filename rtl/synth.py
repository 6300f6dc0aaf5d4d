"""Synthesis: Verilog to a netlist of standard cells, its area and its critical path.

Yosys optimises the Verilog and maps registers, ABC maps the logic. Four ABC scripts (three in large
modules), from the smallest to the fastest logic, are tried; with a target period the smallest
netlist that reaches it is taken, and the fastest one if none does. Numbers are pre-layout: cells
only, no wires, no clock tree, no margin.

The delay is register to register:

    clock-to-output of the flip-flop (no load, clock slew of a buffer driving four like it)
    + ABC's critical path (NLDM tables; every input driven by the smallest buffer, whose
      load-dependent delay and slew count; every output loaded with a flip-flop's data pin)
    + setup time of the flip-flop.

Inputs and outputs of the module count as registers outside.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from bitwright.quant import InputError, cache_folder, write_text

from .liberty import interpolate
from .technology import Cell, Technology
from .tools import digest
from .yosys import run_yosys, yosys_version

_PREPARE = "strash; &get -n; &fraig -x; &put; scorr; dc2; "
_SIZE = "; topo; buffer; topo; upsize -D {D}; dnsize -D {D}; stime -p"

#: Name -> ABC script; {D} is the time that the logic may take, in ps. Beside each its um2 and ps on
#: Nangate45 at a target of 1000 ps: an 8-bit multiply-accumulate, and the bit-serial PE.
STRATEGIES: Mapping[str, str] = {
    # 768, 1252; 3021, 2761
    "area": _PREPARE + "strash; dch -f; amap -m" + _SIZE,
    # 774, 968; 3243, 2573
    "balanced": _PREPARE + "dc2; strash; dch -f; map -a -B 0.9" + _SIZE,
    # 766, 955; 3392, 2136
    "delay": _PREPARE + "strash; dch -f; map -B 0.9 -D {D}" + _SIZE,
    # 935, 852; 3756, 1867
    "speed": "strash; &get -n; &fraig -x; &put; scorr; &get -n; &st; &dch; &syn4; &synch2; &put; "
    "dch -f; map -B 0.9 -D {D}" + _SIZE,
}

#: For modules of more than LARGE assignments, arrays of adders mostly, in which the scripts above
#: would look for equivalent signals for hours. On the MXFP4 PE and Nangate45 "area" here gives 4561
#: um2 in 3 s, "area" above 4568 um2 in 16 s.
LARGE = 1_000
LARGE_STRATEGIES: Mapping[str, str] = {
    "area": "strash; ifraig; dc2; dc2; dch -f; amap -m" + _SIZE,
    "delay": "strash; ifraig; dc2; dc2; dch -f; map -B 0.9 -D {D}" + _SIZE,
    "speed": "strash; ifraig; &get -n; &st; &dch; &syn4; &synch2; &put; dch -f; map -B 0.9 -D {D}"
    + _SIZE,
}

_NO_HURRY_PS = 1e6  # a target that leaves every gate at its smallest

_CACHE_FORMAT = "1"  # part of every key: raise it when the result's meaning changes


@dataclass(frozen=True)
class SynthesisResult:
    """A mapped module."""

    top: str
    technology: str
    technology_source: str
    area_um2: float
    cells: int
    cells_by_type: Mapping[str, int]
    registers: int  #: flip-flops among `cells`
    register_area_um2: float
    logic_ps: float  #: ABC's critical path, load-dependent delay of its driver included
    register_ps: float  #: clock-to-output and setup; 0 in a module without registers
    clock_ps: float | None  #: target period, None: smallest area
    strategy: str  #: key of STRATEGIES that was taken
    #: Verilog: instances of cells, `netlist_models` has their models. No initial values.
    netlist: str
    hash: str  #: of everything that the result depends on

    @property
    def delay_ps(self) -> float:
        """Register-to-register critical path, the shortest clock period."""
        return round(self.logic_ps + self.register_ps, 3)

    @property
    def f_max_mhz(self) -> float:
        return 1e6 / self.delay_ps if self.delay_ps else float("inf")

    @property
    def source(self) -> str:
        return f"synthesis {self.hash[:12]}, {self.technology}"


def synthesise(
    verilog: str,
    top: str,
    technology: Technology,
    clock_ps: float | None = None,
    flatten: bool = True,
    *,
    timeout_s: float = 600,
) -> SynthesisResult:
    """Map a module onto a technology; the same inputs give the cached result.

    Args:
        verilog: The module and those it uses.
        top: Its name.
        technology: The cells.
        clock_ps: Target period. None: the smallest area, whatever its delay.
        flatten: Dissolve the hierarchy. If not, `logic_ps` is the longest path within one module.
        timeout_s: Yosys is stopped after this many seconds.

    Raises:
        InputError: A period that is not positive, a tool or a cell is missing.
        RuntimeError: Yosys refuses the Verilog; the message ends with why.
    """
    if clock_ps is not None and not clock_ps > 0:
        raise InputError(f"clock_ps is {clock_ps:g}; give a period in ps above 0")
    register_ps = _register_ps(technology, _flip_flops(technology))
    # What registers take of the period is not there for the logic.
    logic_ps = _NO_HURRY_PS if clock_ps is None else max(clock_ps - register_ps, 1.0)
    large = verilog.count("assign ") > LARGE
    strategies = LARGE_STRATEGIES if large else STRATEGIES
    inputs, script = _script(top, technology, logic_ps, flatten, large)
    inputs["design.v"] = verilog
    files = [text for item in sorted(inputs.items()) for text in item]
    key = digest(_CACHE_FORMAT, yosys_version(), technology.name, script, *files)
    cached = cache_folder("synthesis") / f"{key}.json"
    result = _load(cached)
    if result is None:
        outputs = [f"{kind}_{s}" for s in strategies for kind in ("stat", "abc", "netlist")]
        log, files_out = run_yosys(script, inputs, outputs, timeout_s=timeout_s)
        candidates = [_result(s, files_out, top, technology, clock_ps, key) for s in strategies]
        result = _best(candidates, clock_ps)
        _store(cached, result)
    return result


def _script(
    top: str, technology: Technology, logic_ps: float, flatten: bool, large: bool = False
) -> tuple[dict[str, str], str]:
    """Input files and the Yosys script."""
    texts = technology.liberty_texts
    inputs = {f"cells{i}.lib": text for i, text in enumerate(texts)}
    liberty = " ".join(f"-liberty {file}" for file in inputs)
    load = min(_data_cap_fF(cell) for cell in _flip_flops(technology))
    inputs["constraints"] = f"set_driving_cell {_buffer(technology).name}\nset_load {load:.4f}\n"
    lines = [
        "read_verilog design.v",
        f"synth {'-noabc ' if large else ''}-booth {'-flatten ' if flatten else ''}-top {top}",
        f"dfflibmap {liberty}",
        "setundef -zero",
        "opt",
        "design -save registers_mapped",
    ]
    for name, commands in (LARGE_STRATEGIES if large else STRATEGIES).items():
        inputs[f"script_{name}"] = commands.replace("{D}", f"{logic_ps:.0f}") + "\n"
        lines += [
            "design -load registers_mapped",
            f"tee -q -o abc_{name} abc {liberty} -constr constraints -script script_{name}",
            "opt_clean -purge",
            f"tee -q -o stat_{name} stat -json {liberty}",
            f"write_verilog -noattr -noexpr netlist_{name}",
        ]
    return inputs, "\n".join(lines) + "\n"


def _result(
    strategy: str,
    files: Mapping[str, str],
    top: str,
    technology: Technology,
    clock_ps: float | None,
    key: str,
) -> SynthesisResult:
    stat = json.loads(files[f"stat_{strategy}"])["design"]
    by_type = {name: int(count) for name, count in sorted(stat["num_cells_by_type"].items())}
    unknown = [name for name in by_type if name not in technology.cells]
    if unknown:
        raise InputError(
            f"{top} needs cell {unknown[0]}, which technology {technology.name} does not describe; "
            "use a library with more cells, or mark a cell that must not be used dont_use"
        )
    used = [technology.cells[name] for name in by_type]
    flip_flops = [cell for cell in used if cell.ff is not None]
    delays = re.findall(r"Delay =\s*([\d.]+) ps", files[f"abc_{strategy}"])
    return SynthesisResult(
        top=top,
        technology=technology.name,
        technology_source=technology.source,
        area_um2=round(sum(cell.area_um2 * by_type[cell.name] for cell in used), 6),
        cells=sum(by_type.values()),
        cells_by_type=by_type,
        registers=sum(by_type[cell.name] for cell in flip_flops),
        register_area_um2=round(sum(c.area_um2 * by_type[c.name] for c in flip_flops), 6),
        logic_ps=max(map(float, delays), default=0.0),
        register_ps=round(_register_ps(technology, flip_flops), 3) if flip_flops else 0.0,
        clock_ps=clock_ps,
        strategy=strategy,
        netlist=files[f"netlist_{strategy}"],
        hash=key,
    )


def _best(candidates: Sequence[SynthesisResult], clock_ps: float | None) -> SynthesisResult:
    """The smallest that reaches the period, else the fastest."""
    reach = [c for c in candidates if clock_ps is None or c.delay_ps <= clock_ps]
    if reach:
        return min(reach, key=lambda c: (c.area_um2, c.delay_ps))
    return min(candidates, key=lambda c: (c.delay_ps, c.area_um2))


# --- registers -------------------------------------------------------------------------------


def _flip_flops(technology: Technology) -> list[Cell]:
    """The plain rising-edge flip-flops, which mapping uses unless a design needs others."""
    return [
        cell
        for cell in technology.cells.values()
        if cell.ff and not cell.ff.clear and not cell.ff.preset and cell.ff.clocked_on in cell.pins
    ]


def _buffer(technology: Technology) -> Cell:
    """The smallest buffer, else the smallest inverter."""
    single = [c for c in technology.cells.values() if not c.ff and len(c.pins) == 1]
    for sense in ("positive_unate", "negative_unate"):
        found = [
            cell
            for cell in single
            if len(cell.outputs) == 1
            and all(set(o.sense.values()) == {sense} for o in cell.outputs.values())
        ]
        if found:
            return min(found, key=lambda cell: (cell.area_um2, cell.name))
    raise InputError(f"technology {technology.name} has no buffer and no inverter")


def fanout_of_four_slew_ps(technology: Technology) -> float:
    """The slew at which clocks and inputs arrive: the smallest buffer driving four like it."""
    buffer = _buffer(technology)
    drive = next(iter(buffer.outputs.values()))
    fanout = 4 * next(iter(buffer.pins.values())).cap_fF
    middle = drive.slew_ps[len(drive.slew_ps) // 2]
    return max(
        interpolate(drive.slew_ps, drive.load_fF, table, middle, fanout)
        for table in (drive.slew_rise_ps, drive.slew_fall_ps)
    )


def _data_cap_fF(cell: Cell) -> float:  # noqa: N802
    return max(pin.cap_fF for pin in cell.pins.values() if not pin.clock)


def _register_ps(technology: Technology, flip_flops: Sequence[Cell]) -> float:
    """Clock-to-output without load, plus setup: the slowest edge of the slowest of the cells."""
    if not flip_flops:
        raise InputError(
            f"technology {technology.name} has no flip-flop with a rising clock and no clear"
        )
    clock_slew = fanout_of_four_slew_ps(technology)
    slowest = 0.0
    for cell in flip_flops:
        setup = max((p.setup_ps for p in cell.pins.values() if p.setup_ps is not None), default=0.0)
        assert cell.ff is not None
        # The complementary output of a cell that has both is not what mapping uses.
        outputs = [o for o in cell.outputs.values() if o.function.strip("() ") == cell.ff.state[0]]
        for output in outputs or cell.outputs.values():
            for table in (output.delay_rise_ps, output.delay_fall_ps):
                if table:
                    delay = interpolate(output.slew_ps, output.load_fF, table, clock_slew, 0.0)
                    slowest = max(slowest, delay + setup)
    return slowest


# --- cache -----------------------------------------------------------------------------------


def _store(path: Path, result: SynthesisResult) -> None:
    body = json.dumps(asdict(result))
    write_text(path, json.dumps({"sha256": digest(body), "result": body}))


def _load(path: Path) -> SynthesisResult | None:
    """The stored result; None if there is none or it is damaged."""
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document["sha256"] != digest(document["result"]):
            return None
        return SynthesisResult(**json.loads(document["result"]))
    except (OSError, ValueError, KeyError, TypeError):
        return None
