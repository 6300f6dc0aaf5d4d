"""The shipped cell facts."""

import pytest

from bitwright.quant import InputError
from bitwright.rtl import technology


@pytest.mark.parametrize(
    ("name", "cells", "voltage"),
    [("nangate45", 82, 1.1), ("sky130hd", 106, 1.8), ("asap7", 46, 0.7)],
)
def test_shipped_technologies_have_their_cells(name: str, cells: int, voltage: float) -> None:
    tech = technology.TECHNOLOGIES[name]
    assert (len(tech.cells), tech.voltage) == (cells, voltage)
    assert "reduced tables derived from the public" in tech.source


def test_a_cell_carries_its_facts() -> None:
    cell = technology.TECHNOLOGIES["nangate45"].cells["NAND2_X1"]
    assert cell.area_um2 == 0.798
    assert list(cell.pins) == ["A1", "A2"]
    assert cell.outputs["ZN"].function == "!(A1 & A2)"
    assert cell.ff is None


def test_asap7_flip_flops_store_the_complement() -> None:
    cell = technology.TECHNOLOGIES["asap7"].cells["DFFHQNx1_ASAP7_75t_R"]
    assert cell.ff is not None
    assert (cell.ff.next_state, cell.outputs["QN"].function) == ("!D", cell.ff.state[0])


@pytest.mark.parametrize("name", list(technology.TECHNOLOGIES))
def test_tables_are_complete_and_grow_with_load(name: str) -> None:
    for cell in technology.TECHNOLOGIES[name].cells.values():
        for output in cell.outputs.values():
            for table in (output.delay_rise_ps, output.delay_fall_ps):
                assert len(table) == len(output.slew_ps)
                assert all(list(row) == sorted(row) for row in table), cell.name
                assert all(len(row) == len(output.load_fF) for row in table)


@pytest.mark.parametrize("name", list(technology.TECHNOLOGIES))
def test_every_output_has_energies_and_every_clock_costs_some(name: str) -> None:
    for cell in technology.TECHNOLOGIES[name].cells.values():
        for output in cell.outputs.values():
            assert output.internal is not None, cell.name
            assert output.internal.slew_ps == output.slew_ps
            assert output.internal.load_fF in (output.load_fF, (0.0,))
            assert min(map(min, output.internal.fJ)) > 0, cell.name
        for pin in cell.pins.values():
            if pin.internal is not None:
                shape = [len(row) for row in pin.internal.fJ]
                assert shape == [1] * len(pin.internal.slew_ps), cell.name
            if pin.clock:
                assert pin.internal is not None, cell.name
                assert min(map(min, pin.internal.fJ)) > 0, cell.name


def test_energy_of_an_inverter_grows_with_its_slew() -> None:
    internal = technology.TECHNOLOGIES["nangate45"].cells["INV_X1"].outputs["ZN"].internal
    assert internal is not None
    fast, middle, slow = (row[0] for row in internal.fJ)
    assert fast < middle < slow


def test_asap7_adds_up_its_supplies() -> None:
    cells = technology.TECHNOLOGIES["asap7"].cells
    inverter, flip_flop = cells["INVx1_ASAP7_75t_R"], cells["DFFHQNx1_ASAP7_75t_R"]
    # Each state's leakage is stated at VDD, with 0 at VSS beside it.
    assert inverter.leakage_nW == pytest.approx(0.0512, abs=5e-5)
    assert flip_flop.leakage_nW == pytest.approx(0.2297, abs=5e-5)
    # Energies of a rise and a fall, each at VDD and at VSS, at 5 ps and 0.72 fF.
    expected = (0.121576 - 0.0231217 - 0.0286192 + 0.12607) / 2
    assert inverter.outputs["Y"].internal is not None
    assert inverter.outputs["Y"].internal.fJ[0][0] == pytest.approx(expected, abs=1e-5)


def test_unknown_technology_names_the_nearest() -> None:
    with pytest.raises(
        InputError, match=r"unknown technology 'nangate54'; did you mean 'nangate45'"
    ):
        technology.resolve_technology("nangate54")
