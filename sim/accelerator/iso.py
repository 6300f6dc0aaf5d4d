"""Arrays that differ in nothing but their PEs: of equal area, peak throughput or operand bandwidth.

Each design of `DESIGNS_ISO` has a PE, the recipe of its weights and the formats of its activations,
output layer, keys and values: only formats that the PE itself runs. `size_arrays` gives every
design an array as large as the reference array allows; buffers, DRAM, memory process and clock are
those of the reference.

What is held equal ("at most the reference's, and as close to it as an array of whole PEs gets"):

- "area": the compute area: rows * cols PEs, and what the PEs of a column share (term encoder and
  column accumulator of the bit-serial PE);
- "throughput": peak multiply-accumulates a cycle on the design's own weight format, so
  rows * cols * lanes / cycles of a step;
- "bandwidth": operand bits that enter the array a cycle, (rows * activation bits + cols * weight
  bits) * lanes / cycles of a step, group scales and zero points counted. Plane feeders and term
  encoders hold their operands for the cycles of a step.

The rule of shapes: `rows` (tokens side by side) is a power of two, `cols` (output channels) the
most that fits. cols / rows differs at most by a factor of 4 from that of the reference, as it
decides how much of an array a phase with few tokens can use. Of the shapes that come within 5 % of
the one that reaches most, the one with proportions nearest to the reference's is taken; of equals
the one that reaches more, then the one with fewer rows. The reference keeps the shape it is given.

A decode step has few tokens, so most rows would stand idle. As in the published study the same PEs
are then arranged with half the rows and twice the columns (`for_phase`); arrays are sized in the
shape of the prefill.

What a comparison does not hold equal is accuracy: the designs run weights of 2 to 16 bits and
activations of 4 to 16. Area of PEs is from synthesis, without wires between them. Integer PEs with
group scales need a multiplier outside the PE that turns a group's sum into a float; it is shared by
a column and not in the area, whereas that of the bit-serial PE is.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from statistics import geometric_mean
from typing import Any, Literal, get_args

from bitwright.quant import FORMATS, InputError, Recipe, resolve_recipe
from bitwright.sim import Kind, ModelShape, decode, load_shape, pick, prefill

from .hardware import Accelerator, Operand, PEArea, default_accelerator
from .logic import LogicEnergy
from .results import SimulationResult
from .simulation import simulate

IsoMode = Literal["area", "throughput", "bandwidth"]

_NEAR = Fraction(95, 100)  #: part of the most that a shape reaches which is as good
_SHORTEST = 64  #: row that ports are made for; its scale weighs most in a short one
_SPREAD = 4  #: largest factor between the proportions of an array and the reference's


@dataclass(frozen=True, slots=True)
class IsoDesign:
    """One design of the comparison; all formats are ones that its PE runs."""

    name: str
    pe: str  #: name in `PES`
    recipe: str  #: of the block weights
    activations: str  #: "fp16" or a name in FORMATS
    plain: str  #: recipe of the output layer
    cache: str  #: recipe of keys and values
    note: str = ""  #: what a reader should know of it


#: The designs by name.
DESIGNS_ISO: dict[str, IsoDesign] = {
    design.name: design
    for design in (
        IsoDesign("fp16", "fp16", "fp16", "fp16", "fp16", "fp16"),
        IsoDesign("int8", "int8", "w8-int-sym", "int8-sym", "w8-int-sym", "w8g128-int-sym"),
        IsoDesign(
            *("ant", "ant", "w4-ant", "ant4", "w4-ant", "w4-ant"),
            "4-bit activations, output layer, keys and values: its PE has no wider mode",
        ),
        IsoDesign(
            *("olive", "olive", "w4-olive", "olive4", "w4-olive", "w4-olive"),
            "4-bit activations, output layer, keys and values: its PE has no wider mode",
        ),
        IsoDesign(
            *("mxfp4", "mxfp4", "mxfp4", "mxfp4", "mxfp4", "mxfp4"),
            "4-bit activations, output layer, keys and values: its PE has no wider mode",
        ),
        IsoDesign(
            *("nvfp4", "nvfp4", "nvfp4", "nvfp4", "nvfp4", "nvfp4"),
            "4-bit activations, output layer, keys and values: its PE has no wider mode",
        ),
        IsoDesign(
            *("bitmod4", "bitmod", "w4g128-bitmod", "fp16"),
            *("w8g128-int-sym-s8", "w8g128-int-sym-s8"),
            "output layer, keys and values in the PE's INT8 mode",
        ),
        IsoDesign(
            *("bitmod3", "bitmod", "w3g128-bitmod", "fp16"),
            *("w8g128-int-sym-s8", "w8g128-int-sym-s8"),
            "output layer, keys and values in the PE's INT8 mode",
        ),
        IsoDesign(
            *("dint4", "dint4", "w4g128-dint-sym", "int8-sym"),
            *("w4g128-dint-sym", "w4g128-dint-sym"),
            "dINT4 output layer, keys and values: its PE has no wider weights",
        ),
        IsoDesign(
            *("dint4-dot16", "dint4-dot16", "w4g128-dint-sym", "int8-sym"),
            *("w4g128-dint-sym", "w4g128-dint-sym"),
            "dINT4 output layer, keys and values: its PE has no wider weights",
        ),
        IsoDesign(
            *("btc-w2", "btc", "w2-int-asym", "int8-asym", "w8-int-asym", "w8-int-asym"),
            "2-bit weights; output layer, keys and values in 8 planes, 64 cycles a slice",
        ),
        IsoDesign(
            *("btc-w2a8", "btc-w2a8", "w2-int-asym", "int8-asym", "w2-int-asym", "w2-int-asym"),
            "2-bit weights, output layer, keys and values: its PE has two weight planes",
        ),
    )
}


def design_operands(design: IsoDesign) -> dict[Kind, Operand]:
    """The operands of a design, as `simulate` takes them.

    Raises:
        InputError: Its PE does not run one of its formats.
    """
    return {
        "block": _operand(design, design.recipe),
        "plain": _operand(design, design.plain),
        "cache": _operand(design, design.cache),
    }


def _operand(design: IsoDesign, name: str) -> Operand:
    from bitwright.sim import PES

    recipe = resolve_recipe(name)
    return _stored(recipe, pick(PES, design.pe, "pe").step_cycles(recipe.format_obj))


def _stored(recipe: Recipe, step_cycles: int) -> Operand:
    return Operand(step_cycles, recipe.format_obj, recipe.group_size, recipe.scale_format)


# ------------------------------------------------------------------ sizes


def array_area_um2(accelerator: Accelerator, area: PEArea) -> float:
    """Compute area of an array: its PEs and what the PEs of its columns share."""
    pes = accelerator.rows * accelerator.cols
    return pes * area.pe_um2 + accelerator.shared_units * area.encoder_um2


def macs_per_cycle(accelerator: Accelerator, design: IsoDesign) -> Fraction:
    """Peak multiply-accumulates a cycle on the design's block weights, exactly."""
    lanes = accelerator.rows * accelerator.cols * accelerator.lanes
    return Fraction(lanes, _operand(design, design.recipe).step_cycles)


