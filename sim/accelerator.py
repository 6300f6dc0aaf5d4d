"""An output-stationary array of PEs with two buffers and DRAM: cycles, traffic, energy and area.

The array has `rows` x `cols` PEs of `lanes` multipliers. Rows hold output channels, columns hold
tokens; each PE keeps one output of the tile that is being computed. Everything is closed form.

Cycles of one product y[m, n] = x[m, k] @ w[n, k].T:

    tiles    = ceil(n / rows) * ceil(m / cols)            output tiles, one after the other
    step     = max(step_cycles of the PE, ceil(stored bits per weight / weight_lane_bits),
                   ceil(16 / activation_lane_bits))       a PE can wait for the buffer ports
    D_g      = ceil(length of group g / lanes) * step
    interval = max(D_g, scale_cycles, rows_per_accumulator)
    compute  = tiles * (sum of the intervals over the groups of k) + fill
    fill     = pipeline_cycles + (min(rows, rows_per_accumulator) - 1)
               + (ceil(rows / tile_edge) - 1) + (ceil(cols / tile_edge) - 1)

A weight group ends on every PE at once. Its sum is then multiplied by the group scale, one scale
bit a cycle, and the PEs that share a column accumulator (the 8 of a column in one tile; the term
encoder is shared alike and counted so in the area) hand it their results one per cycle; both
happen while the next group computes, so they cost nothing unless a group is shorter than that.
Output tiles follow each other without a gap; the pipeline, the last column accumulator and the
skew between systolically connected tiles (BitMoD, Fig. 6: tiles of 8 x 8 PEs) fill and drain once
per product. On a 1 x 1 array this equals the PE model's own count, its `cycles` plus one. A PE
without a scale unit (FP16) has one group per dot product.

Traffic: every operand crosses DRAM once per product, no product keeps its result on chip for the
next. If neither the weights nor the activations of a product fit their buffer, one of them is
fetched again for every buffer-full of the other, whichever order moves fewer bytes. The whole
buffer counts, and compute overlaps DRAM perfectly (as in the published simulator):

    cycles = max(compute, ceil(bytes / bytes per cycle)),  stall = cycles - compute

SRAM energy: bits over port width times the energy of one access of a bank. Weights are written once
per fetch and read once per column of output tiles (broadcast along the columns); activations are
written once per fetch and read once per row of output tiles; results are written to the activation
buffer and read once on their way to DRAM. Leakage is that of both buffers over the run time.

Left out: logic energy (not modelled yet), bank conflicts, output and accumulator registers, DRAM
refresh and page misses, and what `workloads` leaves out.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING, Any

from bitwright.quant import FORMATS, Format, InputError, ScaleFormat

from .memory import DRAM, SRAMBank, find_dram, sram
from .tables import pick
from .workloads import Gemm, Kind, ModelShape, Workload, decode, load_shape, prefill

if TYPE_CHECKING:
    from bitwright.quant import Recipe

ACTIVATION_BITS = 16  #: FP16 activations and results
LOGIC_NOTE = (
    "logic (PE) energy is not modelled yet, so there is no total; "
    "leakage is that of the SRAM buffers only"
)


@dataclass(frozen=True, slots=True)
class Accelerator:
    """One accelerator. The defaults are the array of the BitMoD paper (section IV and 5)."""

    name: str = "bitwright"
    pe: str = "bitmod"  #: name in `PES`
    rows: int = 32  #: output channels side by side
    cols: int = 32  #: tokens side by side
    lanes: int = 4  #: multiplications side by side in one PE
    weight_buffer_kib: int = 512
    activation_buffer_kib: int = 512
    banks: int = 8  #: of each buffer; all of them are read together
    weight_lane_bits: int = 4  #: port: weight bits per cycle for each lane of a row
    activation_lane_bits: int = 8  #: port: activation bits per cycle for each lane of a column
    dram: str = "ddr4-bitmod"  #: name in `DRAMS`
    clock_ps: float = 1000.0
    node_nm: int = 28  #: of the SRAM table
    sram_cell: str = "itrs-hp"
    sram_ports: str = "1r1w"
    scale_cycles: int = 8  #: serial scale unit, per group; 0: none
    rows_per_accumulator: int = 8  #: PEs of a column that share an encoder and an accumulator
    pipeline_cycles: int = 12  #: from a PE's last term to its result in the column accumulator
    tile_edge: int = 8  #: PEs along the edge of a broadcast tile
    source: str = "BitMoD (HPCA 2025), section IV: 4 x 4 tiles of 8 x 8 PEs, 512 KB buffers, 1 GHz"

    def __post_init__(self) -> None:
        for name in (
            *("rows", "cols", "lanes", "weight_buffer_kib", "activation_buffer_kib", "banks"),
            *("weight_lane_bits", "activation_lane_bits", "rows_per_accumulator", "tile_edge"),
        ):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; at least 1")
        for name in ("scale_cycles", "pipeline_cycles"):
            if getattr(self, name) < 0:
                raise InputError(f"{name} is {getattr(self, name)}; at least 0")
        if not (math.isfinite(self.clock_ps) and self.clock_ps > 0):
            raise InputError(f"clock_ps is {self.clock_ps}; a period above 0 ps")
        find_dram(self.dram)

    @property
    def fill_cycles(self) -> int:
        """Cycles of a product that are not steps: pipeline, accumulator drain, systolic skew."""
        drain = min(self.rows, self.rows_per_accumulator) - 1
        skew = _ceil(self.rows, self.tile_edge) - 1 + _ceil(self.cols, self.tile_edge) - 1
        return self.pipeline_cycles + drain + skew

    @property
    def shared_units(self) -> int:
        """Term encoders and column accumulators: one for the PEs of a column in one tile."""
        return self.cols * _ceil(self.rows, self.rows_per_accumulator)

    def weight_bank(self) -> SRAMBank:
        """One bank of the weight buffer.

        Raises:
            InputError: The bank lies outside the SRAM table.
        """
        return self._bank(self.weight_buffer_kib, self.rows * self.lanes * self.weight_lane_bits)

    def activation_bank(self) -> SRAMBank:
        """One bank of the activation buffer.

        Raises:
            InputError: The bank lies outside the SRAM table.
        """
        return self._bank(
            self.activation_buffer_kib, self.cols * self.lanes * self.activation_lane_bits
        )

    def _bank(self, buffer_kib: int, port_bits: int) -> SRAMBank:
        # A port is as wide as the array needs, rounded up to a power of two, at least 32 bits.
        width = max(32, 1 << (_ceil(port_bits, self.banks) - 1).bit_length())
        return sram(
            buffer_kib * 1024 // self.banks,
            width,
            node_nm=self.node_nm,
            cell=self.sram_cell,
            ports=self.sram_ports,
        )


#: Default accelerators by PE, of about equal array area as published (BitMoD 1024 x 1507.7 um2,
#: FP16 768 x 1968.7 um2; authors' repo yc2367/BitMoD, sim/).
ACCELERATORS: dict[str, Accelerator] = {
    "bitmod": Accelerator(),
    **{
        pe: Accelerator(
            pe=pe,
            cols=24,
            lanes=1,
            weight_lane_bits=16,
            activation_lane_bits=16,
            scale_cycles=0,
            pipeline_cycles=2,
            source="BitMoD (HPCA 2025), FP16 baseline: 4 x 4 tiles of 6 x 8 PEs, 512 KB buffers",
        )
        for pe in ("fp16", "fp16acc16")
    },
}


def default_accelerator(pe: str) -> Accelerator:
    """The default accelerator of a PE.

    Raises:
        InputError: There is none; the known PEs are told.
    """
    return pick(ACCELERATORS, pe, "pe")


@dataclass(frozen=True, slots=True)
class Operand:
    """How one kind of weight operand is stored and how fast a PE takes it."""

    step_cycles: int  #: cycles of one step of `lanes` weights
    format: Format | None = None  #: None: 16 bits, no scales
    group_size: int | None = None  #: None: one group per row
    scale_format: ScaleFormat | None = None  #: None: the format's own

    def __post_init__(self) -> None:
        if self.step_cycles < 1:
            raise InputError(f"step_cycles is {self.step_cycles}; at least 1")
        if self.group_size is not None and self.group_size < 1:
            raise InputError(f"group_size is {self.group_size}; at least 1")

    def stored_bits(self, n: int, k: int) -> int:
        """Bits of an [n, k] operand, scales and all other metadata counted."""
        if self.format is None:
            return n * k * 16
        return self.format.stored_bits(n, k, self.group_size, self.scale_format)


@dataclass(frozen=True, slots=True)
class PEArea:
    """Area of a PE, with where it comes from."""

    pe_um2: float
    source: str
    encoder_um2: float = 0.0  #: shared by `rows_per_accumulator` PEs of a column; 0: none
    delay_ps: float | None = None  #: critical path, if known


@dataclass(frozen=True, slots=True)
class Area:
    """Area in mm2; None where it is not known."""

    array: float | None
    encoders: float | None
    sram: float | None

    @property
    def total(self) -> float | None:
        """The sum, or None if a part is not known."""
        parts = (self.array, self.encoders, self.sram)
        return None if any(part is None for part in parts) else sum(p for p in parts if p)


@dataclass(frozen=True, slots=True)
class LayerResult:
    """One row of a workload. Cycles, bytes and energies are those of all `count` repetitions."""

    name: str
    m: int
    n: int
    k: int
    count: int
    kind: Kind
    compute_cycles: int
    dram_cycles: int
    cycles: int  #: the larger of the two, per repetition, summed
    weight_bytes: int  #: over DRAM, repeated fetches counted
    input_bytes: int
    output_bytes: int
    weight_fetches: int  #: times the weights cross DRAM
    input_fetches: int
    sram_uj: float
    dram_uj: float

    @property
    def stall_cycles(self) -> int:
        """Cycles in which the array waits for DRAM."""
        return self.cycles - self.compute_cycles

    @property
    def dram_bytes(self) -> int:
        """Bytes over DRAM, all operands."""
        return self.weight_bytes + self.input_bytes + self.output_bytes

    def to_dict(self) -> dict[str, Any]:
        """Values for JSON and CSV."""
        return {
            "name": self.name,
            "m": self.m,
            "n": self.n,
            "k": self.k,
            "count": self.count,
            "kind": self.kind,
            "compute_cycles": self.compute_cycles,
            "dram_cycles": self.dram_cycles,
            "cycles": self.cycles,
            "stall_cycles": self.stall_cycles,
            "weight_bytes": self.weight_bytes,
            "input_bytes": self.input_bytes,
            "output_bytes": self.output_bytes,
            "weight_fetches": self.weight_fetches,
            "input_fetches": self.input_fetches,
            "sram_uJ": self.sram_uj,
            "dram_uJ": self.dram_uj,
        }


@dataclass(frozen=True, slots=True)
class SimulationResult:
    """What one pass over a workload costs."""

    name: str  #: model or file
    phase: str
    tokens: int | None
    context: int | None
    design: str  #: the accelerator, in words
    config: dict[str, Any]  #: every setting of the run
    clock_ps: float
    layers: tuple[LayerResult, ...]
    logic_uj: float | None  #: None: not modelled
    leakage_uj: float | None  #: of the SRAM; None: not modelled
    area: Area
    energy_note: str
    notes: tuple[str, ...] = ()
    sources: tuple[str, ...] = field(default=(), repr=False)

    @property
    def cycles(self) -> int:
        """Cycles of the pass."""
        return sum(layer.cycles for layer in self.layers)

    @property
    def compute_cycles(self) -> int:
        """Cycles the array computes or fills."""
        return sum(layer.compute_cycles for layer in self.layers)

    @property
    def stall_cycles(self) -> int:
        """Cycles the array waits for DRAM."""
        return self.cycles - self.compute_cycles

    @property
    def latency_s(self) -> float:
        """Seconds of the pass."""
        return self.cycles * self.clock_ps * 1e-12

    @property
    def tokens_per_s(self) -> float | None:
        """Tokens taken in (prefill) or generated (decode) per second, batch 1."""
        return None if self.tokens is None else self.tokens / self.latency_s

    @property
    def dram_bytes(self) -> int:
        """Bytes over DRAM."""
        return sum(layer.dram_bytes for layer in self.layers)

    @property
    def sram_uj(self) -> float:
        """Energy of SRAM reads and writes."""
        return sum(layer.sram_uj for layer in self.layers)

    @property
    def dram_uj(self) -> float:
        """Energy of DRAM transfers."""
        return sum(layer.dram_uj for layer in self.layers)

    @property
    def total_uj(self) -> float | None:
        """Sum of the energies; None while logic is not modelled."""
        if self.logic_uj is None:
            return None
        return self.logic_uj + self.sram_uj + self.dram_uj + (self.leakage_uj or 0.0)

    def to_dict(self) -> dict[str, Any]:
        """The document of `bitwright simulate --json`."""
        return {
            "workload": self.name,
            "phase": self.phase,
            "tokens": self.tokens,
            "context": self.context,
            "design": self.design,
            "cycles": self.cycles,
            "compute_cycles": self.compute_cycles,
            "stall_cycles": self.stall_cycles,
            "latency_s": self.latency_s,
            "tokens_per_s": self.tokens_per_s,
            "dram_bytes": self.dram_bytes,
            "dram_bytes_by_operand": {
                "weights": sum(layer.weight_bytes for layer in self.layers),
                "inputs": sum(layer.input_bytes for layer in self.layers),
                "outputs": sum(layer.output_bytes for layer in self.layers),
            },
            "energy_uJ": {
                "logic": self.logic_uj,
                "sram": self.sram_uj,
                "dram": self.dram_uj,
                "leakage": self.leakage_uj,
                "total": self.total_uj,
                "note": self.energy_note,
            },
            "area_mm2": self.area.total,
            "area_breakdown_mm2": asdict(self.area),
            "config": self.config,
            "notes": list(self.notes),
            "sources": list(self.sources),
            "layers": [layer.to_dict() for layer in self.layers],
        }


def gemm_cycles(gemm: Gemm, accelerator: Accelerator, operand: Operand) -> int:
    """Compute cycles of one repetition, by the formula at the top of this module."""
    group = min(operand.group_size or gemm.k, gemm.k)
    whole, rest = divmod(gemm.k, group)
    floor = max(accelerator.scale_cycles, accelerator.rows_per_accumulator)

    per_weight = Fraction(operand.stored_bits(gemm.n, gemm.k), gemm.n * gemm.k)
    step = max(
        operand.step_cycles,
        math.ceil(per_weight / accelerator.weight_lane_bits),
        _ceil(ACTIVATION_BITS, accelerator.activation_lane_bits),
    )

    def interval(length: int) -> int:
        return max(_ceil(length, accelerator.lanes) * step, floor)

    per_tile = whole * interval(group) + (interval(rest) if rest else 0)
    tiles = _ceil(gemm.n, accelerator.rows) * _ceil(gemm.m, accelerator.cols)
    return tiles * per_tile + accelerator.fill_cycles


def fetches(
    weight_bytes: int, input_bytes: int, weight_buffer: int, activation_buffer: int
) -> tuple[int, int]:
    """How often weights and inputs cross DRAM.

    Both once if either fits its buffer. Otherwise all weights again for every buffer-full of
    inputs, or all inputs again for every buffer-full of weights, whichever moves fewer bytes (the
    second if equal); the rule of the published simulator.

    >>> fetches(3000, 2000, 1000, 1000)  # 2 * 3000 + 2000 or 3000 + 3 * 2000
    (2, 1)
    """
    if weight_bytes <= weight_buffer or input_bytes <= activation_buffer:
        return 1, 1
    of_weights, of_inputs = (
        _ceil(input_bytes, activation_buffer),
        _ceil(weight_bytes, weight_buffer),
    )
    if of_weights * weight_bytes + input_bytes < weight_bytes + of_inputs * input_bytes:
        return of_weights, 1
    return 1, of_inputs


def simulate(
    workload: Workload,
    accelerator: Accelerator,
    *,
    block: Operand,
    plain: Operand | None = None,
    cache: Operand | None = None,
    pe_area: PEArea | None = None,
    notes: Sequence[str] = (),
) -> SimulationResult:
    """Run a workload on an accelerator.

    Args:
        workload: Products to run.
        accelerator: What they run on.
        block: How the weights of the blocks are stored and stepped.
        plain: The same for weights that a recipe leaves alone (output layer, router); None: 16
            bits, stepped like the blocks.
        cache: The same for keys and values; None: 16 bits, stepped like the blocks.
        pe_area: Area of the PE; None: the area of the array is not known.
        notes: What a reader of the result should know.

    Raises:
        InputError: A buffer outside the SRAM table.
    """
    operands: dict[Kind, Operand] = {
        "block": block,
        "plain": plain or Operand(block.step_cycles),
        "cache": cache or Operand(block.step_cycles),
    }
    weight_bank, activation_bank = accelerator.weight_bank(), accelerator.activation_bank()
    interface = find_dram(accelerator.dram)
    layers = tuple(
        _layer(gemm, accelerator, operands[gemm.kind], weight_bank, activation_bank, interface)
        for gemm in workload.gemms
    )
    latency_s = sum(layer.cycles for layer in layers) * accelerator.clock_ps * 1e-12
    leak_mw = accelerator.banks * (weight_bank.leak_mw + activation_bank.leak_mw)
    slowest_ns = max(weight_bank.cycle_ns, activation_bank.cycle_ns)
    if slowest_ns * 1000 > accelerator.clock_ps:
        notes = (
            *notes,
            f"an SRAM bank cycles in {slowest_ns:.2f} ns, slower than the clock of "
            f"{accelerator.clock_ps:g} ps; its ports would need interleaving",
        )
    if pe_area and pe_area.delay_ps and pe_area.delay_ps > accelerator.clock_ps:
        notes = (
            *notes,
            f"the PE's critical path is {pe_area.delay_ps:.0f} ps, longer than the clock of "
            f"{accelerator.clock_ps:g} ps; times hold for a PE that meets the clock",
        )
    pes = accelerator.rows * accelerator.cols
    return SimulationResult(
        name=workload.name,
        phase=workload.phase,
        tokens=workload.tokens,
        context=workload.context,
        design=(
            f"{accelerator.pe} PEs, {accelerator.rows} x {accelerator.cols} x "
            f"{accelerator.lanes} lanes"
        ),
        config={
            **asdict(accelerator),
            "operands": {
                kind: {
                    "format": operand.format.name if operand.format else "fp16",
                    "step_cycles": operand.step_cycles,
                    "group_size": operand.group_size,
                    "scale_format": operand.scale_format,
                }
                for kind, operand in operands.items()
            },
        },
        clock_ps=accelerator.clock_ps,
        layers=layers,
        logic_uj=None,
        leakage_uj=leak_mw * latency_s * 1e3,  # mW * s = mJ
        area=Area(
            array=None if pe_area is None else pes * pe_area.pe_um2 * 1e-6,
            encoders=None
            if pe_area is None
            else accelerator.shared_units * pe_area.encoder_um2 * 1e-6,
            sram=accelerator.banks * (weight_bank.area_mm2 + activation_bank.area_mm2),
        ),
        energy_note=LOGIC_NOTE,
        notes=tuple(notes),
        sources=(
            f"shape: {workload.source}",
            f"array: {accelerator.source}",
            f"cycles: model of the {accelerator.pe} PE, {block.step_cycles} a step of "
            f"{accelerator.lanes} weights ({operands['plain'].step_cycles} in the output layer, "
            f"{operands['cache'].step_cycles} in attention)",
            f"dram {interface.name}: {interface.energy_pj_per_bit:g} pJ/bit, "
            f"{interface.bandwidth_gb_per_s:g} GB/s, {interface.source}",
            *(
                f"{what} buffer: {accelerator.banks} banks of {bank.capacity_bytes} bytes, "
                f"{bank.width_bits} bits wide, read {bank.read_pj:.4g} pJ, "
                f"write {bank.write_pj:.4g} pJ, leak {bank.leak_mw:.4g} mW, "
                f"{bank.area_mm2:.4g} mm2 each; {bank.source}"
                for what, bank in (("weight", weight_bank), ("activation", activation_bank))
            ),
            f"PE area: {pe_area.source}" if pe_area else "PE area: not given",
        ),
    )


def _layer(
    gemm: Gemm,
    accelerator: Accelerator,
    operand: Operand,
    weight_bank: SRAMBank,
    activation_bank: SRAMBank,
    interface: DRAM,
) -> LayerResult:
    stored_bits = operand.stored_bits(gemm.n, gemm.k)
    compute = gemm_cycles(gemm, accelerator, operand)

    weight_bytes = _ceil(stored_bits, 8)
    input_bytes = gemm.m * gemm.k * ACTIVATION_BITS // 8
    output_bytes = gemm.m * gemm.n * ACTIVATION_BITS // 8
    weight_fetches, input_fetches = fetches(
        weight_bytes,
        input_bytes,
        accelerator.weight_buffer_kib * 1024,
        accelerator.activation_buffer_kib * 1024,
    )
    weight_traffic, input_traffic = weight_fetches * weight_bytes, input_fetches * input_bytes
    traffic = weight_traffic + input_traffic + output_bytes
    dram_cycles = math.ceil(traffic / interface.bytes_per_cycle(accelerator.clock_ps))

    weight_reads = _ceil(gemm.m, accelerator.cols) * weight_bytes
    input_reads = _ceil(gemm.n, accelerator.rows) * input_bytes
    sram_pj = _access_pj(weight_bank, reads=weight_reads, writes=weight_traffic) + _access_pj(
        activation_bank, reads=input_reads + output_bytes, writes=input_traffic + output_bytes
    )
    return LayerResult(
        name=gemm.name,
        m=gemm.m,
        n=gemm.n,
        k=gemm.k,
        count=gemm.count,
        kind=gemm.kind,
        compute_cycles=gemm.count * compute,
        dram_cycles=gemm.count * dram_cycles,
        cycles=gemm.count * max(compute, dram_cycles),
        weight_bytes=gemm.count * weight_traffic,
        input_bytes=gemm.count * input_traffic,
        output_bytes=gemm.count * output_bytes,
        weight_fetches=weight_fetches,
        input_fetches=input_fetches,
        sram_uj=gemm.count * sram_pj * 1e-6,
        dram_uj=gemm.count * traffic * 8 * interface.energy_pj_per_bit * 1e-6,
    )


def _access_pj(bank: SRAMBank, *, reads: int, writes: int) -> float:
    """Energy of moving so many bytes through the ports of such banks."""
    return 8 * (reads * bank.read_pj + writes * bank.write_pj) / bank.width_bits


def _ceil(value: int, divisor: int) -> int:
    return -(-value // divisor)


def operands_for(
    recipe: "Recipe", step_cycles: Callable[[Format | None], int]
) -> tuple[dict[Kind, Operand], list[str]]:
    """What a recipe makes of the three kinds of operand on a PE, and what a reader should know.

    A PE without an FP16 weight mode takes the output layer and the key/value cache in its INT8
    mode; they are stored and moved as 16 bits all the same (the recipe does not quantise them).

    Args:
        recipe: The recipe.
        step_cycles: The PE's `step_cycles`.

    Raises:
        InputError: The PE cannot run the recipe's format.
    """
    notes = []
    fmt = None if recipe.format is None else FORMATS[recipe.format]
    block = Operand(
        step_cycles(fmt),
        fmt,
        None if fmt is None else recipe.group_size,
        None if fmt is None else recipe.scale_format,
    )
    try:
        wide = step_cycles(None)
    except InputError:
        wide = step_cycles(FORMATS["int8-sym"])
        notes.append(
            "output layer, keys and values: stored and moved as 16 bits, computed in the PE's "
            "8-bit weight mode (it has no FP16 weight mode)"
        )
    return {"block": block, "plain": Operand(wide), "cache": Operand(wide)}, notes


def simulate_model(
    shape: ModelShape | Workload | str,
    recipe: "Recipe | str" = "bitmod4",
    phase: str = "prefill",
    *,
    tokens: int = 256,
    context: int = 256,
    pe: str | None = None,
    accelerator: Accelerator | None = None,
    pe_area: PEArea | None = None,
) -> SimulationResult:
    """One pass of a language model, quantised by a recipe, on an accelerator.

    Args:
        shape: A shape, the name of one, or a workload of one's own.
        recipe: A `Recipe` or its name.
        phase: "prefill" (of `tokens` tokens) or "decode" (one token at `context` positions).
        tokens: Length of the prompt.
        context: Positions that the generated token attends to.
        pe: PE by name; None: the accelerator's, else "fp16" for FP16 weights, else "bitmod".
        accelerator: None: the default of the PE.
        pe_area: Area of the PE, if known.

    Raises:
        InputError: Something unknown, or a PE that cannot run the recipe's format.
    """
    from bitwright.quant import resolve_recipe
    from bitwright.sim import PES

    recipe = resolve_recipe(recipe)
    if phase not in ("prefill", "decode"):
        raise InputError(f"phase is {phase!r}; one of prefill, decode")
    if accelerator is None:
        accelerator = default_accelerator(pe or ("fp16" if recipe.format is None else "bitmod"))
    if pe not in (None, accelerator.pe):
        raise InputError(f"pe is {pe!r}, but the accelerator's is {accelerator.pe!r}")
    operands, notes = operands_for(recipe, pick(PES, accelerator.pe, "pe").step_cycles)
    if accelerator.scale_cycles and recipe.scale_format == "fp16":
        notes.append(
            "the recipe's group scales are fp16, the PE's scale unit takes 8-bit scales: cycles "
            "are those of the recipe with int8 scales (suffix -s8), traffic is that of this recipe"
        )
    if isinstance(shape, str):
        shape = load_shape(shape)
    if isinstance(shape, ModelShape):
        shape = prefill(shape, tokens) if phase == "prefill" else decode(shape, context)
    result = simulate(shape, accelerator, **operands, pe_area=pe_area, notes=notes)
    result.config["recipe"] = recipe.name
    return result
