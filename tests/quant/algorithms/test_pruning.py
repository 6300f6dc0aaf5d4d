"""Wanda and magnitude pruning: the worked example, exact shares, and models behind any format."""

import itertools
from importlib import import_module

import numpy as np
import pytest
import torch

from bitwright.quant import (
    SITE_OF,
    SITES,
    Calibration,
    InputError,
    apply_recipe,
    block_forward,
    calibration_tokens,
    load_model,
    load_quantized,
    perplexity,
    quantize,
    resolve_recipe,
    save_quantized,
)

_masked = import_module("bitwright.quant.algorithms.masked")
Pattern = _masked.Pattern
_pruning = import_module("bitwright.quant.algorithms.pruning")
keep_mask = _pruning.keep_mask
_wanda = import_module("bitwright.quant.algorithms.wanda")
wanda_scores = _wanda.wanda_scores

CALIBRATION = Calibration(sequences=4, length=64)
W = np.array([[4, 0, 1, -1], [3, -2, -1, -3], [-3, 1, 0, 2]], np.float32)
NORMS = np.array([1, 2, 8, 3], np.float32)


@pytest.fixture(scope="module")
def tiny():
    return load_model("tiny")


@pytest.fixture(scope="module")
def pruned(tiny):
    return apply_recipe(tiny, "fp16+wanda", calibration=CALIBRATION)


def score(model):
    return perplexity(model.model, max_tokens=2048, window=256, linear=model.linear()).perplexity


def test_worked_example_of_the_paper():
    scores = wanda_scores(W, NORMS)
    assert scores.tolist() == [[4, 0, 8, 3], [3, 4, 8, 9], [3, 2, 0, 6]]
    kept = W * keep_mask(scores, 0.5, None, by_row=True)
    assert kept.tolist() == [[4, 0, 1, 0], [0, 0, -1, -3], [-3, 0, 0, 2]]


def test_equal_norms_are_magnitude_within_rows():
    w = np.random.default_rng(0).normal(size=(20, 64)).astype(np.float32)
    equal = keep_mask(wanda_scores(w, np.full(64, 2, np.float32)), 0.3, None, by_row=True)
    assert np.array_equal(equal, keep_mask(np.abs(w), 0.3, None, by_row=True))
    for row, mask in zip(np.abs(w), equal, strict=True):
        assert row[~mask].max() < row[mask].min()


def test_a_common_factor_of_the_norms_changes_nothing():
    assert np.array_equal(
        keep_mask(wanda_scores(W, NORMS), 0.5, None, True),
        keep_mask(wanda_scores(W, NORMS * 1024), 0.5, None, True),
    )


@pytest.mark.parametrize("k", [1, 7, 10, 64])
@pytest.mark.parametrize("sparsity", [0.01, 0.29, 0.5, 0.7, 0.99])
def test_shares_are_exact(k, sparsity):
    scores = np.random.default_rng(k).random((9, k))
    rows = keep_mask(scores, sparsity, None, by_row=True)
    assert ((~rows).sum(1) == int(k * sparsity)).all()
    matrix = keep_mask(scores, sparsity, None, by_row=False)
    assert (~matrix).sum() == int(9 * k * sparsity)


@pytest.mark.parametrize("pattern", [Pattern(2, 4), Pattern(4, 8), Pattern(1, 2), Pattern(3, 8)])
def test_each_run_keeps_its_largest(pattern):
    scores = np.random.default_rng(3).random((5, 48))
    mask = keep_mask(scores, 0.5, pattern, by_row=True)
    for run, kept in zip(scores.reshape(-1, pattern.of), mask.reshape(-1, pattern.of), strict=True):
        assert kept.sum() == pattern.kept
        assert run[kept].min() > run[~kept].max()


def test_of_equal_scores_the_first_go():
    mask = keep_mask(np.ones((2, 4)), 0.5, None, by_row=True)
    assert mask.tolist() == [[False, False, True, True]] * 2
    assert keep_mask(np.ones((2, 4)), 0.5, None, by_row=False).tolist() == [[False] * 4, [True] * 4]


