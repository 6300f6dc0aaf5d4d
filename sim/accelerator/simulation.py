"""A workload on an accelerator: cycles by cause, traffic by level, energy and area.

Of each product `mapping` gives the cycles of the array and the waiting for DRAM, in closed form
(`layer_cost`: array and ports; loop order and double buffering: `mapping`). To them come

    conflict    what the banks of a buffer cannot serve in that time (`sram_conflicts`), the larger
                of the two buffers
    vector      norms, softmax and so on (`vector`) behind the products: the longer of the unit's
                cycles and the DRAM time of operands that are no product's

DRAM moves `effective_bytes_per_cycle` of one sequential stream and is shared by all operands; a
product waits once for its first bytes. Nothing stays on chip from one product to the next.

Traffic: weights, inputs, results, and keys and values ("cache": what attention reads, and the rows
that `attn.k` and `attn.v` write) in the formats they are stored in, scales counted. Inputs have the
PE's own activation format, results are FP16. What comes from DRAM is written to its buffer once;
weights are read once per row of output tiles, inputs once per column of tiles; results are written
to the activation buffer and read once on their way to DRAM.

Energy: SRAM accesses of whole banks (bits over width); DRAM transfers; DRAM refresh and background,
SRAM leakage and, where the PE's is known, leakage of logic, all over the whole pass; switching of
the logic where it was measured (`logic`), without which there is no total. Left out: energy of the
vector unit, of the sequencer and of the wires between buffers, array and DRAM.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from fractions import Fraction
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from bitwright.quant import FORMATS, LINEARS, Format, InputError
from bitwright.sim import (
    DRAM,
    Gemm,
    Kind,
    ModelShape,
    SRAMBank,
    Workload,
    bank_busy_cycles,
    conflict_cycles,
    decode,
    find_dram,
    interleaving,
    load_shape,
    pick,
    prefill,
)

from .hardware import (
    Accelerator,
    Operand,
    PEArea,
    Storage,
    activation_format,
    default_accelerator,
)
from .layer_cost import (
    NONE,
    ONE_GROUP,
    SCORES,
    SHARE,
    VALUES,
    Array,
    Product,
    w_row,
    work,
    x_row,
    y_size,
)
from .logic import LogicEnergy, logic_uj, product_energies
from .mapping import (
    ORDERS,
    THRIFT,
    X_TOO_SMALL,
    Mapped,
    largest_counter,
    map_products,
    product_rows,
)
from .mapping_stepped import step_through
from .results import ARRAY_CAUSES, Area, LayerResult, SimulationResult, Table, VectorResult

if TYPE_CHECKING:
    from bitwright.quant import Recipe

LOGIC_NOTE = (
    "switching energy of the logic (PEs) was not measured, so there is no total; leakage is "
    "that of the SRAM buffers and, where it is known, of the PEs"
)
MEASURED_NOTE = (
    "logic: PEs, term encoders, column units, operand registers and wires of the array; the vector "
    "unit, the sequencer, the clock tree's buffers and glitches are not in it"
)
_MASKS = {"none": NONE, "scores": SCORES, "values": VALUES}
_LARGEST = float(2**63 - 2**10)  # the largest float below 2**63
_COLUMN = {name: number for number, name in enumerate(Mapped._fields)}
_FIELD = {name: number for number, name in enumerate(Product._fields)}


# ------------------------------------------------------------------ products as numbers


@dataclass(frozen=True, slots=True, eq=False)
class _Prepared:
    """A workload's products with their operands, as arrays; the ports are still missing."""

    gemms: tuple[Gemm, ...]
    products: np.ndarray  # int64 [products, fields of `Product`]
    w_bits: np.ndarray  # float64, average stored bits of a weight, and of an input
    x_bits: np.ndarray
    count: np.ndarray  # int64
    macs: np.ndarray  # int64, of all repetitions
    lane_cycles: np.ndarray  # float64, macs * step cycles of the PE
    of_cache: np.ndarray  # bool, w is keys or values
    to_cache: np.ndarray  # bool, the results are rows of the cache


#: Repetitions of a product in each operand: name -> ((count, operand), ...).
Mixed = Mapping[str, Sequence[tuple[int, Operand]]]


def _operands(
    gemms: tuple[Gemm, ...],
    block: Operand,
    plain: Operand,
    cache: Operand,
    mixed: Mixed | None = None,
) -> tuple[tuple[Gemm, ...], tuple[Operand, ...]]:
    """The products, taken apart where they have several operands, and the operand of each."""
    kinds: dict[Kind, Operand] = {"block": block, "plain": plain, "cache": cache}
    if not mixed:
        return gemms, tuple(kinds[gemm.kind] for gemm in gemms)
    rows: list[tuple[Gemm, Operand]] = []
    for gemm in gemms:
        parts = mixed.get(gemm.name) if gemm.kind == "block" else None
        if parts is None:
            rows.append((gemm, kinds[gemm.kind]))
            continue
        if sum(count for count, _ in parts) != gemm.count:
            raise InputError(
                f"mixed has {' + '.join(str(count) for count, _ in parts)} repetitions of "
                f"{gemm.name}, which has {gemm.count}"
            )
        for count, operand in parts:
            rows.append((replace(gemm, name=row_name(gemm.name, operand), count=count), operand))
    return tuple(gemm for gemm, _ in rows), tuple(operand for _, operand in rows)


