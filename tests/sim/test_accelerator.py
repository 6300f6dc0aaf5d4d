"""The array, its buffers and its DRAM: hand-worked cases, properties, errors."""

import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitwright.quant import FORMATS, InputError, resolve_recipe
from bitwright.sim import (
    PES,
    SHAPES,
    Accelerator,
    Gemm,
    Operand,
    PEArea,
    Workload,
    bitmod,
    default_accelerator,
    gemm_cycles,
    prefill,
    simulate,
    simulate_model,
    sram,
)

# 2 x 2 PEs of 4 lanes with buffers of 8 KiB in one bank.
SMALL = Accelerator(rows=2, cols=2, weight_buffer_kib=8, activation_buffer_kib=8, banks=1)
TINY = Gemm("tiny", m=3, n=5, k=10)
GROUPED = Operand(2, FORMATS["bitmod3"], group_size=8)


def workload(*gemms, tokens=None):
    return Workload("test", "rows", tokens, None, gemms, "a test")


def run(gemm, accelerator=SMALL, block=GROUPED, **more):
    return simulate(workload(gemm), accelerator, block=block, **more)


# ------------------------------------------------------------------ cycles, by hand


def test_cycles_without_overhead():
    # Output tiles: ceil(5 / 2) * ceil(3 / 2) = 6. Groups of 8 and 2 weights take
    # ceil(8 / 4) * 2 = 4 and ceil(2 / 4) * 2 = 2 cycles. Fill: 12 cycles of pipeline.
    bare = replace(SMALL, scale_cycles=0, rows_per_accumulator=1, weight_lane_bits=8)
    assert gemm_cycles(TINY, bare, GROUPED) == 6 * (4 + 2) + 12


def test_a_short_group_waits_for_the_scale_unit():
    # Both groups last 8 cycles, one per scale bit. Two PEs of a column share an accumulator, so
    # the last one drains 1 cycle later.
    assert gemm_cycles(TINY, SMALL, GROUPED) == 6 * (8 + 8) + 12 + 1


def test_a_group_waits_for_the_column_accumulator():
    slow = replace(SMALL, scale_cycles=0, rows_per_accumulator=11)
    assert gemm_cycles(TINY, slow, GROUPED) == 6 * (11 + 11) + 12 + 1


def test_a_group_of_128_hides_scale_unit_and_drain():
    # 32 x 32 PEs: 32 steps of 2 cycles per group, 8 groups, 4 * 2 tiles;
    # fill 12 + 7 (drain of 8 PEs) + 3 + 3 (4 x 4 tiles of 8 x 8 PEs, one cycle apart).
    gemm = Gemm("x", m=64, n=128, k=1024)
    operand = Operand(2, FORMATS["bitmod4"], 128)
    assert gemm_cycles(gemm, Accelerator(), operand) == 8 * 8 * 64 + 25


def test_one_group_per_row_when_no_group_size_is_given():
    bare = replace(SMALL, scale_cycles=0, rows_per_accumulator=1)
    # ceil(10 / 4) = 3 steps of 4 cycles
    assert gemm_cycles(TINY, bare, Operand(4)) == 6 * 12 + 12


def test_a_narrow_port_stretches_a_step():
    bare = replace(SMALL, scale_cycles=0, rows_per_accumulator=1)
    # (5 * 10 weights take 410 bits: 8.2 bits each, 3 cycles a step.)
    assert gemm_cycles(TINY, bare, GROUPED) == 6 * (2 * 3 + 3) + 12
    # 16-bit weights through 4 bits a cycle: 4 cycles a step, though the PE needs 1.
    assert gemm_cycles(TINY, bare, Operand(1)) == 6 * 3 * 4 + 12
    # 16-bit activations through 3 bits a cycle: 6 cycles a step.
    narrow = replace(bare, activation_lane_bits=3)
    assert gemm_cycles(TINY, narrow, GROUPED) == 6 * (2 * 6 + 6) + 12


@pytest.mark.parametrize("name", ["bitmod3", "bitmod4", "int8-sym", "int6-sym", "int5-sym"])
@pytest.mark.parametrize(("k", "group"), [(128, 128), (320, 128), (96, 32), (1536, 64)])
def test_one_pe_takes_what_the_pe_model_says(name, k, group):
    one = Accelerator(rows=1, cols=1)
    pe, fmt = bitmod.BitmodPE(), FORMATS[name]
    operand = Operand(pe.step_cycles(fmt), fmt, group)
    counted = pe.cycles(k, group, fmt, dots=6) + 1  # it counts the first cycle as 0
    assert gemm_cycles(Gemm("x", m=2, n=3, k=k), one, operand) == counted


