"""The forward pass against a slow reference and against cases worked by hand."""

import math
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from bitwright.quant import InputError, LanguageModel, LlamaConfig

CONFIG = LlamaConfig(
    layers=2,
    hidden=24,
    heads=4,
    kv_heads=2,
    head_dim=6,
    ffn=40,
    vocab=50,
    rope_base=100.0,
    norm_eps=1e-5,
    tied_embeddings=False,
    context=32,
)
VARIANTS = {
    "grouped heads": CONFIG,
    "tied": replace(CONFIG, tied_embeddings=True),
    "one head per group": replace(CONFIG, kv_heads=4),
    "one group": replace(CONFIG, kv_heads=1),
    "wide heads": replace(CONFIG, head_dim=10),
    "biases": replace(CONFIG, biased=("q", "k", "v", "o")),
    "rope divisors": replace(CONFIG, rope_divisors=(1.0, 2.5, 8.0)),
}


def random_weights(config, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in config.weight_shapes().items():
        scale = 1 / math.sqrt(shape[-1]) if len(shape) == 2 else 1.0
        weights[name] = (torch.randn(shape, generator=generator) * scale).to(dtype)
    return weights


def make(config=CONFIG, seed=0, dtype=torch.float32, **changed):
    weights = random_weights(config, seed, dtype) | changed
    return LanguageModel("random", config, weights, None, "random numbers")


def tokens_for(config, t=9, rows=2):
    generator = torch.Generator().manual_seed(1)
    return torch.randint(config.vocab, (rows, t), generator=generator)


def reference_logits(config, weights, tokens):
    """One sequence in float64, with loops over positions and heads and complex rotary pairs."""
    w = {name: tensor.double().numpy() for name, tensor in weights.items()}

    def norm(name, x):
        return w[name] * x / math.sqrt(sum(v * v for v in x) / len(x) + config.norm_eps)

    def rotate(head, position):
        half = config.head_dim // 2
        out = np.empty(config.head_dim)
        for i in range(half):
            theta = config.rope_base ** (-2 * i / config.head_dim)
            if config.rope_divisors:
                theta /= config.rope_divisors[i]
            turned = complex(head[i], head[i + half]) * complex(
                math.cos(position * theta), math.sin(position * theta)
            )
            out[i], out[i + half] = turned.real, turned.imag
        return out

    def project(name, x):
        return w[name] @ x + w.get(f"{name}.bias", 0.0)

    d = config.head_dim
    stream = [w["embed"][token].copy() for token in tokens]
    for layer in range(config.layers):
        block = f"blocks.{layer}"
        keys, values = [], []
        for position, x in enumerate(list(stream)):
            h = norm(f"{block}.attn_norm", x)
            q, k, v = (project(f"{block}.attn.{letter}", h) for letter in "qkv")
            keys.append([rotate(k[g * d : (g + 1) * d], position) for g in range(config.kv_heads)])
            values.append([v[g * d : (g + 1) * d] for g in range(config.kv_heads)])
            mixed = []
            for head in range(config.heads):
                g = head * config.kv_heads // config.heads
                query = rotate(q[head * d : (head + 1) * d], position)
                scores = [math.exp(query @ key[g] / math.sqrt(d)) for key in keys]
                total = sum(scores)
                mixed.append(sum(s / total * v[g] for s, v in zip(scores, values, strict=True)))
            x = x + project(f"{block}.attn.o", np.concatenate(mixed))
            h = norm(f"{block}.ffn_norm", x)
            gate, up = w[f"{block}.ffn.gate"] @ h, w[f"{block}.ffn.up"] @ h
            stream[position] = x + w[f"{block}.ffn.down"] @ (gate / (1 + np.exp(-gate)) * up)
    head = w["embed" if config.tied_embeddings else "head"]
    return np.array([head @ norm("final_norm", x) for x in stream])


@pytest.mark.parametrize("variant", VARIANTS)
def test_float64_forward_equals_the_slow_reference(variant):
    """Both are float64. An output passes through fewer than 1,000 roundings of relative size
    2**-53 each, on sums whose terms are at most 100: below 1,000 x 100 x 2**-53 = 1.2e-11."""
    config = VARIANTS[variant]
    model = make(config, dtype=torch.float64)
    tokens = tokens_for(config)
    logits = model.logits(tokens).numpy()
    for row in range(len(tokens)):
        expected = reference_logits(config, random_weights(config), tokens[row].tolist())
        np.testing.assert_allclose(logits[row], expected, rtol=0, atol=1.2e-11)


@pytest.mark.parametrize("variant", VARIANTS)
def test_float32_forward_stays_near_float64(variant):
    """The same count of roundings, of 2**-24 each, on terms at most 10: 1,000 x 10 x 2**-24."""
    config = VARIANTS[variant]
    tokens = tokens_for(config)
    got, exact = make(config).logits(tokens), make(config, dtype=torch.float64).logits(tokens)
    assert got.dtype == torch.float32
    assert (got - exact).abs().max() < 1000 * 10 * 2**-24


def test_two_tokens_by_hand():
    """One head of width 2, rotary angle = position, projections the identity, no feed-forward.

    Embeddings (1, 1) and (1, -1) have RMS 1, so the norm with epsilon 0 leaves them. At position 1:
    q = k = R(1)(1, -1) = (cos 1 + sin 1, sin 1 - cos 1); its product with k of position 0, (1, 1),
    is 2 sin 1, with its own key 2. Softmax of (2 sin 1, 2) / sqrt 2 gives p and 1 - p; the output
    p (1, 1) + (1 - p) (1, -1) = (1, 2p - 1) joins (1, -1): (2, 2p - 2).
    """
    config = LlamaConfig(1, 2, 1, 1, 2, 1, 3, 1.0, 0.0, True, 8)
    one, zero = torch.eye(2), torch.zeros
    weights = {
        "embed": torch.tensor([[1.0, 1.0], [1.0, -1.0], [0.0, 2.0]]),
        **{f"blocks.0.attn.{letter}": one for letter in "qkvo"},
        "blocks.0.ffn.gate": zero(1, 2),
        "blocks.0.ffn.up": zero(1, 2),
        "blocks.0.ffn.down": zero(2, 1),
        **{name: torch.ones(2) for name in ("blocks.0.attn_norm", "blocks.0.ffn_norm")},
        "final_norm": torch.tensor([1.0, 3.0]),
    }
    logits = LanguageModel("hand", config, weights, None, "").logits(torch.tensor([[0, 1]]))
    a, b = math.exp(math.sqrt(2) * math.sin(1)), math.exp(math.sqrt(2))
    p = a / (a + b)
    rms = math.sqrt((4 + (2 * p - 2) ** 2) / 2)
    x, y = 2 / rms, 3 * (2 * p - 2) / rms
    # At position 0 attention sees only itself: 2 (1, 1), normed (1, 1), weighted (1, 3).
    expected = [[4.0, -2.0, 6.0], [x + y, x - y, 2 * y]]
    assert torch.allclose(logits[0], torch.tensor(expected), rtol=0, atol=1e-5)


def test_later_tokens_change_nothing_before_them():
    model, tokens = make(), tokens_for(CONFIG, t=12)
    changed = tokens.clone()
    changed[:, 7] = (changed[:, 7] + 1) % CONFIG.vocab
    before, after = model.logits(tokens), model.logits(changed)
    assert torch.equal(before[:, :7], after[:, :7])
    assert not torch.allclose(before[:, 7:], after[:, 7:])


def test_rows_of_a_batch_do_not_mix():
    model, tokens = make(), tokens_for(CONFIG, rows=3)
    each = torch.cat([model.logits(row[None]) for row in tokens])
    assert torch.allclose(model.logits(tokens), each, rtol=0, atol=1e-5)


def test_shared_key_value_heads_equal_repeated_ones():
    grouped, full = make(), replace(CONFIG, kv_heads=4)
    weights = {name: grouped.weight(name) for name in CONFIG.weight_shapes()}
    for layer in range(CONFIG.layers):
        for letter in "kv":
            name = f"blocks.{layer}.attn.{letter}"
            heads = weights[name].unflatten(0, (2, CONFIG.head_dim))
            weights[name] = heads[[0, 0, 1, 1]].flatten(0, 1)
    repeated = LanguageModel("repeated", full, weights, None, "")
    tokens = tokens_for(CONFIG)
    assert torch.allclose(grouped.logits(tokens), repeated.logits(tokens), rtol=0, atol=1e-5)


def test_linear_is_asked_for_every_block_linear_in_order():
    model, tokens = make(replace(CONFIG, biased=("q", "k", "v"))), tokens_for(CONFIG)
    asked = []

    def linear(name, x):
        asked.append((name, x.shape[-1]))
        return x @ model.weight(name).T

    assert torch.equal(model.logits(tokens, linear), model.logits(tokens))
    assert tuple(name for name, _ in asked) == model.linear_names()
    assert all(k == model.weight(name).shape[1] for name, k in asked)
    assert model.linear_names()[:7] == (
        "blocks.0.attn.q",
        "blocks.0.attn.k",
        "blocks.0.attn.v",
        "blocks.0.attn.o",
        "blocks.0.ffn.gate",
        "blocks.0.ffn.up",
        "blocks.0.ffn.down",
    )


def test_linear_replaces_the_weights():
    model, tokens = make(), tokens_for(CONFIG)
    halved = model.logits(tokens, lambda name, x: x @ (model.weight(name) / 2).T)
    half = {name: model.weight(name) / 2 for name in model.linear_names()}
    assert torch.equal(halved, make(**half).logits(tokens))


@pytest.mark.parametrize("variant", VARIANTS)
def test_observed_operands_are_those_of_the_pass(variant):
    """Attention is recomputed from its operands in float64: 100 roundings of 2**-53 on terms below
    10 are under 1.2e-13."""
    config = VARIANTS[variant]
    model, tokens = make(config, dtype=torch.float64), tokens_for(config, t=9, rows=2)
    seen, inputs = {}, {}

    def linear(name, x):
        inputs[name] = x
        return x @ model.weight(name).T

    logits = model.logits(
        tokens, linear, observe=lambda name, x, w: seen.setdefault(name, []).append((x, w))
    )
    assert torch.equal(logits, model.logits(tokens))
    share, d = config.heads // config.kv_heads, config.head_dim
    for name, x in inputs.items():
        ((rows, w),) = seen[name]
        assert torch.equal(rows, x.reshape(18, -1)) and w is model.weight(name)
    for block in ("blocks.0", "blocks.1"):
        scores, values = seen[f"{block}.attn.scores"], seen[f"{block}.attn.values"]
        assert len(scores) == len(values) == 2 * config.kv_heads
        outputs = []
        for (queries, keys), (probabilities, channels) in zip(scores, values, strict=True):
            assert queries.shape == (9 * share, d) and keys.shape == (9, d)
            assert probabilities.shape == (9 * share, 9) and channels.shape == (d, 9)
            outputs.append((probabilities @ channels.T).view(9, share * d))
        rows = [torch.cat(outputs[i : i + config.kv_heads], 1) for i in (0, config.kv_heads)]
        expected = inputs[f"{block}.attn.o"]
        assert torch.allclose(torch.stack(rows), expected, rtol=0, atol=1.2e-13)
    ((hidden, head),) = seen["lm_head"]
    assert torch.equal(hidden @ head.T, logits.view(18, -1))
    block = [f"blocks.0.{name}" for name in ("attn.v", "attn.scores", "attn.values", "attn.o")]
    assert list(seen)[2:6] == block and len(seen) == 2 * 9 + 1


def test_no_graph_is_built():
    assert not make().logits(tokens_for(CONFIG)).requires_grad


def test_more_tokens_than_the_context_are_refused():
    with pytest.raises(
        InputError,
        match=r"^33 tokens do not fit the context of model random, which is 32; use a shorter",
    ):
        make().logits(tokens_for(CONFIG, t=33))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"layers": 0}, "model config: layers is 0, must be positive"),
        ({"kv_heads": 3}, "model config: 4 attention heads cannot share 3 key-value heads evenly"),
        ({"head_dim": 7}, "model config: head_dim 7 is odd; rotary needs pairs"),
        ({"rope_base": math.nan}, "model config: rope base nan must be positive"),
        ({"rope_divisors": (1.0,)}, "model config: 1 rotary factors given, head_dim 6 needs 3"),
        ({"rope_divisors": (1.0, 0.0, 1.0)}, "model config: rotary factors must be positive"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_impossible_shapes_are_refused(change, message):
    with pytest.raises(InputError, match=f"^{re.escape(message)}"):
        replace(CONFIG, **change)