@lru_cache(maxsize=256)
def _prepare(
    gemms: tuple[Gemm, ...], operands: tuple[Operand, ...], cache: Operand, act: Format | None
) -> _Prepared:
    rows, w_bits, x_bits = [], [], []
    activations = Operand(1, act, None if act is None else act.block)
    for gemm, operand in zip(gemms, operands, strict=True):
        y_bits, y_elements = 16, 1
        if gemm.cache_rows:
            y_elements = gemm.m * gemm.n // gemm.cache_rows
            y_bits = cache.stored_bits(1, y_elements)
        steps = operand.step_cycles
        rows.append(
            Product(
                *(gemm.m, gemm.n, gemm.k, _MASKS[gemm.mask], gemm.rows_per_position),
                *(steps, steps, operand.sum_group or ONE_GROUP),
                *_storage(operand.storage),
                *_storage(Storage.of(act)),
                *(y_bits, y_elements),
            )
        )
        w_bits.append(operand.stored_bits(gemm.n, gemm.k) / (gemm.n * gemm.k))
        x_bits.append(activations.stored_bits(gemm.m, gemm.k) / (gemm.m * gemm.k))
    macs = [gemm.macs for gemm in gemms]
    return _Prepared(
        gemms,
        product_rows(rows),
        np.array(w_bits),
        np.array(x_bits),
        np.array([gemm.count for gemm in gemms], np.int64),
        np.array(macs, np.int64),
        np.array([m * row.pe_step for m, row in zip(macs, rows, strict=True)], np.float64),
        np.array([gemm.kind == "cache" for gemm in gemms], bool),
        np.array([gemm.cache_rows > 0 for gemm in gemms], bool),
    )


def _storage(parts: Storage) -> tuple[int, int, int, int, int]:
    group = parts.group or ONE_GROUP
    return parts.bits, group, parts.per_group, parts.per_row, parts.per_tensor


@lru_cache(maxsize=4096)
def _array(accelerator: Accelerator) -> Array:
    """The hardware as `mapping` takes it."""
    interface = find_dram(accelerator.dram)
    # A rate of many digits would overflow the counters; this one is right to seven digits.
    rate = 8 * interface.effective_bytes_per_cycle(accelerator.clock_ps)
    rate = max(rate.limit_denominator(4096), Fraction(1, 4096))
    return Array(
        rows=accelerator.rows,
        cols=accelerator.cols,
        lanes=accelerator.lanes,
        spacing=accelerator.spacing,
        fill=accelerator.fill_cycles,
        drain=accelerator.drain_cycles,
        x_capacity=accelerator.activation_buffer_kib * 8192,
        w_capacity=accelerator.weight_buffer_kib * 8192,
        rate_bits=rate.numerator,
        rate_cycles=rate.denominator,
        latency=interface.latency_cycles(accelerator.clock_ps),
    )


def _products(
    prepared: _Prepared,
    accelerator: Accelerator,
    shares: Mapping[str, Fraction] | None = None,
) -> np.ndarray:
    """The products with the steps that the ports of an accelerator allow, and their shares."""
    products = prepared.products.copy()
    weight = np.ceil(prepared.w_bits / accelerator.weight_lane_bits)
    activation = np.ceil(prepared.x_bits / accelerator.activation_lane_bits)
    step, port = _FIELD["step"], _FIELD["port_step"]
    products[:, port] = np.maximum(weight, activation)
    products[:, step] = np.maximum(products[:, step], products[:, port])
    for row, gemm in enumerate(prepared.gemms if shares else ()):
        part = (shares or {}).get(gemm.name)
        if part is not None and gemm.kind == "block":
            products[row, _FIELD["share"]] = math.ceil(part * SHARE)
    return products


def _of_all(logic: LogicEnergy, workload: Workload, mixed: Mixed | None) -> bool:
    """Whether energies were measured for every row of the products in several ways."""
    rows = {row_name(name, one) for name, parts in (mixed or {}).items() for _, one in parts}
    return rows <= set(logic.products)


def row_name(product: str, operand: Operand) -> str:
    """Of the repetitions of a product in one operand."""
    return f"{product} {'fp16' if operand.format is None else operand.format.name}"


def _check_shares(shares: Mapping[str, Fraction], gemms: Sequence[Gemm]) -> None:
    names = {gemm.name for gemm in gemms if gemm.kind == "block"}
    if unknown := sorted(set(shares) - names):
        raise InputError(
            f"term_shares names {unknown[0]!r}, which is no product of block weights; there are "
            f"{', '.join(sorted(names))}"
        )
    for name, part in shares.items():
        if not 0 < part <= 1:
            raise InputError(f"term_shares of {name} is {part}; above 0 and at most 1")


