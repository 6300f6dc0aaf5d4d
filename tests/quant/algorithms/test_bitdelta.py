"""Differences as signs and scales: reference errors, hand cases, bits, files."""

import itertools
from importlib import import_module

import numpy as np
import pytest

from bitwright.quant import InputError, load_tensors, save_tensors

_bitdelta = import_module("bitwright.quant.algorithms.bitdelta")
DeltaMatrix = _bitdelta.DeltaMatrix
compress_matrix = _bitdelta.compress_matrix


def error(delta, planes):
    left = delta - compress_matrix(delta, planes).dequantize()
    return float(np.square(left, dtype=np.float64).sum() / np.square(delta, dtype=np.float64).sum())


@pytest.mark.parametrize("planes, reference", [(1, 0.3634), (2, 0.1306)])
def test_gaussian_reference_errors(planes, reference):
    """1 - 2/pi for a plane; two planes on residuals as in the table of reference errors."""
    delta = np.random.default_rng(0).normal(size=(1000, 1000)).astype(np.float32)
    assert error(delta, planes) == pytest.approx(reference, abs=5e-4)


def test_scales_of_gaussian_planes():
    delta = np.random.default_rng(0).normal(size=(1000, 1000)).astype(np.float32)
    assert compress_matrix(delta, 2).scales == pytest.approx([0.798, 0.483], abs=1e-3)


def test_by_hand():
    """|Delta| 1, 3, 0, 4 with mean 2; residuals -1, -1, -2, 2 with mean 1.5."""
    matrix = compress_matrix(np.array([[1, -3], [0, 4]], np.float32), 2)
    assert matrix.scales.tolist() == [2, 1.5]
    assert matrix.signs.tolist() == [[0b1101], [0b1000]]
    assert matrix.dequantize().tolist() == [[0.5, -3.5], [0.5, 3.5]]


def test_the_mean_magnitude_is_the_best_scale():
    delta = np.random.default_rng(1).normal(size=(8, 8))
    alpha = float(compress_matrix(delta.astype(np.float32)).scales[0])
    signs = np.where(delta >= 0, 1, -1)

    def squares(scale):
        return np.square(delta - scale * signs).sum()

    assert all(squares(alpha) < squares(alpha * factor) for factor in (0.97, 0.999, 1.001, 1.03))


def test_more_planes_never_err_more():
    delta = np.random.default_rng(2).standard_t(4, size=(64, 64)).astype(np.float32)
    errors = [error(delta, planes) for planes in range(1, 9)]
    assert all(after < before for before, after in itertools.pairwise(errors))


def test_equal_models_differ_by_nothing():
    matrix = compress_matrix(np.zeros((3, 5), np.float32))
    assert matrix.scales.tolist() == [0] and not matrix.dequantize().any()


@pytest.mark.parametrize("n, k", [(4, 8), (3, 5), (1, 1)])
@pytest.mark.parametrize("planes", [1, 3])
def test_bits_and_files(n, k, planes, tmp_path):
    delta = np.random.default_rng(3).normal(size=(n, k)).astype(np.float32)
    matrix = compress_matrix(delta, planes)
    assert matrix.stored_bits == planes * (8 * -(-n * k // 8) + 32)
    assert sum(step.bits for step in matrix.passes()) == matrix.stored_bits
    assert [(p.n, p.k, p.format) for p in matrix.passes()] == [(n, k, "binary")] * planes
    seen = matrix.operands(delta)
    assert [np.array_equal(x, delta) for x, _ in seen] == [True] * planes
    for number, (_, w) in enumerate(seen):
        assert np.array_equal(w.dequantize(), matrix.plane(number))
    (add,) = matrix.vector_work()
    assert (add.function, add.length, add.times) == ("accumulate", n, planes)
    assert matrix.nominal_bits == planes
    save_tensors(tmp_path / "d.safetensors", {"w": matrix}, {})
    loaded = load_tensors(tmp_path / "d.safetensors")[0]["w"]
    assert loaded == matrix and np.array_equal(loaded.dequantize(), matrix.dequantize())


@pytest.mark.parametrize(
    "make, text",
    [
        (
            lambda: compress_matrix(np.ones((1, 1), np.float32), 0),
            "planes is 0; at least 1 is needed",
        ),
        (
            lambda: compress_matrix(np.array([[1, np.nan]], np.float32)),
            "the difference at [0, 1] is NaN or infinite",
        ),
        (
            lambda: DeltaMatrix(2, 8, np.zeros((1, 1), np.uint8), np.ones(1, np.float32)),
            "signs are uint8 (1, 1); 1 planes of [2, 8] need uint8 (1, 2)",
        ),
        (
            lambda: DeltaMatrix(1, 8, np.zeros((1, 1), np.uint8), -np.ones(1, np.float32)),
            "scales must not be negative; they are [-1.]",
        ),
        (
            lambda: DeltaMatrix(1, 8, np.zeros((1, 1), np.uint8), np.ones(1)),
            "scales must be finite float32 numbers, not [1.]",
        ),
    ],
    ids=["planes", "nan", "signs", "negative", "type"],
)
def test_bad_input_is_told_in_a_line(make, text):
    with pytest.raises(InputError) as error:
        make()
    assert str(error.value) == text
