"""Activations, keys and values: names, one scale per token, group or tensor, static ranges."""

import itertools
import re
from importlib import import_module

import numpy as np
import pydantic
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bitwright.quant import (
    FORMATS,
    ActivationRecipe,
    InputError,
    KvRecipe,
    QuantizedTensor,
    fake_activations,
    fake_kv,
    parse_activation,
    parse_kv,
    quantize,
    quantize_activations,
)
from bitwright.sim import PES

RangeObserver = import_module("bitwright.quant.activations").RangeObserver  # not in the face

FREE = [name for name, row in FORMATS.items() if row.block is None]
BLOCK = [name for name, row in FORMATS.items() if row.block is not None]
#: Formats whose scale follows from a range alone, so that the range can be static.
RANGED = [
    name
    for name in FREE
    if FORMATS[name].choices == 1
    and FORMATS[name].scale_rule == "absmax"
    and name not in ("olive4", "nf4")
]


def acts(m=6, k=20, seed=0):
    """Activations with a few outliers, of both signs."""
    rng = np.random.default_rng(seed)
    x = rng.normal(0.1, 1.0, (m, k))
    x[:, 3] *= 20
    return x.astype(np.float32)


# Names.


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("a8", {"format": "int8-sym"}),
        ("a8-asym", {"format": "int8-asym"}),
        ("a6-asym", {"format": "int6-asym"}),
        ("a4-asym-g64", {"format": "int4-asym", "granularity": "group", "group_size": 64}),
        ("a8-tensor", {"format": "int8-sym", "granularity": "tensor"}),
        ("a8-tensor-static", {"format": "int8-sym", "granularity": "tensor", "static": True}),
        ("a8-fp-e4m3", {"format": "fp8-e4m3"}),
        ("a8-fp-e5m2-g32", {"format": "fp8-e5m2", "granularity": "group", "group_size": 32}),
        ("a2b-asym", {"format": "int2b-asym"}),
        ("a4-bitmod", {"format": "bitmod4"}),
        ("a3-fp-er", {"format": "fp3-er"}),
        ("a4-dint-asym", {"format": "dint4-asym"}),
        ("a2-ternary", {"format": "ternary"}),
        ("a1-binary", {"format": "binary"}),
        ("a4-mxfp", {"format": "mxfp4"}),
        ("a4-nvfp", {"format": "nvfp4", "granularity": "group", "group_size": 16}),
    ],
)
def test_activation_names(text, fields):
    assert parse_activation(text) == ActivationRecipe(**fields)
    assert ActivationRecipe(**fields).name == text


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("kv8", {"format": "int8-sym"}),
        ("kv4-asym", {"format": "int4-asym"}),
        ("kv4-asym-g32", {"format": "int4-asym", "group_size": 32}),
        ("kv4-bitmod", {"format": "bitmod4"}),
        ("kv3-bitmod-g32-s16", {"format": "bitmod3", "group_size": 32, "scale_format": "fp16"}),
        ("kv8-s8", {"format": "int8-sym", "scale_format": "int8"}),
        ("kv8-fp-e4m3", {"format": "fp8-e4m3"}),
        ("kv4-mxfp", {"format": "mxfp4", "group_size": 32}),
    ],
)
def test_kv_names(text, fields):
    assert parse_kv(text) == KvRecipe(**fields)
    assert KvRecipe(**fields).name == text


def every_activation():
    for name in FREE:
        yield ActivationRecipe(format=name)
        yield ActivationRecipe(format=name, granularity="tensor")
        for size in (2, 128):
            yield ActivationRecipe(format=name, granularity="group", group_size=size)
    for name in RANGED:
        yield ActivationRecipe(format=name, granularity="tensor", static=True)
    yield from (ActivationRecipe(format=name) for name in BLOCK)


def every_kv():
    for name, size, scale in itertools.product(FREE, (None, 2, 64), (None, "int8", "fp16")):
        yield KvRecipe(format=name, group_size=size, scale_format=scale)
    yield from (KvRecipe(format=name) for name in ("mxfp4", "mxint8"))


def test_every_activation_recipe_is_parsed_from_its_name():
    recipes = list(every_activation())
    for recipe in recipes:
        assert parse_activation(recipe.name) == recipe
        assert ActivationRecipe(**recipe.model_dump()) == recipe
    assert len({recipe.name for recipe in recipes}) == len(recipes)


