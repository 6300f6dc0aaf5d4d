"""The zoo in the co-design run: PEs that fit, stored bits that are moved, refusals elsewhere."""

import json
from dataclasses import replace
from importlib import import_module

import numpy as np
import pytest

from bitwright.experiments import ZOO, CodesignConfig, codesign, logic_energy, record, zoo_recipes
from bitwright.quant import (
    LINEARS,
    Calibration,
    InputError,
    QuantizedModel,
    QuantizedTensor,
    Text,
    apply_recipe,
    load_model,
    load_quantized,
    load_text,
    quantize,
    resolve_recipe,
    save_quantized,
)
from bitwright.rtl import resolve_technology, tile_energy
from bitwright.sim import simulate_model

cost = import_module("bitwright.experiments.compressed_cost")
#: A model that becomes smaller, then rounded as any other.
SMALLER = "w4g64-int-sym-s8+llmpruner"
OWN = [entry.recipe for entry in ZOO if resolve_recipe(entry.recipe).compressed]


@pytest.fixture(scope="module")
def tiny():
    return load_model("tiny")


@pytest.fixture(scope="module")
def quantised(tiny):
    """Every recipe of the zoo on the shipped model, with little data."""
    few = Calibration(sequences=4, length=64)
    return {name: apply_recipe(tiny, name, calibration=few) for name in (*OWN, SMALLER)}


def test_every_entry_is_another_recipe():
    names = [recipe.name for recipe in zoo_recipes()]
    assert len(set(names)) == len(names) == len(ZOO) and len(OWN) >= 6
    for entry in ZOO:
        assert resolve_recipe(entry.recipe).name == entry.recipe  # written as it is shown
        assert entry.source and entry.ran


@pytest.mark.parametrize("name", [*OWN, SMALLER])
def test_bits_are_those_of_the_file(quantised, tiny, tmp_path, name):
    """True bits are the packed bytes: those of the entries in the file, nothing left out."""
    from safetensors import safe_open

    q = quantised[name]
    save_quantized(tmp_path / "q.safetensors", q)
    bits = 0
    with safe_open(tmp_path / "q.safetensors", framework="np") as file:
        for key in file.keys():
            if not key.endswith(".float"):
                bits += 8 * file.get_tensor(key).nbytes
    kept = sum(len(w) for block in q.blocks for w in block.super_weights.values())
    assert bits == q.stored_bits - 48 * kept
    whole = sum(n * k for n, k in tiny.config.linear_shapes().values())
    weights = sum(tensor.shape[0] * tensor.shape[1] for tensor in q.tensors.values())
    assert q.bits_per_weight == q.stored_bits / weights
    assert weights == whole * q.parameters_kept and (weights < whole) == (name == SMALLER)
    back = load_quantized(tmp_path / "q.safetensors", tiny)
    assert back.tensors == q.tensors and back.recipe == q.recipe


@pytest.mark.parametrize("name", OWN)
def test_passes_read_what_is_stored(quantised, name):
    """Hardware reads every stored bit; of nested widths those of the width it runs at."""
    q = quantised[name]
    passes = cost.layer_passes(q)
    read = sum(one.bits for layers in passes.values() for layer in layers for one in layer)
    stored = [
        getattr(tensor, "traffic_bits", lambda own=tensor.stored_bits: own)()
        for tensor in q.tensors.values()
    ]
    assert read == sum(stored) <= q.stored_bits
    pes = ("lut", "bitmod", "fp16") if "+a4" not in name else ("mxfp4", "nvfp4")
    assert cost.placed(q.recipe, passes) in pes


def ones(product):
    """Inputs that show a product's weights."""
    return np.eye(product.shape[1], dtype=np.float32)


@pytest.mark.parametrize("name", OWN)
def test_operands_are_those_of_the_passes(quantised, name):
    for block in quantised[name].blocks[:2]:
        for tensor in block.tensors.values():
            if isinstance(tensor, QuantizedTensor):
                continue
            passes, operands = tensor.passes(), tensor.operands(ones(tensor))
            assert len(passes) == len(operands)
            for one, (x, w) in zip(passes, operands, strict=True):
                assert x.dtype == np.float32 and x.shape[1] == one.k
                assert w.shape == (one.n, one.k), one
                if isinstance(w, QuantizedTensor):
                    assert w.format.name == one.format
                    assert one.group_size is None or w.group_size == one.group_size
                else:
                    assert w.dtype == np.float32


def values(q, x):
    """The numbers of all passes' weights, and their inputs."""
    found = q.operands(x)
    return [(x, w.dequantize() if isinstance(w, QuantizedTensor) else w) for x, w in found]


