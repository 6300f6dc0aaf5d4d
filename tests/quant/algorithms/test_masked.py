"""Masked matrices: zeros exact in every format, bits to the byte, products of what is kept."""

from importlib import import_module

import numpy as np
import pytest

from bitwright.quant import FORMATS, InputError, load_tensors, quantize, save_tensors

_masked = import_module("bitwright.quant.algorithms.masked")
MaskedMatrix = _masked.MaskedMatrix
Pattern = _masked.Pattern
mask_matrix = _masked.mask_matrix

MASKABLE = [name for name, format in FORMATS.items() if format.kind != "olive"]
PATTERNS = {"bitmap": None, "2:4": Pattern(2, 4), "4:8": Pattern(4, 8), "1:3": Pattern(1, 3)}


def weights(n, k, seed=0):
    return np.random.default_rng(seed).normal(size=(n, k)).astype(np.float32)


def random_mask(n, k, pattern, seed=1):
    """Half of the weights, or what the pattern keeps, at random."""
    scores = np.random.default_rng(seed).random((n, k))
    if pattern is None:
        return scores < 0.5
    runs = scores.reshape(-1, pattern.of).argsort(1) < pattern.kept
    return runs.reshape(n, k)


@pytest.mark.parametrize("name", MASKABLE)
@pytest.mark.parametrize("which", PATTERNS)
def test_zeros_are_exact_and_the_rest_is_the_formats(name, which, tmp_path):
    pattern, group = PATTERNS[which], FORMATS[name].block or 48
    inner = quantize(weights(6, 192), name, group_size=group)
    if pattern is not None and group % pattern.of:
        with pytest.raises(InputError, match=f"group size {group} is no multiple of {pattern.of}"):
            mask_matrix(inner, random_mask(6, 192, pattern), pattern)
        return
    mask = random_mask(6, 192, pattern)
    matrix = mask_matrix(inner, mask, pattern)
    assert np.array_equal(matrix.dequantize(), np.where(mask, inner.dequantize(), 0))
    assert not matrix.dequantize()[~mask].any()
    save_tensors(tmp_path / "m.safetensors", {"w": matrix}, {})
    loaded = load_tensors(tmp_path / "m.safetensors")[0]["w"]
    assert loaded == matrix and np.array_equal(loaded.mask, mask)
    assert np.array_equal(loaded.dequantize(), matrix.dequantize())
    assert sum(step.bits for step in matrix.passes()) == matrix.stored_bits


@pytest.mark.parametrize(
    "format, pattern, bits",
    [
        (None, None, 16 / 2 + 1),
        (None, Pattern(2, 4), 9.0),
        (None, Pattern(4, 8), 16 / 2 + 1.5),
        ("int4-sym", Pattern(2, 4), 3 + 16 / 64),
        ("int4-sym", Pattern(1, 4), 1 + 0.5 + 16 / 64),
        ("int4-asym", Pattern(2, 4), 3 + 20 / 64),
        ("int3-sym", Pattern(2, 4), 2.5 + 16 / 64),
        ("mxfp4", Pattern(2, 4), 3 + 8 / 32),
    ],
    ids=str,
)
def test_true_bits_follow_the_formula(format, pattern, bits):
    w = weights(4, 256)
    mask = random_mask(4, 256, pattern)
    if pattern is None:
        mask = np.tile([True, False], (4, 128))
    inner = w
    if format is not None:
        inner = quantize(w, format, group_size=FORMATS[format].block or 64)
    matrix = mask_matrix(inner, mask, pattern)
    assert matrix.bits_per_weight == bits
    kept = 0.5 if pattern is None else pattern.kept / pattern.of
    assert matrix.nominal_bits == (16 if format is None else FORMATS[format].bits) * kept


def test_two_of_four_by_hand():
    w = np.array([[5, 0, 0, 6, 0, 7, 8, 0]], np.float32)
    matrix = mask_matrix(w, w != 0, Pattern(2, 4))
    entries = matrix.entries()
    assert entries["values"].tolist() == [5, 6, 7, 8]
    assert entries["index"].tolist() == [0 | 3 << 2 | 1 << 4 | 2 << 6]
    assert matrix.stored_bits == 4 * 16 + 8
    assert matrix.dequantize().tolist() == w.tolist()


