"""Zero-term skipping: hand-worked tensors, the plain twin, the PE's own values, properties."""

import json
from fractions import Fraction
from itertools import product
from typing import get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitwright.quant import FORMATS, InputError, QuantizedTensor, load_model, quantize
from bitwright.sim import (
    PES,
    bitmod,
    layer_term_statistics,
    term_beats,
    term_beats_reference,
    term_statistics,
    terms,
)

MODES, SYNCS = get_args(terms.Mode), get_args(terms.Sync)
FORMAT_NAMES = ["int2-sym", "int3-sym", "int4-sym", "int5-sym", "int6-sym", "int7-sym", "int8-sym"]
FORMAT_NAMES += [
    "int3-asym",
    "int4-asym",
    "int7-asym",
    "fp3",
    "fp4",
    "fp4-er",
    "bitmod3",
    "bitmod4",
]


def tensor(name, values, group_size):
    """A tensor with these codes and scales of 1."""
    codes = np.array(values, np.int16).astype(np.uint8)
    groups = -(-codes.shape[1] // group_size)
    return QuantizedTensor(
        FORMATS[name],
        group_size,
        codes,
        "fp16",
        np.ones((len(codes), groups), np.float16),
    )


# ------------------------------------------------------------------ by hand
#
# Booth terms of the INT8 weights used (term t weighs 4**t): 0: none; 1, -1: t0; 4: t1; 64: t3;
# 6 = -2 + 8: t0, t1.
#
#   channel 0: step 0 [1, 0, 0, -1]: t0          step 1 [64, 4, 1, 0]: t0, t1, t3
#   channel 1: step 0 [4, 64, 0, 0]: t1, t3      step 1 [0, 0, 0, 0]: none, but 1 cycle
#
# Own costs by significance: channel 0: 1, 3; channel 1: 2, 1. No lane has more than one term.
BY_HAND = [[1, 0, 0, -1, 64, 4, 1, 0], [4, 64, 0, 0, 0, 0, 0, 0]]
CASES = [
    ("fixed", "step", 4 + 4),
    ("fixed", "none", 4 + 4),  # (8 + 8) / 2
    ("significance", "shared", 3 + 3),  # t0, t1, t3 in both steps
    ("significance", "step", 2 + 3),  # max(1, 2) + max(3, 1)
    ("significance", "group", 4),  # max(1 + 3, 2 + 1)
    ("significance", "tile", 4),
    ("significance", "none", 4),  # ceil((4 + 3) / 2)
    ("lanes", "step", 2),
    ("lanes", "shared", 2),
    ("lanes", "none", 2),
]


@pytest.mark.parametrize("beats", [term_beats, term_beats_reference])
@pytest.mark.parametrize(("mode", "sync", "wanted"), CASES)
def test_two_int8_channels_by_hand(beats, mode, sync, wanted):
    assert beats(tensor("int8-sym", BY_HAND, 8), 2, mode, sync, spacing=0) == wanted


@pytest.mark.parametrize("beats", [term_beats, term_beats_reference])
def test_columns_that_meet_at_groups_wait_more_than_those_that_meet_at_tiles(beats):
    # Two groups of one step: max(1, 2) + max(3, 1) against max(1 + 3, 2 + 1).
    qt = tensor("int8-sym", BY_HAND, 4)
    assert beats(qt, 2, "significance", "group", spacing=0) == 5
    assert beats(qt, 2, "significance", "tile", spacing=0) == 4


@pytest.mark.parametrize("beats", [term_beats, term_beats_reference])
def test_a_short_group_waits_for_the_scale_unit(beats):
    qt = tensor("int8-sym", BY_HAND, 4)
    # Closings are 3 cycles apart: groups of 2 and 3 cycles take 3 and 3.
    assert beats(qt, 2, "significance", "step", spacing=3) == 6
    # Channel 0: max(1, 3) + max(3, 3); channel 1: max(2, 3) + max(1, 3).
    assert beats(qt, 2, "significance", "tile", spacing=3) == 6
    assert beats(qt, 2, "significance", "none", spacing=3) == 6
    # 8 scale bits: a group is never shorter, whatever is skipped.
    assert beats(qt, 2, "lanes", "step") == beats(qt, 2, "fixed", "step") == 16


@pytest.mark.parametrize("beats", [term_beats, term_beats_reference])
def test_one_channel_at_a_time_adds_up(beats):
    qt = tensor("int8-sym", BY_HAND, 8)
    assert beats(qt, 1, "significance", "step", spacing=0) == 4 + 3
    assert beats(qt, 3, "significance", "step", spacing=0) == 5  # a tile that is not full


@pytest.mark.parametrize("beats", [term_beats, term_beats_reference])
def test_fp4_by_hand(beats):
    # Codes {S, index}, magnitudes 0 0.5 1 1.5 2 3 4 6, terms by fixed point {I3 I2 I1 I0 F0}:
    # 0.5 = F0: lower; 1, 2, 4: upper; 1.5, 3, 6: both; the special values -5: both, 8: upper.
    # step 0 [1, 2, -4, 0]: upper; step 1 [0.5, 1, 0, 0]: lower and upper, one a lane;
    # step 2 [special, 0, 0, 0].
    codes = [[2, 4, 14, 0, 1, 2, 0, 0, 8, 0, 0, 0]]
    for selector, last in ((1, 2), (2, 1)):  # -5, +8
        qt = QuantizedTensor(
            FORMATS["bitmod4"],
            12,
            np.array(codes, np.uint8),
            "int8",
            np.ones((1, 1), np.uint8),
            np.ones(1, np.float32),
            selectors=np.array([[selector]], np.uint8),
        )
        assert beats(qt, 1, "significance", "step", spacing=0) == 1 + 2 + last
        assert beats(qt, 1, "lanes", "step", spacing=0) == 1 + 1 + last
        assert beats(qt, 1, "fixed", "step", spacing=0) == 6


def test_statistics_by_hand():
    (row,) = term_statistics(
        tensor("int8-sym", BY_HAND, 8),
        "x",
        cols=2,
        modes=("significance",),
        syncs=("step",),
        spacing=0,
    )
    assert (row.beats, row.fixed_beats, row.ratio, row.speedup) == (5, 8, Fraction(5, 8), 1.6)
    assert row.weights_by_terms == (9, 7, 0, 0, 0)
    assert row.terms_per_weight == 7 / 16
    assert row.steps_by_cost == (0, 2, 1, 1, 0)  # 1, 3, 2, 1
    assert row.array_steps_by_cost == (0, 0, 1, 1, 0)  # 2, 3
    assert (row.step_mean, row.step_quantile(0.5), row.step_quantile(0.95)) == (7 / 4, 1, 3)
    assert row.occupancy == 7 / (5 * 2)
    assert row.utilisation == 7 / (5 * 2 * 4)
    assert row.to_dict()["step_max"] == 3
    json.dumps(row.to_dict(), default=str)


def test_quantiles_of_a_histogram():
    assert [terms.histogram_quantile((0, 19, 1), part) for part in (0.01, 0.95, 0.951, 1)] == [
        1,
        1,
        2,
        2,
    ]
    with pytest.raises(InputError, match="part is 1.5; above 0 and at most 1"):
        terms.histogram_quantile((1, 2), 1.5)


# ------------------------------------------------------------------ twins


@pytest.mark.parametrize("name", FORMAT_NAMES)
@pytest.mark.parametrize(("group_size", "cols"), [(71, 5), (64, 3), (22, 4), (3, 2)])
def test_the_fast_count_is_the_plain_one(name, group_size, cols):
    rng = np.random.default_rng(11)
    w = rng.standard_normal((7, 71)) * np.exp(rng.standard_normal((7, 71)))
    qt = quantize(w, name, group_size=group_size)
    for mode, sync, spacing in product(MODES, SYNCS, (0, 8)):
        fast = term_beats(qt, cols, mode, sync, spacing=spacing)
        assert fast == term_beats_reference(qt, cols, mode, sync, spacing=spacing), (mode, sync)


@pytest.mark.parametrize("name", ["bitmod3", "int6-sym", "int2-sym", "int4-asym"])
@pytest.mark.parametrize(("k", "group_size"), [(64, 16), (40, 8), (9, 4)])
def test_the_fixed_schedule_is_the_pes_own(name, k, group_size):
    qt = quantize(np.ones((3, k)), name, group_size=group_size)
    pe = PES["bitmod"]
    more = pe.cycles(k, group_size, qt.format, dots=4) - pe.cycles(k, group_size, qt.format, dots=1)
    assert term_beats(qt, 1, "fixed", "step") == more  # three dot products in the steady state


# ------------------------------------------------------------------ values stay the same


def skipping_column(stream, mode, count, special):
    """Dot products with term cycles left out that no lane needs: y bits, and term cycles taken."""
    values, taken, a, e_a, acc = [], 0, 0, 0, 0
    for step in stream.steps(mode, count):
        lanes = [
            bitmod.encode_terms(mode, count, c, step.zero, special[step.selector])
            for c in step.code
        ]
        needed = [cycle for cycle in zip(*lanes, strict=True) if any(term.live for term in cycle)]
        taken += max(len(needed), 1)
        for cycle in needed:
            total, e_max = bitmod.align_and_sum(step.act, cycle)
            a, e_a = bitmod.accumulate(total << cycle[0].bsig, e_max, a, e_a)
        if step.last:
            acc = bitmod.float32_add(acc, a * step.scale, e_a)
            a, e_a = 0, 0
            if step.final:
                values.append(acc)
                acc = 0
    return values, taken


@pytest.mark.parametrize("name", FORMAT_NAMES)
def test_leaving_out_dead_term_cycles_changes_no_bit(name):
    rng = np.random.default_rng(5)
    qt = quantize(rng.standard_normal((6, 90)), name, group_size=32, scale_format="int8")
    mode, count = bitmod.format_mode(qt.format)
    special = bitmod.special_registers(qt.format)
    skipped = 0
    for scale in (1.0, 2.0**-20):  # normal and subnormal activations, zeros among them
        x = (rng.standard_normal(90) * scale * rng.integers(0, 3, 90)).astype(np.float16)
        stream = bitmod.tensor_steps(x.view(np.uint16), qt, range(qt.n))
        wanted, _ = bitmod.run_reference(list(stream.steps(mode, count)), special)
        values, taken = skipping_column(stream, mode, count, special)
        assert values == wanted
        assert taken == term_beats(qt, 1, "significance", "step", spacing=0)
        skipped += term_beats(qt, 1, "fixed", "step", spacing=0) - taken
    assert skipped > 0 or count == 1


@given(st.integers(-(1 << 15), (1 << 15) - 1), st.integers(0, 63))
def test_a_dead_term_cycle_leaves_the_accumulator_alone(a, e_a):
    dead = [bitmod.Term(0, 0, 0, 4)] * 4
    total, e_max = bitmod.align_and_sum([0x3C00] * 4, dead)
    assert bitmod.accumulate(total << 4, e_max, a, e_a) == (a, e_a)


# ------------------------------------------------------------------ properties

SIZES = {
    "name": st.sampled_from(FORMAT_NAMES),
    "n": st.integers(1, 9),
    "k": st.integers(1, 40),
    "group_size": st.integers(1, 40),
    "cols": st.integers(1, 10),
    "spacing": st.integers(0, 9),
    "seed": st.integers(0, 99),
}


@given(**SIZES)
def test_order_of_modes_and_synchronisations(name, n, k, group_size, cols, spacing, seed):
    w = np.random.default_rng(seed).standard_normal((n, k))
    qt = quantize(w, name, group_size=group_size)
    counts = {
        (mode, sync): term_beats(qt, cols, mode, sync, spacing=spacing)
        for mode, sync in product(MODES, SYNCS)
    }
    for mode in MODES:  # the more freedom, the fewer cycles
        order = [counts[mode, sync] for sync in ("shared", "step", "group", "tile", "none")]
        assert order == sorted(order, reverse=True)
    for sync in SYNCS:
        assert counts["lanes", sync] <= counts["significance", sync] <= counts["fixed", sync]
    assert len({counts["fixed", sync] for sync in ("shared", "step", "group", "tile")}) == 1
    steps = sum(-(-min(qt.group_size, k - start) // 4) for start in range(0, k, qt.group_size))
    assert counts["lanes", "tile"] >= -(-n // cols) * steps  # a step costs at least a cycle


@given(**SIZES)
def test_histograms_count_everything_once(name, n, k, group_size, cols, spacing, seed):
    w = np.random.default_rng(seed).standard_normal((n, k))
    qt = quantize(w, name, group_size=group_size)
    steps = sum(-(-min(qt.group_size, k - start) // 4) for start in range(0, k, qt.group_size))
    for row in term_statistics(qt, cols=cols, spacing=spacing):
        assert sum(row.weights_by_terms) == n * k
        assert sum(row.steps_by_cost) == n * steps
        assert row.steps_by_cost[0] == 0
        assert 0 <= row.utilisation <= row.occupancy <= 1
        if row.array_steps_by_cost is not None:
            assert sum(row.array_steps_by_cost) == -(-n // cols) * steps
        if spacing == 0 and row.array_steps_by_cost is not None:
            assert row.beats == sum(c * times for c, times in enumerate(row.array_steps_by_cost))


# ------------------------------------------------------------------ a model


def test_a_model_layer_by_layer():
    model = load_model("tiny")
    report = layer_term_statistics(
        model, "int4-asym", cols=16, modes=("significance",), syncs=("step", "none")
    )
    names = model.linear_names()
    rows = report.select("significance", "step")
    assert [row.layer for row in rows] == list(names)
    for row in rows:
        qt = quantize(model.weight(row.layer), "int4-asym")
        assert row.beats == term_beats(qt, 16, "significance", "step")
    total, bound = report.totals()
    assert (total["sync"], bound["sync"]) == ("step", "none")
    assert total["beats"] == sum(row.beats for row in rows)
    assert total["speedup"] == total["fixed_beats"] / total["beats"]
    assert total["speedup_least"] <= total["speedup"] <= total["speedup_most"]
    assert total["speedup"] <= bound["speedup"]
    ratios = report.product_ratios("significance", "step")
    q = [row for row in rows if row.layer.endswith(".attn.q")]
    assert ratios["attn.q"] == Fraction(sum(r.beats for r in q), sum(r.fixed_beats for r in q))
    assert set(ratios) == {name.split(".", 2)[2] for name in names}
    assert report.to_dict()["layers"][0]["layer"] == names[0]


def test_tensors_in_the_place_of_a_model():
    tensors = {"blocks.0.x": quantize(np.eye(8), "bitmod4", group_size=8)}
    report = layer_term_statistics(tensors, "w4g8-bitmod", cols=4)
    assert [row.layer for row in report.select("lanes", "tile")] == ["blocks.0.x"]
    assert report.recipe == "w4g8-bitmod"


# ------------------------------------------------------------------ what is refused


def test_bad_arguments_are_refused():
    qt = quantize(np.eye(4), "int8-sym", group_size=4)
    with pytest.raises(InputError, match="mode is 'zero'; one of fixed, significance, lanes"):
        term_beats(qt, 2, "zero")
    with pytest.raises(InputError, match="sync is 'row'; one of shared, step, group, tile, none"):
        term_beats(qt, 2, "lanes", "row")
    with pytest.raises(InputError, match="cols is 0; at least 1 output channel side by side"):
        term_beats(qt, 0)
    with pytest.raises(InputError, match="spacing is -1; at least 0 cycles"):
        term_statistics(qt, spacing=-1)
    with pytest.raises(InputError, match="the bitmod PE cannot run weight format fp6-e2m3"):
        term_beats(quantize(np.eye(4), "fp6-e2m3", group_size=4), 2)
    with pytest.raises(InputError, match="recipe 'fp16' has no terms; take one that quantises"):
        layer_term_statistics({"x": qt}, "fp16")
    with pytest.raises(InputError, match="no tensors; give at least one quantised layer"):
        layer_term_statistics({}, "bitmod4")
    report = layer_term_statistics({"x": qt}, "w8g4-int-sym", modes=("lanes",), syncs=("step",))
    with pytest.raises(InputError, match="the report has no lanes terms with sync tile"):
        report.select("lanes", "tile")
