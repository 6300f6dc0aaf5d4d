"""AWQ layers: by hand, against float16 arithmetic, and back."""

import re
from importlib import import_module

import numpy as np
import pytest

from bitwright.quant import InputError, from_awq, quantize, to_awq

_module = import_module("bitwright.quant.importing.awq")  # the reference is not in the face


def packed(columns):
    """Codes [rows, n] in words: nibble i of a word is column 0 2 4 6 1 3 5 7 of its eight."""
    words = np.zeros((columns.shape[0], columns.shape[1] // 8), np.int64)
    for nibble, column in enumerate((0, 2, 4, 6, 1, 3, 5, 7)):
        words |= columns[:, column::8].astype(np.int64) << 4 * nibble
    return words.astype(np.uint32).view(np.int32)


def layer(k=96, n=40, groups=3, seed=0):
    rng = np.random.default_rng(seed)
    codes, zeros = rng.integers(0, 16, (k, n)), rng.integers(0, 16, (groups, n))
    scales = rng.uniform(1e-4, 0.1, (groups, n)).astype(np.float16)
    return codes, zeros, {"qweight": packed(codes), "qzeros": packed(zeros), "scales": scales}


def test_by_hand():
    # 0x75316420 holds 0 2 4 6 1 3 5 7 from the low end, so output i has code i in both columns;
    # all zeros are 2.
    words = np.array([[0x75316420], [0x75316420]], np.int32)
    tensor = from_awq(words, np.array([[0x22222222]], np.int32), np.full((1, 8), 0.5, np.float16))
    assert (tensor.format.name, tensor.shape, tensor.group_size) == ("int4-asym", (8, 2), 2)
    assert tensor.codes.tolist() == [[i, i] for i in range(8)]
    assert tensor.dequantize()[:, 1].tolist() == [-1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0, 2.5]


def test_a_negative_scale_by_hand():
    # (4 - 3) * -2 = -2.
    words, zeros = np.array([[0x44444444]], np.int32), np.array([[0x33333333]], np.int32)
    tensor = from_awq(words, zeros, np.full((1, 8), -2, np.float16))
    assert (set(tensor.codes.flat), set(tensor.zero_points.flat)) == ({11}, {12})
    assert set(tensor.dequantize().flat) == {-2.0}


@pytest.mark.parametrize("groups", [1, 3, 12])
def test_layers(groups):
    codes, zeros, arrays = layer(groups=groups)
    tensor = from_awq(**arrays)
    assert np.array_equal(tensor.codes, codes.T)
    assert np.array_equal(tensor.zero_points, zeros.T)
    of = np.arange(96) // (96 // groups)
    theirs = (codes - zeros[of]).astype(np.float16) * arrays["scales"][of]
    assert np.array_equal(tensor.dequantize().astype(np.float16), theirs.T)
    exact = (codes - zeros[of]) * arrays["scales"].astype(np.float64)[of]
    assert np.array_equal(tensor.dequantize(), exact.T)


@pytest.mark.parametrize("shape", [(1, 1), (8, 1), (13, 3), (264, 17), (520, 40)])
@pytest.mark.parametrize("twin", ["numba", "reference"])
def test_unpacking(shape, twin):
    codes = np.random.default_rng(0).integers(0, 16, (shape[0], 8 * shape[1]))
    unpack = _module.unpack_codes if twin == "numba" else _module.unpack_codes_reference
    out = unpack(packed(codes).view(np.uint32))
    assert out.dtype == np.uint8
    assert np.array_equal(out, codes.T)


def test_every_byte_in_every_place():
    words = np.arange(256, dtype=np.uint32) * np.uint32(0x01010101)
    words = words[None] + np.arange(16, dtype=np.uint32)[:, None] * np.uint32(0x01000193)
    assert np.array_equal(_module.unpack_codes(words), _module.unpack_codes_reference(words))


def test_round_trip():
    _, _, arrays = layer()
    tensor = from_awq(**arrays)
    written = to_awq(tensor)
    assert list(written) == ["qweight", "qzeros", "scales"]
    for name, array in arrays.items():
        assert written[name].dtype == array.dtype
        assert np.array_equal(written[name], array), name
    assert from_awq(**written) == tensor


def test_own_tensors_come_back():
    tensor = quantize(np.random.default_rng(0).normal(size=(24, 150)), "int4-asym", 64, "fp16")
    assert from_awq(**to_awq(tensor), group_size=64) == tensor


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"qweight": np.zeros((96, 5), np.uint32)}, "w.qweight is uint32 [96, 5], must be int32"),
        ({"scales": np.ones((3, 40), np.float32)}, "w.scales is float32 [3, 40], must be float16"),
        ({"scales": np.ones((3, 5), np.float16)}, "w.scales is float16 [3, 5], must be float16 [a"),
        ({"qzeros": np.zeros((2, 5), np.int32)}, "w.qzeros is int32 [2, 5], must be int32 [3, 5]"),
        ({"group_size": 48}, "w.scales has 3 groups, but 96 columns in groups of 48 make 2"),
        (
            {"scales": np.full((3, 40), np.inf, np.float16)},
            "w: the scale of row 0, group 0 is inf, must be finite",
        ),
    ],
)
def test_arrays_that_do_not_fit_are_refused(change, message):
    _, _, arrays = layer()
    with pytest.raises(InputError, match=f"^{re.escape(message)}"):
        from_awq(**{**arrays, **change}, name="w")


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (quantize(np.ones((8, 8)), "int3-asym"), "tensor is int3-asym, which AWQ cannot hold"),
        (quantize(np.ones((4, 8)), "int4-asym"), "n (=4) must be a multiple of 8 for AWQ's words"),
    ],
)
def test_what_does_not_fit_is_refused(tensor, message):
    with pytest.raises(InputError, match=f"^{re.escape(message)}"):
        to_awq(tensor)
