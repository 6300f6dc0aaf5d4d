"""BinaryMoS: signs, scales from experts, the router, and what is stored."""

from dataclasses import replace
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

_binarymos = import_module("bitwright.quant.algorithms.binarymos")
BinaryMoSMatrix = _binarymos.BinaryMoSMatrix
binarymos = _binarymos.binarymos


def normals(n, k, seed=0):
    return np.random.default_rng(seed).standard_normal((n, k)).astype(np.float32)


def made(n, k, experts=4, seed=0):
    return binarymos(normals(n, k, seed), experts, np.random.default_rng(seed))


def different(matrix, seed=9):
    """The same signs with experts that differ."""
    rng = np.random.default_rng(seed)
    experts, (n, k) = matrix.experts, matrix.shape
    return replace(
        matrix,
        inputs=rng.uniform(0.5, 2, (experts, k)).astype(np.float16),
        outputs=rng.uniform(0.5, 2, (experts, n)).astype(np.float16),
    )


# ----------------------------------------------------------------------- oracles


@pytest.mark.parametrize("seed", range(5))
def test_equal_experts_are_one_whatever_the_router_says(seed):
    matrix = made(24, 40)
    assert matrix.equal_experts
    router = 30 * np.random.default_rng(seed).standard_normal((4, 40))
    other = replace(matrix, router=router.astype(np.float16))
    one = made(24, 40, experts=1)
    x = normals(7, 40, seed)
    wanted = x @ one.dequantize().T  # OneBit: sign(W) between two vectors
    for each in (matrix, other, one):
        np.testing.assert_allclose(each.forward(x), wanted, atol=2e-4)
        np.testing.assert_array_equal(each.dequantize(), one.dequantize())


def test_scales_are_nearer_than_any_of_rows_alone():
    w = normals(48, 80, 1) * np.random.default_rng(2).uniform(0.2, 3, 80).astype(np.float32)
    matrix = binarymos(w, 4, np.random.default_rng(0))
    mine = np.linalg.norm(w - matrix.dequantize())
    best_rows = np.abs(w).mean(1, keepdims=True)  # least squares: nothing of a row's is nearer
    assert mine < np.linalg.norm(w - np.where(w < 0, -best_rows, best_rows))
    p, s, q = np.linalg.svd(np.abs(w).astype(np.float64))
    rest = np.sqrt((s[1:] ** 2).sum())
    assert mine == pytest.approx(rest, rel=1e-5)  # Eckart-Young, up to FP16 scales


@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_scales_times_a_factor_give_its_square(factor):
    matrix = different(made(16, 24))
    scaled = replace(
        matrix,
        inputs=(matrix.inputs * np.float16(factor)),
        outputs=(matrix.outputs * np.float16(factor)),
    )
    x = normals(5, 24)
    np.testing.assert_allclose(matrix.gates(x).sum(1), 1, rtol=1e-6)
    np.testing.assert_allclose(scaled.forward(x), factor**2 * matrix.forward(x), rtol=1e-5)


def test_gaussian_error():
    """Of one scale a matrix: 1 - 2 / pi; row and column scales fit no more than noise."""
    w = normals(1000, 1000)
    error = float(((w - binarymos(w, 4, np.random.default_rng(0)).dequantize()) ** 2).mean())
    assert error == pytest.approx(0.3634, abs=1.5e-3)
    assert error < 0.3634


# ----------------------------------------------------------------------- forward


def test_forward_token_by_token():
    """Against a matrix of its own for each token, made from its mixed scales."""
    matrix = different(made(12, 20, experts=3))
    x = normals(6, 20, 4)
    for token, y in zip(x, matrix.forward(x), strict=True):
        powers = np.exp(matrix.router.astype(np.float64) @ token)
        g = powers / powers.sum()
        a = g @ matrix.inputs.astype(np.float64)
        b = g @ matrix.outputs.astype(np.float64)
        w = np.where(matrix.signs == 1, 1, -1) * np.outer(b, a)
        np.testing.assert_allclose(y, w @ token, rtol=1e-4, atol=1e-4)


def test_gates_of_large_logits_are_finite():
    matrix = made(4, 8)
    gates = matrix.gates(np.full((1, 8), 1e4, np.float32))
    assert np.isfinite(gates).all()
    assert gates.sum() == pytest.approx(1, rel=1e-6)


def test_zero_counts_as_positive():
    w = np.array([[0.0, -0.0, -1.0, 1.0]], np.float32)
    assert binarymos(w, 1, np.random.default_rng(0)).signs.tolist() == [[1, 1, 0, 1]]


