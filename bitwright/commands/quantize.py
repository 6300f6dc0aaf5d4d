"""`bitwright quantize`: a model's linear layers, packed to their true bits in one file."""

from pathlib import Path
from typing import Annotated

import typer


def quantize(
    out: Annotated[Path, typer.Option(help="File to write; its name ends in .safetensors.")],
    model: Annotated[
        str, typer.Option(help="smollm2, tiny, a GGUF file or a model folder.")
    ] = "smollm2",
    recipe: Annotated[
        str, typer.Option(help="Such as bitmod3, int4-asym or w4g64-int-sym.")
    ] = "bitmod3",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Quantise a model's linear layers and write them, bit-packed, to a safetensors file.

    The table gives, by kind of layer, the number of layers and weights, the true bits per weight
    (all metadata counted) and the mean-square error relative to the weights' mean square.
    """
    import numpy as np
    from rich.table import Table

    import bitwright
    from bitwright.output import progress_bar, show
    from bitwright.quant import (
        InputError,
        load_model,
        quantize_model,
        resolve_recipe,
        save_tensors,
    )

    chosen = resolve_recipe(recipe)
    if chosen.format is None:
        raise InputError("--recipe fp16 leaves the weights as they are; there is nothing to write")
    if out.suffix != ".safetensors":
        raise InputError(f"--out {out} must end in .safetensors")
    if not out.parent.is_dir():
        raise InputError(f"--out {out}: the folder {out.parent} does not exist; make it first")
    loaded = load_model(model)
    with progress_bar("quantise") as progress:
        tensors = quantize_model(loaded, chosen, progress)
    save_tensors(
        out,
        tensors,
        {"model": loaded.name, "recipe": chosen.name, "version": bitwright.__version__},
    )

    # Kind of layer ("attn.q") -> layers, weights, stored bits, squares of error and of weights.
    sums: dict[str, np.ndarray] = {}
    for name, tensor in tensors.items():
        w = np.asarray(loaded.weight(name))
        weights, power = tensor.n * tensor.k, float(np.square(w, dtype=np.float64).sum())
        bits = tensor.bits_per_weight * weights
        row = np.array([1, weights, bits, tensor.relative_mse(w) * power, power])
        kind = ".".join(name.split(".")[2:]) or name
        sums[kind] = sums.get(kind, 0) + row
    total = np.sum(list(sums.values()), axis=0)
    table = Table(title=f"{loaded.name}, {chosen.label} ({chosen.name})", caption=f"wrote {out}")
    table.add_column("layer")
    for heading in ("layers", "weights", "bits/weight", "relative MSE"):
        table.add_column(heading, justify="right")
    for kind, row in [*sums.items(), ("total", total)]:
        layers, weights, bits, error, power = row
        table.add_row(
            kind,
            f"{layers:.0f}",
            f"{weights:,.0f}",
            f"{bits / weights:.4f}",
            f"{error / power if power else 0:.3e}",
        )
    layers, weights, bits, error, power = total.tolist()
    show(
        {
            "model": loaded.name,
            "recipe": chosen.name,
            "bits_per_weight": bits / weights,
            "layers": int(layers),
            "weights": int(weights),
            "relative_mse": error / power if power else 0.0,
            "file": str(out),
        },
        as_json,
        table,
    )
