"""Faults on purpose: they do what they say, and what cannot see them is found out."""

import json
from dataclasses import dataclass, replace

import numpy as np
import pyrtl
import pytest
import typer
from pyrtl import Block, Const, Input, Output, Register, concat, select
from typer.testing import CliRunner

from bitwright.commands.mutate import mutate as mutate_command
from bitwright.quant import InputError
from bitwright.rtl import DESIGNS, bulk, mutation, mutation_check, mutation_proof, vectors

APP = typer.Typer()
APP.command()(mutate_command)
DINT = DESIGNS["dint4"]


def outputs(block, inputs, values=None):
    """What a block gives out, cycle by cycle."""
    simulation = pyrtl.FastSimulation(block=block, tracer=None)
    ports = {wire.name for wire in block.wirevector_subset(Input)}
    names = sorted(wire.name for wire in block.wirevector_subset(Output))
    given = [{n: v for n, v in {**row, **(values or {})}.items() if n in ports} for row in inputs]
    rows = []
    for row in given:
        simulation.step(row)
        rows.append(tuple(simulation.inspect(name) for name in names))
    return rows


def tiny(kind):
    """A block of one place for a kind of fault, input a (4 bits), b (4), c (1), rst (1)."""
    block = Block()
    with pyrtl.set_working_block(block, no_sanity_check=True):
        a, b, c, rst = Input(4, "a"), Input(4, "b"), Input(1, "c"), Input(1, "rst")
        held = Register(4, "held")
        logic = {
            "operands swapped": lambda: (a - b)[:4],
            "select arms swapped": lambda: select(c, a, b),
            "slice off by one": lambda: a[1:3],
            "OR input dropped": lambda: a | b,
            "AND input dropped": lambda: a & b,
            "XOR input dropped": lambda: a ^ b,
            "other gate": lambda: a ^ b,
            "inverter removed": lambda: ~a,
            "add and subtract exchanged": lambda: (a + b)[:4],
            "carry dropped": lambda: (a + c)[:4],
            "comparison off by one": lambda: a > b,
            "constant bit flipped": lambda: a & Const(0b0110, 4),
            "sign extension dropped": lambda: a.sign_extended(6),
            "parts swapped": lambda: concat(a[2:], b[:2]),
            "reset missing": lambda: a & (~rst).sign_extended(4),
            "hold ignored": lambda: select(c, held, a),
            "register bypassed": lambda: a,
            "register delayed": lambda: a,
        }[kind]()
        if kind in ("reset missing", "hold ignored") or kind.startswith("register"):
            held.next <<= logic
            logic = held
        else:
            held.next <<= a
        out = Output(len(logic), "out")
        out <<= logic
    return block


#: Kind -> the wrong output as a function of the inputs of this cycle and those before it, newest
#: last; one entry per mutant of the tiny block. Rows are (a, b, c, rst).
WRONG = {
    "operands swapped": [lambda r: r[-1][1] - r[-1][0]],
    "select arms swapped": [lambda r: r[-1][1 if r[-1][2] else 0]],
    "slice off by one": [lambda r: r[-1][0] >> 2 & 3, lambda r: r[-1][0] & 3],
    "OR input dropped": [lambda r: r[-1][0], lambda r: r[-1][1]],
    "AND input dropped": [lambda r: r[-1][0], lambda r: r[-1][1]],
    "XOR input dropped": [lambda r: r[-1][0], lambda r: r[-1][1]],
    "other gate": [lambda r: r[-1][0] | r[-1][1]],
    "inverter removed": [lambda r: r[-1][0]],
    "add and subtract exchanged": [lambda r: r[-1][0] - r[-1][1]],
    "carry dropped": [lambda r: r[-1][0]],
    "comparison off by one": [lambda r: r[-1][0] >= r[-1][1]],
    "constant bit flipped": [lambda r: r[-1][0] & 0b0111, lambda r: r[-1][0] & 0b1110],
    "sign extension dropped": [lambda r: r[-1][0]],
    "parts swapped": [lambda r: (r[-1][1] & 3) << 2 | r[-1][0] >> 2],
    "reset missing": [lambda r: r[-2][0]],
    "hold ignored": [lambda r: r[-2][0]],
    "register bypassed": [lambda r: r[-1][0]],
    "register delayed": [lambda r: r[-3][0]],
}


