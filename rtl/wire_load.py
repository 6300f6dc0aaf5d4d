"""Wire-load models: the capacitance that a net's wire has before anything is placed.

A model gives a length for each fanout and a capacitance per length. Each shipped technology has
one; a user's Liberty brings its own, or none. What a wire really is, only a layout tells: the model
is part of every calibration card.
"""

from collections.abc import Mapping

from .technology import Technology, WireLoad

NO_WIRES = WireLoad("none", 0.0, (), 0.0, "wires left out")

_NANGATE_UM = (
    *(1.746, 3.9394, 6.4626, 9.2201, 11.9123, 14.8358, 18.6155, 22.6727, 25.4842),
    *(26.2581, 27.032),
)
_SHRINK = 0.331  # edge of an ASAP7 NAND2 over that of a Nangate45 one: sqrt(0.08748 / 0.798)
_SETRC = "authors' repo: The-OpenROAD-Project/OpenROAD-flow-scripts flow/platforms"

WIRE_LOADS: Mapping[str, WireLoad] = {
    "nangate45": WireLoad(
        "5K_hvratio_1_1", 0.1774, _NANGATE_UM, 5.0, "the library's default wire load"
    ),
    "sky130hd": WireLoad(
        "Small with met1",
        0.1724,
        (23.2746, 32.1136, 48.4862, 64.0974, 86.2649),
        8.3631,
        "lengths of the library's default wire load; its 0.0142 fF/um is a tenth of any metal, so "
        f"met1's capacitance instead, {_SETRC}/sky130hd/setRC.tcl",
    ),
    "asap7": WireLoad(
        "nangate45 lengths shrunk",
        0.1733,
        tuple(round(length * _SHRINK, 4) for length in _NANGATE_UM),
        round(5.0 * _SHRINK, 4),
        "the library has none: Nangate45's lengths by the ratio of the cells' edges (assumed); "
        f"capacitance {_SETRC}/asap7/setRC.tcl (another version has 0.129)",
    ),
}


def wire_load(technology: Technology) -> WireLoad:
    """The model of a technology: its own, the shipped one, or none."""
    return technology.wire_load or WIRE_LOADS.get(technology.name) or NO_WIRES
