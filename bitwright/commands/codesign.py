"""`bitwright codesign`: the main job, from a model's weights to silicon cost."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import RenderableType

    from bitwright.experiments import Codesign, ZooRow


def codesign(
    model: Annotated[str, typer.Option(help="smollm2, tiny, a GGUF file or a folder.")] = "smollm2",
    recipes: Annotated[
        str | None,
        typer.Option(
            help="Comma-separated recipes instead of the default ten; zoo: one of each method."
        ),
    ] = None,
    group_size: Annotated[int, typer.Option(help="Weights per scale in the default recipes.")] = 64,
    text: Annotated[Path | None, typer.Option(help="UTF-8 text for the perplexity.")] = None,
    dataset: Annotated[str | None, typer.Option(help="wikitext2, when online.")] = None,
    tokens: Annotated[int, typer.Option(help="Tokens to read per recipe.")] = 4096,
    window: Annotated[int, typer.Option(help="Context length.")] = 512,
    calibration_sequences: Annotated[
        int | None,
        typer.Option(
            help="Sequences that methods are calibrated on. [default: 128, or as many as the text "
            "has; for the zoo 32]"
        ),
    ] = None,
    calibration_length: Annotated[
        int | None, typer.Option(help="Tokens of a sequence; 512.")
    ] = None,
    prefill: Annotated[int, typer.Option(help="Prompt length on the accelerator.")] = 256,
    context: Annotated[int, typer.Option(help="Positions attended to by a decode step.")] = 256,
    technology: Annotated[str, typer.Option(help="nangate45, sky130hd or asap7.")] = "nangate45",
    rows: Annotated[int, typer.Option(help="Rows of the bitmod array: tokens side by side.")] = 32,
    cols: Annotated[int, typer.Option(help="Columns: output channels side by side.")] = 32,
    energy_layers: Annotated[
        int, typer.Option(help="Layers whose tensors the logic's energy is measured on; 0: none.")
    ] = 1,
    voltage: Annotated[
        float | None, typer.Option(help="Supply of the logic in V. [default: the technology's]")
    ] = None,
    post_layout: Annotated[
        float, typer.Option(help="Factor on the logic's energy for what layout adds.")
    ] = 1.0,
    verify: Annotated[bool, typer.Option(help="Verify the RTL in the same run.")] = True,
    seed: Annotated[
        int, typer.Option(help="Seed of the verification vectors and the calibration.")
    ] = 0,
    out: Annotated[
        Path | None, typer.Option(help="Folder for results and figures. [default: results]")
    ] = None,
    committed: Annotated[
        bool,
        typer.Option(
            "--committed",
            help="With --recipes zoo: the rows that ship with the package; --out draws them.",
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print results.json.")] = False,
) -> None:
    """Accuracy, true bits, latency, traffic, energy and area of recipes on one model.

    A run that was interrupted goes on where it stopped: what was quantised and measured is kept.
    """
    if committed:
        _committed(recipes, out, as_json)
        return
    from rich.console import Group

    from bitwright.default_model import load_or_tiny
    from bitwright.experiments import (
        ZOO_SEQUENCES,
        CodesignConfig,
        default_recipes,
        plan_calibration,
        write_results,
        zoo_recipes,
    )
    from bitwright.experiments import codesign as run
    from bitwright.output import command_line, progress_bar, show
    from bitwright.quant import (
        InputError,
        load_text,
        output_folder,
        resolve_recipe,
    )

    if text is not None and dataset is not None:
        raise InputError("--text and --dataset exclude each other; give one of them")
    for name, value in (("--prefill", prefill), ("--context", context), ("--rows", rows)):
        if value < 1:
            raise InputError(f"{name} is {value}; at least 1")
    if energy_layers < 0:
        raise InputError(f"--energy-layers is {energy_layers}; at least 0, 0 measures nothing")
    if group_size < 1:
        raise InputError(f"--group-size is {group_size}; at least 1, 64 or 128 are usual")
    if calibration_sequences is not None and calibration_sequences < 1:
        raise InputError(
            f"--calibration-sequences is {calibration_sequences}; at least 1, 128 is usual"
        )
    if calibration_length is not None and calibration_length < 2:
        raise InputError(f"--calibration-length is {calibration_length}; at least 2, 512 is usual")
    if seed < 0:
        raise InputError(f"--seed is {seed}; at least 0")
    folder = Path("results") if out is None else out
    chosen = default_recipes(group_size)
    if recipes == "zoo":
        calibration_sequences = calibration_sequences or ZOO_SEQUENCES
    elif recipes:
        chosen = tuple(resolve_recipe(name.strip()) for name in recipes.split(","))
    source = load_text(dataset or text)
    output_folder(folder)
    with progress_bar("codesign") as progress:
        loaded = load_or_tiny(model, progress)
        if recipes == "zoo":
            chosen = zoo_recipes(loaded.config.vocab)
        calibration = None
        if not (calibration_sequences is None and calibration_length is None and seed == 0):
            calibration = plan_calibration(
                loaded,
                window,
                sequences=calibration_sequences,
                length=calibration_length,
                seed=seed,
            )
        config = CodesignConfig(
            recipes=chosen,
            max_tokens=tokens,
            window=window,
            prefill_tokens=prefill,
            context=context,
            technology=technology,
            rows=rows,
            cols=cols,
            verify_level="quick" if verify else None,
            seed=seed,
            calibration=calibration,
            energy_layers=energy_layers,
            voltage=voltage,
            post_layout=post_layout,
        )
        answer = run(loaded, config, source, progress, command_line())
    paths = write_results(answer, folder)
    footer = _footer(answer) + "".join(f"\n{path}" for path in paths.values())
    show(answer.document(), as_json, Group(_table(answer), footer))
    if answer.meta["verification"]["mismatches"]:
        raise typer.Exit(1)


def _committed(recipes: str | None, out: Path | None, as_json: bool) -> None:
    """Show the zoo's rows that ship with the package."""
    from bitwright.experiments import read_zoo_rows, write_bits_figure
    from bitwright.output import show
    from bitwright.quant import InputError

    if recipes != "zoo":
        given = "not given" if recipes is None else repr(recipes)
        raise InputError(
            f"--committed is for --recipes zoo, which is {given}; the zoo's rows alone ship with "
            "the package"
        )
    rows = read_zoo_rows()
    paths = {} if out is None else write_bits_figure(rows, out)
    document = {
        "rows": [row.document() for row in rows],
        "files": [str(path) for path in paths.values()],
    }
    show(document, as_json, _zoo_table(rows, list(paths.values())))


