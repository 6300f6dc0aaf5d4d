"""Floating-point addition in three pieces: align and add exactly, normalise, round once.

`add` gives a `RawSum` that holds the sum with everything that rounding needs, `normalise` brings
its leading one to the top, `rounded` rounds it to nearest even. What the formats differ in (widths,
the lowest exponent, overflow) is left to the caller.

The pieces are built for area:

- the operands are swapped by exponent only, and the distance is the one's complement of the
  exponents' difference, the missing 1 made up by the wiring of the operand that is shifted;
- a negative difference of significands is only complemented: it arises without any bit shifted
  out, and the missing 1 comes from the rounding, which sees ones all the way down;
- each level of the normaliser looks at its own top bits, so there is no separate leading-zero
  counter;
- a cleared accumulator is shifted out rather than masked.
"""

from typing import NamedTuple

import numpy as np
import pyrtl
from pyrtl import Const, WireVector, concat, concat_list, select

from .decoders import Decoder, decoder
from .logic import any_bit


class Float(NamedTuple):
    """`significand` is unsigned, `exponent` that of its highest bit plus any bias."""

    sign: WireVector
    exponent: WireVector
    significand: WireVector


class RawSum(NamedTuple):
    """An exact sum, its lowest bit jammed.

    Its magnitude is `significand`, whose highest bit has one exponent more than `exponent`; if
    `inverted` it is `significand` followed by ones without end, plus one at that end.
    """

    sign: WireVector
    exponent: WireVector
    significand: WireVector
    inverted: WireVector


def decode_fp16(bits: WireVector) -> Float:
    """A finite FP16 number, 16 bits: sign, E = max(exponent field, 1) (5 bits) and M (11 bits)."""
    exponent = bits[10:15]
    normal = any_bit(exponent)
    return Float(bits[15], concat(exponent[1:], exponent[0] | ~normal), concat(normal, bits[:10]))


def fp16_decoder(top: str) -> Decoder:
    """`decode_fp16` against the value of every finite FP16 pattern."""

    def parts(bits: WireVector) -> dict[str, WireVector]:
        return decode_fp16(bits)._asdict()

    def table(bits: int) -> dict[str, int] | None:
        value = abs(float(np.array(bits, np.uint16).view(np.float16)))
        if not np.isfinite(value):
            return None
        exponent = max(bits >> 10 & 31, 1)
        # value = significand * 2**(exponent - 25)
        significand = int(np.ldexp(value, 25 - exponent))
        return {"sign": bits >> 15, "exponent": exponent, "significand": significand}

    return decoder(top, {"bits": 16}, parts, table)


def add(acc: Float, addend: Float, clear: WireVector, guard: int) -> RawSum:
    """acc + addend, exact up to a jammed last bit; combinational.

    Args:
        acc: Accumulator.
        addend: As wide as `acc`.
        clear: Take the accumulator as zero.
        guard: Bits kept below the significands, the jammed one included. 3 are enough if the
            operand with the larger exponent is normalised whenever bits of the other are shifted
            out, 4 if it may have one leading zero then.

    The sum has 1 + len(significand) + guard bits. An operand that is 0 must have an exponent so low
    that no bit of the other is shifted out.
    """
    width = len(acc.significand)
    bits = len(acc.exponent)
    difference = (acc.exponent - addend.exponent)[: bits + 1]
    behind = difference[-1]  # the addend's exponent is larger
    swap = behind | clear
    # Of two numbers that differ by d > 0 the wiring shifts the accumulator by 1, this by d - 1.
    count = difference[:-1] ^ behind.sign_extended(bits)
    levels = (width + guard - 1).bit_length()
    count = count[:levels] | (any_bit(count[levels:]) | clear).sign_extended(levels)
    zero = Const(0, 1)
    larger = select(swap, addend.significand, acc.significand)
    smaller = select(swap, concat(zero, acc.significand), concat(addend.significand, zero))
    moved = shift_right_jam(concat(smaller, Const(0, guard - 1)), count, width + guard)
    sticky = moved[0] & ~clear
    subtract = (acc.sign & ~clear) ^ addend.sign  # so that a cleared accumulator may be unknown
    # The lowest bit of `larger` is 0, so a jammed bit subtracted there is itself, and a borrow.
    left = concat(zero, larger, Const(0, guard - 1), subtract)
    right = concat(concat(zero, moved[1:]) ^ subtract.sign_extended(width + guard), ~sticky)
    total = concat((left + right)[1 : width + guard + 1], sticky)
    inverted = subtract & total[-1]
    return RawSum(
        select(swap, addend.sign, acc.sign) ^ inverted,
        select(swap, addend.exponent, acc.exponent),
        total ^ inverted.sign_extended(len(total)),
        inverted,
    )


def shift_right_jam(value: WireVector, count: WireVector, keep: int) -> WireVector:
    """The lowest `keep` bits of `jam(value, count)`; `value` unsigned, the rest known to be 0.

    Large shifts come first, and no level is wider than the later ones need.
    """
    sticky: WireVector = Const(0, 1)
    for level in reversed(range(len(count))):
        distance = 1 << level
        lost = value[:distance]
        sticky = sticky | (count[level] & any_bit(lost))
        # The levels below this one can still shift by `distance - 1` in all.
        width = min(len(value), keep + distance - 1)
        moved = value[distance : distance + width].zero_extended(width)
        value = select(count[level], moved, value[:width])
    return concat(value[1:], value[0] | sticky)


def normalise(
    value: WireVector, fill: WireVector, limit: WireVector | None = None
) -> tuple[WireVector, WireVector]:
    """`value` moved left until its highest bit is 1, ones moving in if `fill`; combinational.

    Args:
        value: Unsigned.
        fill: 1 bit.
        limit: Largest number of places, None for no limit.

    Returns:
        The moved value, and the number of places, or what is left of `limit`.
    """
    moves = []
    for level in reversed(range((len(value) - 1).bit_length())):
        distance = 1 << level
        move = ~any_bit(value[len(value) - distance :])
        if limit is not None:
            move = move & any_bit(limit[level:])
            rest = (limit[level:] - move)[: len(limit) - level]
            limit = concat(rest, limit[:level]) if level else rest
        value = select(move, concat(value[:-distance], fill.sign_extended(distance)), value)
        moves.append(move)
    return value, concat_list(moves[::-1]) if limit is None else limit


def rounding_bit(value: WireVector, bits: int) -> WireVector:
    """Whether the highest `bits` bits of `value` must be increased: to nearest, ties to even."""
    below = len(value) - bits
    return value[below - 1] & (any_bit(value[: below - 1]) | value[below])


def saturate_fp16(exponent: WireVector, fraction: WireVector) -> WireVector:
    """15 bits {exponent field, fraction}, or those of 65504 if the exponent is 31 or more."""
    over = pyrtl.and_all_bits(exponent[:5])
    if len(exponent) > 5:
        over = over | any_bit(exponent[5:])
    return concat(
        exponent[1:5] | over.sign_extended(4),
        exponent[0] & ~over,
        fraction | over.sign_extended(len(fraction)),
    )
