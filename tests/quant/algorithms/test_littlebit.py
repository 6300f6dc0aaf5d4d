"""LittleBit: ranks of budgets, factors by SVD, two paths, and what is stored."""

from importlib import import_module

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

_littlebit = import_module("bitwright.quant.algorithms.littlebit")
Factors = _littlebit.Factors
LittleBitMatrix = _littlebit.LittleBitMatrix
dual_svid = _littlebit.dual_svid
littlebit = _littlebit.littlebit
rank_of = _littlebit.rank_of
svd_factors = _littlebit.svd_factors
_rank_one = import_module("bitwright.quant.algorithms.rank_one")
rank_one = _rank_one.rank_one
to_half = _rank_one.to_half


def normals(n, k, seed=0):
    return np.random.default_rng(seed).standard_normal((n, k)).astype(np.float32)


def error(w, matrix):
    return float(np.linalg.norm(w - matrix))


# ------------------------------------------------------------------------- ranks


@pytest.mark.parametrize(
    ("n", "k", "bits", "rank", "actual"),
    [
        (4096, 4096, 1.0, 1000, 0.9941),
        (4096, 4096, 0.8, 800, 0.7984),
        (4096, 4096, 0.7, 696, 0.6966),
        (4096, 4096, 0.55, 544, 0.5479),
        (4096, 4096, 0.3, 288, 0.2974),
        (4096, 4096, 0.1, 80, 0.0939),
        (4096, 11008, 1.0, 1472, 0.9980),
        (4096, 11008, 0.8, 1176, 0.7994),
        (4096, 11008, 0.7, 1024, 0.6975),
        (4096, 11008, 0.55, 800, 0.5473),
        (4096, 11008, 0.3, 424, 0.2951),
        (4096, 11008, 0.1, 128, 0.0966),
    ],
)
def test_ranks_and_true_bits_of_budgets(n, k, bits, rank, actual):
    assert rank_of(n, k, bits) == rank_of(k, n, bits) == rank
    matrix = LittleBitMatrix(empty(n, k, rank), empty(n, k, rank), bits)
    assert matrix.stored_bits == 2 * rank * (n + k + 16) + 32 * (n + k)
    # Half of the last digit, and a bit for those that the table cuts off.
    assert matrix.bits_per_weight == pytest.approx(actual, abs=1e-4)
    assert matrix.nominal_bits == bits


def empty(n, k, r):
    half = [np.zeros(size, np.float16) for size in (n, r, k)]
    return Factors(np.zeros((n, r), np.uint8), np.zeros((r, k), np.uint8), *half)


def test_budgets_that_are_too_small():
    with pytest.raises(InputError) as found:
        rank_of(64, 64, 1.0)
    # Two paths: 2 (8 * 144 + 16 * 128) = 6400 bits for 4096 weights.
    assert str(found.value) == (
        "bits=1 leave 64 x 64 weights no rank of 8, the least: it takes 1.563 bits a weight, "
        "scales of two paths counted; residual=false takes half"
    )
    assert rank_of(64, 64, 1.0, residual=False) == 8
    with pytest.raises(InputError) as found:
        rank_of(64, 64, 0.5, residual=False)
    assert str(found.value) == (
        "bits=0.5 leave 64 x 64 weights no rank of 8, the least: it takes 0.782 bits a weight"
    )


@pytest.mark.parametrize("rank", [0, 9])
def test_ranks_beyond_the_matrix(rank):
    with pytest.raises(InputError) as found:
        dual_svid(normals(8, 20), rank)
    assert str(found.value) == (
        f"rank {rank} of 8 x 20 weights; 1 to min(n, k) = 8: ask for fewer bits"
    )


@pytest.mark.parametrize("bits", ["0.05", "2.5", "many"])
def test_budgets_out_of_range(bits):
    with pytest.raises(InputError, match="bits"):
        resolve_recipe(f"littlebit:bits={bits}")


# ------------------------------------------------------------------------ rank 1


@pytest.mark.parametrize("shape", [(7, 30), (30, 7), (12, 12), (1, 5)])
def test_rank_one_is_that_of_the_svd(shape):
    a = np.abs(normals(*shape))
    rows, columns = rank_one(a)
    p, s, q = np.linalg.svd(a.astype(np.float64), full_matrices=False)
    np.testing.assert_allclose(np.outer(rows, columns), s[0] * np.outer(p[:, 0], q[0]), rtol=1e-5)
    assert (rows >= 0).all() and (columns >= 0).all()
    assert np.linalg.norm(rows) == pytest.approx(np.linalg.norm(columns), rel=1e-5)


def test_rank_one_of_zeros():
    rows, columns = rank_one(np.zeros((3, 4), np.float32))
    assert not np.outer(rows, columns).any()


def test_scales_beyond_half_precision():
    with pytest.raises(InputError) as found:
        to_half(np.array([1.0, 1e6], np.float32), "row scales")
    assert str(found.value) == "row scales: a scale of 1e+06 is beyond FP16's largest, 65504"


# ----------------------------------------------------------------------- factors


def test_full_rank_is_exact_before_signs_are_taken():
    w = normals(24, 40)
    u, v = svd_factors(w, 24)
    np.testing.assert_allclose(u @ v, w, atol=2e-5)


