"""Toggle counts from Verilator: the independent twin of `activity`.

The netlist runs with Verilog models of its cells, one stream at a time, and Verilator writes a SAIF
file (Switching Activity Interchange Format) with the toggles of every net. Inputs change right
after the rising edge, together with the flip-flops, as if registers stood before them.
"""

import re
import struct
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from bitwright.quant import InputError

from .netlist import Netlist
from .netlist_models import cell_models
from .verilator import build_binary, run_binary

_DRIVER = """\
#include <cstdint>
#include <cstdio>
#include <vector>
#include "Vtop.h"
#include "verilated.h"
#include "verilated_saif_c.h"

#pragma pack(push, 1)
struct Cycle { @FIELDS@ };
#pragma pack(pop)

// stdin: counts of cycles and of warm-up (2 x uint64), then the cycles. Argument: the SAIF file.
int main(int argc, char** argv) {
    if (argc != 2) return 2;
    uint64_t count[2];
    if (fread(count, sizeof count, 1, stdin) != 1) return 2;
    std::vector<Cycle> cycles(count[0]);
    if (fread(cycles.data(), sizeof(Cycle), count[0], stdin) != count[0]) return 2;
    VerilatedContext context;
    context.traceEverOn(true);
    Vtop top{&context};
    VerilatedSaifC saif;
    top.trace(&saif, 99);
    top.clk = 0;
    top.eval();
    for (uint64_t i = 0; i < count[0]; i++) {
        if (i) {  // an edge moves the state on; the first cycle begins with zeros
            top.clk = 1;
            top.eval();
        }
        const Cycle& s = cycles[i];
        @WRITE@
        top.eval();
        // The last cycle of warm-up is what the first counted one is compared with.
        if (i + 1 == count[1]) saif.open(argv[1]);
        if (i + 1 >= count[1]) saif.dump(2 * i);
        top.clk = 0;
        top.eval();
        if (i + 1 >= count[1]) saif.dump(2 * i + 1);
    }
    saif.close();
    return 0;
}
"""

_TOKEN = re.compile(r"\(INSTANCE\s+(?:\"\S+\"\s+)?(\S+)|\((\S+)\s+\(T0 |\(TC (\d+)\)")


def saif_toggles(
    netlist: Netlist,
    verilog: str,
    inputs: Mapping[str, np.ndarray],
    lane: int = 0,
    warmup: int = 1,
) -> dict[str, int]:
    """Toggles of every named net by Verilator.

    Args:
        netlist: The netlist, for its ports and cells.
        verilog: Its Verilog, as synthesis wrote it.
        inputs: Streams as `activity.simulate` takes them, [cycles, lanes].
        lane: Which lane runs.
        warmup: Cycles at the beginning that do not count.

    Returns:
        Net name as in `Netlist.nets` -> toggles; nets with several names come under each of them.

    Raises:
        InputError: Verilator is missing.
        RuntimeError: It fails.
    """
    ports = {port: len(nets) for port, nets in netlist.inputs.items()}
    if wide := [port for port, bits in ports.items() if bits > 64]:
        raise InputError(f"input {wide[0]} of {netlist.top} has more than 64 bits")
    if netlist.clock not in (None, "clk"):
        raise InputError(f"the clock of {netlist.top} is {netlist.clock}; name it clk")
    sizes = {p: next(s for s in (1, 2, 4, 8) if bits <= 8 * s) for p, bits in ports.items()}
    driver = _DRIVER.replace(
        "@FIELDS@", " ".join(f"uint{8 * size}_t {port};" for port, size in sizes.items())
    ).replace("@WRITE@", " ".join(f"top.{port} = s.{port};" for port in ports))
    models = cell_models(netlist.technology, {i.cell.name for i in netlist.instances})
    program = build_binary(
        [verilog, models],
        netlist.top,
        driver,
        ["--trace-saif", "--trace-underscore", "--x-initial", "0"],
    )
    cycles = len(next(iter(inputs.values())))
    record = np.zeros(cycles, [(port, f"<u{size}") for port, size in sizes.items()])
    for port, values in inputs.items():
        record[port] = values[:, lane if values.shape[1] > 1 else 0]

    def run(count: int) -> dict[str, int]:
        with tempfile.TemporaryDirectory(prefix="bitwright-saif-") as folder:
            file = Path(folder) / "activity.saif"
            data = struct.pack("<2Q", count, warmup) + record[:count].tobytes()
            run_binary(program, [str(file)], data)
            return read_saif(file.read_text(encoding="utf-8"), netlist.top)

    # Verilator counts the first values it sees as changes from 0.
    first = run(warmup)
    return {net: count - first[net] for net, count in run(cycles).items()}


def read_saif(text: str, instance: str) -> dict[str, int]:
    """Toggle counts (TC) of the nets of one instance of a SAIF file, names as in Verilog.

    >>> read_saif('(INSTANCE top (NET (a\\\\[1\\\\] (T0 1) (T1 2) (TX 0) (TC 3) (IG 0))))', "top")
    {'a[1]': 3}
    """
    found: Counter[str] = Counter()
    inside, net = "", ""
    for name, opened, toggles in _TOKEN.findall(text):
        if name:
            inside = name
        elif opened:
            net = opened.replace("\\", "")
        elif inside == instance:
            found[net] += int(toggles)
    return dict(found)
