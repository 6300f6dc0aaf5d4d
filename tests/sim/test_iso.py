"""Arrays of equal area, throughput and bandwidth: hand-worked sizes, properties, the comparison."""

import json
import math
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitwright.quant import InputError, quantize, resolve_recipe
from bitwright.sim import (
    DESIGNS_ISO,
    PES,
    PEArea,
    default_accelerator,
    iso,
    load_shape,
    size_arrays,
)

#: The array of the reference: 8 tokens x 12 output channels.
BASE = replace(default_accelerator("fp16"), rows=8, cols=12, rows_per_accumulator=8)


def area(um2, encoder=0.0, delay=None):
    return PEArea(um2, "a test", encoder, delay)


#: What `synth` gave on nangate45, rounded: um2 and ps.
SYNTHESISED = {
    "fp16": area(2317, 0, 2981),
    "int8": area(751, 0, 1449),
    "ant": area(617, 0, 1263),
    "olive": area(758, 0, 1411),
    "mxfp4": area(5270, 0, 2982),
    "nvfp4": area(4476, 0, 2980),
    "bitmod": area(2611, 3180, 2964),
    "dint4": area(613, 0, 1409),
    "dint4-dot16": area(4386, 0, 1777),
    "btc": area(1295, 0, 1469),
    "btc-w2a8": area(13719, 0, 2319),
}


def shape(areas, mode, design, **more):
    array = size_arrays(areas, mode, base=BASE, designs=[design], **more)[design]
    return array.rows, array.cols


# ------------------------------------------------------------------ the table


@pytest.mark.parametrize("design", DESIGNS_ISO.values(), ids=list(DESIGNS_ISO))
def test_every_design_runs_its_formats(design):
    pe = PES[design.pe]
    w = np.random.default_rng(0).standard_normal((4, 128)).astype(np.float32)
    for name in (design.recipe, design.plain, design.cache):
        pe.check(w if name == "fp16" else quantize(w, resolve_recipe(name)))
    assert design.activations == getattr(pe, "act_format", "fp16")
    iso.design_operands(design)


# ------------------------------------------------------------------ sizes by hand


def test_equal_area_by_hand():
    # The FP16 array has 8 * 12 PEs of 100 um2, 1.5 : 1: 9600 um2, or 320 PEs of 30 um2. 16 x 20
    # (1.25 : 1) and 8 x 40 (5 : 1) are all of it; the first is nearer to 1.5 : 1.
    areas = {"fp16": area(100), "int8": area(30)}
    assert shape(areas, "area", "int8") == (16, 20)
    assert shape(areas, "area", "fp16") == (8, 12)


def test_equal_area_counts_what_a_column_shares():
    # 100 um2 a PE and 80 um2 for every 8 PEs of a column: 8 rows take 880 um2 a column, so 10
    # columns are 8800 um2 (91.7 %), 4 rows take 480 um2, so 20 columns are all of it (5 : 1, less
    # than 4 times 1.5 : 1).
    areas = {"fp16": area(100), "bitmod": area(100, 80)}
    array = size_arrays(areas, "area", base=BASE, designs=["bitmod4"])["bitmod4"]
    assert (array.rows, array.cols) == (4, 20)
    assert iso.array_area_um2(array, areas["bitmod"]) == 4 * 20 * 100 + 20 * 80 == 9600
    assert array.source == "100.0% of the area of the fp16 array"


def test_a_coarse_array_takes_the_shape_that_reaches_most():
    # 9600 um2 hold 15 PEs of 640 um2. 4 x 3 uses 12 of them, 2 x 7 uses 14 (93 %); 1 x 15 is
    # 10 times as long as the reference.
    array = size_arrays({"fp16": area(100), "mxfp4": area(640)}, base=BASE)["mxfp4"]
    assert (array.rows, array.cols) == (2, 7)
    assert array.source == "93.3% of the area of the fp16 array"