def gemm_cycles(
    gemm: Gemm, accelerator: Accelerator, operand: Operand, act_format: str = "fp16"
) -> int:
    """Cycles of one repetition on the array, with operands that are always there.

    Busy cycles and what ports, scale unit, pipeline and drain add (see `layer_cost`), in tiles as
    large as the array.

    Args:
        gemm: The product.
        accelerator: The array; buffers and DRAM do not matter.
        operand: The weights.
        act_format: "fp16" or the name of the activations' format.

    Raises:
        InputError: An unknown format.
    """
    act = _activations(accelerator, act_format)
    prepared = _prepare((gemm,), (operand,), operand, act)
    (row,) = _products(prepared, accelerator).tolist()
    array = _array(accelerator)
    done = work(Product(*row), array, accelerator.rows, accelerator.cols)
    return done.busy + done.port + done.scale + array.fill + array.drain


def stepped_cycles(
    workload: Workload,
    accelerator: Accelerator,
    *,
    block: Operand,
    plain: Operand | None = None,
    cache: Operand | None = None,
    act_format: str | None = None,
) -> tuple[int, ...]:
    """Cycles of each product, all repetitions, by stepping through its best mapping.

    The readable twin of what `simulate` gives without conflicts and vector operations: slow, for
    tests and as the baseline of the benchmark. Arguments as in `simulate`.

    Raises:
        InputError: As in `simulate`.
    """
    plain = plain or Operand(block.step_cycles)
    cache = cache or Operand(block.step_cycles)
    act = _activations(accelerator, act_format)
    prepared = _prepare(*_operands(workload.gemms, block, plain, cache), cache, act)
    products, array = _products(prepared, accelerator), _array(accelerator)
    mapped = map_products(products, array)
    if (mapped[:, 0] < 0).any():
        raise _too_small(prepared, mapped, accelerator, products)
    cycles = []
    for row, gemm, found in zip(products.tolist(), workload.gemms, mapped.tolist(), strict=True):
        best = Mapped(*found)
        steps = step_through(
            Product(*row), array, ORDERS[best.order], best.block, best.high, best.wide
        )
        once = steps.compute + steps.dram + array.fill + array.drain + array.latency
        cycles.append(gemm.count * once)
    return tuple(cycles)


# ------------------------------------------------------------------ a pass


