"""What data does to the energy of PEs: designs side by side on a model's tensors and random data.

    own tensors   block products of some layers, weighted by their multiply-accumulates
    random data   Gaussian activations and weights in the same formats
    constant      the usual shortcut: one energy per cycle, that of random data, for every cycle

Beside them published powers, and how far the scaling rule is off between the shipped technologies.
All energies are those of one PE with its share of the array unless "PE alone" is said.
"""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bitwright.quant import (
    InputError,
    LanguageModel,
    Progress,
    output_folder,
    resolve_recipe,
    write_text,
)
from bitwright.rtl import resolve_technology, scaling, stream_bounds, tile_energy

from .energy import chosen_layers, measure_layers, quantise_for
from .figures import LOOKS, save_figure
from .provenance import provenance
from .recording import Key, layer_product

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from rich.table import Table

TECHNOLOGY = "nangate45"


@dataclass(frozen=True, slots=True)
class StudyDesign:
    """A PE and the recipe that it runs."""

    label: str
    pe: str
    recipe: str


DESIGNS = (
    StudyDesign("BitMoD-3", "bitmod", "w3g64-bitmod"),
    StudyDesign("BitMoD-4", "bitmod", "w4g64-bitmod"),
    StudyDesign("INT6, bit-serial", "bitmod", "w6g64-int-sym-s8"),
    StudyDesign("dINT4", "dint4", "w4g64-dint-sym"),
    StudyDesign("Binary TensorCore W2A8", "btc-w2a8", "w2-int-asym"),
    StudyDesign("INT8", "int8", "w8-int-sym"),
    StudyDesign("FP16", "fp16", "fp16"),
)
#: PEs (and their recipes) and technologies that the scaling rule is checked on; the first
#: technology is the origin.
CHECKED = {"dint4": "w4g64-dint-sym", "bitmod": "w4g64-bitmod"}
CHECKED_TECHNOLOGIES = (TECHNOLOGY, "sky130hd", "asap7")

#: Parts of a bar -> beginnings of the names of what they hold.
PARTS = {
    "PE": ("PE ",),
    "term encoder": ("encoder",),
    "column unit": ("column unit",),
    "operand registers and wires": ("row registers", "column registers", "wires"),
    "leakage": ("leakage",),
}

_DINT = "dINT (EMNLP 2023), Table 2, as two third-party summaries give it"
_BITMOD = (
    "BitMoD (HPCA 2025), authors' repo yc2367/BitMoD, hardware/PE_Area_Power.xlsx, 28 nm, 1 GHz, "
    "0.9 V library"
)
_DINT_WHY = (
    "node, clock and accumulator width of the published MACs are not known; in ours the 32-bit "
    "accumulator is the same in both and does not shrink with the weight"
)
_BITMOD_WHY = (
    "ours is mapped for 3 ns, before layout, without glitches, on a model's data, and scaled "
    "without leakage; the published stimulus is not known, it may be the synthesis tool's default "
    "activity"
)
_PUBLISHED_MW = {"bitmod": 0.586, "fp16": 0.770}
_PUBLISHED_NODE = (28.0, 0.9)  # nm, V


@dataclass(frozen=True)
class LayerRow:
    """One product of one layer."""

    name: str
    pj_per_cycle: float
    pj_per_mac: float
    half_width: float
    share: float  #: of the design's multiply-accumulates
    deviation: float  #: of the constant, over the energy measured: 0.1 is 10 % too much


@dataclass(frozen=True)
class DesignRow:
    """One design; pJ with leakage."""

    label: str
    pe: str
    recipe: str
    layers: tuple[LayerRow, ...]
    pj_per_mac: float  #: own tensors
    pj_per_cycle: float
    random_pj_per_mac: float
    random_pj_per_cycle: float
    idle_pj_per_cycle: float
    parts: Mapping[str, float]  #: of `PARTS`: pJ per MAC, own tensors
    random_parts: Mapping[str, float]
    pe_pj_per_cycle: float  #: PE alone, own tensors, leakage left out
    pe_random_pj_per_cycle: float
    pe_worst_pj_per_cycle: float
    macs_per_cycle: float  #: on random data; own tensors may fill a PE less
    pairs: int  #: of patterns tried for the worst stream

    @property
    def deviations(self) -> tuple[float, float, float]:
        """Least, greatest and mean deviation of the constant, the mean by MACs."""
        values = [row.deviation for row in self.layers]
        constant = sum(row.share * (1 + row.deviation) * row.pj_per_cycle for row in self.layers)
        own = sum(row.share * row.pj_per_cycle for row in self.layers)
        return min(values), max(values), constant / own - 1

    @property
    def worst_pj_per_mac(self) -> float:
        """The PE at its worst pair of patterns, the rest as on random data."""
        more = self.pe_worst_pj_per_cycle - self.pe_random_pj_per_cycle
        return self.random_pj_per_mac + more / self.macs_per_cycle


