"""Structural removal: the smaller model is the masked one, and importances are what they say."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from bitwright.quant import (
    SITE_OF,
    Calibration,
    InputError,
    LanguageModel,
    LlamaConfig,
    LlmPruner,
    Structure,
    apply_recipe,
    importances,
    load_model,
    load_quantized,
    perplexity,
    prune_structure,
    resolve_recipe,
    save_quantized,
)

CONFIG = LlamaConfig(
    layers=3,
    hidden=12,
    heads=4,
    kv_heads=2,
    head_dim=4,
    ffn=10,
    vocab=17,
    rope_base=100.0,
    norm_eps=1e-5,
    tied_embeddings=False,
    context=16,
    biased=("q", "k", "v", "o"),
)
FEW = Calibration(sequences=4, length=64)
KEPT = Structure(((0, 1), (1,), (0,)), (tuple(range(10)), (0, 3, 4, 9), (5,)))


def random_model(config=CONFIG, dtype=torch.float64):
    generator = torch.Generator().manual_seed(3)
    weights = {
        name: torch.randn(shape, generator=generator, dtype=dtype) / shape[-1] ** 0.5
        for name, shape in config.weight_shapes().items()
    }
    return LanguageModel("random", config, weights, None, "made here")


def masked(model, structure):
    """The twin: the whole model, with zeros in the columns that read what goes."""
    config, changed = model.config, {}
    share = config.heads // config.kv_heads
    for layer in range(config.layers):
        for name, kept, width in (
            ("attn.o", structure.heads[layer], share * config.head_dim),
            ("ffn.down", structure.channels[layer], 1),
        ):
            w = model.weight(f"blocks.{layer}.{name}").clone()
            for unit in range(w.shape[1] // width):
                if unit not in kept:
                    w[:, unit * width : (unit + 1) * width] = 0
            changed[f"blocks.{layer}.{name}"] = w
    return model.with_weights(changed)


@pytest.fixture(scope="module")
def tiny():
    return load_model("tiny")


@pytest.fixture(scope="module")
def pruned(tiny):
    return apply_recipe(tiny, "w4g64-int-sym-s8+llmpruner:ratio=0.5", calibration=FEW)


@pytest.mark.parametrize("biased", [(), ("q", "k", "v", "o")], ids=["plain", "biases"])
def test_the_smaller_model_is_the_masked_one(biased):
    model = random_model(replace(CONFIG, biased=biased))
    ids = torch.arange(12)[None] % CONFIG.vocab
    small = model.narrowed(KEPT)
    got, expected = small.logits(ids), masked(model, KEPT).logits(ids)
    # The same terms, summed in another order: a few roundings of float64 on logits of size 1.
    assert torch.allclose(got, expected, rtol=0, atol=1e-13 * float(expected.abs().max() + 1) * 10)
    assert not torch.allclose(got, model.logits(ids), atol=1e-2)
    assert small.config.blocks == ((4, 2, 10), (2, 1, 4), (2, 1, 1))
    for name, shape in small.config.weight_shapes().items():
        assert tuple(small.weight(name).shape) == shape


@pytest.mark.parametrize(("name", "width"), [("attn.o", 16), ("ffn.down", 10)])
def test_with_integers_it_is_exact(name, width):
    """Sums of integers are exact in any order: what is left of a product gives equal bits."""
    generator = torch.Generator().manual_seed(0)
    full = f"blocks.1.{name}"
    x = torch.randint(-3, 4, (5, width), generator=generator).double()
    w = torch.randint(-3, 4, (12, width), generator=generator).double()
    model = random_model().with_weights({full: w})
    rows = {"attn.o": list(range(8, 16)), "ffn.down": [0, 3, 4, 9]}[name]
    small = model.narrowed(KEPT).weight(full)
    assert torch.equal(x[:, rows] @ small.T, x @ masked(model, KEPT).weight(full).T)


def test_all_kept_is_the_model_itself():
    model = random_model()
    whole = Structure(((0, 1),) * 3, (tuple(range(10)),) * 3)
    same = model.narrowed(whole)
    assert same.config == model.config
    ids = torch.arange(8)[None]
    assert torch.equal(same.logits(ids), model.logits(ids))


def test_parameters_by_hand():
    """Block 1: q 8x12, k and v 4x12, o 12x8, gate and up 4x12, down 12x4; block 2: one channel."""
    shapes = random_model().narrowed(KEPT).config.linear_shapes()
    sizes = [
        sum(n * k for s, (n, k) in shapes.items() if s.startswith(f"blocks.{i}."))
        for i in (0, 1, 2)
    ]
    assert sizes == [
        2 * 16 * 12 + 2 * 8 * 12 + 3 * 10 * 12,
        2 * 8 * 12 + 2 * 4 * 12 + 3 * 4 * 12,
        2 * 8 * 12 + 2 * 4 * 12 + 3 * 1 * 12,
    ]


# ---------------------------------------------------------------------- importance


def losses(model, ids, name, w):
    live = model.with_weights({name: w})
    return [F.cross_entropy(live.logits(row[None, :-1])[0], row[1:]).item() for row in ids]


@pytest.mark.parametrize("kind", ["vectorize", "first", "second", "mix"])
def test_importances_from_finite_differences(kind):
    """Every weight of a block moved by itself, both ways: gradients of each sequence's loss."""
    model = random_model()
    ids = torch.tensor([[1, 5, 2, 7, 3, 3], [16, 0, 4, 4, 9, 1]])
    step, own = 1e-5, {}
    for name in SITE_OF:
        full = f"blocks.1.{name}"
        w = model.weight(full)
        grads = np.zeros((len(ids), *w.shape))
        for place in np.ndindex(*w.shape):
            up, down = w.clone(), w.clone()
            up[place] += step
            down[place] -= step
            high, low = losses(model, ids, full, up), losses(model, ids, full, down)
            grads[(slice(None), *place)] = (np.array(high) - low) / (2 * step)
        g, squares, w = grads.mean(0), np.square(grads).mean(0), w.numpy()
        axis = 0 if name in ("attn.o", "ffn.down") else 1
        own[name] = {
            "vectorize": np.abs((w * g).sum(axis)),
            "first": np.abs(w * g).sum(axis),
            "second": (w**2 * squares).sum(axis),
            "mix": np.abs(w * g - w**2 * squares / 2).sum(axis),
        }[kind]
    heads = sum(own[f"attn.{c}"].reshape(2, -1).sum(1) for c in "qkvo")
    channels = own["ffn.gate"] + own["ffn.up"] + own["ffn.down"]
    found = importances(model, ids, range(1, 2), kind)
    assert list(found) == [1]
    np.testing.assert_allclose(found[1][0], heads, rtol=1e-5, atol=1e-8)
    np.testing.assert_allclose(found[1][1], channels, rtol=1e-5, atol=1e-8)


