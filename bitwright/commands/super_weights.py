"""`bitwright super-weights`: the few weights that a model cannot lose, and what they are worth."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import RenderableType

    from bitwright.experiments import SuperWeightStudy


def super_weights(
    model: Annotated[str, typer.Option(help="smollm2, tiny, a GGUF file or a folder.")] = "smollm2",
    recipe: Annotated[
        str, typer.Option(help="Rounding to nearest, with and without them restored.")
    ] = "w4-int-sym",
    threshold: Annotated[
        float, typer.Option(help="What input and output of ffn.down both exceed, absolute.")
    ] = 50.0,
    most: Annotated[int, typer.Option(help="Super weights per block at most.")] = 4,
    share: Annotated[
        float, typer.Option(help="Of the output's spike that a super weight makes up at least.")
    ] = 0.5,
    prompt: Annotated[int, typer.Option(help="Tokens of the pass that finds them.")] = 512,
    others: Annotated[int, typer.Option(help="Largest other weights removed together.")] = 1000,
    text: Annotated[Path | None, typer.Option(help="UTF-8 text for the perplexity.")] = None,
    tokens: Annotated[int, typer.Option(help="Tokens to read each time.")] = 4096,
    window: Annotated[int, typer.Option(help="Context length.")] = 512,
    seed: Annotated[int, typer.Option(help="Chooses the prompt and the random weights.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Super weights by one forward pass, and perplexity without them (Yu et al., 2411.07191).

    Each is removed alone, then all; to compare, as many random weights of about their size, and the
    largest other weights. Then rounding to nearest with and without them restored in FP16.
    """
    from bitwright.experiments import super_weight_study
    from bitwright.output import progress_bar, show
    from bitwright.quant import InputError, load_model, load_text

    for option, value, least in (
        ("--most", most, 1),
        ("--prompt", prompt, 2),
        ("--others", others, 1),
        ("--seed", seed, 0),
    ):
        if value < least:
            raise InputError(f"{option} is {value}; at least {least}")
    if not threshold > 0:
        raise InputError(f"--threshold is {threshold:g}; above 0, 50 is usual")
    if not 0 <= share <= 1:
        raise InputError(f"--share is {share:g}; from 0 to 1")
    source = load_text(text)
    with progress_bar("super weights") as progress:
        study = super_weight_study(
            load_model(model, progress),
            text=source,
            max_tokens=tokens,
            window=window,
            threshold=threshold,
            most=most,
            share=share,
            prompt=prompt,
            others=others,
            recipe=recipe,
            seed=seed,
            progress=progress,
        )
    show(study.document(), as_json, _view(study))


def _view(study: "SuperWeightStudy") -> "RenderableType":
    from rich.console import Group
    from rich.table import Table

    meta = study.meta
    found = Table(
        title=f"{meta['model']}: super weights of ffn.down, spikes over {meta['threshold']:g}"
    )
    for name in ("layer", "row", "column", "value", "input", "output with", "without"):
        found.add_column(name, justify="right")
    for one in study.found:
        spike = one.spike
        found.add_row(
            *(str(one.layer), str(spike.row), str(spike.column), f"{spike.value:.4f}"),
            *(f"{value:.1f}" for value in (spike.input, spike.before, spike.after)),
        )
    table = Table(title=f"perplexity on {meta['tokens']} tokens, windows of {meta['window']}")
    table.add_column("model")
    table.add_column("weights", justify="right")
    table.add_column("perplexity", justify="right")
    for what, weights, value in study.rows:
        table.add_row(what, f"{weights:,}" if weights else "", f"{value:.2f}")
    if study.found:
        return Group(found, table)
    layer, (source, output) = max(enumerate(study.largest), key=lambda row: min(row[1]))
    return Group(
        f"no super weight over {meta['threshold']:g}: the largest input and output of ffn.down "
        f"together are {source:.1f} and {output:.1f}, in layer {layer} (--threshold, --share)",
        table,
    )
