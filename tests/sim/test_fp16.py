"""The FP16 multiply-accumulate PE: definition, model, numpy's own arithmetic, examples by hand."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitwright.quant import InputError, quantize
from bitwright.sim import PES, fp16

ONE = 0x3C00
VARIANTS = [fp16.Fp16Config("fp32"), fp16.Fp16Config("fp16")]
IDS = [config.name for config in VARIANTS]
BITS = st.integers(0, 0x7BFF).flatmap(lambda bits: st.sampled_from([bits, bits | 0x8000]))
PAIRS = st.lists(st.tuples(BITS, BITS), min_size=1, max_size=8)


def random_stream(seed, pairs, low=0, high=31):
    """Dot products of about six pairs, one pair in four the opposite of the one before."""
    rng = np.random.default_rng(seed)
    act, weight = (
        rng.integers(0, 2, pairs) << 15
        | rng.integers(low, high, pairs) << 10
        | rng.integers(0, 1024, pairs) * (rng.random(pairs) > 0.2)
        for _ in range(2)
    )
    for i in np.flatnonzero(rng.random(pairs - 1) < 0.25):
        act[i + 1], weight[i + 1] = act[i] ^ 0x8000, weight[i] ^ int(rng.integers(0, 4))
    last = rng.random(pairs) < 1 / 6
    last[-1] = True
    return fp16.PairArrays(act.astype(np.uint16), weight.astype(np.uint16), last)


def one_dot(pairs, config):
    stream = [fp16.Pair(a, w, int(i == len(pairs) - 1)) for i, (a, w) in enumerate(pairs)]
    (y,), (cycle,) = fp16.run_reference(stream, config)
    assert cycle == len(pairs) + 1
    return y


def as_float(bits):
    return np.uint16(bits).view(np.float16).astype(np.float32)


@pytest.mark.parametrize("config", VARIANTS, ids=IDS)
@pytest.mark.parametrize("exponents", [(0, 31), (0, 3), (8, 11), (13, 16), (28, 31)])
def test_reference_and_model_agree_in_values_and_cycles(config, exponents):
    stream = random_stream(1, 3_000, *exponents)
    y, cycle = fp16.run_reference(list(stream.pairs()), config)
    y_model, cycle_model = fp16.run_model(stream, config)
    assert (y_model == y).all()
    assert (cycle_model == cycle).all()
    assert (cycle_model == np.flatnonzero(stream.last) + 2).all()


@given(PAIRS)
def test_numpy_float32_gives_the_same_sums(pairs):
    acc = np.float32(0)
    for a, w in pairs:
        acc = acc + as_float(a) * as_float(w)
    assert one_dot(pairs, VARIANTS[0]) == int(acc.view(np.uint32))


@given(PAIRS)
def test_numpy_float16_gives_the_same_sums_within_its_range(pairs):
    acc = np.float16(0)
    with np.errstate(over="ignore"):
        for a, w in pairs:
            p = np.uint16(a).view(np.float16) * np.uint16(w).view(np.float16)
            p = np.clip(p, np.float16(-65504), np.float16(65504))
            acc = np.clip(acc + p, np.float16(-65504), np.float16(65504))
    assert one_dot(pairs, VARIANTS[1]) == int(acc.view(np.uint16))


@given(BITS, BITS)
def test_a_product_is_exact(a, w):
    product = Fraction(float(as_float(a))) * Fraction(float(as_float(w)))
    assert fp16.exact_product(a, w) == product * 2**fp16.UNIT


@pytest.mark.parametrize(
    ("pairs", "fp32", "half"),
    [
        ([(ONE, 0x4200), (ONE, 0x4000)], 0x40A00000, 0x4500),  # 1 * 3 + 1 * 2
        ([(0x8000, ONE)], 0x00000000, 0x0000),  # -0 is +0
        ([(ONE, ONE), (0xBC00, ONE)], 0x00000000, 0x0000),
        ([(0x0001, 0x0001)], 0x27800000, 0x0000),  # 2**-48
        ([(0x0001, 0x3800)], 0x33000000, 0x0000),  # 2**-25: a tie, to even
        ([(0x0003, 0x3800)], 0x33C00000, 0x0002),  # 1.5 * 2**-24, likewise
        ([(0x7BFF, 0x7BFF)], 0x4F7FC004, 0x7BFF),  # saturates
        ([(0xFBFF, 0x4000), (0x7BFF, ONE)], 0xC77FE000, 0x0000),  # after saturating, so not -65504
        ([(ONE, ONE), (0x0C00, 0x0C00)], 0x3F800000, 0x3C00),  # 1 + 2**-24
        ([(ONE, ONE), (0x0C00, 0x1000)], 0x3F800001, 0x3C00),  # 1 + 2**-23
        ([(ONE, ONE), (ONE, 0x1000)], 0x3F801000, 0x3C00),  # 1 + 2**-11: a tie in binary16
        ([(0x3C01, ONE), (ONE, 0x1000)], 0x3F803000, 0x3C02),  # the other tie
    ],
)
def test_examples_by_hand(pairs, fp32, half):
    assert one_dot(pairs, VARIANTS[0]) == fp32
    assert one_dot(pairs, VARIANTS[1]) == half


def test_gaps_move_results_and_nothing_else():
    mac = fp16.Fp16Mac()
    given_ = [fp16.Pair(ONE, ONE, 0), None, None, fp16.Pair(ONE, ONE, 1), None, fp16.Pair(ONE, ONE)]
    results = [mac.tick(pair) for pair in [*given_, None, None, None]]
    assert [(c, y) for c, y in enumerate(results) if y is not None] == [
        (5, 0x40000000),
        (7, 0x3F800000),
    ]


def test_reset_forgets_what_is_under_way():
    mac = fp16.Fp16Mac()
    mac.tick(fp16.Pair(ONE, ONE, 0))
    mac.tick(fp16.Pair(ONE, ONE, 0))
    mac.reset()
    results = [mac.tick(pair) for pair in (fp16.Pair(ONE, ONE, 1), None, None)]
    assert results == [None, None, 0x3F800000]


@pytest.mark.parametrize("name", IDS)
def test_gemm_is_the_reference_with_dequantised_weights(name):
    rng = np.random.default_rng(2)
    x = rng.standard_normal((3, 70)).astype(np.float16)
    qt = quantize(rng.standard_normal((5, 70)).astype(np.float32), "bitmod4", group_size=32)
    pe = PES[name]
    y = pe.gemm(x, qt)
    assert y.dtype == np.float32 and y.shape == (3, 5)
    assert (y == pe.reference(x, qt)).all()
    assert (y == pe.gemm(x, qt.dequantize().astype(np.float16))).all()
    assert pe.step_cycles(None) == pe.step_cycles(qt.format) == pe.lanes == 1


def test_many_outputs_and_every_variant_close_to_exact():
    rng = np.random.default_rng(3)
    x = rng.standard_normal((4, 300)).astype(np.float16)
    w = (rng.standard_normal((130, 300)) * 0.05).astype(np.float16)
    exact = x.astype(np.float64) @ w.astype(np.float64).T
    assert np.abs(PES["fp16"].gemm(x, w) - exact).max() < 1e-5
    assert 1e-4 < np.abs(PES["fp16acc16"].gemm(x, w) - exact).max() < 0.05


def test_cycles_follow_the_reference():
    stream = random_stream(4, 1)
    for k, dots in ((1, 1), (7, 1), (5, 4)):
        pairs = [stream.act[0]] * (k * dots), [stream.weight[0]] * (k * dots)
        last = np.arange(k * dots) % k == k - 1
        run = fp16.PairArrays(*(np.array(p, np.uint16) for p in pairs), last)
        assert fp16.run_reference(list(run.pairs()))[1][-1] == fp16.Fp16PE().cycles(k, dots)


@pytest.mark.parametrize(
    ("x", "w", "message"),
    [
        (np.ones((1, 2)), np.array([[1.0, 7e4]]), r"weight 70000.0 at \(0, 1\) is not finite"),
        (np.ones((1, 2)), np.array([[1.0, np.nan]]), "weight nan"),
        (np.array([[np.inf, 1.0]]), np.ones((1, 2)), "activation inf"),
        (np.ones((1, 3)), np.ones((1, 2)), r"x has shape \(1, 3\).* k = 2"),
        (np.ones((1, 2)), np.ones(2), r"must be \[n, k\]"),
    ],
)
def test_bad_operands_are_refused(x, w, message):
    with pytest.raises(InputError, match=message):
        PES["fp16"].gemm(x, w)


def test_unknown_accumulator_is_refused():
    with pytest.raises(InputError, match="acc"):
        fp16.Fp16Config("fp8")
