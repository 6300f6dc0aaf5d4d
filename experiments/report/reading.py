"""Results of `codesign`, `sweep` and `search` read into one model for reports.

Files may come from anywhere: they are read as JSON and nothing else, checked, and every label in
them becomes one line of printable text. What a label may do in HTML is the page's business.
"""

import json
import re
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

import bitwright
from bitwright.quant import InputError

from .documents import CodesignDocument, SearchDocument, SweepDocument
from .explored import Explored
from .from_codesign import from_codesign
from .from_search import from_search
from .from_sweep import from_sweep
from .values import label

#: Names of files that a report is made of.
FILES = ("results.json", "search.json")
_Document = TypeVar("_Document", bound=BaseModel)


def read_results(place: str | Path) -> Explored:
    """Read what a command left in a folder.

    Args:
        place: The folder given to `--out`, or its results.json or search.json.

    Raises:
        InputError: No such file, damaged or foreign content, or a file from a newer version.
    """
    path = _find(Path(place))
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        said = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise InputError(f"{path} is damaged: {said}; make it again") from None
    kind = _kind(document, path)
    if kind == "codesign":
        return from_codesign(_checked(CodesignDocument, document, path))
    if kind == "search":
        return from_search(_checked(SearchDocument, document, path))
    return from_sweep(_checked(SweepDocument, document, path), path)


def _find(place: Path) -> Path:
    if place.is_file():
        return place
    if not place.is_dir():
        raise InputError(f"{place}: no such folder; give one made by codesign, sweep or search")
    there = [place / name for name in FILES if (place / name).is_file()]
    if not there:
        raise InputError(
            f"{place} holds neither results.json nor search.json; give a folder made by "
            "bitwright codesign, sweep or search --out"
        )
    if len(there) > 1:
        raise InputError(
            f"{place} holds results.json and search.json; name one: bitwright report {there[0]}"
        )
    return there[0]


def _kind(document: Any, path: Path) -> str:
    """The command that wrote a document, which is not from a later version."""
    foreign = InputError(
        f"{path} is not a file of bitwright codesign, sweep or search: it has no "
        "meta.bitwright, the version that wrote it"
    )
    if not isinstance(document, dict) or not isinstance(document.get("meta"), dict):
        raise foreign
    version = document["meta"].get("bitwright")
    if not isinstance(version, str) or not re.fullmatch(r"\d{1,6}(\.\d{1,6}){1,3}.*", version):
        raise foreign
    if _release(version) > _release(bitwright.__version__):
        raise InputError(
            f"{path} was written by bitwright {label(version)}, this is {bitwright.__version__}; "
            "update bitwright"
        )
    if "front" in document:
        return "search"
    records = document.get("records")
    if not isinstance(records, list):
        raise InputError(f"{path} has neither records nor a front; give one of codesign, sweep")
    if records and isinstance(records[0], dict) and "prefill" in records[0]:
        return "codesign"
    return "sweep"


def _release(version: str) -> tuple[int, ...]:
    numbers = [int(part) for part in re.findall(r"\d+", version)[:3]]
    return tuple(numbers + [0] * (3 - len(numbers)))


def _checked(model: type[_Document], document: Any, path: Path) -> _Document:
    try:
        return model.model_validate(document)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InputError(
            f"{path} is damaged: {label(where)}: {label(first['msg'])}; make it again"
        ) from None
