"""Perplexity through fake quantisation and through the PE's arithmetic."""

import numpy as np
import pytest
import torch

from bitwright.experiments import PELinear, evaluate
from bitwright.quant import InputError, load_model, quantize_model, resolve_recipe
from bitwright.sim import PES


@pytest.fixture(scope="module")
def tiny():
    return load_model("tiny")


def test_fp16_recipe_is_the_model_itself(tiny):
    from bitwright.quant import perplexity

    answer = evaluate(tiny, resolve_recipe("fp16"), max_tokens=512)
    assert answer.result == perplexity(tiny, max_tokens=512)
    assert answer.bits_per_weight == 16.0


def test_fewer_bits_cost_perplexity(tiny):
    order = ("fp16", "w4g64-bitmod", "w3g64-bitmod", "w3g64-int-sym")
    values = [
        evaluate(tiny, resolve_recipe(name), max_tokens=1024).result.perplexity for name in order
    ]
    assert values == sorted(values)
    assert values[-1] > 1.03 * values[0]


@pytest.mark.parametrize("name", ["w4g64-bitmod", "w3g64-int-asym-s8", "fp16"])
def test_pe_arithmetic_runs_every_block_layer_through_the_pe(tiny, name):
    recipe = resolve_recipe(name)
    fake = evaluate(tiny, recipe, max_tokens=128, window=128)
    pe = evaluate(tiny, recipe, max_tokens=128, window=128, arithmetic="pe")
    weights = sum(n * k for n, k in tiny.config.linear_shapes().values())
    assert pe.macs == 128 * weights and fake.macs == 0
    # FP16 activations and 15-bit sums: another number, but close.
    assert pe.result.perplexity != fake.result.perplexity
    assert pe.result.perplexity == pytest.approx(fake.result.perplexity, rel=0.02)


def test_pe_arithmetic_of_a_layer_is_the_pes_gemm(tiny):
    tensors = quantize_model(tiny, resolve_recipe("w4g64-bitmod"))
    name = tiny.linear_names()[0]
    x = torch.linspace(-1, 1, 2 * 3 * tensors[name].k).reshape(2, 3, -1)
    y = PELinear(tiny, tensors)(name, x)
    direct = PES["bitmod"].gemm(x.reshape(6, -1).numpy(), tensors[name])
    assert y.shape == (2, 3, tensors[name].n)
    assert np.array_equal(y.reshape(6, -1).numpy(), direct)


def test_recipes_the_pe_cannot_run_are_refused_before_any_work(tiny):
    with pytest.raises(InputError, match="scale_format fp16 does not run on the bitmod PE"):
        evaluate(tiny, resolve_recipe("w4g64-int-sym"), max_tokens=512, arithmetic="pe")
