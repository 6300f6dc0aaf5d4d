"""`bitwright synth`: area and delay of PEs on standard cells."""

from pathlib import Path
from typing import Annotated

import typer


def synth(
    pe: Annotated[str, typer.Argument(help="bitmod, fp16, fp16acc16 or all.")],
    technology: Annotated[
        list[str] | None,
        typer.Option(help="nangate45, sky130hd or asap7; repeat for several. [default: all three]"),
    ] = None,
    liberty: Annotated[
        list[Path] | None,
        typer.Option(
            help="Liberty file (.lib, .lib.gz) to use instead; the files of repeated options are "
            "one library."
        ),
    ] = None,
    clock_ps: Annotated[
        float | None,
        typer.Option(help="Period that mapping aims at. [default: the technology's own]"),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Area, cells and critical path of a PE and its blocks, before layout."""
    from rich.console import Group
    from rich.table import Table

    from bitwright.output import progress_bar, show
    from bitwright.quant import InputError
    from bitwright.rtl import DESIGNS, pe_synthesis
    from bitwright.rtl import liberty as liberty_files
    from bitwright.rtl import technology as technologies

    if clock_ps is not None and not clock_ps > 0:
        raise InputError(f"--clock-ps {clock_ps:g}: give a period in ps above 0")
    wanted = list(DESIGNS) if pe == "all" else [pe_synthesis.resolve_pe(pe)]
    chosen = [technologies.resolve_technology(name) for name in dict.fromkeys(technology or [])]
    if liberty:
        chosen.append(liberty_files.read_liberty(liberty))
    chosen = chosen or list(technologies.TECHNOLOGIES.values())

    synthesised, compared = [], []
    with progress_bar("synth") as progress:
        for tech in chosen:
            for name in wanted:
                result = pe_synthesis.synthesise_pe(name, tech, clock_ps, progress=progress)
                synthesised.append(result)
            if "bitmod" in wanted:
                compared += [
                    pe_synthesis.synthesise_pe(
                        base, tech, clock_ps, only=["total"], progress=progress
                    )
                    for base in pe_synthesis.BASELINES
                ]
    bitmods = [result for result in synthesised if result.pe == "bitmod"]
    ratios = pe_synthesis.area_ratios([*bitmods, *compared])
    rows = [block for result in synthesised for block in result.blocks]

    table = Table(title="Area and delay, register to register, before layout")
    for column in ("technology", "PE", "block"):
        table.add_column(column)
    for column in ("area um2", "cells", "registers", "delay ps", "f max MHz", "target ps"):
        table.add_column(column, justify="right")
    for row in rows:
        table.add_row(
            row.technology,
            row.pe,
            row.block + (" (per column)" if row.shared else ""),
            f"{row.area_um2:,.1f}",
            f"{row.cells:,}",
            f"{row.registers:,}",
            f"{row.delay_ps:,.0f}" + ("" if row.reached else " *"),
            f"{row.f_max_mhz:,.0f}",
            f"{row.clock_ps:,.0f}" if row.clock_ps else "-",
            style="bold" if row.block == "total" else None,
            end_section=row.block == "total",
        )
    lines = [
        f"area of bitmod / {r['baseline']} on {r['technology']}: {r['area_ratio']:.2f}"
        f" (published: {r['published']:.2f}); per MAC per cycle in the 3- and 4-bit formats: "
        f"{r['area_ratio_per_mac']:.2f}"
        + ("" if r["reached"] else f"; not both reach {r['clock_ps']:,.0f} ps")
        for r in ratios
    ]
    if ratios:
        lines.append(f"published: {ratios[0]['published_source']}")
    if not all(row.reached for row in rows):
        lines.append("* slower than the target; mapped for the shortest delay instead")
    document = {"results": [row.to_dict() for row in rows], "ratios": ratios}
    show(document, as_json, Group(table, *lines))
