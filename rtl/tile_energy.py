"""Energy of a tile of the array on real operands, from the netlists of everything in it.

A tile is 8 x 8 PEs and what belongs to them, each mapped onto the technology and run on the streams
that it gets there (`stimuli`):

    PE           the flat PE, by block
    encoder      the bit-serial PE's term encoder and control, one per column
    column unit  hand-over registers of a column's PEs and, for the bit-serial PE, their binary32
                 sums; integer PEs' group scales are applied outside the array and not counted
    registers    the operand words that a tile keeps for itself and its neighbour: one of each row
                 and one of each column
    wires        from the registers and encoders along a row or column of PEs, and to the next tile:
                 one PE's edge (the root of its cell area) per PE and way

Energies are per PE and clock cycle: what a row, a column or a unit shares is divided by its PEs.
States of a PE:

    active   it has operands
    unused   its row has no token: activations are 0 while weights go by
    stalled  nothing is issued; the clock runs, there is no clock gate
    edge     what one interruption (stop and go on) costs beyond its stalled cycles
    skipped  a cycle of the bit-serial PE in which no weight of its column has a term, as it costs
             within the fixed schedule: what leaving it out saves in the PE

Tiles are drawn at random (seeded) until the 95 % interval of the active energy's mean is within
`PRECISION`, and results are cached by a hash of netlists, technology and operands.
"""

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from bitwright.quant import STORED, InputError, QuantizedTensor, cache_folder, write_text
from bitwright.sim import PES, default_accelerator

from . import pe as pe_designs
from .activity import Activity, simulate
from .engine import (
    BitmodCells,
    Cells,
    column_unit_block,
    find_cells,
    operand_register_block,
)
from .netlist import Netlist, read_netlist
from .power import COMPONENTS, Energy, PowerModel, power_model
from .stimuli import (
    EDGE,
    ENCODER_SETUP,
    LANES,
    Schedule,
    Streams,
    Terms,
    TileOperands,
    bitmod_control,
    column_control,
    column_inputs,
    dot_control,
    encoder_streams,
    idle,
    schedule,
    tile_operands,
    without_zero_terms,
)
from .synth import SynthesisResult, synthesise
from .technology import Technology
from .tools import digest
from .wire_load import WireLoad, wire_load

PRECISION = 0.02  #: half width of the 95 % interval over the mean
BATCH = 8  #: tiles simulated side by side
MOST_TILES = 256

_CACHE_FORMAT = "2"  # part of every key: raise it when a result's meaning changes

#: Two-sided 95 % points of Student's t by degrees of freedom; beyond, that of the normal is near.
_T95 = {7: 2.365, 15: 2.131, 23: 2.069, 31: 2.040, 39: 2.023, 47: 2.012, 55: 2.004, 63: 1.998}


@dataclass(frozen=True)
class TileEnergy:
    """Energy of one PE's share of a tile; pJ per PE and clock cycle, leakage apart."""

    pe: str
    technology: str
    voltage: float
    clock_ps: float
    macs: float  #: of one PE in an active cycle
    #: Part ("PE multiply", "encoder", ...) -> component -> pJ of an active cycle.
    breakdown: Mapping[str, Mapping[str, float]]
    active_pj: float
    unused_pj: float
    stalled_pj: float
    edge_pj: float  #: per interruption
    skipped_pj: float | None  #: None: the PE has no terms to skip
    leakage_uw: float
    tiles: int  #: sampled
    cycles: int  #: simulated clock cycles of a PE, all tiles
    half_width: float  #: of the 95 % interval, over the mean
    seed: int
    netlists: Mapping[str, str]  #: part -> hash of its synthesis
    source: str
    glitches: float = 1.0  #: factor on the PE's switching, estimated and not in any energy here

    @property
    def pj_per_cycle(self) -> float:
        """Active cycle with leakage."""
        return self.active_pj + self.leakage_uw * self.clock_ps * 1e-6

    @property
    def pj_per_mac(self) -> float:
        """The same per multiply-accumulate."""
        return self.pj_per_cycle / self.macs

    @property
    def power_mw(self) -> float:
        """Of a PE at work, at its clock."""
        return self.pj_per_cycle / self.clock_ps * 1e3

    def to_dict(self) -> dict[str, Any]:
        """Values for JSON."""
        return {
            **asdict(self),
            "pj_per_cycle": self.pj_per_cycle,
            "pj_per_mac": self.pj_per_mac,
            "power_mw": self.power_mw,
        }


# ------------------------------------------------------------------ hardware


