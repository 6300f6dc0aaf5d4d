"""On-chip memory: energy, leakage, area and times of SRAM banks, from a table of CACTI 7 results.

The table is data/sram.csv. Off-chip interfaces are in `dram`, port conflicts in `sram_conflicts`.
"""

import math
from dataclasses import dataclass
from functools import cache

from bitwright.quant import InputError
from bitwright.sim import read_table


@dataclass(frozen=True, slots=True)
class SRAMBank:
    """One bank of on-chip memory. Energies are per access of the whole width."""

    capacity_bytes: int
    width_bits: int
    read_pj: float
    write_pj: float
    leak_mw: float
    area_mm2: float
    access_ns: float
    cycle_ns: float
    source: str


_QUANTITIES = ("read_pJ", "write_pJ", "leak_mW", "area_mm2", "access_ns", "cycle_ns")
_Point = tuple[int, int]  # (capacity in bytes, width in bits)


@cache
def _tables() -> dict[tuple[int, str, str], dict[_Point, tuple[float, ...]]]:
    tables: dict[tuple[int, str, str], dict[_Point, tuple[float, ...]]] = {}
    for row in read_table("sram.csv"):
        table = tables.setdefault((int(row["node_nm"]), row["cell"], row["ports"]), {})
        point = int(row["bytes"]), int(row["width_bits"])
        table[point] = tuple(float(row[quantity]) for quantity in _QUANTITIES)
    return tables


def sram(
    capacity_bytes: int,
    width_bits: int,
    *,
    node_nm: int = 28,
    cell: str = "itrs-hp",
    ports: str = "1r1w",
) -> SRAMBank:
    """A bank of the CACTI 7 table, interpolated between its points.

    Every quantity is interpolated linearly in the logarithms of the capacity, of the width and of
    the quantity itself. A tabulated point comes back unchanged. Nothing is extrapolated.

    Args:
        capacity_bytes: Size of the bank; the table has 1 KiB to 4 MiB in powers of two.
        width_bits: Bits per access; the table has 32 to 2048 in powers of two, less in small banks.
        node_nm: Process: 22, 28, 32, 45 or 65.
        cell: "itrs-hp" (fast, leaky) or "itrs-lop" (low operating power).
        ports: "1r1w" or "1rw".

    Raises:
        InputError: A size outside the table, or a process that it lacks; the range is told.

    >>> sram(65536, 64).read_pj
    11.5993
    """
    tables = _tables()
    if (node_nm, cell, ports) not in tables:
        known = [sorted({key[position] for key in tables}) for position in range(3)]
        raise InputError(
            f"no SRAM data for {node_nm} nm {cell} {ports}; there is {known[0]} nm, "
            f"{known[1]} cells, {known[2]} ports"
        )
    table = tables[node_nm, cell, ports]
    where = f"{node_nm} nm {cell} {ports}"
    capacities = sorted({capacity for capacity, _ in table})
    capacity_weights = _neighbours(
        capacity_bytes, capacities, f"SRAM bank of {capacity_bytes} bytes ({where})", "bytes"
    )
    # Widths that every neighbouring capacity has.
    widths = sorted(
        set.intersection(*({w for c, w in table if c == capacity} for capacity in capacity_weights))
    )
    width_weights = _neighbours(
        width_bits,
        widths,
        f"SRAM width of {width_bits} bits in a bank of {capacity_bytes} bytes ({where})",
        "bits",
    )
    exact = len(capacity_weights) == len(width_weights) == 1

    def quantity(name: str) -> float:
        position = _QUANTITIES.index(name)
        if exact:
            return table[capacity_bytes, width_bits][position]
        logarithm = sum(
            capacity_part * width_part * math.log(table[capacity, width][position])
            for capacity, capacity_part in capacity_weights.items()
            for width, width_part in width_weights.items()
        )
        return math.exp(logarithm)

    return SRAMBank(
        capacity_bytes,
        width_bits,
        read_pj=quantity("read_pJ"),
        write_pj=quantity("write_pJ"),
        leak_mw=quantity("leak_mW"),
        area_mm2=quantity("area_mm2"),
        access_ns=quantity("access_ns"),
        cycle_ns=quantity("cycle_ns"),
        source=f"CACTI 7, {where}" + ("" if exact else ", log-log interpolation"),
    )


def _neighbours(value: int, grid: list[int], what: str, unit: str) -> dict[int, float]:
    """Grid points around a value with their weights on a logarithmic scale."""
    if not grid[0] <= value <= grid[-1]:
        raise InputError(
            f"{what} is outside the table, which has {grid[0]} to {grid[-1]} {unit}; "
            "nothing is extrapolated"
        )
    if value in grid:
        return {value: 1.0}
    above = next(point for point in grid if point > value)
    below = grid[grid.index(above) - 1]
    part = math.log(value / below) / math.log(above / below)
    return {below: 1 - part, above: part}
