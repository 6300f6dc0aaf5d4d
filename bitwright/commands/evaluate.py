"""`bitwright evaluate`: how well a model under one recipe still reads a text."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

if TYPE_CHECKING:
    from rich.console import RenderableType

    from bitwright.experiments import Evaluation


def evaluate(
    model: Annotated[str, typer.Option(help="smollm2, tiny, a GGUF file or a folder.")] = "smollm2",
    recipe: Annotated[
        str | None, typer.Option(help="fp16 (the default), w4a8-dint, w3g128-bitmod, ...")
    ] = None,
    quantized: Annotated[
        Path | None, typer.Option(help="A folder or file of `bitwright quantize`, not a recipe.")
    ] = None,
    text: Annotated[Path | None, typer.Option(help="UTF-8 text to read instead.")] = None,
    dataset: Annotated[str | None, typer.Option(help="wikitext2, when online.")] = None,
    tokens: Annotated[int, typer.Option(help="Tokens to read; whole windows count.")] = 4096,
    window: Annotated[int, typer.Option(help="Context length.")] = 512,
    arithmetic: Annotated[str, typer.Option(help="fake (float32) or pe (bit-exact).")] = "fake",
    pe: Annotated[
        str | None, typer.Option(help="PE that runs all layers; chosen by formats otherwise.")
    ] = None,
    split: Annotated[
        bool | None,
        typer.Option(
            "--split/--no-split",
            help="Split the change in perplexity into format, activations, cache, accumulator and "
            "scale unit. Default: with --arithmetic pe; it doubles the time on the PE.",
        ),
    ] = None,
    compare: Annotated[
        bool,
        typer.Option(
            "--compare", help="KL divergence, top-1 agreement and error behind each block."
        ),
    ] = False,
    calibration_text: Annotated[
        Path | None, typer.Option(help="UTF-8 text to calibrate on instead.")
    ] = None,
    calibration_sequences: Annotated[
        int | None, typer.Option(help="Sequences; 128, or as many as the text has.")
    ] = None,
    calibration_length: Annotated[
        str | None,
        typer.Option(help="Tokens of a sequence (512), or slac: as long as --window."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Chooses the calibration sequences.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Perplexity of a model under one recipe, with float or with the PEs' arithmetic.

    With --arithmetic pe every block linear runs through the model of a processing element, bit by
    bit as in hardware. The split then measures a ladder of perplexities: the unquantised model; the
    weights' format; activations as the PE takes them; the cache, if it is quantised; the PE's
    accumulator with exact scales; and its own scaling.
    """
    from bitwright.experiments import Arithmetic, plan_calibration
    from bitwright.experiments import evaluate as run
    from bitwright.output import progress_bar, show
    from bitwright.quant import (
        InputError,
        load_calibration_text,
        load_model,
        load_quantized,
        load_text,
        resolve_recipe,
    )

    if text is not None and dataset is not None:
        raise InputError("--text and --dataset exclude each other; give one of them")
    calibrated = {
        "--calibration-text": calibration_text,
        "--calibration-sequences": calibration_sequences,
        "--calibration-length": calibration_length,
        "--seed": seed or None,
    }
    given = [option for option, value in calibrated.items() if value is not None]
    if quantized is not None and recipe is not None:
        raise InputError("--quantized and --recipe exclude each other; give one of them")
    if quantized is not None and given:
        raise InputError(f"--quantized is a finished model; leave {' and '.join(given)} out")
    if pe is not None and arithmetic == "fake":
        raise InputError(f"--pe {pe} needs --arithmetic pe")
    if split and arithmetic == "fake":
        raise InputError("--split needs --arithmetic pe")
    if seed < 0:
        raise InputError(f"--seed is {seed}; 0 or more")
    if calibration_sequences is not None and calibration_sequences < 1:
        raise InputError(
            f"--calibration-sequences is {calibration_sequences}; at least 1, 128 is usual"
        )
    length = _length(calibration_length)
    wanted = None if quantized is not None else resolve_recipe(recipe or "fp16")
    source = load_text(dataset or text)
    calibration_source = load_calibration_text(calibration_text)
    with progress_bar("evaluate") as progress:
        loaded = load_model(model, progress)
        calibration = None
        if given:
            calibration = plan_calibration(
                loaded,
                window,
                sequences=calibration_sequences,
                length=length,
                seed=seed,
                text=calibration_source,
            )
        answer = run(
            loaded,
            wanted,
            text=source,
            max_tokens=tokens,
            window=window,
            arithmetic=cast(Arithmetic, arithmetic),
            pe=pe,
            split=arithmetic == "pe" if split is None else split,
            compare=compare,
            calibration=calibration,
            calibration_text=calibration_source,
            quantized=None if quantized is None else load_quantized(quantized, loaded),
            progress=progress,
        )
    show({**_document(answer), "seed": seed, "model_source": loaded.source}, as_json, _view(answer))


