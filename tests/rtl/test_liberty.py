"""Liberty written from cell facts, and read back."""

import gzip
from pathlib import Path

import pytest

from bitwright.quant import InputError
from bitwright.rtl import liberty, technology

TINY = """
library (tiny) { /* two cells */
  time_unit : "1ns"; leakage_power_unit : "1uW"; nom_voltage : 1.2 ;
  capacitive_load_unit (1, pf);
  lu_table_template (t) {
    variable_1 : total_output_net_capacitance;
    variable_2 : input_net_transition;
    index_1 ("0.001, 0.004"); index_2 ("0.01, 0.02, 0.05");
  }
  cell (INV) {
    area : 0.5
    cell_leakage_power : 0.002;
    pin (A) { direction : input; capacitance : 0.0015; }
    pin (Y) {
      direction : output; function : "A'"; max_capacitance : 0.06;
      timing () {
        related_pin : "A"; timing_sense : negative_unate;
        cell_rise (t) { values ("0.1, 0.2, 0.3", \\
                                "0.4, 0.5, 0.6"); }
        cell_fall (t) { values ("0.1, 0.2, 0.3", "0.4, 0.5, 0.6"); }
        rise_transition (t) { values ("0.1, 0.2, 0.3", "0.4, 0.5, 0.6"); }
        fall_transition (t) { values ("0.1, 0.2, 0.3", "0.4, 0.5, 0.6"); }
      }
    }
  }
  cell (DFF) {
    area : 2;
    ff (IQ, IQN) { clocked_on : "CK"; next_state : "D"; }
    pin (CK) { direction : input; capacitance : 0.001; clock : true; }
    pin (D) {
      direction : input; capacitance : 0.001;
      timing () {
        related_pin : "CK"; timing_type : setup_rising;
        rise_constraint (scalar) { values ("0.03"); }
        fall_constraint (scalar) { values ("0.04"); }
      }
    }
    pin (Q) { direction : output; function : "IQ"; }
  }
  cell (HIDDEN) { dont_use : true; pin (Y) { direction : output; function : "1"; } }
  cell (LATCH) { latch (IQ, IQN) { } pin (Y) { direction : output; function : "IQ"; } }
}
"""


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.lib.gz"
    path.write_bytes(gzip.compress(TINY.encode()))
    return path


@pytest.mark.parametrize("name", list(technology.TECHNOLOGIES))
def test_written_liberty_reads_back_equal(name: str, tmp_path: Path) -> None:
    tech = technology.TECHNOLOGIES[name]
    path = tmp_path / "cells.lib"
    path.write_text(tech.liberty_texts[0])
    back = liberty.read_liberty([path])
    assert (list(back.cells), back.voltage) == (list(tech.cells), tech.voltage)
    for cell in tech.cells.values():
        read = back.cells[cell.name]
        assert (read.area_um2, read.leakage_nW, read.ff) == (
            cell.area_um2,
            cell.leakage_nW,
            cell.ff,
        )
        for pin, facts in cell.pins.items():
            found = read.pins[pin]
            assert (found.cap_fF, found.clock, found.setup_ps) == (
                facts.cap_fF,
                facts.clock,
                facts.setup_ps,
            )
        for pin, output in cell.outputs.items():
            assert read.outputs[pin].function == output.function
            assert read.outputs[pin].sense == output.sense
            assert read.outputs[pin].load_fF == output.load_fF
            for row, expected in zip(
                read.outputs[pin].delay_rise_ps, output.delay_rise_ps, strict=True
            ):
                assert row == pytest.approx(expected)


def test_units_and_the_order_of_axes_are_followed(tiny: Path) -> None:
    cell = liberty.read_liberty([tiny]).cells["INV"]
    output = cell.outputs["Y"]
    assert cell.leakage_nW == pytest.approx(2.0)
    assert cell.pins["A"].cap_fF == pytest.approx(1.5)
    assert output.max_cap_fF == pytest.approx(60)
    assert output.load_fF == pytest.approx((1, 4))
    assert output.slew_ps == pytest.approx((10, 20, 50))
    # One row per slew: the file has one row per load.
    assert output.delay_rise_ps[2] == pytest.approx((300, 600))


def test_setup_is_that_of_the_slower_edge(tiny: Path) -> None:
    assert liberty.read_liberty([tiny]).cells["DFF"].pins["D"].setup_ps == pytest.approx(40)


def test_cells_that_cannot_be_mapped_to_are_left_out(tiny: Path) -> None:
    assert set(liberty.read_liberty([tiny]).cells) == {"INV", "DFF"}


def test_several_files_are_one_library(tmp_path: Path) -> None:
    head, dff, tail = TINY.partition("  cell (DFF)")
    body, hidden, rest = tail.partition("  cell (HIDDEN)")
    (tmp_path / "logic.lib").write_text(head + "}")
    (tmp_path / "seq.lib").write_text(head.partition("  cell (INV)")[0] + dff + body + "}")
    both = liberty.read_liberty([tmp_path / "logic.lib", tmp_path / "seq.lib"])
    assert both.name == "logic+seq"
    assert set(both.cells) == {"INV", "DFF"}
    with pytest.raises(InputError, match=r"logic\.lib: no flip-flop"):
        liberty.read_liberty([tmp_path / "logic.lib"])
    with pytest.raises(InputError, match=r"seq\.lib: no inverter"):
        liberty.read_liberty([tmp_path / "seq.lib"])


def test_interpolation_is_bilinear_and_extends_the_edges() -> None:
    rows, columns, table = (0.0, 10.0), (0.0, 2.0, 4.0), ((0.0, 2.0, 4.0), (10.0, 12.0, 14.0))
    assert liberty.interpolate(rows, columns, table, 5, 1) == 6
    assert liberty.interpolate(rows, columns, table, 20, 6) == 26
    assert liberty.interpolate((0.0,), (0.0,), ((7.0,),), 3, 3) == 7


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (TINY[: len(TINY) // 2], r"bad\.lib is cut short: .* is never closed"),
        ("not a library at all", r"bad\.lib, line 1: expected ':' or '\(' after not"),
        ("cell (X) { }", r"bad\.lib holds no library group"),
        (TINY + "}", r"bad\.lib, line 43: '}' closes nothing"),
        (TINY.replace("1ns", "1 fortnight"), r"bad\.lib is not .*: unit '1 fortnight' is not one"),
        (TINY.replace('"0.1, 0.2, 0.3", \\', '"0.1"'), r"a table holds 4 values for 3 x 2 points"),
        (TINY.replace("area : 2;", "area : big;"), r"bad\.lib is not a usable Liberty file: .*big"),
    ],
    ids=["cut", "prose", "no library", "extra brace", "unit", "table", "number"],
)
def test_what_is_not_liberty_is_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "bad.lib").write_text(text)
    with pytest.raises(InputError, match=message):
        liberty.read_liberty([tmp_path / "bad.lib"])


def test_missing_and_damaged_files_are_refused(tiny: Path) -> None:
    with pytest.raises(InputError, match=r"absent\.lib cannot be read: No such file"):
        liberty.read_liberty([tiny.parent / "absent.lib"])
    tiny.write_bytes(tiny.read_bytes()[:-30])
    with pytest.raises(InputError, match=r"tiny\.lib\.gz is damaged"):
        liberty.read_liberty([tiny])
