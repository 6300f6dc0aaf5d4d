"""Rounding, choice of special values, scales: worked examples, twins, properties, errors."""

import re
from fractions import Fraction
from importlib import import_module
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from bitwright.quant import FORMATS, InputError, quantize, quantize_model, resolve_recipe

_rtn = import_module("bitwright.quant.algorithms.rtn")  # not part of the face
fold, rtn, rtn_reference = _rtn.fold, _rtn.rtn, _rtn.rtn_reference

#: Formats that `rtn` rounds, with any group size and scale format.
RTN = [name for name in FORMATS if FORMATS[name].block is None and name != "olive4"]
CHOOSING = [name for name in FORMATS if len(FORMATS[name].special_values) > 1]
DINT_SYM = [f"dint{bits}-sym" for bits in range(3, 9)]
DINT_ASYM = [name for name in FORMATS if FORMATS[name].kind == "dint-asym"]
PLAIN_LEVELS = ["fp3", "fp4", "fp6-e2m3", "fp6-e3m2", *DINT_SYM, "flint4", "flint5", "pot4"]
SYM = [name for name in FORMATS if FORMATS[name].kind == "int-sym"]
ASYM = [name for name in FORMATS if FORMATS[name].kind == "int-asym"]


def one_group(values, name, **options):
    """Codes, selector, zero point and scale of one group."""
    qt = quantize(np.array([values]), name, group_size=len(values), scale_format="fp16", **options)
    selector = None if qt.selectors is None else int(qt.selectors[0, 0])
    zero = None if qt.zero_points is None else int(qt.zero_points[0, 0])
    return qt.codes[0].tolist(), selector, zero, float(qt.group_scales[0, 0])


# Worked examples. Every group lies on the grid of one special value with scale 1, and on no other.
@pytest.mark.parametrize(
    ("name", "weights", "codes", "selector"),
    [
        # +3: max 4, delta = 4/4 = 1. With -3 the weight 3 would be a midpoint and become 2; with
        # +-6 delta is 2/3, whose multiples miss 3 and 2.
        ("bitmod3", [4, 3, 2, 1], [3, 4, 2, 1], 0),
        # -3: with +3, -3 lies halfway between -4 and -2 and becomes -4.
        ("bitmod3", [4, -3, 2, -1], [3, 4, 2, 5], 1),
        # +6: max 6, delta = 6/6 = 1. With +-3 delta is 1.5 and misses 4.
        ("bitmod3", [6, 4, -2, 1], [4, 3, 6, 1], 2),
        ("bitmod3", [-6, -4, 2, -1], [4, 7, 2, 5], 3),
        # FP4: the value 5, code 1000; -3 is {1, 101}.
        ("bitmod4", [6, 5, -3, 0.5], [7, 8, 13, 1], 0),
        ("bitmod4", [6, -5, -3, 0.5], [7, 8, 13, 1], 1),
        ("bitmod4", [8, 6, -3, 1.5], [8, 7, 13, 3], 2),
        ("bitmod4", [-8, 6, -3, 1.5], [8, 7, 13, 3], 3),
        ("fp3-er", [4, 3, 0, -1], [3, 4, 0, 5], 0),
        ("fp3-er", [-4, -3, 0, -1], [7, 4, 0, 5], 1),
        ("fp3-ea", [6, 1, 0, -4], [4, 1, 0, 7], 0),
        ("fp3-ea", [-6, 1, 0, -4], [4, 1, 0, 7], 1),
        ("fp4-er", [-6, 5, 1, 0], [15, 8, 2, 0], 0),
        ("fp4-er", [-6, -5, 1, 0], [15, 8, 2, 0], 1),
        ("fp4-ea", [8, 0.5, 0, 0], [8, 1, 0, 0], 0),
        ("fp4-ea", [-8, 0.5, 0, 0], [8, 1, 0, 0], 1),
    ],
)
def test_each_special_value_wins_its_group(name, weights, codes, selector):
    assert one_group(weights, name) == (codes, selector, None, 1.0)
    assert quantize([weights], name, 4, "fp16").dequantize().tolist() == [weights]


def test_the_smaller_error_wins_when_no_grid_fits():
    # Weights 4, 3, 3, -3, 2, 2, -2, -2 (max 4).
    # +3: delta 1; -3 is a midpoint and becomes -4: error 1. All others fit.      sum 1
    # -3: delta 1; 3 and 3 are midpoints and become 2: errors 1 + 1.              sum 2
    # +-6: delta 2/3; 3 -> 4.5 -> 4 * 2/3: error 1/9 each of three; +-2 -> +-3, halfway between
    #      +-2 and +-4: error (2/3)**2 = 4/9 each of four.              sum 3/9 + 16/9 = 19/9
    codes, selector, _, scale = one_group([4, 3, 3, -3, 2, 2, -2, -2], "bitmod3")
    assert (codes, selector, scale) == ([3, 4, 4, 7, 2, 2, 6, 6], 0, 1.0)


def test_an_exact_tie_goes_to_the_earlier_special_value():
    # As above with one 3: both +3 and -3 have error 1; +-6 has 2/9 + 16/9 = 2.
    assert one_group([4, 3, -3, 2, 2, -2, -2], "bitmod3")[1] == 0
    # Every grid fits: 0.
    assert one_group([0, 0, 0], "bitmod3")[1] == 0


