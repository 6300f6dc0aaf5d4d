"""The array, its buffers and its DRAM: hand-worked cases, properties, errors."""

import json
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitwright.quant import FORMATS, InputError, Recipe, resolve_recipe
from bitwright.sim import (
    DRAMS,
    PES,
    SHAPES,
    TRAFFIC_OPERANDS,
    Accelerator,
    Gemm,
    Operand,
    PEArea,
    Traffic,
    VectorOp,
    Workload,
    bitmod,
    decode,
    default_accelerator,
    fetches,
    gemm_cycles,
    mapping,
    operands_for,
    prefill,
    simulate,
    simulate_model,
    sram,
    stepped_cycles,
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
    # Both groups last 8 cycles, one per scale bit; the first of all has no group before it and
    # takes its 2 steps of 3 cycles (8.2 bits through 4 a cycle). Two PEs of a column share an
    # accumulator, so the last one drains 1 cycle later.
    assert gemm_cycles(TINY, SMALL, GROUPED) == 6 * (8 + 8) - 2 + 12 + 1


def test_a_group_waits_for_the_column_accumulator():
    slow = replace(SMALL, scale_cycles=0, rows_per_accumulator=11)
    assert gemm_cycles(TINY, slow, GROUPED) == 6 * (11 + 11) - 5 + 12 + 1


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


def test_cycles_and_bytes_of_a_small_product():
    # Six tiles of 16 cycles, the first of 14 (see above), fill 12, drain 1. The mapper streams, for
    # only the first step (2 tokens of 64 bits, 2 channels of 12 + 10 + 32 bits, in 1 cycle of 256)
    # and the last tile's results (16 bits: 1 cycle) are waited for. So both operands are fetched
    # for every tile: weights, 5 rows of 10 * 3 bits + 2 groups * (8 + 2) bits + 32 bits = 410 bits,
    # twice; inputs, 3 * 10 * 16 = 480 bits, three times; results 3 * 5 * 16 = 240 bits.
    (layer,) = run(TINY).layers
    assert layer.mapping == "stream, tiles of 2 x 2"
    assert layer.compute_cycles == 94 + 12 + 1
    assert layer.busy_cycles == 6 * (2 + 1) * 2
    assert layer.stalls == dict(
        fill=12, port=18, conflict=0, scale=94 - 36 - 18, drain=1, dram=2, latency=0
    )
    assert (layer.cycles, layer.stall_cycles) == (109, 2)
    assert (layer.weight_bytes, layer.input_bytes, layer.output_bytes) == (103, 180, 30)
    assert (layer.weight_fetches, layer.input_fetches) == (2, 3)
    assert layer.dram_cycles == 10  # (820 + 1440 + 240) / 256
    assert layer.dram_uj == pytest.approx(313 * 8 * 18.75e-6)
    assert layer.macs == 150
    assert layer.utilisation == pytest.approx(150 * 2 / (109 * 2 * 2 * 4))


def test_sram_energy_of_a_small_product():
    (layer,) = run(TINY).layers
    # Ports: 2 columns * 4 lanes * 4 bits = 32, 2 rows * 4 lanes * 8 bits = 64.
    weights, activations = sram(8192, 32), sram(8192, 64)
    # Weights go in as often as they are fetched and out for each of 2 rows of tiles, inputs for
    # each of 3 columns of tiles; results go in once and out once.
    weight_pj = (820 * weights.write_pj + 820 * weights.read_pj) / 32
    activation_pj = (1680 * activations.write_pj + 1680 * activations.read_pj) / 64
    assert layer.sram_uj == pytest.approx((weight_pj + activation_pj) * 1e-6)


def test_leakage_is_that_of_both_buffers_over_the_run():
    result = run(TINY)
    leak_mw = sram(8192, 32).leak_mw + sram(8192, 64).leak_mw
    assert result.leakage_uj == pytest.approx(leak_mw * 1e-3 * 109e-9 * 1e6)
    assert result.logic_leakage_uj is None


def test_logic_leaks_where_its_leakage_is_known():
    area = PEArea(1.0, "a test", leakage_uw=2.0, encoder_leakage_uw=3.0)
    result, without = run(TINY, pe_area=area), run(TINY)
    # 4 PEs and 2 encoders.
    assert result.logic_leakage_uj == pytest.approx((4 * 2 + 2 * 3) * 1e-6 * 109e-9 * 1e6)
    assert result.leakage_uj == pytest.approx(without.leakage_uj + result.logic_leakage_uj)


def test_a_product_waits_for_dram():
    # One token through 24 x 32 FP16 PEs of one lane: 128 tiles of 4096 steps of one cycle; fill 2
    # (pipeline) + 2 + 3 (skew), drain 7. A tile of 32 * 4096 weights of 16 bits takes 8192 cycles
    # of DRAM, two of them fill the buffer; a tile's 64 bytes of results take 2.
    gemm = Gemm("x", 1, 4096, 4096)
    (layer,) = run(gemm, default_accelerator("fp16"), Operand(1)).layers
    assert layer.mapping == "keep x 1, tiles of 24 x 32"
    assert layer.compute_cycles == 128 * 4096 + 7 + 7
    first = 256 + 8192  # the token's 8192 bytes and the first tile
    assert layer.stall_cycles == first + 127 * (8192 + 2 - 4096) + 2
    assert layer.dram_cycles == 1_048_576 + 512


def test_standing_energy_of_dram_runs_on_through_everything():
    result = run(TINY, replace(SMALL, dram="ddr4-3200"))
    dram = DRAMS["ddr4-3200"]
    assert result.standing_uj == pytest.approx(dram.standing_mw * 1e-3 * result.latency_s * 1e6)
    moved = sum(layer.dram_uj for layer in result.layers)
    assert result.dram_uj == pytest.approx(moved + result.standing_uj)
    assert run(TINY).standing_uj == 0


def test_latency_of_dram_is_paid_once_per_product():
    slow = run(replace(TINY, count=3), replace(SMALL, dram="ddr4-3200"))
    (layer,) = slow.layers
    assert layer.latency_cycles == 3 * DRAMS["ddr4-3200"].latency_cycles(1000.0) > 0


def test_one_port_for_reads_and_writes_conflicts():
    # With one port a buffer does one after the other what two ports do beside each other.
    gemm = Gemm("x", 64, 64, 64)
    two, one = (
        run(gemm, replace(SMALL, sram_ports=ports), Operand(4)) for ports in ("1r1w", "1rw")
    )
    (free,), (shared,) = two.layers, one.layers
    # Weights: 32 rows of tiles read 64 * 64 * 16 bits through 32 bits a cycle; the fetch writes.
    reads, writes = 32 * 64 * 64 * 16 // 32, free.weight_bytes * 8 // 32
    without = free.cycles - free.conflict_cycles
    weights = max(0, reads + writes - without)
    reads = (32 * 64 * 64 * 16 + 64 * 64 * 16) // 64
    writes = free.input_bytes * 8 // 64 + 64 * 64 * 16 // 64
    activations = max(0, reads + writes - without)
    assert free.conflict_cycles == 0
    assert shared.conflict_cycles == max(weights, activations) > 0
    assert shared.cycles == without + shared.conflict_cycles


@pytest.mark.parametrize(
    ("weights", "inputs", "expected"),
    [
        (64, 600, (1, 1)),  # the weights fit
        (600, 64, (1, 1)),  # the inputs fit
        (65, 65, (1, 2)),  # 65 + 2 * 65 either way: the inputs again
        (192, 128, (2, 1)),  # 2 * 192 + 128 against 192 + 3 * 128
        (128, 192, (1, 2)),  # 3 * 128 + 192 against 128 + 2 * 192
        (576, 96, (2, 1)),  # 2 * 576 + 96 against 576 + 9 * 96
    ],
)
def test_the_published_rule_fetches_the_cheaper_operand_again(weights, inputs, expected):
    assert fetches(weights, inputs, 64, 64) == expected


# ------------------------------------------------------------------ properties

sizes = st.integers(1, 300)
gemms = st.builds(Gemm, st.just("x"), sizes, sizes, sizes, st.integers(1, 3))
operands = st.sampled_from([GROUPED, Operand(4), Operand(3, FORMATS["int6-sym"], 32)])


@given(gemms, operands, st.integers(1, 64), st.integers(1, 64))
def test_more_rows_or_columns_never_take_more_tiles(gemm, operand, few, more):
    def tiles(rows, cols):
        array = Accelerator(rows=rows, cols=cols)
        return gemm_cycles(gemm, array, operand) - array.fill_cycles - array.drain_cycles

    assert tiles(few + more, 4) <= tiles(few, 4)
    assert tiles(4, few + more) <= tiles(4, few)


masked = st.builds(
    lambda positions, per, width, mask: Gemm(
        "x",
        positions * per,
        *((positions, width) if mask == "scores" else (width, positions)),
        kind="cache",
        mask=mask,
        rows_per_position=per,
    ),
    st.integers(1, 60),
    st.integers(1, 3),
    st.integers(1, 40),
    st.sampled_from(["scores", "values"]),
)
writers = st.just(Gemm("x", 24, 32, 20, 2, cache_rows=48))


@given(st.one_of(gemms, masked, writers), operands, st.sampled_from(["1rw", "1r1w"]))
def test_bytes_are_conserved_between_levels(gemm, operand, ports):
    """What the array takes is counted tile by tile; the rest is what the result says."""
    array = replace(SMALL, sram_ports=ports)
    result = run(gemm, array, operand, cache=operand)
    (layer,) = result.layers
    high, wide = (int(side) for side in layer.mapping.rpartition(" of ")[2].split(" x "))
    w_bits = x_bits = results = 0
    for start in range(0, gemm.m, high):
        tokens = range(start, min(start + high, gemm.m))
        seen = tokens[-1] // gemm.rows_per_position + 1
        k = min(seen, gemm.k) if gemm.mask == "values" else gemm.k
        for first in range(0, gemm.n, wide):
            if gemm.mask == "scores" and first >= seen:
                continue
            channels = min(wide, gemm.n - first)
            w_bits += operand.stored_bits(channels, k)
            x_bits += len(tokens) * k * 16
            results += len(tokens) * channels
    if gemm.cache_rows:
        results_bits = gemm.cache_rows * operand.stored_bits(1, gemm.m * gemm.n // gemm.cache_rows)
    else:
        results_bits = 16 * results

    def rows(w=0, x=0, y=0):
        w_name = "cache" if gemm.kind == "cache" else "weights"
        y_name = "cache" if gemm.cache_rows else "outputs"
        counts = dict.fromkeys(TRAFFIC_OPERANDS, 0)
        counts[w_name] += w
        counts["inputs"] += x
        counts[y_name] += y
        return np.array(list(counts.values()), np.int64)

    def whole(bits):
        return gemm.count * -(-bits // 8)

    w_read = layer.cache_bytes if gemm.kind == "cache" else layer.weight_bytes
    written = layer.cache_bytes if gemm.cache_rows else layer.output_bytes
    traffic = Traffic(
        dram_read=rows(w_read, layer.input_bytes),
        fill_write=rows(layer.weight_buffer_write_bytes, layer.activation_buffer_write_bytes),
        buffer_read=rows(layer.weight_buffer_read_bytes, layer.activation_buffer_read_bytes),
        array_in=rows(whole(w_bits), whole(x_bits)),
        array_out=rows(y=whole(results_bits)),
        result_write=rows(y=layer.result_bytes),
        result_read=rows(y=layer.result_bytes),
        dram_write=rows(y=written),
    )
    traffic.check()
    assert result.dram_bytes == traffic.dram_bytes == layer.dram_bytes
    assert result.dram_uj == pytest.approx(result.dram_bytes * 8 * 18.75e-6)
    # The array never does more than lanes * rows * cols multiplications per step.
    assert gemm.macs * operand.step_cycles <= layer.compute_cycles * 2 * 2 * 4
    assert 0 < layer.utilisation <= 1


@given(st.one_of(gemms, masked), operands, st.sampled_from(["ddr4-bitmod", "hbm2"]))
def test_busy_cycles_and_causes_add_up(gemm, operand, dram):
    ops = (VectorOp("v", "softmax", 7, 30, 2), VectorOp("a", "add", 3, 500))
    work = replace(workload(gemm, replace(gemm, name="y")), vector=ops)
    array = replace(SMALL, dram=dram, sram_ports="1rw")
    result = simulate(work, array, block=operand)
    for layer in result.layers:
        assert layer.busy_cycles + sum(layer.stalls.values()) == layer.cycles
        assert min(layer.busy_cycles, *layer.stalls.values()) >= 0
    vector_busy = sum(row.busy_cycles for row in result.vector)
    assert result.busy_cycles + vector_busy + sum(result.stalls.values()) == result.cycles
    parts = result.compute_cycles + result.stall_cycles + result.vector_cycles
    assert parts == result.cycles
    for part in ("standing_uj", "leakage_uj"):
        rows = [getattr(row, part) for row in (*result.layers, *result.vector)]
        assert sum(rows) == pytest.approx(getattr(result, part))


@given(gemms, operands)
def test_faster_dram_never_costs_more(gemm, operand):
    """Cycles as the mapper weighs them; the cycles alone may rise where bytes are saved."""

    def cost(array):
        (layer,) = run(gemm, array, operand).layers
        cycles = layer.cycles - layer.conflict_cycles
        return mapping.THRIFT * cycles + layer.dram_cycles

    # At half the clock the same DRAM moves twice as much a cycle.
    assert cost(replace(SMALL, clock_ps=2000.0)) <= cost(SMALL)


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
    assert "was not measured" in document["energy_uJ"]["note"]
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
    assert not any("SRAM bank cycles" in note for note in run(TINY).notes)
    # An access takes 2 cycles of 100 ps, but 16-bit weights, 4 at a time, need one each cycle.
    fast = run(Gemm("x", 64, 64, 64), replace(SMALL, clock_ps=100), Operand(1))
    (note,) = [note for note in fast.notes if "SRAM bank cycles in" in note]
    assert "each access takes 2 cycles" in note
    (layer,) = fast.layers
    reads = layer.weight_buffer_read_bytes * 8 // 32
    assert layer.conflict_cycles == 2 * reads - (layer.cycles - layer.conflict_cycles) > 0


def test_a_pe_slower_than_the_clock_is_noted():
    slow, fast = PEArea(1.0, "a test", delay_ps=1200.4), PEArea(1.0, "a test", delay_ps=1000.0)
    assert any("critical path is 1200 ps" in note for note in run(TINY, pe_area=slow).notes)
    assert not any("critical path" in note for note in run(TINY, pe_area=fast).notes)


def test_rows_are_equal_to_any_sequence_of_equal_rows():
    work = replace(workload(TINY, replace(TINY, k=20)), vector=(VectorOp("v", "gelu", 2, 5),))
    one, other = (simulate(work, SMALL, block=GROUPED) for _ in range(2))
    assert one == other and one.layers == tuple(other.layers) and len(one.layers) == 2
    assert one.layers[1:] == (other.layers[1],) and one.layers[-1].k == 20
    assert one != simulate(work, SMALL, block=Operand(2))
    (row,) = one.vector
    # 10 elements, 3 operations each on 64 lanes, no DRAM of their own.
    assert (row.name, row.elements, row.cycles, row.dram_bytes) == ("v", 10, 3, 0)


def test_a_vector_operation_waits_for_its_operands():
    # Sums of 2 x 1000 elements: 32 cycles of 64 lanes; 4000 bytes of the second operand take 125.
    work = replace(workload(TINY), vector=(VectorOp("a", "add", 2, 1000),))
    (row,) = simulate(work, SMALL, block=GROUPED).vector
    assert (row.busy_cycles, row.cycles, row.dram_bytes) == (32, 125, 4000)
    wide = simulate(work, replace(SMALL, vector_lanes=8, clock_ps=4000.0), block=GROUPED)
    assert [r.cycles for r in wide.vector] == [250]


# ------------------------------------------------------------------ defaults by PE


def recipe_of(pe):
    """The 4-bit recipe of a PE, or that of its only formats."""
    if pe in ("bitmod", "fp16", "fp16acc16"):
        return resolve_recipe({"bitmod": "bitmod4"}.get(pe, "fp16"))
    formats = [FORMATS[name] for name in PES[pe].weight_formats]
    if pe == "btc-w2a8":
        formats = [FORMATS["int2-sym"]]
    fmt = max((f for f in formats if f.bits <= 4), key=lambda f: f.bits, default=formats[0])
    return Recipe(format=fmt.name, group_size=fmt.block or 128)


@pytest.mark.parametrize("pe", PES)
def test_every_pe_has_an_array_that_its_ports_do_not_slow(pe):
    recipe, array = recipe_of(pe), default_accelerator(pe)
    step = PES[pe].step_cycles(recipe.format_obj)
    peak = array.rows * array.cols * array.lanes / step
    assert peak == (768 if pe.startswith("fp16acc") or pe == "fp16" else 2048)
    assert array.lanes == PES[pe].lanes
    for phase in ("prefill", "decode"):
        # All k are whole groups of 128.
        result = simulate_model("llama-2-7b", recipe, phase, accelerator=array)
        for layer in result.layers:
            if layer.kind == "block":
                assert (layer.port_cycles, layer.scale_cycles) == (0, 0)
        assert result.busy_cycles > 0 and result.cycles > result.compute_cycles


def test_published_arrays_are_as_published():
    assert default_accelerator("bitmod") == Accelerator()
    fp16 = default_accelerator("fp16")
    # 4 x 4 tiles of 6 x 8 PEs: 24 tokens x 32 output channels.
    assert (fp16.rows, fp16.cols, fp16.lanes) == (24, 32, 1)
    assert replace(fp16, pe="fp16acc16") == default_accelerator("fp16acc16")


def test_activations_move_in_the_format_of_the_pe():
    # INT8 with one FP16 scale per token: 576 + 2 bytes a token; results are FP16.
    int8 = simulate_model("smollm2-135m", "w8g64-int-sym", "decode", pe="int8")
    query = int8.layers[0]
    assert query.name == "attn.q" and query.input_bytes == 30 * (576 + 2) * query.input_fetches
    assert query.output_bytes == 30 * 576 * 2
    assert any(row.function == "quantise" for row in int8.vector)
    fp16 = simulate_model("smollm2-135m", "bitmod4", "decode")
    assert fp16.layers[0].input_bytes == 30 * 576 * 2
    assert not any(row.function == "quantise" for row in fp16.vector)
    work = workload(Gemm("x", 2, 8, 64))
    (layer,) = simulate(work, SMALL, block=GROUPED, act_format="mxfp4").layers
    # 64 codes of 4 bits and 2 scales of 8 bits in each row.
    assert layer.input_bytes == 2 * (64 * 4 + 2 * 8) // 8 * layer.input_fetches


@pytest.mark.parametrize("phase", [prefill, decode])
@pytest.mark.parametrize("pe", ["bitmod", "int8", "nvfp4"])
def test_whole_models_are_what_stepping_through_them_gives(pe, phase):
    recipe = recipe_of(pe)
    operands, _ = operands_for(recipe, PES[pe].step_cycles)
    for shape in ("llama-2-7b", "llama-3-8b"):
        work = phase(SHAPES[shape], 200)
        array = replace(default_accelerator(pe), dram="ddr4-3200", weight_buffer_kib=192)
        layers = simulate(work, array, **operands).layers
        stepped = stepped_cycles(work, array, **operands)
        assert [layer.cycles - layer.conflict_cycles for layer in layers] == list(stepped)


def test_a_batch_shares_weights_but_not_the_cache():
    one, four = (simulate_model("smollm2-135m", "bitmod4", "decode", batch=b) for b in (1, 4))
    assert (four.tokens, four.batch) == (4, 4)
    assert four.bytes_by_operand["weights"] == one.bytes_by_operand["weights"]
    assert four.bytes_by_operand["cache"] == 4 * one.bytes_by_operand["cache"]
    assert four.tokens_per_s > one.tokens_per_s


def test_keys_and_values_have_a_format_of_their_own():
    wide = simulate_model("llama-2-7b", "bitmod4", "decode")
    narrow = simulate_model("llama-2-7b", "bitmod4", "decode", kv_format="int8-sym")
    # Keys and values of 256 positions are read, those of one written: 2 bytes an element, or one
    # and 2 for the scale of 128.
    elements = 2 * 32 * 32 * 128 * (256 + 1)
    assert wide.bytes_by_operand["cache"] == 2 * elements
    assert narrow.bytes_by_operand["cache"] == elements + elements // 128 * 2
    assert any("cache" in row.name and row.function == "quantise" for row in narrow.vector)
    assert any(note.startswith("output layer: stored") for note in narrow.notes)
    assert narrow.config["operands"]["cache"]["format"] == "int8-sym"
    assert simulate_model("llama-2-7b", "bitmod4", "decode", kv_format="fp16") == wide


def test_a_causal_prefill_computes_about_half_of_attention():
    whole, causal = (
        simulate_model("llama-2-7b", "bitmod4", tokens=1024, causal=causal)
        for causal in (False, True)
    )
    for name in ("attn.scores", "attn.values"):
        one, other = (
            next(layer for layer in result.layers if layer.name == name)
            for result in (whole, causal)
        )
        # 32 rows of tiles: (32 + 1) / 2 of 32 on average.
        assert other.busy_cycles * 2 * 32 == one.busy_cycles * 33


# ------------------------------------------------------------------ models and recipes


def test_a_quantised_model_keeps_output_layer_and_cache_at_16_bits():
    result = simulate_model("llama-2-7b", "bitmod4", "decode")
    layers = {layer.name: layer for layer in result.layers}
    # 4 bits + (8 + 2) / 128 per group + 32 / 4096 per row
    assert layers["attn.q"].weight_bytes == 32 * 4096 * (4096 * 4 + 32 * 10 + 32) // 8
    assert layers["lm_head"].weight_bytes == 32000 * 4096 * 2
    # Keys: 256 positions, read once; and the new row of each head, written.
    scores, key = layers["attn.scores"], layers["attn.k"]
    assert (scores.weight_bytes, scores.cache_bytes) == (0, 32 * 32 * 256 * 128 * 2)
    assert (key.output_bytes, key.cache_bytes) == (0, 32 * 32 * 128 * 2)
    # The PE has no FP16 weight mode: 4 cycles a step for these, 2 for the quantised weights.
    # Fill 12 + 3 + 3, drain 7.
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
        ({"kv_format": "int9"}, "unknown kv_format 'int9'"),
        ({"kv_format": "mxfp4"}, "bitmod PE cannot run weight format mxfp4"),
        ({"recipe": "mxfp4"}, "bitmod PE cannot run weight format mxfp4"),
        ({"batch": 0}, "batch is 0"),
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
        ({"vector_lanes": 0}, "vector_lanes is 0; at least 1"),
        ({"clock_ps": 0.0}, "clock_ps is 0.0"),
        ({"clock_ps": float("nan")}, "clock_ps is nan"),
        ({"dram": "tape"}, "unknown dram 'tape'"),
    ],
)
def test_impossible_accelerators_are_refused(setting, message):
    with pytest.raises(InputError, match=message):
        Accelerator(**setting)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            # Two steps of 32 rows x 4 lanes x 16 bits, two tiles of 32 x 32 results of 16 bits.
            {"activation_buffer_kib": 4},
            r"^activation_buffer_kib is 4: too small for one tile of x; two steps of 32 tokens and "
            r"two tiles of results take 36864 bits, so at least 5 KiB, or take an array with fewer "
            r"rows, cols or lanes$",
        ),
        (
            # Two steps of 32 channels x 64 lanes x (8 + 16) bits with a scale for each weight.
            {"weight_buffer_kib": 8, "banks": 8, "lanes": 64, "weight_lane_bits": 1},
            r"^weight_buffer_kib is 8: too small for one tile of x; two steps of 32 output "
            r"channels take 98304 bits, so at least 12 KiB, or take",
        ),
    ],
)
def test_buffers_too_small_for_one_tile_are_refused(change, message):
    array = replace(Accelerator(banks=1), **change)
    with pytest.raises(InputError, match=message):
        run(Gemm("x", 256, 256, 256), array, Operand(4, FORMATS["int8-sym"], 1))


