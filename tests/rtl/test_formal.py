"""Proofs by SAT: what is equal is proved, every difference is refuted, and says how it shows."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bitwright.quant import InputError
from bitwright.rtl import DESIGNS, formal, netlist_models, synthesise, technology

NANGATE45 = technology.TECHNOLOGIES["nangate45"]
MAC = """
module mac (input clk, input rst, input signed [3:0] a, input signed [3:0] b,
            output signed [11:0] y);
  reg signed [7:0] product;
  reg signed [11:0] total;
  always @(posedge clk)
    if (rst) begin product <= 0; total <= 0; end
    else begin product <= a * b; total <= total + product; end
  assign y = total;
endmodule
"""
#: 3 x 3 multiplier, and an AND and an OR that no optimisation can merge with it.
GATES = """
module gates (input [2:0] a, input [2:0] b, output [5:0] y, output all, output none);
  assign y = a * b;
  assign all = &a & &b;
  assign none = ~|{a, b};
endmodule
"""


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("BITWRIGHT_CACHE", str(tmp_path))
    return tmp_path / "proofs"


def mapped(text: str, top: str) -> tuple[str, str]:
    """The netlist on Nangate45, and the models of all cells."""
    netlist = synthesise(text, top, NANGATE45).netlist
    return netlist, netlist_models.cell_models(NANGATE45)


def module(body: str, name: str = "m", ports: str = "input clk, input a, output y") -> str:
    return f"module {name} ({ports});\n{body}\nendmodule\n"


def simulate(netlist: str, values: Mapping[str, int]) -> dict[str, int]:
    """The nets of a mapped netlist, from the cells' functions in Python: net -> bit.

    Args:
        netlist: Verilog as Yosys writes it.
        values: Bits of inputs and of registers, by net.
    """
    nets = {"1'h0": 0, "1'h1": 1, **values}
    cells = []
    for kind, pins in re.findall(
        r"^  (\w+) \S+ \(\n((?:    \.\w+\(.*\),?\n)+)  \);", netlist, re.M
    ):
        cells.append((NANGATE45.cells[kind], dict(re.findall(r"\.(\w+)\((.*)\)", pins))))
    for left, right in re.findall(r"^  assign (\S+) = (\S+);", netlist, re.M):
        cells.append((left, right))
    for _ in range(len(cells)):
        for cell in cells:
            if isinstance(cell[0], str):
                if cell[1] in nets:
                    nets[cell[0]] = nets[cell[1]]
                continue
            facts, pins = cell
            if facts.ff is None and all(pins[pin] in nets for pin in facts.pins):
                for pin, output in facts.outputs.items():
                    names = {name: str(nets[pins[name]]) for name in facts.pins}
                    if pin in pins:
                        nets[pins[pin]] = (
                            eval(netlist_models.to_verilog(output.function, names)) & 1
                        )
    for cell in cells:
        if not isinstance(cell[0], str) and cell[0].ff is not None:
            nets[f"next {cell[1]['Q']}"] = nets[cell[1]["D"]]
    return nets


def bits(values: Mapping[str, int], widths: Mapping[str, int]) -> dict[str, int]:
    """Values of ports as bits of nets."""
    return {
        f"{name}[{i}]" if width > 1 else name: values[name] >> i & 1
        for name, width in widths.items()
        for i in range(width)
    }


def wrapped(value: int, width: int) -> int:
    """Two's complement."""
    half = 1 << width - 1
    return (value + half) % (2 * half) - half


# ------------------------------------------------------------------ equal


@pytest.mark.parametrize("name", list(technology.TECHNOLOGIES))
def test_a_mapped_mac_is_its_rtl_from_any_state(name: str) -> None:
    # ASAP7's flip-flops have only an inverted output, so that names of registers are lost.
    proof = formal.prove_netlist(MAC, "mac", technology.TECHNOLOGIES[name])
    assert (proof.status, proof.bound, proof.counterexample) == ("proved", 0, None), proof
    assert (proof.inputs, proof.registers, proof.outputs) == (9, 20, 12)
    assert proof.note == "RTL as written"


