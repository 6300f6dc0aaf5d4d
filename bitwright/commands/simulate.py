"""`bitwright simulate`: a language model on an accelerator, in cycles, bytes, joules and mm2."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import RenderableType

    from bitwright.sim import PEArea, SimulationResult

GENERAL, PUBLISHED = "bitwright", "bitmod-hpca25"


def simulate(
    shape: Annotated[
        str,
        typer.Option(help="Name from the library, config.json or its folder, or CSV of m,n,k."),
    ],
    phase: Annotated[str, typer.Option(help="prefill or decode.")] = "prefill",
    tokens: Annotated[int, typer.Option(help="Prompt length of a prefill.")] = 256,
    context: Annotated[int, typer.Option(help="Positions a decode step attends to.")] = 256,
    recipe: Annotated[str | None, typer.Option(help="Weights. [default: bitmod4]")] = None,
    pe: Annotated[
        str | None, typer.Option(help="PE. [default: fp16 for recipe fp16, else bitmod]")
    ] = None,
    rows: Annotated[int | None, typer.Option(help="Output channels side by side.")] = None,
    cols: Annotated[int | None, typer.Option(help="Tokens side by side.")] = None,
    lanes: Annotated[int | None, typer.Option(help="Multipliers in a PE.")] = None,
    weight_buffer: Annotated[int | None, typer.Option(help="KiB.")] = None,
    activation_buffer: Annotated[int | None, typer.Option(help="KiB.")] = None,
    dram: Annotated[str | None, typer.Option(help="ddr4-bitmod, hbm2, ... by name.")] = None,
    clock_ps: Annotated[float | None, typer.Option(help="Clock period.")] = None,
    technology: Annotated[
        str | None, typer.Option(help="Cells for the PE's area: nangate45, sky130hd, asap7.")
    ] = None,
    preset: Annotated[
        str, typer.Option(help=f"Rules: {GENERAL}, or {PUBLISHED} with --design.")
    ] = GENERAL,
    design: Annotated[
        str | None, typer.Option(help="fp16, ant, olive, bitmod-lossless or bitmod-lossy.")
    ] = None,
    csv: Annotated[Path | None, typer.Option(help="Write one row per product here.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Cycles, stalls, traffic, energy and area of an LLM shape on an accelerator."""
    from dataclasses import replace

    from bitwright.output import show
    from bitwright.quant import InputError, resolve_recipe
    from bitwright.sim import (
        default_accelerator,
        find_preset,
        load_shape,
        read_gemms,
        simulate_model,
        simulate_published,
    )

    rules = find_preset(preset)
    given: dict[str, Any] = {
        "rows": rows,
        "cols": cols,
        "lanes": lanes,
        "weight_buffer_kib": weight_buffer,
        "activation_buffer_kib": activation_buffer,
        "dram": dram,
        "clock_ps": clock_ps,
    }
    settings = {name: value for name, value in given.items() if value is not None}
    if rules.designs:
        fixed = [*settings, *(["recipe"] if recipe else []), *(["pe"] if pe else [])]
        fixed += ["technology"] if technology else []
        if fixed:
            raise InputError(
                f"--{_option(fixed[0])} does not go with --preset {preset}, which fixes it by "
                "--design"
            )
        if design is None:
            raise InputError(f"--preset {preset} needs --design: {', '.join(rules.designs)}")
        if shape.lower().endswith(".csv"):
            raise InputError(f"--preset {preset} takes a model shape, not the rows of {shape}")
        result = simulate_published(
            load_shape(shape), design, phase, tokens=tokens, context=context
        )
    else:
        if design is not None:
            raise InputError(f"--design {design} needs --preset {PUBLISHED}")
        wanted = resolve_recipe(recipe or "bitmod4")
        name = pe or ("fp16" if wanted.format is None else "bitmod")
        accelerator = replace(default_accelerator(name), **settings)
        work = read_gemms(shape) if shape.lower().endswith(".csv") else load_shape(shape)
        technology = technology or "nangate45"
        area = pe_area(name, technology)
        result = simulate_model(
            work,
            wanted,
            phase,
            tokens=tokens,
            context=context,
            accelerator=accelerator,
            pe_area=area,
        )
        if area is None:
            note = "area of the array: this installation has no synthesis"
        else:
            note = f"array area from {technology}, SRAM area from {accelerator.node_nm} nm"
        result = replace(result, notes=(*result.notes, note))
    if csv is not None:
        write_layers(csv, result)
    show({"preset": preset, **result.to_dict()}, as_json, _table(result))