@dataclass(frozen=True)
class PublishedRow:
    """A published number beside ours."""

    quantity: str
    ours: float
    published: float
    source: str
    why: str  #: what differs, as far as it is known


@dataclass(frozen=True)
class ScalingRow:
    """The scaling rule beside two technologies on the same stream; leakage left out."""

    pe: str
    stream: str
    from_technology: str
    to_technology: str
    measured: float  #: energy there over energy here
    rule: float

    @property
    def error(self) -> float:
        """Of the rule, over the ratio measured."""
        return self.rule / self.measured - 1


@dataclass(frozen=True)
class EnergyStudy:
    """All of it."""

    model: str
    technology: str
    seed: int
    designs: tuple[DesignRow, ...]
    published: tuple[PublishedRow, ...]
    scaling: tuple[ScalingRow, ...]

    def to_dict(self) -> dict[str, Any]:
        """Values for JSON."""
        document = asdict(self)
        for row, design in zip(document["designs"], self.designs, strict=True):
            low, high, mean = design.deviations
            row["deviation"] = {"least": low, "greatest": high, "mean": mean}
            row["worst_pj_per_mac"] = design.worst_pj_per_mac
        for row, one in zip(document["scaling"], self.scaling, strict=True):
            row |= {"error": one.error, "scaled": scaling.RULE}
        return {**document, **provenance(self.seed)}

    def tables(self) -> "list[Table | str]":
        """Tables and lines to print."""
        from rich.box import SIMPLE_HEAD
        from rich.table import Table

        energies = Table(
            title=f"Energy per multiply-accumulate, {self.technology}, tensors of {self.model}",
            caption=(
                "pJ, PE with its share of the array; worst: the PE's highest of "
                f"{self.designs[0].pairs} pairs tried, the rest as on random data; constant: the "
                "random data's energy in every cycle, over that measured"
            ),
            box=SIMPLE_HEAD,
        )
        energies.add_column("design", no_wrap=True)
        for column in ("own", "random", "worst", "PE of own", "constant, mean", "by product"):
            energies.add_column(column, justify="right", no_wrap=True)
        for row in self.designs:
            low, high, mean = row.deviations
            energies.add_row(
                row.label,
                *(
                    f"{value:.3f}"
                    for value in (row.pj_per_mac, row.random_pj_per_mac, row.worst_pj_per_mac)
                ),
                f"{row.parts['PE'] / row.pj_per_mac:.0%}",
                f"{mean:+.1%}",
                f"{low:+.1%} .. {high:+.1%}",
            )
        published = Table(title="Published powers beside ours", box=SIMPLE_HEAD)
        published.add_column("quantity")
        for column in ("ours", "published", "ours / published"):
            published.add_column(column, justify="right", no_wrap=True)
        for one in self.published:
            published.add_row(
                one.quantity,
                f"{one.ours:.3f}",
                f"{one.published:.3f}",
                f"{one.ours / one.published:.2f}",
            )
        sources = dict.fromkeys(f"published: {one.source}; {one.why}" for one in self.published)
        rule = Table(
            title="The scaling rule where it can be checked: energy over that on "
            f"{self.technology}",
            box=SIMPLE_HEAD,
        )
        for column in ("PE", "stream", "technology"):
            rule.add_column(column, no_wrap=True)
        for column in ("measured", "rule", "error of the rule"):
            rule.add_column(column, justify="right", no_wrap=True)
        for check in self.scaling:
            rule.add_row(
                check.pe,
                check.stream,
                check.to_technology,
                f"{check.measured:.3f}",
                f"{check.rule:.3f}",
                f"{check.error:+.0%}",
            )
        return [energies, published, *sources, rule, f"rule: {scaling.RULE}"]


# ------------------------------------------------------------------ measuring


