"""Each simplification of the published simulator taken away on an example worked by hand."""

from dataclasses import fields, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitwright.sim import (
    CORRECTIONS,
    DRAMS,
    PRESETS,
    Corrections,
    ModelShape,
    prefill,
    published_generation,
    published_pass,
    sram,
    vector,
)

DESIGNS = PRESETS["bitmod-hpca25"].designs
#: Two heads of width 8 (one key head in SHARED), FFN 24 without gate, vocabulary 40.
TOY = ModelShape("toy", 1, 16, 2, 2, 8, 24, 40, gated=False)
SHARED = replace(TOY, kv_heads=1)


def run(shape=TOY, design="bitmod-lossless", phase="prefill", **switches):
    return published_pass(
        shape,
        DESIGNS[design] if isinstance(design, str) else design,
        phase,
        tokens=40,
        context=40,
        corrections=Corrections(**switches),
    )


def rows(answer):
    return {row.name: row for row in answer.rows}


def test_none_of_them_is_the_published_simulator():
    assert not any(getattr(Corrections(), switch.name) for switch in fields(Corrections))
    assert list(CORRECTIONS) == [switch.name for switch in fields(Corrections)]
    # test_presets holds these rules to the published numbers; here on the example worked there.
    assert run().cycles == 4 * 86 + 109 + 109 + 320 + 440 + 156


@pytest.mark.parametrize("name", CORRECTIONS)
def test_each_of_them_changes_something(name):
    def facts(corrections):
        phi, lossy = ModelShape("phi-2", 2, 256, 4, 4, 64, 1024, 512, False), "bitmod-lossy"
        answer = published_pass(phi, DESIGNS[lossy], "prefill", corrections=corrections)
        whole = published_generation(phi, DESIGNS[lossy], corrections=corrections)
        area = answer.array_mm2 + answer.encoder_mm2
        return answer.cycles, answer.cost.total_uj, whole.cycles, whole.total_uj, area

    assert facts(Corrections(**{name: True})) != facts(Corrections())


def test_attention_has_its_own_shapes():
    found = rows(run(SHARED, attention_shapes=True))
    scores, values = found["attn.scores"], found["attn.values"]
    # Scores n = 40, k = 8, m = 2 * 40: 2 * 2 * 3 steps of 3 cycles. Values n = 8, k = 40: 10 * 3.
    assert (scores.n, scores.k, scores.m, scores.compute_cycles) == (40, 8, 80, 36)
    assert (values.n, values.k, values.m, values.compute_cycles) == (8, 40, 80, 90)
    assert (scores.weight_bytes, scores.input_bytes, scores.output_bytes) == (640, 1280, 6400)
    assert (values.weight_bytes, values.input_bytes, values.output_bytes) == (640, 6400, 1280)
    assert found["attn.q"] == rows(run(SHARED))["attn.q"]


def test_keys_and_values_have_eight_bits_in_bitmod_alone():
    found = rows(run(SHARED, attention_shapes=True, kv_bits=True))
    assert found["attn.scores"].compute_cycles == 12 * 4
    assert found["attn.scores"].weight_bytes == found["attn.values"].weight_bytes == 320
    wide = rows(run(SHARED, "ant", attention_shapes=True, kv_bits=True))
    assert wide["attn.scores"].weight_bytes == 640
    # Their words in the SRAM count at their own width: 16 bits, not the 5.5 of ANT's weights.
    narrow = rows(run(SHARED, "ant", attention_shapes=True))
    assert wide["attn.scores"].sram_pj > narrow["attn.scores"].sram_pj


