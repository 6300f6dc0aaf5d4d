"""Number formats as data: what each weight code means and what a group of weights stores beside it.

A format is one row of `FORMATS`; everything else is derived from the row. Three kinds exist:

- "int-sym": two's complement in `bits` bits, quantised to +-(2**(bits-1) - 1); the code of
  -2**(bits-1) is never produced.
- "int-asym": codes 0 .. 2**bits - 1 and one zero point per group in the same range.
- "levels": sign-magnitude codes {S, magnitude index} with a table of level values. Minus zero
  (code 1 << (bits-1)) is redundant, so it may hold one *special value* that each group chooses
  from `special_values`; the choice is stored as the group's selector.

| name | levels (sign-magnitude: also negative) | special values, in selector order |
| --- | --- | --- |
| fp3 | 0 1 2 4 | |
| fp4 (E2M1) | 0 0.5 1 1.5 2 3 4 6 | |
| fp6-e2m3 | 0 0.125 .. 0.875, 1 1.125 .. 1.875, 2 2.25 .. 3.75, 4 4.5 .. 7.5 | |
| fp6-e3m2 | 0 0.0625 .. 0.1875, 0.25 .. 0.4375, ..., 16 20 24 28 | |
| fp3-er, fp3-ea | as fp3 | +3 -3; +6 -6 |
| fp4-er, fp4-ea | as fp4 | +5 -5; +8 -8 |
| bitmod3 | as fp3 | +3 -3 +6 -6 |
| bitmod4 | as fp4 | +5 -5 +8 -8 |
"""

import math
from dataclasses import dataclass
from typing import Literal, get_args

from .errors import InputError

Kind = Literal["int-sym", "int-asym", "levels"]
ScaleFormat = Literal["fp16", "int8"]

#: Bits of one group scale as stored, by scale format.
SCALE_BITS: dict[str, int] = {"fp16": 16, "int8": 8}
#: Bits of one channel scale (float32), stored once per row beside "int8" group scales.
CHANNEL_SCALE_BITS = 32