@dataclass(frozen=True, eq=False)
class _Part:
    """A mapped module and what its toggles cost."""

    synthesis: SynthesisResult
    netlist: Netlist
    power: PowerModel

    def run(self, streams: Streams, warmup: int, record: Sequence[str] = ()) -> Activity:
        return simulate(self.netlist, streams, warmup=warmup, record=record)


class TileHardware:
    """The mapped parts of a tile of one PE."""

    def __init__(
        self,
        pe: str,
        technology: Technology,
        clock_ps: float | None = None,
        *,
        voltage: float | None = None,
        wires: WireLoad | None = None,
    ) -> None:
        """Map the parts; they are read when they first run.

        Args:
            pe: A PE of `DESIGNS` or a variant of one.
            technology: The cells.
            clock_ps: Period that mapping aims at, and that leakage counts with; None: the
                technology's.
            voltage: Supply in V; None: the technology's.
            wires: Wire-load model; None: the technology's.

        Raises:
            InputError: An unknown PE, a technology without energies, a missing tool.
        """
        if technology.no_power:
            raise InputError(technology.no_power)
        self.pe, self.technology = pe, technology
        self.design = pe_designs.find_design(pe)
        self.cells: Cells = find_cells(pe)
        self.clock_ps = technology.clock_ps if clock_ps is None else clock_ps
        self.voltage = technology.voltage if voltage is None else voltage
        self.wires = wires or wire_load(technology)
        accelerator = default_accelerator(pe) if pe in PES else None
        #: PEs of a column that share a column unit.
        self.unit_rows = min(EDGE, accelerator.rows_per_accumulator) if accelerator else 1
        self._verilog = self._modules()

    def _modules(self) -> dict[str, tuple[str, str]]:
        """Part -> its Verilog and top module."""
        to_verilog, name = pe_designs.logic.to_verilog, re.sub(r"\W", "_", self.pe)
        blocks = self.design.blocks()
        texts = {"PE": blocks["total"]}
        if isinstance(self.cells, BitmodCells):
            texts["encoder"] = blocks["encoder"]
        for part, block in (
            ("column unit", column_unit_block(self.cells, self.unit_rows)),
            ("row registers", operand_register_block(self.cells.x_ports)),
            ("column registers", operand_register_block(self.cells.w_ports)),
        ):
            texts[part] = to_verilog(block, f"{name}_{part.replace(' ', '_')}")
        tops = {part: re.findall(r"^\s*module\s+(\w+)", t, re.M)[-1] for part, t in texts.items()}
        return {part: (text, tops[part]) for part, text in texts.items()}

    @cached_property
    def syntheses(self) -> dict[str, SynthesisResult]:
        """Part -> its netlist."""
        return {
            part: synthesise(text, top, self.technology, self.clock_ps)
            for part, (text, top) in self._verilog.items()
        }

    @cached_property
    def parts(self) -> dict[str, _Part]:
        """Part -> what runs."""
        return {part: self._read(part) for part in self._verilog}

    def _read(self, part: str) -> _Part:
        result = self.syntheses[part]
        netlist = read_netlist(result.netlist, self.technology, name=result.top)
        power = power_model(
            netlist,
            wires=self.wires,
            voltage=self.voltage,
            registers=self.design.registers if part == "PE" else None,
        )
        return _Part(result, netlist, power)

    @property
    def hashes(self) -> dict[str, str]:
        """Part -> hash of its synthesis."""
        return {part: result.hash[:12] for part, result in self.syntheses.items()}

    @property
    def edge_um(self) -> float:
        """Edge of a square of the PE's cells."""
        return math.sqrt(self.syntheses["PE"].area_um2)

    @property
    def wire_fj(self) -> float:
        """Energy of a toggle on a wire as long as a PE's edge."""
        return 0.5 * self.wires.fF_per_um * self.edge_um * self.voltage**2

    @cached_property
    def leakage_uw(self) -> float:
        """Of a PE with its share of a tile."""
        share = {"PE": 1, "encoder": EDGE, "column unit": self.unit_rows}
        return sum(
            float(part.power.leakage_nW.sum()) / share.get(name, EDGE) * 1e-3
            for name, part in self.parts.items()
        )

    # -------------------------------------------------------------- running

    def run(self, tiles: TileOperands, plan: Schedule, *, unused: bool = False) -> "_Run":
        """One schedule of several tiles through every part.

        Args:
            tiles: Their operands.
            plan: What is issued when.
            unused: Rows have no tokens: activations are 0.
        """
        rows, columns = tiles.rows(plan), tiles.columns(plan)
        if unused:
            rows = {port: np.zeros_like(values) for port, values in rows.items()}
        activity: dict[str, Activity] = {}
        warmup = plan.warmup
        record = tuple(self.parts["PE"].netlist.outputs)
        streams = self._pe_streams(tiles, plan, rows, activity)
        activity["PE"] = self.parts["PE"].run(streams, warmup, record)
        sums = column_inputs(activity["PE"].outputs, self.unit_rows)
        below = {**sums, **column_control(plan, self.cells, self.unit_rows)}
        activity["column unit"] = self.parts["column unit"].run(below, warmup, ("result",))
        activity["row registers"] = self.parts["row registers"].run(rows, warmup)
        activity["column registers"] = self.parts["column registers"].run(columns, warmup)
        return _Run(self, plan, activity)

    def _pe_streams(
        self,
        tiles: TileOperands,
        plan: Schedule,
        rows: Streams,
        activity: dict[str, Activity] | None = None,
    ) -> Streams:
        """Ports of the PEs; the term encoders' activity is added to `activity`."""
        part = self.parts["PE"]
        if isinstance(self.cells, BitmodCells):
            terms = self.encode(tiles, plan, activity)
            return _known({**rows, **terms.lanes, **bitmod_control(terms)}, part)
        quiet = ~plan.issued[:, None]
        zeroed = {port: np.where(quiet, 0, values) for port, values in rows.items()}
        control = dot_control(plan, tiles, "shift" in part.netlist.inputs)
        return _known({**zeroed, **tiles.columns(plan), **control}, part)

    def glitch_factor(self, tiles: TileOperands, plan: Schedule, cycles: int = 64) -> float:
        """What glitches multiply the PE's switching and internal energy by, if all cells are
        equally slow and no glitch is too short to pass; an estimate, and part of no result.

        Args:
            tiles: Operands.
            plan: What is issued when.
            cycles: Cycles that count, at most.
        """
        part = self.parts["PE"]
        streams = {
            port: values[: plan.warmup + cycles]
            for port, values in self._pe_streams(tiles, plan, tiles.rows(plan)).items()
        }
        without, with_them = (
            part.power.energy(
                simulate(part.netlist, streams, warmup=plan.warmup, unit_delay=delays),
                self.clock_ps,
            )
            for delays in (False, True)
        )
        moving = ("switching", "internal")
        return sum(map(with_them.component, moving)) / sum(map(without.component, moving))

    def encode(
        self, tiles: TileOperands, plan: Schedule, activity: dict[str, Activity] | None = None
    ) -> Terms:
        """The term encoders' outputs, from their netlist."""
        names = [f"{kind}{i}" for i in range(4) for kind in ("sign", "shift", "live")]
        done = self.parts["encoder"].run(
            encoder_streams(tiles, plan), plan.warmup + ENCODER_SETUP, names
        )
        if activity is not None:
            activity["encoder"] = done
        shape = (len(plan.step), tiles.lanes)
        # Control leaves the encoder two cycles behind its terms; `bitmod_control` makes it again.
        integer = tiles.operands[0].job["mode"] == 0
        return Terms(
            {name: done.outputs[name][ENCODER_SETUP:] for name in names},
            np.broadcast_to((plan.term * (2 if integer else 1) % 8)[:, None], shape),
            np.broadcast_to(plan.issued[:, None], shape),
            np.broadcast_to(plan.ends[:, None], shape),
            tiles.columns(plan)["scale"].astype(np.int64),
        )

    def skipped_pj(self, tiles: TileOperands, plan: Schedule) -> float | None:
        """What a cycle without a term costs a PE within the fixed schedule; None: there is none."""
        part = self.parts["PE"]
        terms, act = self.encode(tiles, plan), tiles.rows(plan)
        fixed = part.run({**act, **terms.lanes, **bitmod_control(terms)}, plan.warmup)
        shorter, held, dropped = without_zero_terms(terms, act, plan.warmup)
        if not dropped:
            return None
        rest = part.run({**held, **shorter.lanes, **bitmod_control(shorter)}, plan.warmup)

        def total(activity: Activity) -> float:
            energy = part.power.energy(activity, self.clock_ps)
            return float(energy.dynamic_fJ.mean()) * activity.cycles * activity.lanes

        # Columns that finish early wait for the others: their clocks run.
        waited = rest.cycles * rest.lanes - (fixed.cycles * fixed.lanes - dropped)
        waiting = waited * float(part.power.clock_fJ.sum())
        return (total(fixed) - total(rest) + waiting) / dropped * 1e-3