def simulate(
    workload: Workload,
    accelerator: Accelerator,
    *,
    block: Operand,
    plain: Operand | None = None,
    cache: Operand | None = None,
    act_format: str | None = None,
    mixed: Mixed | None = None,
    term_shares: Mapping[str, Fraction] | None = None,
    pe_area: PEArea | None = None,
    logic: LogicEnergy | None = None,
    notes: Sequence[str] = (),
) -> SimulationResult:
    """Run a workload on an accelerator.

    Args:
        workload: Products and vector operations to run.
        accelerator: What they run on.
        block: How the weights of the blocks are stored and stepped.
        plain: The same for weights that a recipe leaves alone (output layer, router); None: 16
            bits, stepped like the blocks.
        cache: The same for keys and values; None: 16 bits, stepped like the blocks.
        act_format: "fp16" or the name of the format of all activations, one group per row or the
            format's blocks; None: what the PE takes.
        mixed: Products of block weights that are stored and stepped in several ways, by name: how
            many repetitions there are of each. Every one gets a row of its own.
        term_shares: Part of the PE's own cycles that products of block weights take, by name:
            where zero terms are left out (`TermReport.product_ratios`). None: all of them.
        pe_area: Area and leakage of the PE; None: the area of the array is not known.
        logic: Energy of the PE and what surrounds it on the products' operands, and its leakage;
            None: the energy of the logic is not known.
        notes: What a reader of the result should know.

    Raises:
        InputError: A buffer outside the SRAM table or too small, an unknown format, repetitions
            that do not add up, shares or energies beside `mixed`, or more cycles or bytes than
            64-bit counters hold.
    """
    plain = plain or Operand(block.step_cycles)
    cache = cache or Operand(block.step_cycles)
    act = _activations(accelerator, act_format)
    one_format = logic is not None and not _of_all(logic, workload, mixed)
    if mixed and (term_shares or one_format):
        raise InputError(
            f"{'term_shares' if term_shares else 'logic'} is that of one format; leave it out of "
            "a run with several, or add up runs of one format each (MixedCosts)"
        )
    prepared = _prepare(*_operands(workload.gemms, block, plain, cache, mixed), cache, act)
    banks = accelerator.weight_bank(), accelerator.activation_bank()
    interface = find_dram(accelerator.dram)
    array = _array(accelerator)
    if term_shares:
        _check_shares(term_shares, prepared.gemms)
        notes = (*notes, "zero terms of block weights are left out, see term_shares")
    products = _products(prepared, accelerator, term_shares)
    _check_counters(prepared, products, array)
    mapped = map_products(products, array)
    if (mapped[:, 0] < 0).any():
        raise _too_small(prepared, mapped, accelerator, products)
    columns = _columns(prepared, mapped, accelerator, banks, interface, array)
    vector = _vector(workload, accelerator, interface, array)
    cycles = int(columns["cycles"].sum()) + int(vector["cycles"].sum())

    seconds_per_cycle = accelerator.clock_ps * 1e-12
    leak_mw = accelerator.banks * (banks[0].leak_mw + banks[1].leak_mw)
    logic_mw = None if pe_area is None else _logic_mw(accelerator, pe_area)
    if logic is not None:
        logic_mw = accelerator.rows * accelerator.cols * logic.leakage_uw * 1e-3
    all_leak_mw = leak_mw + (logic_mw or 0.0)
    standing_mw = interface.standing_mw
    for rows in (columns, vector):
        seconds = rows["cycles"] * seconds_per_cycle
        rows["standing_uj"] = standing_mw * 1e3 * seconds  # mW * s = mJ
        rows["leakage_uj"] = all_leak_mw * 1e3 * seconds
    parts_uj: dict[str, float] = {}
    if logic is not None:
        columns["logic_uj"], parts_uj = _logic(prepared, products, columns, accelerator, logic)
        pes = accelerator.rows * accelerator.cols
        vector["logic_uj"] = vector["cycles"] * (pes * logic.mean.stalled_pj * logic.factor * 1e-6)
    latency_s = cycles * seconds_per_cycle
    return SimulationResult(
        name=workload.name,
        phase=workload.phase,
        tokens=workload.tokens,
        context=workload.context,
        design=(
            f"{accelerator.pe} PEs, {accelerator.rows} x {accelerator.cols} x "
            f"{accelerator.lanes} lanes"
        ),
        config={
            **_config(accelerator, {"block": block, "plain": plain, "cache": cache}, act),
            "term_shares": {name: float(part) for name, part in (term_shares or {}).items()},
        },
        clock_ps=accelerator.clock_ps,
        layers=Table(LayerResult, columns, len(prepared.gemms)),
        logic_uj=(
            None
            if logic is None
            else float(columns["logic_uj"].sum()) + float(vector["logic_uj"].sum())
        ),
        leakage_uj=all_leak_mw * latency_s * 1e3,
        area=_area(accelerator, banks, pe_area),
        energy_note=LOGIC_NOTE if logic is None else MEASURED_NOTE,
        notes=(*notes, *_notes(accelerator, banks, pe_area)),
        sources=(
            f"shape: {workload.source}",
            f"array: {accelerator.source}",
            f"cycles: model of the {accelerator.pe} PE, {block.step_cycles} a step of "
            f"{accelerator.lanes} weights ({plain.step_cycles} in the output layer, "
            f"{cache.step_cycles} in attention), activations in {act.name if act else 'fp16'}",
            *_memory_sources(accelerator.banks, banks, interface),
            f"PE area: {pe_area.source}" if pe_area else "PE area: not given",
            *(() if logic is None else (f"logic energy: {logic.source}",)),
        ),
        vector=Table(VectorResult, vector, len(workload.vector)),
        standing_uj=standing_mw * latency_s * 1e3,
        logic_leakage_uj=None if not logic_mw else logic_mw * latency_s * 1e3,
        batch=workload.batch,
        logic_parts_uj=parts_uj,
    )


def _logic(
    prepared: _Prepared,
    products: np.ndarray,
    columns: Mapping[str, Any],
    accelerator: Accelerator,
    logic: LogicEnergy,
) -> tuple[np.ndarray, dict[str, float]]:
    """Switching energy of the array by product, and that of active cycles by part, in uJ."""
    names = columns["name"]
    pj = product_energies(logic, names)
    share = products[:, _FIELD["share"]] / SHARE
    full = prepared.lane_cycles / accelerator.lanes
    busy = columns["compute_cycles"] - sum(columns[f"{cause}_cycles"] for cause in ARRAY_CAUSES)
    stretched = columns["port_cycles"] > 0
    energy = logic_uj(
        pj,
        pes=accelerator.rows * accelerator.cols,
        cycles=columns["cycles"],
        busy=busy,
        used=full * share,
        skipped=full * (1 - share),
        stops=np.where(stretched, busy / products[:, _FIELD["pe_step"]], 0.0),
    )
    parts: dict[str, float] = {}
    for name, used in zip(names, full * share, strict=True):
        for part, value in logic.of(name).breakdown.items():
            parts[part] = parts.get(part, 0.0) + float(used) * value * logic.factor * 1e-6
    return energy, parts


def _activations(accelerator: Accelerator, name: str | None) -> Format | None:
    if name is None:
        return activation_format(accelerator.pe)
    return None if name == "fp16" else pick(FORMATS, name, "act_format")