@pytest.mark.parametrize("kind", mutation.KINDS)
def test_each_kind_of_fault_does_what_it_says(kind):
    candidates = [m for m in mutation.mutants(tiny(kind)) if m.kind == kind]
    assert {m.place for m in candidates} <= {"out", "held"}
    rng = np.random.default_rng(0)
    rows = [tuple(map(int, rng.integers(0, (16, 16, 2, 2)))) for _ in range(200)]
    inputs = [dict(zip(("a", "b", "c", "rst"), row, strict=True)) for row in rows]
    block = mutation.mutated(tiny(kind), candidates)
    right = outputs(tiny(kind), inputs)
    assert outputs(block, inputs, {"mutant": 0}) == right
    assert len(candidates) == len(WRONG[kind])
    for value, wrong in enumerate(WRONG[kind], start=1):
        got = outputs(block, inputs, {"mutant": value})
        mask = (1 << len(block.get_wirevector_by_name("out"))) - 1
        wanted = [(int(wrong(rows[: i + 1])) & mask,) for i in range(3, len(rows))]
        assert got[3:] == wanted
        assert got != right


# ------------------------------------------------------------------ choice and block


def test_the_choice_is_the_same_for_a_seed_and_takes_every_kind_in_turn():
    candidates = mutation.mutants(DESIGNS["bitmod"].block())
    assert candidates == mutation.mutants(DESIGNS["bitmod"].block())
    assert [m.number for m in candidates] == list(range(len(candidates)))
    order = mutation.mutant_order(candidates, 3)
    assert order == mutation.mutant_order(candidates, 3) != mutation.mutant_order(candidates, 4)
    assert sorted(m.number for m in order) == list(range(len(candidates)))
    kinds = {m.kind for m in candidates}
    assert kinds == set(mutation.KINDS)
    assert {m.kind for m in order[: len(kinds)]} == kinds
    assert len({m.place for m in order[:40]}) > 25


@pytest.mark.parametrize("pe", ["bitmod", "dint4", "btc", "fp16acc16"])
def test_mutant_0_is_the_design(pe):
    design = DESIGNS[pe]
    chosen = mutation.mutant_order(mutation.mutants(design.block()), 0)[:60]
    recorder = vectors.TraceRecorder(design.reference())
    recorder.stream(design.random(design.modes[0], 20, np.random.default_rng(1)))
    inputs = recorder.trace("mixed").inputs
    ports = {"rst": 0, "valid": 0} | dict.fromkeys([*design.step_ports, *design.setup_ports], 0)
    rows = [{**ports, **row} for row in inputs]
    block = mutation.mutated(design.block(), chosen)
    block.sanity_check()
    assert outputs(block, rows, {"mutant": 0}) == outputs(design.block(), rows)


# ------------------------------------------------------------------ proofs


def mutant_of(design, kind, place, what):
    """The first such mutant."""
    return next(
        m
        for m in mutation.mutants(design.block())
        if (m.kind, m.place) == (kind, place) and what in m.what
    )


def test_a_second_reset_of_the_same_bit_is_proved_to_be_no_fault():
    # `last` is only taken without `rst`; the register behind it clears once more.
    mutant = mutant_of(DINT, "reset missing", "last1", "")
    assert mutation_proof.judge(DINT, mutant) == (True, "proved in one cycle")


