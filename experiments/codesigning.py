"""The co-design run: accuracy, true bits, latency, traffic and area of recipes in one record each.

For each recipe the model's block linear layers are quantised and its perplexity measured; the
model's shape then runs in prefill and decode on an array of the PE that executes the recipe, whose
area and clock come from synthesis, and whose RTL is verified in the same run: that of its weights
and activations, the bit-serial or the FP16 PE for FP16 activations. The energy of the
logic is measured on the model's own tensors, one layer for all. The arrays compared have equal
compute area, equal buffers, equal DRAM and one clock.
"""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from bitwright.kernels import bitserial_dots
from bitwright.quant import (
    Calibration,
    InputError,
    LanguageModel,
    Progress,
    Recipe,
    Text,
    load_calibration_text,
    load_text,
    output_folder,
    resolve_recipe,
    write_text,
)
from bitwright.rtl import PESynthesis, resolve_technology, synthesise_pe, verify, verilator
from bitwright.sim import (
    Accelerator,
    LogicEnergy,
    ModelShape,
    SimulationResult,
    default_accelerator,
    operands_for,
    simulate_model,
)

from .calibration import simulation_card
from .compressed_cost import (
    layer_passes,
    layer_work,
    pass_energies,
    placed,
    simulate_compressed,
)
from .dominance import nondominated
from .energy import logic_energy
from .figures import LOOKS, save_figure
from .hardware_linear import sole_pe
from .measured import (
    accuracy_fingerprint,
    measured_accuracy,
    quantised,
    used_calibration,
)
from .provenance import provenance
from .quantities import SETTING, Provenance, simulation_provenance
from .report import looks
from .report.page import write_report
from .synthesised import area_of

#: Recipes compared by default, `{g}` the group size. All but fp16 have 8-bit second-level group
#: scales, which the bit-serial PE's scale unit takes, so every record is executable as it stands.
DEFAULT_RECIPES = (
    "fp16",
    "w8g{g}-int-sym-s8",
    "w4g{g}-int-sym-s8",
    "w4g{g}-int-asym-s8",
    "w4g{g}-fp-s8",
    "w4g{g}-bitmod",
    "w3g{g}-int-sym-s8",
    "w3g{g}-int-asym-s8",
    "w3g{g}-fp-s8",
    "w3g{g}-bitmod",
)


@dataclass(frozen=True, slots=True)
class CodesignConfig:
    """Everything that decides a co-design run."""

    recipes: tuple[Recipe, ...]
    max_tokens: int = 4096
    window: int = 512
    prefill_tokens: int = 256
    context: int = 256
    technology: str = "nangate45"
    rows: int = 32  #: of the bitmod array: tokens side by side
    cols: int = 32  #: output channels side by side
    verify_level: str | None = "quick"  #: None skips the verification
    seed: int = 0
    calibration: Calibration | None = None  #: of recipes that need data; None: the default one
    energy_layers: int = 1  #: layers whose tensors the logic's energy is measured on; 0 for none
    voltage: float | None = None  #: supply of the logic; None: the technology's
    post_layout: float = 1.0  #: factor on the logic's energy for what layout adds


@dataclass(frozen=True, slots=True)
class Codesign:
    """The answer: one record per recipe, and what they share."""

    meta: dict[str, Any]
    records: list[dict[str, Any]]
    provenance: Provenance  #: where every number comes from

    def document(self) -> dict[str, Any]:
        """The content of results.json."""
        return {"meta": self.meta, "records": self.records, "provenance": self.provenance}


def default_recipes(group_size: int) -> tuple[Recipe, ...]:
    """The default comparison at one group size."""
    return tuple(resolve_recipe(name.format(g=group_size)) for name in DEFAULT_RECIPES)