@pytest.mark.parametrize("rank", [1, 8, 16])
def test_the_truncated_svd_leaves_the_other_singular_values(rank):
    w = normals(24, 40)
    u, v = svd_factors(w, rank)
    rest = np.linalg.svd(w, compute_uv=False)[rank:]
    assert error(w, u @ v) == pytest.approx(float(np.sqrt((rest**2).sum())), rel=1e-4)


def test_factors_whose_magnitudes_have_rank_one_are_exact():
    """Rank 1: |U| and |V| are vectors, so signs and scales say all."""
    rng = np.random.default_rng(3)
    w = np.outer(rng.standard_normal(16), rng.standard_normal(24)).astype(np.float32)
    factors = dual_svid(w, 1)
    np.testing.assert_allclose(factors.product(), w, rtol=3e-3, atol=1e-6)  # of three FP16 scales


def test_a_zero_matrix():
    assert not littlebit(np.zeros((128, 128), np.float32), 1.0).dequantize().any()


def test_zero_counts_as_positive():
    w = np.zeros((16, 16), np.float32)
    assert dual_svid(w, 8).u.all()


@pytest.mark.parametrize("bits", [0.55, 0.8, 1.0])
def test_a_path_by_words(bits):
    """The forward pass against one big product, and the residual against what is left."""
    w = normals(192, 256, 5)
    matrix = littlebit(w, bits)
    main, residual = matrix.main, matrix.residual
    u, v = main.u.astype(np.float64) * 2 - 1, main.v.astype(np.float64) * 2 - 1
    scales = [x.astype(np.float64) for x in (main.row, main.latent, main.column)]
    by_hand = np.diag(scales[0]) @ u @ np.diag(scales[1]) @ v @ np.diag(scales[2])
    np.testing.assert_allclose(main.product(), by_hand, atol=1e-5)
    again = dual_svid(w - main.product(), residual.rank)
    np.testing.assert_array_equal(again.product(), residual.product())
    x = normals(9, 256, 6)
    np.testing.assert_allclose(matrix.forward(x), x @ matrix.dequantize().T, atol=1e-3)


@pytest.mark.parametrize("seed", range(4))
def test_the_residual_path_only_helps(seed):
    """With its scale refitted by least squares, a second path cannot add to the error."""
    w = normals(128, 192, seed)
    matrix = littlebit(w, 1.0)
    first, second = matrix.main.product(), matrix.residual.product()
    fit = float(((w - first) * second).sum() / (second**2).sum())
    assert error(w, first + fit * second) <= error(w, first)
    assert error(w, matrix.dequantize()) < error(w, first)


def test_more_bits_are_nearer():
    w = normals(192, 192, 7)
    errors = [error(w, littlebit(w, bits).dequantize()) for bits in (0.55, 0.7, 0.85, 1.0)]
    assert errors == sorted(errors, reverse=True)


# ------------------------------------------------------------------------ storage


@pytest.mark.parametrize("residual", [True, False])
def test_what_is_stored(residual, tmp_path):
    n, k = 192, 160
    matrix = littlebit(normals(n, k), 0.8, residual=residual)
    r, paths = matrix.main.rank, 2 if residual else 1
    assert matrix.stored_bits == paths * (r * (n + k + 16) + 16 * (n + k))
    assert matrix.bits_per_weight <= 0.8
    passes = matrix.passes()
    assert sum(one.bits for one in passes) == matrix.stored_bits
    assert [(one.what, one.n, one.k, one.format) for one in passes] == [
        ("latent", r, k, "binary"),
        ("outputs", n, r, "binary"),
        ("residual latent", r, k, "binary"),
        ("residual outputs", n, r, "binary"),
    ][: 2 * paths]
    path = tmp_path / "one.safetensors"
    save_tensors(path, {"w": matrix}, {})
    again = load_tensors(path)[0]["w"]
    assert again == matrix
    np.testing.assert_array_equal(again.dequantize(), matrix.dequantize())


def test_damaged_scales():
    matrix = littlebit(normals(128, 128), 1.0)
    entries = {**matrix.entries(), "residual.row": np.zeros(3, np.float16)}
    with pytest.raises(InputError, match="residual: scales do not fit 128 x 128 weights of rank"):
        LittleBitMatrix.restored(matrix.settings(), entries)


def test_weights_must_be_finite():
    w = np.ones((128, 128), np.float32)
    w[1, 3] = np.nan
    with pytest.raises(InputError) as found:
        littlebit(w, 1.0)
    assert str(found.value) == "w[1, 3] is nan; weights must be finite float32 numbers"


# ------------------------------------------------------------------ a whole model


def test_a_model(tmp_path):
    model = load_model("tiny")
    made = apply_recipe(model, "littlebit:residual=false")
    assert made.recipe.format is None
    assert made.nominal_bits == pytest.approx(1.0)
    assert 0.8 < made.bits_per_weight <= 1.0
    score = perplexity(made.model, max_tokens=512, window=64, linear=made.linear()).perplexity
    plain = perplexity(model, max_tokens=512, window=64).perplexity
    assert plain < score < float("inf")
    path = tmp_path / "model.safetensors"
    save_quantized(path, made)
    assert load_quantized(path, model).tensors == made.tensors
    with pytest.raises(InputError) as found:
        apply_recipe(model, "littlebit:bits=0.3")
    assert str(found.value).startswith(
        "layer blocks.0.attn.q: bits=0.3 leave 128 x 128 weights no rank of 8, the least: it takes"
    )