def test_counters_that_may_overflow_are_refused():
    big = Gemm("big", 1 << 20, 1 << 20, 1 << 20)
    with pytest.raises(InputError, match=r"^big: 1 x m 1048576 x n 1048576 x k 1048576 may take"):
        run(big, Accelerator())
    # Each of them fits, all repetitions together do not.
    many = Gemm("many", 4096, 4096, 4096, 1 << 26)
    with pytest.raises(InputError, match=r"^many: 67108864 x m 4096 .* \(2\*\*63 - 1\)"):
        run(many, replace(SMALL, rows=1, cols=1, lanes=1), Operand(4))


def test_impossible_operands_are_refused():
    with pytest.raises(InputError, match="step_cycles is 0"):
        Operand(0)
    with pytest.raises(InputError, match="group_size is 0"):
        Operand(1, FORMATS["int4-sym"], 0)


# ------------------------------------------------------------------ zero terms left out


def test_a_share_of_the_terms_by_hand():
    """128 weights in 32 steps of 2 cycles; 5 of 8 cycles are needed: 40 instead of 64 a group."""
    gemm = Gemm("attn.q", m=8, n=8, k=256)
    operand = Operand(2, FORMATS["bitmod3"], 128, "int8")
    wide = replace(Accelerator(), activation_lane_bits=16)
    fixed = simulate(workload(gemm), wide, block=operand).layers[0]
    share = {"attn.q": Fraction(5, 8)}
    layer = simulate(workload(gemm), wide, block=operand, term_shares=share).layers[0]
    assert (fixed.busy_cycles, layer.busy_cycles) == (2 * 64, 2 * 40)
    # The default port brings 8 bits of an FP16 activation a cycle: 2 cycles a step all the same.
    narrow = simulate(workload(gemm), Accelerator(), block=operand, term_shares=share).layers[0]
    assert (narrow.busy_cycles, narrow.port_cycles) == (80, 48)
    # A step takes a cycle at its port, however few terms it has.
    tiny = {"attn.q": Fraction(1, 16)}
    waiting = simulate(workload(gemm), wide, block=operand, term_shares=tiny).layers[0]
    assert (waiting.busy_cycles, waiting.port_cycles) == (2 * 4, 2 * 28)


@pytest.mark.parametrize(
    ("shares", "text"),
    [
        (
            {"attn.x": Fraction(1, 2)},
            "term_shares names 'attn.x', which is no product of block weights; there are attn.q",
        ),
        ({"attn.q": Fraction(3, 2)}, "term_shares of attn.q is 3/2; above 0 and at most 1"),
    ],
)
def test_shares_that_cannot_be(shares, text):
    gemm = Gemm("attn.q", m=8, n=8, k=256)
    with pytest.raises(InputError) as error:
        simulate(workload(gemm), Accelerator(), block=Operand(2), term_shares=shares)
    assert str(error.value) == text
