"""DB-LLM's dual binarisation: the split, the search, the fit, what is stored, a whole model."""

from importlib import import_module
from itertools import product

import numpy as np
import pytest

from bitwright.quant import (
    InputError,
    apply_recipe,
    load_model,
    load_quantized,
    load_tensors,
    perplexity,
    resolve_recipe,
    save_quantized,
    save_tensors,
)

dbllm = import_module("bitwright.quant.algorithms.dbllm")
_dbllm = import_module("bitwright.quant.algorithms.dbllm")
DualBinary = _dbllm.DualBinary
dual_binary = _dbllm.dual_binary


def normals(n, k, seed=0):
    return np.random.default_rng(seed).standard_normal((n, k)).astype(np.float32)


def bits(text):
    return [one == "1" for one in text]


def squares(w, matrix, size):
    return ((w - matrix.dequantize()) ** 2).reshape(-1, size).sum(axis=1, dtype=np.float64)


def test_worked_example():
    w = np.array([[-2, -1.2, -0.6, -0.4, 0, 0.4, 0.6, 1.2, 1.4, 1.6, 3]], np.float32)
    alphas = np.array([[2, -1]], np.float16)
    b1, b2 = dbllm.split(w, alphas)
    assert b1[0].tolist() == bits("00000011111")
    assert b2[0].tolist() == bits("11100011100")
    matrix = DualBinary(b1, b2, alphas[:, :1], alphas[:, 1:])
    assert matrix.dequantize()[0].tolist() == [-1, -1, -1, 0, 0, 0, 1, 1, 1, 2, 2]
    assert matrix.densities == (5 / 11, 6 / 11)
    np.testing.assert_array_equal(dbllm.assign(w, alphas), [b1, b2])


@pytest.mark.parametrize("s", [0.25, 1.0, 3.0])
def test_the_split_is_rounding_to_four_levels(s):
    w = normals(40, 64) * 2
    b1, b2 = dbllm.split(w, np.tile(np.array([2 * s, -s], np.float16), (40, 1)))
    wanted = np.clip(np.rint(w / np.float32(s)), -1, 2) * np.float32(s)
    np.testing.assert_array_equal(2 * s * b1 - s * b2, wanted)


def test_gaussian_reference():
    """One scale for a million normals: s = 1.05, error 0.1494, densities 0.30 and 0.54.

    The integral over the density says 0.14943 at s = 1.05, and 0.15020 at s = 1.
    """
    x = np.linspace(-9, 9, 200_001)
    density = np.exp(-x * x / 2) / np.sqrt(2 * np.pi) * (x[1] - x[0])
    exact = (density * (x - np.clip(np.rint(x / 1.05), -1, 2) * 1.05) ** 2).sum()
    assert exact == pytest.approx(0.14943, abs=1e-5)
    w = normals(1, 1_000_000)
    matrix = dual_binary(w, 0, refit=False)
    assert -float(matrix.alpha2[0, 0]) == pytest.approx(1.05, abs=0.015)
    assert float(matrix.alpha1[0, 0]) == -2 * float(matrix.alpha2[0, 0])
    assert float(np.square(w - matrix.dequantize()).mean()) == pytest.approx(exact, abs=5e-4)
    assert matrix.densities == (pytest.approx(0.30, abs=0.01), pytest.approx(0.54, abs=0.01))


def test_fitted_normals_reach_the_best_four_levels_that_two_scales_give():
    """Free scales on normals: the levels 0, a, b, a + b cannot do better than Lloyd's 0.1175."""
    w = normals(1, 200_000)
    error = float(np.square(w - dual_binary(w, 0).dequantize()).mean())
    assert (
        0.1175 < error <= float(np.square(w - dual_binary(w, 0, refit=False).dequantize()).mean())
    )


def test_least_squares_by_hand():
    # Planes 110 and 011, weights 1, 5, 3: a1 = 1 + d, a2 = 3 + d, sum 5 - d with d = 1 / 3.
    w = np.array([[1.0, 5.0, 3.0]], np.float32)
    planes = np.array([[[1, 1, 0]], [[0, 1, 1]]], bool)
    found = dbllm.least_squares(w, np.zeros((1, 2)), planes)
    np.testing.assert_allclose(found, [[4 / 3, 10 / 3]])


@pytest.mark.parametrize("number", range(64))
def test_least_squares_of_all_planes_of_three_weights(number):
    """numpy's own solver finds no smaller error, open scales or not."""
    pattern = [number >> i & 1 for i in range(6)]
    planes = np.array(pattern, bool).reshape(2, 1, 3)
    w = np.array([[0.7, -1.1, 2.3]], np.float32)
    a1, a2 = dbllm.least_squares(w, np.array([[2.0, -1.0]]), planes)[0]
    found = np.square(w[0] - a1 * planes[0, 0] - a2 * planes[1, 0]).sum()
    design = planes[:, 0].T.astype(float)
    best = np.square(w[0] - design @ np.linalg.lstsq(design, w[0], rcond=None)[0]).sum()
    assert found == pytest.approx(best, abs=1e-6)


