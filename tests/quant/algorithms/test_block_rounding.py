"""Turned weights, tiles of scales and stochastic rounding in block formats: each and together."""

import math
from dataclasses import replace
from importlib import import_module

import numpy as np
import pytest
import torch

from bitwright.quant import (
    FORMATS,
    InputError,
    QuantizedTensor,
    Recipe,
    apply_recipe,
    fake_activations,
    load_model,
    load_quantized,
    load_tensors,
    perplexity,
    quantize,
    resolve_recipe,
    save_quantized,
    save_tensors,
)

scales = import_module("bitwright.quant.algorithms.block_scales")
turning = import_module("bitwright.quant.algorithms.random_hadamard")
matrices = import_module("bitwright.quant.algorithms.block_matrix")
BlockMatrix, Turn = matrices.BlockMatrix, turning.Turn
BLOCKS = ("nvfp4", "mxfp4", "mxint8")


@pytest.fixture(scope="module")
def tiny():
    return load_model("tiny")


def normals(n, k, seed=0):
    return np.random.default_rng(seed).standard_normal((n, k)).astype(np.float32)


def matrix(w, format="nvfp4", rows=1, turn=None, random=None):
    turned = w if turn is None else turn.apply(w)
    return BlockMatrix(scales.quantize_blocks(turned, FORMATS[format], rows, random), rows, turn)


def mse(w, found):
    return float(np.mean((found.astype(np.float64) - w) ** 2))


# ---------------------------------------------------------------------- turning


@pytest.mark.parametrize("place", range(16))
def test_a_single_entry_spreads_evenly(place):
    """16 e_k becomes +-4 everywhere, with the signs of the Hadamard matrix' row."""
    x = np.zeros((1, 48), np.float32)
    x[0, 16 + place] = 16
    turned = Turn(16, 3).apply(x)
    assert set(np.abs(turned[0, 16:32])) == {4.0}
    assert not turned[0, :16].any() and not turned[0, 32:].any()
    signs = Turn(16, 3).signs(48)
    row = [(-1) ** (place & column).bit_count() for column in range(16)]  # Sylvester's rule
    assert np.array_equal(turned[0, 16:32], 4 * signs[16 + place] * np.array(row))


@pytest.mark.parametrize("order", [2, 8, 16, 64])
def test_products_stay_the_same(order):
    turn, x, w = Turn(order, 1), normals(5, 192, 1), normals(7, 192, 2)
    assert np.allclose(turn.apply(x) @ turn.apply(w).T, x @ w.T, atol=1e-4)
    assert np.allclose(turn.undo(turn.apply(w)), w, atol=1e-6)
    assert set(turn.signs(192)) == {-1.0, 1.0}
    if order == 16:  # small integers are turned back exactly: the factor is 1/4
        whole = np.round(4 * w)
        assert np.array_equal(turn.undo(turn.apply(whole)), whole)


def test_signs_come_from_the_seed():
    x = normals(2, 64)
    assert np.array_equal(Turn(16, 5).apply(x), Turn(16, 5).apply(x))
    assert not np.array_equal(Turn(16, 5).apply(x), Turn(16, 6).apply(x))


@pytest.mark.parametrize(
    ("format", "ratio"), [("nvfp4", 1.103), ("mxfp4", 0.763), ("mxint8", 0.482)]
)
def test_heavy_tails(format, ratio):
    """What the module says of Student's t: NVFP4 loses by the turn, MX formats win."""
    w = np.random.default_rng(0).standard_t(4, (2000, 128)).astype(np.float32)
    turned = matrix(w, format, turn=Turn(16, 0)).dequantize()
    assert mse(w, turned) / mse(w, matrix(w, format).dequantize()) == pytest.approx(ratio, abs=2e-3)


def test_what_cannot_be_turned():
    with pytest.raises(InputError) as error:
        Turn(16, 0).apply(normals(1, 24))
    assert str(error.value) == "k (=24 inputs) is no multiple of 16; use rht:order=8"
    with pytest.raises(InputError, match="^k .=15 inputs. is no multiple of 16; use a model of an"):
        matrix(normals(1, 15), turn=Turn(16, 0))


# ------------------------------------------------------------------------ tiles


def test_a_tile_has_the_scale_of_its_largest_weight():
    w = normals(40, 50)
    tiled = matrix(w, rows=16)
    largest = np.abs(w).max()
    for row in range(0, 40, 16):
        for column in range(0, 50, 16):
            tile = w[row : row + 16, column : column + 16]
            own = quantize([[np.abs(tile).max()] + [0.0] * 15 + [largest]], "nvfp4")
            group = column // 16
            assert (tiled.inner.group_scales[row : row + 16, group] == own.group_scales[0, 0]).all()
    codes = tiled.inner
    assert codes.tensor_scale == quantize(w, "nvfp4").tensor_scale


