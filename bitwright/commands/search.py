"""`bitwright search`: a format for every linear, under budgets."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from rich.console import RenderableType

    from bitwright.experiments import SearchAnswer, SearchConfig
    from bitwright.quant import LanguageModel
    from bitwright.sim import LogicEnergy


def search(
    context: typer.Context,
    model: Annotated[str, typer.Option(help="smollm2, tiny, a GGUF file or a folder.")] = "smollm2",
    formats: Annotated[
        str, typer.Option(help="Formats to choose from, separated by commas.")
    ] = "bitmod3,bitmod4,int6-sym,int8-sym",
    group_size: Annotated[int, typer.Option(help="Weights per scale.")] = 64,
    scales: Annotated[
        str | None, typer.Option(help="Group scales: s8 or s16. [default: s8 on the bitmod PE]")
    ] = None,
    objective: Annotated[
        str,
        typer.Option(
            help="perplexity and one or more of bits, latency, decode-latency, energy, dram, area."
        ),
    ] = "perplexity,bits",
    max_bits: Annotated[float | None, typer.Option(help="True bits per weight.")] = None,
    max_latency_ms: Annotated[
        float | None, typer.Option(help="Of prompt and generation together.")
    ] = None,
    max_decode_latency_ms: Annotated[
        float | None, typer.Option(help="Of a token after the first.")
    ] = None,
    max_energy_uj_per_token: Annotated[
        float | None, typer.Option(help="Per generated token, the prompt's share included.")
    ] = None,
    max_area_mm2: Annotated[float | None, typer.Option(help="Array and SRAM.")] = None,
    method: Annotated[str, typer.Option(help="nsga2, greedy or both.")] = "both",
    generations: Annotated[int, typer.Option(help="Of NSGA-II.")] = 200,
    population: Annotated[int, typer.Option(help="Candidates in a generation.")] = 100,
    finalists: Annotated[
        int, typer.Option(help="Members of the front that are measured beside the knee.")
    ] = 4,
    seed: Annotated[int, typer.Option(help="Of all that is drawn.")] = 0,
    tokens: Annotated[int, typer.Option(help="Tokens to read per measurement.")] = 2048,
    window: Annotated[int, typer.Option(help="Context length.")] = 512,
    text: Annotated[Path | None, typer.Option(help="UTF-8 text for the perplexity.")] = None,
    calibration_maps: Annotated[
        int, typer.Option(help="Maps measured to calibrate the proxy, uniform ones counted.")
    ] = 16,
    calibration_sequences: Annotated[
        int | None,
        typer.Option(
            help="Sequences for the layer errors, or with --cpu for GPTQ and AWQ. "
            "[default: 4; with --cpu 32]"
        ),
    ] = None,
    kl: Annotated[
        bool, typer.Option("--kl", help="Measure the divergence from the float model too.")
    ] = False,
    prompt: Annotated[int, typer.Option(help="Tokens taken in on the accelerator.")] = 256,
    generate: Annotated[int, typer.Option(help="Tokens generated there.")] = 64,
    pe: Annotated[str, typer.Option(help="PE that runs all formats.")] = "bitmod",
    rows: Annotated[
        str | None, typer.Option(help="Rows of the array to choose from, as 16,32.")
    ] = None,
    cols: Annotated[str | None, typer.Option(help="Columns to choose from.")] = None,
    weight_buffer: Annotated[str | None, typer.Option(help="KiB to choose from.")] = None,
    activation_buffer: Annotated[str | None, typer.Option(help="KiB to choose from.")] = None,
    dram: Annotated[str | None, typer.Option(help="Interfaces to choose from, by name.")] = None,
    technology: Annotated[str, typer.Option(help="nangate45, sky130hd or asap7.")] = "nangate45",
    energy: Annotated[
        bool,
        typer.Option(
            "--energy",
            help="Measure the logic's energy for every format, slow; else SRAM and DRAM.",
        ),
    ] = False,
    cpu: Annotated[
        bool,
        typer.Option(
            "--cpu",
            help="For processors: the first INT4 recipe of RTN, GPTQ and AWQ that keeps the "
            "perplexity.",
        ),
    ] = False,
    within: Annotated[
        float, typer.Option(help="With --cpu: percent above the float model's perplexity.")
    ] = 1.0,
    order: Annotated[
        str, typer.Option(help="With --cpu: which recipe comes first, by bits or by time here.")
    ] = "bits",
    out: Annotated[Path, typer.Option(help="Folder for results and figure.")] = Path("search"),
    as_json: Annotated[bool, typer.Option("--json", help="Print search.json.")] = False,
) -> None:
    """Mixed precision: a format for every linear, within budgets of bits, time, energy and area.

    With --cpu: one INT4 recipe for all linears, chosen by perplexity, and its speed here.
    """
    _refuse_mixed(context, cpu)
    if cpu:
        _search_cpu(
            model, text, out, as_json, within=within, order=order, max_tokens=tokens,
            window=window, calibration_sequences=calibration_sequences, seed=seed,
        )  # fmt: skip
        return
    from rich.console import Group

    from bitwright.default_model import load_or_tiny
    from bitwright.experiments import SearchConfig, pe_area, run_search, write_search
    from bitwright.output import command_line, progress_bar, show
    from bitwright.quant import (
        InputError,
        load_text,
        output_folder,
    )

    given = {"rows": rows, "cols": cols, "weight_buffer_kib": weight_buffer,
             "activation_buffer_kib": activation_buffer}  # fmt: skip
    options: dict[str, tuple[Any, ...]] = {
        name: _numbers(name, written) for name, written in given.items() if written is not None
    }
    if dram is not None:
        options["dram"] = tuple(name.strip() for name in dram.split(","))
    if scales not in (None, "s8", "s16"):
        raise InputError(f"--scales is {scales!r}; s8 or s16")
    budgets = {
        "bits_per_weight": max_bits,
        "latency_s": None if max_latency_ms is None else max_latency_ms * 1e-3,
        "decode_latency_s": (
            None if max_decode_latency_ms is None else max_decode_latency_ms * 1e-3
        ),
        "energy_per_token_uJ": max_energy_uj_per_token,
        "area_mm2": max_area_mm2,
    }
    config = SearchConfig(
        formats=tuple(name.strip() for name in formats.split(",")),
        group_size=group_size,
        scale_format="fp16" if (scales or ("s8" if pe == "bitmod" else "s16")) == "s16" else "int8",
        pe=pe,
        objectives=tuple(name.strip() for name in objective.split(",")),
        budgets={name: most for name, most in budgets.items() if most is not None},
        array_options=options,
        method=method,  # type: ignore[arg-type]
        generations=generations,
        population=population,
        finalists=finalists,
        seed=seed,
        max_tokens=tokens,
        window=window,
        calibration_maps=calibration_maps,
        calibration_sequences=4 if calibration_sequences is None else calibration_sequences,
        prompt=prompt,
        generate=generate,
        kl=kl,
    )
    source = load_text(text)
    output_folder(out)
    with progress_bar("search") as progress:
        loaded = load_or_tiny(model, progress)
        answer = run_search(
            loaded,
            config,
            text=source,
            pe_area=pe_area(pe, technology),
            logic=_logic(loaded, config, technology) if energy else None,
            progress=progress,
            command=command_line(),
        )
    paths = write_search(answer, out)
    footer = _footer(answer) + "".join(f"\n{path}" for path in paths.values())
    show(answer.document(), as_json, Group(_table(answer), footer))


#: Options of the search for processors alone, and those that both searches take.
_CPU = {"within", "order"}
_SHARED = {"model", "text", "tokens", "window", "calibration_sequences", "seed", "out", "as_json"}


def _refuse_mixed(context: typer.Context, cpu: bool) -> None:
    """Options of one search do not go with the other."""
    from bitwright.quant import InputError

    for name in context.params:
        source = context.get_parameter_source(name)
        if source is None or source.name != "COMMANDLINE" or name == "cpu":
            continue
        option = f"--{name.replace('_', '-')}"
        if cpu and name not in _SHARED | _CPU:
            raise InputError(f"{option} does not go with --cpu; leave one of them out")
        if not cpu and name in _CPU:
            raise InputError(f"{option} goes with --cpu; add it, or leave {option} out")


def _search_cpu(
    model: str,
    text: Path | None,
    out: Path,
    as_json: bool,
    *,
    calibration_sequences: int | None,
    **options: Any,
) -> None:
    """Find an INT4 recipe for processors."""
    import json

    from bitwright.default_model import load_or_tiny
    from bitwright.experiments import CpuConfig, run_cpu_search
    from bitwright.output import command_line, progress_bar, show
    from bitwright.quant import load_text, output_folder, write_text

    if calibration_sequences is not None:
        options["calibration_sequences"] = calibration_sequences
    config = CpuConfig(**options)
    source = load_text(text)
    folder = output_folder(out)
    with progress_bar("search") as progress:
        loaded = load_or_tiny(model, progress)
        answer = run_cpu_search(
            loaded, config, text=source, progress=progress, command=command_line()
        )
    path = folder / "cpu.json"
    write_text(path, json.dumps(answer, indent=1, allow_nan=False) + "\n")
    show(answer, as_json, _cpu_table(answer, path))


def _cpu_table(answer: "Mapping[str, Any]", path: Path) -> "RenderableType":
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    meta, base, chosen = answer["meta"], answer["float"], answer["chosen"]
    config, machine, used = meta["config"], meta["machine"], meta["calibration"]
    table = Table(
        title=f"{meta['model']} on {meta['text']}: {config['max_tokens']} tokens, windows of "
        f"{config['window']}"
    )
    table.add_column("recipe", no_wrap=True)
    for name in ("bits", "perplexity", "above", "ms", "ms with INT8", "accepted"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_row("float", "", f"{base['perplexity']:.3f}", "", f"{base['linears_ms']:.2f}")
    for row in answer["candidates"]:
        known = row["perplexity"] is not None
        table.add_row(
            row["recipe"],
            f"{row['bits_per_weight']:.3f}",
            f"{row['perplexity']:.3f}" if known else "-",
            f"{row['above_percent']:.2f} %" if known else "-",
            f"{row['weight_only_ms']:.2f}",
            f"{row['int8_ms']:.2f}",
            "yes" if row["recipe"] == chosen["recipe"] else "no" if known else "-",
        )
    lines = [
        f"{chosen['recipe']}: {chosen['bits_per_weight']:.3f} bits, the first by "
        f"{config['order']} within {config['within']:g} % of the float model; none behind it was "
        "measured",
        f"with 8-bit activations per token and group ({chosen['int8_recipe']}): "
        f"{chosen['int8_perplexity']:.3f}, {chosen['int8_above_percent']:.2f} % above",
        f"ms: one token through all linears on {machine['processor']}, {machine['threads']} "
        f"threads; {chosen['speedup']:.1f} times as fast as torch in float32",
        f"calibrated on {meta['calibration_text']}: {used['sequences']} x {used['length']} tokens",
        str(path),
    ]
    return Group(table, Text("\n".join(lines)))


def _numbers(name: str, written: str) -> tuple[int, ...]:
    from bitwright.quant import InputError

    try:
        return tuple(dict.fromkeys(int(part) for part in written.split(",")))
    except ValueError:
        option = name.removesuffix("_kib").replace("_", "-")
        raise InputError(
            f"--{option} is {written!r}; whole numbers separated by commas, as 16,32"
        ) from None


def _logic(
    model: "LanguageModel", config: "SearchConfig", technology: str
) -> "list[LogicEnergy] | None":
    """Energy of the logic on the model's tensors, one per format."""
    from bitwright.experiments import logic_energy, search_recipes
    from bitwright.rtl import resolve_technology

    cells = resolve_technology(technology)
    return [
        logic_energy(model, recipe, config.pe, cells, layers=1, seed=config.seed)
        for recipe in search_recipes(config)
    ]