def _check_counters(prepared: _Prepared, products: np.ndarray, array: Array) -> None:
    once = largest_counter(products, array)
    most = once * prepared.count
    # The mapper weighs mappings with a multiple of their cycles.
    if most.sum() > _LARGEST or once.max(initial=0) * (THRIFT + 1) > _LARGEST:
        gemm = prepared.gemms[int(most.argmax())]
        raise InputError(
            f"{gemm.name}: {gemm.count} x m {gemm.m} x n {gemm.n} x k {gemm.k} may take more "
            "cycles or bits than the counters hold (2**63 - 1); split the workload"
        )


def _too_small(
    prepared: _Prepared, mapped: np.ndarray, accelerator: Accelerator, products: np.ndarray
) -> InputError:
    """What is needed by the first product that does not fit."""
    number = int((mapped[:, 0] < 0).argmax())
    p, gemm = Product(*products[number].tolist()), prepared.gemms[number]
    step, rows, cols = (
        min(accelerator.lanes, p.k),
        min(accelerator.rows, p.m),
        min(accelerator.cols, p.n),
    )

    if mapped[number, 0] == X_TOO_SMALL:
        needed = 2 * rows * x_row(p, step) + 2 * y_size(p, rows * cols)
        name, what = "activation_buffer_kib", f"two steps of {rows} tokens and two tiles of results"
        size = accelerator.activation_buffer_kib
    else:
        needed, name = 2 * cols * w_row(p, step), "weight_buffer_kib"
        what, size = f"two steps of {cols} output channels", accelerator.weight_buffer_kib
    return InputError(
        f"{name} is {size}: too small for one tile of {gemm.name}; {what} take {needed} bits, so "
        f"at least {-(-needed // 8192)} KiB, or take an array with fewer rows, cols or lanes"
    )


