"""results.json of `bitwright sweep`: flat records."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bitwright.quant import InputError, resolve_recipe
from bitwright.sim import SHAPES

from .common import (
    PHASES,
    axes_of,
    cards,
    command,
    origin,
    phase_stacks,
    settings,
    sources,
    vector_busy,
)
from .documents import SweepDocument
from .explored import Explored, Stack, Value
from .from_codesign import formats_of
from .looks import family
from .values import label, plain, text_of

_MOST_MAPS = 200  # designs whose formats are kept


def from_sweep(document: SweepDocument, path: Path) -> Explored:
    meta = document.meta
    extra = meta.model_extra or {}
    points = []
    for place, record in enumerate(document.records):
        if not isinstance(record.get("status"), str):
            raise InputError(
                f"{path} is damaged: records.{place} has no status; give a file of bitwright sweep"
            )
        points.append(_point(place, record))
    objectives = [label(name) for name in extra.get("objectives") or () if isinstance(name, str)]
    numbers = [
        "perplexity",
        "decode_latency_s",
        "prefill_latency_s",
        "area_mm2",
        "decode_energy_uJ",
        "bits_per_weight",
        "decode_dram_bytes",
    ]
    across, up = axes_of(points, [*objectives, *numbers])
    if not objectives and across == "perplexity":
        across, up = up, across
    spec = extra.get("sweep")
    return Explored(
        kind="sweep",
        title=f"sweep {label(extra.get('name') or _named(spec))}: {len(points):,} points",
        origin=origin(meta),
        points=points,
        axes=(across, up),
        stacks=phase_stacks(points),
        area=Stack("area", "mm2", {"array and SRAM": "area_mm2"}),
        maps=_maps(document.records),
        cards=cards(extra.get("card")),
        settings=settings(meta),
        command=command(meta),
        specification=None if spec is None else text_of(json.dumps(spec, indent=1)),
        provenance=sources(document.provenance),
    )


def _named(spec: Any) -> str:
    return str(spec.get("name", "")) if isinstance(spec, dict) else ""


def _point(place: int, record: Mapping[str, Any]) -> dict[str, Value]:
    point: dict[str, Value] = {
        "name": label(record.get("name") or f"point {place}"),
        "family": family(str(record.get("recipe") or record.get("pe") or "")),
    }
    for key, value in record.items():
        if key not in ("key", "name"):
            point[label(key)] = plain(value)
    for phase in PHASES:
        busy = vector_busy(point, phase)
        if busy is not None:
            point[f"{phase}_vector_busy_cycles"] = busy
    return point


def _maps(records: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, str]]:
    """Formats of the linears, per recipe and shape of the library."""
    pairs = {
        (recipe, shape): None
        for recipe, shape in ((r.get("recipe"), r.get("shape")) for r in records)
        if isinstance(recipe, str) and isinstance(shape, str) and shape.lower() in SHAPES
    }
    maps = {}
    for recipe, shape in list(pairs)[:_MOST_MAPS]:
        try:
            config = resolve_recipe(recipe).model_dump()
        except InputError:
            continue  # a recipe of another version
        maps[f"{label(recipe)} on {label(shape)}"] = formats_of(
            config, SHAPES[shape.lower()].layers
        )
    return {name: formats for name, formats in maps.items() if formats}
