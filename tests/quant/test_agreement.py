"""Agreement with a reference: cases worked by hand, a slow float64 twin, invariances, refusals."""

import math
from collections.abc import Mapping
from dataclasses import replace
from importlib import import_module

import numpy as np
import pytest
import torch

from bitwright.quant import (
    InputError,
    LanguageModel,
    LlamaConfig,
    agreement,
    apply_recipe,
    load_model,
    load_text,
    perplexity,
)

# Not part of the face.
kl_and_top1 = import_module("bitwright.quant.evaluation").kl_and_top1
_rotation = import_module("bitwright.quant.algorithms.rotation")
_matrices = import_module("bitwright.quant.algorithms.hadamard_matrix")

LOG3 = math.log(3)

# --- two tokens, worked by hand ---

TWO = LlamaConfig(1, 2, 1, 1, 2, 2, 2, 100.0, 0.0, False, 64)
#: Scores after token 0 and after token 1.
LIKELY = [[0.0, LOG3], [0.0, 0.0]]  # 1 follows 0 with probability 3/4
UNLIKELY = [[LOG3, 0.0], [0.0, 0.0]]  # 1 follows 0 with probability 1/4


def two_tokens(scores):
    """A model whose block adds nothing. Its embeddings (1, 1) and (1, -1) have length 1 in the mean
    square, so the norm leaves them; they are orthogonal, so the output layer can hold any table."""
    weights = {name: torch.zeros(shape) for name, shape in TWO.weight_shapes().items()}
    embed = torch.tensor([[1.0, 1.0], [1.0, -1.0]])
    weights |= {name: torch.ones(2) for name in weights if name.endswith("norm")}
    weights |= {"embed": embed, "head": torch.tensor(scores).T @ embed / 2}
    return LanguageModel("two", TWO, weights, None, "by hand")


def test_divergence_by_hand():
    """KL((1/4, 3/4) || (3/4, 1/4)) = (3/4 - 1/4) log 3; of equal ones 0; of (1/2, 1/2) from
    (1/4, 3/4) it is log 2 / 2 + log(2/3) / 2."""
    p = torch.tensor([[0.0, LOG3], [0.0, LOG3], [5.0, 5.0]])
    q = torch.tensor([[LOG3, 0.0], [7.0, 7.0 + LOG3], [0.0, LOG3]])
    kl, same = kl_and_top1(p, q)
    by_hand = [LOG3 / 2, 0.0, (math.log(2) + math.log(2 / 3)) / 2]
    assert kl.tolist() == pytest.approx(by_hand, abs=1e-6)  # the scores are rounded to float32
    assert same.tolist() == [False, True, False]  # of equal scores token 0 ranks first
    assert kl.dtype == torch.float64


def test_two_tokens_by_hand():
    """0101: after 0, 1, 0 the divergences are log 3 / 2, 0, log 3 / 2. The tokens 1, 0, 1 come with
    probability 3/4, 1/2, 3/4 from the reference and 1/4, 1/2, 1/4 from the model."""
    result = agreement(two_tokens(LIKELY), two_tokens(UNLIKELY), tokens=[0, 1, 0, 1], window=4)
    assert result.kl == pytest.approx(LOG3 / 3)
    assert result.top1 == 1 / 3
    assert result.reference_perplexity == pytest.approx((32 / 9) ** (1 / 3))
    assert result.perplexity == pytest.approx(32 ** (1 / 3))
    assert result.perplexity_ratio == pytest.approx(9 ** (1 / 3))
    assert result.block_errors == (0.0,)
    assert (result.tokens, result.predicted_tokens, result.window) == (4, 3, 4)
    assert (result.text_name, result.bos) == ("tokens given", False)


def test_renaming_the_tokens_changes_nothing_but_ties():
    def renamed(model):
        swapped = {name: model.weight(name).flip(0) for name in ("embed", "head")}
        return model.with_weights(swapped)

    models = two_tokens([[0.0, LOG3], [0.5, 0.0]]), two_tokens([[LOG3, 0.0], [0.25, 0.0]])
    tokens = [0, 1, 0, 1, 1, 0, 0, 0]
    plain = agreement(*models, tokens=tokens, window=4)
    other = agreement(*map(renamed, models), tokens=[1 - token for token in tokens], window=4)
    assert (other.kl, other.top1) == (pytest.approx(plain.kl), plain.top1)
    assert other.perplexity == pytest.approx(plain.perplexity)


def test_block_error_by_hand():
    """The block adds (1/2, 0) to vectors (1, +-1): 1/4 of 2."""
    model = two_tokens(LIKELY)

    def linear(name, x):
        return torch.tensor([0.5 * name.endswith("down"), 0.0]).expand(*x.shape[:-1], 2)

    result = agreement(model, model, linear=linear, tokens=[0, 1, 1, 0], window=2)
    assert result.block_errors == (0.125,)


