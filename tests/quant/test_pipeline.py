"""Recipes over whole models: what runs on what, and that it composes."""

import re

import numpy as np
import pytest
import torch

from bitwright.quant import (
    FORMATS,
    ActivationRecipe,
    Calibration,
    InputError,
    Recipe,
    Text,
    agreement,
    apply_recipe,
    load_model,
    perplexity,
    quantize,
    quantize_model,
    resolve_recipe,
)

CALIBRATION = Calibration(sequences=3, length=48)


@pytest.fixture(scope="module")
def tiny():
    return load_model("tiny")


def changed(model, **weights):
    """The model with some weights replaced; names with "__" for "."."""
    return model.with_weights({name.replace("__", "."): w for name, w in weights.items()})


def score(quantized, tokens=1024):
    return perplexity(
        quantized.model, linear=quantized.linear(), cache=quantized.cache(), max_tokens=tokens
    ).perplexity


STEPS = (
    "smoothquant",
    "awq:grid=4",
    "aqas:grid=3",
    "omniquant:sequences=1,epochs=1",
    "abq:sequences=1,epochs=1",
    "hadamard",
    "superweight:threshold=5",
    "gptq",
    "gptq:act_order=true",
    "mixed:formats=int4-sym|fp4",
    "hadamard+awq:grid=3+gptq",
    "aqas:grid=2+gptq",
    "superweight:threshold=5+awq:grid=3+gptq",
)


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("head", ["w3g32-bitmod", "w4a8-dint-asym", "w2*-int-asym+a8-asym"])
def test_algorithms_compose(tiny, step, head):
    """Each gives a model that still reads: perplexity below that of guessing among 256 bytes."""
    quantized = apply_recipe(tiny, f"{head}+{step}", calibration=CALIBRATION)
    assert len(quantized.tensors) == len(tiny.linear_names())
    assert 1 < score(quantized, 512) < 30


@pytest.mark.parametrize("name", list(FORMATS))
@pytest.mark.parametrize("step", ["gptq", "awq:grid=2", "aqas:grid=2"])
def test_every_algorithm_takes_every_format(tiny, name, step):
    format = FORMATS[name]
    head = Recipe(format=name, group_size=format.block or 64).name
    quantized = apply_recipe(tiny, f"{head}+{step}", calibration=CALIBRATION)
    assert {qt.format.name for qt in quantized.tensors.values()} == {name}
    assert all(np.isfinite(qt.scales()).all() for qt in quantized.tensors.values())


def test_without_algorithms_it_is_rounding(tiny):
    assert apply_recipe(tiny, "w3g64-bitmod").tensors == quantize_model(tiny, "w3g64-bitmod")


def test_plain_recipes_need_no_data(tiny):
    quantized = apply_recipe(tiny, "w4a8-dint", text="too short for any calibration")
    assert quantized.calibration is None


def test_gptq_lowers_the_outputs_error(tiny):
    """The layer's own objective, over the inputs that it was given, in every layer."""
    ours = apply_recipe(tiny, "w3g32-int-asym+gptq", calibration=CALIBRATION)
    theirs = apply_recipe(tiny, "w3g32-int-asym+mixed:formats=int3-asym", calibration=CALIBRATION)
    better = [
        a.relative_output_mse < b.relative_output_mse
        for a, b in zip(ours.report, theirs.report, strict=True)
    ]
    assert sum(better) == len(better)


def test_gptqs_hessians_come_through_quantised_layers(tiny):
    """The first layer of all has the float model's inputs; behind it they differ."""
    from bitwright.quant import SiteCollector, calibration_tokens, norm
    from bitwright.quant import quantize as round_to_nearest

    ids = calibration_tokens(tiny, CALIBRATION)
    with torch.no_grad():
        h = norm(tiny.config, tiny.weight("blocks.0.attn_norm"), tiny.embed(ids))
    collector = SiteCollector(h.shape[-1], {"gram"})
    collector.add(h)
    import importlib

    gptq = importlib.import_module("bitwright.quant.algorithms.gptq").gptq
    w = tiny.weight("blocks.0.attn.q").numpy()
    expected = gptq(w, collector.stats().hessian, FORMATS["int3-asym"], 32, "fp16").tensor
    got = apply_recipe(tiny, "w3g32-int-asym+gptq", calibration=CALIBRATION)
    assert got.tensors["blocks.0.attn.q"] == expected
    assert got.tensors["blocks.0.attn.q"] != round_to_nearest(w, "int3-asym", 32)


def test_the_same_arguments_give_the_same_bits(tiny):
    recipe = "w3g32a8-int-asym+aqas:grid=3+gptq"
    first, second = (apply_recipe(tiny, recipe, calibration=CALIBRATION) for _ in range(2))
    assert first.tensors == second.tensors
    other = apply_recipe(tiny, recipe, calibration=Calibration(sequences=3, length=48, seed=1))
    assert first.tensors != other.tensors