def energy_study(
    model: LanguageModel,
    *,
    designs: Sequence[StudyDesign] = DESIGNS,
    layers: Sequence[int] | None = None,
    seed: int = 0,
    checked: Mapping[str, str] = CHECKED,
    progress: Progress | None = None,
) -> EnergyStudy:
    """Run the study; every measurement is cached.

    Args:
        model: Whose tensors.
        designs: What is compared.
        layers: Layers whose block products count; None for `LAYERS` of them.
        seed: Of sampled tiles, random data and the search for the worst stream.
        checked: PE -> recipe that the scaling rule is checked on.
        progress: Called as parts are done.

    Raises:
        InputError: A layer that the model does not have, or a recipe that a PE does not run.
    """
    keys, macs = _block_products(model, chosen_layers(model) if layers is None else layers)
    steps, done = len(designs) + len(checked) * len(CHECKED_TECHNOLOGIES), 0

    def tell(what: str) -> None:
        if progress:
            progress(done, steps, what)

    rows = []
    for design in designs:
        tell(design.label)
        rows.append(_design(model, design, keys, macs, seed))
        done += 1
    checks: list[ScalingRow] = []
    for pe, recipe in checked.items():
        measured = {}
        for name in CHECKED_TECHNOLOGIES:
            tell(f"{pe} on {name}")
            measured[name] = _two_streams(model, pe, recipe, name, keys, seed)
            done += 1
        checks += _checks(pe, measured)
    tell("done")
    return EnergyStudy(
        model=model.name,
        technology=TECHNOLOGY,
        seed=seed,
        designs=tuple(rows),
        published=tuple(_published(rows)),
        scaling=tuple(checks),
    )


def _block_products(
    model: LanguageModel, layers: Sequence[int]
) -> tuple[list[Key], dict[Key, int]]:
    """Products of block weights in order of use, and their multiply-accumulates per token."""
    for layer in layers:
        if not 0 <= layer < model.config.layers:
            raise InputError(
                f"layer {layer}: {model.name} has layers 0 to {model.config.layers - 1}"
            )
    macs = {}
    for name, (n, k) in (
        (name, shape) for name, shape in model.config.weight_shapes().items() if len(shape) == 2
    ):
        if not name.startswith("blocks."):
            continue
        key = layer_product(name)
        if key[0] in layers:
            macs[key] = n * k
    return list(macs), macs


def _design(
    model: LanguageModel,
    design: StudyDesign,
    keys: Sequence[Key],
    macs: Mapping[Key, int],
    seed: int,
) -> DesignRow:
    recipe = resolve_recipe(design.recipe)
    hardware = tile_energy.TileHardware(design.pe, resolve_technology(TECHNOLOGY))
    measured = measure_layers(model, recipe, hardware, only=keys, seed=seed)
    bounds = stream_bounds.measure_bounds(
        hardware, lambda w: quantise_for(w, recipe, design.pe), seed=seed
    )
    random = bounds.typical
    shares = np.array([macs[one.layer, one.product] for one in measured], np.float64)
    shares /= shares.sum()

    def mean(values: Sequence[float]) -> float:
        return float(shares @ np.array(values))

    return DesignRow(
        label=design.label,
        pe=design.pe,
        recipe=recipe.name,
        layers=tuple(
            LayerRow(
                one.name,
                one.energy.pj_per_cycle,
                one.energy.pj_per_mac,
                one.energy.half_width,
                float(share),
                random.pj_per_cycle / one.energy.pj_per_cycle - 1,
            )
            for one, share in zip(measured, shares, strict=True)
        ),
        pj_per_mac=mean([one.energy.pj_per_mac for one in measured]),
        pj_per_cycle=mean([one.energy.pj_per_cycle for one in measured]),
        random_pj_per_mac=random.pj_per_mac,
        random_pj_per_cycle=random.pj_per_cycle,
        idle_pj_per_cycle=bounds.idle_pj + bounds.leakage_pj,
        parts={name: mean([_parts(one.energy)[name] for one in measured]) for name in PARTS},
        random_parts=_parts(random),
        pe_pj_per_cycle=mean([stream_bounds.pe_alone_pj(one.energy) for one in measured]),
        pe_random_pj_per_cycle=bounds.pe_typical_pj,
        pe_worst_pj_per_cycle=bounds.worst_pj,
        macs_per_cycle=random.macs,
        pairs=bounds.pairs,
    )