def test_tiles_by_hand():
    """MX, tiles of 2 rows: largest 7 and 1, so X = 1 and 2**-2."""
    w = np.array([[7, 1], [0.25, 3], [1, 0.3], [0.5, 0.1]], np.float32)
    tiled = matrix(w, "mxfp4", rows=2)
    assert tiled.inner.group_scales.tolist() == [[127], [127], [125], [125]]
    assert tiled.entries()["group_scales"].tolist() == [[127], [125]]
    # Second tile over 1/4: 4, 1.2, 2, 0.4 -> 4, 1, 2, 0.5.
    assert tiled.dequantize().tolist() == [[6, 1], [0, 3], [1, 0.25], [0.5, 0.125]]


@pytest.mark.parametrize("format", BLOCKS)
def test_tiles_of_one_row_are_the_format(format):
    w = normals(20, 96)
    assert scales.quantize_blocks(w, FORMATS[format], 1) == quantize(w, format)
    equal = np.repeat(normals(1, 96), 16, axis=0)  # nothing to share
    shared = scales.quantize_blocks(equal, FORMATS[format], 16)
    assert shared == quantize(equal, format)


@pytest.mark.parametrize(("format", "rows"), [("nvfp4", 16), ("mxfp4", 32)])
def test_coarser_scales_fit_worse(format, rows):
    w = normals(512, 512) * np.exp(normals(512, 1, 3))  # rows of unlike size
    assert mse(w, matrix(w, format, rows).dequantize()) > 1.05 * mse(
        w, matrix(w, format).dequantize()
    )


# -------------------------------------------------------------- Gaussian errors


def test_gaussian_errors():
    """20 000 x 128 normals: section 16's reference errors, unchanged by a turn."""
    w = normals(20_000, 128)
    assert mse(w, matrix(w).dequantize()) == pytest.approx(0.00905, abs=5e-5)
    assert mse(w, matrix(w, "mxfp4").dequantize()) == pytest.approx(0.01323, abs=5e-5)
    # A turn of normal weights gives normal weights.
    assert mse(w, matrix(w, turn=Turn(16, 0)).dequantize()) == pytest.approx(0.00905, abs=5e-5)


# ------------------------------------------------------------------- stochastic


def test_every_probability_is_the_distance():
    """Exhaustive over eighths of the way between all neighbouring levels, both signs."""
    levels = (0, 0.5, 1, 1.5, 2, 3, 4, 6)
    draws = (np.arange(64) / 64).reshape(1, 1, 64)
    for low, high in zip(levels, levels[1:], strict=False):
        for eighth in range(8):
            x = low + (high - low) * eighth / 8
            for sign in (1, -1):
                elements = np.full((1, 1, 64), sign * x, np.float32)
                codes = scales.stochastic_codes(elements, FORMATS["nvfp4"], draws)
                values = np.array(FORMATS["nvfp4"].code_values())[codes]
                assert (values == sign * high).sum() == 8 * eighth
                assert (values == sign * low).sum() == 64 - 8 * eighth
                assert values.mean() == sign * x  # unbiased, exactly
                assert not (codes == 8).any()  # no minus zero


def test_beyond_the_largest_level_nothing_is_drawn():
    elements = np.array([[[6.0, 7.9, -6.0, -100.0]]], np.float32)
    for draw in (0.0, 0.999):
        codes = scales.stochastic_codes(elements, FORMATS["mxfp4"], np.full((1, 1, 4), draw))
        assert codes.tolist() == [[[7, 7, 15, 15]]]


@pytest.mark.parametrize("format", ["nvfp4", "mxfp4"])
def test_the_mean_of_many_roundings_is_the_value(format):
    w = normals(4, 64)
    w[:, ::16] = 4.5  # the largest of every block: 4.5 / 6 or 4.5 / 1, nothing saturates
    w = np.clip(w, -4.5, 4.5)
    total, times = np.zeros_like(w, np.float64), 2000
    random = np.random.default_rng(0)
    for _ in range(times):
        total += scales.quantize_blocks(w, FORMATS[format], random=random).dequantize()
    # A step is at most 2 scales, so one rounding's deviation is at most one; five of them.
    widest = quantize(w, format).scales().max() * 5 / math.sqrt(times)
    top = 6 * quantize(w, format).scales().repeat(FORMATS[format].block, 1)[:, :64]
    free = np.abs(w) <= top  # what E4M3 rounding of the scale leaves outside saturates
    assert free.mean() > 0.9
    assert np.abs(total / times - w)[free].max() < widest
    nearest = quantize(w, format).dequantize()
    assert np.abs(nearest - w).max() > 3 * widest  # which rounding to nearest does not do


