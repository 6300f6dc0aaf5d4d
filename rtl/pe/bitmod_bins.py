"""Functional coverage of the bit-serial PE: the bins of a mode, and those that a clock cycle hits.

The names follow the contract (docs/numerics.md): the weight's terms, the distances `delta` between
lanes, the operands of the group accumulator, the scale unit and the column accumulator.
"""

from collections.abc import Iterator, Sequence

import numpy as np

from bitwright.quant import Format
from bitwright.rtl import coverage
from bitwright.sim import bitmod

#: Register words that can be programmed: at most two ones in the magnitude.
SPECIAL_WORDS = tuple(word for word in range(64) if (word & 31).bit_count() <= 2)

_DELTA = 14  #: the largest distance between lanes; it shifts every bit out
_REACH = 23  #: the largest distance between the operands of the group accumulator
_COLUMN_REACH = 25  #: from here on the smaller operand of the column decides the rounding alone
_COLUMN_UNIT = 28  #: column sums are multiples of 2**-28


def settings(fmt: Format) -> int:
    """Zero points or special values that a group can choose from."""
    return 1 << fmt.bits if fmt.kind == "int-asym" else max(len(fmt.special_values), 1)


def port_codes(fmt: Format, codes: np.ndarray) -> np.ndarray:
    """Codes of a format as the 8-bit ports take them, uint8: symmetric integers sign-extended."""
    if fmt.kind == "int-sym":
        codes = (codes ^ 1 << fmt.bits - 1) - (1 << fmt.bits - 1)
    return (codes & 0xFF).astype(np.uint8)


def bins(fmt: Format) -> tuple[str, ...]:
    """All bins of a weight format."""
    mode, terms = bitmod.format_mode(fmt)
    codes = [int(code) for code in port_codes(fmt, np.arange(1 << fmt.bits))]
    if mode == bitmod.INT:
        registers = [f"zero point {zero}" for zero in range(settings(fmt))]
        choices = [(zero, 0) for zero in range(settings(fmt))]
    else:
        registers = [f"special value register {i}" for i in range(settings(fmt))]
        registers += [f"special value {word}" for word in SPECIAL_WORDS]
        choices = [(0, word) for word in SPECIAL_WORDS]
    weights = [bitmod.encode_terms(mode, terms, c, z, s) for c in codes for z, s in choices]
    digits = dict.fromkeys(digit_bin(term) for weight in weights for term in weight)
    # The largest lane sum, 4 * 16376, is just below 2**16; the last term's significance shifts it
    # by `top`, so that a sum alone is renormalised by top + 1 places at most: 7 in int8, less with
    # fewer terms. One more place needs an accumulator that adds to it, hence a weight without
    # earlier terms: int4-asym has none (-16 would be one), because each lane's earlier terms have
    # taken as much away as the accumulator can hold.
    top = (terms - 1) * (2 if mode == bitmod.INT else 1)
    alone = any(w[-1].live and not any(t.live for t in w[:-1]) for w in weights)
    return (
        *(f"code {code}" for code in codes),
        *registers,
        *digits,
        *coverage.fp16_bins("activation"),
        *(f"{count} lanes live" for count in ("no", "some", "all")),
        *_delta_bins(),
        *coverage.sign_bins("lane sum"),
        "live lanes cancel",
        *coverage.sign_bins("accumulator"),
        "accumulator most negative",
        "accumulator cancels to zero",
        "operands of equal exponent",
        *(
            name
            for operand in ("accumulator", "addend")
            for name in (
                *coverage.distance_bins(operand, _REACH),
                *coverage.sticky_bins(operand),
            )
        ),
        *(f"renormalised by {r}" for r in range(top + 2 + alone)),
        *coverage.rounding_bins("accumulator"),
        "accumulator rounded to a new exponent",
        "group waits for the scale unit",
        "group finds the scale unit free",
        *(f"scale {scale}" for scale in ("0", "1", "255", "between")),
        *(
            name
            for operand in ("column accumulator", "column addend")
            for name in coverage.distance_bins(operand, _COLUMN_REACH)
        ),
        "column operands of equal length",
        "column sum carries",
        "column sum keeps its length",
        "column sum cancels",
        "column sum cancels to zero",
        *coverage.rounding_bins("column sum"),
        "column sum rounded to a new exponent",
        *coverage.sign_bins("result"),
    )


def covered(column: bitmod.BitmodColumn, taken: bitmod.Step | None, waited: bool) -> Iterator[str]:
    """The bins of the column's last clock cycle.

    Args:
        column: The reference, just after its `tick`.
        taken: The step that it took in this cycle, None if there was none.
        waited: Whether the last term of a group was held up in the cycle before.
    """
    if column.waits:
        yield "group waits for the scale unit"
    if taken is not None:
        yield from _step(column, taken)
        if taken.last and not waited:
            yield "group finds the scale unit free"
    if column.aligned is not None:
        yield from _lanes(*column.aligned)
    if column.added is not None:
        yield from _accumulation(*column.added)
    if column.joined is not None:
        yield from _column_sum(*column.joined)