def test_rotation_alone_leaves_the_model_as_it_is(tiny):
    """fp16+hadamard: every weight rotated, the same perplexity and the same first choices."""
    rotated = apply_recipe(tiny, "fp16+hadamard")
    assert not torch.equal(rotated.model.weight("embed"), tiny.weight("embed"))
    result = agreement(tiny, rotated.model, linear=rotated.linear(), max_tokens=1024)
    # float32 rounding: 4 blocks of products with a relative error near 1e-6 each.
    assert result.kl < 1e-6
    assert result.perplexity == pytest.approx(result.reference_perplexity, rel=1e-4)


def test_mixed_formats_take_the_one_with_the_least_error(tiny):
    names = ("int4-sym", "fp4", "dint4-sym")
    mixed = apply_recipe(
        tiny, "w4g32-int-sym+mixed:formats=" + "|".join(names), calibration=CALIBRATION
    )
    chosen = {qt.format.name for qt in mixed.tensors.values()}
    assert len(chosen) > 1
    first = mixed.report[0]  # its inputs are the float model's in every run
    alone = [
        apply_recipe(tiny, f"w4g32-int-sym+mixed:formats={name}", calibration=CALIBRATION).report[0]
        for name in names
    ]
    assert first.relative_output_mse == min(row.relative_output_mse for row in alone)


# ------------------------------------------------------------------ activations, cache


def test_activations_are_rounded_as_the_recipe_says(tiny):
    quantized = apply_recipe(tiny, "w8a4-int-sym")
    linear = quantized.linear()
    x = torch.randn(2, 3, tiny.config.hidden, generator=torch.Generator().manual_seed(0))
    qx = quantize(x.view(6, -1), "int4-sym", group_size=tiny.config.hidden).dequantize()
    w = torch.from_numpy(quantized.tensors["blocks.0.attn.q"].dequantize())
    expected = (torch.from_numpy(qx) @ w.T).view(2, 3, -1)
    assert torch.allclose(linear("blocks.0.attn.q", x), expected, rtol=1e-5, atol=1e-6)
    assert not torch.equal(
        linear("blocks.0.attn.q", x), quantized.linear(False)("blocks.0.attn.q", x)
    )


def test_static_ranges_come_from_calibration(tiny):
    quantized = apply_recipe(tiny, "w8-int-sym+a8-tensor-static", calibration=CALIBRATION)
    limits = quantized.blocks[0].limits
    assert set(limits) == {"attn_in", "attn_out", "ffn_in", "ffn_out"}
    x = torch.full((1, 1, tiny.config.hidden), 1e4)  # far outside: saturates
    w = torch.from_numpy(quantized.tensors["blocks.0.attn.q"].dequantize())
    top = max(abs(limit) for limit in limits["attn_in"])
    y = quantized.linear()("blocks.0.attn.q", x)
    # The largest code is the range's end, up to the scale's FP16 rounding of 2**-11.
    assert torch.allclose(y, torch.full_like(x, top) @ w.T, rtol=1e-3, atol=1e-3)


def test_fewer_bits_in_the_cache_read_worse(tiny):
    scores = [
        score(apply_recipe(tiny, f"fp16{kv}")) for kv in ("", "+kv8", "+kv4-asym", "+kv2-asym")
    ]
    assert scores[1] == pytest.approx(scores[0], rel=1e-2)
    assert scores[2] < scores[3] and scores[0] * 1.01 < scores[3]


# ------------------------------------------------------------------ super weights


def test_a_super_weight_is_found_kept_and_counted(tiny):
    """An input channel made large, and one weight that reads it: the first that is found."""
    up, down = (tiny.weight(f"blocks.1.ffn.{name}").clone() for name in ("up", "down"))
    up[7] *= 5000
    down[:, 7] /= 5000
    down[5, 7] = 400.0
    model = changed(tiny, blocks__1__ffn__down=down, blocks__1__ffn__up=up)
    quantized = apply_recipe(model, "w4g64-int-sym+superweight:most=1", calibration=CALIBRATION)
    kept = quantized.blocks[1].super_weights["ffn.down"][0]
    assert (kept.row, kept.column, kept.value) == (5, 7, 400.0)
    assert quantized.weights(1, "ffn.down")[5, 7] == 400.0
    # It no longer stretches its group's scale.
    plain = apply_recipe(model, "w4g64-int-sym")
    group = quantized.tensors["blocks.1.ffn.down"].scales()[5, 0]
    assert group < plain.tensors["blocks.1.ffn.down"].scales()[5, 0] / 100
    # Nor does it count as an error, as the tensor alone would have it.
    down = next(row for row in quantized.report if row.name == "blocks.1.ffn.down")
    assert down.relative_mse < 0.1
    blocks = quantized.blocks
    count = sum(len(v) for block in blocks for v in block.super_weights.values())
    assert quantized.stored_bits == plain.stored_bits + 48 * count
    assert "blocks.1: ffn.down: super weight [5, 7] kept in FP16" in quantized.notes


