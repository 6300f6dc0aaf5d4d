"""`bitwright simulate --iso`: designs beside each other on equal area, throughput or bandwidth."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.console import RenderableType

    from bitwright.sim import Comparison, LogicEnergy

MODES = {
    "area": "equal compute area",
    "throughput": "equal peak multiply-accumulates a cycle",
    "bandwidth": "equal operand bits into the array a cycle",
}


def compare_designs(
    shapes: str,
    mode: str,
    technology: str,
    *,
    phase: str | None,
    tokens: int,
    context: int,
    clock_ps: float | None,
    logic_of: "Callable[[str, str, str], LogicEnergy] | None" = None,
) -> "Comparison":
    """The comparison on one or several shapes, their PEs synthesised on a technology.

    Args:
        shapes: Names or config.json files, separated by commas.
        mode: area, throughput or bandwidth.
        technology: Cells of the PEs.
        phase: prefill or decode; None for both.
        tokens: Prompt length.
        context: Positions a decode step attends to.
        clock_ps: One clock for all; None: the slowest PE's.
        logic_of: Measures the logic's energy of a PE, the recipe of its weights and the format of
            its keys and values; None: total energies are not known.
    """
    from bitwright.experiments import pe_area
    from bitwright.output import progress_bar
    from bitwright.quant import InputError, resolve_recipe
    from bitwright.sim import DESIGNS_ISO, iso, load_shape

    if mode not in MODES:
        raise InputError(f"--iso is {mode!r}; one of {', '.join(MODES)}")
    names = [name.strip() for name in shapes.split(",")]
    if "" in names:
        raise InputError(f"--shape is {shapes!r}; names separated by single commas")
    models = [load_shape(name) for name in names]
    pes = list(dict.fromkeys(design.pe for design in DESIGNS_ISO.values()))
    areas = {}
    with progress_bar("synthesise PEs") as progress:
        for done, pe in enumerate(pes):
            progress(done, len(pes), f"{pe}, {technology}")
            area = pe_area(pe, technology)
            if area is None:
                raise InputError(f"--iso {mode} sizes arrays by synthesis, which is not installed")
            areas[pe] = area
    logic = None
    if logic_of is not None:
        logic = {}
        for name, design in DESIGNS_ISO.items():
            cache = resolve_recipe(design.cache).format or "fp16"
            logic[name] = logic_of(design.pe, design.recipe, cache)
    return iso.compare(
        models,
        areas,
        mode,  # type: ignore[arg-type]
        phases=("prefill", "decode") if phase is None else (phase,),
        tokens=tokens,
        context=context,
        clock_ps=clock_ps,
        logic=logic,
    )


def comparison_table(result: "Comparison") -> "RenderableType":
    """Arrays, geometric means and notes."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    models = list(dict.fromkeys(row.model for row in result.results))
    phases = list(dict.fromkeys(row.phase for row in result.results))
    totals = all(mean.energy_gain is not None for mean in result.means)
    which = "energy gain (all of it)" if totals else "memory energy gain (SRAM and DRAM)"
    table = Table(
        title=f"{MODES[result.mode]}, {result.clock_ps:g} ps",
        caption=f"speed-up and {which} over {result.reference}, "
        f"geometric mean of {len(models)} models",
        box=SIMPLE_HEAD,
    )
    table.add_column("design", no_wrap=True)
    for heading in ("rows x cols x lanes", "mm2", "MAC/cycle", "bits/cycle"):
        table.add_column(heading, justify="right")
    for phase in phases:
        table.add_column(f"{phase}\nspeed-up", justify="right")
    for phase in phases:
        table.add_column(f"{phase}\nenergy gain", justify="right")
    means = {(mean.design, mean.phase): mean for mean in result.means}
    for array in result.arrays:
        own = [means[array.design, phase] for phase in phases]
        table.add_row(
            array.design,
            f"{array.rows} x {array.cols} x {array.lanes}",
            f"{array.area_mm2:.3f}",
            f"{array.macs_per_cycle:,.0f}",
            f"{array.operand_bits_per_cycle:,.0f}",
            *(f"{mean.speedup:.2f}" for mean in own),
            *(f"{mean.energy_gain or mean.memory_energy_gain:.2f}" for mean in own),
        )
    formats = [
        f"{array.design}: {array.recipe} weights, {array.activations} inputs, {array.plain} output "
        f"layer, {array.cache} cache"
        for array in result.arrays
    ]
    lines = [f"models: {', '.join(models)}", *formats, *(f"note: {note}" for note in result.notes)]
    return Group(table, Text("\n".join(lines), style="dim"))
