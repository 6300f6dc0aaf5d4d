"""Verilog models of cells against Yosys' own reading of the same Liberty."""

import pytest

from bitwright.quant import InputError
from bitwright.rtl import netlist_models, technology, yosys


@pytest.mark.parametrize("name", list(technology.TECHNOLOGIES))
def test_models_equal_what_yosys_reads_from_the_liberty(name: str) -> None:
    tech = technology.TECHNOLOGIES[name]
    models = netlist_models.cell_models(tech)
    lines = ["read_liberty cells.lib"]
    for cell in tech.cells:
        lines.append(f"rename {cell} gold_{cell}")
    lines += ["read_verilog models.v", "proc"]
    for cell, facts in tech.cells.items():
        # Flip-flops: equal from an equal start on, by induction.
        steps = "-set-init-zero -tempinduct" if facts.ff else ""
        lines += [
            f"miter -equiv -flatten -make_assert gold_{cell} {cell} miter_{cell}",
            f"sat -verify -prove-asserts {steps} miter_{cell}",
        ]
    inputs = {"cells.lib": tech.liberty_texts[0], "models.v": models}
    log, _ = yosys.run_yosys("\n".join(lines), inputs, [])
    assert log.count("SUCCESS") + log.count("Q.E.D") >= len(tech.cells)


@pytest.mark.parametrize(
    ("function", "verilog"),
    [
        ("!(A B) + C ^ D", "(~(a & b)) | (c ^ d)"),
        ("A ^ B * C", "(a ^ b) & c"),
        ("(A)'", "~a"),
        ("!A' B", "(~(~a)) & b"),
        ("A (B + 1) | 0", "(a & (b | 1'b1)) | 1'b0"),
    ],
)
def test_liberty_expressions(function: str, verilog: str) -> None:
    assert netlist_models.to_verilog(function, {n: n.lower() for n in "ABCD"}) == verilog


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("A + E", r"'A \+ E': expected one of A, B, C, D, found 'E'"),
        ("(A B", "a parenthesis is not closed"),
        ("A ) B", r"'\)' is not expected there"),
        ("A &", "found 'its end'"),
        ("A ? B", r"'\?' is not understood"),
    ],
)
def test_broken_expressions_are_refused(function: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        netlist_models.to_verilog(function, {n: n.lower() for n in "ABCD"})


def test_flip_flops_with_set_and_reset() -> None:
    output = technology.OutputPin("IQ", {"CK": "non_unate"}, None, (), (), (), (), (), ())
    cell = technology.Cell(
        "DFFRS",
        1.0,
        0.0,
        {name: technology.InputPin(1.0) for name in ("CK", "D", "RN", "S")},
        {"Q": output},
        technology.FlipFlop("!CK", "D", ("IQ", "IQN"), clear="!RN", preset="S"),
    )
    tech = technology.Technology("t", {"DFFRS": cell}, 1.0, "here", 1000.0)
    assert netlist_models.cell_models(tech).splitlines() == [
        "module DFFRS (input CK, input D, input RN, input S, output Q);",
        "  wire clocked_on = ~CK;",
        "  wire clear = ~RN;",
        "  reg stored;",
        "  always @(posedge clocked_on or posedge S or posedge clear) "
        "if (clear) stored <= 1'b0; else if (S) stored <= 1'b1; else stored <= D;",
        "  assign Q = stored;",
        "endmodule",
    ]


def test_a_cell_without_a_model_is_refused() -> None:
    with pytest.raises(InputError, match="technology asap7 has no function for cell NAND2_X1"):
        netlist_models.cell_models(technology.TECHNOLOGIES["asap7"], ["NAND2_X1"])
