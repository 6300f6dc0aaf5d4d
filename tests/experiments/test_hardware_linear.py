"""Linears through the PEs: exact integers, stages, super weights, and which PE runs what."""

from dataclasses import replace
from importlib import import_module

import numpy as np
import pytest
import torch

from bitwright.experiments import HardwareLinear, choose_pe, hardware_linear, pes_of
from bitwright.quant import (
    FORMATS,
    InputError,
    QuantizedBlock,
    QuantizedModel,
    apply_recipe,
    load_model,
    parse_activation,
    quantize,
    quantize_activations,
    resolve_recipe,
)
from bitwright.sim import PES, fp16

NAME = "blocks.0.attn.q"
SuperWeight = import_module("bitwright.quant.algorithms.base").SuperWeight  # not part of the face


@pytest.fixture(scope="module")
def tiny():
    return load_model("tiny")


@pytest.fixture(scope="module")
def quantized(tiny):
    """The tiny model under a recipe without data, each quantised once."""
    made = {}

    def under(name):
        if name not in made:
            made[name] = apply_recipe(tiny, name)
        return made[name]

    return under


def inputs(k, seed=0):
    """[2, 3, k], with an outlier channel as language models have them."""
    x = torch.from_numpy(np.random.default_rng(seed).standard_normal((2, 3, k)).astype(np.float32))
    x[..., 5] *= 20
    return x


def linear(model, stage="scale unit", pe=None):
    return HardwareLinear(model, pes_of(model, pe), stage)


# ---------------------------------------------------------------- integers, from the codes


