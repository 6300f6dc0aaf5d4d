"""Matrices in forms of their own as products: counts, stored bits, and energy by row."""

from dataclasses import replace
from functools import partial
from importlib import import_module

import pytest

from bitwright.quant import FORMATS, LINEARS, InputError, Pass, VectorWork
from bitwright.sim import (
    Gemm,
    LogicEnergy,
    ModelShape,
    ProductEnergy,
    Workload,
    decode,
    default_accelerator,
    fitting_pe,
    prefill,
    simulate_model,
    simulate_passes,
)

SHAPE = ModelShape("made up", 3, 64, 4, 2, 16, 160, 300, gated=True)


def passes_of(workload, of_one):
    """The same passes in all layers: of_one(n, k) -> passes."""
    return {
        gemm.name: [of_one(gemm.n, gemm.k)] * gemm.count
        for gemm in workload.gemms
        if gemm.kind == "block"
    }


@pytest.mark.parametrize("phase", ["prefill", "decode"])
def test_one_pass_of_fp16_is_the_fp16_model(phase):
    workload = prefill(SHAPE, 40) if phase == "prefill" else decode(SHAPE, 40)
    accelerator = default_accelerator("fp16")
    passes = passes_of(workload, lambda n, k: (Pass("weights", n, k, None, 16 * n * k),))
    found = simulate_passes(workload, passes, accelerator)
    plain = simulate_model(workload, "fp16", accelerator=accelerator)
    assert found.cycles == plain.cycles
    assert found.dram_bytes == plain.dram_bytes
    assert found.to_dict()["energy_uJ"] == plain.to_dict()["energy_uJ"]
    assert [(row.cycles, row.cache_bytes) for row in found.layers] == [
        (row.cycles, row.cache_bytes) for row in plain.layers
    ]


def test_two_factors_by_hand():
    """A 64 x 96 matrix as factors of rank 8, 1 bit a sign and 16 bits a row and latent scale."""
    workload = Workload("one", "decode", 1, 1, (Gemm("ffn.up", 1, 64, 96, count=2),), "made up")
    first, second = 8 * 96 + 16 * 8, 64 * 8 + 16 * 64
    passes = {
        "ffn.up": [
            (Pass("latent", 8, 96, "binary", first), Pass("outputs", 64, 8, "binary", second))
        ]
        * 2
    }
    accelerator = default_accelerator("lut")
    found = simulate_passes(workload, passes, accelerator)
    assert [(row.name, row.n, row.k, row.count) for row in found.layers] == [
        ("ffn.up latent 8 x 96 binary", 8, 96, 2),
        ("ffn.up outputs 64 x 8 binary", 64, 8, 2),
    ]
    assert [row.macs for row in found.layers] == [2 * 8 * 96, 2 * 64 * 8]
    assert sum(row.weight_bytes for row in found.layers) == 2 * (first + second) // 8
    assert any("form of their own" in note for note in found.notes)


def test_layers_with_other_sizes_get_a_row_each():
    workload = Workload("one", "prefill", 4, 4, (Gemm("ffn.up", 4, 64, 96, count=3),), "made up")

    def layer(salient):
        plane = Pass("signs", 64, 96, "binary", 64 * 96 + 32)
        return plane, Pass("salient columns", 64, salient, "binary", 64 * salient)

    passes = {"ffn.up": [layer(3), layer(5), layer(3)]}
    found = simulate_passes(workload, passes, default_accelerator("lut"))
    assert {row.name: row.count for row in found.layers} == {
        "ffn.up signs 64 x 96 binary": 3,
        "ffn.up salient columns 64 x 3 binary": 2,
        "ffn.up salient columns 64 x 5 binary": 1,
    }
    assert sum(row.weight_bytes for row in found.layers) == 3 * (768 + 4) + 2 * 24 + 40


def test_passes_that_differ_only_in_stored_bits_share_a_product():
    workload = Workload("one", "prefill", 4, 4, (Gemm("ffn.up", 4, 64, 96, count=2),), "made up")
    passes = {"ffn.up": [(Pass("w", 64, 96, None, bits),) for bits in (8000, 16000)]}
    found = simulate_passes(workload, passes, default_accelerator("fp16"))
    assert [row.count for row in found.layers] == [1, 1]
    assert sum(row.weight_bytes for row in found.layers) == 3000