def test_a_causal_prefill_computes_tiles_on_and_below_the_diagonal():
    found = rows(run(SHARED, attention_shapes=True, causal=True))
    # Two rows per position: tiles end at positions 15, 31 and 39 and need 16, 32 and 40 of them.
    scores, values = found["attn.scores"], found["attn.values"]
    assert scores.compute_cycles == 3 * 2 * (1 + 1 + 2)
    assert values.compute_cycles == 3 * (4 + 8 + 10)
    kept = 2 * (40 * 41 // 2) * 2  # bytes
    assert scores.output_bytes == values.input_bytes == kept
    assert (scores.input_bytes, values.output_bytes) == (1280, 1280)


def test_a_causal_prefill_in_the_published_shapes():
    found = rows(run(causal=True))
    # Scores: two rows per position again, k = 16. Values: one row per position, n = 2 * 40.
    assert found["attn.scores"].compute_cycles == 3 * 4 * (1 + 1 + 2)
    assert found["attn.values"].compute_cycles == 3 * 3 * (8 + 10)
    assert found["attn.values"].input_bytes == rows(run())["attn.values"].input_bytes


def test_a_decode_step_has_no_mask():
    assert run(phase="decode", causal=True).rows == run(phase="decode").rows


@settings(max_examples=60, deadline=None)
@given(
    tokens=st.integers(1, 70),
    sharing=st.integers(1, 3),
    array=st.tuples(st.integers(1, 40), st.integers(1, 40)),
)
def test_causal_work_is_that_of_tiles_with_something_to_do(tokens, sharing, array):
    height, width = array
    shape = ModelShape("some", 1, 8 * sharing, sharing, 1, 8, 8, 8, gated=False)
    design = replace(DESIGNS["fp16"], prefill_array=array)
    switches = Corrections(attention_shapes=True, causal=True)
    answer = published_pass(shape, design, "prefill", tokens=tokens, corrections=switches)
    found = rows(answer)
    positions = [row // sharing for row in range(sharing * tokens)]
    token_tiles = [positions[i : i + width] for i in range(0, len(positions), width)]
    scores = sum(
        8 * any(first <= position for position in tile)
        for tile in token_tiles
        for first in range(0, tokens, height)
    )
    values = sum((max(tile) + 1) * len(range(0, 8, height)) for tile in token_tiles)
    assert found["attn.scores"].compute_cycles == scores
    assert found["attn.values"].compute_cycles == values
    whole = rows(
        published_pass(
            shape, design, "prefill", tokens=tokens, corrections=replace(switches, causal=False)
        )
    )
    for name in ("attn.scores", "attn.values"):
        assert found[name].compute_cycles <= whole[name].compute_cycles
        assert found[name].input_bytes <= whole[name].input_bytes
        assert found[name].output_bytes <= whole[name].output_bytes


def test_selector_and_channel_scale_are_stored():
    # 16 inputs, one group: lossy 16 * 4 + 8 + 2 + 16 = 90 bits, 12 bytes (published 9); lossless
    # 16 * 6 + 8 + 16 = 120 bits, 15 bytes (13), without a selector.
    assert rows(run(design="bitmod-lossy"))["attn.q"].weight_bytes == 9 * 16
    assert rows(run(design="bitmod-lossy", selector_bits=True))["attn.q"].weight_bytes == 12 * 16
    assert rows(run(selector_bits=True))["attn.q"].weight_bytes == 15 * 16
    assert rows(run(selector_bits=True))["attn.scores"] == rows(run())["attn.scores"]
    assert run(design="ant", selector_bits=True).rows == run(design="ant").rows


def test_the_pipeline_fills_once_per_product():
    # 12 cycles of pipeline, 7 of the accumulator, 3 + 3 of skew on 32 x 32 PEs in tiles of 8 x 8.
    assert rows(run(pipeline=True))["attn.q"].compute_cycles == 24 + 25
    # FP16: 16 * 1 * 2 steps; 2 + 7 + 3 + 2 on 32 x 24.
    assert rows(run(design="fp16", pipeline=True))["attn.q"].compute_cycles == 32 + 14


def test_a_short_group_waits_for_the_scale_unit():
    # Scores, k = 8: 2 steps of 2 cycles, less than the 8 cycles of a serial scale.
    found = rows(run(SHARED, "bitmod-lossy", attention_shapes=True, pipeline=True))
    assert found["attn.scores"].compute_cycles == (2 * 3) * 8 + 25


def test_one_array_serves_both_phases():
    assert run(phase="decode").array == (64, 16)
    answer = run(phase="decode", one_array=True)
    assert answer.array == (32, 32) and answer.ports == run().ports
    # lm_head, n = 40: two rows of tiles on 32 rows, one on 64.
    assert rows(answer)["lm_head"].compute_cycles == 2 * 4 * 3
    assert rows(run(phase="decode"))["lm_head"].compute_cycles == 4 * 3


def test_loads_and_stores_of_the_outer_tiles_show():
    # attn.q: 24 cycles of compute. First tile: 16 rows of 13 bytes and 32 of 32 bytes, 1232 // 32;
    # last: 16 * 32 results of 2 bytes. 2768 bytes in 86 cycles, then a tile of 4 * 3 cycles.
    assert rows(run(half_buffers=True))["attn.q"].cycles == max(24 + 38 + 32, 86 + 12)


def test_half_a_buffer_holds_half():
    # 256 tokens of 2048 inputs: 1 MiB, twice 512 KiB, four times 256 KiB; FP16 weights of 8 MiB.
    shape = ModelShape("wide", 1, 2048, 16, 16, 128, 2048, 64, gated=False)
    whole, half = (
        published_pass(shape, DESIGNS["fp16"], "prefill", corrections=Corrections(half_buffers=on))
        for on in (False, True)
    )
    assert [rows(answer)["attn.q"].weight_fetches for answer in (whole, half)] == [2, 4]
    # Compute-bound, 2048 * 64 * 11 cycles. First tile: 32 weight rows and 24 inputs of 4096 bytes.
    exposed = (32 + 24) * 4096 // 32 + 2 * 32 * 24 // 32
    assert rows(whole)["attn.q"].cycles == 2048 * 64 * 11
    assert rows(half)["attn.q"].cycles == 2048 * 64 * 11 + exposed


def test_a_tile_larger_than_half_a_buffer_comes_in_parts():
    # 64 rows of 16384 bytes (8192 inputs, FP16) are 1 MiB, four times half a buffer: a quarter of
    # the tile's 8192 cycles comes after the last byte.
    shape = ModelShape("deep", 1, 8192, 64, 64, 128, 64, 64, gated=False)
    answer = published_pass(
        shape, DESIGNS["fp16"], "decode", corrections=Corrections(half_buffers=True)
    )
    row = rows(answer)["attn.q"]
    assert row.cycles == row.dram_cycles + 8192 // 4


def test_dram_has_latency_and_loses_bandwidth():
    part = DRAMS["ddr4-3200"]
    share = part.effective_bytes_per_cycle(1000, streams=3) / part.bytes_per_cycle(1000)
    found = rows(run(dram_timing=True))["attn.q"]
    assert found.dram_cycles == int(2768 / (32 * share)) + part.latency_cycles(1000)
    assert found.dram_cycles > 86 + 25
    assert found.weight_bytes == rows(run())["attn.q"].weight_bytes


def test_the_vector_unit_does_not_overlap():
    base, answer = run(), run(vector_unit=True)
    work = prefill(TOY, 40, causal=False).vector
    unit = vector.VectorUnit()
    expected = sum(max(vector.cycles(op, unit), vector.dram_bytes(op) // 32) for op in work)
    assert answer.vector_cycles == expected > 0
    assert answer.cycles == base.cycles + expected
    assert answer.dram_bytes == base.dram_bytes + sum(map(vector.dram_bytes, work))


def test_softmax_of_a_causal_prefill_is_shorter():
    def cycles(**switches):
        corrections = Corrections(vector_unit=True, **switches)
        return published_pass(TOY, DESIGNS["fp16"], "prefill", corrections=corrections)

    whole, masked = cycles().vector_cycles, cycles(causal=True).vector_cycles
    # 2 heads of 256 rows; 1 to 256 elements take 1 to 4 beats of 64 lanes, 2.5 on average, not 4,
    # each of 6 operations.
    assert whole - masked == 2 * 256 * 6 * 1.5


def test_narrow_keys_and_values_are_quantised_on_the_vector_unit():
    narrow, wide = run(vector_unit=True, kv_bits=True), run(vector_unit=True)
    assert narrow.vector_cycles > wide.vector_cycles
    fp16 = (run(design="fp16", vector_unit=True, kv_bits=on).vector_cycles for on in (True, False))
    assert len(set(fp16)) == 1


def test_generated_tokens_and_growing_cache():
    design = DESIGNS["ant"]
    design = replace(design, decode_bits=5)

    def token(context, switches):
        return published_pass(TOY, design, "decode", context=context, corrections=switches).cycles

    def whole(switches):
        return published_generation(TOY, design, tokens=40, corrections=switches).cycles

    first = published_pass(TOY, design, "prefill", tokens=40).cycles
    assert whole(Corrections()) == first + 20 * token(40, Corrections())
    more = Corrections(generated_tokens=True)
    assert whole(more) == first + 256 * token(40, more)
    grown = replace(more, growing_cache=True)
    assert whole(grown) == first + sum(token(40 + step, grown) for step in range(1, 257))
    assert whole(grown) > whole(more)


def test_encoders_take_energy_and_area():
    base, answer = run(), run(encoders=True)
    compute = sum(row.compute_cycles for row in base.rows)
    # 16 tiles of 8 x 8 PEs, 1.86 pJ a cycle each, place and route 1.5.
    assert answer.encoder_uj == pytest.approx(16 * 1.86 * 1.5 * compute * 1e-6)
    assert answer.encoder_mm2 == pytest.approx(16 * 2419e-6)
    assert answer.cycles == base.cycles and base.encoder_uj == base.encoder_mm2 == 0
    assert run(design="fp16", encoders=True) == run(design="fp16")


def test_a_half_wide_port_is_read_twice():
    base, answer = rows(run())["attn.q"], rows(run(port_accesses=True))["attn.q"]
    read = sram(65536, 64).read_pj + sram(65536, 128).read_pj  # the two ports
    assert answer.sram_pj - base.sram_pj == pytest.approx(8 * 8 * read)  # 8 steps, 8 banks
    assert run(design="olive", port_accesses=True).rows == run(design="olive").rows


def test_memories_leak_and_stand_by():
    base, answer = run(), run(sram_leakage=True, dram_standing=True)
    nanoseconds = base.cycles  # at 1 GHz
    leak_mw = 8 * (sram(65536, 64).leak_mw + sram(65536, 128).leak_mw)
    assert answer.leakage_uj == pytest.approx(leak_mw * nanoseconds * 1e-6)
    standing = DRAMS["ddr4-3200"].standing_pj(nanoseconds * 1e-9) * 1e-6
    assert answer.standing_uj == pytest.approx(standing)
    assert base.leakage_uj == base.standing_uj == 0
    parts = answer.cost.energy_uj
    assert answer.cost.total_uj == pytest.approx(base.cost.total_uj + answer.leakage_uj + standing)
    assert answer.cost.on_chip_uj == pytest.approx(
        parts["logic"] + parts["sram"] + parts["leakage"]
    )


def test_place_and_route_is_in_the_area():
    assert run().array_mm2 == pytest.approx(1024 * 1507.7e-6)
    assert run(place_and_route=True).array_mm2 == pytest.approx(1.5 * 1024 * 1507.7e-6)
    both = run(place_and_route=True, encoders=True)
    assert both.encoder_mm2 == pytest.approx(1.5 * 16 * 2419e-6)
