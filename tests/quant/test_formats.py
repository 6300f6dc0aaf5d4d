"""Format rows: value tables, codes, special values, selectors and bits."""

import dataclasses
import json
import math
import re

import numpy as np
import pytest
import torch

from bitwright.quant import (
    FORMATS,
    Format,
    InputError,
    olive_pair_values,
    quantize,
    scale_code_values,
)

NAMES = (
    *(f"int{bits}-{kind}" for kind in ("sym", "asym") for bits in range(2, 9)),
    *("int1b-asym", "int2b-asym", "fp3", "fp4", "fp6-e2m3", "fp6-e3m2"),
    *("fp8-e4m3", "fp8-e5m2", "fp3-er", "fp3-ea", "fp4-er", "fp4-ea"),
    *("bitmod3", "bitmod4"),
    *(f"dint{bits}-{kind}" for kind in ("sym", "asym") for bits in range(3, 9)),
    *("binary", "ternary", "flint4", "flint5", "pot4", "ant4", "olive4"),
    *("nf4", "mxfp4", "mxint8", "nvfp4"),
)
#: Formats whose codes mean something without a partner.
SINGLE = tuple(name for name in NAMES if name != "olive4")
LEVELS = tuple(name for name in NAMES if FORMATS[name].kind == "levels")


