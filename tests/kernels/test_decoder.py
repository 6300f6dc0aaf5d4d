"""Reading and writing text with packed weights."""

from dataclasses import replace
from importlib import import_module

import numpy as np
import pytest

from bitwright.kernels import Decoder, matmul
from bitwright.quant import InputError, LanguageModel, apply_recipe, load_model, quantize

definition = import_module("bitwright.kernels.decoder_reference")

TEXT = "The people of the city go to the market in the morning to buy food and to sell it"


@pytest.fixture(scope="module")
def tiny():
    return load_model("tiny")


def quantized(model, recipe):
    return apply_recipe(model, recipe)


@pytest.mark.parametrize("recipe", ["w4g32a8-int-asym", "w4a8-dint", "w4g32a6-dint-asym"])
def test_decoder_is_its_definition_bit_for_bit(tiny, recipe):
    model = quantized(tiny, recipe)
    tokens = tiny.tokenizer.encode(TEXT)[:40]
    decoder = Decoder(model, room=64)
    assert np.array_equal(decoder._read(tokens), definition.hidden_states(model, tokens))


def changed(tiny, **fields):
    """`tiny` of another shape; weights that it does not have are random."""
    import torch

    random = torch.Generator().manual_seed(0)
    config, own = replace(tiny.config, **fields), dict(tiny._weights)
    weights = {
        name: own[name]
        if name in own and own[name].shape == shape
        else torch.randn(shape, generator=random)
        for name, shape in config.weight_shapes().items()
    }
    return LanguageModel("changed", config, weights, tiny.tokenizer, "test")


@pytest.fixture(scope="module")
def biased(tiny):
    return changed(tiny, biased=("q", "k", "v"), tied_embeddings=False)


def test_sizes_that_fill_no_vector(tiny):
    model = changed(tiny, layers=1, hidden=40, heads=2, kv_heads=1, ffn=52)
    model = quantized(model, "w4g24a8-int-asym")
    tokens = tiny.tokenizer.encode(TEXT)[:20]
    states = Decoder(model)._read(tokens)
    assert np.array_equal(states, definition.hidden_states(model, tokens))


def test_the_norm_in_front_of_the_output_layer(tiny):
    """Of states so small that epsilon counts; numpy adds up in another order."""
    decoder = Decoder(quantized(tiny, "w4g32a8-int-asym"))
    x = 1e-3 * np.random.default_rng(0).standard_normal((3, tiny.config.hidden))
    weight, eps = tiny.weight("final_norm").numpy(), np.float32(tiny.config.norm_eps)
    expected = [definition.rms_norm(row, weight, eps) for row in x.astype(np.float32)]
    np.testing.assert_allclose(decoder._normed(x.astype(np.float32)), expected, rtol=1e-5)


def test_biases_and_an_output_layer_of_its_own(biased):
    model = quantized(biased, "w4g32a8-int-asym")
    tokens = biased.tokenizer.encode(TEXT)[:20]
    decoder = Decoder(model)
    states = decoder._read(tokens)
    assert np.array_equal(states, definition.hidden_states(model, tokens))
    decoder.reset()
    head = quantize(biased.weight("head").numpy(), "int8-sym", group_size=32)
    assert np.array_equal(decoder.read(tokens), matmul(decoder._normed(states)[-1], head))


def test_an_output_layer_in_integers_is_that_of_quantised_states(tiny):
    model = quantized(tiny, "w4g32a8-int-asym")
    tokens = tiny.tokenizer.encode(TEXT)[:20]
    decoder = Decoder(model, head="integer")
    states = decoder._normed(decoder._read(tokens))
    decoder.reset()
    head = quantize(tiny.weight("embed").numpy(), "int8-sym", group_size=32)
    assert np.array_equal(decoder.read_all(tokens), matmul(states, head, activations="a8"))


def test_a_prompt_and_its_tokens_one_by_one_give_the_same_bits(tiny):
    decoder = Decoder(quantized(tiny, "w4g32a8-int-asym"))
    tokens = tiny.tokenizer.encode(TEXT * 4)[:200]
    together = decoder.read_all(tokens)
    assert decoder.length == 200
    decoder.reset()
    assert np.array_equal(together, np.stack([decoder.read([token]) for token in tokens]))


def test_scores_are_those_of_the_quantised_model(tiny):
    """The model in torch adds in another order, so activations on a rounding threshold differ.

    Such a code is one step of 127 off; what that does to the scores has no useful bound, so the
    test asks for the same distributions: divergence below 0.05 nats, 9 of 10 first choices.
    """
    import torch

    model = quantized(tiny, "w4g32a8-int-asym")
    tokens = tiny.tokenizer.encode(TEXT * 2)
    ours = torch.from_numpy(Decoder(model).read_all(tokens)).log_softmax(-1)
    with torch.no_grad():
        theirs = model.model.logits(torch.tensor([tokens]), model.linear())[0].log_softmax(-1)
    divergence = (theirs.exp() * (theirs - ours)).sum(-1)
    assert divergence.mean() < 0.05
    assert (ours.argmax(-1) == theirs.argmax(-1)).float().mean() >= 0.9


