"""Generations: every step at its own context."""

import json
from dataclasses import replace

import pytest

from bitwright.quant import InputError
from bitwright.sim import (
    SHAPES,
    GenerationResult,
    ModelShape,
    decode,
    default_accelerator,
    prefill,
    simulate_generation,
    simulate_model,
)

TOY = ModelShape("toy", 2, 8, 4, 2, 3, 16, 100, gated=True)
SMALL = replace(SHAPES["smollm2-135m"], layers=2)
EXPERTS = replace(TOY, name="experts", experts=4, experts_per_token=2)


def test_every_step_has_its_own_context():
    result = simulate_generation(TOY, prompt=5, generate=4)
    # The prefill makes the first token; the others attend to 6, 7 and 8 positions.
    steps = [simulate_model(TOY, "bitmod4", "decode", context=context) for context in (6, 7, 8)]
    assert result.step_cycles == tuple(step.cycles for step in steps)
    assert result.step_dram_bytes == tuple(step.dram_bytes for step in steps)
    assert [step["context"] for step in result.to_dict()["steps"]] == [6, 7, 8]
    first = simulate_model(prefill(TOY, 5, logits="last"), "bitmod4")
    assert result.prefill.cycles == first.cycles
    assert result.cycles == first.cycles + sum(step.cycles for step in steps)
    assert result.dram_bytes == first.dram_bytes + sum(step.dram_bytes for step in steps)


def test_each_later_token_moves_the_keys_and_values_of_one_more_position():
    result = simulate_generation(TOY, prompt=5, generate=10)
    # 16 bits each, per layer: a key and a value of 2 heads x 3, and 4 heads' score out and
    # weight in.
    per_position = 2 * (2 * (2 * 2 * 3) + 2 * (4 + 4))
    moved = result.step_dram_bytes
    assert {after - before for before, after in zip(moved, moved[1:], strict=False)} == {
        per_position
    }


OPTIONS = [
    (TOY, {"prompt": 3, "generate": 9}),
    (TOY, {"prompt": 1, "generate": 2, "batch": 3}),
    (EXPERTS, {"prompt": 3, "generate": 5, "batch": 2}),
    (SMALL, {"prompt": 60, "generate": 10, "kv_format": "int8-sym"}),
    (SMALL, {"prompt": 60, "generate": 10, "kv_format": "int4-asym", "kv_group_size": 32}),
    (SMALL, {"recipe": "fp16", "prompt": 60, "generate": 10}),
    (SMALL, {"prompt": 40, "generate": 4, "logits": "all", "causal": False}),
    (SMALL, {"recipe": "int8-sym", "pe": "int8", "prompt": 40, "generate": 4}),
    (SHAPES["opt-1.3b"], {"prompt": 500, "generate": 30}),
]


@pytest.mark.parametrize(("shape", "options"), OPTIONS)
def test_steps_taken_apart_equal_whole_steps(shape, options):
    fast = simulate_generation(shape, **options)
    slow = simulate_generation(shape, stepwise=True, **options)
    assert fast.step_cycles == slow.step_cycles
    assert fast.step_dram_bytes == slow.step_dram_bytes
    assert len(fast.step_cycles) == options["generate"] - 1
    # Sums of positive terms, at most 2 ** 12 roundings of 2 ** -53 each on either side.
    for name, energy in slow.decode_energy_uj.items():
        assert fast.decode_energy_uj[name] == (
            None if energy is None else pytest.approx(energy, rel=2**-40)
        )
    assert fast.prefill.to_dict() == slow.prefill.to_dict()


def test_times_rates_and_energies_follow_from_the_steps():
    result = simulate_generation(SMALL, prompt=30, generate=5, batch=3)
    picoseconds = result.prefill.clock_ps
    assert result.ttft_s == result.prefill.latency_s
    assert result.tpot_first_s == result.step_cycles[0] * picoseconds * 1e-12
    assert result.tpot_last_s == result.step_cycles[-1] * picoseconds * 1e-12
    assert result.tpot_s == sum(result.step_cycles) * picoseconds * 1e-12 / 4
    assert result.tpot_first_s < result.tpot_s < result.tpot_last_s
    assert result.latency_s == pytest.approx(result.ttft_s + 4 * result.tpot_s, rel=2**-50)
    assert result.tokens_per_s == 15 / result.latency_s
    assert result.decode_tokens_per_s == 3 / result.tpot_s
    parts = [result.prefill.dram_uj, result.decode_energy_uj["dram"]]
    assert result.energy_uj["dram"] == sum(parts)
    assert result.energy_uj["total"] is result.energy_per_token_uj is None
    priced = replace(
        result,
        prefill=replace(result.prefill, logic_uj=20.0),
        decode_energy_uj={**result.decode_energy_uj, "logic": 10.0, "total": 110.0},
    )
    assert priced.energy_uj["logic"] == 30.0
    assert priced.energy_uj["total"] == priced.prefill.total_uj + 110.0
    assert priced.energy_per_token_uj == (priced.prefill.total_uj + 110.0) / 15


