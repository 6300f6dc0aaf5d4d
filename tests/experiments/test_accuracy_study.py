"""The study of the papers' algorithms: rows, resuming, and the papers' orderings."""

import json
import re
from dataclasses import asdict, replace

import pytest

from bitwright.commands.accuracy import accuracy
from bitwright.commands.ranges import ranges
from bitwright.experiments import StudyRow, accuracy_study
from bitwright.quant import (
    InputError,
    agreement,
    apply_recipe,
    load_model,
    load_text,
    resolve_recipe,
)
from bitwright.quant import perplexity as measure_perplexity

SMALL = accuracy_study.StudyConfig(
    window=32,
    tokens=256,
    calibration_tokens=128,
    long_length=64,
    learn_length=32,
    learn_sequences=2,
    learn_epochs=1,
    group_size=32,
)


@pytest.fixture(scope="module")
def tiny():
    return load_model("tiny")


@pytest.fixture(scope="module")
def study(tiny, tmp_path_factory):
    out = tmp_path_factory.mktemp("study")
    return out, accuracy_study.run_study(tiny, out, SMALL)


def row(table, method, weights, perplexity):
    return StudyRow(table, method, weights, "r", perplexity, 0, 1, 4, None, 0, 0)


@pytest.mark.slow
def test_every_case_has_a_row(study):
    _, rows = study
    assert [r.key for r in rows] == [case.key for case in accuracy_study.cases(SMALL)]
    assert all(r.perplexity > 1 and r.kl >= 0 and 0 <= r.top1 <= 1 for r in rows)


def test_the_tables_are_those_of_the_papers():
    found = {}
    for case in accuracy_study.cases(accuracy_study.StudyConfig()):
        found.setdefault(case.table, []).append(case)
    assert {table: len(own) for table, own in found.items()} == {
        "bitmod": 4 * 3 * 2,
        "dint": 6 * 3,
        "abq": 3 * 5,
    }


@pytest.mark.slow
def test_a_row_is_what_evaluation_measures(tiny, study):
    rows = {r.key: r for r in study[1]}
    own = rows["dint", "AQAS+SLAC", "dINT4"]
    quantized = apply_recipe(tiny, own.recipe, calibration=SMALL.calibration("matched"))
    kwargs = {"window": 32, "max_tokens": 256, "linear": quantized.linear()}
    assert own.perplexity == measure_perplexity(quantized.model, **kwargs).perplexity
    result = agreement(tiny, quantized.model, **kwargs)
    assert own.kl == pytest.approx(result.kl, rel=1e-9)
    assert own.top1 == result.top1