def test_interval_of_two_windows_by_hand():
    """Window 01 is 3 times less likely in the model, window 10 as likely as in the reference. Two
    draws give the first twice, one of each or the second twice with probability 1/4, 1/2, 1/4, so
    the outer 2.5 % are the windows themselves."""
    result = agreement(two_tokens(LIKELY), two_tokens(UNLIKELY), tokens=[0, 1, 1, 0], window=2)
    assert result.ratio_interval == pytest.approx((1.0, 3.0))
    assert result.perplexity_ratio == pytest.approx(math.sqrt(3))


def test_one_window_has_no_interval():
    result = agreement(two_tokens(LIKELY), two_tokens(UNLIKELY), tokens=[0, 1, 0, 1], window=4)
    assert all(math.isnan(end) for end in result.ratio_interval)


# --- the bundled model ---


@pytest.fixture(scope="module")
def tiny():
    return load_model("tiny")


@pytest.fixture(scope="module")
def ids(tiny):
    """Eight windows of 64 bytes."""
    return tiny.tokenizer.encode(load_text().content)[:512]


def rounded(model, bits):
    """The model with round-to-nearest weights, symmetric, a scale per row."""
    changed = {}
    for name in model.linear_names():
        weight = model.weight(name)
        scale = weight.abs().amax(dim=1, keepdim=True) / (2 ** (bits - 1) - 1)
        changed[name] = (weight / scale).round() * scale
    return model.with_weights(changed)


def test_a_model_agrees_with_itself(tiny, ids):
    result = agreement(tiny, tiny, tokens=ids, window=64)
    assert (result.kl, result.top1) == (0.0, 1.0)
    assert result.block_errors == (0.0,) * tiny.config.layers
    assert (result.perplexity_ratio, result.ratio_interval) == (1.0, (1.0, 1.0))


def test_divergence_against_float64(tiny, ids):
    """One position at a time in NumPy. Both take the same float32 logits, below 64 in magnitude; a
    float64 log-softmax is then off by less than 256 * 2**-53 * 64 (its sum of 256 terms and the
    logit), 2e-12, and a divergence by less than twice that."""
    model = rounded(tiny, 4)
    windows = torch.tensor(ids).view(-1, 64)
    logits = [
        torch.cat([m.head(row[:-1]) for row in m.hidden(windows)]).numpy() for m in (tiny, model)
    ]
    assert max(np.abs(scores).max() for scores in logits) < 64
    divergences = []
    for p, q in zip(*(scores.astype(np.float64) for scores in logits), strict=True):
        p, q = np.exp(p - p.max()), np.exp(q - q.max())
        p, q = p / p.sum(), q / q.sum()
        divergences.append(float((p * np.log(p / q)).sum()))
    result = agreement(tiny, model, tokens=ids, window=64)
    assert result.kl == pytest.approx(np.mean(divergences), abs=4e-12)
    assert result.top1 == np.mean(logits[0].argmax(1) == logits[1].argmax(1))
    assert min(divergences) > 0


def test_block_errors_against_float64(tiny, ids):
    model = rounded(tiny, 4)
    windows = torch.tensor(ids).view(-1, 64)
    x, y = tiny.embed(windows), model.embed(windows)
    result = agreement(tiny, model, tokens=ids, window=64)
    for layer, error in enumerate(result.block_errors):
        x, y = tiny.block(layer, x, tiny.rotary(64)), model.block(layer, y, tiny.rotary(64))
        exact, got = x.numpy().astype(np.float64), y.numpy().astype(np.float64)
        # `agreement` subtracts in float32, where the difference of two numbers is off by half an
        # ulp of the larger: the relative error of an element is far below 2**-10 here.
        assert error == pytest.approx(((got - exact) ** 2).sum() / (exact**2).sum(), rel=1e-3)


def test_perplexities_are_those_of_perplexity(tiny, ids):
    """Exactly: the same operations in the same order."""
    model = rounded(tiny, 4)
    given = {"tokens": ids, "window": 64}
    result = agreement(tiny, model, **given)
    plain, quantized = perplexity(tiny, **given), perplexity(model, **given)
    assert result.reference_perplexity == plain.perplexity
    assert result.perplexity == quantized.perplexity
    assert result.perplexity_ratio == math.exp(quantized.nll - plain.nll)
    assert (result.tokens, result.predicted_tokens) == (plain.tokens, plain.predicted_tokens)


def test_a_coarser_model_agrees_less(tiny, ids):
    fine, middle, coarse = (
        agreement(tiny, rounded(tiny, bits), tokens=ids, window=64) for bits in (8, 4, 3)
    )
    assert 0 < fine.kl < middle.kl < coarse.kl
    assert 1 >= fine.top1 > middle.top1 > coarse.top1
    for errors in zip(fine.block_errors, middle.block_errors, coarse.block_errors, strict=True):
        assert 0 < errors[0] < errors[1] < errors[2] < 1
    low, high = coarse.ratio_interval
    assert low < coarse.perplexity_ratio < high


