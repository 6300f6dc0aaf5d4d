"""`bitwright simulate`: a language model on an accelerator, in cycles, bytes, joules and mm2."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from bitwright.commands.simulate_iso import compare_designs, comparison_table

if TYPE_CHECKING:
    from fractions import Fraction

    from rich.console import RenderableType
    from rich.table import Table

    from bitwright.quant import Recipe
    from bitwright.sim import (
        GenerationResult,
        LogicEnergy,
        ModelShape,
        SimulationResult,
        Workload,
    )

GENERAL, PUBLISHED = "bitwright", "bitmod-hpca25"


def simulate(
    shape: Annotated[
        str,
        typer.Option(
            help="Name from the library, config.json or its folder, ONNX file, or CSV of m,n,k; "
            "with --iso several names, separated by commas."
        ),
    ],
    phase: Annotated[str | None, typer.Option(help="prefill or decode. [default: prefill]")] = None,
    tokens: Annotated[int, typer.Option(help="Prompt length.")] = 256,
    context: Annotated[int, typer.Option(help="Positions a decode step attends to.")] = 256,
    generate: Annotated[
        int | None,
        typer.Option(help="Tokens to generate behind the prompt, the cache growing; no --phase."),
    ] = None,
    batch: Annotated[int, typer.Option(help="Sequences side by side.")] = 1,
    dim: Annotated[
        list[str] | None,
        typer.Option(help="Size of a dynamic dimension of an ONNX file, as seq=256; repeat."),
    ] = None,
    recipe: Annotated[str | None, typer.Option(help="Weights. [default: bitmod4]")] = None,
    kv: Annotated[
        str | None, typer.Option(help="Format of keys and values, as int8-sym. [default: fp16]")
    ] = None,
    pe: Annotated[
        str | None, typer.Option(help="PE. [default: fp16 for recipe fp16, else bitmod]")
    ] = None,
    rows: Annotated[int | None, typer.Option(help="Tokens side by side.")] = None,
    cols: Annotated[int | None, typer.Option(help="Output channels side by side.")] = None,
    lanes: Annotated[int | None, typer.Option(help="Multipliers in a PE.")] = None,
    weight_buffer: Annotated[int | None, typer.Option(help="KiB.")] = None,
    activation_buffer: Annotated[int | None, typer.Option(help="KiB.")] = None,
    banks: Annotated[int | None, typer.Option(help="Banks of each buffer.")] = None,
    sram_ports: Annotated[
        str | None, typer.Option(help="1r1w: a read and a write a cycle; 1rw: one of them.")
    ] = None,
    weight_port: Annotated[
        int | None, typer.Option(help="Weight bits a cycle for each lane of a column.")
    ] = None,
    activation_port: Annotated[
        int | None, typer.Option(help="Activation bits a cycle for each lane of a row.")
    ] = None,
    dram: Annotated[str | None, typer.Option(help="ddr4-bitmod, hbm2, ... by name.")] = None,
    clock_ps: Annotated[float | None, typer.Option(help="Clock period.")] = None,
    technology: Annotated[
        str | None, typer.Option(help="Cells for the PE's area: nangate45, sky130hd, asap7.")
    ] = None,
    preset: Annotated[
        str, typer.Option(help=f"Rules: {GENERAL}, or {PUBLISHED} and others with --design.")
    ] = GENERAL,
    skip_terms: Annotated[
        str | None,
        typer.Option(
            help="Leave out zero terms of the bit-serial PE, as its columns meet: shared, step, "
            "group or tile."
        ),
    ] = None,
    weights: Annotated[
        str,
        typer.Option(
            help="Model on whose tensors the logic's energy is measured, and whose weights say "
            "which terms are zero."
        ),
    ] = "smollm2",
    energy: Annotated[
        bool | None,
        typer.Option(help="Measure the logic's energy. [default: yes, with --iso no]"),
    ] = None,
    voltage: Annotated[
        float | None, typer.Option(help="Supply of the logic in V. [default: the technology's]")
    ] = None,
    post_layout: Annotated[
        float, typer.Option(help="Factor on the logic's energy for what layout adds.")
    ] = 1.0,
    node: Annotated[
        float | None, typer.Option(help="Scale the logic's energy to this node in nm.")
    ] = None,
    node_voltage: Annotated[float | None, typer.Option(help="Supply at --node in V.")] = None,
    iso: Annotated[
        str | None,
        typer.Option(
            help="Compare designs on equal area, throughput or bandwidth; sizes and recipes are "
            "the comparison's."
        ),
    ] = None,
    design: Annotated[
        str | None, typer.Option(help="fp16, ant, olive, bitmod-lossless or bitmod-lossy.")
    ] = None,
    csv: Annotated[
        Path | None, typer.Option(help="Write a row per product and vector operation here.")
    ] = None,
    figures: Annotated[
        Path | None,
        typer.Option(help="Folder for roofline, latency and energy (SVG, PDF, PNG)."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Cycles, stalls by cause, traffic, energy and area of an LLM shape on an accelerator."""
    from dataclasses import replace

    from bitwright.experiments import pe_area
    from bitwright.output import show
    from bitwright.quant import InputError, output_folder, resolve_recipe
    from bitwright.sim import (
        ModelShape,
        default_accelerator,
        find_preset,
        load_shape,
        simulate_generation,
        simulate_model,
        simulate_published,
    )

    rules = find_preset(preset)
    given: dict[str, Any] = {
        "rows": rows,
        "cols": cols,
        "lanes": lanes,
        "weight_buffer_kib": weight_buffer,
        "activation_buffer_kib": activation_buffer,
        "banks": banks,
        "sram_ports": sram_ports,
        "weight_lane_bits": weight_port,
        "activation_lane_bits": activation_port,
        "dram": dram,
        "clock_ps": clock_ps,
    }
    settings = {name: value for name, value in given.items() if value is not None}
    if (node is None) != (node_voltage is None):
        raise InputError("--node and --node-voltage go together; give both or none")
    scaled = None if node is None or node_voltage is None else (node, node_voltage)
    if iso is not None:
        others = {
            "recipe": recipe, "pe": pe, "kv": kv, "generate": generate, "design": design,
            "csv": csv, "figures": figures, "dim": dim, "skip_terms": skip_terms,
            "batch": batch if batch != 1 else None,
            "preset": preset if preset != GENERAL else None,
            **{name: value for name, value in settings.items() if name != "clock_ps"},
        }  # fmt: skip
        clash = next((name for name, value in others.items() if value is not None), None)
        if clash is not None:
            raise InputError(f"--{_option(clash)} does not go with --iso {iso}, which fixes it")
        comparison = compare_designs(
            shape, iso, technology or "nangate45",
            phase=phase, tokens=tokens, context=context, clock_ps=clock_ps,
            logic_of=(
                (lambda pe, own, kv: pe_logic(
                    weights, own, pe, technology or "nangate45", kv, voltage, post_layout, scaled
                ))
                if energy else None
            ),
        )  # fmt: skip
        show(comparison.to_dict(), as_json, comparison_table(comparison))
        return
    if generate is not None and phase is not None:
        raise InputError(
            f"--phase {phase} does not go with --generate {generate}, which runs a prefill and "
            "every decode step"
        )
    if figures is not None:
        output_folder(figures)  # tells before the work what could not be written after it
    logic: LogicEnergy | None = None
    if rules.designs:
        others = {
            "recipe": recipe, "pe": pe, "technology": technology, "kv": kv,
            "skip_terms": skip_terms,
        }  # fmt: skip
        fixed = [*settings, *(name for name, value in others.items() if value)]
        fixed += ["batch"] if batch != 1 else []
        fixed += ["generate"] if generate is not None else []
        if fixed:
            raise InputError(
                f"--{_option(fixed[0])} does not go with --preset {preset}, which fixes it by "
                "--design"
            )
        if design is None:
            raise InputError(f"--preset {preset} needs --design: {', '.join(rules.designs)}")
        if shape.lower().endswith((".csv", ".onnx")):
            raise InputError(f"--preset {preset} takes a model shape, not the rows of {shape}")
        results = [
            simulate_published(
                load_shape(shape),
                design,
                phase or "prefill",
                tokens=tokens,
                context=context,
                preset=preset,
            )
        ]
    else:
        if design is not None:
            raise InputError(f"--design {design} needs --preset {PUBLISHED}")
        wanted = resolve_recipe(recipe or "bitmod4")
        name = pe or ("fp16" if wanted.format is None else "bitmod")
        accelerator = replace(default_accelerator(name), **settings)
        work = _work(shape, batch, dim or [])
        technology = technology or "nangate45"
        area = pe_area(name, technology)
        shares = None
        if skip_terms is not None:
            if generate is not None:
                raise InputError(f"--skip-terms {skip_terms} takes a --phase, not --generate")
            shares = term_shares(weights, wanted, name, accelerator.cols, skip_terms)
        if area is None:
            note = "area of the array: this installation has no synthesis"
        else:
            note = f"array area from {technology}, SRAM area from {accelerator.node_nm} nm"

        def run(which: str) -> "SimulationResult":
            result = simulate_model(
                work,
                wanted,
                which,
                tokens=tokens,
                context=context,
                batch=batch,
                kv_format=kv,
                accelerator=accelerator,
                term_shares=shares,
                pe_area=area,
                logic=logic,  # as it is when this runs
            )
            return replace(result, notes=(*result.notes, note))

        if generate is not None and not isinstance(work, ModelShape):
            raise InputError(f"--generate {generate} takes a model shape, not {shape}")
        if wanted.format_map is not None:
            if energy:
                raise InputError(
                    "--energy measures one format; leave it out for a recipe with a map of formats"
                )
            energy = False
        if energy is not False and area is not None:
            run(phase or "prefill")  # tells what is wrong before the long work
            usual = default_accelerator(name).lanes
            if accelerator.lanes == usual:
                logic = pe_logic(
                    weights, wanted, name, technology, kv, voltage, post_layout, scaled
                )
            elif energy:
                raise InputError(
                    f"--lanes {lanes}: energy is measured on PEs of {usual} lanes; leave --lanes "
                    "or --energy out"
                )
        if generate is not None:
            assert isinstance(work, ModelShape)
            generation = simulate_generation(
                work,
                wanted,
                prompt=tokens,
                generate=generate,
                batch=batch,
                kv_format=kv,
                accelerator=accelerator,
                pe_area=area,
                logic=logic,
            )
            context = tokens + generate - 1  # of the last step, which the figures show
            _write(csv, figures, [generation.prefill, *([run("decode")] if figures else [])])
            document = {
                "preset": preset,
                **generation.to_dict(),
                **origin(generation.prefill, logic),
            }
            show(document, as_json, _generation(generation, logic))
            return
        results = [run(phase or "prefill")]
        if figures is not None and isinstance(work, ModelShape):
            results.append(run("decode" if results[0].phase == "prefill" else "prefill"))
    _write(csv, figures, results)
    document = {"preset": preset, **results[0].to_dict(), **origin(results[0], logic)}
    show(document, as_json, _table(results[0], logic))


