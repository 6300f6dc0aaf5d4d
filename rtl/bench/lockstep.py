"""cocotb bench: drives a design cycle by cycle and compares all outputs in every clock cycle.

`vectors.json` names the inputs and outputs with their widths, and the traces; each line of a trace
is a clock cycle: the inputs as one word, the outputs that must be seen, and a mask of the bits that
are compared, all in hexadecimal, the first port in the highest bits.

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

report: dict[str, dict[str, dict[str, int]]] = {"traces": {}}


def _fields(dut, ports):  # type: ignore[no-untyped-def]
    fields, shift = [], sum(width for _, width in ports)
    for port, width in ports:
        shift -= width
        fields.append((getattr(dut, port), shift, (1 << width) - 1))
    return fields


@cocotb.test()
@cocotb.parametrize(name=list(TRACES))
async def lockstep(dut, name: str) -> None:  # type: ignore[no-untyped-def]
    """One trace, from its reset on."""
    inputs = _fields(dut, DESCRIPTION["inputs"])
    outputs = _fields(dut, DESCRIPTION["outputs"])
    Clock(dut.clk, 10, unit="ns").start()
    shown = [None] * len(inputs)
    compared = mismatches = 0
    with (VECTORS / TRACES[name]["file"]).open() as lines:
        for cycle, line in enumerate(lines):
            word, wanted, compare = (int(text, 16) for text in line.split())
            await RisingEdge(dut.clk)
            for i, (handle, low, mask) in enumerate(inputs):
                value = word >> low & mask
                if value != shown[i]:
                    handle.value = value
                    shown[i] = value
            await FallingEdge(dut.clk)
            got = 0
            for handle, low, mask in outputs:
                if compare >> low & mask:
                    got |= int(handle.value) << low
            compared += compare != 0
            if (got ^ wanted) & compare:
                mismatches += 1
                if mismatches <= SHOWN:
                    dut._log.error("cycle %d: got %x, expected %x", cycle, got & compare, wanted)

    report["traces"][name] = {
        "cycles": cycle + 1,
        "compared": compared,
        "mismatches": mismatches,
    }
    REPORT.write_text(json.dumps(report, indent=1))
    assert compared > 0, f"{name}: nothing was compared"
    assert mismatches == 0, f"{name}: {mismatches} of {compared} cycles differ"