@pytest.mark.slow
@pytest.mark.parametrize("block", ["verified", "total"])
@pytest.mark.parametrize("pe", ["bitmod", "fp16", "fp16acc16", "dint4-dot16", "btc", "fp16xint4"])
def test_pes_on_nangate45(pe: str, block: str) -> None:
    design = DESIGNS[pe]
    text = design.verilog() if block == "verified" else design.blocks()["total"]
    top = re.findall(r"^module (\w+)", text, re.MULTILINE)[-1]
    proof = formal.prove_netlist(text, top, NANGATE45)
    assert proof.proved, proof
    assert proof.note.startswith("RTL as written")


@pytest.mark.slow
def test_a_popcount_whose_adders_synthesis_arranges_anew() -> None:
    # A tree of 127 adders; the RTL is read with its adders merged when nothing else finishes.
    lines = ["wire [127:0] both = a & b;"]
    level = [f"both[{i}]" for i in range(128)]
    while len(level) > 1:
        name = f"x{len(lines)}"
        lines.append(f"wire [7:0] {name} = {level.pop(0)} + {level.pop(0)};")
        level.append(name)
    body = "\n".join([*lines, f"assign y = {level[0]};"])
    text = module(body, "count", "input [127:0] a, input [127:0] b, output [7:0] y")
    proof = formal.prove_netlist(text, "count", NANGATE45, timeout_s=100)
    assert proof.proved, proof
    assert proof.note in {f"RTL {reading}" for reading in formal.READINGS}


def test_all_readings_of_the_rtl_are_one_function() -> None:
    body = """wire signed [4:0] s = a + b + c; wire [9:0] t = {c, a} * {b, c[1]} - a;
      assign y = (s < 0 ? t + b : t - c) + (a > b);"""
    text = module(body, ports="input signed [3:0] a, b, c, output signed [10:0] y")
    every = np.arange(1 << 12)
    results = []
    for passes in formal.READINGS.values():
        circuit = formal._read({"m.v": text}, "m", passes, 60)
        values = {
            literal >> 1: np.packbits((every >> "abc".index(n[0]) * 4 + int(n[2]) & 1).astype(bool))
            for n, literal in circuit.inputs.items()
        }
        outputs = list(circuit.outputs.values())
        results.append(np.stack(circuit.aig.evaluate(outputs, values)).tobytes())
    assert len(set(results)) == 1


def test_progress_is_told() -> None:
    seen: list[Any] = []
    formal.prove_netlist(MAC, "mac", NANGATE45, progress=lambda *args: seen.append(args))
    assert seen[0] == (0, 7, "mac, RTL as written")


# ------------------------------------------------------------------ different


def with_dual(netlist: str, gate: re.Match[str]) -> str:
    """The netlist with one gate changed: AND and OR, XOR and XNOR, NAND and NOR."""
    start, end = gate.start(), netlist.index(";", gate.start())
    instance = netlist[start:end].replace(gate[1], DUALS[gate[1]], 1)
    if "XOR" in gate[1]:
        instance = instance.replace(".Z(", ".ZN(")
    elif "XNOR" in gate[1]:
        instance = instance.replace(".ZN(", ".Z(")
    return netlist[:start] + instance + netlist[end:]


DUALS = {"AND": "OR", "OR": "AND", "NAND": "NOR", "NOR": "NAND", "XOR": "XNOR", "XNOR": "XOR"}


@pytest.mark.slow
def test_every_changed_gate_is_refuted_and_the_counterexample_replays() -> None:
    netlist, models = mapped(GATES, "gates")
    assert formal.prove_equal(GATES, netlist + models, "gates").proved
    changed = 0
    for match in re.finditer(r"\b(N?AND|X?N?OR)\d_X\d\b", netlist):
        broken = with_dual(netlist, match)
        proof = formal.prove_equal(GATES, broken + models, "gates")
        assert proof.status == "refuted", (match[0], proof)
        replay(proof, broken)
        changed += 1
    assert changed > 8


