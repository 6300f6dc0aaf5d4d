"""Recorded operands against the model that they are taken from."""

import re
from dataclasses import FrozenInstanceError

import numpy as np
import pytest
import torch

from bitwright.experiments import layer_product, record
from bitwright.quant import InputError, Text, load_model, load_text, quantize_model, resolve_recipe
from bitwright.sim import SHAPES, prefill

#: float32 sums of at most 384 products, none above 100, in another order: 384 x 100 x 2**-24.
ATOL = 384 * 100 * 2**-24
#: tiny's scaled scores reach 500, where float32 numbers are 2**-15 = 3e-5 apart; probabilities are
#: off by as much, and times values of up to 29 that is about 1e-3.
ATOL_ATTENTION = 1e-3
TOKENS, WINDOW = 64, 256


@pytest.fixture(scope="module")
def tiny():
    return load_model("tiny")


@pytest.fixture(scope="module")
def recorded(tiny):
    return record(tiny, layers=[1, 3], heads=2)


@pytest.fixture(scope="module")
def window(tiny):
    ids = tiny.tokenizer.encode(load_text().content)
    return torch.tensor([ids[:WINDOW]])


@pytest.fixture(scope="module")
def outputs(tiny, window):
    """What every block linear gave for the window, and the logits."""
    found = {}

    def linear(name, x):
        found[name] = x @ tiny.weight(name).T
        return found[name]

    with torch.no_grad():
        found["lm_head"] = tiny.logits(window, linear)
    return {name: y[0, -TOKENS:].numpy() for name, y in found.items()}


def test_every_product_of_the_layers_in_order_of_use(tiny, recorded):
    names = [gemm.name for gemm in prefill(SHAPES["smollm2-135m"]).gemms]
    blocks = [(layer, name) for layer in (1, 3) for name in names if name != "lm_head"]
    assert list(recorded) == [*blocks, (None, "lm_head")]
    for (layer, product), entries in recorded.items():
        is_cache = product in ("attn.scores", "attn.values")
        assert [entry.head for entry in entries] == ([0, 1] if is_cache else [None])
        for entry in entries:
            assert (entry.layer, entry.product) == (layer, product)
            assert entry.x.dtype == entry.w.dtype == np.float32
            assert entry.x.shape == (TOKENS, entry.w.shape[1])
            assert entry.x.base is None  # a copy of these rows, not a view that keeps them all


def test_linears_reproduce_the_models_outputs(tiny, recorded, outputs):
    for (layer, product), (first, *_) in recorded.items():
        name = product if layer is None else f"blocks.{layer}.{product}"
        if name in outputs:
            np.testing.assert_allclose(first.x @ first.w.T, outputs[name], rtol=0, atol=ATOL)
            weight = tiny.weight("embed" if layer is None else name).numpy()
            assert np.shares_memory(first.w, weight) and first.w.shape == weight.shape


@pytest.mark.parametrize("head", [0, 1])
@pytest.mark.parametrize("layer", [1, 3])
def test_softmax_of_the_masked_scores_gives_the_probabilities(tiny, recorded, layer, head):
    scores, values = (recorded[layer, f"attn.{name}"][head] for name in ("scores", "values"))
    share = tiny.config.heads // tiny.config.kv_heads
    position = (WINDOW * share - TOKENS + np.arange(TOKENS)) // share
    unseen = np.arange(WINDOW) > position[:, None]
    logits = scores.x.astype(np.float64) @ scores.w.T / np.sqrt(tiny.config.head_dim)
    weights = np.where(unseen, 0.0, np.exp(logits - logits.max(axis=1, keepdims=True)))
    expected = weights / weights.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(values.x, expected, rtol=0, atol=ATOL_ATTENTION)
    assert not values.x[unseen].any()