def _zoo_table(rows: "list[ZooRow]", paths: list[Path]) -> "RenderableType":
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    from bitwright.experiments import show_perplexity

    by = rows[0].made_by
    table = Table(
        title=f"{by['model']} on {by['text']}: {by['tokens']} tokens, windows of {by['window']}"
    )
    table.add_column("recipe", overflow="fold")
    for name in ("nominal", "bits", "perplexity"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("PE", no_wrap=True)
    for name in ("prefill ms", "mJ", "decode ms", "mJ"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        kept = f" ({100 * row.parameters_kept:.1f} % kept)" if row.parameters_kept < 1 else ""
        table.add_row(
            row.recipe + kept,
            f"{row.nominal_bits:.2f}",
            f"{row.bits_per_weight:.3f}",
            show_perplexity(row.perplexity),
            row.pe,
            f"{row.prefill['latency_s'] * 1e3:.2f}",
            _energy(row.prefill["energy_uJ"])[0],
            f"{row.decode['latency_s'] * 1e3:.2f}",
            _energy(row.decode["energy_uJ"])[0],
        )
    texts = dict.fromkeys(
        f"{used['sequences']} x {used['length']} tokens, seed {used['seed']}"
        for used in (row.calibration for row in rows)
        if used is not None
    )
    ran: dict[str, list[str]] = {}
    for row in rows:
        ran.setdefault(row.entry.ran, []).append(row.recipe)
    lines = [
        "what ran of the papers:",
        *(f"  {what}: {', '.join(recipes)}" for what, recipes in ran.items()),
        f"prefill of {by['prefill_tokens']} tokens and one decode step at {by['context']} "
        f"positions; {by['comparison']} of {by['clock_ps']:.0f} ps, {by['technology']}",
        f"model: {by['model_source']}",
        f"methods that need data: {by['calibration_text']}: {' or '.join(texts) or 'none'}",
        f"measured with bitwright {by['bitwright']}, commit "
        f"{', '.join(dict.fromkeys(row.made_by['commit'] for row in rows))}, seed {by['seed']}; "
        "--json has the sources of every row",
        *map(str, paths),
    ]
    return Group(table, Text("\n".join(lines)))


def _table(answer: "Codesign") -> Any:
    from rich.table import Table

    meta = answer.meta
    table = Table(
        title=f"{meta['model']} on {meta['text']}: {meta['tokens']} tokens, windows of "
        f"{meta['window']}"
    )
    # Names of methods with options can be long: they fold where the table would not fit.
    own = any(record["compressed"] for record in answer.records)
    smaller = any(record["parameters_kept"] < 1 for record in answer.records)
    table.add_column("recipe", no_wrap=not (own or smaller), overflow="fold")
    columns = (["kept"] if smaller else []) + (["nominal"] if own else []) + ["bits", "perplexity"]
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("PE", no_wrap=True)
    for name in ("prefill ms", "mJ", "logic", "decode ms", "MB", "mJ", "logic"):
        table.add_column(name, justify="right", no_wrap=True)
    for record in answer.records:
        prefill, decode = record["prefill"], record["decode"]
        table.add_row(
            record["recipe"],
            *([f"{100 * record['parameters_kept']:.1f} %"] if smaller else []),
            *([f"{record['nominal_bits']:.2f}"] if own else []),
            f"{record['bits_per_weight']:.3f}",
            f"{record['perplexity']:.2f}",
            record["pe"],
            f"{prefill['latency_s'] * 1e3:.2f}",
            *_energy(prefill["energy_uJ"]),
            f"{decode['latency_s'] * 1e3:.2f}",
            f"{decode['dram_bytes'] / 1e6:.1f}",
            *_energy(decode["energy_uJ"]),
        )
    return table


def _energy(energy: dict[str, Any]) -> tuple[str, str]:
    """All of it in mJ, and the part that is logic."""
    if energy["total"] is None:
        return "-", "-"
    share = 100 * energy["logic"] / energy["total"]
    return f"{energy['total'] * 1e-3:.2f}", f"{share:.0f} %"


def _footer(answer: "Codesign") -> str:
    from bitwright.experiments import CalibrationCard

    meta = answer.meta
    checks = meta["verification"]
    if checks["level"] is None:
        verified = "RTL not verified in this run (--no-verify)"
    else:
        pes = "both" if len(meta["area_source"]) == 2 else "all"
        verified = (
            f"RTL of {pes} PEs verified, level {checks['level']}: {checks['vectors']} vectors, "
            f"{checks['mismatches']} mismatches"
        )
    shapes = {
        record["pe"]: " and ".join(
            f"{record[phase]['config']['rows']} x {record[phase]['config']['cols']} in {phase}"
            for phase in ("prefill", "decode")
        )
        for record in answer.records
    }
    areas = {record["pe"]: record["area_mm2"] for record in answer.records}
    arrays = "; ".join(
        f"{pe} PEs {shape}, {areas[pe]:.2f} mm2 with SRAM" for pe, shape in shapes.items()
    )
    noted: dict[str, list[str]] = {}
    for record in answer.records:
        for note in record["decode"]["notes"]:
            noted.setdefault(note, []).append(record["recipe"])
    notes = "".join(f"{', '.join(names)}: {note}\n" for note, names in noted.items())
    first = answer.records[-1]
    card = CalibrationCard(**meta["card"][first["recipe"]])
    return (
        f"{verified}\n"
        f"prefill of {meta['prefill_tokens']} tokens and one decode step at {meta['context']} "
        f"positions on {arrays}\n"
        f"{meta['comparison']} of {meta['clock_ps']:.0f} ps; PE area and clock from synthesis on "
        f"{meta['technology']}; energy is that of logic, SRAM, DRAM and leakage\n"
        f"{notes}"
        f"model: {meta['model_source']}\n"
        + "\n".join(card.lines())
        + f"\nthe card is that of {first['recipe']}; results.json has all of them, and the source "
        "of every number"
    )