def test_a_dot_product_under_way_while_nothing_is_shown_is_proved_to_be_no_fault():
    # The accumulator is 0 then, whether it is cleared or not: states that only reset excludes.
    mutant = mutant_of(DESIGNS["fp16"], "hold ignored", "running", "")
    verdict = mutation_proof.judge(DESIGNS["fp16"], mutant)
    assert verdict == (True, "proved by induction from reset")


def test_a_real_fault_is_never_proved_away():
    mutant = mutant_of(DINT, "reset missing", "done", "")
    assert mutation_proof.judge(DINT, mutant) == (
        False,
        "some input shows it 1 cycles after a reset",
    )
    for mutant in mutation.mutant_order(mutation.mutants(DINT.block()), 5)[:6]:
        if mutant.kind in ("operands swapped", "select arms swapped", "inverter removed"):
            assert not mutation_proof.judge(DINT, mutant, timeout_s=2).unobservable


# ------------------------------------------------------------------ simulator


@pytest.mark.simulator
def test_trace_driver_counts_the_cycles_that_differ():
    program = bulk.build_driver(DINT, [DINT.verilog()])
    recorder = vectors.TraceRecorder(DINT.reference())
    recorder.stream(DINT.random(DINT.modes[0], 20, np.random.default_rng(1)))
    recorder.reset({**dict.fromkeys(DINT.step_ports, 1)})
    trace = recorder.trace("mixed")
    assert bulk.run_trace(program, DINT, trace) == 0
    changed = list(trace.outputs)
    at = next(i for i, (_, valid, _) in enumerate(changed) if valid)
    ready, _, y = changed[at]
    changed[at] = (ready, 1, y ^ 1)
    assert bulk.differing_cycles(program, DINT, replace(trace, outputs=changed)).tolist() == [at]
    changed[at], changed[at + 1] = (ready, 0, 0), (ready, 1, y)
    assert bulk.run_trace(program, DINT, replace(trace, outputs=changed)) >= 1
    changed = list(trace.outputs)
    changed[0] = (0, 1, 5)  # the reset itself is not compared
    assert bulk.run_trace(program, DINT, replace(trace, outputs=changed)) == 0


@pytest.mark.simulator
def test_ready_counts_only_while_valid_is_high():
    design = DESIGNS["bitmod"]
    program = bulk.build_driver(design, [design.verilog()])
    recorder = vectors.TraceRecorder(design.reference())
    recorder.stream(design.random("fp4", 5, np.random.default_rng(1)))
    trace = recorder.trace("mixed")
    flipped = [(1 - ready, valid, y) for ready, valid, y in trace.outputs]
    shown = [i for i, row in enumerate(trace.inputs) if i and row.get("valid")]
    wrong = bulk.differing_cycles(program, design, replace(trace, outputs=flipped))
    assert wrong.tolist() == shown


def still(stream):
    """The stream with activations of 0."""
    return replace(
        stream, ports={n: v * (not n.startswith("act")) for n, v in stream.ports.items()}
    )


@dataclass(frozen=True)
class Blind(type(DINT)):  # type: ignore[misc]
    """A dINT PE whose vectors have no activation but 0."""

    wrap_steps = None  # its vectors have no largest sum

    def corners(self, mode, compact=False):
        return still(super().corners(mode, compact))

    def random(self, mode, dots, rng):
        return still(super().random(mode, dots, rng))

    def traces(self, mode, rng):
        return []


@pytest.mark.slow
@pytest.mark.simulator
def test_weak_vectors_let_mutants_survive():
    report = mutation_check.check_mutants(Blind(), 12, 1, timeout_s=2)
    assert report.mutants == 12
    assert report.of("survivor")
    assert all("some input shows it" in r.note for r in report.of("survivor")[:1])
    assert report.to_dict()["survivors"] == len(report.of("survivor"))


@dataclass(frozen=True)
class Wrong(type(DINT)):  # type: ignore[misc]
    """A dINT PE with a model that is off by one bit."""

    def model(self, stream):
        y, cycle = super().model(stream)
        return y ^ 1, cycle