def test_greedy_text_goes_on_where_it_stopped(tiny):
    model = quantized(tiny, "w4g32a8-int-asym")
    prompt = tiny.tokenizer.encode("The value of")
    decoder = Decoder(model)
    whole = list(decoder.generate(prompt, 20))
    decoder.reset()
    first = list(decoder.generate(prompt, 8))
    rest = list(decoder.generate(first[-1:], 12))
    assert len(whole) == 20 and first + rest == whole
    decoder.reset()
    assert list(decoder.generate(prompt, 20, stop=whole[3])) == whole[: whole.index(whole[3])]


def test_exp_is_exact_to_two_units_in_the_last_place():
    x = np.linspace(-87, 87, 100_001, dtype=np.float32)
    exact = np.exp(x.astype(np.float64))
    assert (np.abs(definition.exp(x) - exact) <= 2 * np.spacing(exact.astype(np.float32))).all()
    assert definition.exp(np.zeros(1, np.float32))[0] == 1


@pytest.mark.parametrize(
    ("recipe", "text"),
    [
        ("w4g32-int-asym", "has FP16 activations; a Decoder takes symmetric integers per token"),
        ("w4g32a8-int-asym+kv4", "quantises the cache; a Decoder keeps it in float32"),
        ("w4g32a8-int-sym+superweight:threshold=2,most=1", "keeps super weights; a Decoder takes"),
        ("w5a8-dint", "has weights in 1 kinds of dint5-sym; a Decoder takes one format"),
    ],
)
def test_recipes_that_it_does_not_run(tiny, recipe, text):
    with pytest.raises(InputError) as error:
        Decoder(quantized(tiny, recipe))
    assert text in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"biased": ("o",)}, "has heads of 32, biases on o; a Decoder takes heads of a multiple"),
        ({"head_dim": 24}, "has heads of 24, biases on nothing; a Decoder takes heads of a mul"),
    ],
)
def test_models_that_it_does_not_run(tiny, fields, text):
    with pytest.raises(InputError, match=text):
        Decoder(quantized(changed(tiny, layers=1, **fields), "w4g32a8-int-asym"))


def test_scores_that_are_not_finite_are_refused(tiny):
    model = changed(tiny, layers=1, hidden=64)
    for name in ("gate", "up"):
        model._weights[f"blocks.0.ffn.{name}"] *= 1e4
    with pytest.raises(InputError, match="an activation is larger than FP16 scales reach"):
        Decoder(quantized(model, "w4g32a8-int-asym")).read([1, 2])


def test_there_is_no_room_beyond_the_models_context(tiny):
    model = quantized(tiny, "w4g32a8-int-asym")
    assert Decoder(model, room=tiny.config.context + 1).room == tiny.config.context


def test_bad_tokens_are_refused(tiny):
    decoder = Decoder(quantized(tiny, "w4g32a8-int-asym"), room=16)
    for tokens, text in [
        ([], "tokens are empty; give at least one"),
        ([10**6], "tokens hold 1000000; ids are 0 .. "),
        ([-1], "tokens hold -1; ids are 0 .. "),
        ([1] * 17, "17 tokens behind 0 do not fit the decoder's room of 16; reset() it"),
    ]:
        with pytest.raises(InputError) as error:
            decoder.read(tokens)
        assert text in str(error.value)


@pytest.mark.slow
def test_the_default_model_bit_for_bit():
    model = load_model("smollm2")
    tokens = model.tokenizer.encode(TEXT)[:12]
    q = quantized(model, "w4g64a8-int-asym")
    assert np.array_equal(Decoder(q, room=64)._read(tokens), definition.hidden_states(q, tokens))


@pytest.mark.parametrize("head", ["float", "integer"])
@pytest.mark.parametrize("steps", ["", "+hadamard"])
def test_output_layers_that_recipes_change(tiny, head, steps):
    """Rows that tokens share; a rotated one, which is no longer the embedding."""
    import torch

    tokens = tiny.tokenizer.encode(TEXT)[:24]
    for name in (f"w4g32a8-int-asym{steps}", f"w4g32a8-int-asym{steps}+vqlogits:codes=64"):
        q = apply_recipe(tiny, name)
        scores = Decoder(q, head=head).read_all(tokens)
        expected = q.model.logits(torch.tensor([tokens]), q.linear())[0].numpy()
        assert scores.shape == expected.shape == (24, 256)
        assert np.abs(scores - expected).max() < 0.05 * np.abs(expected).max()
