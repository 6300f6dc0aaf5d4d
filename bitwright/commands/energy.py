"""`bitwright energy`: what a PE's logic uses on a model's own tensors."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import RenderableType

    from bitwright.experiments import CalibrationCard, LayerEnergy
    from bitwright.quant import LanguageModel
    from bitwright.rtl import Technology, stream_bounds
    from bitwright.sim import LogicEnergy

#: The recipe that a PE is made for.
NATURAL_RECIPES = {
    "bitmod": "bitmod4",
    "dint4": "dint4",
    "dint4-asym": "dint4-asym",
    "dint4-dot16": "dint4",
    "btc": "w2-int-asym",
    "btc-w2a8": "w2-int-asym",
    "fp16": "fp16",
    "fp16acc16": "fp16",
    "int8": "w8-int-sym",
    "int8-dot16": "w8-int-sym",
    "int4x8": "int4",
    "int4": "int4",
    "fp16xint4": "int4",
    "fp16xint8": "int8",
    "ant": "ant4",
    "olive": "olive4",
    "mxfp4": "mxfp4",
    "mxint8": "mxint8",
    "nvfp4": "nvfp4",
    "ternary": "ternary",
    "lut": "ternary",
}
_DEFAULT_MODEL = "smollm2"


def energy(
    pe: Annotated[str, typer.Argument(help="A PE such as bitmod, dint4 or fp16; or all: a study.")],
    model: Annotated[
        str, typer.Option(help="Model whose tensors are the operands, as for evaluate.")
    ] = _DEFAULT_MODEL,
    recipe: Annotated[
        str | None, typer.Option(help="Weights. [default: the PE's own format]")
    ] = None,
    layer: Annotated[
        list[str] | None,
        typer.Option(help="One product, such as 3.ffn.down or lm_head; repeat for several."),
    ] = None,
    layers: Annotated[
        int | None,
        typer.Option(help="Layers measured: first, last and evenly between. [default: 3]"),
    ] = None,
    technology: Annotated[
        str | None, typer.Option(help="nangate45, sky130hd or asap7. [default: nangate45]")
    ] = None,
    liberty: Annotated[
        list[Path] | None,
        typer.Option(
            help="Liberty file (.lib, .lib.gz) with power tables to use instead; the files of "
            "repeated options are one library."
        ),
    ] = None,
    voltage: Annotated[
        float | None, typer.Option(help="Supply in V. [default: the technology's]")
    ] = None,
    clock_ps: Annotated[
        float | None,
        typer.Option(help="Period that mapping aims at. [default: the technology's own]"),
    ] = None,
    post_layout: Annotated[
        float | None, typer.Option(help="Factor for what layout adds. [default: 1, nothing]")
    ] = None,
    node: Annotated[
        float | None, typer.Option(help="Scale to this node in nm; results say so.")
    ] = None,
    node_voltage: Annotated[float | None, typer.Option(help="Supply at --node in V.")] = None,
    from_node: Annotated[
        float | None, typer.Option(help="Node in nm of the cells of --liberty.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of sampled tiles, random data and search.")] = 0,
    csv: Annotated[Path | None, typer.Option(help="Write a row per result here.")] = None,
    out: Annotated[Path | None, typer.Option(help="With all: folder of the study.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Energy per cycle and per multiply-accumulate of a PE with its share of an array.

    Netlists run on a model's own tensors; beside them an idle PE, random data and the worst pair
    of operand patterns found. Before layout, without glitches.
    """
    from bitwright.experiments import join_layers, logic_card, measure_layers, scaled_to
    from bitwright.output import progress_bar, show
    from bitwright.quant import InputError, resolve_recipe, write_text
    from bitwright.rtl import find_design, scaling, tile_energy
    from bitwright.sim import PES

    if seed < 0:
        raise InputError(f"--seed {seed}: give 0 or more")
    if pe == "all":
        given = {
            "recipe": recipe, "layer": layer, "technology": technology, "liberty": liberty,
            "voltage": voltage, "clock-ps": clock_ps, "post-layout": post_layout, "node": node,
            "node-voltage": node_voltage, "from-node": from_node, "csv": csv,
        }  # fmt: skip
        clash = next((name for name, value in given.items() if value not in (None, [])), None)
        if clash is not None:
            raise InputError(f"--{clash} does not go with all, whose designs are fixed")
        _study(model, layers, seed, out or Path("energy"), as_json)
        return
    if out is not None:
        raise InputError(f"--out {out} goes with all; for one PE give --csv FILE or --json")
    find_design(pe)  # unknown ones are refused
    if pe not in PES:
        raise InputError(f"{pe} is a variant; energy is measured on {', '.join(PES)}")
    wanted = resolve_recipe(recipe or NATURAL_RECIPES[pe])
    PES[pe].step_cycles(wanted.format_obj)
    for option, value in (
        ("--clock-ps", clock_ps), ("--voltage", voltage), ("--post-layout", post_layout),
    ):  # fmt: skip
        if value is not None and not 0 < value < float("inf"):
            raise InputError(f"{option} {value:g}: give a number above 0")
    if layers is not None and layers < 1:
        raise InputError(f"--layers {layers}: give at least 1")
    if layers is not None and layer:
        raise InputError("--layer and --layers exclude each other; give one of them")
    tech = _technology(technology, liberty)
    from_nm = tech.node_nm if from_node is None else from_node
    if (node is None) != (node_voltage is None):
        raise InputError("--node and --node-voltage go together; give both or none")
    if from_node is not None and not liberty:
        raise InputError(f"--from-node {from_node:g} is for --liberty; {tech.name} has its own")
    if node is not None and from_nm is None:
        raise InputError(f"--node {node:g} needs --from-node NM, the node of {tech.name}")
    if node is not None and node_voltage is not None and from_nm is not None:
        supply = tech.voltage if voltage is None else voltage
        scaling.energy_ratio(from_nm, supply, node, node_voltage)  # refuse before any work

    loaded = _load(model)
    only = [_key(name, loaded) for name in dict.fromkeys(layer)] if layer else None
    chosen = _layers(loaded, layers)
    hardware = tile_energy.TileHardware(pe, tech, clock_ps, voltage=voltage)
    with progress_bar(f"energy of {pe}") as progress:
        measured = measure_layers(
            loaded, wanted, hardware, only=only, layers=chosen, seed=seed, progress=progress
        )
        progress(0, 1, "random data and worst pair")
        bounds = _bounds(hardware, wanted, seed)
    logic = join_layers(loaded.name, wanted, hardware, measured)
    if post_layout is not None:
        from dataclasses import replace

        logic = replace(logic, post_layout=post_layout)
    label = ""
    if node is not None and node_voltage is not None and from_nm is not None:
        logic = scaled_to(logic, from_nm, node, node_voltage)
        label = f"scaled to {node:g} nm at {node_voltage:g} V"
    card = logic_card(logic, clock_ps=hardware.clock_ps)

    rows = [_row(one.name, one.energy.to_dict(), logic.factor, label) for one in measured]
    table = _bound_rows(bounds, logic.factor, label)
    parts = _breakdown(measured, bounds, logic.factor)
    if csv is not None:
        write_text(csv, _csv([*rows, *table]))
    count = len(rows)
    document = {
        "pe": pe,
        "technology": tech.name,
        "clock_ps": hardware.clock_ps,
        "voltage": hardware.voltage,
        "pj_per_cycle": sum(row["pj_per_cycle"] for row in rows) / count,
        "pj_per_mac": sum(row["pj_per_mac"] for row in rows) / count,
        "breakdown": {part: sum(components.values()) for part, components in parts.items()},
        "breakdown_components": parts,
        "scaled": label or None,
        "post_layout": logic.post_layout,
        "factor": logic.factor,
        "model": loaded.name,
        "recipe": wanted.name,
        "seed": seed,
        "netlists": dict(hardware.hashes),
        "results": rows,
        "bounds": {"rows": table, "measured": bounds.to_dict()},
        "card": card.to_dict(),
    }
    show(document, as_json, _tables(document, rows, table, parts, logic, card, bounds))


