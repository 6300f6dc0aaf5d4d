"""`bitwright evaluate`: the perplexity of one recipe."""

from pathlib import Path
from typing import Annotated

import typer


def evaluate(
    model: Annotated[str, typer.Option(help="smollm2, tiny, a GGUF file or a folder.")] = "smollm2",
    recipe: Annotated[str, typer.Option(help="fp16, w4g64-int-sym, w3g128-bitmod, ...")] = "fp16",
    text: Annotated[Path | None, typer.Option(help="UTF-8 text to read instead.")] = None,
    dataset: Annotated[str | None, typer.Option(help="wikitext2, when online.")] = None,
    tokens: Annotated[int, typer.Option(help="Tokens to read; whole windows count.")] = 4096,
    window: Annotated[int, typer.Option(help="Context length.")] = 512,
    arithmetic: Annotated[str, typer.Option(help="fake (float32) or pe (bit-exact).")] = "fake",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Perplexity of a model under one recipe, with float or with the PE's arithmetic."""
    from typing import cast

    from rich.table import Table

    from bitwright.experiments import Arithmetic
    from bitwright.experiments import evaluate as run
    from bitwright.output import progress_bar, show
    from bitwright.quant import InputError, load_model, load_text, resolve_recipe

    if text is not None and dataset is not None:
        raise InputError("--text and --dataset exclude each other; give one of them")
    wanted = resolve_recipe(recipe)
    source = load_text(dataset or text)
    with progress_bar("evaluate") as progress:
        loaded = load_model(model, progress)
        answer = run(
            loaded,
            wanted,
            text=source,
            max_tokens=tokens,
            window=window,
            arithmetic=cast(Arithmetic, arithmetic),
            progress=progress,
        )
    result = answer.result
    document = {
        "model": answer.model,
        "recipe": answer.recipe.name,
        "arithmetic": answer.arithmetic,
        "perplexity": result.perplexity,
        "tokens": result.tokens,
        "predicted_tokens": result.predicted_tokens,
        "window": result.window,
        "bits_per_weight": answer.bits_per_weight,
        "text": result.text_name,
        "bos": result.bos,
        "pe_macs": answer.macs,
        "config": answer.recipe.model_dump(),
        "model_source": loaded.source,
    }
    table = Table(title=f"{answer.model} on {result.text_name}")
    for column in ("recipe", "arithmetic", "bits/weight", "tokens", "window", "perplexity"):
        table.add_column(
            column, justify="right" if column not in ("recipe", "arithmetic") else "left"
        )
    table.add_row(
        answer.recipe.name,
        answer.arithmetic,
        f"{answer.bits_per_weight:.3f}",
        str(result.tokens),
        str(result.window),
        f"{result.perplexity:.4f}",
    )
    show(document, as_json, table)
