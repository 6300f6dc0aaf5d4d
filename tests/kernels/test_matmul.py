"""`matmul` on the processor: every format by every method against the definitions."""

import os
import subprocess
import sys
from dataclasses import replace
from importlib import import_module

import numpy as np
import pytest

from bitwright.kernels import AnyPrecisionTensor, integers, matmul, plan_for, reference
from bitwright.quant import (
    FORMATS,
    Format,
    InputError,
    OffsetTensor,
    PermutedTensor,
    parse_activation,
    quantize,
    quantize_activations,
)

amx = import_module("bitwright.kernels.cpu.amx")
fixed_point = import_module("bitwright.kernels.cpu.fixed_point")
floating = import_module("bitwright.kernels.cpu.floating")
simd = import_module("bitwright.kernels.cpu.simd")
planner = import_module("bitwright.kernels.planner")
N, K, M = 21, 96, 5
RNG = np.random.default_rng(0)
W = RNG.standard_normal((N, K)).astype(np.float32)
X = RNG.standard_normal((M, K)).astype(np.float32)


def tensors(name):
    """The format with ragged groups, and with one group per row; with all scales it can have."""
    format = FORMATS[name]
    sizes = [format.block] if format.block else [40, K]
    scales = [None] if format.block else ["fp16", "int8"]
    return [quantize(W, name, group_size=g, scale_format=s) for g in sizes for s in scales]


def activations(w):
    """Activations of all widths, and in the weights' groups."""
    names = ["a8", "a8-asym", "a4-asym", "a3", "a2-asym", "a2b-asym"]
    if w.groups > 1:
        names.append(f"a8-asym-g{w.group_size}")
    return [quantize_activations(X, parse_activation(name)) for name in names]


@pytest.mark.parametrize("name", FORMATS)
def test_method_float_is_within_its_bound(name):
    """One row, a pair, an odd number, and so many that weights become float32 panels."""
    for w in tensors(name):
        dense = w.dequantize()
        for rows in (1, 2, 5, planner.PANEL_ROWS):
            x = np.resize(X, (rows, K))
            y = matmul(x, w)
            assert y.dtype == np.float32 and y.shape == (rows, N)
            error = np.abs(y - reference.reference_float(x, w))
            kernel = plan_for(x, w).kernel
            if kernel.startswith("tiles-fixed"):
                bound = fixed_point.error_bound(x, w)
                assert np.array_equal(y, reference.reference_fixed(x, w))
            elif kernel == "dense" or kernel.startswith("panels"):
                bound = reference.float_bound(x, dense, w.group_size)
            else:
                bound = floating.error_bound(x, dense, w.group_size)
            assert (error <= bound).all()


@pytest.mark.parametrize(
    "name", [name for name in FORMATS if planner.levels_in_byte(FORMATS[name])]
)
def test_exact_methods_are_the_definition_bit_for_bit(name):
    methods = ["integer"]
    if FORMATS[name].kind in ("int-sym", "int-asym") or name in ("binary", "ternary"):
        methods.append("planes")
    if name in ("binary", "ternary"):
        methods.append("lookup")
    compared = 0
    for w in tensors(name):
        for x in activations(w):
            expected = reference.reference_integer(x, w)
            for method in methods:
                assert np.array_equal(matmul(x, w, method=method), expected)
                compared += expected.size
    assert compared >= len(methods) * 6 * M * N


@pytest.mark.parametrize("name", ["int4-sym", "int3-asym", "dint4-asym", "bitmod4", "int2-asym"])
def test_rows_do_not_depend_on_each_other(name):
    """Whatever number of rows is computed together, in whatever order, the bits are the same."""
    w = quantize(W, name, group_size=32)
    for options in ({}, {"activations": "a8"}):
        together = matmul(X, w, **options)
        assert np.array_equal(together, np.stack([matmul(x, w, **options) for x in X]))
        assert np.array_equal(together[::-1], matmul(X[::-1], w, **options))