def operand_bits_per_cycle(accelerator: Accelerator, design: IsoDesign) -> Fraction:
    """Bits of activations and block weights that enter the array a cycle, scales included."""
    activations = accelerator.rows * _bits(_activation_recipe(design))
    weights = accelerator.cols * _bits(resolve_recipe(design.recipe))
    steps = _operand(design, design.recipe).step_cycles
    return (activations + weights) * accelerator.lanes / steps


def _activation_recipe(design: IsoDesign) -> Recipe:
    if design.activations == "fp16":
        return resolve_recipe("fp16")
    fmt = FORMATS[design.activations]
    return Recipe(format=fmt.name, group_size=fmt.block)


def _bits(recipe: Recipe) -> Fraction:
    """Bits of an operand, those of its group included; per channel the scale is left out."""
    fmt = recipe.format_obj
    if fmt is None:
        return Fraction(16)
    if recipe.group_size is None:
        return Fraction(fmt.bits)
    both = [fmt.stored_bits(1, n * recipe.group_size, recipe.group_size) for n in (1, 2)]
    return Fraction(both[1] - both[0], recipe.group_size)


def size_arrays(
    areas: Mapping[str, PEArea],
    mode: IsoMode = "area",
    *,
    reference: str = "fp16",
    base: Accelerator | None = None,
    designs: Sequence[str] | None = None,
    clock_ps: float | None = None,
) -> dict[str, Accelerator]:
    """An array for every design, as large as the reference array allows.

    Args:
        areas: Area and delay by PE, from one technology.
        mode: What is held equal; see the top of this module.
        reference: Design that the others are measured against.
        base: Array of the reference: its shape, buffers, DRAM and memory process; None: that of
            the FP16 baseline.
        designs: Names in `DESIGNS_ISO`; None: all whose PE has an area and of which at least one
            PE fits. The reference is always among the arrays, and first.
        clock_ps: One clock for all; None: the delay of the slowest PE, in whole ps (the base's
            clock if no delay is known).

    Raises:
        InputError: Unknown mode or design, a PE without an area, or one that alone is larger than
            the reference array.
    """
    if mode not in get_args(IsoMode):
        raise InputError(f"iso mode is {mode!r}; one of {', '.join(get_args(IsoMode))}")
    measured = pick(DESIGNS_ISO, reference, "design")
    if measured.pe not in areas:
        raise InputError(
            f"no area for the PE {measured.pe} of the reference {reference}; areas have "
            f"{', '.join(areas) or 'none'}"
        )
    wanted = _with_areas(areas) if designs is None else designs
    chosen = {name: pick(DESIGNS_ISO, name, "design") for name in (reference, *wanted)}
    for name, design in chosen.items():
        if design.pe not in areas:
            raise InputError(
                f"no area for the PE {design.pe} of design {name}; areas have {', '.join(areas)}"
            )
    base = base or default_accelerator("fp16")
    if clock_ps is None:
        delays = [areas[design.pe].delay_ps for design in chosen.values()]
        known = [delay for delay in delays if delay is not None]
        clock_ps = float(math.ceil(max(known))) if known else base.clock_ps
    base = replace(base, clock_ps=clock_ps)

    def size(array: Accelerator, design: IsoDesign) -> Fraction:
        if mode == "area":
            area = areas[design.pe]
            pes = array.rows * array.cols
            return pes * Fraction(area.pe_um2) + array.shared_units * Fraction(area.encoder_um2)
        if mode == "throughput":
            return macs_per_cycle(array, design)
        return operand_bits_per_cycle(array, design)

    arrays = {}
    for name, design in chosen.items():
        array = _of_design(base, design)
        if name == reference:
            allowed = size(array, design)
            source = array.source
        else:
            one = size(_resized(array, 1, 1), design)
            if one > allowed and designs is None:
                continue
            if one > allowed:
                raise InputError(
                    f"one PE of design {name} has {float(one / allowed):.2f} times the {mode} of "
                    f"the whole {reference} array; leave {name} out or take a larger base"
                )
            rows, cols = _shape(
                lambda r, c: size(_resized(array, r, c), design),  # noqa: B023
                allowed,
                Fraction(base.cols, base.rows),
            )
            array = _resized(array, rows, cols)
            part = float(size(array, design) / allowed)
            source = f"{part:.1%} of the {mode} of the {reference} array"
        arrays[name] = replace(array, name=name, source=source)
    return arrays