@pytest.mark.simulator
def test_an_unbroken_design_that_differs_is_an_error():
    with pytest.raises(RuntimeError, match="the unbroken dint4 differs in dint4-sym corner; run"):
        mutation_check.check_mutants(Wrong(), 3)


@pytest.mark.slow
@pytest.mark.simulator
@pytest.mark.parametrize("pe", mutation_check.CORE)
def test_no_mutant_of_a_core_pe_survives(pe):
    answer = CliRunner().invoke(APP, [pe, "--json"])
    document = json.loads(answer.stdout)
    (report,) = document["results"]
    survivors = [row for row in report["tried"] if row["outcome"] == "survivor"]
    assert (survivors, answer.exit_code) == ([], 0)
    assert report["mutants"] == report["caught"] == 40
    kinds = {row["kind"] for row in report["tried"]}
    assert len(kinds) > 12
    assert all(row["vectors"] > 0 for row in report["tried"] if row["outcome"] == "caught")
    assert all(row["note"].startswith("proved") for row in report["tried"] if not row["caught_by"])


# ------------------------------------------------------------------ command


def pretended(*outcomes):
    """A check that says so, without one."""

    def check(design, count, seed, progress):
        progress(0, 1, "build")
        tried = []
        for i, outcome in enumerate(outcomes):
            mutant = mutation.Mutant(i, "inverter removed", "acc", i, "~a becomes a")
            caught = "int8 corner" if outcome == "caught" else ""
            note = {"left out": "proved in one cycle", "survivor": "some input shows it"}
            tried.append(
                mutation_check.MutantResult(
                    design.name, mutant, caught, 5, outcome == "left out", note.get(outcome, "")
                )
            )
        return mutation_check.MutationReport(design.name, seed, 99, tried)

    return check


def test_command_sums_up_and_ends_with_0_without_survivors(monkeypatch):
    monkeypatch.setattr(mutation_check, "check_mutants", pretended("caught", "left out", "caught"))
    answer = CliRunner().invoke(APP, ["core"])
    assert answer.exit_code == 0, answer.output
    for pe in ("bitmod", "dint4", "btc"):
        text = "2 mutants, 2 caught, 0 survivors, 1 proved equivalent and left out"
        assert f"{pe}: {text}" in answer.stdout
    for word in ("inverter removed", "acc - 1", "int8 corner", "left out: proved in one cycle"):
        assert word in answer.stdout


def test_command_ends_with_1_if_one_survives(monkeypatch):
    monkeypatch.setattr(mutation_check, "check_mutants", pretended("caught", "survivor"))
    answer = CliRunner().invoke(APP, ["dint4", "--json"])
    assert answer.exit_code == 1
    document = json.loads(answer.stdout)
    assert document["survivors"] == 1
    assert document["results"][0]["tried"][1] == {
        "number": 1,
        "kind": "inverter removed",
        "place": "acc",
        "distance": 1,
        "what": "~a becomes a",
        "outcome": "survivor",
        "caught_by": "",
        "vectors": 5,
        "note": "some input shows it",
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bitmot"], r"unknown PE 'bitmot'; did you mean bitmod\?"),
        (["int4", "--count", "0"], r"count \(=0\) must be 1 or more"),
    ],
)
def test_mistakes(arguments, message):
    error = CliRunner().invoke(APP, arguments).exception
    assert isinstance(error, InputError)
    with pytest.raises(InputError, match=message):
        raise error


@pytest.mark.simulator
def test_more_mutants_than_there_are(monkeypatch):
    some = mutation.mutants(DINT.block())[-3:]
    monkeypatch.setattr(mutation_check, "mutants", lambda block: some)
    with pytest.raises(InputError, match=r"count \(=40\) exceeds the \d mutants of dint4 that can"):
        mutation_check.check_mutants(DINT)
