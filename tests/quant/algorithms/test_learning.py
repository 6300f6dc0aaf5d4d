"""Learned clipping and scales: the rounding's gradient, the losses, and what a bad run leaves."""

import importlib
import math
import re

import numpy as np
import pytest
import torch

from bitwright.quant import (
    FORMATS,
    SITES,
    Calibration,
    InputError,
    apply_recipe,
    load_model,
    perplexity,
    quantize,
    resolve_recipe,
)

learning = importlib.import_module("bitwright.quant.algorithms.learning")
abq = importlib.import_module("bitwright.quant.algorithms.abq")
CALIBRATION = Calibration(sequences=4, length=64)
FORMAT_NAMES = list(FORMATS)


@pytest.fixture(scope="module")
def tiny():
    return load_model("tiny")


def _recipe(name, group):
    from bitwright.quant import Recipe

    return Recipe(format=name, group_size=group)


def bounds(w, size, share=1.0):
    parts = torch.split(w.detach(), size, dim=1)
    low = torch.stack([p.amin(1).clamp(max=0) for p in parts], 1) * share
    high = torch.stack([p.amax(1).clamp(min=0) for p in parts], 1) * share
    return low.requires_grad_(True), high.requires_grad_(True)


@pytest.mark.parametrize("name", FORMAT_NAMES)
@pytest.mark.parametrize("share", [1.0, 0.7], ids=["whole", "clipped"])
def test_rounding_is_what_is_stored(name, share):
    """Forward: quantize(clipped).dequantize() bit for bit, ragged last group included."""
    w = torch.randn(6, 72, generator=torch.Generator().manual_seed(1))
    recipe = _recipe(name, FORMATS[name].block or 16)
    low, high = bounds(w, recipe.group_size, share)
    out = learning.rounded(w, low, high, recipe)
    wide = [b.detach().repeat_interleave(recipe.group_size, 1)[:, :72] for b in (low, high)]
    clipped = torch.minimum(torch.maximum(w, wide[0]), wide[1]).numpy()
    assert np.array_equal(out.detach().numpy(), quantize(clipped, recipe).dequantize())


def test_the_gradient_of_symmetric_integers_by_hand():
    """int3-sym, one group: w = (2, -0.7, 0.9, -5), clipped to +-3, delta = 3 / 3 = 1.

    Rounded: 2, -1, 1, -3. Residuals over delta: 0, -0.3, 0.1, 0. The weight -5 is clipped, so its
    gradient goes to the lower bound. Both bounds are equally large; high > -low is false, so delta
    hangs on the lower bound with slope -1/3.
    With gradients (1, 2, 3, 4): to delta 2 * -0.3 + 3 * 0.1 = -0.3; to low 4 + -0.3 * -1/3 = 4.1.
    """
    w = torch.tensor([[2.0, -0.7, 0.9, -5.0]], requires_grad=True)
    low, high = (torch.tensor([[b]], requires_grad=True) for b in (-3.0, 3.0))
    out = learning.rounded(w, low, high, _recipe("int3-sym", 4))
    assert out.tolist() == [[2, -1, 1, -3]]
    out.backward(torch.tensor([[1.0, 2.0, 3.0, 4.0]]))
    assert w.grad.tolist() == [[1, 2, 3, 0]]
    assert low.grad.item() == pytest.approx(4.1)
    assert high.grad.item() == 0


def test_the_gradient_of_asymmetric_integers_by_hand():
    """int2-asym, low -1, high 5: delta = 2, zero point 1 (0.5 rounds to even 0: see below).

    zero = rint(0.5) = 0, so codes 0 .. 3 are 0, 2, 4, 6. w = (6, 3.2, -1): clipped 5, 3.2, -1.
    5 / 2 = 2.5 rounds to 2: 4. 3.2 / 2 = 1.6: 4. -1 / 2 = -0.5 rounds to 0: 0.
    Residuals over delta: -0.5, 0.4, 0.5. Gradients (1, 1, 1): to delta 0.4; delta = (high - low)/3.
    w[0] is above the bound: its gradient goes to high. -1 equals the bound: it keeps its own.
    """
    w = torch.tensor([[6.0, 3.2, -1.0]], requires_grad=True)
    low, high = (torch.tensor([[b]], requires_grad=True) for b in (-1.0, 5.0))
    out = learning.rounded(w, low, high, _recipe("int2-asym", 3))
    assert out.tolist() == [[4, 4, 0]]
    out.sum().backward()
    assert w.grad.tolist() == [[0, 1, 1]]
    assert high.grad.item() == pytest.approx(1 + 0.4 / 3)
    assert low.grad.item() == pytest.approx(-0.4 / 3)