def test_neighbours_only():
    w = normals(50, 64)
    nearest = quantize(w, "nvfp4")
    one = scales.quantize_blocks(w, FORMATS["nvfp4"], random=np.random.default_rng(1))
    assert np.array_equal(one.group_scales, nearest.group_scales)
    apart = np.abs(one.values() - nearest.values())
    assert set(np.unique(apart)) <= {0.0, 0.5, 1.0, 2.0} and 0.1 < (apart > 0).mean() < 0.5
    assert mse(w, one.dequantize()) > mse(w, nearest.dequantize())


# -------------------------------------------------------------- bits and storage


@pytest.mark.parametrize("turn", [None, Turn(16, 7)])
@pytest.mark.parametrize(
    ("format", "rows", "bits"),
    [
        ("nvfp4", 1, 4 + 8 / 16),
        ("nvfp4", 16, 4 + 8 / 256),
        ("mxfp4", 1, 4 + 8 / 32),
        ("mxfp4", 32, 4 + 8 / 1024),
        ("mxint8", 32, 8 + 8 / 1024),
    ],
)
def test_bits_are_the_formula_and_the_file(tmp_path, format, rows, bits, turn):
    w = normals(64, 128)
    found = matrix(w, format, rows, turn)
    tensor = 32 * (format == "nvfp4")
    assert found.stored_bits == bits * 64 * 128 + tensor
    assert found.nominal_bits == FORMATS[format].bits
    (one,) = found.passes()
    assert (one.n, one.k, one.format, one.bits) == (64, 128, format, found.stored_bits)
    assert one.group_size == FORMATS[format].block
    save_tensors(tmp_path / "m.safetensors", {"m": found}, {})
    tensors, _ = load_tensors(tmp_path / "m.safetensors")
    assert tensors == {"m": found}
    assert np.array_equal(tensors["m"].dequantize(), found.dequantize())


def test_ragged_tiles_are_restored(tmp_path):
    found = matrix(normals(37, 41), rows=16)
    assert found.entries()["group_scales"].shape == (3, 3)
    save_tensors(tmp_path / "m.safetensors", {"m": found}, {})
    assert load_tensors(tmp_path / "m.safetensors")[0]["m"] == found


def test_contradictions_are_refused():
    found = matrix(normals(32, 32), rows=16)
    with pytest.raises(InputError, match="^scales differ within a tile of 32 rows$"):
        replace(found, tile_rows=32)
    with pytest.raises(InputError, match=r"^tile_rows \(=0\) must be at least 1$"):
        replace(found, tile_rows=0)
    with pytest.raises(InputError, match="^int4-sym has no fixed block of weights$"):
        BlockMatrix(quantize(normals(2, 32), "int4-sym"))
    entries = found.entries()
    entries["group_scales"] = entries["group_scales"][:1]
    with pytest.raises(InputError, match="^group_scales of 16 rows do not cover 32 rows in tiles$"):
        BlockMatrix.restored(found.settings(), entries)