def test_the_names():
    assert tuple(FORMATS) == NAMES
    assert all(FORMATS[name].name == name for name in NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_row_names_its_source(name):
    assert len(FORMATS[name].source) > 20


# The grids of BitMoD, Table IV: basic values plus one special value.
FP3 = (-4, -2, -1, 0, 1, 2, 4)
FP4 = (-6, -4, -3, -2, -1.5, -1, -0.5, 0, 0.5, 1, 1.5, 2, 3, 4, 6)


@pytest.mark.parametrize(
    ("name", "basic", "special"),
    [
        ("fp3-er", FP3, (3, -3)),
        ("fp3-ea", FP3, (6, -6)),
        ("bitmod3", FP3, (3, -3, 6, -6)),
        ("fp4-er", FP4, (5, -5)),
        ("fp4-ea", FP4, (8, -8)),
        ("bitmod4", FP4, (5, -5, 8, -8)),
    ],
)
def test_extended_grids(name, basic, special):
    format = FORMATS[name]
    assert format.special_values == special
    for selector, value in enumerate(special):
        assert format.grid(selector) == tuple(sorted((*basic, value)))
        assert format.absmax(selector) == max(4 if format.bits == 3 else 6, abs(value))


def test_basic_grids():
    assert FORMATS["fp3"].grid() == FP3
    assert FORMATS["fp4"].grid() == FP4


def test_fp4_codes():
    # {S, E1, E0, M}: 000 -> 0, 001 -> 0.5, 010 -> 1, 011 -> 1.5, 100 -> 2, 101 -> 3, 110 -> 4,
    # 111 -> 6; 1000 is the special value, here +8 (selector 2).
    magnitudes = (0, 0.5, 1, 1.5, 2, 3, 4, 6)
    values = FORMATS["bitmod4"].code_values(2)
    assert values[:8] == magnitudes
    assert values[8] == 8
    assert values[9:] == tuple(-value for value in magnitudes[1:])


def test_fp3_code_is_the_fp4_code_without_its_last_bit():
    # What lets one decoder serve both: {S, e1, e0} means what {S, e1, e0, 0} means.
    fp3, fp4 = FORMATS["fp3"].levels, FORMATS["fp4"].levels
    assert fp3 == tuple(fp4[code << 1] for code in range(8))


@pytest.mark.parametrize(
    ("name", "exp_bits", "man_bits", "bias"), [("fp6-e2m3", 2, 3, 1), ("fp6-e3m2", 3, 2, 3)]
)
def test_fp6_is_the_ocp_minifloat(name, exp_bits, man_bits, bias):
    for code in range(32):
        exp, man = code >> man_bits, code & ((1 << man_bits) - 1)
        if exp == 0:  # subnormal: no hidden bit
            value = man / (1 << man_bits) * 2 ** (1 - bias)
        else:
            value = (1 + man / (1 << man_bits)) * 2 ** (exp - bias)
        assert FORMATS[name].levels[code] == value
        assert FORMATS[name].levels[code | 32] == -value


@pytest.mark.parametrize(
    ("name", "exp_bits", "man_bits", "bias", "first_unused"),
    [("fp8-e4m3", 4, 3, 7, 0x7F), ("fp8-e5m2", 5, 2, 15, 0x7C)],
)
def test_fp8_is_the_ocp_minifloat(name, exp_bits, man_bits, bias, first_unused):
    for code in range(128):
        exp, man = code >> man_bits, code & ((1 << man_bits) - 1)
        if code >= first_unused:  # E4M3: {1111, 111} is NaN. E5M2: {11111, 00} Inf, then NaN.
            value = 0.0
        elif exp == 0:  # subnormal: no hidden bit
            value = man / (1 << man_bits) * 2.0 ** (1 - bias)
        else:
            value = (1 + man / (1 << man_bits)) * 2.0 ** (exp - bias)
        assert FORMATS[name].levels[code] == value
        assert FORMATS[name].levels[code | 128] == -value
    unused = range(first_unused, 128)
    assert FORMATS[name].unused == (*unused, *(code + 128 for code in unused))
    assert FORMATS[name].invalid_codes == FORMATS[name].unused


@pytest.mark.parametrize(
    ("name", "dtype"), [("fp8-e4m3", torch.float8_e4m3fn), ("fp8-e5m2", torch.float8_e5m2)]
)
def test_fp8_is_torchs(name, dtype):
    values = torch.arange(256, dtype=torch.uint8).view(dtype).float().numpy()
    finite = np.isfinite(values)
    assert np.array_equal(np.array(FORMATS[name].levels)[finite], values[finite])
    assert FORMATS[name].unused == tuple(np.flatnonzero(~finite))


def test_fp8_ends():
    # OFP8 v1.0: largest 448 and 57344, smallest normal 2**-6 and 2**-14, smallest subnormal 2**-9
    # and 2**-16.
    e4m3, e5m2 = FORMATS["fp8-e4m3"], FORMATS["fp8-e5m2"]
    assert (e4m3.absmax(), e4m3.levels[8], e4m3.levels[1]) == (448, 2**-6, 2**-9)
    assert (e5m2.absmax(), e5m2.levels[4], e5m2.levels[1]) == (57344, 2**-14, 2**-16)
    # 256 codes, without minus zero and 2 (NaN) or 8 (Inf, NaN) others.
    assert (len(e4m3.grid()), len(e5m2.grid())) == (253, 247)


@pytest.mark.parametrize("name", ["fp8-e4m3", "fp8-e5m2"])
def test_every_fp8_number_is_quantised_to_its_own_code(name):
    format = FORMATS[name]
    qt = quantize(np.array([format.grid()]), name, group_size=256)
    assert tuple(qt.codes[0]) == format.grid_codes()
    assert tuple(qt.dequantize()[0]) == format.grid()


@pytest.mark.parametrize("name", ["int1b-asym", "int2b-asym"])
def test_every_level_of_bit_balance_is_quantised_to_its_own_code(name):
    top = FORMATS[name].qmax
    for zero in range(top + 1):
        levels = np.arange(top + 1) - zero
        qt = quantize(levels[None], name, group_size=top + 1)
        assert (qt.codes.tolist(), qt.zero_points.tolist()) == ([[*range(top + 1)]], [[zero]])
        assert np.array_equal(qt.dequantize()[0], levels)


def test_a_format_with_unused_codes_survives_json():
    for name in ("fp8-e4m3", "fp8-e5m2", "int2b-asym"):
        fields = json.loads(json.dumps(dataclasses.asdict(FORMATS[name])))
        tables = {"levels": tuple(fields["levels"]), "special_values": (), "alternatives": ()}
        copy = Format(**fields | tables)
        assert copy == FORMATS[name] and hash(copy) == hash(FORMATS[name])


def test_fp6_ends():
    # OCP MX v1.0: largest 7.5 and 28, smallest subnormal 0.125 and 0.0625.
    assert FORMATS["fp6-e2m3"].levels[31] == 7.5
    assert FORMATS["fp6-e2m3"].levels[1] == 0.125
    assert FORMATS["fp6-e3m2"].levels[31] == 28.0
    assert FORMATS["fp6-e3m2"].levels[1] == 0.0625


def test_fp4_tables_are_half_the_released_ones():
    # The released quantiser stores FP4 doubled: 0 1 2 3 4 6 8 12, specials +-10 and +-16.
    format = FORMATS["bitmod4"]
    assert [2 * value for value in format.levels[:8]] == [0, 1, 2, 3, 4, 6, 8, 12]
    assert [2 * value for value in format.special_values] == [10, -10, 16, -16]


@pytest.mark.parametrize("bits", range(2, 9))
def test_symmetric_integers(bits):
    format = FORMATS[f"int{bits}-sym"]
    limit = 2 ** (bits - 1) - 1
    assert format.qmax == limit
    assert format.grid() == tuple(range(-limit, limit + 1))
    # two's complement: the code of -1 is all ones
    assert format.code_values()[2**bits - 1] == -1
    assert format.code_values()[format.special_code] == -(2 ** (bits - 1))
    assert format.special_code not in format.grid_codes()


@pytest.mark.parametrize("bits", range(2, 9))
def test_asymmetric_integers(bits):
    format = FORMATS[f"int{bits}-asym"]
    assert format.qmax == 2**bits - 1
    assert format.grid() == tuple(range(2**bits))
    assert format.zero_point_bits == bits


@pytest.mark.parametrize(("name", "bits", "top"), [("int1b-asym", 2, 2), ("int2b-asym", 3, 4)])
def test_bit_balance(name, bits, top):
    # ABQ-LLM: 2**b + 1 levels for b bits, in codes of b + 1 bits.
    format = FORMATS[name]
    assert (format.bits, format.qmax, format.zero_point_bits) == (bits, top, bits)
    assert format.grid() == tuple(range(top + 1)) and format.absmax() == top
    assert format.grid_codes() == tuple(range(top + 1))
    assert format.invalid_codes == tuple(range(top + 1, 2**bits))
    # What the bit planes of a code hold, also where no tensor has it.
    assert format.code_values() == tuple(range(2**bits))
    assert format.zero_weights() == (1,) * 2**bits
    assert format.stored_bits(2, 256, 128) == 2 * (256 * bits + 2 * (16 + bits))


@pytest.mark.parametrize("name", SINGLE)
def test_codes_that_are_never_produced(name):
    format = FORMATS[name]
    invalid = {"int1b-asym": 1, "int2b-asym": 3, "fp8-e4m3": 2, "fp8-e5m2": 8}
    assert len(format.invalid_codes) == invalid.get(name, 0)
    signed = format.kind in ("int-sym", "levels") and format.bits > 1
    redundant = {format.special_code} if signed and not format.special_values else set()
    for selector in range(format.choices):
        left_out = set(range(2**format.bits)) - set(format.grid_codes(selector))
        assert left_out == redundant | set(format.invalid_codes)


@pytest.mark.parametrize("name", SINGLE)
def test_grid_codes_decode_to_the_grid(name):
    format = FORMATS[name]
    for selector in range(format.choices):
        grid, codes = format.grid(selector), format.grid_codes(selector)
        assert list(grid) == sorted(set(grid))
        assert [format.code_values(selector)[code] for code in codes] == list(grid)


@pytest.mark.parametrize("name", LEVELS)
def test_the_special_code_is_used_only_with_special_values(name):
    format = FORMATS[name]
    if format.bits == 1:  # both codes are signs
        assert format.grid() == (-1, 1)
        return
    for selector in range(format.choices):
        assert (format.special_code in format.grid_codes(selector)) == bool(format.special_values)
        usable = 2**format.bits - len(format.unused)
        assert len(format.grid(selector)) == usable - (not format.special_values)


@pytest.mark.parametrize(
    ("name", "bits"),
    [("fp4", 0), ("int4-asym", 0), ("fp3-er", 1), ("fp4-ea", 1), ("bitmod3", 2), ("ant4", 2)],
)
def test_selector_bits(name, bits):
    assert FORMATS[name].selector_bits == bits


def test_only_bitmod_stores_int8_scales_by_default():
    int8 = {name for name in NAMES if FORMATS[name].scale_format == "int8"}
    assert int8 == {"bitmod3", "bitmod4"}


@pytest.mark.parametrize(
    ("name", "shape", "group_size", "scale_format", "bits"),
    [
        # n * (k*bits + groups * (scale + zero point + selector) + channel scale)
        ("int4-sym", (2, 256), 128, None, 2 * (1024 + 2 * 16)),
        ("int4-asym", (2, 256), 128, None, 2 * (1024 + 2 * (16 + 4))),
        ("int8-asym", (1, 10), 3, None, 80 + 4 * (16 + 8)),  # 4 groups: 3, 3, 3 and 1
        ("bitmod3", (2, 256), 128, None, 2 * (768 + 2 * (8 + 2) + 32)),
        ("bitmod3", (2, 256), 128, "fp16", 2 * (768 + 2 * (16 + 2))),
        ("fp4-er", (1, 256), None, None, 1024 + 16 + 1),  # per channel
        ("fp4", (3, 576), 128, "int8", 3 * (576 * 4 + 5 * 8 + 32)),
        ("dint4-asym", (2, 256), 128, None, 2 * (1024 + 2 * (16 + 4))),
        ("ternary", (2, 256), None, None, 2 * (512 + 16)),
        ("binary", (2, 256), 128, "int8", 2 * (256 + 2 * 8 + 32)),
        ("ant4", (2, 256), 128, None, 2 * (1024 + 2 * (16 + 2))),
        ("olive4", (2, 256), 128, None, 2 * (1024 + 2 * 16)),
        ("mxfp4", (2, 256), None, None, 2 * (1024 + 8 * 8)),
        ("mxint8", (1, 33), None, None, 33 * 8 + 2 * 8),
        ("nvfp4", (3, 40), None, None, 3 * (160 + 3 * 8) + 32),  # one tensor scale
    ],
)
def test_stored_bits(name, shape, group_size, scale_format, bits):
    assert FORMATS[name].stored_bits(*shape, group_size, scale_format) == bits


def test_bitmod_metadata_at_group_128_is_ten_bits():
    # 8-bit scale + 2-bit selector = 10/128 = +0.078 bit per weight (BitMoD, section III-C),
    # the channel scale of a long row aside.
    k = 1 << 20
    bits = FORMATS["bitmod3"].stored_bits(1, k, 128)
    assert (bits - 32) / k == 3 + 10 / 128


_GOOD = (0.0, 1.0, 0.0, -1.0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"kind": "float"},
            "format 'x': kind 'float' is not in "
            "('int-sym', 'int-asym', 'levels', 'dint-asym', 'olive')",
        ),
        ({"bits": 9}, "format 'x': bits (=9) must be in 1 .. 8"),
        ({"bits": 0}, "format 'x': bits (=0) must be in 1 .. 8"),
        ({"bits": 1}, "format 'x': 4 levels, but 1-bit codes need 2"),
        ({"bits": 1, "kind": "int-sym"}, "format 'x': bits (=1) must be in 2 .. 8"),
        ({"bits": 2, "kind": "dint-asym"}, "format 'x': bits (=2) must be in 3 .. 8"),
        ({"bits": 5, "kind": "olive"}, "format 'x': bits (=5) must be in 4 .. 4"),
        ({"bits": 3}, "format 'x': 4 levels, but 3-bit codes need 8"),
        (
            {"levels": (0.0, 1.0, 3.0, -1.0)},
            "format 'x': the level of code 2 (=3.0) must be 0.0; "
            "special values go in special_values",
        ),
        (
            {"levels": (2.0, 1.0, 0.0, -1.0)},
            "format 'x': the level of code 0 (=2.0) must be 0.0; "
            "special values go in special_values",
        ),
        ({"levels": (0.0, 1.0, 0.0, 1.0)}, "format 'x': a level occurs twice"),
        ({"special_values": (float("nan"),)}, "format 'x': level nan is not finite"),
        ({"special_values": (-1.0,)}, "format 'x': special value -1.0 is a level already"),
        ({"kind": "int-sym"}, "format 'x': an int-sym format has no level table"),
        (
            {"scale_format": "fp8"},
            "format 'x': scale_format 'fp8' is not in ('fp16', 'int8', 'e8m0', 'e4m3')",
        ),
        (
            {"alternatives": ((0.0, 1.0, -3.0, -1.0),)},
            "format 'x': the level of code 2 (=-3.0) must be 0.0; "
            "special values go in special_values",
        ),
        (
            {"alternatives": ((0.0, 2.0, 0.0, -2.0),), "special_values": (3.0,)},
            "format 'x': alternatives and special_values exclude each other",
        ),
        (
            {"bits": 4, "kind": "olive", "levels": (), "alternatives": (_GOOD,)},
            "format 'x': an olive format has no level table",
        ),
        (
            {"scale_rule": "mean"},
            "format 'x': scale_rule 'mean' is not in ('absmax', 'absmean')",
        ),
        (
            {"scale_rule": "absmean", "levels": (0.0, 2.0, 0.0, -2.0)},
            "format 'x': scale_rule absmean goes with the levels of binary or ternary alone",
        ),
        ({"block": 32}, "format 'x': block (=32) does not go with fp16 scales"),
        (
            {"scale_format": "e8m0"},
            "format 'x': block (=None) does not go with e8m0 scales",
        ),
        (
            {"scale_format": "e8m0", "block": 0},
            "format 'x': block (=0) must be at least 1",
        ),
        (
            {"scale_format": "e8m0", "block": 8, "special_values": (2.0, 3.0)},
            "format 'x': a format with a block is one table of levels",
        ),
        (
            {"scale_format": "e8m0", "block": 8, "levels": (0.0, 1.0, 0.0, 0.0), "unused": (3,)},
            "format 'x': a format with a block has no unused codes",
        ),
        ({"top": 2}, "format 'x': top goes with kind int-asym alone"),
        (
            {"kind": "int-asym", "levels": (), "top": 3},
            "format 'x': top (=3) must be in 2 .. 2 for 2-bit codes",
        ),
        (
            {"kind": "int-asym", "levels": (), "bits": 4, "top": 7},
            "format 'x': top (=7) must be in 8 .. 14 for 4-bit codes",
        ),
        (
            {"kind": "int-asym", "levels": (), "unused": (3,)},
            "format 'x': unused goes with kind levels alone",
        ),
        (
            {"unused": (3,)},
            "format 'x': the level of unused code 3 (=-1.0) must be 0.0",
        ),
        ({"unused": (3, 1)}, "format 'x': unused (3, 1) must ascend"),
        ({"unused": (3, 3)}, "format 'x': unused (3, 3) must ascend"),
        *(
            (
                {"unused": (code,)},
                f"format 'x': unused code {code} must be in 1 .. 3 and not 2, which is never "
                "produced anyhow",
            )
            for code in (0, 2, 4)
        ),
    ],
)
def test_a_row_that_contradicts_itself_is_refused(fields, message):
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        Format(**{"name": "x", "bits": 2, "kind": "levels", "levels": _GOOD} | fields)


