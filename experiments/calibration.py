"""The calibration card: what stands behind the numbers of a run.

Technology, supply, clock, post-layout factor, wires, memories, where each comes from, and what is
not modelled. Every run prints one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from bitwright.sim import LogicEnergy, SimulationResult

#: What no number of the package contains.
NOT_MODELLED = (
    "clock-tree buffers and trunk, clock gates",
    "vector unit, sequencer, wires between buffers, array and DRAM",
    "leakage by state, temperature and process corners",
)


@dataclass(frozen=True)
class CalibrationCard:
    """Facts about a run, in the order in which they are printed."""

    technology: str
    voltage: str
    clock: str
    post_layout: str
    wires: str
    node: str = "the technology's own, nothing scaled"
    sram: str = "none"
    dram: str = "none"
    precision: str = ""
    sources: Mapping[str, str] = field(default_factory=dict)  #: quantity -> where it comes from
    not_modelled: tuple[str, ...] = NOT_MODELLED

    def lines(self) -> list[str]:
        """The card as lines of text."""
        rows = {
            "technology": self.technology,
            "supply": self.voltage,
            "clock": self.clock,
            "post-layout factor": self.post_layout,
            "wire load": self.wires,
            "node": self.node,
            "SRAM": self.sram,
            "DRAM": self.dram,
            "sampling": self.precision,
            **{f"source of {what}": where for what, where in self.sources.items()},
            "not modelled": "; ".join(self.not_modelled),
        }
        return [f"card: {name}: {value}" for name, value in rows.items() if value]

    def to_dict(self) -> dict[str, Any]:
        """Values for JSON."""
        return asdict(self)


def logic_card(
    logic: LogicEnergy,
    *,
    clock_ps: float,
    sram: str = "none",
    dram: str = "none",
    sources: Mapping[str, str] | None = None,
    not_modelled: Sequence[str] = NOT_MODELLED,
) -> CalibrationCard:
    """The card of a run with measured logic energy.

    Args:
        logic: The energies.
        clock_ps: Period of the run.
        sram: The buffers, in words.
        dram: The interface, in words.
        sources: More quantities and their sources.
        not_modelled: What is left out.
    """
    widest = max((row.half_width for row in logic.products.values()), default=0.0)
    return CalibrationCard(
        technology=logic.technology,
        voltage=f"{logic.voltage:g} V",
        clock=f"{clock_ps:g} ps; logic mapped for {logic.clock_ps:g} ps",
        post_layout=f"{logic.post_layout:g}" + (" (none)" if logic.post_layout == 1 else ""),
        wires=logic.wires,
        node=(
            "the technology's own, nothing scaled"
            if logic.scale == 1
            else f"scaled: energies x {logic.scale:.3g}, leakage not scaled"
        ),
        sram=sram,
        dram=dram,
        precision=f"95 % interval of every product's energy within {widest:.1%}",
        sources={"logic energy": logic.source, **(sources or {})},
        not_modelled=(
            *(() if logic.glitches is None else (_glitches(logic.glitches),)),
            *not_modelled,
        ),
    )


def _glitches(factor: float) -> str:
    return (
        "glitches (if all cells were equally slow and let every glitch pass, the PE's switching "
        f"would be {factor:.1f} times what is counted)"
    )


def simulation_card(result: SimulationResult, logic: LogicEnergy | None = None) -> CalibrationCard:
    """The card of a simulation.

    Args:
        result: The simulation.
        logic: Energy of its logic; None: it was not measured.
    """
    said = [source.partition(": ") for source in result.sources]
    sram = "; ".join(f"{name}: {text}" for name, _, text in said if name.endswith("buffer"))
    dram = "; ".join(f"{name}: {text}" for name, _, text in said if name.startswith("dram"))
    others = {
        name: text
        for name, _, text in said
        if not name.endswith("buffer") and not name.startswith("dram") and name != "logic energy"
    }
    if logic is not None:
        return logic_card(logic, clock_ps=result.clock_ps, sram=sram, dram=dram, sources=others)
    published = result.config.get("rules") is not None or result.logic_uj is not None
    return CalibrationCard(
        technology="as published" if published else "none: switching of the logic not measured",
        voltage="as published, not stated" if published else "",
        clock=f"{result.clock_ps:g} ps",
        post_layout="1.5 on the PEs, as published" if published else "",
        wires="as published, not stated" if published else "",
        node="as published" if published else "",
        sram=sram,
        dram=dram,
        sources=others,
        not_modelled=("glitches", *NOT_MODELLED),
    )