def pe_area(pe: str, technology: str) -> "PEArea | None":
    """Area of a PE from synthesis on a technology; None if this installation cannot synthesise."""
    from bitwright.sim import PEArea

    try:
        from bitwright.rtl import synthesise_pe
    except ImportError:
        return None
    cost = synthesise_pe(pe, technology)
    return PEArea(
        pe_um2=cost.area_um2,
        encoder_um2=cost.encoder_um2,
        delay_ps=cost.delay_ps,
        source=cost.source,
    )


def write_layers(path: Path, result: "SimulationResult") -> None:
    """Write one CSV row per product, whole or not at all."""
    import csv
    import io

    from bitwright.quant import write_text

    rows = [layer.to_dict() for layer in result.layers]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def _option(name: str) -> str:
    return name.removesuffix("_kib").replace("_", "-")


def _table(result: "SimulationResult") -> "RenderableType":
    from rich.box import SIMPLE_HEAD
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    layers = Table(title=f"{result.name}, {_phase(result)}: {result.design}", box=SIMPLE_HEAD)
    layers.add_column("product", no_wrap=True)
    for column in ("m x n x k", "times", "compute cycles", "cycles", "stall"):
        layers.add_column(column, justify="right", no_wrap=True)
    for column in ("DRAM MB", "SRAM uJ", "DRAM uJ"):
        layers.add_column(column, justify="right", no_wrap=True)
    for layer in result.layers:
        layers.add_row(
            layer.name,
            f"{layer.m} x {layer.n} x {layer.k}",
            str(layer.count),
            f"{layer.compute_cycles:,}",
            f"{layer.cycles:,}",
            f"{100 * layer.stall_cycles / layer.cycles:.0f} %",
            f"{layer.dram_bytes / 1e6:,.2f}",
            f"{layer.sram_uj:,.1f}",
            f"{layer.dram_uj:,.1f}",
        )

    summary = Table(show_header=False, box=None)
    summary.add_column(style="bold")
    summary.add_column()
    stalled = 100 * result.stall_cycles / result.cycles
    summary.add_row(
        "cycles",
        f"{result.cycles:,} = {result.compute_cycles:,} compute + {result.stall_cycles:,} stall "
        f"({stalled:.1f} %)",
    )
    speed = "" if result.tokens_per_s is None else f", {result.tokens_per_s:,.2f} tokens/s"
    summary.add_row("latency", f"{result.latency_s * 1e3:,.4g} ms at {result.clock_ps:g} ps{speed}")
    summary.add_row("DRAM traffic", f"{result.dram_bytes / 1e6:,.2f} MB")
    for name, value in (
        ("logic energy", result.logic_uj),
        ("SRAM energy", result.sram_uj),
        ("DRAM energy", result.dram_uj),
        ("SRAM leakage", result.leakage_uj),
        ("total energy", result.total_uj),
    ):
        summary.add_row(name, "not modelled" if value is None else f"{value:,.1f} uJ")
    area = result.area
    for name, value in (
        ("array area", area.array),
        ("encoder area", area.encoders),
        ("SRAM area", area.sram),
        ("total area", area.total),
    ):
        summary.add_row(name, "not known" if value is None else f"{value:.3f} mm2")
    footer = [f"note: {note}" for note in (result.energy_note, *result.notes)]
    footer += [f"source: {source}" for source in result.sources]
    return Group(layers, summary, Text("\n".join(footer), style="dim"))


def _phase(result: "SimulationResult") -> str:
    if result.phase == "prefill":
        return f"prefill of {result.tokens} tokens"
    if result.phase == "decode":
        return f"one decode step at {result.context} positions"
    return "rows of a file"