def test_selector_out_of_range():
    with pytest.raises(InputError, match=r"^selector 4 is outside 0 \.\. 3$"):
        FORMATS["bitmod3"].code_values(4)


def test_levels_have_no_qmax():
    with pytest.raises(InputError, match=r"^format 'fp4' is a table of levels and has no qmax$"):
        _ = FORMATS["fp4"].qmax
    with pytest.raises(InputError, match=r"^format 'olive4' is one of pairs and has no qmax$"):
        _ = FORMATS["olive4"].qmax


# dINT.


@pytest.mark.parametrize("bits", range(3, 9))
def test_symmetric_dint(bits):
    format = FORMATS[f"dint{bits}-sym"]
    top = 2 ** (bits - 1) - 2
    # Two's complement written out: codes of negative numbers v are v + 2**bits.
    expected = {code % 2**bits: code for code in range(-top, top + 1)}
    expected |= {top + 1: 0.5, 2**bits - top - 1: -0.5, 2 ** (bits - 1): 0}
    assert dict(enumerate(format.code_values())) == expected
    # 2**bits - 3 uniform levels and two specials.
    integers = [value for value in format.grid() if value == int(value)]
    assert integers == list(range(-top, top + 1)) and len(integers) == 2**bits - 3
    assert set(format.grid()) - set(integers) == {0.5, -0.5}
    assert (format.absmax(), format.zero_point_bits, format.selector_bits) == (top, 0, 0)