def half_units(t):
    """Twice each value, int64 [rows, k], from codes, zero points and the text of formats.py."""
    codes = t.codes.astype(np.int64)
    top = 1 << t.format.bits
    signed = np.where(codes >= top // 2, codes - top, codes)
    if t.format.kind == "int-sym":
        return 2 * signed
    if t.format.name.endswith("-sym"):  # dINT: +-(2**(bits-1) - 1) mean +-1/2
        special = top // 2 - 1
        return np.where(np.abs(signed) == special, np.sign(signed), 2 * signed)
    column = np.arange(t.k) // t.group_size
    levels = 2 * (codes - t.zero_points.astype(np.int64)[:, column])
    if t.format.kind == "dint-asym":
        return np.where(codes == top - 2, 1, np.where(codes == top - 1, -1, levels))
    return levels


def exact_linear(x, act, w):
    """y [m, n] float32 from int64 sums, by "Outside the PE" of docs/numerics.md."""
    y = np.zeros((act.n, w.n), np.float32)
    left, right = half_units(act), half_units(w)
    for group in range(w.groups):
        columns = slice(group * w.group_size, (group + 1) * w.group_size)
        sums = left[:, columns] @ right[:, columns].T  # in quarters
        quarters = sums.astype(np.float32)  # below 2**24: exact
        assert np.abs(sums).max() < 1 << 24
        y += quarters * (np.outer(act.scales()[:, 0], w.scales()[:, group]) * np.float32(0.25))
    return y


INTEGER = [
    *(f"w4{g}a8-dint-{kind}" for g in ("", "g48") for kind in ("sym", "asym")),
    "w3a8-dint",
    "w8a8-int",
    *(
        f"w{bits}g48-int-{kind}+a{act}"
        for bits, kind in (("2", "asym"), ("2b", "asym"), ("4", "sym"), ("4", "asym"))
        for act in ("4", "6", "8", "4-asym", "6-asym", "8-asym")
    ),
    "w2-int-asym+a8-asym",
    "w4g48-int-s8+a8",
]


@pytest.mark.parametrize("recipe", INTEGER)
def test_a_linear_is_exact_integer_arithmetic(quantized, recipe):
    model = quantized(recipe)
    w = model.tensors[NAME]
    x = inputs(w.k)
    act = quantize_activations(x.reshape(6, -1), model.recipe.activations)
    y = linear(model)(NAME, x)
    assert y.shape == (2, 3, w.n) and y.dtype == torch.float32
    assert np.array_equal(y.reshape(6, -1).numpy(), exact_linear(x, act, w))


@pytest.mark.parametrize("recipe", INTEGER[::4])
def test_integer_accumulators_change_nothing_but_the_order_of_additions(quantized, recipe):
    """Within the derived bound in float64, plus half an ulp of float32 for each of both."""
    model = quantized(recipe)
    w = model.tensors[NAME]
    x = inputs(w.k)
    plain, summed = (linear(model, s)(NAME, x).double() for s in ("activations", "accumulator"))
    act = quantize_activations(x.reshape(6, -1), model.recipe.activations)
    left = hardware_linear.taken_values(act)
    right = hardware_linear.stored_values(PES["int8"], w)
    bound = torch.from_numpy(hardware_linear.exact_product_bound(left, right, w.groups))
    allowed = bound.reshape(plain.shape) + 2.0**-24 * (plain.abs() + summed.abs())
    assert ((plain - summed).abs() <= allowed).all()
    # The bound is 2**-29 of an ulp of most sums, so hardly any float32 differs.
    assert (plain != summed).sum() <= 1


@pytest.mark.parametrize("act", ["a8-tensor", "a8-asym-g48", "a8-asym-tensor"])
def test_activations_reach_the_pe_as_they_are_quantised(quantized, act):
    model = quantized(f"w4g48-int-asym+{act}")
    w = model.tensors[NAME]
    x = inputs(w.k)
    taken = quantize_activations(x.reshape(6, -1), parse_activation(act))
    y = linear(model)(NAME, x).reshape(6, -1).numpy()
    assert np.array_equal(y, PES["btc"].gemm(taken, w))


def test_static_ranges_reach_the_pe(tiny):
    recipe = resolve_recipe("w4-int+a8-tensor-static")
    plain = apply_recipe(tiny, "w4-int")
    limits = {"attn_in": (-0.5, 0.75), "attn_out": (-1, 1), "ffn_in": (-1, 1), "ffn_out": (-1, 1)}
    blocks = [replace(block, limits=limits) for block in plain.blocks]
    model = QuantizedModel(tiny, recipe, blocks)
    w = model.tensors[NAME]
    x = inputs(w.k)
    taken = quantize_activations(x.reshape(6, -1), recipe.activations, limits["attn_in"])
    y = linear(model)(NAME, x).reshape(6, -1).numpy()
    assert np.array_equal(y, PES["int4x8"].gemm(taken, w))


# ---------------------------------------------------------------- FP16 activations


@pytest.mark.parametrize("recipe", ["w4g48-bitmod", "w3-bitmod", "w4g48-int-asym-s8"])
def test_the_bit_serial_pe_gets_fp16_activations(quantized, recipe):
    model = quantized(recipe)
    w = model.tensors[NAME]
    x = inputs(w.k)
    rows = x.reshape(6, -1).numpy()
    y = linear(model)(NAME, x).reshape(6, -1).numpy()
    assert np.array_equal(y, PES["bitmod"].gemm(rows, w))
    half = rows.astype(np.float16)
    summed = linear(model, "accumulator")(NAME, x).reshape(6, -1).numpy()
    exact = PES["bitmod"].gemm(half, w, exact_scales=True)
    assert np.array_equal(summed, exact.astype(np.float32))
    # With one group: 24 bits times a channel scale of 24 are exact in float64, so one rounding.
    assert (w.groups == 1) == np.array_equal(summed, y)
    assert np.abs(summed - y).max() < 1e-5 * np.abs(y).max()


def test_fp16_weights_run_on_the_fp16_pe(tiny, quantized):
    model = quantized("fp16")
    x = inputs(tiny.config.hidden)
    w = tiny.weight(NAME).numpy()
    layer = linear(model)
    y = layer(NAME, x).reshape(6, -1).numpy()
    assert np.array_equal(y, PES["fp16"].gemm(x.reshape(6, -1).numpy(), w))
    assert layer.macs == 6 * w.size
    rounded = w.astype(np.float16).astype(np.float64)
    plain = linear(model, "format")(NAME, x).reshape(6, -1).numpy()
    exact = x.reshape(6, -1).numpy().astype(np.float64) @ rounded.T
    assert np.array_equal(plain, exact.astype(np.float32))


def test_early_stages_are_products_in_float64(quantized):
    model = quantized("w4g48-bitmod")
    w = model.tensors[NAME]
    x = inputs(w.k)
    rows = x.reshape(6, -1).numpy().astype(np.float64)
    values = hardware_linear.stored_values(PES["bitmod"], w)
    half = rows.astype(np.float16).astype(np.float64)
    for stage, acts in (("format", rows), ("activations", half)):
        y = linear(model, stage)(NAME, x).reshape(6, -1).numpy()
        assert np.array_equal(y, (acts @ values.T).astype(np.float32))


def test_activations_beyond_fp16_are_refused(quantized):
    model = quantized("w4g48-bitmod")
    x = inputs(model.tensors[NAME].k)
    x[1, 0, 7] = -70000.0
    message = r"^activation -70000\.0 of token 3, channel 7 is not finite in FP16; quantise"
    with pytest.raises(InputError, match=message):
        linear(model)(NAME, x)


# ---------------------------------------------------------------- super weights


@pytest.mark.parametrize("recipe", ["w4g48a8-dint", "w4g48-bitmod", "w1-binary+a8"])
@pytest.mark.parametrize("stage", hardware_linear.STAGES)
def test_super_weights_are_multiplied_beside_the_pe(tiny, quantized, recipe, stage):
    """The other rows stay; the row gets (value - rounded) * x[column], x as the PE gets it."""
    plain = quantized(recipe)
    kept = (SuperWeight(3, 5, 1.5), SuperWeight(3, 6, -0.25))
    first = replace(plain.blocks[0], super_weights={"attn.q": kept})
    model = QuantizedModel(tiny, plain.recipe, [first, *plain.blocks[1:]])
    w = plain.tensors[NAME]
    x = inputs(w.k)
    before, after = (linear(m, stage)(NAME, x).reshape(6, -1).numpy() for m in (plain, model))
    others = np.arange(w.n) != 3
    assert np.array_equal(before[:, others], after[:, others])
    act, rows = plain.recipe.activations, x.reshape(6, -1).numpy()
    if stage == "format":
        taken = rows
    elif act is None:
        taken = rows.astype(np.float16).astype(np.float32)
    else:
        taken = quantize_activations(rows, act).dequantize()
    if stage == "scale unit":
        expected = before[:, 3]
        for one in kept:
            rounded = w.dequantize()[3, one.column]
            expected = expected + np.float32(one.value - float(rounded)) * taken[:, one.column]
        assert np.array_equal(after[:, 3], expected)
        return
    wide = before[:, 3].astype(np.float64)
    for one in kept:
        wide += (one.value - float(w.dequantize()[3, one.column])) * taken[:, one.column]
    # One more rounding of the sum before, and one of the sum after.
    allowed = 2.0**-24 * (np.abs(before[:, 3]) + np.abs(wide)) + 1e-12
    assert (np.abs(after[:, 3] - wide) <= 1.01 * allowed).all()


# ---------------------------------------------------------------- which PE

CHOICES = [
    ("w4a8-dint", "dint4"),
    ("w3a8-dint-asym", "dint3-asym"),
    ("w4-int+a8", "int4x8"),
    ("w3-int+a4", "int4"),
    ("w8-int+a8", "int8"),
    ("w8-int+a4", "int8x4"),
    ("w4-int+a6", "int4x6"),
    ("w4-int+a8-asym", "btc"),
    ("w2-int-asym+a8", "btc"),
    ("w2b-int-asym+a8-asym", "btc"),
    ("w4-int+a8+abq", "btc"),
    ("w4g48-bitmod", "bitmod"),
    ("w4g48-int-asym-s8", "bitmod"),
    ("w4g48-int-s8", "bitmod"),
    ("w4g48-int", "fp16xint4"),
    ("w6g48-int", "fp16xint8"),
    ("fp16", "fp16"),
    ("w2-ternary+a8", "ternary"),
    ("w1-binary+a8", "lut"),
    ("w4-ant+a4-ant", "ant"),
    ("w5-flint+a5-flint", "ant5"),
    ("w4-olive+a4-olive", "olive"),
    ("mxfp4+a4-mxfp", "mxfp4"),
    ("mxint8+a8-mxint", "mxint8"),
    ("nvfp4+a4-nvfp", "nvfp4"),
]


def example(name, k=96):
    """The recipe's activations, a tensor in its format, and whether ABQ made it."""
    recipe = resolve_recipe(name)
    w = None
    if recipe.format is not None:
        w = quantize(np.zeros((2, k), np.float32), recipe.weights_only)
    return w, k, recipe.activations, any(step.name == "abq" for step in recipe.steps)


@pytest.mark.parametrize(("recipe", "pe"), CHOICES, ids=[recipe for recipe, _ in CHOICES])
def test_formats_decide_the_pe(recipe, pe):
    assert choose_pe(*example(recipe)).name == pe


def test_the_binary_tensor_core_has_as_many_planes_as_activations_have_bits():
    assert [
        choose_pe(*example(f"w2-int-asym+a{bits}")).step_cycles(FORMATS["int2-asym"])
        for bits in (4, 8)
    ] == [8, 16]


def test_layers_of_other_formats_run_on_other_pes(tiny, quantized):
    dint4, dint5 = (quantized(f"w{bits}a8-dint") for bits in (4, 5))
    mixed = [
        QuantizedBlock(b.layer, {**b.tensors, "ffn.down": c.tensors["ffn.down"]}, b.floats)
        for b, c in zip(dint4.blocks, dint5.blocks, strict=True)
    ]
    pes = pes_of(QuantizedModel(tiny, dint4.recipe, mixed))
    assert {name: pe.name for name, pe in pes.items() if name.startswith("blocks.1.")} == {
        **{f"blocks.1.attn.{c}": "dint4" for c in "qkvo"},
        **{f"blocks.1.ffn.{c}": "dint4" for c in ("gate", "up")},
        "blocks.1.ffn.down": "dint5",
    }


def test_a_named_pe_runs_all_layers(quantized):
    for recipe, name in (("w4g48-int", "fp16"), ("w4-int+a8", "btc"), ("w3a8-dint", "dint3")):
        pes = pes_of(quantized(recipe), name)
        assert {pe.name for pe in pes.values()} == {name}
    assert isinstance(pes_of(quantized("w4g48-int"), "fp16acc16")[NAME], fp16.Fp16PE)


REFUSED = [
    (
        "w4-dint+a4",
        None,
        "no PE runs weight format dint4-sym with a4 activations: "
        "the dint4 PE takes int8-sym activations, not int4-sym",
    ),
    (
        "w4-dint",
        None,
        "no PE runs weight format dint4-sym with FP16 activations: the bitmod PE cannot run weight "
        "format dint4-sym; it runs int2..int8-sym, int2..int7-asym and the 3- and 4-bit "
        "floating-point formats; the dint4 PE takes int8-sym activations, not FP16",
    ),
    (
        "w4g48-int-asym",
        None,
        "no PE runs weight format int4-asym with FP16 activations: scale_format fp16 does not run "
        "on the bitmod PE, whose scale unit takes 8-bit scales; quantise with scale_format int8 "
        "(recipe suffix -s8); the btc PE takes int2 .. int8 activations, not FP16",
    ),
    (
        "w6-fp-e2m3",
        None,
        "no PE runs weight format fp6-e2m3 with FP16 activations: none has a decoder for it; "
        "pe 'fp16' runs it dequantised",
    ),
    (
        "w4-bitmod+a8",
        None,
        "no PE runs weight format bitmod4 with a8 activations: "
        "the bitmod PE takes FP16 activations, not int8-sym",
    ),
    (
        "fp16+a8",
        None,
        "no PE runs FP16 weights with a8 activations; leave them in FP16, or quantise the weights",
    ),
    (
        "w4g48-int-asym+a8-g32",
        "btc",
        "the btc PE takes activations in one group, or in the weights' groups of 48, not in groups "
        "of 32",
    ),
    (
        "w4g48-bitmod",
        "dint4",
        "the dint4 PE cannot run weight format bitmod4; it runs dint4-sym",
    ),
    ("w4a8-dint", "int8", "the int8 PE cannot run weight format dint4-sym; it runs int2-sym, "),
    ("w4-int+a4", "int8", "the int8 PE takes int8-sym activations, not int4-sym"),
    ("w4-int+a8", "fp16", "the fp16 PE takes FP16 activations, not int8-sym"),
    ("fp16", "btc", "the btc PE cannot run FP16 weights; use a recipe with quantised ones"),
    ("w4a8-dint", "dint44", "unknown pe 'dint44'; did you mean dint4"),
]


@pytest.mark.parametrize(("recipe", "pe", "message"), REFUSED, ids=lambda v: str(v)[:40])
def test_what_cannot_run_is_refused_before_any_work(tiny, recipe, pe, message):
    with pytest.raises(InputError) as refused:
        hardware_linear.check_recipe(tiny.config, resolve_recipe(recipe), pe)
    assert str(refused.value).startswith(f"blocks.0.attn.q: {message}")


def test_all_formats_of_a_mixed_recipe_are_checked(tiny):
    recipe = resolve_recipe("w4a8-dint+mixed:formats=dint4-sym|int4-sym")
    hardware_linear.check_recipe(tiny.config, recipe)
    with pytest.raises(InputError, match="the dint4 PE cannot run weight format int4-sym"):
        hardware_linear.check_recipe(tiny.config, recipe, "dint4")


def test_progress_counts_layers(quantized):
    model, seen = quantized("w4a8-dint"), []
    w = model.tensors[NAME]
    layer = HardwareLinear(
        model,
        pes_of(model),
        tokens=6,
        progress=lambda done, total, what: seen.append((done, total, what)),
    )
    layer(NAME, inputs(w.k))
    weights = sum(n * k for n, k in model.base.config.linear_shapes().values())
    assert seen == [(6 * w.n * w.k, 6 * weights, f"scale unit, {NAME}")]
    assert layer.macs == 6 * w.n * w.k
