"""Perplexity through fake quantisation and through the PEs' arithmetic, and where it changes."""

from fractions import Fraction

import pytest

from bitwright.experiments import evaluate, ladder, plan_calibration
from bitwright.quant import (
    Calibration,
    InputError,
    PerplexityResult,
    agreement,
    apply_recipe,
    load_model,
    load_quantized,
    perplexity,
    quantize_model,
    resolve_recipe,
)

SHORT = {"max_tokens": 256, "window": 128}


@pytest.fixture(scope="module")
def tiny():
    return load_model("tiny")


def macs(model, tokens):
    return tokens * sum(n * k for n, k in model.config.linear_shapes().values())


# ---------------------------------------------------------------- fake quantisation


def test_fp16_recipe_is_the_model_itself(tiny):
    answer = evaluate(tiny, "fp16", max_tokens=512)
    assert answer.result == perplexity(tiny, max_tokens=512)
    assert answer.bits_per_weight == 16.0 and answer.nominal_bits == 16
    assert answer.pes == () and answer.parts == () and answer.agreement is None


def test_fewer_bits_cost_perplexity(tiny):
    order = ("fp16", "w4g64-bitmod", "w3g64-bitmod", "w3g64-int-sym")
    values = [evaluate(tiny, name, max_tokens=1024).result.perplexity for name in order]
    assert values == sorted(values)
    assert values[-1] > 1.03 * values[0]


def test_activations_and_cache_are_quantised_as_the_recipe_says(tiny):
    order = ("w4-int-asym", "w4-int-asym+a4-asym", "w4-int-asym+a4-asym+kv2-asym")
    values = [evaluate(tiny, name, **SHORT).result.perplexity for name in order]
    assert values == sorted(values) and values[-1] > 1.02 * values[0]


@pytest.mark.parametrize("name", ["w4g64-bitmod", "w4a8-dint", "fp16", "w4g64-int+kv4-asym"])
def test_tensors_at_hand_give_the_same_model(tiny, name):
    recipe = resolve_recipe(name)
    tensors = quantize_model(tiny, recipe)
    assert evaluate(tiny, recipe, tensors=tensors, **SHORT) == evaluate(tiny, recipe, **SHORT)


def test_a_quantised_model_at_hand_is_evaluated(tiny, tmp_path):
    apply_recipe(tiny, "w4a8-dint", folder=tmp_path)
    quantized = load_quantized(tmp_path, tiny)
    expected = evaluate(tiny, "w4a8-dint", arithmetic="pe", **SHORT)
    assert evaluate(tiny, quantized=quantized, arithmetic="pe", **SHORT) == expected
    with pytest.raises(
        InputError,
        match="recipe w4a8-int-sym is not that of the quantised model, w4a8-dint-sym; leave it out",
    ):
        evaluate(tiny, "w4a8-int", quantized=quantized)


def test_calibration_is_told_where_data_was_used(tiny):
    calibration = Calibration(sequences=2, length=64)
    how = {"calibration": calibration, **SHORT}
    answer = evaluate(tiny, "w4g64-int+awq", **how)
    assert answer.calibration == calibration
    assert answer.calibration_text is not None and "pydoc_data" in answer.calibration_text
    assert evaluate(tiny, "w4g64-int", **how).calibration is None


# ---------------------------------------------------------------- through the PEs


@pytest.mark.parametrize(
    ("name", "pes", "near"),
    [
        ("w4g64-bitmod", ("bitmod",), 0.02),
        ("w3g64-int-asym-s8", ("bitmod",), 0.02),
        ("fp16", ("fp16",), 1e-3),
        ("w4a8-dint", ("dint4",), 1e-3),
        ("w4-int-asym+a8-asym", ("btc",), 1e-3),
        ("w4-int+a8", ("int4x8",), 1e-3),
    ],
)
def test_every_block_layer_runs_through_a_pe(tiny, name, pes, near):
    fake = evaluate(tiny, name, max_tokens=128, window=128)
    pe = evaluate(tiny, name, max_tokens=128, window=128, arithmetic="pe")
    assert pe.macs == macs(tiny, 128) and fake.macs == 0
    assert pe.pes == pes
    assert pe.result.perplexity == pytest.approx(fake.result.perplexity, rel=near)


@pytest.mark.parametrize("pe", ["fp16", "fp16xint4"])
def test_a_named_pe_is_used(tiny, pe):
    answer = evaluate(tiny, "w4g64-int", arithmetic="pe", pe=pe, max_tokens=128, window=128)
    assert answer.pes == (pe,)


@pytest.mark.parametrize("name", ["w2-int-asym+a8-asym+kv4-asym", "w4g64-bitmod", "w4g64a8-dint"])
def test_the_change_is_split_into_parts_that_add_up(tiny, name):
    answer = evaluate(tiny, name, arithmetic="pe", split=True, **SHORT)
    parts = answer.parts
    steps = ["unquantised", "format", "activations", "cache", "accumulator", "scale unit"]
    if answer.recipe.kv is None:
        steps.remove("cache")
    assert [part.name for part in parts] == steps
    assert parts[0].perplexity == perplexity(tiny, **SHORT).perplexity
    assert (parts[-1].perplexity, parts[-1].nll) == (answer.result.perplexity, answer.result.nll)
    assert parts[0].perplexity_change == parts[0].nll_change == 0
    for value, change in (("perplexity", "perplexity_change"), ("nll", "nll_change")):
        values = [getattr(part, value) for part in parts]
        total = sum(Fraction(getattr(part, change)) for part in parts)
        whole = Fraction(values[-1]) - Fraction(values[0])
        # Each difference of float64 numbers is rounded once; within a factor of two, never.
        rounding = sum(
            Fraction(abs(b - a)) / 2**53 for a, b in zip(values, values[1:], strict=False)
        )
        assert abs(total - whole) <= rounding