def _parts(energy: tile_energy.TileEnergy) -> dict[str, float]:
    """pJ per MAC by the parts of `PARTS`."""
    whole = {part: sum(components.values()) for part, components in energy.breakdown.items()}
    whole["leakage"] = energy.pj_per_cycle - energy.active_pj
    parts = {
        name: sum(pj for part, pj in whole.items() if part.startswith(beginnings)) / energy.macs
        for name, beginnings in PARTS.items()
    }
    assert np.isclose(sum(parts.values()), energy.pj_per_mac)  # every part has a place
    return parts


def _published(rows: Sequence[DesignRow]) -> list[PublishedRow]:
    """Published powers beside ours, of the designs that were measured."""
    found: dict[str, DesignRow] = {}
    for row in rows:
        if row.label not in ("BitMoD-3", "INT6, bit-serial"):
            found.setdefault(row.pe, row)
    answer = []
    if {"dint4", "int8"} <= found.keys():
        dint, int8 = found["dint4"], found["int8"]
        for what, ours in (
            ("PE alone, own tensors", int8.pe_pj_per_cycle / dint.pe_pj_per_cycle),
            ("PE alone, random data", int8.pe_random_pj_per_cycle / dint.pe_random_pj_per_cycle),
            ("with its share of the array, own tensors", int8.pj_per_mac / dint.pj_per_mac),
        ):
            quantity = f"power of an INT8 MAC over a dINT4 MAC: {what}"
            answer.append(PublishedRow(quantity, ours, 2.56, _DINT, _DINT_WHY))
    if found.keys() >= _PUBLISHED_MW.keys():
        technology = resolve_technology(TECHNOLOGY)
        assert technology.node_nm is not None
        ratio = scaling.energy_ratio(technology.node_nm, technology.voltage, *_PUBLISHED_NODE)
        # pJ per cycle at 1 GHz are mW.
        own = {pe: found[pe].pe_pj_per_cycle * ratio for pe in _PUBLISHED_MW}
        for pe, published in _PUBLISHED_MW.items():
            quantity = f"{pe} PE, mW at 1 GHz; ours scaled to 28 nm, 0.9 V (x {ratio:.3f})"
            answer.append(PublishedRow(quantity, own[pe], published, _BITMOD, _BITMOD_WHY))
        answer.append(
            PublishedRow(
                "bitmod PE over fp16 PE, power",
                own["bitmod"] / own["fp16"],
                _PUBLISHED_MW["bitmod"] / _PUBLISHED_MW["fp16"],
                _BITMOD,
                _BITMOD_WHY,
            )
        )
    return answer


