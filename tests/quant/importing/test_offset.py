"""Tensors with offsets, and tensors with sorted columns."""

import numpy as np
import pytest

from bitwright.quant import InputError, OffsetTensor, PermutedTensor, quantize

RNG = np.random.default_rng(0)
TENSOR = quantize(RNG.normal(size=(4, 10)), "int4-asym", 4, "fp16")  # groups of 4, 4 and 2
OFFSETS = RNG.normal(size=(4, 3)).astype(np.float16).astype(np.float32)
COLUMNS = RNG.permutation(10)


def test_a_product_needs_only_sums_of_groups():
    x = RNG.integers(-8, 8, (5, 10)).astype(np.float64)
    sums = np.stack([x[:, 0:4].sum(1), x[:, 4:8].sum(1), x[:, 8:10].sum(1)], axis=1)
    offset = OffsetTensor(TENSOR, OFFSETS)
    apart = x @ TENSOR.dequantize().T.astype(np.float64) + sums @ OFFSETS.T.astype(np.float64)
    # dequantize() rounds each sum to float32: 2**-24 of |w| < 8, times |x| <= 8, ten times.
    assert np.abs(x @ offset.dequantize().T - apart).max() <= 10 * 8 * 8 * 2**-24


def test_offset_facts():
    offset = OffsetTensor(TENSOR, OFFSETS)
    assert (offset.n, offset.k, offset.shape, offset.groups) == (4, 10, (4, 10), 3)
    assert offset.bits_per_weight == TENSOR.bits_per_weight + 3 * 16 / 10
    assert offset == OffsetTensor(TENSOR, OFFSETS.copy())
    assert offset != OffsetTensor(TENSOR, OFFSETS * 2)
    assert offset != TENSOR


@pytest.mark.parametrize(
    "offsets",
    [OFFSETS.astype(np.float64), OFFSETS[:, :2], OFFSETS[0]],
    ids=["type", "groups", "shape"],
)
def test_offsets_of_another_shape_or_type_are_refused(offsets):
    with pytest.raises(InputError, match=r", must be float32 \(4, 3\), one per group$"):
        OffsetTensor(TENSOR, offsets)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e6, 0.1])
def test_offsets_that_are_no_half_floats_are_refused(value):
    offsets = OFFSETS.copy()
    offsets[1, 2] = value
    with pytest.raises(InputError, match=r"^offsets must be finite FP16 numbers; round them to"):
        OffsetTensor(TENSOR, offsets)


def test_permuted_facts():
    permuted = PermutedTensor(TENSOR, COLUMNS)
    assert (permuted.n, permuted.k, permuted.shape, permuted.groups) == (4, 10, (4, 10), 3)
    assert permuted.bits_per_weight == TENSOR.bits_per_weight + 32 / 4
    assert np.array_equal(permuted.dequantize()[:, COLUMNS], TENSOR.dequantize())
    assert permuted == PermutedTensor(TENSOR, COLUMNS.copy())
    assert permuted != PermutedTensor(TENSOR, COLUMNS[::-1].copy())
    assert permuted != TENSOR


@pytest.mark.parametrize(
    "columns",
    [COLUMNS.astype(np.int32), COLUMNS[:9], np.zeros(10, np.int64), np.arange(1, 11)],
    ids=["type", "length", "repeated", "outside"],
)
def test_columns_that_are_no_permutation_are_refused(columns):
    with pytest.raises(InputError, match=r"must be an int64 permutation of 0 .. 9$"):
        PermutedTensor(TENSOR, columns)