# ------------------------------------------------------------------ what to measure


def _technology(name: str | None, liberty: list[Path] | None) -> "Technology":
    from bitwright.quant import InputError
    from bitwright.rtl import liberty as liberty_files
    from bitwright.rtl import resolve_technology

    if liberty and name is not None:
        raise InputError("--technology and --liberty exclude each other; give one of them")
    return (
        liberty_files.read_liberty(liberty) if liberty else resolve_technology(name or "nangate45")
    )


def _load(model: str) -> "LanguageModel":
    """The model; without the default one, tiny."""
    from bitwright.default_model import load_or_tiny
    from bitwright.output import progress_bar

    with progress_bar("energy") as progress:
        return load_or_tiny(model, progress)


def _layers(model: "LanguageModel", count: int | None) -> list[int]:
    from bitwright.experiments import chosen_layers
    from bitwright.quant import InputError

    if count is None:
        return chosen_layers(model)
    if count > model.config.layers:
        raise InputError(f"--layers {count}: {model.name} has {model.config.layers} layers")
    return chosen_layers(model, count)


def _key(name: str, model: "LanguageModel") -> tuple[int | None, str]:
    """A product's layer and name, if the model has it."""
    from bitwright.experiments import layer_product
    from bitwright.quant import InputError

    layer, product = layer_product(name)
    if layer is not None and layer >= model.config.layers:
        raise InputError(
            f"--layer is {name!r}; {model.name} has layers 0 to {model.config.layers - 1}"
        )
    return layer, product


