"""`bitwright paper`: a paper's tables and figures rebuilt, with the published values beside."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import RenderableType

    from bitwright.experiments import Rebuilt


def paper(
    name: Annotated[str, typer.Argument(help="Which paper: bitmod.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder for JSON, CSV and figures (SVG, PNG).")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Rebuild a paper's tables and figures; the published value stands beside each of ours."""
    from bitwright.experiments import find_paper, write_paper
    from bitwright.output import show
    from bitwright.quant import output_folder

    rebuild = find_paper(name)
    if out is not None:
        output_folder(out)  # tells before the work what could not be written after it
    rebuilt = rebuild()
    paths = {} if out is None else write_paper(rebuilt, out)
    show(rebuilt.document(), as_json, _tables(rebuilt, list(paths.values())))


def _tables(rebuilt: "Rebuilt", paths: list[Path]) -> "RenderableType":
    from rich.box import SIMPLE_HEAD
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    parts: list[RenderableType] = [Text(rebuilt.source)]
    for shown in rebuilt.tables:
        table = Table(title=shown.title, title_justify="left", box=SIMPLE_HEAD)
        table.show_header = any(shown.columns)
        for position, column in enumerate(shown.columns):
            first = position == 0
            left = first or shown.prose
            table.add_column(column, justify="left" if left else "right", no_wrap=first)
        for row in shown.rows:
            table.add_row(*(Text(cell) for cell in row))
        parts.append(table)
        parts += [Text(note, style="dim") for note in shown.notes]
    parts += [Text(str(path)) for path in paths]
    return Group(*parts)
