"""Binary-TensorCore: every plane pattern at small K, zero points, plane counts."""

import itertools

import numpy as np
import pytest

from bitwright.quant import FORMATS, InputError, QuantizedTensor, quantize
from bitwright.sim import btc


def integers(codes: np.ndarray, bits: int, signed: bool) -> np.ndarray:
    half = 1 << bits - 1
    return (codes ^ half) - half if signed else codes


@pytest.mark.parametrize("signs", list(itertools.product([False, True], repeat=2)))
@pytest.mark.parametrize("planes", [(1, 1), (1, 3), (2, 2), (3, 2), (4, 4)])
def test_all_plane_patterns_at_a_slice_of_one_or_two(
    planes: tuple[int, int], signs: tuple[bool, bool]
) -> None:
    p, q = planes
    k = 1 if p + q > 5 else 2
    pe = btc.BtcPE(k_slice=k, unrolled=planes)
    codes = np.array(list(itertools.product(range(1 << p), repeat=k)))
    weights = np.array(list(itertools.product(range(1 << q), repeat=k)))
    left = np.repeat(codes, len(weights), 0)
    right = np.tile(weights, (len(codes), 1))
    bit = 1 << np.arange(k)
    ports = {f"x{i}_0": ((left >> i & 1) * bit).sum(1) for i in range(p)}
    ports |= {f"w{j}_0": ((right >> j & 1) * bit).sum(1) for j in range(q)}
    ports["x_signed"] = np.full(len(left), int(signs[0]), np.uint8)
    ports["w_signed"] = np.full(len(left), int(signs[1]), np.uint8)
    wanted = (integers(left, p, signs[0]) * integers(right, q, signs[1])).sum(1)
    assert np.array_equal(pe.partials(ports)[0], wanted)


def test_serial_plane_pairs_at_a_slice_of_four() -> None:
    pe = btc.BtcPE(k_slice=4)
    for x, w, shift, negative in itertools.product(range(16), range(16), range(15), (0, 1)):
        step = {"x0": x, "w0": w, "shift": shift, "negative": negative}
        ones = bin(x & w).count("1")
        assert pe.partial(step) == ((-1) ** negative * ones * 2**shift, 0)


@pytest.mark.parametrize(
    "w_format", ["int2-asym", "int2b-asym", "int3-sym", "int4-asym", "int8-sym"]
)
@pytest.mark.parametrize(
    "x_format", ["int2-sym", "int2b-asym", "int5-asym", "int8-asym", "int8-sym"]
)
def test_zero_points_are_corrected_exactly(x_format: str, w_format: str) -> None:
    """Ragged last group of 200 - 128; unit scales, so that y is an exact integer."""
    rng = np.random.default_rng(0)

    def tensor(rows: int, name: str) -> QuantizedTensor:
        fmt = FORMATS[name]
        stop = 1 + (fmt.qmax if fmt.zero_point_bits else (1 << fmt.bits) - 1)
        codes = rng.integers(0, stop, (rows, 200)).astype(np.uint8)
        zeros = rng.integers(0, stop, (rows, 2)).astype(np.uint8)
        return QuantizedTensor(
            fmt, 128, codes, "fp16", np.ones((rows, 2), np.float16),
            zero_points=zeros if fmt.zero_point_bits else None,
        )  # fmt: skip

    x, w = tensor(3, x_format), tensor(4, w_format)
    exact = x.values().astype(np.int64) @ w.values().astype(np.int64).T
    assert np.array_equal(btc.BtcPE().gemm(x, w), exact)
    assert np.array_equal(btc.BtcPE().reference(x, w), exact)


@pytest.mark.parametrize("unrolled", [None, (3, 3)])
def test_all_five_levels_and_zero_points_of_bit_balance(unrolled: tuple[int, int] | None) -> None:
    """ABQ-LLM's W2*: every code beside every zero point, in three planes, against integers."""
    pairs = np.array(list(itertools.product(range(5), repeat=2)), np.uint8)
    codes, zeros = pairs[:, :1], pairs[:, 1:]
    ones = np.ones((25, 1), np.float16)
    w = QuantizedTensor(FORMATS["int2b-asym"], 1, codes, "fp16", ones, zero_points=zeros)
    x_codes = np.arange(8, dtype=np.uint8)[:, None]
    threes = np.full((8, 1), 3, np.uint8)
    x = QuantizedTensor(FORMATS["int3-asym"], 1, x_codes, "fp16", ones[:8], zero_points=threes)
    wanted = (x_codes.astype(int) - 3) * (codes.astype(int) - zeros.astype(int)).T
    pe = btc.BtcPE(act_bits=3, unrolled=unrolled)
    assert np.array_equal(pe.gemm(x, w), wanted)
    assert np.array_equal(pe.reference(x, w), wanted)


def test_bit_balance_takes_three_planes() -> None:
    fmt = FORMATS["int2b-asym"]
    assert btc.BtcPE().step_cycles(fmt) == 8 * 3
    assert btc.BtcPE(unrolled=(8, 3)).step_cycles(fmt) == 1
    w = quantize(np.linspace(-1, 1, 128, dtype=np.float32)[None], fmt, 128)
    message = r"^the btc-w2a8 PE has 2 weight planes and cannot run weight format int2b-asym;"
    with pytest.raises(InputError, match=message):
        btc.BtcPE(unrolled=(8, 2)).gemm(np.ones((1, 128), np.float32), w)


def test_a_quantised_matrix_with_bit_balance() -> None:
    rng = np.random.default_rng(1)
    x, w = rng.normal(size=(3, 200)), rng.normal(size=(5, 200))
    qt = quantize(w, "int2b-asym", group_size=128)
    assert qt.codes.max() == 4 and qt.zero_points is not None and qt.zero_points.max() <= 4
    act = quantize(x, "int8-asym", group_size=200)
    integers = act.values().astype(np.int64)
    wanted = np.zeros((3, 5), np.float32)
    for group, columns in enumerate((slice(0, 128), slice(128, 200))):
        sums = integers[:, columns] @ qt.values()[:, columns].astype(np.int64).T
        wanted += sums.astype(np.float32) * (act.scales() * qt.scales()[:, group])
    pe = btc.BtcPE()
    assert np.array_equal(pe.gemm(x, qt), wanted)
    assert np.array_equal(pe.reference(x, qt), wanted)


def test_cycles_are_plane_pairs_times_slices() -> None:
    assert btc.BtcPE().step_cycles(FORMATS["int2-asym"]) == 16
    assert btc.BtcPE(act_bits=4).step_cycles(FORMATS["int4-sym"]) == 16
    assert btc.BtcPE(unrolled=(8, 2)).step_cycles(FORMATS["int2-asym"]) == 1
    assert btc.BtcPE().cycles(256, weight_bits=2) == 2 * 16 - 1 + 2


def test_other_plane_counts_are_refused() -> None:
    pe = btc.BtcPE(unrolled=(8, 2))
    w = np.ones((1, 128), np.float32)
    with pytest.raises(InputError, match=r"btc-w2a8 PE has 2 weight planes and cannot run weight"):
        pe.gemm(w, quantize(w, "int4-sym"))
    act = quantize(w, "int4-sym", group_size=128)
    with pytest.raises(
        InputError, match=r"cannot run activation format int4-sym; it runs int8-sym"
    ):
        pe.gemm(act, quantize(w, "int2-sym"))
    with pytest.raises(InputError, match="it runs int3-sym and int3-asym and int2b-asym$"):
        btc.BtcPE(unrolled=(3, 2)).gemm(act, quantize(w, "int2-sym"))
