"""The GEMM engine: parts, host side, and every clock cycle against the array's model."""

import json
import subprocess
import sys

import numpy as np
import pyrtl
import pytest

from bitwright.quant import InputError, quantize
from bitwright.rtl import DESIGNS, engine, netlist_models, pe, resolve_technology, synthesise
from bitwright.sim import PES, array, run_array

check, host, traces = engine.check, engine.host, engine.traces

cell_models = netlist_models.cell_models

CORE = ("bitmod", "dint4", "btc")
SMALL = [name for name in DESIGNS if name not in CORE]


# ------------------------------------------------------------------ parts


def test_a_copy_of_a_block_works_beside_another_one():
    with pe.logic.design() as part:
        a, out = pyrtl.Input(4, "a"), pyrtl.Output(4, "y")
        kept = pe.logic.register(a, "kept")
        out <<= kept + 1
    with pe.logic.design() as block:
        x = pyrtl.Input(4, "x")
        first = engine.instantiate(part, {"a": x}, "one")["y"]
        second = engine.instantiate(part, {"a": first[:4]}, "two")["y"]
        shown = pyrtl.Output(4, "z")
        shown <<= second
    simulation = pyrtl.Simulation(tracer=pyrtl.SimulationTrace([shown], block=block), block=block)
    seen = []
    for value in (3, 9, 0, 0):
        simulation.step({"x": value})
        seen.append(simulation.inspect("z"))
    assert seen == [1, 2, 5, 11]
    names = {wire.name for wire in block.wirevector_subset(pyrtl.Register)}
    assert names == {"one_kept", "two_kept"}


@pytest.mark.parametrize(
    ("inputs", "text"),
    [
        ({}, "input a of 4 bits gets None"),
        ({"a": pyrtl.Const(0, 3)}, "input a of 4 bits gets"),
        ({"a": pyrtl.Const(0, 4), "b": pyrtl.Const(0, 1)}, "the block has no inputs ['b']"),
    ],
)
def test_a_copy_needs_its_inputs(inputs, text):
    with pe.logic.design() as part:
        a, out = pyrtl.Input(4, "a"), pyrtl.Output(4, "y")
        out <<= a
    with pe.logic.design(), pytest.raises(ValueError) as error:
        engine.instantiate(part, inputs, "one")
    assert text in str(error.value)


def test_the_ports_of_the_core_engines():
    bitmod = engine.EngineDesign("bitmod", rows=2, cols=3)
    assert bitmod.input_widths["x_data"] == 2 * 4 * 16
    assert bitmod.input_widths["w_data"] == 3 * (4 * 8 + 8 + 2 + 8)
    assert bitmod.output_widths["y_data"] == 3 * 32
    assert set(bitmod.cells.job_ports) == {"terms", "mode"}
    btc = engine.EngineDesign("btc", rows=2, cols=3)
    assert (btc.input_widths["x_data"], btc.input_widths["w_data"]) == (2 * 128, 3 * 128)
    assert set(btc.cells.job_ports) == {"x_words", "w_words", "x_signed", "w_signed"}
    # Every port of a PE's step is fed by the row, the column or the sequencer.
    for name in DESIGNS:
        cells = engine.find_cells(name)
        fed = {*cells.x_ports, *cells.w_ports}
        own = {"last", "final_group", "terms", "mode", "shift", "negative"}
        assert set(pe.find_design(name).step_ports) - own == fed


# ------------------------------------------------------------------ host side, by hand


def test_words_of_a_small_product():
    """2 x 2 dINT4 PEs, y = x @ w.T of 1 x 3 x 2: one row tile, two column tiles."""
    design = engine.EngineDesign("dint4", rows=2, cols=2)
    x = quantize(np.array([[127.0, -127.0]], np.float32), "int8-sym", group_size=2)
    w = quantize(np.array([[6, 5], [6, 4], [-6, 6]], np.float32), "dint4-sym", group_size=2)
    work = engine.prepare(design, x, w, "stream")
    # Both rows of the tile show the only token: 127, then -127.
    assert work.x == [0x7F7F, 0x8181] * 2
    # Columns 0 and 1, then column 2 twice.
    codes = w.codes
    assert work.w == [
        *(int(codes[0, i]) | int(codes[1, i]) << 4 for i in range(2)),
        *(int(codes[2, i]) * 0x11 for i in range(2)),
    ]
    # Half units: 127 * (12 - 10), 127 * (12 - 8), 127 * (-12 - 12).
    y = [2 * 127, 4 * 127, -24 * 127]
    rows = [y[0] | y[1] << 32] * 2 + [(y[2] & 0xFFFFFFFF) * (1 | 1 << 32)] * 2
    assert work.y == rows
    assert work.y_last == [False, True] * 2
    assert np.array_equal(work.results(work.y, design), PES["dint4"].gemm(x, w))


