"""results.json of `bitwright codesign`: nested records with layers."""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from bitwright.experiments import bandwidth_of, peak_of
from bitwright.quant import LINEARS, FormatMap, InputError
from bitwright.sim import CAUSES, DRAMS

from .common import cards, command, origin, phase_stacks, settings, sources, vector_busy
from .documents import CodesignDocument, CodesignRecord, Pass
from .explored import Explored, Product, Roof, Roofline, Stack, Value
from .looks import family
from .values import label, plain, unique


def from_codesign(document: CodesignDocument) -> Explored:
    meta = document.meta
    extra = meta.model_extra or {}
    names = unique(record.recipe for record in document.records)
    points = [_point(name, record) for name, record in zip(names, document.records, strict=True)]
    maps = {}
    for name, record in zip(names, document.records, strict=True):
        layers = next((x.count for x in record.prefill.layers if x.name == LINEARS[0]), 0)
        there = {layer.name for layer in record.prefill.layers}
        formats = formats_of(record.config, layers)
        maps[name] = {k: v for k, v in formats.items() if k.partition(".")[2] in there}
    model, text = label(extra.get("model", "model")), label(extra.get("text", "text"))
    return Explored(
        kind="codesign",
        title=f"{model}: recipes at {label(extra.get('comparison', 'equal settings'))}; {text}",
        origin=origin(meta),
        points=points,
        axes=("decode_latency_s", "perplexity"),
        stacks=phase_stacks(points),
        area=Stack(
            "area",
            "mm2",
            {"array": "area_array_mm2", "encoders": "area_encoders_mm2", "SRAM": "area_sram_mm2"},
        ),
        rooflines={
            name: _roofline(record) for name, record in zip(names, document.records, strict=True)
        },
        maps={name: formats for name, formats in maps.items() if formats},
        cards=cards(extra.get("card")),
        settings=settings(meta),
        command=command(meta),
        provenance=sources(document.provenance),
    )


def _point(name: str, record: CodesignRecord) -> dict[str, Value]:
    point: dict[str, Value] = {
        "name": name,
        "family": family(record.recipe),
        "recipe": label(record.recipe),
        "format": label(record.config.get("format") or "fp16"),
        "pe": label(record.pe),
        "dram": label(record.decode.config.dram),
        "clock_ps": record.decode.config.clock_ps,
        "nominal_bits": record.nominal_bits,
        "bits_per_weight": record.bits_per_weight,
        "perplexity": record.perplexity,
        "area_mm2": record.area_mm2,
    }
    for phase, run in (("prefill", record.prefill), ("decode", record.decode)):
        array = run.config
        point[f"{phase}_array"] = f"{array.rows} x {array.cols} x {array.lanes}"
        for key in ("latency_s", "tokens_per_s", "dram_bytes"):
            point[f"{phase}_{key}"] = getattr(run, key)
        energy = run.energy_uJ
        point[f"{phase}_energy_uJ"] = energy.total
        for part in ("logic", "sram", "dram", "leakage"):
            point[f"{phase}_{part}_uJ"] = getattr(energy, part)
        for key in ("cycles", "busy_cycles", "stall_cycles", "vector_cycles"):
            point[f"{phase}_{key}"] = getattr(run, key)
        for cause in CAUSES:
            point[f"{phase}_stall_{cause}_cycles"] = run.stalls.get(cause)
        point[f"{phase}_vector_busy_cycles"] = vector_busy(point, phase)
    for part, square in record.decode.area_breakdown_mm2.items():
        point[f"area_{label(part)}_mm2"] = square
    return {key: plain(value) for key, value in point.items()}


def _roofline(record: CodesignRecord) -> Roofline:
    roofs, products = [], []
    for phase, run in (("prefill", record.prefill), ("decode", record.decode)):
        roofs.append(
            Roof(phase, peak_of(run.config.model_dump(), run.config.clock_ps), _bandwidth(run))
        )
        for layer in run.layers:
            if layer.dram_bytes and layer.cycles:
                seconds = layer.cycles * run.config.clock_ps * 1e-12
                operations = 2 * layer.macs
                products.append(
                    Product(
                        phase,
                        label(layer.name),
                        operations / layer.dram_bytes,
                        operations / seconds,
                    )
                )
    return Roofline(roofs, products)


def _bandwidth(run: Pass) -> float | None:
    if run.config.dram not in DRAMS:
        return None
    return bandwidth_of(run.config.dram, run.config.clock_ps)


def formats_of(recipe: Mapping[str, Any], layers: int) -> dict[str, str]:
    """Format of every linear of a recipe's config; nothing where data decide it."""
    head = label(recipe.get("format") or "fp16")
    steps = [step for step in recipe.get("steps") or () if isinstance(step, Mapping)]
    if any(step.get("name") == "mixed" for step in steps):
        return {}
    names = [f"{layer}.{linear}" for layer in range(min(layers, 1000)) for linear in LINEARS]
    for step in steps:
        if step.get("name") == "formats":
            try:
                chosen = FormatMap(**step).chosen
            except (InputError, ValidationError, TypeError):
                return {}
            return dict(zip(names, chosen, strict=True)) if len(chosen) == len(names) else {}
    return dict.fromkeys(names, head)