def dead_units(model):
    """Channel 7 and the heads of group 0 of block 1, all zero."""
    changed = {f"blocks.1.{name}": model.weight(f"blocks.1.{name}").clone() for name in SITE_OF}
    changed["blocks.1.ffn.gate"][7] = changed["blocks.1.ffn.up"][7] = 0
    changed["blocks.1.ffn.down"][:, 7] = 0
    changed["blocks.1.attn.q"][:8] = changed["blocks.1.attn.k"][:4] = 0
    changed["blocks.1.attn.v"][:4] = changed["blocks.1.attn.o"][:, :8] = 0
    return model.with_weights(changed)


@pytest.mark.parametrize("kind", ["vectorize", "first", "second", "mix"])
def test_what_is_zero_matters_nothing_and_can_go(kind):
    model = dead_units(random_model(replace(CONFIG, biased=())))
    ids = torch.arange(24).view(2, 12) % CONFIG.vocab
    heads, channels = importances(model, ids, range(1, 2), kind)[1]
    assert heads[0] == 0 < heads[1] and channels[7] == 0
    assert (np.delete(channels, 7) > 0).all()
    step = LlmPruner(ratio=0.1, importance=kind)  # one channel of ten, no group of two
    found = prune_structure(model, step, ids)
    assert found.channels[1] == (0, 1, 2, 3, 4, 5, 6, 8, 9) and found.heads[1] == (0, 1)
    without = replace(found, heads=((0, 1), (1,), (0, 1)))
    expected = model.logits(ids)
    for one in (found, without):
        assert torch.allclose(model.narrowed(one).logits(ids), expected, rtol=0, atol=1e-12)


