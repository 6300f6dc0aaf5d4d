"""Figures of simulated passes: roofline, latency by cause, energy by component.

All are drawn from `SimulationResult`s alone and read in grey: parts of a bar differ in shade and
hatching, passes of a roofline in marker and line. The same results give the same bytes, in PNG, SVG
and PDF.
"""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitwright.quant import InputError, atomic_path, output_folder
from bitwright.sim import SimulationResult, find_dram

if TYPE_CHECKING:
    from matplotlib.figure import Figure

KINDS = ("svg", "pdf", "png")
_METADATA: dict[str, dict[str, Any]] = {
    "png": {"Software": None},
    "svg": {"Date": None},
    "pdf": {"CreationDate": None},
}
_WIDTH = 7.2  # inches, two columns of a paper
_MARKERS = "osD^vP"
_NEAR = 1.25  # factor between points of a roofline that share a name tag
_LINES = ("-", "--", ":", "-.")
#: Shade and hatching of the parts of a bar, darkest first.
LOOKS = (("#222222", ""), ("#777777", ""), ("#aaaaaa", "///"), ("#dddddd", ""), ("#ffffff", "..."))

#: Parts of the latency: name -> causes of waiting; busy cycles come first.
LATENCY_PARTS: dict[str, tuple[str, ...]] = {
    "computing": (),
    "waiting for ports, conflicts, scales": ("port", "conflict", "scale"),
    "fill and drain": ("fill", "drain"),
    "waiting for DRAM": ("dram", "latency"),
}
#: Parts of the energy: name -> field of `LayerResult` and `VectorResult`.
ENERGY_PARTS = {
    "logic": "logic_uj",
    "SRAM": "sram_uj",
    "DRAM transfers": "dram_uj",
    "DRAM refresh and background": "standing_uj",
    "leakage": "leakage_uj",
}


def peak_ops_per_s(result: SimulationResult) -> float:
    """Operations (two a multiply-accumulate) a second of all lanes at the recipe's weights."""
    return peak_of(result.config, result.clock_ps)


def peak_of(config: Mapping[str, Any], clock_ps: float) -> float:
    """The same from a result's `config`, as files have it."""
    steps = config.get("step_cycles") or config["operands"]["block"]["step_cycles"]
    lanes = config["rows"] * config["cols"] * config["lanes"]
    return float(2 * lanes / steps / (clock_ps * 1e-12))


def dram_bytes_per_s(result: SimulationResult) -> float:
    """What DRAM gives a sequential stream."""
    return bandwidth_of(result.config["dram"], result.clock_ps)


def bandwidth_of(dram: str, clock_ps: float) -> float:
    """The same from the interface's name.

    Raises:
        InputError: Unknown name.
    """
    return float(find_dram(dram).effective_bytes_per_cycle(clock_ps)) / (clock_ps * 1e-12)


