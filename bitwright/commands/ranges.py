"""`bitwright ranges`: activation ranges against the sequence length."""

from pathlib import Path
from typing import Annotated

import typer


def ranges(
    model: Annotated[str, typer.Option(help="smollm2, tiny, a GGUF file or a folder.")] = "smollm2",
    lengths: Annotated[
        str, typer.Option(help="Tokens of a sequence, with commas.")
    ] = "64,256,1024",
    tokens: Annotated[int, typer.Option(help="To read per length; whole sequences count.")] = 4096,
    text: Annotated[Path | None, typer.Option(help="UTF-8 text to read instead.")] = None,
    seed: Annotated[int, typer.Option(help="Chooses the sequences.")] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Largest inputs of the linear layers by sequence length: why calibration should match it.

    For every length and kind of input: the largest magnitude in any layer, and the mean over layers
    of the mean over tokens of a token's largest magnitude (Lee et al., EMNLP 2023, SLAC).
    """
    from dataclasses import asdict

    from rich.table import Table

    from bitwright.output import progress_bar, show
    from bitwright.quant import (
        SITES,
        InputError,
        activation_ranges,
        load_calibration_text,
        load_model,
    )

    try:
        wanted = [int(part) for part in lengths.split(",")]
    except ValueError:
        wanted = []
    if not wanted or min(wanted) < 2:
        raise InputError(
            f"--lengths {lengths!r} must be numbers of at least 2 with commas, such as 64,256,1024"
        )
    if tokens < max(wanted):
        raise InputError(
            f"--tokens {tokens} are less than one sequence of {max(wanted)}; ask for more"
        )
    source = load_calibration_text(text)
    with progress_bar("ranges") as progress:
        loaded = load_model(model, progress)
        rows = activation_ranges(loaded, wanted, tokens, source, seed, progress)
    table = Table(title=f"{loaded.name} on {source.name}: about {tokens} tokens per length")
    table.add_column("length", justify="right")
    for site in SITES:
        table.add_column(f"{site} max", justify="right")
        table.add_column("mean", justify="right")
    for length in wanted:
        cells = []
        for site in SITES:
            own = [row for row in rows if (row.length, row.site) == (length, site)]
            cells.append(f"{max(row.absmax for row in own):.1f}")
            cells.append(f"{sum(row.mean_token_absmax for row in own) / len(own):.2f}")
        table.add_row(str(length), *cells)
    document = {
        "model": loaded.name,
        "text": source.name,
        "tokens": tokens,
        "seed": seed,
        "ranges": [asdict(row) for row in rows],
    }
    show(document, as_json, table)