def test_every_kv_recipe_is_parsed_from_its_name():
    recipes = set(every_kv())
    for recipe in recipes:
        assert parse_kv(recipe.name) == recipe
        assert KvRecipe(**recipe.model_dump()) == recipe
    assert len({recipe.name for recipe in recipes}) == len(recipes)


def test_the_long_form_of_integers_is_read_too():
    assert parse_activation("a8-int-sym-tensor").name == "a8-tensor"
    assert parse_kv("kv4-int-asym").name == "kv4-asym"
    assert parse_activation("a4-mxfp-g32").name == "a4-mxfp"


@pytest.mark.parametrize(
    ("parse", "text", "message"),
    [
        (parse_activation, "a9", "unknown activations 'a9'; nearest: a8, a7, a6"),
        (
            parse_activation,
            "a8-asim",
            "unknown activations 'a8-asim'; nearest: a8-asym, a7-asym, a6-asym",
        ),
        (parse_activation, "a16", "unknown activations 'a16'; 16 bits are no recipe: leave it out"),
        (
            parse_activation,
            "int8 please",
            "unknown activations 'int8 please'; such names are a8, a8-asym, a4-asym-g64 or "
            "a8-tensor, for example",
        ),
        (parse_activation, "a8-g0", "'a8-g0': group size 0 must be at least 1"),
        (
            parse_activation,
            "a4-olive-g7",
            "activations 'a4-olive-g7': olive4 codes columns in pairs, so group_size (=7) must be "
            "even, or one group per row",
        ),
        (
            parse_activation,
            "a4-mxfp-g64",
            "activations 'a4-mxfp-g64': mxfp4 has blocks of 32 columns, so group_size (=64) must "
            "be 32; leave it out",
        ),
        (
            parse_activation,
            "a4-mxfp-tensor",
            "activations 'a4-mxfp-tensor': mxfp4 has blocks of 32 columns, so granularity 'tensor' "
            "must be 'group'; leave it out",
        ),
        (
            parse_activation,
            "a4-bitmod-tensor-static",
            "activations 'a4-bitmod-tensor-static': bitmod4 takes more from the data than its "
            "range, so it cannot be static; leave -static out",
        ),
        (parse_kv, "kv9", "unknown keys and values 'kv9'; nearest: kv8, kv7, kv6"),
        (parse_kv, "kv16", "unknown keys and values 'kv16'; 16 bits are no recipe: leave it out"),
        (
            parse_kv,
            "cache",
            "unknown keys and values 'cache'; such names are kv8, kv4-asym or kv4-bitmod-g32, for "
            "example",
        ),
        (parse_kv, "kv8-g0", "'kv8-g0': group size 0 must be at least 1"),
        (
            parse_kv,
            "kv4-nvfp",
            "keys and values 'kv4-nvfp': nvfp4 has one scale for a whole tensor, and a cached "
            "vector must not depend on later ones; use mxfp4",
        ),
        (
            parse_kv,
            "kv4-mxfp-s8",
            "keys and values 'kv4-mxfp-s8': mxfp4 has no int8 scales; its scale_format is e8m0",
        ),
    ],
)
def test_names_that_are_none(parse, text, message):
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        parse(text)


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        (ActivationRecipe, {"format": "int4-asm"}, "unknown format 'int4-asm'; nearest: int4-asym"),
        (KvRecipe, {"format": "xyzzy"}, "unknown format 'xyzzy'; there are int2-sym, "),
        (
            ActivationRecipe,
            {"format": "int8-sym", "granularity": "group"},
            "granularity 'group' needs a group_size; 128 is usual",
        ),
        (
            ActivationRecipe,
            {"format": "int8-sym", "group_size": 64},
            "granularity 'token' has no group_size (=64); leave it out, or use granularity 'group'",
        ),
        (
            ActivationRecipe,
            {"format": "int8-sym", "static": True},
            "static ranges need granularity 'tensor', not 'token'; a token's or group's range is "
            "known only when it comes",
        ),
        (ActivationRecipe, {"format": "int8-sym", "granularity": "row"}, "granularity"),
        (ActivationRecipe, {"format": "int8-sym", "bits": 8}, "Extra inputs are not permitted"),
        (ActivationRecipe, {}, "Field required"),
        (KvRecipe, {"format": "int8-sym", "group_size": 0}, "greater than or equal to 1"),
        (KvRecipe, {"format": "int8-sym", "static": True}, "Extra inputs are not permitted"),
    ],
)
def test_fields_that_contradict_each_other(kind, fields, message):
    with pytest.raises(pydantic.ValidationError, match=re.escape(message)):
        kind(**fields)