def test_the_gradient_of_bitmod_goes_to_the_side_that_sets_its_scale():
    """The scale hangs on the larger bound, with 1 / absmax of the grid that the group chose."""
    w = torch.tensor([[6.0, 1.1, -0.4, 0.2]], requires_grad=True)
    low, high = bounds(w, 4)
    recipe = _recipe("bitmod3", 4)
    out = learning.rounded(w, low, high, recipe)
    tensor = quantize(w.detach().numpy(), recipe)
    grid = FORMATS["bitmod3"].absmax(int(tensor.selectors[0, 0]))
    residual = (out - w).detach().numpy() / tensor.scales()
    out.sum().backward()
    assert high.grad.item() == pytest.approx(residual.sum() / grid, abs=1e-6)
    assert low.grad.item() == 0


def test_attention_loss_by_hand():
    """Rows (1/4, 3/4) against (1/2, 1/2): KL 0.25 ln(1/2) + 0.75 ln(3/2) = 0.1308, and back
    0.5 ln 2 + 0.5 ln(2/3) = 0.1438."""
    left, right = torch.tensor([[[0.25, 0.75]]]), torch.tensor([[[0.5, 0.5]]])
    loss = abq.attention_loss(left, right, again=False).item()
    forth = 0.25 * math.log(0.5) + 0.75 * math.log(1.5)
    back = 0.5 * math.log(2) + 0.5 * math.log(2 / 3)
    assert loss == pytest.approx(forth + back, rel=1e-5)


def test_the_released_code_applies_the_softmax_again():
    """softmax(1/4, 3/4) = (1, e**0.5) / (1 + e**0.5) against (1/2, 1/2)."""
    left, right = torch.tensor([[[0.25, 0.75]]]), torch.tensor([[[0.5, 0.5]]])
    p = 1 / (1 + math.exp(0.5))
    q = 1 - p
    forth = p * math.log(2 * p) + q * math.log(2 * q)
    back = -0.5 * math.log(2 * p) - 0.5 * math.log(2 * q)
    loss = abq.attention_loss(left, right, again=True).item()
    assert loss == pytest.approx(forth + back, rel=1e-4)


def test_log_cosine_loss_by_hand():
    """Cosines 1 and 0 have the mean 1/2: ln 2."""
    out = torch.tensor([[[1.0, 0.0], [0.0, 2.0]]])
    target = torch.tensor([[[3.0, 0.0], [1.0, 0.0]]])
    assert abq.log_cosine_loss(out, target).item() == pytest.approx(math.log(2))


def test_attention_maps_are_those_of_attention(tiny):
    """Averaged over heads and multiplied with values they give the mean of the heads' outputs."""
    from bitwright.quant import BlockTask, attention, rotary_table

    config = tiny.config
    task = BlockTask(0, config, resolve_recipe("int4"), {}, {})
    g = torch.Generator().manual_seed(0)
    q = torch.randn(1, 9, config.heads * config.head_dim, generator=g)
    k = torch.randn(1, 9, config.kv_heads * config.head_dim, generator=g)
    shared = torch.randn(1, 9, config.head_dim, generator=g)
    v = shared.repeat(1, 1, config.kv_heads)  # the same values in every head
    y = attention(config, q, k, v, rotary_table(config, 9, torch.float32))
    mean = y.view(1, 9, config.heads, config.head_dim).mean(2)
    assert torch.allclose(abq.attention_map(task, q, k) @ shared, mean, atol=1e-5)


@pytest.mark.parametrize("algorithm", ["omniquant", "abq"])
def test_learning_lowers_the_loss_that_it_learns(tiny, algorithm):
    """Every block: the loss over all its sequences, told in the report if it did not fall."""
    recipe = f"w2g32-int-asym+{algorithm}:sequences=4,epochs=8,clip_rate=0.05"
    learned = apply_recipe(tiny, recipe, calibration=CALIBRATION)
    plain = apply_recipe(tiny, "w2g32-int-asym")
    kept = [note for note in learned.notes if "did not fall" in note]
    assert len(kept) < tiny.config.layers
    ours = perplexity(learned.model, linear=learned.linear(), max_tokens=1024).perplexity
    theirs = perplexity(plain.model, linear=plain.linear(), max_tokens=1024).perplexity
    assert ours < theirs


