"""The report's figures for a paper: PDF, SVG and PNG, two columns wide, readable in grey.

Colours and markers are those of `looks.py`, in every figure and on the page. Labels come from
files: they are drawn as they stand, not as mathematics.
"""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitwright.experiments import save_figure
from bitwright.quant import InputError, output_folder

from .explored import Explored, Point, Stack, more_is_better, pareto_front
from .looks import FAMILIES, PARTS, format_looks
from .page import join_layer, split_layers

if TYPE_CHECKING:
    from matplotlib.figure import Figure

WIDTH = 7.2  #: inches, two columns of a paper
BARS = 24  #: in one panel
_NAMED = 30  # points that still get their names in the Pareto figure
_LONGEST = 34  # characters of a label on an axis


def write_publication(explored: Explored, out: str | Path) -> dict[str, Path]:
    """Write the figures for which there are numbers; paths by file name.

    They are `pareto`, `energy`, `latency`, `area` and `formats`, as .svg, .pdf and .png. The same
    results give the same bytes.

    Raises:
        InputError: Nothing to draw, or a folder that cannot be written.
    """
    figures = {
        "pareto": pareto_figure(explored),
        "energy": stack_figure(explored, [s for s in explored.stacks if "energy" in s.title]),
        "latency": stack_figure(explored, [s for s in explored.stacks if "latency" in s.title]),
        "area": stack_figure(explored, [] if explored.area is None else [explored.area]),
        "formats": formats_figure(explored),
    }
    drawn = {name: figure for name, figure in figures.items() if figure is not None}
    if not drawn:
        raise InputError(
            "no point has numbers to draw; the sweep's points failed or nothing was measured"
        )
    folder = output_folder(out)
    paths: dict[str, Path] = {}
    with warnings.catch_warnings():
        # A label may be in a script that the font lacks; it is drawn as boxes.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        for name, figure in drawn.items():
            paths |= save_figure(figure, folder / name)
    return paths


def drawn_label(text: str, longest: int = _LONGEST) -> str:
    """A label as matplotlib draws it verbatim: no mathematics, and not hidden from legends.

    >>> drawn_label("$x$")
    '\\\\$x\\\\$'
    """
    if len(text) > longest:
        text = text[: longest - 1] + "\u2026"
    return ("\u00a0" if text.startswith("_") else "") + text.replace("$", r"\$")


def _figure(explored: Explored, height: float, panels: int = 1) -> tuple["Figure", list[Any]]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(drawn_label(explored.title, 110), fontsize=8)
    grid = figure.subplots(panels, 1, squeeze=False)
    return figure, list(grid[:, 0])


def pareto_figure(explored: Explored) -> "Figure | None":
    """All points by family, the front joined by a line; None: no point has both values."""
    x, y = explored.axes
    points = [p for p in explored.points if _number(p, x) is not None and _number(p, y) is not None]
    if not points:
        return None
    figure, (axes,) = _figure(explored, 3.6)
    front = pareto_front(points, x, y)
    axes.step(
        [_number(p, x) for p in front],
        [_number(p, y) for p in front],
        where="post",
        color="#999999",
        linewidth=1,
        label="Pareto front",
        zorder=1,
    )
    for name, look in FAMILIES.items():
        some = [p for p in points if p["family"] == name]
        if some:
            axes.scatter(
                [_number(p, x) for p in some],
                [_number(p, y) for p in some],
                s=28 if len(points) < 500 else 6,
                color=look.colour,
                marker=look.marker,
                edgecolor="#111111",
                linewidth=0.4,
                label=name,
                zorder=2,
                rasterized=len(points) > 5000,  # a PDF of so many markers opens slowly
            )
    for point in points if len(points) <= _NAMED else front[:_NAMED]:
        axes.annotate(
            drawn_label(str(point["name"])),
            (_number(point, x), _number(point, y)),
            xytext=(4, 3),
            textcoords="offset points",
            fontsize=5.5,
        )
    for name, axis, scale in ((x, axes.xaxis, axes.set_xscale), (y, axes.yaxis, axes.set_yscale)):
        values = [value for p in points if (value := _number(p, name)) is not None]
        if min(values) > 0 and max(values) > 20 * min(values):
            scale("log")
        best = "more" if more_is_better(name) else "less"
        axis.set_label_text(f"{drawn_label(name)} ({best} is better)", fontsize=8)
    axes.margins(x=0.12)
    axes.grid(alpha=0.25)
    axes.tick_params(labelsize=7)
    axes.legend(fontsize=6.5, ncols=2)
    return figure


