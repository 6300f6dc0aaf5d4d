"""What a rebuilt paper consists of, and how it is written to a folder.

A `Paper` has parts, one per table or figure, that are rebuilt alone or together into a `Rebuilt`.
"""

import csv
import io
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitwright import __version__
from bitwright.experiments import commit, save_figure
from bitwright.quant import output_folder, write_text
from bitwright.sim import pick

from .setting import PaperSetting

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True, slots=True)
class ShownTable:
    """A table for people; every row has a cell per column, the first one names the row."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()
    prose: bool = False  #: cells are sentences, set flush left


@dataclass(frozen=True, slots=True)
class Part:
    """One table or figure of a paper, rebuilt."""

    tables: tuple[ShownTable, ...]
    data: Mapping[str, Sequence[Mapping[str, Any]]]
    figures: Mapping[str, Callable[[], "Figure"]] = field(default_factory=dict)
    summary: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Paper:
    """A paper and what can be rebuilt of it."""

    name: str  #: as in `bitwright paper NAME`
    source: str
    parts: Mapping[str, Callable[[PaperSetting], Part]]  #: name, as in `--only` -> rebuilds it

    def check(self, only: Sequence[str]) -> None:
        """Refuse parts that there are not.

        Raises:
            InputError: The nearest names and all names are told.
        """
        for name in only:
            pick(self.parts, name, f"table of {self.name}")

    def rebuild(self, setting: PaperSetting | None = None, only: Sequence[str] = ()) -> "Rebuilt":
        """Rebuild all parts, or some, and time each.

        Args:
            setting: The model and how rows come about; None for the default model.
            only: Names of parts; none means all.

        Raises:
            InputError: An unknown part, or what a part cannot do.
        """
        setting = PaperSetting() if setting is None else setting
        self.check(only)
        wanted = [name for name in self.parts if not only or name in only]
        setting.check()
        found: list[Part] = []
        seconds: dict[str, float] = {}
        for name in wanted:
            start = time.monotonic()
            found.append(self.parts[name](setting))
            seconds[name] = round(time.monotonic() - start, 2)
        return Rebuilt(
            self.name,
            self.source,
            tuple(table for part in found for table in part.tables),
            {name: rows for part in found for name, rows in part.data.items()},
            {name: draw for part in found for name, draw in part.figures.items()},
            {name: value for part in found for name, value in part.summary.items()},
            seconds,
        )


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """A paper's tables and figures, computed here, with the published values beside them."""

    name: str  #: of the paper, as in `bitwright paper NAME`
    source: str  #: the paper
    tables: tuple[ShownTable, ...]
    data: Mapping[str, Sequence[Mapping[str, Any]]]  #: name of a CSV file -> its rows
    figures: Mapping[str, Callable[[], "Figure"]]  #: name -> draws the figure from `data`
    summary: Mapping[str, Any]  #: further values of the document
    seconds: Mapping[str, float] = field(default_factory=dict)  #: part -> run time

    def document(self) -> dict[str, Any]:
        """What `bitwright paper --json` prints."""
        rows = {name: [dict(row) for row in rows] for name, rows in self.data.items()}
        return {
            "paper": self.name,
            "source": self.source,
            "seconds": dict(self.seconds),
            **self.summary,
            **rows,
        }


def write_paper(rebuilt: Rebuilt, out: str | Path) -> dict[str, Path]:
    """Write NAME.json, a CSV file per table and every figure (SVG and PNG) into a folder.

    Returns:
        File name -> where it is.

    Raises:
        InputError: The folder cannot be written.
    """
    folder = output_folder(out)
    document = {"bitwright": __version__, "commit": commit(), **rebuilt.document()}
    texts = {f"{rebuilt.name}.json": json.dumps(document, indent=1, allow_nan=False)}
    for name, rows in rebuilt.data.items():
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        texts[f"{rebuilt.name}_{name}.csv"] = buffer.getvalue()
    paths = {}
    for name, text in texts.items():
        paths[name] = folder / name
        write_text(paths[name], text)
    for name, draw in rebuilt.figures.items():
        paths |= save_figure(draw(), folder / f"{rebuilt.name}_{name}", ("png", "svg"))
    return paths
