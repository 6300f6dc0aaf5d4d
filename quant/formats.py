"""Number formats as data: what each weight code means and what a group of weights stores beside it.

A format is one row of `FORMATS`; everything else is derived from the row. Five kinds exist:

- "int-sym": two's complement in `bits` bits, quantised to +-(2**(bits-1) - 1); the code of
  -2**(bits-1) is never produced.
- "int-asym": codes 0 .. 2**bits - 1 and one zero point per group in the same range; both end at
  `top` where a format has fewer levels than its codes could tell apart.
- "levels": a table with the value of every code. The code 1 << (bits-1) is minus zero in
  sign-magnitude codes {S, magnitude index} and the most negative number in two's complement; it is
  redundant and never produced, but it may hold one *special value* that each group chooses from
  `special_values`. A group may also choose among whole tables: `levels` and the `alternatives`.
  The choice is stored as the group's selector. (One-bit codes have no redundant code.) Codes that
  mean no number at all (NaN, Inf) are `unused`: never produced, refused in a tensor, and 0.0 in the
  table.
- "dint-asym": codes 0 .. 2**bits - 3 are levels around a zero point in the same range; the two
  highest codes are +1/2 and -1/2, whatever the zero point is.
- "olive": codes of columns 2j and 2j+1 mean something only together; see `olive_pair_values`.

Values by code, before the scale. Sign-magnitude tables (s-m) list the magnitudes of the codes from
0 on; with the top bit set the value is negative, and minus zero reads 0 or the special value. In
two's complement (2c) the code of a negative integer v is v + 2**bits.

| name | values | special values or tables, in selector order |
| --- | --- | --- |
| int2-sym .. int8-sym | 2c: the integers; code 1 << (bits-1) is never produced | |
| int2-asym .. int8-asym | code - zero point | |
| int1b-asym, int2b-asym | code - zero point; codes 0 .. 2 and 0 .. 4 [2] | |
| fp3 | s-m 0 1 2 4 | |
| fp4 (E2M1) | s-m 0 0.5 1 1.5 2 3 4 6 | |
| fp6-e2m3 | s-m 0 0.125 .. 0.875, 1 1.125 .. 1.875, 2 2.25 .. 3.75, 4 4.5 .. 7.5 | |
| fp6-e3m2 | s-m 0 0.0625 .. 0.1875, 0.25 .. 0.4375, ..., 16 20 24 28 | |
| fp8-e4m3 | s-m 0 2**-9 .. 7 * 2**-9, 2**-6 .., ..., 256 288 .. 448; 127 (NaN) unused [3] | |
| fp8-e5m2 | s-m 0 2**-16 .. 3 * 2**-16, 2**-14 .., ..., 57344; 124 .. 127 (Inf, NaN) [3] | |
| fp3-er, fp3-ea | as fp3 | +3 -3; +6 -6 |
| fp4-er, fp4-ea | as fp4 | +5 -5; +8 -8 |
| bitmod3 | as fp3 | +3 -3 +6 -6 |
| bitmod4 | as fp4 | +5 -5 +8 -8 |
| dint3-sym .. dint8-sym | 2c: integers -(m-1) .. m-1, and +0.5 at m, -0.5 at -m [1] | |
| dint3-asym .. dint8-asym | code - zero point; 2**bits - 2: +0.5; 2**bits - 1: -0.5 | |
| binary | 0: -1, 1: +1 | |
| ternary | 2c: 0 1, 3 is -1; 2 is 0 and never produced | |
| flint4 | s-m 0 1 2 3 16 8 4 6 | |
| flint5 | s-m 0 1 2 3 4 5 6 7 64 32 16 24 8 10 12 14 | |
| pot4 | s-m 0 1 2 4 8 16 32 64 | |
| ant4 | | int4-sym (2c, -8 never produced), flint4, pot4 |
| olive4 | 2c -7 .. 7; code 8 marks a victim; beside it s-m 8 12 16 24 32 48 64 96 | |
| nf4 | 0 0.0796 0.1609 .. 0.7230, then (code 9) -0.6962 .. -0.0911, 1; code 8: -1 [4] | |
| mxfp4 | as fp4; E8M0 scale per 32 | |
| mxint8 | 2c: integer / 64; -128 (-2.0) is never produced; E8M0 scale per 32 | |
| nvfp4 | as fp4; E4M3 scale per 16, one float32 scale per tensor | |

[1] m = 2**(bits-1) - 1; -m - 1 reads 0 and is never produced.

[2] *Bit balance* of ABQ-LLM: one level more than 1 or 2 bits hold, so that the levels lie evenly
around zero (-2 .. 2 for 2 bits, the paper's "W2*"). 5 levels do not fit 2 bits: the authors store
them in 3 and run them as 3-bit weights, so `bits` is 3, and 2 for the 3 levels of "1 bit". The
zero point is 0 .. top like the codes (the authors' may lie outside).

[3] OCP 8-bit floating point. Quantised as every table of levels: to the nearest level, an exact
midpoint to the lower one (not to the even code), and the group's largest magnitude to 448 or 57344.

[4] NormalFloat: 16 quantiles of the normal distribution. Its numbers fill all codes; -1 stands at
the code that other formats leave free, as the one special value there is to choose from. The order
of codes is chosen here.

The codes of dINT are this project's own choice: the paper (Lee et al., EMNLP 2023) has the values,
uniform levels and plus and minus half a step, but no code table. So are the codes of flint and of
OliVe's outliers: the authors' code has value sets and no bit patterns (see `_flint` and
`olive_pair_values`).
"""

