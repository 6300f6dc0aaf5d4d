"""`bitwright verify`: mismatches between the realisations of a PE."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer


def verify(
    pe: Annotated[str, typer.Argument(help="A PE such as bitmod or fp16, or all.")],
    level: Annotated[
        str,
        typer.Option(
            help="quick: 2,000 random dot products per mode; standard: 100,000; full: as many in "
            "the slow realisations too."
        ),
    ] = "standard",
    vectors: Annotated[
        int | None, typer.Option(help="Random dot products per mode, in place of the level's.")
    ] = None,
    mode: Annotated[
        list[str] | None, typer.Option(help="Such as int8; repeat for several. [default: all]")
    ] = None,
    realisation: Annotated[
        list[str] | None,
        typer.Option(help="Such as netlist; repeat for several. [default: all]"),
    ] = None,
    verilog: Annotated[
        Path | None,
        typer.Option(help="Verilog file to verify in place of the generator's text."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the random vectors.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Run all realisations of a PE on the same vectors and count where they differ.

    Values and clock cycles are compared: reference (plain Python), model (numba), software kernel,
    PyRTL's simulation, the emitted Verilog under cocotb and in a C++ driver, and the netlist mapped
    to Nangate45. Ends with status 1 if anything differs.
    """
    from dataclasses import asdict

    from rich.table import Table

    from bitwright import rtl
    from bitwright.output import progress_bar, show
    from bitwright.quant import InputError

    names = list(rtl.DESIGNS) if pe == "all" else [pe]
    text = None
    if verilog is not None:
        if pe == "all":
            raise InputError("--verilog holds one design; name its PE instead of all")
        try:
            text = verilog.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"--verilog {verilog} cannot be read as text: {error}") from None

    rows = []
    for name in names:
        with progress_bar(f"verify {name}") as progress:
            rows += rtl.verify(
                name,
                mode,
                level,
                seed,
                progress,
                vectors=vectors,
                kernel=_kernel(name),
                realisations=realisation,
                verilog=text,
            )
    mismatches = sum(row.mismatches for row in rows)

    kinds = list(dict.fromkeys(kind for row in rows for kind in row.kinds))
    table = Table(title=f"{pe}, level {level}, seed {seed}: {mismatches} mismatches")
    for heading in ("PE", "mode", "realisation", "against"):
        table.add_column(heading)
    for heading in (*kinds, "vectors", "mismatches"):
        table.add_column(heading, justify="right")
    for row in rows:
        counts = [row.kinds.get(kind, 0) for kind in kinds]
        cells = [f"{count:,}" for count in (*counts, row.vectors, row.mismatches)]
        table.add_row(row.pe, row.mode, row.realisation, row.against, *cells)
    table.caption = "; ".join(dict.fromkeys(row.note for row in rows if row.note))
    document = {
        "mismatches": mismatches,
        "seed": seed,
        "results": [{**asdict(row), "kinds": dict(row.kinds)} for row in rows],
    }
    show(document, as_json, table)
    if mismatches:
        raise typer.Exit(1)


def _kernel(pe: str) -> Callable[..., Any] | None:
    """The software kernel that claims the PE's numerics."""
    if pe != "bitmod":
        return None
    from bitwright.kernels import bitserial_dots

    return bitserial_dots