def stack_figure(explored: Explored, stacks: Sequence[Stack]) -> "Figure | None":
    """A panel per stack, a bar per point; None: nothing known.

    Of more than `BARS` points those of the front are drawn, and the axis says so.
    """
    points, words = _chosen(explored)
    stacks = [s for s in stacks if any(s.height(p, part) for p in points for part in s.parts)]
    if not stacks:
        return None
    figure, panels = _figure(explored, 0.9 + 2.3 * len(stacks), len(stacks))
    places = range(len(points))
    for axes, stack in zip(panels, stacks, strict=True):
        bottom = [0.0] * len(points)
        for part, (colour, hatch, _) in zip(stack.parts, PARTS, strict=False):
            heights = [stack.height(point, part) or 0.0 for point in points]
            if not any(heights):
                continue
            axes.bar(
                places,
                heights,
                bottom=bottom,
                color=colour,
                hatch=hatch,
                edgecolor="#111111",
                linewidth=0.5,
                label=part,
            )
            bottom = [low + height for low, height in zip(bottom, heights, strict=True)]
        names = [drawn_label(str(point["name"]), 24) for point in points]
        last = axes is panels[-1]
        axes.set_xticks(places, names if last else [""] * len(names))
        axes.tick_params(axis="x", labelrotation=40, labelsize=6)
        for tick in axes.get_xticklabels():
            tick.set_ha("right")
        axes.tick_params(axis="y", labelsize=7)
        axes.set_ylabel(stack.unit, fontsize=8)
        axes.set_title(stack.title + words, fontsize=8)
        axes.grid(alpha=0.3, axis="y")
        axes.set_axisbelow(True)
        axes.legend(fontsize=6, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def _chosen(explored: Explored) -> tuple[list[Point], str]:
    """Points that get bars, and what to say about the choice."""
    points = list(explored.points)
    if len(points) <= BARS:
        return points, ""
    front = pareto_front(points, *explored.axes)[:BARS]
    if front:
        return front, f": {len(front)} of the Pareto front"
    return points[:BARS], f": the first {BARS} of {len(points):,} points"


def formats_figure(explored: Explored) -> "Figure | None":
    """Format of every linear, layer by layer, of the chosen design or of all if few; else None.

    The darker a cell, the more bits; hatching tells formats of one width apart.
    """
    from matplotlib.patches import Patch

    if not explored.maps:
        return None
    # Designs of one format throughout look alike: the design chosen, else the first mixed one.
    mixed = [name for name, of in explored.maps.items() if len(set(of.values())) > 1]
    name = explored.chosen or (mixed or list(explored.maps))[0]
    shown = {name: explored.maps[name]}
    if not mixed:
        # One row a design says all that there is to see.
        rows: dict[str, str] = {}
        layers = split_layers(explored.maps[name])[0]
        for design, of in list(explored.maps.items())[:BARS]:
            rows |= {join_layer(layer, design): next(iter(of.values())) for layer in layers}
        shown = {"all linears of each design": rows}
    ((title, formats),) = shown.items()
    layers, linears = split_layers(formats)
    looks = format_looks(formats.values())
    figure, (axes,) = _figure(explored, 1.3 + 0.2 * len(linears))
    for row, linear in enumerate(linears):
        for column, layer in enumerate(layers):
            found = formats.get(join_layer(layer, linear))
            if found is not None:
                look = looks[found]
                # The hatch takes the edge's colour, which has to show on dark cells too.
                edge = "#ffffff" if (look.bits or 0) >= 6 else "#111111"
                axes.bar(
                    column, 1, 1, row - 0.5, color=look.colour, hatch=look.hatch,
                    edgecolor=edge, linewidth=0.4,
                )  # fmt: skip
    step = max(1, len(layers) // 16)
    axes.set_xticks(range(0, len(layers), step), layers[::step], fontsize=7)
    axes.set_yticks(range(len(linears)), [drawn_label(one) for one in linears], fontsize=7)
    axes.set_xlim(-0.5, len(layers) - 0.5)
    axes.set_ylim(len(linears) - 0.5, -0.5)
    axes.set_xlabel("layer", fontsize=8)
    axes.set_title(drawn_label(title, 90), fontsize=8)
    patches = [
        Patch(
            facecolor=look.colour,
            hatch=look.hatch,
            edgecolor="#ffffff" if (look.bits or 0) >= 6 else "#111111",
            label=drawn_label(one) + ("" if look.bits is None else f", {look.bits} bit"),
        )
        for one, look in looks.items()
    ]
    axes.legend(handles=patches, fontsize=6, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def _number(point: Point, name: str) -> float | None:
    value = point.get(name)
    return float(value) if isinstance(value, int | float) else None