def codesign(
    model: LanguageModel,
    config: CodesignConfig,
    text: Text | None = None,
    progress: Progress | None = None,
    command: str | None = None,
) -> Codesign:
    """Run the comparison.

    Args:
        model: The model; its shape is also what runs on the accelerator.
        config: Recipes and settings.
        text: Text of the perplexity; None for the default one.
        progress: Called as work goes on.
        command: The command line, to be kept with the results.

    Raises:
        InputError: A recipe that no PE runs, a text too short, a missing tool.
    """
    text = text or load_text()
    steps = 2 * len(config.recipes) + 2

    def tell(done: int, what: str) -> None:
        if progress:
            progress(done, steps, what)

    # Refuse what cannot run before any long work; the accuracies come first, for they judge the
    # text and the window.
    for recipe in config.recipes:
        special = recipe.compressed or recipe.format_map is not None
        if recipe.structure is not None and special:
            raise InputError(
                f"recipe {recipe.name}: blocks of different sizes run with one format for all "
                f"linears; leave {recipe.structure.name} out, or use bitwright evaluate"
            )
        if recipe.compressed and recipe.kv is not None:
            raise InputError(
                f"recipe {recipe.name}: with weights in a form of their own the accelerator keeps "
                f"keys and values in FP16; leave {recipe.kv.name} out, or use bitwright evaluate"
            )
        if not recipe.compressed:
            _pe_name(model, recipe.without_structure)
    resolve_technology(config.technology)
    if config.verify_level is not None:
        verilator.find()
    fingerprint = accuracy_fingerprint(model, text)
    accuracies = []
    for done, recipe in enumerate(config.recipes):
        tell(done, recipe.name)
        accuracies.append(
            measured_accuracy(
                model,
                recipe,
                text,
                max_tokens=config.max_tokens,
                window=config.window,
                fingerprint=fingerprint,
                calibration=config.calibration,
            )
        )
    passes, work = {}, {}
    for recipe in config.recipes:
        if recipe.compressed:
            compressed = quantised(model, recipe, config.calibration)
            passes[recipe.name] = layer_passes(compressed)
            work[recipe.name] = layer_work(compressed)
    # What runs: the model, or what a structural step left of it.
    runs_as = {
        recipe.name: model
        if recipe.structure is None
        else quantised(model, recipe, config.calibration).base
        for recipe in config.recipes
    }
    pes = [
        placed(recipe, passes[recipe.name])
        if recipe.compressed
        else _pe_name(model, recipe.without_structure)
        for recipe in config.recipes
    ]
    tell(len(config.recipes), f"synthesise PEs on {config.technology}")
    costs = {
        pe: synthesise_pe(pe, config.technology) for pe in dict.fromkeys(("bitmod", "fp16", *pes))
    }
    # One clock for all: the published 1 GHz, or the slowest PE if that is slower.
    clock_ps = max([1000.0] + [cost.delay_ps for cost in costs.values()])
    arrays = _equal_area_arrays(config, costs, clock_ps)
    logic: dict[str, LogicEnergy] = {}
    for done, recipe in enumerate(config.recipes if config.energy_layers else ()):
        tell(len(config.recipes) + 1 + done, f"energy of {recipe.name}")
        settings: dict[str, Any] = {
            "voltage": config.voltage,
            "layers": config.energy_layers,
            "seed": config.seed,
            "post_layout": config.post_layout,
        }
        on = (pes[done], resolve_technology(config.technology))
        if recipe.compressed:
            compressed = quantised(model, recipe, config.calibration)
            logic[recipe.name] = pass_energies(model, compressed, *on, **settings)
        else:
            rest = recipe.without_structure
            settings["kv_format"] = _cache(recipe)[0]
            logic[recipe.name] = logic_energy(runs_as[recipe.name], rest, *on, **settings)
    checks: list[dict[str, Any]] = []
    if config.verify_level is not None:
        tell(steps - 1, "verify the RTL")
        for pe in costs:
            kernel = bitserial_dots if pe == "bitmod" else None
            rows = verify(pe, level=config.verify_level, seed=config.seed, kernel=kernel)
            checks += [asdict(row) for row in rows]

    records: list[dict[str, Any]] = []
    origins: Provenance = []
    cards: dict[str, Any] = {}
    for recipe, pe, accuracy in zip(config.recipes, pes, accuracies, strict=True):
        energy = logic.get(recipe.name)
        used = used_calibration(model, recipe, config.calibration)
        runs: dict[str, SimulationResult] = {}
        shape = shape_of(runs_as[recipe.name])
        for phase in ("prefill", "decode"):
            on_array: dict[str, Any] = {
                "tokens": config.prefill_tokens,
                "context": config.context,
                "accelerator": _for_phase(arrays[pe], phase),
                "pe_area": area_of(costs[pe]),
            }
            if recipe.compressed:
                runs[phase] = simulate_compressed(
                    *(shape, recipe, passes[recipe.name], phase),
                    **on_array,
                    logic=energy,
                    work=work[recipe.name],
                )
            else:
                rest = recipe.without_structure
                kv_format, kv_group_size = _cache(recipe)
                runs[phase] = simulate_model(
                    shape,
                    rest,
                    phase,
                    **on_array,
                    kv_format=kv_format,
                    kv_group_size=kv_group_size,
                    logic=energy,
                )
                runs[phase].config["recipe"] = recipe.name
        phases = {phase: result.to_dict() for phase, result in runs.items()}
        cards[recipe.name] = simulation_card(runs["decode"], energy).to_dict()
        for phase, result in runs.items():
            where = f"records[{len(records)}].{phase}."
            origins += simulation_provenance(result, energy, where)
        records.append(
            {
                "recipe": recipe.name,
                "label": recipe.label,
                "config": recipe.model_dump(),
                "compressed": recipe.compressed,
                "model": model.name,
                **accuracy,
                "calibration": None if used is None else used.model_dump(),
                "pe": pe,
                "area_mm2": phases["decode"]["area_mm2"],
                **provenance(config.seed),
                **phases,
            }
        )
    tell(steps, "done")
    meta = {
        "model": model.name,
        "model_source": model.source,
        "text": text.name,
        "tokens": config.max_tokens,
        "window": config.window,
        "calibration_text": load_calibration_text().name,
        "prefill_tokens": config.prefill_tokens,
        "context": config.context,
        "technology": config.technology,
        "clock_ps": clock_ps,
        "comparison": "equal compute area, equal buffers, equal DRAM, one clock",
        "card": cards,
        "area_source": {pe: cost.source for pe, cost in costs.items()},
        "pe_area_um2": {pe: cost.area_um2 for pe, cost in costs.items()},
        "verification": {
            "level": config.verify_level,
            "vectors": sum(row["vectors"] for row in checks),
            "mismatches": sum(row["mismatches"] for row in checks),
            "results": checks,
        },
        "command": command,
        **provenance(config.seed),
    }
    return Codesign(meta, records, [*_provenance(meta), *origins])


