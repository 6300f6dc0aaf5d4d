"""Streams and traces through a design in Verilator at millions of clock cycles a second.

A C++ driver, written for the design's ports, runs the emitted Verilog and mapped netlists alike.
With a stream it shows a step in every cycle and writes down each `y` with the cycle of its
`y_valid`; with a trace it shows what the trace says cycle by cycle, as the cocotb bench does
(bench/replay.py), and writes down the cycles in which an output differs.
"""

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from .pe import Design
from .vectors import Stream, Trace
from .verilator import build_binary, run_binary

#: Clock cycles without a result, beside the steps of the longest dot product, after which it
#: is given up.
PATIENCE = 100_000

_RESULT = np.dtype([("cycle", "<u8"), ("y", "<u4")])

_DRIVER = """\
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>
#include "Vtop.h"
#include "verilated.h"

#pragma pack(push, 1)
struct Step { @STEP@ };
struct Setup { @SETUP@ };
struct Result { uint64_t cycle; uint32_t y; };
struct Cycle { @CYCLE@ uint8_t wanted_ready, wanted_valid; uint32_t wanted_y; };
#pragma pack(pop)

// stdin: counts of set-up cycles, steps and results, patience (4 x uint64), then the records.
static int stream(Vtop& top) {
    uint64_t count[4];
    if (fread(count, sizeof count, 1, stdin) != 1) return 2;
    std::vector<Setup> setup(count[0]);
    std::vector<Step> steps(count[1]);
    if (fread(setup.data(), sizeof(Setup), count[0], stdin) != count[0]) return 2;
    if (fread(steps.data(), sizeof(Step), count[1], stdin) != count[1]) return 2;
    std::vector<Result> results;
    results.reserve(count[2]);

    auto low = [&] { top.clk = 0; top.eval(); };
    auto high = [&] { top.clk = 1; top.eval(); };
    top.rst = 1;
    top.valid = 0;
    @CLEAR@
    for (int i = 0; i < 2; i++) { low(); high(); }
    top.rst = 0;
    for (const Setup& s : setup) {
        @WRITE_SETUP@
        low(); high();
    }
    @CLEAR@

    uint64_t next = 0, last = 0;
    for (uint64_t cycle = 0; results.size() < count[2] && cycle - last < count[3]; cycle++) {
        top.valid = next < count[1];
        if (top.valid) {
            const Step& s = steps[next];
            @WRITE_STEP@
        }
        low();
        if (top.y_valid) {
            results.push_back({cycle, (uint32_t)top.y});
            last = cycle;
        }
        if (top.valid && @READY@) next++;
        high();
    }
    // A result too many shows within the drain.
    top.valid = 0;
    low();
    for (int i = 0; i < 64; i++) {
        high(); low();
        if (top.y_valid) results.push_back({UINT64_MAX, (uint32_t)top.y});
    }
    fwrite(results.data(), sizeof(Result), results.size(), stdout);
    return 0;
}

// stdin: the count of cycles (uint64), then their records; stdout: those that differ (uint64).
static int trace(Vtop& top) {
    uint64_t count;
    if (fread(&count, sizeof count, 1, stdin) != 1) return 2;
    std::vector<Cycle> cycles(count);
    if (fread(cycles.data(), sizeof(Cycle), count, stdin) != count) return 2;
    for (uint64_t cycle = 0; cycle < count; cycle++) {
        const Cycle& s = cycles[cycle];
        @WRITE_CYCLE@
        top.clk = 0;
        top.eval();
        bool same = !s.valid || @READY@ == s.wanted_ready;
        same = same && top.y_valid == s.wanted_valid;
        same = same && (!s.wanted_valid || (uint32_t)top.y == s.wanted_y);
        // The first cycle is the reset itself.
        if (cycle && !same) fwrite(&cycle, sizeof cycle, 1, stdout);
        top.clk = 1;
        top.eval();
    }
    return 0;
}

// Arguments: stream or trace, then the values of the constant ports.
int main(int argc, char** argv) {
    if (argc != 2 + @CONSTANTS@) return 2;
    VerilatedContext context;
    context.randReset(2);  // registers start at random
    context.randSeed(1);
    Vtop top{&context};
    @WRITE_CONSTANTS@
    return strcmp(argv[1], "trace") ? stream(top) : trace(top);
}
"""