def test_recipes_do_not_change():
    with pytest.raises(pydantic.ValidationError, match="frozen"):
        parse_activation("a8").format = "int4-sym"


# Per token and per group.


@pytest.mark.parametrize("name", FORMATS)
def test_per_token_is_quantize_with_one_group_a_row(name):
    x = acts()
    wanted = quantize(x, name, group_size=min(20, FORMATS[name].block or 20))
    assert quantize_activations(x, ActivationRecipe(format=name)) == wanted


@pytest.mark.parametrize("name", FREE)
def test_per_token_is_quantize_where_scales_vanish(name):
    # Row 0 is zero; max|x| of row 1 is the smallest float32, whose scale rounds to 0 or stays.
    x = np.array([[0.0, -0.0, 0.0], [1e-45, -1e-45, 0.0], [3.0, -1.0, 0.5]], np.float32)
    try:
        wanted = quantize(x, name, 3)
    except InputError:
        return
    assert quantize_activations(x, ActivationRecipe(format=name)) == wanted


@given(data=st.data(), name=st.sampled_from(RANGED), m=st.integers(1, 3), k=st.integers(1, 6))
def test_per_token_is_quantize_on_any_numbers(data, name, m, k):
    number = st.integers(-24, 24).map(lambda v: v / 4) | st.floats(-1e4, 1e4, width=32)
    x = np.array(data.draw(st.lists(number, min_size=m * k, max_size=m * k))).reshape(m, k)
    try:
        wanted = quantize(x, name, k)
    except InputError as error:  # a scale outside FP16
        message = str(error).partition(",")[0]
        with pytest.raises(InputError, match=re.escape(message)):
            quantize_activations(x, ActivationRecipe(format=name))
        return
    assert quantize_activations(x, ActivationRecipe(format=name)) == wanted


@pytest.mark.parametrize("name", FREE)
@pytest.mark.parametrize("size", [2, 8, 64])  # 8 leaves a ragged group of 4; 64 is more than k
def test_per_group_is_quantize(name, size):
    recipe = ActivationRecipe(format=name, granularity="group", group_size=size)
    assert quantize_activations(acts(), recipe) == quantize(acts(), name, group_size=size)


@pytest.mark.parametrize(("pe", "name"), [("dint4", "a8"), ("btc", "a8-asym")])
def test_per_token_is_what_a_pe_takes(pe, name):
    x = acts(5, 40)
    w = quantize(acts(3, 40, seed=1), {"dint4": "dint4-sym", "btc": "int2-asym"}[pe], 40)
    assert quantize_activations(x, parse_activation(name)) == PES[pe].activations(x, w)


# Per tensor.


@pytest.mark.parametrize("name", FREE)
@pytest.mark.parametrize("shift", [0.0, 5.0, -5.0])
def test_per_tensor_is_quantize_of_one_long_row(name, shift):
    x = acts(7, 30) + np.float32(shift)
    qt = quantize_activations(x, ActivationRecipe(format=name, granularity="tensor"))
    flat = quantize(x.reshape(1, -1), name, group_size=x.size)
    assert np.array_equal(qt.codes.reshape(1, -1), flat.codes)
    assert np.array_equal(qt.dequantize().reshape(1, -1), flat.dequantize())
    for field in ("group_scales", "channel_scales", "zero_points", "selectors"):
        every, one = getattr(qt, field), getattr(flat, field)
        assert (every is None) == (one is None)
        if one is not None:
            assert every.dtype == one.dtype and len(every) == 7 and (every == one).all()