def test_what_an_integer_pe_changes_is_the_format_and_the_activations(tiny):
    answer = evaluate(tiny, "w4g64a8-dint", arithmetic="pe", split=True, **SHORT)
    by_name = {part.name: part for part in answer.parts}
    assert by_name["format"].nll_change > 0.005
    assert abs(by_name["accumulator"].nll_change) < 1e-9  # exact sums
    recipe = answer.recipe.model_copy(update={"name": "w4g64-dint-sym", "activations": None})
    weights = evaluate(tiny, recipe, **SHORT).result.nll
    assert by_name["format"].nll == pytest.approx(weights, abs=1e-5)
    acts = evaluate(tiny, answer.recipe, **SHORT).result.nll
    assert by_name["activations"].nll == pytest.approx(acts, abs=2e-3)
    assert answer.notes[-1].startswith("a last bit can move an activation's code")


def test_an_fp16_pe_has_no_scale_unit(tiny):
    answer = evaluate(tiny, "fp16", arithmetic="pe", split=True, max_tokens=128, window=128)
    by_name = {part.name: part for part in answer.parts}
    assert by_name["scale unit"].nll_change == 0
    assert 0 < abs(by_name["accumulator"].nll_change) < 1e-4
    assert abs(by_name["format"].nll_change) < 1e-5  # tiny's weights are FP16 numbers
    assert answer.notes == ()


def test_a_ladder_takes_differences():
    def result(nll):
        return PerplexityResult(2.0**nll, nll, 4, 3, 4, "text")

    parts = ladder([("unquantised", result(1.0)), ("format", result(3.0)), ("end", result(2.5))])
    assert [part.nll_change for part in parts] == [0, 2.0, -0.5]
    assert [part.perplexity_change for part in parts] == [0, 6.0, 2.0**2.5 - 8]


@pytest.mark.parametrize("arithmetic", ["fake", "pe"])
def test_agreement_is_that_of_the_linears_used(tiny, arithmetic):
    answer = evaluate(tiny, "w4a8-dint", arithmetic=arithmetic, compare=True, **SHORT)
    plain = evaluate(tiny, "w4a8-dint", arithmetic=arithmetic, **SHORT)
    assert answer.result.perplexity == plain.result.perplexity
    assert answer.result.nll == pytest.approx(plain.result.nll, rel=1e-15)
    assert answer.agreement is not None
    assert answer.agreement.kl > 0.005 and answer.agreement.top1 < 1
    assert len(answer.agreement.block_errors) == tiny.config.layers
    if arithmetic == "fake":
        quantized = apply_recipe(tiny, "w4a8-dint")
        direct = agreement(tiny, quantized.model, linear=quantized.linear(), **SHORT)
        assert answer.agreement == direct


def test_splitting_and_comparing_share_the_unquantised_pass(tiny):
    how = {"arithmetic": "pe", "split": True, **SHORT}
    both, split = (evaluate(tiny, "w4a8-dint", compare=c, **how) for c in (True, False))
    assert [p.perplexity for p in both.parts] == [p.perplexity for p in split.parts]
    assert both.agreement.reference_perplexity == both.parts[0].perplexity


# ---------------------------------------------------------------- calibration


def test_calibration_follows_text_and_window(tiny):
    plan = plan_calibration(tiny, 256, text="x" * 3000)
    assert plan == Calibration(sequences=5, length=512)
    slac = plan_calibration(tiny, 256, length="slac", text="x" * 3000, seed=3)
    assert slac == Calibration(sequences=11, length=256, seed=3)
    assert plan_calibration(tiny, 256, sequences=7, length=32).tokens == 224
    assert plan_calibration(tiny, 256, text="short").sequences == 1


# ---------------------------------------------------------------- refusals


REFUSED = [
    ({"arithmetic": "exact"}, "arithmetic 'exact' is not known; choose fake or pe"),
    ({"pe": "btc"}, "pe 'btc' needs arithmetic 'pe'; 'fake' computes in float32"),
    ({"split": True}, "split needs arithmetic 'pe'; 'fake' computes in float32"),
    ({"window": 513}, "window 513 must be from 2 to 512, the context of model tiny"),
    ({"max_tokens": 100}, "100 tokens are less than one window of 512"),
    ({"text": "too short"}, "text has 9 tokens, less than one window of 512"),
    (
        {"recipe": "w8g64-int-asym-s8", "arithmetic": "pe"},
        "blocks.0.attn.q: no PE runs weight format int8-asym with FP16 activations: the bitmod PE "
        "cannot run weight format int8-asym; it runs int2..int8-sym, int2..int7-asym and the 3- "
        "and 4-bit floating-point formats; the btc PE takes int2 .. int8 activations, not FP16",
    ),
    (
        {"recipe": "w4g64-bitmod", "arithmetic": "pe", "pe": "dint4"},
        "blocks.0.attn.q: the dint4 PE cannot run weight format bitmod4; it runs dint4-sym",
    ),
]


@pytest.mark.parametrize(("how", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_mistakes_are_told_before_any_work(tiny, monkeypatch, how, message):
    def work(*args, **kwargs):
        raise AssertionError("work was done")

    monkeypatch.setattr("bitwright.experiments.evaluation.apply_recipe", work)
    monkeypatch.setattr(type(tiny), "hidden", work)
    with pytest.raises(InputError) as refused:
        evaluate(tiny, **{"recipe": "w4a8-dint", **how})
    assert str(refused.value).startswith(message)
