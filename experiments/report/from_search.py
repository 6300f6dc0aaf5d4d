"""search.json of `bitwright search`: mixed-precision designs and uniform ones."""

from collections.abc import Sequence

from .common import axes_of, cards, command, origin, settings, sources
from .documents import SearchDocument
from .explored import Explored, Point, Stack, Value
from .looks import family
from .values import label, plain, unique


def from_search(document: SearchDocument) -> Explored:
    meta = document.meta
    extra = meta.model_extra or {}
    rows = [*document.front, *document.uniform]
    names = unique(row.name for row in rows)
    points: list[dict[str, Value]] = []
    for place, (name, row) in enumerate(zip(names, rows, strict=True)):
        mixed = place < len(document.front)
        more = row.model_extra or {}
        array = more.get("array")
        point: dict[str, Value] = {
            "name": name,
            "found": "front" if mixed else "uniform",
            "family": "mixed" if len(set(row.formats.values())) > 1 else family(row.recipe),
            "recipe": label(row.recipe),
        }
        point |= {label(k): plain(v) for k, v in more.items() if not isinstance(v, dict | list)}
        if isinstance(array, dict):
            point |= {label(k): plain(v) for k, v in array.items()}
        points.append(point)
    objectives = []
    if isinstance(document.hypervolume, dict):
        said = document.hypervolume.get("objectives")
        objectives = (
            [label(n) for n in said if isinstance(n, str)] if isinstance(said, list) else []
        )
    costs = [name for name in objectives if name != "perplexity"]
    accuracy = next(
        (n for n in ("perplexity", "predicted_perplexity", "proxy") if _known(points, n)), "proxy"
    )
    across, _ = axes_of(
        points, [*costs, "energy_per_token_uJ", "latency_s", "bits_per_weight", "area_mm2"]
    )
    knee = document.knee
    chosen = None
    if knee is not None and 0 <= knee < len(document.front):
        chosen = names[knee]
        points[knee]["found"] = "knee"
    return Explored(
        kind="search",
        title=f"{label(extra.get('model', 'model'))}: mixed precision, "
        f"{len(document.front)} designs of the front, {len(document.uniform)} uniform ones",
        origin=origin(meta),
        points=points,
        axes=(across, accuracy),
        stacks=[
            Stack("energy per token", "uJ", {"together": "energy_per_token_uJ"}),
            Stack("latency", "ms", {"together": "latency_s"}, 1e3),
        ],
        area=Stack("area", "mm2", {"array and SRAM": "area_mm2"}),
        maps={
            name: {label(k): label(v) for k, v in row.formats.items()}
            for name, row in zip(names, rows, strict=True)
            if row.formats
        },
        chosen=chosen,
        cards=cards(extra.get("card")),
        settings=settings(meta),
        command=command(meta),
        provenance=sources(document.provenance),
    )


def _known(points: Sequence[Point], name: str) -> bool:
    return any(isinstance(point.get(name), int | float) for point in points)