def test_one_token_needs_no_decode():
    result = simulate_generation(TOY, prompt=5, generate=1)
    assert result.step_cycles == () and result.cycles == result.prefill.cycles
    assert result.latency_s == result.ttft_s
    assert result.tpot_s is result.tpot_first_s is result.decode_tokens_per_s is None
    assert result.energy_uj["dram"] == result.prefill.dram_uj
    assert result.to_dict()["tpot_s"] == {"mean": None, "first": None, "last": None}


def test_a_batch_shares_the_weights_of_a_step():
    one = simulate_generation(SMALL, prompt=30, generate=3)
    four = simulate_generation(SMALL, prompt=30, generate=3, batch=4)
    assert sum(four.step_cycles) < 4 * sum(one.step_cycles)
    assert sum(four.step_dram_bytes) < 4 * sum(one.step_dram_bytes)
    assert decode(SMALL, 31, batch=4).macs == 4 * decode(SMALL, 31).macs


def test_a_narrow_cache_is_read_in_its_own_format():
    wide = simulate_generation(SMALL, prompt=63, generate=2)
    narrow = simulate_generation(SMALL, prompt=63, generate=2, kv_format="int8-sym")
    cache = [layer for layer in narrow.prefill.layers if layer.kind == "cache"]
    assert len(cache) == 2
    # Two layers x 3 key heads x 64 positions of 64 elements, one scale of 16 bits per row: one
    # group of at most 128 per row of keys (head) and of values (positions).
    read = 2 * 2 * 3 * (64 * 64 + 64 * 2)
    read_wide = 2 * 2 * 3 * 64 * 64 * 2
    written, written_wide = 2 * 2 * 3 * (64 + 2), 2 * 2 * 3 * 64 * 2
    (saved,) = (a - b for a, b in zip(wide.step_dram_bytes, narrow.step_dram_bytes, strict=True))
    assert saved == read_wide - read + written_wide - written


def test_a_pe_for_integers_has_its_activations_quantised():
    def functions(**options):
        result = simulate_generation(TOY, prompt=3, generate=2, **options)
        return [op.name for op in result.prefill.vector if op.function == "quantise"]

    assert functions() == functions(recipe="fp16", kv_format="fp16") == []
    assert functions(kv_format="int8-sym") == ["attn.cache_quantise"]
    inputs = ["attn.quantise", "attn.o.quantise", "ffn.quantise", "ffn.down.quantise"]
    assert functions(recipe="int8-sym", pe="int8") == inputs


def test_a_result_is_a_json_document():
    result = simulate_generation("smollm2-135m", "fp16", prompt=9, generate=3)
    assert isinstance(result, GenerationResult)
    document = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert (document["workload"], document["phase"]) == ("smollm2-135m", "generation")
    assert document["cycles"] == document["prefill"]["cycles"] + document["decode_cycles"]
    assert document["decode_cycles"] == sum(step["cycles"] for step in document["steps"])
    assert document["config"]["recipe"] == "fp16" and document["config"]["pe"] == "fp16"
    assert set(document["energy_uJ"]) >= {"logic", "sram", "dram", "leakage", "total", "per_token"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": 0}, "prompt is 0; at least 1"),
        ({"generate": 0}, "generate is 0; at least 1"),
        ({"batch": -1}, "batch is -1; at least 1"),
        ({"pe": "bitmods"}, "unknown pe 'bitmods'; did you mean bitmod"),
        ({"kv_format": "int8"}, "unknown kv_format 'int8'; did you mean"),
        ({"kv_format": "mxfp4"}, "the bitmod PE cannot run weight format mxfp4"),
        ({"kv_format": "int8-sym", "kv_group_size": 0}, "group_size is 0; at least 1"),
        ({"logits": "first"}, "logits is 'first'; one of all, last"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        simulate_generation(TOY, **options)


def test_a_pe_beside_another_accelerator_is_refused():
    with pytest.raises(InputError, match="pe is 'fp16', but the accelerator's is 'bitmod'"):
        simulate_generation(TOY, pe="fp16", accelerator=default_accelerator("bitmod"))
    with pytest.raises(InputError, match="unknown shape"):
        simulate_generation("llama-9")
