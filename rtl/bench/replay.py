"""cocotb bench: replays traces into a design and compares its outputs in every clock cycle.

`vectors.json` names the design's inputs and outputs with their widths, and the traces; each line of
a trace is a clock cycle: the inputs as one word, the outputs that the model gave, and a mask of the
output bits that are defined and compared; hexadecimal, the first port in the highest bits. A trace
in which no result (`y_valid`) was compared fails. The last test, `coverage`, adds up the coverage
bins of the traces that were equal in every cycle, and fails if one that `vectors.json` asks for
stays empty.

Needs cocotb alone. Environment: BENCH_VECTORS, the folder of `vectors.json`; BENCH_REPORT, the
JSON file for the counts. Both default to this file's folder.
"""

import json
import os
from pathlib import Path

import cocotb
from cocotb.clock import Clock
from cocotb.triggers import FallingEdge, RisingEdge

HERE = Path(__file__).resolve().parent
VECTORS = Path(os.environ.get("BENCH_VECTORS", HERE / "vectors"))
REPORT = Path(os.environ.get("BENCH_REPORT", HERE / "report.json"))
DESCRIPTION = json.loads((VECTORS / "vectors.json").read_text())
TRACES = {trace["name"]: trace for trace in DESCRIPTION["traces"]}
SHOWN = 5  #: mismatches of a trace that are written to the log

report: dict[str, dict[str, dict[str, int]]] = {"traces": {}, "coverage": {}}


def fields(dut, ports):  # type: ignore[no-untyped-def]
    """Name, handle, lowest bit and mask of each port in a word."""
    found, shift = [], sum(width for _, width in ports)
    for port, width in ports:
        shift -= width
        found.append((port, getattr(dut, port), shift, (1 << width) - 1))
    return found


@cocotb.test()
@cocotb.parametrize(name=list(TRACES))
async def replay(dut, name: str) -> None:  # type: ignore[no-untyped-def]
    """One trace: every cycle of it, from its reset on."""
    inputs, outputs = fields(dut, DESCRIPTION["inputs"]), fields(dut, DESCRIPTION["outputs"])
    result = next(1 << low for port, _, low, _ in outputs if port == "y_valid")
    Clock(dut.clk, 10, unit="ns").start()
    shown = [None] * len(inputs)
    compared = results = mismatches = 0
    with (VECTORS / TRACES[name]["file"]).open() as lines:
        for cycle, line in enumerate(lines):
            word, wanted, compare = (int(text, 16) for text in line.split())
            await RisingEdge(dut.clk)
            for i, (_, handle, low, mask) in enumerate(inputs):
                value = word >> low & mask
                if value != shown[i]:
                    handle.value = value
                    shown[i] = value
            await FallingEdge(dut.clk)
            got = 0
            for _, handle, low, mask in outputs:
                if compare >> low & mask:  # what is not compared may be undefined
                    got |= int(handle.value) << low
            compared += compare != 0
            results += wanted & compare & result != 0
            if (got ^ wanted) & compare:
                mismatches += 1
                if mismatches <= SHOWN:
                    dut._log.error(
                        "cycle %d: got %x, expected %x", cycle, got & compare, wanted & compare
                    )

    report["traces"][name] = {
        "cycles": cycle + 1,
        "compared": compared,
        "results": results,
        "mismatches": mismatches,
    }
    REPORT.write_text(json.dumps(report, indent=1))
    assert results > 0, f"{name}: no result was compared"
    assert mismatches == 0, f"{name}: {mismatches} of {compared} cycles differ"


@cocotb.test(stage=1)  # after every trace
async def coverage(dut) -> None:  # type: ignore[no-untyped-def]
    """Every bin asked for is hit by a trace that was equal in every cycle."""
    hits = {mode: dict.fromkeys(bins, 0) for mode, bins in DESCRIPTION["bins"].items()}
    for name, counts in report["traces"].items():
        if hits and counts["mismatches"] == 0:
            for bin_name, count in TRACES[name]["covers"].items():
                hits[TRACES[name]["mode"]][bin_name] += count
    report["coverage"] = hits
    REPORT.write_text(json.dumps(report, indent=1))
    empty = {mode: [name for name in bins if not bins[name]] for mode, bins in hits.items()}
    for mode, names in empty.items():
        for name in names:
            dut._log.error("bin never hit in mode %s: %s", mode, name)
    assert not any(empty.values()), f"{sum(map(len, empty.values()))} coverage bins were never hit"
