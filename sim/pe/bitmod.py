"""The bit-serial PE: FP16 activations times weights sent as signed powers of two, four lanes wide.

After BitMoD (HPCA 2025, sections III and IV). docs/numerics.md is the definition, with the choices
made where the paper leaves something open. This file holds it twice: `BitmodColumn` in plain Python
integers, one clock cycle per call, and the numba model that runs a layer of a language model.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numba import njit, prange

from bitwright.quant import FORMATS, Format, InputError, QuantizedTensor

from .activations import decode_fp16_array, fp16_bits

INT, FP4, FP3 = 0, 1, 2  #: the encoder's modes

FP4_HALF_UNITS = (0, 1, 2, 3, 4, 6, 8, 12)  #: magnitude index to fixed point, in units of 1/2
SCALE_CYCLES = 8  #: one scale bit a cycle
MAX_GROUP = 1 << 24  #: longest group whose accumulator exponent surely fits 6 bits
_N_BLOCK = 64  #: outputs that the numba model works on side by side
_M_BLOCK = 16  #: tokens for which it decodes a term once
_SUMS = 1 << 22  #: group sums in memory at a time


@dataclass(frozen=True, slots=True)
class BitmodConfig:
    """Shape of one bit-serial PE; the published one has four lanes (BitMoD, Fig. 5)."""

    lanes: int = 4  #: weights and activations of one step

    def __post_init__(self) -> None:
        if self.lanes not in (1, 2, 4, 8):
            raise InputError(f"lanes (={self.lanes}) must be 1, 2, 4 or 8")

    @property
    def sum_bits(self) -> int:
        """Width of the exact lane sum, two's complement: 14-bit magnitudes and a sign."""
        return 14 + (self.lanes - 1).bit_length() + 1


class Term(NamedTuple):
    """One weight term: (-1)**sign * 2**shift * 2**bsig if live, else 0."""

    sign: int
    shift: int
    live: int
    bsig: int

    @property
    def value(self) -> int:
        return (-1) ** self.sign * (self.live << self.shift + self.bsig)


class Step(NamedTuple):
    """What the column takes at once: one activation and one weight per lane, and their group."""

    act: tuple[int, ...]  #: FP16 bit patterns
    code: tuple[int, ...]  #: 8-bit patterns; symmetric integers sign-extended
    zero: int = 0
    selector: int = 0
    mode: int = INT
    terms: int = 4
    last: int = 1  #: ends its group
    final: int = 1  #: its group ends the dot product
    scale: int = 1  #: unsigned 8 bits


# ------------------------------------------------------------------ weight formats on this PE

#: Level tables that the floating-point modes decode; a special value may take minus zero's place.
_FLOAT_LEVELS = (FORMATS["fp3"].levels, FORMATS["fp4"].levels)


def format_mode(fmt: Format) -> tuple[int, int]:
    """The encoder mode of a weight format, and its term cycles per step.

    Raises:
        InputError: The PE has no mode for the format.
    """
    if fmt.kind == "int-sym":
        return INT, (fmt.bits + 1) // 2
    if fmt.kind == "int-asym" and fmt.bits < 8:
        return INT, (fmt.bits + 2) // 2  # code - zero needs one bit more
    if fmt.levels in _FLOAT_LEVELS and not fmt.alternatives and fmt.block is None:
        return (FP3 if fmt.bits == 3 else FP4), 2
    raise InputError(
        f"the bitmod PE cannot run weight format {fmt.name}; "
        "it runs int2..int8-sym, int2..int7-asym and the 3- and 4-bit floating-point formats"
    )


def special_word(value: float) -> int:
    """The 6-bit register word {sign, magnitude in half units} of a special value.

    Raises:
        InputError: The value is not one or two powers of two out of 0.5 .. 8.
    """
    half_units = abs(value) * 2
    if half_units != int(half_units) or half_units > 31 or int(half_units).bit_count() > 2:
        raise InputError(
            f"special value {value} cannot be encoded in two terms; "
            "it must be the sum of at most two different powers of two out of 0.5, 1, 2, 4, 8"
        )
    return (int(value < 0) << 5) | int(half_units)


def special_registers(fmt: Format) -> list[int]:
    """The four 6-bit words to program for a format; unused registers hold 0."""
    words = [special_word(value) for value in fmt.special_values]
    return words + [0] * (4 - len(words))