@pytest.mark.parametrize("name", PLAIN_LEVELS)
def test_an_exact_midpoint_goes_to_the_lower_level(name):
    grid = FORMATS[name].grid()
    top = grid[-1]  # makes delta 1
    for lower, upper in zip(grid, grid[1:], strict=False):
        mid = np.float32((lower + upper) / 2)
        above, below = np.nextafter(mid, np.float32(999)), np.nextafter(mid, np.float32(-999))
        qt = quantize([[top, mid, above, below]], name, 4)
        assert qt.values().tolist() == [[top, lower, upper, lower]]


@pytest.mark.parametrize("name", CHOOSING)
def test_midpoints_beside_a_special_value_go_to_the_lower_level(name):
    # Every level of one extended grid, then all its midpoints, each once. Only one selector fits
    # the many repeated levels, so it wins.
    format = FORMATS[name]
    for selector in range(format.choices):
        grid = format.grid(selector)
        mids = [(low + high) / 2 for low, high in zip(grid, grid[1:], strict=False)]
        qt = quantize([[*grid * 40, *mids]], name, 10_000, "fp16")
        assert qt.selectors is not None and qt.selectors[0, 0] == selector
        assert qt.values()[0].tolist() == [*grid * 40, *grid[:-1]]


def test_fp3_midpoints_by_hand():
    # Levels -4 -2 -1 0 1 2 4; -3 -> -4, -1.5 -> -2, -0.5 -> -1, 0.5 -> 0, 1.5 -> 1, 3 -> 2.
    qt = quantize([[4, -3, -1.5, -0.5, 0.5, 1.5, 3]], "fp3", 7)
    assert qt.values().tolist() == [[4, -4, -2, -1, 0, 1, 2]]


def test_symmetric_integers_round_half_to_even():
    # delta = 7/7 = 1; -2 is 0b1110 = 14, -7 is 0b1001 = 9.
    weights = [7, 0.5, 1.5, 2.5, -0.5, -1.5, -7]
    assert one_group(weights, "int4-sym") == ([7, 0, 2, 2, 0, 14, 9], None, None, 1.0)


@pytest.mark.parametrize("name", SYM)
def test_symmetric_integers_never_reach_the_most_negative_code(name):
    limit = FORMATS[name].qmax
    assert quantize([[-1.0, 1.0]], name, 2).values().tolist() == [[-limit, limit]]


@pytest.mark.parametrize(
    ("weights", "codes", "zero"),
    [
        # delta = (2 - -1) / 3 = 1, zero = 1
        ([-1, 0, 1, 2], [0, 1, 2, 3], 1),
        # delta = (2.5 - -0.5) / 3 = 1; zero = 0.5 -> 0 (even), so -0.5 -> -0 + 0; 2.5 -> 2
        ([-0.5, 2.5, 0.0, 1.5], [0, 2, 0, 2], 0),
        # delta = 1; zero = 1.5 -> 2; -1.5 -> -2 + 2; 1.5 -> 2 + 2, clipped to 3
        ([-1.5, 1.5, 0.0, 0.5], [0, 3, 2, 2], 2),
        # all negative: the range is -3 .. 0, zero = 3; -1.5 -> -2 + 3
        ([-3, -1.5, -1, -3], [0, 1, 2, 0], 3),
        # all positive: the range is 0 .. 3
        ([3, 1, 2, 3], [3, 1, 2, 3], 0),
    ],
)
def test_asymmetric_integers_by_hand(weights, codes, zero):
    assert one_group(weights, "int2-asym") == (codes, None, zero, 1.0)


@pytest.mark.parametrize(
    ("weights", "codes"),
    [
        # delta = 6/6 = 1; +1/2 is 7, -1/2 is 9, -1 is 15, -6 is 10.
        ([6, 0.5, -0.5, 0.4, -0.3, 0.2, -0.2, -1, -6], [6, 7, 9, 7, 9, 0, 0, 15, 10]),
        # Midpoints go to the lower level: 0.25 -> 0, 0.75 -> 1/2, -0.25 -> -1/2, -0.75 -> -1,
        # 1.5 -> 1, -1.5 -> -2 (code 14).
        ([6, 0.25, 0.75, -0.25, -0.75, 1.5, -1.5], [6, 0, 7, 9, 15, 1, 14]),
    ],
)
def test_symmetric_dint_by_hand(weights, codes):
    assert one_group(weights, "dint4-sym") == (codes, None, None, 1.0)


