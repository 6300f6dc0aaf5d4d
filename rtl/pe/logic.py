"""Pieces of logic that more than one PE uses, and PyRTL blocks as Verilog text.

Widths are those of the wires handed in. `jam` is rounding to odd, as docs/numerics.md defines it.
"""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager

import pyrtl
from pyrtl import Block, Const, Register, WireVector, concat, concat_list, select


@contextmanager
def design() -> Iterator[Block]:
    """A new block, PyRTL's working block inside the `with`."""
    block = Block()
    with pyrtl.set_working_block(block, no_sanity_check=True):
        yield block


def register(value: WireVector, name: str, hold: WireVector | None = None) -> Register:
    """A register that takes `value` at the end of each cycle, or keeps its own while `hold`."""
    reg = Register(len(value), name)
    reg.next <<= value if hold is None else select(hold, reg, value)
    return reg


def cleared(value: WireVector, clear: WireVector) -> WireVector:
    """`value`, or 0 while `clear`."""
    return value & (~clear).sign_extended(len(value))


def any_bit(value: WireVector) -> WireVector:
    """1 if a bit is set."""
    return pyrtl.or_all_bits(value) if len(value) > 1 else value


def saturate(value: WireVector, bits: int) -> WireVector:
    """Unsigned `value` in `bits` bits; all ones if it does not fit."""
    return value[:bits] | any_bit(value[bits:]).sign_extended(bits)


def negated_if(sign: WireVector, value: WireVector) -> WireVector:
    """`-value` if `sign`, else `value`: two's complement of the same width."""
    return ((value ^ sign.sign_extended(len(value))) + sign)[: len(value)]


def shift_right_jam(
    value: WireVector, count: WireVector, *, signed: bool, zeros: int = 0
) -> WireVector:
    """`jam(value, count)`, as wide as `value`; any `count`, also beyond the width.

    Args:
        value: Two's complement if `signed`, else unsigned.
        count: Bits to shift.
        signed: Whether the sign bit moves in at the top.
        zeros: The lowest bits of `value` known to be 0. Small shifts come first, so that bits are
            lost only after these are used up.
    """
    width = len(value)
    sticky: WireVector = Const(0, 1)
    for level in range(len(count)):
        distance = min(1 << level, width)
        # Before this level at most 2**level - 1 places were taken from the zeros.
        known = max(zeros - (1 << level) + 1, 0)
        if distance > known:
            sticky = sticky | (count[level] & any_bit(value[known:distance]))
        fill = value[-1] if signed else Const(0, 1)
        kept = [value[distance:]] if distance < width else []
        moved = concat_list([*kept, fill.sign_extended(distance)])
        value = select(count[level], moved, value)
    return concat(value[1:], value[0] | sticky)


def shift_right_sticky(value: WireVector, count: WireVector) -> tuple[WireVector, WireVector]:
    """`value >> count`, two's complement, and whether a bit that moved out was set.

    Large shifts come first: where only the lowest bits of the result are used, the later levels
    are short.
    """
    sticky: WireVector = Const(0, 1)
    for level in reversed(range(len(count))):
        distance = 1 << level
        sticky = sticky | (count[level] & any_bit(value[:distance]))
        moved = concat(value[-1].sign_extended(distance), value[distance:])
        value = select(count[level], moved, value)
    return value, sticky


def shift_left(value: WireVector, count: WireVector, width: int) -> WireVector:
    """`value * 2**count` in `width` bits, `value` two's complement; bits above are dropped."""
    value = value.sign_extended(width)
    for level in range(len(count)):
        distance = 1 << level
        value = select(count[level], concat(value[:-distance], Const(0, distance)), value)
    return value


def normalised(value: WireVector) -> tuple[WireVector, WireVector]:
    """`value` moved left until its top bit is 1, and by how much; 0 gives 0 and some count."""
    width = len(value)
    bits = []
    for level in reversed(range((width - 1).bit_length())):
        distance = 1 << level
        empty = ~any_bit(value[width - distance :])
        value = select(empty, concat(value[:-distance], Const(0, distance)), value)
        bits.append(empty)
    return value, concat(*bits)


def float32_add(
    acc: WireVector, mantissa: WireVector, exponent: WireVector, unit: int = 28
) -> WireVector:
    """Binary32 bits of fl32(acc + mantissa * 2**(exponent - unit)), to nearest even; one cycle.

    Args:
        acc: 32 bits; zero or a normal number.
        mantissa: Two's complement, at most 24 bits, its magnitude below 2**23.
        exponent: Unsigned, at most 8 bits; more may be left out, since the sum is modulo 2**8.
        unit: What the exponent counts from.

    A zero result is +0. The caller keeps sums within the normal numbers, or exactly 0.
    """
    return float32_sum(acc, float32_addend(mantissa, exponent, unit))


def float32_addend(mantissa: WireVector, exponent: WireVector, unit: int) -> WireVector:
    """Binary32 bits of mantissa * 2**(exponent - unit), which is 0 or normal; see `float32_add`."""
    # Its leading one moves to bit 23.
    sign_d = mantissa[-1]
    magnitude = negated_if(sign_d, mantissa).zero_extended(24)[:24]
    significand_d, places = normalised(magnitude)
    present = significand_d[23]
    # magnitude * 2**(e - unit) = significand_d * 2**(e - unit - places) = ... * 2**(E - 150)
    exponent_d = (exponent.zero_extended(8) + Const((150 - unit) & 255, 8) - places)[:8]
    return concat(sign_d, concat(exponent_d, significand_d[:23]) & present.sign_extended(31))


def float32_sum(acc: WireVector, addend: WireVector) -> WireVector:
    """Binary32 bits of fl32(acc + addend), to nearest even, both 0 or normal; see `float32_add`."""
    sign_d, packed_d = addend[31], addend[:31]
    sign_a, packed_a = acc[31], acc[:31]
    swap = packed_d > packed_a
    big, small = select(swap, packed_d, packed_a), select(swap, packed_a, packed_d)
    sign = select(swap, sign_d, sign_a)
    distance = saturate(big[23:] - small[23:], 5)  # beyond 27 only the sticky bit is left
    # 24-bit significands and three bits below them: guard, round, sticky.
    upper = concat(any_bit(big[23:]), big[:23], Const(0, 3))
    lower = concat(any_bit(small[23:]), small[:23], Const(0, 3))
    lower = shift_right_jam(lower, distance, signed=False, zeros=3)
    subtract = sign_a ^ sign_d
    total = (upper + (lower.zero_extended(28) ^ subtract.sign_extended(28)) + subtract)[:28]
    total, places = normalised(total)
    round_up = total[3] & (any_bit(total[:3]) | total[4])
    # The leading one is bit 27. A carry out of the fraction moves into the exponent by itself.
    exponent_r = (big[23:].zero_extended(9) + 1 - places)[:8]
    packed = (concat(exponent_r, total[4:27]) + round_up)[:31]
    return concat(sign, packed) & total[27].sign_extended(32)


def to_verilog(block: Block, name: str) -> str:
    """The block as one flat Verilog module with the clock `clk`; the same text every time."""
    file = io.StringIO()
    pyrtl.output_to_verilog(file, add_reset=False, block=block, module_name=name)
    text = file.getvalue()
    # PyRTL counts its temporary wires over the whole process; count them per module.
    numbers: dict[str, str] = {}
    return re.sub(
        r"\b(tmp|const_)(\d+)", lambda m: m[1] + numbers.setdefault(m[2], str(len(numbers))), text
    )