# ---------------------------------------------------------------------- recipes


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "w4g64-int-sym+rht",
            "rht works on formats with a fixed block, not on int4-sym; begin the recipe with one "
            "of mxfp4, mxint8, nvfp4",
        ),
        ("fp16+stochastic", "fp16 leaves weights as they are; stochastic has nothing to do"),
        ("bitnet+scales2d", "scales2d needs a weight format; it does not go with bitnet"),
        (
            "nvfp4+awq+rht",
            "rht does not go with awq; it goes with hadamard, superweight, scales2d, stochastic, "
            "vqlogits",
        ),
        (
            "mxfp4+wanda+scales2d",
            "scales2d does not go with wanda; it goes with hadamard, superweight, rht, stochastic, "
            "vqlogits",
        ),
        ("nvfp4+gptq+stochastic", "gptq and stochastic both choose codes; keep one of them"),
        ("nvfp4+rht+rht", "rht stands twice; keep one of them"),
        ("nvfp4+rht:order=12", "option order of rht is '12': must be a power of two, nearest: 8 "),
        ("nvfp4+stochastic:seed=-1", "option seed of stochastic is '-1': input should be greater"),
        ("nvfp4+scales2d:x=1", "algorithm scales2d has no option 'x'; it has "),
        (
            "nvfp4+a8-tensor-static+rht",
            "rht turns inputs, whose ranges are then others than the static ones of "
            "a8-tensor-static; leave -static out",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(name, message):
    with pytest.raises(InputError) as error:
        resolve_recipe(name)
    assert str(error.value).startswith(f"recipe {name!r}: {message}")
    assert "\n" not in str(error.value)


def test_a_recipe_made_of_fields_is_checked_too():
    step = resolve_recipe("nvfp4+rht").steps
    with pytest.raises(ValueError, match="rht works on formats with a fixed block"):
        Recipe(format="int4-sym", group_size=64, steps=step)
    assert resolve_recipe("nvfp4+rht").compressed and resolve_recipe("nvfp4+scales2d").compressed
    assert not resolve_recipe("nvfp4+stochastic").compressed


NAMES = (
    "nvfp4+rht",
    "nvfp4+scales2d",
    "nvfp4+stochastic:seed=4",
    "mxfp4+rht:order=32,seed=2+scales2d+stochastic",
    "mxfp4+hadamard+stochastic",
)


@pytest.mark.parametrize("name", NAMES)
def test_a_model(tiny, tmp_path, name):
    q = apply_recipe(tiny, name)
    assert q.calibration is None and q.recipe.name == name
    assert apply_recipe(tiny, name).tensors == q.tensors
    full = perplexity(tiny, max_tokens=1024, window=128).perplexity
    found = perplexity(q.model, max_tokens=1024, window=128, linear=q.linear()).perplexity
    assert 0.95 * full < found < 1.2 * full
    path = tmp_path / "q.safetensors"
    save_quantized(path, q)
    back = load_quantized(path, tiny)
    assert back.tensors == q.tensors and back.recipe == q.recipe
    assert back.bits_per_weight == q.bits_per_weight
    again = perplexity(back.model, max_tokens=1024, window=128, linear=back.linear()).perplexity
    assert again == found


def test_true_bits_of_a_model(tiny):
    linears = len(tiny.linear_names())
    weights = sum(n * k for n, k in tiny.config.linear_shapes().values())
    bits = {"nvfp4": 4.5, "nvfp4+rht": 4.5, "nvfp4+scales2d": 4 + 8 / 256}
    for name, each in bits.items():
        assert apply_recipe(tiny, name).stored_bits == each * weights + 32 * linears
    assert apply_recipe(tiny, "mxfp4+scales2d").bits_per_weight == 4 + 8 / 1024


def test_draws_do_not_depend_on_the_order(tiny):
    """Every matrix has its own generator: those of one block alone are the same."""
    q = apply_recipe(tiny, "nvfp4+stochastic:seed=9")
    step = q.recipe.steps[0]
    for layer, name in [(2, "ffn.down"), (0, "attn.q"), (2, "attn.v")]:
        w = tiny.weight(f"blocks.{layer}.{name}").numpy()
        random = step.generator(layer, name)
        alone = scales.quantize_blocks(w, FORMATS["nvfp4"], random=random)
        found = q.tensors[f"blocks.{layer}.{name}"]
        assert isinstance(found, QuantizedTensor) and found == alone
    other = apply_recipe(tiny, "nvfp4+stochastic:seed=10")
    assert all(other.tensors[name] != tensor for name, tensor in q.tensors.items())
    draws = [step.generator(*key).random() for key in [(0, "attn.q"), (0, "attn.k"), (1, "attn.q")]]
    assert len(set(draws)) == 3


def test_linears_that_share_inputs_share_the_turn(tiny):
    q = apply_recipe(tiny, "nvfp4+rht:seed=1")
    assert {tensor.turn for tensor in q.tensors.values()} == {Turn(16, 1)}


def test_inputs_are_rounded_turned(tiny):
    """With quantised inputs the product is that of turned inputs and turned weights."""
    q = apply_recipe(tiny, "nvfp4+a4-nvfp+rht")
    x = torch.from_numpy(normals(6, tiny.config.hidden))
    tensor = q.tensors["blocks.1.attn.q"]
    turned = torch.from_numpy(tensor.turn.apply(x.numpy()))
    expected = fake_activations(turned, q.recipe.activations) @ torch.from_numpy(
        tensor.inner.dequantize().T
    )
    found = q.linear()("blocks.1.attn.q", x.view(2, 3, -1))
    assert torch.allclose(found.flatten(0, 1), expected, atol=1e-4)
    plain = q.linear(quantize_inputs=False)("blocks.1.attn.q", x)
    assert torch.allclose(plain, x @ torch.from_numpy(tensor.dequantize().T), atol=1e-6)


def test_super_weights_keep_their_value(tiny):
    q = apply_recipe(tiny, "nvfp4+superweight:threshold=0.001,share=0+rht")
    kept = [(b.layer, w) for b in q.blocks for w in b.super_weights.get("ffn.down", ())]
    assert kept
    for layer, one in kept:
        assert q.weights(layer, "ffn.down")[one.row, one.column] == one.value