def test_energy_of_each_row_is_that_of_its_format():
    workload = decode(SHAPE, 8)
    passes = passes_of(
        workload,
        lambda n, k: (
            Pass("signs", n, k, "binary", n * k),
            Pass("zeros", n, k, "ternary", 2 * n * k),
        ),
    )
    accelerator = default_accelerator("lut")
    energies = {
        **{f"{name} signs binary": 1.0 for name in LINEARS},
        **{f"{name} zeros ternary": 3.0 for name in LINEARS},
        **{name: 0.0 for name in ("attn.scores", "attn.values", "lm_head")},
    }
    logic = LogicEnergy(
        {name: ProductEnergy(pj, 0.0, 0.0) for name, pj in energies.items()},
        *(0.0, "made up", 1.0, 1000.0, "none", {}, "by hand"),
    )
    found = simulate_passes(workload, passes, accelerator, logic=logic)
    by_what = {"signs": 0.0, "zeros": 0.0}
    for row in found.layers:
        for what in by_what:
            by_what[what] += row.logic_uj if f" {what} " in row.name else 0.0
    assert by_what["zeros"] == pytest.approx(3 * by_what["signs"], rel=1e-12) and by_what["signs"]
    assert any("by hand" in line for line in found.sources)
    products = {name: one for name, one in logic.products.items() if "ffn.up zeros" not in name}
    message = "^logic has no energy of ffn.up zeros ternary; measure it or leave logic out$"
    with pytest.raises(InputError, match=message):
        simulate_passes(workload, passes, accelerator, logic=replace(logic, products=products))


def test_the_pe_that_fits():
    def of(*formats):
        return {"attn.q": [[Pass(str(n), 4, 4, f, 16) for n, f in enumerate(formats)]]}

    assert fitting_pe(of("binary", "ternary")) == "lut"
    assert fitting_pe(of("int8-sym")) == "bitmod"
    assert fitting_pe(of("binary", "int8-sym")) == "fp16"
    assert fitting_pe(of(None)) == "fp16"
    with pytest.raises(InputError, match="^no PE of lut, bitmod runs all of binary, fp16$"):
        fitting_pe(of("binary", None), ("lut", "bitmod"))


def test_every_layer_needs_its_passes():
    workload = decode(SHAPE, 8)
    passes = passes_of(workload, lambda n, k: (Pass("w", n, k, None, 16 * n * k),))
    passes["attn.q"] = passes["attn.q"][:2]
    with pytest.raises(InputError, match="^attn.q has passes for 2 layers; the workload has 3$"):
        simulate_passes(workload, passes, default_accelerator("fp16"))


def test_stored_bits_are_exact_however_they_are_spread():
    hardware = import_module("bitwright.sim.accelerator.hardware")
    for bits in range(0, 400, 7):
        assert hardware.Storage.spread(bits, 5, 9).total(5, 9) == bits
    for name in ("int4-asym", "bitmod3", "nvfp4", "mxfp4"):
        fmt = FORMATS[name]
        size = fmt.block or 16
        parts = hardware.Storage.of(fmt, size)
        for n, k in ((1, 1), (3, 16), (5, 40)):
            assert parts.total(n, k) == fmt.stored_bits(n, k, size)


def test_one_format_of_logic_is_not_enough_for_several():
    workload = decode(SHAPE, 8)
    logic = LogicEnergy(
        {"attn.q": ProductEnergy(1.0, 0.0, 0.0)}, 0.0, "made up", 1.0, 1000.0, "none", {}, "it"
    )
    recipe = "w4g64-int-sym+formats:choose=int4-sym|int8-sym,map=" + "01" * 10 + "0"
    with pytest.raises(InputError, match="^logic is that of one format; leave it out of a run"):
        simulate_model(replace(workload), recipe, logic=logic)


def test_work_between_passes_by_hand():
    """Two layers of 3 tokens: a sum of 64 results, and two scales of 96 inputs in one of them."""
    workload = Workload("one", "prefill", 3, 3, (Gemm("ffn.up", 3, 64, 96, count=2),), "made up")
    passes = {
        "ffn.up": [(Pass("a", 64, 96, "binary", 6200), Pass("b", 64, 96, "binary", 6200))] * 2
    }
    add = VectorWork("add results", "accumulate", 64)
    scale = VectorWork("scale inputs", "scale", 96, times=2)
    run = partial(simulate_passes, workload, passes, default_accelerator("lut"))
    bare, found = run(), run(work={"ffn.up": [(add,), (add, scale)]})
    assert [(row.name, row.function, row.elements) for row in found.vector] == [
        ("ffn.up.add results", "accumulate", 2 * 3 * 64),
        ("ffn.up.scale inputs", "scale", 2 * 3 * 96),
    ]
    # 64 lanes, an operation an element; rows follow each other: 3 beats, and ceil(288 / 64) = 5.
    assert [row.cycles for row in found.vector] == [2 * 3, 2 * 5]
    assert found.dram_bytes == bare.dram_bytes and found.cycles == bare.cycles + 16
