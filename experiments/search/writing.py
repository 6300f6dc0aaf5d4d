"""A search as files: search.json, search.csv and a figure."""

import csv
import io
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitwright.experiments import save_figure
from bitwright.quant import output_folder, write_text

from .searching import SearchAnswer
from .space import WRITTEN

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_COLUMNS = (
    "set",
    "name",
    "recipe",
    "bits_per_weight",
    "perplexity",
    "kl",
    "proxy",
    "predicted_perplexity",
    "latency_s",
    "decode_latency_s",
    "energy_per_token_uJ",
    "dram_bytes",
    "area_mm2",
    "rows",
    "cols",
    "weight_buffer_kib",
    "activation_buffer_kib",
    "dram",
)


def write_search(answer: SearchAnswer, out: str | Path) -> dict[str, Path]:
    """Write search.json, search.csv, pareto.png and pareto.svg into a folder; paths by file name.

    Raises:
        InputError: The folder cannot be written.
    """
    folder = output_folder(out)
    paths = {name: folder / name for name in ("search.json", "search.csv")}
    write_text(paths["search.json"], json.dumps(answer.document(), indent=1, allow_nan=False))
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, _COLUMNS, lineterminator="\n", extrasaction="ignore")
    writer.writeheader()
    for which, rows in (("uniform", answer.uniform), ("front", answer.front)):
        writer.writerows({"set": which, **row["array"], **row} for row in rows)
    write_text(paths["search.csv"], buffer.getvalue())
    return paths | save_figure(pareto_figure(answer), folder / "pareto", ("png", "svg"))


def pareto_figure(answer: SearchAnswer) -> "Figure":
    """Perplexity against every cost that was an objective, predicted and measured."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    costs = answer.hypervolume["objectives"][1:]
    figure = Figure(figsize=(0.6 + 4.6 * len(costs), 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    meta = answer.meta
    for axes, cost in zip(figure.subplots(1, len(costs), squeeze=False)[0], costs, strict=True):
        unit, factor = WRITTEN[cost]

        def at(rows: list[dict[str, Any]], key: str) -> tuple[list[float], list[float]]:
            return [r[cost] * factor for r in rows], [r[key] for r in rows]  # noqa: B023

        measured = [row for row in answer.front if row["perplexity"] is not None]
        axes.plot(
            *at(answer.front, "predicted_perplexity"),
            ".", color="#bbbbbb", markersize=3, label="front, predicted",
        )  # fmt: skip
        axes.plot(*at(measured, "perplexity"), "o", color="#111111", label="front, measured")
        axes.plot(
            *at(answer.uniform, "perplexity"),
            "s", markerfacecolor="none", color="#777777", label="uniform recipes, measured",
        )  # fmt: skip
        bend = answer.front[answer.knee]
        axes.plot(
            *at([bend], "perplexity"),
            "D", markersize=11, markerfacecolor="none", color="#111111", label="knee",
        )  # fmt: skip
        for row in answer.uniform:
            axes.annotate(
                row["name"],
                (row[cost] * factor, row["perplexity"]),
                xytext=(5, 4),
                textcoords="offset points",
                fontsize=6.5,
            )
        name = cost.removesuffix("_uJ").removesuffix("_mm2").removesuffix("_s").replace("_", " ")
        axes.set_xlabel(unit if cost == "bits_per_weight" else f"{name} [{unit}]")
        axes.set_ylabel(f"perplexity, window {meta['config']['window']}")
        axes.set_yscale("log")
        axes.margins(x=0.15)
        axes.grid(alpha=0.25, which="both")
    figure.axes[0].legend(fontsize=7)
    figure.suptitle(f"{meta['model']}: formats chosen per linear", fontsize=9)
    return figure