@given(
    name=st.sampled_from(FREE),
    m=st.integers(1, 4),
    half=st.integers(1, 4),
    data=st.data(),
)
def test_per_tensor_is_quantize_of_one_long_row_on_any_numbers(name, m, half, data):
    # Few distinct magnitudes make ties and zeros likely.
    number = st.integers(-24, 24).map(lambda v: v / 4) | st.floats(-100, 100, width=32)
    values = data.draw(st.lists(number, min_size=2 * m * half, max_size=2 * m * half))
    x = np.array(values, np.float32).reshape(m, 2 * half)
    try:
        flat = quantize(x.reshape(1, -1), name, group_size=x.size)
    except InputError:  # a scale outside FP16
        return
    qt = quantize_activations(x, ActivationRecipe(format=name, granularity="tensor"))
    assert np.array_equal(qt.codes.reshape(1, -1), flat.codes)
    assert np.array_equal(qt.scales(), np.repeat(flat.scales(), m, 0))


@pytest.mark.parametrize("name", [n for n in RANGED if FORMATS[n].kind == "levels"])
def test_levels_round_at_every_midpoint(name):
    # Exact midpoints, their two neighbours among float32, and every level; the scale is 1.
    grid = np.array(FORMATS[name].grid(), np.float32)
    mids = (grid[1:] + grid[:-1]) / np.float32(2)
    ends = np.full_like(mids, np.inf)
    x = np.concatenate([grid, mids, np.nextafter(mids, ends), np.nextafter(mids, -ends), [0, -0.0]])
    recipe = ActivationRecipe(format=name, granularity="tensor", static=True)
    qt = quantize_activations(x[None].astype(np.float32), recipe, (grid[0], grid[-1]))
    upper, lower = grid[1:], grid[:-1]
    assert np.array_equal(qt.dequantize()[0], [*grid, *lower, *upper, *lower, 0, 0])


def test_a_large_tensor_is_rounded_block_by_block():
    x = acts(300, 256)  # 76800 numbers, more than one block
    for name in ("int8-sym", "int4-asym", "fp8-e4m3", "dint4-asym"):
        qt = quantize_activations(x, ActivationRecipe(format=name, granularity="tensor"))
        flat = quantize(x.reshape(1, -1), name, group_size=x.size)
        assert np.array_equal(qt.codes.reshape(1, -1), flat.codes)


@pytest.mark.parametrize("name", FREE)
def test_zeros_stay_zeros(name):
    for text in ("", "-tensor"):
        recipe = parse_activation(ActivationRecipe(format=name).name + text)
        assert not fake_activations(torch.zeros(3, 4), recipe).any()


def test_pairs_do_not_cross_tokens():
    recipe = parse_activation("a4-olive-tensor")
    message = (
        r"^a4-olive-tensor: olive4 codes columns in pairs, so k \(=3\) must be even for one scale "
        r"per tensor$"
    )
    with pytest.raises(InputError, match=message):
        quantize_activations(np.ones((2, 3)), recipe)
    assert quantize_activations(np.ones((1, 3)), recipe).shape == (1, 3)


# Static ranges.


def test_symmetric_saturation_by_hand():
    # Limits -7 .. 2: delta = 7/7 = 1. 7.6 and 100 become 7, -7.6 and -100 become -7.
    x = np.array([[7.4, 7.6, 100.0], [-7.4, -7.6, -100.0]])
    qt = quantize_activations(x, parse_activation("a4-tensor-static"), (-7.0, 2.0))
    assert qt.values().tolist() == [[7, 7, 7], [-7, -7, -7]]
    assert qt.group_scales.tolist() == [[1], [1]]


def test_asymmetric_saturation_by_hand():
    # Limits -5 .. 10: delta = 15/15 = 1, zero point 5. Codes 0 .. 15 mean -5 .. 10; 3.5 lies
    # halfway, and 4 is even.
    x = np.array([[-6.0, -5.0, 3.5, 10.0, 11.0, 1e30]])
    qt = quantize_activations(x, parse_activation("a4-asym-tensor-static"), (-5.0, 10.0))
    assert (qt.codes.tolist(), qt.zero_points.tolist()) == ([[0, 0, 9, 15, 15, 15]], [[5]])
    assert qt.dequantize().tolist() == [[-5, -5, 4, 10, 10, 10]]


