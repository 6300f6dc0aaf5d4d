"""The command line: one command per file in bitwright/commands/."""

import sys
from importlib import import_module
from typing import Annotated

import typer

import bitwright

COMMANDS = (
    "codesign",
    "report",
    "quantize",
    "evaluate",
    "accuracy",
    "ranges",
    "super_weights",
    "verify",
    "mutate",
    "rtl",
    "synth",
    "energy",
    "simulate",
    "sweep",
    "search",
    "terms",
    "generate",
    "paper",
    "models",
    "bench",
)

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="From an LLM's weights to accuracy, latency, area and verified RTL.",
)


def _version(wanted: bool) -> None:
    if wanted:
        print(f"bitwright {bitwright.__version__}")
        raise typer.Exit


@app.callback()
def _top(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


for _name in COMMANDS:
    _module = import_module(f"bitwright.commands.{_name}")
    _target = getattr(_module, _name)
    if isinstance(_target, typer.Typer):  # a command with its own subcommands
        app.add_typer(_target, name=_name)
    else:
        app.command(name=_name.replace("_", "-"))(_target)


def main() -> None:
    """Run the command line; a user's mistake is one line on stderr and exit 2."""
    from bitwright.output import remembered
    from bitwright.quant import InputError

    try:
        with remembered(sys.argv[1:]):
            app()
    except InputError as error:
        print(f"bitwright: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("bitwright: interrupted", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