@pytest.mark.parametrize(
    ("pe", "design", "wanted"),
    [
        ("int8", "int8", (8, 12)),  # 96 MACs a cycle, one a PE
        ("bitmod", "bitmod4", (4, 12)),  # 4 lanes in 2 cycles: 48 PEs; 3 : 1, as far as 8 x 6
        ("olive", "olive", (4, 12)),  # 2 lanes: 48 PEs
        ("btc", "btc-w2", (2, 6)),  # 128 lanes in 8 * 2 cycles: 12 PEs
        ("nvfp4", "nvfp4", (2, 3)),  # 16 lanes: 6 PEs
        ("mxfp4", "mxfp4", (1, 3)),  # 32 lanes: 3 PEs
    ],
)
def test_equal_throughput_by_hand(pe, design, wanted):
    areas = {"fp16": area(1), pe: area(1)}
    assert shape(areas, "throughput", design) == wanted
    arrays = size_arrays(areas, "throughput", base=BASE, designs=[design])
    rates = {name: iso.macs_per_cycle(array, DESIGNS_ISO[name]) for name, array in arrays.items()}
    assert set(rates.values()) == {96}


def test_equal_bandwidth_by_hand():
    # FP16: (8 + 12) * 16 = 320 bits a cycle. INT8: 40 rows and columns; 16 + 24 has the
    # reference's proportions.
    areas = {"fp16": area(1), "int8": area(1), "bitmod": area(1), "mxfp4": area(1)}
    assert shape(areas, "bandwidth", "int8") == (16, 24)
    # BitMoD-4: (16 rows + (4 + 10 / 128) cols) * 4 lanes / 2 cycles; 8 rows leave 64 / 8.16.
    assert shape(areas, "bandwidth", "bitmod4") == (8, 7)
    array = size_arrays(areas, "bandwidth", base=BASE, designs=["bitmod4"])["bitmod4"]
    bits = iso.operand_bits_per_cycle(array, DESIGNS_ISO["bitmod4"])
    assert bits == 2 * (16 * 8 + Fraction(4 * 128 + 10, 128) * 7)
    # MXFP4: 4.25 bits in 32 lanes, 136 a row or column: 320 bits feed 1 x 1.
    assert shape(areas, "bandwidth", "mxfp4") == (1, 1)


def test_everything_else_is_the_references():
    base = replace(BASE, weight_buffer_kib=256, dram="hbm2")
    areas = {"fp16": area(100), "bitmod": area(90, 10), "dint4": area(20)}
    arrays = size_arrays(areas, "area", base=base, clock_ps=2000)
    assert list(arrays) == ["fp16", "bitmod4", "bitmod3", "dint4"]
    for name, array in arrays.items():
        assert (array.name, array.pe) == (name, DESIGNS_ISO[name].pe)
        assert (array.weight_buffer_kib, array.activation_buffer_kib) == (256, 512)
        assert (array.dram, array.clock_ps, array.node_nm) == ("hbm2", 2000, 28)
        assert array.lanes == PES[array.pe].lanes
    assert arrays["bitmod4"].scale_cycles == 8
    assert arrays["dint4"].scale_cycles == arrays["fp16"].scale_cycles == 0


def test_one_clock_the_slowest_pes():
    areas = {"fp16": area(100, delay=1500.2), "int8": area(30, delay=900), "ant": area(30)}
    arrays = size_arrays(areas, "area", base=BASE)
    assert {array.clock_ps for array in arrays.values()} == {1501.0}
    areas["fp16"], areas["int8"] = area(100), area(30)
    arrays = size_arrays(areas, "area", base=BASE)  # no delay is known
    assert {array.clock_ps for array in arrays.values()} == {BASE.clock_ps}


@pytest.mark.parametrize("mode", ["area", "throughput", "bandwidth"])
def test_the_reference_keeps_its_shape(mode):
    base = replace(BASE, rows=24, cols=40)
    arrays = size_arrays(SYNTHESISED, mode, reference="int8", base=base)
    assert next(iter(arrays)) == "int8"
    assert (arrays["int8"].rows, arrays["int8"].cols) == (24, 40)