def test_a_model_loses_half_of_every_row(tiny, pruned):
    assert (pruned.bits_per_weight, pruned.nominal_bits) == (9.0, 8.0)
    for name, tensor in pruned.tensors.items():
        float_weights = tiny.weight(name).numpy()
        k = tensor.shape[1]
        assert ((~tensor.mask).sum(1) == k // 2).all()
        kept = np.where(tensor.mask, float_weights.astype(np.float16).astype(np.float32), 0)
        assert np.array_equal(tensor.dequantize(), kept)
    assert score(pruned) < 2 * perplexity(tiny, max_tokens=2048, window=256).perplexity


def test_norms_come_from_the_pruned_blocks_before(tiny, pruned):
    """Block by block as the authors do it, with plain matrices."""
    config, ids = tiny.config, calibration_tokens(tiny, CALIBRATION)
    x, rotary = tiny.embed(ids), tiny.rotary(ids.shape[1])
    with torch.no_grad():
        for layer in range(2):
            weights = tiny.block_weights(layer)
            seen = {}

            def linear(name, y, weights=weights, seen=seen):
                seen[name] = y.flatten(0, -2).double()
                return y @ weights[name].T

            block_forward(config, weights, x, rotary, linear)
            for names in SITES.values():
                for name in names:
                    norms = seen[name].norm(dim=0).numpy()
                    mask = keep_mask(np.abs(weights[name].numpy()) * norms, 0.5, None, True)
                    found = pruned.tensors[f"blocks.{layer}.{name}"]
                    assert (found.mask == mask).mean() > 0.9999, name
                    weights[name] = torch.from_numpy(found.dequantize())
            x = block_forward(config, weights, x, rotary, lambda name, y: y @ weights[name].T)  # noqa: B023


@pytest.mark.parametrize(
    "recipe, bits",
    [
        ("w4g64-int-asym+wanda:pattern=2:4", 3 + 20 / 64),
        ("w4g64-int-asym+wanda", 3 + 20 / 64),
        ("mxfp4+wanda:pattern=4:8", 3.5 + 8 / 32),
        ("nvfp4+magnitude:pattern=2:4", None),
        ("w3g64-bitmod+wanda:sparsity=0.25", None),
        ("fp16+magnitude:pattern=2:4", 9.0),
    ],
)
def test_any_format_goes_behind(tiny, recipe, bits, tmp_path):
    model = apply_recipe(tiny, recipe, calibration=CALIBRATION)
    if bits is not None:
        assert model.bits_per_weight == bits
    for name, tensor in model.tensors.items():
        assert not tensor.dequantize()[~tensor.mask].any(), name
    save_quantized(tmp_path / "m.safetensors", model)
    loaded = load_quantized(tmp_path / "m.safetensors", tiny)
    assert loaded.recipe == model.recipe and loaded.tensors == model.tensors
    assert np.isfinite(score(model))


def test_the_rounded_weights_are_those_of_the_pruned_matrix(tiny):
    model = apply_recipe(tiny, "w4g64-int-asym+magnitude:pattern=2:4")
    name = "blocks.1.ffn.down"
    w = tiny.weight(name).numpy()
    mask = keep_mask(np.abs(w), 0.5, Pattern(2, 4), True)
    rounded = quantize(np.where(mask, w, 0), "int4-asym", group_size=64).dequantize()
    assert np.array_equal(model.tensors[name].dequantize(), np.where(mask, rounded, 0))


def test_no_other_choice_in_a_row_errs_less_where_inputs_are_uncorrelated():
    """All 70 masks that keep 4 of 8: a row's error is the sum of scores^2 then."""
    rng = np.random.default_rng(5)
    w, norms = rng.normal(size=(1, 8)).astype(np.float32), rng.random(8).astype(np.float32)
    found = keep_mask(wanda_scores(w, norms), 0.5, None, by_row=True)[0]
    errors = {}
    for kept in itertools.combinations(range(8), 4):
        gone = [column for column in range(8) if column not in kept]
        errors[kept] = float((w[0, gone] ** 2 * norms[gone] ** 2).sum())
    assert len(errors) == 70
    assert min(errors, key=errors.__getitem__) == tuple(np.flatnonzero(found))


def test_rows_may_be_emptied_on_request_and_a_note_says_so(tiny):
    magnitude = apply_recipe(tiny, "fp16+magnitude:empty_rows=true")
    assert magnitude.notes == (
        "blocks.4: ffn.gate: magnitude:empty_rows=true empties row 272 (1 of 384 rows in all)",
    )
    assert not magnitude.tensors["blocks.4.ffn.gate"].dequantize()[272].any()
    for tensor in magnitude.tensors.values():
        assert 2 * tensor.kept == tensor.mask.size


def test_super_weights_and_scales_stay_beside_the_mask(tiny):
    recipe = "w4g64-int-asym+hadamard+superweight+awq:grid=3+wanda:pattern=2:4"
    model = apply_recipe(tiny, recipe, calibration=CALIBRATION)
    kept = [
        (block.layer, name, s)
        for block in model.blocks
        for name in block.super_weights
        for s in block.super_weights[name]
    ]
    assert kept
    for layer, name, one in kept:
        assert one.value != 0
        assert model.weights(layer, name)[one.row, one.column] == np.float32(one.value)
        assert (model.tensors[f"blocks.{layer}.{name}"].mask.reshape(-1, 4).sum(1) == 2).all()


def test_blocks_in_a_folder_are_the_same(tiny, tmp_path):
    recipe = "w4g64-int-asym+wanda:pattern=2:4"
    kept = apply_recipe(tiny, recipe, calibration=CALIBRATION)
    stored = apply_recipe(tiny, recipe, calibration=CALIBRATION, folder=tmp_path / "m")
    assert stored.tensors == kept.tensors
    assert stored.bits_per_weight == 3 + 20 / 64


def test_maps_of_formats_and_learned_steps_go_with_it(tiny):
    linears = len(tiny.config.linear_shapes())
    digits = "01" * (linears // 2) + "0" * (linears % 2)
    recipe = f"w4g64-int-asym+wanda+formats:choose=int4-asym|int8-sym,map={digits}"
    model = apply_recipe(tiny, recipe, calibration=CALIBRATION)
    assert {tensor.inner.format.name for tensor in model.tensors.values()} == {
        "int4-asym",
        "int8-sym",
    }
    learned = apply_recipe(
        tiny, "w4g64-int-asym+wanda+omniquant:sequences=1,epochs=1", calibration=CALIBRATION
    )
    for tensor in learned.tensors.values():
        assert ((~tensor.mask).sum(1) == tensor.shape[1] // 2).all()
        assert not tensor.dequantize()[~tensor.mask].any()


def test_names_come_back():
    for text in ("fp16+wanda", "w4g64-int-asym+wanda:pattern=2:4", "fp16+magnitude:sparsity=0.3"):
        assert resolve_recipe(text).name == text
        again = type(resolve_recipe(text))(**resolve_recipe(text).model_dump())
        assert again == resolve_recipe(text)


@pytest.mark.parametrize(
    "recipe, text",
    [
        (
            "fp16+magnitude",
            "layer blocks.4.ffn.gate: magnitude empties row 272 (1 of 384 rows in all); lower the "
            "sparsity, allow it with empty_rows=true, or prune within rows (wanda, or a pattern)",
        ),
        (
            "fp16+wanda:pattern=2:7",
            "layer blocks.0.attn.q: k (=128 inputs) is no multiple of 7, which 2:7 needs; nearest: "
            "126 and 133",
        ),
        (
            "fp16+wanda:sparsity=0.001",
            "layer blocks.0.attn.q: sparsity 0.001 of 128 weights takes none out; ask for more",
        ),
        (
            "w4g30-int-sym+wanda:pattern=2:4",
            "layer blocks.0.attn.q: group size 30 is no multiple of 4, which 2:4 needs; nearest: "
            "28 and 32",
        ),
        (
            "olive4+wanda",
            "layer blocks.0.attn.q: olive4 stores weights in pairs, which a mask tears apart; "
            "prune behind another format",
        ),
        (
            "w4g64-int-sym+wanda+gptq",
            "gptq moves rounding errors into weights that wanda takes out; leave gptq out",
        ),
        (
            "fp16+wanda+magnitude",
            "recipe 'fp16+wanda+magnitude': wanda and magnitude both take weights out; keep one of "
            "them",
        ),
        (
            "fp16+wanda:pattern=4:4",
            "recipe 'fp16+wanda:pattern=4:4': pattern '4:4' of wanda is not N:M with 1 <= N < M <= "
            "64; 2:4 keeps 2 of 4",
        ),
        (
            "fp16+magnitude:sparsity=0.3,pattern=2:4",
            "recipe 'fp16+magnitude:sparsity=0.3,pattern=2:4': magnitude takes sparsity=0.3 or "
            "pattern=2:4, not both; leave one out",
        ),
        (
            "fp16+wanda:sparsity=1",
            "recipe 'fp16+wanda:sparsity=1': option sparsity of wanda is '1': input should be less "
            "than 1",
        ),
    ],
)
def test_bad_input_is_told_in_a_line(tiny, recipe, text):
    with pytest.raises(InputError) as error:
        apply_recipe(tiny, recipe, calibration=CALIBRATION)
    assert str(error.value) == text


def test_weights_that_are_no_numbers_are_named(tiny):
    name = "blocks.0.attn.q"
    broken = tiny.weight(name).clone()
    broken[3, 5] = float("inf")
    with pytest.raises(InputError, match=r"^layer blocks\.0\.attn\.q: weight \[3, 5\] or its"):
        apply_recipe(tiny.with_weights({name: broken}), "fp16+magnitude")
    assert set(SITE_OF) == {n for names in SITES.values() for n in names}