def test_operands_hold_the_methods_own_codes(quantised):
    """Every stored sign, code and value is in one of the operands, at its place."""

    def matrix(name, linear="attn.q"):
        q = quantised[name].blocks[1].tensors[linear]
        rng = np.random.default_rng(0)
        x = rng.integers(-8, 9, (5, q.shape[1])).astype(np.float32)
        return q, x, values(q, x)

    q, x, ((seen, w),) = matrix("bitnet+a8")
    assert np.array_equal(seen, x) and np.array_equal(w * q.gamma, q.dequantize())
    q, x, planes = matrix("dbllm+a8")
    for (_, w), plane in zip(planes, (q.plane1, q.plane2), strict=True):
        assert np.array_equal(w > 0, plane) and (w != 0).any()
    for name in ("billm+a8", "billm:mode=paper+a8"):
        q, x, ((_, inner), (_, outer), *masks, (gathered, second)) = matrix(name)
        assert np.array_equal(inner + outer > 0, q.signs) and (inner * outer == 0).all()
        assert np.array_equal(outer != 0, q.second & ~q.salient)
        assert np.array_equal(second > 0, q.second[:, q.salient])
        assert np.array_equal(gathered, x[:, q.salient])
        assert [np.array_equal(mask, outer != 0) for _, mask in masks] == [True] * len(masks)
    q, x, (first, u, third, w) = matrix("littlebit:bits=1.2+a8")
    row, more = (path.row.astype(np.float32) for path in (q.main, q.residual))
    y = (u[0] @ u[1].T) * row + (w[0] @ w[1].T) * more
    assert np.array_equal(y, q.forward(x))
    assert np.array_equal(first[1] > 0, q.main.v) and np.array_equal(third[1] > 0, q.residual.v)
    q, x, ((_, router), (scaled, signs)) = matrix("binarymos:steps=32")
    assert np.array_equal(
        scaled @ signs.T * (q.gates(x) @ q.outputs.astype(np.float32)), q.forward(x)
    )
    assert np.array_equal(router, q.router)
    q, x, ((_, w),) = matrix("fp16+wanda")
    assert np.array_equal(w, q.dequantize()) and 0.45 < (w == 0).mean() < 0.55
    q, x, ((few, w),) = matrix("w4g64-int-sym-s8+wanda:pattern=2:4")
    assert np.array_equal(w.reshape(-1), q.dequantize()[q.mask])
    assert np.array_equal(few.reshape(5, -1, 2), x.reshape(5, -1, 4)[..., :2])
    q, x, ((_, binary), (_, salient)) = matrix("pbllm")
    assert np.array_equal(binary, np.where(q.mask, 0, q.dequantize()))
    assert np.array_equal(salient.reshape(-1)[: q.mask.sum()], q.dequantize()[q.mask])
    q, x, ((turned, w),) = matrix("nvfp4+rht")
    # Whole numbers turned by fourths are exact; a weight in its own basis is rounded once.
    back = q.dequantize().astype(np.float64)
    error = np.abs(turned.astype(np.float64) @ w.T - x @ back.T)
    assert (error <= 2**-23 * (np.abs(x) @ np.abs(back).T)).all()
    for name in ("anyprecision", "aqlm"):
        q, x, ((_, w),) = matrix(name)
        assert np.array_equal(w, q.dequantize())


#: Of the shipped model's first linear [n, k], for a token: what the vector unit does, by hand.
WORK = {
    "nvfp4+rht": lambda n, k, q: {"turn inputs": 5 * k},  # signs, and 4 stages of 16 inputs
    "nvfp4+scales2d": lambda n, k, q: {},
    "bitnet+a8": lambda n, k, q: {},
    "dbllm+a8": lambda n, k, q: {"add results": n},
    "billm:mode=paper+a8": lambda n, k, q: {
        "gather salient inputs": int(q.salient.sum()),
        "add results": 2 * n,
    },
    "billm+a8": lambda n, k, q: {
        "gather salient inputs": int(q.salient.sum()),
        "add results": 3 * n,
    },
    "littlebit:bits=1.2+a8": lambda n, k, q: {
        "scale inputs": 2 * k,
        "scale latents": 2 * q.main.rank,
        "scale outputs": 2 * n,
        "add paths": n,
    },
    "binarymos": lambda n, k, q: {
        "weigh experts": 4,
        "mix scales": 4 * (n + k),
        "scale inputs": k,
        "scale outputs": n,
    },
}


@pytest.mark.parametrize("name", WORK)
def test_work_beside_the_products(quantised, name):
    q = quantised[name]
    matrix = q.blocks[0].tensors["attn.q"]
    found = {one.what: one.length * one.times for one in matrix.vector_work()}
    assert found == WORK[name](*matrix.shape, matrix)
    work = cost.layer_work(q)
    assert all(len(layers) == q.base.config.layers for layers in work.values())
    # Linears that share inputs share what is done to them.
    turns = [linear for linear, layers in work.items() if any(one.shared for one in layers[0])]
    assert turns == (["attn.q", "attn.o", "ffn.gate", "ffn.down"] if "rht" in name else [])


