"""Numbers of hardware beside published ones: ratios to a named baseline, since nodes differ."""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from bitwright.experiments import energy_study
from bitwright.rtl import PESynthesis, synthesise_pe

from .published import gap, show_gap
from .rebuilt import Part, ShownTable
from .setting import PaperSetting

if TYPE_CHECKING:
    from matplotlib.figure import Figure

TECHNOLOGIES = ("nangate45", "sky130hd", "asap7")


@cache
def synthesised(pe: str, technology: str, *blocks: str) -> PESynthesis:
    """The whole PE and these blocks, mapped for the technology's own clock as by `synth`."""
    return synthesise_pe(pe, technology, only=("total", *blocks))


def area(pe: str, technology: str) -> float:
    """um2 of one PE without what its column shares."""
    return synthesised(pe, technology).area_um2


def beside(
    quantity: str,
    where: str,
    ours: float | None,
    theirs: float | None,
    reason: str,
    source: str,
    made: str = "",
) -> dict[str, Any]:
    """A row: our number, the published one, the relative gap and the reason for it."""
    return {
        "quantity": quantity,
        "where": where,
        "ours": ours,
        "published": theirs,
        "gap": None if ours is None or theirs is None else gap(ours, theirs),
        "reason": reason,
        "source": source,
        "ours_source": made,
    }


def shown(
    title: str, rows: Sequence[Mapping[str, Any]], notes: Sequence[str] = (), digits: int = 2
) -> ShownTable:
    """Rows of `beside` as a table; reasons and sources are numbered below it."""
    reasons = list(dict.fromkeys(row["reason"] for row in rows if row["reason"]))
    number = {reason: str(place) for place, reason in enumerate(reasons, start=1)}

    def cell(value: float | None, sign: str = "") -> str:
        return "-" if value is None else f"{value:{sign}.{digits}f}"

    lines = tuple(
        (
            row["quantity"],
            row["where"],
            cell(row["ours"]),
            cell(row["published"]) if row["published"] is not None else "not at hand",
            "" if row["gap"] is None else show_gap(row["gap"]),
            number.get(row["reason"], ""),
        )
        for row in rows
    )
    sources = dict.fromkeys(row["source"] for row in rows if row["source"])
    return ShownTable(
        title,
        ("", "where", "ours", "published", "gap", "why"),
        lines,
        (
            *(f"{place}: {reason}" for reason, place in number.items()),
            *notes,
            *(f"published: {source}" for source in sources),
        ),
    )


def power_part(
    designs: Sequence[str], title: str, picked: Sequence[str], setting: PaperSetting
) -> Part:
    """Powers measured on a model's tensors through the netlists, beside the published ones.

    Args:
        designs: PEs of the energy study.
        title: Of the table.
        picked: Beginnings of the quantities wanted.
        setting: Whose tensors; the energies are cached.
    """
    study = energy_study.energy_study(
        setting.loaded(),
        designs=[d for d in energy_study.DESIGNS if d.label in designs],
        checked={},
        progress=setting.progress,
    )
    rows = [
        beside(
            row.quantity.removeprefix("power of an INT8 MAC over a dINT4 MAC: "),
            study.technology,
            row.ours,
            row.published,
            row.why,
            row.source,
            f"bitwright energy all --model {setting.model}",
        )
        for row in study.published
        if any(row.quantity.startswith(start) for start in picked)
    ]
    return Part((shown(f"{title}; tensors of {setting.label()}", rows),), {"power": rows})


def draw_ratios(title: str, axis: str, rows: Sequence[Mapping[str, Any]]) -> "Figure":
    """Bars of our ratios by quantity and place; hollow circles: the published ones."""
    from .drawing import new_figure

    figure, (axes,) = new_figure(1, 3.6)
    names = list(dict.fromkeys(row["quantity"] for row in rows))
    places = list(dict.fromkeys(row["where"] for row in rows))
    width = 0.8 / len(places)
    shades = ("#555555", "#aaaaaa", "#e0e0e0")
    for number, place in enumerate(places):
        own = [row for row in rows if row["where"] == place and row["ours"] is not None]
        at = [
            names.index(row["quantity"]) + (number - (len(places) - 1) / 2) * width for row in own
        ]
        axes.bar(
            at,
            [row["ours"] for row in own],
            width,
            **{"color": shades[number % 3], "edgecolor": "black", "linewidth": 0.5},
            label=place,
        )
    marked = {row["quantity"]: row["published"] for row in rows if row["published"] is not None}
    axes.plot(
        [names.index(name) for name in marked],
        list(marked.values()),
        **{"linestyle": "", "marker": "o", "markersize": 6, "markerfacecolor": "none"},
        **{"markeredgecolor": "#d95f02", "label": "published"},
    )
    axes.set_xticks(range(len(names)), names, fontsize=8)
    axes.set_ylabel(axis)
    axes.set_title(title, fontsize=9)
    axes.grid(alpha=0.3, axis="y")
    axes.set_axisbelow(True)
    axes.legend(fontsize=7)
    return figure