def test_a_pe_that_does_not_fit_is_left_out_unless_asked_for():
    # 128 lanes of 8 + 2 bits are 1280 bits a cycle, the whole FP16 array takes 320.
    arrays = size_arrays(SYNTHESISED, "bandwidth", base=BASE)
    assert set(DESIGNS_ISO) - set(arrays) == {"btc-w2a8"}
    with pytest.raises(InputError, match="one PE of design btc-w2a8 has 4.00 times the bandwidth"):
        size_arrays(SYNTHESISED, "bandwidth", base=BASE, designs=["btc-w2a8"])


# ------------------------------------------------------------------ properties

AREAS = st.fixed_dictionaries(
    {name: st.builds(area, st.floats(50, 5000), st.floats(0, 2000)) for name in SYNTHESISED}
)
MODES = st.sampled_from(["area", "throughput", "bandwidth"])


def sizes(areas, mode):
    return size_arrays(areas, mode, base=replace(BASE, rows=32, cols=32))


@settings(deadline=None)
@given(AREAS, MODES)
def test_never_more_than_the_reference(areas, mode):
    arrays = sizes(areas, mode)

    def measure(name):
        array, design = arrays[name], DESIGNS_ISO[name]
        if mode == "area":
            pe, pes = areas[design.pe], array.rows * array.cols
            return pes * Fraction(pe.pe_um2) + array.shared_units * Fraction(pe.encoder_um2)
        if mode == "throughput":
            return iso.macs_per_cycle(array, design)
        return iso.operand_bits_per_cycle(array, design)

    allowed = measure("fp16")
    for name, array in arrays.items():
        assert measure(name) <= allowed
        assert array.rows.bit_count() == 1
        wider = replace(array, cols=array.cols + 1)
        if name != "fp16":
            arrays[name] = wider
            assert measure(name) > allowed  # one more column does not fit


@settings(max_examples=30, deadline=None)
@given(AREAS, MODES, st.sampled_from([0.25, 2.0, 1024.0]))
def test_scaling_all_areas_changes_nothing(areas, mode, factor):
    scaled = {
        pe: PEArea(a.pe_um2 * factor, a.source, a.encoder_um2 * factor) for pe, a in areas.items()
    }
    assert sizes(areas, mode) == sizes(scaled, mode)


@settings(max_examples=30, deadline=None)
@given(AREAS)
def test_smaller_pes_never_get_a_smaller_array(areas):
    shrunk = {**areas, "int8": area(areas["int8"].pe_um2 / 2)}
    before, after = sizes(areas, "area")["int8"], sizes(shrunk, "area")["int8"]
    assert 20 * after.rows * after.cols >= 19 * before.rows * before.cols  # the rule's 95 %


# ------------------------------------------------------------------ phases and means


def test_decode_halves_the_rows_and_doubles_the_columns():
    assert (iso.for_phase(BASE, "prefill").rows, iso.for_phase(BASE, "prefill").cols) == (8, 12)
    assert (iso.for_phase(BASE, "decode").rows, iso.for_phase(BASE, "decode").cols) == (4, 24)
    single = replace(BASE, rows=1)
    assert iso.for_phase(single, "decode") == single
    with pytest.raises(InputError, match="phase is 'train'; one of prefill, decode"):
        iso.for_phase(BASE, "train")


def test_a_port_is_no_wider_than_a_bank_of_the_table():
    # 64 channels of 128 lanes of 3 bits are 24576 bits: 3072 in each of 8 banks, as 4096. The
    # widest bank has 2048, so 2 bits a lane.
    wide = replace(BASE, cols=64, lanes=128, weight_lane_bits=3, activation_lane_bits=1)
    narrow = iso.for_phase(wide, "prefill")
    assert narrow == replace(wide, weight_lane_bits=2)
    assert narrow.weight_bank().width_bits == 2048


# ------------------------------------------------------------------ the comparison

SHAPES = ("opt-1.3b", "llama-2-7b")


@pytest.fixture(scope="module")
def comparison():
    base = replace(default_accelerator("fp16"), rows=24, cols=32)
    return iso.compare(SHAPES, SYNTHESISED, "area", base=base, clock_ps=2981)


def test_every_design_on_every_model_in_both_phases(comparison):
    done = {(row.design, row.model, row.phase) for row in comparison.results}
    assert len(done) == len(comparison.results) == len(DESIGNS_ISO) * 2 * 2
    assert comparison.clock_ps == 2981