def _known(streams: Streams, part: _Part) -> Streams:
    """Those that the netlist still has: synthesis drops ports that nothing reads."""
    return {port: values for port, values in streams.items() if port in part.netlist.inputs}


@dataclass(frozen=True, eq=False)
class _Run:
    """One schedule's activity, and its energy per PE and cycle."""

    hardware: TileHardware
    plan: Schedule
    activity: Mapping[str, Activity]

    @cached_property
    def _energies(self) -> dict[str, Energy]:
        parts = self.hardware.parts
        return {
            name: parts[name].power.energy(activity, self.hardware.clock_ps)
            for name, activity in self.activity.items()
        }

    def _share(self, part: str) -> int:
        """PEs that share one of it, all of which were simulated alike."""
        return {"PE": 1, "column unit": self.hardware.unit_rows}.get(part, EDGE)

    @cached_property
    def breakdown_fj(self) -> dict[str, dict[str, float]]:
        """Part -> component -> fJ per PE and cycle; leakage left out."""
        table: dict[str, dict[str, float]] = {}
        for part, energy in self._energies.items():
            for block, components in energy.fJ.items():
                name = f"PE {block}" if part == "PE" else part
                table[name] = {
                    component: value / self._share(part)
                    for component, value in components.items()
                    if component != "leakage"
                }
        table["wires"] = {name: 0.0 for name in COMPONENTS if name != "leakage"}
        table["wires"]["switching"] = float(self._wires().mean())
        return table

    def _wires(self) -> np.ndarray:
        """fJ per PE and cycle, by tile."""
        hardware, total = self.hardware, 0.0
        pe = self.activity["PE"]
        nets = [n for port in hardware.parts["PE"].netlist.inputs.values() for n in port]
        total = pe.toggles[nets].sum(axis=0) / (pe.cycles * LANES)
        # On to the next tile: as long as the row or column, shared by its PEs.
        for part in ("row registers", "column registers"):
            kept = self.activity[part]
            outs = [n for p in hardware.parts[part].netlist.outputs.values() for n in p]
            total = total + kept.toggles[outs].sum(axis=0) / (kept.cycles * LANES)
        return total * hardware.wire_fj

    @cached_property
    def tiles_fj(self) -> np.ndarray:
        """fJ per PE and cycle of each tile, leakage left out."""
        shares = [energy.dynamic_fJ / self._share(part) for part, energy in self._energies.items()]
        return np.asarray(sum(shares) + self._wires())