def test_dint4_by_hand():
    values = (0, 1, 2, 3, 4, 5, 6, 0.5, 0, -0.5, -6, -5, -4, -3, -2, -1)
    assert FORMATS["dint4-sym"].code_values() == values
    assert FORMATS["dint4-asym"].code_values() == (*range(14), 0.5, -0.5)


@pytest.mark.parametrize("bits", range(3, 9))
def test_asymmetric_dint(bits):
    format = FORMATS[f"dint{bits}-asym"]
    assert format.qmax == 2**bits - 3
    assert format.code_values() == (*range(2**bits - 2), 0.5, -0.5)
    assert format.zero_weights() == (1,) * (2**bits - 2) + (0, 0)
    assert format.zero_point_bits == bits


def test_zero_weights():
    assert FORMATS["int3-asym"].zero_weights() == (1,) * 8
    assert FORMATS["int3-sym"].zero_weights() == FORMATS["fp3"].zero_weights() == (0,) * 8


# Signs.


def test_binary_and_ternary():
    binary, ternary = FORMATS["binary"], FORMATS["ternary"]
    assert (binary.bits, binary.code_values(), binary.grid_codes()) == (1, (-1, 1), (0, 1))
    # Two's complement: 1 is 01, -1 is 11; 10 reads 0.
    assert (ternary.bits, ternary.code_values()) == (2, (0, 1, 0, -1))
    assert ternary.grid_codes() == (3, 0, 1)
    assert {FORMATS[name].scale_rule for name in NAMES} == {"absmax", "absmean"}
    absmean = [name for name in NAMES if FORMATS[name].scale_rule == "absmean"]
    assert absmean == ["binary", "ternary"]


