"""Perplexity: cases worked by hand, windows, counts, refusals."""

import math
from dataclasses import replace

import pytest
import torch

from bitwright.quant import InputError, LanguageModel, LlamaConfig, Text, load_model, perplexity

CONFIG = LlamaConfig(1, 4, 1, 1, 4, 4, 5, 100.0, 1e-5, True, 600)


class Letters:
    """a = 0, b = 1, ..., e = 4."""

    def encode(self, text):
        return ["abcde".index(letter) for letter in text if letter in "abcde"]

    def decode(self, ids):
        return "".join("abcde"[i] for i in ids)


class Fixed(LanguageModel):
    """After token i, predicts the scores in row i of a table."""

    def __init__(self, table):
        super().__init__("fixed", CONFIG, {}, Letters(), "by hand")
        self.table = torch.tensor(table, dtype=torch.float32)

    def hidden(self, tokens, linear=None, *, observe=None, cache=None):
        return self.table[tokens]

    def head(self, hidden):
        return hidden


UNIFORM = [[0.0] * 5] * 5
# After a: b with probability 1/2, the others 1/8; after anything else uniform.
FAVOURS_B = [[0.0, math.log(4), 0.0, 0.0, 0.0], *UNIFORM[1:]]


def random_model():
    generator = torch.Generator().manual_seed(0)
    weights = {
        name: torch.randn(shape, generator=generator)
        for name, shape in CONFIG.weight_shapes().items()
    }
    return LanguageModel("random", CONFIG, weights, Letters(), "random numbers")


def test_a_uniform_model_is_as_perplexed_as_its_vocabulary_is_large():
    result = perplexity(Fixed(UNIFORM), "abcdeabcde", window=5, max_tokens=None)
    assert result.perplexity == pytest.approx(5)
    assert result.nll == pytest.approx(math.log(5))


def test_two_windows_by_hand():
    """abc: b after a 1/2, c after b 1/5; aad: a after a 1/8, d after a 1/8. The first a of either
    window is not predicted: exp(-(log 1/2 + log 1/5 + log 1/8 + log 1/8) / 4) = 640**(1/4)."""
    result = perplexity(Fixed(FAVOURS_B), "abcaad", window=3, max_tokens=6)
    assert result.perplexity == pytest.approx(640**0.25)
    assert (result.tokens, result.predicted_tokens, result.window) == (6, 4, 3)
    assert result.bos is False


@pytest.mark.parametrize(
    "length, max_tokens, tokens",
    [(14, None, 12), (14, 10, 8), (14, 100, 12), (12, 12, 12), (4, 4, 4)],
)
def test_only_whole_windows_count(length, max_tokens, tokens):
    result = perplexity(Fixed(UNIFORM), "a" * length, window=4, max_tokens=max_tokens)
    assert (result.tokens, result.predicted_tokens) == (tokens, tokens * 3 // 4)


def test_windows_are_independent():
    model, text = random_model(), "abcdeedcbabcdacedabc"
    both = perplexity(model, text, window=10)
    first, second = (perplexity(model, part, window=10) for part in (text[:10], text[10:]))
    assert both.nll == pytest.approx((first.nll + second.nll) / 2, rel=1e-6)


def test_batching_does_not_change_the_result(monkeypatch):
    model, ids = random_model(), [i * i % 5 for i in range(60)]
    together = perplexity(model, tokens=ids, window=10)
    monkeypatch.setattr("bitwright.quant.evaluation._BATCH_TOKENS", 20)
    told = []
    apart = perplexity(
        model, tokens=ids, window=10, progress=lambda done, total, what: told.append((done, total))
    )
    assert apart.nll == pytest.approx(together.nll, rel=1e-6)
    assert told == [(20, 60), (40, 60), (60, 60)]


def test_text_and_its_tokens_agree():
    model, text = random_model(), "abcdabcdeeabcd"
    by_text = perplexity(model, Text("letters", text), window=7)
    by_tokens = perplexity(model, tokens=Letters().encode(text), window=7)
    assert by_text == replace(by_tokens, text_name="letters")
    assert by_tokens.text_name == "tokens given"


def test_linear_is_passed_on():
    model, ids = random_model(), [i * i % 5 for i in range(20)]
    zero = perplexity(
        model, tokens=ids, window=10, linear=lambda name, x: 0 * (x @ model.weight(name).T)
    )
    assert zero.nll != perplexity(model, tokens=ids, window=10).nll


def test_no_token_predicted_at_all_is_infinitely_surprising():
    table = [[0.0, 0.0, -1e30, 0.0, 0.0]] * 5
    assert perplexity(Fixed(table), "acac", window=4).perplexity == math.inf


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"text": ""}, "^text is empty; it must hold at least one window of tokens$"),
        ({"text": Text("my.txt", " \n")}, "^my.txt is empty; it must hold"),
        (
            {"text": Text("my.txt", "abc"), "window": 4},
            "^my.txt has 3 tokens, less than one window of 4; use a longer text or a shorter w",
        ),
        (
            {"text": "abcde" * 9, "window": 4, "max_tokens": 3},
            "^3 tokens are less than one window of 4; ask for more tokens or a shorter window$",
        ),
        (
            {"text": "abc", "window": 1},
            "^window 1 must be from 2 to 600, the context of model fixed$",
        ),
        ({"text": "abc", "window": 601}, "^window 601 must be from 2 to 600"),
        ({"text": "abc", "tokens": [1, 2]}, "^give perplexity a text or tokens, not both$"),
        (
            {"tokens": [0, 7, 1, 2], "window": 4},
            r"^token ids from 0 to 7 must lie in \[0, 5\), the vocabulary of model fixed$",
        ),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_what_is_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        perplexity(Fixed(UNIFORM), **arguments)


# --- the bundled model on the default text ---


def rounded(weight, bits, group=64):
    """Symmetric round-to-nearest with an exact scale per group, written down anew."""
    top = 2 ** (bits - 1) - 1
    groups = weight.unflatten(1, (-1, group))
    scale = groups.abs().amax(dim=2, keepdim=True) / top
    return ((groups / scale).round().clamp(-top, top) * scale).flatten(1)


def test_quantising_tiny_costs_perplexity():
    model = load_model("tiny")

    def measured(bits):
        weights = {name: rounded(model.weight(name), bits) for name in model.linear_names()}
        return perplexity(model, linear=lambda name, x: x @ weights[name].T).perplexity

    plain = perplexity(model).perplexity
    assert plain < 5  # bytes: 256 for a model that knows nothing
    assert plain < measured(8) * 1.001
    assert plain < measured(4) < measured(3)
    assert measured(3) > 1.03 * plain