@pytest.mark.parametrize(
    ("weights", "codes", "zero"),
    [
        # delta = (8 - -5) / 13 = 1, zero = 5; +1/2 is 14, -1/2 is 15.
        ([-5, 8, 0, 1, -1, 0.5, -0.5, 0.3, -0.7], [0, 13, 5, 6, 4, 14, 15, 14, 15], 5),
        # 1/4 and 3/4 exactly are integers: 0, 1, 0, -1; half steps go to the even one.
        ([-5, 8, 0.25, 0.75, -0.25, -0.75, 1.5, 2.5], [0, 13, 5, 6, 5, 4, 7, 7], 5),
        # zero = 0.5 -> 0: no level below 0, but -1/2 is still there.
        ([-0.5, 12.5, 0.5, -0.25], [15, 12, 14, 0], 0),
        # all positive, all negative: the range includes 0
        ([13, 1, 0.5], [13, 1, 14], 0),
        ([-13, -1, -0.5], [0, 12, 15], 13),
    ],
)
def test_asymmetric_dint_by_hand(weights, codes, zero):
    assert one_group(weights, "dint4-asym") == (codes, None, zero, 1.0)
    half = {14: 0.5, 15: -0.5}
    values = [half.get(code, code - zero) for code in codes]
    assert quantize([weights], "dint4-asym", 9).values().tolist() == [values]


@given(
    w=hnp.arrays(np.float32, st.integers(1, 12), elements=st.floats(-9, 9, width=32)),
    name=st.sampled_from(DINT_ASYM),
)
@settings(max_examples=300, deadline=None)
def test_asymmetric_dint_takes_the_nearest_value(w, name):
    rounded = rtn(w[None], FORMATS[name], len(w))
    delta, zero = rounded.deltas[0, 0], int(rounded.zero_points[0, 0])
    if delta < 2.0**-126:
        return  # a subnormal delta has few bits: levels do not span the weights
    values = [level - zero for level in range(FORMATS[name].qmax + 1)] + [0.5, -0.5]
    for weight, code in zip(w, rounded.codes[0], strict=True):
        x = Fraction(float(weight / delta))
        assert abs(x - Fraction(values[code])) == min(abs(x - Fraction(v)) for v in values)


def test_the_bitnet_oracle():
    # Worked in words: mean magnitude 4.16 / 16 = 0.26; |w| > 0.13 is a sign, the rest 0.
    w = [0.30, -0.05, -0.09, -0.48, 0.04, 0.34, 0.43, -0.18]
    w += [-0.48, 0.32, -0.17, -0.39, 0.02, 0.75, -0.01, 0.11]
    qt = quantize([w], "ternary", 16)
    assert qt.scales()[0, 0] == np.float16(0.26)
    assert qt.values().tolist() == [[1, 0, 0, -1, 0, 1, 1, -1, -1, 1, -1, -1, 0, 1, 0, 0]]
    assert qt.codes[0, :4].tolist() == [1, 0, 0, 3]


def test_ternary_ties_go_to_zero():
    # Mean magnitude (0.5 + 0.5 + 2 + 1) / 4 = 1, so +-0.5 are halfway: 0 is even.
    assert one_group([0.5, -0.5, 2, -1], "ternary") == ([0, 0, 1, 3], None, None, 1.0)


def test_binary_takes_zero_as_plus():
    # Mean magnitude (3 + 0 + 1 + 0) / 4 = 1; minus zero is not negative.
    assert one_group([3, 0, -1, -0.0], "binary") == ([1, 1, 0, 1], None, None, 1.0)
    zeros = quantize([[0.0, 0.0]], "binary", 2)
    assert zeros.codes.tolist() == [[1, 1]]
    assert zeros.dequantize().tolist() == [[0, 0]]


@pytest.mark.parametrize(
    ("name", "mse"),
    # One scale for 10**6 seeded normals. Binary: 1 - 2/pi. Ternary: threshold at half the mean.
    [("binary", 0.3634), ("ternary", 0.2635)],
)
def test_gaussian_error(name, mse):
    w = np.random.default_rng(0).normal(size=(1, 1_000_000)).astype(np.float32)
    assert quantize(w, name, w.size).relative_mse(w) == pytest.approx(mse, abs=5e-4)


@pytest.mark.parametrize(
    ("weights", "codes", "selector"),
    [
        # Integers 7, 5, 3, -6: neither flint (3 5 16) nor powers of two hold 5, 3, 6 of 7.
        ([7, 5, 3, -6], [7, 5, 3, 10], 0),
        # Flint: 16 is 100, 6 is 111, -8 is 1|101, 3 is 011; powers of two lack 6 and 3.
        ([16, 6, -8, 3, 1], [4, 7, 13, 3, 1], 1),
        # Powers of two: 64 is 111, 32 is 110, -1 is 1|001.
        ([64, 32, -1, 2, 4], [7, 6, 9, 2, 3], 2),
    ],
)
def test_ant_chooses_the_type_with_the_smallest_error(weights, codes, selector):
    assert one_group(weights, "ant4") == (codes, selector, None, 1.0)
    qt = quantize([weights], "ant4", 8)
    assert qt.dequantize().tolist() == [weights]
    w = np.random.default_rng(selector).standard_t(3, (20, 64)).astype(np.float32)
    chosen = quantize(w, "ant4", 64, "int8")
    types = [quantize(w, name, 64, "int8") for name in ("int4-sym", "flint4", "pot4")]
    assert chosen.selectors is not None
    for row, kind in enumerate(chosen.selectors[:, 0]):
        assert np.array_equal(chosen.codes[row], types[kind].codes[row])
        errors = [np.square(t.dequantize()[row] - w[row], dtype=np.float64).sum() for t in types]
        assert errors[kind] <= min(errors) * (1 + 1e-4)  # stored scales round a little


