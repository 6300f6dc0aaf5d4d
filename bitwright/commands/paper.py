"""`bitwright paper`: a paper's tables and figures rebuilt, with the published values beside."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import RenderableType

    from bitwright.experiments import Rebuilt


def paper(
    name: Annotated[str, typer.Argument(help="Which paper: bitmod, dint or abq.")],
    only: Annotated[
        list[str] | None,
        typer.Option(help="One table or figure, such as table2; repeat for several."),
    ] = None,
    model: Annotated[
        str,
        typer.Option(
            help="Model of the accuracy tables: smollm2 (its rows ship), tiny, a GGUF file or a "
            "Hugging Face folder (their rows are measured)."
        ),
    ] = "smollm2",
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Measure smollm2's rows again; needs --out.")
    ] = False,
    text: Annotated[Path | None, typer.Option(help="UTF-8 text to read instead.")] = None,
    tokens: Annotated[int, typer.Option(help="Tokens to read; whole windows count.")] = 2048,
    window: Annotated[int, typer.Option(help="Context length.")] = 512,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Folder for JSON, CSV and figures (SVG, PNG), and for the rows that are measured."
        ),
    ] = None,
    times: Annotated[
        bool, typer.Option("--times", help="Say below the tables how long each took.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Rebuild a paper's tables and figures; the published value stands beside each of ours.

    Rows that are measured are kept as they are finished: the same command goes on behind the last.
    """
    from bitwright.experiments import PaperSetting, find_paper, write_paper
    from bitwright.output import progress_bar, show
    from bitwright.quant import output_folder

    found = find_paper(name)
    found.check(only or ())
    PaperSetting(model, out, fresh, text, tokens, window).check()
    if out is not None:
        output_folder(out)  # tells before the work what could not be written after it
    with progress_bar(f"paper {name}") as progress:
        setting = PaperSetting(model, out, fresh, text, tokens, window, progress)
        rebuilt = found.rebuild(setting, only or ())
    paths = {} if out is None else write_paper(rebuilt, out)
    show(rebuilt.document(), as_json, _tables(rebuilt, list(paths.values()), times))


def _tables(rebuilt: "Rebuilt", paths: list[Path], times: bool) -> "RenderableType":
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
            table.add_column(
                column, justify="left" if left else "right", no_wrap=first and not shown.prose
            )
        for row in shown.rows:
            table.add_row(*(Text(cell) for cell in row))
        parts.append(table)
        parts += [Text(note, style="dim") for note in shown.notes]
    if times:
        parts += [Text(f"{step}: {seconds:g} s") for step, seconds in rebuilt.seconds.items()]
    parts += [Text(str(path)) for path in paths]
    return Group(*parts)
