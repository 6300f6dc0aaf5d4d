"""SmoothQuant, AWQ and AQAS: equivalent transformations and their searches."""

import importlib
import re

import numpy as np
import pytest
import torch

from bitwright.quant import (
    SITES,
    BlockTask,
    Calibration,
    InputError,
    SiteCollector,
    apply_recipe,
    block_forward,
    calibration_tokens,
    load_model,
    perplexity,
    quantize,
    resolve_recipe,
    single_threads,
)

CALIBRATION = Calibration(sequences=4, length=64)


@pytest.fixture(scope="module")
def tiny():
    return load_model("tiny")


@pytest.fixture
def task(tiny):
    """Block 1 of tiny with statistics of all its calibration tokens, the sample being all rows."""
    return make_task(tiny, "w3g32-int-asym")


def make_task(model, recipe, layer=1):
    ids = calibration_tokens(model, CALIBRATION)
    weights = model.block_weights(layer)
    rows = np.arange(CALIBRATION.tokens)
    collectors = {
        site: SiteCollector(weights[names[0]].shape[1], ("gram", "sample"), rows)
        for site, names in SITES.items()
    }
    first = {names[0]: site for site, names in SITES.items()}

    def linear(name, x):
        if name in first:
            collectors[first[name]].add(x)
        return x @ weights[name].T

    with torch.no_grad():
        x = model.embed(ids)
        rotary = model.rotary(CALIBRATION.length)
        for before in range(layer):
            x = model.block(before, x, rotary)
        block_forward(model.config, weights, x, rotary, linear)
    stats = {site: collector.stats() for site, collector in collectors.items()}
    return BlockTask(layer, model.config, resolve_recipe(recipe), dict(weights), stats, probe=x[:1])


def algorithm(text):
    return resolve_recipe(f"w3-int-asym+{text}").steps[0]


def outputs(task, x, rotary):
    with torch.no_grad():
        return block_forward(
            task.config, task.weights, x, rotary, lambda name, y: y @ task.weights[name].T
        )


@pytest.mark.parametrize("site", SITES)
def test_scaled_inputs_leave_the_blocks_function_as_it_is(tiny, task, site):
    x, rotary = torch.randn(2, 16, tiny.config.hidden), tiny.rotary(16)
    before = outputs(task, x, rotary)
    k = task.weights[SITES[site][0]].shape[1]
    # Powers of two: every product and quotient is exact, so nothing at all may change.
    scale = task.tie(site, 2.0 ** np.random.default_rng(0).integers(-3, 4, k).astype(np.float32))
    scale = (2.0 ** np.round(np.log2(scale))).astype(np.float32)
    task.scale_inputs(site, scale)
    after = outputs(task, x, rotary)
    # Sums of a norm's input are unchanged, but products regroup where scales meet a sum: exact too.
    assert torch.equal(before, after)


def test_statistics_follow_the_scales(tiny, task):
    scale = np.full(tiny.config.hidden, 4, np.float32)
    absmax = task.stats["ffn_in"].absmax.copy()
    gram = task.stats["ffn_in"].gram.copy()
    task.scale_inputs("ffn_in", scale)
    assert np.array_equal(task.stats["ffn_in"].absmax, absmax / 4)
    assert np.array_equal(task.stats["ffn_in"].gram, gram / 16)


def test_tied_scales_are_equal_in_heads_that_share_values():
    class Config:
        heads, kv_heads, head_dim = 4, 2, 2

    task = BlockTask(0, Config(), resolve_recipe("int4"), {}, {})
    tied = task.tie("attn_out", np.array([1, 4, 4, 1, 2, 2, 8, 2], np.float32))
    # heads 0 and 1 share: sqrt(1 * 4), sqrt(4 * 1); heads 2 and 3: sqrt(2 * 8), sqrt(2 * 2)
    assert tied == pytest.approx([2, 2, 2, 2, 4, 2, 4, 2])
    assert np.array_equal(task.tie("ffn_in", tied[:3]), tied[:3])


@pytest.mark.parametrize("scale", [0.0, -1.0, np.nan, np.inf])
def test_scales_that_are_no_scales_are_refused(task, scale):
    wrong = np.ones(task.config.hidden, np.float32)
    wrong[3] = scale
    message = "scales of attn_in in block 1 must be positive and finite"
    with pytest.raises(InputError, match=f"^{message}$"):
        task.scale_inputs("attn_in", wrong)


# ------------------------------------------------------------------ SmoothQuant