def test_zero_stays_zero_in_asymmetric_groups():
    w = np.random.default_rng(0).normal(size=(50, 8)) + np.linspace(-3, 3, 50)[:, None]
    w[:, 3] = 0.0
    for name in ASYM + DINT_ASYM:
        assert not quantize(w, name, 8).dequantize()[:, 3].any()


@pytest.mark.parametrize("name", RTN)
@pytest.mark.parametrize("scale_format", ["fp16", "int8"])
def test_an_all_zero_group_quantises_to_zeros(name, scale_format):
    w = np.array([[0.0, -0.0, 1.0, -2.0], [0.0, 0.0, 0.0, 0.0]])
    qt = quantize(w, name, 2, scale_format)
    zero = int(name == "binary")  # its codes are signs, and 0 counts as plus
    assert (qt.codes[0, :2] == zero).all() and (qt.codes[1] == zero).all()
    assert qt.scales()[0, 0] == 0 and not qt.scales()[1].any()
    assert not qt.dequantize()[0, :2].any() and not qt.dequantize()[1].any()


def test_int8_scales_by_hand():
    # FP4 groups of one weight: delta = |w|/6 = 255, 100, 0.5, 1.5, 0.
    # c = 255/255 = 1; q = delta, 0.5 -> 0 and 1.5 -> 2 (half to even).
    qt = quantize([[6 * 255, -600, 3, 9, 0]], "fp4", 1, "int8")
    assert qt.channel_scales is not None and qt.channel_scales.tolist() == [1.0]
    assert qt.group_scales.tolist() == [[255, 100, 0, 2, 0]]
    assert qt.dequantize().tolist() == [[1530, -600, 0, 12, 0]]


def test_codes_are_chosen_with_the_unquantised_scale():
    # Group 1 has delta 1.4, stored as 1 * c = 1. Its weight 2.0 is 1.43 deltas: level 1, although
    # 2 * c would be exact.
    qt = quantize([[255 * 4, 0, 5.6, 2.0]], "fp3", 2, "int8")
    assert qt.group_scales.tolist() == [[255, 1]]
    assert qt.values().tolist() == [[4, 0, 4, 1]]


def test_ragged_last_group_is_its_own_group():
    w = np.random.default_rng(0).normal(size=(4, 10))
    whole = quantize(w, "bitmod4", 4, "fp16")
    assert whole.groups == 3
    for group, columns in enumerate((slice(0, 4), slice(4, 8), slice(8, 10))):
        part = quantize(w[:, columns], "bitmod4", 4, "fp16")
        assert np.array_equal(part.codes, whole.codes[:, columns])
        assert np.array_equal(part.group_scales[:, 0], whole.group_scales[:, group])


@pytest.mark.parametrize(
    ("name", "group_size", "expected"),
    [
        ("bitmod3", None, 128),  # the default
        ("bitmod3", 7, 7),
        ("bitmod3", 1000, 300),  # never more than k
        ("w3-bitmod", None, 300),  # per channel
        ("w3g64-bitmod", None, 64),
        ("w3g64-bitmod", 32, 32),  # the argument goes before the recipe
    ],
)
def test_group_size(name, group_size, expected):
    assert quantize(np.ones((1, 300)), name, group_size).group_size == expected


@pytest.mark.parametrize(
    ("what", "scale_format", "expected"),
    [
        ("bitmod3", None, "int8"),
        ("fp3-er", None, "fp16"),
        ("w3g64-bitmod-s16", None, "fp16"),
        ("w4g64-fp-s8", None, "int8"),
        ("w3g64-bitmod-s16", "int8", "int8"),
        (FORMATS["bitmod4"], "fp16", "fp16"),
        (FORMATS["int4-sym"], None, "fp16"),
        (resolve_recipe("w4g64-int-sym-s8"), None, "int8"),
    ],
)
def test_scale_format(what, scale_format, expected):
    assert quantize(np.ones((1, 8)), what, scale_format=scale_format).scale_format == expected


def test_input_types_give_the_same_tensor():
    half = np.random.default_rng(0).normal(size=(3, 20)).astype(np.float16)
    expected = quantize(half.astype(np.float32), "bitmod3", 8)
    for w in (
        half,
        half.astype(np.float64),
        half.tolist(),
        np.asfortranarray(half.astype(np.float32)),
        torch.from_numpy(half),
        torch.from_numpy(half).double().requires_grad_(),
        torch.from_numpy(half).float().T.contiguous().T,
    ):
        assert quantize(w, "bitmod3", 8) == expected


def test_bfloat16_and_integer_input():
    w = [[1.0, -2.0, 4.0]]
    expected = quantize(w, "fp3", 3)
    assert quantize(torch.tensor(w, dtype=torch.bfloat16), "fp3", 3) == expected
    assert quantize(np.array(w, np.int8), "fp3", 3) == expected


def test_the_weights_are_left_alone():
    w = np.random.default_rng(0).normal(size=(2, 8)).astype(np.float32)
    before = w.copy()
    for name in FORMATS:
        quantize(w, name, FORMATS[name].block or 4)
    assert np.array_equal(w, before)


# The reference and its jitted twin.