def _bounds(hardware: Any, recipe: Any, seed: int) -> "stream_bounds.StreamBounds":
    from bitwright.experiments import quantise_for
    from bitwright.rtl import stream_bounds

    return stream_bounds.measure_bounds(
        hardware, lambda w: quantise_for(w, recipe, hardware.pe), seed=seed
    )


# ------------------------------------------------------------------ rows


def _row(name: str, energy: Mapping[str, Any], factor: float, label: str) -> dict[str, Any]:
    """A measured stream; pJ per PE and cycle, factors applied and leakage counted in."""
    leakage = energy["leakage_uw"] * energy["clock_ps"] * 1e-6
    cycle = energy["active_pj"] * factor + leakage
    skipped = energy["skipped_pj"]
    return {
        "stream": name,
        "of": "PE with its share of the array",
        "pj_per_cycle": cycle,
        "pj_per_mac": cycle / energy["macs"],
        "half_width": energy["half_width"],
        "tiles": energy["tiles"],
        "cycles": energy["cycles"],
        "macs_per_cycle": energy["macs"],
        "unused_pj": energy["unused_pj"] * factor + leakage,
        "stalled_pj": energy["stalled_pj"] * factor + leakage,
        "skipped_pj": None if skipped is None else skipped * factor + leakage,
        "edge_pj": energy["edge_pj"] * factor,
        "leakage_pj": leakage,
        "scaled": label or None,
        "source": f"{label}, from {energy['source']}" if label else energy["source"],
    }


def _bound_rows(
    bounds: "stream_bounds.StreamBounds", factor: float, label: str
) -> list[dict[str, Any]]:
    """Idle, random data and worst; of the PE alone as well."""
    random = _row("random data", bounds.typical.to_dict(), factor, label)
    nothing = dict.fromkeys(random)

    def bound(stream: str, of: str, dynamic: float, leakage: float, macs: float | None) -> Any:
        cycle = dynamic * factor + leakage
        return {
            **nothing,
            "stream": stream,
            "of": of,
            "pj_per_cycle": cycle,
            "pj_per_mac": cycle / macs if macs else None,
            "leakage_pj": leakage,
            "scaled": label or None,
            "source": f"{label}, from netlists" if label else "netlists",
        }

    macs, alone, own = bounds.typical.macs, "PE alone", bounds.pe_leakage_pj
    return [
        bound("idle", random["of"], bounds.idle_pj, bounds.leakage_pj, None),
        random,
        bound("idle", alone, bounds.pe_idle_pj, own, None),
        bound("random data", alone, bounds.pe_typical_pj, own, macs),
        bound(f"worst: {bounds.search}", alone, bounds.worst_pj, own, macs),
    ]