def _two_streams(
    model: LanguageModel, pe: str, recipe: str, technology: str, keys: Sequence[Key], seed: int
) -> dict[str, float]:
    """Energy of an active cycle in pJ, leakage left out, by stream: a product, and random data."""
    chosen = resolve_recipe(recipe)
    hardware = tile_energy.TileHardware(pe, resolve_technology(technology))
    (own,) = measure_layers(model, chosen, hardware, only=[keys[len(keys) // 2]], seed=seed)
    random = stream_bounds.random_data(hardware, lambda w: quantise_for(w, chosen, pe), seed=seed)
    return {own.name: own.energy.active_pj, stream_bounds.RANDOM_DATA: random.active_pj}


def _checks(pe: str, measured: Mapping[str, Mapping[str, float]]) -> list[ScalingRow]:
    """The rule from the first technology to the others, on every stream."""
    origin, *others = measured
    here = measured[origin]
    start = resolve_technology(origin)
    rows = []
    for name in others:
        there = measured[name]
        end = resolve_technology(name)
        assert start.node_nm is not None and end.node_nm is not None
        rule = scaling.energy_ratio(start.node_nm, start.voltage, end.node_nm, end.voltage)
        rows += [
            ScalingRow(pe, stream, origin, name, there[stream] / here[stream], rule)
            for stream in here
        ]
    return rows


# ------------------------------------------------------------------ files


def write_study(study: EnergyStudy, out: str | Path) -> dict[str, Path]:
    """Write study.json, study.csv and the figures (PNG, SVG) into a folder.

    Returns:
        Paths by file name.

    Raises:
        InputError: The folder cannot be written.
    """
    folder = output_folder(out)
    paths = {name: folder / name for name in ("study.json", "study.csv")}
    write_text(paths["study.json"], json.dumps(study.to_dict(), indent=1, allow_nan=False) + "\n")
    write_text(paths["study.csv"], _csv(study))
    for name, draw in (("energy_per_mac", energy_bars), ("constant", deviation_map)):
        paths |= save_figure(draw(study), folder / name, ("png", "svg"))
    return paths


def _csv(study: EnergyStudy) -> str:
    """A row per design and layer product."""
    rows = [
        {
            "design": design.label,
            "pe": design.pe,
            "recipe": design.recipe,
            **asdict(layer),
            "random_pj_per_cycle": design.random_pj_per_cycle,
        }
        for design in study.designs
        for layer in design.layers
    ]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def energy_bars(study: EnergyStudy) -> "Figure":
    """Energy per MAC of each design: own tensors and random data, stacked by part; worst a mark."""
    figure, axes = _figure(7.2, 0.9 + 0.55 * len(study.designs))
    height = 0.36
    right = 1.05 * max(design.worst_pj_per_mac for design in study.designs)
    for place, design in enumerate(study.designs):
        for offset, parts in ((-height / 2, design.parts), (height / 2, design.random_parts)):
            left = 0.0
            for (part, width), (shade, hatch) in zip(parts.items(), LOOKS, strict=True):
                axes.barh(
                    place + offset,
                    width,
                    height * 0.92,
                    left=left,
                    color=shade,
                    hatch=hatch,
                    edgecolor="#111111",
                    linewidth=0.5,
                    label=part if place == 0 and offset < 0 else None,
                )
                left += width
            # The number stands behind the mark where that would hide it.
            mark = design.worst_pj_per_mac
            near = offset > 0 and mark - left < 0.08 * right
            axes.annotate(
                f"{left:.2f}",
                (mark if near else left, place + offset),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
                fontsize=7,
            )
        axes.plot(
            [design.worst_pj_per_mac],
            [place + height / 2],
            marker="|",
            markersize=9,
            markeredgewidth=1.5,
            color="#111111",
            linestyle="none",
            label="PE at its worst pair of patterns found" if place == 0 else None,
        )
    axes.set_yticks(range(len(study.designs)), [d.label for d in study.designs], fontsize=8)
    axes.invert_yaxis()
    axes.set_xlim(right=right)
    axes.set_xlabel("pJ per multiply-accumulate, leakage counted in", fontsize=8)
    axes.set_title(
        f"upper bar: tensors of {study.model}; lower bar: random data ({study.technology}, before "
        "layout, without glitches)",
        fontsize=8,
    )
    axes.tick_params(labelsize=8)
    axes.grid(alpha=0.3, axis="x")
    axes.set_axisbelow(True)
    figure.legend(fontsize=7, loc="outside lower center", ncols=3)
    return figure


def deviation_map(study: EnergyStudy) -> "Figure":
    """How far the constant is off, by design and layer product, in percent of what is measured."""
    names = [row.name for row in study.designs[0].layers]
    values = np.array([[100 * row.deviation for row in d.layers] for d in study.designs])
    figure, axes = _figure(1.6 + 0.34 * len(names), 1.3 + 0.3 * len(study.designs))
    top = max(float(np.abs(values).max()), 1.0)
    image = axes.imshow(np.abs(values), cmap="Greys", vmin=0, vmax=1.25 * top, aspect="auto")
    for (row, column), value in np.ndenumerate(values):
        axes.text(
            column,
            row,
            f"{value:+.0f}",
            ha="center",
            va="center",
            fontsize=6.5,
            color="#ffffff" if abs(value) > 0.7 * top else "#111111",
        )
    axes.set_xticks(range(len(names)), names, rotation=60, ha="right", fontsize=7)
    axes.tick_params(axis="x", length=2)
    axes.set_yticks(range(len(study.designs)), [d.label for d in study.designs], fontsize=7)
    for column in range(1, len(names)):
        if names[column].split(".")[0] != names[column - 1].split(".")[0]:
            axes.axvline(column - 0.5, color="#111111", linewidth=1)
    bar = figure.colorbar(image, ax=axes, pad=0.01)
    bar.set_label("off by, %", fontsize=7)
    bar.ax.tick_params(labelsize=7)
    axes.set_title(
        "One energy per cycle (random data) for every cycle: % above (+) or below (-) that of the "
        "product's own tensors",
        fontsize=8,
    )
    return figure


def _figure(width: float, height: float) -> tuple["Figure", Any]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots()