@pytest.mark.parametrize("name", ["binary", "ternary"])
def test_more_rows_than_a_tile_and_more_activations_than_two_fours(name):
    w = quantize(np.resize(W, (70, K)) * RNG.standard_normal((70, 1)), name, group_size=40)
    x = quantize_activations(RNG.standard_normal((9, K)), parse_activation("a8-asym"))
    expected = reference.reference_integer(x, w)
    for method in ("integer", "planes", "lookup"):
        assert np.array_equal(matmul(x, w, method=method), expected)


def limbs_of(x, group_size):
    """The kernel's fixed point of float32 [m, k], whose groups are whole tiles."""
    starts = np.arange(0, x.shape[1] + 1, group_size)
    limbs, sums = np.zeros((len(x), 3, x.shape[1]), np.int8), np.zeros((len(x), 3, len(starts) - 1))
    sums, steps = sums.astype(np.float32), np.zeros((len(x), len(starts) - 1), np.float32)
    fixed_point.to_limbs(x.view(np.int32), starts, limbs, sums, steps)
    return limbs.swapaxes(0, 1), sums.swapaxes(0, 1), steps


def test_fixed_point_by_hand():
    """1 is 2**22 steps of 2**-22; a number at the end of three limbs, and one beyond it."""
    x = np.zeros((3, 32), np.float32)
    x[0, :3] = 1, -0.5, 2.0**-22
    x[1, 0], x[2, 0] = 127 * 65793, 127 * 65793 + 1
    limbs, sums, steps = limbs_of(x, 32)
    assert steps[:, 0].tolist() == [2.0**-22, 1, 2]
    assert limbs[:, 0, :3].T.tolist() == [[0, 0, 64], [0, 0, -32], [1, 0, 0]]
    assert limbs[:, 1, 0].tolist() == [127, 127, 127]
    assert limbs[:, 2, 0].tolist() == [-64, -64, 64]  # 4177856 = 2**22 - 2**14 - 64
    assert sums[:, 0, 0].tolist() == [1, 0, 32]


def test_fixed_point_is_its_definition():
    rng = np.random.default_rng(5)
    ends = 127 * 65793 * 2.0 ** np.arange(-140, 104)
    scales = np.concatenate([ends, ends * 1.000001, 2.0 ** np.arange(-149, 127), [0.0, 1e38]])
    x = (rng.uniform(-1, 1, (len(scales), 64)) * scales[:, None]).astype(np.float32)
    x[:, [0, 40]] = scales[:, None].astype(np.float32)
    limbs, sums, steps = limbs_of(x, 32)
    expected, wide = reference.reference_limbs(x, 32)
    assert np.array_equal(limbs, expected) and np.array_equal(steps, wide)
    assert np.array_equal(sums, expected.reshape(3, len(x), 2, 32).sum(-1))
    values = (limbs * np.array([1.0, 256, 65536])[:, None, None]).sum(0) * np.repeat(wide, 32, 1)
    assert (np.abs(values - x) <= np.repeat(wide, 32, 1) / 2).all()
    large = np.abs(scales) > 2.0**-97  # below it steps stay at 2**-120
    assert (wide[large, 0] < scales[large] * 2.0**-21.99).all()


@pytest.mark.parametrize("name", ["int8-asym", "int4-sym", "dint4-asym", "bitmod3"])
def test_outliers_and_long_groups_keep_the_bound(name):
    """Groups beyond those whose sums are exact, one activation above all others, and tiny ones."""
    rng = np.random.default_rng(6)
    w = rng.standard_normal((9, 3000)).astype(np.float32)
    x = rng.standard_normal((4, 3000)).astype(np.float32)
    x[1, 7], x[2] = 3e4, x[2] * 1e-30
    x[3] = rng.choice([1e-3, 1.0, 1e4], 3000) * x[3]
    assert fixed_point.EXACT_COLUMNS == 514
    for size in (512, 3000):
        qt = quantize(w, name, group_size=size)
        y = matmul(x, qt)
        error = np.abs(y - reference.reference_float(x, qt))
        assert (error <= fixed_point.error_bound(x, qt)).all()
        if size == 512:
            assert np.array_equal(y, reference.reference_fixed(x, qt))