def replay(proof: formal.Proof, netlist: str) -> None:
    """Evaluate a counterexample of GATES with Python's numbers and the cells' functions."""
    example = proof.counterexample
    assert example is not None
    a, b = example.inputs["a"], example.inputs["b"]
    right = {"y": a * b, "all": a == 7 and b == 7, "none": a == 0 and b == 0}
    ours = bits({k: int(v) for k, v in right.items()}, {"y": 6, "all": 1, "none": 1})
    theirs = simulate(netlist, bits({"a": a, "b": b}, {"a": 3, "b": 3}))
    broken = {n: (ours[n], theirs[n]) for n in ours if ours[n] != theirs[n]}
    assert broken == example.differences
    assert broken


def test_a_changed_gate_is_refuted_and_the_counterexample_replays() -> None:
    netlist, models = mapped(GATES, "gates")
    gate = re.search(r"\b(N?AND|N?OR)\d_X\d\b", netlist)
    assert gate is not None
    broken = with_dual(netlist, gate)
    proof = formal.prove_equal(GATES, broken + models, "gates")
    assert proof.status == "refuted"
    replay(proof, broken)


def test_an_inverted_input_is_refuted() -> None:
    netlist, models = mapped(GATES, "gates")
    broken = re.sub(r"\.A1\((\w+\[\d\])\)", r".A1(~\1)", netlist, count=1)
    assert broken != netlist
    assert formal.prove_equal(GATES, broken + models, "gates").status == "refuted"


def test_a_changed_gate_before_a_register_is_refuted_with_the_states_that_show_it() -> None:
    netlist, models = mapped(MAC, "mac")
    gate = re.search(r"\b(XOR)2_X\d\b", netlist)
    assert gate is not None
    broken = with_dual(netlist, gate)
    proof = formal.prove_equal(MAC, broken + models, "mac")
    assert proof.status == "refuted"
    example = proof.counterexample
    assert example is not None
    # Python's own multiply-accumulate, from the state of the counterexample.
    a, b = (wrapped(example.inputs[port], 4) for port in "ab")
    total = example.registers.get("total", example.registers.get("y", 0))
    step = total + wrapped(example.registers["product"], 8)
    product = a * b
    if example.inputs["rst"]:
        step = product = 0
    for name, (ours, theirs) in example.differences.items():
        register, place = re.fullmatch(r"(?:next )?(\w+)\[(\d+)\]", name).groups()  # type: ignore[union-attr]
        expected = {"product": product, "total": step, "y": step}[register]
        assert ours == expected >> int(place) & 1 != theirs


def test_a_missing_reset_is_refuted() -> None:
    netlist, models = mapped(MAC.replace("total <= 0;", "total <= total + product;"), "mac")
    proof = formal.prove_equal(MAC, netlist + models, "mac")
    assert proof.status == "refuted"
    assert proof.counterexample is not None
    assert proof.counterexample.inputs["rst"] == 1


def test_swapped_registers_are_refuted() -> None:
    good = "reg p, q; always @(posedge clk) begin p <= a; q <= b; end\nassign y = p & ~q;"
    bad = "reg p, q; always @(posedge clk) begin p <= b; q <= a; end\nassign y = p & ~q;"
    ports = "input clk, input a, input b, output y"
    proof = formal.prove_equal(module(good, ports=ports), module(bad, ports=ports), "m")
    assert proof.status == "refuted"


def test_a_different_latency_is_not_proved() -> None:
    one = "reg p; always @(posedge clk) p <= a;\nassign y = p;"
    two = "reg p, q; always @(posedge clk) begin q <= a; p <= q; end\nassign y = p;"
    for ours, theirs, side in ((one, two, "netlist"), (two, one, "RTL")):
        proof = formal.prove_equal(module(ours), module(theirs), "m")
        assert proof.status == "unmatched"
        assert f"{side} register q has no counterpart" in proof.note


def test_a_register_that_became_a_wire_is_not_proved() -> None:
    body = "reg p; always @(posedge clk) p <= a;\nassign y = p;"
    for ours, theirs in ((body, "assign y = a;"), ("assign y = a;", body)):
        proof = formal.prove_equal(module(ours), module(theirs), "m")
        assert proof.status == "unmatched"
        assert re.search("register [py] has no counterpart", proof.note)


def test_a_cell_missing_from_the_netlist_is_an_error() -> None:
    netlist, models = mapped(MAC, "mac")
    start = netlist.index("  DFF_X1")
    broken = netlist[:start] + netlist[netlist.index(";\n", start) + 2 :]
    with pytest.raises(InputError, match=r"net \S+ has no driver"):
        formal.prove_equal(MAC, broken + models, "mac")


