"""Rotated blocks by hand, and rotated models whose logits stay."""

import math
import re
import subprocess
import sys
from dataclasses import replace
from importlib import import_module

import numpy as np
import pytest
import torch

from bitwright.quant import InputError, LanguageModel, LlamaConfig, load_model

_rotation = import_module("bitwright.quant.algorithms.rotation")  # not part of the face
rotate_block, rotate_ends = _rotation.rotate_block, _rotation.rotate_ends
_matrices = import_module("bitwright.quant.algorithms.hadamard_matrix")
hadamard = _matrices.hadamard

CONFIG = LlamaConfig(
    layers=2,
    hidden=24,
    heads=6,
    kv_heads=2,
    head_dim=4,
    ffn=40,
    vocab=32,
    rope_base=100.0,
    norm_eps=1e-5,
    tied_embeddings=False,
    context=32,
    biased=("q", "k", "v", "o"),
)
VARIANTS = {
    "grouped heads with biases": CONFIG,
    "no biases": replace(CONFIG, biased=()),
    "biases as in Qwen2": replace(CONFIG, biased=("q", "k", "v")),
    "one head per group": replace(CONFIG, kv_heads=6),
    "one group": replace(CONFIG, kv_heads=1),
    "heads wider than the residual stream": replace(CONFIG, head_dim=12),
    "large norm epsilon": replace(CONFIG, norm_eps=0.5),
    "residual stream in blocks": replace(CONFIG, hidden=18),
}


def orthogonal(order, seed=0):
    return torch.from_numpy(_matrices.orthogonal(order, seed))