# ANT.


def test_flint4_by_hand():
    magnitudes = (0, 1, 2, 3, 16, 8, 4, 6)
    values = FORMATS["flint4"].code_values()
    assert values == (*magnitudes, *(-value for value in magnitudes))


def test_flint5_by_hand():
    magnitudes = (0, 1, 2, 3, 4, 5, 6, 7, 64, 32, 16, 24, 8, 10, 12, 14)
    values = FORMATS["flint5"].code_values()
    assert values == (*magnitudes, *(-value for value in magnitudes))


def flint_by_float(code, bits):
    """The float-based reading of a flint magnitude of `bits` bits, written a second time."""
    if code == 0:
        return 0.0
    high, low = code >> bits - 1, code & (1 << bits - 1) - 1
    zeros = bits - 1 - low.bit_length()
    exponent = bits + zeros if high else bits - 1 - zeros
    fraction = (low << zeros + 1) % (1 << bits - 1)
    return 2.0 ** (exponent - 1) * (1 + fraction / (1 << bits - 1))


@pytest.mark.parametrize("bits", [4, 5])
def test_flint_is_a_float_too(bits):
    # ANT decodes flint as an integer with a shift or as a float; both must give the table.
    values = FORMATS[f"flint{bits}"].code_values()
    for code in range(1 << bits - 1):
        assert values[code] == flint_by_float(code, bits - 1)
        assert values[code | 1 << bits - 1] == -values[code]


