"""Standard-cell technologies: three that ship as tables of cell facts, or a user's Liberty files.

The shipped tables hold what mapping, timing, simulation and energy need and nothing else: area,
leakage, pin capacitances, functions, and delay, slew and energy at few points. Results with them
are pre-layout estimates.
"""

import difflib
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from importlib.resources import files
from types import MappingProxyType
from typing import Any

from bitwright.quant import InputError

#: Delay or slew in ps: one row per input slew, one column per output load.
Table = tuple[tuple[float, ...], ...]


@dataclass(frozen=True, slots=True)
class EnergyTable:
    """Energy inside a cell per transition: the mean of a rise and a fall, over slew and load."""

    slew_ps: tuple[float, ...]
    load_fF: tuple[float, ...]
    fJ: Table


@dataclass(frozen=True, slots=True)
class InputPin:
    """One input of a cell."""

    cap_fF: float
    clock: bool = False
    setup_ps: float | None = None  #: data pins of a flip-flop, at a nominal point
    #: Energy inside the cell per transition of this pin alone; None: the library has none.
    internal: EnergyTable | None = None


@dataclass(frozen=True, slots=True)
class OutputPin:
    """One output of a cell: its function, and its timing averaged over the inputs' arcs."""

    function: str  #: Liberty expression of the input pins, or of the state of a flip-flop
    sense: Mapping[str, str]  #: input pin -> positive_unate | negative_unate | non_unate
    max_cap_fF: float | None
    slew_ps: tuple[float, ...]  #: index of the tables: input slew
    load_fF: tuple[float, ...]  #: index of the tables: output load
    delay_rise_ps: Table
    delay_fall_ps: Table
    slew_rise_ps: Table
    slew_fall_ps: Table
    #: Energy inside the cell per transition of this output; None: not known.
    internal: EnergyTable | None = None


@dataclass(frozen=True, slots=True)
class FlipFlop:
    """What a sequential cell stores."""

    clocked_on: str  #: e.g. "CK"; "!CLK" for a falling edge
    next_state: str
    state: tuple[str, str]  #: names of the stored value and of its complement
    clear: str | None = None  #: condition that sets the value to 0, without a clock
    preset: str | None = None  #: condition that sets the value to 1, without a clock


@dataclass(frozen=True, slots=True)
class Cell:
    """One standard cell."""

    name: str
    area_um2: float
    leakage_nW: float
    pins: Mapping[str, InputPin]
    outputs: Mapping[str, OutputPin]
    ff: FlipFlop | None = None


@dataclass(frozen=True)
class WireLoad:
    """A wire-load model: length of a net by its fanout, and capacitance by length."""

    name: str
    fF_per_um: float  # noqa: N815
    um: tuple[float, ...]  #: length of nets with 1, 2, 3 ... sinks
    slope_um: float  #: added for every sink more
    source: str = field(repr=False, default="")

    def length_um(self, fanout: int) -> float:
        """Length of a net with so many sinks; 0 without any.

        >>> WireLoad("example", 0.1, (2.0, 4.5), 3.0).length_um(4)
        10.5
        """
        if fanout < 1 or not self.um:
            return 0.0
        more = fanout - len(self.um)
        return self.um[min(fanout, len(self.um)) - 1] + max(0, more) * self.slope_um

    def cap_fF(self, fanout: int) -> float:  # noqa: N802
        """Capacitance of such a net's wire."""
        return self.fF_per_um * self.length_um(fanout)

    @property
    def card(self) -> str:
        """One line for people."""
        if not self.um:
            return f"{self.name}: {self.source}"
        return (
            f"{self.name}, {self.fF_per_um:g} fF/um, {self.um[0]:g} um at one sink; {self.source}"
        )