def test_rows_with_nan_or_infinity_are_like_those_of_numpy():
    w = quantize(W, "int4-sym", group_size=32)
    x = X.copy()
    x[1, 5], x[2, 9], x[4, [3, 40]] = np.nan, np.inf, (np.inf, -np.inf)
    with np.errstate(invalid="ignore"):
        y, expected = matmul(x, w), x @ w.dequantize().T
    good = [0, 3]
    assert np.array_equal(y[good], matmul(X, w)[good]) and np.isfinite(y[good]).all()
    assert np.isnan(y[1]).all() and np.isinf(y[2]).any()
    for row in (1, 2, 4):
        assert np.array_equal(np.isnan(y[row]), np.isnan(expected[row]))
        infinite = np.isinf(expected[row])
        assert np.array_equal(y[row, infinite], expected[row, infinite])


@pytest.mark.parametrize(
    "name", [name for name in FORMATS if planner.integer_decode(FORMATS[name])]
)
def test_many_rows_are_the_definition_bit_for_bit(name):
    """Rows that fill blocks of 16 and four of those, and leave some over; groups of odd lengths."""
    for w in tensors(name):
        for rows in (8, 16, 17, 40):
            x = np.resize(X, (rows, K))
            assert np.array_equal(matmul(x, w), reference.reference_fixed(x, w))
        rows = np.resize(RNG.standard_normal((131, K)), (131, K)).astype(np.float32)
        for act in ("a8", "a8-asym"):
            x = quantize_activations(rows, parse_activation(act))
            assert np.array_equal(matmul(x, w), reference.reference_integer(x, w))


def test_room_for_activations_on_matrix_tiles():
    """Whole blocks of 16 rows; parts of a megabyte, four blocks at least; lines not 4 KiB apart."""
    x = amx.activations(20, 1, 128)
    assert x.shape == (32, 1, 128) and x.ctypes.data % 64 == 0 and not x.any()
    assert list(amx.chunks(x, 20)) == [(slice(0, 8192), slice(0, 20))]
    assert [amx.activations(1, limbs, 4096).shape[2] for limbs in (1, 3)] == [4160, 4160]
    long = amx.activations(300, 3, 4096)
    assert [rows for _, rows in amx.chunks(long, 300)] == [
        slice(first, min(first + 64, 300)) for first in range(0, 304, 64)
    ]


def test_more_rows_than_a_panel():
    w = quantize(RNG.standard_normal((150, K)).astype(np.float32), "int4-sym", group_size=40)
    x = np.resize(X, (planner.PANEL_ROWS, K))
    kernel = plan_for(x, w).kernel
    if kernel == "tiles-fixed-code":  # on matrix tiles rows stay what they are
        assert simd.TILES and np.array_equal(matmul(x, w), reference.reference_fixed(x, w))
    else:
        assert kernel == "panels-fixed-code" and not simd.TILES
    error = np.abs(matmul(x, w) - reference.reference_float(x, w))
    assert (error <= reference.float_bound(x, w.dequantize(), w.group_size)).all()


@pytest.mark.parametrize("name", ["dint4-sym", "dint5-sym"])
def test_scales_below_the_normal_range_are_rounded_twice(name):
    """The product of two scales first, and then that times a unit of 1/2."""
    w = quantize(W * np.float32(1e-37), name, group_size=40, scale_format="int8")
    x = quantize_activations(X, parse_activation("a8"))
    expected = reference.reference_integer(x, w)
    assert x.scales().max() * w.scales().max() < 2.0**-126 and expected.all()
    assert np.array_equal(matmul(x, w), expected)