def test_the_value_sets_of_ant():
    # Authors' quant_modules.py: flint_value and pot_value, smallest value 1.
    assert FORMATS["flint4"].grid()[7:] == (0, 1, 2, 3, 4, 6, 8, 16)
    assert FORMATS["flint5"].grid()[15:] == (0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 24, 32, 64)
    assert FORMATS["pot4"].grid()[7:] == (0, 1, 2, 4, 8, 16, 32, 64)
    for name in ("flint4", "flint5", "pot4"):
        grid = FORMATS[name].grid()
        assert grid == tuple(-value for value in reversed(grid))


def test_ant4_chooses_among_three_tables():
    format = FORMATS["ant4"]
    assert (format.choices, format.selector_bits) == (3, 2)
    for selector, name in enumerate(("int4-sym", "flint4", "pot4")):
        assert format.code_values(selector) == FORMATS[name].code_values()
        assert format.grid_codes(selector) == FORMATS[name].grid_codes()
    with pytest.raises(InputError, match=r"^selector 3 is outside 0 \.\. 2$"):
        format.code_values(3)


# OliVe.


def test_all_256_pairs():
    # Written out a second time: bias 2, E2M1 without subnormals.
    abfloat = (8, 12, 16, 24, 32, 48, 64, 96)
    for code0 in range(16):
        for code1 in range(16):
            pair = []
            for code, partner in ((code0, code1), (code1, code0)):
                if code == 8:
                    pair.append(0)
                elif partner == 8:
                    pair.append(-abfloat[code - 8] if code > 8 else abfloat[code])
                else:
                    pair.append(code - 16 if code > 8 else code)
            assert olive_pair_values(code0, code1) == tuple(pair)


def test_the_outliers_are_those_of_the_authors_grid():
    # Authors' outlier_value: 2**(5+e) * (1 + m/2) but for e = m = 0, where the int step is 4.
    grid = sorted(2 ** (5 + e) * (1 + m / 2) for e in range(4) for m in range(2))[1:]
    found = [olive_pair_values(code, 8)[0] for code in range(1, 8)]
    assert found == [value / 4 for value in grid]