def test_speedups_are_over_the_reference(comparison):
    base = {(r.model, r.phase): r for r in comparison.results if r.design == "fp16"}
    for row in comparison.results:
        reference = base[row.model, row.phase]
        assert row.speedup == pytest.approx(reference.cycles / row.cycles, rel=1e-12)
        energy, against = row.energy_uj, reference.energy_uj
        gain = (against["sram"] + against["dram"]) / (energy["sram"] + energy["dram"])
        assert row.memory_energy_gain == pytest.approx(gain, rel=1e-12)
        if row.design == "fp16":
            assert row.speedup == row.memory_energy_gain == 1.0


def test_the_means_are_geometric_over_the_models(comparison):
    for mean in comparison.means:
        rows = [r for r in comparison.results if (r.design, r.phase) == (mean.design, mean.phase)]
        assert mean.models == len(rows) == 2
        wanted = math.sqrt(rows[0].speedup * rows[1].speedup)
        assert mean.speedup == pytest.approx(wanted, rel=1e-12)
    assert any(
        abs(mean.speedup - (a.speedup + b.speedup) / 2) > 1e-6
        for mean in comparison.means
        for a, b in [
            [r for r in comparison.results if (r.design, r.phase) == (mean.design, mean.phase)]
        ]
    )


def test_narrower_weights_never_move_more_bytes(comparison):
    moved = {r.design: r.dram_bytes for r in comparison.results if r.phase == "decode"}
    assert moved["btc-w2a8"] < moved["bitmod3"] < moved["bitmod4"] < moved["int8"] < moved["fp16"]


def test_arrays_are_described(comparison):
    rows = {row.design: row for row in comparison.arrays}
    assert rows["fp16"].area_part == rows["fp16"].macs_part == rows["fp16"].bits_part == 1.0
    assert all(0.9 < row.area_part <= 1.0 for row in rows.values())
    assert rows["mxfp4"].meets_clock is False and rows["bitmod4"].meets_clock is True
    assert rows["int8"].macs_per_cycle == rows["int8"].rows * rows["int8"].cols
    assert (rows["btc-w2"].recipe, rows["btc-w2"].activations) == ("w2-int-asym", "int8-asym")


def test_what_a_reader_should_know_is_said(comparison):
    assert "the designs differ in accuracy" in comparison.notes[0]
    assert "PEs slower than the clock of 2981 ps: mxfp4 (2982 ps)" in comparison.notes
    document = comparison.to_dict()
    json.dumps(document)
    assert document["iso"] == "area" and document["reference"] == "fp16"
    assert set(document["results"][0]["energy_uJ"]) == {"logic", "sram", "dram", "leakage", "total"}


# ------------------------------------------------------------------ what is refused


def test_bad_arguments_are_refused():
    areas = {"fp16": area(100), "mxfp4": area(90000)}
    with pytest.raises(InputError, match="iso mode is 'power'; one of area, throughput, bandwidth"):
        size_arrays(areas, "power")
    with pytest.raises(
        InputError, match="no area for the PE int8 of the reference int8; areas have fp16, mxfp4"
    ):
        size_arrays(areas, "area", reference="int8")
    with pytest.raises(InputError, match="no area for the PE ant of design ant; areas have fp16"):
        size_arrays(areas, "area", designs=["ant"])
    with pytest.raises(InputError, match="unknown design 'bitmod'; did you mean bitmod"):
        size_arrays(areas, "area", designs=["bitmod"])
    with pytest.raises(
        InputError,
        match="one PE of design mxfp4 has 9.38 times the area of the whole fp16 array; leave mxfp4 "
        "out or take a larger base",
    ):
        size_arrays(areas, "area", base=BASE, designs=["mxfp4"])
    with pytest.raises(InputError, match="no shapes to compare on; give at least one model"):
        iso.compare([], areas)
    with pytest.raises(InputError, match="no phases to compare; give prefill, decode or both"):
        iso.compare([load_shape("opt-1.3b")], areas, phases=())
