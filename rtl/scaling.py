"""Energy, delay and area of logic carried from one technology node to another.

Each node has an energy factor and a delay factor, polynomials of the supply voltage fitted to
simulated inverters, and an area. A ratio is the factor there over the factor here. A scaled result
is an estimate and says so (`RULE`): the fits are loose, area is that of logic and not of SRAM, and
wires are not in the rule.

- Energy fits of the smallest nodes are low: from 32 nm at 0.97 V to 7 nm at 0.8 V they give 1/8.2,
  the inverters of the paper's Table 2 (as one transcription reads it) 1/4.6.
- The delay fits of the 45 and 32 nm `hp` devices are not monotone: delay grows with the supply
  from about 0.94 to 1.14 V and from 0.84 to 1.05 V.
- 130 nm is accepted up to 1.8 V, the supply of SkyWater's cells, although its nominal supply here
  is 1.3 V: both fits still go the right way there. docs/energy.md shows how far off it then is.
- The bounds on the supply are ours; `data/scaling_stillmaker.json` gives their reasons, and for
  each row how many public transcriptions agree on it.
"""

import json
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files
from math import exp, log, prod

from bitwright.quant import InputError

#: Where a scaled number comes from; stands beside every one of them.
RULE = (
    "scaled by Stillmaker and Baas, Integration 58 (2017) 74-81; "
    "between the paper's nodes by our log-log interpolation"
)


@dataclass(frozen=True, slots=True)
class Node:
    """One node of the paper's tables."""

    nm: int
    devices: str  #: "hp" (high performance), "lstp" (low power), "bulk" (one kind, from 65 nm up)
    voltage: float  #: nominal supply, V
    range_V: tuple[float, float]  #: supplies we accept
    delay: tuple[float, ...]  #: coefficients, highest power of the supply first
    energy: tuple[float, ...]  #: the same
    area: float  #: of the same logic; only ratios mean something

    def delay_factor(self, voltage: float) -> float:
        """The fitted delay at a supply; only ratios mean something."""
        return _polynomial(self.delay, voltage)

    def energy_factor(self, voltage: float) -> float:
        """The fitted energy per operation at a supply; only ratios mean something."""
        return _polynomial(self.energy, voltage)


def energy_ratio(
    from_nm: float, from_v: float, to_nm: float, to_v: float, devices: str = "hp"
) -> float:
    """What an energy per operation is multiplied by.

    Args:
        from_nm: Node of the energy at hand.
        from_v: Its supply in V.
        to_nm: Node wanted. A node that the paper does not have, such as 28 nm, is our
            interpolation: both neighbours' factors at the same supply, log-log in nm.
        to_v: Supply wanted, in V.
        devices: "hp" or "lstp", at 45 nm and below.

    Raises:
        InputError: A node or a supply that the rule does not cover.
    """
    there = _factor(to_nm, to_v, devices, Node.energy_factor)
    return there / _factor(from_nm, from_v, devices, Node.energy_factor)


def delay_ratio(
    from_nm: float, from_v: float, to_nm: float, to_v: float, devices: str = "hp"
) -> float:
    """What a delay is multiplied by; arguments and errors as in `energy_ratio`."""
    there = _factor(to_nm, to_v, devices, Node.delay_factor)
    return there / _factor(from_nm, from_v, devices, Node.delay_factor)


def area_ratio(from_nm: float, to_nm: float) -> float:
    """What an area of logic is multiplied by.

    The paper prints two-digit ratios of every pair of nodes. The areas here are their
    least-squares fit in logarithms, within 4 % of each printed ratio, so that there and back is 1.
    Nodes that the paper does not have are our interpolation, log-log in nm.

    Raises:
        InputError: A node that the rule does not cover.
    """
    return _area(to_nm) / _area(from_nm)


def _area(nm: float) -> float:
    return _interpolate(nm, _around(nm, "hp"), lambda node: node.area)


def _factor(
    nm: float, voltage: float, devices: str, factor: Callable[[Node, float], float]
) -> float:
    nodes = _around(nm, devices)
    low = max(node.range_V[0] for node in nodes)
    high = min(node.range_V[1] for node in nodes)
    if not low <= voltage <= high:
        raise InputError(
            f"supply is {voltage:g} V at {nm:g} nm; the scaling rule covers {low:g} to {high:g} V "
            "there, so give a supply in that range or leave the result unscaled"
        )
    return _interpolate(nm, nodes, lambda node: factor(node, voltage))


def _around(nm: float, devices: str) -> tuple[Node, ...]:
    """The node of the tables, or the two it lies between."""
    known = sorted({node.devices for node in NODES} - {"bulk"})
    if devices not in known:
        raise InputError(
            f"devices is {devices!r}; the scaling rule knows {' and '.join(known)}, so give one"
        )
    table = sorted((n for n in NODES if n.devices in ("bulk", devices)), key=lambda n: n.nm)
    if not table[0].nm <= nm <= table[-1].nm:
        raise InputError(
            f"node is {nm:g} nm; the scaling rule covers {table[0].nm} to {table[-1].nm} nm, "
            "so give a node in that range or leave the result unscaled"
        )
    above = bisect_left(table, nm, key=lambda n: n.nm)
    return (table[above],) if table[above].nm == nm else tuple(table[above - 1 : above + 1])


def _interpolate(nm: float, nodes: Sequence[Node], value: Callable[[Node], float]) -> float:
    """The value at `nm`: a node's own, or between two nodes a straight line in logarithms."""
    if len(nodes) == 1:
        return value(nodes[0])
    below, above = nodes
    share = log(nm / below.nm) / log(above.nm / below.nm)
    return exp((1 - share) * log(value(below)) + share * log(value(above)))


def _polynomial(coefficients: Sequence[float], x: float) -> float:
    result = 0.0
    for coefficient in coefficients:
        result = result * x + coefficient
    return result


def _read_nodes() -> tuple[Node, ...]:
    text = files("bitwright.rtl").joinpath("data/scaling_stillmaker.json")
    facts = json.loads(text.read_text(encoding="utf-8"))
    # A node's column holds its area over every node's, its row the inverse: the mean of both.
    columns = zip(*facts["area"], strict=True)
    area = {
        nm: (prod(column) / prod(row)) ** (0.5 / len(row))
        for nm, row, column in zip(facts["area_nm"], facts["area"], columns, strict=True)
    }
    return tuple(
        Node(
            nm=row["nm"],
            devices=row["devices"],
            voltage=row["nominal_V"],
            range_V=(row["range_V"][0], row["range_V"][1]),
            delay=tuple(row["delay"]),
            energy=tuple(row["energy"]),
            area=area[row["nm"]],
        )
        for row in facts["nodes"]
    )


#: The paper's nodes, largest first, `hp` before `lstp`.
NODES: tuple[Node, ...] = _read_nodes()