def test_bitmap_by_hand():
    w = np.array([[5, 0, 0, 6], [0, 7, 0, 0]], np.float32)
    matrix = mask_matrix(w, w != 0)
    assert {name: array.tolist() for name, array in matrix.entries().items()} == {
        "mask": [0b0010_1001],
        "values": [5, 6, 7],
    }
    assert matrix.dequantize().tolist() == w.tolist()


def test_patterns_shorten_the_product_and_bitmaps_do_not():
    inner = quantize(weights(6, 256), "int4-sym", group_size=64)
    whole = mask_matrix(inner, random_mask(6, 256, None)).passes()
    half = mask_matrix(inner, random_mask(6, 256, Pattern(2, 4)), Pattern(2, 4)).passes()
    assert [(p.n, p.k, p.format, p.group_size) for p in whole] == [(6, 256, "int4-sym", 64)]
    assert [(p.n, p.k, p.format, p.group_size) for p in half] == [(6, 128, "int4-sym", 32)]
    floats = mask_matrix(weights(6, 256), random_mask(6, 256, Pattern(4, 8)), Pattern(4, 8))
    assert [(p.k, p.format, p.group_size) for p in floats.passes()] == [(128, None, None)]


def test_a_changed_mask_is_another_matrix():
    inner = quantize(weights(6, 64), "int4-sym", group_size=64)
    matrix = mask_matrix(inner, random_mask(6, 64, None))
    assert matrix == mask_matrix(inner, random_mask(6, 64, None))
    assert matrix != mask_matrix(inner, random_mask(6, 64, None, seed=2))


def test_an_all_kept_mask_is_the_inner_tensor():
    inner = quantize(weights(6, 64), "bitmod3", group_size=32)
    matrix = mask_matrix(inner, np.ones((6, 64), bool))
    assert np.array_equal(matrix.dequantize(), inner.dequantize())
    assert matrix.stored_bits == inner.stored_bits + 6 * 64


@pytest.mark.parametrize(
    "make, text",
    [
        (
            lambda: mask_matrix(quantize(weights(2, 8), "olive4"), np.ones((2, 8), bool)),
            "olive4 stores weights in pairs, which a mask tears apart; prune behind another format",
        ),
        (
            lambda: mask_matrix(weights(2, 10), np.ones((2, 10), bool), Pattern(2, 4)),
            "k (=10 inputs) is no multiple of 4, which 2:4 needs; nearest: 8 and 12",
        ),
        (
            lambda: mask_matrix(weights(2, 3), np.ones((2, 3), bool), Pattern(2, 4)),
            "k (=3 inputs) is no multiple of 4, which 2:4 needs; nearest: 4",
        ),
        (
            lambda: mask_matrix(
                quantize(weights(2, 12), "int4-sym", group_size=6),
                np.ones((2, 12), bool),
                Pattern(2, 4),
            ),
            "group size 6 is no multiple of 4, which 2:4 needs; nearest: 4 and 8",
        ),
        (
            lambda: mask_matrix(weights(2, 8), np.ones((2, 8), bool), Pattern(2, 4)),
            "the mask keeps 4 of the 4 weights from [0, 0] on; 2:4 keeps 2",
        ),
        (
            lambda: mask_matrix(np.full((1, 2), 7e4, np.float32), np.ones((1, 2), bool)),
            "kept weights are beyond FP16's range; prune behind a weight format",
        ),
        (
            lambda: MaskedMatrix(np.ones((1, 2), np.float16), np.ones((2, 1), bool)),
            "mask is bool (2, 1); weights (1, 2) need a bool mask of their shape",
        ),
        (
            lambda: MaskedMatrix.restored(
                {"n": 1, "k": 3, "pattern": [1, 3], "format": None},
                {"index": np.array([3], np.uint8), "values": np.ones(1, np.float16)},
            ),
            "index holds 3, outside 0 .. 2",
        ),
    ],
    ids=["olive", "columns", "few columns", "group", "pattern", "range", "shape", "index"],
)
def test_bad_input_is_told_in_a_line(make, text):
    with pytest.raises(InputError) as error:
        make()
    assert str(error.value) == text
