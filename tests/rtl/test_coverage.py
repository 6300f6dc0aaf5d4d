"""Functional coverage: what counts, that the benches' vectors hit every bin, and that they must."""

import re
from dataclasses import replace

import pytest

from bitwright.rtl import DESIGNS, TraceRecorder, coverage, emission, verification, verify

bench_bins, bench_traces = emission.bench_bins, emission.bench_traces

MODES = [(pe, mode) for pe, design in DESIGNS.items() for mode in design.modes]


class Echo:
    """Its result comes two cycles after a step with `last`; it covers what the step names."""

    def __init__(self):
        self.reset()

    def reset(self):
        self._results = [None, None]
        self._told = None

    def setup(self, values):
        pass

    def tick(self, step):
        self._told = step and step.get("bin")
        self._results.append(7 if step and step["last"] else None)
        return True, self._results.pop(0)

    def covered(self):
        return [self._told] if self._told else []


def step(last=0, name=None):
    return {"last": last, "bin": name}


# ------------------------------------------------------------------ what counts


def test_bin_counts_once_a_result_has_come_out_after_it():
    recorder = TraceRecorder(Echo())
    recorder.step(step(1, "before the first result"))
    recorder.idle(2)
    recorder.step(step(0, "without a result"))
    covers = recorder.trace("").covers
    assert covers["before the first result"] == 1
    assert "without a result" not in covers


def test_reset_drops_the_bins_of_what_is_under_way():
    recorder = TraceRecorder(Echo())
    recorder.step(step(0, "lost"))
    recorder.reset(step(1, "never taken"))
    recorder.step(step(1, "kept"))
    assert {"kept", "reset with work under way", "reset while a step is shown"} <= set(
        covers := recorder.trace("").covers
    )
    assert not {"lost", "never taken"} & set(covers)


@pytest.mark.parametrize(
    ("actions", "wanted"),
    [
        ("L", {"dot product of one step"}),
        ("sL", {"dot product of several steps"}),
        ("LL", {"dot product of one step", "dot products back to back"}),
        ("s L", {"dot product of several steps", "gap within a dot product"}),
        ("L L", {"dot product of one step", "gap between dot products"}),
        ("L   RL", {"dot product of one step"}),
        ("LRL", {"dot product of one step", "reset with work under way"}),
        ("sRL", {"dot product of one step", "reset with work under way"}),
        ("XL", {"dot product of one step", "reset while a step is shown"}),
    ],
)
def test_protocol_bins(actions, wanted):
    recorder = TraceRecorder(Echo())
    for action in actions:
        if action == " ":
            recorder.idle(1)
        elif action in "RX":
            recorder.reset(step() if action == "X" else None)
        else:
            recorder.step(step(int(action == "L")))
    assert set(recorder.trace("").covers) == wanted <= set(coverage.PROTOCOL_BINS)


def test_final_group_ends_a_dot_product_where_there_are_groups():
    recorder = TraceRecorder(Echo())
    for final in (0, 1):
        recorder.step({**step(1), "final_group": final})
    assert set(recorder.trace("").covers) == {"dot product of several steps"}


def test_names_of_numbers():
    assert [coverage.fp16_bin("x", b) for b in (0x0000, 0x83FF, 0x0400, 0xFBFF)] == [
        "x +zero", "x -subnormal", "x +normal", "x -largest",
    ]  # fmt: skip
    assert len(set(coverage.fp16_bins("x"))) == 8
    assert [coverage.rounding_bin("x", value, 2) for value in range(-4, 4)] == [
        "x exact", "x rounded down", "x tie, rounded up", "x rounded up",
        "x exact", "x rounded down", "x tie, rounded down", "x rounded up",
    ]  # fmt: skip
    assert len(set(coverage.rounding_bins("x"))) == 5
    assert coverage.distance_bins("x", 2) == ("x shifted by 1", "x shifted by 2 or more")
    assert coverage.sticky_bin("x", 0b1000, 3) == "x sticky clear"
    assert coverage.sticky_bin("x", 0b1100, 3) == "x sticky set"


# ------------------------------------------------------------------ the benches' vectors


