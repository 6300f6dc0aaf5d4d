"""INT4 weights in groups times INT8 activations in the same groups, against plain integers.

What Shen et al., "Efficient LLM Inference on CPUs" (arXiv 2311.00502), compute on processors: of
every group the integer product, and then the product of both scales.
"""

from dataclasses import replace
from importlib import import_module

import numba
import numpy as np
import pytest

from bitwright.kernels import matmul, reference
from bitwright.quant import parse_activation, quantize, quantize_activations

simd = import_module("bitwright.kernels.cpu.simd")
N, K, M = 19, 288, 5  # groups of 32 fill K, of 128 leave 32 columns


def operands(kind, group, seed=0):
    rng = np.random.default_rng(seed)
    w = quantize(rng.standard_normal((N, K)).astype(np.float32), f"int4-{kind}", group_size=group)
    x = rng.standard_normal((M, K)).astype(np.float32)
    return quantize_activations(x, parse_activation(f"a8-g{group}")), w


def ones(tensor):
    """The same codes with all scales 1: the product is that of the integers."""
    return replace(tensor, group_scales=np.ones_like(tensor.group_scales))


@pytest.mark.parametrize("group", [32, 128])
@pytest.mark.parametrize("kind", ["sym", "asym"])
def test_before_scaling_the_product_is_that_of_the_integers(kind, group):
    x, w = operands(kind, group)
    a, b = (ones(one).dequantize() for one in (x, w))
    for numbers, most in ((a, 127), (b, 15)):
        assert (numbers == np.round(numbers)).all() and 0 < np.abs(numbers).max() <= most
    exact = a.astype(np.int64) @ b.astype(np.int64).T
    assert np.abs(exact).max() < 2**24  # so float32 holds every sum
    assert np.array_equal(matmul(ones(x), ones(w), method="integer"), exact.astype(np.float32))


@pytest.mark.parametrize("group", [32, 128])
@pytest.mark.parametrize("kind", ["sym", "asym"])
def test_scales_come_once_a_group(kind, group):
    """y = sum over groups of fl(sum of integers) * fl(scale of x * scale of w), in order."""
    x, w = operands(kind, group)
    a, b = (ones(one).dequantize().astype(np.int64) for one in (x, w))
    y = np.zeros((M, N), np.float32)
    for g, start in enumerate(range(0, K, group)):
        part = slice(start, min(start + group, K))
        total = (a[:, part] @ b[:, part].T).astype(np.float32)
        y = y + total * np.outer(x.scales()[:, g], w.scales()[:, g])
    assert np.array_equal(matmul(x, w, method="integer"), y)
    assert np.array_equal(reference.reference_integer(x, w), y)


@numba.njit(error_model="numpy")
def _byte_dots(x, w, totals):
    """Four-way products of unsigned x and signed w, 64 bytes to 16 sums, as the kernels do them."""
    found = simd.dot_u8s8(simd.splat_i32(0), simd.load_i8(x, 0), simd.load_i8(w, 0))
    simd.store(totals, 0, found)


@pytest.mark.parametrize("seed", range(20))
def test_unsigned_bytes_with_a_correction_are_signed_ones(seed):
    """x in int8 becomes u = x + 128, and 128 times the sum of w is taken off again.

    The instruction that multiplies bytes takes unsigned times signed ones. Every fifth draw has the
    extremes alone, where a 16-bit sum would saturate.
    """
    rng = np.random.default_rng(seed)
    x, w = rng.integers(-128, 128, (2, 64))
    if seed % 5 == 0:
        x, w = rng.choice([-128, 127], (2, 64))
    u = (x + 128).astype(np.uint8)
    totals = np.zeros(16, np.int32)
    _byte_dots(u, w.astype(np.int8).view(np.uint8), totals)
    corrected = totals.astype(np.int64) - 128 * w.reshape(16, 4).sum(axis=1)
    assert np.array_equal(corrected, (x * w).reshape(16, 4).sum(axis=1))
