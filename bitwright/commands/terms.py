"""`bitwright terms`: what leaving out zero terms gives on a model's own weights."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from bitwright.sim import TermStatistics


def terms(
    model: Annotated[str, typer.Option(help="Model, as for evaluate.")] = "smollm2",
    recipe: Annotated[str, typer.Option(help="Weights, for the bit-serial PE.")] = "bitmod3",
    cols: Annotated[int, typer.Option(help="Output channels side by side.")] = 32,
    csv: Annotated[
        Path | None, typer.Option(help="Write a row per layer, mode and synchronisation here.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Cycles of the bit-serial PE on real weights, fixed and with zero terms left out.

    significance: a term cycle goes if no lane needs that bit; the PE's results stay the same.
    lanes: every lane sends its own next term, which is another PE; its cycles are a bound.
    Columns share their activations and meet after every step, group or tile.
    """
    import csv as csv_files
    import io

    from rich.box import SIMPLE_HEAD
    from rich.console import Group
    from rich.table import Table

    from bitwright.output import progress_bar, show
    from bitwright.quant import load_model, write_text
    from bitwright.sim import layer_term_statistics

    loaded = load_model(model)
    with progress_bar("terms") as progress:
        report = layer_term_statistics(loaded, recipe, cols=cols, progress=progress)
    if csv is not None:
        rows = [row.to_dict() for row in report.layers]
        text = io.StringIO()
        writer = csv_files.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_text(csv, text.getvalue())
    table = Table(
        title=f"{report.model}, {report.recipe}, {report.cols} columns",
        caption="speed-up: over the fixed number of terms, all block layers; by layer: least, most",
        box=SIMPLE_HEAD,
    )
    for heading in ("mode", "columns meet"):
        table.add_column(heading, no_wrap=True)
    for heading in ("cycles", "speed-up", "by layer", "terms a weight", "cycles a step"):
        table.add_column(heading, justify="right")
    meet = {"shared": "one counter", "step": "every step", "group": "every group"}
    meet |= {"tile": "every tile", "none": "never (bound)"}
    for row in report.totals():
        table.add_row(
            row["mode"],
            meet[row["sync"]],
            f"{row['beats']:,}",
            f"{row['speedup']:.3f}",
            f"{row['speedup_least']:.3f} .. {row['speedup_most']:.3f}",
            f"{row['terms_per_weight']:.3f}",
            f"{row['step_mean']:.3f}",
        )
    steps = _distribution(report.select("significance", "step"))
    show(report.to_dict(), as_json, Group(table, steps))


def _distribution(rows: "tuple[TermStatistics, ...]") -> str:
    """Steps of one column by the cycles they need, in words."""
    counts = [sum(steps) for steps in zip(*(row.steps_by_cost for row in rows), strict=True)]
    parts = [
        f"{100 * count / sum(counts):.1f} % take {cost}"
        for cost, count in enumerate(counts)
        if count
    ]
    return f"steps of one column by itself: {', '.join(parts)} cycles"