def test_smoothquants_scales_follow_the_formula(task):
    """What the queries' columns took in is max|X|**0.75 / max|W|**0.25, computed in float64."""
    absmax = task.stats["attn_in"].absmax.astype(np.float64)
    columns = np.max([np.abs(task.matrix(name)).max(0) for name in SITES["attn_in"]], axis=0)
    before = task.matrix("attn.q").copy()
    algorithm("smoothquant:alpha=0.75").apply(task)
    taken = task.matrix("attn.q")[0] / before[0]
    assert taken == pytest.approx(absmax**0.75 / columns.astype(np.float64) ** 0.25, rel=1e-5)


def test_smoothquant_leaves_what_no_norm_feeds(task):
    before = {name: task.matrix(name).copy() for name in ("attn.o", "ffn.down")}
    algorithm("smoothquant").apply(task)
    for name, w in before.items():
        assert np.array_equal(task.matrix(name), w)


# ------------------------------------------------------------------ AWQ


def test_with_its_searches_off_awq_is_rounding(tiny):
    plain = apply_recipe(tiny, "w3g32-int-asym")
    off = apply_recipe(tiny, "w3g32-int-asym+awq:scale=false,clip=false", calibration=CALIBRATION)
    assert plain.tensors == off.tensors


def test_awqs_objective_is_the_error_of_the_outputs(task):
    """tr(E G E^T) against the outputs themselves, for all tokens."""
    module = awq_module()
    stats = task.stats["ffn_in"]
    scale = module.awq_scales(stats, 0.5)
    total = 0.0
    for name in SITES["ffn_in"]:
        w = task.matrix(name)
        x = stats.sample.astype(np.float64)
        rounded = quantize(w * scale, task.recipe.weights_only).dequantize().astype(np.float64)
        total += np.square((x / scale) @ rounded.T - x @ w.astype(np.float64).T).sum()
    # float32 sums of 256 tokens and k = 128 terms: relative error below 256 * 128 * 2**-24 = 2e-3,
    # and the errors' mean square is near the bound only by chance.
    assert module.output_error(task, "ffn_in", scale) == pytest.approx(total, rel=2e-3)


def awq_module():
    return importlib.import_module("bitwright.quant.algorithms.awq")


def aqas_module():
    return importlib.import_module("bitwright.quant.algorithms.aqas")


def test_awqs_search_takes_the_least_of_its_candidates(task):
    module = awq_module()
    for site in SITES:
        errors = {}
        for step in range(20):
            scale = task.tie(site, module.awq_scales(task.stats[site], step / 20))
            errors[step] = module.output_error(task, site, scale)
        best = min(errors, key=errors.get)
        with single_threads() as pool:
            chosen = module.search_scale(task, site, 20, pool)
        expected = task.tie(site, module.awq_scales(task.stats[site], best / 20))
        assert np.array_equal(chosen, expected)


def test_ratio_zero_is_no_scaling(task):
    assert np.array_equal(
        awq_module().awq_scales(task.stats["attn_in"], 0.0), np.ones(task.config.hidden)
    )


