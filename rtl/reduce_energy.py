"""Energies and leakage of a shipped technology, reduced from its full Liberty files.

    python -m bitwright.rtl.reduce_energy TECHNOLOGY FILE.lib.gz...

rewrites rtl/data/TECHNOLOGY.json in place. Energies are sampled where the file has its delays;
area, timing, capacitances and functions stay as they are.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from bitwright.quant import InputError

from .liberty import interpolate, read_liberty
from .technology import TECHNOLOGIES, EnergyTable, Technology

_DECIMALS = 5
_OLD_KEYS = ("internal_rise_fJ", "internal_fall_fJ")
_OLD_SOURCE = "internal energy per output transition at a nominal point"
_SOURCE = (
    "internal energy per transition over slew and load, mean of rise and fall and of arcs, what "
    "the supplies deliver added up; leakage the mean over states, supplies added up"
)


def reduce_energy(facts: Mapping[str, Any], full: Technology) -> dict[str, Any]:
    """The facts of a technology with the energies and the leakage of its full library.

    Args:
        facts: What rtl/data/TECHNOLOGY.json holds.
        full: The library, from `read_liberty`.

    Returns:
        New facts. Each output has `internal`, sampled at the slews and loads of its delays; so has
        each input that the library has tables for, at no load. Where energies do not depend on
        the load, one load is kept.

    Raises:
        InputError: The library lacks a cell, a pin or an output's energies.
    """
    if full.no_power:
        raise InputError(full.no_power)
    source = str(facts["source"]).replace(_OLD_SOURCE, _SOURCE)
    cells = {name: _reduced(name, cell, full) for name, cell in facts["cells"].items()}
    return {**facts, "source": source, "cells": cells}


def _reduced(name: str, facts: Mapping[str, Any], full: Technology) -> dict[str, Any]:
    cell = full.cells.get(name)
    if cell is None or cell.pins.keys() != facts["pins"].keys():
        raise InputError(f"{full.source} has no cell {name} with these pins; give all its files")
    slews = next(iter(facts["outputs"].values()))["slew_ps"]
    pins = {
        pin: _with_energy(values, cell.pins[pin].internal, slews, [0.0])
        for pin, values in facts["pins"].items()
    }
    outputs = {}
    for pin, values in facts["outputs"].items():
        table = cell.outputs[pin].internal if pin in cell.outputs else None
        if table is None:
            raise InputError(f"{full.source} has no energies for output {pin} of cell {name}")
        outputs[pin] = _with_energy(values, table, values["slew_ps"], values["load_fF"])
    leakage = round(cell.leakage_nW, _DECIMALS)
    return {**facts, "leakage_nW": leakage, "pins": pins, "outputs": outputs}


def _with_energy(
    facts: Mapping[str, Any],
    table: EnergyTable | None,
    slews: Sequence[float],
    loads: Sequence[float],
) -> dict[str, Any]:
    """The facts of a pin with the table at these points."""
    kept = {key: value for key, value in facts.items() if key not in (*_OLD_KEYS, "internal")}
    if table is None:
        return kept
    energies = [[round(_at(table, slew, load), _DECIMALS) for load in loads] for slew in slews]
    if all(len(set(row)) == 1 for row in energies):
        loads, energies = [0.0], [row[:1] for row in energies]
    return {**kept, "internal": {"slew_ps": [*slews], "load_fF": [*loads], "fJ": energies}}


def _at(table: EnergyTable, slew: float, load: float) -> float:
    # The axes of the facts are rounded: no slope is continued beyond the library's own.
    slew = min(max(slew, table.slew_ps[0]), table.slew_ps[-1])
    load = min(max(load, table.load_fF[0]), table.load_fF[-1])
    return interpolate(table.slew_ps, table.load_fF, table.fJ, slew, load)


def to_text(facts: Mapping[str, Any]) -> str:
    """The file's layout: one line for each cell."""
    head = "".join(
        f" {json.dumps(key)}: {json.dumps(value)},\n"
        for key, value in facts.items()
        if key != "cells"
    )
    cells = ",\n".join(
        f"  {json.dumps(name)}: {json.dumps(cell, separators=(',', ':'))}"
        for name, cell in facts["cells"].items()
    )
    return f'{{\n{head} "cells": {{\n{cells}\n }}\n}}\n'


def main(arguments: Sequence[str]) -> None:
    """Rewrite a technology's file.

    Raises:
        InputError: No such technology, or the files are not its library.
    """
    if len(arguments) < 2 or arguments[0] not in list(TECHNOLOGIES):
        raise InputError(
            "usage: python -m bitwright.rtl.reduce_energy TECHNOLOGY FILE.lib.gz... "
            f"(technologies: {', '.join(TECHNOLOGIES)})"
        )
    path = Path(str(files("bitwright.rtl").joinpath(f"data/{arguments[0]}.json")))
    facts = json.loads(path.read_text(encoding="utf-8"))
    text = to_text(reduce_energy(facts, read_liberty(arguments[1:])))
    path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except InputError as error:
        sys.exit(str(error))
