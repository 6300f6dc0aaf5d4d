"""`bitwright rtl`: Verilog of the PEs, and of engines around them."""

from pathlib import Path
from typing import Annotated

import typer

rtl = typer.Typer(no_args_is_help=True, help="Verilog of the PEs.")


@rtl.command()
def emit(
    pe: Annotated[str, typer.Argument(help="A PE such as bitmod or fp16.")],
    out: Annotated[Path, typer.Option(help="Folder to write to; made if missing.")],
    vectors: Annotated[
        int | None,
        typer.Option(
            help="Random dot products per mode, or products of an engine. [default: 200, or 50]"
        ),
    ] = None,
    engine: Annotated[
        str | None,
        typer.Option(help="Emit a GEMM engine around the PE: ROWSxCOLS, such as 4x4."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the random vectors.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Write a PE's Verilog, a cocotb bench and its vectors.

    The folder needs nothing of this package: `python run.py` in it builds the design with Verilator
    and compares every clock cycle.
    """
    from rich.table import Table

    from bitwright.output import progress_bar, show
    from bitwright.quant import InputError
    from bitwright.rtl import emit as emit_files

    with progress_bar("emit") as progress:
        if engine is None:
            dots = 200 if vectors is None else vectors
            paths = emit_files(pe, out, dots=dots, seed=seed, progress=progress)
        else:
            from bitwright.rtl import engine as engines

            rows, cross, cols = engine.partition("x")
            if not (rows.isdecimal() and cross and cols.isdecimal()):
                raise InputError(f"--engine is {engine!r}; rows x columns, such as 4x4")
            design = engines.EngineDesign(pe, int(rows), int(cols))
            gemms = 50 if vectors is None else vectors
            paths = engines.emit_engine(design, out, gemms=gemms, seed=seed, progress=progress)
    table = Table(title=f"{pe} in {out}")
    table.add_column("file")
    table.add_column("bytes", justify="right")
    for path in paths:
        table.add_row(str(path.relative_to(out)), f"{path.stat().st_size:,}")
    show({"pe": pe, "out": str(out), "files": [str(path) for path in paths]}, as_json, table)