# ------------------------------------------------------------------------- choice


def test_the_least_important_go_and_ends_stay():
    model = random_model()
    ids = torch.arange(24).view(2, 12) % CONFIG.vocab
    found = prune_structure(model, LlmPruner(ratio=0.4, keep_first=0), ids)
    scores = importances(model, ids, range(2))
    for layer in range(2):
        kept = sorted(np.argsort(scores[layer][1])[4:].tolist())
        assert found.channels[layer] == tuple(kept)
    assert found.channels[2] == tuple(range(10)) and found.heads[2] == (0, 1)


def test_multiples_and_the_whole_model(tiny):
    ids = torch.arange(256).view(4, 64)
    for multiple in (32, 64):
        step = LlmPruner(ratio=0.4, multiple=multiple)
        sizes = [len(own) for own in prune_structure(tiny, step, ids).channels]
        assert sizes == [384, *[{32: 224, 64: 256}[multiple]] * 3, 384]  # of 230.4
    step = LlmPruner(ratio=0.4, multiple=32, scope="global", keep_first=0, keep_last=0)
    sizes = [len(own) for own in prune_structure(tiny, step, ids).channels]
    assert len(set(sizes)) > 1 and all(size % 32 == 0 for size in sizes)
    assert abs(sum(sizes) - 5 * 224) <= 5 * 16


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("keep_first=3,keep_last=2", "keeps 3 first and 2 last blocks of 5; at most 4 together"),
        ("ratio=0.9", ": ratio 0.9 empties a block of 2 key-value heads; at most 0.75"),
        (
            "ratio=0.7,multiple=256",
            ": ratio 0.7 empties a block of 384 feed-forward channels in multiples of 256; at most "
            "0.666",
        ),
        (
            "multiple=512",
            ": multiple 512 exceeds the 384 feed-forward channels of a block; at most 384",
        ),
        ("ratio=0.001", ": ratio 0.001 takes nothing out in multiples of 1; at least 0.003"),
    ],
    ids=["ends", "heads", "channels", "multiple", "nothing"],
)
def test_what_does_not_fit(tiny, options, message):
    with pytest.raises(InputError, match=f"^llmpruner ?{re.escape(message)}$"):
        apply_recipe(tiny, f"fp16+llmpruner:{options}", calibration=FEW)


@pytest.mark.parametrize("value", ["0.75", "0.666"])
def test_the_nearest_value_that_errors_tell_works(tiny, value):
    multiple = 1 if value == "0.75" else 256
    step = LlmPruner(ratio=float(value), multiple=multiple)
    assert list(step.blocks(tiny.config)) == [1, 2, 3]
    LlmPruner(ratio=0.003).blocks(tiny.config)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("fp16+llmpruner:ratio=1", "option ratio of llmpruner is '1': input should be less than 1"),
        ("w4g64-int-sym+awq+llmpruner", "llmpruner must come before awq; write it first"),
        ("w4g64-int-sym+hadamard+llmpruner", "llmpruner must come before hadamard; write it first"),
    ],
)
def test_recipes_that_are_refused(name, message):
    with pytest.raises(InputError, match=re.escape(message)):
        resolve_recipe(name)