def _work(shape: str, batch: int, dims: list[str]) -> "ModelShape | Workload":
    """What to run: a model, or the rows of a file."""
    from bitwright.quant import InputError
    from bitwright.sim import load_shape, read_gemms, read_onnx

    kind = shape.lower().rpartition(".")[2]
    sizes = {}
    for dim in dims:
        name, equals, value = dim.partition("=")
        if not (name and equals and value.isdecimal()):
            raise InputError(f"--dim is {dim!r}; name and size, such as seq=256")
        sizes[name] = int(value)
    if sizes and kind != "onnx":
        raise InputError(f"--dim {dims[0]} is for an ONNX file, not for {shape}")
    if kind not in ("csv", "onnx"):
        return load_shape(shape)
    if batch != 1:
        raise InputError(f"--batch {batch} takes a model shape; the rows of {shape} say their m")
    return read_gemms(shape) if kind == "csv" else read_onnx(shape, sizes)


def _write(csv: Path | None, figures: Path | None, results: "list[SimulationResult]") -> None:
    """The first result as CSV, all of them as figures, prefill first."""
    if csv is not None:
        write_layers(csv, results[0])
    if figures is not None:
        from bitwright.experiments import write_figures

        write_figures(sorted(results, key=lambda one: one.phase, reverse=True), figures)