@pytest.mark.parametrize("name", DESIGNS)
def test_host_results_are_those_of_the_pe(name):
    """Words put together and taken apart again give the PE's `gemm`, bit for bit."""
    design = engine.EngineDesign(name, rows=3, cols=2, x_depth=256, w_depth=256)
    rng = np.random.default_rng(3)
    for order in ("activations", "weights", "stream"):
        lanes = traces.pe_lanes(name)
        x, w = engine.random_operands(name, 5, 7, 3 * lanes + 1, rng)
        work = engine.prepare(design, x, w, order)
        found = work.results(work.y, design)
        assert np.array_equal(found.view(np.uint32), work.operands.gemm.view(np.uint32))
        assert len(work.x) == sum(job.words("x") for job in work.jobs)
        assert len(work.w) == sum(job.words("w") for job in work.jobs)
        assert len(work.y) == sum(job.rows_out(design.config) for job in work.jobs)
        run = run_array(design.config, work.jobs)
        assert (len(run.x), len(run.w), len(run.y)) == (len(work.x), len(work.w), len(work.y))


# ------------------------------------------------------------------ the check itself


def _trace(design, gemms=3, seed=0):
    trace, wrong = engine.random_trace(design, "t", gemms, np.random.default_rng(seed))
    assert wrong == 0
    return trace


@pytest.mark.parametrize("name", ["dint4", "bitmod", "fp16"])
def test_pyrtl_follows_the_model_in_every_cycle(name):
    design = engine.EngineDesign(name, rows=2, cols=2, x_depth=16, w_depth=16)
    trace = _trace(design, 6)
    assert trace.gemms == 6
    assert check.pyrtl_mismatches(design, trace) == 0


def test_one_wrong_bit_in_one_cycle_is_found():
    design = engine.EngineDesign("dint4", rows=2, cols=2)
    trace = _trace(design)
    valid = list(design.output_widths).index("y_valid")
    shift = sum(list(design.output_widths.values())[valid + 1 :])
    cycle = next(i for i, (_, wanted, _) in enumerate(trace.lines) if wanted >> shift & 1)
    for at, bit in ((cycle, 0), (2, shift)):  # a bit of a result; one that comes when none should
        word, wanted, mask = trace.lines[at]
        trace.lines[at] = word, wanted ^ 1 << bit, mask
    assert check.pyrtl_mismatches(design, trace) == 2


def test_a_product_cut_off_by_a_reset_counts_for_nothing():
    design = engine.EngineDesign("dint4", rows=2, cols=2)
    rng = np.random.default_rng(0)
    work = host.prepare(design, *engine.random_operands("dint4", 3, 3, 9, rng), "stream")
    recorder = traces.EngineRecorder(design, "t", rng)
    assert not recorder.session([work], cut=8)
    assert recorder.trace.gemms == 0 and recorder.trace.covers["reset at work"] == 1
    assert recorder.session([work, work])
    assert recorder.trace.gemms == 2 and recorder.trace.covers["products back to back"] == 1
    assert check.pyrtl_mismatches(design, recorder.trace) == 0


def test_results_other_than_the_gemm_of_the_pe_are_found(monkeypatch):
    design = engine.EngineDesign("dint4", rows=2, cols=2)
    right = engine.EngineWork.results
    monkeypatch.setattr(
        engine.EngineWork, "results", lambda work, words, design: right(work, words, design) + 1
    )
    _, wrong = engine.random_trace(design, "t", 3, np.random.default_rng(0))
    assert wrong >= 3


@pytest.mark.parametrize(
    "other",
    [{"x_depth": 8}, {"w_depth": 8}, {"result_rows": 2}],
)
def test_an_engine_of_other_sizes_does_not_pass(other):
    sizes = {"rows": 2, "cols": 2, "x_depth": 16, "w_depth": 16, "result_rows": 16}
    trace = _trace(engine.EngineDesign("dint4", **sizes), 30)
    assert check.pyrtl_mismatches(engine.EngineDesign("dint4", **{**sizes, **other}), trace) > 0


@pytest.mark.parametrize(
    ("part", "text"),
    [
        ("spacing", "a scale unit that is not waited for"),
        ("latency", "sums taken a cycle late"),
        ("bandwidth", "a stall by another name"),
    ],
)
def test_a_wrong_engine_is_found(part, text, monkeypatch):
    """The trace of the right engine against one whose generator is off by one thing."""
    design = engine.EngineDesign("bitmod", rows=2, cols=2, x_depth=16, w_depth=16)
    trace = _trace(design, 12)
    if part == "spacing":
        object.__setattr__(design.config, "scale_cycles", 7)
    elif part == "latency":
        object.__setattr__(design.config, "latency", design.config.latency + 1)
    else:
        monkeypatch.setattr("bitwright.rtl.engine.control.State", _Swapped)
    assert check.pyrtl_mismatches(design, trace) > 0, text