def test_all_codes_times_all_activations():
    """Every 4-bit code of every integer-valued format times every int8, exhaustively."""
    acts = np.arange(-127, 128, dtype=np.float32)[:, None]
    for name in ("int4-sym", "int4-asym", "dint4-sym", "dint4-asym", "fp4", "bitmod4", "flint4"):
        w = quantize(np.linspace(-1, 1, 64, dtype=np.float32)[:, None], name, group_size=1)
        codes = np.arange(64, dtype=np.uint8)[:, None] % 16
        if name in ("int4-sym", "fp4", "flint4", "dint4-sym"):
            codes[codes == 8] = 0
        w = type(w)(**{f: getattr(w, f) for f in w.__dataclass_fields__} | {"codes": codes})
        x = quantize_activations(acts, parse_activation("a8"))
        assert np.array_equal(matmul(x, w), reference.reference_integer(x, w))


def test_worked_example():
    """dINT4: codes 7 and -7 are +-1/2. 2 * 3 - 5 * 1/2 = 3.5, scales 1 and 1/2."""
    w = quantize(np.array([[3.0, 0.25]]), "dint4-sym", group_size=2)
    assert w.codes.tolist() == [[6, 7]] and w.group_scales[0, 0] == 0.5
    x = quantize_activations(np.array([[127.0, -5.0]]), parse_activation("a8"))
    assert x.codes.view(np.int8).tolist() == [[127, -5]] and x.group_scales[0, 0] == 1.0
    assert matmul(x, w).tolist() == [[127 * 6 * 0.5 - 5 * 0.5 * 0.5]]


def test_memory_order_and_types_of_x():
    w = quantize(W, "int4-sym", group_size=32)
    y = matmul(X, w)
    wide = np.zeros((M, 2 * K), np.float64)
    wide[:, ::2] = X
    for same in (np.asfortranarray(X), wide[:, ::2], X.astype(np.float64), X.tolist()):
        assert np.array_equal(matmul(same, w), y)
    assert np.array_equal(matmul(X[0], w), y[0])
    assert np.array_equal(matmul(X.astype(np.float16), w), matmul(X.astype(np.float16) * 1.0, w))
    ones = np.ones((1, K), np.int64)
    assert np.array_equal(matmul(ones, w), matmul(ones.astype(np.float32), w))


def test_weights_with_offsets_and_in_another_order():
    w = quantize(W, "int4-asym", group_size=32)
    offsets = RNG.standard_normal((N, w.groups)).astype(np.float16).astype(np.float32)
    y = matmul(X, OffsetTensor(w, offsets))
    dense = w.dequantize() + np.repeat(offsets, 32, axis=1)
    bound = 2 * reference.float_bound(X, np.abs(w.dequantize()) + np.abs(dense), 32)
    assert (np.abs(y - X.astype(np.float64) @ dense.T) <= bound).all()
    columns = RNG.permutation(K)
    permuted = PermutedTensor(w, columns)
    assert np.array_equal(matmul(X, permuted), matmul(X[:, columns], w))
    x = quantize_activations(X, parse_activation("a8"))
    assert np.array_equal(matmul(x, permuted), matmul(X[:, columns], w, activations="a8"))
    grouped = quantize_activations(X, parse_activation("a8-g32"))
    with pytest.raises(
        InputError, match="columns are in another order; give activations one group"
    ):
        matmul(grouped, permuted)


def test_quantised_activations_are_numbers_where_a_product_needs_those():
    x = quantize_activations(X, parse_activation("a8-asym"))
    nf4 = quantize(W, "nf4", group_size=32)
    offsets = RNG.standard_normal((N, nf4.groups)).astype(np.float16).astype(np.float32)
    nested = AnyPrecisionTensor.from_quantized(quantize(W, "int8-sym", group_size=K))
    for w, bits in ((nf4, None), (OffsetTensor(nf4, offsets), None), (nested, 4)):
        assert np.array_equal(matmul(x, w, bits=bits), matmul(x.dequantize(), w, bits=bits))