def test_random_weights_agree_by_chance(tiny, ids):
    """Chance is 1 in 256; the random model's favourite bytes are few, hence the room above it."""
    generator = torch.Generator().manual_seed(0)
    shapes = tiny.config.weight_shapes()
    noise = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    result = agreement(tiny, tiny.with_weights(noise), tokens=ids, window=64)
    assert result.top1 < 0.05
    assert result.kl > 1
    assert result.block_errors == ()  # another embedding


def test_a_rotated_model_agrees_but_its_stream_is_not_compared(tiny, ids):
    """The rotation is exact; its weights are rounded to float32 once more."""
    config, r = tiny.config, torch.from_numpy(_matrices.orthogonal(tiny.config.hidden, 0))
    embed, last_norm, head = _rotation.rotate_ends(
        tiny.weight("embed"), tiny.weight("final_norm"), tiny.weight("embed"), r
    )
    changed = {"embed": embed, "final_norm": last_norm, "head": head}
    for layer in range(config.layers):
        block = _rotation.rotate_block(tiny.block_weights(layer), config, r, None)
        changed |= {f"blocks.{layer}.{name}": weight for name, weight in block.items()}
    result = agreement(tiny, tiny.with_weights(changed), tokens=ids, window=64)
    assert result.block_errors == ()
    assert 0 <= result.kl < 1e-6
    assert result.top1 > 0.99


def test_a_quantized_model(tiny, ids):
    quantized = apply_recipe(tiny, "w4g128a8-int-sym+kv4-asym")
    parts = {"linear": quantized.linear(), "cache": quantized.cache()}
    given = {"tokens": ids, "window": 64}
    result = agreement(tiny, quantized.model, **parts, **given)
    assert result.perplexity == perplexity(quantized.model, **parts, **given).perplexity
    assert len(result.block_errors) == tiny.config.layers
    assert result.kl > agreement(tiny, quantized.model, linear=quantized.linear(), **given).kl > 0


def test_batching_does_not_change_the_result(tiny, ids, monkeypatch):
    model = rounded(tiny, 4)
    together = agreement(tiny, model, tokens=ids, window=64)
    monkeypatch.setattr("bitwright.quant.evaluation._BATCH_TOKENS", 192)
    told = []
    apart = agreement(
        tiny, model, tokens=ids, window=64, progress=lambda *arguments: told.append(arguments)
    )
    assert apart.kl == pytest.approx(together.kl, rel=1e-4)
    assert apart.block_errors == pytest.approx(together.block_errors, rel=1e-4)
    assert told == [(done, 512, "agreement") for done in (192, 384, 512)]


def test_blocks_are_read_once_per_batch_and_logits_kept_for_one_window(tiny, ids, monkeypatch):
    class Reading(Mapping):
        def __init__(self, model, read):
            self.model, self.read = model, read

        def __getitem__(self, name):
            self.read.append(name)
            return self.model.weight(name)

        def __iter__(self):
            return iter(self.model.config.weight_shapes())

        def __len__(self):
            return len(self.model.config.weight_shapes())

    class OneWindow(LanguageModel):
        def head(self, hidden):
            assert hidden.shape == (63, self.config.hidden)
            return super().head(hidden)

    def spied(read):
        return OneWindow("tiny", tiny.config, Reading(tiny, read), tiny.tokenizer, "spied on")

    monkeypatch.setattr("bitwright.quant.evaluation._BATCH_TOKENS", 256)
    read = []
    agreement(spied(read), spied(read), tokens=ids, window=64)
    layers = [int(name.split(".")[1]) for name in read if name.endswith("attn.q")]
    # Two batches; in each, both models read block 0, then block 1, ...
    assert layers == [layer for layer in range(tiny.config.layers) for _ in "ab"] * 2


@pytest.mark.parametrize(
    "config, message",
    [
        (
            replace(TWO, vocab=3),
            "^model other has 3 tokens in the vocabulary, its reference two 2; agreement needs a "
            "model and what was made from it$",
        ),
        (replace(TWO, layers=4), "^model other has 4 blocks, its reference two 1; agreement needs"),
    ],
    ids=["vocabulary", "blocks"],
)
def test_other_models_are_refused(config, message):
    other = LanguageModel("other", config, {}, None, "by hand")
    with pytest.raises(InputError, match=message):
        agreement(two_tokens(LIKELY), other, tokens=[0, 1])


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"text": "abc", "tokens": [0, 1]}, "^give agreement a text or tokens, not both$"),
        ({"tokens": [0, 1], "window": 65}, "^window 65 must be from 2 to 64, the context of model"),
        ({"tokens": [0, 2], "window": 2}, r"^token ids from 0 to 2 must lie in \[0, 2\), the voc"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_what_is_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        agreement(two_tokens(LIKELY), two_tokens(LIKELY), **arguments)
