"""The released simulator of BitMoD.

It printed nothing that is published. The totals are those that its formulas give, worked out once
independently of this package from its files and hand-typed model shapes (derived; not run): an
agreement of two readings of the same files.
"""

from statistics import mean

import pytest

from bitwright.quant import InputError
from bitwright.sim import PRESETS, ModelShape, load_shape, published_generation, simulate_published

RULES = PRESETS["bitmod-released"]
SIX = ("opt-1.3b", "phi-2", "yi-6b", "llama-2-7b", "llama-2-13b", "llama-3-8b")
FOUR = ("opt-1.3b", "phi-2", "llama-2-7b", "llama-2-13b")
CYCLES = {
    ("fp16", "prefill"): (530843648, 1177255936, 2810544128, 5999452160),
    ("ant", "prefill"): (341098496, 686555136, 1687420928, 3278438400),
    ("olive", "prefill"): (305217536, 618049536, 1505918976, 2929991680),
    ("bitmod-lossless", "prefill"): (259166208, 562184192, 1372856320, 2872207360),
    ("bitmod-lossy", "prefill"): (177233920, 383598592, 926097408, 1936271360),
    ("fp16", "decode"): (83594438, 168238368, 417344208, 810102800),
    ("ant", "decode"): (27265990, 54471968, 133446352, 207683600),
    ("olive", "decode"): (22145222, 44129568, 107637456, 207683600),
    ("bitmod-lossless", "decode"): (31920374, 64150048, 158771152, 307947600),
    ("bitmod-lossy", "decode"): (16558070, 33122848, 81344464, 157342800),
}


def released(model, design, phase="prefill", **more):
    return simulate_published(model, design, phase, preset="bitmod-released", **more)


def test_the_rules_on_an_example_worked_by_hand():
    # One layer, 4 heads of width 8 that share 2 key heads, prefill of 40 tokens, BitMoD lossy
    # (4 + 1/16 bits, 2 cycles a step of 4 lanes; 8-bit keys and values, 4 cycles) on 32 x 32 PEs.
    toy = ModelShape("toy", 1, 32, 4, 2, 8, 24, 40, gated=False)
    found = {
        layer.name: (
            *(layer.count, layer.compute_cycles, layer.dram_cycles),
            *(layer.weight_bytes + layer.cache_bytes, layer.input_bytes, layer.output_bytes),
        )
        for layer in released(toy, "bitmod-lossy", tokens=40).layers
    }
    # Scores, per key head: n = 40, k = 8, m = 2 * 40; two key heads.
    steps = 2 * (2 * 2 * 3)  # ceil(8 / 4) * ceil(40 / 32) * ceil(80 / 32)
    moved = (2 * 8 * 40, 2 * 16 * 80, 2 * 2 * 40 * 80)
    assert found["attn.scores"] == (2, 4 * steps, sum(moved) // 32, *moved)
    # Values: n = 8, k = 40, m = 80; inputs are scores, 2 bytes each.
    moved = (2 * 40 * 8, 2 * 80 * 80, 2 * 2 * 8 * 80)
    assert found["attn.values"] == (2, 4 * 2 * (10 * 1 * 3), sum(moved) // 32, *moved)
    # Linear layers are as ever: q has n = k = 32, m = 40, rows of ceil(32 * 4.0625 / 8) = 17 bytes.
    moved = (17 * 32, 64 * 40, 64 * 40)
    assert found["attn.q"] == (1, 2 * 8 * 1 * 2, sum(moved) // 32, *moved)


@pytest.mark.parametrize(("design", "phase"), CYCLES)
def test_totals_that_its_formulas_give(design, phase):
    found = tuple(released(model, design, phase).cycles for model in FOUR)
    assert found == CYCLES[design, phase]


def test_ant_and_olive_agree_on_llama_2_13b_because_both_wait_for_dram():
    ant, olive = (released("llama-2-13b", design, "decode") for design in ("ant", "olive"))
    for one, other in zip(ant.layers, olive.layers, strict=True):
        assert one.compute_cycles <= one.dram_cycles == one.cycles == other.cycles
        assert other.compute_cycles <= other.dram_cycles
    assert ant.compute_cycles != olive.compute_cycles


@pytest.mark.parametrize(
    ("design", "prefill", "generation"),
    [
        ("bitmod-lossless", 2.08, 2.46),
        ("ant", 1.72, 2.63),
        ("olive", 1.93, 3.04),
        ("bitmod-lossy", 3.07, 4.37),
    ],
)
def test_averages_over_six_models(design, prefill, generation):
    def costs(name, model):
        shape, rules = load_shape(model), {"corrections": RULES.corrections}
        whole = published_generation(shape, RULES.designs[name], **rules)
        return released(model, name).cycles, whole.cycles

    pairs = [(costs("fp16", model), costs(design, model)) for model in SIX]
    assert round(mean(base[0] / ours[0] for base, ours in pairs), 2) == prefill
    assert round(mean(base[1] / ours[1] for base, ours in pairs), 2) == generation


def test_what_differs_from_the_rules_behind_the_figures():
    config = released("yi-6b", "bitmod-lossy").config
    assert (config["preset"], config["kv_bits"], config["step_cycles"]) == ("bitmod-released", 8, 2)
    assert released("yi-6b", "ant").config["weight_bits"] == 5.25
    assert released("yi-6b", "ant").config["kv_bits"] == 16
    assert simulate_published("yi-6b", "bitmod-lossy").config["kv_bits"] == 16


def test_a_port_narrower_than_the_table_counts_as_its_narrowest():
    # OliVe at 4 bits in prefill: 4 * 36 / 8 = 18 bits.
    (source,) = (s for s in released("yi-6b", "olive").sources if s.startswith("weight buffer"))
    assert "18 bits wide" in source and "of a 32-bit port (an upper bound for 18 bits)" in source


def test_a_model_without_a_precision_is_refused_in_both_phases():
    for phase in ("prefill", "decode"):
        message = f"design olive has no {phase} precision for qwen3-8b; the study has opt-1.3b"
        with pytest.raises(InputError, match=message):
            released("qwen3-8b", "olive", phase)
    with pytest.raises(InputError, match="which preset bitmod-released lacks"):
        released("mixtral-8x7b", "fp16")
