"""Bytes of a pass by operand and level, and the proof that none is lost between two levels.

    DRAM  --dram_read-->  | buffer | --buffer_read-->   array
          fill_write  --> |        |     array_in  -->
    DRAM  <--dram_write-- | buffer | <--result_write--  array
          <--result_read- |        |    <--array_out--

Each arrow is counted where it leaves and where it arrives, by two different rules of the caller;
`Traffic.check` compares the two ends.
"""

from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from bitwright.quant import InputError

#: Rows of every count of `Traffic`. "cache" is keys and values of earlier positions.
TRAFFIC_OPERANDS = ("weights", "inputs", "outputs", "cache")

_Ints = np.ndarray[Any, np.dtype[np.int64]]

#: The two ends of every way: counts that must be equal, and what is told if they are not.
_WAYS = (
    ("dram_read", "fill_write", "read from DRAM", "written to the buffers"),
    ("buffer_read", "array_in", "read from the buffers", "taken by the array"),
    ("array_out", "result_write", "put out by the array", "written to the buffers"),
    ("result_read", "dram_write", "read from the buffers", "written to DRAM"),
)


@dataclass(frozen=True, eq=False)
class Traffic:
    """Bytes by operand: every count is an int64 array [operands, ...], all of one shape.

    The operands are `TRAFFIC_OPERANDS`; further axes, such as products, are the caller's.

    Raises:
        InputError: A count of another shape or type, or a negative one.
    """

    dram_read: _Ints
    fill_write: _Ints  #: written into a buffer as it comes from DRAM
    buffer_read: _Ints  #: read out of a buffer for the array
    array_in: _Ints  #: taken by the array: each byte once per tile that uses it
    array_out: _Ints
    result_write: _Ints  #: written into a buffer as it leaves the array
    result_read: _Ints  #: read out of a buffer for DRAM
    dram_write: _Ints

    def __post_init__(self) -> None:
        shape = self.dram_read.shape
        for field in fields(self):
            count = getattr(self, field.name)
            if (
                count.dtype != np.int64
                or count.shape != shape
                or shape[:1] != (len(TRAFFIC_OPERANDS),)
            ):
                raise InputError(
                    f"{field.name} is {count.dtype} {list(count.shape)}; "
                    f"int64 [{len(TRAFFIC_OPERANDS)}, ...], one row each for "
                    f"{', '.join(TRAFFIC_OPERANDS)}, all alike"
                )
            if count.min(initial=0) < 0:
                raise InputError(f"{field.name} is {count.min()}; at least 0 bytes")

    def check(self) -> None:
        """Bytes into every level equal the bytes out of the one before; nothing is fetched unused.

        Raises:
            ValueError: They do not; the operand, the place and both counts are told.
        """
        for left, arrived, leaving, arriving in _WAYS:
            one, other = getattr(self, left), getattr(self, arrived)
            if np.any(one != other):
                where = tuple(int(index) for index in np.argwhere(one != other)[0])
                raise ValueError(
                    f"{_name(where)}: {one[where]} bytes {leaving} ({left}), "
                    f"{other[where]} {arriving} ({arrived})"
                )
        unused = self.fill_write > self.buffer_read
        if np.any(unused):
            where = tuple(int(index) for index in np.argwhere(unused)[0])
            raise ValueError(
                f"{_name(where)}: {self.fill_write[where]} bytes written to the buffers "
                f"(fill_write), only {self.buffer_read[where]} ever read from them (buffer_read)"
            )

    def levels(self) -> dict[str, dict[str, int]]:
        """Bytes by count and operand, summed over everything else: rows of a table."""
        return {
            field.name: {
                operand: int(getattr(self, field.name)[index].sum())
                for index, operand in enumerate(TRAFFIC_OPERANDS)
            }
            for field in fields(self)
        }

    @property
    def dram_bytes(self) -> int:
        """Bytes over DRAM, either way."""
        return int(self.dram_read.sum() + self.dram_write.sum())


def _name(where: tuple[int, ...]) -> str:
    operand, rest = TRAFFIC_OPERANDS[where[0]], list(where[1:])
    return f"{operand} of product {rest}" if rest else operand
