"""What a command prints: the answer on stdout, progress on stderr; and the command itself."""

import json
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console, RenderableType

import bitwright


def show(document: Mapping[str, Any], as_json: bool, table: RenderableType) -> None:
    """Print one JSON document, or the table for people.

    The document gets the keys `bitwright` and `commit`: the version and source that computed it.
    A table that is not going to a terminal is laid out 120 columns wide, so that files and
    documentation hold the same text everywhere.
    """
    if as_json:
        from bitwright.experiments import commit

        origin = {"bitwright": bitwright.__version__, "commit": commit()}
        print(json.dumps({**origin, **document}, indent=1, allow_nan=False))
        return
    Console(width=None if sys.stdout.isatty() else 120).print(table)


@contextmanager
def progress_bar(title: str) -> Iterator[Callable[[int, int, str], None]]:
    """A bar with the time left on stderr; yields `progress(done, total, what)`.

    On a stderr that is not a terminal nothing is drawn.
    """
    from rich.progress import (
        BarColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:3.0f}%"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task(title, total=None)

        def progress(done: int, total: int, what: str) -> None:
            bar.update(task, completed=done, total=total, description=f"{title}: {what}")

        yield progress


_arguments: list[str] | None = None


@contextmanager
def remembered(arguments: Sequence[str]) -> Iterator[None]:
    """Keep the arguments of the command line for `command_line` while the block runs."""
    global _arguments
    _arguments = list(arguments)
    try:
        yield
    finally:
        _arguments = None


def command_line() -> str | None:
    """The command that is running, quoted for a shell, as results store it; None from Python.

    Options that only say where the answer goes (--out, --json) are left out, so that the same run
    gives the same bytes in any folder.
    """
    if _arguments is None:
        return None
    kept = []
    skip = False
    for argument in _arguments:
        if skip or argument == "--json" or argument.startswith("--out="):
            skip = False
        elif argument == "--out":
            skip = True
        else:
            kept.append(argument)
    return shlex.join(["bitwright", *kept])