def test_saturation_reaches_the_last_code_beside_a_rounded_zero_point():
    # Limits -0.5 .. 14.5: delta 1, zero point round(0.5) = 0 (even), and 14.5 itself gets
    # round(14.5) = 14; what lies beyond reaches 15, for codes are clipped and not numbers.
    x = np.array([[14.5, 15.0, 99.0]])
    qt = quantize_activations(x, parse_activation("a4-asym-tensor-static"), (-0.5, 14.5))
    assert qt.codes.tolist() == [[14, 15, 15]]


def test_level_and_dint_saturation_by_hand():
    x = np.array([[500.0, -1e9, 448.0, 440.0]])
    fp8 = quantize_activations(x, parse_activation("a8-fp-e4m3-tensor-static"), (0.0, 448.0))
    # 440 is 448 - 8, over halfway down to 416: it goes up. {0, 1111, 110} is 126.
    assert fp8.codes.tolist() == [[126, 254, 126, 126]]
    # dINT3, levels 0 .. 5 around zero point 2: -2 .. 3; half a step is code 6, minus half 7.
    x = np.array([[9.0, -9.0, 0.5, -0.5, 0.25, 0.75]])
    dint = quantize_activations(x, parse_activation("a3-dint-asym-tensor-static"), (-2.0, 3.0))
    assert dint.codes.tolist() == [[5, 0, 6, 7, 2, 3]]


def test_bit_balance_by_hand():
    # Five levels: limits -2 .. 2 give delta 1 and zero point 2.
    x = np.array([[-3.0, -2.0, -0.6, 0.0, 1.4, 2.0, 3.0]])
    qt = quantize_activations(x, parse_activation("a2b-asym-tensor-static"), (-2.0, 2.0))
    assert (qt.codes.tolist(), qt.zero_points.tolist()) == ([[0, 0, 1, 2, 3, 4, 4]], [[2]])


@pytest.mark.parametrize("name", RANGED)
def test_a_static_range_equal_to_the_data_changes_nothing(name):
    x = acts()
    moving = ActivationRecipe(format=name, granularity="tensor")
    fixed = ActivationRecipe(format=name, granularity="tensor", static=True)
    limits = (float(x.min()), float(x.max()))
    assert quantize_activations(x, fixed, limits) == quantize_activations(x, moving)


@pytest.mark.parametrize("name", RANGED)
def test_static_codes_do_not_depend_on_other_tokens(name):
    x, fixed = acts(), ActivationRecipe(format=name, granularity="tensor", static=True)
    whole = quantize_activations(x, fixed, (-1.0, 2.0))
    for row in range(len(x)):
        assert whole.rows([row]) == quantize_activations(x[row : row + 1], fixed, (-1.0, 2.0))


def test_a_range_is_extended_to_zero():
    x = acts()
    recipe = parse_activation("a8-asym-tensor-static")
    near, far = (quantize_activations(x, recipe, limits) for limits in ((3.0, 6.0), (0.0, 6.0)))
    assert near == far
    empty = quantize_activations(x, recipe, (0.0, 0.0))
    assert not empty.codes.any() and not empty.group_scales.any()


@pytest.mark.parametrize(
    ("name", "limits", "message"),
    [
        (
            "a8-tensor-static",
            None,
            "activations a8-tensor-static need limits, the range that calibration has seen; see "
            "RangeObserver",
        ),
        (
            "a8-tensor",
            (0.0, 1.0),
            "activations a8-tensor find their range themselves; leave limits out, or use a recipe "
            "with -static",
        ),
        (
            "a8-tensor-static",
            (1.0, -1.0),
            "limits (1.0, -1.0) must be finite, the smaller one first",
        ),
        (
            "a8-tensor-static",
            (0.0, float("nan")),
            "limits (0.0, nan) must be finite, the smaller one first",
        ),
        (
            "a8-tensor-static",
            (0.0, 1e-9),
            "a8-tensor-static: the scale (=7.87e-12) is outside FP16 (6e-08 .. 65504); rescale x",
        ),
        (
            "a8-asym-tensor-static",
            (-3e38, 3e38),
            "a8-asym-tensor-static: the scale (=inf) is outside FP16 (6e-08 .. 65504); rescale x",
        ),
    ],
)
def test_limits_that_do_not_fit(name, limits, message):
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        quantize_activations(np.ones((1, 2)), parse_activation(name), limits)