def _provenance(meta: dict[str, Any]) -> Provenance:
    """Sources of what is not a simulation's."""
    window = f"{meta['tokens']} tokens, windows of {meta['window']}, no BOS"
    perplexity = f"measured: {meta['model_source']}; {meta['text']}, {window}"
    stored = "counted: codes, scales and selectors as stored"
    area = "; ".join(f"{pe}: {source}" for pe, source in meta["area_source"].items())
    checked = f"bitwright verify, level {meta['verification']['level']}, in this run"
    rows = {
        "records[].perplexity": perplexity,
        "records[].bits_per_weight": stored,
        "records[].nominal_bits": stored,
        "records[].parameters_kept": "counted: weights of the linears, of those of the model",
        "records[].area_mm2": f"PEs: {area}; SRAM: CACTI 7",
        "meta.clock_ps": f"1 GHz as published, or the slowest PE: {area}",
        "meta.pe_area_um2.*": area,
        "meta.verification.*": checked,
        "meta.*": SETTING,
        "records[].compressed": SETTING,
        "records[].config.*": SETTING,
        "records[].calibration.*": SETTING,
        "records[].tokens": SETTING,
        "records[].window": SETTING,
        "records[].seed": SETTING,
    }
    return [{"quantity": pattern, "source": text} for pattern, text in rows.items()]