def test_the_router_starts_within_its_bound():
    router = made(8, 400).router
    assert np.abs(router).max() <= 1 / 20
    assert np.abs(router).max() > 0.9 / 20


def test_differing_experts_have_no_matrix():
    with pytest.raises(InputError) as found:
        different(made(8, 8)).dequantize()
    assert str(found.value) == (
        "binarymos: experts differ, so weights depend on the token and no matrix stands for them; "
        "compute outputs with forward(x)"
    )


# ------------------------------------------------------------------------ storage


@pytest.mark.parametrize(
    ("n", "k", "experts", "bits"),
    [
        (4096, 4096, 4, 1.0469),
        (11008, 4096, 4, 1.0273),
        (4096, 11008, 4, 1.0371),
        (4096, 4096, 1, 1.0078),
    ],
)
def test_true_bits(n, k, experts, bits):
    half = [np.zeros((experts, size), np.float16) for size in (k, n, k)]
    signs = np.zeros((n, k), np.uint8)
    matrix = BinaryMoSMatrix(signs, half[0], half[1], half[2] if experts > 1 else None)
    assert matrix.bits_per_weight == pytest.approx(bits, abs=5e-5)
    assert matrix.nominal_bits == 1.0


@pytest.mark.parametrize("experts", [1, 2, 4])
@pytest.mark.parametrize("shape", [(24, 40), (5, 7)])
def test_what_is_stored(experts, shape, tmp_path):
    (n, k), matrix = shape, made(*shape, experts=experts)
    router = experts * k if experts > 1 else 0
    assert matrix.stored_bits == 8 * -(-n * k // 8) + 16 * (experts * (n + k) + router)
    assert sum(one.bits for one in matrix.passes()) == matrix.stored_bits
    assert matrix.passes()[-1].format == "binary"
    path = tmp_path / "one.safetensors"
    save_tensors(path, {"w": matrix}, {})
    again = load_tensors(path)[0]["w"]
    assert again == matrix
    np.testing.assert_array_equal(again.dequantize(), matrix.dequantize())


def test_passes_by_hand():
    passes = made(8, 16).passes()
    assert [(one.what, one.n, one.k, one.format, one.bits) for one in passes] == [
        ("router", 4, 16, None, 16 * 4 * 16),
        ("signs", 8, 16, "binary", 8 * 16 + 16 * 4 * (8 + 16)),
    ]


def test_shapes_that_contradict_each_other():
    matrix = made(8, 16)
    with pytest.raises(InputError) as found:
        replace(matrix, outputs=matrix.inputs)
    assert str(found.value) == "outputs is [4, 16]; 8 x 16 weights need [4, 8]"
    with pytest.raises(InputError) as found:
        replace(matrix, router=None)
    assert str(found.value) == (
        "4 experts and no router; two or more experts have one, a single expert none"
    )


@pytest.mark.parametrize("experts", ["0", "65", "some"])
def test_numbers_of_experts_out_of_range(experts):
    with pytest.raises(InputError, match="experts"):
        resolve_recipe(f"binarymos:experts={experts}")


def test_scales_beyond_half_precision():
    with pytest.raises(InputError, match="input scales: a scale of .* is beyond FP16's largest"):
        binarymos(np.full((4, 4), 1e12, np.float32), 2, np.random.default_rng(0))


def test_weights_must_be_finite():
    w = np.ones((128, 128), np.float32)
    w[1, 3] = np.nan
    with pytest.raises(InputError) as found:
        binarymos(w, 2, np.random.default_rng(0))
    assert str(found.value) == "w[1, 3] is nan; weights must be finite float32 numbers"


# ------------------------------------------------------------------ a whole model


def test_a_model(tmp_path):
    model = load_model("tiny")
    quantised = apply_recipe(model, "binarymos")
    assert quantised.recipe.format is None
    assert quantised.nominal_bits == 1.0
    n, k = np.array(list(model.config.linear_shapes().values())).T
    assert quantised.stored_bits == int((n * k + 16 * (4 * (n + k) + 4 * k)).sum())
    routers = {m.router.tobytes() for m in quantised.tensors.values()}
    assert len(routers) == len(quantised.tensors)  # each linear's own
    assert apply_recipe(model, "binarymos").tensors == quantised.tensors  # and the same every time
    linear = quantised.linear()
    score = perplexity(quantised.model, max_tokens=512, window=64, linear=linear).perplexity
    assert perplexity(model, max_tokens=512, window=64).perplexity < score < float("inf")
    path = tmp_path / "model.safetensors"
    save_quantized(path, quantised)
    assert load_quantized(path, model).tensors == quantised.tensors