def test_clipping_takes_the_least_error_of_each_group(task):
    """Every row and group against a slow search over the same ten bounds."""
    module = awq_module()
    name, site, size = "attn.v", "attn_in", 32
    w, gram = task.matrix(name), task.stats[site].gram.astype(np.float64)
    module.clip_weights(task, name, task.stats[site], 20)
    largest = np.abs(task.clipped[name]).reshape(len(w), -1, size).max(2)
    for row in range(0, len(w), 9):
        for group in range(w.shape[1] // size):
            part = slice(group * size, (group + 1) * size)
            own, bounds = w[row : row + 1, part], []
            for step in range(10):
                bound = np.float32(np.abs(own).max() * np.float32(1 - step / 20))
                clipped = np.clip(own, -bound, bound)
                e = (quantize(clipped, "int3-asym", size).dequantize() - own).astype(np.float64)[0]
                bounds.append((e @ gram[part, part] @ e, bound))
            least = min(error for error, _ in bounds)
            chosen = next(e for e, bound in bounds if bound >= largest[row, group] * (1 - 1e-6))
            found = [error for error, bound in bounds if bound == largest[row, group]]
            # The search ran in float32: another bound may win by less than its rounding.
            assert min(found, default=chosen) <= least * (1 + 1e-3)


def test_queries_and_keys_are_not_clipped(task):
    algorithm("awq").apply(task)
    assert set(task.clipped) == {"attn.v", "attn.o", "ffn.gate", "ffn.up", "ffn.down"}


# ------------------------------------------------------------------ AQAS


def test_with_float_activations_aqas_has_awqs_objective(task):
    """The same number, and so the same scales, over the same tokens."""
    awq, aqas = awq_module(), aqas_module()
    for site in SITES:
        exact = aqas.sampled_outputs(task, site)
        for ratio in (0.0, 0.35, 0.8):
            scale = task.tie(site, awq.awq_scales(task.stats[site], ratio))
            ours = aqas.sampled_error(task, site, scale, exact)
            assert ours == pytest.approx(awq.output_error(task, site, scale), rel=2e-3)


def test_with_float_activations_aqas_finds_awqs_scales(tiny):
    left, right = make_task(tiny, "w3g32-int-asym"), make_task(tiny, "w3g32-int-asym")
    algorithm("awq:clip=false").apply(left)
    algorithm("aqas:family=awq").apply(right)
    same = [
        np.array_equal(left.matrix(name), right.matrix(name))
        for names in SITES.values()
        for name in names
    ]
    # The two sum in another order; on this block no two candidates are nearer than that.
    assert all(same)


def test_aqas_sees_what_quantising_the_inputs_costs(tiny):
    aqas = aqas_module()
    plain, quantised = (make_task(tiny, f"w4g32{act}-int-asym") for act in ("", "a4"))
    for site in SITES:
        ones = np.ones(plain.matrix(SITES[site][0]).shape[1], np.float32)
        errors = [
            aqas.sampled_error(task, site, ones, aqas.sampled_outputs(task, site))
            for task in (plain, quantised)
        ]
        assert errors[1] > 1.5 * errors[0]


def test_aqas_is_never_worse_than_no_scaling_on_its_objective(tiny):
    aqas = aqas_module()
    for site in SITES:
        task = make_task(tiny, "w3g32a4-int-asym")
        ones = np.ones(task.matrix(SITES[site][0]).shape[1], np.float32)
        exact = aqas.sampled_outputs(task, site)
        before = aqas.sampled_error(task, site, ones, exact)
        chosen = algorithm("aqas")._search(task, site)
        assert aqas.sampled_error(task, site, chosen, exact) <= before


@pytest.mark.parametrize("step", ["awq", "aqas", "smoothquant"])
def test_a_searched_model_is_still_the_model_in_float(tiny, step):
    """The transformed float weights give the float model's perplexity."""
    with_step = apply_recipe(
        tiny,
        f"w8-int-sym+{step}" if step != "awq" else "w8-int-sym+awq:clip=false",
        calibration=CALIBRATION,
    )
    plain = apply_recipe(tiny, "w8-int-sym")
    ours = perplexity(with_step.model, linear=with_step.linear(), max_tokens=1024)
    theirs = perplexity(plain.model, linear=plain.linear(), max_tokens=1024)
    assert ours.perplexity == pytest.approx(theirs.perplexity, rel=0.02)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("int4+awq:grid=0", "recipe 'int4+awq:grid=0': option grid of awq is '0': "),
        ("int4+smoothquant:alpha=2", "recipe 'int4+smoothquant:alpha=2': option alpha of "),
        (
            "int4+awq:clips=1",
            "recipe 'int4+awq:clips=1': algorithm awq has no option 'clips'; it has scale, clip, "
            "grid",
        ),
        (
            "int4+awk",
            "recipe 'int4+awk': unknown algorithm 'awk'; there are llmpruner, hadamard,",
        ),
        ("int4+gptq+awq", "recipe 'int4+gptq+awq': awq must come before gptq; write it first"),
        ("int4+awq+awq", "recipe 'int4+awq+awq': awq stands twice; keep one of them"),
        (
            "int4+gptq+mixed:formats=fp4",
            "recipe 'int4+gptq+mixed:formats=fp4': gptq and mixed both choose codes; keep one",
        ),
        (
            "fp16+awq",
            "recipe 'fp16+awq': fp16 leaves weights as they are; awq has nothing to do",
        ),
        ("int4+awq:grid", "recipe 'int4+awq:grid': 'grid' is no option; write awq:key=value,"),
    ],
)
def test_steps_that_cannot_be_are_refused(text, message):
    with pytest.raises(InputError, match=f"^{re.escape(message)}"):
        resolve_recipe(text)


@pytest.mark.parametrize("k", (1, 5, 8, 20))
@pytest.mark.parametrize("block", (1, 3, 8, 384))
def test_the_error_of_a_gram_matrix_in_blocks_of_any_size(k, block):
    """Integers, so that sums are exact in any order."""
    base = importlib.import_module("bitwright.quant.algorithms.base")
    rng = np.random.default_rng(0)
    x, e = (rng.integers(-9, 10, (rows, k)).astype(np.float32) for rows in (30, 6))
    assert base.gram_error(e, x.T @ x, block) == np.square(e @ x.T, dtype=np.float64).sum()
