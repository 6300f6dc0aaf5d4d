"""Synthesis on a small multiply-accumulate: results, cache, and netlists against the RTL."""

import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from bitwright.quant import InputError
from bitwright.rtl import (
    DESIGNS,
    comparison,
    liberty,
    netlist_models,
    pe_synthesis,
    synthesise,
    technology,
    verilator,
)

MAC = """
module mac8 (input clk, input rst, input signed [7:0] a, input signed [7:0] b,
             output signed [23:0] y);
  reg signed [7:0] ra, rb;
  reg signed [15:0] product;
  reg signed [23:0] total;
  always @(posedge clk)
    if (rst) begin
      ra <= 0; rb <= 0; product <= 0; total <= 0;
    end else begin
      ra <= a; rb <= b; product <= ra * rb; total <= total + product;
    end
  assign y = total;
endmodule
"""
SMALL = """
module small (input clk, input a, input b, output reg y);
  reg ra, rb;
  always @(posedge clk) begin ra <= a; rb <= b; y <= ~(ra & rb); end
endmodule
"""
NANGATE45 = technology.TECHNOLOGIES["nangate45"]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BITWRIGHT_CACHE", str(tmp_path))
    return tmp_path / "synthesis"


def test_three_flip_flops_and_a_gate() -> None:
    result = synthesise(SMALL, "small", NANGATE45)
    assert result.cells_by_type == {"DFF_X1": 3, "NAND2_X1": 1}
    assert (result.cells, result.registers) == (4, 3)
    assert result.area_um2 == pytest.approx(3 * 4.522 + 0.798)
    assert result.register_area_um2 == pytest.approx(3 * 4.522)
    # Clock to Q of DFF_X1 without load lies between 76 and 96 ps for clock slews of 1 to 41 ps
    # (its table); the setup time is 39.8 ps.
    assert 39.8 + 76 < result.register_ps < 39.8 + 96
    # One NAND2_X1 that drives a flip-flop takes about 10 to 30 ps.
    assert 5 < result.logic_ps < 50
    assert result.delay_ps == pytest.approx(result.logic_ps + result.register_ps, abs=1e-3)
    assert result.f_max_mhz == pytest.approx(1e6 / result.delay_ps)
    assert result.source.startswith("synthesis ")


def test_a_module_without_registers_has_no_register_delay() -> None:
    verilog = "module gate (input a, input b, output y); assign y = a ^ b; endmodule"
    result = synthesise(verilog, "gate", NANGATE45)
    assert (result.registers, result.register_ps) == (0, 0.0)
    assert result.delay_ps == result.logic_ps > 0


def test_a_module_without_logic_is_its_registers() -> None:
    verilog = "module d (input clk, input a, output reg y); always @(posedge clk) y <= a; endmodule"
    result = synthesise(verilog, "d", NANGATE45)
    assert (result.cells_by_type, result.logic_ps) == ({"DFF_X1": 1}, 0.0)


@pytest.mark.parametrize("name", list(technology.TECHNOLOGIES))
def test_a_shorter_period_costs_area(name: str) -> None:
    tech = technology.TECHNOLOGIES[name]
    small = synthesise(MAC, "mac8", tech)
    fast = synthesise(MAC, "mac8", tech, clock_ps=tech.clock_ps / 4)
    met = synthesise(MAC, "mac8", tech, clock_ps=tech.clock_ps)
    assert small.area_um2 <= met.area_um2 <= fast.area_um2
    assert fast.delay_ps <= met.delay_ps <= tech.clock_ps
    assert small.registers == met.registers == fast.registers == 56
    assert (small.clock_ps, met.clock_ps) == (None, tech.clock_ps)