# ------------------------------------------------------------------ step and lanes


def _step(column: bitmod.BitmodColumn, step: bitmod.Step) -> Iterator[str]:
    for bits, code in zip(step.act, step.code, strict=True):
        yield coverage.fp16_bin("activation", bits)
        yield f"code {code}"
        if code == {bitmod.FP4: 8, bitmod.FP3: 4}.get(step.mode):
            yield f"special value register {step.selector}"
            yield f"special value {column.special[step.selector]}"
    if step.mode == bitmod.INT:
        yield f"zero point {step.zero}"
    if step.last:
        yield f"scale {step.scale if step.scale in (0, 1, 255) else 'between'}"


def digit_bin(term: bitmod.Term) -> str:
    """The bin of a term: its significance, and its factor of 0 or +-2**shift."""
    return f"bsig {term.bsig} digit {(-1) ** term.sign * (term.live << term.shift)}"


def _delta_bins() -> Iterator[str]:
    """Distances between lanes; three guard bits lie below the significand's 11."""
    for delta in range(_DELTA + 1):
        sticky = ("clear",) if delta < 4 else ("set",) if delta == _DELTA else ("clear", "set")
        yield from (f"delta {delta} sticky {state}" for state in sticky)


def _lanes(act: Sequence[int], terms: Sequence[bitmod.Term]) -> Iterator[str]:
    live = []
    for bits, term in zip(act, terms, strict=True):
        yield digit_bin(term)
        _, exponent, significand = bitmod.decode_fp16(bits)
        if term.live and significand:
            live.append((exponent + term.shift, significand << 3))
    yield f"{'no' if not live else 'all' if len(live) == len(act) else 'some'} lanes live"
    total, e_max = bitmod.align_and_sum(act, terms)
    for e, significand in live:
        delta = min(e_max - e, _DELTA)
        yield coverage.sticky_bin(f"delta {delta}", significand, delta)
    yield coverage.sign_bin("lane sum", total)
    if live and total == 0:
        yield "live lanes cancel"


# ------------------------------------------------------------------ accumulators


def _accumulation(p: int, e_max: int, a: int, e_a: int) -> Iterator[str]:
    distance = e_max - e_a
    if distance > 0 and a:
        yield coverage.distance_bin("accumulator", distance, _REACH)
        yield coverage.sticky_bin("accumulator", a, min(distance, _REACH))
    elif distance < 0 and p:
        yield coverage.distance_bin("addend", -distance, _REACH)
        yield coverage.sticky_bin("addend", p, min(-distance, _REACH))
    elif a and p:
        yield "operands of equal exponent"
    e = max(e_max, e_a)
    v = bitmod.jam(p, min(e - e_max, _REACH)) + bitmod.jam(a, min(e - e_a, _REACH))
    a_next, e_next = bitmod.accumulate(p, e_max, a, e_a)
    r = e_next - e
    if a_next == 1 << 14 and v >> r < 1 << 14:
        yield "accumulator rounded to a new exponent"
        r -= 1
    yield f"renormalised by {r}"
    if r:
        yield coverage.rounding_bin("accumulator", v, r)
    yield coverage.sign_bin("accumulator", a_next)
    if a_next == -1 << 15:
        yield "accumulator most negative"
    if a and p and a_next == 0:
        yield "accumulator cancels to zero"


def _column_sum(acc: int, d: int, e: int, final: int) -> Iterator[str]:
    before, addend = _column_units(acc), d << e
    total = before + addend
    if before and addend:
        lengths = before.bit_length(), addend.bit_length()
        distance = lengths[1] - lengths[0]
        if distance:
            operand = "column accumulator" if distance > 0 else "column addend"
            yield coverage.distance_bin(operand, abs(distance), _COLUMN_REACH)
        else:
            yield "column operands of equal length"
        change = total.bit_length() - max(lengths)
        if total == 0:
            yield "column sum cancels to zero"
        else:
            what = "carries" if change > 0 else "cancels" if change else "keeps its length"
            yield f"column sum {what}"
    places = max(total.bit_length() - 24, 0)
    yield coverage.rounding_bin("column sum", abs(total), places)
    if bitmod.round_nearest_even(abs(total), places) == 1 << 24:
        yield "column sum rounded to a new exponent"
    if final:
        yield coverage.sign_bin("result", total)


def _column_units(acc: int) -> int:
    """The number that binary32 bits of the column accumulator stand for, in units of 2**-28."""
    value = np.uint32(acc).view(np.float32)
    return int(np.ldexp(np.float64(value), _COLUMN_UNIT))
