"""The bit-serial PE: definition, model and torch kernel agree; worked examples by hand."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitwright.kernels import bitserial_dots, bitserial_matmul
from bitwright.quant import FORMATS, InputError, quantize
from bitwright.sim import PES, bitmod

ONE = 0x3C00  # FP16 1.0: E = 15, M = 1024
MODES = [(bitmod.INT, t) for t in (1, 2, 3, 4)] + [(bitmod.FP4, 2), (bitmod.FP3, 2)]
SPECIALS = {
    bitmod.INT: [0, 0, 0, 0],
    bitmod.FP4: bitmod.special_registers(FORMATS["bitmod4"]),
    bitmod.FP3: bitmod.special_registers(FORMATS["bitmod3"]),
}


def weight_value(mode, terms, code, zero, special):
    return sum(t.value for t in bitmod.encode_terms(mode, terms, code, zero, special))


def random_stream(seed, dots, mode, terms):
    """Dot products of 1..3 groups of 1..9 steps; exponents spread by up to 30."""
    rng = np.random.default_rng(seed)
    steps = []
    for _ in range(dots):
        low = rng.integers(0, 31)
        groups = int(rng.integers(1, 4))
        for g in range(groups):
            length = int(rng.integers(1, 10))
            zero = int(rng.integers(0, 256)) if mode == bitmod.INT else 0
            shared = (zero, int(rng.integers(0, 4)), int(rng.integers(0, 256)))
            for i in range(length):
                exponent = rng.integers(low, 31, 4) * (rng.random(4) > 0.05)
                fraction = rng.integers(0, 1024, 4) * (rng.random(4) > 0.2)
                act = rng.integers(0, 2, 4) << 15 | exponent << 10 | fraction
                if mode == bitmod.INT:
                    code = rng.integers(-(1 << 2 * terms - 1), 1 << 2 * terms - 1, 4) + zero & 255
                else:
                    code = rng.integers(0, 16 if mode == bitmod.FP4 else 8, 4)
                steps.append((act, code, *shared, i == length - 1, g == groups - 1))
    act, code, zero, selector, scale, last, final = (
        np.array(column) for column in zip(*steps, strict=True)
    )
    return bitmod.StepArrays(
        act.astype(np.uint16),
        code.astype(np.uint8),
        zero.astype(np.uint8),
        selector.astype(np.uint8),
        last,
        final,
        scale.astype(np.uint8),
    )


def kernel_result(stream, mode, terms):
    """The stream through the torch kernel, dot products padded to one length."""
    special = SPECIALS[mode]
    values = np.array(
        [
            [weight_value(mode, terms, c, s.zero, special[s.selector]) for c in s.code]
            for s in stream.steps(mode, terms)
        ]
    )
    ends = np.flatnonzero(stream.last & stream.final)
    starts = np.r_[0, ends[:-1] + 1]
    longest = (ends - starts + 1).max()
    padded = [
        np.zeros((len(ends), longest, 4), np.uint16),
        np.zeros((len(ends), longest, 4), np.int32),
        np.zeros((len(ends), longest), bool),
        np.zeros((len(ends), longest), np.int32),
    ]
    for d, (start, end) in enumerate(zip(starts, ends, strict=True)):
        part = slice(start, end + 1)
        sources = (stream.act, values, stream.last, stream.scale)
        for target, source in zip(padded, sources, strict=True):
            target[d, : end + 1 - start] = source[part]
    y = bitserial_dots(*padded, terms=terms, half_units=mode != bitmod.INT)
    return y.view(np.uint32)


# ---------------------------------------------------------------- term encoder, exhaustively


@pytest.mark.parametrize("terms", [1, 2, 3, 4])
def test_booth_terms_sum_to_every_value(terms):
    half = 1 << (2 * terms - 1)
    for value in range(-half, half):
        for zero in range(0, 256, 5):
            code = value + zero & 0xFF
            assert weight_value(bitmod.INT, terms, code, zero, 0) == value


@pytest.mark.parametrize("special", [s << 5 | m for s in (0, 1) for m in (0, 1, 10, 12, 16, 24)])
def test_floating_point_terms_sum_to_the_value_table(special):
    table = (0, 1, 2, 3, 4, 6, 8, 12)  # half units of 0, 0.5, 1, 1.5, 2, 3, 4, 6
    special_value = -(special & 31) if special >> 5 else special & 31
    for code in range(16):
        expected = table[code & 7] * (-1 if code & 8 else 1) if code != 8 else special_value
        assert weight_value(bitmod.FP4, 2, code, 0, special) == expected
        if code % 2 == 0:  # the 3-bit code is the 4-bit code without its last bit
            assert weight_value(bitmod.FP3, 2, code >> 1, 0, special) == expected


def test_terms_match_the_format_tables():
    for name in ("fp3", "fp4", "fp3-er", "fp3-ea", "fp4-er", "fp4-ea", "bitmod3", "bitmod4"):
        fmt = FORMATS[name]
        mode, terms = bitmod.format_mode(fmt)
        words = bitmod.special_registers(fmt)
        for selector, special in enumerate(fmt.special_values or (0.0,)):
            for code, level in enumerate(fmt.levels):
                expected = special if code == 1 << fmt.bits - 1 else level
                got = weight_value(mode, terms, code, 0, words[selector])
                assert got == 2 * expected


@pytest.mark.parametrize("value", [7.0, 5.5, 3.5, -7.0, 16.0, 0.25])
def test_special_values_of_three_terms_are_refused(value):
    with pytest.raises(InputError, match=f"special value {value} cannot be encoded in two terms"):
        bitmod.special_word(value)


# ---------------------------------------------------------------- arithmetic, by hand


def test_jam_and_round_nearest_even_against_fractions():
    for x in range(-600, 600):
        for n in range(8):
            floor = x >> n
            assert bitmod.jam(x, n) == (floor | 1 if x % (1 << n) else floor)
            assert bitmod.jam(-x, n) == -bitmod.jam(x, n)  # the same on sign-magnitude
            assert bitmod.round_nearest_even(x, n) == round(Fraction(x, 1 << n))


def test_align_and_sum_worked_example():
    # Lane 0: 1.0 * +2 -> e = 15 + 1 = 16, aligned 1024 << 3 = 8192
    # Lane 1: 1.0 * -1 -> e = 15, one right: 4096, negative
    # Lane 2: smallest subnormal 2**-24 * 1: E = 1, M = 1, delta = 15 -> capped at 14; 8 >> 14 = 0,
    #         sticky 1
    # Lane 3: dead. Sum 8192 - 4096 + 1 = 4097 at exponent 16.
    terms = [
        bitmod.Term(0, 1, 1, 0),
        bitmod.Term(1, 0, 1, 0),
        bitmod.Term(0, 0, 1, 0),
        bitmod.Term(0, 3, 0, 0),
    ]
    assert bitmod.align_and_sum([ONE, ONE, 0x0001, ONE], terms) == (4097, 16)


def test_accumulate_worked_examples():
    # First addend: nothing to align; 8192 << 0 fits 16 bits.
    assert bitmod.accumulate(8192, 16, 0, 0) == (8192, 16)
    # 65532 needs 17 bits with its sign: r = 1, 32766 at exponent 11.
    assert bitmod.accumulate(65532, 10, 0, 0) == (32766, 11)
    # 65535 / 2 = 32767.5 ties to 32768, which does not fit: 16384 and one exponent more.
    assert bitmod.accumulate(65532, 10, 3, 10) == (16384, 12)
    # -65535 / 2 = -32767.5 ties to the even -32768, which fits.
    assert bitmod.accumulate(-65532, 10, -3, 10) == (-32768, 11)
    # Cancellation to zero keeps the exponent: the accumulator renormalises upward only.
    assert bitmod.accumulate(-8192, 16, 8192, 16) == (0, 16)
    # A much smaller addend leaves one sticky bit: 16384 + 1.
    assert bitmod.accumulate(5, 1, 16384, 33) == (16385, 33)


@given(
    st.integers(-(1 << 23), 1 << 23),
    st.integers(0, 45),
    st.floats(-(2.0**60), 2.0**60, width=32, allow_subnormal=False),
)
def test_float32_add_is_numpys(d, e, start):
    start = np.float32(start if abs(start) >= 2.0**-28 else 0.0)
    addend = np.ldexp(np.float32(d), e - 28)
    expected = np.float32(start + addend)
    got = bitmod.float32_add(int(start.view(np.uint32)) & 0xFFFFFFFF, d, e)
    if expected == 0:
        assert got == 0  # +0, also for -0 + 0
    else:
        assert got == int(expected.view(np.uint32))


def test_dot_product_worked_example():
    # 2 groups of one step, INT6 mode (3 terms): 1.0 * (1 - 2 + 3 + 4) * 10 + 2.0 * (-5) * 200
    # = 60 - 2000 = -1940. c = 3, 3: t_1 = 4, t_2 = 4 + 8 = 12, y_valid in cycle 22.
    steps = [
        bitmod.Step((ONE,) * 4, (1, 0xFE, 3, 4), terms=3, last=1, final=0, scale=10),
        bitmod.Step((0x4000, 0, 0, 0), (0xFB, 0, 0, 0), terms=3, last=1, final=1, scale=200),
    ]
    values, cycles = bitmod.run_reference(steps, [0, 0, 0, 0])
    assert np.array(values, np.uint32).view(np.float32).tolist() == [-1940.0]
    assert cycles == [22]


# ---------------------------------------------------------------- twins


@pytest.mark.parametrize(("mode", "terms"), MODES)
def test_reference_model_and_kernel_agree(mode, terms):
    stream = random_stream(seed=terms + 10 * mode, dots=150, mode=mode, terms=terms)
    values, cycles = bitmod.run_reference(list(stream.steps(mode, terms)), SPECIALS[mode])
    model_values, model_cycles = bitmod.run_model(stream, mode, terms, SPECIALS[mode])
    assert model_values.tolist() == values
    assert model_cycles.tolist() == cycles
    assert kernel_result(stream, mode, terms).tolist() == values


@pytest.mark.parametrize(("mode", "terms"), MODES)
def test_group_error_stays_within_the_derived_bound(mode, terms):
    stream = random_stream(seed=99 + mode, dots=60, mode=mode, terms=terms)
    group, inexact = [], 0
    for step in stream.steps(mode, terms):
        group.append(step)
        if step.last:
            value, exact, bound = bitmod.group_error_bound(group, SPECIALS[mode])
            assert abs(value - exact) <= bound
            inexact += value != exact
            group = []
    assert inexact > 20  # the bound was put to the test


@pytest.mark.parametrize("group_size", [None, 64, 22, 3])
@pytest.mark.parametrize(
    "name",
    ["int2-sym", "int3-sym", "int4-sym", "int5-sym", "int6-sym", "int8-sym", "int3-asym"]
    + ["int4-asym", "int7-asym", "fp3", "fp4", "fp3-ea", "fp4-er", "bitmod3", "bitmod4"],
)
def test_gemm_is_the_reference_and_the_kernel(name, group_size):
    rng = np.random.default_rng(7)
    x = (rng.standard_normal((2, 71)) * np.exp2(rng.integers(-12, 4, (1, 71)))).astype(np.float16)
    w = (rng.standard_normal((5, 71)) * 0.05).astype(np.float32)
    qt = quantize(w, name, group_size=group_size or 71, scale_format="int8")
    y = PES["bitmod"].gemm(x, qt)
    assert np.array_equal(y.view(np.uint32), PES["bitmod"].reference(x, qt).view(np.uint32))
    assert np.array_equal(y.view(np.uint32), bitserial_matmul(x, qt).view(np.uint32))


def test_gemm_works_beyond_one_block_of_outputs():
    rng = np.random.default_rng(3)
    x = rng.standard_normal((3, 32)).astype(np.float16)
    qt = quantize(rng.standard_normal((131, 32)).astype(np.float32), "bitmod4", group_size=16)
    y = PES["bitmod"].gemm(x, qt)
    assert y.shape == (3, 131)
    assert np.array_equal(y.view(np.uint32), bitserial_matmul(x, qt).view(np.uint32))


@pytest.mark.parametrize(("k", "group_size"), [(64, 16), (40, 8), (24, 24), (9, 4), (4, 4)])
@pytest.mark.parametrize("name", ["bitmod3", "int6-sym", "int8-sym", "int2-sym"])
def test_closed_form_cycles_are_the_references(k, group_size, name):
    qt = quantize(np.ones((3, k), np.float32), name, group_size=group_size, scale_format="int8")
    x = np.ones(k, np.float16).view(np.uint16)
    stream = bitmod.tensor_steps(x, qt, range(3))
    mode, terms = bitmod.format_mode(qt.format)
    steps = list(stream.steps(mode, terms))
    _, cycles = bitmod.run_reference(steps, bitmod.special_registers(qt.format))
    pe = PES["bitmod"]
    assert [pe.cycles(k, group_size, qt.format, dots=d) for d in (1, 2, 3)] == cycles


# ---------------------------------------------------------------- what is refused


def test_bad_operands_are_refused():
    w = np.ones((2, 8), np.float32)
    pe = PES["bitmod"]
    with pytest.raises(InputError, match="scale_format fp16 does not run on the bitmod PE"):
        pe.gemm(np.ones((1, 8)), quantize(w, "int4-sym", scale_format="fp16"))
    qt = quantize(w, "bitmod4", group_size=8)
    with pytest.raises(InputError, match=r"activation nan at \(0, 1\) is not finite in FP16"):
        pe.gemm(np.array([[1, np.nan] + [0] * 6]), qt)
    with pytest.raises(InputError, match=r"activation 70000.0 at \(0, 0\) is not finite in FP16"):
        pe.gemm(np.full((1, 8), 70000.0), qt)
    with pytest.raises(InputError, match=r"x has shape \(1, 7\); it must be \[m, k\] with k = 8"):
        pe.gemm(np.ones((1, 7)), qt)
    with pytest.raises(InputError, match="cannot run weight format int8-asym"):
        pe.step_cycles(FORMATS["int8-asym"])
    with pytest.raises(InputError, match="cannot run weight format fp6-e2m3"):
        pe.step_cycles(FORMATS["fp6-e2m3"])
    with pytest.raises(InputError, match=r"lanes \(=3\) must be 1, 2, 4 or 8"):
        bitmod.BitmodConfig(lanes=3)
    with pytest.raises(InputError, match=r"lanes \(=8\) must be 4 for whole tensors"):
        bitmod.BitmodPE(bitmod.BitmodConfig(lanes=8))


@pytest.mark.parametrize("name", ["dint4-sym", "flint4", "pot4", "ant4", "ternary", "mxfp4"])
def test_levels_that_the_encoder_does_not_decode_are_refused(name: str) -> None:
    with pytest.raises(InputError, match=rf"the bitmod PE cannot run weight format {name}"):
        bitmod.format_mode(FORMATS[name])