def _with_areas(areas: Mapping[str, PEArea]) -> list[str]:
    return [name for name, design in DESIGNS_ISO.items() if design.pe in areas]


def _of_design(base: Accelerator, design: IsoDesign) -> Accelerator:
    """The base with the PEs of a design, its shape unchanged; ports never slow a PE."""
    operands = design_operands(design)
    own = default_accelerator(design.pe)
    inputs = _stored(_activation_recipe(design), operands["block"].step_cycles)
    return replace(
        base,
        pe=design.pe,
        lanes=own.lanes,
        weight_lane_bits=max(_port_bits(operand) for operand in operands.values()),
        activation_lane_bits=_port_bits(inputs),
        scale_cycles=own.scale_cycles,
        rows_per_accumulator=own.rows_per_accumulator,
        pipeline_cycles=own.pipeline_cycles,
    )


def _port_bits(operand: Operand) -> int:
    """Bits a cycle for each lane that let the PE run at its own speed, on rows of 64 or more."""
    return math.ceil(Fraction(operand.stored_bits(1, _SHORTEST), _SHORTEST * operand.step_cycles))


def _resized(array: Accelerator, rows: int, cols: int) -> Accelerator:
    return replace(array, rows=rows, cols=cols)


def _shape(
    size: Callable[[int, int], Fraction], allowed: Fraction, proportions: Fraction
) -> tuple[int, int]:
    """Rows and columns by the rule at the top of this module; one PE fits."""
    shapes: list[tuple[Fraction, Fraction, int, int]] = []  # spread, size, rows, cols
    rows = 1
    while size(rows, 1) <= allowed:
        cols = _most(lambda c: size(rows, c) <= allowed)  # noqa: B023
        spread = Fraction(cols, rows) / proportions
        shapes.append((max(spread, 1 / spread), size(rows, cols), rows, cols))
        rows *= 2
    shapes = [shape for shape in shapes if shape[0] <= _SPREAD] or [min(shapes)]
    most = max(reached for _, reached, _, _ in shapes)
    near = [shape for shape in shapes if shape[1] >= _NEAR * most]
    _, _, rows, cols = min(near, key=lambda shape: (shape[0], -shape[1], shape[2]))
    return rows, cols