def test_structures_are_checked(tiny):
    with pytest.raises(InputError, match="heads of 3 blocks given, the model has 5$"):
        tiny.narrowed(KEPT)
    wrong = Structure(((0, 1),) * 3, ((0,), (3, 3), (1,)))
    with pytest.raises(
        InputError, match="^structure: channels of blocks.1 must be rising numbers from 0 to 9, at"
    ):
        random_model().narrowed(wrong)
    with pytest.raises(InputError, match="sizes of 1 blocks given, layers is 3$"):
        replace(CONFIG, blocks=((4, 2, 1),))


# -------------------------------------------------------------------------- recipe


def test_the_recipe_goes_on_with_the_smaller_model(tiny, pruned):
    assert pruned.recipe.name == "w4g64-int-sym-s8+llmpruner:ratio=0.5"
    assert pruned.recipe.without_structure.name == "w4g64-int-sym-s8"
    blocks = ((4, 2, 384), *[(2, 1, 192)] * 3, (4, 2, 384))
    assert pruned.base.config.blocks == blocks and tiny.config.blocks == ()
    weights = sum((2 * 128 * 32 * (h + kv) + 3 * 128 * ffn) for h, kv, ffn in blocks)
    whole = 5 * (2 * 128 * 32 * 6 + 3 * 128 * 384)
    assert pruned.parameters_kept == weights / whole
    assert pruned.bits_per_weight == pruned.stored_bits / weights
    assert pruned.notes[0] == (
        f"{weights:,} of {whole:,} weights of the linears kept (70.0 %); bits are those of a kept "
        "weight"
    )
    plain = perplexity(tiny, max_tokens=1024, window=256).perplexity
    own = perplexity(pruned.model, max_tokens=1024, window=256, linear=pruned.linear()).perplexity
    assert plain < own < 2.5 * plain


def test_it_is_what_the_same_steps_give_one_by_one(tiny, pruned):
    small = tiny.narrowed(pruned.structure)
    again = apply_recipe(small, "w4g64-int-sym-s8")
    assert again.tensors == pruned.tensors


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_it_comes_back_from_disk(tiny, pruned, tmp_path, kind):
    path = tmp_path / ("q.safetensors" if kind == "file" else "q")
    if kind == "file":
        save_quantized(path, pruned)
    else:
        apply_recipe(tiny, pruned.recipe, calibration=FEW, folder=path)
    back = load_quantized(path, tiny)
    assert back.tensors == pruned.tensors and back.structure == pruned.structure
    assert back.base.config == pruned.base.config and back.recipe == pruned.recipe
    assert back.parameters_kept == pruned.parameters_kept
    ids = torch.arange(64)[None]
    got = back.model.logits(ids, back.linear())
    assert torch.equal(got, pruned.model.logits(ids, pruned.linear()))


@pytest.mark.parametrize(
    "name",
    [
        "w4g32-int-asym+llmpruner:ratio=0.5+hadamard+awq+gptq",
        "fp16+llmpruner:ratio=0.5+wanda:pattern=2:4",
        "bitnet+llmpruner:ratio=0.5",
    ],
)
def test_other_steps_follow(tiny, name):
    q = apply_recipe(tiny, name, calibration=FEW)
    assert q.parameters_kept == 0.7
    shapes = q.base.config.linear_shapes()
    assert {n: tensor.dequantize().shape for n, tensor in q.tensors.items()} == shapes


def test_it_repeats_and_reads_the_first_sequences(tiny):
    ids = torch.arange(256).view(4, 64)
    step = LlmPruner()
    one, two = prune_structure(tiny, step, ids), prune_structure(tiny, step, ids)
    assert one == two
    fewer = prune_structure(tiny, LlmPruner(sequences=2), ids)
    assert fewer == prune_structure(tiny, step, ids[:2])