def test_packed_weights_go_with_their_tensor():
    product = import_module("bitwright.kernels.product")
    before = len(product._packed)
    w = quantize(W, "int4-sym", group_size=32)
    matmul(X, w)
    matmul(X, w, activations="a8")
    matmul(np.resize(X, (planner.PANEL_ROWS, K)), w)  # the tiles that one row has read already
    assert set(product._packed[id(w)]) == {
        ("numba", "float", "fixed-code"),
        ("numba", "integer", "code"),
    }
    del w
    assert len(product._packed) == before


def test_bad_operands_are_refused():
    w = quantize(W, "int4-sym", group_size=32)
    wrong = [
        ((X, w.dequantize()), {}, "w is a ndarray; quantize(w, ...) gives a QuantizedTensor"),
        ((X[:, 1:], w), {}, "x has shape (5, 95); it must be [m, k] with k = 96"),
        ((X[None], w), {}, "x has shape (1, 5, 96); it must be [m, k] or [k] with k = 96"),
        ((X.astype(complex), w), {}, "x has type complex128; real numbers or a QuantizedTensor"),
        ((X, w, "metal"), {}, "backend 'metal' is not known; there are numba, torch, torch-comp"),
        ((X, w), {"method": "magic"}, "method 'magic' is not known; there are float, integer"),
        ((X, w), {"method": "integer"}, "method integer: activations are real numbers; give quan"),
        ((X, w), {"bits": 4}, "bits (=4) is for an AnyPrecisionTensor; leave it out"),
        ((X, w, "numba"), {"method": "bitserial"}, "backend numba has no method bitserial; it has"),
        (([[1.0], [2.0, 3.0]], w), {}, "x is no matrix: its rows differ in length; give [m, k]"),
        ((X, w), {"activations": 8}, "activations is 8; give a name such as 'a8', or a recipe"),
        ((X, w), {"activations": "a8-tensor-static"}, "need the range that calibration has seen"),
    ]
    x = quantize_activations(X, parse_activation("a8"))
    fp8 = quantize(W, "fp8-e4m3", group_size=32)
    grouped = quantize_activations(X, parse_activation("a8-g48"))
    wrong += [
        ((x, w), {"activations": "a8"}, "x is quantised already; leave activations out"),
        ((x, w), {"method": "lookup"}, "weight format int4-sym is neither binary nor ternary"),
        ((x, fp8), {"method": "integer"}, "weight format fp8-e4m3 spans too many binary places"),
        ((grouped, w), {"method": "integer"}, "activations have groups of 48, weights of 32; give"),
        (
            (x, quantize(W, "fp4", group_size=32)),
            {"method": "planes"},
            "fp4 is no integer; use met",
        ),
    ]
    for args, options, text in wrong:
        with pytest.raises(InputError) as error:
            matmul(*args, **options)
        assert text in str(error.value) and "\n" not in str(error.value)
    bad = X.copy()
    bad[3, 7] = np.inf
    with pytest.raises(InputError, match="activation of token 3, channel 7 is inf"):
        matmul(bad, w, activations="a8")


def test_long_groups_are_refused_and_their_limit_is_exact():
    """2**15 columns of the largest numbers do not overflow; one more is refused."""
    limit = 1 << 15
    for columns in (limit, limit + 1):
        w = quantize(np.ones((1, columns), np.float32), "int8-asym", group_size=columns)
        x = quantize_activations(np.ones((1, columns)), parse_activation("a8"))
        if columns == limit:
            assert np.array_equal(matmul(x, w), reference.reference_integer(x, w))
        else:
            with pytest.raises(InputError, match="groups of 32769 columns could overflow 32 bits"):
                matmul(x, w, method="integer")