def test_the_run_counts_their_traffic_and_energy(tiny):
    recipes = tuple(resolve_recipe(name) for name in ("fp16", OWN[0]))
    config = CodesignConfig(recipes, max_tokens=256, window=128, verify_level=None)
    text = Text("the beginning", load_text().content[:2000])
    answer = codesign(tiny, config, text)
    plain, own = answer.records
    assert own["compressed"] and not plain["compressed"]
    assert own["bits_per_weight"] < 16 == plain["bits_per_weight"]
    assert own["decode"]["dram_bytes"] < plain["decode"]["dram_bytes"]
    assert own["decode"]["energy_uJ"]["logic"] > 0
    assert own["decode"]["config"]["recipe"] == OWN[0] == own["recipe"]
    assert json.loads(json.dumps(answer.document(), allow_nan=False))


def test_energies_are_those_of_the_methods_own_codes(tiny, quantised):
    """Every pass has one, from its own operands: half of the weights pruned switch less."""
    technology = resolve_technology("nangate45")

    def energies(name):
        q = quantised[name]
        pe = cost.placed(q.recipe, cost.layer_passes(q))
        return q, cost.pass_energies(tiny, q, pe, technology)

    q, found = energies("billm:mode=paper+a8")
    whole = {"attn.scores", "attn.values", "lm_head"}
    names = {
        f"{linear} {what}"
        for linear in LINEARS
        for what in ("inner part ternary", "outer part ternary", "second plane binary")
    }
    assert names | whole <= set(found.products)
    assert "a tile of lut PEs" in found.source and "(billm:mode=paper+a8, layer 2," in found.source
    # By hand: the tile's energy on the second plane's own signs and gathered inputs.
    layer, linear = 2, "ffn.up"
    inputs = record(tiny, tokens=64, layers=[layer])[layer, linear][0].x
    x, w = q.blocks[layer].tensors[linear].operands(inputs)[-1]
    alone = tile_energy.measure(tile_energy.TileHardware("lut", technology), x, w)
    assert found.products["ffn.up second plane binary"].active_pj == alone.active_pj
    full, pruned = (energies(name)[1].products for name in ("aqlm", "fp16+wanda"))
    source = energies("fp16+wanda")[1].source
    assert "a tile of fp16 PEs" in source and "tensors (fp16+wanda, layer 2," in source
    for linear in ("ffn.up", "ffn.down"):
        kept = pruned[f"{linear} kept weights in all columns fp16"].active_pj
        assert kept < full[f"{linear} decoded weights fp16"].active_pj


def test_a_pass_of_other_layers_is_measured_there(tiny, quantised, monkeypatch):
    """Formats can differ from layer to layer, as in FineQuant."""
    q = quantised["finequant"]
    first = q.blocks[0]
    wider = quantize(tiny.weight("blocks.0.attn.q"), "int8-sym", 64, "fp16")
    changed = replace(first, tensors={**first.tensors, "attn.q": wider})
    q = QuantizedModel(tiny, q.recipe, [changed, *q.blocks[1:]])
    seen = []
    measure = tile_energy.measure
    monkeypatch.setattr(
        tile_energy,
        "measure",
        lambda *args, **more: (seen.append(more["source"]), measure(*args, **more))[1],
    )
    found = cost.pass_energies(tiny, q, "bitmod", resolve_technology("nangate45"))
    assert "attn.q codes int8-sym" in found.products
    assert "tiny 0.attn.q codes int8-sym, finequant" in seen
    others = [source for source in seen if "finequant" in source and "int8-sym" not in source]
    assert len(others) == 7 and all(source.startswith("tiny 2.") for source in others)


def test_a_smaller_model_costs_less(tiny):
    """The run's products are those of what is left: fewer cycles, less traffic and energy."""
    recipes = tuple(
        resolve_recipe(f"w4g64-int-sym-s8{end}") for end in ("", "+llmpruner:ratio=0.5")
    )
    config = CodesignConfig(recipes, max_tokens=256, window=128, verify_level=None)
    text = Text("the beginning", load_text().content[:2000])
    plain, own = codesign(tiny, config, text).records
    assert (plain["parameters_kept"], own["parameters_kept"]) == (1, 0.7)
    assert own["decode"]["config"]["recipe"] == own["recipe"]
    for phase in ("prefill", "decode"):
        before, after = plain[phase], own[phase]
        for key in ("cycles", "compute_cycles", "vector_cycles", "dram_bytes"):
            assert after[key] < before[key], (phase, key)
        for part in ("logic", "sram", "dram", "total"):
            assert after["energy_uJ"][part] < before["energy_uJ"][part], (phase, part)
    mixed = resolve_recipe("bitnet+llmpruner+a8")
    with pytest.raises(InputError, match="with one format for all linears; leave llmpruner out, "):
        codesign(tiny, CodesignConfig((mixed,), verify_level=None), text)