def encode_terms(mode: int, terms: int, code: int, zero: int, special: int) -> tuple[Term, ...]:
    """The terms of one weight, in the order in which they are sent.

    Args:
        mode: INT, FP4 or FP3.
        terms: Terms to send; FP modes have two.
        code: 8-bit pattern.
        zero: Zero point, subtracted in integer mode.
        special: 6-bit word of the selected special value register.

    >>> [term.value for term in encode_terms(INT, 2, 6, 0, 0)]  # 6 = 8 - 2
    [-2, 8]
    """
    if mode == INT:
        value = (code - zero) & 0xFF
        digits = []
        for t in range(terms):
            window = (value << 1 >> 2 * t) & 7
            digit = (0, 1, 1, 2, -2, -1, -1, 0)[window]
            digits.append(Term(int(digit < 0), int(abs(digit) == 2), int(digit != 0), 2 * t))
        return tuple(digits)
    nibble = code << 1 & 0xF if mode == FP3 else code & 0xF
    sign, index = nibble >> 3, nibble & 7
    magnitude = FP4_HALF_UNITS[index]
    if nibble == 8:
        sign, magnitude = special >> 5, special & 31
    upper = magnitude >> 1
    lower = magnitude & 15
    shift_up = max(upper.bit_length() - 1, 0)
    if upper:
        lower &= ~(2 << shift_up)
    shift_low = max(lower.bit_length() - 1, 0)
    return (
        Term(sign if lower else 0, shift_low, int(lower != 0), 0),
        Term(sign if upper else 0, shift_up, int(upper != 0), 1),
    )


# ------------------------------------------------------------------ reference: plain Python


def jam(x: int, n: int) -> int:
    """`x >> n`, the last bit set if a set bit was shifted out (rounding to odd)."""
    return (x >> n) | int(x & ((1 << n) - 1) != 0)


def round_nearest_even(x: int, n: int) -> int:
    """`x / 2**n` rounded to the nearest integer, ties to even."""
    floor, rest, half = x >> n, x & ((1 << n) - 1), (1 << n) >> 1
    return floor + int(n > 0 and (rest > half or (rest == half and floor & 1 == 1)))


def decode_fp16(bits: int) -> tuple[int, int, int]:
    """Sign, exponent E (1..30) and significand M (11 bits) of a finite FP16 pattern."""
    exponent = bits >> 10 & 31
    return bits >> 15, max(exponent, 1), (bits & 0x3FF) | (int(exponent != 0) << 10)


def align_and_sum(act: Sequence[int], terms: Sequence[Term]) -> tuple[int, int]:
    """Stages align and multiply: the exact lane sum S and the exponent e_max."""
    lanes = []
    for bits, term in zip(act, terms, strict=True):
        sign, exponent, significand = decode_fp16(bits)
        if term.live and significand:
            lanes.append((sign ^ term.sign, exponent + term.shift, significand))
    e_max = max((e for _, e, _ in lanes), default=0)
    total = 0
    for sign, e, significand in lanes:
        aligned = jam(significand << 3, min(e_max - e, 14))
        total += -aligned if sign else aligned
    return total, e_max


def accumulate(p: int, e_max: int, a: int, e_a: int) -> tuple[int, int]:
    """Stage accumulate: the accumulator and its exponent after adding `p * 2**(e_max - 28)`."""
    e = max(e_max, e_a)
    v = jam(p, min(e - e_max, 23)) + jam(a, min(e - e_a, 23))
    r = 0
    while not -(1 << 15) <= v >> r < 1 << 15:
        r += 1
    a = round_nearest_even(v, r)
    if a == 1 << 15:
        a, r = 1 << 14, r + 1
    return a, e + r


def float32_add(acc: int, d: int, e: int) -> int:
    """Binary32 bits of fl32(acc + d * 2**(e - 28)), computed with exact fractions."""
    exact = _float32_value(acc) + Fraction(d) * Fraction(2) ** (e - 28)
    return _float32_bits(exact)


def _float32_value(bits: int) -> Fraction:
    exponent = bits >> 23 & 255
    magnitude = Fraction((bits & 0x7FFFFF) | (int(exponent != 0) << 23)) * Fraction(2) ** (
        max(exponent, 1) - 150
    )
    return -magnitude if bits >> 31 else magnitude


def _float32_bits(exact: Fraction) -> int:
    """Round to nearest even; the caller's range never reaches subnormals or infinity."""
    if exact == 0:
        return 0
    magnitude = abs(exact)
    exponent = magnitude.numerator.bit_length() - magnitude.denominator.bit_length()
    if Fraction(2) ** exponent > magnitude:
        exponent -= 1
    significand = round(magnitude / Fraction(2) ** (exponent - 23))  # Fraction rounds ties to even
    if significand == 1 << 24:
        significand, exponent = 1 << 23, exponent + 1
    return (int(exact < 0) << 31) | ((exponent + 127) << 23) | (significand & 0x7FFFFF)