def test_nearest_level_for_any_signs_of_the_scales():
    w = normals(1, 200)
    for alphas in product((-1.5, -0.5, 0.0, 0.5, 1.5), repeat=2):
        scales = np.array([alphas], np.float32)
        b1, b2 = dbllm.assign(w, scales)
        levels = np.array([0, alphas[0], alphas[1], sum(alphas)], np.float32)
        nearest = np.abs(w[0][:, None] - levels).min(axis=1)
        found = np.abs(w - alphas[0] * b1 - alphas[1] * b2)[0]
        np.testing.assert_allclose(found, nearest, atol=1e-6)


@pytest.mark.parametrize("group", [0, 8, 64])
@pytest.mark.parametrize("seed", range(4))
def test_fitting_makes_no_group_worse(group, seed):
    w = normals(16, 128, seed) ** 3
    size = group or 128
    plain = squares(w, dual_binary(w, group, refit=False), size)
    fitted = squares(w, dual_binary(w, group), size)
    assert (fitted <= plain).all()
    assert fitted.sum() < 0.95 * plain.sum()


@pytest.mark.parametrize("seed", range(3))
def test_the_step_is_as_good_as_a_fine_search(seed):
    w = normals(4, 64, seed)
    found = dbllm.best_step(w)

    def error(row, s):
        return np.square(row - np.clip(np.rint(row / s), -1, 2) * s).sum()

    for row, s in zip(w, found, strict=True):
        best = min(error(row, t) for t in np.linspace(0.05, 4, 2000))
        assert error(row, s) <= 1.02 * best


def test_groups_of_zeros_stay_zero():
    w = normals(2, 16)
    w[0, :8] = 0
    matrix = dual_binary(w, 8)
    assert not matrix.dequantize()[0, :8].any()
    assert not matrix.plane1[0, :8].any()
    assert matrix.dequantize()[0, 8:].any()


@pytest.mark.parametrize("value", [2.0, -2.0])
def test_one_weight_is_met(value):
    w = np.full((1, 8), value, np.float32)
    np.testing.assert_array_equal(dual_binary(w, 8).dequantize(), w)


@pytest.mark.parametrize(("group", "wanted"), [(64, 2.5), (128, 2.25), (0, 2.125), (16, 4.0)])
def test_bits(group, wanted, tmp_path):
    matrix = dual_binary(normals(24, 256), group)
    assert matrix.bits_per_weight == wanted == 2 + 32 / (group or 256)
    assert matrix.nominal_bits == 2
    stored = 8 * sum(array.nbytes for array in matrix.entries().values())
    assert matrix.stored_bits == stored == sum(one.bits for one in matrix.passes())
    shapes = [(one.n, one.k, one.format, one.group_size) for one in matrix.passes()]
    assert shapes == [(24, 256, "binary", group or 256)] * 2
    save_tensors(tmp_path / "one.safetensors", {"w": matrix}, {})
    again = load_tensors(tmp_path / "one.safetensors")[0]["w"]
    assert again == matrix
    np.testing.assert_array_equal(again.dequantize(), matrix.dequantize())


def test_bad_input():
    with pytest.raises(InputError) as error:
        dual_binary(normals(2, 100), 64)
    assert str(error.value) == (
        "group (=64) must divide the k = 100 columns; the nearest that does is 50, and 0 makes a "
        "row one group"
    )
    with pytest.raises(InputError) as error:
        dual_binary(np.array([[1, np.nan]], np.float32), 0)
    assert str(error.value) == "w[0, 1] is nan; weights must be finite"
    with pytest.raises(InputError) as error:
        dual_binary(np.full((1, 4), 1e6, np.float32), 0)
    assert str(error.value).endswith("is outside FP16 (6e-08 .. 65504); rescale the weights")
    matrix = dual_binary(normals(2, 16), 8)
    with pytest.raises(InputError, match=r"alpha1 is \(2, 2\); needs \(2, 4\)"):
        DualBinary.restored(matrix.settings() | {"group": 4}, matrix.entries())
    with pytest.raises(InputError, match="group"):
        resolve_recipe("dbllm:group=-1")


def test_a_model(tmp_path):
    model = load_model("tiny")
    made = apply_recipe(model, "dbllm")
    assert made.recipe.format is None
    assert made.bits_per_weight == pytest.approx(2.5)
    assert made.nominal_bits == 2
    plain = perplexity(model, max_tokens=512, window=64).perplexity
    fitted = perplexity(made.model, max_tokens=512, window=64, linear=made.linear()).perplexity
    begun = apply_recipe(model, "dbllm:refit=false")
    first = perplexity(begun.model, max_tokens=512, window=64, linear=begun.linear()).perplexity
    assert plain < fitted < first < float("inf")
    save_quantized(tmp_path / "model.safetensors", made)
    assert load_quantized(tmp_path / "model.safetensors", model).tensors == made.tensors
