"""ANT, OliVe, MX, NVFP4, FP16 x integer, ternary, table: decoders and sums, by hand and in full."""

from fractions import Fraction

import numpy as np
import pytest

from bitwright.quant import FORMATS, InputError, olive_pair_values, quantize
from bitwright.sim import ant, blocks, fp16int, lut, olive, ternary

ANT_FORMATS = {ant.INT: "int4-sym", ant.FLINT: "flint4", ant.POT: "pot4"}


@pytest.mark.parametrize("kind", ANT_FORMATS)
def test_ant_decoder_is_the_formats(kind: int) -> None:
    values = FORMATS[ANT_FORMATS[kind]].code_values()
    got = [ant.AntPE().decode((code,), kind)[0] for code in range(16)]
    # Minus zero and -8 are codes that no format produces; the decoder follows its rule.
    assert [g for c, g in enumerate(got) if c != 8] == [v for c, v in enumerate(values) if c != 8]


def test_ant4_selectors_are_the_types_of_the_pe() -> None:
    for kind, name in ANT_FORMATS.items():
        assert FORMATS["ant4"].code_values(kind) == FORMATS[name].code_values()


def test_flint5_by_the_value_set_of_the_authors_code() -> None:
    values = {ant.AntPE(bits=5).decode((code,), ant.FLINT)[0] for code in range(16)}
    assert values == {0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 24, 32, 64}


def test_every_olive_pair_is_the_format() -> None:
    pe = olive.OlivePE()
    for a in range(16):
        for b in range(16):
            assert pe.decode((a, b), 0) == tuple(olive_pair_values(a, b)), (a, b)


def test_olive_outliers() -> None:
    pe = olive.OlivePE()
    outliers = [pe.decode((code, 8), 0)[0] for code in range(1, 8)]
    assert outliers == [12, 16, 24, 32, 48, 64, 96]
    assert pe.decode((8, 8), 0) == (0, 0)


@pytest.mark.parametrize("pe", [blocks.Mxfp4PE(), blocks.Mxint8PE(), blocks.Nvfp4PE()])
def test_elements_and_scales_are_the_formats(pe: blocks.BlockUnit) -> None:
    fmt = FORMATS[pe.format_name]
    unit = 64 if pe.format_name == "mxint8" else 2
    got = [pe.decode_act(code) / unit for code in range(1 << fmt.bits)]
    assert got == list(fmt.code_values())


def test_e4m3_scales() -> None:
    pe = blocks.Nvfp4PE()

    def value(code: int) -> Fraction:
        significand, exponent = pe.decode_scale(code)
        return significand * Fraction(2) ** (exponent - 10)

    assert (value(0), value(1), value(0x38), value(0x7E)) == (0, Fraction(1, 512), 1, 448)


def test_one_mxfp4_block_by_hand() -> None:
    """6 * 0.5 + (-1.5) * 4 = -3, scaled by 2**3 * 2**-1: -12; D in quarters."""
    pe = blocks.Mxfp4PE()
    step = {f"{side}{i}": 0 for side in ("act", "code") for i in range(32)}
    step |= {"act0": 7, "code0": 1, "act9": 0b1011, "code9": 6}
    step |= {"act_scale": 130, "weight_scale": 126}
    total, exponent = pe.partial(step)
    assert (total, exponent) == (-12, 256)
    assert pe.accumulator.add(0, total, exponent) == int(np.float32(-12).view(np.uint32))


def test_gemm_of_block_formats_is_close_to_the_dequantised_product() -> None:
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((4, 256)), rng.standard_normal((6, 256))
    for pe in (blocks.Mxfp4PE(), blocks.Mxint8PE(), blocks.Nvfp4PE()):
        qt = quantize(w, pe.format_name)
        act = pe.activations(x, qt)
        exact = act.dequantize().astype(np.float64) @ qt.dequantize().astype(np.float64).T
        # One rounding (2**-24 relative) per block of sums bounded by the sum of magnitudes, and
        # two for the tensor scales.
        size = np.abs(act.dequantize()).astype(float) @ np.abs(qt.dequantize()).astype(float).T
        bound = size * (qt.groups + 4) * 2.0**-24
        assert (np.abs(pe.gemm(act, qt) - exact) <= bound).all()


def test_a_scale_outside_the_range_is_refused() -> None:
    pe = blocks.Mxfp4PE()
    w = np.full((1, 32), 2.0**60, np.float32)
    with pytest.raises(
        InputError,
        match=r"weight scale code 185 of row 0, block 0 is outside 70 \.\. 170, which the mxfp4 PE",
    ):
        pe.gemm(np.ones((1, 32), np.float32), quantize(w, "mxfp4"))


def test_a_block_of_zeros_runs_whatever_its_scale() -> None:
    w = np.zeros((2, 64), np.float32)
    w[1, 40] = 1
    for pe in (blocks.Mxfp4PE(), blocks.Nvfp4PE()):
        y = pe.gemm(np.ones((1, 64), np.float32), quantize(w, pe.format_name))
        assert y.tolist() == [[0, 1]]


def test_fp16_times_int4_by_hand() -> None:
    """0.5 * -8 + 2**-24 * 7: the smallest subnormal counts."""
    pe = fp16int.Fp16IntPE()
    assert pe.partial({"act0": 0x3800, "code0": 8}) == (-8192, 14)
    assert pe.partial({"act0": 0x0001, "code0": 7}) == (7, 1)
    assert pe.partial({"act0": 0x8001, "code0": 7}) == (-7, 1)


def test_ternary_codes() -> None:
    assert ternary.TernaryPE().weight_table().tolist() == [[0, 1, 0, -1]]


def test_binary_weights_look_up_both_sides() -> None:
    w = quantize(np.array([[1.0, -1, 1, 1, -1]], np.float32), "binary", group_size=5)
    assert lut.weight_signs(w).tolist() == [[1, -1, 1, 1, -1]]
    x = np.array([[1.0, 2, 4, 8, 16]], np.float32)
    pe = lut.LutPE()
    act = pe.activations(x, w)
    wanted = float((act.values() * [1, -1, 1, 1, -1]).sum()) * act.scales()[0, 0]
    assert pe.gemm(act, w)[0, 0] == np.float32(wanted)