@pytest.mark.parametrize(("pe", "mode"), MODES)
def test_every_bin_is_hit_whatever_seed_and_number_of_random_dot_products(pe, mode):
    design = DESIGNS[pe]
    bins = bench_bins(design, mode)
    traces = bench_traces(design, dots=1, seed=5, modes=[mode])
    hits = {name: sum(trace.covers.get(name, 0) for trace in traces) for name in bins}
    assert len(hits) == len(bins)
    assert [name for name, count in hits.items() if not count] == []


@pytest.mark.parametrize("pe", DESIGNS)
def test_every_design_has_bins_of_its_own(pe):
    assert all(len(DESIGNS[pe].bins(mode)) > 0 for mode in DESIGNS[pe].modes)


def test_bins_of_bitmod_are_those_of_the_arithmetic():
    def largest(mode, pattern):
        found = [re.fullmatch(pattern, name) for name in DESIGNS["bitmod"].bins(mode)]
        return max(int(match[1]) for match in found if match)

    for mode, codes, r in [
        ("int8", 255, 8), ("int6", 255, 6), ("int5", 255, 6), ("int4-asym", 15, 5),
        ("fp4", 15, 3), ("fp3", 7, 3),
    ]:  # fmt: skip
        assert largest(mode, r"code (\d+)") == codes
        assert largest(mode, r"delta (\d+) sticky (?:set|clear)") == 14
        assert largest(mode, r"renormalised by (\d+)") == r


@pytest.mark.parametrize("mode", ["int8", "fp3"])
def test_without_its_corner_trace_bitmod_misses_bins(mode):
    traces = bench_traces(DESIGNS["bitmod"], 60, 0, [mode])
    rest = set().union(*(trace.covers for trace in traces if trace.kind != "corner"))
    missed = set(DESIGNS["bitmod"].bins(mode)) - rest
    assert {"column sum cancels to zero", "accumulator rounded to a new exponent"} <= missed


def test_bin_that_the_design_does_not_name_is_refused(monkeypatch):
    bins = [name for name in DESIGNS["fp16"].bins("fp16") if name != "sum cancels by 3"]
    monkeypatch.setattr(type(DESIGNS["fp16"]), "bins", lambda self, mode: bins)
    message = r"fp16 hits bins that bins\('fp16'\) does not name: sum cancels by 3$"
    with pytest.raises(ValueError, match=message):
        bench_traces(DESIGNS["fp16"], 1)


# ------------------------------------------------------------------ the cocotb bench


@pytest.mark.slow
@pytest.mark.simulator
def test_bench_without_the_corner_trace_fails_and_names_the_empty_bins():
    design = DESIGNS["fp16acc16"]
    traces = [trace for trace in bench_traces(design, 5) if trace.kind != "corner"]
    hit = set().union(*(trace.covers for trace in traces))
    empty = [name for name in bench_bins(design, "fp16") if name not in hit]
    assert "product rounded to the smallest normal" in empty
    with pytest.raises(RuntimeError) as caught:
        verification._through_cocotb(design, traces, design.verilog())
    named = ", ".join(f"fp16: {name}" for name in empty)
    assert str(caught.value) == f"coverage bins that the cocotb bench never hit: {named}"


@pytest.mark.slow
@pytest.mark.simulator
def test_bins_of_a_trace_that_differs_do_not_count():
    design = DESIGNS["fp16acc16"]
    traces = bench_traces(design, 5)
    corner = traces[0]
    outputs = list(corner.outputs)
    at = next(i for i, (_, valid, _) in enumerate(outputs) if valid)
    outputs[at] = (*outputs[at][:2], outputs[at][2] ^ 1)
    wrong = replace(corner, outputs=outputs)
    counts, hits = verification._through_cocotb(design, [wrong, *traces[1:]], design.verilog())
    assert counts[corner.name].mismatches == 1
    wanted = {
        name: sum(trace.covers.get(name, 0) for trace in traces[1:])
        for name in bench_bins(design, "fp16")
    }
    assert hits == {"fp16": wanted}


@pytest.mark.slow
@pytest.mark.simulator
def test_verify_says_how_many_bins_were_hit():
    rows = verify("fp16acc16", level="quick", realisations=["cocotb"])
    bins = len(bench_bins(DESIGNS["fp16acc16"], "fp16"))
    assert [(row.bins, row.bins_hit) for row in rows] == [(bins, bins)]
