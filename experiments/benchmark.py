"""How fast the package's own hot paths run, each as a ratio to a named baseline in the same run."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np

from bitwright.kernels import bitserial_matmul
from bitwright.quant import FORMATS, Progress, quantize, rtn_reference
from bitwright.rtl import bulk, find_design, verification
from bitwright.sim import PES

#: PEs whose bulk verification is measured: the core ones and the widest.
_VERIFIED = ("bitmod", "dint4", "btc", "mxint8")


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
    """Quantiser, PE models and bulk verification, in millions of what `BenchRow.unit` says."""
    rng = np.random.default_rng(seed)
    rows: list[BenchRow] = []

    def add(name: str, shape: str, unit: str, rate: float, baseline: str, slow: float) -> None:
        rows.append(BenchRow(name, shape, rate, unit, baseline, slow, rate / slow))

    formats = ("bitmod3", "bitmod4", "int4-asym")
    modes = ("bitmod3", "bitmod4", "int6-sym", "int8-sym")
    total = len(formats) + len(modes) + len(_VERIFIED)
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
    return rows


def bench_document(rows: list[BenchRow]) -> dict[str, Any]:
    """The JSON form of `bench`."""
    return {"results": [asdict(row) for row in rows]}
