"""PB-LLM: which weights are salient, both quantisers, compensation, what is stored, a model."""

from importlib import import_module

import numpy as np
import pytest

from bitwright.quant import (
    FORMATS,
    Calibration,
    InputError,
    apply_recipe,
    load_model,
    load_quantized,
    load_tensors,
    perplexity,
    quantize,
    resolve_recipe,
    save_quantized,
    save_tensors,
)

module = import_module("bitwright.quant.algorithms.pbllm")
_factorise = import_module("bitwright.quant.algorithms.gptq")._factorise
PbLlmMatrix = import_module("bitwright.quant.algorithms.pbllm").PbLlmMatrix
pbllm = import_module("bitwright.quant.algorithms.pbllm").pbllm

ROW = np.array([[4, -3, 0.5, -0.5, 0.2, -0.2]], np.float32)


def normals(n, k, seed=0):
    return np.random.default_rng(seed).standard_normal((n, k)).astype(np.float32)


def problem(n=24, k=160, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((400, k)) * np.exp(0.5 * rng.standard_normal(k))
    x[:, 1:] += 0.5 * x[:, :-1]
    return normals(n, k, seed), (2 / 400 * x.T @ x).astype(np.float32)


@pytest.mark.parametrize(("masked_mean", "alpha"), [(False, 0.35), (True, 1.4 / 6)])
def test_worked_example(masked_mean, alpha):
    made = pbllm(ROW, salient=2 / 6, masked_mean=masked_mean)
    assert made.mask[0].tolist() == [True, True, False, False, False, False]
    assert float(made.alpha[0]) == pytest.approx(alpha, rel=1e-3)
    assert float(made.mu[0]) == pytest.approx(0, abs=1e-6)
    found = made.dequantize()[0]
    np.testing.assert_allclose(found[:2], [4, -3], atol=7 / 255)
    np.testing.assert_allclose(found[2:], alpha * np.array([1, -1, 1, -1]), rtol=1e-3)


def test_the_sign_of_zero_is_plus():
    made = pbllm(np.array([[1.0, 0.0, -1.0]], np.float32), salient=0)
    assert made.signs[0].tolist() == [True, True, False]


@pytest.mark.parametrize("share", [0, 0.05, 0.1, 0.2, 0.3, 0.5, 1])
@pytest.mark.parametrize("shape", [(1, 10), (7, 33)], ids=str)
def test_the_share_is_met_and_the_largest_are_salient(share, shape):
    w = np.abs(normals(*shape))
    mask = module.salient_mask(w, share)
    assert 0 <= mask.sum() - share * w.size < 1
    if mask.any() and not mask.all():
        assert w[mask].min() >= w[~mask].max()


def test_without_correlation_both_metrics_are_one():
    w, _ = problem()
    h = 2 * np.eye(160, dtype=np.float32)
    assert pbllm(w, h, metric="hessian") == pbllm(w, h) == pbllm(w)


def test_eight_bits_alone_are_the_plain_format():
    w, _ = problem()
    plain = quantize(w, FORMATS["int8-asym"], group_size=160).dequantize()
    found = pbllm(w, salient=1).dequantize()
    assert np.abs(w - found).max() <= 1.01 * np.abs(w - plain).max()
    assert np.square(w - found).mean() == pytest.approx(np.square(w - plain).mean(), rel=0.02)


def test_signs_alone_give_the_gaussian_reference():
    w = normals(1, 1_000_000)
    mask = np.zeros_like(w, bool)
    alpha, mu = module.binary_scales(w, mask, False)
    error = np.square(w - np.where(w >= mu[0], 1, -1) * np.float32(alpha[0]) - np.float32(mu[0]))
    assert error.mean() == pytest.approx(0.3634, abs=1e-3)


@pytest.mark.parametrize("metric", ["magnitude", "hessian"])
def test_the_recursion_written_out(metric):
    w, h = problem(6, 150)
    u = _factorise(h.astype(np.float64), np.zeros(150, bool), np.arange(150), 0.01).u
    made = pbllm(w, h, metric=metric)
    saliency = np.abs(w) if metric == "magnitude" else np.abs(w) / np.diagonal(u)
    mask = saliency >= np.sort(saliency, axis=None)[810]  # 900 weights, 90 of them salient
    np.testing.assert_array_equal(made.mask, mask)
    left = w.astype(np.float64)
    for j in range(150):
        for row in range(6):
            v = left[row, j]
            if mask[row, j]:
                scale, zero = float(made.scale[row]), int(made.zero[row])
                q = (np.clip(np.rint(v / scale) + zero, 0, 255) - zero) * scale
            else:
                sign = 1 if v >= float(made.mu[row]) else -1
                q = sign * float(made.alpha[row]) + float(made.mu[row])
            left[row, j + 1 :] -= (v - q) / u[j, j] * u[j, j + 1 :]
            assert made.dequantize()[row, j] == pytest.approx(q, abs=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_compensation_lowers_the_output_error(seed):
    w, h = problem(seed=seed)
    errors = []
    for hessian in (h, None):
        e = w - pbllm(w, hessian).dequantize()
        errors.append(float(np.einsum("ij,jk,ik->", e, h, e)))
    assert errors[0] < errors[1]


@pytest.mark.parametrize("share", [0, 0.05, 0.1, 0.5, 1])
def test_bits(share, tmp_path):
    w, h = problem(32, 200)
    matrix = pbllm(w, h, share)
    assert matrix.nominal_bits == pytest.approx(8 * share + 1 - share)
    assert matrix.bits_per_weight == pytest.approx(8 * share + (1 - share) + 1 + 56 / 200)
    stored = 8 * sum(array.nbytes for array in matrix.entries().values())
    passes = matrix.passes()
    assert matrix.stored_bits == stored == sum(one.bits for one in passes)
    wanted = [("binary", 200)] * (share < 1) + [("int8-sym", round(200 * share))] * (share > 0)
    assert [(one.format, one.k) for one in passes] == wanted
    save_tensors(tmp_path / "one.safetensors", {"w": matrix}, {})
    again = load_tensors(tmp_path / "one.safetensors")[0]["w"]
    assert again == matrix
    np.testing.assert_array_equal(again.dequantize(), matrix.dequantize())


def test_a_dead_column_moves_nothing():
    w, h = problem(8, 64)
    h[5] = h[:, 5] = 0
    changed = w.copy()
    changed[:, 5] = 100
    assert pbllm(w, h) == pbllm(changed, h)


def test_bad_input():
    w, h = problem(4, 16)
    with pytest.raises(InputError) as error:
        pbllm(w, metric="hessian")
    assert str(error.value) == ("metric hessian needs a Hessian; give one, or use metric magnitude")
    with pytest.raises(InputError) as error:
        pbllm(w, h, 1.5)
    assert str(error.value) == "salient (=1.5) must be in 0 .. 1; 0.1 is usual"
    with pytest.raises(InputError) as error:
        pbllm(w, h[:8])
    assert str(error.value) == "hessian (8, 16) must be finite and have shape (16, 16)"
    with pytest.raises(InputError) as error:
        pbllm(w * np.float32(1e6))
    assert str(error.value).endswith("exceeds FP16 (65504); scale the weights down")
    matrix = pbllm(w, h)
    entries = matrix.entries()
    with pytest.raises(InputError, match="the mask has 7 ones"):
        PbLlmMatrix.restored(matrix.settings(), entries | {"codes": entries["codes"][1:]})
    with pytest.raises(InputError, match=r"mu is \(3,\); needs \(4,\)"):
        PbLlmMatrix.restored(matrix.settings(), entries | {"mu": entries["mu"][1:]})
    with pytest.raises(InputError, match="salient"):
        resolve_recipe("pbllm:salient=2")


def test_a_model(tmp_path):
    model = load_model("tiny")
    small = Calibration(sequences=4, length=64)
    found = []
    for recipe in ("pbllm:salient=0.5", "pbllm", "pbllm:metric=hessian"):
        made = apply_recipe(model, recipe, calibration=small)
        score = perplexity(made.model, max_tokens=512, window=64, linear=made.linear())
        found.append((made.nominal_bits, score.perplexity))
    plain = perplexity(model, max_tokens=512, window=64).perplexity
    assert [bits for bits, _ in found] == [pytest.approx(b, abs=0.01) for b in (4.5, 1.7, 1.7)]
    assert plain < found[0][1] < found[1][1] < float("inf")
    save_quantized(tmp_path / "model.safetensors", made)
    assert load_quantized(tmp_path / "model.safetensors", model).tensors == made.tensors