def _pe_name(model: LanguageModel, recipe: Recipe) -> str:
    """The PE that executes a recipe whose weights have a format.

    Activations of the recipe's own decide (`choose_pe`). FP16 activations run on the bit-serial PE,
    except with FP16 weights and with block formats, whose scales it does not take: those are
    decoded in front of FP16 PEs.

    Raises:
        InputError: No PE does, or the one that does cannot take the recipe's keys and values.
    """
    from bitwright.sim import PES

    if recipe.activations is not None:
        pe = sole_pe(model.config, recipe)
    else:
        decoded = recipe.format_obj is None or recipe.format_obj.block is not None
        pe = "fp16" if decoded else "bitmod"
    operands_for(recipe, PES[pe].step_cycles, *_cache(recipe))
    return pe


def _cache(recipe: Recipe) -> tuple[str | None, int | None]:
    """Format and group size of keys and values; None, None: FP16."""
    return (None, None) if recipe.kv is None else (recipe.kv.format, recipe.kv.group_size)


def _equal_area_arrays(
    config: CodesignConfig, costs: dict[str, PESynthesis], clock_ps: float
) -> dict[str, Accelerator]:
    """The bitmod array as asked, and as many pairs of rows of other PEs as fit its area."""
    bitmod = replace(
        default_accelerator("bitmod"), rows=config.rows, cols=config.cols, clock_ps=clock_ps
    )
    pes = config.rows * config.cols
    area = pes * costs["bitmod"].area_um2 + bitmod.shared_units * costs["bitmod"].encoder_um2
    arrays = {"bitmod": bitmod}
    for pe, cost in costs.items():
        if pe == "bitmod":
            continue
        usual = replace(default_accelerator(pe), cols=config.cols, clock_ps=clock_ps)
        # A row with its part of what the PEs of a column share.
        each = config.cols * (cost.area_um2 + cost.encoder_um2 / usual.rows_per_accumulator)
        rows = max(1, int(area // each) // 2 * 2)
        shared = min(usual.rows_per_accumulator, rows)
        arrays[pe] = replace(usual, rows=rows, rows_per_accumulator=shared)
    others = " or ".join(pe for pe in arrays if pe != "bitmod")
    source = f"{config.rows} x {config.cols} bitmod PEs, or {others} PEs of the same area"
    return {pe: replace(array, source=source) for pe, array in arrays.items()}


def _for_phase(array: Accelerator, phase: str) -> Accelerator:
    """The array as a phase arranges it.

    A decode step has one token, so all rows but one stand idle. As in the published study the same
    PEs are then arranged as half the rows (tokens) and twice the columns (output channels): 32 x 32
    becomes 16 x 64 (authors' repo: yc2367/BitMoD sim/).
    """
    if phase == "prefill" or array.rows % 2:
        return array
    return replace(array, rows=array.rows // 2, cols=2 * array.cols)


def shape_of(model: LanguageModel) -> ModelShape:
    """The model's dimensions as a workload shape."""
    config = model.config
    return ModelShape(
        name=model.name,
        layers=config.layers,
        hidden=config.hidden,
        heads=config.heads,
        kv_heads=config.kv_heads,
        head_dim=config.head_dim,
        ffn=config.ffn,
        vocab=config.vocab,
        gated=True,
        tied_embeddings=config.tied_embeddings,
        source="the loaded model",
        blocks=config.blocks,
    )


# ------------------------------------------------------------------ what is written

_PHASE_KEYS = (
    "cycles",
    "latency_s",
    "tokens_per_s",
    "dram_bytes",
    "compute_cycles",
    "stall_cycles",
    "vector_cycles",
)


def flat_rows(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One flat row per record, for CSV."""
    rows = []
    for record in records:
        row = {
            key: record[key]
            for key in (
                *("recipe", "model", "perplexity", "bits_per_weight", "nominal_bits"),
                *("parameters_kept", "pe"),
            )
        }
        for phase in ("prefill", "decode"):
            row |= {f"{phase}_{key}": record[phase][key] for key in _PHASE_KEYS}
            energy = record[phase]["energy_uJ"]
            row |= {f"{phase}_{part}_uJ": energy[part] for part in (*ENERGY, "total")}
        row |= {
            key: record[key]
            for key in ("area_mm2", "text", "tokens", "window", "seed", "bitwright", "commit")
        }
        rows.append(row)
    return rows


#: Components of the energy, lowest part of a bar first.
ENERGY = ("logic", "sram", "dram", "leakage")


def pareto(records: Sequence[dict[str, Any]], phase: str) -> list[dict[str, Any]]:
    """Records that no other beats in both perplexity and latency, fastest first."""
    points = np.array([[r[phase]["latency_s"], r["perplexity"]] for r in records]).reshape(-1, 2)
    front = [records[number] for number in nondominated(points)]
    return sorted(front, key=lambda record: record[phase]["latency_s"])


def write_results(answer: Codesign, out: str | Path) -> dict[str, Path]:
    """Write results.json, results.csv, two figures (PNG and SVG) and report.html into a folder.

    The figures are the Pareto front of perplexity and latency, and the energy by component. The
    report is one page for the browser with all of it (`bitwright report`). Where methods have
    forms of their own there is a third figure: perplexity against true bits and against energy.

    Raises:
        InputError: The folder cannot be written.
    """
    folder = output_folder(out)
    paths = {name: folder / name for name in ("results.json", "results.csv")}
    write_text(paths["results.json"], json.dumps(answer.document(), indent=1, allow_nan=False))
    rows = flat_rows(answer.records)
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, fieldnames=list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(paths["results.csv"], buffer.getvalue())
    paths |= save_figure(_figure(answer), folder / "pareto", ("png", "svg"))
    paths |= save_figure(_energy_figure(answer), folder / "energy", ("png", "svg"))
    if any(record["compressed"] for record in answer.records):
        paths |= save_figure(
            bits_figure(answer.meta, answer.records), folder / "bits", ("png", "svg")
        )
    paths["report.html"], _ = write_report(paths["results.json"])
    return paths


def _figure(answer: Codesign) -> Any:
    """Perplexity against latency of both phases; the front is joined by a line."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.5, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    meta = answer.meta
    titles = _titles(meta)
    for axes, phase in zip(figure.subplots(1, 2), titles, strict=True):
        front = pareto(answer.records, phase)
        axes.step(
            [r[phase]["latency_s"] * 1e3 for r in front],
            [r["perplexity"] for r in front],
            where="post",
            color="#bbbbbb",
            zorder=1,
            label="Pareto front",
        )
        for family, look in looks.FAMILIES.items():
            points = [r for r in answer.records if looks.family(r["recipe"]) == family]
            if points:
                axes.scatter(
                    [r[phase]["latency_s"] * 1e3 for r in points],
                    [r["perplexity"] for r in points],
                    color=look.colour,
                    marker=look.marker,
                    label=family,
                    zorder=2,
                )
        for record in answer.records:
            axes.annotate(
                record["label"],
                (record[phase]["latency_s"] * 1e3, record["perplexity"]),
                xytext=(5, 4),
                textcoords="offset points",
                fontsize=6.5,
            )
        axes.set_xlabel(f"latency, {titles[phase]} [ms]")
        axes.set_ylabel(f"perplexity, window {meta['window']}")
        axes.set_yscale("log")
        axes.margins(x=0.25)
        axes.grid(alpha=0.25, which="both")
    figure.axes[0].legend(fontsize=7)
    figure.suptitle(
        f"{meta['model']}: perplexity against latency at equal compute area "
        f"({meta['technology']}, {meta['clock_ps'] / 1000:.2f} ns)",
        fontsize=9,
    )
    return figure


def _titles(meta: dict[str, Any]) -> dict[str, str]:
    return {
        "prefill": f"prefill of {meta['prefill_tokens']} tokens",
        "decode": f"one decode step at {meta['context']} tokens",
    }


def bits_figure(meta: dict[str, Any], records: Sequence[dict[str, Any]]) -> Any:
    """Perplexity against true bits, and against the energy of a decode step: all recipes.

    Args:
        meta: model, window, technology, prefill_tokens and context, as in results.json.
        records: recipe, label, bits_per_weight, perplexity and decode's energy_uJ of each.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.5, 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = {
        "true bits per weight of the linears": lambda r: r["bits_per_weight"],
        f"energy of {_titles(meta)['decode']} [mJ]": lambda r: _total_mj(r["decode"]),
    }
    for plot, (name, value) in zip(figure.subplots(1, 2, sharey=True), axes.items(), strict=True):
        for family, look in looks.FAMILIES.items():
            points = [r for r in records if looks.family(r["recipe"]) == family]
            if points:
                plot.scatter(
                    [value(r) for r in points],
                    [r["perplexity"] for r in points],
                    color=look.colour,
                    marker=look.marker,
                    label=family,
                )
        for record in records:
            plot.annotate(
                record["label"],
                (value(record), record["perplexity"]),
                xytext=(4, 3),
                textcoords="offset points",
                fontsize=5.5,
            )
        plot.set_xlabel(name)
        plot.set_yscale("log")
        plot.margins(x=0.2)
        plot.grid(alpha=0.25, which="both")
    bits = figure.axes[0]
    bits.set_xscale("log", base=2)
    bits.xaxis.set_major_formatter("{x:g}")
    bits.set_ylabel(f"perplexity, window {meta['window']}")
    bits.legend(fontsize=7)
    figure.suptitle(
        f"{meta['model']}: perplexity against true bits and energy ({meta['technology']}, equal "
        "compute area)",
        fontsize=9,
    )
    return figure


def _total_mj(phase: dict[str, Any]) -> float:
    """Energy of a phase; without that of the logic where it was not measured."""
    energy = phase["energy_uJ"]
    return 1e-3 * float(sum(energy[part] or 0.0 for part in ENERGY))


def _energy_figure(answer: Codesign) -> Any:
    """Energy of both phases by component, a bar per recipe."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.5, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    meta = answer.meta
    titles = _titles(meta)
    places = range(len(answer.records))
    for axes, phase in zip(figure.subplots(1, 2), titles, strict=True):
        bottom = [0.0] * len(answer.records)
        for part, (shade, hatch) in zip(ENERGY, LOOKS, strict=False):
            heights = [(r[phase]["energy_uJ"][part] or 0.0) * 1e-3 for r in answer.records]
            axes.bar(
                places,
                heights,
                bottom=bottom,
                color=shade,
                hatch=hatch,
                edgecolor="#111111",
                linewidth=0.5,
                label=part if part in ("logic", "leakage") else part.upper(),
            )
            bottom = [low + height for low, height in zip(bottom, heights, strict=True)]
        labels = [record["label"] for record in answer.records]
        axes.set_xticks(places, labels, rotation=40, ha="right", fontsize=7)
        axes.set_ylabel(f"mJ, {titles[phase]}")
        axes.grid(alpha=0.3, axis="y")
        axes.set_axisbelow(True)
    figure.axes[0].legend(fontsize=7)
    figure.suptitle(
        f"{meta['model']}: energy at equal compute area ({meta['technology']})", fontsize=9
    )
    return figure