# ------------------------------------------------------------------ measuring


def measure(
    hardware: TileHardware,
    x: np.ndarray,
    w: Any,
    *,
    seed: int = 0,
    precision: float = PRECISION,
    source: str = "",
    progress: Callable[[int, int, str], None] | None = None,
) -> TileEnergy:
    """Energy of a product on a tile, from a sample of its tiles.

    Args:
        hardware: The tile.
        x: Activations [tokens, k], float; at least one row. Rows are taken `EDGE` at a time.
        w: Weights [n, k] as the PE's `gemm` takes them.
        seed: Of the sample.
        precision: Half width of the 95 % interval, over the mean, at which sampling ends.
        source: What the operands are, for people.
        progress: Called as tiles are done.

    Raises:
        InputError: The PE does not run the operands, or the technology has no energies.
    """
    x = np.asarray(x, np.float32)
    path = cache_folder("energy") / f"{_key(hardware, x, w, seed, precision)[:32]}.json"
    stored = _load(path)
    if stored is not None:
        return replace(stored, source=source)
    rng = np.random.default_rng(seed)

    def draw() -> TileOperands:
        return tile_operands(hardware.cells, [_draw(x, w, rng) for _ in range(BATCH)])

    # The states beside the active one come from the first tiles alone.
    first = draw()
    spacing = max(hardware.unit_rows, hardware.cells.scale_cycles)
    plan = schedule(first.shape, hardware.cells, spacing)
    pause = hardware.run(first, idle(plan, 16, drain=hardware.cells.latency + EDGE + 4))
    stalled_fj = float(pause.tiles_fj.mean())
    runs = [hardware.run(first, plan)]
    while True:
        values = np.concatenate([run.tiles_fj for run in runs])
        error = float(values.std(ddof=1)) / math.sqrt(len(values))
        half_width = _t95(len(values) - 1) * error / float(values.mean())
        if progress:
            progress(len(values), MOST_TILES, f"{source or hardware.pe}: {half_width:.1%}")
        if half_width <= precision or len(values) >= MOST_TILES:
            break
        runs.append(hardware.run(draw(), plan))
    # Cycles in which groups wait for their column are stalled ones, and counted apart.
    waits = plan.cycles / plan.beats - 1
    mean, quiet = _average([run.breakdown_fj for run in runs]), pause.breakdown_fj
    breakdown = {
        part: {
            name: ((1 + waits) * value - waits * quiet[part][name]) * 1e-3
            for name, value in components.items()
        }
        for part, components in mean.items()
    }
    result = TileEnergy(
        pe=hardware.pe,
        technology=hardware.technology.name,
        voltage=hardware.voltage,
        clock_ps=hardware.clock_ps,
        macs=x.shape[1] / plan.beats,
        breakdown=breakdown,
        active_pj=sum(sum(parts.values()) for parts in breakdown.values()),
        unused_pj=float(hardware.run(first, plan, unused=True).tiles_fj.mean()) * 1e-3,
        stalled_pj=stalled_fj * 1e-3,
        edge_pj=_edge_fj(hardware, first, runs[0], spacing, stalled_fj) * 1e-3,
        skipped_pj=(
            hardware.skipped_pj(first, plan) if isinstance(hardware.cells, BitmodCells) else None
        ),
        leakage_uw=hardware.leakage_uw,
        tiles=len(values),
        cycles=len(values) * LANES * plan.cycles,
        half_width=half_width,
        seed=seed,
        netlists=hardware.hashes,
        source=source,
        glitches=hardware.glitch_factor(first, plan),
    )
    _store(path, result)
    return result


