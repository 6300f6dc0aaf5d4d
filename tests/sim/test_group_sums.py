"""Group sums before the scales, and scales applied exactly: fast models against the references."""

from fractions import Fraction

import numpy as np
import pytest

from bitwright.quant import FORMATS, quantize
from bitwright.sim import PES, ant, bitmod, blocks, btc, dint, dot, fp16int, integer

#: PE, weight format, scale format and activation format; "fp16" for numbers.
CASES = [
    ("int8", integer.IntegerPE(), "int8-sym", "fp16", "int8-sym"),
    ("int4x8", integer.IntegerPE(8, 4), "int3-sym", "int8", "int8-sym"),
    ("int4x6", integer.IntegerPE(6, 4), "int4-sym", "fp16", "int6-sym"),
    ("dint4", dint.DintPE(), "dint4-sym", "fp16", "int8-sym"),
    ("dint4-asym", dint.DintPE(asymmetric=True), "dint4-asym", "fp16", "int8-sym"),
    ("btc", btc.BtcPE(), "int2-asym", "fp16", "int8-asym"),
    ("btc-sym", btc.BtcPE(act_bits=4), "int4-sym", "fp16", "int4-sym"),
    ("btc-w2a8", btc.BtcPE(unrolled=(8, 2)), "int2-asym", "int8", "int8-asym"),
    ("ternary", PES["ternary"], "ternary", "fp16", "int8-sym"),
    ("lut", PES["lut"], "binary", "fp16", "int8-sym"),
    ("ant", ant.AntPE(), "ant4", "fp16", "ant4"),
    ("olive", PES["olive"], "olive4", "fp16", "olive4"),
    ("fp16xint4", fp16int.Fp16IntPE(), "int4-sym", "fp16", "fp16"),
    ("mxfp4", blocks.Mxfp4PE(), "mxfp4", "e8m0", "mxfp4"),
    ("mxint8", blocks.Mxint8PE(), "mxint8", "e8m0", "mxint8"),
    ("nvfp4", blocks.Nvfp4PE(), "nvfp4", "e4m3", "nvfp4"),
]
EVERY = pytest.mark.parametrize(
    ("pe", "w_format", "scale_format", "x_format"),
    [pytest.param(*case, id=name) for name, *case in CASES],
)


def operands(w_format, scale_format, x_format, group_size=64):
    """150 columns: two groups of 64 and a ragged one."""
    rng = np.random.default_rng(0)
    w = rng.standard_normal((70, 150)).astype(np.float32)
    x = rng.standard_normal((3, 150)).astype(np.float16)
    size = FORMATS[w_format].block or group_size
    qt = quantize(w, w_format, size, scale_format)
    if x_format == "fp16":
        return x, qt
    return quantize(x, x_format, FORMATS[x_format].block or 150), qt


@EVERY
def test_group_sums_are_the_references(pe, w_format, scale_format, x_format):
    x, w = operands(w_format, scale_format, x_format)
    w = w.rows(range(5))
    sums = pe.group_sums(x, w)
    assert sums.dtype == np.float64 and sums.shape[:2] == (3, 5)
    assert np.array_equal(sums, pe.reference_group_sums(x, w))


@EVERY
def test_exactly_scaled_results_are_the_references(pe, w_format, scale_format, x_format):
    x, w = operands(w_format, scale_format, x_format)
    w = w.rows(range(5))
    y = pe.gemm(x, w, exact_scales=True)
    assert y.dtype == np.float64
    assert np.array_equal(y, pe.reference(x, w, exact_scales=True))


@EVERY
def test_exactly_scaled_results_are_the_group_sums_times_the_scales(
    pe, w_format, scale_format, x_format
):
    """In fractions: every product and sum of the float64 result rounds by at most 2**-53."""
    x, w = operands(w_format, scale_format, x_format)
    w = w.rows(range(5))
    left, right = pe.outer_scales(pe.activations(x, w), w, exact=True)
    sums, y = pe.group_sums(x, w), pe.gemm(x, w, exact_scales=True)
    for i, j in np.ndindex(y.shape):
        terms = [
            Fraction(sums[i, j, g])
            * Fraction(left[i, min(g, left.shape[1] - 1)])
            * Fraction(right[j, g])
            for g in range(sums.shape[2])
        ]
        bound = Fraction(len(terms) + 2, 1 << 53) * sum(abs(term) for term in terms)
        assert abs(Fraction(y[i, j]) - sum(terms)) <= bound