def test_one_fp16_pe_takes_what_the_pe_model_says():
    one = replace(default_accelerator("fp16"), rows=1, cols=1)
    counted = PES["fp16"].cycles(96, dots=6) + 1  # it counts the first cycle as 0
    assert gemm_cycles(Gemm("x", m=2, n=3, k=96), one, Operand(1)) == counted


# ------------------------------------------------------------------ bytes and energy, by hand


def test_bytes_of_a_small_product():
    # Weights: 5 rows of 10 * 3 bits + 2 groups * (8 + 2) bits + 32 bits = 410 bits = 52 bytes.
    # Inputs 3 * 10 * 2 = 60, outputs 3 * 5 * 2 = 30; 142 bytes at 32 a cycle take 5 cycles.
    (layer,) = run(TINY).layers
    assert (layer.weight_bytes, layer.input_bytes, layer.output_bytes) == (52, 60, 30)
    assert (layer.dram_cycles, layer.compute_cycles, layer.cycles) == (5, 109, 109)
    assert layer.stall_cycles == 0
    assert layer.dram_uj == pytest.approx(142 * 8 * 18.75e-6)


def test_sram_energy_of_a_small_product():
    (layer,) = run(TINY).layers
    # Ports: 2 rows * 4 lanes * 4 bits = 32, 2 columns * 4 lanes * 8 bits = 64.
    weights, activations = sram(8192, 32), sram(8192, 64)
    # Weights go in once and out for each of 2 columns of tiles. Inputs go in once and out for each
    # of 3 rows of tiles; outputs go in once and out once.
    weight_pj = (52 * weights.write_pj + 2 * 52 * weights.read_pj) * 8 / 32
    activation_pj = (90 * activations.write_pj + (3 * 60 + 30) * activations.read_pj) * 8 / 64
    assert layer.sram_uj == pytest.approx((weight_pj + activation_pj) * 1e-6)


def test_leakage_is_that_of_both_buffers_over_the_run():
    result = run(TINY)
    leak_mw = sram(8192, 32).leak_mw + sram(8192, 64).leak_mw
    assert result.leakage_uj == pytest.approx(leak_mw * 1e-3 * 109e-9 * 1e6)


def test_a_product_waits_for_dram():
    # One token: 4096 * 4096 weights of 16 bits are 33,554,432 bytes, 1,048,576 cycles; inputs and
    # outputs 8192 bytes each, 512 cycles. Compute on 32 x 24 FP16 PEs of one lane: 128 tiles of
    # 4096 steps of one cycle, fill 2 (pipeline) + 7 (drain) + 3 + 2 (skew).
    gemm = Gemm("x", 1, 4096, 4096)
    (layer,) = run(gemm, default_accelerator("fp16"), Operand(1)).layers
    assert layer.compute_cycles == 128 * 4096 + 14
    assert layer.dram_cycles == layer.cycles == 1_048_576 + 512
    assert layer.stall_cycles == 1_049_088 - 524_302


@pytest.mark.parametrize(
    ("n", "m", "expected"),
    [
        (64, 600, (1, 1)),  # the weights fit
        (600, 64, (1, 1)),  # the inputs fit
        (65, 65, (1, 2)),  # 65 + 2 * 65 either way: the inputs again
        (192, 128, (2, 1)),  # 2 * 192 + 128 against 192 + 3 * 128
        (128, 192, (1, 2)),  # 3 * 128 + 192 against 128 + 2 * 192
        (576, 96, (2, 1)),  # 2 * 576 + 96 against 576 + 9 * 96
    ],
)
def test_the_cheaper_order_is_fetched_again(n, m, expected):
    # 64 inputs of 16 bits make rows of 128 bytes: 64 rows fill a buffer of 8 KiB.
    (layer,) = run(Gemm("x", m, n, 64), block=Operand(4)).layers
    assert (layer.weight_fetches, layer.input_fetches) == expected


def test_a_repeated_fetch_is_paid_on_dram_and_in_the_buffer():
    # 8 KiB buffers: 128 * 128 * 2 = 32 KiB of weights, 65 * 128 * 2 = 16.25 KiB of inputs.
    # All weights 3 times: 96 + 16.25 KiB; all inputs 4 times: 32 + 65 KiB, which is less.
    (layer,) = run(Gemm("x", 65, 128, 128), block=Operand(4)).layers
    assert (layer.weight_fetches, layer.input_fetches) == (1, 4)
    assert (layer.weight_bytes, layer.input_bytes) == (32 * 1024, 65 * 1024)


# ------------------------------------------------------------------ properties

