"""`bitwright mutate`: faults on purpose, and whether verification sees them."""

from typing import Annotated

import typer


def mutate(
    pe: Annotated[str, typer.Argument(help="A PE such as dint4, or core: bitmod, dint4 and btc.")],
    count: Annotated[
        int, typer.Option(help="Mutants per PE, those that no input can show not counted.")
    ] = 40,
    seed: Annotated[int, typer.Option(help="Of the choice of mutants.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Break a PE's RTL in many places, one at a time, and show that verification sees each.

    Swapped operands, shifts off by one, dropped sticky bits and carries, missing resets, registers
    too early or too late: mutants of every kind that the PE has places for, spread over it, against
    the vectors of `verify`. A mutant that is proved to be unobservable is left out. Ends with
    status 1 if one survives.
    """
    from rich.console import Group
    from rich.table import Table

    from bitwright.output import progress_bar, show
    from bitwright.rtl import emission, mutation_check

    names = list(mutation_check.CORE) if pe == "core" else [pe]
    designs = [emission.find_design(name) for name in names]
    reports = []
    for design in designs:
        with progress_bar(f"mutate {design.name}") as progress:
            reports.append(mutation_check.check_mutants(design, count, seed, progress))

    tables = []
    for report in reports:
        table = Table(title=f"{report.pe}, seed {seed}")
        for heading in ("kind", "place", "what", "caught by"):
            table.add_column(heading)
        table.add_column("vectors", justify="right")
        for result in report.tried:
            mutant = result.mutant
            place = f"{mutant.place} - {mutant.distance}" if mutant.distance else mutant.place
            answer = result.caught_by or f"{result.outcome}: {result.note}"
            style = "bold red" if result.outcome == "survivor" else None
            table.add_row(
                mutant.kind, place, mutant.what, answer, f"{result.vectors:,}", style=style
            )
        tables.append(table)
    survivors = sum(len(report.of("survivor")) for report in reports)
    document = {
        "survivors": survivors,
        "seed": seed,
        "results": [report.to_dict() for report in reports],
    }
    note = "place: the register or output that the logic leads to, and how many nets before it"
    show(document, as_json, Group(*tables, note, *(report.summary for report in reports)))
    if survivors:
        raise typer.Exit(1)