def random_weights(config, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return {
        name: (
            torch.randn(shape, generator=generator, dtype=torch.float64) / math.sqrt(shape[-1])
            if len(shape) == 2
            else torch.randn(shape, generator=generator, dtype=torch.float64)
        ).to(dtype)
        for name, shape in config.weight_shapes().items()
    }


def block_of(weights, layer=0):
    prefix = f"blocks.{layer}."
    return {n.removeprefix(prefix): w for n, w in weights.items() if n.startswith(prefix)}


def rotated(config, weights, residual, head):
    """Config and weights of the whole model, rotated."""
    output = weights["embed" if config.tied_embeddings else "head"]
    ends = rotate_ends(weights["embed"], weights["final_norm"], output, residual)
    result = dict(zip(("embed", "final_norm", "head"), ends, strict=True))
    for layer in range(config.layers):
        block = rotate_block(block_of(weights, layer), config, residual, head)
        result |= {f"blocks.{layer}.{name}": tensor for name, tensor in block.items()}
    return replace(config, tied_embeddings=False), result


def logits(config, weights, tokens):
    return LanguageModel("rotated", config, weights, None, "random numbers").logits(tokens)


def tokens_for(config, t, rows=2):
    return torch.randint(config.vocab, (rows, t), generator=torch.Generator().manual_seed(1))


def relative(got, expected):
    return float((got - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("turned", ["residual", "residual and heads"])
@pytest.mark.parametrize("tied", [False, True], ids=["untied", "tied"])
@pytest.mark.parametrize("config", VARIANTS.values(), ids=VARIANTS)
def test_logits_stay(config, tied, turned):
    config = replace(config, tied_embeddings=tied)
    weights, tokens = random_weights(config), tokens_for(config, 9)
    head = orthogonal(config.head_dim, 1) if "heads" in turned else None
    got = logits(*rotated(config, weights, orthogonal(config.hidden), head), tokens)
    assert got.dtype == torch.float64
    assert relative(got, logits(config, weights, tokens)) < 1e-10


def test_any_orthonormal_matrix_will_do():
    # Hadamard matrices are often symmetric, which could hide a transposed R or H; these are not.
    generator = torch.Generator().manual_seed(2)

    def orthonormal(order):
        square = torch.randn((order, order), generator=generator, dtype=torch.float64)
        return torch.linalg.qr(square).Q

    weights, tokens = random_weights(CONFIG), tokens_for(CONFIG, 9)
    got = logits(*rotated(CONFIG, weights, orthonormal(24), orthonormal(4)), tokens)
    assert relative(got, logits(CONFIG, weights, tokens)) < 1e-10


@pytest.fixture(scope="module")
def tiny():
    """Config and weights of the bundled model, tokens and the logits in float64."""
    model = load_model("tiny")
    weights = {name: model.weight(name) for name in model.config.weight_shapes()}
    tokens = tokens_for(model.config, 64)
    exact = {name: weight.double() for name, weight in weights.items()}
    return model.config, weights, tokens, logits(model.config, exact, tokens)


def test_tiny_in_float64(tiny):
    config, weights, tokens, expected = tiny
    exact = {name: weight.double() for name, weight in weights.items()}
    turned = rotated(config, exact, orthogonal(config.hidden), orthogonal(config.head_dim, 1))
    assert relative(logits(*turned, tokens), expected) < 1e-10


def test_tiny_in_float32(tiny):
    """The float32 rotated model is off by its arithmetic alone.

    A result passes 4 products per block (q k v, o, gate and up, down) and the output layer, each
    over at most k = ffn = 384 terms. In float32 such a product is off by no more than
    (k + 1) * 2**-24 of the sum of its terms' magnitudes, the rounding of the weights included.
    Taken one after the other, without a factor for the ratio of that sum to the result, these give
    (4 * 5 + 1) * 385 * 2**-24 = 4.8e-4. Roundings cancel, so the true gap is far below.
    """
    config, weights, tokens, expected = tiny
    turned = rotated(config, weights, orthogonal(config.hidden), orthogonal(config.head_dim, 1))
    assert all(tensor.dtype == torch.float32 for tensor in turned[1].values())
    got = logits(*turned, tokens)
    bound = (4 * config.layers + 1) * (config.ffn + 1) * 2.0**-24
    assert relative(got.double(), expected) < bound
    assert relative(got, logits(config, weights, tokens)) < 2 * bound  # both are off


#: A block with hidden = 2 and one head of 2; R turns by an angle of sine 4/5, H by a right angle.
SMALL = replace(CONFIG, hidden=2, heads=1, kv_heads=1, head_dim=2, ffn=1)
R = torch.tensor([[0.6, 0.8], [-0.8, 0.6]], dtype=torch.float64)
H = torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64)
SMALL_BLOCK = {
    "attn_norm": [5.0, 10.0],
    "ffn_norm": [10.0, 5.0],
    "attn.q": [[1.0, 2.0], [0.0, 0.0]],
    "attn.k": [[0.0, 1.0], [1.0, 0.0]],
    "attn.v": [[1.0, 2.0], [0.0, 1.0]],
    "attn.o": [[5.0, 0.0], [0.0, 5.0]],
    "ffn.gate": [[1.0, 2.0]],
    "ffn.up": [[1.0, 0.0]],
    "ffn.down": [[5.0], [10.0]],
    "attn.q.bias": [1.0, 2.0],
    "attn.k.bias": [3.0, 4.0],
    "attn.v.bias": [1.0, 2.0],
    "attn.o.bias": [5.0, 0.0],
}


def small_block(dtype=torch.float64):
    return {name: torch.tensor(values, dtype=dtype) for name, values in SMALL_BLOCK.items()}


@pytest.mark.parametrize(
    ("name", "residual_only", "with_head"),
    [
        ("attn_norm", [1, 1], [1, 1]),
        ("ffn_norm", [1, 1], [1, 1]),
        # (1, 2) * (5, 10) = (5, 20); (5, 20) R = (3 - 16, 4 + 12)
        ("attn.q", [[-13, 16], [0, 0]], [[-13, 16], [0, 0]]),
        # (0, 10) R = (-8, 6); (5, 0) R = (3, 4)
        ("attn.k", [[-8, 6], [3, 4]], [[-8, 6], [3, 4]]),
        # rows a = (-13, 16) and b = (-8, 6); H.T = [[0, -1], [1, 0]] makes them -b and a
        ("attn.v", [[-13, 16], [-8, 6]], [[8, -6], [-13, 16]]),
        # 5 R.T = [[3, -4], [4, 3]]; each row (x, y) H = (-y, x)
        ("attn.o", [[3, -4], [4, 3]], [[4, 3], [-3, 4]]),
        # (1, 2) * (10, 5) = (10, 10); (10, 10) R = (6 - 8, 8 + 6)
        ("ffn.gate", [[-2, 14]], [[-2, 14]]),
        # (10, 0) R = (6, 8)
        ("ffn.up", [[6, 8]], [[6, 8]]),
        # R.T (5, 10) = (3 - 8, 4 + 6)
        ("ffn.down", [[-5], [10]], [[-5], [10]]),
        ("attn.q.bias", [1, 2], [1, 2]),
        ("attn.k.bias", [3, 4], [3, 4]),
        ("attn.v.bias", [1, 2], [-2, 1]),  # (1, 2) H
        ("attn.o.bias", [3, 4], [3, 4]),  # (5, 0) R
    ],
)
def test_a_block_by_hand(name, residual_only, with_head):
    for head, expected in ((None, residual_only), (H, with_head)):
        got = rotate_block(small_block(), SMALL, R, head)[name]
        assert got.tolist() == [pytest.approx(row, rel=1e-14, abs=1e-14) for row in expected]


def test_ends_by_hand():
    embed = torch.tensor([[5.0, 0.0], [5.0, 10.0]], dtype=torch.float64)
    norm = torch.tensor([10.0, 5.0], dtype=torch.float64)
    got = rotate_ends(embed, norm, embed, R)
    # (5, 0) R = (3, 4) and (5, 10) R = (3 - 8, 4 + 6); times the norm (50, 0) and (50, 50).
    expected = [[[3, 4], [-5, 10]], [1, 1], [[30, 40], [-10, 70]]]
    for tensor, rows in zip(got, expected, strict=True):
        assert tensor.tolist() == [pytest.approx(row, rel=1e-14) for row in rows]
    assert embed.tolist() == [[5.0, 0.0], [5.0, 10.0]]


def test_a_long_vocabulary_is_rotated_whole(monkeypatch):
    embed = torch.randn((10, 2), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    norm = torch.tensor([10.0, 5.0], dtype=torch.float64)
    monkeypatch.setattr(_rotation, "_ROWS", 4)  # 4 + 4 + 2
    turned, _, output = rotate_ends(embed, norm, embed, R)
    assert torch.allclose(turned, embed @ R, rtol=1e-14, atol=1e-14)
    assert torch.allclose(output, embed * norm @ R, rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_results_are_float64_products_rounded_once(dtype):
    config = replace(CONFIG, hidden=48, head_dim=8)
    weights = random_weights(config, dtype)
    exact = {name: tensor.double() for name, tensor in weights.items()}
    residual, head = orthogonal(48), orthogonal(8, 1)
    low, high = rotated(config, weights, residual, head), rotated(config, exact, residual, head)
    for name, tensor in low[1].items():
        assert tensor.dtype == dtype
        assert torch.equal(tensor, high[1][name].to(dtype)), name


def test_the_given_block_is_not_written_to():
    block = small_block()
    rotate_block(block, SMALL, R, H)
    assert {name: tensor.tolist() for name, tensor in block.items()} == SMALL_BLOCK


def test_names_keep_their_order():
    block = small_block()
    assert list(rotate_block(block, SMALL, R, H)) == list(block)


def test_a_rotation_and_its_transpose_undo_each_other():
    block = block_of(random_weights(CONFIG))
    block |= {name: torch.ones_like(block[name]) for name in ("attn_norm", "ffn_norm")}
    r, h = orthogonal(24), orthogonal(4)
    back = rotate_block(rotate_block(block, CONFIG, r, h), CONFIG, r.T, h.T)
    for name, tensor in block.items():
        assert torch.allclose(back[name], tensor, rtol=0, atol=1e-14), name


def peak(w):
    """Largest magnitude over the root mean square."""
    return float(w.abs().max() / w.square().mean().sqrt())


def test_a_row_spreads_by_hand():
    # (8, 1, -1, 0) H / 2, H of order 4: (8+1-1, 8-1-1, 8+1+1, 8-1+1) / 2. The mean square is
    # 66 / 4 before and (16 + 9 + 25 + 16) / 4 after; the largest magnitude falls from 8 to 5.
    config = replace(CONFIG, hidden=4, heads=1, kv_heads=1, head_dim=4, biased=())
    block = block_of(random_weights(config))
    block["attn_norm"] = torch.ones(4, dtype=torch.float64)
    block["attn.q"] = torch.tensor([[8.0, 1.0, -1.0, 0.0]], dtype=torch.float64).repeat(4, 1)
    r = torch.from_numpy(hadamard(4) / 2)
    got = rotate_block(block, config, r, None)["attn.q"]
    assert got.tolist() == [[4.0, 3.0, 5.0, 4.0]] * 4
    assert peak(block["attn.q"]) == pytest.approx(8 / math.sqrt(16.5))  # 1.97
    assert peak(got) == pytest.approx(5 / math.sqrt(16.5))  # 1.23


def outlier_block(config, column):
    """A block whose query rows are 7 e_column and whose norms are ones."""
    block = block_of(random_weights(config))
    block["attn_norm"] = torch.ones(config.hidden, dtype=torch.float64)
    block["attn.q"] = torch.zeros_like(block["attn.q"])
    block["attn.q"][:, column] = 7.0
    return block


@pytest.mark.parametrize("column", [0, 5, 63])
def test_an_outlier_channel_alone_becomes_flat(column):
    config = replace(CONFIG, hidden=64)
    block = outlier_block(config, column)
    got = rotate_block(block, config, orthogonal(64, 2), None)["attn.q"]
    # 7 e_j R is 7 times row j of R: all magnitudes are 7 / sqrt(64).
    assert torch.equal(got.abs(), torch.full_like(got, 7 / 8))
    assert peak(block["attn.q"]) == pytest.approx(8) and peak(got) == pytest.approx(1)


def test_blocks_lower_an_outlier_by_the_root_of_their_order():
    config = replace(CONFIG, hidden=52)  # 13 blocks of 4
    block = outlier_block(config, 9)
    got = rotate_block(block, config, orthogonal(52, 2), None)["attn.q"]
    inside = slice(8, 12)
    assert torch.equal(got[:, inside].abs(), torch.full_like(got[:, inside], 7 / 2))
    assert int((got != 0).sum()) == got[:, inside].numel()
    assert peak(block["attn.q"]) == pytest.approx(math.sqrt(52))
    assert peak(got) == pytest.approx(math.sqrt(52) / 2)


def test_an_outlier_channel_among_others_is_lowered():
    config = replace(CONFIG, hidden=256, heads=32, kv_heads=8, head_dim=8)
    block = block_of(random_weights(config))
    block["attn_norm"] = torch.ones(256, dtype=torch.float64)
    block["attn.q"][:, 17] *= 100
    got = rotate_block(block, config, orthogonal(256), None)["attn.q"]
    # Before: one channel of 256 holds the peak. Its part of a rotated row is 1/16 of it, and the
    # other channels add no more than their sum of magnitudes / 16; rotation keeps the mean square.
    others = block["attn.q"].clone()
    others[:, 17] = 0
    bound = block["attn.q"][:, 17].abs().max() + others.abs().sum(dim=1).max()
    assert float(got.abs().max()) <= float(bound) / 16
    assert float(got.square().mean()) == pytest.approx(float(block["attn.q"].square().mean()))
    assert peak(block["attn.q"]) > 40
    assert peak(got) < 5


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"attn.v": None}, "block to rotate: no weight named attn.v"),
        ({"ffn_norm": None}, "block to rotate: no weight named ffn_norm"),
        (
            {"ffn.down.bias": torch.ones(2)},
            "block to rotate: ffn.down.bias is not a weight of a Llama block; how it would rotate "
            "is not known",
        ),
    ],
    ids=["no linear", "no norm", "unknown"],
)
def test_errors_of_names(changed, message):
    block = {k: v for k, v in (small_block() | changed).items() if v is not None}
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        rotate_block(block, SMALL, R, None)