def _cases():
    rng = np.random.default_rng(7)
    normal = rng.normal(size=(6, 45))
    spread = rng.normal(size=(5, 64)) * 10.0 ** rng.integers(-4, 3, (5, 64))
    return {
        "normal": normal * 0.02,
        "heavy tails": rng.standard_t(2, (6, 64)),
        "spread": spread,
        "negative only": -np.abs(normal),
        "positive only": np.abs(normal),
        "quarters": rng.integers(-16, 17, (40, 8)) / 4,  # many exact midpoints and ties
        "eighths": rng.integers(-48, 49, (40, 6)) / 8,
        "one value": np.full((2, 9), -0.3),
        "sparse": normal * (rng.random(normal.shape) < 0.1),
        "zeros": np.zeros((2, 9)),
        "one column": normal[:, :1],
        "tiny": normal * 1e-30,
        "huge": normal * 1e37,
        "subnormal": rng.integers(-9, 10, (30, 5)) * 1.4e-45,
    }


CASES = _cases()


MODES = [(name, False) for name in RTN] + [(name, True) for name in CHOOSING]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize(("name", "fp16_error"), MODES)
def test_the_twins_agree_in_every_code_scale_selector_and_zero_point(name, fp16_error, case):
    format = FORMATS[name]
    if fp16_error and case == "huge":
        case = "normal"  # float16 ends at 65504
    w = CASES[case].astype(np.float32)
    for group_size in (1, 8, 13, w.shape[1]):
        reference = rtn_reference(w, format, group_size, fp16_error)
        fast = rtn(w, format, group_size, fp16_error)
        for field in reference._fields:
            left, right = getattr(reference, field), getattr(fast, field)
            assert left.dtype == right.dtype
            assert np.array_equal(left, right), (field, group_size)


@pytest.mark.parametrize(
    "name",
    ["bitmod3", "fp4-er", "int4-sym", "int3-asym", "dint4-asym", "ternary", "binary", "ant4"],
)
def test_threads_do_not_change_the_answer(name):
    w = np.random.default_rng(3).normal(size=(1031, 520)).astype(np.float32)  # two threads' worth
    whole = rtn(w, FORMATS[name], 128)
    for row in (0, 514, 515, 516, 1030):
        alone = rtn_reference(w[row : row + 1], FORMATS[name], 128)
        for field in whole._fields:
            assert np.array_equal(getattr(whole, field)[row : row + 1], getattr(alone, field))


@given(
    w=hnp.arrays(
        np.float32,
        st.tuples(st.integers(1, 3), st.integers(1, 20)),
        elements=st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=True),
    ),
    name=st.sampled_from(RTN),
    group_size=st.integers(1, 20),
)
@settings(max_examples=300, deadline=None)
def test_the_twins_agree_on_anything(w, name, group_size):
    reference = rtn_reference(w, FORMATS[name], group_size)
    fast = rtn(w, FORMATS[name], group_size)
    for field in reference._fields:
        assert np.array_equal(getattr(reference, field), getattr(fast, field)), field


@pytest.mark.parametrize("name", CHOOSING)
def test_algorithm_1_in_exact_arithmetic(name):
    # BitMoD, Algorithm 1, in fractions: no rounding but that of delta and w / delta to float32.
    format = FORMATS[name]
    w = np.random.default_rng(11).normal(size=(30, 12)).astype(np.float32)
    qt = quantize(w, name, 12, "fp16")
    assert qt.selectors is not None
    for row, weights in enumerate(w):
        best = None
        for selector in range(format.choices):
            delta = np.float32(np.abs(weights).max() / np.float32(format.absmax(selector)))
            error = Fraction(0)
            levels = []
            for weight in weights:
                x = Fraction(float(weight / delta))
                level = min(format.grid(selector), key=lambda g, x=x: (abs(Fraction(g) - x), g))
                levels.append(level)
                error += (Fraction(float(weight)) - Fraction(level) * Fraction(float(delta))) ** 2
            if best is None or error < best[0]:
                best = (error, selector, levels)
        assert best is not None
        assert qt.selectors[row, 0] == best[1]
        assert qt.values()[row].tolist() == best[2]


def released(w, format, factor):
    """The released search in torch: half tensors, delta clipped, errors from 1e3 downwards."""
    best = torch.full((len(w),), 1e3, dtype=torch.float16)
    kept = torch.zeros_like(w)
    selectors = torch.zeros(len(w), dtype=torch.uint8)
    for selector in range(format.choices):
        grid = [factor * value for value in format.grid(selector)]
        mids = [(low + high) / 2 for low, high in zip(grid, grid[1:], strict=False)]
        scale = w.abs().amax(dim=-1, keepdim=True) / max(abs(value) for value in grid)
        scale = scale.clamp(min=1e-5, max=1e4)
        x = w / scale
        level = torch.full_like(w, grid[0])
        for mid, value in zip(mids, grid[1:], strict=True):
            level = torch.where(x > mid, value, level)
        quantised = level * scale
        error = (quantised - w).pow(2).mean(-1)
        better = error < best
        best = torch.where(better, error, best)
        selectors[better] = selector
        kept[better] = quantised[better]
    return kept, selectors