class BitmodColumn:
    """Encoder, PE and column accumulator, one clock cycle per `tick`: the reference.

    The ports, widths and cycle numbers are those of docs/numerics.md. What the stages worked on in
    the last cycle stays in `waits`, `aligned`, `added`, `handed` and `joined`, for functional
    coverage.

    >>> column = BitmodColumn()
    >>> step = Step(act=(0x3C00,) * 4, code=(1, 2, 3, 0xFF), terms=4)  # 1.0 * (1 + 2 + 3 - 1)
    >>> results = [column.tick(step if cycle < 4 else None)[1] for cycle in range(16)]
    >>> [(cycle, hex(y)) for cycle, y in enumerate(results) if y is not None]
    [(15, '0x40a00000')]
    """

    def __init__(self, config: BitmodConfig = BitmodConfig()) -> None:  # noqa: B008 - frozen
        self.config = config
        self.special = [0, 0, 0, 0]
        self.reset()

    def reset(self) -> None:
        """Clear every register, as `rst` does."""
        self.special = [0, 0, 0, 0]
        self._term = 0  # encoder's term counter
        self._spacing = 0  # cycles that the last term of a group would still have to wait
        self._stage2: tuple[Any, ...] | None = None  # operands between align and multiply
        self._stage3: tuple[Any, ...] | None = None  # lane sum between multiply and accumulate
        self._a, self._e_a = 0, 0
        self._scale_left = 0  # cycles the scale unit still needs
        self._scaling: tuple[int, int, int, int] = (0, 0, 0, 0)  # A, e_A, scale, final
        self._product: tuple[int, int, int] | None = None  # D, e_A, final
        self._acc = 0
        self._y: int | None = None
        self._idle()

    def _idle(self) -> None:
        self.waits = False  # the last term of a group waits for the scale unit
        self.aligned: tuple[Sequence[int], Sequence[Term]] | None = None  # act, terms
        self.added: tuple[int, int, int, int] | None = None  # p, e_max, a, e_a
        self.handed: tuple[int, int] | None = None  # a, e_a of a group, to the scale unit
        self.joined: tuple[int, int, int, int] | None = None  # acc, d, e, final

    def program(self, addr: int, data: int) -> None:
        """Write a special value register: {sign, magnitude 5}."""
        self.special[addr] = data

    def tick(self, step: Step | None) -> tuple[bool, int | None]:
        """One clock cycle.

        Args:
            step: What the input shows this cycle, None for `valid` = 0. It must be shown again
                until `ready` was True.

        Returns:
            `ready`, and the binary32 bits of `y` if `y_valid` is high in this cycle.
        """
        y = self._y
        self._idle()
        # The last term of a group comes no sooner than the scale unit can take the group.
        end = step is not None and self._term == step.terms - 1
        closing = step is not None and end and bool(step.last)
        wait = self.waits = closing and self._spacing > 0
        ready = end and not wait
        self._spacing = max(self._spacing - 1, 0)

        # Column accumulator: the product seen in this cycle.
        self._y = None
        if self._product is not None:
            d, e, final = self._product
            self.joined = (self._acc, d, e, final)
            self._acc = float32_add(self._acc, d, e)
            if final:
                self._y, self._acc = self._acc, 0

        # Scale unit: one scale bit a cycle, so the product is ready after the eighth.
        self._product = None
        if self._scale_left:
            self._scale_left -= 1
            if self._scale_left == 0:
                a, e, scale, final = self._scaling
                self._product = (a * scale, e, final)

        if self._stage3 is not None:
            total, e_max, bsig, last, final, scale = self._stage3
            self.added = (total << bsig, e_max, self._a, self._e_a)
            a, e = accumulate(*self.added)
            if last:
                self._scaling, self._scale_left = (a, e, scale, final), SCALE_CYCLES
                self.handed = a, e
                a, e = 0, 0
            self._a, self._e_a = a, e
        self._stage3 = None
        if self._stage2 is not None:
            act, terms, *rest = self._stage2
            self.aligned = (act, terms)
            self._stage3 = (*align_and_sum(act, terms), *rest)
        self._stage2 = None
        if step is not None and not wait:
            terms = [
                encode_terms(step.mode, step.terms, c, step.zero, self.special[step.selector])[
                    self._term
                ]
                for c in step.code
            ]
            if closing:
                self._spacing = SCALE_CYCLES - 1
            self._stage2 = (
                step.act, terms, terms[0].bsig, closing, step.final, step.scale,
            )  # fmt: skip
            self._term = 0 if end else self._term + 1
        return ready, y


def run_reference(
    steps: Sequence[Step], special: Sequence[int], config: BitmodConfig | None = None
) -> tuple[list[int], list[int]]:
    """Stream steps back to back through the reference: y bits and y_valid cycle per dot product."""
    results = [
        (y, cycle) for cycle, (_, y) in enumerate(_ticks(steps, special, config)) if y is not None
    ]
    return [y for y, _ in results], [cycle for _, cycle in results]


def run_group_sums(
    steps: Sequence[Step], special: Sequence[int], config: BitmodConfig | None = None
) -> list[tuple[int, int]]:
    """What a stream of steps hands to the scale unit: `A` and `e_A` of each group."""
    ticks = _ticks(steps, special, config)
    return [column.handed for column, _ in ticks if column.handed is not None]


