"""Format rows: value tables, codes, special values, selectors and bits."""

import re

import pytest

from bitwright.quant import FORMATS, Format, InputError

NAMES = (
    *(f"int{bits}-{kind}" for kind in ("sym", "asym") for bits in range(2, 9)),
    *("fp3", "fp4", "fp6-e2m3", "fp6-e3m2", "fp3-er", "fp3-ea", "fp4-er", "fp4-ea"),
    *("bitmod3", "bitmod4"),
)
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


@pytest.mark.parametrize("name", NAMES)
def test_grid_codes_decode_to_the_grid(name):
    format = FORMATS[name]
    for selector in range(format.choices):
        grid, codes = format.grid(selector), format.grid_codes(selector)
        assert list(grid) == sorted(set(grid))
        assert [format.code_values(selector)[code] for code in codes] == list(grid)


@pytest.mark.parametrize("name", LEVELS)
def test_the_special_code_is_used_only_with_special_values(name):
    format = FORMATS[name]
    assert (format.special_code in format.grid_codes()) == bool(format.special_values)
    assert len(format.grid()) == 2**format.bits - (not format.special_values)


@pytest.mark.parametrize(
    ("name", "bits"), [("fp4", 0), ("int4-asym", 0), ("fp3-er", 1), ("fp4-ea", 1), ("bitmod3", 2)]
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
        ({"kind": "float"}, "format 'x': kind 'float' is not in ('int-sym', 'int-asym', 'levels')"),
        ({"bits": 9}, "format 'x': bits (=9) must be in 2 .. 8"),
        ({"bits": 1}, "format 'x': bits (=1) must be in 2 .. 8"),
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
            "format 'x': scale_format 'fp8' is not in ('fp16', 'int8')",
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