@pytest.mark.parametrize("name", FORMAT_NAMES)
def test_every_format_can_be_learned(tiny, name):
    recipe = _recipe(name, FORMATS[name].block or 32)
    step = "omniquant:sequences=1,epochs=1,batch=1,scale=on"
    result = apply_recipe(
        tiny, f"{recipe.name}+{step}", calibration=Calibration(sequences=1, length=16)
    )
    assert all(qt.format.name == name for qt in result.tensors.values())


def test_the_same_seed_learns_the_same_bits(tiny):
    recipe = "w3g32a8-int-asym+abq:sequences=2,epochs=2"
    first, second = (apply_recipe(tiny, recipe, calibration=CALIBRATION) for _ in range(2))
    assert first.tensors == second.tensors


def test_scales_are_learned_where_activations_are_quantised(tiny):
    norm = tiny.weight("blocks.0.attn_norm")

    def learned(recipe):
        done = apply_recipe(tiny, recipe, calibration=CALIBRATION)
        return not torch.equal(done.model.weight("blocks.0.attn_norm"), norm)

    options = "omniquant:sequences=2,epochs=2"
    assert learned(f"w2g32a8-int-asym+{options}")
    assert not learned(f"w2g32-int-asym+{options}")
    assert learned(f"w2g32-int-asym+{options},scale=on")
    assert not learned(f"w2g32a8-int-asym+{options},scale=off")


def test_compensation_is_learned_in_the_first_three_and_last_four_blocks(tiny, monkeypatch):
    seen = {}

    def learn(block, loss, schedule, **options):
        seen[block.layer] = options["compensate"]

    monkeypatch.setattr(abq, "learn", learn)
    from bitwright.quant import BlockTask

    class Config:
        layers = 12

    step = resolve_recipe("w4a4-abq").steps[0]
    for layer in range(12):
        step.apply(BlockTask(layer, Config(), resolve_recipe("w4a4-abq"), {}, {}))
    assert [layer for layer, on in seen.items() if on] == [0, 1, 2, 8, 9, 10, 11]


def test_compensation_changes_what_is_rounded_and_not_the_float_block(tiny):
    recipe = "w2g32-int-asym+abq:sequences=2,epochs=4,compensation_rate=0.1"
    done = apply_recipe(tiny, recipe, calibration=CALIBRATION)
    without = apply_recipe(tiny, recipe + ",compensation=false", calibration=CALIBRATION)
    assert done.tensors["blocks.0.ffn.down"] != without.tensors["blocks.0.ffn.down"]
    assert done.bits_per_weight == without.bits_per_weight


@pytest.mark.parametrize("rate", ["1e30"], ids=["far too fast"])
def test_a_block_that_diverges_is_restored_and_told(tiny, rate):
    recipe = f"w3g32-int-asym+omniquant:sequences=2,epochs=3,scale=on,scale_rate={rate}"
    done = apply_recipe(tiny, recipe, calibration=CALIBRATION)
    assert done.notes == tuple(
        f"blocks.{layer}: omniquant: loss became NaN or infinite; block restored"
        for layer in range(tiny.config.layers)
    )
    assert done.tensors == apply_recipe(tiny, "w3g32-int-asym").tensors


def test_a_run_that_diverges_stops_if_asked(tiny):
    recipe = "w3g32-int-asym+omniquant:sequences=2,scale=on,scale_rate=1e30,on_nan=stop"
    message = (
        "omniquant: the loss of block 0 became NaN or infinite; lower its learning rates, or let "
        "it go on with on_nan=restore"
    )
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        apply_recipe(tiny, recipe, calibration=CALIBRATION)


def test_progress_tells_steps_and_loss(tiny):
    told = []
    apply_recipe(
        tiny,
        "w3g32-int-asym+omniquant:sequences=2,epochs=2,batch=1",
        calibration=CALIBRATION,
        progress=lambda *event: told.append(event),
    )
    done = [event[0] for event in told]
    assert done == sorted(done) and done[-1] == told[-1][1] == 1000 * tiny.config.layers
    assert sum("omniquant: block 0, loss" in event[2] for event in told) == 4


def test_sites_cover_every_linear(tiny):
    names = {name.split(".", 2)[2] for name in tiny.linear_names()}
    assert {name for names in SITES.values() for name in names} == names