def _breakdown(
    measured: "Sequence[LayerEnergy]", bounds: "stream_bounds.StreamBounds", factor: float
) -> dict[str, dict[str, float]]:
    """Part -> component -> pJ per active cycle, the mean over the products; leakage last."""
    tables = [one.energy.breakdown for one in measured]
    parts = {
        part: {
            component: factor * sum(table[part][component] for table in tables) / len(tables)
            for component in components
        }
        for part, components in tables[0].items()
    }
    return {**parts, "leakage": {"leakage": bounds.leakage_pj}}


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    import csv
    import io

    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


# ------------------------------------------------------------------ tables


def _tables(
    document: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    bound_rows: Sequence[Mapping[str, Any]],
    parts: Mapping[str, Mapping[str, float]],
    logic: "LogicEnergy",
    card: "CalibrationCard",
    bounds: "stream_bounds.StreamBounds",
) -> "RenderableType":
    from rich.box import SIMPLE_HEAD
    from rich.console import Group
    from rich.table import Table

    label = f", {document['scaled']}" if document["scaled"] else ""
    results = Table(
        title=(
            f"{document['pe']} on {document['technology']}, {document['recipe']}, tensors of "
            f"{document['model']}: pJ per PE{label}"
        ),
        caption=(
            f"leakage of {bounds.leakage_pj:.3f} pJ a cycle counted in (PE alone "
            f"{bounds.pe_leakage_pj:.3f}); +-: half the 95 % interval"
        ),
        box=SIMPLE_HEAD,
    )
    results.add_column("stream", no_wrap=True)
    for column in ("pJ/cycle", "pJ/MAC", "+-", "tiles", "unused", "stalled", "skipped"):
        results.add_column(column, justify="right", no_wrap=True)
    for i, row in enumerate([*rows, *bound_rows]):
        alone = " (PE alone)" if row["of"] == "PE alone" else ""
        results.add_row(
            row["stream"] + alone,
            *(_number(row[name]) for name in ("pj_per_cycle", "pj_per_mac")),
            "-" if row["half_width"] is None else f"{row['half_width']:.1%}",
            "-" if row["tiles"] is None else str(row["tiles"]),
            *(_number(row[name]) for name in ("unused_pj", "stalled_pj", "skipped_pj")),
            end_section=i + 1 == len(rows),
        )
    breakdown = Table(
        title=f"An active cycle by part, pJ per PE{label}",
        box=SIMPLE_HEAD,
    )
    breakdown.add_column("part", no_wrap=True)
    components = list(next(iter(parts.values())))
    for column in (*components, "together", "share"):
        breakdown.add_column(column, justify="right")
    total = document["pj_per_cycle"]
    for part, values in parts.items():
        own = sum(values.values())
        cells = (f"{values[name]:.3f}" if name in values else "" for name in components)
        breakdown.add_row(part, *cells, f"{own:.3f}", f"{own / total:.1%}")
    breakdown.add_row("all", *[""] * len(components), f"{total:.3f}", "100.0%", style="bold")
    mean = (
        f"mean of the products{label}: {document['pj_per_cycle']:.3f} pJ per cycle, "
        f"{document['pj_per_mac']:.3f} pJ per multiply-accumulate"
    )
    return Group(results, breakdown, mean, *card.lines())


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


# ------------------------------------------------------------------ all


def _study(model: str, layers: int | None, seed: int, out: Path, as_json: bool) -> None:
    from rich.console import Group

    from bitwright.experiments import energy_study
    from bitwright.output import progress_bar, show
    from bitwright.quant import output_folder

    output_folder(out)  # tells before the work what could not be written after it
    loaded = _load(model)
    with progress_bar("energy") as progress:
        study = energy_study.energy_study(
            loaded, layers=_layers(loaded, layers), seed=seed, progress=progress
        )
    paths = energy_study.write_study(study, out)
    show(study.to_dict(), as_json, Group(*study.tables(), *map(str, paths.values())))