def test_any_precision_reads_the_leading_planes():
    codes = RNG.integers(0, 256, (N, 700)).astype(np.uint8)
    tables = {b: RNG.standard_normal((N, 1 << b)).astype(np.float16) for b in (1, 3, 4, 5, 6, 7, 8)}
    w = AnyPrecisionTensor(codes, tables)
    x = RNG.standard_normal((7, 700)).astype(np.float32)
    for bits in w.widths:
        y = matmul(x, w, bits=bits)
        # Rows of activations share decoded weights, four at a time, and no sums.
        assert np.array_equal(y, np.concatenate([matmul(row[None], w, bits=bits) for row in x]))
        exact = x.astype(np.float64) @ w.dequantize(bits).astype(np.float64).T
        assert (np.abs(y - exact) <= reference.float_bound(x, w.dequantize(bits), 700)).all()
        assert np.array_equal(w.codes_at(bits), codes >> (8 - bits))
    with pytest.raises(InputError, match=r"bits \(=2\) must be one of 1, 3, 4, 5, 6, 7, 8"):
        matmul(x, w, bits=2)
    with pytest.raises(InputError, match="bits is missing; say at which width to read"):
        matmul(x, w)
    with pytest.raises(InputError, match="any-precision weights run on numba with method float"):
        matmul(x, w, "torch", bits=4)


def test_any_precision_of_integers_nests():
    """At full width it is the tensor itself; the error shrinks with every bit."""
    for name in ("int8-sym", "int8-asym"):
        full = quantize(W, name, group_size=K)
        w = AnyPrecisionTensor.from_quantized(full)
        assert np.array_equal(w.dequantize(8), full.dequantize())
        errors = [np.square(w.dequantize(bits) - W).mean() for bits in w.widths]
        assert errors == sorted(errors, reverse=True)
    assert w.traffic_bits(4) == 4 + 16 * 16 / K
    with pytest.raises(InputError, match="any-precision planes need integers with one group per"):
        AnyPrecisionTensor.from_quantized(quantize(W, "int8-sym", group_size=32))


def test_any_precision_of_four_bits():
    full = quantize(W, "int4-asym", group_size=K)
    w = AnyPrecisionTensor.from_quantized(full)
    assert np.array_equal(w.dequantize(4), full.dequantize())
    for bits in (3, 4):
        error = np.abs(matmul(X, w, bits=bits) - X.astype(np.float64) @ w.dequantize(bits).T)
        assert (error <= reference.float_bound(X, w.dequantize(bits), K)).all()


def test_levels_of_many_binary_places_are_left_to_floats():
    for most, fits in ((1023.5, False), (1023.0, True), (1024.0, False), (511.5, True)):
        levels = Format("wide", 2, "levels", (0.0, 1.0, 0.0, -most))
        assert planner.levels_in_byte(levels) == fits


@pytest.mark.parametrize("most", (127.0, 128.0, 200.0, 1000.0))
def test_levels_that_leave_a_byte(most):
    levels = Format("wide", 2, "levels", (0.0, most, 0.0, -1.0))
    assert planner.integer_decode(levels) == ("table" if most < 128 else None)
    w = replace(quantize(W, "ternary", group_size=32), format=levels)
    x = quantize_activations(X, parse_activation("a8"))
    assert np.array_equal(matmul(x, w, backend="numba"), reference.reference_integer(x, w))


def test_the_second_zero_of_ternary_codes():
    w = quantize(W, "ternary", group_size=32)
    assert not (w.codes == 2).any() and (w.codes == 0).any()
    both = replace(w, codes=np.where((w.codes == 0) & (RNG.random(W.shape) < 0.5), 2, w.codes))
    both = replace(both, codes=both.codes.astype(np.uint8))
    x = quantize_activations(X, parse_activation("a8"))
    assert (both.codes == 2).any() and np.array_equal(matmul(X, both), matmul(X, w))
    for method in ("integer", "planes", "lookup"):
        assert np.array_equal(matmul(x, both, method=method), matmul(x, w, method=method))


def test_integer_operands_are_those_of_the_tensor():
    for name in ("int4-sym", "int8-asym", "dint4-asym", "bitmod3", "ternary", "fp6-e2m3"):
        w = quantize(W, name, group_size=32)
        unit = integers.unit_of(w.format)
        assert np.array_equal(integers.values_in_units(w) * unit, w.values())