def test_models_without_spikes_have_no_super_weights(tiny):
    quantized = apply_recipe(
        tiny, "w4g64-int-sym+superweight:threshold=1e9", calibration=CALIBRATION
    )
    assert all(not block.super_weights for block in quantized.blocks)
    assert quantized.tensors == quantize_model(tiny, "w4g64-int-sym")


# ------------------------------------------------------------------ bits


@pytest.mark.parametrize("recipe", ["w3g64-bitmod", "w4a8-dint", "w2*-int-asym", "mxfp4", "nvfp4"])
def test_bits_are_those_of_the_recipe(tiny, recipe):
    quantized = apply_recipe(tiny, recipe)
    shapes = tiny.config.linear_shapes().values()
    assert quantized.stored_bits == sum(resolve_recipe(recipe).stored_bits(n, k) for n, k in shapes)


def test_algorithms_cost_no_bits(tiny):
    plain = apply_recipe(tiny, "w3g64-int-asym").bits_per_weight
    for step in ("gptq", "awq:grid=2", "omniquant:sequences=1,epochs=1", "hadamard"):
        done = apply_recipe(tiny, f"w3g64-int-asym+{step}", calibration=CALIBRATION)
        assert done.bits_per_weight == plain


# ------------------------------------------------------------------ bad input


def test_dead_input_channels_are_reported_and_their_weights_vanish(tiny):
    """A zero in the norm makes a channel zero for every token."""
    norm = tiny.weight("blocks.0.attn_norm").clone()
    norm[3] = 0
    model = changed(tiny, blocks__0__attn_norm=norm)
    quantized = apply_recipe(model, "w4g32-int-sym+gptq", calibration=CALIBRATION)
    k = tiny.config.hidden
    note = f"blocks.0: attn_in: 1 of {k} input channels are zero in all 144 tokens (first: 3)"
    assert note in quantized.notes
    assert not quantized.tensors["blocks.0.attn.q"].codes[:, 3].any()


@pytest.mark.parametrize("step", ["awq:grid=3", "aqas:grid=3", "smoothquant", "gptq"])
def test_a_layer_whose_inputs_are_all_zero_goes_through(tiny, step):
    model = changed(tiny, blocks__0__attn_norm=torch.zeros(tiny.config.hidden))
    quantized = apply_recipe(model, f"w4g32-int-sym+{step}", calibration=CALIBRATION)
    assert np.isfinite(score(quantized, 512))
    assert any("attn_in" in note and "are zero" in note for note in quantized.notes)


def test_a_singular_hessian_raises_the_damping_and_is_reported(tiny):
    """Two tokens span two directions of the hidden channels; so little damping is not enough."""
    quantized = apply_recipe(
        tiny,
        "w4g32-int-sym+gptq:damping=1e-17",
        calibration=Calibration(sequences=1, length=2),
    )
    pattern = r"blocks\.0: attn\.q: Hessian is singular; damping raised from 1e-17 to 1e-\d\d"
    assert any(re.fullmatch(pattern, note) for note in quantized.notes), quantized.notes


def test_weights_that_make_nan_are_told_with_their_place(tiny):
    norm = tiny.weight("blocks.1.ffn_norm").clone()
    norm[2] = float("nan")
    model = changed(tiny, blocks__1__ffn_norm=norm)
    message = r"^blocks\.1, ffn_in: inputs of channel \d+ are NaN or infinite during calibration;"
    with pytest.raises(InputError, match=message):
        apply_recipe(model, "w4g32-int-sym+awq:grid=2", calibration=CALIBRATION)


def test_a_text_too_short_is_told_before_any_work(tiny):
    message = (
        "calibration text mine has 5 tokens; 3 x 48 = 144 are needed, 139 are missing; use a longer"
        " text, fewer sequences or a shorter length"
    )
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        apply_recipe(tiny, "int4+awq", calibration=CALIBRATION, text=Text("mine", "hello"))


def test_the_default_calibration_shrinks_to_the_text(tiny):
    text = Text("mine", "a quick brown fox jumps over the lazy dog. " * 40)
    quantized = apply_recipe(tiny, "w4g32-int-sym+smoothquant", text=text)
    assert quantized.calibration is not None
    assert quantized.calibration.tokens <= len(text.content)
    assert quantized.calibration_text == "mine"


def test_single_matrices_take_no_algorithms():
    message = (
        "recipe 'w4g128-int-sym+gptq' needs a model and data for gptq; use apply_recipe, or leave "
        "its algorithms out"
    )
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        quantize(np.ones((2, 4)), "int4+gptq")


def test_quantize_model_takes_no_algorithms(tiny):
    message = "changes more than each tensor on its own; use apply_recipe$"
    with pytest.raises(InputError, match=message):
        quantize_model(tiny, "int4+awq")


def test_recipes_survive_json():
    recipe = resolve_recipe("w4g64a8-int-asym+kv4-asym+hadamard+awq:clip=false+gptq:act_order=true")
    assert Recipe(**recipe.model_dump()) == recipe
    assert recipe.activations == ActivationRecipe(format="int8-sym")
    assert resolve_recipe(recipe.name) == recipe