def _most(fits: Callable[[int], bool]) -> int:
    """The largest number that fits, of those from 1 on; 1 fits."""
    high = 2
    while fits(high):
        high *= 2
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def for_phase(array: Accelerator, phase: str) -> Accelerator:
    """The array as a phase arranges it.

    Prefill: as it is. Decode: half the rows (tokens) and twice the columns (output channels), as in
    the published study (authors' repo: yc2367/BitMoD sim/: 32 x 32 becomes 64 channels x 16
    tokens). An odd number of rows stays. A port wider than any bank of the SRAM table is narrowed
    to the widest; the array then waits for it.

    Raises:
        InputError: Unknown phase, or buffers outside the SRAM table.
    """
    if phase not in ("prefill", "decode"):
        raise InputError(f"phase is {phase!r}; one of prefill, decode")
    if phase == "decode" and array.rows % 2 == 0:
        array = replace(array, rows=array.rows // 2, cols=2 * array.cols)
    while array.weight_lane_bits > 1 and not _in_table(array.weight_bank):
        array = replace(array, weight_lane_bits=array.weight_lane_bits - 1)
    while array.activation_lane_bits > 1 and not _in_table(array.activation_bank):
        array = replace(array, activation_lane_bits=array.activation_lane_bits - 1)
    return array


def _in_table(bank: Callable[[], object]) -> bool:
    try:
        bank()
    except InputError:
        return False
    return True


# ------------------------------------------------------------------ comparison


@dataclass(frozen=True, slots=True)
class IsoArray:
    """The array of one design, and how much of the reference it has."""

    design: str
    pe: str
    recipe: str
    activations: str
    plain: str
    cache: str
    rows: int  #: tokens side by side in prefill
    cols: int  #: output channels side by side in prefill
    lanes: int
    macs_per_cycle: float  #: peak, block weights
    operand_bits_per_cycle: float
    area_mm2: float
    area_part: float  #: over that of the reference
    macs_part: float
    bits_part: float
    delay_ps: float | None
    meets_clock: bool | None  #: None: the delay is not known
    source: str  #: of the area
    note: str


@dataclass(frozen=True, slots=True)
class IsoResult:
    """One design on one model in one phase."""

    design: str
    model: str
    phase: str
    cycles: int
    compute_cycles: int
    latency_s: float
    tokens_per_s: float | None
    dram_bytes: int
    speedup: float  #: latency of the reference over this one
    energy_uj: dict[str, Any]  #: by part; None where a part is not modelled
    memory_energy_gain: float  #: SRAM and DRAM energy of the reference over this one's
    energy_gain: float | None  #: of the totals, None if one is not known


@dataclass(frozen=True, slots=True)
class IsoMean:
    """One design in one phase, over all models: geometric means."""

    design: str
    phase: str
    models: int
    speedup: float
    memory_energy_gain: float
    energy_gain: float | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """Designs beside each other on the same models."""

    mode: str
    reference: str
    clock_ps: float
    tokens: int
    context: int
    arrays: tuple[IsoArray, ...]
    results: tuple[IsoResult, ...]
    means: tuple[IsoMean, ...]
    notes: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """The document of `bitwright simulate --iso`."""
        return {
            "iso": self.mode,
            "reference": self.reference,
            "clock_ps": self.clock_ps,
            "tokens": self.tokens,
            "context": self.context,
            "arrays": [asdict(array) for array in self.arrays],
            "results": [
                {("energy_uJ" if key == "energy_uj" else key): value for key, value in row.items()}
                for row in map(asdict, self.results)
            ],
            "geometric_means": [asdict(mean) for mean in self.means],
            "notes": list(self.notes),
        }


def compare(
    shapes: Sequence[ModelShape | str],
    areas: Mapping[str, PEArea],
    mode: IsoMode = "area",
    *,
    reference: str = "fp16",
    base: Accelerator | None = None,
    designs: Sequence[str] | None = None,
    clock_ps: float | None = None,
    phases: Sequence[str] = ("prefill", "decode"),
    tokens: int = 256,
    context: int = 256,
    logic: Mapping[str, LogicEnergy] | None = None,
) -> Comparison:
    """Run models on the arrays of `size_arrays` and compare them with the reference.

    Args:
        shapes: Models, by name or as shapes; the means are over them.
        areas: Area and delay by PE, from one technology.
        mode: What is held equal.
        reference: Design that the others are divided by.
        base: Array of the reference; None: that of the FP16 baseline.
        designs: Names in `DESIGNS_ISO`; None: all whose PE has an area.
        clock_ps: One clock for all; None: that of the slowest PE.
        phases: "prefill", "decode" or both.
        tokens: Prompt length of a prefill.
        context: Positions that a decode step attends to.
        logic: Energy of the logic by design; None: it is not known, and there are no totals.

    Raises:
        InputError: As `size_arrays`; an unknown shape or phase; no shapes or no phases.
    """
    if not shapes:
        raise InputError("no shapes to compare on; give at least one model")
    if not phases:
        raise InputError("no phases to compare; give prefill, decode or both")
    arrays = size_arrays(
        areas, mode, reference=reference, base=base, designs=designs, clock_ps=clock_ps
    )
    clock_ps = arrays[reference].clock_ps
    left_out = [] if designs else [name for name in _with_areas(areas) if name not in arrays]
    models = [load_shape(shape) if isinstance(shape, str) else shape for shape in shapes]
    arranged = {
        phase: {name: for_phase(array, phase) for name, array in arrays.items()} for phase in phases
    }
    results = []
    for shape in models:
        for phase in phases:
            runs = {
                name: _run(DESIGNS_ISO[name], shape, phase, array, areas, tokens, context, logic)
                for name, array in arranged[phase].items()
            }
            results += [_result(name, run, runs[reference]) for name, run in runs.items()]
    rows = tuple(
        _describe(name, array, areas, arrays[reference], reference)
        for name, array in arrays.items()
    )
    return Comparison(
        mode=mode,
        reference=reference,
        clock_ps=clock_ps,
        tokens=tokens,
        context=context,
        arrays=rows,
        results=tuple(results),
        means=tuple(_means(results, tuple(arrays), tuple(phases))),
        notes=tuple(_notes(rows, clock_ps, left_out, _narrowed(arrays, arranged))),
    )


def _run(
    design: IsoDesign,
    shape: ModelShape,
    phase: str,
    array: Accelerator,
    areas: Mapping[str, PEArea],
    tokens: int,
    context: int,
    logic: Mapping[str, LogicEnergy] | None,
) -> SimulationResult:
    inputs, cache = design.activations != "fp16", design.cache != "fp16"
    if phase == "prefill":
        workload = prefill(shape, tokens, quantise_inputs=inputs, quantise_cache=cache)
    else:
        workload = decode(shape, context, quantise_inputs=inputs, quantise_cache=cache)
    return simulate(
        workload,
        array,
        **design_operands(design),  # type: ignore[arg-type]
        act_format=design.activations,
        pe_area=areas[design.pe],
        logic=None if logic is None else logic.get(design.name),
    )


def _result(name: str, run: SimulationResult, base: SimulationResult) -> IsoResult:
    document, other = run.to_dict(), base.to_dict()
    energy, against = document["energy_uJ"], other["energy_uJ"]
    totals = energy["total"], against["total"]
    return IsoResult(
        design=name,
        model=run.name,
        phase=run.phase,
        cycles=run.cycles,
        compute_cycles=run.compute_cycles,
        latency_s=run.latency_s,
        tokens_per_s=run.tokens_per_s,
        dram_bytes=run.dram_bytes,
        speedup=base.latency_s / run.latency_s,
        energy_uj={key: energy[key] for key in ("logic", "sram", "dram", "leakage", "total")},
        memory_energy_gain=(against["sram"] + against["dram"]) / (energy["sram"] + energy["dram"]),
        energy_gain=None if None in totals else totals[1] / totals[0],
    )


def _describe(
    name: str,
    array: Accelerator,
    areas: Mapping[str, PEArea],
    base: Accelerator,
    reference: str,
) -> IsoArray:
    design, other = DESIGNS_ISO[name], DESIGNS_ISO[reference]
    area = areas[design.pe]
    um2, base_um2 = array_area_um2(array, area), array_area_um2(base, areas[other.pe])
    macs, bits = macs_per_cycle(array, design), operand_bits_per_cycle(array, design)
    return IsoArray(
        design=name,
        pe=design.pe,
        recipe=design.recipe,
        activations=design.activations,
        plain=design.plain,
        cache=design.cache,
        rows=array.rows,
        cols=array.cols,
        lanes=array.lanes,
        macs_per_cycle=float(macs),
        operand_bits_per_cycle=float(bits),
        area_mm2=um2 * 1e-6,
        area_part=um2 / base_um2,
        macs_part=float(macs / macs_per_cycle(base, other)),
        bits_part=float(bits / operand_bits_per_cycle(base, other)),
        delay_ps=area.delay_ps,
        meets_clock=None if area.delay_ps is None else area.delay_ps <= array.clock_ps,
        source=area.source,
        note=design.note,
    )


def _means(
    results: Sequence[IsoResult], designs: Sequence[str], phases: Sequence[str]
) -> Iterable[IsoMean]:
    for phase in phases:
        for design in designs:
            own = [row for row in results if (row.design, row.phase) == (design, phase)]
            gains = [row.energy_gain for row in own]
            yield IsoMean(
                design=design,
                phase=phase,
                models=len(own),
                speedup=geometric_mean(row.speedup for row in own),
                memory_energy_gain=geometric_mean(row.memory_energy_gain for row in own),
                energy_gain=None
                if None in gains
                else geometric_mean(gain for gain in gains if gain is not None),
            )


def _narrowed(
    arrays: Mapping[str, Accelerator], arranged: Mapping[str, Mapping[str, Accelerator]]
) -> list[str]:
    """Designs whose ports the SRAM table does not have as wide as they need."""
    return [
        name
        for name, wanted in arrays.items()
        if any(
            got[name].weight_lane_bits < wanted.weight_lane_bits
            or got[name].activation_lane_bits < wanted.activation_lane_bits
            for got in arranged.values()
        )
    ]


def _notes(
    rows: Sequence[IsoArray], clock_ps: float, left_out: Sequence[str], narrowed: Sequence[str]
) -> Iterable[str]:
    yield (
        "the designs differ in accuracy: their weights, activations, output layers, keys and "
        "values have the formats named with each; equal speed is not equal quality"
    )
    yield (
        "in decode the same PEs are arranged with half the rows (tokens) and twice the columns "
        "(output channels); one token uses one row, so columns count for more than area"
    )
    slow = [f"{r.design} ({r.delay_ps:.0f} ps)" for r in rows if r.meets_clock is False]
    if slow:
        yield f"PEs slower than the clock of {clock_ps:g} ps: {', '.join(slow)}"
    unknown = [row.design for row in rows if row.meets_clock is None]
    if unknown:
        yield f"PEs of unknown delay: {', '.join(unknown)}"
    if narrowed:
        yield f"slowed by buffer ports, which the SRAM table has no wider: {', '.join(narrowed)}"
    if left_out:
        yield f"left out, as one PE is more than the whole reference array: {', '.join(left_out)}"
