"""`bitwright sweep`: many design points from one file, in a store that survives interruptions."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.table import Table

    from bitwright.experiments import sweep as sweeps

_SHOWN = 10  # of the best points


def sweep(
    file: Annotated[Path, typer.Argument(help="The sweep: a YAML file, see docs/sweeps.md.")],
    out: Annotated[
        Path, typer.Option(help="Folder for results.json, results.csv and results.parquet.")
    ] = Path("results"),
    store: Annotated[
        Path | None,
        typer.Option(help="SQLite file of the points; sweeps can share one. [default: in --out]"),
    ] = None,
    workers: Annotated[int, typer.Option(help="Processes on this machine; 1: this one.")] = 1,
    scheduler: Annotated[
        str | None, typer.Option(help="dask.distributed scheduler, as tcp://host:8786.")
    ] = None,
    slurm: Annotated[
        Path | None, typer.Option(help="YAML profile of SLURM jobs to start workers in.")
    ] = None,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Compute points again that failed before.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Run every point of a sweep that the store lacks, then export all of them."""
    import shlex
    import sys

    from bitwright.experiments import sweep as sweeps
    from bitwright.output import progress_bar, show
    from bitwright.quant import InputError, output_folder

    chosen = {"--workers": workers != 1, "--scheduler": scheduler, "--slurm": slurm}
    given = [name for name, value in chosen.items() if value]
    if len(given) > 1:
        raise InputError(f"{given[0]} does not go with {given[1]}; give one of them")
    planned = sweeps.plan_sweep(sweeps.load_sweep(file))
    folder = output_folder(out)
    path = store or folder / "sweep.sqlite"
    with sweeps.Store(path) as rows:
        rows.want(planned.keys)
        with progress_bar("sweep") as progress:
            planned = planned.prepared(progress)
        executor = _executor(workers, scheduler, slurm)
        best = sweeps.Best(planned)
        try:
            with _watching(planned, best) as tell:
                computed = sweeps.run_sweep(
                    planned, rows, executor, retry_failed=retry_failed, tell=tell
                )
        except KeyboardInterrupt:
            kept = len(planned) - len(rows.missing())
            print(
                f"bitwright: interrupted: {kept:,} of {len(planned):,} points are in {path}; the "
                "same command goes on from there",
                file=sys.stderr,
            )
            raise typer.Exit(130) from None
        finally:
            executor.close()
        # Where points ran decides nothing, so that the command is the same for all who ran it.
        command = shlex.join(["bitwright", "sweep", str(file)])
        done = sweeps.export_sweep(planned, rows, folder, command)
        others = len(rows) - len(planned)
    found = [_record(planned, row) for row in done.best.rows()]
    document = {
        "name": planned.spec.name,
        "points": len(planned),
        "computed": computed,
        **{status: done.counts[status] for status in ("ok", "failed", "infeasible")},
        "skipped": planned.skipped,
        "equal": planned.equal,
        "objectives": list(planned.spec.objectives),
        "best": found,
        "errors": [{"error": text, "points": count} for text, count in done.errors.items()],
        "store": str(path),
        "rows_of_others": others,
        "files": {name: str(path) for name, path in done.files.items()},
    }
    show(document, as_json, _answer(document))


def _executor(workers: int, scheduler: str | None, slurm: Path | None) -> "sweeps.Executor":
    from bitwright.experiments import sweep as sweeps

    if scheduler is not None:
        return sweeps.connect(scheduler)
    if slurm is not None:
        return sweeps.slurm(slurm)
    return sweeps.Here() if workers == 1 else sweeps.Processes(workers)


@contextmanager
def _watching(
    planned: "sweeps.Sweep", best: "sweeps.Best"
) -> Iterator[Callable[[int, int, Sequence[Any]], None]]:
    """Progress with the time left, and the best points so far, on a terminal's stderr."""
    from rich.console import Console, Group
    from rich.live import Live
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    console = Console(stderr=True)
    bar = Progress(
        TextColumn(planned.spec.name),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
    )
    task = bar.add_task("sweep", total=len(planned))
    if not console.is_terminal:
        yield lambda done, total, rows: None
        return
    with Live(bar, console=console, transient=True, refresh_per_second=4) as live:

        def tell(done: int, total: int, rows: Sequence[Any]) -> None:
            bar.update(task, completed=done, total=total)
            best.add(rows)
            found = [_record(planned, row) for row in best.rows()[:_SHOWN]]
            live.update(Group(bar, _best_table(found, best.objectives)) if found else bar)

        yield tell


def _record(planned: "sweeps.Sweep", row: Sequence[Any]) -> dict[str, Any]:
    """What a table of the best points needs of one."""
    from bitwright.experiments import sweep as sweeps

    values = dict(zip(sweeps.COLUMNS, row, strict=True))
    return {
        "key": values["key"],
        "name": sweeps.label(planned, values),
        **{name: values[name] for name in planned.spec.objectives},
    }


def _best_table(found: Sequence[dict[str, Any]], objectives: Sequence[str]) -> "Table":
    from rich.box import SIMPLE_HEAD
    from rich.markup import escape
    from rich.table import Table

    table = Table(title="best points: no other is better in all", box=SIMPLE_HEAD)
    table.add_column("point")
    for name in objectives:
        table.add_column(name, justify="right", no_wrap=True)
    for record in found:
        table.add_row(escape(record["name"]), *(f"{record[name]:.4g}" for name in objectives))
    return table


def _answer(document: dict[str, Any]) -> Any:
    from rich.console import Group
    from rich.markup import escape

    def counted(name: str, words: str) -> list[str]:
        return [f"{document[name]:,} {words}"] if document[name] else []

    stored = document["points"] - document["computed"]
    parts = [
        f"{document['ok']:,} ok",
        *counted("failed", "failed"),
        *counted("infeasible", "infeasible"),
    ]
    lines = [
        f"{document['name']}: {document['points']:,} points: {', '.join(parts)}",
        f"{document['computed']:,} computed now, {stored:,} from the store",
    ]
    left = [*counted("skipped", "left out by constraints"), *counted("equal", "equal to another")]
    if left:
        lines.append("not among them: " + ", ".join(left))
    for error in document["errors"][:3]:
        lines.append(f"failed, {error['points']:,} x: {error['error']}")
    if document["failed"]:
        lines.append("failed points stay as they are; --retry-failed computes them again")
    if document["rows_of_others"]:
        lines.append(
            f"the store holds {document['rows_of_others']:,} more rows, of other sweeps or of "
            "other code, which are left alone"
        )
    from bitwright.experiments import sweep as sweeps

    if "results.parquet" not in document["files"]:
        lines.append(sweeps.INSTALL_PARQUET)
    lines += [document["store"], *document["files"].values()]
    found, shown = document["best"], document["best"][:_SHOWN]
    parts_: list[Any] = []
    if found:
        parts_.append(_best_table(shown, document["objectives"]))
        if len(found) > len(shown):
            parts_.append(f"{len(found) - len(shown):,} more are as good; see --json")
    return Group(*parts_, *(escape(line) for line in lines))
