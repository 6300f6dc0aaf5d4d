"""The report as one HTML file that needs no network.

`report.html`, `report.css` and `report.js` beside this file, plotly's library and the data are put
into one another here. The page's policy allows the two scripts by their hashes and forbids
everything else, so neither a label from a file nor a fault of ours can load or run anything.
"""

import base64
import hashlib
import html
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from string import Template
from typing import Any

from bitwright.quant import InputError, write_text

from .explored import Explored, Point, Stack, Value, more_is_better
from .looks import FAMILIES, PARTS, family, format_looks
from .reading import read_results

_FOLDER = Path(__file__).parent
#: Columns whose labels have the colour of their family.
_OF_A_FAMILY = ("family", "recipe", "pe", "format")


def write_report(place: str | Path, out: str | Path | None = None) -> tuple[Path, Explored]:
    """Write the page of a folder of results.

    Args:
        place: The folder, or its results.json or search.json.
        out: The file to write; None: report.html beside the results.

    Returns:
        The file, and what it shows.

    Raises:
        InputError: Nothing to report on, or a file that cannot be written.
    """
    explored = read_results(place)
    place = Path(place)
    path = Path(out) if out else (place if place.is_dir() else place.parent) / "report.html"
    if path.is_dir():
        raise InputError(f"--out {path} is a folder; name a file, such as {path / 'report.html'}")
    write_text(path, report_page(explored))
    return path, explored


def report_page(explored: Explored) -> str:
    """The page; the same results give the same text."""
    plotly, script = _plotly(), _part("report.js")
    policy = (
        f"default-src 'none'; script-src {_hash(plotly)} {_hash(script)}; "
        "style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'; form-action 'none'"
    )
    return Template(_part("report.html")).substitute(
        title=html.escape(explored.title),
        policy=policy,
        style=_part("report.css"),
        data=_inert(json.dumps(_data(explored), allow_nan=False, separators=(",", ":"))),
        plotly=plotly,
        script=script,
    )


def _part(name: str) -> str:
    return (_FOLDER / name).read_text(encoding="utf-8")


@cache
def _plotly() -> str:
    """plotly.js, licence included, as it can stand in a script element."""
    from plotly.offline import get_plotlyjs

    code = str(get_plotlyjs()).replace("\r\n", "\n")
    assert not re.search(r"</script|<!--", code, re.I)  # it would end or change the element
    return code


def _hash(script: str) -> str:
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return f"'sha256-{digest}'"


def _inert(text: str) -> str:
    """JSON that no HTML parser reads anything into.

    >>> _inert('["</script>&"]')
    '["\\\\u003c/script\\\\u003e\\\\u0026"]'
    """
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return text


# ------------------------------------------------------------------ data of the page


def _data(explored: Explored) -> dict[str, Any]:
    """What report.js reads."""
    columns, shared = _columns(explored.points)
    # Axes must be there to be chosen, even where all points agree in them.
    for name in explored.axes:
        if name in shared:
            columns.append({"name": name, "data": [shared.pop(name)] * len(explored.points)})
    formats = format_looks(name for of in explored.maps.values() for name in of.values())
    return {
        "title": explored.title,
        "origin": explored.origin,
        "count": len(explored.points),
        "columns": columns,
        "shared": shared,
        "more": [column["name"] for column in columns if more_is_better(column["name"])],
        "axes": explored.axes,
        "stacks": [_stack(stack) for stack in explored.stacks],
        "area": None if explored.area is None else _stack(explored.area),
        "rooflines": {name: asdict(one) for name, one in explored.rooflines.items()},
        "maps": {name: _map(of, list(formats)) for name, of in explored.maps.items()},
        "formats": [
            {"name": name, "bits": look.bits, "colour": look.colour}
            for name, look in formats.items()
        ],
        "chosen": explored.chosen,
        "cards": explored.cards,
        "settings": explored.settings,
        "command": explored.command,
        "specification": explored.specification,
        "provenance": explored.provenance,
        "families": {
            name: {"colour": look.colour, "symbol": look.symbol} for name, look in FAMILIES.items()
        },
        "looks": {
            column["name"]: {text: _family(column["name"], text) for text in column["values"]}
            for column in columns
            if column["name"] in _OF_A_FAMILY and "values" in column
        },
        "parts": [{"colour": colour, "pattern": pattern} for colour, _, pattern in PARTS],
    }


def _family(column: str, text: str) -> str:
    if column == "family" and text in FAMILIES:
        return text
    return family(text)


def _columns(points: Sequence[Point]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Columns that tell points apart, and the values of the others.

    A column of text is a list of its labels and a number per point, so that a page of many points
    stays small.
    """
    columns: list[dict[str, Any]] = []
    shared: dict[str, Any] = {}
    for name in dict.fromkeys(key for point in points for key in point):
        values = [point.get(name) for point in points]
        if name != "name" and all(value == values[0] for value in values):
            if values[0] is not None:
                shared[name] = values[0]
        elif any(isinstance(value, str) for value in values):
            texts = [None if value is None else str(value) for value in values]
            labels = sorted({text for text in texts if text is not None})
            number = {text: place for place, text in enumerate(labels)}
            data = [None if text is None else number[text] for text in texts]
            columns.append({"name": name, "values": labels, "data": data})
        else:
            columns.append({"name": name, "data": [_short(value) for value in values]})
    return columns, shared


def _short(value: Value) -> Value:
    """Floats with the seven digits that a drawing or a table of six shows."""
    return float(f"{value:.7g}") if isinstance(value, float) else value


def _stack(stack: Stack) -> dict[str, Any]:
    return {
        "title": stack.title,
        "unit": stack.unit,
        "parts": list(stack.parts.items()),
        "factor": stack.factor,
        "times": stack.times,
    }


def _map(formats: Mapping[str, str], names: list[str]) -> dict[str, Any]:
    """Rows by linear, places by layer; keys that are no "layer.linear" count as layer "-"."""
    layers, linears = split_layers(formats)
    rows = {
        linear: [
            names.index(formats[key]) if (key := join_layer(layer, linear)) in formats else None
            for layer in layers
        ]
        for linear in linears
    }
    return {"layers": layers, "rows": rows}


def split_layers(formats: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """Layers in order, and linears in order of appearance, of keys such as "0.attn.q"."""
    layers: set[str] = set()
    linears: dict[str, None] = {}
    for key in formats:
        match = re.fullmatch(r"(\d{1,6})\.(.+)", key)
        layers.add(match[1] if match else "-")
        linears[match[2] if match else key] = None
    return sorted(layers, key=lambda layer: (layer == "-", layer.zfill(6))), list(linears)


def join_layer(layer: str, linear: str) -> str:
    """The key that `split_layers` took apart."""
    return linear if layer == "-" else f"{layer}.{linear}"
