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


def test_cells_left_out_say_what_they_are(tiny: Path) -> None:
    assert liberty.read_liberty([tiny]).refused == {"HIDDEN": "dont_use", "LATCH": "latch"}


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


# ------------------------------------------------------------------ power, leakage, wires

UNITS = {
    "capacitive_load_unit": "capacitive_load_unit (1, ff);",
    "leakage_power_unit": 'leakage_power_unit : "1nW";',
    "voltage_unit": 'voltage_unit : "1V";',
    "nom_voltage": "nom_voltage : 0.5;",
}
TEMPLATES = """
  power_lut_template (both) {
    variable_1 : input_transition_time; variable_2 : total_output_net_capacitance;
    index_1 ("0.01, 0.03"); index_2 ("1, 3");
  }
  power_lut_template (slews) { variable_1 : input_transition_time; index_1 ("0.01, 0.03"); }
"""
TABLE = 'internal_power () { power (both) { values ("2, 4", "6, 8"); } }'


def library(
    tmp_path: Path,
    *,
    units: dict[str, str] | None = None,
    head: str = "",
    cell: str = "",
    power: str = TABLE,
    data: str = "",
) -> Path:
    """A library of an inverter with this power and a flip-flop."""
    text = f"""
library (small) {{
  {" ".join((units or UNITS).values())}
  {head} {TEMPLATES}
  cell (INV) {{
    {cell}
    pin (A) {{ direction : input; {data} }}
    pin (Y) {{
      direction : output; function : "!A";
      timing () {{ related_pin : "A"; timing_sense : negative_unate; }}
      {power}
    }}
  }}
  cell (DFF) {{
    ff (IQ, IQN) {{ clocked_on : "CK"; next_state : "D"; }}
    pin (CK) {{ direction : input; clock : true; }}
    pin (D) {{ direction : input; }}
    pin (Q) {{ direction : output; function : "IQ"; }}
  }}
}}
"""
    path = tmp_path / "small.lib"
    path.write_text(text)
    return path


def powers(*groups: str) -> str:
    return " ".join(f"internal_power () {{ {group} }}" for group in groups)


def table(kind: str, *values: float) -> str:
    """`kind` over two slews and two loads."""
    a, b, c, d = values
    return f'{kind} (both) {{ values ("{a}, {b}", "{c}, {d}"); }}'


@pytest.mark.parametrize(
    ("power", "expected"),
    [
        (powers(table("rise_power", 2, 4, 6, 8) + table("fall_power", 0, 2, 2, -4)), (1, 3, 4, 2)),
        (powers(table("power", 2, 4, 6, 8)), (2, 4, 6, 8)),
        (
            powers(
                "related_pg_pin : VDD; " + table("power", 2, 4, 6, 8),
                "related_pg_pin : VSS; " + table("power", 1, 2, 3, -4),
            ),
            (3, 6, 9, 4),
        ),
        (
            powers(
                'related_pin : "A"; when : "B"; ' + table("power", 2, 4, 6, 8),
                'related_pin : "A"; when : "!B"; ' + table("power", 4, 4, 0, 10),
            ),
            (3, 4, 3, 9),
        ),
        (
            powers(
                'when : "B"; related_pg_pin : VDD; ' + table("power", 2, 4, 6, 8),
                'when : "!B"; related_pg_pin : VDD; ' + table("power", 4, 4, 0, 10),
                'when : "B"; related_pg_pin : VSS; ' + table("power", 1, 1, 1, 1),
                'when : "!B"; related_pg_pin : VSS; ' + table("power", 3, 3, 3, 3),
            ),
            (5, 6, 5, 11),
        ),
        (powers(table("rise_power", 2, 4, 6, 8) + "fall_power (scalar) { values (2); }"), None),
        (
            powers(
                'when : "B"; power (scalar) { values ("2"); }',
                'when : "!B"; ' + table("power", 2, 4, 6, 8),
            ),
            (2, 3, 4, 5),
        ),
    ],
    ids=["edges", "power", "supplies", "when", "supplies and when", "one scalar", "scalar first"],
)
def test_energies_are_means_of_arcs_and_edges_and_sums_of_supplies(
    power: str, expected: tuple[float, ...] | None, tmp_path: Path
) -> None:
    internal = liberty.read_liberty([library(tmp_path, power=power)]).cells["INV"].outputs["Y"]
    assert internal.internal is not None
    assert internal.internal.slew_ps == pytest.approx((10, 30))
    assert internal.internal.load_fF == pytest.approx((1, 3))
    found = [value for row in internal.internal.fJ for value in row]
    assert found == pytest.approx(expected or (2, 3, 4, 5))