@pytest.mark.parametrize("name", CHOOSING)
@pytest.mark.parametrize("spread", [0.004, 0.02, 1.0])
def test_fp16_error_follows_the_released_quantiser(name, spread):
    # Squares are multiples of 2**-24, and 64 of them with a sum below 1 add exactly in float32 in
    # any order; for spread 1.0 the order can matter, so that case is drawn on a coarse grid.
    rng = np.random.default_rng(5)
    w = rng.normal(size=(300, 64)) * spread
    if spread == 1.0:
        w = np.round(w * 64) / 64
    half = w.astype(np.float16)
    format = FORMATS[name]
    factor = 2 if format.bits == 4 else 1
    kept, selectors = released(torch.from_numpy(half), format, factor)
    qt = quantize(w, name, 64, "fp16", fp16_error=True)
    assert qt.selectors is not None
    assert np.array_equal(qt.selectors[:, 0], selectors.numpy())
    # Level and scale are the same, so their product rounded to float16 is.
    assert np.array_equal(qt.dequantize().astype(np.float16), kept.numpy())


def test_fp16_error_chooses_differently_for_a_few_groups():
    w = np.random.default_rng(0).normal(size=(400, 128)) * 0.02
    left, right = (quantize(w, "bitmod3", fp16_error=option).selectors for option in (False, True))
    assert left is not None and right is not None
    assert 0 < np.mean(left != right) < 0.1


def test_fp16_error_clips_delta_as_released():
    # delta = max/4 below 1e-5 is raised to it (1.0014e-05 in float16); a zero group too.
    tiny = one_group([1e-6, 0, 0], "bitmod3", fp16_error=True)
    assert tiny == ([0, 0, 0], 0, None, float(np.float16(1e-5)))
    # FP4 tables are doubled, so in our units the limit is 2e-5.
    assert one_group([0, 0], "bitmod4", fp16_error=True)[3] == 2 * float(np.float16(1e-5))
    # 60000/4 is lowered to 1e4: x = 6, level 4 with +3, and 6 with +6; but errors of 1e3 and more
    # never count. 6 * 1e4 is exact.
    assert one_group([60000, 0], "bitmod3", fp16_error=True) == ([4, 0], 2, None, 1e4)


def test_fp16_error_of_1000_and_more_gives_zeros():
    # Multiples of 500 between levels: each grid has errors of the order of 100**2.
    weights = [4000.0, 2500.0, 1500.0, -2500.0, -1500.0, 3500.0]
    codes, selector, _, _ = one_group(weights, "bitmod3", fp16_error=True)
    assert (codes, selector) == ([0] * 6, 0)
    assert one_group(weights, "bitmod3")[0] != [0] * 6


def test_fold_adds_halves():
    # 7 terms: (1+5, 2+6, 3+7, 4) -> (6+10, 8+4) -> 16+12, each sum exact here.
    assert fold(np.arange(1.0, 8.0)) == 28
    # In float32 the order shows: 1e8 + 4 rounds to 1e8, 4 + 4 does not.
    assert fold(np.array([1e8, 4, 0, 4], np.float32)) == np.float32(1e8) + np.float32(8)
    assert fold(np.array([1e8, 0, 4, 4], np.float32)) == np.float32(1e8) + np.float32(4)


# Properties.

ABSMAX = [name for name in RTN if FORMATS[name].scale_rule == "absmax"]
WEIGHTS = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 3), st.integers(1, 24)),
    elements=st.floats(-8, 8, width=32).map(lambda x: round(x, 3)),
)


@given(w=WEIGHTS, name=st.sampled_from(ABSMAX), group_size=st.integers(1, 24))
@settings(max_examples=300, deadline=None)
def test_error_bound(w, name, group_size):
    format = FORMATS[name]
    qt = quantize(w, name, group_size, "fp16")
    delta = np.repeat(rtn(w, format, qt.group_size).deltas, qt.group_size, axis=1)[:, : qt.k]
    delta = delta.astype(np.float64)
    # Unquantised scale: half the widest gap; a special value that lies beyond the levels on one
    # side only (+6) leaves weights on the other (-6 -> -4) up to that much off. Asymmetric: half a
    # step, and half a step more where the zero point was rounded and the code clipped.
    steps = 0.5
    if format.kind == "levels":
        steps = max(
            max(
                [(high - low) / 2 for low, high in zip(grid, grid[1:], strict=False)]
                + [format.absmax(s) + grid[0], format.absmax(s) - grid[-1]]
            )
            for s in range(format.choices)
            for grid in [format.grid(s)]
        )
    elif format.zero_point_bits:
        steps = 1.0
    # Stored scale: within 2**-11 of delta, or 2**-25 for a float16 subnormal; float32 rounding of
    # w/delta, of delta and of the product is below 2**-21 of the largest value.
    largest = max(abs(value) for s in range(format.choices) for value in format.grid(s))
    bound = delta * (steps + largest * (2.0**-11 + 2.0**-21)) + largest * 2.0**-25
    assert (np.abs(qt.dequantize() - w.astype(np.float64)) <= bound).all()


@given(w=WEIGHTS, name=st.sampled_from(SYM + PLAIN_LEVELS))
@settings(max_examples=200, deadline=None)
def test_quantising_again_changes_nothing(w, name):
    # The largest weight of a group sits on the largest level L, so the second delta is
    # (L * s) / L with s a float16: product and quotient are exact, and so is every code. (With
    # special values the largest weight can lie on the side that has none.)
    first = quantize(w, name, 8)
    assert quantize(first.dequantize(), name, 8) == first