@pytest.mark.slow
def test_a_study_goes_on_where_it_was(tiny, study, tmp_path, monkeypatch):
    """Of a killed run half a line is left; finished rows are not measured again."""
    out, rows = study
    lines = (out / "rows.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "rows.jsonl").write_text("".join(lines[:-1]) + lines[-1][:40])
    measured = []
    real = accuracy_study._measure

    def count(case, *arguments):
        measured.append(case.key)
        return real(case, *arguments)

    monkeypatch.setattr(accuracy_study, "_measure", count)
    again = accuracy_study.run_study(tiny, tmp_path, SMALL)
    assert measured == [rows[-1].key]
    assert [replace(r, seconds=0) for r in again] == [replace(r, seconds=0) for r in rows]


@pytest.mark.slow
def test_rows_of_another_study_are_refused(tiny, study):
    out, _ = study
    other = replace(SMALL, tokens=512)
    message = (
        f"{out / 'rows.jsonl'} holds rows of a study with another config; choose another --out"
    )
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        accuracy_study.run_study(tiny, out, other)


def test_a_damaged_line_is_told(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("{}\n")
    message = f"{path}, line 1 is no row of a study; remove it"
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        accuracy_study.read_rows(path)


def test_claims_are_judged_by_the_rows():
    rows = [row("bitmod", "RTN", "BitMoD4", 10.0), row("bitmod", "RTN", "INT4", 11.0)]
    (verdict,) = accuracy_study.check_claims(rows)
    assert verdict.reproduced and verdict.numbers == "10.00 < 11.00"
    (verdict,) = accuracy_study.check_claims([rows[0], replace(rows[1], perplexity=9.0)])
    assert not verdict.reproduced and verdict.numbers == "10.00 >= 9.00"


def test_every_claim_names_rows_that_there_are():
    keys = {case.key for case in accuracy_study.cases(accuracy_study.StudyConfig())}
    for claim in accuracy_study.CLAIMS:
        for pair in claim.pairs:
            for place in pair:
                assert (claim.table, *place) in keys


# ------------------------------------------------------------------ what ships


def committed():
    return accuracy_study.read_rows(accuracy_study.COMMITTED)


def test_the_committed_rows_are_of_the_default_study():
    config = json.loads(json.dumps(asdict(accuracy_study.StudyConfig())))
    rows = committed()
    assert rows
    keys = {case.key: case for case in accuracy_study.cases(accuracy_study.StudyConfig())}
    for own in rows:
        assert own.made_by["model"] == "smollm2"
        assert own.made_by["config"] == config
        assert resolve_recipe(keys[own.key].recipe).name == own.recipe


@pytest.mark.slow
@pytest.mark.parametrize("place", [("bitmod", "RTN", "BitMoD3"), ("dint", "plain", "dINT4")])
def test_committed_rows_are_measured_again(place):
    from bitwright.quant import ModelUnavailable

    (own,) = [r for r in committed() if r.key == place]
    if own.made_by["text"] != load_text().name:
        pytest.skip(f"made on {own.made_by['text']}; this Python's help topics differ")
    try:
        model = load_model("smollm2")
    except ModelUnavailable as error:
        pytest.skip(str(error))
    quantized = apply_recipe(model, own.recipe)
    config = accuracy_study.StudyConfig()
    found = measure_perplexity(
        quantized.model, window=config.window, max_tokens=config.tokens, linear=quantized.linear()
    )
    # The same rounding on every machine; float32 products may differ in the order of their sums.
    assert found.perplexity == pytest.approx(own.perplexity, rel=1e-3)


# ------------------------------------------------------------------ commands


@pytest.mark.slow
def test_the_command_writes_and_shows_rows(invoke, tmp_path):
    arguments = ["dint", "--model", "tiny", "--out", str(tmp_path), "--window", "32"]
    arguments += ["--tokens", "64", "--calibration-tokens", "256", "--json"]
    document = json.loads(invoke(accuracy, *arguments))
    assert len(document["rows"]) == 18
    assert (tmp_path / "accuracy.csv").read_text().count("\n") == 19
    stored = json.loads((tmp_path / "accuracy.json").read_text())
    assert [r["perplexity"] for r in stored["rows"]] == [r["perplexity"] for r in document["rows"]]
    assert {c["says"] for c in stored["claims"]} == {c["says"] for c in document["claims"]}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["dnit"], "table 'dnit' is unknown; choose bitmod, dint, abq or all"),
        (["dint"], "--out is missing: name a folder for the rows, or use --committed"),
        (
            ["dint", "--out", "x", "--tokens", "100"],
            "--tokens 100 are less than one window of 512; ask for more tokens or a shorter "
            "--window",
        ),
        (
            ["dint", "--out", "x", "--epochs", "0"],
            "--calibration-tokens and --epochs must be at least 1, --seed not negative",
        ),
    ],
)
def test_wrong_arguments(invoke, arguments, message):
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        invoke(accuracy, *arguments)


def test_ranges_by_length(invoke):
    arguments = ["--model", "tiny", "--lengths", "16,64", "--tokens", "128", "--json"]
    document = json.loads(invoke(ranges, *arguments))
    assert {r["length"] for r in document["ranges"]} == {16, 64}
    assert "attn_out max" in invoke(ranges, *arguments[:-1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--lengths", "a,b"],
            "--lengths 'a,b' must be numbers of at least 2 with commas, such as 64,256,1024",
        ),
        (
            ["--lengths", "64,512", "--tokens", "100"],
            "--tokens 100 are less than one sequence of 512; ask for more",
        ),
    ],
)
def test_wrong_lengths(invoke, arguments, message):
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        invoke(ranges, "--model", "tiny", *arguments)
