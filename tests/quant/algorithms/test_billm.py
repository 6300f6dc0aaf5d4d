"""BiLLM: planes, masks, error feedback, what is stored, a whole model."""

from importlib import import_module

import numpy as np
import pytest

from bitwright.quant import (
    Calibration,
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

module = import_module("bitwright.quant.algorithms.billm")
BiLlmMatrix, billm = module.BiLlmMatrix, module.billm
residual_planes = module.residual_planes
_factorise = import_module("bitwright.quant.algorithms.gptq")._factorise

ROW = np.array([[0.9, -0.5, 0.2, -0.4, 1.4, -0.1]], np.float32)


def normals(n, k, seed=0):
    return np.random.default_rng(seed).standard_normal((n, k)).astype(np.float32)


def problem(n=24, k=96, seed=0):
    """Weights, and the Hessian of inputs of uneven, correlated channels."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((400, k)) * np.exp(0.5 * rng.standard_normal(k))
    x[:, 1:] += 0.5 * x[:, :-1]
    return normals(n, k, seed), (2 / 400 * x.T @ x).astype(np.float32)


def restore(signs, alphas, mus):
    scale, mean = alphas.astype(np.float32)[..., None], mus.astype(np.float32)[..., None]
    return (np.where(signs, scale, -scale) + mean).sum(axis=0)


def planes_of(w, mask, order, means):
    return np.where(mask, restore(*residual_planes(w, mask, order, means)), np.float32(0))


# ------------------------------------------------------------------------- planes


@pytest.mark.parametrize(
    ("order", "means", "alpha", "mu", "mse"),
    [
        (1, True, [0.6], [0.25], 0.115833),
        (2, True, [0.6, 0.25], [0.25, 0.2], 0.013333),
        (1, False, [0.58333], [0], 0.198056),
        (2, False, [0.58333, 0.37778], [0, 0], 0.055340),
    ],
)
def test_worked_example(order, means, alpha, mu, mse):
    signs, alphas, mus = residual_planes(ROW, np.ones_like(ROW, bool), order, means)
    np.testing.assert_allclose(alphas[:, 0], alpha, rtol=1e-3)
    np.testing.assert_allclose(mus[:, 0], mu, atol=1e-3)
    found = np.square(ROW - restore(signs, alphas, mus)).mean()
    assert found == pytest.approx(mse, rel=2e-3)
    assert module.residual_error(ROW, order, means) / 6 == pytest.approx(mse, rel=1e-4)


def test_worked_example_values():
    mask = np.ones_like(ROW, bool)
    first, second = (planes_of(ROW, mask, order, True)[0] for order in (1, 2))
    wanted = [0.85, -0.35, -0.35, -0.35, 0.85, -0.35]
    np.testing.assert_allclose(first, wanted, atol=1e-3)
    np.testing.assert_allclose(second, [0.8, -0.4, 0.1, -0.4, 1.3, 0.1], atol=1e-3)


def test_the_sign_of_zero_is_plus():
    w = np.array([[0.0, -0.0, 1.0, -1.0]], np.float32)
    signs, _, _ = residual_planes(w, np.ones_like(w, bool), 1, False)
    assert signs[0, 0].tolist() == [True, True, True, False]


@pytest.mark.parametrize("means", [False, True])
@pytest.mark.parametrize("seed", range(5))
def test_more_planes_never_hurt_and_scales_are_best(means, seed):
    rng = np.random.default_rng(seed)
    w, mask = normals(6, 40, seed), rng.random((6, 40)) < 0.6
    errors = [
        np.square(np.where(mask, w, 0) - planes_of(w, mask, o, means)).sum() for o in (1, 2, 3)
    ]
    assert errors[0] > errors[1] > errors[2]
    signs, alphas, mus = residual_planes(w, mask, 1, means)
    r = (w - mus[0].astype(np.float32)[:, None]) * mask
    for change in (0.99, 1.01):
        scale = change * alphas[0].astype(np.float32)[:, None]
        other = np.square((r - np.where(signs[0], scale, -scale)) * mask).sum()
        assert other >= errors[0]


def test_a_row_without_weights_gives_zeros():
    mask = np.array([[False] * 6])
    signs, alphas, mus = residual_planes(ROW, mask, 2, True)
    assert not alphas.any()
    assert not mus.any()
    assert signs.shape == (2, 1, 6)


def test_gaussian_reference():
    """A million normals and one scale a part: 0.3634, 0.1306 and, split, 0.118."""
    w = normals(1, 1_000_000)
    everywhere = np.ones_like(w, bool)
    _, alphas, _ = residual_planes(w, everywhere, 2, False)
    assert alphas[:, 0].tolist() == [pytest.approx(0.798, abs=2e-3), pytest.approx(0.483, abs=2e-3)]
    for order, wanted in ((1, 0.3634), (2, 0.1306)):
        found = module.residual_error(w, order, False) / w.size
        assert found == pytest.approx(wanted, abs=1e-3)


def test_gaussian_split():
    w = normals(1, 200_000)
    point = module.split_point(w, False)
    inner = np.abs(w) < point
    error = sum(
        np.square((w - planes_of(w, part, 1, False)) * part).sum() for part in (inner, ~inner)
    )
    assert error / w.size == pytest.approx(0.118, abs=1e-3)
    assert inner.mean() == pytest.approx(0.67, abs=0.02)
    scales = [float(residual_planes(w, part, 1, False)[1][0, 0]) for part in (inner, ~inner)]
    assert scales == [pytest.approx(0.451, abs=0.01), pytest.approx(1.506, abs=0.015)]


# -------------------------------------------------------------------------- masks


@pytest.mark.parametrize("means", [False, True])
def test_the_split_is_the_best_of_all_candidates(means):
    """The error in closed form orders thresholds as binarising both sides does."""
    w = normals(5, 30, 3)
    magnitudes = np.abs(w)
    gaps = []
    for point in np.quantile(magnitudes, module.QUANTILES).astype(np.float32):
        inner = magnitudes < point
        direct = 0.0
        for row, part in zip(w, inner, strict=True):
            for side in (row[part], row[~part]):
                direct += module.residual_error(side[None], 1, means)
        gaps.append(direct - module.split_error(w, magnitudes, point, means))
    constant = 0.0 if means else float(np.square(w).sum())
    np.testing.assert_allclose(gaps, constant, atol=1e-3)


@pytest.mark.parametrize("mode", ["code", "paper"])
def test_the_salient_columns_are_those_with_large_weights(mode):
    w = normals(64, 128)
    w[:, [5, 70, 99]] *= 8
    salient, outer = module.masks(w, np.ones(128, np.float32), mode)
    assert salient[[5, 70, 99]].all()
    assert 3 <= salient.sum() <= module.MOST_SALIENT
    assert not outer[:, salient].any()  # inner, outer and salient share no weight
    assert 0 < outer[:, ~salient].mean() < 1
    assert np.abs(w[:, ~salient])[outer[:, ~salient]].min() >= (
        np.abs(w[:, ~salient])[~outer[:, ~salient]].max()
    )


def test_the_code_searches_saliency_and_the_paper_weights():
    """By all counts, written out: two planes for both parts of s, or two and one of w."""
    w, h = problem(16, 60)
    u = _factorise(h.astype(np.float64), np.zeros(60, bool), np.arange(60), 0.01).u
    diagonal = np.diagonal(u)
    s = np.square(w / diagonal)
    order = np.argsort(-s.sum(axis=0), kind="stable")
    for mode, target, rest in (("code", s / s.max(), 2), ("paper", w, 1)):
        errors = []
        for count in range(1, 50):
            parts = (target[:, order[:count]], 2), (target[:, order[count:]], rest)
            error = 0.0
            for x, planes in parts:
                everywhere = np.ones(x.shape, bool)
                # In float64 and unrounded.
                r = x.astype(np.float64)
                for _ in range(planes):
                    r = r - (r.mean(axis=1, keepdims=True) if mode == "code" else 0)
                    alpha = np.abs(r).mean(axis=1, keepdims=True)
                    r = r - np.where(r >= 0, alpha, -alpha)
                error += np.square(r[everywhere]).sum()
            errors.append(error)
        salient, _ = module.masks(w, diagonal, mode)
        assert sorted(order[: np.argmin(errors) + 1]) == np.flatnonzero(salient).tolist()


# --------------------------------------------------------------------- the recursion


@pytest.mark.parametrize("mode", ["code", "paper"])
@pytest.mark.parametrize("k", [32, 96, 100], ids=lambda k: f"{k} columns")
def test_the_recursion_written_out(mode, k):
    w, h = problem(8, k)
    u = _factorise(h.astype(np.float64), np.zeros(k, bool), np.arange(k), 0.01).u
    made = billm(w, h, mode, block=32)
    left = w.copy()
    for first in range(0, k, 32):
        part = slice(first, min(first + 32, k))
        salient, outer = module.masks(left[:, part], np.diagonal(u)[part], mode)
        np.testing.assert_array_equal(made.salient[part], salient)
        inside = left[:, part]
        twice = np.broadcast_to(salient, inside.shape)
        q = sum(
            planes_of(inside, mask, order, mode == "code")
            for mask, order in ((~outer & ~twice, 1), (outer, 1), (twice, 2))
        )
        np.testing.assert_allclose(made.dequantize()[:, part], q, atol=1e-5)
        for j in range(part.start, part.stop):
            error = (left[:, j] - q[:, j - first]) / u[j, j]
            left[:, part.stop :] -= np.outer(error, u[j, part.stop :])


def test_without_correlation_feedback_changes_nothing():
    w, _ = problem()
    h = 2 * np.eye(96, dtype=np.float32)
    for mode in ("code", "paper"):
        assert billm(w, h, mode, block=32) == billm(w, h, mode, feedback=False, block=32)


@pytest.mark.parametrize("mode", ["code", "paper"])
def test_feedback_lowers_the_output_error(mode):
    better = 0
    for seed in range(10):
        w, h = problem(seed=seed)

        def error(matrix, w=w, h=h):
            e = w - matrix.dequantize()
            return float(np.einsum("ij,jk,ik->", e, h, e))

        with_it, without = (billm(w, h, mode, feedback, block=16) for feedback in (True, False))
        better += error(with_it) < error(without)
    assert better >= 9  # all but rare draws: blocks are searched anew after each move


def test_a_dead_column_moves_nothing():
    w, h = problem(8, 64)
    h[5] = h[:, 5] = 0
    changed = w.copy()
    changed[:, 5] = 100
    assert billm(w, h, block=32) == billm(changed, h, block=32)


# ---------------------------------------------------------------------- what is stored


@pytest.mark.parametrize(("mode", "kinds", "wanted"), [("code", 8, 3.0), ("paper", 4, 2.5)])
@pytest.mark.parametrize("k", [256, 192])
def test_bits(mode, kinds, wanted, k, tmp_path):
    w, h = problem(48, k)
    matrix = billm(w, h, mode)
    blocks = -(-k // 128)
    formula = 2 + 16 * kinds * blocks / k + 1 / 48
    assert matrix.bits_per_weight == pytest.approx(formula)
    if k == 256:
        assert matrix.bits_per_weight == pytest.approx(wanted + 1 / 48)
    assert matrix.nominal_bits == 1 + matrix.salient.sum() / k
    stored = 8 * sum(array.nbytes for array in matrix.entries().values())
    passes = matrix.passes()
    assert matrix.stored_bits == stored == sum(one.bits for one in passes)
    columns = int(matrix.salient.sum())
    assert [(one.n, one.k, one.format) for one in passes] == [
        *[(48, k, "ternary")] * (3 if mode == "code" else 2),
        (48, columns, "binary"),
    ]
    scale = 16 * blocks * 48
    assert passes[-1].bits == 48 * columns + 2 * scale
    assert passes[0].bits == 48 * k + k + scale  # signs, column markers, a scale
    save_tensors(tmp_path / "one.safetensors", {"w": matrix}, {})
    again = load_tensors(tmp_path / "one.safetensors")[0]["w"]
    assert again == matrix
    np.testing.assert_array_equal(again.dequantize(), matrix.dequantize())


def test_a_matrix_of_zeros_and_one_column():
    assert not billm(np.zeros((4, 32), np.float32), feedback=False).dequantize().any()
    one = billm(np.array([[3.0], [-2.0]], np.float32), feedback=False, mode="paper")
    assert one.dequantize().tolist() == [[3.0], [-2.0]]


def test_bad_input():
    w, h = problem(4, 16)
    with pytest.raises(InputError) as error:
        billm(w)
    assert str(error.value) == "feedback needs a Hessian; give one, or set feedback to false"
    with pytest.raises(InputError) as error:
        billm(w, h[:8])
    assert str(error.value) == "hessian has shape (8, 16); w has 16 columns: (16, 16)"
    with pytest.raises(InputError) as error:
        billm(w, h, block=0)
    assert str(error.value) == "block (=0) must be at least 1 column; 128 is usual"
    with pytest.raises(InputError) as error:
        billm(w * np.float32(1e6), h, feedback=False)
    assert str(error.value).endswith("exceeds FP16 (65504); scale the weights down")
    w[1, 2] = np.inf
    with pytest.raises(InputError) as error:
        billm(w, h)
    assert str(error.value) == "w[1, 2] is inf; it must be finite"
    matrix = billm(normals(4, 16), h)
    with pytest.raises(InputError) as error:
        BiLlmMatrix.restored(matrix.settings() | {"mode": "paper"}, matrix.entries())
    assert str(error.value) == "scales are (1, 4, 8); need (1, 4, 4)"
    with pytest.raises(InputError, match="mode"):
        resolve_recipe("billm:mode=both")


# ------------------------------------------------------------------------ a whole model


def test_a_model(tmp_path):
    model = load_model("tiny")
    small = Calibration(sequences=4, length=64)
    found, kept = {}, {}
    for recipe in ("billm", "billm:mode=paper", "billm:feedback=false"):
        made = kept[recipe] = apply_recipe(model, recipe, calibration=small)
        assert made.recipe.format is None
        score = perplexity(made.model, max_tokens=512, window=64, linear=made.linear())
        found[recipe] = (made.bits_per_weight, made.nominal_bits, score.perplexity)
    plain = perplexity(model, max_tokens=512, window=64).perplexity
    for bits, nominal, score in found.values():
        assert 1 < nominal < 1.4 < 2.5 < bits < 3.1
        assert plain < score < float("inf")
    made = kept["billm"]
    save_quantized(tmp_path / "model.safetensors", made)
    assert load_quantized(tmp_path / "model.safetensors", model).tensors == made.tensors


def test_without_feedback_no_data_is_read():
    assert not resolve_recipe("billm:feedback=false").steps[0].needs_data
    assert resolve_recipe("billm").steps[0].reads_quantized_stream