@given(w=WEIGHTS, name=st.sampled_from(CHOOSING))
@settings(max_examples=200, deadline=None)
def test_groups_on_their_largest_level_survive_a_second_pass(w, name):
    first = quantize(w, name, 100, "fp16")
    assert first.selectors is not None
    second = quantize(first.dequantize(), name, 100, "fp16").dequantize()
    for row in range(first.n):
        selector = int(first.selectors[row, 0])
        if np.abs(first.values()[row]).max() == first.format.absmax(selector):
            # Another selector may fit as well, with the float16 scale of its own delta.
            assert np.allclose(second[row], first.dequantize()[row], rtol=2.0**-10, atol=1e-6)


@given(
    w=WEIGHTS,
    name=st.sampled_from([*RTN, "olive4"]),
    exponent=st.integers(-60, 60),
    group=st.just(8),
)
@settings(max_examples=200, deadline=None)
def test_a_power_of_two_scales_only_the_scales(w, name, exponent, group):
    factor = np.float32(2.0**exponent)
    left, right = quantize(w, name, group, "int8"), quantize(w * factor, name, group, "int8")
    assert np.array_equal(left.codes, right.codes)
    assert np.array_equal(left.group_scales, right.group_scales)
    assert np.array_equal(left.scales() * factor, right.scales())
    assert np.array_equal(left.dequantize() * factor, right.dequantize())


@given(w=WEIGHTS, name=st.sampled_from(SYM))
@settings(max_examples=100, deadline=None)
def test_symmetric_integers_are_odd(w, name):
    assert np.array_equal(quantize(-w, name, 8).values(), -quantize(w, name, 8).values())


@given(w=WEIGHTS)
@settings(max_examples=100, deadline=None)
def test_int8_scales_are_within_half_a_channel_step(w):
    qt = quantize(w, "bitmod4", 4)
    assert qt.channel_scales is not None
    deltas = rtn(w, qt.format, qt.group_size).deltas
    step = qt.channel_scales[:, None].astype(np.float64)
    # Half a step, and float32 rounding of the quotient and the product.
    assert (np.abs(qt.scales() - deltas.astype(np.float64)) <= step * 0.5001).all()


@pytest.mark.parametrize("bits", [3, 4])
def test_more_special_values_never_cost_accuracy(bits):
    w = np.random.default_rng(1).standard_t(4, size=(64, 128)).astype(np.float32)
    names = [f"fp{bits}", f"fp{bits}-er", f"bitmod{bits}"]
    errors = [quantize(w, name, scale_format="fp16").relative_mse(w) for name in names]
    assert errors[2] < errors[1] < errors[0]


# Activations: tokens as rows.

ACTIVATIONS = ["int8-sym", "int4-sym", "int8-asym", "int4-asym", "flint4", "ant4", "olive4"]


@pytest.mark.parametrize("name", [*ACTIVATIONS, "mxfp4", "mxint8", "nvfp4"])
def test_activations(name):
    x = np.random.default_rng(0).normal(size=(5, 96)).astype(np.float32)
    x[2] = 0.0  # a row of zeros, between others
    x[3] *= 100.0
    group_size = FORMATS[name].block or 96
    qt = quantize(x, name, group_size)
    assert qt.shape == (5, 96) and qt.groups == 96 // group_size
    assert not qt.dequantize()[2].any()
    assert np.isfinite(qt.dequantize()).all()
    bound = 2e-4 if FORMATS[name].bits == 8 else 0.04
    for row in (0, 1, 3, 4):
        assert quantize(x[row : row + 1], name, group_size).relative_mse(x[row : row + 1]) < bound


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("magnitude", [1e8, 1e-9])
def test_activations_whose_scale_fp16_cannot_hold_are_refused(name, magnitude):
    x = np.array([[1.0, -0.5, 0.25, 0.75], [0, 0, 0, 0]]) * magnitude
    message = (
        r"^the scale of row 0, group 0 \(=.*\) is outside FP16 \(6e-08 .. 65504\); "
        r"use scale_format='int8' \(-s8 in a recipe\) or rescale the weights$"
    )
    with pytest.raises(InputError, match=message):
        quantize(x, name, 4)
    assert quantize(x, name, 4, "int8").relative_mse(x) < 0.05


# Bad input.


