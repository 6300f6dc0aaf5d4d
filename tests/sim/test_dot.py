"""All dot-product PEs: definition against fast twins, timing, overflow, refusals."""

import itertools
import re

import numpy as np
import pytest

from bitwright.quant import FORMATS, InputError, QuantizedTensor, quantize
from bitwright.sim import PES, ant, blocks, btc, dint, dot, fp16int, integer, lut, olive, ternary

INTEGER = [
    integer.IntegerPE(),
    integer.IntegerPE(lanes=16),
    integer.IntegerPE(weight_bits=4),
    integer.IntegerPE(4, 4),
    *(dint.DintPE(bits=bits) for bits in range(3, 9)),
    *(dint.DintPE(bits=bits, asymmetric=True) for bits in range(3, 9)),
    dint.DintPE(lanes=16),
    ternary.TernaryPE(),
    lut.LutPE(),
    ant.AntPE(),
    olive.OlivePE(),
    btc.BtcPE(),
    btc.BtcPE(unrolled=(8, 2)),
    btc.BtcPE(k_slice=8, unrolled=(3, 2)),
]
FLOAT = [
    fp16int.Fp16IntPE(),
    fp16int.Fp16IntPE(8),
    blocks.Mxfp4PE(),
    blocks.Mxint8PE(),
    blocks.Nvfp4PE(),
]
EVERY = [pytest.param(unit, id=unit.name) for unit in (*INTEGER, *FLOAT)]