def roofline(results: Sequence[SimulationResult]) -> "Figure":
    """Operations a second against operations per byte of DRAM, a point per product."""
    figure, axes = _figure(results, 3.8)
    intensities = []
    for number, result in enumerate(results):
        points = [
            (2 * layer.macs / layer.dram_bytes, 2 * layer.macs / _seconds(layer, result), layer)
            for layer in result.layers
        ]
        intensities += [x for x, _, _ in points]
        axes.scatter(
            [x for x, _, _ in points],
            [y * 1e-9 for _, y, _ in points],
            marker=_MARKERS[number % len(_MARKERS)],
            facecolor="none" if number % 2 else "#555555",
            edgecolor="#111111",
            label=_title(result),
            zorder=3,
        )
        for x, y, names in _near(points):
            axes.annotate(
                textwrap.fill(", ".join(names), 30),
                (x, y * 1e-9),
                xytext=(6, -4 if number % 2 else 5),
                textcoords="offset points",
                va="top" if number % 2 else "bottom",
                ha="left" if number % 2 else "right",
                fontsize=6,
            )
    low, high = min(intensities) / 2, max(intensities) * 4
    roofs = dict.fromkeys((peak_ops_per_s(r), dram_bytes_per_s(r)) for r in results)
    for number, (peak, bandwidth) in enumerate(roofs):
        knee = peak / bandwidth
        xs = sorted({low, min(max(knee, low), high), high})
        axes.plot(
            xs,
            [min(peak, x * bandwidth) * 1e-9 for x in xs],
            color="#111111",
            linestyle=_LINES[number % len(_LINES)],
            linewidth=1,
            label=f"{peak * 1e-12:.2f} TOPS, {bandwidth * 1e-9:.1f} GB/s",
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_ylim(top=2 * axes.get_ylim()[1])
    axes.set_xlabel("operations per byte over DRAM (a multiply-accumulate is two)")
    axes.set_ylabel("Gop/s")
    axes.grid(alpha=0.3, which="major")
    axes.legend(fontsize=7, loc="lower right")
    return figure


def _near(points: Sequence[tuple[float, float, Any]]) -> list[tuple[float, float, list[str]]]:
    """Points that would hide each other's names, with all their names."""
    places: list[tuple[float, float, list[str]]] = []
    for x, y, layer in points:
        for there_x, there_y, names in places:
            if all(1 / _NEAR < a / b < _NEAR for a, b in ((x, there_x), (y, there_y))):
                names.append(layer.name)
                break
        else:
            places.append((x, y, [layer.name]))
    return places


def latency_parts(result: SimulationResult) -> list[tuple[str, dict[str, float]]]:
    """Milliseconds by part of every product, and of the vector unit's operations together."""
    rows = []
    ms = result.clock_ps * 1e-9
    for layer in result.layers:
        waits = layer.stalls
        parts = {
            part: ms * sum(waits[cause] for cause in causes)
            for part, causes in LATENCY_PARTS.items()
        }
        parts["computing"] = ms * layer.busy_cycles
        rows.append((layer.name, parts))
    if result.vector:
        busy = sum(row.busy_cycles for row in result.vector)
        parts = dict.fromkeys(LATENCY_PARTS, 0.0)
        parts["computing"] = ms * busy
        parts["waiting for DRAM"] = ms * (result.vector_cycles - busy)
        rows.append(("vector unit", parts))
    return rows


def energy_parts(result: SimulationResult) -> list[tuple[str, dict[str, float]]]:
    """Millijoules by part of every product, and of the vector unit's operations together."""
    rows = [
        (
            layer.name,
            {part: 1e-3 * (getattr(layer, name) or 0.0) for part, name in ENERGY_PARTS.items()},
        )
        for layer in result.layers
    ]
    if result.vector:
        parts = {
            part: 1e-3 * sum(getattr(row, name, None) or 0.0 for row in result.vector)
            for part, name in ENERGY_PARTS.items()
        }
        rows.append(("vector unit", parts))
    return rows


def latency_bars(results: Sequence[SimulationResult]) -> "Figure":
    """A bar per product, stacked by what the time goes into."""
    return _bars(results, [latency_parts(result) for result in results], "ms")


def energy_bars(results: Sequence[SimulationResult]) -> "Figure":
    """A bar per product, stacked by component; logic is empty where it was not measured."""
    return _bars(results, [energy_parts(result) for result in results], "mJ")


def _bars(
    results: Sequence[SimulationResult],
    tables: Sequence[list[tuple[str, dict[str, float]]]],
    unit: str,
) -> "Figure":
    figure, _ = _figure(results, 0.6 + 2.3 * len(results), axes=False)
    rows = figure.subplots(len(results), 1, squeeze=False)
    for axes, result, table in zip(rows[:, 0], results, tables, strict=True):
        positions = range(len(table))
        bottom = [0.0] * len(table)
        for part, (shade, hatch) in zip(table[0][1], LOOKS, strict=False):
            heights = [parts[part] for _, parts in table]
            axes.bar(
                positions,
                heights,
                bottom=bottom,
                color=shade,
                hatch=hatch,
                edgecolor="#111111",
                linewidth=0.5,
                label=part,
            )
            bottom = [low + height for low, height in zip(bottom, heights, strict=True)]
        axes.set_xticks(positions, [name for name, _ in table], rotation=25, ha="right", fontsize=7)
        axes.set_ylabel(unit)
        axes.set_title(f"{_title(result)}: {sum(bottom):,.1f} {unit}", fontsize=8)
        axes.grid(alpha=0.3, axis="y")
        axes.set_axisbelow(True)
    rows[0, 0].legend(fontsize=7)
    return figure


def _figure(
    results: Sequence[SimulationResult], height: float, *, axes: bool = True
) -> tuple["Figure", Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if not results:
        raise InputError("no results to draw; simulate at least one pass")
    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(f"{results[0].name} on {results[0].design}", fontsize=9)
    return figure, figure.subplots() if axes else None


def _seconds(layer: Any, result: SimulationResult) -> float:
    return layer.cycles * result.clock_ps * 1e-12


def _title(result: SimulationResult) -> str:
    if result.phase == "prefill":
        words = f"prefill of {result.context} tokens"
    elif result.phase == "decode":
        words = f"decode step at {result.context} positions"
    else:
        return "rows of a file"
    return words if result.batch == 1 else f"{words}, batch {result.batch}"


def write_figures(results: Sequence[SimulationResult], out: str | Path) -> dict[str, Path]:
    """Write roofline, latency and energy of passes into a folder, as SVG, PDF and PNG.

    Raises:
        InputError: No results, or a folder that cannot be written.
    """
    folder = output_folder(out)
    paths: dict[str, Path] = {}
    for name, draw in (("roofline", roofline), ("latency", latency_bars), ("energy", energy_bars)):
        paths |= save_figure(draw(results), folder / name)
    return paths


def save_figure(figure: "Figure", stem: Path, kinds: Sequence[str] = KINDS) -> dict[str, Path]:
    """Write a figure in several formats, the same bytes for the same figure; paths by file name."""
    import matplotlib

    paths = {}
    # Without a fixed salt and date the same figure would differ from run to run.
    with matplotlib.rc_context({"svg.hashsalt": "bitwright"}):
        for kind in kinds:
            path = stem.with_name(f"{stem.name}.{kind}")
            with atomic_path(path) as temporary:
                figure.savefig(temporary, format=kind, dpi=150, metadata=_METADATA[kind])
            paths[path.name] = path
    return paths
