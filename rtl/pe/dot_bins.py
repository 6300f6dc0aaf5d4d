"""Functional coverage of the dot-product PEs: the bins of a port and of an addition."""

import re
from fractions import Fraction

import numpy as np

from bitwright.rtl import coverage
from bitwright.sim import dot


def _kind(port: str) -> str:
    """The port without its lane: act3 is act, x7_2 is x."""
    return re.sub(r"\d[\d_]*$", "", port)


def port_bins(unit: dot.DotUnit, port: str) -> tuple[str, ...]:
    """Coverage bins of a port: codes of up to 8 bits, ends of scales, classes of others."""
    kind, bits = _kind(port), unit.ports[port]
    if kind.endswith("scale"):
        return tuple(f"{kind} {what}" for what in ("lowest", "highest", "between"))
    if bits == 16:
        return coverage.fp16_bins(kind)
    if bits > 8:
        return tuple(f"{kind} {what}" for what in ("no bit", "all bits", "some bits"))
    low, high = unit.limits.get(port, (0, (1 << bits) - 1))
    return tuple(f"{kind} {value}" for value in range(low, high + 1))


def port_bin(unit: dot.DotUnit, port: str, value: int) -> tuple[str, ...]:
    """The bin of `port_bins` that a pattern is in."""
    kind, bits = _kind(port), unit.ports[port]
    if kind.endswith("scale"):
        low, high = unit.limits[port]
        return (
            f"{kind} {'lowest' if value == low else 'highest' if value == high else 'between'}",
        )
    if bits == 16:
        return (coverage.fp16_bin(kind, value),)
    if bits > 8:
        full = value == (1 << bits) - 1
        return (f"{kind} {'no bit' if value == 0 else 'all bits' if full else 'some bits'}",)
    return (f"{kind} {value}",)


#: Of a binary32 accumulator. Which operand has the larger exponent decides which one is aligned.
_FLOAT_BINS = (
    "addend aligned",
    "accumulator aligned",
    "sum exact",
    "sum rounded",
    "sum cancels to zero",
)
_WRAPS = ("accumulator wraps upwards", "accumulator wraps downwards")


def accumulator_bins(unit: dot.DotUnit, wraps: bool) -> tuple[str, ...]:
    """What the accumulator must be seen to do; `wraps`: overflow is among the vectors."""
    if isinstance(unit.accumulator, dot.FloatAccumulator):
        return _FLOAT_BINS
    return _WRAPS if wraps else ()


def sum_bins(unit: dot.DotUnit, total: int, exponent: int, before: int, after: int) -> list[str]:
    """The bins that one addition to the accumulator is in."""
    found = [coverage.sign_bin("sum", total)]
    if isinstance(unit.accumulator, dot.IntAccumulator):
        bits = unit.accumulator.bits
        exact = int(dot.signed(np.array(before), bits)) + total
        if not -(1 << bits - 1) <= exact < 1 << bits - 1:
            found.append(_WRAPS[exact < 0])
        return found
    if total and before:
        addend = Fraction(total) * Fraction(2) ** (exponent - unit.accumulator.unit)
        acc, result = (_fraction(value) for value in (before, after))
        if acc + addend == 0:
            found.append("sum cancels to zero")
        else:
            found.append("sum exact" if acc + addend == result else "sum rounded")
        if abs(acc) >= 2 * abs(addend):
            found.append("addend aligned")
        elif abs(addend) >= 2 * abs(acc):
            found.append("accumulator aligned")
    return found


def _fraction(bits: int) -> Fraction:
    """The number that binary32 bits stand for."""
    return Fraction(float(np.array(bits, np.uint32).view(np.float32)))