def test_what_runs_is_what_was_measured(tiny, monkeypatch):
    """The smaller model that runs comes from the run's own calibration, as its perplexity does."""
    module, seen = import_module("bitwright.experiments.codesigning"), []

    def watched(model, recipe, calibration=None):
        seen.append(calibration)
        return quantise(model, recipe, calibration)

    quantise = module.quantised
    monkeypatch.setattr(module, "quantised", watched)
    few = Calibration(sequences=4, length=64, seed=3)
    recipes = (resolve_recipe(SMALLER), resolve_recipe("fp16+wanda"))
    config = CodesignConfig(
        recipes, max_tokens=256, window=128, verify_level=None, calibration=few, energy_layers=0
    )
    codesign(tiny, config, Text("the beginning", load_text().content[:2000]))
    assert len(seen) >= 2 and all(calibration == few for calibration in seen)


def test_where_only_a_shape_is_known_a_smaller_model_is_refused():
    message = f"^recipe {SMALLER.replace('+', '[+]')} makes the model smaller, which depends on its"
    with pytest.raises(InputError, match=message):
        simulate_model("llama-2-7b", SMALLER)


def test_a_pe_with_integer_activations_wants_them_in_the_recipe(tiny, quantised):
    own = next(name for name in OWN if name.endswith("+a8"))
    q = quantised[own]
    passes = cost.layer_passes(q)
    bare = resolve_recipe(own.removesuffix("+a8"))
    message = rf"^recipe {bare.name} runs on the lut PE, which takes 8-bit activations; write "
    with pytest.raises(InputError, match=message):
        cost.placed(bare, passes)
    grouped = resolve_recipe(f"{bare.name}+a8-g64")  # a row's sums have one scale
    with pytest.raises(InputError, match=rf"8-bit activations; write {bare.name}[+]a8$"):
        cost.placed(grouped, passes)
    fp16 = next(
        name
        for name in OWN
        if resolve_recipe(name).activations is None
        and cost.fitting_pe(cost.layer_passes(quantised[name])) != "lut"
    )
    recipe = resolve_recipe(f"{fp16}+a8")
    with pytest.raises(InputError, match="PE, which takes FP16 activations; leave a8 out$"):
        cost.placed(recipe, cost.layer_passes(quantised[fp16]))


def test_block_formats_run_on_their_own_pe_only(quantised):
    passes = cost.layer_passes(quantised["nvfp4+a4-nvfp+rht"])
    assert cost.placed(resolve_recipe("nvfp4+a4-nvfp+rht"), passes) == "nvfp4"
    assert cost.placed(resolve_recipe("nvfp4+rht"), passes) == "fp16"
    message = (
        r"^recipe nvfp4\+a4-mxfp\+rht: a4-mxfp runs on the mxfp4 PE, whose weights are mxfp4 too, "
        "not nvfp4; leave a4-mxfp out$"
    )
    with pytest.raises(InputError, match=message):
        cost.placed(resolve_recipe("nvfp4+a4-mxfp+rht"), passes)


def test_where_no_weights_are_known_they_are_refused():
    message = "stores weights in a form of its own, whose size and cost depend on the weights; use"
    with pytest.raises(InputError, match=message):
        simulate_model("llama-2-7b", OWN[0])
    with pytest.raises(InputError, match=message):
        resolve_recipe(OWN[0]).stored_bits(64, 64)
    with pytest.raises(InputError, match=message):
        logic_energy("tiny", OWN[0], "fp16", resolve_technology("nangate45"))
    with pytest.raises(InputError, match=f"^recipe '{OWN[0][:6]}.* needs a model and data for "):
        quantize([[1.0, 2.0]], OWN[0])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("w4g64-int-sym+bitnet", "bitnet has its own form of weights and takes no int4-sym; begin"),
        ("bitnet+awq", "awq needs a weight format; it does not go with bitnet"),
        ("fp16+awq", "fp16 leaves weights as they are; awq has nothing to do"),
        ("fp16+superweight", "fp16 leaves weights as they are; superweight has nothing to do"),
        ("bitnet+bitnet", "bitnet stands twice; keep one of them"),
        ("bitnet+wanda", "bitnet has its own form of weights; it does not go with wanda"),
        ("fp16+wanda+magnitude", "wanda and magnitude both take weights out; keep one of them"),
        ("bitnet:layout=x", "option layout of bitnet is 'x'"),
    ],
)
def test_what_does_not_go_together(name, message):
    with pytest.raises(InputError, match=f"^recipe {name.replace('+', '[+]')!r}: {message}"):
        resolve_recipe(name)