def term_shares(
    model: str, recipe: "Recipe", pe: str, cols: int, sync: str
) -> "dict[str, Fraction]":
    """Part of the fixed cycles that each product takes, from a model's own weights."""
    from bitwright.output import progress_bar
    from bitwright.quant import InputError, load_model
    from bitwright.sim import layer_term_statistics

    if pe != "bitmod":
        raise InputError(f"--skip-terms {sync} is for the bitmod PE; {pe} has no terms")
    if sync not in ("shared", "step", "group", "tile"):
        raise InputError(f"--skip-terms is {sync!r}; one of shared, step, group, tile")
    loaded = load_model(model)
    with progress_bar(f"terms of {model}") as progress:
        report = layer_term_statistics(
            loaded,
            recipe,
            cols=cols,
            modes=("significance",),
            syncs=(sync,),  # type: ignore[arg-type]
            progress=progress,
        )
    return report.product_ratios("significance", sync)  # type: ignore[arg-type]


def pe_logic(
    model: str,
    recipe: "Recipe | str",
    pe: str,
    technology: str,
    kv: str | None,
    voltage: float | None,
    post_layout: float,
    scaled: tuple[float, float] | None = None,
) -> "LogicEnergy":
    """Energy of the logic on a model's tensors; without the default model on those of tiny.

    Args:
        model: Name or path.
        recipe: Of the weights.
        pe: Name.
        technology: Name.
        kv: Format of keys and values.
        voltage: Supply in V.
        post_layout: Factor for what layout adds.
        scaled: Node in nm and supply in V that the energy is carried to; None: it is not.
    """
    import sys

    from bitwright.experiments import logic_energy, scaled_to
    from bitwright.output import progress_bar
    from bitwright.quant import ModelUnavailable
    from bitwright.rtl import resolve_technology, scaling

    cells = resolve_technology(technology)
    assert cells.node_nm is not None  # of those that ship
    if scaled is not None:  # refuse before any work
        scaling.energy_ratio(cells.node_nm, voltage or cells.voltage, *scaled)
    with progress_bar(f"energy of {pe}") as progress:
        for name in (model, "tiny"):
            try:
                found = logic_energy(
                    name,
                    recipe,
                    pe,
                    cells,
                    voltage=voltage,
                    kv_format=kv,
                    post_layout=post_layout,
                    progress=progress,
                )
                return found if scaled is None else scaled_to(found, cells.node_nm, *scaled)
            except ModelUnavailable as error:
                if name != "smollm2":
                    raise
                print(f"bitwright: {error}; energy on the bundled model tiny", file=sys.stderr)
    raise AssertionError("tiny is always there")