def _edge_fj(
    hardware: TileHardware, tiles: TileOperands, whole: _Run, spacing: int, stalled_fj: float
) -> float:
    """What stopping for a while and going on costs beyond the cycles that are waited."""
    every = 4
    stops = tiles.shape.all_steps // every
    if not stops:
        return 0.0
    broken = schedule(tiles.shape, hardware.cells, spacing, stall_every=every, stall=EDGE)
    energy = float(hardware.run(tiles, broken).tiles_fj.mean()) * broken.cycles
    usual = float(whole.tiles_fj.mean()) * whole.plan.cycles
    return (energy - usual - (broken.cycles - whole.plan.cycles) * stalled_fj) / stops


def _draw(x: np.ndarray, w: Any, rng: np.random.Generator) -> tuple[np.ndarray, Any]:
    """A tile: rows and channels next to each other; beyond an edge the last one again."""
    n = w.n if isinstance(w, QuantizedTensor) else len(w)
    picked = []
    for count in (len(x), n):
        start = EDGE * int(rng.integers(-(-count // EDGE)))
        picked.append(np.minimum(np.arange(start, start + EDGE), count - 1))
    rows, channels = picked
    return x[rows], w.rows(channels) if isinstance(w, QuantizedTensor) else w[channels]


def _t95(freedom: int) -> float:
    return _T95[max((f for f in _T95 if f <= freedom), default=min(_T95))]


def _average(tables: Sequence[Mapping[str, Mapping[str, float]]]) -> dict[str, dict[str, float]]:
    return {
        part: {
            component: float(np.mean([table[part][component] for table in tables]))
            for component in tables[0][part]
        }
        for part in tables[0]
    }


# ------------------------------------------------------------------ cache


def _key(hardware: TileHardware, x: np.ndarray, w: Any, seed: int, precision: float) -> str:
    tensors = [("x", x)]
    what = "float"
    if isinstance(w, QuantizedTensor):
        what = f"{w.format.name} {w.group_size} {w.scale_format}"
        tensors += [(name, getattr(w, name)) for name in STORED]
    else:
        tensors.append(("w", np.asarray(w, np.float32)))
    hashes = [
        f"{name} {values.dtype} {values.shape} {hashlib.sha256(values.tobytes()).hexdigest()}"
        for name, values in tensors
        if values is not None
    ]
    return digest(
        _CACHE_FORMAT,
        hardware.pe,
        *(f"{part} {result.hash}" for part, result in hardware.syntheses.items()),
        hardware.technology.digest,
        repr(hardware.wires),
        f"{hardware.voltage} {hardware.clock_ps} {seed} {precision}",
        what,
        *hashes,
    )


def _store(path: Path, result: TileEnergy) -> None:
    write_text(path, json.dumps(asdict(result)))


def _load(path: Path) -> TileEnergy | None:
    """The stored result; None if there is none or it is damaged."""
    try:
        return TileEnergy(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None