# ------------------------------------------------------------------ registers that differ


def test_a_register_that_nothing_reads_may_be_missing() -> None:
    # Yosys does not see that what is read of q is always 0.
    ours = """reg p, q; always @(posedge clk) begin p <= a; q <= q ^ a; end
      assign y = p ^ ((q ^ a) & (q & a));"""
    theirs = "reg p; always @(posedge clk) p <= a;\nassign y = p;"
    proof = formal.prove_equal(module(ours), module(theirs), "m")
    assert (proof.status, proof.bound) == ("proved", 0)
    assert "nothing depends on 1 registers of one side" in proof.note


def test_copies_complements_and_constants_are_proved_by_induction() -> None:
    ours = """reg p, same, not_p, zero, later;
      always @(posedge clk) begin
        p <= a; same <= a; not_p <= ~a; zero <= a & ~a; later <= p ^ same;
      end
      assign y = p & same & ~not_p & ~zero & ~later;"""
    theirs = "reg p; always @(posedge clk) p <= a;\nassign y = p;"
    proof = formal.prove_equal(module(ours), module(theirs), "m")
    # `later` is 0 one clock edge after `same` has become a copy of `p`.
    assert (proof.status, proof.bound) == ("proved", 2), proof
    for fact in ("same is a copy of p", "not_p is the complement of p", "zero is constant 0"):
        assert fact.replace(" of p", "") in proof.note.replace(" of y", "").replace(" of p", "")
    assert "later is constant 0" in proof.note


def test_what_looks_like_a_copy_to_random_patterns_is_not_taken_for_one() -> None:
    ports = "input clk, input [15:0] a, output y"
    ours = "reg p, q; always @(posedge clk) begin p <= a[0]; q <= a[0] ^ &a; end assign y = p & q;"
    theirs = "reg p; always @(posedge clk) p <= a[0];\nassign y = p;"
    proof = formal.prove_equal(module(ours, ports=ports), module(theirs, ports=ports), "m")
    assert proof.status == "unmatched"


def test_a_constant_that_only_a_reset_could_establish_is_not_assumed() -> None:
    ours = "reg p, q; always @(posedge clk) begin p <= a; q <= q & a; end\nassign y = p | q;"
    theirs = "reg p; always @(posedge clk) p <= a;\nassign y = p;"
    assert formal.prove_equal(module(ours), module(theirs), "m").status == "unmatched"