PROGRAM = """
import numpy as np
from bitwright.kernels import AnyPrecisionTensor, matmul, reference
from bitwright.kernels.cpu import floating, simd
from bitwright.quant import parse_activation, quantize, quantize_activations
rng = np.random.default_rng(1)
w, x = rng.standard_normal((35, 70)), rng.standard_normal((5, 70)).astype(np.float32)
acts = [quantize_activations(x, parse_activation(name)) for name in ("a8", "a8-asym", "a4-asym")]
count = 0
for name in ("int4-sym", "dint4-asym", "int3-asym", "binary", "ternary"):
    qt = quantize(w.astype(np.float32), name, group_size=40)
    methods = ["integer", *(["planes"] if name[0] != "d" else [])]
    methods += ["lookup"] if name in ("binary", "ternary") else []
    for act in acts:
        for method in methods:
            assert np.array_equal(matmul(act, qt, method=method),
                                  reference.reference_integer(act, qt)), (name, method)
            count += 1
for name in ("fp4", "bitmod4", "int3-asym", "int2-asym", "nf4"):
    qt = quantize(w.astype(np.float32), name, group_size=40)
    y = matmul(x, qt)
    np.save(f"{name}.npy", y)
    if name == "nf4":
        bound = floating.error_bound(x, qt.dequantize(), 40)
        assert (abs(y - reference.reference_float(x, qt)) <= bound).all(), name
    else:
        assert np.array_equal(y, reference.reference_fixed(x, qt)), name
    count += 1
nested = AnyPrecisionTensor.from_quantized(quantize(w.astype(np.float32), "int8-asym", 70))
for bits in (4, 5, 8):
    y = matmul(x, nested, bits=bits)
    np.save(f"any{bits}.npy", y)
    exact = x.astype(np.float64) @ nested.dequantize(bits).astype(np.float64).T
    assert (abs(y - exact) <= reference.float_bound(x, nested.dequantize(bits), 70)).all(), bits
    count += 1
many = np.resize(x, (20, 70))
for name in ("int4-sym", "bitmod4"):
    qt = quantize(w.astype(np.float32), name, group_size=40)
    y = matmul(many, qt)
    np.save(f"many-{name}.npy", y)
    assert np.array_equal(y, reference.reference_fixed(many, qt)), name
    count += 1
print(simd.LEVEL, count)
"""


@pytest.mark.slow
def test_all_levels_of_vector_instructions_give_the_same_bits(tmp_path):
    """The portable code, and AVX2's where there is it, against the best level, floats included."""
    found = {}
    for level in simd._LEVELS[: simd._LEVELS.index(simd.BEST) + 1]:
        folder = tmp_path / level
        folder.mkdir()
        done = subprocess.run(
            [sys.executable, "-P", "-c", PROGRAM],
            cwd=folder,
            capture_output=True,
            text=True,
            env=os.environ | {"BITWRIGHT_SIMD": level},
            timeout=500,
        )
        assert done.stdout.split() == [level, "43"], done.stderr
        found[level] = [np.load(path) for path in sorted(folder.glob("*.npy"))]
    for arrays in found.values():
        assert len(arrays) == 10
        assert all(map(np.array_equal, arrays, found["portable"]))


def test_a_level_that_the_processor_does_not_have_is_refused():
    assert simd.chosen_level("portable", "avx2") == "portable"
    with pytest.raises(InputError, match="BITWRIGHT_SIMD is 'avx512'; this processor has portable"):
        simd.chosen_level("avx512", "avx2")


def test_the_numba_backend_imports_no_framework():
    code = (
        "import sys, numpy as np\n"
        "from bitwright.kernels import matmul\n"
        "from bitwright.quant import quantize\n"
        "w = quantize(np.ones((3, 32), np.float32), 'int4-sym', group_size=32)\n"
        "matmul(np.ones((1, 32)), w); matmul(np.ones((1, 32)), w, activations='a8')\n"
        "print([name for name in ('torch', 'jax') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)
    assert done.stdout == "[]\n", done.stderr