def origin(result: "SimulationResult", logic: "LogicEnergy | None") -> dict[str, Any]:
    """Keys of a document that say where its numbers come from."""
    from bitwright.experiments import simulation_card, simulation_provenance

    return {
        "card": simulation_card(result, logic).to_dict(),
        "provenance": simulation_provenance(result, logic),
    }


def write_layers(path: Path, result: "SimulationResult") -> None:
    """Write one CSV row per product and vector operation, whole or not at all."""
    import csv
    import io

    from bitwright.quant import write_text

    rows = [layer.to_dict() for layer in result.layers]
    rows += [{"kind": "vector", **row.to_dict()} for row in result.vector]
    columns = dict.fromkeys(name for row in rows for name in row)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def _option(name: str) -> str:
    return name.removesuffix("_kib").replace("lane_bits", "port").replace("_", "-")


def _table(result: "SimulationResult", logic: "LogicEnergy | None") -> "RenderableType":
    from rich.box import SIMPLE_HEAD
    from rich.console import Group
    from rich.table import Table

    layers = Table(
        title=f"{result.name}, {_phase(result)}: {result.design}",
        caption="busy: of the cycles; array and DRAM: waiting for it",
        box=SIMPLE_HEAD,
    )
    layers.add_column("product", no_wrap=True)
    for column in ("m x n x k", "times", "cycles", "busy", "array", "DRAM"):
        layers.add_column(column, justify="right", no_wrap=True)
    measured = [layer for layer in result.layers if layer.logic_uj is not None]
    for column in ("DRAM MB", *(["logic uJ"] if measured else []), "SRAM uJ", "DRAM uJ"):
        layers.add_column(column, justify="right", no_wrap=True)
    for layer in result.layers:
        layers.add_row(
            layer.name,
            f"{layer.m} x {layer.n} x {layer.k}",
            str(layer.count),
            f"{layer.cycles:,}",
            _percent(layer.busy_cycles, layer.cycles),
            _percent(layer.compute_cycles - layer.busy_cycles, layer.cycles),
            _percent(layer.stall_cycles, layer.cycles),
            f"{layer.dram_bytes / 1e6:,.2f}",
            *([f"{layer.logic_uj or 0:,.1f}"] if measured else []),
            f"{layer.sram_uj:,.1f}",
            f"{layer.dram_uj:,.1f}",
        )
    parts: list[RenderableType] = [layers]
    if result.vector:
        vector_unit = Table(box=SIMPLE_HEAD)
        vector_unit.add_column("vector unit", no_wrap=True)
        for column in ("elements", "cycles", "busy", "DRAM", "DRAM MB", "DRAM uJ"):
            vector_unit.add_column(column, justify="right", no_wrap=True)
        for row in result.vector:
            vector_unit.add_row(
                row.name,
                f"{row.elements:,}",
                f"{row.cycles:,}",
                _percent(row.busy_cycles, row.cycles),
                _percent(row.cycles - row.busy_cycles, row.cycles),
                f"{row.dram_bytes / 1e6:,.2f}",
                f"{row.dram_uj:,.1f}",
            )
        parts.append(vector_unit)

    summary = _plain_table()
    vector = f" + {result.vector_cycles:,} vector unit" if result.vector else ""
    summary.add_row(
        "cycles",
        f"{result.cycles:,} = {result.compute_cycles:,} array + {result.stall_cycles:,} DRAM "
        f"stall ({_percent(result.stall_cycles, result.cycles)}){vector}",
    )
    causes = ", ".join(f"{cause} {cycles:,}" for cause, cycles in result.stalls.items() if cycles)
    summary.add_row("waiting", causes or "none")
    speed = "" if result.tokens_per_s is None else f", {result.tokens_per_s:,.2f} tokens/s"
    summary.add_row("latency", f"{result.latency_s * 1e3:,.4g} ms at {result.clock_ps:g} ps{speed}")
    operands = ", ".join(
        f"{operand} {moved / 1e6:,.2f}"
        for operand, moved in result.bytes_by_operand.items()
        if moved
    )
    summary.add_row("DRAM traffic", f"{result.dram_bytes / 1e6:,.2f} MB: {operands}")
    standing = f", {result.standing_uj:,.1f} of it standing" if result.standing_uj else ""
    leaks = result.logic_leakage_uj
    leaking = f", {leaks:,.1f} of it logic" if leaks else ", SRAM only"
    for name, value, more in (
        ("logic energy", result.logic_uj, _shares(result)),
        ("SRAM energy", result.sram_uj, ""),
        ("DRAM energy", result.dram_uj, standing),
        ("leakage", result.leakage_uj, leaking),
        ("total energy", result.total_uj, ""),
    ):
        summary.add_row(name, "not modelled" if value is None else f"{value:,.1f} uJ{more}")
    area = result.area
    for name, square in (
        ("array area", area.array),
        ("encoder area", area.encoders),
        ("SRAM area", area.sram),
        ("total area", area.total),
    ):
        summary.add_row(name, "not known" if square is None else f"{square:.3f} mm2")
    return Group(*parts, summary, _footer(result, logic))


