"""Energy of the logic: what a PE and its share of the array cost in each kind of cycle.

The numbers come from outside (`bitwright.experiments.logic_energy` measures them on netlists); here
they meet the cycles of a simulation. Of a product on rows x cols PEs

    used     PE cycles with operands: needed multiply-accumulates over those of a PE cycle
    busy     cycles in which the array computes, times all PEs
    skipped  PE cycles of the fixed schedule that leaving out zero terms saves
    stops    steps that a slow port stretches, times all PEs

    energy = used * active + (busy - used) * unused + (cycles - busy) * PEs * stalled
             + stops * edge + skipped * (active - e_skipped)

`active` is the mean over the fixed schedule: where its cheap cycles, of `e_skipped` each, are left
out, the others cost that much more than the mean. Waiting PEs keep their clock, for there is no
clock gate, also while the vector unit works. Leakage is counted apart.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np


@dataclass(frozen=True, slots=True)
class ProductEnergy:
    """One PE with its share of what surrounds it, pJ per clock cycle; leakage apart."""

    active_pj: float  #: with operands
    unused_pj: float  #: its row has no token
    stalled_pj: float  #: nothing is issued
    edge_pj: float = 0.0  #: beyond that, for every stop and go
    skipped_pj: float | None = None  #: of a cycle without a term; None: there are none
    breakdown: Mapping[str, float] = field(default_factory=dict)  #: part -> pJ of an active cycle
    half_width: float = 0.0  #: of the 95 % interval of `active_pj`, over it
    source: str = ""


@dataclass(frozen=True, slots=True)
class LogicEnergy:
    """Energy of an array's logic by product."""

    products: Mapping[str, ProductEnergy]  #: by name: "attn.q", "ffn.down", ...
    leakage_uw: float  #: of one PE with its share
    technology: str
    voltage: float
    clock_ps: float  #: that the netlists were mapped for
    wires: str  #: the wire-load model
    netlists: Mapping[str, str]  #: part -> hash of its synthesis
    source: str
    #: What glitches would multiply the PE's switching by, as a unit-delay simulation estimates;
    #: in no energy here. None: not known.
    glitches: float | None = None
    post_layout: float = 1.0  #: factor for what layout adds
    scale: float = 1.0  #: to another node; 1: as measured

    @property
    def factor(self) -> float:
        """What measured energies are multiplied by."""
        return self.post_layout * self.scale

    def of(self, product: str) -> ProductEnergy:
        """The energy of a product; of one that was not measured the mean of those that were."""
        found = self.products.get(product)
        return found if found is not None else self.mean

    @property
    def mean(self) -> ProductEnergy:
        """The mean of all products."""
        rows = list(self.products.values())

        def mean(name: str) -> float:
            return sum(getattr(row, name) for row in rows) / len(rows)

        skipped = [row.skipped_pj for row in rows if row.skipped_pj is not None]
        return ProductEnergy(
            active_pj=mean("active_pj"),
            unused_pj=mean("unused_pj"),
            stalled_pj=mean("stalled_pj"),
            edge_pj=mean("edge_pj"),
            skipped_pj=sum(skipped) / len(skipped) if skipped else None,
            source="mean of the products that were measured",
        )


def product_energies(energy: LogicEnergy, names: list[str]) -> dict[str, np.ndarray]:
    """Columns of `ProductEnergy` for products, pJ, factors applied.

    A product without a skipped energy has that of an active cycle: leaving it out saves all of it.
    """
    rows = [energy.of(name) for name in names]
    columns = {
        name: np.array([getattr(row, f"{name}_pj") for row in rows], np.float64)
        for name in ("active", "unused", "stalled", "edge")
    }
    columns["skipped"] = np.array(
        [row.active_pj if row.skipped_pj is None else row.skipped_pj for row in rows], np.float64
    )
    return {name: values * energy.factor for name, values in columns.items()}


def logic_uj(
    pj: Mapping[str, np.ndarray],
    *,
    pes: int,
    cycles: Any,
    busy: Any,
    used: Any,
    skipped: Any = 0.0,
    stops: Any = 0.0,
) -> np.ndarray:
    """Energy of products in uJ; the formula at the top of this module.

    Args:
        pj: From `product_energies`.
        pes: PEs of the array.
        cycles: Cycles of each product, waiting counted in.
        busy: Those in which the array computes.
        used: PE cycles with operands, zero terms left out if the schedule does.
        skipped: PE cycles that leaving them out saves.
        stops: Steps that a port stretches.
    """
    idle = pes * (np.asarray(cycles, np.float64) - busy)
    unused = np.maximum(pes * np.asarray(busy, np.float64) - used, 0.0)
    total = used * pj["active"] + unused * pj["unused"] + idle * pj["stalled"]
    # `active` is the mean of the fixed schedule, cheap cycles included: the rest cost more.
    total = total + skipped * (pj["active"] - pj["skipped"]) + pes * stops * pj["edge"]
    return np.asarray(total * 1e-6)