def test_a_register_may_hold_the_complement() -> None:
    ours = "reg p; always @(posedge clk) p <= a;\nassign y = p;"
    theirs = "reg other; wire p = ~other; always @(posedge clk) other <= ~a;\nassign y = p;"
    proof = formal.prove_equal(module(ours), module(theirs), "m")
    assert (proof.status, proof.bound) == ("proved", 0)
    wrong = theirs.replace("<= ~a", "<= a")
    assert formal.prove_equal(module(ours), module(wrong), "m").status == "refuted"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("reg p; always @(negedge clk) p <= a; assign y = p;", r"cell \$_DFF_N_ cannot be proved"),
        ("reg p; always @* if (clk) p = a; assign y = p;", r"cell \$_DLATCH_P_ cannot be proved"),
        (
            "reg p; always @(posedge clk or posedge a) if (a) p <= 0; else p <= ~p; assign y = p;",
            r"cell \$_DFF_PP0_ cannot be proved; use rising-edge flip-flops with synchronous reset",
        ),
        (
            "wire c = clk & a; reg p; always @(posedge c) p <= a; assign y = p;",
            "more than one clock",
        ),
        ("reg p; always @(posedge clk) p <= a; assign y = p & clk;", "the clock as data"),
        ("wire open; assign y = a & open;", "net open has no driver"),
        ("assign y = a ? 1'bx : 1'b0;", "undefined"),
    ],
)
def test_what_cannot_be_cut_at_registers_is_refused(body: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        formal.prove_equal(module(body), module("assign y = a;"), "m")


def test_ports_must_agree() -> None:
    other = module("assign y = a; assign z = a;", ports="input clk, input a, output y, output z")
    with pytest.raises(InputError, match="only one of RTL and netlist has output z"):
        formal.prove_equal(module("assign y = a;"), other, "m")


# ------------------------------------------------------------------ limits, cache, multipliers


WIDE = "input [19:0] a, input [19:0] b, output [39:0] y"


def test_what_does_not_finish_says_so_and_is_tried_again(cache: Path) -> None:
    ours = module("assign y = a * b;", ports=WIDE)
    terms = " + ".join(f"((b[{i}] ? {{20'b0, a}} : 40'b0) << {i})" for i in reversed(range(20)))
    theirs = module(f"assign y = {terms};", ports=WIDE)
    proof = formal.prove_equal(ours, theirs, "m", timeout_s=4)
    assert (proof.status, proof.note, proof.bound) == ("timeout", "not finished in 4 s", None)
    assert 3 < proof.seconds < 12
    assert not cache.exists() or not list(cache.iterdir())


def test_proofs_come_from_the_cache_and_refutations_do_not(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, bad = module("assign y = a;"), module("assign y = ~a;")
    first = formal.prove_equal(good, good, "m")
    formal.prove_equal(good, bad, "m")
    (entry,) = cache.iterdir()
    with monkeypatch.context() as without_yosys:
        without_yosys.delattr("bitwright.rtl.formal.run_yosys")
        assert formal.prove_equal(good, good, "m") == first
        with pytest.raises(NameError):
            formal.prove_equal(good, bad, "m")
    entry.write_text(entry.read_text().replace("proved", "refuted"))
    assert formal.prove_equal(good, good, "m").proved


@pytest.mark.parametrize("signed", [False, True], ids=["unsigned", "signed"])
@pytest.mark.parametrize(("a", "b", "y"), [(1, 1, 2), (3, 5, 8), (8, 8, 16), (6, 7, 9)])
def test_multipliers_are_compared_for_every_pair(a: int, b: int, y: int, signed: bool) -> None:
    circuit = formal._multiplier(a, b, y, signed)
    assert formal._multiplies(circuit, a, b, signed)
    if y == a + b > 2:
        assert not formal._multiplies(circuit, a, b, not signed)


def test_a_wrong_multiplier_is_noticed() -> None:
    ports = "input [3:0] a, input [3:0] b, output [7:0] y"
    for formula in ("a * b + (a == 13 && b == 11)", "(a * b) & 8'h7f", "a + b"):
        text = module(f"assign y = {formula};", ports=ports)
        circuit = formal._read({"m.v": text}, "m", "techmap\n", 60)
        assert not formal._multiplies(circuit, 4, 4, False)


def test_a_multiplier_counts_the_bits_of_its_operands_that_matter() -> None:
    # Operands are extended to the result's 22 bits: 44 bits in all, but 22 that matter.
    ports = "input [10:0] a, input [10:0] b, output [21:0] y"
    text = module("assign y = {11'b0, a} * {11'b0, b};", ports=ports)
    proof = formal.prove_netlist(text, "m", NANGATE45, timeout_s=60)
    assert (proof.status, proof.note) == ("proved", "RTL as written")


def test_abc_is_not_believed_when_its_counterexample_is_none() -> None:
    circuit = formal._read({"m.v": GATES}, "gates", "", 60)
    pairing = formal._pair(circuit, circuit, 60)
    with pytest.raises(RuntimeError, match="both sides agree on it"):
        pairing.counterexample({})
    with pytest.raises(RuntimeError, match="0 of 2 bits"):
        formal._pattern("Networks are NOT EQUIVALENT.", [2, 4])


def test_graphs_compute_what_their_verilog_says() -> None:
    circuit = formal._read({"m.v": GATES}, "gates", "", 60)
    every = np.arange(64)
    values = {
        literal >> 1: np.packbits((every >> int(name[2]) + 3 * (name[0] == "b") & 1).astype(bool))
        for name, literal in circuit.inputs.items()
    }
    got = circuit.aig.evaluate(list(circuit.outputs.values()), values)
    for name, column in zip(circuit.outputs, got, strict=True):
        a, b = every & 7, every >> 3
        expected = {
            "all": (a == 7) & (b == 7),
            "none": (a == 0) & (b == 0),
        }.get(name)
        if expected is None:
            expected = (a * b) >> int(name[2]) & 1
        assert np.array_equal(np.unpackbits(column), expected), name


# ------------------------------------------------------------------ tables


def dint4(code: int) -> int:
    """Half units of a dINT4 code, from DESIGN.md's words."""
    q = wrapped(code, 4)
    return {7: 1, -7: -1, -8: 0}.get(q, 2 * q)


DECODER = """
module decoder (input [3:0] code, output reg signed [4:0] y);
  always @*
    case (code)
      4'b0111: y = 1;
      4'b1001: y = -1;
      4'b1000: y = 0;
      default: y = {code, 1'b0};
    endcase
endmodule
"""


def test_a_decoder_is_its_table_for_every_code() -> None:
    proof = formal.prove_table(DECODER, "decoder", [("code", 4)], dint4)
    assert (proof.status, proof.inputs, proof.outputs) == ("proved", 4, 5)
    assert proof.note == "table of 16 entries"
    as_mapping = {(code,): dint4(code) for code in range(16)}
    assert formal.prove_table(DECODER, "decoder", [("code", 4)], as_mapping).proved


@pytest.mark.parametrize("code", range(16))
def test_every_wrong_entry_is_found(code: int) -> None:
    table = {(c,): dint4(c) ^ (c == code) for c in range(16)}
    proof = formal.prove_table(DECODER, "decoder", [("code", 4)], table)
    assert proof.status == "refuted"
    assert proof.counterexample is not None
    assert proof.counterexample.inputs == {"code": code}
    right = dint4(code) & 1
    assert proof.counterexample.differences == {"y[0]": (right, right ^ 1)}


def test_the_decoder_of_the_dint_pe() -> None:
    text = DESIGNS["dint4"].blocks()["decode"]
    top = re.findall(r"^module (\w+)", text, re.MULTILINE)[-1]

    def table(act: int, code: int) -> dict[str, int]:
        return {"o0": wrapped(act, 8), "o1": dint4(code)}

    proof = formal.prove_table(text, top, [("act0", 8), ("code0", 4)], table)
    assert proof.proved, proof


def test_unused_codes_may_decode_to_anything() -> None:
    table = {(c,): dint4(c) for c in range(16) if c != 8}
    changed = DECODER.replace("4'b1000: y = 0", "4'b1000: y = 9")
    proof = formal.prove_table(changed, "decoder", [("code", 4)], table)
    assert (proof.status, proof.note) == ("proved", "table of 15 entries, 1 unused")
    assert formal.prove_table(changed, "decoder", [("code", 4)], dint4).status == "refuted"


def test_registers_of_a_pipelined_decoder_are_looked_through() -> None:
    body = "reg [1:0] p, q; always @(posedge clk) begin p <= {a, ~a}; q <= ~p; end assign y = q;"
    ports = "input clk, input a, output [1:0] y"
    proof = formal.prove_table(module(body, ports=ports), "m", [("a", 1)], lambda a: 1 + (a == 0))
    assert (proof.status, proof.registers) == ("proved", 4)
    loop = "reg p; always @(posedge clk) p <= p ^ a; assign y = p;"
    with pytest.raises(InputError, match="registers feed back"):
        formal.prove_table(module(loop), "m", [("a", 1)], lambda a: a)


def test_mistakes_about_tables_are_told() -> None:
    with pytest.raises(InputError, match=r"are not those of decoder: see \w"):
        formal.prove_table(DECODER, "decoder", [("cod", 4)], dint4)
    with pytest.raises(InputError, match=r"table entry \(0,\): 32 does not fit y, 5 bits"):
        formal.prove_table(DECODER, "decoder", [("code", 4)], lambda code: 32)
    with pytest.raises(InputError, match=r"table entry \(0,\) must give outputs y"):
        formal.prove_table(DECODER, "decoder", [("code", 4)], lambda code: {"z": 0})
    with pytest.raises(InputError, match="m has 40 input bits; a table has at most 20"):
        text = module("assign y = a * b;", ports=WIDE)
        formal.prove_table(text, "m", [("a", 20), ("b", 20)], lambda a, b: a * b)