def test_results_come_from_the_cache_and_damaged_ones_are_made_again(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = synthesise(SMALL, "small", NANGATE45)
    (entry,) = cache.iterdir()
    assert entry.stem == first.hash
    good = entry.read_text()
    with monkeypatch.context() as without_yosys:
        without_yosys.delattr("bitwright.rtl.synth.run_yosys")
        assert synthesise(SMALL, "small", NANGATE45) == first
    for damaged in ("", good[:-40], json.dumps({"sha256": "0", "result": "{}"}), "[]"):
        entry.write_text(damaged)
        assert synthesise(SMALL, "small", NANGATE45) == first
        assert entry.read_text() == good


def test_the_hash_covers_what_the_result_depends_on() -> None:
    changed = replace(NANGATE45, cells={**NANGATE45.cells})
    nand = changed.cells["NAND2_X1"]
    changed = replace(NANGATE45, cells={**NANGATE45.cells, nand.name: replace(nand, area_um2=9.0)})
    hashes = {
        synthesise(SMALL, "small", NANGATE45).hash,
        synthesise(SMALL + "// ", "small", NANGATE45).hash,
        synthesise(SMALL, "small", NANGATE45, clock_ps=500).hash,
        synthesise(SMALL, "small", NANGATE45, flatten=False).hash,
        synthesise(SMALL, "small", changed).hash,
    }
    assert len(hashes) == 5


def test_a_users_liberty_gives_what_the_same_cells_give(tmp_path: Path) -> None:
    path = tmp_path / "mine.lib"
    path.write_text(NANGATE45.liberty_texts[0])
    ours = synthesise(SMALL, "small", NANGATE45)
    theirs = synthesise(SMALL, "small", liberty.read_liberty([path]))
    assert theirs.technology == "mine"
    assert theirs.cells_by_type == ours.cells_by_type
    assert theirs.delay_ps == pytest.approx(ours.delay_ps)


def test_several_liberty_files_map_together(tmp_path: Path) -> None:
    flip_flops = {n: c for n, c in NANGATE45.cells.items() if c.ff}
    logic = {n: c for n, c in NANGATE45.cells.items() if not c.ff}
    for name, cells in (("seq", flip_flops), ("logic", logic)):
        text = liberty.write_liberty(replace(NANGATE45, cells=cells))
        (tmp_path / f"{name}.lib").write_text(text)
    both = liberty.read_liberty([tmp_path / "seq.lib", tmp_path / "logic.lib"])
    result = synthesise(SMALL, "small", both)
    assert result.cells_by_type == {"DFF_X1": 3, "NAND2_X1": 1}


def test_mistakes_are_told() -> None:
    with pytest.raises(InputError, match="clock_ps is -5; give a period in ps above 0"):
        synthesise(SMALL, "small", NANGATE45, clock_ps=-5)
    with pytest.raises(RuntimeError, match="(?s)Yosys failed.*syntax error"):
        synthesise("module broken (input a; endmodule", "broken", NANGATE45)
    with pytest.raises(RuntimeError, match="Yosys took longer than 0.01 s"):
        synthesise(MAC + "// slow", "mac8", NANGATE45, timeout_s=0.01)


def test_unknown_pe_names_the_nearest() -> None:
    with pytest.raises(InputError, match=r"unknown PE 'bitmodd'; did you mean bitmod\?"):
        pe_synthesis.synthesise_pe("bitmodd", "nangate45")


def test_stages_are_a_parameter_of_dot_product_pes() -> None:
    design = pe_synthesis.pipelined(DESIGNS["int8"], 3)
    assert design.top == "int8_l1_acc32_s3"
    with pytest.raises(InputError, match=r"stages \(=4\) must be one of 1, 2, 3"):
        pe_synthesis.pipelined(DESIGNS["int8"], 4)
    with pytest.raises(
        InputError, match=r"stages \(=1\): the pipeline of the bitmod PE is fixed; leave stages out"
    ):
        pe_synthesis.pipelined(DESIGNS["bitmod"], 1)


def test_area_ratio_is_of_whole_pes_on_one_technology() -> None:
    def pe(name: str, tech: str, area: float) -> pe_synthesis.PESynthesis:
        def block(what: str, um2: float, shared: bool) -> pe_synthesis.BlockResult:
            return pe_synthesis.BlockResult(
                name, what, tech, um2, 1, 1, 500.0, 1000.0, shared, "synthesis 0"
            )

        blocks = (block("encoder", 7.0, True), block("total", area, False))
        return pe_synthesis.PESynthesis(name, tech, blocks)

    results = [pe("bitmod", "a", 30.0), pe("fp16", "a", 40.0), pe("fp16", "b", 50.0)]
    (ratio,) = comparison.published_ratios(results)
    assert (ratio["technology"], ratio["area_ratio"], ratio["published"]) == ("a", 0.75, 0.7625)
    assert ratio["area_ratio_per_mac"] == 0.375  # two multiply-accumulates a cycle
    row = comparison.compare(results)[0]
    assert (row.area_per_mac_um2, row.vs_fp16, row.vs_int8) == (15.0, 0.375, None)
    assert (results[0].area_um2, results[0].encoder_um2) == (30.0, 7.0)


@pytest.mark.simulator
@pytest.mark.slow
def test_netlists_compute_what_the_rtl_computes() -> None:
    sources, instances, outputs = [MAC], [], []
    for name, tech in technology.TECHNOLOGIES.items():
        result = synthesise(MAC, "mac8", tech, clock_ps=tech.clock_ps)
        sources.append(netlist_models.cell_models(tech, result.cells_by_type))
        sources.append(re.sub(r"\bmodule mac8\b", f"module mac8_{name}", result.netlist))
        instances.append(f"mac8_{name} {name}_mapped (clk, rst, a, b, {name});")
        outputs.append(f"output [23:0] {name}")
    sources.append(
        f"""module together (input clk, input rst, input [7:0] a, input [7:0] b,
            output [23:0] rtl, {", ".join(outputs)});
          mac8 mac8_rtl (clk, rst, a, b, rtl);
          {" ".join(instances)}
        endmodule"""
    )
    checks = " || ".join(f"top.{name} != top.rtl" for name in technology.TECHNOLOGIES)
    driver = f"""
#include "Vtop.h"
#include <cstdio>
#include <random>
int main() {{
  Vtop top;
  std::mt19937 random(2);
  int compared = 0, different = 0, nonzero = 0;
  for (int i = 0; i < 1003; ++i) {{
    top.rst = i < 3;
    top.a = random();
    top.b = random();
    top.clk = 0;
    top.eval();
    top.clk = 1;
    top.eval();
    if (i < 3) continue;
    ++compared;
    different += {checks};
    nonzero += top.rtl != 0;
  }}
  std::printf("%d %d %d\\n", compared, different, nonzero > 900);
}}
"""
    program = verilator.build_binary(sources, "together", driver)
    assert verilator.run_binary(program) == b"1000 0 1\n"


def test_leakage_is_the_sum_of_the_cells():
    """Nangate45's table: 25.06606 nW an AND2_X1; three of them and an inverter, in uW."""
    cells = technology.resolve_technology("nangate45")
    inverter = cells.cells["INV_X1"].leakage_nW
    result = SimpleNamespace(cells_by_type={"AND2_X1": 3, "INV_X1": 1})
    wanted = (3 * 25.06606 + inverter) / 1000
    assert pe_synthesis.leakage_uw(result, cells) == pytest.approx(wanted, rel=1e-12)
    block = pe_synthesis.synthesise_pe("dint4", "nangate45").total
    assert 0.005 < block.leakage_uw / block.area_um2 < 0.05  # a cell is worth 0.024 uW per um2
