"""What a rebuilt paper consists of, and how it is written to a folder."""

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitwright import __version__
from bitwright.experiments import commit, save_figure
from bitwright.quant import output_folder, write_text

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
class Rebuilt:
    """A paper's tables and figures, computed here, with the published values beside them."""

    name: str  #: of the paper, as in `bitwright paper NAME`
    source: str  #: the paper
    tables: tuple[ShownTable, ...]
    data: Mapping[str, Sequence[Mapping[str, Any]]]  #: name of a CSV file -> its rows
    figures: Mapping[str, Callable[[], "Figure"]]  #: name -> draws the figure from `data`
    summary: Mapping[str, Any]  #: further values of the document

    def document(self) -> dict[str, Any]:
        """What `bitwright paper --json` prints."""
        rows = {name: [dict(row) for row in rows] for name, rows in self.data.items()}
        return {"paper": self.name, "source": self.source, **self.summary, **rows}


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
