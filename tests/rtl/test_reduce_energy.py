"""Energies of the shipped technologies, reduced from Liberty."""

import copy
import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from bitwright.quant import InputError
from bitwright.rtl import liberty, reduce_energy, technology

LIBRARY = """
library (small) {
  time_unit : "1ps"; capacitive_load_unit (1, ff); nom_voltage : 0.5;
  leakage_power_unit : "1nW"; voltage_unit : "1V";
  power_lut_template (both) {
    variable_1 : input_transition_time; variable_2 : total_output_net_capacitance;
    index_1 ("10, 30"); index_2 ("1, 3");
  }
  power_lut_template (slews) { variable_1 : input_transition_time; index_1 ("10, 30"); }
  cell (INV) {
    leakage_power () { when : "A"; value : 1; } leakage_power () { when : "!A"; value : 2; }
    pin (A) { direction : input; }
    pin (Y) {
      direction : output; function : "!A";
      timing () { related_pin : "A"; timing_sense : negative_unate; }
      internal_power () {
        rise_power (both) { values ("2, 4", "6, 8"); } fall_power (scalar) { values (2); }
      }
    }
  }
  cell (DFF) {
    ff (IQ, IQN) { clocked_on : "CK"; next_state : "D"; }
    pin (CK) {
      direction : input; clock : true;
      internal_power () { power (slews) { values ("1, 1.333333"); } }
    }
    pin (D) { direction : input; }
    pin (Q) {
      direction : output; function : "IQ";
      internal_power () { power (both) { values ("5, 5", "7, 7"); } }
    }
  }
}
"""
TIMES: dict[str, Any] = {"slew_ps": [5.0, 10.0, 20.0], "load_fF": [1.0, 2.0, 9.0]}
OLD = {"internal_rise_fJ": 1.5, "internal_fall_fJ": 2.5}
FACTS: dict[str, Any] = {
    "technology": "small",
    "source": "public cells: internal energy per output transition at a nominal point",
    "cells": {
        "INV": {
            "area_um2": 0.5,
            "leakage_nW": 9.0,
            "pins": {"A": {"cap_fF": 0.25}},
            "outputs": {"Y": {"function": "!A", **TIMES, **OLD}},
        },
        "DFF": {
            "area_um2": 2.0,
            "leakage_nW": 9.0,
            "pins": {"CK": {"cap_fF": 1.0, "clock": True, **OLD}, "D": {"cap_fF": 1.0, **OLD}},
            "outputs": {"Q": {"function": "IQ", **TIMES, **OLD}},
            "ff": {"clocked_on": "CK"},
        },
    },
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "small.lib"
    file.write_text(LIBRARY)
    return file


@pytest.fixture
def full(path: Path) -> technology.Technology:
    return liberty.read_liberty([path])


def test_energies_are_sampled_where_the_delays_are(full: technology.Technology) -> None:
    before = copy.deepcopy(FACTS)
    cells = reduce_energy.reduce_energy(FACTS, full)["cells"]
    assert before == FACTS
    # Rise and fall by halves; 5 ps and 9 fF are outside, where the edge counts.
    assert cells["INV"]["outputs"]["Y"] == {
        "function": "!A",
        **TIMES,
        "internal": {**TIMES, "fJ": [[2.0, 2.5, 3.0], [2.0, 2.5, 3.0], [3.0, 3.5, 4.0]]},
    }


def test_one_load_is_kept_where_the_load_does_not_matter(full: technology.Technology) -> None:
    cell = reduce_energy.reduce_energy(FACTS, full)["cells"]["DFF"]
    slews = {"slew_ps": TIMES["slew_ps"], "load_fF": [0.0]}
    assert cell["outputs"]["Q"]["internal"] == {**slews, "fJ": [[5.0], [5.0], [6.0]]}
    assert cell["pins"] == {
        "CK": {
            "cap_fF": 1.0,
            "clock": True,
            "internal": {**slews, "fJ": [[1.0], [1.0], [1.16667]]},
        },
        "D": {"cap_fF": 1.0},
    }


def test_leakage_and_source_follow_and_the_rest_stays(full: technology.Technology) -> None:
    reduced = reduce_energy.reduce_energy(FACTS, full)
    assert [cell["leakage_nW"] for cell in reduced["cells"].values()] == [1.5, 0.0]
    assert reduced["source"] == (
        "public cells: internal energy per transition over slew and load, mean of rise and fall "
        "and of arcs, what the supplies deliver added up; leakage the mean over states, supplies "
        "added up"
    )
    assert (list(reduced), list(reduced["cells"])) == (list(FACTS), list(FACTS["cells"]))
    assert reduced["cells"]["DFF"]["ff"] == {"clocked_on": "CK"}
    assert reduced["cells"]["INV"]["area_um2"] == 0.5


def test_reducing_again_changes_nothing(full: technology.Technology) -> None:
    once = reduce_energy.reduce_energy(FACTS, full)
    assert reduce_energy.reduce_energy(once, full) == once


def test_a_library_that_is_not_the_technology_s_is_refused(
    path: Path, full: technology.Technology
) -> None:
    inverter = FACTS["cells"]["INV"]
    with pytest.raises(InputError, match=r"small\.lib .* has no cell BUF with these pins"):
        reduce_energy.reduce_energy({**FACTS, "cells": {"BUF": inverter}}, full)
    with pytest.raises(InputError, match=r"has no cell INV with these pins; give all its files"):
        other = {**FACTS, "cells": {"INV": {**inverter, "pins": {"B": {}}}}}
        reduce_energy.reduce_energy(other, full)
    with pytest.raises(InputError, match=r"has no energies for output Z of cell INV"):
        other = {"INV": {**inverter, "outputs": {"Z": inverter["outputs"]["Y"]}}}
        reduce_energy.reduce_energy({**FACTS, "cells": other}, full)
    path.write_text(LIBRARY.replace('voltage_unit : "1V";', ""))
    with pytest.raises(InputError, match=r"small\.lib states no voltage_unit"):
        reduce_energy.reduce_energy(FACTS, liberty.read_liberty([path]))


@pytest.mark.parametrize("name", list(technology.TECHNOLOGIES))
def test_shipped_files_have_the_layout_that_is_written(name: str) -> None:
    text = files("bitwright.rtl").joinpath(f"data/{name}.json").read_text(encoding="utf-8")
    assert reduce_energy.to_text(json.loads(text)) == text
    assert "internal_rise_fJ" not in text


def test_the_command_rewrites_the_technology_s_file(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reduce_energy, "files", lambda package: tmp_path)
    data = tmp_path / "data" / "asap7.json"
    data.parent.mkdir()
    data.write_text(reduce_energy.to_text(FACTS))
    reduce_energy.main(["asap7", str(path)])
    assert json.loads(data.read_text()) == reduce_energy.reduce_energy(
        FACTS, liberty.read_liberty([path])
    )


@pytest.mark.parametrize("arguments", [[], ["asap7"], ["asap8", "small.lib"]])
def test_the_command_says_how_it_is_used(arguments: list[str]) -> None:
    with pytest.raises(InputError, match=r"usage: .*TECHNOLOGY FILE\.lib\.gz\.\.\. \(techno"):
        reduce_energy.main(arguments)
