"""Linears whose weights have a form of their own: every product that hardware computes for them.

A `CompressedMatrix` says which products in the PEs' formats it takes (`passes`): binary planes, a
dense part of salient columns, two thin factors one after the other. Each becomes a product of the
workload, with the stored bits that the method reads for it, and runs like any other. What lies
between them (adding results, scaling a latent vector, gathering columns, turning inputs) is work of
the vector unit (`vector_work`). Decoders in front of the PEs (look-up of codebooks and tables,
indices of kept weights) keep up with them and take no cycles.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

from bitwright.quant import FORMATS, Format, InputError, Pass, VectorWork
from bitwright.sim import PES, Gemm, VectorOp, Workload, pick

from .hardware import Accelerator, Operand, PEArea, Storage
from .logic import LogicEnergy
from .results import SimulationResult
from .simulation import operands_for, row_name, simulate

#: Linear ("attn.q") -> the passes of its matrix in each layer.
LayerPasses = Mapping[str, Sequence[Sequence[Pass]]]
#: The same of the vector unit's work.
LayerWork = Mapping[str, Sequence[Sequence[VectorWork]]]

NOTE = (
    "weights in a form of their own: a row for each product that they take, the vector unit's work "
    "between them, no cycles of decoders in front of the PEs"
)


def pass_name(product: str, one: Pass) -> str:
    """A pass of a linear as `LogicEnergy.products` names it: "attn.q signs binary"."""
    return f"{product} {one.what} {one.format or 'fp16'}"


def fitting_pe(passes: LayerPasses, candidates: Sequence[str] = ("lut", "bitmod", "fp16")) -> str:
    """The first PE of some that runs every pass.

    Raises:
        InputError: None of them does.
    """
    formats = {one.format for layers in passes.values() for layer in layers for one in layer}
    for pe in candidates:
        try:
            for name in formats:
                PES[pe].step_cycles(_format(name))
        except InputError:
            continue
        return pe
    written = ", ".join(sorted(name or "fp16" for name in formats))
    raise InputError(f"no PE of {', '.join(candidates)} runs all of {written}")


def simulate_passes(
    workload: Workload,
    passes: LayerPasses,
    accelerator: Accelerator,
    *,
    pe_area: PEArea | None = None,
    logic: LogicEnergy | None = None,
    work: LayerWork | None = None,
) -> SimulationResult:
    """Run a workload whose block products are taken apart into passes.

    Args:
        workload: One repetition of every block product is one layer.
        passes: Of every block product.
        accelerator: What it runs on; its PE must run every pass.
        pe_area: Area of the PE, if known.
        logic: Energy of the logic, that of every pass by `pass_name`; None: it is left out.
        work: Of the vector unit for every block product; None: there is none.

    Raises:
        InputError: A product without passes, other numbers of layers, or a format that the PE
            cannot run.
    """
    unit = pick(PES, accelerator.pe, "pe")
    gemms: list[Gemm] = []
    mixed: dict[str, list[tuple[int, Operand]]] = {}
    of_rows: dict[str, str] = {}  # row -> pass that it belongs to
    formats: set[str | None] = set()
    for gemm in workload.gemms:
        if gemm.kind != "block":
            gemms.append(gemm)
            continue
        layers = passes.get(gemm.name, ())
        if len(layers) != gemm.count:
            raise InputError(
                f"{gemm.name} has passes for {len(layers)} layers; the workload has {gemm.count}"
            )
        last = {layer[-1].what for layer in layers}  # whose results the cache takes
        products: dict[tuple[str, int, int], list[tuple[int, Operand]]] = {}
        for one, count in Counter(one for layer in layers for one in layer).items():
            operand = _operand(one, unit.step_cycles(_format(one.format)))
            products.setdefault((one.what, one.n, one.k), []).append((count, operand))
            name = f"{gemm.name} {one.what} {one.n} x {one.k}"
            of_rows[row_name(name, operand)] = pass_name(gemm.name, one)
            formats.add(one.format)
        for (what, n, k), parts in products.items():
            name = f"{gemm.name} {what} {n} x {k}"
            cached = gemm.cache_rows if what in last and n == gemm.n else 0
            times = sum(count for count, _ in parts)
            gemms.append(replace(gemm, name=name, n=n, k=k, count=times, cache_rows=cached))
            mixed[name] = parts
    widest = max(formats, key=lambda name: 16 if name is None else FORMATS[name].bits)
    operands, notes = operands_for(_rest(widest), unit.step_cycles)
    return simulate(
        replace(workload, gemms=tuple(gemms), vector=(*workload.vector, *_vector(workload, work))),
        accelerator,
        block=operands["block"],
        plain=operands["plain"],
        cache=operands["cache"],
        mixed=mixed,
        pe_area=pe_area,
        logic=None if logic is None else _joined(logic, of_rows),
        notes=(*notes, NOTE),
    )


def _vector(workload: Workload, work: LayerWork | None) -> list[VectorOp]:
    """A row for each kind of work on a product's matrices."""
    ops = []
    for gemm in workload.gemms:
        layers = () if work is None else work.get(gemm.name, ())
        for one, count in Counter(one for layer in layers for one in layer).items():
            name = f"{gemm.name}.{one.what}"
            ops.append(VectorOp(name, one.function, gemm.m, one.length, count * one.times))
    return ops


def _format(name: str | None) -> Format | None:
    return None if name is None else FORMATS[name]


def _operand(one: Pass, step_cycles: int) -> Operand:
    stored = Storage.spread(one.bits, one.n, one.k)
    return Operand(step_cycles, _format(one.format), one.group_size, stored=stored)


def _rest(widest: str | None):  # type: ignore[no-untyped-def]
    """The recipe that says how attention and the output layer run."""
    from bitwright.quant import Recipe

    return Recipe(format=widest)


def _joined(logic: LogicEnergy, of_rows: Mapping[str, str]) -> LogicEnergy:
    """Energies of all rows, beside those of attention and the output layer."""
    missing = sorted(set(of_rows.values()) - set(logic.products))
    if missing:
        raise InputError(f"logic has no energy of {missing[0]}; measure it or leave logic out")
    rows = {row: logic.products[name] for row, name in of_rows.items()}
    return replace(logic, products={**logic.products, **rows})