@pytest.mark.parametrize("head", [0, 1])
def test_probabilities_times_values_give_the_heads_slice_of_the_attention_output(
    tiny, recorded, head
):
    values, (output,) = recorded[3, "attn.values"][head], recorded[3, "attn.o"]
    share, width = tiny.config.heads // tiny.config.kv_heads, tiny.config.head_dim
    slice_ = output.x[-TOKENS // share :, head * share * width : (head + 1) * share * width]
    expected = slice_.reshape(TOKENS, width)
    np.testing.assert_allclose(values.x @ values.w.T, expected, rtol=0, atol=ATOL_ATTENTION)


def test_the_pass_is_the_same_when_observed(tiny, window):
    assert torch.equal(tiny.logits(window, observe=lambda *_: None), tiny.logits(window))
    assert torch.equal(tiny.hidden(window, observe=lambda *_: None), tiny.hidden(window))


def test_fewer_rows_are_the_last_ones(tiny, recorded):
    fewer = record(tiny, tokens=7, layers=[3])
    assert {layer for layer, _ in fewer} == {3, None}
    for key, (entry, *others) in fewer.items():
        assert not others
        assert np.array_equal(entry.x, recorded[key][0].x[-7:])
        assert np.array_equal(entry.w, recorded[key][0].w)


def test_the_same_call_gives_the_same_operands(tiny, recorded):
    again = record(tiny, load_text(), layers=[3, 1, 3], heads=2)
    for key, entries in recorded.items():
        for one, other in zip(entries, again[key], strict=True):
            assert np.array_equal(one.x, other.x) and np.array_equal(one.w, other.w)


def test_skip_moves_the_window(tiny, recorded):
    # A character is a token of tiny, so that a cut text is a skipped one.
    content = load_text().content
    skipped, cut = (
        record(tiny, content, skip=100, layers=[0]),
        record(tiny, content[100:], layers=[0]),
    )
    for key in skipped:
        assert np.array_equal(skipped[key][0].x, cut[key][0].x)
    head = (None, "lm_head")
    assert not np.array_equal(skipped[head][0].x, recorded[head][0].x)


def test_more_tokens_than_the_window_make_it_longer(tiny):
    many = record(tiny, tokens=300, layers=[])
    assert list(many) == [(None, "lm_head")] and many[None, "lm_head"][0].x.shape == (300, 128)


def test_activations_of_a_quantised_model(tiny, recorded):
    weights = {
        name: torch.from_numpy(qt.dequantize())
        for name, qt in quantize_model(tiny, resolve_recipe("w3g64-bitmod")).items()
    }
    quantised = record(tiny, layers=[1], linear=lambda name, x: x @ weights[name].T)
    for product in ("attn.q", "attn.scores", "attn.values", "ffn.down"):
        one, other = quantised[1, product][0], recorded[1, product][0]
        assert one.x.shape == other.x.shape and not np.array_equal(one.x, other.x)
    assert np.array_equal(quantised[1, "attn.q"][0].w, recorded[1, "attn.q"][0].w)


def test_records_are_frozen(recorded):
    with pytest.raises(FrozenInstanceError):
        recorded[None, "lm_head"][0].layer = 3


@pytest.mark.parametrize(
    "change, message",
    [
        ({"layers": [0, 40]}, "layer 40: tiny has layers 0 to 4"),
        ({"layers": [-1]}, "layer -1: tiny has layers 0 to 4"),
        ({"tokens": 0}, "tokens is 0; from 1 to 512, the context of model tiny"),
        ({"tokens": 513}, "tokens is 513; from 1 to 512, the context of model tiny"),
        ({"skip": -1}, "skip is -1; 0 or more tokens of the text can be left out"),
        ({"heads": 0}, "heads is 0; from 1 to 2, the key-value heads of tiny"),
        ({"heads": 3}, "heads is 3; from 1 to 2, the key-value heads of tiny"),
        (
            {"text": "a" * 200},
            "text has 200 tokens; 256 are needed, a window of 256; use a longer text",
        ),
        (
            {"text": Text("note.txt", "a" * 300), "skip": 50},
            "note.txt has 300 tokens; 306 are needed, a window of 256 after 50 skipped; "
            "use a longer text",
        ),
    ],
    ids=str,
)
def test_what_cannot_be_recorded_is_refused(tiny, change, message):
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        record(tiny, **change)


@pytest.mark.parametrize(
    "name, key",
    [
        ("blocks.3.ffn.down", (3, "ffn.down")),
        ("3.ffn.down", (3, "ffn.down")),
        ("12.attn.scores", (12, "attn.scores")),
        ("lm_head", (None, "lm_head")),
    ],
)
def test_a_layers_name_is_read(name, key):
    assert layer_product(name) == key


@pytest.mark.parametrize(
    "name, hint",
    [
        ("ffn.dwn", "did you mean 0.ffn.down? Write"),
        ("blocks.7.ffn.dwn", "did you mean 7.ffn.down? Write"),
        ("attn.q", "did you mean 0.attn.q? Write"),
        ("lmhead", "did you mean lm_head? Write"),
        ("3", "write"),
        ("", "write"),
        ("\n", "write"),
        ("\u0663.ffn.down", "did you mean 0.ffn.down? Write"),
        ("9999999999.embedding", "write"),
    ],
    ids=repr,
)
def test_another_name_is_refused_with_a_near_one(name, hint):
    message = (
        f"--layer is {name!r}; {hint} LAYER.PRODUCT, such as 3.ffn.down, or lm_head; products: "
        "attn.q, attn.k, attn.v, attn.scores, attn.values, attn.o, ffn.gate, ffn.up, ffn.down"
    )
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        layer_product(name)
