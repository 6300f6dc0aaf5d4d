"""Sums of many numbers: partial products of all lanes in one heap of bits.

A `BitHeap` holds bits by their weight. Products and addends put their bits there; `total` reduces
each column to two bits with full and half adders, as Dadda's multiplier does (L. Dadda, "Some
schemes for parallel multipliers", 1965), and adds the two rows that are left with one adder. A dot
product so has a single carry chain, whatever its number of lanes.

Two's complement needs no sign extension: a bit of negative weight is added inverted, since
-b = (1 - b) - 1, and the constant is collected and added once (C. Baugh and B. Wooley, "A two's
complement parallel array multiplication algorithm", 1973).
"""

from pyrtl import Const, WireVector, concat_list


class BitHeap:
    """Bits to be added, modulo 2**width."""

    def __init__(self, width: int) -> None:
        self.width = width
        self._columns: list[list[WireVector]] = [[] for _ in range(width)]
        self._constant = 0

    def bit(self, bit: WireVector, weight: int, negative: bool = False) -> None:
        """Add one bit times 2**weight, or subtract it."""
        if weight >= self.width:
            return
        if negative:
            self._constant -= 1 << weight
            bit = ~bit
        self._columns[weight].append(bit)

    def constant(self, value: int) -> None:
        """Add a constant."""
        self._constant += value

    def unsigned(self, value: WireVector, weight: int = 0) -> None:
        """Add value * 2**weight."""
        for i, bit in enumerate(value):
            self.bit(bit, weight + i)

    def signed(self, value: WireVector, weight: int = 0) -> None:
        """Add a two's complement value * 2**weight."""
        for i, bit in enumerate(value):
            self.bit(bit, weight + i, negative=i == len(value) - 1)

    def negated_if(self, sign: WireVector, value: WireVector, weight: int = 0) -> None:
        """Add -value * 2**weight if `sign`, else value * 2**weight; `value` unsigned."""
        for i, bit in enumerate(value):
            self.bit(bit ^ sign, weight + i)
        # -v is ~v + 1 with a sign bit above: ~v = 2**n - 1 - v.
        self.bit(sign, weight)
        self.bit(sign, weight + len(value), negative=True)

    def product(self, a: WireVector, b: WireVector, weight: int = 0) -> None:
        """Add the product of two two's complement numbers times 2**weight."""
        for i, x in enumerate(a):
            for j, y in enumerate(b):
                negative = (i == len(a) - 1) != (j == len(b) - 1)
                self.bit(x & y, weight + i + j, negative)

    def total(self) -> WireVector:
        """The sum, two's complement, `width` bits; the heap is empty afterwards."""
        columns = self._columns
        for weight in range(self.width):
            if self._constant >> weight & 1:
                columns[weight].append(Const(1, 1))
        while max(map(len, columns)) > 2:
            columns = self._reduced(columns)
        rows = [
            concat_list([column[row] if row < len(column) else Const(0, 1) for column in columns])
            for row in range(2)
        ]
        self._columns = [[] for _ in range(self.width)]
        self._constant = 0
        if all(len(column) < 2 for column in columns):
            return rows[0]
        return (rows[0] + rows[1])[: self.width]

    def _reduced(self, columns: list[list[WireVector]]) -> list[list[WireVector]]:
        """One layer of adders: no column above Dadda's next smaller height."""
        height = _next_height(max(map(len, columns)))
        columns = [list(column) for column in columns]
        result: list[list[WireVector]] = [[] for _ in columns]
        for weight in range(self.width):
            # Carries of this layer come from the column below and count towards the height.
            waiting, carried = columns[weight], result[weight]
            while len(waiting) + len(carried) > height:
                excess = len(waiting) + len(carried) - height
                if excess == 1 and len(waiting) >= 2:
                    bits = [waiting.pop(0), waiting.pop(0)]
                elif len(waiting) >= 3:
                    bits = [waiting.pop(0) for _ in range(3)]
                else:
                    break
                low, high = half_adder(*bits) if len(bits) == 2 else full_adder(*bits)
                carried.append(low)
                if weight + 1 < self.width:
                    result[weight + 1].append(high)
            result[weight] = waiting + carried
        return result


def _next_height(tallest: int) -> int:
    """The largest of 2, 3, 4, 6, 9, 13, ... below `tallest`."""
    height = 2
    while height * 3 // 2 < tallest:
        height = height * 3 // 2
    return height


def half_adder(a: WireVector, b: WireVector) -> tuple[WireVector, WireVector]:
    """Sum and carry of two bits."""
    return a ^ b, a & b


def full_adder(a: WireVector, b: WireVector, c: WireVector) -> tuple[WireVector, WireVector]:
    """Sum and carry of three bits."""
    either = a ^ b
    return either ^ c, (a & b) | (either & c)
