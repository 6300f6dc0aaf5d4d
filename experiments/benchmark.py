"""How fast the package's own hot paths run, each as a ratio to a named baseline in the same run."""

import re
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import product
from typing import Any

import numba
import numpy as np

from bitwright.kernels import bitserial_matmul
from bitwright.quant import FORMATS, Progress, quantize, resolve_recipe, rtn_reference
from bitwright.rtl import (
    activity,
    bulk,
    find_design,
    netlist,
    resolve_technology,
    saif,
    synthesise,
    verification,
)
from bitwright.sim import (
    PES,
    SHAPES,
    Accelerator,
    PEArea,
    array,
    decode,
    default_accelerator,
    operands_for,
    prefill,
    simulate_model,
    stepped_cycles,
)

from . import sweep

#: PEs whose bulk verification is measured: the core ones and the widest.
_VERIFIED = ("bitmod", "dint4", "btc", "mxint8")
_SIMULATED = "llama-2-7b"
_AREA = PEArea(1507.7, "BitMoD (HPCA 2025); authors' repo: yc2367/BitMoD sim/")


@dataclass(frozen=True, slots=True)
class BenchRow:
    """One hot path against its baseline."""

    name: str
    shape: str
    rate: float  #: in `unit`
    unit: str
    baseline: str
    baseline_rate: float
    speedup: float


def best_seconds(work: Callable[[], Any], repeats: int = 5) -> float:
    """The shortest of several runs after one that warms up (and compiles)."""
    work()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return min(times)


def _rate(work: Callable[[], Any], amount: float, repeats: int = 5) -> float:
    return amount / best_seconds(work, repeats) / 1e6


def bench(seed: int = 0, progress: Progress | None = None) -> list[BenchRow]:
    """Quantiser, PE models, bulk verification and simulator, in what `BenchRow.unit` says."""
    rng = np.random.default_rng(seed)
    rows: list[BenchRow] = []

    def add(name: str, shape: str, unit: str, rate: float, baseline: str, slow: float) -> None:
        rows.append(BenchRow(name, shape, rate, unit, baseline, slow, rate / slow))

    formats = ("bitmod3", "bitmod4", "int4-asym")
    modes = ("bitmod3", "bitmod4", "int6-sym", "int8-sym")
    total = len(formats) + len(modes) + len(_VERIFIED) + 4
    w = (rng.standard_normal((4096, 4096)) * 0.02).astype(np.float32)
    small = w[:16]
    for name in formats:
        if progress:
            progress(len(rows), total, f"quantise {name}")
        fast = _rate(partial(quantize, w, name, group_size=128), w.size)
        slow = _rate(partial(rtn_reference, small, FORMATS[name], 128), small.size, 1)
        add(f"quantise {name}", "4096x4096", "M weights/s", fast, "numpy definition", slow)
    x = rng.standard_normal((64, 576)).astype(np.float16)
    layer = (rng.standard_normal((1536, 576)) * 0.02).astype(np.float32)
    for name in modes:
        if progress:
            progress(len(rows), total, f"bitmod PE model, {FORMATS[name].name}")
        qt = quantize(layer, name, group_size=64, scale_format="int8")
        tiny = quantize(layer[:16], name, group_size=64, scale_format="int8")
        fast = _rate(partial(PES["bitmod"].gemm, x, qt), x.size * qt.n)
        slow = _rate(partial(bitserial_matmul, x, tiny), x.size * tiny.n, 1)
        add(f"bitmod PE model {name}", "64x576x1536", "M MAC/s", fast, "torch kernel", slow)
    for name in _VERIFIED:
        if progress:
            progress(len(rows), total, f"verify {name} in Verilator")
        design = find_design(name)
        stream = design.random(design.modes[0], 50_000, rng)
        few = verification.recorded(design, stream.sample(200))
        program = bulk.build_driver(design, [design.verilog()])
        simulation = verification.PyrtlSimulation(design)
        fast = 60 * _rate(partial(bulk.run_stream, program, design, stream), stream.dots)
        slow = 60 * _rate(partial(simulation.mismatches, few), few.dots, 1)
        what = f"{stream.steps:,} steps"
        add(f"verify {name}, bulk", what, "M dots/min", fast, "PyRTL simulation", slow)
    if progress:
        progress(len(rows), total, "count toggles of a netlist")
    rows.append(_netlist_activity(rng))
    if progress:
        progress(len(rows), total, "step an array")
    rows.append(_stepped_array())
    if progress:
        progress(len(rows), total, "simulate design points")
    points = _design_points(rng, 200)
    fast = len(points) / best_seconds(lambda: [_design_point(point) for point in points], 3)
    slow = 1 / best_seconds(partial(_stepped_point, points[0]), 1)
    what = f"{_SIMULATED}, prefill + decode"
    add("simulate design points", what, "points/s, 1 core", fast, "phase by phase", slow)
    if progress:
        progress(len(rows), total, "sweep")
    rows.append(_swept_points())
    return rows


