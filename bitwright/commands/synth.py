"""`bitwright synth`: area and delay of PEs on standard cells."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from bitwright.rtl import comparison, pe_synthesis


def synth(
    pe: Annotated[str, typer.Argument(help="A PE such as bitmod, dint4 or fp16, or all.")],
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
    stages: Annotated[
        int | None,
        typer.Option(help="Register levels of a dot-product PE, 1 to 3. [default: the PE's own]"),
    ] = None,
    blocks: Annotated[
        bool, typer.Option("--blocks", help="With all: a row for every block too.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Area, cells and critical path of a PE and its blocks, before layout.

    Area per multiply-accumulate is put beside that of an INT8 and an FP16 MAC mapped for the same
    period, and published ratios beside ours.
    """
    from dataclasses import asdict

    from rich.console import Group

    from bitwright.output import progress_bar, show
    from bitwright.quant import InputError
    from bitwright.rtl import DESIGNS, comparison, find_design, pe_synthesis
    from bitwright.rtl import liberty as liberty_files
    from bitwright.rtl import technology as technologies

    if clock_ps is not None and not clock_ps > 0:
        raise InputError(f"--clock-ps {clock_ps:g}: give a period in ps above 0")
    designs = DESIGNS if pe == "all" else {pe: find_design(pe)}
    wanted = list(designs)
    if stages is not None and pe != "all":
        pe_synthesis.pipelined(designs[pe], stages)
    chosen = [technologies.resolve_technology(name) for name in dict.fromkeys(technology or [])]
    if liberty:
        chosen.append(liberty_files.read_liberty(liberty))
    chosen = chosen or list(technologies.TECHNOLOGIES.values())
    others = [*comparison.BASELINES, *(p.baseline for p in comparison.PUBLISHED if p.pe == pe)]

    synthesised, beside = [], []
    with progress_bar("synth") as progress:
        for tech in chosen:
            for name in wanted:
                result = pe_synthesis.synthesise_pe(
                    name,
                    tech,
                    clock_ps,
                    stages=stages if isinstance(designs[name], pe_synthesis.DotDesign) else None,
                    progress=progress,
                )
                synthesised.append(result)
            beside += [
                pe_synthesis.synthesise_pe(base, tech, clock_ps, only=["total"], progress=progress)
                for base in dict.fromkeys(others)
                if base not in wanted
            ]
    compared = [row for row in comparison.compare([*synthesised, *beside]) if row.pe in wanted]
    ratios = comparison.published_ratios([*synthesised, *beside])
    rows = [block for result in synthesised for block in result.blocks]

    parts: list[Any] = [] if pe == "all" and not blocks else [_block_table(rows)]
    parts.append(_comparison_table(compared))
    parts += [
        f"area of {r['pe']} / {r['baseline']} on {r['technology']}: {r['area_ratio']:.2f}"
        f" (published: {r['published']:.2f}); per MAC per cycle: {r['area_ratio_per_mac']:.2f}"
        + ("" if r["reached"] else f"; not both reach {r['clock_ps']:,.0f} ps")
        for r in ratios
    ]
    for row in comparison.PUBLISHED:
        if any((r["pe"], r["baseline"]) == (row.pe, row.baseline) for r in ratios):
            parts.append(f"published {row.pe} / {row.baseline}: {row.source}; {row.why}")
    if not all(row.reached for row in rows):
        parts.append("* slower than the target; mapped for the shortest delay instead")
    document = {
        "results": [row.to_dict() for row in rows],
        "comparison": [asdict(row) for row in compared],
        "ratios": ratios,
    }
    show(document, as_json, Group(*parts))


def _block_table(rows: "Sequence[pe_synthesis.BlockResult]") -> "Table":
    from rich.table import Table

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
    return table


def _comparison_table(rows: "Sequence[comparison.ComparisonRow]") -> "Table":
    from rich.table import Table

    table = Table(title="Area per multiply-accumulate a cycle; what a column shares left out")
    for column in ("technology", "PE"):
        table.add_column(column)
    for column in (
        "MAC/cycle", "area um2", "um2 per MAC", "/ INT8", "/ FP16", "delay ps", "target ps",
    ):  # fmt: skip
        table.add_column(column, justify="right")
    for i, row in enumerate(rows):
        table.add_row(
            row.technology,
            row.pe,
            f"{row.macs:g}",
            f"{row.area_um2:,.1f}",
            f"{row.area_per_mac_um2:,.1f}",
            "-" if row.vs_int8 is None else f"{row.vs_int8:.2f}",
            "-" if row.vs_fp16 is None else f"{row.vs_fp16:.2f}",
            f"{row.delay_ps:,.0f}" + ("" if row.reached else " *"),
            f"{row.clock_ps:,.0f}" if row.clock_ps else "-",
            end_section=i + 1 == len(rows) or rows[i + 1].technology != row.technology,
        )
    return table