sizes = st.integers(1, 300)
gemms = st.builds(Gemm, st.just("x"), sizes, sizes, sizes, st.integers(1, 3))
operands = st.sampled_from([GROUPED, Operand(4), Operand(3, FORMATS["int6-sym"], 32)])


@given(gemms, operands, st.integers(1, 64), st.integers(1, 64))
def test_more_rows_or_columns_never_take_more_tiles(gemm, operand, few, more):
    def tiles(rows, cols):
        array = Accelerator(rows=rows, cols=cols)
        return gemm_cycles(gemm, array, operand) - array.fill_cycles

    assert tiles(few + more, 4) <= tiles(few, 4)
    assert tiles(4, few + more) <= tiles(4, few)


@given(gemms, operands)
def test_bytes_are_conserved(gemm, operand):
    result = run(gemm, block=operand)
    (layer,) = result.layers
    weights = -(-operand.stored_bits(gemm.n, gemm.k) // 8)
    assert layer.weight_bytes == gemm.count * weights * layer.weight_fetches
    assert layer.input_bytes == gemm.count * 2 * gemm.m * gemm.k * layer.input_fetches
    assert layer.output_bytes == gemm.count * 2 * gemm.m * gemm.n
    assert 1 in (layer.weight_fetches, layer.input_fetches)
    assert result.dram_bytes == layer.weight_bytes + layer.input_bytes + layer.output_bytes
    assert result.dram_uj == pytest.approx(result.dram_bytes * 8 * 18.75e-6)
    assert layer.cycles == max(layer.compute_cycles, layer.dram_cycles)
    assert layer.stall_cycles >= 0
    # The array never does more than lanes * rows * cols multiplications per step.
    assert gemm.macs * operand.step_cycles <= layer.compute_cycles * 2 * 2 * 4


@given(gemms, operands)
def test_faster_dram_never_takes_longer(gemm, operand):
    fast = replace(SMALL, dram="hbm2")
    assert run(gemm, fast, operand).cycles <= run(gemm, block=operand).cycles


@given(gemms)
def test_repetitions_add_up(gemm):
    once = run(replace(gemm, count=1))
    again = run(gemm)
    assert again.cycles == gemm.count * once.cycles
    assert again.dram_bytes == gemm.count * once.dram_bytes
    assert again.sram_uj == pytest.approx(gemm.count * once.sram_uj)


# ------------------------------------------------------------------ results


def test_area_is_rolled_up():
    area = run(TINY, pe_area=PEArea(1000.0, "a test", encoder_um2=50.0)).area
    # 2 x 2 PEs; each column of 2 shares one encoder.
    assert area.array == pytest.approx(4 * 1000e-6)
    assert area.encoders == pytest.approx(2 * 50e-6)
    assert area.sram == pytest.approx(sram(8192, 32).area_mm2 + sram(8192, 64).area_mm2)
    assert area.total == pytest.approx(area.array + area.encoders + area.sram)


def test_eight_pes_of_a_column_share_an_encoder():
    # Published tile of 8 x 8 PEs: 8 encoders; the array has 4 x 4 tiles.
    assert Accelerator().shared_units == 16 * 8
    assert Accelerator(rows=9, cols=3).shared_units == 2 * 3


def test_what_is_not_modelled_is_none():
    result = run(TINY)
    assert (result.logic_uj, result.total_uj, result.area.total) == (None, None, None)
    document = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert document["energy_uJ"]["logic"] is None and document["energy_uJ"]["total"] is None
    assert "not modelled yet" in document["energy_uJ"]["note"]
    assert document["area_mm2"] is None and document["area_breakdown_mm2"]["sram"] > 0
    assert document["tokens_per_s"] is None


def test_rate_and_latency_follow_from_the_clock():
    result = simulate(workload(TINY, tokens=6), replace(SMALL, clock_ps=2000), block=GROUPED)
    assert result.latency_s == pytest.approx(109 * 2e-9)
    assert result.tokens_per_s == pytest.approx(6 / (109 * 2e-9))


def test_every_constant_of_a_result_has_its_source():
    sources = "\n".join(run(TINY, pe_area=PEArea(1.0, "a synthesis")).sources)
    for part in ("CACTI 7", "BitMoD-HPCA-25", "BitMoD (HPCA 2025)", "a synthesis", "a test"):
        assert part in sources


def test_a_bank_slower_than_the_clock_is_noted():
    assert not any("interleaving" in note for note in run(TINY).notes)
    assert any("interleaving" in note for note in run(TINY, replace(SMALL, clock_ps=100)).notes)


def test_a_pe_slower_than_the_clock_is_noted():
    slow, fast = PEArea(1.0, "a test", delay_ps=1200.4), PEArea(1.0, "a test", delay_ps=1000.0)
    assert any("critical path is 1200 ps" in note for note in run(TINY, pe_area=slow).notes)
    assert not any("critical path" in note for note in run(TINY, pe_area=fast).notes)


# ------------------------------------------------------------------ models and recipes


def test_a_quantised_model_keeps_output_layer_and_cache_at_16_bits():
    result = simulate_model("llama-2-7b", "bitmod4", "decode")
    layers = {layer.name: layer for layer in result.layers}
    # 4 bits + (8 + 2) / 128 per group + 32 / 4096 per row
    assert layers["attn.q"].weight_bytes == 32 * 4096 * (4096 * 4 + 32 * 10 + 32) // 8
    assert layers["lm_head"].weight_bytes == 32000 * 4096 * 2
    assert layers["attn.scores"].weight_bytes == 32 * 32 * 256 * 128 * 2
    # The PE has no FP16 weight mode: 4 cycles a step for these, 2 for the quantised weights.
    assert layers["attn.q"].compute_cycles == 32 * (128 * 1024 * 2 + 25)
    assert layers["lm_head"].compute_cycles == 1000 * 1024 * 4 + 25
    assert any("8-bit weight mode" in note for note in result.notes)
    assert result.config["recipe"] == "w4g128-bitmod"


def test_fewer_weight_bits_move_fewer_bytes():
    names = ("w8g64-int-sym-s8", "w6g64-int-sym-s8", "bitmod4", "bitmod3")
    decodes = [simulate_model("smollm2-135m", name, "decode") for name in names]
    for wide, narrow in zip(decodes, decodes[1:], strict=False):
        assert narrow.dram_bytes < wide.dram_bytes and narrow.cycles < wide.cycles


def test_fp16_group_scales_on_an_8_bit_scale_unit_are_noted():
    assert any("int8 scales" in n for n in simulate_model("phi-2", "w4g128-int-sym").notes)
    assert not any("int8 scales" in n for n in simulate_model("phi-2", "w4g128-int-sym-s8").notes)


def test_a_recipe_object_and_a_shape_object_are_taken():
    by_name = simulate_model("phi-2", "bitmod3", "prefill", tokens=64)
    by_value = simulate_model(SHAPES["phi-2"], resolve_recipe("bitmod3"), "prefill", tokens=64)
    assert by_value == by_name
    assert simulate_model(prefill(SHAPES["phi-2"], 64), "bitmod3").cycles == by_name.cycles


def test_fp16_weights_run_on_the_fp16_pe():
    result = simulate_model("phi-2", "fp16", "decode")
    assert result.config["pe"] == "fp16"
    assert {row["step_cycles"] for row in result.config["operands"].values()} == {1}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"phase": "train"}, "phase is 'train'; one of prefill, decode"),
        ({"recipe": "bitmod9"}, "unknown recipe 'bitmod9'"),
        ({"recipe": "fp16", "pe": "bitmod"}, "bitmod PE cannot run FP16 weights"),
        ({"pe": "bitmodd"}, "unknown pe 'bitmodd'; did you mean bitmod"),
        ({"pe": "fp16", "accelerator": Accelerator()}, "pe is 'fp16', but the accelerator's is"),
        ({"accelerator": Accelerator(pe="gpu")}, "unknown pe 'gpu'"),
        ({"tokens": 0}, "tokens is 0"),
        ({"shape": "llama"}, "unknown shape"),
        ({"accelerator": Accelerator(weight_buffer_kib=1 << 20)}, "nothing is extrapolated"),
    ],
)
def test_wrong_arguments_are_refused(arguments, message):
    with pytest.raises(InputError, match=message):
        simulate_model(**{"shape": "phi-2", **arguments})


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"rows": 0}, "rows is 0; at least 1"),
        ({"cols": -1}, "cols is -1; at least 1"),
        ({"lanes": 0}, "lanes is 0; at least 1"),
        ({"weight_buffer_kib": 0}, "weight_buffer_kib is 0"),
        ({"scale_cycles": -1}, "scale_cycles is -1; at least 0"),
        ({"clock_ps": 0.0}, "clock_ps is 0.0"),
        ({"clock_ps": float("nan")}, "clock_ps is nan"),
        ({"dram": "tape"}, "unknown dram 'tape'"),
    ],
)
def test_impossible_accelerators_are_refused(setting, message):
    with pytest.raises(InputError, match=message):
        Accelerator(**setting)


def test_impossible_operands_are_refused():
    with pytest.raises(InputError, match="step_cycles is 0"):
        Operand(0)
    with pytest.raises(InputError, match="group_size is 0"):
        Operand(1, FORMATS["int4-sym"], 0)
