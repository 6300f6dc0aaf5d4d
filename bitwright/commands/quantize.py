"""`bitwright quantize`: a model's linear layers, packed to their true bits on disk."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from collections.abc import Mapping

    from rich.console import RenderableType

    from bitwright.quant import QuantizedModel, Recipe

#: Notes shown below the table; --json has all.
_NOTES = 8
#: Suffixes that are no folder's.
_FILES = (".pt", ".pth", ".bin", ".pkl", ".ckpt", ".gguf", ".json", ".npz")


def quantize(
    out: Annotated[
        Path, typer.Option(help="One file, if its name ends in .safetensors; otherwise a folder.")
    ],
    model: Annotated[
        str, typer.Option(help="smollm2, tiny, a GGUF file or a model folder.")
    ] = "smollm2",
    recipe: Annotated[
        str, typer.Option(help="Such as bitmod3, w4g64-int-sym or w4a8-int-asym+awq+gptq.")
    ] = "bitmod3",
    calibration_text: Annotated[
        Path | None, typer.Option(help="UTF-8 text to calibrate on instead.")
    ] = None,
    calibration_sequences: Annotated[
        int | None, typer.Option(help="Sequences; 128, or as many as the text has.")
    ] = None,
    calibration_length: Annotated[
        int | None, typer.Option(help="Tokens of a sequence; 512.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Chooses the calibration sequences.")] = 0,
    stream: Annotated[
        bool,
        typer.Option("--stream", help="Read a model folder block by block: for large models."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Quantise a model's linear layers and write them, bit-packed, to safetensors files.

    A folder gets a file per block as it is finished. If the run is interrupted, the same command
    goes on behind the last one; learned and error-compensated recipes go on the same way.

    The table gives, by kind of layer, the number of layers and weights, the true bits per weight
    (all metadata counted), the mean-square error relative to the weights' mean square, and, where
    the recipe's algorithms measure it, that of the layers' outputs over the calibration tokens.
    """
    from bitwright.experiments import plan_calibration
    from bitwright.output import progress_bar, show
    from bitwright.quant import (
        InputError,
        apply_recipe,
        load_calibration_text,
        load_model,
        peak_parts,
        resolve_recipe,
        save_quantized,
    )

    chosen = resolve_recipe(recipe)
    single = _single(out, chosen)
    for option, value, least, usual in (
        ("--calibration-sequences", calibration_sequences, 1, 128),
        ("--calibration-length", calibration_length, 2, 512),
        ("--seed", seed, 0, 0),
    ):
        if value is not None and value < least:
            raise InputError(f"{option} is {value}; at least {least}, {usual} is usual")
    text = load_calibration_text(calibration_text)
    with progress_bar("quantise") as progress:
        loaded = load_model(model, progress, stream=stream)
        calibration = None
        if calibration_sequences or calibration_length or seed:
            calibration = plan_calibration(
                loaded,
                loaded.config.context,
                sequences=calibration_sequences,
                length=calibration_length,
                seed=seed,
                text=text,
            )
        made = apply_recipe(
            loaded,
            chosen,
            calibration=calibration,
            text=text,
            folder=None if single else out,
            progress=progress,
        )
        if single:
            save_quantized(out, made)
    kinds = _by_kind(made)
    parts = peak_parts(loaded.config, chosen, made.calibration, streamed=stream, stored=not single)
    document = _document(made, kinds["total"], out, parts, seed)
    show(document, as_json, _view(made, kinds, out, parts))


def _single(out: Path, recipe: "Recipe") -> bool:
    """Whether `out` is one file; InputError if nothing can be written there."""
    from bitwright.quant import InputError

    if recipe.keeps_weights and recipe.head is None:
        raise InputError(
            f"--recipe {recipe.name} rounds no weights, so there is nothing to write; begin with a "
            "weight format such as w4g64-int-sym"
        )
    if out.suffix != ".safetensors":
        if out.suffix.lower() in _FILES:
            raise InputError(f"--out {out} must end in .safetensors, or name a folder")
        return False
    if not out.parent.is_dir():
        raise InputError(f"--out {out}: the folder {out.parent} does not exist; make it first")
    if out.is_dir():
        raise InputError(f"--out {out} is a folder; a name in .safetensors means a file")
    return True