def _length(written: str | None) -> int | Literal["slac"] | None:
    from bitwright.quant import InputError

    if written is None:
        return None
    if written == "slac":
        return "slac"
    if not (written.isascii() and written.isdigit() and int(written) >= 2):
        raise InputError(
            f"--calibration-length is {written!r}; a number of tokens from 2, or slac for --window"
        )
    return int(written)


def _document(answer: "Evaluation") -> dict[str, Any]:
    """What --json prints; what was not asked for is null."""
    import math
    from dataclasses import asdict

    import bitwright
    from bitwright.experiments import commit

    result, agreed = answer.result, answer.agreement
    calibration = None
    if answer.calibration is not None:
        calibration = {"text": answer.calibration_text, **answer.calibration.model_dump()}
    document: dict[str, Any] = {
        "model": answer.model,
        "recipe": answer.recipe.name,
        "arithmetic": answer.arithmetic,
        "perplexity": result.perplexity,
        "tokens": result.tokens,
        "predicted_tokens": result.predicted_tokens,
        "window": result.window,
        "bits_per_weight": answer.bits_per_weight,
        "nominal_bits": answer.nominal_bits,
        "text": result.text_name,
        "bos": result.bos,
        "pe": list(answer.pes),
        "pe_macs": answer.macs,
        "parts": [asdict(part) for part in answer.parts] or None,
        "kl": None if agreed is None else agreed.kl,
        "top1": None if agreed is None else agreed.top1,
        "block_errors": None if agreed is None else list(agreed.block_errors),
        "reference_perplexity": None if agreed is None else agreed.reference_perplexity,
        "perplexity_ratio_interval": None,
        "calibration": calibration,
        "notes": list(answer.notes),
        "config": answer.recipe.model_dump(),
        "version": bitwright.__version__,
        "commit": commit(),
    }
    if agreed is not None and not math.isnan(agreed.ratio_interval[0]):
        document["perplexity_ratio_interval"] = list(agreed.ratio_interval)
    return document


def _view(answer: "Evaluation") -> "RenderableType":
    """The tables for people, and the notes."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    result, agreed = answer.result, answer.agreement
    table = Table(title=f"{answer.model} on {result.text_name}")
    columns = ["recipe", "arithmetic", "bits/weight", "tokens", "window", "perplexity"]
    cells = [
        answer.recipe.name,
        " ".join([answer.arithmetic, *(f"({name})" for name in answer.pes)]),
        f"{answer.bits_per_weight:.3f}",
        str(result.tokens),
        str(result.window),
        f"{result.perplexity:.4f}",
    ]
    if agreed is not None:
        columns += ["KL, nats", "top-1"]
        cells += [f"{agreed.kl:.5f}", f"{agreed.top1:.2%}"]
    for column in columns:
        table.add_column(column, justify="left" if column in ("recipe", "arithmetic") else "right")
    table.add_row(*cells)
    views: list[RenderableType] = [table]
    if answer.parts:
        parts = Table(title="where the change comes from")
        parts.add_column("step")
        for column in ("perplexity", "change", "change, nats/token"):
            parts.add_column(column, justify="right")
        first, last = answer.parts[0], answer.parts[-1]
        for part in answer.parts:
            changes = (f"{part.perplexity_change:+.6f}", f"{part.nll_change:+.3e}")
            parts.add_row(
                part.name, f"{part.perplexity:.6f}", *(changes if part is not first else ("", ""))
            )
        parts.add_section()
        parts.add_row(
            "all",
            f"{last.perplexity:.6f}",
            f"{last.perplexity - first.perplexity:+.6f}",
            f"{last.nll - first.nll:+.3e}",
        )
        views.append(parts)
    if agreed is not None and agreed.block_errors:
        errors = Table()
        errors.add_column("block", justify="right")
        errors.add_column("relative squared error behind it", justify="right")
        for layer, error in enumerate(agreed.block_errors):
            errors.add_row(str(layer), f"{error:.3e}")
        views.append(errors)
    views += [Text(f"note: {note}") for note in answer.notes]
    return Group(*views)