@dataclass(frozen=True)
class Technology:
    """A named set of standard cells at one corner."""

    name: str
    cells: Mapping[str, Cell]
    voltage: float  #: V
    source: str  #: where the cells come from
    clock_ps: float  #: period that synthesis aims at unless told otherwise
    #: Liberty texts that Yosys and ABC read; empty: they are written from `cells`.
    liberty: tuple[str, ...] = field(default=(), repr=False)
    wire_load: WireLoad | None = None  #: None: that of `wire_load`, or none
    #: Why the library says nothing about energy; empty: it does.
    no_power: str = ""
    node_nm: float | None = None  #: node, for scaling; None: not known
    #: Cells of the library that are not in `cells` -> what they are, such as "latch".
    refused: Mapping[str, str] = field(default_factory=dict, repr=False)

    @cached_property
    def digest(self) -> str:
        """A hash of everything that the cells are said to do and cost."""
        return hashlib.sha256(repr((self.voltage, sorted(self.cells.items()))).encode()).hexdigest()

    @cached_property
    def liberty_texts(self) -> tuple[str, ...]:
        """Liberty for the mapping tools: the user's own files, or one written from the facts."""
        from .liberty import write_liberty

        return self.liberty or (write_liberty(self),)


#: Default periods: what every block of the bit-serial and of the FP16 PE reaches, so that areas
#: compare at one clock. Mapping without retiming or a datapath library is far from 1 GHz at 45 nm.
_CLOCK_PS = {"nangate45": 3000.0, "sky130hd": 12000.0, "asap7": 2500.0}
_NODE_NM = {"nangate45": 45.0, "sky130hd": 130.0, "asap7": 7.0}


class _Shipped(Mapping[str, Technology]):
    """The shipped technologies, each read when it is first used."""

    def __getitem__(self, name: str) -> Technology:
        if name not in _CLOCK_PS:
            raise KeyError(name)
        return _shipped(name)

    def __iter__(self) -> Iterator[str]:
        return iter(_CLOCK_PS)

    def __len__(self) -> int:
        return len(_CLOCK_PS)


TECHNOLOGIES: Mapping[str, Technology] = _Shipped()


def resolve_technology(name: str) -> Technology:
    """The shipped technology of that name.

    Raises:
        InputError: There is none; the message lists them, the nearest first.
    """
    if name in _CLOCK_PS:
        return _shipped(name)
    near = difflib.get_close_matches(name, _CLOCK_PS, n=1, cutoff=0.4)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise InputError(
        f"unknown technology {name!r}{hint} (known: {', '.join(_CLOCK_PS)}; "
        "other libraries through --liberty FILE)"
    )


@cache
def _shipped(name: str) -> Technology:
    text = files("bitwright.rtl").joinpath(f"data/{name}.json").read_text(encoding="utf-8")
    facts = json.loads(text)
    return Technology(
        name=name,
        cells=MappingProxyType({n: _cell(n, c) for n, c in facts["cells"].items()}),
        voltage=facts["voltage_V"],
        source=facts["source"],
        clock_ps=_CLOCK_PS[name],
        node_nm=_NODE_NM[name],
    )


def _cell(name: str, facts: Mapping[str, Any]) -> Cell:
    ff = facts.get("ff")
    return Cell(
        name=name,
        area_um2=facts["area_um2"],
        leakage_nW=facts["leakage_nW"],
        pins={pin: InputPin(**_pin(values)) for pin, values in facts["pins"].items()},
        outputs={pin: OutputPin(**_pin(values)) for pin, values in facts["outputs"].items()},
        ff=None if ff is None else FlipFlop(**(ff | {"state": tuple(ff["state"])})),
    )


def _pin(facts: Mapping[str, Any]) -> dict[str, Any]:
    values = {key: _frozen(value) for key, value in facts.items()}
    if "internal" in facts:
        table = {key: _frozen(value) for key, value in facts["internal"].items()}
        values["internal"] = EnergyTable(**table)
    return values


def _frozen(value: Any) -> Any:
    return tuple(_frozen(v) for v in value) if isinstance(value, list) else value