def _ticks(
    steps: Sequence[Step], special: Sequence[int], config: BitmodConfig | None
) -> Iterator[tuple[BitmodColumn, int | None]]:
    """Each cycle of the reference until all dot products are done: the column, and y or None."""
    column = BitmodColumn(config or BitmodConfig())
    for addr, word in enumerate(special):
        column.program(addr, word)
    left = sum(step.last and step.final for step in steps)
    position = 0
    while left:
        ready, y = column.tick(steps[position] if position < len(steps) else None)
        position += ready
        left -= y is not None
        yield column, y


def group_error_bound(
    steps: Sequence[Step], special: Sequence[int]
) -> tuple[Fraction, Fraction, Fraction]:
    """One group's accumulated value, exact value, and the derived bound of their difference.

    The values are before the group scale; the bound is the sum derived in docs/numerics.md.
    """
    a, e_a = 0, 0
    exact, bound = Fraction(0), Fraction(0)
    for step in steps:
        lanes = [
            encode_terms(step.mode, step.terms, c, step.zero, special[step.selector])
            for c in step.code
        ]
        for terms in zip(*lanes, strict=True):
            total, e_max = align_and_sum(step.act, terms)
            e = max(e_max, e_a)
            a, e_next = accumulate(total << terms[0].bsig, e_max, a, e_a)
            if e_max:
                bound += len(terms) * Fraction(2) ** (e_max - 28 + terms[0].bsig)
                bound += Fraction(2) ** (e - 28) + Fraction(2) ** (e_next - 29)
            e_a = e_next
        for bits, terms in zip(step.act, lanes, strict=True):
            sign, exponent, significand = decode_fp16(bits)
            activation = (-1) ** sign * significand * Fraction(2) ** (exponent - 25)
            exact += activation * sum(term.value for term in terms)
    return Fraction(a) * Fraction(2) ** (e_a - 28), exact, bound


# ------------------------------------------------------------------ model: numba
#
# A term travels as one signed byte: 0 for a dead term, else +-(shift + 1). The four bytes of a step
# and term cycle share one 32-bit word, so that the loop over outputs reads one word per output and
# LLVM turns it into vector instructions.

_DEAD_EXPONENT = -100  #: keeps a lane without a term or an activation out of the maximum


@njit(cache=True, inline="always")
def _jam(x, n):  # type: ignore[no-untyped-def]
    q = x >> n
    return q | np.int32(x != (q << n))


@njit(cache=True, inline="always")
def _lane(word, lane):  # type: ignore[no-untyped-def]
    """Sign and shift of one lane's term; a dead one has sign 0 and a very negative shift."""
    t = np.int32(np.int32(word << np.int32(24 - 8 * lane)) >> np.int32(24))
    sign = np.int32(t > 0) - np.int32(t < 0)
    return sign, np.int32(abs(t) - 1) if t != 0 else np.int32(_DEAD_EXPONENT)


@njit(cache=True, inline="always")
def _cycle(s0, s1, s2, s3, h0, h1, h2, h3, m0, m1, m2, m3, e0, e1, e2, e3, bsig, a, e_a):  # type: ignore[no-untyped-def]
    """One term cycle of a four-lane PE: the accumulator and exponent after it.

    Signs, shifts, significands (three bits to the left) and exponents of the lanes.
    """
    x0, x1, x2, x3 = np.int32(e0 + h0), np.int32(e1 + h1), np.int32(e2 + h2), np.int32(e3 + h3)
    cap = np.int32(14)
    e_max = max(max(max(x0, x1), max(x2, x3)), np.int32(0))
    total = (
        _jam(np.int32(m0 * s0), min(e_max - x0, cap))
        + _jam(np.int32(m1 * s1), min(e_max - x1, cap))
        + _jam(np.int32(m2 * s2), min(e_max - x2, cap))
        + _jam(np.int32(m3 * s3), min(e_max - x3, cap))
    )
    p = np.int32(total << bsig)
    # One of the two has the larger exponent and stays as it is.
    lead = e_max >= e_a
    larger, smaller = (p, a) if lead else (a, p)
    v = larger + _jam(smaller, min(abs(e_max - e_a), np.int32(23)))
    e = max(e_max, e_a)
    # r: how far the 24-bit sum reaches beyond 16 bits. A float32 holds it exactly, so its exponent
    # replaces a count of leading zeros, which not every CPU has as a vector instruction.
    magnitude = v ^ (v >> np.int32(31))
    bits = np.float32(magnitude).view(np.int32)
    r = max(np.int32((bits >> np.int32(23)) - np.int32(127 + 14)), np.int32(0))
    q = v >> r
    bias = np.int32((np.int32(1) << r) >> 1) - np.int32(1) + (q & np.int32(1))
    bias = bias if r > 0 else np.int32(0)
    a = (v + bias) >> r
    over = np.int32(a == 32768)
    return a >> over, e + r + over


@njit(cache=True, inline="always")
def _four(values):  # type: ignore[no-untyped-def]
    return values[0], values[1], values[2], values[3]