def _shares(result: "SimulationResult") -> str:
    """What active cycles of the logic go into, the largest parts first."""
    ranked = sorted(result.logic_parts_uj.items(), key=lambda item: -item[1])
    active = sum(value for _, value in ranked)
    if not active or not result.logic_uj:
        return ""
    named = ", ".join(f"{part} {100 * value / active:.0f} %" for part, value in ranked[:4])
    return f", {100 * active / result.logic_uj:.0f} % of it active: {named}, ..."


def _generation(result: "GenerationResult", logic: "LogicEnergy | None") -> "RenderableType":
    from rich.console import Group

    first = result.prefill
    table = _plain_table()
    table.title = (
        f"{first.name}: {result.prompt} tokens in, {result.generate} out, batch {result.batch}; "
        f"{first.design}"
    )
    ms = first.clock_ps * 1e-9
    decode = sum(result.step_cycles)
    table.add_row("cycles", f"{result.cycles:,} = {first.cycles:,} prefill + {decode:,} decode")
    table.add_row("latency", f"{result.latency_s * 1e3:,.4g} ms at {first.clock_ps:g} ps")
    table.add_row("time to first token", f"{result.ttft_s * 1e3:,.4g} ms")
    if result.tpot_s is not None:
        steps = result.step_cycles
        table.add_row(
            "time per output token",
            f"{result.tpot_s * 1e3:,.4g} ms ({steps[0] * ms:,.4g} at {result.prompt + 1} "
            f"positions, {steps[-1] * ms:,.4g} at {result.prompt + result.generate - 1})",
        )
    rate = result.decode_tokens_per_s
    table.add_row(
        "tokens per second",
        f"{result.tokens_per_s:,.2f}" + ("" if rate is None else f", {rate:,.2f} in decode"),
    )
    table.add_row("DRAM traffic", f"{result.dram_bytes / 1e6:,.2f} MB")
    for name, value in result.energy_uj.items():
        per_token = None if value is None else value / (result.batch * result.generate)
        table.add_row(
            f"{name} energy",
            "not modelled"
            if value is None or per_token is None
            else f"{value:,.1f} uJ, {per_token:,.1f} uJ per generated token",
        )
    area = first.area.total
    table.add_row("total area", "not known" if area is None else f"{area:.3f} mm2")
    return Group(table, _footer(first, logic))


def _plain_table() -> "Table":
    from rich.table import Table

    table = Table(show_header=False, box=None, title_justify="left")
    table.add_column(style="bold")
    table.add_column()
    return table


def _footer(result: "SimulationResult", logic: "LogicEnergy | None") -> "RenderableType":
    from rich.text import Text

    from bitwright.experiments import simulation_card

    lines = [f"note: {note}" for note in (result.energy_note, *result.notes)]
    lines += simulation_card(result, logic).lines()
    return Text("\n".join(lines), style="dim")


def _percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.0f} %" if whole else ""


def _phase(result: "SimulationResult") -> str:
    if result.phase == "prefill":
        words = f"prefill of {result.context} tokens"
    elif result.phase == "decode":
        words = f"one decode step at {result.context} positions"
    else:
        return "rows of a file"
    return words if result.batch == 1 else f"{words}, batch {result.batch}"