def build_driver(
    design: Design, sources: Sequence[Path | str], constants: Sequence[str] = ()
) -> Path:
    """The simulator of a design: its Verilog, or a netlist with the models of its cells.

    Args:
        design: Its ports.
        sources: As `build_binary` takes them.
        constants: More input ports, which keep one value during a run.

    Raises:
        InputError: Verilator or what it needs is missing.
        RuntimeError: The Verilog does not compile.
    """
    step, setup = design.step_ports, design.setup_ports
    text = _DRIVER
    for mark, code in {
        "@STEP@": _fields(step),
        "@SETUP@": _fields(setup),
        "@CYCLE@": _fields(_trace_ports(design)),
        "@CLEAR@": " ".join(f"top.{name} = 0;" for name in setup),
        "@WRITE_SETUP@": _assignments(setup),
        "@WRITE_STEP@": _assignments(step),
        "@WRITE_CYCLE@": _assignments(_trace_ports(design)),
        "@READY@": "top.ready" if design.has_ready else "true",
        "@CONSTANTS@": str(len(constants)),
        "@WRITE_CONSTANTS@": " ".join(
            f"top.{name} = strtoull(argv[{i}], nullptr, 10);"
            for i, name in enumerate(constants, start=2)
        ),
    }.items():
        text = text.replace(mark, code)
    return build_binary(sources, design.top, text, ["--x-initial", "unique"])


def run_stream(
    program: Path,
    design: Design,
    stream: Stream,
    *,
    constants: Sequence[int] = (),
    timeout_s: float = 600,
) -> tuple[np.ndarray, np.ndarray]:
    """The stream's results through a driver: y bits, uint32, and the cycle of each, int64.

    Cycles count from the first one with a step. A design that stops answering gives fewer results;
    one that answers too often gives more, with cycle -1.

    Args:
        program: From `build_driver`.
        design: The design that it was built for.
        stream: The steps.
        constants: Values of the constant ports, in the order in which they were named.
        timeout_s: The program is stopped after this many seconds.

    Raises:
        RuntimeError: The program fails or takes longer than `timeout_s`.
    """
    setup = np.zeros(len(stream.setup), _record(design.setup_ports))
    for i, values in enumerate(stream.setup):
        for name, value in values.items():
            setup[name][i] = value
    steps = np.zeros(stream.steps, _record(design.step_ports))
    for name in design.step_ports:
        steps[name] = stream.ports[name]
    longest = int(np.diff(np.flatnonzero(stream.ends), prepend=-1).max(initial=0))
    counts = struct.pack("<4Q", len(setup), len(steps), stream.dots, PATIENCE + longest)
    # An empty record type has no bytes in numpy and one in C++.
    data = counts + (setup.tobytes() if design.setup_ports else b"") + steps.tobytes()
    args = ["stream", *map(str, constants)]
    results = np.frombuffer(run_binary(program, args, data, timeout_s=timeout_s), _RESULT)
    return results["y"].copy(), results["cycle"].astype(np.int64)


def differing_cycles(
    program: Path,
    design: Design,
    trace: Trace,
    *,
    constants: Sequence[int] = (),
    timeout_s: float = 600,
) -> np.ndarray:
    """The clock cycles of a trace, int64 and rising, in which an output differs.

    The cocotb bench's rule: `ready` is compared while `valid` is high, `y` while `y_valid` is; the
    first cycle, a reset, is not compared. Arguments and errors are those of `run_stream`.
    """
    cycles = np.zeros(
        len(trace.inputs), _record({**_trace_ports(design), "ready": 8, "y_valid": 8, "y": 32})
    )
    for name in _trace_ports(design):
        cycles[name] = [inputs.get(name, 0) for inputs in trace.inputs]
    outputs = np.array(trace.outputs, np.uint32).reshape(-1, 3)
    for name, column in zip(("ready", "y_valid", "y"), outputs.T, strict=True):
        cycles[name] = column
    data = struct.pack("<Q", len(cycles)) + cycles.tobytes()
    args = ["trace", *map(str, constants)]
    found = np.frombuffer(run_binary(program, args, data, timeout_s=timeout_s), "<u8")
    return found.astype(np.int64)


def run_trace(program: Path, design: Design, trace: Trace, *, constants: Sequence[int] = ()) -> int:
    """How many clock cycles of a trace differ (`differing_cycles`)."""
    return len(differing_cycles(program, design, trace, constants=constants))


def _trace_ports(design: Design) -> dict[str, int]:
    return {"rst": 1, "valid": 1, **design.step_ports, **design.setup_ports}


def _assignments(ports: Mapping[str, int]) -> str:
    return " ".join(f"top.{name} = s.{name};" for name in ports)


def _bytes(bits: int) -> int:
    return next(size for size in (1, 2, 4, 8) if bits <= 8 * size)


def _fields(ports: Mapping[str, int]) -> str:
    return " ".join(f"uint{8 * _bytes(bits)}_t {name};" for name, bits in ports.items())


def _record(ports: Mapping[str, int]) -> np.dtype:
    return np.dtype([(name, f"<u{_bytes(bits)}") for name, bits in ports.items()])
