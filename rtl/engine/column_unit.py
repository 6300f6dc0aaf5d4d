"""What stands below the PEs of a column: hand-over registers and, where there is one, the sum.

All sums of a group leave the PEs at once into registers, from which the column takes one row a
cycle beside the next group.
"""

from collections.abc import Mapping, Sequence

from pyrtl import Block, Input, Output, Register, WireVector, select

from bitwright.rtl import pe

from .cells import Cells


def column_unit(
    cells: Cells,
    number: int,
    sums: Sequence[WireVector],
    arriving: WireVector,
    turn: WireVector,
    first: WireVector,
) -> WireVector:
    """The column's result of the row whose turn it is.

    Args:
        cells: The PEs.
        number: Of the column.
        sums: Of its PEs, row 0 first, as `Cells.sums` gives them.
        arriving: The PEs' sums are finished in this cycle.
        turn: A row is taken in this cycle.
        first: The sums are those of their tile's first group.
    """
    rows = len(sums)
    held = [Register(len(wire), f"hand_over_r{r}_c{number}") for r, wire in enumerate(sums)]
    for r, wire in enumerate(sums):
        behind = held[r + 1] if r + 1 < rows else held[r]
        held[r].next <<= select(arriving, wire, behind)
    return cells.column(number, rows, held[0], turn, first)


def column_unit_block(cells: Cells, rows: int) -> Block:
    """A column's unit by itself, below `rows` PEs.

    Ports: arriving, turn and first, 1 bit each; the PEs' outputs, `d0`, `d1`, ...; out: result.
    """
    with pe.logic.design() as block:
        control = {name: Input(1, name) for name in ("arriving", "turn", "first")}
        sums = [
            cells.sums(
                {name: Input(bits, f"{name}{r}") for name, bits in cells.pe_outputs.items()},
                f"r{r}_c0",
            )
            for r in range(rows)
        ]
        result = column_unit(cells, 0, sums, **control)
        out = Output(len(result), "result")
        out <<= result
    return block


def operand_register_block(ports: Mapping[str, int]) -> Block:
    """A word's registers at the edge of a tile.

    Ports: the fields of the word; out: `kept_` and the field's name.
    """
    with pe.logic.design() as block:
        for name, bits in ports.items():
            out = Output(bits, f"kept_{name}")
            out <<= pe.logic.register(Input(bits, name), f"operand_{name}")
    return block
