"""Fine-tuned models as differences from a base."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch

from bitwright.quant import (
    BitDelta,
    DeltaCome,
    InputError,
    LanguageModel,
    compress_delta,
    load_model,
    load_tensors,
    perplexity,
    save_tensors,
)


@pytest.fixture(scope="module")
def base():
    return load_model("tiny")


@pytest.fixture(scope="module")
def tuned(base):
    """The base after a small seeded step in every matrix and the final norm."""
    step = torch.Generator().manual_seed(0)
    changed = {
        name: (w := base.weight(name)) + 0.02 * w.std() * torch.randn(w.shape, generator=step)
        for name in base.config.linear_shapes()
    }
    changed["final_norm"] = base.weight("final_norm") * 1.25
    return base.with_weights(changed)


@pytest.fixture(scope="module")
def compressed(base, tuned):
    return compress_delta(base, tuned)


def tokens(model):
    return torch.tensor([list(range(40, 90))], dtype=torch.int64) % model.config.vocab


def test_a_tenant_costs_a_bit_per_weight_and_what_else_it_changed(base, compressed):
    shapes = base.config.linear_shapes().values()
    assert compressed.delta_bits == sum(n * k + 32 for n, k in shapes)
    assert list(compressed.floats) == ["final_norm"]
    assert compressed.kept_bits == 16 * base.config.hidden
    assert compressed.stored_bits == compressed.delta_bits + compressed.kept_bits
    assert compressed.bits_per_weight == pytest.approx(
        1 + 32 * len(shapes) / sum(n * k for n, k in shapes)
    )


def test_merged_and_two_paths_give_the_same_logits(base, compressed):
    ids = tokens(base)
    with torch.no_grad():
        merged = compressed.model.logits(ids)
        apart = compressed.base_ends.logits(ids, compressed.linear())
    assert torch.allclose(merged, apart, rtol=1e-4, atol=1e-4)


def test_planes_come_closer_to_the_tuned_model(base, tuned):
    ids = tokens(base)
    errors, weights = [], []
    with torch.no_grad():
        wanted = tuned.logits(ids)
        for planes in (1, 2, 4, 8):
            found = compress_delta(base, tuned, BitDelta(planes=planes))
            assert found.bits_per_weight == pytest.approx(planes, rel=2e-2)
            errors.append(float((found.model.logits(ids) - wanted).square().mean()))
            name = "blocks.0.ffn.up"
            delta = (tuned.weight(name) - base.weight(name)).numpy()
            left = delta - found.tensors[name].dequantize()
            weights.append(float(np.square(left).sum() / np.square(delta).sum()))
    assert weights[0] == pytest.approx(1 - 2 / np.pi, abs=5e-3)
    assert weights[1] == pytest.approx(0.1306, abs=5e-3)
    assert all(after < before for before, after in itertools.pairwise(errors))


def test_a_model_is_no_difference_from_itself(base):
    same = compress_delta(base, base)
    assert not same.floats and same.kept_bits == 0
    ids = tokens(base)
    with torch.no_grad():
        assert torch.equal(same.model.logits(ids), base.logits(ids))


def test_it_evaluates_and_its_matrices_go_to_a_file(base, tuned, compressed, tmp_path):
    found = perplexity(compressed.model, max_tokens=512, window=128).perplexity
    wanted = perplexity(tuned, max_tokens=512, window=128).perplexity
    assert found == pytest.approx(wanted, rel=0.02)
    save_tensors(tmp_path / "tenant.safetensors", compressed.tensors, {})
    assert load_tensors(tmp_path / "tenant.safetensors")[0] == compressed.tensors


def other(base, **changed):
    """A model of another shape, with weights of zeros."""
    config = replace(base.config, **changed)
    weights = {name: torch.zeros(shape) for name, shape in config.weight_shapes().items()}
    return LanguageModel("other", config, weights, base.tokenizer, "made here")


def test_models_of_another_shape_are_refused_with_the_first_difference(base):
    with pytest.raises(InputError) as error:
        compress_delta(base, other(base, ffn=base.config.ffn * 2))
    assert str(error.value) == (
        "base tiny and fine-tuned other differ in blocks.0.ffn.gate: [384, 128] against "
        "[768, 128]; a difference needs models of one shape"
    )
    layers = base.config.layers
    with pytest.raises(InputError) as error:
        compress_delta(base, other(base, layers=layers + 1))
    assert str(error.value) == (
        f"base tiny and fine-tuned other differ in blocks.{layers}.attn.q: none against "
        "[128, 128]; a difference needs models of one shape"
    )
    with pytest.raises(InputError) as error:
        compress_delta(base, other(base, rope_base=5.0))
    assert str(error.value) == (
        f"base tiny and fine-tuned other differ in rope_base: {base.config.rope_base} against "
        "5.0; a difference needs models of one shape"
    )


def test_a_difference_that_is_no_number_names_its_layer(base):
    name = "blocks.1.attn.o"
    broken = base.weight(name).clone()
    broken[2, 7] = float("nan")
    with pytest.raises(InputError) as error:
        compress_delta(base, base.with_weights({name: broken}))
    assert str(error.value) == f"layer {name}: the difference at [2, 7] is NaN or infinite"


def test_bands_of_singular_vectors_serve_a_model_too(base, tuned):
    method = DeltaCome(budget=0.125, leading=((8, 2), (3, 16)), last_bits=2)
    found = compress_delta(base, tuned, method)
    nominal = {name: tensor.nominal_bits for name, tensor in found.tensors.items()}
    assert max(nominal.values()) <= 2 and min(nominal.values()) > 1.9
    ids = tokens(base)
    with torch.no_grad():
        merged = found.model.logits(ids)
        apart = found.base_ends.logits(ids, found.linear())
    assert torch.allclose(merged, apart, rtol=1e-4, atol=1e-4)


def test_a_budget_that_is_not_met_names_its_layer(base, tuned):
    with pytest.raises(InputError) as error:
        compress_delta(base, tuned, DeltaCome())
    assert str(error.value) == (
        "layer blocks.0.attn.q: budget 0.0625 of [128, 128] is not met: the leading bands take "
        "0.1094 and 34 of 128 ranks; raise the budget or give them fewer ranks"
    )