@dataclass(frozen=True)
class Format:
    """One number format for weights.

    >>> FORMATS["bitmod3"].grid(2)  # extra asymmetry, +6
    (-4.0, -2.0, -1.0, 0.0, 1.0, 2.0, 4.0, 6.0)
    >>> FORMATS["bitmod3"].special_code, FORMATS["bitmod3"].selector_bits
    (4, 2)
    >>> FORMATS["int4-sym"].qmax, FORMATS["int4-asym"].qmax
    (7, 15)

    Raises:
        InputError: The row contradicts itself, e.g. a table that is not 2**bits long.
    """

    name: str
    bits: int  #: width of one code, 2 .. 8
    kind: Kind
    levels: tuple[float, ...] = ()  #: value of every code ("levels" only); 0.0 at the special code
    special_values: tuple[float, ...] = ()  #: candidates in the order they are tried = selectors
    source: str = ""  #: where the values come from
    scale_format: ScaleFormat = "fp16"  #: how group scales are stored unless the caller says

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise InputError(f"format {self.name!r}: kind {self.kind!r} is not in {get_args(Kind)}")
        if not 2 <= self.bits <= 8:
            raise InputError(f"format {self.name!r}: bits (={self.bits}) must be in 2 .. 8")
        if self.scale_format not in SCALE_BITS:
            raise InputError(
                f"format {self.name!r}: scale_format {self.scale_format!r} is not in "
                f"{tuple(SCALE_BITS)}"
            )
        if self.kind == "levels":
            self._check_levels()
        elif self.levels or self.special_values:
            raise InputError(f"format {self.name!r}: an {self.kind} format has no level table")

    def _check_levels(self) -> None:
        if len(self.levels) != 1 << self.bits:
            raise InputError(
                f"format {self.name!r}: {len(self.levels)} levels, but {self.bits}-bit codes need "
                f"{1 << self.bits}"
            )
        for code in (0, self.special_code):
            if self.levels[code] != 0.0:
                raise InputError(
                    f"format {self.name!r}: the level of code {code} (={self.levels[code]}) must "
                    "be 0.0; special values go in special_values"
                )
        values = [*self.levels[: self.special_code], *self.levels[self.special_code + 1 :]]
        if len(set(values)) != len(values):
            raise InputError(f"format {self.name!r}: a level occurs twice")
        for value in (*values, *self.special_values):
            if not math.isfinite(value):
                raise InputError(f"format {self.name!r}: level {value} is not finite")
        for value in self.special_values:
            if value in values:
                raise InputError(f"format {self.name!r}: special value {value} is a level already")

    @property
    def qmax(self) -> int:
        """Largest integer code value: 2**(bits-1) - 1 symmetric, 2**bits - 1 asymmetric.

        Raises:
            InputError: A format of levels has none.
        """
        if self.kind == "levels":
            raise InputError(f"format {self.name!r} is a table of levels and has no qmax")
        return (1 << self.bits - 1) - 1 if self.kind == "int-sym" else (1 << self.bits) - 1

    @property
    def special_code(self) -> int:
        """The code of minus zero, which holds the group's special value: 1 << (bits-1)."""
        return 1 << self.bits - 1

    @property
    def choices(self) -> int:
        """Grids a group can choose among: the number of special values, at least 1."""
        return max(1, len(self.special_values))

    @property
    def selector_bits(self) -> int:
        """Bits that say which special value a group chose: 0 for one choice, 1 for two, 2 for four.

        All candidates count, so "-er" and "-ea" formats (plus or minus) take 1 bit, BitMoD 2.
        """
        return (self.choices - 1).bit_length()

    @property
    def zero_point_bits(self) -> int:
        """Bits of a group's zero point: `bits` for "int-asym", else 0."""
        return self.bits if self.kind == "int-asym" else 0

    def grid_codes(self, selector: int = 0) -> tuple[int, ...]:
        """Codes that quantisation may produce for this selector, by ascending value.

        Minus zero is among them only if the format has special values.

        >>> FORMATS["fp3"].grid_codes()
        (7, 6, 5, 0, 1, 2, 3)
        >>> FORMATS["fp3-er"].grid_codes(1)  # the special value -3 (code 4) lies between -4 and -2
        (7, 4, 6, 5, 0, 1, 2, 3)
        """
        values = self.code_values(selector)
        used = (
            code
            for code in range(1 << self.bits)
            if self.kind != "int-sym" or code != self.special_code
            if self.kind != "levels" or code != self.special_code or self.special_values
        )
        return tuple(sorted(used, key=values.__getitem__))

    def grid(self, selector: int = 0) -> tuple[float, ...]:
        """Values that quantisation may produce for this selector, ascending (zero point 0).

        >>> FORMATS["fp4-ea"].grid(1)[:4], FORMATS["int3-sym"].grid()
        ((-8.0, -6.0, -4.0, -3.0), (-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0))
        """
        values = self.code_values(selector)
        return tuple(values[code] for code in self.grid_codes(selector))

    def absmax(self, selector: int = 0) -> float:
        """Largest magnitude of the grid, which the group's largest weight is scaled to.

        >>> [FORMATS["bitmod3"].absmax(s) for s in range(4)]  # +3 -3 +6 -6
        [4.0, 4.0, 6.0, 6.0]
        """
        return max(abs(value) for value in self.grid(selector))

    def code_values(self, selector: int = 0) -> tuple[float, ...]:
        """Value of every code 0 .. 2**bits - 1 under this selector, before zero point and scale.

        Raises:
            InputError: `selector` is outside 0 .. choices - 1.

        >>> FORMATS["bitmod3"].code_values(3)
        (0.0, 1.0, 2.0, 4.0, -6.0, -1.0, -2.0, -4.0)
        >>> FORMATS["int2-sym"].code_values()
        (0.0, 1.0, -2.0, -1.0)
        """
        if not 0 <= selector < self.choices:
            raise InputError(f"selector {selector} is outside 0 .. {self.choices - 1}")
        if self.kind == "int-asym":
            return tuple(float(code) for code in range(1 << self.bits))
        half = 1 << self.bits - 1
        if self.kind == "int-sym":
            return tuple(float((code ^ half) - half) for code in range(1 << self.bits))
        if not self.special_values:
            return self.levels
        special = self.special_values[selector]
        return (*self.levels[:half], special, *self.levels[half + 1 :])

    def stored_bits(
        self, n: int, k: int, group_size: int | None, scale_format: ScaleFormat | None = None
    ) -> int:
        """Bits that an [n, k] tensor takes, all metadata counted.

        n*k codes; per group a scale (16 or 8 bits), a zero point and a selector where the format
        has them; per row a float32 channel scale if group scales are "int8". A ragged last group
        is a group. `group_size` None means one group per row.

        >>> FORMATS["bitmod3"].stored_bits(1, 256, 128)  # 256*3 + 2*(8 + 2) + 32
        820
        >>> FORMATS["int4-asym"].stored_bits(1, 200, 128)  # 200*4 + 2*(16 + 4)
        840
        """
        scale_format = scale_format or self.scale_format
        groups = -(-k // (group_size or k))
        per_group = SCALE_BITS[scale_format] + self.zero_point_bits + self.selector_bits
        per_row = CHANNEL_SCALE_BITS if scale_format == "int8" else 0
        return n * (k * self.bits + groups * per_group + per_row)


def _signed(*magnitudes: float) -> tuple[float, ...]:
    """Level table {S, magnitude index}; the minus-zero code reads 0.0."""
    return (*magnitudes, 0.0, *(-magnitude for magnitude in magnitudes[1:]))


def _minifloat(exp_bits: int, man_bits: int, bias: int) -> tuple[float, ...]:
    """Level table of a float without infinities or NaNs, code = {S, exponent, mantissa}."""
    step = 2.0**-man_bits
    return _signed(
        *(
            2.0 ** (max(exp, 1) - bias) * (man * step + (exp > 0))
            for exp in range(1 << exp_bits)
            for man in range(1 << man_bits)
        )
    )


_TABLE_IV = "BitMoD (HPCA 2025, arXiv 2411.11745), Table IV"
_CHOICE = f"{_TABLE_IV}; order of choice: authors' repo BitMoD-HPCA-25, quant_weight.py"
_FP3 = _signed(0.0, 1.0, 2.0, 4.0)
# {S, E1, E0, M}; authors' repo yc2367/BitMoD, hardware/pe/decoder.v.
_FP4 = _signed(0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_INT_SYM = "BitMoD, equation 1: qmin = -qmax = -(2**(bits-1) - 1)"
_INT_ASYM = "0 .. 2**bits - 1 with an integer zero point; BitMoD, section II"
_OCP = "OCP Microscaling Formats (MX) v1.0, FP6 element formats"

#: Every format by name.
FORMATS: dict[str, Format] = {
    row.name: row
    for row in (
        *(Format(f"int{bits}-sym", bits, "int-sym", source=_INT_SYM) for bits in range(2, 9)),
        *(Format(f"int{bits}-asym", bits, "int-asym", source=_INT_ASYM) for bits in range(2, 9)),
        Format("fp3", 3, "levels", _FP3, (), _TABLE_IV),
        Format("fp4", 4, "levels", _FP4, (), f"{_TABLE_IV}; E2M1"),
        Format("fp6-e2m3", 6, "levels", _minifloat(2, 3, bias=1), (), _OCP),
        Format("fp6-e3m2", 6, "levels", _minifloat(3, 2, bias=3), (), _OCP),
        Format("fp3-er", 3, "levels", _FP3, (3.0, -3.0), _CHOICE),
        Format("fp3-ea", 3, "levels", _FP3, (6.0, -6.0), _CHOICE),
        Format("fp4-er", 4, "levels", _FP4, (5.0, -5.0), _CHOICE),
        Format("fp4-ea", 4, "levels", _FP4, (8.0, -8.0), _CHOICE),
        Format("bitmod3", 3, "levels", _FP3, (3.0, -3.0, 6.0, -6.0), _CHOICE, "int8"),
        Format("bitmod4", 4, "levels", _FP4, (5.0, -5.0, 8.0, -8.0), _CHOICE, "int8"),
    )
}
