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


def test_unknown_technology_names_the_nearest() -> None:
    with pytest.raises(
        InputError, match=r"unknown technology 'nangate54'; did you mean 'nangate45'"
    ):
        technology.resolve_technology("nangate54")