def test_a_scalar_energy_is_the_same_everywhere(tmp_path: Path) -> None:
    power = powers("rise_power (scalar) { values (3); } fall_power (scalar) { values (1); }")
    output = liberty.read_liberty([library(tmp_path, power=power)]).cells["INV"].outputs["Y"]
    assert output.internal == technology.EnergyTable((0.0,), (0.0,), ((2.0,),))


def test_inputs_have_energies_over_the_slew_or_none(tmp_path: Path) -> None:
    data = powers('rise_power (slews) { values ("1, 3"); } fall_power (slews) { values ("3, 9"); }')
    cells = liberty.read_liberty([library(tmp_path, data=data)]).cells
    internal = cells["INV"].pins["A"].internal
    assert internal is not None
    assert (internal.load_fF, internal.fJ) == ((0.0,), ((2.0,), (6.0,)))
    assert cells["DFF"].pins["CK"].internal is None
    assert cells["DFF"].outputs["Q"].internal is None


@pytest.mark.parametrize(
    ("load", "voltage", "fJ"),
    [("1, ff", "1V", 2), ("1, pf", "1V", 2e3), ("10, ff", "100mV", 0.2), ("1, pf", "1mV", 2e-3)],
)
def test_energies_are_loads_times_voltages_squared(
    load: str,
    voltage: str,
    fJ: float,  # noqa: N803
    tmp_path: Path,
) -> None:
    units = UNITS | {
        "capacitive_load_unit": f"capacitive_load_unit ({load});",
        "voltage_unit": f'voltage_unit : "{voltage}";',
    }
    read = liberty.read_liberty([library(tmp_path, units=units)])
    internal = read.cells["INV"].outputs["Y"].internal
    assert internal is not None
    assert internal.fJ[0][0] == pytest.approx(fJ)
    assert read.no_power == ""


def leakage(value: str, when: str = "", supply: str = "") -> str:
    condition = f'when : "{when}"; ' if when else ""
    pin = f"related_pg_pin : {supply}; " if supply else ""
    return f"leakage_power () {{ {condition}{pin}value : {value}; }} "


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        ("", 0),
        ("cell_leakage_power : 7;" + leakage("1", "A"), 7),
        (leakage("2", "A") + leakage('"6"', "!A"), 4),
        (leakage("2", "A") + leakage("6", "!A") + leakage("50"), 4),
        (leakage("5"), 5),
        (leakage("5", supply="VDD") + leakage("1", supply="VSS"), 6),
        (
            leakage("2", "A", "VDD")
            + leakage("0", "A", "VSS")
            + leakage("6", "!A", "VDD")
            + leakage("2", "!A", "VSS")
            + leakage("4", supply="VDD")
            + leakage("0", supply="VSS"),
            5,
        ),
    ],
    ids=["none", "cell", "states", "default", "only default", "supplies", "all"],
)
def test_leakage_is_the_mean_of_states_and_the_sum_of_supplies(
    cell: str, expected: float, tmp_path: Path
) -> None:
    read = liberty.read_liberty([library(tmp_path, cell=cell)])
    assert read.cells["INV"].leakage_nW == pytest.approx(expected)


def wires(*statements: str, name: str = "near") -> str:
    return f'default_wire_load : "near"; wire_load ("{name}") {{ {" ".join(statements)} }}'


@pytest.mark.parametrize(
    ("statements", "um", "slope"),
    [
        (
            ("slope : 5;", "fanout_length (1, 2);", "fanout_length (2, 4);"),
            (2, 4),
            5,
        ),
        (
            ("slope : 5;", 'fanout_length ("5, 14");', "fanout_length (2, 8);"),
            (4, 8, 10, 12, 14),
            5,
        ),
        (("fanout_length (1, 2, 0.1, 0.2, 9);",), (2,), 0),
        (("slope : 5;",), (5,), 5),
    ],
    ids=["all", "missing fanouts", "more columns", "slope alone"],
)
def test_the_default_wire_load_is_read(
    statements: tuple[str, ...], um: tuple[float, ...], slope: float, tmp_path: Path
) -> None:
    units = UNITS | {"capacitive_load_unit": "capacitive_load_unit (1, pf);"}
    other = 'wire_load ("far") { capacitance : 9; fanout_length (1, 90); }'
    head = wires("capacitance : 0.0002;", *statements) + other
    model = liberty.read_liberty([library(tmp_path, units=units, head=head)]).wire_load
    assert model is not None
    assert (model.name, model.source) == ("near", "wire_load near of small.lib")
    assert model.fF_per_um == pytest.approx(0.2)
    assert model.um == pytest.approx(um)
    assert model.slope_um == slope
    assert model.cap_fF(len(um) + 2) == pytest.approx(0.2 * (um[-1] + 2 * slope))


