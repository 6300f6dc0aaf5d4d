"""Presets: sets of rules by name, for `bitwright simulate --preset`.

`bitwright` is the general model. `bitmod-hpca25` rebuilds the simulator behind the figures of
BitMoD (module `published`), `bitmod-released` the one that its authors released later (`released`).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from bitwright.quant import InputError
from bitwright.sim import DRAMS, Area, LayerResult, ModelShape, SimulationResult, load_shape, pick

from .corrections import Corrections
from .designs import HPCA25_DESIGNS, PublishedDesign
from .released import RELEASED_CORRECTIONS, RELEASED_DESIGNS
from .rules import (
    AS_PUBLISHED,
    BANKS,
    BUFFER_BYTES,
    CLOCK_PS,
    PublishedRow,
    published_pass,
)


@dataclass(frozen=True, slots=True)
class Preset:
    """A set of rules for `simulate`."""

    name: str
    summary: str
    source: str
    designs: Mapping[str, PublishedDesign] = field(default_factory=dict)
    corrections: Corrections = AS_PUBLISHED  #: of the rules behind the figures
    notes: tuple[str, ...] = ()  #: what a reader of a result should know


#: Rules that `bitwright simulate --preset` knows.
PRESETS: dict[str, Preset] = {
    "bitwright": Preset(
        "bitwright",
        "the general model: any PE, recipe and array",
        "this package, sim/accelerator/",
    ),
    "bitmod-hpca25": Preset(
        "bitmod-hpca25",
        "the simulator behind Fig. 7 and 8 of BitMoD",
        "BitMoD (HPCA 2025, arXiv 2411.11745); authors' repo: yc2367/BitMoD sim/",
        HPCA25_DESIGNS,
        notes=(
            "attention is counted in the published simulator's shapes, which are too large; "
            "encoders and place and route are not in its areas",
        ),
    ),
    "bitmod-released": Preset(
        "bitmod-released",
        "the simulator that the authors of BitMoD released later",
        "authors' repo: abdelfattah-lab/BitMoD-HPCA-25 bitmod_sim/ (read, not run)",
        RELEASED_DESIGNS,
        RELEASED_CORRECTIONS,
        notes=(
            "these rules do not give the published figures; bitmod-hpca25 does",
            "encoders and place and route are not in its areas",
        ),
    ),
}


def find_preset(name: str) -> Preset:
    """The preset of that name.

    Raises:
        InputError: Unknown name; the known ones are told.
    """
    return pick(PRESETS, name, "preset")


def simulate_published(
    shape: ModelShape | str,
    design: PublishedDesign | str,
    phase: str = "prefill",
    *,
    tokens: int = 256,
    context: int = 256,
    weight_bits: float | None = None,
    preset: str = "bitmod-hpca25",
) -> SimulationResult:
    """One pass under the rules of a published simulator (modules `published` and `released`).

    Args:
        shape: A shape or its name; the study has six (`opt-1.3b` ... `llama-3-8b`).
        design: "fp16", "ant", "olive", "bitmod-lossless" or "bitmod-lossy".
        phase: "prefill" of `tokens` tokens, or "decode": one token at `context` positions.
        tokens: Length of the prompt; the study takes 256.
        context: Positions attended to in decode; the study takes 256 and keeps it there.
        weight_bits: None: the study's choice for design, phase and model.
        preset: "bitmod-hpca25" or "bitmod-released".

    Raises:
        InputError: Unknown shape, design, phase or preset, a mixture of experts, or a design whose
            precision was chosen per model and not for this one.
    """
    rules = find_preset(preset)
    if not rules.designs:
        published = ", ".join(name for name, other in PRESETS.items() if other.designs)
        raise InputError(f"preset {preset} is not a published simulator; one of {published}")
    if isinstance(shape, str):
        shape = load_shape(shape)
    if isinstance(design, str):
        design = pick(rules.designs, design, "design")
    if phase not in ("prefill", "decode"):
        raise InputError(f"phase is {phase!r}; one of prefill, decode")
    for name, value in (("tokens", tokens), ("context", context)):
        if value < 1:
            raise InputError(f"{name} is {value}; at least 1")
    if shape.experts > 1:
        raise InputError(f"{shape.name} is a mixture of experts, which preset {preset} lacks")
    if weight_bits is not None and not 1 <= weight_bits <= 16:
        raise InputError(f"weight bits are {weight_bits}; between 1 and 16")
    run = published_pass(
        shape,
        design,
        phase,
        tokens=tokens,
        context=context,
        weight_bits=weight_bits,
        corrections=rules.corrections,
    )
    rows, cols = run.array
    areas = [bank.area_mm2 for bank in run.banks]
    return SimulationResult(
        name=shape.name,
        phase=phase,
        tokens=tokens if phase == "prefill" else 1,
        context=tokens if phase == "prefill" else context,
        design=f"{design.name} ({preset}), {rows} x {cols} x {design.lanes} lanes",
        config={
            "preset": preset,
            "design": design.name,
            "rows": rows,
            "cols": cols,
            "lanes": design.lanes,
            "weight_bits": run.weight_bits,
            "kv_bits": design.kv_bits if rules.corrections.kv_bits else 16,
            "step_cycles": run.latency,
            "buffer_kib": BUFFER_BYTES // 1024,
            "weight_port_bits": run.ports[0] * BANKS,
            "activation_port_bits": run.ports[1] * BANKS,
            "dram": "ddr4-bitmod",
            "clock_ps": CLOCK_PS,
        },
        clock_ps=CLOCK_PS,
        layers=tuple(_layer(row, rows * cols * design.lanes) for row in run.rows),
        logic_uj=run.logic_uj,
        leakage_uj=None,
        area=Area(
            array=run.array_mm2,
            encoders=0.0,
            sram=None if None in areas else BANKS * sum(area for area in areas if area),
        ),
        energy_note=(
            "published rules: logic is the published PE energy times 1.5 for place and route; "
            "leakage is left out"
        ),
        notes=(*rules.notes, "rows x cols are output channels x tokens here, as published"),
        sources=(
            f"shape: {shape.source}",
            f"rules: {rules.source}",
            f"design {design.name}: {rows} x {cols} PEs, {design.pe_pj:g} pJ per PE and cycle, "
            f"{design.pe_um2:g} um2, {run.weight_bits:g} weight bits; {design.source}",
            f"dram: 18.75 pJ/bit, 32 GB/s; {DRAMS['ddr4-bitmod'].source}",
            *(
                f"{what} buffer: {BANKS} banks of 64 KiB, {width} bits wide, "
                f"read {bank.read_pj:.4g} pJ, write {bank.write_pj:.4g} pJ each; {bank.source}"
                for what, width, bank in zip(
                    ("weight", "activation"), run.ports, run.banks, strict=True
                )
            ),
        ),
    )


def _layer(row: PublishedRow, lanes: int) -> LayerResult:
    cached = row.kind == "cache"
    macs = row.m * row.n * row.k * row.repeats
    moved = row.weight_bytes + row.input_bytes + row.output_bytes
    return LayerResult(
        name=row.name,
        m=row.m,
        n=row.n,
        k=row.k,
        count=row.repeats,
        kind=row.kind,
        compute_cycles=row.compute_cycles,
        dram_cycles=row.dram_cycles,
        cycles=row.cycles,
        weight_bytes=0 if cached else row.weight_bytes,
        input_bytes=row.input_bytes,
        output_bytes=row.output_bytes,
        weight_fetches=row.weight_fetches,
        input_fetches=row.input_fetches,
        sram_uj=row.sram_pj * 1e-6,
        dram_uj=moved * 8 * DRAMS["ddr4-bitmod"].energy_pj_per_bit * 1e-6,
        cache_bytes=row.weight_bytes if cached else 0,
        macs=macs,
        utilisation=macs / (row.cycles * lanes),
    )