@njit(cache=True)
def _sums_block(words, bsigs, group_steps, m3, e, pow2, out):  # type: ignore[no-untyped-def]
    """Group sums of one block of outputs.

    words int32 [steps, terms, block], m3, e int32 [m, steps, 4], out float32 [groups, m, block].
    """
    block = out.shape[2]
    a = np.empty((_M_BLOCK, block), np.int32)
    e_a = np.empty((_M_BLOCK, block), np.int32)
    sign = np.empty((4, block), np.int32)
    shift = np.empty((4, block), np.int32)
    for first in range(0, m3.shape[0], _M_BLOCK):
        rows = min(_M_BLOCK, m3.shape[0] - first)
        step = 0
        for group in range(group_steps.shape[0]):
            a[:] = 0
            e_a[:] = 0
            for _ in range(group_steps[group]):
                for t in range(bsigs.shape[0]):
                    for lane in range(4):
                        for j in range(block):
                            sign[lane, j], shift[lane, j] = _lane(words[step, t, j], lane)
                    for i in range(rows):
                        m_0, m_1, m_2, m_3 = _four(m3[first + i, step])
                        e_0, e_1, e_2, e_3 = _four(e[first + i, step])
                        for j in range(block):
                            a[i, j], e_a[i, j] = _cycle(
                                sign[0, j], sign[1, j], sign[2, j], sign[3, j],
                                shift[0, j], shift[1, j], shift[2, j], shift[3, j],
                                m_0, m_1, m_2, m_3, e_0, e_1, e_2, e_3,
                                bsigs[t], a[i, j], e_a[i, j],
                            )  # fmt: skip
                step += 1
            for i in range(rows):
                for j in range(block):
                    # 16 bits and a power of two: exact in binary32.
                    out[group, first + i, j] = np.float32(a[i, j]) * pow2[e_a[i, j]]


@njit(cache=True, parallel=True)
def _sums(words, bsigs, group_steps, m3, e, pow2, out):  # type: ignore[no-untyped-def]
    for block in prange(words.shape[0]):
        _sums_block(words[block], bsigs, group_steps, m3, e, pow2, out[block])


@njit(cache=True)
def _stream(m3, e, words, bsig, step_terms, last, final, scale, pow2, y, cycle):  # type: ignore[no-untyped-def]
    """Dot products one after the other: `y` float32 and `cycle` int64 per dot product.

    m3, e int32 [steps, 4]; words, bsig int32 [steps, 4 term cycles]; the rest [steps].
    """
    a, e_a = np.int32(0), np.int32(0)
    acc = np.float32(0)
    group_cycles, handed_over, dots = 0, -1, 0
    for s in range(m3.shape[0]):
        for t in range(step_terms[s]):
            s0, h0 = _lane(words[s, t], 0)
            s1, h1 = _lane(words[s, t], 1)
            s2, h2 = _lane(words[s, t], 2)
            s3, h3 = _lane(words[s, t], 3)
            a, e_a = _cycle(
                s0, s1, s2, s3, h0, h1, h2, h3,
                m3[s, 0], m3[s, 1], m3[s, 2], m3[s, 3], e[s, 0], e[s, 1], e[s, 2], e[s, 3],
                bsig[s, t], a, e_a,
            )  # fmt: skip
        group_cycles += step_terms[s]
        if last[s]:
            if handed_over < 0:
                handed_over = group_cycles + 1
            else:
                handed_over += max(group_cycles, 8)
            acc += np.float32(a) * np.float32(scale[s]) * pow2[e_a]
            a, e_a, group_cycles = np.int32(0), np.int32(0), 0
            if final[s]:
                y[dots] = acc
                cycle[dots] = handed_over + 10
                dots += 1
                acc = np.float32(0)


#: 2**(e - 28) for every accumulator exponent.
_POW2 = np.ldexp(np.float32(1), np.arange(64) - 28).astype(np.float32)