@pytest.mark.parametrize(
    "head",
    [
        "",
        'wire_load ("near") { capacitance : 1; slope : 1; }',
        wires("capacitance : 1;", "slope : 1;", name="far"),
        wires("slope : 1;"),
    ],
    ids=["none", "no default", "another name", "no capacitance"],
)
def test_without_a_default_wire_load_there_is_none(head: str, tmp_path: Path) -> None:
    assert liberty.read_liberty([library(tmp_path, head=head)]).wire_load is None


def test_a_group_keeps_all_statements_of_a_name() -> None:
    group = liberty.parse_liberty("library (x) { n (1, 2); m (5); n (3); }")
    assert group.lists == {"n": ("3",), "m": ("5",)}
    assert group.repeated("n") == [("1", "2"), ("3",)]
    assert group.repeated("k") == []


@pytest.mark.parametrize("unit", ["capacitive_load_unit", "leakage_power_unit", "voltage_unit"])
def test_a_missing_unit_leaves_energies_without_a_meaning(unit: str, tmp_path: Path) -> None:
    units = {name: text for name, text in UNITS.items() if name != unit}
    path = library(tmp_path, units=units)
    assert liberty.read_liberty([path]).no_power == (
        f"{path} states no {unit}, so its energies have no unit; add the line"
    )


def test_a_missing_voltage_or_power_table_is_told(tmp_path: Path) -> None:
    path = library(tmp_path, units=UNITS | {"nom_voltage": ""})
    assert liberty.read_liberty([path]).no_power == (
        f"{path} states no nom_voltage, so its energies have no voltage; add the line"
    )
    path = library(tmp_path, power="")
    assert liberty.read_liberty([path]).no_power == (
        f"{path} has no power tables (internal_power); give a Liberty file with them"
    )
    assert liberty.read_liberty([library(tmp_path)]).no_power == ""


def test_a_clock_is_that_of_a_flip_flop_that_keeps_its_value(tmp_path):
    """Zeros stand where Q changes: 4 fJ a held rise, 6 fJ a fall; Q's 9 fJ hold one rise."""

    def power(when, rise, fall):
        edges = {"rise_power": rise, "fall_power": fall}
        tables = " ".join(
            f'{edge} (scalar) {{ values ("{value}"); }}' for edge, value in edges.items()
        )
        return f"internal_power () {{ {when} {tables} }}"

    text = f"""library (l) {{
      capacitive_load_unit (1, ff); voltage_unit : "1V"; leakage_power_unit : "1nW";
      nom_voltage : 1.0;
      cell (INV) {{
        pin (A) {{ direction : input; capacitance : 1; {power('when : "A";', 8, 8)} }}
        pin (Y) {{ direction : output; function : "!A"; timing () {{ related_pin : "A";
          timing_sense : negative_unate; }} }}
      }}
      cell (DFF) {{
        ff (IQ, IQN) {{ clocked_on : "CK"; next_state : "D"; }}
        pin (D) {{ direction : input; capacitance : 1; }}
        pin (CK) {{ direction : input; capacitance : 1; clock : true;
          {power('when : "D & Q";', 4, 6)} {power('when : "D & !Q";', 0, 6)} }}
        pin (Q) {{ direction : output; function : "IQ"; {power('related_pin : "CK";', 9, 9)} }}
      }}
    }}"""
    file = tmp_path / "l.lib"
    file.write_text(text, encoding="utf-8")
    cells = liberty.read_liberty([file]).cells
    clock, q = cells["DFF"].pins["CK"].internal, cells["DFF"].outputs["Q"].internal
    assert clock is not None and clock.fJ == ((5.0,),)
    assert q is not None and q.fJ == ((5.0,),)
    # A data input's condition holds in half of the cell's states.
    hidden = cells["INV"].pins["A"].internal
    assert hidden is not None and hidden.fJ == ((4.0,),)