def _table(answer: "SearchAnswer") -> "RenderableType":
    from rich.table import Table

    meta = answer.meta
    table = Table(
        title=f"{meta['model']} on {meta['text']}: {meta['config']['max_tokens']} tokens, "
        f"windows of {meta['config']['window']}"
    )
    table.add_column("model", no_wrap=True)
    for name in ("bits", "perplexity", "predicted", "ms", "decode ms", "uJ/token", "mm2", "front"):
        table.add_column(name, justify="right", no_wrap=True)
    measured = [row for row in answer.front if row["perplexity"] is not None]
    kept = {row["name"]: row for row in [*answer.uniform, *measured]}
    bend = answer.front[answer.knee]["name"]
    for name, row in sorted(kept.items(), key=lambda item: item[1]["bits_per_weight"]):
        marks = ["yes"] if name in meta["measured_front"] else []
        table.add_row(
            name,
            f"{row['bits_per_weight']:.3f}",
            f"{row['perplexity']:.3f}",
            f"{row['predicted_perplexity']:.3f}",
            f"{row['latency_s'] * 1e3:.2f}",
            f"{row['decode_latency_s'] * 1e3:.3f}",
            f"{row['energy_per_token_uJ']:,.0f}",
            "-" if row["area_mm2"] is None else f"{row['area_mm2']:.2f}",
            ", ".join([*marks, *(["knee"] if name == bend else [])]),
        )
    return table