@EVERY
def test_scales_outside_a_pe_round_as_documented(pe, w_format, scale_format, x_format):
    """y = fl32(y + fl32(fl32(s) * fl32(fl32(x_scale * w_scale) * unit))), here in numpy."""
    x, w = operands(w_format, scale_format, x_format)
    left, right = pe.outer_scales(pe.activations(x, w), w)
    sums = pe.group_sums(x, w) / pe.unit_value
    expected = dot.dequantise(sums, left, right, pe.unit_value)
    assert np.array_equal(pe.gemm(x, w), expected)


@pytest.mark.parametrize("group_size", [64, 22, 71])
@pytest.mark.parametrize("name", ["int4-sym", "int4-asym", "int8-sym", "bitmod3", "bitmod4"])
def test_bit_serial_group_sums_are_what_the_column_hands_over(name, group_size):
    rng = np.random.default_rng(7)
    x = (rng.standard_normal((2, 71)) * np.exp2(rng.integers(-12, 4, (1, 71)))).astype(np.float16)
    w = quantize(rng.standard_normal((5, 71)) * 0.05, name, group_size, "int8")
    pe = PES["bitmod"]
    sums = pe.group_sums(x, w)
    assert np.array_equal(sums, pe.reference_group_sums(x, w))
    y = pe.gemm(x, w, exact_scales=True)
    assert y.dtype == np.float64
    assert np.array_equal(y, pe.reference(x, w, exact_scales=True))
    # Five products with integers of 8 bits, then one with the channel scale.
    scales = w.group_scales.astype(np.float64) * w.channel_scales.astype(np.float64)[:, None]
    terms = sums * scales
    assert (np.abs(y - terms.sum(2)) <= 2.0**-50 * np.abs(terms).sum(2)).all()


def test_bit_serial_group_sums_are_near_the_exact_ones():
    """Within the bound of docs/numerics.md, of which `group_error_bound` computes every term."""
    rng = np.random.default_rng(1)
    x = rng.standard_normal((1, 96)).astype(np.float16)
    w = quantize(rng.standard_normal((4, 96)), "bitmod4", 32)
    special = bitmod.special_registers(w.format)
    mode, terms = bitmod.format_mode(w.format)
    steps = list(bitmod.tensor_steps(x.view(np.uint16)[0], w, range(4)).steps(mode, terms))
    ends = [i + 1 for i, step in enumerate(steps) if step.last]
    sums = PES["bitmod"].group_sums(x, w).reshape(-1)
    for value, start, end in zip(sums, [0, *ends], ends, strict=False):
        held, exact, bound = bitmod.group_error_bound(steps[start:end], special)
        assert Fraction(value) == held / 2  # half units
        assert abs(Fraction(value) - exact / 2) <= bound / 2


def test_bit_serial_sums_go_through_memory_in_parts(monkeypatch):
    """Fewer tokens at a time give the same numbers."""
    rng = np.random.default_rng(2)
    x = rng.standard_normal((7, 40)).astype(np.float16)
    w = quantize(rng.standard_normal((70, 40)), "bitmod3", 16)
    pe = PES["bitmod"]
    whole = pe.gemm(x, w), pe.gemm(x, w, exact_scales=True), pe.group_sums(x, w)
    monkeypatch.setattr(bitmod, "_SUMS", 128 * 3 * 2)  # two tokens
    parts = pe.gemm(x, w), pe.gemm(x, w, exact_scales=True), pe.group_sums(x, w)
    assert all(np.array_equal(a, b) for a, b in zip(whole, parts, strict=True))


def test_bit_serial_tokens_that_share_decoded_terms_do_not_mix():
    """35 tokens are two blocks of 16 and a rest; alone, each gives the same."""
    rng = np.random.default_rng(6)
    x = rng.standard_normal((35, 24)).astype(np.float16)
    w = quantize(rng.standard_normal((3, 24)), "bitmod4", 10)
    pe = PES["bitmod"]
    alone = np.concatenate([pe.gemm(row[None], w) for row in x])
    assert np.array_equal(pe.gemm(x, w), alone)