def _by_kind(made: "QuantizedModel") -> dict[str, dict[str, float]]:
    """Sums over the layers of a kind ("attn.q"), and over all under "total".

    Keys: layers, weights, bits, error and power (squares), output (relative errors) and measured
    (layers that have one).
    """
    import math

    from bitwright.quant import SuperWeight

    keys = ("layers", "weights", "bits", "error", "power", "output", "measured")
    total = dict.fromkeys(keys, 0.0)
    kinds: dict[str, dict[str, float]] = {}
    for block in made.blocks:
        for row in block.report:
            kind = row.name.split(".", 2)[2]
            tensor = block.tensors[kind]
            weights = tensor.shape[0] * tensor.shape[1]
            kept = len(block.super_weights.get(kind, ()))
            known = not math.isnan(row.relative_output_mse)
            values = {
                "layers": 1,
                "weights": weights,
                "bits": tensor.bits_per_weight * weights + SuperWeight.BITS * kept,
                "error": row.relative_mse * row.power,
                "power": row.power,
                "output": row.relative_output_mse if known else 0.0,
                "measured": known,
            }
            for sums in (kinds.setdefault(kind, dict.fromkeys(keys, 0.0)), total):
                for key, value in values.items():
                    sums[key] += value
    return {**kinds, "total": total}


def _relative(sums: "Mapping[str, float]") -> float:
    return sums["error"] / sums["power"] if sums["power"] else 0.0


def _document(
    made: "QuantizedModel",
    total: "Mapping[str, float]",
    out: Path,
    parts: "Mapping[str, int]",
    seed: int,
) -> dict[str, Any]:
    import math

    import bitwright

    calibration = None
    if made.calibration is not None:
        calibration = {"text": made.calibration_text, **made.calibration.model_dump()}
    measured = total["measured"]
    return {
        "model": made.base.name,
        "recipe": made.recipe.name,
        "bits_per_weight": made.bits_per_weight,
        "nominal_bits": made.nominal_bits,
        "layers": int(total["layers"]),
        "weights": int(total["weights"]),
        "relative_mse": None if math.isnan(total["error"]) else _relative(total),
        "relative_output_mse": total["output"] / measured if measured else None,
        "calibration": calibration,
        "seed": seed,
        "notes": list(made.notes),
        "peak_bytes": sum(parts.values()),
        "peak_parts": dict(parts),
        "file": str(out),
        "version": bitwright.__version__,
    }


def _view(
    made: "QuantizedModel",
    kinds: "Mapping[str, Mapping[str, float]]",
    out: Path,
    parts: "Mapping[str, int]",
) -> "RenderableType":
    import math

    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    recipe, outputs = made.recipe, kinds["total"]["measured"] > 0
    table = Table(title=f"{made.base.name}, {recipe.label} ({recipe.name})")
    table.add_column("layer")
    for heading in ("layers", "weights", "bits/weight", "relative MSE"):
        table.add_column(heading, justify="right")
    if outputs:
        table.add_column("output MSE", justify="right")
    for kind, sums in kinds.items():
        if not sums["weights"]:  # the blocks stay as they are
            continue
        cells = [
            kind,
            f"{sums['layers']:.0f}",
            f"{sums['weights']:,.0f}",
            f"{sums['bits'] / sums['weights']:.4f}",
            "by token" if math.isnan(sums["error"]) else f"{_relative(sums):.3e}",
        ]
        if outputs:
            known = sums["measured"]
            cells.append(f"{sums['output'] / known:.3e}" if known else "")
        table.add_row(*cells)
    notes = list(made.notes)
    lines = [f"note: {note}" for note in notes[:_NOTES]]
    if len(notes) > _NOTES:
        lines.append(f"and {len(notes) - _NOTES} more notes; --json has them")
    return Group(table, *map(Text, [*lines, _peak(parts), f"wrote {out}"]))


def _peak(parts: "Mapping[str, int]") -> str:
    largest = sorted(parts.items(), key=lambda part: -part[1])
    shown = [f"{what} {size / 2**20:.0f}" for what, size in largest if size >= 2**20]
    return (
        f"peak memory: at most about {sum(parts.values()) / 2**20:.0f} MiB beside the program's "
        f"own ({', '.join(shown)})"
    )
