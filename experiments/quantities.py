"""Where every quantity of a result comes from.

A result document gets the key `provenance`: a list of patterns over the paths of its numbers, such
as "records[].prefill.energy_uJ.dram", each with the source. The first pattern that matches counts;
`source_of` looks one up, and a test looks all of them up.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any

from bitwright.sim import LogicEnergy, SimulationResult

Provenance = list[dict[str, str]]

SETTING = "a setting of the run"
CHECKED = "; array model equal to the RTL in every clock cycle (bitwright verify PE --engine)"


def simulation_provenance(
    result: SimulationResult, logic: LogicEnergy | None = None, prefix: str = ""
) -> Provenance:
    """Sources of a simulation's document.

    Args:
        result: The simulation.
        logic: Energy of its logic; None: none was given.
        prefix: Path of the document within a larger one, "records[].prefill.".
    """
    said = dict(_named(result.sources))
    shape = said.get("shape", "the workload")
    cycles = said.get("cycles", said.get("rules", "published rules")) + CHECKED
    sram = "; ".join(text for name, text in said.items() if name.endswith("buffer"))
    dram = next((text for name, text in said.items() if name.startswith("dram")), "published rules")
    area = said.get("PE area", said.get("design", "published"))
    switching = "not measured" if logic is None else logic.source
    if result.logic_uj is not None and logic is None:
        switching = next((t for n, t in said.items() if n.startswith("design")), "published")
    leakage = f"SRAM: {sram}; logic: {area if logic is None else logic.source}"
    counted = f"counted from shape and storage formats: {shape}"
    rows = {
        "config.*": SETTING,
        "*clock_ps": SETTING,
        "*context": SETTING,
        "*batch": SETTING,
        "*tokens": SETTING,
        "*energy_uJ.logic": switching,
        "*logic_breakdown_uJ*": switching,
        "*logic_leakage_uJ": area if logic is None else logic.source,
        "*logic_uJ": switching,
        "*energy_uJ.sram": sram,
        "*sram_uJ": sram,
        "*energy_uJ.dram": dram,
        "*dram_uJ": dram,
        "*standing_uJ": dram,
        "*energy_uJ.leakage": leakage,
        "*leakage_uJ": leakage,
        "*energy_uJ.total": f"sum of logic ({switching}), SRAM ({sram}), DRAM ({dram}), leakage",
        "*area_breakdown_mm2.sram": sram,
        "*area*": f"array: {area}; SRAM: {sram}",
        "*bytes*": counted,
        "*fetches": counted,
        "*cycles*": cycles,
        "*stalls*": cycles,
        "*latency_s": cycles,
        "*tokens_per_s": cycles,
        "*utilisation": cycles,
        "*macs": counted,
        "layers[].*": counted,
        "vector[].*": counted,
    }
    return [{"quantity": prefix + pattern, "source": text} for pattern, text in rows.items()]


def _named(sources: Sequence[str]) -> Iterator[tuple[str, str]]:
    """ "weight buffer: 8 banks ..." as name and text."""
    for source in sources:
        name, _, text = source.partition(": ")
        yield name, text


def source_of(path: str, provenance: Sequence[Mapping[str, str]]) -> str | None:
    """The source of a number; None: nobody says.

    Args:
        path: Keys joined by dots, places of lists in brackets: "records[0].bits_per_weight".
        provenance: From the document; "[]" there is any place of a list, "*" anything.
    """
    for row in provenance:
        if _pattern(row["quantity"]).fullmatch(path):
            return row["source"]
    return None


@cache
def _pattern(quantity: str) -> re.Pattern[str]:
    return re.compile(re.escape(quantity).replace(r"\[\]", r"\[\d+\]").replace(r"\*", ".*"))


def numbers(document: Any, path: str = "") -> Iterator[str]:
    """Paths of all numbers of a document, without `provenance` itself."""
    if isinstance(document, Mapping):
        for key, inner in document.items():
            if key not in ("provenance", "card"):
                yield from numbers(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(document, list | tuple):
        for place, inner in enumerate(document):
            yield from numbers(inner, f"{path}[{place}]")
    elif isinstance(document, int | float) and not isinstance(document, bool):
        yield path
