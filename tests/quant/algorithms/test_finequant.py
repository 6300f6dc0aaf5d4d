"""FineQuant: the rule by hand, Gaussian errors, an outlier's reach, and a model."""

from importlib import import_module

import numpy as np
import pytest

from bitwright.quant import (
    InputError,
    apply_recipe,
    load_model,
    load_quantized,
    perplexity,
    quantize,
    resolve_recipe,
    save_quantized,
)

module = import_module("bitwright.quant.algorithms.finequant")


def rounded(w, **options):
    return module.FineQuant(**options).round(None, "x", w, None)


def test_range_by_hand():
    w = np.array([[1, -2, 0, 4, 5]], np.float32)
    assert module.mean_range(w, 2) == (2 * 2 + 4 * 2 + 5) / 5  # the short group counts by its size
    assert module.mean_range(w, 5) == module.mean_range(w, 8) == 5


@pytest.mark.parametrize(
    ("k", "minimum", "sizes"),
    [
        (64, 64, [64]),
        (65, 64, [64, 65]),
        (1536, 64, [64, 128, 256, 512, 1024, 1536]),
        (4096, 64, [64, 128, 256, 512, 1024, 2048, 4096]),
        (10, 64, [10]),
    ],
)
def test_sizes_tried(k, minimum, sizes):
    assert module.group_sizes(k, minimum) == sizes


def test_rule_by_hand():
    """Ranges 1 and 1.5 in groups of 1, 1.5 x as much in groups of 2."""
    w = np.array([[1, 2, 2, 1]], np.float32)  # R(1) = 1.5, R(2) = R(4) = 2
    assert module.group_size(w, 0.33, 1) == 1
    assert module.group_size(w, 0.34, 1) == 4
    w = np.array([[2, 2, 1, 1]], np.float32)  # R(1) = R(2) = 1.5
    assert module.group_size(w, 0, 1) == 2


def test_limits_of_alpha():
    w = np.random.default_rng(0).standard_normal((8, 1024)).astype(np.float32)
    sizes = [module.group_size(w, alpha) for alpha in (0, 0.1, 0.2, 0.4, 1e9)]
    assert sizes[0] == 64 and sizes[-1] == 1024
    assert sizes == sorted(sizes) and len(set(sizes)) > 2


def test_gaussian_errors():
    """20 000 x 128 normals; the error never rises as groups halve."""
    w = np.random.default_rng(0).standard_normal((20_000, 128)).astype(np.float32)
    errors = {}
    for size, error in ((32, 0.00940), (64, 0.01158), (128, 0.01376)):
        q = rounded(w, minimum=size, alpha=0)
        assert (q.format.name, q.group_size) == ("int4-sym", size)
        errors[size] = np.mean((q.dequantize() - w) ** 2, dtype=float)
        assert errors[size] == pytest.approx(error, rel=5e-3)
    assert errors[32] < errors[64] < errors[128]
    q = rounded(w, minimum=64, alpha=0, limit=0.01)
    assert q.format.name == "int8-sym" and q.group_size == 64
    assert np.mean((q.dequantize() - w) ** 2, dtype=float) == pytest.approx(3.5e-5, abs=5e-7)


def test_an_outlier_stays_in_its_group():
    """One weight of 20 sigma in a row of 4096."""
    w = np.random.default_rng(1).standard_normal((1, 4096)).astype(np.float32)
    clean = rounded(w, alpha=0).dequantize()
    w[0, 100] = 20
    whole = rounded(w, alpha=1e9, limit=1)
    assert whole.group_size == 4096
    assert (whole.dequantize() == 0).mean() > 0.8
    fine = rounded(w, alpha=0, limit=1)
    assert fine.group_size == 64
    damaged = np.flatnonzero(fine.dequantize() != clean)
    assert damaged.min() >= 64 and damaged.max() < 128


@pytest.mark.parametrize(("size", "bits"), [(64, 4.25), (128, 4.125), (4096, 4 + 16 / 4096)])
def test_bits(size, bits):
    w = np.random.default_rng(2).standard_normal((2, 4096)).astype(np.float32)
    q = rounded(w, minimum=size, alpha=0)
    assert q.bits_per_weight == bits and q.nominal_bits == 4
    assert q == quantize(w, "int4-sym", size)


def test_zero_weights():
    q = rounded(np.zeros((2, 200), np.float32))
    assert q.format.name == "int4-sym" and q.group_size == 200 and not q.dequantize().any()


def test_bad_input():
    with pytest.raises(InputError) as error:
        resolve_recipe("finequant:alpha=-1")
    assert str(error.value) == (
        "recipe 'finequant:alpha=-1': option alpha of finequant is '-1': input should be greater "
        "than or equal to 0"
    )
    with pytest.raises(InputError, match="has no option 'beta'; it has alpha, minimum, limit"):
        resolve_recipe("finequant:beta=1")
    with pytest.raises(InputError, match="begin the recipe with finequant"):
        resolve_recipe("int4+finequant")


def test_a_model(tmp_path):
    model = load_model("tiny")
    full = perplexity(model, max_tokens=1024, window=128).perplexity
    q = apply_recipe(model, "finequant")
    assert q.calibration is None and q.recipe.name == "finequant"
    found = perplexity(q.model, max_tokens=1024, window=128, linear=q.linear()).perplexity
    assert full < found < 1.05 * full
    sizes = {tensor.group_size for tensor in q.tensors.values()}
    assert sizes <= {64, 128, 256, 384} and 4 < q.bits_per_weight <= 4.25
    fine = apply_recipe(model, "finequant:limit=0,alpha=0")
    assert {tensor.format.name for tensor in fine.tensors.values()} == {"int8-sym"}
    assert fine.nominal_bits == 8 and fine.bits_per_weight == 8.25
    save_quantized(tmp_path / "q", q)
    assert load_quantized(tmp_path / "q", model).tensors == q.tensors
