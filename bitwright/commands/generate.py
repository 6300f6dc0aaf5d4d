"""`bitwright generate`: a quantised model continues a text, on packed weights."""

from enum import StrEnum
from typing import Annotated

import typer


class Head(StrEnum):
    float = "float"
    integer = "integer"


def generate(
    prompt: Annotated[str, typer.Argument(help="The text to continue.")],
    model: Annotated[str, typer.Option(help="smollm2, tiny, a GGUF file or a folder.")] = "smollm2",
    recipe: Annotated[
        str, typer.Option(help="Weights in one format, activations of symmetric integers.")
    ] = "w4g64a8-int-asym",
    tokens: Annotated[int, typer.Option(min=1, help="To write at most.")] = 50,
    head: Annotated[
        Head, typer.Option(help="Output layer: 8-bit weights times float or integer inputs.")
    ] = Head.float,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Continue a text greedily with the kernels of the processor, and say how fast that was."""
    import time

    from rich.text import Text

    from bitwright.kernels import Decoder
    from bitwright.output import progress_bar, show
    from bitwright.quant import InputError, apply_recipe, load_model

    with progress_bar("generate") as progress:
        loaded = load_model(model, progress)
        ids = loaded.tokenizer.encode(prompt)
        if not ids:
            raise InputError("PROMPT is empty; give at least a word to continue")
        if len(ids) + tokens > loaded.config.context:
            raise InputError(
                f"a prompt of {len(ids)} tokens and --tokens {tokens} do not fit the model's "
                f"context of {loaded.config.context}; ask for less"
            )
        quantized = apply_recipe(loaded, recipe, progress=progress)
        decoder = Decoder(quantized, room=len(ids) + tokens, head=head)
        decoder.read(ids[:1])  # compiles
    decoder.reset()
    start = time.perf_counter()
    first = int(decoder.read(ids).argmax())
    middle = time.perf_counter()
    written = [first, *decoder.generate([first], tokens - 1)] if tokens > 1 else [first]
    end = time.perf_counter()
    text = loaded.tokenizer.decode(written)
    document = {
        "model": loaded.name,
        "recipe": quantized.recipe.name,
        "head": head,
        "prompt": prompt,
        "text": text,
        "prompt_tokens": len(ids),
        "written_tokens": len(written),
        "prompt_tokens_per_s": len(ids) / (middle - start),
        "written_tokens_per_s": len(written[1:]) / (end - middle) if tokens > 1 else None,
    }
    typer.echo(
        f"{len(ids)} tokens read at {document['prompt_tokens_per_s']:.0f}/s"
        + (f", {tokens} written at {document['written_tokens_per_s']:.0f}/s" if tokens > 1 else ""),
        err=True,
    )
    show(document, as_json, Text(prompt + text))
