"""`bitwright accuracy`: the papers' algorithms on one model, and their orderings checked."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import RenderableType

    from bitwright.experiments import StudyRow, Verdict

_TITLES = {
    "bitmod": "weights alone: algorithms x formats (after BitMoD, Tables VI and XI)",
    "dint": "W4A8, weights per channel: scale search and GPTQ (after dINT, AQAS and SLAC)",
    "abq": "WxAy, weights per channel: distribution correction and bit balance (after ABQ-LLM)",
}


def accuracy(
    table: Annotated[str, typer.Argument(help="bitmod, dint, abq or all.")] = "all",
    model: Annotated[str, typer.Option(help="smollm2, tiny, a GGUF file or a folder.")] = "smollm2",
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for the rows; the same command again goes on behind the last."),
    ] = None,
    text: Annotated[Path | None, typer.Option(help="UTF-8 text to read instead.")] = None,
    calibration_text: Annotated[
        Path | None, typer.Option(help="UTF-8 text to calibrate on instead.")
    ] = None,
    tokens: Annotated[int, typer.Option(help="Tokens to read; whole windows count.")] = 2048,
    window: Annotated[int, typer.Option(help="Context length.")] = 512,
    calibration_tokens: Annotated[int, typer.Option(help="Tokens to calibrate on.")] = 4096,
    epochs: Annotated[int, typer.Option(help="Of the learned methods.")] = 4,
    seed: Annotated[int, typer.Option(help="Of the calibration.")] = 0,
    committed: Annotated[
        bool, typer.Option("--committed", help="Show the rows that ship with the package.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Quantise a model with every algorithm and format of the papers' tables and compare.

    With --out the rows are made (the default model: more than an hour on two cores) and written as
    they are finished; with --committed the table that ships with the package is shown.
    """
    from dataclasses import asdict

    from bitwright.experiments import accuracy_study as study
    from bitwright.output import progress_bar, show
    from bitwright.quant import InputError, load_calibration_text, load_model, load_text

    if table not in (*_TITLES, "all"):
        raise InputError(f"table {table!r} is unknown; choose {', '.join(_TITLES)} or all")
    tables = tuple(_TITLES) if table == "all" else (table,)
    paths: list[Path] = []
    if committed:
        rows = [row for row in study.read_rows(study.COMMITTED) if row.table in tables]
    else:
        if out is None:
            raise InputError("--out is missing: name a folder for the rows, or use --committed")
        if tokens < window:
            raise InputError(
                f"--tokens {tokens} are less than one window of {window}; ask for more tokens or a "
                "shorter --window"
            )
        if calibration_tokens < 1 or epochs < 1 or seed < 0:
            raise InputError(
                "--calibration-tokens and --epochs must be at least 1, --seed not negative"
            )
        with progress_bar("accuracy") as progress:
            loaded = load_model(model)
            config = study.StudyConfig(
                window=window,
                tokens=tokens,
                calibration_tokens=calibration_tokens,
                long_length=min(2048, loaded.config.context),
                learn_epochs=epochs,
                seed=seed,
            )
            rows = study.run_study(
                loaded,
                out,
                config,
                tables,
                load_text(text),
                load_calibration_text(calibration_text),
                progress,
            )
        paths = study.write_study(rows, out)
    verdicts = study.check_claims(rows)
    document = {
        "rows": [asdict(row) for row in rows],
        "claims": [
            {**asdict(verdict.claim), "reproduced": verdict.reproduced, "numbers": verdict.numbers}
            for verdict in verdicts
        ],
        "files": [str(path) for path in paths],
    }
    show(document, as_json, _tables(rows, verdicts, paths))


def _tables(
    rows: "list[StudyRow]", verdicts: "list[Verdict]", paths: list[Path]
) -> "RenderableType":
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    from bitwright.experiments import accuracy_study as study

    parts: list[RenderableType] = []
    for name, title in _TITLES.items():
        own = [row for row in rows if row.table == name]
        if not own:
            continue
        shown = Table(title=title, title_justify="left")
        shown.add_column("weights")
        shown.add_column("method")
        for heading in ("bits", "perplexity", "KL", "top-1", "s"):
            shown.add_column(heading, justify="right")
        for row in own:
            shown.add_row(
                row.weights,
                row.method,
                f"{row.bits_per_weight:.3f}",
                study.show_perplexity(row.perplexity),
                f"{row.kl:.4f}",
                f"{100 * row.top1:.1f} %",
                f"{row.seconds:.0f}",
            )
        parts.append(shown)
    if verdicts:
        checked = Table(title="what the papers say", title_justify="left", show_lines=True)
        for heading in ("paper", "says", "here", "perplexities"):
            checked.add_column(heading)
        for verdict in verdicts:
            pairs = len(verdict.claim.pairs)
            word = "reproduced" if verdict.reproduced else f"not ({verdict.holds} of {pairs})"
            checked.add_row(verdict.claim.source, verdict.claim.says, word, verdict.numbers)
        parts.append(checked)
    if rows:
        by = rows[0].made_by
        size = by["config"]
        parts.append(
            Text(
                f"{by['model']} on {by['text']}: {size['tokens']} tokens, windows of "
                f"{size['window']}, no begin token; calibrated on {by['calibration_text']}: "
                f"{size['calibration_tokens']} tokens in sequences of {size['window']} (SLAC and "
                f"the first table) or {size['long_length']}; learned methods: "
                f"{size['learn_sequences']} x {size['learn_length']} tokens, "
                f"{size['learn_epochs']} epochs"
            )
        )
    parts += [Text(str(path)) for path in paths]
    return Group(*parts)