@pytest.mark.parametrize(
    ("w", "options", "message"),
    [
        (
            [[0.0, float("nan")]],
            {},
            "w[0, 1] is nan; weights must be finite float32 numbers",
        ),
        (
            [[0.0], [-float("inf")]],
            {},
            "w[1, 0] is -inf; weights must be finite float32 numbers",
        ),
        ([[1e300]], {}, "w[0, 0] is 1e+300; weights must be finite float32 numbers"),
        (
            torch.tensor([[float("nan")]]),
            {},
            "w[0, 0] is nan; weights must be finite float32 numbers",
        ),
        (
            [1.0, 2.0],
            {},
            "w has shape (2,); a matrix [output channels, input channels] is needed",
        ),
        (
            np.zeros((2, 0)),
            {},
            "w has shape (2, 0); a matrix [output channels, input channels] is needed",
        ),
        ([["a"]], {}, "w has type <U1; real numbers are needed"),
        ([[1j]], {}, "w has type complex128; real numbers are needed"),
        ([[1.0]], {"group_size": 0}, "group_size (=0) must be at least 1; 128 is usual"),
        ([[1.0]], {"group_size": -128}, "group_size (=-128) must be at least 1; 128 is usual"),
        (
            [[1.0]],
            {"scale_format": "fp8"},
            "scale_format 'fp8' is unknown; use one of fp16, int8",
        ),
        (
            [[1.0]],
            {"format_or_recipe": "w4g64-int-sym", "scale_format": "e8m0"},
            "int4-sym has no e8m0 scales; its scale_format is fp16 or int8",
        ),
        (
            [[1.0] * 64],
            {"format_or_recipe": "mxfp4", "group_size": 64},
            "mxfp4 has blocks of 32 columns, so group_size (=64) must be 32; leave it out",
        ),
        (
            [[1.0] * 64],
            {"format_or_recipe": "nvfp4", "scale_format": "fp16"},
            "nvfp4 has no fp16 scales; its scale_format is e4m3",
        ),
        (
            [[1.0] * 64],
            {"format_or_recipe": "olive4", "group_size": 7},
            "olive4 codes columns in pairs, so group_size (=7) must be even, or one group per row",
        ),
        (
            [[1.0]],
            {"format_or_recipe": "mxfp4", "fp16_error": True},
            "fp16_error follows the released search for special values, and mxfp4 has none; "
            "leave it out",
        ),
        (
            [[1.0]],
            {"format_or_recipe": "ant4", "fp16_error": True},
            "fp16_error follows the released search for special values, and ant4 has none; "
            "leave it out",
        ),
        (
            [[1.0, 2e38]],
            {"format_or_recipe": "nvfp4"},
            "nvfp4 needs a largest magnitude in 6.2e-33 .. 1.7e+38, that of w is 2e+38; rescale it",
        ),
        (
            [[1e-40, 0.0]],
            {"format_or_recipe": "nvfp4"},
            "nvfp4 needs a largest magnitude in 6.2e-33 .. 1.7e+38, that of w is 1e-40; rescale it",
        ),
        (
            [[1.0]],
            {"format_or_recipe": "bitmood3"},
            "unknown recipe 'bitmood3'; nearest: bitmod3, bitmod4, w4g128-bitmod",
        ),
        (
            [[1.0]],
            {"format_or_recipe": "fp16"},
            "recipe 'fp16' leaves weights as they are; nothing to quantise",
        ),
        (
            [[1.0], [4e5]],
            {"format_or_recipe": "fp3"},
            "the scale of row 1, group 0 (=1e+05) is outside FP16 (6e-08 .. 65504); "
            "use scale_format='int8' (-s8 in a recipe) or rescale the weights",
        ),
        (
            [[1.0, 1e-9]],
            {"format_or_recipe": "int8-sym", "group_size": 1},
            "the scale of row 0, group 1 (=7.87e-12) is outside FP16 (6e-08 .. 65504); "
            "use scale_format='int8' (-s8 in a recipe) or rescale the weights",
        ),
        (
            [[3e38, -3e38]],
            {"format_or_recipe": "int4-asym", "scale_format": "int8"},
            "the spread of a group of weights exceeds float32; scale the weights down",
        ),
        (
            [[1.0]],
            {"format_or_recipe": "int4-sym", "fp16_error": True},
            "fp16_error follows the released search for special values, and int4-sym has none; "
            "leave it out",
        ),
        (
            [[7e4]],
            {"fp16_error": True},
            "fp16_error needs weights within +-65504, the largest is 70000.0",
        ),
    ],
)
def test_bad_input_is_told_in_one_line(w, options, message):
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        quantize(w, **{"format_or_recipe": "bitmod3"} | options)


def test_the_int8_scale_that_the_message_offers_works():
    qt = quantize([[1.0, 1e-9]], "int8-sym", 1, "int8")
    assert qt.dequantize()[0].tolist() == [pytest.approx(1.0), 0.0]


# Whole models.


def fake_model(**weights):
    return SimpleNamespace(
        linear_names=lambda: tuple(weights), weight=lambda name: torch.tensor(weights[name])
    )


def test_quantize_model():
    rng = np.random.default_rng(0)
    weights = {name: rng.normal(size=(4, 200)).astype(np.float32) for name in ("b", "a")}
    calls = []
    tensors = quantize_model(
        fake_model(**weights), "w4g64-bitmod", lambda *call: calls.append(call)
    )
    assert list(tensors) == ["b", "a"]
    for name, tensor in tensors.items():
        assert tensor == quantize(weights[name], "bitmod4", 64)
    assert calls == [(1, 2, "b"), (2, 2, "a")]


def test_quantize_model_with_fp16_gives_nothing():
    assert quantize_model(fake_model(a=[[1.0]]), resolve_recipe("fp16")) == {}


def test_quantize_model_names_the_layer():
    message = "layer a: w[0, 1] is nan; weights must be finite float32 numbers"
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        quantize_model(fake_model(a=[[1.0, float("nan")]]), "bitmod3")
