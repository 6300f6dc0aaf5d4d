"""`bitwright verify`: mismatches between the realisations of a PE."""

import sys
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
            "the slow realisations too; formal: proofs by SAT instead of vectors."
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
    engine: Annotated[
        bool,
        typer.Option(
            "--engine",
            help="Verify GEMM engines around the PE: every output in every clock cycle.",
        ),
    ] = False,
    gemms: Annotated[
        int | None, typer.Option(help="Random products through the engines. [default: 500]")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the random vectors.")] = 0,
    allow_missing: Annotated[
        bool,
        typer.Option(
            "--allow-missing",
            help="End with status 0 though a tool is missing or a proof did not end.",
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Run all realisations of a PE on the same vectors and count where they differ.

    Values and clock cycles are compared: reference (plain Python), model (numba), software kernel,
    PyRTL's simulation, the emitted Verilog under cocotb and in a C++ driver, and the netlist mapped
    to Nangate45. Cells count dot products. Ends with status 1 if anything differs, or was not run
    for want of a tool.
    """
    from dataclasses import asdict

    from rich.console import Group
    from rich.table import Table

    from bitwright import rtl
    from bitwright.output import progress_bar, show
    from bitwright.quant import InputError

    names = list(rtl.DESIGNS) if pe == "all" else [pe]
    if engine:
        if mode or realisation or verilog is not None or vectors is not None or level != "standard":
            raise InputError(
                "--engine goes with --gemms and --seed alone; leave --level, --vectors, --mode, "
                "--realisation and --verilog out"
            )
        _verify_engines(names, 500 if gemms is None else gemms, seed, as_json)
        return
    if gemms is not None:
        raise InputError(f"--gemms {gemms} needs --engine")
    text = None
    if verilog is not None:
        if pe == "all":
            raise InputError("--verilog holds one design; name its PE instead of all")
        try:
            text = verilog.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"--verilog {verilog} cannot be read as text: {error}") from None

    offered = rtl.verification.level_realisations(level)
    wanted = realisation or offered
    for name in wanted:
        if name not in offered:
            raise InputError(
                f"level {level} has no realisation {name!r}; there are: {', '.join(offered)}"
            )
    if level == rtl.verification.FORMAL and (mode or vectors is not None):
        raise InputError("level formal proves all inputs; leave --mode and --vectors out")
    missing = rtl.verification.missing_tools(wanted)
    possible = [name for name in wanted if name not in missing]
    if not possible:
        raise InputError(f"nothing can be verified: {next(iter(missing.values()))}")
    rows = []
    for name in names:
        with progress_bar(f"verify {name}") as progress:
            if level == rtl.verification.FORMAL:
                rows += rtl.prove(name, progress, verilog=text)
                continue
            rows += rtl.verify(
                name,
                mode,
                level,
                seed,
                progress,
                vectors=vectors,
                kernel=_kernel(name),
                realisations=possible,
                verilog=text,
            )
    mismatches = sum(row.mismatches for row in rows)
    unfinished = [row for row in rows if not row.finished]

    ran = {row.realisation for row in rows}
    shown = [name for name in rtl.verification.REALISATIONS if name in ran]
    table = Table(title=f"{pe}, level {level}, seed {seed}: {mismatches} mismatches")
    for heading in ("PE", "mode"):
        table.add_column(heading)
    for heading in (*shown, "mismatches"):
        table.add_column(heading, justify="right")
    by_mode: dict[tuple[str, str], dict[str, rtl.VerifyRow]] = {}
    for row in rows:
        by_mode.setdefault((row.pe, row.mode), {})[row.realisation] = row
    for (name, of), found in by_mode.items():
        cells = [found[r].cell if r in found else "-" for r in shown]
        table.add_row(name, of, *cells, f"{sum(row.mismatches for row in found.values()):,}")
    notes = [*dict.fromkeys(row.note for row in rows if row.note)]
    if any(row.bins for row in rows):
        hit, bins = (sum(getattr(row, name) for row in rows) for name in ("bins_hit", "bins"))
        notes.append(f"{hit:,} of {bins:,} coverage bins hit")
    notes += [f"not run: {name}: {why}" for name, why in missing.items()]
    document = {
        "mismatches": mismatches,
        "seed": seed,
        "level": level,
        "not_run": missing,
        "results": [{**asdict(row), "kinds": dict(row.kinds)} for row in rows],
    }
    show(document, as_json, Group(table, *notes))
    if missing and not allow_missing:
        print(
            f"not run: {', '.join(missing)}; install what is missing, or give --allow-missing",
            file=sys.stderr,
        )
    if mismatches or ((missing or unfinished) and not allow_missing):
        raise typer.Exit(1)


def _verify_engines(names: list[str], gemms: int, seed: int, as_json: bool) -> None:
    """Random products through engines of each PE; status 1 if anything differs."""
    from dataclasses import asdict

    from rich.console import Group
    from rich.table import Table

    from bitwright.output import progress_bar, show
    from bitwright.rtl import engine

    reports = {}
    for name in names:
        with progress_bar(f"verify engines of {name}") as progress:
            reports[name] = engine.verify_engine(name, gemms, seed=seed, progress=progress)
    mismatches = sum(report.mismatches for report in reports.values())
    table = Table(title=f"engines, {gemms} products a PE, seed {seed}: {mismatches} mismatches")
    for heading in ("PE", "engine", "realisation"):
        table.add_column(heading)
    for heading in ("products", "clock cycles", "result words", "mismatches"):
        table.add_column(heading, justify="right")
    for report in reports.values():
        for check in report.checks:
            counts = (check.gemms, check.cycles, check.results, check.mismatches)
            table.add_row(
                check.pe, check.engine, check.realisation, *(f"{count:,}" for count in counts)
            )
    empty = {name: report.empty_bins for name, report in reports.items() if report.empty_bins}
    hit = sum(len(report.covers) - len(report.empty_bins) for report in reports.values())
    bins = sum(len(report.covers) for report in reports.values())
    notes = [
        "model: results of the array model beside the PE's gemm; its mismatches are products",
        f"{hit} of {bins} coverage bins hit",
        *(f"{name}: never met: {', '.join(found)}" for name, found in empty.items()),
    ]
    document = {
        "mismatches": mismatches,
        "gemms": gemms,
        "seed": seed,
        "results": [asdict(check) for report in reports.values() for check in report.checks],
        "coverage": {name: report.covers for name, report in reports.items()},
    }
    show(document, as_json, Group(table, *notes))
    if mismatches:
        raise typer.Exit(1)


def _kernel(pe: str) -> Callable[..., Any]:
    """The software kernel that claims the PE's numerics."""
    from bitwright import kernels
    from bitwright.rtl import find_design
    from bitwright.sim import dot

    if pe == "bitmod":
        return kernels.bitserial_dots
    if pe.startswith("btc"):
        return kernels.plane_dots
    if pe == "fp16acc16":
        return kernels.half_dots
    accumulator = getattr(getattr(find_design(pe), "unit", None), "accumulator", None)
    whole = isinstance(accumulator, dot.IntAccumulator)
    return kernels.integer_dots if whole else kernels.float_dots