class _Swapped:
    FILL, COMPUTE, SCALE, DRAIN = (
        array.State.FILL, array.State.COMPUTE, array.State.SCALE, array.State.DRAIN,
    )  # fmt: skip
    OPERAND, BANDWIDTH = array.State.BANDWIDTH, array.State.OPERAND


# ------------------------------------------------------------------ Verilog, by cocotb


@pytest.mark.slow
@pytest.mark.simulator
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", CORE)
def test_500_random_products_a_core_pe(name):
    """Every output in every clock cycle, random shapes, ragged edges, random back-pressure."""
    report = engine.verify_engine(name, 500)
    verilog = [one for one in report.checks if one.realisation == "verilog"]
    assert sum(one.gemms for one in verilog) == 500
    assert [one.mismatches for one in report.checks] == [0] * len(report.checks)
    assert report.empty_bins == []


@pytest.mark.slow
@pytest.mark.simulator
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", SMALL)
def test_every_pe_has_an_engine(name):
    # PEs of over a thousand operand bits: four of them take the C compiler ten minutes.
    side = 1 if name in ("btc-w2a8", "dint4-dot16", "int8-dot16") else 2
    design = engine.EngineDesign(name, side, side, x_depth=32, w_depth=32, result_rows=4)
    report = engine.verify_engine(name, 10, designs=[design])
    assert [one.mismatches for one in report.checks] == [0, 0, 0]
    assert report.checks[-1].gemms == 10


@pytest.mark.slow
@pytest.mark.simulator
def test_a_mapped_engine_does_the_same():
    """Nangate45 cells in place of the Verilog: buffers, sequencer, PEs, column units."""
    design = engine.EngineDesign("dint4", rows=2, cols=1, x_depth=8, w_depth=8, result_rows=2)
    technology = resolve_technology("nangate45")
    result = synthesise(design.verilog(), design.top, technology)
    netlist = f"{result.netlist}\n{cell_models(technology, result.cells_by_type)}"
    assert check.cocotb_mismatches(design, [_trace(design, 8)], netlist) == {"t": 0}
    # Flip-flops: registers and memories, less what is constant.
    block = design.block()
    memories = {net.op_param[1] for net in block.logic if net.op in "m@"}
    bits = sum(memory.bitwidth << memory.addrwidth for memory in memories)
    bits += sum(len(wire) for wire in block.wirevector_subset(pyrtl.Register))
    assert 0.95 * bits < result.registers <= bits


@pytest.mark.slow
@pytest.mark.simulator
def test_an_emitted_engine_checks_itself(tmp_path):
    design = engine.EngineDesign("dint4", rows=2, cols=2)
    paths = engine.emit_engine(design, tmp_path / "engine", gemms=5)
    assert {path.name for path in paths} == {
        "engine_dint4_2x2.v", "replay.py", "run.py", "Makefile", "README.md", "vectors.json",
        "random.hex",
    }  # fmt: skip
    environment = check.verilator.environment()
    environment = {k: v for k, v in environment.items() if not k.startswith("PYTEST")}
    # A Python that finds cocotb, but not bitwright.
    blocked = tmp_path / "blocked" / "bitwright"
    blocked.mkdir(parents=True)
    (blocked / "__init__.py").write_text("raise ImportError('not here')\n")
    environment["PYTHONPATH"] = str(tmp_path / "blocked")
    done = subprocess.run(
        ["make", f"PYTHON={sys.executable}"], cwd=tmp_path / "engine", env=environment,
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "engine" / "report.json").read_text())
    assert report["traces"]["random"]["mismatches"] == 0
    assert report["traces"]["random"]["compared"] > 100


# ------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: engine.EngineDesign("dint44"), "unknown PE 'dint44'; did you mean dint4?"),
        (lambda: engine.EngineDesign("dint4", rows=0), "rows is 0; at least 1"),
        (
            lambda: engine.EngineDesign("dint4", rows=64, cols=64),
            "rows x cols is 64 x 64; at most 1024 PEs in one module, put several engines side by "
            "side",
        ),
        (lambda: engine.verify_engine("dint4", 1), "gemms is 1; at least 2, one for each engine"),
        (
            lambda: engine.emit_engine(engine.EngineDesign("dint4"), "x", gemms=0),
            "gemms is 0; at least 1",
        ),
        (
            lambda: host.prepare(
                engine.EngineDesign("dint4"),
                np.zeros((1, 4), np.float32),
                quantize(np.ones((1, 4), np.float32), "int4-asym", group_size=4),
            ),
            "the dint4 PE cannot run weight format int4-asym",
        ),
    ],
)
def test_errors(make, text):
    with pytest.raises(InputError) as error:
        make()
    assert str(error.value).startswith(text)