def test_codes_of_pairs_mean_nothing_alone():
    message = r"^a code of olive4 has no value without its partner; use olive_pair_values$"
    for method in ("code_values", "grid", "grid_codes", "absmax"):
        with pytest.raises(InputError, match=message):
            getattr(FORMATS["olive4"], method)()


@pytest.mark.parametrize(("pair", "code"), [((16, 0), 16), ((0, -1), -1)])
def test_a_pair_of_wide_codes_is_refused(pair, code):
    with pytest.raises(InputError, match=rf"^code {code} of a pair is outside 0 \.\. 15$"):
        olive_pair_values(*pair)


# Block formats.


def test_block_formats():
    assert {name: FORMATS[name].block for name in NAMES if FORMATS[name].block} == {
        "mxfp4": 32,
        "mxint8": 32,
        "nvfp4": 16,
    }
    assert FORMATS["mxfp4"].levels == FORMATS["nvfp4"].levels == FORMATS["fp4"].levels
    for code in range(256):
        assert FORMATS["mxint8"].levels[code] == (code - 256 * (code > 127)) / 64
    assert FORMATS["mxint8"].grid()[0] == -127 / 64


def test_e8m0_scales():
    values = scale_code_values("e8m0")
    assert values[:255] == tuple(2.0**exponent for exponent in range(-127, 128))
    assert math.isnan(values[255]) and len(values) == 256


def test_e4m3_scales_are_torchs():
    codes = torch.arange(256, dtype=torch.uint8)
    expected = codes.view(torch.float8_e4m3fn).float().numpy()
    assert np.array_equal(scale_code_values("e4m3"), expected, equal_nan=True)


def test_number_scales_have_no_codes():
    with pytest.raises(InputError, match="^fp16 scales are stored as numbers, not as codes$"):
        scale_code_values("fp16")


@pytest.mark.parametrize(
    ("name", "group_size", "k", "message"),
    [
        (
            "mxfp4",
            64,
            None,
            "mxfp4 has blocks of 32 columns, so group_size (=64) must be 32; leave it out",
        ),
        (
            "nvfp4",
            10,
            20,
            "nvfp4 has blocks of 16 columns, so group_size (=10) must be 16; leave it out",
        ),
        (
            "olive4",
            7,
            20,
            "olive4 codes columns in pairs, so group_size (=7) must be even, or one group per row",
        ),
    ],
)
def test_group_sizes_that_a_format_does_not_have(name, group_size, k, message):
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        FORMATS[name].check_group_size(group_size, k)


def test_group_sizes_that_formats_have():
    FORMATS["mxfp4"].check_group_size(32)
    FORMATS["mxfp4"].check_group_size(20, 20)  # a row shorter than a block
    FORMATS["olive4"].check_group_size(8, 21)
    FORMATS["olive4"].check_group_size(21, 21)
    FORMATS["int4-sym"].check_group_size(7, 21)


@pytest.mark.parametrize(
    ("name", "scale_format", "message"),
    [
        ("fp4", "fp32", "scale_format 'fp32' is unknown; use one of fp16, int8"),
        ("fp4", "e8m0", "fp4 has no e8m0 scales; its scale_format is fp16 or int8"),
        ("mxfp4", "fp16", "mxfp4 has no fp16 scales; its scale_format is e8m0"),
        ("nvfp4", "e8m0", "nvfp4 has no e8m0 scales; its scale_format is e4m3"),
    ],
)
def test_scale_formats_that_a_format_does_not_have(name, scale_format, message):
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        FORMATS[name].check_scale_format(scale_format)


def test_normal_float_is_that_of_qlora():
    """Levels end at -1 and 1, 0 is exact, and on normal data it beats evenly spaced levels."""
    format = FORMATS["nf4"]
    grid = format.grid()
    assert len(grid) == 16 and (grid[0], grid[7], grid[15]) == (-1.0, 0.0, 1.0)
    assert grid[8] == 0.07958029955625534 and grid[6] == -0.09105003625154495
    assert format.selector_bits == 0 and format.stored_bits(1, 64, 64) == 64 * 4 + 16
    w = np.random.default_rng(0).standard_normal((200, 64)).astype(np.float32)
    errors = {n: quantize(w, n, group_size=64).relative_mse(w) for n in ("nf4", "fp4", "int4-sym")}
    assert min(errors, key=errors.__getitem__) == "nf4"