def test_range_observer():
    observer = RangeObserver()
    with pytest.raises(InputError, match="^no activations were seen; run calibration text through"):
        _ = observer.limits
    observer.update(torch.tensor([[[2.0, 5.0]]]))
    assert observer.limits == (0.0, 5.0)
    observer.update(np.float32([-1.5]))
    observer.update(np.array([[1.0, 2.0]]))
    assert observer.limits == (-1.5, 5.0)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (
            [[0.0, 1.0], [np.nan, 0.0]],
            "activation of token 1, channel 0 is nan; finite float32 numbers are needed",
        ),
        (np.zeros((0, 3)), "activations have shape (0, 3); [tokens, channels] is needed"),
    ],
)
def test_an_observer_takes_finite_numbers(x, message):
    observer = RangeObserver()
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        observer.update(x)


# Fake quantisation.


@pytest.mark.parametrize("name", ["a8", "a4-asym-g8", "a8-tensor", "a8-fp-e4m3", "a4-mxfp"])
@pytest.mark.parametrize("shape", [(20,), (6, 20), (2, 3, 20)])
def test_fake_activations_keep_the_shape(name, shape):
    x = torch.from_numpy(acts(6 if len(shape) > 1 else 1)).reshape(shape)
    kept = x.clone()
    y = fake_activations(x, parse_activation(name))
    rows = quantize_activations(x.reshape(-1, 20), parse_activation(name)).dequantize()
    assert y.shape == x.shape and y.dtype == torch.float32
    assert np.array_equal(y.reshape(-1, 20).numpy(), rows)
    assert torch.equal(x, kept)  # the input is as it was


def test_fake_activations_of_other_types_and_strides():
    x = torch.from_numpy(acts())
    wanted = fake_activations(x, parse_activation("a8"))
    strided = x.T.contiguous().T.requires_grad_()
    assert torch.equal(fake_activations(strided, parse_activation("a8")), wanted)
    half = fake_activations(x.bfloat16(), parse_activation("a8"))
    assert torch.equal(half, fake_activations(x.bfloat16().float(), parse_activation("a8")))


def test_static_fake_activations_saturate():
    y = fake_activations(
        torch.tensor([3.0, -300.0]), parse_activation("a8-tensor-static"), (0, 127)
    )
    assert y.tolist() == [3, -127]


@pytest.mark.parametrize("name", ["a8", "a8-asym", "a8-fp-e4m3"])
def test_the_error_is_at_most_half_a_step(name):
    # Half the largest distance of two levels, and what storing the scale as float16 moves a level:
    # 2**-11 of it, and no level lies more than half a step beyond the largest number. The rest of
    # 2**-10 steps is that of `step` being taken from the stored scale, and float32 rounding.
    recipe = parse_activation(name)
    x = acts(8, 64)
    qt = quantize_activations(x, recipe)
    grid = np.array(recipe.format_obj.grid())
    step = np.diff(grid).max() * qt.scales()
    largest = np.abs(x).max(axis=1, keepdims=True)
    assert (np.abs(qt.dequantize() - x) <= step * (0.5 + 2**-10) + largest * 2**-11).all()


# Keys and values.


@pytest.mark.parametrize("name", [*FREE, "mxfp4", "mxint8"])
def test_every_head_of_every_token_is_quantised_on_its_own(name):
    y = torch.from_numpy(acts(2 * 3 * 5, 40)).reshape(2, 3, 5, 40)
    recipe = KvRecipe(format=name)
    fake = fake_kv(y, recipe)
    row = FORMATS[name]
    rows = quantize(y.reshape(-1, 40), name, row.block or 40, row.scale_format)
    assert np.array_equal(fake.reshape(-1, 40).numpy(), rows.dequantize())
    assert fake.shape == y.shape and fake.dtype == torch.float32
    for batch, head, position in itertools.product(range(2), range(3), range(5)):
        one = y[batch : batch + 1, head : head + 1, position : position + 1]
        alone = fake_kv(one, recipe)[0, 0, 0]
        assert torch.equal(alone, fake[batch, head, position])