def _footer(answer: "SearchAnswer") -> str:
    from bitwright.experiments import CalibrationCard

    meta, volume = answer.meta, answer.hypervolume
    proxy, config = meta["proxy"], meta["config"]
    lines = [
        f"unquantised: {meta['unquantised']['perplexity']:.3f}; front by the proxy: "
        f"{len(answer.front)} models, {meta['finalists']['measured']} of them measured",
        f"proxy: {proxy['measure']} errors of the linears, calibrated on {proxy['points']} maps: "
        f"rank correlation {proxy['rank_correlation']:.3f}, residual {proxy['residual']:.4f} nats",
    ]
    for name, one in proxy["measures"].items():
        found = "" if one["found"] is None else f"; its own maps lose {one['found']:.4f} nats"
        lines.append(
            f"measure {name}: rank correlation {one['rank_correlation']:.3f}, residual "
            f"{one['residual']:.4f} nats{found}"
        )
    if "kl" in proxy:
        lines.append(
            f"the same proxy and the divergence: rank correlation "
            f"{proxy['kl']['rank_correlation']:.3f}, residual {proxy['kl']['residual']:.4f} nats"
        )
    lines.append(
        f"hypervolume: {volume['measured']:.4f} with the models measured, uniform recipes alone "
        f"{volume['uniform']:.4f}; {volume['unit']} "
        f"({', '.join(f'{value:.4g}' for value in volume['reference'])}), "
        f"{volume['reference_rule']}"
    )
    for cost, gains in answer.improvement.items():
        lines += _gains(cost, gains)
    lines.append(
        f"{config['prompt']} tokens in, {config['generate']} out; energy is {meta['energy']}"
    )
    lines += CalibrationCard(**meta["card"]).lines()
    return "\n".join(lines)


def _gains(cost: str, gains: Mapping[str, Any]) -> list[str]:
    best, cheapest = gains["best_at_equal_cost"], gains["best_at_equal_perplexity"]
    name = "bits" if cost == "bits_per_weight" else cost
    if best is None and cheapest is None:
        return [f"no mixed model that was measured lies in the uniform recipes' range of {name}"]
    lines = []
    if best is not None:
        lines.append(
            f"at equal {name} {best['name']} has {best['lower_by']:.1%} less perplexity than the "
            f"uniform recipes: {best['perplexity']:.3f} to {best['uniform_perplexity']:.3f} "
            "between neighbours"
        )
    if cheapest is not None:
        lines.append(
            f"at equal perplexity {cheapest['name']} has {cheapest['lower_by']:.1%} less {name}: "
            f"{cheapest[cost]:.4g} to {cheapest[f'uniform_{cost}']:.4g}"
        )
    return lines