@pytest.mark.parametrize(
    ("residual", "head", "message"),
    [
        (torch.eye(3), None, "residual rotation has shape [3, 3]; this model needs [2, 2]"),
        (torch.ones(2), None, "residual rotation has shape [2]; this model needs [2, 2]"),
        (R, torch.eye(4), "head rotation has shape [4, 4]; this model needs [2, 2]"),
        (
            # R @ R.T is 4 I, and the probe is (0.1257.., -0.1321..).
            2 * R,
            None,
            "residual rotation is not orthonormal: R @ R.T moves a vector of unit variance by 0.4, "
            "more than 1e-05",
        ),
        (
            R,
            torch.full((2, 2), math.nan),
            "head rotation is not orthonormal: R @ R.T moves a vector of unit variance by nan, "
            "more than 1e-05",
        ),
    ],
    ids=["wrong order", "no matrix", "wrong head order", "too long", "not a number"],
)
def test_errors_of_rotations(residual, head, message):
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        rotate_block(small_block(), SMALL, residual, head)


def test_ends_check_the_rotation():
    embed = torch.ones((4, 2))
    with pytest.raises(InputError, match="^residual rotation is not orthonormal: "):
        rotate_ends(embed, torch.ones(2), embed, torch.ones((2, 2)))


@pytest.mark.parametrize(("dtype", "fits"), [(torch.float32, True), (torch.float16, False)])
def test_how_exact_a_rotation_has_to_be(dtype, fits):
    generator = torch.Generator().manual_seed(3)
    square = torch.randn((96, 96), generator=generator, dtype=torch.float64)
    r = torch.linalg.qr(square).Q.to(dtype)
    embed, norm = torch.ones((4, 96)), torch.ones(96)
    if fits:
        rotate_ends(embed, norm, embed, r)
    else:
        with pytest.raises(InputError, match="^residual rotation is not orthonormal: "):
            rotate_ends(embed, norm, embed, r)


def test_the_module_loads_without_torch():
    program = "import sys, bitwright.quant.algorithms.rotation; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_probe_sees_every_wrong_entry():
    for row, column in np.ndindex(4, 4):
        wrong = orthogonal(4)
        wrong[row, column] += 1e-3
        with pytest.raises(InputError, match="^head rotation is not orthonormal: "):
            rotate_block(block_of(random_weights(CONFIG)), CONFIG, orthogonal(24), wrong)