def random_ports(unit: dot.DotUnit, steps: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Legal patterns; FP16 ones are finite."""
    ports = {}
    for name, bits in unit.ports.items():
        low, high = unit.limits.get(name, (0, (1 << bits) - 1))
        values = rng.integers(low, high, steps, np.uint32, endpoint=True)
        ports[name] = values & 0xFBFF if bits == 16 else values
    return ports


def operands(
    unit: dot.DotUnit, fmt: str, rng: np.random.Generator
) -> tuple[np.ndarray, QuantizedTensor]:
    x = rng.standard_normal((3, 150)).astype(np.float16)
    w = rng.standard_normal((5, 150)).astype(np.float32)
    return x, quantize(w, fmt, group_size=None if isinstance(unit, blocks.BlockUnit) else 64)


def formats(unit: dot.DotUnit) -> tuple[str, ...]:
    if isinstance(unit, btc.BtcPE) and unit.unrolled:
        return tuple(f for f in unit.weight_formats if FORMATS[f].bits == unit.unrolled[1])
    return unit.weight_formats


@pytest.mark.parametrize("unit", EVERY)
def test_partial_sums_of_streams_equal_the_definition(unit: dot.DotUnit) -> None:
    ports = random_ports(unit, 300, np.random.default_rng(1))
    total, exponent = unit.partials(ports)
    names = list(ports)
    for i, row in enumerate(zip(*(values.tolist() for values in ports.values()), strict=True)):
        assert unit.partial(dict(zip(names, row, strict=True))) == (total[i], exponent[i])


@pytest.mark.parametrize("unit", EVERY)
def test_model_equals_the_reference_in_bits_and_cycles(unit: dot.DotUnit) -> None:
    rng = np.random.default_rng(2)
    last = rng.random(200) < 0.3
    last[-1] = True
    stream = dot.DotStream(random_ports(unit, 200, rng), last)
    values, cycles = dot.run_reference(unit, stream)
    y, cycle = dot.run_model(unit, stream)
    assert (values, cycles) == (y.tolist(), cycle.tolist())


@pytest.mark.parametrize("unit", EVERY)
def test_gemm_equals_the_reference_on_tensors(unit: dot.DotUnit) -> None:
    rng = np.random.default_rng(3)
    for fmt in formats(unit):
        x, w = operands(unit, fmt, rng)
        y = unit.gemm(x, w)
        assert np.array_equal(y.view(np.uint32), unit.reference(x, w).view(np.uint32)), fmt
        assert y.dtype == np.float32 and y.shape == (3, 5)


@pytest.mark.parametrize("unit", [pytest.param(unit, id=unit.name) for unit in INTEGER])
def test_array_integers_equal_the_exact_matrix_product(unit: dot.DotUnit) -> None:
    """With unit scales, y is the product of the tensors' values: exact integers, or halves."""
    rng = np.random.default_rng(4)
    for fmt in formats(unit):
        x, w = operands(unit, fmt, rng)
        act = unit.activations(x, w)
        plain = [
            QuantizedTensor(
                format=t.format,
                group_size=t.group_size,
                codes=t.codes,
                scale_format="fp16",
                group_scales=np.ones((t.n, t.groups), np.float16),
                zero_points=t.zero_points,
                selectors=t.selectors,
            )
            for t in (act, w)
        ]
        exact = plain[0].values().astype(np.float64) @ plain[1].values().astype(np.float64).T
        assert np.array_equal(unit.gemm(plain[0], plain[1]), exact), fmt


@pytest.mark.parametrize("stages", dot.STAGES)
def test_a_result_comes_as_many_cycles_after_its_last_step_as_there_are_registers(
    stages: int,
) -> None:
    unit = integer.IntegerPE(stages=stages)
    ports = {"act0": np.array([3, 5, 7]), "code0": np.array([2, 0xFF, 1])}
    stream = dot.DotStream(ports, np.array([False, True, True]))
    # 3 * 2 - 5 = 1, taken in cycles 0 and 1; 7, taken in cycle 2
    assert dot.run_reference(unit, stream) == ([1, 7], [1 + stages, 2 + stages])
    assert unit.cycles(2) == 1 + stages


def test_overflow_wraps() -> None:
    unit = integer.IntegerPE(accumulator=dot.IntAccumulator(16))
    steps = 3
    ports = {"act0": np.full(steps, 0x80), "code0": np.full(steps, 0x80)}
    stream = dot.DotStream(ports, np.array([False, False, True]))
    # 3 * 16384 = 49152 = 0xC000, which is -16384 in 16 bits
    assert dot.run_reference(unit, stream)[0] == [0xC000]
    assert dot.run_model(unit, stream)[0].tolist() == [0xC000]


def test_a_reset_forgets_what_is_under_way() -> None:
    reference = dot.DotReference(integer.IntegerPE())
    step = {"act0": 1, "code0": 1, "last": 0}
    for _ in range(3):
        reference.tick(step)
    reference.reset()
    results = [reference.tick({**step, "last": 1} if cycle == 0 else None) for cycle in range(4)]
    assert results == [None, None, 1, None]


@pytest.mark.parametrize("unit", EVERY)
def test_activations_of_zero_add_nothing(unit: dot.DotUnit) -> None:
    """Hence a cycle without a step, and a padded lane, change no sum."""
    ports = random_ports(unit, 50, np.random.default_rng(5))
    for name in ports:
        if re.match(r"act\d|x\d", name):
            ports[name] = np.zeros_like(ports[name])
    assert not unit.partials(ports)[0].any()


@pytest.mark.parametrize("unit", EVERY)
def test_partial_sums_have_the_documented_width(unit: dot.DotUnit) -> None:
    """D of a floating-point PE must be exact in binary32."""
    ports = random_ports(unit, 20_000, np.random.default_rng(6))
    limit = 1 << 23 if isinstance(unit.accumulator, dot.FloatAccumulator) else 1 << 22
    assert np.abs(unit.partials(ports)[0]).max() <= limit


CASES = [
    (lambda: integer.IntegerPE(act_bits=9), r"act_bits \(=9\) must be in 2 \.\. 8"),
    (lambda: integer.IntegerPE(weight_bits=1), r"weight_bits \(=1\) must be in 2 \.\. 8"),
    (lambda: integer.IntegerPE(lanes=65), r"lanes \(=65\) must be in 1 \.\. 64"),
    (lambda: integer.IntegerPE(stages=4), r"stages \(=4\) must be one of 1, 2, 3"),
    (lambda: dint.DintPE(bits=2), r"bits \(=2\) of a dINT weight must be in 3 \.\. 8"),
    (lambda: dint.DintPE(bits=9), r"bits \(=9\) of a dINT weight must be in 3 \.\. 8"),
    (lambda: dot.IntAccumulator(33), r"acc_bits \(=33\) must be in 8 \.\. 32"),
    (lambda: btc.BtcPE(k_slice=48), r"k_slice \(=48\) must be in 1 \.\. 32 or a multiple of 32"),
    (lambda: btc.BtcPE(unrolled=(9, 1)), r"unrolled \(=\(9, 1\)\) must be two numbers of planes"),
    (lambda: btc.BtcPE(act_bits=1), r"act_bits \(=1\) must be in 2 \.\. 8"),
    (lambda: ant.AntPE(bits=3), r"bits \(=3\) of an ANT code must be 4 or 5"),
    (lambda: olive.OlivePE(lanes=3), r"lanes \(=3\) must be even"),
    (lambda: fp16int.Fp16IntPE(9), r"weight_bits \(=9\) must be in 2 \.\. 8"),
]


@pytest.mark.parametrize(("make", "message"), CASES, ids=[message for _, message in CASES])
def test_a_shape_that_cannot_be_built_is_refused(make, message) -> None:
    with pytest.raises(InputError, match=message):
        make()


def test_an_accumulator_too_narrow_names_the_length_that_fits() -> None:
    unit = dint.DintPE(accumulator=dot.IntAccumulator(16))
    w = quantize(np.ones((1, 128), np.float32), "dint4-sym", group_size=128)
    # 128 * 12 = 1536 a product; 32767 // 1536 = 21, and 128 / 21 needs 3 bits more
    with pytest.raises(
        InputError,
        match=r"dint4 PE's accumulator of 16 bits holds dot products of up to k = 21, not 128; "
        r"use groups of at most 21 or acc_bits 19",
    ):
        unit.gemm(np.ones((1, 128), np.float32), w)


@pytest.mark.parametrize("unit", EVERY)
def test_a_format_that_does_not_run_is_refused(unit: dot.DotUnit) -> None:
    w = quantize(np.ones((1, 64), np.float32), "fp6-e2m3", group_size=64)
    with pytest.raises(
        InputError, match=rf"the {unit.name} PE cannot run weight format fp6-e2m3; it runs "
    ):
        unit.gemm(np.ones((1, 64), np.float32), w)
    with pytest.raises(InputError, match=rf"the {unit.name} PE cannot run weight format fp16"):
        unit.step_cycles(None)


@pytest.mark.parametrize("unit", EVERY)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_activations_that_are_not_finite_are_refused(unit: dot.DotUnit, value: float) -> None:
    x, w = operands(unit, formats(unit)[-1], np.random.default_rng(0))
    x[1, 2] = value
    with pytest.raises(InputError, match=r"finite"):
        unit.gemm(x, w)


@pytest.mark.parametrize("unit", EVERY)
def test_another_k_is_refused(unit: dot.DotUnit) -> None:
    x, w = operands(unit, formats(unit)[-1], np.random.default_rng(0))
    with pytest.raises(InputError, match=r"k = 150"):
        unit.gemm(x[:, :-1], w)


def test_names_are_unique_and_those_of_the_table() -> None:
    for name, pe in PES.items():
        assert pe.name == name
    wanted = (
        "bitmod dint4 btc fp16 int8 int4 int4x8 fp16xint4 fp16xint8 ant olive mxfp4 mxint8 nvfp4 "
        "ternary lut"
    )
    assert set(wanted.split()) <= set(PES)


def test_lanes_of_a_ragged_group_are_padded() -> None:
    codes = np.arange(1, 8)[None]
    assert dot.lane_layout(codes, 5, 4).tolist() == [[[1, 2, 3, 4], [5, 0, 0, 0], [6, 7, 0, 0]]]


def test_dequantise_rounds_in_the_documented_order() -> None:
    """(2**24 + 1) rounds to 2**24 before it is scaled; 2**24 * 3 + 1 * 0.5 rounds to 50331648."""
    sums = np.array([[[(1 << 24) + 1, 1]]])
    y = dot.dequantise(
        sums, np.array([[3.0]], np.float32), np.array([[1.0, 1 / 3]], np.float32), 0.5
    )
    step = np.float32(1 << 24) * np.float32(1.5)
    assert y[0, 0] == step + np.float32(3) * np.float32(1 / 3) * np.float32(0.5)


def test_two_steps_of_two_lanes_by_hand() -> None:
    unit = integer.IntegerPE(8, 4, lanes=2)
    steps = [
        {"act0": 10, "act1": 0xFF, "code0": 7, "code1": 8, "last": 0},  # 70 + (-1)(-8) = 78
        {"act0": 0x80, "act1": 1, "code0": 0xF, "code1": 1, "last": 1},  # 128 + 1
    ]
    reference = dot.DotReference(unit)
    results = [reference.tick(step) for step in itertools.chain(steps, [None, None])]
    assert results == [None, None, None, 78 + 129]