def _operands(bits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    significand, exponent = decode_fp16_array(bits)
    return significand << 3, np.where(significand == 0, _DEAD_EXPONENT, exponent).astype(np.int32)


def term_table(mode: int, terms: int, special: Sequence[int]) -> np.ndarray:
    """Every weight's terms as signed bytes: int8 [rows, 256, terms].

    Row s of an FP mode holds the codes under special value register s; an integer mode has one row,
    indexed by the 8-bit pattern of code - zero.
    """
    rows = special if mode != INT else [0]
    table = np.zeros((len(rows), 256, terms), np.int8)
    for row, word in enumerate(rows):
        for code in range(256):
            for t, term in enumerate(encode_terms(mode, terms, code, 0, word)):
                table[row, code, t] = (-1) ** term.sign * term.live * (term.shift + 1)
    return table


def _pack_lanes(terms: np.ndarray) -> np.ndarray:
    """Signed bytes of four lanes (last axis) in one int32, lane 0 lowest."""
    return np.ascontiguousarray(terms).view("<i4")[..., 0].astype(np.int32)


class StepArrays(NamedTuple):
    """A stream of steps as arrays, one row per step; see `Step` for the fields."""

    act: np.ndarray  #: uint16 [steps, 4]
    code: np.ndarray  #: uint8 [steps, 4]
    zero: np.ndarray  #: uint8 [steps]
    selector: np.ndarray  #: uint8 [steps]
    last: np.ndarray  #: bool [steps]
    final: np.ndarray  #: bool [steps]
    scale: np.ndarray  #: uint8 [steps]

    def steps(self, mode: int, terms: int) -> Iterator[Step]:
        """The same stream, step by step, for the reference."""
        for i in range(len(self.act)):
            yield Step(
                act=tuple(int(v) for v in self.act[i]),
                code=tuple(int(v) for v in self.code[i]),
                zero=int(self.zero[i]),
                selector=int(self.selector[i]),
                mode=mode,
                terms=terms,
                last=int(self.last[i]),
                final=int(self.final[i]),
                scale=int(self.scale[i]),
            )


def run_model(
    stream: StepArrays, mode: int, terms: int, special: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Stream steps back to back through the numba model.

    Returns:
        Column accumulator bits, uint32, and y_valid cycle, int64, of each dot product.
    """
    table = term_table(mode, terms, special)
    value = stream.code - stream.zero[:, None] if mode == INT else stream.code  # uint8, wraps
    row = np.zeros_like(stream.selector) if mode == INT else stream.selector
    words = _pack_lanes(table[row[:, None], value].transpose(0, 2, 1))
    count = len(stream.act)
    bsig = np.tile(np.arange(terms, dtype=np.int32) * (2 if mode == INT else 1), (count, 1))
    m3, e = _operands(stream.act)
    dots = int((stream.last & stream.final).sum())
    y, cycle = np.empty(dots, np.float32), np.empty(dots, np.int64)
    step_terms = np.full(count, terms)
    _stream(
        m3, e, words, bsig, step_terms, stream.last, stream.final, stream.scale, _POW2, y, cycle
    )
    return y.view(np.uint32), cycle


# ------------------------------------------------------------------ the PE on whole tensors


@dataclass(frozen=True, slots=True)
class BitmodPE:
    """The bit-serial PE and its column, as the array and the evaluation use it.

    Four FP16 x weight products a step; a step takes 1 to 4 cycles by weight format
    (`step_cycles`). Results are binary32, bit-exact with the RTL.
    """

    config: BitmodConfig = BitmodConfig()  # noqa: RUF009 - frozen
    name: ClassVar[str] = "bitmod"

    def __post_init__(self) -> None:
        if self.config.lanes != 4:
            raise InputError(
                f"lanes (={self.config.lanes}) must be 4 for whole tensors; "
                "other widths exist as BitmodColumn and as RTL"
            )

    @property
    def lanes(self) -> int:
        """Weights multiplied in one step."""
        return self.config.lanes

    def step_cycles(self, fmt: Format | None) -> int:
        """Cycles of one step of `lanes` weights.

        Raises:
            InputError: The PE cannot run the format; None stands for FP16 weights.
        """
        if fmt is None:
            raise InputError("the bitmod PE cannot run FP16 weights; use the fp16 PE or a recipe")
        return format_mode(fmt)[1]

    def check(self, qt: QuantizedTensor, x_shape: tuple[int, ...] | None = None) -> None:
        """Refuse a tensor that the PE cannot run, or activations of another length.

        Raises:
            InputError: The format, the scale format, the group's length or `x_shape` is wrong.
        """
        format_mode(qt.format)
        if qt.scale_format != "int8":
            raise InputError(
                f"scale_format {qt.scale_format} does not run on the bitmod PE, whose scale unit "
                "takes 8-bit scales; quantise with scale_format int8 (recipe suffix -s8)"
            )
        if min(qt.group_size, qt.k) > MAX_GROUP:
            raise InputError(f"group_size {qt.group_size} exceeds {MAX_GROUP}, the longest group")
        if x_shape is not None and (len(x_shape) != 2 or x_shape[1] != qt.k):
            raise InputError(f"x has shape {x_shape}; it must be [m, k] with k = {qt.k}")

    @property
    def act_formats(self) -> tuple[str, ...]:
        """Activations are plain numbers, taken as FP16."""
        return ("fp16",)

    def gemm(self, x: Any, qt: QuantizedTensor, exact_scales: bool = False) -> np.ndarray:
        """y[m, n] = x[m, k] @ w[n, k].T in the PE's arithmetic, float32.

        Args:
            x: Activations, rounded to FP16 where they are not FP16 already.
            qt: Weights with INT8 second-level scales.
            exact_scales: Apply the scales to the group accumulators in float64 instead, and give
                float64: what is left of the error is that of the accumulators.

        Raises:
            InputError: Activations not finite in FP16, k differs, the format or the scale format
                does not run on this PE, or a group is too long for the accumulator's exponent.
        """
        parts = [
            _scaled(sums, scales, qt, exact_scales) for sums, scales in self._group_sums(x, qt)
        ]
        return np.concatenate(parts)

    def reference(self, x: Any, qt: QuantizedTensor, exact_scales: bool = False) -> np.ndarray:
        """The same y[m, n] through `BitmodColumn`, cycle by cycle; for small cases."""
        bits = fp16_bits(x)
        self.check(qt, bits.shape)
        if exact_scales:
            sums = self.reference_group_sums(x, qt)
            y = np.zeros(sums.shape[:2])
            for group in range(qt.groups):
                y += sums[:, :, group] * qt.group_scales[None, :, group].astype(np.float64)
            assert qt.channel_scales is not None
            return y * qt.channel_scales.astype(np.float64)
        special = special_registers(qt.format)
        mode, terms = format_mode(qt.format)
        acc = np.empty((len(bits), qt.n), np.uint32)
        for i, row in enumerate(bits):
            stream = tensor_steps(row, qt, range(qt.n))
            acc[i], _ = run_reference(list(stream.steps(mode, terms)), special)
        return acc.view(np.float32) * output_scale(qt)

    def group_sums(self, x: Any, qt: QuantizedTensor) -> np.ndarray:
        """What the accumulators hold for each group before the scale, float64 [m, n, groups].

        Arguments as for `gemm`.
        """
        parts = [sums for sums, _ in self._group_sums(x, qt)]  # [blocks, groups, m, block]
        sums = np.concatenate(parts, axis=2).transpose(2, 0, 3, 1)
        return sums.reshape(sums.shape[0], -1, qt.groups)[:, : qt.n] * np.float64(_unit(qt))

    def reference_group_sums(self, x: Any, qt: QuantizedTensor) -> np.ndarray:
        """The same through `BitmodColumn`, cycle by cycle; for small cases."""
        bits = fp16_bits(x)
        self.check(qt, bits.shape)
        special = special_registers(qt.format)
        mode, terms = format_mode(qt.format)
        sums = np.empty((len(bits), qt.n * qt.groups))
        for i, row in enumerate(bits):
            stream = tensor_steps(row, qt, range(qt.n))
            handed = run_group_sums(list(stream.steps(mode, terms)), special)
            sums[i] = [a * 2.0 ** (e - 28) * _unit(qt) for a, e in handed]
        return sums.reshape(len(bits), qt.n, qt.groups)

    def _group_sums(self, x: Any, qt: QuantizedTensor) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """For some tokens at a time: group sums, float32 [blocks, groups, m, block], in units of
        the format; and the group scales, float32 [blocks, groups, block]."""
        bits = fp16_bits(x)
        self.check(qt, bits.shape)
        mode, terms = format_mode(qt.format)
        words, scales, group_steps = _weight_words(qt, mode, terms)
        m3, e = _operands(_lane_layout(bits, qt, 0))
        bsigs = np.arange(terms, dtype=np.int32) * np.int32(2 if mode == INT else 1)
        rows = max(1, _SUMS // scales.size)
        for start in range(0, len(bits), rows):
            part = slice(start, start + rows)
            count = len(m3[part])
            out = np.empty((*scales.shape[:2], count, _N_BLOCK), np.float32)
            _sums(words, bsigs, group_steps, m3[part], e[part], _POW2, out)
            yield out, scales

    def cycles(self, k: int, group_size: int, fmt: Format, dots: int = 1) -> int:
        """Cycles from the first term accepted to the last `y_valid`, both counted from 0.

        `dots` dot products of length k follow each other on one PE; docs/numerics.md, Timing.
        """
        per_step = self.step_cycles(fmt)
        starts = range(0, k, group_size)
        groups = [-(-min(group_size, k - s) // self.lanes) * per_step for s in starts]
        spaced = sum(max(c, SCALE_CYCLES) for c in groups)
        first = groups[0] + 1 - max(groups[0], SCALE_CYCLES)
        return first + dots * spaced + 10


def output_scale(qt: QuantizedTensor) -> np.ndarray:
    """float32 [n]: the factor of the last multiplication, channel scale times the format's unit."""
    assert qt.channel_scales is not None
    return qt.channel_scales * np.float32(_unit(qt))


def _unit(qt: QuantizedTensor) -> float:
    """What one unit of the terms is worth."""
    return 0.5 if qt.format.kind == "levels" else 1.0


def _scaled(sums: np.ndarray, scales: np.ndarray, qt: QuantizedTensor, exact: bool) -> np.ndarray:
    """y [m, n] from group sums: scale unit, column accumulator and channel scale."""
    kind = np.float64 if exact else np.float32
    acc = np.zeros(sums.shape[:1] + sums.shape[2:], kind)  # [blocks, m, block]
    for group in range(qt.groups):
        # An accumulator of 16 bits times a scale of 8: the product is exact in binary32.
        acc += sums[:, group].astype(kind) * scales[:, group, None].astype(kind)
    y = acc.transpose(1, 0, 2).reshape(sums.shape[2], -1)[:, : qt.n]
    return y * (output_scale(qt).astype(kind))


def _group_bounds(qt: QuantizedTensor) -> list[tuple[int, int]]:
    size = qt.group_size
    return [(start, min(start + size, qt.k)) for start in range(0, qt.k, size)]


def _lane_layout(rows: np.ndarray, qt: QuantizedTensor, fill: int | np.ndarray) -> np.ndarray:
    """Split columns into steps of four lanes, each group padded: [rows, k] -> [rows, steps, 4].

    `fill` is the padding: a number, or one per row and group.
    """
    parts = []
    for group, (start, stop) in enumerate(_group_bounds(qt)):
        pad = -(stop - start) % 4
        part = rows[:, start:stop]
        if pad:
            value = fill if isinstance(fill, int) else fill[:, group, None]
            padding = np.broadcast_to(np.asarray(value, rows.dtype), (len(rows), pad))
            part = np.concatenate([part, padding], axis=1)
        parts.append(part)
    return np.concatenate(parts, axis=1).reshape(len(rows), -1, 4)


def _encoder_codes(qt: QuantizedTensor) -> np.ndarray:
    """uint8 [n, k]: codes as the encoder takes them, symmetric integers sign-extended."""
    if qt.format.kind != "int-sym":
        return qt.codes
    shift = 8 - qt.format.bits
    return ((qt.codes << shift).view(np.int8) >> shift).view(np.uint8)


def _weight_words(
    qt: QuantizedTensor, mode: int, terms: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Packed terms int32 [blocks, steps, terms, block], scales float32 [blocks, groups, block] and
    steps per group."""
    group_steps = np.array([-(-(stop - start) // 4) for start, stop in _group_bounds(qt)])
    zeros = qt.zero_points if qt.zero_points is not None else None
    codes = _lane_layout(_encoder_codes(qt), qt, 0 if zeros is None else zeros)
    step_group = np.repeat(np.arange(len(group_steps)), group_steps)
    table = term_table(mode, terms, special_registers(qt.format))
    if zeros is not None:
        codes = codes - zeros[:, step_group, None]  # uint8, wraps as the encoder does
    if qt.selectors is None:
        row = np.zeros((1, 1, 1), np.intp)
    else:
        row = qt.selectors[:, step_group, None].astype(np.intp)
    blocks = -(-qt.n // _N_BLOCK)
    words = np.zeros((blocks, codes.shape[1], terms, _N_BLOCK), np.int32)
    scales = np.zeros((blocks, len(group_steps), _N_BLOCK), np.float32)
    for block in range(blocks):
        part = slice(block * _N_BLOCK, min((block + 1) * _N_BLOCK, qt.n))
        chosen = table[row if len(row) == 1 else row[part], codes[part]]  # [rows, steps, 4, terms]
        packed = _pack_lanes(chosen.transpose(0, 1, 3, 2))  # [rows, steps, terms]
        words[block, :, :, : packed.shape[0]] = packed.transpose(1, 2, 0)
        scales[block, :, : packed.shape[0]] = qt.group_scales[part].T
    return words, scales, group_steps


def tensor_steps(x_bits: np.ndarray, qt: QuantizedTensor, rows: Sequence[int]) -> StepArrays:
    """The stream of one activation row (uint16 [k]) against rows of a tensor, one dot each."""
    index = np.asarray(rows)
    group_steps = [-(-(stop - start) // 4) for start, stop in _group_bounds(qt)]
    step_group = np.repeat(np.arange(len(group_steps)), group_steps)
    ends = np.cumsum(group_steps) - 1
    zeros = qt.zero_points[index] if qt.zero_points is not None else None
    code = _lane_layout(_encoder_codes(qt)[index], qt, 0 if zeros is None else zeros)
    act = _lane_layout(x_bits[None, :], qt, 0)
    last = np.isin(np.arange(len(step_group)), ends)

    def per_step(values: np.ndarray | None) -> np.ndarray:
        if values is None:
            return np.zeros(len(index) * len(step_group), np.uint8)
        return values[index][:, step_group].reshape(-1)

    return StepArrays(
        act=np.repeat(act, len(index), axis=0).reshape(-1, 4),
        code=code.reshape(-1, 4),
        zero=per_step(qt.zero_points),
        selector=per_step(qt.selectors),
        last=np.tile(last, len(index)),
        final=np.tile(step_group == len(group_steps) - 1, len(index)),
        scale=per_step(qt.group_scales),
    )


#: Verification modes: weight formats that differ in their terms or in how they are encoded.
VERIFY_FORMATS = {
    "int8": FORMATS["int8-sym"],
    "int6": FORMATS["int6-sym"],
    "int5": FORMATS["int5-sym"],
    "int4-asym": FORMATS["int4-asym"],
    "int2": FORMATS["int2-sym"],
    "fp4": FORMATS["bitmod4"],
    "fp3": FORMATS["bitmod3"],
}
