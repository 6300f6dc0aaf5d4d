"""Streams of steps through a design in Verilator at millions of clock cycles a second.

A C++ driver, written for the design's ports, shows a step in every cycle and writes down each `y`
with the cycle of its `y_valid`. It runs the emitted Verilog and mapped netlists alike.
"""

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from .pe import Design
from .vectors import Stream
from .verilator import build_binary, run_binary

#: Clock cycles without a result after which the driver gives up.
PATIENCE = 100_000

_RESULT = np.dtype([("cycle", "<u8"), ("y", "<u4")])

_DRIVER = """\
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <vector>
#include "Vtop.h"
#include "verilated.h"

#pragma pack(push, 1)
struct Step { @STEP@ };
struct Setup { @SETUP@ };
struct Result { uint64_t cycle; uint32_t y; };
#pragma pack(pop)

// stdin: counts of set-up cycles, steps and results, patience (4 x uint64), then the records.
int main() {
    uint64_t count[4];
    if (fread(count, sizeof count, 1, stdin) != 1) return 2;
    std::vector<Setup> setup(count[0]);
    std::vector<Step> steps(count[1]);
    if (fread(setup.data(), sizeof(Setup), count[0], stdin) != count[0]) return 2;
    if (fread(steps.data(), sizeof(Step), count[1], stdin) != count[1]) return 2;
    std::vector<Result> results;
    results.reserve(count[2]);

    VerilatedContext context;
    context.randReset(2);  // registers start at random
    context.randSeed(1);
    Vtop top{&context};
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
"""


def build_driver(design: Design, sources: Sequence[Path | str]) -> Path:
    """The simulator of a design: its Verilog, or a netlist with the models of its cells.

    Raises:
        InputError: Verilator or what it needs is missing.
        RuntimeError: The Verilog does not compile.
    """
    step, setup = design.step_ports, design.setup_ports
    text = _DRIVER
    for mark, code in {
        "@STEP@": _fields(step),
        "@SETUP@": _fields(setup),
        "@CLEAR@": " ".join(f"top.{name} = 0;" for name in setup),
        "@WRITE_SETUP@": " ".join(f"top.{name} = s.{name};" for name in setup),
        "@WRITE_STEP@": " ".join(f"top.{name} = s.{name};" for name in step),
        "@READY@": "top.ready" if design.has_ready else "true",
    }.items():
        text = text.replace(mark, code)
    return build_binary(sources, design.top, text, ["--x-initial", "unique"])


def run_stream(
    program: Path, design: Design, stream: Stream, *, timeout_s: float = 600
) -> tuple[np.ndarray, np.ndarray]:
    """The stream's results through a driver: y bits, uint32, and the cycle of each, int64.

    Cycles count from the first one with a step. A design that stops answering gives fewer results;
    one that answers too often gives more, with cycle -1.

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
    counts = struct.pack("<4Q", len(setup), len(steps), stream.dots, PATIENCE)
    # An empty record type has no bytes in numpy and one in C++.
    data = counts + (setup.tobytes() if design.setup_ports else b"") + steps.tobytes()
    results = np.frombuffer(run_binary(program, stdin=data, timeout_s=timeout_s), _RESULT)
    return results["y"].copy(), results["cycle"].astype(np.int64)


def _bytes(bits: int) -> int:
    return next(size for size in (1, 2, 4, 8) if bits <= 8 * size)


def _fields(ports: Mapping[str, int]) -> str:
    return " ".join(f"uint{8 * _bytes(bits)}_t {name};" for name, bits in ports.items())


def _record(ports: Mapping[str, int]) -> np.dtype:
    return np.dtype([(name, f"<u{_bytes(bits)}") for name, bits in ports.items()])
