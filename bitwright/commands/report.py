"""`bitwright report`: results as one HTML page and as figures for a paper."""

from pathlib import Path
from typing import Annotated, Any

import typer


def report(
    place: Annotated[
        Path,
        typer.Argument(
            metavar="DIR", help="Folder made by codesign, sweep or search, or its JSON file."
        ),
    ],
    out: Annotated[
        Path | None, typer.Option(help="HTML file to write. [default: DIR/report.html]")
    ] = None,
    figures: Annotated[
        Path | None, typer.Option(help="Folder for figures of a paper: PDF, SVG and PNG.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """One HTML page that opens offline: Pareto front, energy, latency, area, formats, sources."""
    from bitwright.experiments import write_publication, write_report
    from bitwright.output import show
    from bitwright.quant import output_folder

    if figures is not None:
        output_folder(figures)
    path, explored = write_report(place, out)
    drawn = {} if figures is None else write_publication(explored, figures)
    document: dict[str, Any] = {
        "kind": explored.kind,
        "points": len(explored.points),
        "report": str(path),
        "bytes": path.stat().st_size,
        "figures": [str(file) for file in drawn.values()],
    }
    lines = [f"{explored.kind}, {len(explored.points):,} points", str(path)]
    lines += [str(file) for file in drawn.values()]
    from rich.text import Text

    show(document, as_json, Text("\n".join(lines)))
