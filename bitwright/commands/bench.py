"""`bitwright bench`: the package's own speed, as ratios to named baselines."""

from typing import Annotated

import typer


def bench(
    seed: Annotated[int, typer.Option(help="Seed of the random operands.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Throughput of quantiser, PE models, verification and simulator, against named baselines."""
    from rich.table import Table

    from bitwright.experiments import bench as run
    from bitwright.experiments import bench_document
    from bitwright.output import progress_bar, show

    with progress_bar("bench") as progress:
        rows = run(seed, progress)
    table = Table(title="best of 5 runs, all cores")
    for column in ("what", "shape", "rate", "unit", "baseline", "its rate", "ratio"):
        table.add_column(
            column, justify="right" if column in ("rate", "its rate", "ratio") else "left"
        )
    for row in rows:
        table.add_row(
            row.name,
            row.shape,
            f"{row.rate:.1f}",
            row.unit,
            row.baseline,
            f"{row.baseline_rate:.2f}",
            f"{row.speedup:.0f}x",
        )
    show(bench_document(rows), as_json, table)