@pytest.mark.parametrize("exact", [False, True])
def test_large_products_are_scaled_by_several_threads_alike(monkeypatch, exact):
    rng = np.random.default_rng(8)
    x = quantize(rng.standard_normal((130, 40)), "int8-asym", 40)
    w = quantize(rng.standard_normal((9, 40)), "int2-asym", 16)
    one = btc.BtcPE().gemm(x, w, exact)
    monkeypatch.setattr(dot, "_SMALL", 0)
    assert np.array_equal(btc.BtcPE().gemm(x, w, exact), one)


@pytest.mark.parametrize("pe", [PES["fp16"], PES["fp16acc16"]], ids=lambda pe: pe.name)
def test_an_fp16_pe_has_no_scales_outside(pe):
    x, w = operands("bitmod4", "int8", "fp16")
    y = pe.gemm(x, w, exact_scales=True)
    assert y.dtype == np.float64 and np.array_equal(y, pe.gemm(x, w))
    few = w.rows([0, 1])
    assert np.array_equal(pe.reference(x, few, exact_scales=True), y[:, :2])


@pytest.mark.parametrize("group_size", [5000, 3000, 1025, 64])
def test_exact_products_are_exact_in_runs_that_float32_holds(group_size):
    """All products positive and largest: 128 * 128 * 1024 = 2**24 is a run."""
    x = np.full((2, 5000), -128, np.int16)
    x[1] = np.random.default_rng(3).integers(-128, 128, 5000)
    w = np.full((3, 5000), -128, np.int16)
    starts = np.arange(0, 5000, group_size)
    wide = np.add.reduceat(x[:, None].astype(np.int64) * w, starts, axis=2)
    got = np.stack(list(dot.exact_products(x, w, group_size)), axis=2)
    assert np.array_equal(got, wide)


@pytest.mark.parametrize(
    ("name", "scale_format"),
    [(f, "fp16") for f in ("int8-asym", "dint4-asym", "olive4", "ant4")]
    + [("int4-sym", "int8"), ("bitmod3", "int8"), ("mxfp4", "e8m0"), ("nvfp4", "e4m3")],
)
def test_float64_values_are_the_stored_numbers(name, scale_format):
    rng = np.random.default_rng(4)
    fmt = FORMATS[name]
    t = quantize(rng.standard_normal((3, 96)), fmt, fmt.block or 36, scale_format)
    values, scales = dot.float64_values(t), dot.float64_scales(t)
    if scale_format in ("fp16", "e8m0"):  # one level: dequantize() has nothing to round
        assert np.array_equal(values, t.dequantize())
    assert np.allclose(values, t.dequantize(), rtol=2.0**-22, atol=0)
    column = np.arange(96) // t.group_size
    for i, k in np.ndindex(values.shape):
        assert Fraction(values[i, k]) == Fraction(float(t.values()[i, k])) * Fraction(
            scales[i, column[k]]
        )
    if t.channel_scales is not None:
        stored = [[Fraction(int(q)) * Fraction(float(c)) for q in row]
                  for row, c in zip(t.group_scales, t.channel_scales, strict=True)]  # fmt: skip
        assert [[Fraction(v) for v in row] for row in scales] == stored


def test_activation_formats_are_those_that_gemm_takes():
    rng = np.random.default_rng(5)
    for pe in PES.values():
        if pe.act_formats == ("fp16",):
            continue
        name = next(f for f in pe.weight_formats if pe_runs(pe, f))
        w = quantize(rng.standard_normal((2, 64)), name, FORMATS[name].block or 64)
        for act in pe.act_formats:
            x = quantize(rng.standard_normal((1, 64)), act, FORMATS[act].block or 64)
            assert pe.gemm(x, w).shape == (1, 2)


def pe_runs(pe, name) -> bool:
    unrolled = getattr(pe, "unrolled", None)
    return unrolled is None or FORMATS[name].bits == unrolled[1]


def test_a_tensor_of_zeros_gives_zeros():
    w = quantize(np.zeros((2, 64)), "int4-sym", 64)
    x = quantize(np.zeros((1, 64)), "int8-sym", 64)
    assert not integer.IntegerPE(8, 4).gemm(x, w).any()
