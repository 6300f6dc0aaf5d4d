"""Figures of the rebuilt BitMoD paper, drawn from rows of `bitmod` and readable in grey."""

from collections.abc import Iterable, Mapping
from statistics import geometric_mean
from typing import TYPE_CHECKING, Any

from .bitmod_published import DESIGNS, MODELS, WORK
from .drawing import new_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

#: Fill and hatch of a design: apart in grey as well.
_STYLE = {
    "fp16": ("#ffffff", "///"),
    "bitmod-lossless": ("#9ecae1", "xx"),
    "ant": ("#c7c7c7", ""),
    "olive": ("#7f7f7f", ""),
    "bitmod-lossy": ("#08306b", ""),
}


def _groups(rows: Iterable[Mapping[str, Any]], work: str, value: str) -> dict[str, list[float]]:
    """Values of each design over the models, their geometric mean last."""
    found = {(row["design"], row["model"]): row[value] for row in rows if row["work"] == work}
    groups = {design: [found[design, model] for model in MODELS] for design in DESIGNS}
    return {design: [*values, geometric_mean(values)] for design, values in groups.items()}


def draw_speedups(rows: list[dict[str, Any]]) -> "Figure":
    """Fig. 7: bars are ours, hollow circles the published values."""
    figure, panels = new_figure(2, 5.4)
    width = 0.17
    for axes, work in zip(panels, WORK, strict=True):
        ours, published = _groups(rows, work, "speedup"), _groups(rows, work, "published_speedup")
        for position, design in enumerate(DESIGNS):
            colour, hatch = _STYLE[design]
            places = [group + (position - 2) * width for group in range(len(MODELS) + 1)]
            axes.bar(
                *(places, ours[design], width),
                **{"color": colour, "hatch": hatch, "edgecolor": "black", "linewidth": 0.5},
                label=DESIGNS[design],
            )
            axes.plot(
                *(places, published[design]),
                **{"linestyle": "", "marker": "o", "markersize": 3.5, "markeredgewidth": 0.7},
                **{"markerfacecolor": "none", "markeredgecolor": "#d95f02"},
                label="published" if position == 4 else None,
            )
        axes.set_xticks(range(len(MODELS) + 1), [*MODELS.values(), "geomean"])
        axes.set_ylabel(f"speed-up over FP16\n{work}")
        axes.axvline(len(MODELS) - 0.5, color="#bbbbbb", linewidth=0.8)
    panels[0].legend(ncols=6, fontsize=7, loc="upper left")
    panels[0].set_ylim(top=1.2 * panels[0].get_ylim()[1])
    return figure


def draw_energies(rows: list[dict[str, Any]]) -> "Figure":
    """Fig. 8: on-chip and DRAM energy over FP16's total; hollow circles: published totals."""
    figure, panels = new_figure(2, 5.4)
    width = 0.17
    for axes, work in zip(panels, WORK, strict=True):
        shown = [row for row in rows if row["work"] == work]
        base = {row["model"]: row["total_uJ"] for row in shown if row["design"] == "fp16"}
        shares = [{**row, "chip": row["onchip_uJ"] / base[row["model"]]} for row in shown]
        total, chip = _groups(shares, work, "normalised"), _groups(shares, work, "chip")
        published = _groups(shares, work, "published_normalised")
        for position, design in enumerate(DESIGNS):
            colour, hatch = _STYLE[design]
            places = [group + (position - 2) * width for group in range(len(MODELS) + 1)]
            edges: dict[str, Any] = {"edgecolor": "black", "linewidth": 0.5}
            axes.bar(
                *(places, chip[design], width),
                **{"color": colour, "hatch": hatch, **edges},
                label=f"{DESIGNS[design]}, on chip",
            )
            axes.bar(
                places,
                [t - c for t, c in zip(total[design], chip[design], strict=True)],
                width,
                bottom=chip[design],
                **{"color": "#f2f2f2", "hatch": "..", **edges},
                label="DRAM" if position == 4 else None,
            )
            axes.plot(
                *(places, published[design]),
                **{"linestyle": "", "marker": "o", "markersize": 3.5, "markeredgewidth": 0.7},
                **{"markerfacecolor": "none", "markeredgecolor": "#d95f02"},
                label="published total" if position == 4 else None,
            )
        axes.set_xticks(range(len(MODELS) + 1), [*MODELS.values(), "geomean"])
        axes.set_ylabel(f"energy over FP16's\n{work}")
        axes.axvline(len(MODELS) - 0.5, color="#bbbbbb", linewidth=0.8)
    panels[0].set_ylim(top=1.35)
    panels[0].legend(ncols=4, fontsize=7, loc="upper left")
    return figure


def draw_simplifications(rows: list[dict[str, Any]]) -> "Figure":
    """Speed-up over FP16 (geometric mean) while the simplifications go, one after the other."""
    figure, panels = new_figure(2, 6.6)
    markers = {"bitmod-lossless": "s", "ant": "^", "olive": "v", "bitmod-lossy": "o"}
    for axes, work in zip(panels, WORK, strict=True):
        chosen = [row for row in rows if row["series"] == "together" and row["work"] == work]
        names = list(dict.fromkeys(row["step"] for row in chosen))
        for design, marker in markers.items():
            line = [row["speedup"] for row in chosen if row["design"] == design]
            axes.plot(
                *(range(len(names)), line),
                **{"marker": marker, "color": "black", "linewidth": 0.8, "markersize": 5},
                **{"markerfacecolor": _STYLE[design][0]},
                label=DESIGNS[design],
            )
        axes.set_xticks(
            range(len(names)),
            [name.replace("_", " ") for name in names],
            rotation=30,
            ha="right",
            fontsize=7,
        )
        axes.set_ylabel(f"speed-up over FP16\n{work}")
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
    panels[0].legend(ncols=4, fontsize=7, loc="lower left")
    return figure