def _swept_points() -> BenchRow:
    """Points of a sweep, from axes to rows in a store, and the same through documents."""
    sides, sizes = [8, 16, 24, 32, 48, 64], [128, 256, 512, 1024]
    planned = sweep.plan_sweep(
        sweep.parse_sweep(
            {
                "version": 1,
                "fixed": {"shape": _SIMULATED},
                "axes": {"rows": sides, "cols": sides, "weight_buffer_kib": sizes},
                "measure": {"area": False},
            }
        )
    )

    def swept() -> None:
        with tempfile.TemporaryDirectory() as folder, sweep.Store(f"{folder}/store") as store:
            again = sweep.plan_sweep(planned.spec)
            store.want(again.keys)
            sweep.run_sweep(again, store, sweep.Here())

    points = [planned.point(place) for place in range(0, len(planned), 12)]

    def documents() -> None:
        for point in points:
            sizes = {name: point[name] for name in ("rows", "cols", "weight_buffer_kib")}
            array = replace(default_accelerator("bitmod"), **sizes)
            for phase in ("prefill", "decode"):
                simulate_model(_SIMULATED, "bitmod4", phase, accelerator=array).to_dict()

    fast, slow = len(planned) / best_seconds(swept, 3), len(points) / best_seconds(documents, 3)
    what = f"{_SIMULATED}, {len(planned)} points, stored"
    return BenchRow(
        "sweep", what, fast, "points/s, 1 core", "a document a point", slow, fast / slow
    )


def _netlist_activity(rng: np.random.Generator, cycles: int = 500, lanes: int = 512) -> BenchRow:
    """Cells evaluated, and their nets' toggles counted, in the mapped bit-serial PE."""
    technology = resolve_technology("nangate45")
    verilog = find_design("bitmod").blocks()["total"]
    top = re.findall(r"^module (\w+)", verilog, re.MULTILINE)[-1]
    mapped = synthesise(verilog, top, technology, technology.clock_ps)
    net = netlist.read_netlist(mapped.netlist, technology, name=mapped.top)
    streams = {
        port: rng.integers(1 << len(nets), size=(cycles, lanes)).astype(np.uint64)
        for port, nets in net.inputs.items()
    }
    work = len(net.instances) * cycles
    threads = numba.get_num_threads()
    numba.set_num_threads(1)
    try:
        fast = _rate(partial(activity.simulate, net, streams), work * lanes, 3)
    finally:
        numba.set_num_threads(threads)
    slow = _rate(partial(saif.saif_toggles, net, mapped.netlist, streams), work, 3)
    what = f"bitmod, {len(net.instances):,} cells, {cycles} cycles, {lanes} lanes"
    unit = "M cells/s, 1 core"
    return BenchRow("netlist activity", what, fast, unit, "Verilator, SAIF", slow, fast / slow)


def _stepped_array() -> BenchRow:
    """Clock cycles of a 32 x 32 bit-serial array on a layer of a language model."""
    config = array.ArrayConfig(32, 32, 11, 8, False, 4096, 4096)
    shape = array.jobs.TileShape(32, 32, 32, terms=2)
    layer = array.jobs.plan_jobs(config, 8, 128, shape, "weights").jobs
    one = array.jobs.plan_jobs(config, 1, 2, shape, "weights").jobs
    cycles, few = (array.run_array(config, jobs).cycles for jobs in (layer, one))
    fast = _rate(partial(array.run_array, config, layer), cycles)
    slow = _rate(partial(array.run_reference, config, one), few, 1)
    what = f"256x4096x4096, {cycles:,} cycles"
    return BenchRow(
        "array, every cycle", what, fast, "M cycles/s, 1 core", "plain Python", slow, fast / slow
    )


def _design_points(rng: np.random.Generator, count: int) -> list[Accelerator]:
    """Different arrays and buffers around the default one."""
    base = default_accelerator("bitmod")
    sides, sizes = (8, 16, 24, 32, 48, 64), (128, 256, 512, 1024)
    shapes = list(product(sides, sides, sizes, sizes))
    return [
        replace(base, rows=r, cols=c, weight_buffer_kib=w, activation_buffer_kib=a)
        for r, c, w, a in (shapes[i] for i in rng.permutation(len(shapes))[:count])
    ]


def _design_point(array: Accelerator) -> tuple[float, ...]:
    """Everything that a sweep asks of one point."""
    answer: tuple[float, ...] = ()
    for phase in ("prefill", "decode"):
        result = simulate_model(
            SHAPES[_SIMULATED], "bitmod4", phase, accelerator=array, pe_area=_AREA
        )
        energy = (result.sram_uj, result.dram_uj, result.leakage_uj or 0.0)
        answer += (result.cycles, result.dram_bytes, *energy, result.area.total or 0.0)
    return answer


def _stepped_point(array: Accelerator) -> None:
    """The cycles of the same point through the readable schedule."""
    operands, _ = operands_for(resolve_recipe("bitmod4"), PES["bitmod"].step_cycles)
    for work in (prefill(SHAPES[_SIMULATED]), decode(SHAPES[_SIMULATED])):
        stepped_cycles(
            work,
            array,
            block=operands["block"],
            plain=operands["plain"],
            cache=operands["cache"],
        )


def bench_document(rows: list[BenchRow]) -> dict[str, Any]:
    """The JSON form of `bench`."""
    return {"results": [asdict(row) for row in rows]}