import math
from dataclasses import dataclass
from typing import Literal, get_args

from .errors import InputError

Kind = Literal["int-sym", "int-asym", "levels", "dint-asym", "olive"]
ScaleFormat = Literal["fp16", "int8", "e8m0", "e4m3"]
ScaleRule = Literal["absmax", "absmean"]

#: Bits of one group scale as stored, by scale format.
SCALE_BITS: dict[str, int] = {"fp16": 16, "int8": 8, "e8m0": 8, "e4m3": 8}
#: Scale formats that a caller can choose; the others belong to formats with a fixed block.
FREE_SCALES: tuple[ScaleFormat, ...] = ("fp16", "int8")
#: Bits of one channel scale (float32), stored once per row beside "int8" group scales.
CHANNEL_SCALE_BITS = 32
#: Bits of the tensor scale (float32), stored once per tensor beside "e4m3" group scales.
TENSOR_SCALE_BITS = 32


@dataclass(frozen=True)
class Format:
    """One number format for weights.

    >>> FORMATS["bitmod3"].grid(2)  # extra asymmetry, +6
    (-4.0, -2.0, -1.0, 0.0, 1.0, 2.0, 4.0, 6.0)
    >>> FORMATS["bitmod3"].special_code, FORMATS["bitmod3"].selector_bits
    (4, 2)
    >>> FORMATS["int4-sym"].qmax, FORMATS["int4-asym"].qmax, FORMATS["dint4-asym"].qmax
    (7, 15, 13)

    Raises:
        InputError: The row contradicts itself, e.g. a table that is not 2**bits long.
    """

    name: str
    bits: int  #: width of one code, 2 .. 8; 1 for a table of two levels
    kind: Kind
    levels: tuple[float, ...] = ()  #: value of every code ("levels" only); 0.0 at the special code
    special_values: tuple[float, ...] = ()  #: candidates in the order they are tried = selectors
    source: str = ""  #: where the values come from
    scale_format: ScaleFormat = "fp16"  #: how group scales are stored unless the caller says
    alternatives: tuple[tuple[float, ...], ...] = ()  #: tables of selectors 1, 2, ...; 0 is levels
    scale_rule: ScaleRule = "absmax"  #: a group's scale comes from its largest or mean magnitude
    block: int | None = None  #: the only group size, with "e8m0" and "e4m3" scales; None: any
    top: int | None = None  #: largest code of an "int-asym" format; None: 2**bits - 1
    unused: tuple[int, ...] = ()  #: codes that mean NaN or Inf ("levels" only), ascending

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise InputError(f"format {self.name!r}: kind {self.kind!r} is not in {get_args(Kind)}")
        low = {"levels": 1, "dint-asym": 3, "olive": 4}.get(self.kind, 2)
        high = 4 if self.kind == "olive" else 8
        if not low <= self.bits <= high:
            raise InputError(
                f"format {self.name!r}: bits (={self.bits}) must be in {low} .. {high}"
            )
        if self.scale_format not in SCALE_BITS:
            raise InputError(
                f"format {self.name!r}: scale_format {self.scale_format!r} is not in "
                f"{tuple(SCALE_BITS)}"
            )
        object.__setattr__(self, "unused", tuple(self.unused))  # a list, from a file's JSON
        self._check_block()
        self._check_unusable()
        if self.kind == "levels":
            for table in (self.levels, *self.alternatives):
                self._check_levels(table)
        elif self.levels or self.special_values or self.alternatives:
            raise InputError(f"format {self.name!r}: an {self.kind} format has no level table")
        if self.alternatives and self.special_values:
            raise InputError(
                f"format {self.name!r}: alternatives and special_values exclude each other"
            )
        if self.scale_rule not in get_args(ScaleRule):
            raise InputError(
                f"format {self.name!r}: scale_rule {self.scale_rule!r} is not in "
                f"{get_args(ScaleRule)}"
            )
        signs = self.levels in (_BINARY, _TERNARY) and self.choices == 1
        if self.scale_rule == "absmean" and not signs:
            raise InputError(
                f"format {self.name!r}: scale_rule absmean goes with the levels of binary or "
                "ternary alone"
            )

    def _check_block(self) -> None:
        if (self.block is None) != (self.scale_format in FREE_SCALES):
            raise InputError(
                f"format {self.name!r}: block (={self.block}) does not go with "
                f"{self.scale_format} scales"
            )
        if self.block is None:
            return
        if self.kind != "levels" or self.choices > 1 or self.bits == 1:
            raise InputError(f"format {self.name!r}: a format with a block is one table of levels")
        if self.block < 1:
            raise InputError(f"format {self.name!r}: block (={self.block}) must be at least 1")
        if self.unused:
            raise InputError(f"format {self.name!r}: a format with a block has no unused codes")

    def _check_unusable(self) -> None:
        codes = 1 << self.bits
        if self.top is not None:
            if self.kind != "int-asym":
                raise InputError(f"format {self.name!r}: top goes with kind int-asym alone")
            # A smaller one would fit fewer bits, and 2**bits - 1 is what None means.
            if not codes // 2 <= self.top <= codes - 2:
                raise InputError(
                    f"format {self.name!r}: top (={self.top}) must be in {codes // 2} .. "
                    f"{codes - 2} for {self.bits}-bit codes"
                )
        if self.unused and self.kind != "levels":
            raise InputError(f"format {self.name!r}: unused goes with kind levels alone")
        if list(self.unused) != sorted(set(self.unused)):
            raise InputError(f"format {self.name!r}: unused {self.unused} must ascend")
        for code in self.unused:
            if not 0 < code < codes or code == self.special_code:
                raise InputError(
                    f"format {self.name!r}: unused code {code} must be in 1 .. {codes - 1} and not "
                    f"{self.special_code}, which is never produced anyhow"
                )

    def _check_levels(self, table: tuple[float, ...]) -> None:
        if len(table) != 1 << self.bits:
            raise InputError(
                f"format {self.name!r}: {len(table)} levels, but {self.bits}-bit codes need "
                f"{1 << self.bits}"
            )
        if self.bits > 1:
            # In two's complement the special code is the most negative number.
            lowest = -self.special_code * table[1]
            for code in (0, self.special_code):
                if table[code] != 0.0 and (code == 0 or table[code] != lowest):
                    raise InputError(
                        f"format {self.name!r}: the level of code {code} (={table[code]}) must "
                        "be 0.0; special values go in special_values"
                    )
        for code in self.unused:
            if table[code] != 0.0:
                raise InputError(
                    f"format {self.name!r}: the level of unused code {code} (={table[code]}) must "
                    "be 0.0"
                )
        redundant = {*self.unused, *([self.special_code] if self.bits > 1 else [])}
        values = [value for code, value in enumerate(table) if code not in redundant]
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
        """Largest integer code: 2**(bits-1) - 1 symmetric, 2**bits - 1 asymmetric, - 3 for dINT.

        `top` where an asymmetric format has one.

        Raises:
            InputError: The format is not one of integers.
        """
        if self.kind == "int-sym":
            return (1 << self.bits - 1) - 1
        if self.kind == "int-asym":
            return (1 << self.bits) - 1 if self.top is None else self.top
        if self.kind == "dint-asym":
            return (1 << self.bits) - 3
        what = "a table of levels" if self.kind == "levels" else "one of pairs"
        raise InputError(f"format {self.name!r} is {what} and has no qmax")

    @property
    def special_code(self) -> int:
        """The redundant code, which holds the group's special value if any: 1 << (bits-1)."""
        return 1 << self.bits - 1

    @property
    def invalid_codes(self) -> tuple[int, ...]:
        """Codes that no tensor may hold, ascending: those above `top`, or `unused`.

        >>> FORMATS["int2b-asym"].invalid_codes, FORMATS["fp8-e4m3"].invalid_codes
        ((5, 6, 7), (127, 255))
        """
        above = () if self.top is None else range(self.top + 1, 1 << self.bits)
        return (*above, *self.unused)

    @property
    def choices(self) -> int:
        """Grids a group can choose among: special values or tables, at least 1."""
        return max(1 + len(self.alternatives), len(self.special_values))

    @property
    def selector_bits(self) -> int:
        """Bits of a group's choice: 0 for one grid, 1 for two, 2 for three or four.

        All candidates count, so "-er" and "-ea" formats (plus or minus) take 1 bit, BitMoD 2.
        """
        return (self.choices - 1).bit_length()

    @property
    def zero_point_bits(self) -> int:
        """Bits of a group's zero point: `bits` for "int-asym" and "dint-asym", else 0."""
        return self.bits if self.kind in ("int-asym", "dint-asym") else 0

    def zero_weights(self) -> tuple[float, ...]:
        """How many times the zero point is taken off the value of each code: 0.0 or 1.0.

        >>> FORMATS["dint3-asym"].zero_weights()  # the two special values stay where they are
        (1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0)
        """
        if not self.zero_point_bits:
            return (0.0,) * (1 << self.bits)
        # Codes above `top` would be integers like the others; only dINT has special values.
        last = self.qmax if self.kind == "dint-asym" else (1 << self.bits) - 1
        return tuple(float(code <= last) for code in range(1 << self.bits))

    def grid_codes(self, selector: int = 0) -> tuple[int, ...]:
        """Codes that quantisation may produce for this selector, by ascending value.

        The special code is among them only if the format has special values, `invalid_codes`
        never.

        Raises:
            InputError: The format is one of pairs.

        >>> FORMATS["fp3"].grid_codes()
        (7, 6, 5, 0, 1, 2, 3)
        >>> FORMATS["fp3-er"].grid_codes(1)  # the special value -3 (code 4) lies between -4 and -2
        (7, 4, 6, 5, 0, 1, 2, 3)
        """
        values = self.code_values(selector)
        redundant = self.kind in ("int-sym", "levels") and self.bits > 1
        invalid = self.invalid_codes
        used = (
            code
            for code in range(1 << self.bits)
            if code not in invalid
            and (not redundant or code != self.special_code or self.special_values)
        )
        return tuple(sorted(used, key=values.__getitem__))

    def grid(self, selector: int = 0) -> tuple[float, ...]:
        """Values that quantisation may produce for this selector, ascending (zero point 0).

        >>> FORMATS["fp4-ea"].grid(1)[:4], FORMATS["int3-sym"].grid()
        ((-8.0, -6.0, -4.0, -3.0), (-3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0))
        >>> FORMATS["dint3-sym"].grid()
        (-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0)
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

        Unused codes read 0.0, codes above `top` like the integers they would be; no tensor holds
        either.

        Raises:
            InputError: `selector` is outside 0 .. choices - 1, or the format is one of pairs.

        >>> FORMATS["bitmod3"].code_values(3)
        (0.0, 1.0, 2.0, 4.0, -6.0, -1.0, -2.0, -4.0)
        >>> FORMATS["int2-sym"].code_values(), FORMATS["dint3-asym"].code_values()
        ((0.0, 1.0, -2.0, -1.0), (0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 0.5, -0.5))
        """
        if not 0 <= selector < self.choices:
            raise InputError(f"selector {selector} is outside 0 .. {self.choices - 1}")
        if self.kind == "olive":
            raise InputError(
                f"a code of {self.name} has no value without its partner; use olive_pair_values"
            )
        if self.kind == "int-asym":
            return tuple(float(code) for code in range(1 << self.bits))
        if self.kind == "dint-asym":
            return (*(float(code) for code in range(self.qmax + 1)), 0.5, -0.5)
        if self.kind == "int-sym":
            return _integers(self.bits)
        if self.alternatives:
            return (self.levels, *self.alternatives)[selector]
        if not self.special_values:
            return self.levels
        half = self.special_code
        return (*self.levels[:half], self.special_values[selector], *self.levels[half + 1 :])

    def check_group_size(self, group_size: int, k: int | None = None) -> None:
        """Refuse groups that the format does not have.

        Args:
            group_size: Columns per group.
            k: Columns of the tensor if known: a row may be shorter than a block, and a group that
                is the whole row may be odd.

        Raises:
            InputError: Another size than the format's block, or groups that would part pairs.
        """
        size = self.block if k is None or self.block is None else min(self.block, k)
        if size is not None and group_size != size:
            raise InputError(
                f"{self.name} has blocks of {self.block} columns, so group_size (={group_size}) "
                f"must be {size}; leave it out"
            )
        if self.kind == "olive" and group_size % 2 and group_size != k:
            raise InputError(
                f"{self.name} codes columns in pairs, so group_size (={group_size}) must be even, "
                "or one group per row"
            )

    def check_scale_format(self, scale_format: str) -> None:
        """Refuse a scale format that is unknown or that the format does not go with.

        Raises:
            InputError: It is; the message says what is allowed.
        """
        allowed = FREE_SCALES if self.block is None else (self.scale_format,)
        if scale_format in allowed:
            return
        if scale_format not in SCALE_BITS:
            raise InputError(
                f"scale_format {scale_format!r} is unknown; use one of {', '.join(allowed)}"
            )
        raise InputError(
            f"{self.name} has no {scale_format} scales; its scale_format is {' or '.join(allowed)}"
        )

    def stored_bits(
        self, n: int, k: int, group_size: int | None, scale_format: ScaleFormat | None = None
    ) -> int:
        """Bits that an [n, k] tensor takes, all metadata counted.

        n*k codes; per group a scale (16 or 8 bits), a zero point and a selector where the format
        has them; per row a float32 channel scale if group scales are "int8"; one float32 tensor
        scale if they are "e4m3". A ragged last group is a group. `group_size` None means one group
        per row, or the format's block.

        >>> FORMATS["bitmod3"].stored_bits(1, 256, 128)  # 256*3 + 2*(8 + 2) + 32
        820
        >>> FORMATS["int4-asym"].stored_bits(1, 200, 128)  # 200*4 + 2*(16 + 4)
        840
        >>> FORMATS["nvfp4"].stored_bits(2, 64, None)  # 2 * (64*4 + 4*8) + 32
        608
        """
        scale_format = scale_format or self.scale_format
        groups = -(-k // (self.block or group_size or k))
        per_group = SCALE_BITS[scale_format] + self.zero_point_bits + self.selector_bits
        per_row = CHANNEL_SCALE_BITS if scale_format == "int8" else 0
        per_tensor = TENSOR_SCALE_BITS if scale_format == "e4m3" else 0
        return n * (k * self.bits + groups * per_group + per_row) + per_tensor


def olive_pair_values(code0: int, code1: int) -> tuple[int, int]:
    """What the codes of columns 2j and 2j+1 of an "olive" tensor mean, before the scale.

    OliVe (Guo et al., ISCA 2023, arXiv 2304.07493): where one of a pair is an outlier, the other is
    its victim and reads 0. The code 8 marks the victim. Beside it the code {S, e1, e0, m} is an
    *abfloat*, a float without subnormals whose bias puts its range above the normal values:
    (2 + m) * 2**(e + 2), so 12 16 24 32 48 64 96 for 1 .. 7. All other codes are two's complement
    integers -7 .. 7. Three kinds of pairs are never produced: two victims (both 0), and a victim
    beside the abfloat of magnitude code 0 (8 by the rule).

    The values are those of the authors' code (clevercool/ANT-Quantization, olive_quantization,
    quant_modules.py: int_value, outlier_value); the field order and the marker are this project's
    choice, as no bit patterns are published there. The last column of an odd number has no partner
    and is decoded as if beside the code 0.

    Raises:
        InputError: A code outside 0 .. 15.

    >>> olive_pair_values(3, 9), olive_pair_values(8, 1), olive_pair_values(15, 8)
    ((3, -7), (0, 12), (-96, 0))
    """
    for code in (code0, code1):
        if not 0 <= code <= 15:
            raise InputError(f"code {code} of a pair is outside 0 .. 15")
    return _olive_value(code0, code1), _olive_value(code1, code0)


def _olive_value(code: int, partner: int) -> int:
    if code == OLIVE_VICTIM:
        return 0
    if partner == OLIVE_VICTIM:
        magnitude = (2 + (code & 1)) << (2 + (code >> 1 & 3))
        return -magnitude if code & 8 else magnitude
    return (code ^ 8) - 8


#: The code that marks the victim of a pair.
OLIVE_VICTIM = 8


def scale_code_values(scale_format: ScaleFormat) -> tuple[float, ...]:
    """Value of every group scale code of "e8m0" or "e4m3"; NaN where the code means NaN.

    E8M0 (OCP MX v1.0): 2**(code - 127), 255 is NaN. E4M3 (OCP 8-bit floating point): {S, exponent
    4, mantissa 3}, bias 7, subnormals, no infinities, {S, 1111, 111} is NaN; the largest is 448.

    Raises:
        InputError: Another scale format; its group scales are numbers.

    >>> values = scale_code_values("e4m3")
    >>> values[1], values[8], values[0x38], values[0x7E]
    (0.001953125, 0.015625, 1.0, 448.0)
    """
    if scale_format == "e8m0":
        return (*(2.0 ** (code - 127) for code in range(255)), math.nan)
    if scale_format == "e4m3":
        positive = (*_minifloat(4, 3, bias=7)[:127], math.nan)
        return (*positive, *(-value for value in positive))
    raise InputError(f"{scale_format} scales are stored as numbers, not as codes")


def _integers(bits: int) -> tuple[float, ...]:
    """Two's complement: the integer of every code."""
    half = 1 << bits - 1
    return tuple(float((code ^ half) - half) for code in range(1 << bits))


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


def _without(levels: tuple[float, ...], codes: tuple[int, ...]) -> tuple[float, ...]:
    """The table with 0.0 at unused codes."""
    return tuple(0.0 if code in codes else value for code, value in enumerate(levels))


def _dint(bits: int) -> tuple[float, ...]:
    """Level table of symmetric dINT: integers, +-1/2 at the two ends, 0 at the most negative."""
    top = (1 << bits - 1) - 1
    special = {top: 0.5, -top: -0.5, -top - 1: 0.0}
    return tuple(special.get(int(value), value) for value in _integers(bits))


def _flint(bits: int) -> tuple[float, ...]:
    """Level table of signed flint, code {S, magnitude}, after ANT (MICRO 2022).

    A magnitude with a leading 0 is an integer. Below a leading 1, each leading zero of the rest
    multiplies by four, and the rest doubled is the base (1 if there is no rest).
    """
    half = 1 << bits - 2
    magnitudes = [float(low) for low in range(half)]
    for low in range(half):
        zeros = bits - 2 - low.bit_length()
        magnitudes.append(float((2 * low or 1) << 2 * zeros))
    return _signed(*magnitudes)


_TABLE_IV = "BitMoD (HPCA 2025, arXiv 2411.11745), Table IV"
_CHOICE = f"{_TABLE_IV}; order of choice: authors' repo BitMoD-HPCA-25, quant_weight.py"
_FP3 = _signed(0.0, 1.0, 2.0, 4.0)
# {S, E1, E0, M}; authors' repo yc2367/BitMoD, hardware/pe/decoder.v.
_FP4 = _signed(0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_POT4 = _signed(0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)
_BINARY = (-1.0, 1.0)
_TERNARY = (0.0, 1.0, 0.0, -1.0)
_NF4 = (
    0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 0.0, -0.6961928009986877,
    -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 1.0,
)  # fmt: skip
_INT_SYM = "BitMoD, equation 1: qmin = -qmax = -(2**(bits-1) - 1)"
_INT_ASYM = "0 .. 2**bits - 1 with an integer zero point; BitMoD, section II"
_BALANCE = (
    "bit balance of ABQ-LLM (AAAI 2025, arXiv 2408.08554): bytedance/ABQ-LLM, "
    "algorithm/quantize/quantizer.py; storage: its issue 4"
)
_OCP = "OCP Microscaling Formats (MX) v1.0, FP6 element formats"
_OFP8 = "OCP 8-bit Floating Point Specification (OFP8) v1.0"
_DINT = "dINT (EMNLP 2023, arXiv 2311.05161): uniform levels and +-1/2; codes chosen here"
_BITNET = "BitNet b1.58: weight quantiser of microsoft/BitNet, convert-hf-to-gguf-bitnet.py"
_SIGN = "sign times mean magnitude, as in XNOR-Net (ECCV 2016) and BinaryMoS; 0 counts as +1"
_ANT = "ANT (MICRO 2022); values: clevercool/ANT-Quantization, ant_quantization/quant_modules.py"
_OLIVE = "OliVe (ISCA 2023); values: clevercool/ANT-Quantization, olive_quantization"
_NORMAL = "NormalFloat, QLoRA (NeurIPS 2023, arXiv 2305.14314), appendix E"
_MXFP4 = "OCP Microscaling Formats (MX) v1.0, MXFP4: E2M1, E8M0, blocks of 32"
_MXINT8 = "OCP Microscaling Formats (MX) v1.0, MXINT8: INT8 / 64, E8M0, blocks of 32"
_NVFP4 = "NVFP4 (arXiv 2509.25149): E2M1, E4M3 scale per 16, float32 scale per tensor"


def _rows() -> tuple[Format, ...]:
    flint4, flint5 = _flint(4), _flint(5)
    mxint8 = tuple(value / 64 for value in _integers(8))
    nan, inf_nan = (127, 255), (*range(124, 128), *range(252, 256))
    e4m3, e5m2 = _without(_minifloat(4, 3, 7), nan), _without(_minifloat(5, 2, 15), inf_nan)
    return (
        *(Format(f"int{bits}-sym", bits, "int-sym", source=_INT_SYM) for bits in range(2, 9)),
        *(Format(f"int{bits}-asym", bits, "int-asym", source=_INT_ASYM) for bits in range(2, 9)),
        Format("int1b-asym", 2, "int-asym", source=_BALANCE, top=2),
        Format("int2b-asym", 3, "int-asym", source=_BALANCE, top=4),
        Format("fp3", 3, "levels", _FP3, (), _TABLE_IV),
        Format("fp4", 4, "levels", _FP4, (), f"{_TABLE_IV}; E2M1"),
        Format("fp6-e2m3", 6, "levels", _minifloat(2, 3, bias=1), (), _OCP),
        Format("fp6-e3m2", 6, "levels", _minifloat(3, 2, bias=3), (), _OCP),
        Format("fp8-e4m3", 8, "levels", e4m3, (), _OFP8, unused=nan),
        Format("fp8-e5m2", 8, "levels", e5m2, (), _OFP8, unused=inf_nan),
        Format("fp3-er", 3, "levels", _FP3, (3.0, -3.0), _CHOICE),
        Format("fp3-ea", 3, "levels", _FP3, (6.0, -6.0), _CHOICE),
        Format("fp4-er", 4, "levels", _FP4, (5.0, -5.0), _CHOICE),
        Format("fp4-ea", 4, "levels", _FP4, (8.0, -8.0), _CHOICE),
        Format("bitmod3", 3, "levels", _FP3, (3.0, -3.0, 6.0, -6.0), _CHOICE, "int8"),
        Format("bitmod4", 4, "levels", _FP4, (5.0, -5.0, 8.0, -8.0), _CHOICE, "int8"),
        *(
            Format(f"dint{bits}-sym", bits, "levels", _dint(bits), (), _DINT)
            for bits in range(3, 9)
        ),
        *(Format(f"dint{bits}-asym", bits, "dint-asym", source=_DINT) for bits in range(3, 9)),
        Format("binary", 1, "levels", _BINARY, (), _SIGN, scale_rule="absmean"),
        Format("ternary", 2, "levels", _TERNARY, (), _BITNET, scale_rule="absmean"),
        Format("flint4", 4, "levels", flint4, (), _ANT),
        Format("flint5", 5, "levels", flint5, (), _ANT),
        Format("pot4", 4, "levels", _POT4, (), _ANT),
        Format("ant4", 4, "levels", _integers(4), (), _ANT, alternatives=(flint4, _POT4)),
        Format("olive4", 4, "olive", source=_OLIVE),
        Format("nf4", 4, "levels", _NF4, (-1.0,), _NORMAL),
        Format("mxfp4", 4, "levels", _FP4, (), _MXFP4, "e8m0", block=32),
        Format("mxint8", 8, "levels", mxint8, (), _MXINT8, "e8m0", block=32),
        Format("nvfp4", 4, "levels", _FP4, (), _NVFP4, "e4m3", block=16),
    )


#: Every format by name.
FORMATS: dict[str, Format] = {row.name: row for row in _rows()}
