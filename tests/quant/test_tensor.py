"""QuantizedTensor: decoding, bits, equality and checks."""

import dataclasses
import re

import numpy as np
import pytest

from bitwright.quant import FORMATS, InputError, QuantizedTensor, olive_pair_values, quantize

#: Formats with any group size and scale format, and a value per code.
FREE = [name for name, row in FORMATS.items() if row.block is None and row.kind != "olive"]


def make(name="bitmod3", n=2, k=5, group_size=3, **changes):
    """A small tensor: codes count up, scales are 1, 2, ..."""
    format = FORMATS[name]
    groups = -(-k // max(1, group_size))
    fields = {
        "format": format,
        "group_size": group_size,
        "codes": (np.arange(n * k) % 2**format.bits).astype(np.uint8).reshape(n, k),
        "scale_format": "fp16",
        "group_scales": np.arange(1, n * groups + 1).astype(np.float16).reshape(n, groups),
    }
    if format.zero_point_bits:
        fields["zero_points"] = np.full((n, groups), 1, np.uint8)
    if format.selector_bits:
        fields["selectors"] = (np.arange(n * groups) % format.choices).astype(np.uint8)
        fields["selectors"] = fields["selectors"].reshape(n, groups)
    return QuantizedTensor(**fields | changes)


def test_shape():
    qt = make()
    assert (qt.n, qt.k, qt.shape, qt.groups) == (2, 5, (2, 5), 2)


def test_levels_decode_through_the_selector_of_their_group():
    # Columns 0..2 are group 0, 3..4 group 1. Selectors: row 0 has +3, -3; row 1 has +6, -6.
    codes = np.array([[4, 3, 7, 4, 5], [4, 0, 6, 1, 4]], np.uint8)
    qt = make(codes=codes)
    values = [[3, 4, -4, -3, -1], [6, 0, -2, 1, -6]]
    assert qt.values().tolist() == values
    # Scales: row 0 has 1, 2; row 1 has 3, 4.
    assert qt.dequantize().tolist() == [[3, 4, -4, -6, -2], [18, 0, -6, 4, -24]]


def test_symmetric_integers_decode_from_twos_complement():
    codes = np.array([[0, 1, 7, 8, 15]], np.uint8)
    qt = make("int4-sym", n=1, codes=codes)
    assert qt.values().tolist() == [[0, 1, 7, -8, -1]]


def test_asymmetric_integers_decode_around_the_zero_point():
    codes = np.array([[0, 1, 2, 3, 0]], np.uint8)
    qt = make("int2-asym", n=1, codes=codes, zero_points=np.array([[2, 0]], np.uint8))
    assert qt.values().tolist() == [[-2, -1, 0, 3, 0]]
    assert qt.dequantize().tolist() == [[-2, -1, 0, 6, 0]]


def test_dint_specials_ignore_the_zero_point():
    codes = np.array([[0, 5, 6, 7, 3]], np.uint8)
    qt = make("dint3-asym", n=1, codes=codes, zero_points=np.array([[2, 4]], np.uint8))
    # Columns 0..2: zero 2, scale 1; 3..4: zero 4, scale 2.
    assert qt.values().tolist() == [[-2, 3, 0.5, -0.5, -1]]
    assert qt.dequantize().tolist() == [[-2, 3, 0.5, -1, -2]]


def test_a_group_of_ant_decodes_through_its_type():
    codes = np.array([[4, 15, 9, 4, 15, 9, 4, 15, 9]], np.uint8)
    qt = make("ant4", n=1, k=9, codes=codes)  # selectors 0, 1, 2
    assert qt.values().tolist() == [[4, -1, -7, 16, -6, -1, 8, -64, -1]]


def test_pairs_decode_together():
    # (3, -7) | (victim, 12) | (-96, victim) | (victim, victim), never produced | a lone -1
    codes = np.array([[3, 9, 8, 1, 15, 8, 8, 8, 15]], np.uint8)
    qt = make("olive4", n=1, k=9, group_size=4, codes=codes)
    assert qt.values().tolist() == [[3, -7, 0, 12, -96, 0, 0, 0, -1]]
    assert qt.dequantize().tolist() == [[3, -7, 0, 12, -192, 0, 0, 0, -3]]
    assert qt.bits_per_weight == (9 * 4 + 3 * 16) / 9


def test_every_pair_decodes_as_the_table_says():
    codes = np.array([[a, b] for a in range(16) for b in range(16)], np.uint8)
    qt = make("olive4", n=256, k=2, group_size=2, codes=codes, group_scales=np.ones((256, 1), "f2"))
    assert qt.values().tolist() == [list(olive_pair_values(a, b)) for a, b in codes.tolist()]


def test_e8m0_scales_are_powers_of_two():
    codes = np.array([[0, 1, 127, 255, 128]], np.uint8)
    scales = np.array([[0], [130], [254]], np.uint8)
    qt = make(
        "mxint8",
        n=3,
        group_size=5,
        scale_format="e8m0",
        codes=np.repeat(codes, 3, axis=0),
        group_scales=scales,
    )
    assert qt.scales().tolist() == [[2.0**-127], [8.0], [2.0**127]]
    # -128 reads -2, although it is never produced.
    assert qt.values()[0].tolist() == [0, 1 / 64, 127 / 64, -1 / 64, -2]
    assert qt.dequantize()[1].tolist() == [0, 1 / 8, 127 / 8, -1 / 8, -16]


def test_e4m3_scales_are_multiplied_by_the_tensor_scale():
    qt = make(
        "nvfp4",
        n=1,
        group_size=5,
        scale_format="e4m3",
        codes=np.array([[0, 1, 7, 8, 15]], np.uint8),
        group_scales=np.array([[0x39]], np.uint8),  # 1.125
        tensor_scale=np.array([0.1], np.float32),
    )
    scale = np.float32(1.125) * np.float32(0.1)
    assert qt.scales().tolist() == [[scale]]
    assert qt.dequantize().tolist() == [[0, np.float32(0.5) * scale, 6 * scale, 0, -6 * scale]]
    assert qt.bits_per_weight == (5 * 4 + 8 + 32) / 5


def test_int8_scales_are_multiplied_by_the_channel_scale():
    qt = make(
        scale_format="int8",
        group_scales=np.array([[255, 128], [1, 0]], np.uint8),
        channel_scales=np.array([0.1, 2.0], np.float32),
    )
    c = np.float32(0.1)
    assert qt.scales().tolist() == [[np.float32(255) * c, np.float32(128) * c], [2.0, 0.0]]
    assert np.array_equal(qt.dequantize()[:, :3], qt.values()[:, :3] * qt.scales()[:, :1])


@pytest.mark.parametrize("name", FREE)
@pytest.mark.parametrize("scale_format", ["fp16", "int8"])
@pytest.mark.parametrize("group_size", [1, 7, 32, 40])
def test_decoding_equals_the_plain_formula(name, scale_format, group_size):
    w = np.random.default_rng(0).normal(size=(3, 40))
    qt = quantize(w, name, group_size=group_size, scale_format=scale_format)
    expected = np.empty((3, 40), np.float32)
    scales = qt.scales()
    for row in range(3):
        for column in range(40):
            group = column // group_size
            selector = 0 if qt.selectors is None else qt.selectors[row, group]
            zero = 0 if qt.zero_points is None else int(qt.zero_points[row, group])
            code = qt.codes[row, column]
            if qt.format.kind == "dint-asym" and code > qt.format.qmax:
                zero = 0  # the special values stay where they are
            value = qt.format.code_values(selector)[code] - zero
            expected[row, column] = np.float32(value) * scales[row, group]
            assert qt.values()[row, column] == value
    assert np.array_equal(qt.dequantize(), expected)


@pytest.mark.parametrize(
    ("name", "code"), [("int2b-asym", 5), ("int1b-asym", 3), ("fp8-e4m3", 127), ("fp8-e5m2", 252)]
)
def test_codes_that_mean_no_number_are_refused(name, code):
    codes = np.zeros((2, 5), np.uint8)
    codes[1, 3] = code
    message = rf"^codes\[1, 3\] is {code}, which is no number of {name}$"
    with pytest.raises(InputError, match=message):
        make(name, codes=codes)


def test_bits_per_weight_by_hand():
    # 5 weights of 3 bits; two groups with 16-bit scale and 2-bit selector: 15 + 36 per row.
    assert make().bits_per_weight == 51 / 5
    # INT4 with zero points: 20 + 2 * (16 + 4).
    assert make("int4-asym").bits_per_weight == 60 / 5
    # INT8 group scales: 15 + 2 * (8 + 2) + 32.
    int8 = {
        "scale_format": "int8",
        "group_scales": np.ones((2, 2), np.uint8),
        "channel_scales": np.ones(2, np.float32),
    }
    assert make(**int8).bits_per_weight == 67 / 5


def test_relative_mse():
    qt = make("int4-sym", n=1, k=2, group_size=2, codes=np.array([[3, 4]], np.uint8))
    # (3, 4) against (3, 5): 1 / (9 + 25)
    assert qt.relative_mse(np.array([[3, 5]], np.float32)) == pytest.approx(1 / 34)


def test_relative_mse_of_zero_weights():
    zeros = np.zeros((1, 2), np.float32)
    assert quantize(zeros, "fp4").relative_mse(zeros) == 0.0


def test_relative_mse_of_another_shape_is_refused():
    with pytest.raises(InputError, match=r"^w has shape \(1, 2\), the quantised tensor \(2, 5\)$"):
        make().relative_mse(np.zeros((1, 2), np.float32))


def test_equal_by_content():
    assert make() == make()
    assert make() is not make()


@pytest.mark.parametrize(
    "changes",
    [
        {"codes": np.zeros((2, 5), np.uint8)},
        {"group_scales": np.ones((2, 2), np.float16)},
        {"selectors": np.zeros((2, 2), np.uint8)},
        {"format": dataclasses.replace(FORMATS["bitmod3"], special_values=(3.0, -3.0, 5.0, -5.0))},
        {"group_size": 4},  # also two groups
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_not_equal(changes):
    assert make() != make(**changes)


def test_not_equal_to_something_else():
    assert make() != "tensor"


def test_not_hashable():
    with pytest.raises(TypeError, match="unhashable"):
        hash(make())


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        (
            "fp3",
            {"codes": np.zeros(5, np.uint8)},
            "codes have shape (5,); a matrix [n, k] is needed",
        ),
        (
            "fp3",
            {"codes": np.zeros((0, 5), np.uint8)},
            "codes have shape (0, 5); a matrix [n, k] is needed",
        ),
        ("fp3", {"group_size": 6}, "group_size (=6) must be in 1 .. k (=5)"),
        ("fp3", {"group_size": 0}, "group_size (=0) must be in 1 .. k (=5)"),
        (
            "fp3",
            {"scale_format": "fp32"},
            "scale_format 'fp32' is unknown; use one of fp16, int8",
        ),
        (
            "fp3",
            {"codes": np.zeros((2, 5), np.int8)},
            "codes are int8 (2, 5); fp3 with fp16 scales needs uint8 (2, 5) "
            "(n=2, k=5, group_size=3)",
        ),
        (
            "fp3",
            {"group_scales": np.ones((2, 3), np.float16)},
            "group_scales are float16 (2, 3); fp3 with fp16 scales needs float16 (2, 2) "
            "(n=2, k=5, group_size=3)",
        ),
        (
            "fp3",
            {"scale_format": "int8", "group_scales": np.ones((2, 2), np.uint8)},
            "channel_scales missing for fp3 with int8 scales",
        ),
        (
            "fp3",
            {"selectors": np.zeros((2, 2), np.uint8)},
            "selectors not allowed for fp3 with fp16 scales",
        ),
        ("fp3-er", {"selectors": None}, "selectors missing for fp3-er with fp16 scales"),
        ("int4-asym", {"zero_points": None}, "zero_points missing for int4-asym with fp16 scales"),
        (
            "fp3",
            {"codes": np.full((2, 5), 8, np.uint8)},
            "codes hold 8, outside 0 .. 7 of fp3",
        ),
        (
            "fp3-er",
            {"selectors": np.full((2, 2), 2, np.uint8)},
            "selectors hold 2, outside 0 .. 1 of fp3-er",
        ),
        (
            "int3-asym",
            {"zero_points": np.full((2, 2), 9, np.uint8)},
            "zero_points hold 9, outside 0 .. 7 of int3-asym",
        ),
        (
            "dint3-asym",
            {"zero_points": np.full((2, 2), 6, np.uint8)},
            "zero_points hold 6, outside 0 .. 5 of dint3-asym",
        ),
        (
            "dint3-asym",
            {"zero_points": None},
            "zero_points missing for dint3-asym with fp16 scales",
        ),
        (
            "ant4",
            {"selectors": np.full((2, 2), 3, np.uint8)},
            "selectors hold 3, outside 0 .. 2 of ant4",
        ),
        (
            "binary",
            {"codes": np.full((2, 5), 2, np.uint8)},
            "codes hold 2, outside 0 .. 1 of binary",
        ),
        (
            "olive4",
            {},
            "olive4 codes columns in pairs, so group_size (=3) must be even, or one group per row",
        ),
        (
            "mxfp4",
            {"scale_format": "e8m0"},
            "mxfp4 has blocks of 32 columns, so group_size (=3) must be 5; leave it out",
        ),
        (
            "fp4",
            {"scale_format": "e8m0"},
            "fp4 has no e8m0 scales; its scale_format is fp16 or int8",
        ),
        (
            "mxfp4",
            {
                "scale_format": "e8m0",
                "group_size": 5,
                "group_scales": np.array([[255], [0]], np.uint8),
            },
            "group_scales hold the e8m0 code 255; codes of finite scales that are not negative are "
            "0 .. 254",
        ),
        (
            "nvfp4",
            {
                "scale_format": "e4m3",
                "group_size": 5,
                "group_scales": np.array([[127], [0]], np.uint8),
                "tensor_scale": np.ones(1, np.float32),
            },
            "group_scales hold the e4m3 code 127; codes of finite scales that are not negative are "
            "0 .. 126",
        ),
        (
            "nvfp4",
            {
                "scale_format": "e4m3",
                "group_size": 5,
                "group_scales": np.zeros((2, 1), np.uint8),
            },
            "tensor_scale missing for nvfp4 with e4m3 scales",
        ),
        (
            "nvfp4",
            {
                "scale_format": "e4m3",
                "group_size": 5,
                "group_scales": np.zeros((2, 1), np.uint8),
                "tensor_scale": np.full(1, np.nan, np.float32),
            },
            "tensor_scale must be finite and not negative",
        ),
        (
            "fp4",
            {"tensor_scale": np.ones(1, np.float32)},
            "tensor_scale not allowed for fp4 with fp16 scales",
        ),
        (
            "fp3",
            {"group_scales": np.full((2, 2), np.inf, np.float16)},
            "group_scales must be finite and not negative",
        ),
        (
            "fp3",
            {"group_scales": np.full((2, 2), -1, np.float16)},
            "group_scales must be finite and not negative",
        ),
    ],
)
def test_what_does_not_fit_together_is_refused(name, changes, message):
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        make(name, **changes)
