"""cocotb bench: replays traces into a design and compares every clock cycle.

`vectors.json` names the design's ports and the traces; each line of a trace holds a cycle's inputs
and the outputs that the reference model gave: {ready, y_valid, y}. `ready` is compared while
`valid` is high, `y` while `y_valid` is. A trace in which no dot product was compared fails. The
last test, `coverage`, adds up the coverage bins of the traces that were equal in every cycle, and
fails if one stays empty.

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


@cocotb.test()
@cocotb.parametrize(name=list(TRACES))
async def replay(dut, name: str) -> None:  # type: ignore[no-untyped-def]
    """One trace: every cycle of it, from its reset on."""
    fields, shift = [], sum(width for _, width in DESCRIPTION["inputs"])
    for port, width in DESCRIPTION["inputs"]:
        shift -= width
        fields.append((getattr(dut, port), shift, (1 << width) - 1))
    valid_bit = next(s for handle, s, _ in fields if handle._name == "valid")
    ready = dut.ready if DESCRIPTION["has_ready"] else None
    y_valid, y = dut.y_valid, dut.y

    Clock(dut.clk, 10, unit="ns").start()
    shown = [None] * len(fields)
    dots = mismatches = 0
    with (VECTORS / TRACES[name]["file"]).open() as lines:
        for cycle, line in enumerate(lines):
            word, wanted = (int(text, 16) for text in line.split())
            await RisingEdge(dut.clk)
            for i, (handle, low, mask) in enumerate(fields):
                value = word >> low & mask
                if value != shown[i]:
                    handle.value = value
                    shown[i] = value
            await FallingEdge(dut.clk)
            if cycle == 0:  # the reset itself: registers are not defined yet
                continue
            got = int(y_valid.value) << 32
            if got:
                got |= int(y.value)
            if ready is not None and word >> valid_bit & 1:
                got |= int(ready.value) << 33
            else:
                wanted &= ~(1 << 33)
            dots += wanted >> 32 & 1
            if got != wanted:
                mismatches += 1
                if mismatches <= SHOWN:
                    dut._log.error("cycle %d: got %09x, expected %09x", cycle, got, wanted)

    report["traces"][name] = {
        "cycles": cycle + 1,
        "dot_products": dots,
        "mismatches": mismatches,
    }
    REPORT.write_text(json.dumps(report, indent=1))
    assert dots > 0, f"{name}: no dot product was compared"
    assert mismatches == 0, f"{name}: {mismatches} of {cycle + 1} cycles differ"


@cocotb.test(stage=1)  # after every trace
async def coverage(dut) -> None:  # type: ignore[no-untyped-def]
    """Every bin of every mode is hit by a trace that was equal in every cycle."""
    hits = {mode: dict.fromkeys(bins, 0) for mode, bins in DESCRIPTION["bins"].items()}
    for name, counts in report["traces"].items():
        if counts["mismatches"] == 0:
            for bin_name, count in TRACES[name]["covers"].items():
                hits[TRACES[name]["mode"]][bin_name] += count
    report["coverage"] = hits
    REPORT.write_text(json.dumps(report, indent=1))
    empty = {mode: [name for name in bins if not bins[name]] for mode, bins in hits.items()}
    for mode, names in empty.items():
        for name in names:
            dut._log.error("bin never hit in mode %s: %s", mode, name)
    assert not any(empty.values()), f"{sum(map(len, empty.values()))} coverage bins were never hit"