def _columns(
    prepared: _Prepared,
    mapped: np.ndarray,
    accelerator: Accelerator,
    banks: tuple[SRAMBank, SRAMBank],
    interface: DRAM,
    array: Array,
) -> dict[str, Any]:
    """The columns of `LayerResult`, of all repetitions."""
    count = prepared.count
    get = {name: mapped[:, number] for name, number in _COLUMN.items()}
    w_moved, x_moved, y_made = get["w_moved"], get["x_moved"], get["y_made"]
    bits = w_moved + x_moved + y_made
    dram_cycles = -(-bits * array.rate_cycles // array.rate_bits)
    done = mapped[:, _COLUMN["busy"] : _COLUMN["drain"] + 1].sum(axis=1)
    once = done + get["dram"] + get["latency"]
    w_word = accelerator.cols * accelerator.lanes * accelerator.weight_lane_bits
    x_word = accelerator.rows * accelerator.lanes * accelerator.activation_lane_bits
    conflict = np.maximum(
        _conflicts(accelerator, banks[0], w_word, get["w_read"], w_moved, once),
        _conflicts(accelerator, banks[1], x_word, get["x_read"] + y_made, x_moved + y_made, once),
    )
    cycles = count * (once + conflict)
    w_bytes, x_bytes, y_bytes = (count * (-(-moved // 8)) for moved in (w_moved, x_moved, y_made))
    w_out, x_out = (count * (-(-get[name] // 8)) for name in ("w_read", "x_read"))
    of_cache, to_cache = prepared.of_cache, prepared.to_cache
    sram_pj = _access_pj(banks[0], count * get["w_read"], count * w_moved) + _access_pj(
        banks[1], count * (get["x_read"] + y_made), count * (x_moved + y_made)
    )
    moved = w_bytes + x_bytes + y_bytes
    lanes = accelerator.rows * accelerator.cols * accelerator.lanes
    order, blocks = get["order"], get["blocks"]
    tiles_m = -(-prepared.products[:, 0] // get["high"])
    tiles_n = -(-prepared.products[:, 1] // get["wide"])
    return {
        "name": [gemm.name for gemm in prepared.gemms],
        "m": [gemm.m for gemm in prepared.gemms],
        "n": [gemm.n for gemm in prepared.gemms],
        "k": [gemm.k for gemm in prepared.gemms],
        "count": count,
        "kind": [gemm.kind for gemm in prepared.gemms],
        "compute_cycles": count * (done + conflict),
        "dram_cycles": count * dram_cycles,
        "cycles": cycles,
        "weight_bytes": np.where(of_cache, 0, w_bytes),
        "input_bytes": x_bytes,
        "output_bytes": np.where(to_cache, 0, y_bytes),
        "weight_fetches": np.choose(order, [np.where(tiles_n == 1, 1, blocks), 1, tiles_m]),
        "input_fetches": np.choose(order, [1, np.where(tiles_m == 1, 1, blocks), tiles_n]),
        "sram_uj": sram_pj * 1e-6,
        "dram_uj": interface.transfer_pj(moved) * 1e-6,
        "cache_bytes": np.where(of_cache, w_bytes, 0) + np.where(to_cache, y_bytes, 0),
        "fill_cycles": count * get["fill"],
        "port_cycles": count * get["port"],
        "conflict_cycles": count * conflict,
        "scale_cycles": count * get["scale"],
        "drain_cycles": count * get["drain"],
        "latency_cycles": count * get["latency"],
        "macs": prepared.macs,
        "utilisation": prepared.lane_cycles / (cycles * float(lanes)),
        "mapping": _Mappings(mapped),
        "weight_buffer_write_bytes": w_bytes,
        "weight_buffer_read_bytes": w_out,
        "activation_buffer_write_bytes": x_bytes,
        "activation_buffer_read_bytes": x_out,
        "result_bytes": y_bytes,
    }


class _Mappings(list[str]):
    """Mappings in words, written when they are read."""

    def __init__(self, mapped: np.ndarray) -> None:
        super().__init__()
        self._mapped = mapped

    def __iter__(self):  # type: ignore[no-untyped-def]
        for row in self._mapped.tolist():
            this = Mapped(*row)
            tile = f"tiles of {this.high} x {this.wide}"
            kept = "" if ORDERS[this.order] == "stream" else f" {this.block}"
            yield f"{ORDERS[this.order]}{kept}, {tile}"


def _conflicts(
    accelerator: Accelerator,
    bank: SRAMBank,
    word_bits: int,
    read_bits: np.ndarray,
    written_bits: np.ndarray,
    cycles: np.ndarray,
) -> np.ndarray:
    """Cycles that a buffer adds to one repetition of each product."""
    ways, accesses = interleaving(accelerator.banks, bank.width_bits, word_bits)
    return conflict_cycles(
        -(-read_bits // word_bits) * accesses,
        -(-written_bits // word_bits) * accesses,
        cycles,
        ports=accelerator.sram_ports,
        busy_cycles=_busy(bank.cycle_ns, accelerator.clock_ps),
        ways=ways,
    )


_busy = lru_cache(maxsize=4096)(bank_busy_cycles)


def _access_pj(bank: SRAMBank, read_bits: np.ndarray, written_bits: np.ndarray) -> np.ndarray:
    """Energy of moving so many bits through the ports of such banks."""
    return (read_bits * bank.read_pj + written_bits * bank.write_pj) / bank.width_bits


@lru_cache(maxsize=256)
def _vector_work(workload: Workload, lanes: int) -> dict[str, Any]:
    """Columns of `VectorResult` that need no DRAM."""
    from bitwright.sim import VectorUnit, dram_bytes, vector_cycles

    ops = workload.vector
    return {
        "name": [op.name for op in ops],
        "function": [op.function for op in ops],
        "elements": [op.elements for op in ops],
        "busy_cycles": vector_cycles(ops, VectorUnit(lanes)),
        "dram_bytes": np.array([dram_bytes(op) for op in ops], np.int64),
    }


def _vector(
    workload: Workload, accelerator: Accelerator, interface: DRAM, array: Array
) -> dict[str, Any]:
    """The columns of `VectorResult`."""
    columns = dict(_vector_work(workload, accelerator.vector_lanes))
    moved = columns["dram_bytes"]
    transfer = -(-8 * moved * array.rate_cycles // array.rate_bits)
    columns["cycles"] = np.maximum(columns["busy_cycles"], transfer)
    columns["dram_uj"] = interface.transfer_pj(moved) * 1e-6
    return columns


def _logic_mw(accelerator: Accelerator, area: PEArea) -> float:
    pes = accelerator.rows * accelerator.cols
    return (pes * area.leakage_uw + accelerator.shared_units * area.encoder_leakage_uw) * 1e-3


def _area(
    accelerator: Accelerator, banks: tuple[SRAMBank, SRAMBank], pe_area: PEArea | None
) -> Area:
    pes = accelerator.rows * accelerator.cols
    return Area(
        array=None if pe_area is None else pes * pe_area.pe_um2 * 1e-6,
        encoders=None if pe_area is None else accelerator.shared_units * pe_area.encoder_um2 * 1e-6,
        sram=accelerator.banks * (banks[0].area_mm2 + banks[1].area_mm2),
    )


def _config(
    accelerator: Accelerator, operands: dict[Kind, Operand], act: Format | None
) -> dict[str, Any]:
    return {
        **{entry.name: getattr(accelerator, entry.name) for entry in fields(accelerator)},
        "activations": act.name if act else "fp16",
        "operands": {
            kind: {
                "format": operand.format.name if operand.format else "fp16",
                "step_cycles": operand.step_cycles,
                "group_size": operand.group_size,
                "scale_format": operand.scale_format,
            }
            for kind, operand in operands.items()
        },
    }


def _notes(
    accelerator: Accelerator, banks: tuple[SRAMBank, SRAMBank], pe_area: PEArea | None
) -> list[str]:
    notes = []
    slowest_ns = max(bank.cycle_ns for bank in banks)
    if slowest_ns * 1000 > accelerator.clock_ps:
        notes.append(
            f"an SRAM bank cycles in {slowest_ns:.2f} ns, slower than the clock of "
            f"{accelerator.clock_ps:g} ps: each access takes "
            f"{_busy(slowest_ns, accelerator.clock_ps)} cycles, which counts as conflicts"
        )
    if pe_area and pe_area.delay_ps and pe_area.delay_ps > accelerator.clock_ps:
        notes.append(
            f"the PE's critical path is {pe_area.delay_ps:.0f} ps, longer than the clock of "
            f"{accelerator.clock_ps:g} ps; times hold for a PE that meets the clock"
        )
    return notes


@lru_cache(maxsize=4096)
def _memory_sources(
    count: int, banks: tuple[SRAMBank, SRAMBank], interface: DRAM
) -> tuple[str, ...]:
    timing = "" if interface.policy == "ideal" else f"; timing: {interface.timing_source}"
    power = "" if interface.policy == "ideal" else f"; standing: {interface.power_source}"
    return (
        f"dram {interface.name}: {interface.energy_pj_per_bit:g} pJ/bit, "
        f"{interface.bandwidth_gb_per_s:g} GB/s, {interface.source}{timing}{power}",
        *(
            f"{what} buffer: {count} banks of {bank.capacity_bytes} bytes, "
            f"{bank.width_bits} bits wide, read {bank.read_pj:.4g} pJ, "
            f"write {bank.write_pj:.4g} pJ, leak {bank.leak_mw:.4g} mW, "
            f"{bank.area_mm2:.4g} mm2 each; {bank.source}"
            for what, bank in zip(("weight", "activation"), banks, strict=True)
        ),
    )


# ------------------------------------------------------------------ models


def operands_for(
    recipe: "Recipe",
    step_cycles: Callable[[Format | None], int],
    kv_format: str | None = None,
    kv_group_size: int | None = 128,
) -> tuple[dict[Kind, Operand], list[str]]:
    """What a recipe makes of the three kinds of operand on a PE, and what a reader should know.

    A PE without an FP16 weight mode takes the output layer, and keys and values without a format of
    their own, in its INT8 mode, or in the recipe's format if it has no such mode either; they are
    stored and moved as 16 bits all the same (the recipe does not quantise them).

    Args:
        recipe: The recipe.
        step_cycles: The PE's `step_cycles`.
        kv_format: Of keys and values; None or "fp16": 16 bits.
        kv_group_size: Their groups, see `cache_operand`.

    Raises:
        InputError: The PE cannot run the recipe's format, or that of keys and values.
    """
    recipe.require_codes()
    own_cache = kv_format not in (None, "fp16")
    kept = "output layer" if own_cache else "output layer, keys and values"
    notes = []
    fmt = None if recipe.format is None else FORMATS[recipe.format]
    block = Operand(
        step_cycles(fmt),
        fmt,
        None if fmt is None else recipe.group_size,
        None if fmt is None else recipe.scale_format,
    )
    wide = None
    for mode, words in ((None, ""), (FORMATS["int8-sym"], "8-bit"), (fmt, recipe.format)):
        try:
            wide = Operand(step_cycles(mode))
        except InputError:
            continue
        if mode is not None:
            notes.append(
                f"{kept}: stored and moved as 16 bits, computed in the PE's {words} weight mode "
                "(it has no FP16 weight mode)"
            )
        break
    assert wide is not None  # the recipe's own format runs
    cache = wide
    if kv_format is not None and own_cache:
        cache = cache_operand(step_cycles, kv_format, kv_group_size)
    return {"block": block, "plain": wide, "cache": cache}, notes


def mixed_operands(
    recipe: "Recipe", workload: Workload, step_cycles: Callable[[Format | None], int]
) -> Mixed | None:
    """Repetitions of each product in each format of a recipe's map; None: it has no map.

    Args:
        recipe: The recipe.
        workload: One repetition of every product is one layer.
        step_cycles: The PE's `step_cycles`.

    Raises:
        InputError: The PE cannot run a format, or the map is for another number of layers or other
            products.
    """
    if recipe.format_map is None:
        return None
    counts = {gemm.name: gemm.count for gemm in workload.gemms if gemm.kind == "block"}
    if not counts:  # attention alone
        return None
    if set(counts) != set(LINEARS) or len(set(counts.values())) != 1:
        raise InputError(
            f"{workload.name}: a map of formats is for blocks of {', '.join(LINEARS)}, one of "
            f"each per layer; here are {', '.join(counts)}"
        )
    layers = counts[LINEARS[0]]
    recipe.format_map.check(layers)
    mixed: dict[str, list[tuple[int, Operand]]] = {}
    for name in LINEARS:
        times: dict[Operand, int] = {}
        for layer in range(layers):
            own = recipe.uniform_of(layer, name)
            operand = Operand(
                step_cycles(own.format_obj), own.format_obj, own.group_size, own.scale_format
            )
            times[operand] = times.get(operand, 0) + 1
        mixed[name] = [(count, operand) for operand, count in times.items()]
    return mixed


def cache_operand(
    step_cycles: Callable[[Format | None], int], name: str, group_size: int | None = 128
) -> Operand:
    """Keys and values in a format of their own.

    Args:
        step_cycles: The PE's `step_cycles`.
        name: A name in FORMATS.
        group_size: Columns per scale, along the head for keys and along the positions for values;
            None: one group per row. A format with blocks has its own.

    Raises:
        InputError: An unknown format, or one that the PE cannot run.
    """
    fmt = pick(FORMATS, name, "kv_format")
    group_size = fmt.block or group_size
    if group_size is not None:
        fmt.check_group_size(group_size)
    return Operand(step_cycles(fmt), fmt, group_size, fmt.scale_format)


@lru_cache(maxsize=256)
def _pass(
    shape: ModelShape,
    phase: str,
    tokens: int,
    context: int,
    batch: int,
    causal: bool,
    quantise_inputs: bool,
    quantise_cache: bool,
) -> Workload:
    if phase == "prefill":
        return prefill(
            shape,
            tokens,
            batch=batch,
            causal=causal,
            quantise_inputs=quantise_inputs,
            quantise_cache=quantise_cache,
        )
    return decode(
        shape,
        context,
        batch=batch,
        quantise_inputs=quantise_inputs,
        quantise_cache=quantise_cache,
    )


def output_rows(shape: ModelShape, recipe: "Recipe", notes: list[str] | None = None) -> ModelShape:
    """The shape with as many rows in its output layer as the recipe leaves there.

    Args:
        shape: Of the model.
        recipe: Whose codebook for the output layer counts, if it has one.
        notes: Takes a line on what that means.

    Raises:
        InputError: A codebook larger than the output layer.
    """
    if recipe.head is None:
        return shape
    recipe.head.check(shape.vocab)
    if notes is not None:
        notes.append(
            f"output layer: a product with {recipe.head.codes} code vectors, and the best of their "
            "scores; the map from tokens to codes is not read"
        )
    return replace(shape, vocab=recipe.head.codes)


def simulate_model(
    shape: ModelShape | Workload | str,
    recipe: "Recipe | str" = "bitmod4",
    phase: str = "prefill",
    *,
    tokens: int = 256,
    context: int = 256,
    batch: int = 1,
    causal: bool = True,
    kv_format: str | None = None,
    kv_group_size: int | None = 128,
    pe: str | None = None,
    accelerator: Accelerator | None = None,
    term_shares: Mapping[str, Fraction] | None = None,
    pe_area: PEArea | None = None,
    logic: LogicEnergy | None = None,
) -> SimulationResult:
    """One pass of a language model, quantised by a recipe, on an accelerator.

    Args:
        shape: A shape, the name of one, or a workload of one's own.
        recipe: A `Recipe` or its name.
        phase: "prefill" (of `tokens` tokens) or "decode" (one token at `context` positions).
        tokens: Length of the prompt.
        context: Positions that the generated token attends to.
        batch: Sequences side by side; they share the weights, each has its cache.
        causal: A prefill skips what lies above the diagonal.
        kv_format: Format of keys and values, which the vector unit then quantises; None or "fp16":
            16 bits.
        kv_group_size: Its groups, see `cache_operand`.
        pe: PE by name; None: the accelerator's, else "fp16" for FP16 weights, else "bitmod".
        accelerator: None: the default of the PE.
        term_shares: As in `simulate`.
        pe_area: Area of the PE, if known.
        logic: Energy of the logic, as in `simulate`.

    Raises:
        InputError: Something unknown, or a PE that cannot run the recipe's format.
    """
    from bitwright.quant import resolve_recipe
    from bitwright.sim import PES

    recipe = resolve_recipe(recipe)
    if phase not in ("prefill", "decode"):
        raise InputError(f"phase is {phase!r}; one of prefill, decode")
    if accelerator is None:
        accelerator = default_accelerator(pe or ("fp16" if recipe.format is None else "bitmod"))
    if pe not in (None, accelerator.pe):
        raise InputError(f"pe is {pe!r}, but the accelerator's is {accelerator.pe!r}")
    unit = pick(PES, accelerator.pe, "pe")
    operands, notes = operands_for(recipe, unit.step_cycles, kv_format, kv_group_size)
    if accelerator.scale_cycles and recipe.scale_format == "fp16":
        notes.append(
            "the recipe's group scales are fp16, the PE's scale unit takes 8-bit scales: cycles "
            "are those of the recipe with int8 scales (suffix -s8), traffic is that of this recipe"
        )
    if isinstance(shape, str):
        shape = load_shape(shape)
    if isinstance(shape, ModelShape):
        shape = _pass(
            *(output_rows(shape, recipe, notes), phase, tokens, context, batch, causal),
            activation_format(accelerator.pe) is not None,
            operands["cache"].format is not None,
        )
    mixed = mixed_operands(recipe, shape, unit.step_cycles)
    if mixed is not None and recipe.format_map is not None:
        notes.append(f"{recipe.format_map.short()}: a row for each format of a product")
    result = simulate(
        shape,
        accelerator,
        block=operands["block"],
        plain=operands["plain"],
        cache=operands["cache"],
        mixed=mixed,
        term_shares=term_shares,
        pe_area=pe_area,
        logic=logic,
        notes=notes,
    )
    result.config["recipe"] = recipe.name
    return result
