"""GPTQ layers: by hand, against packing by big integers and float16 arithmetic, and back."""

import re
from importlib import import_module

import numpy as np
import pytest

from bitwright.quant import (
    InputError,
    PermutedTensor,
    QuantizedTensor,
    from_gptq,
    quantize,
    to_gptq,
)

_module = import_module("bitwright.quant.importing.gptq")  # the reference is not in the face
BITS = (2, 3, 4, 8)


def stream(codes, bits):
    """Codes of one row or column as signed words, by one big integer."""
    number = sum(int(code) << i * bits for i, code in enumerate(codes))
    return np.frombuffer(number.to_bytes(len(codes) * bits // 8, "little"), "<i4")


def layer(bits, k=96, n=32, group_size=32, version="gptq", seed=0, g_idx=None):
    """Random codes, zeros and scales, and their arrays; zeros suit both versions."""
    rng = np.random.default_rng(seed)
    groups = -(-k // group_size)
    codes = rng.integers(0, 1 << bits, (k, n))
    zeros = rng.integers(1, 1 << bits, (groups, n))
    scales = rng.uniform(1e-4, 0.1, (groups, n)).astype(np.float16)
    g_idx = np.arange(k) // group_size if g_idx is None else g_idx
    arrays = {
        "qweight": np.stack([stream(column, bits) for column in codes.T], axis=1),
        "qzeros": np.stack([stream(row - (version == "gptq"), bits) for row in zeros]),
        "scales": scales,
        "g_idx": g_idx.astype(np.int32),
    }
    return codes, zeros, arrays


def in_float16(codes, zeros, arrays):
    """What the tools compute: integers exactly, one product in float16; [n, k]."""
    g_idx = arrays["g_idx"]
    integers = (codes - zeros[g_idx]).astype(np.float16)
    return (arrays["scales"][g_idx] * integers).T


def test_four_bits_by_hand():
    # One word of codes per output, 0 1 2 3 4 5 6 7 from the low end; zeros 3, stored as 2.
    tensor = from_gptq(
        np.full((1, 8), 0x76543210, np.int32),
        np.array([[0x22222222]], np.int32),
        np.full((1, 8), 0.5, np.float16),
        bits=4,
    )
    assert (tensor.format.name, tensor.shape, tensor.group_size) == ("int4-asym", (8, 8), 8)
    assert set(tensor.zero_points.flat) == {3}
    assert tensor.dequantize()[5].tolist() == [-1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0]


def test_three_bits_by_hand():
    # 32 codes in 96 bits. Code 10 has bits 30 .. 32, code 21 bits 63 .. 65: 5 = 0b101 and
    # 6 = 0b110 at them make the words 1 << 30, 1 | 0 << 31 and 0b11; all others are 0.
    words = np.array([0x40000000, 0x00000001, 0x00000003], np.int32)
    tensor = from_gptq(
        np.tile(words[:, None], (1, 32)),
        np.zeros((1, 3), np.int32),
        np.ones((1, 32), np.float16),
        bits=3,
        version="gptq_v2",
    )
    expected = [0.0] * 32
    expected[10], expected[21] = 5.0, 6.0
    assert tensor.dequantize().tolist() == [expected] * 32


def test_columns_out_of_order_by_hand():
    # Groups of columns 1 0 1 0: columns 1 3 0 2 stand together.
    codes = np.full((1, 4), 0x04030201, np.int32)
    scales = np.array([[1] * 4, [10] * 4], np.float16)
    tensor = from_gptq(
        codes, np.zeros((2, 1), np.int32), scales, np.array([1, 0, 1, 0], np.int32), bits=8
    )
    assert isinstance(tensor, PermutedTensor)
    assert tensor.columns.tolist() == [1, 3, 0, 2]
    assert tensor.tensor.codes[0].tolist() == [2, 4, 1, 3]
    # Zeros are 1: (1 - 1) * 10, (2 - 1) * 1, (3 - 1) * 10, (4 - 1) * 1.
    assert tensor.dequantize()[0].tolist() == [0.0, 1.0, 20.0, 3.0]


def test_a_negative_scale_by_hand():
    # (4 - 3) * -2 = -2 = ((15 - 4) - (15 - 3)) * 2.
    tensor = from_gptq(
        np.full((1, 8), 0x44444444, np.int32),
        np.full((1, 1), 0x22222222, np.int32),
        np.full((1, 8), -2, np.float16),
        bits=4,
    )
    assert (set(tensor.codes.flat), set(tensor.zero_points.flat)) == ({11}, {12})
    assert set(tensor.dequantize().flat) == {-2.0}


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("version", ["gptq", "gptq_v2"])
@pytest.mark.parametrize("group_size", [32, 96, 40])
def test_layers(bits, version, group_size):
    codes, zeros, arrays = layer(bits, group_size=group_size, version=version)
    tensor = from_gptq(**arrays, bits=bits, version=version)
    assert isinstance(tensor, QuantizedTensor)
    assert np.array_equal(tensor.codes, codes.T)
    assert np.array_equal(tensor.zero_points, zeros.T)
    assert (tensor.group_size, tensor.format.name) == (group_size, f"int{bits}-asym")
    theirs = in_float16(codes, zeros, arrays)
    assert np.array_equal(tensor.dequantize().astype(np.float16), theirs)


@pytest.mark.parametrize("bits", BITS)
def test_numbers_are_exact_products(bits):
    codes, zeros, arrays = layer(bits)
    groups = arrays["g_idx"]
    exact = (codes - zeros[groups]) * arrays["scales"].astype(np.float64)[groups]
    assert np.array_equal(from_gptq(**arrays, bits=bits).dequantize(), exact.T)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("k", [96, 90 + 6 + 32])
def test_columns_in_any_order(bits, k):
    order = np.random.default_rng(1).permutation(k) // 32
    codes, zeros, arrays = layer(bits, k=k, g_idx=order)
    tensor = from_gptq(**arrays, bits=bits, group_size=32)
    assert isinstance(tensor, PermutedTensor)
    theirs = in_float16(codes, zeros, arrays)
    assert np.array_equal(tensor.dequantize().astype(np.float16), theirs)
    x = np.random.default_rng(2).integers(-8, 8, (3, k)).astype(np.float64)
    plain = x @ tensor.dequantize().T.astype(np.float64)
    permuted = x[:, tensor.columns] @ tensor.tensor.dequantize().T.astype(np.float64)
    assert np.allclose(plain, permuted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (6, 17), (96, 40), (240, 33), (65, 130)])
@pytest.mark.parametrize("twin", ["numba", "reference"])
@pytest.mark.parametrize("ordered", [True, False])
def test_unpacking(bits, shape, twin, ordered):
    rows, n = shape[0] * (3 if bits == 3 else 1), shape[1]
    packed = np.random.default_rng(bits).integers(0, 2**32, (rows, n), dtype=np.uint32)
    unpack = _module.unpack_codes if twin == "numba" else _module.unpack_codes_reference
    expected = [
        [
            int.from_bytes(column.tobytes(), "little") >> i * bits & (1 << bits) - 1
            for i in range(rows * 32 // bits)
        ]
        for column in packed.T
    ]
    columns = None
    if not ordered:
        columns = np.random.default_rng(1).permutation(len(expected[0]))
        expected = [[row[column] for column in columns] for row in expected]
    codes = unpack(packed, bits, columns)
    assert codes.dtype == np.uint8
    assert codes.tolist() == expected


def test_every_byte_in_every_place():
    words = np.arange(256, dtype=np.uint32) * np.uint32(0x01010101)
    places = np.array([0, 1, 2, 3], np.uint32)[:, None] * np.uint32(0x01000193)
    for bits in BITS:
        packed = np.repeat(words[None] + places, 3, axis=0)
        turned = np.arange(len(packed) * 32 // bits)[::-1].copy()
        for columns in (None, turned):
            fast = _module.unpack_codes(packed, bits, columns)
            assert np.array_equal(fast, _module.unpack_codes_reference(packed, bits, columns))


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("version", ["gptq", "gptq_v2"])
@pytest.mark.parametrize("ordered", [True, False])
def test_round_trip(bits, version, ordered):
    order = None if ordered else np.random.default_rng(1).permutation(96) // 32
    _, _, arrays = layer(bits, version=version, g_idx=order)
    tensor = from_gptq(**arrays, bits=bits, group_size=32, version=version)
    written = to_gptq(tensor, version)
    assert list(written) == ["qweight", "qzeros", "scales", "g_idx"]
    for name, array in arrays.items():
        assert written[name].dtype == array.dtype
        assert np.array_equal(written[name], array), name
    assert from_gptq(**written, bits=bits, group_size=32, version=version) == tensor


@pytest.mark.parametrize("bits", BITS)
def test_own_tensors_come_back(bits):
    w = np.random.default_rng(bits).normal(size=(32, 160))
    tensor = quantize(w, f"int{bits}-asym", 64, "fp16")
    written = to_gptq(tensor, "gptq_v2")
    assert from_gptq(**written, bits=bits, group_size=64, version="gptq_v2") == tensor
    without = {key: array for key, array in written.items() if key != "g_idx"}
    assert from_gptq(**without, bits=bits, group_size=64, version="gptq_v2") == tensor


@pytest.mark.parametrize("bits", BITS)
def test_carries_undo_one_subtraction_of_a_word(bits):
    zeros = np.random.default_rng(bits).integers(0, 1 << bits, (3, 32))
    zeros[:, ::3] = 0
    if bits == 3:
        stored = [stream((row - 1) % 8, 3) for row in zeros]
    else:
        ones = int("1".zfill(bits) * (32 // bits), 2)
        stored = [stream(row, bits).view(np.uint32) - np.uint32(ones) for row in zeros]
    _, _, arrays = layer(bits)
    arrays["qzeros"] = np.stack(stored).view(np.int32)
    tensor = from_gptq(**arrays, bits=bits, carry=True)
    assert np.array_equal(tensor.zero_points, zeros.T)
    with pytest.raises(InputError, match=r"readers of version 1 tell differently; if GPTQModel"):
        from_gptq(**arrays, bits=bits)


def refused(message, arrays, **options):
    with pytest.raises(InputError, match=f"^{re.escape(message)}"):
        from_gptq(**arrays, **{"bits": 4, "name": "w", **options})


def test_other_bits_and_versions_are_refused():
    _, _, arrays = layer(4)
    refused("w: bits 5 is not one of 2, 3, 4, 8", arrays, bits=5)
    refused("w: version 'marlin' is not one of gptq, gptq_v2", arrays, version="marlin")
    with pytest.raises(InputError, match=r"^version 'marlin' is not one of gptq, gptq_v2$"):
        to_gptq(from_gptq(**arrays, bits=4), "marlin")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"qweight": np.zeros((12, 32), np.int64)}, "w.qweight is int64 [12, 32], must be int32"),
        ({"qweight": np.zeros(12, np.int32)}, "w.qweight is int32 [12], must be int32 [any, any]"),
        ({"qweight": np.zeros((12, 20), np.int32)}, "w.qweight has 20 columns, whose 4-bit zero"),
        ({"scales": np.ones((3, 32), np.float32)}, "w.scales is float32 [3, 32], must be float16"),
        ({"scales": np.ones((3, 31), np.float16)}, "w.scales is float16 [3, 31], must be float16"),
        ({"scales": np.ones((4, 32), np.float16)}, "w.qzeros is int32 [3, 4], must be int32 [4, 4"),
        ({"qzeros": np.zeros((3, 32), np.int32)}, "w.qzeros is int32 [3, 32], must be int32 [3, 4"),
        ({"g_idx": np.zeros(95, np.int32)}, "w.g_idx is int32 [95], must be int32 [96]"),
        ({"g_idx": np.zeros(96, np.int32)}, "w.scales has 3 groups, but 96 columns in groups of"),
        (
            {"g_idx": np.repeat([0, 1, 3], 32).astype(np.int32)},
            "w.g_idx does not name each of 3 groups for 32 columns (its values are 0 .. 3); groups",
        ),
        (
            {"g_idx": np.repeat([-1, 0, 2**31 - 1], 32).astype(np.int32)},
            "w.g_idx does not name each of 3 groups for 32 columns (its values are -1 .. 2147483",
        ),
    ],
)
def test_arrays_that_do_not_fit_are_refused(change, message):
    _, _, arrays = layer(4)
    refused(message, arrays | change)


def test_another_group_size_is_refused():
    _, _, arrays = layer(4)
    refused("w.scales has 3 groups, but 96 columns in groups of 48", arrays, group_size=48)
    refused("w.scales has 3 groups, but 96 columns in groups of 0", arrays, group_size=0)


def test_a_group_size_beyond_all_columns_is_one_group():
    _, _, arrays = layer(4, group_size=96)
    assert from_gptq(**arrays, bits=4, group_size=128) == from_gptq(**arrays, bits=4)


def test_words_that_hold_no_whole_number_of_codes_are_refused():
    _, _, arrays = layer(4)
    arrays["qweight"] = arrays["qweight"][:11]
    refused("w.qweight has 11 rows of words, which hold no whole number of 3-bit", arrays, bits=3)


def test_a_scale_that_is_no_number_is_named():
    _, _, arrays = layer(4)
    arrays["scales"][2, 7] = np.nan
    refused("w: the scale of row 7, group 2 is nan, must be finite", arrays)


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (quantize(np.ones((32, 32)), "int4-sym"), "tensor is int4-sym, which GPTQ cannot hold"),
        (quantize(np.ones((32, 32)), "int5-asym"), "tensor is int5-asym, which GPTQ cannot hold"),
        (quantize(np.ones((4, 32)), "int4-asym"), "n (=4) must be a multiple of 8: GPTQ puts 4-b"),
        (quantize(np.ones((32, 40)), "int3-asym"), "k (=40) must be a multiple of 32: GPTQ puts"),
        (
            quantize(np.ones((32, 32)), "int4-asym"),
            "the zero point of row 0, group 0 is 0, which GPTQ version 1 cannot hold; use version",
        ),
        (
            quantize(np.ones((32, 32)), "int4-asym", 32, "int8"),
            "tensor has int8 scales, GPTQ stores fp16 ones",
        ),
    ],
)
def test_what_does_not_fit_is_refused(tensor, message):
    with pytest.raises(InputError, match=f"^{re.escape(message)}"):
        to_gptq(tensor)