@pytest.mark.parametrize(
    ("name", "size", "scale"),
    [
        ("kv4-asym-g8", 8, "fp16"),
        ("kv4-asym-g64", 20, "fp16"),  # beyond the head: one group
        ("kv4-bitmod-g8", 8, "int8"),
        ("kv4-bitmod-g8-s16", 8, "fp16"),
        ("kv8-g8-s8", 8, "int8"),
    ],
)
def test_groups_along_the_head(name, size, scale):
    y = torch.from_numpy(acts(12)).reshape(1, 4, 3, 20)
    recipe = parse_kv(name)
    wanted = quantize(y.reshape(-1, 20), recipe.format, size, scale).dequantize()
    assert np.array_equal(fake_kv(y, recipe).reshape(-1, 20).numpy(), wanted)


def test_kv_bits():
    # 64 * 8 + one FP16 scale.
    assert parse_kv("kv8").stored_bits(3, 64) == 3 * (512 + 16)
    # 64 * 4, two groups of an 8-bit scale and a 2-bit selector, one float32 channel scale.
    assert parse_kv("kv4-bitmod-g32").stored_bits(1, 64) == 256 + 2 * 10 + 32
    assert parse_kv("kv4-mxfp").stored_bits(1, 64) == 256 + 2 * 8


# What is refused.


def bad(shape, where, value):
    x = np.zeros(shape, np.float32)
    x[where] = value
    return x


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (
            bad((3, 4), (2, 1), np.nan),
            "activation of token 2, channel 1 is nan; finite float32 numbers are needed",
        ),
        (
            bad((3, 4), (1, 3), -np.inf),
            "activation of token 1, channel 3 is -inf; finite float32 numbers are needed",
        ),
        (
            np.array([[0.0, 1e39]]),
            "activation of token 0, channel 1 is 1e+39; finite float32 numbers are needed",
        ),
        (np.ones(3), "activations have shape (3,); [tokens, channels] is needed"),
        (np.ones((0, 3)), "activations have shape (0, 3); [tokens, channels] is needed"),
        (
            np.array([["a"]]),
            "activations have type <U1; real numbers are needed",
        ),
    ],
)
@pytest.mark.parametrize("name", ["a8", "a8-tensor"])
def test_activations_that_are_refused(x, message, name):
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        quantize_activations(x, parse_activation(name))


@pytest.mark.parametrize(
    ("name", "where"),
    [
        ("a8", "of row 1, group 0 (=7.87e-12)"),
        ("a8-fp-e4m3", "of row 1, group 0 (=2.23e-12)"),
        ("a8-asym-g1", "of row 1, group 0 (=3.92e-12)"),
    ],
)
def test_a_scale_outside_float16_is_refused(name, where):
    message = f"{name}: the scale {where} is outside FP16 (6e-08 .. 65504); rescale x"
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        quantize_activations(np.array([[1.0], [1e-9]]), parse_activation(name))


def test_tensors_that_fake_refuses():
    x = torch.from_numpy(bad((2, 3, 4), (1, 0, 2), np.nan))
    with pytest.raises(InputError, match="^activation of token 3, channel 2 is nan; finite"):
        fake_activations(x, parse_activation("a8"))
    for empty, shape in ((torch.tensor(1.0), r"\(\)"), (torch.zeros(2, 0), r"\(2, 0\)")):
        message = rf"^activations have shape {shape}; \[\.\.\., channels\] is needed$"
        with pytest.raises(InputError, match=message):
            fake_activations(empty, parse_activation("a8"))
    y = torch.from_numpy(bad((2, 3, 4, 5), (1, 2, 0, 4), np.inf))
    message = "^key or value of batch 1, head 2, position 0, channel 4 is inf; finite float32"
    with pytest.raises(InputError, match=message):
        fake_kv(y, parse_kv("kv8"))
    message = r"^keys or values have shape \(3, 4\); \[batch, kv_heads, t, head_dim\] is needed$"
    with pytest.raises(InputError, match=message):
        fake_kv(torch.zeros(3, 4), parse_kv("kv8"))


def test_the_result_is_a_tensor_of_tokens():
    qt = quantize_activations(acts(6, 20), parse_activation("a8-asym-tensor"))
    assert isinstance(qt, QuantizedTensor)
    assert (qt.shape, qt.group_size, qt.groups) == ((6, 20), 20, 1)
