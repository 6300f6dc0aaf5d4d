"""The rebuilt dINT paper: MAC units, W4A8, underflow, and the published files of all papers."""

import csv
import json
from functools import partial
from pathlib import Path

import pytest

from bitwright import experiments
from bitwright.commands.paper import paper as command
from bitwright.experiments import PAPERS, PaperSetting, accuracy_study, find_paper
from bitwright.quant import FORMATS, InputError
from bitwright.rtl import synthesise_pe

DATA = Path(experiments.__file__).parent / "papers" / "data"


def read(name):
    with (DATA / name).open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(line for line in file if not line.startswith("#")))


@pytest.fixture(scope="module")
def rebuilt():
    return find_paper("dint").rebuild(only=("table2", "w4a8", "fig5"))


@pytest.fixture
def run(invoke):
    return partial(invoke, command)


# ------------------------------------------------------------------ published files


@pytest.mark.parametrize("path", sorted(DATA.glob("*.csv")), ids=lambda path: path.name)
def test_every_published_row_has_a_source(path):
    rows = read(path.name)
    assert rows
    if path.name == "bitmod_figures.csv":  # one source for the file, in its first line
        assert "authors' repo" in path.read_text(encoding="utf-8").splitlines()[0]
        return
    for row in rows:
        assert row["source"] and "unverified" not in row["source"]
        float(row["value"])


def test_the_two_ratios_and_the_bound_are_all_that_is_published(rebuilt):
    values = {row["quantity"]: float(row["value"]) for row in read("dint.csv")}
    assert sorted(values.values()) == [1.0, 1.93, 2.56]
    shown = {row["published"] for row in rebuilt.data["table2"]} - {None}
    shown |= {row["published"] for row in rebuilt.data["w4a8_bound"]}
    assert shown == {1.0, 1.93}


# ------------------------------------------------------------------ Table 2


def test_our_ratio_is_that_of_two_syntheses(rebuilt):
    rows = {(row["quantity"], row["where"]): row for row in rebuilt.data["table2"]}
    row = rows["dINT4 x INT8 MAC", "nangate45"]
    int8, dint4 = (synthesise_pe(pe, "nangate45", only=["total"]) for pe in ("int8", "dint4"))
    assert row["ours"] == pytest.approx(int8.area_um2 / dint4.area_um2)
    assert row["published"] == 1.93 and "third-party" in row["source"]


def test_the_gap_by_hand(rebuilt):
    # Ours is 1.2 or so: 1.2 / 1.93 - 1 = -0.378.
    row = rebuilt.data["table2"][0]
    assert row["gap"] == pytest.approx((row["ours"] - 1.93) / 1.93)
    assert -0.5 < row["gap"] < -0.2


def test_what_is_not_published_has_no_gap_and_says_so(rebuilt):
    alone = [row for row in rebuilt.data["table2"] if row["published"] is None]
    assert {row["quantity"] for row in alone} >= {"INT4 x INT8 MAC"}
    for row in alone:
        assert row["gap"] is None and "not at hand" in row["reason"] and row["source"] == ""
    assert all(row["reason"] for row in rebuilt.data["table2"])


# ------------------------------------------------------------------ W4A8


def test_rows_are_those_of_the_study(rebuilt):
    study = {row.key: row for row in accuracy_study.read_rows(accuracy_study.COMMITTED)}
    rows = rebuilt.data["w4a8"]
    assert len(rows) == 18
    for row in rows:
        theirs = study["dint", row["method"], row["weights"]]
        assert (row["ours"], row["recipe"]) == (theirs.perplexity, theirs.recipe)
    base = rows[0]["ours"] / rows[0]["ours_over_fp16"]
    (bound,) = rebuilt.data["w4a8_bound"]
    best = study["dint", "AQAS+SLAC+GPTQ", "dINT4"].perplexity
    assert bound["ours"] == pytest.approx(best - base)
    assert bound["gap"] == pytest.approx(bound["ours"] / 1.0 - 1)


def test_claims_are_the_studys(rebuilt):
    verdicts = [
        verdict
        for verdict in accuracy_study.check_claims(
            accuracy_study.read_rows(accuracy_study.COMMITTED)
        )
        if verdict.claim.table == "dint"
    ]
    assert [(c["says"], c["holds"]) for c in rebuilt.data["w4a8_claims"]] == [
        (verdict.claim.says, verdict.holds) for verdict in verdicts
    ]


def test_levels_by_hand(rebuilt):
    found = {row["format"]: row for row in rebuilt.data["fig5"]}
    # dint4-sym: -6 .. 6 and +-1/2; smallest 0.5 / 6, widest step 1 / 6.
    assert found["dINT4"]["levels"] == 15 == len(FORMATS["dint4-sym"].grid())
    assert found["dINT4"]["smallest"] == pytest.approx(1 / 12)
    assert found["dINT4"]["widest_step"] == pytest.approx(1 / 6)
    assert found["FP4"]["widest_step"] == pytest.approx(2 / 6)  # from 4 to 6
    assert found["INT4"]["widest_step"] == pytest.approx(1 / 7)


def test_figures_draw_what_the_rows_say(rebuilt):
    heights = [p.get_height() for p in rebuilt.figures["table2"]().axes[0].patches]
    assert sorted(heights) == pytest.approx(sorted(r["ours"] for r in rebuilt.data["table2"]))
    heights = [p.get_height() for p in rebuilt.figures["w4a8"]().axes[0].patches]
    assert sorted(heights) == pytest.approx(sorted(r["ours"] for r in rebuilt.data["w4a8"]))


# ------------------------------------------------------------------ a model of one's own


def test_underflow_is_counted_on_the_model_that_is_named(run):
    document = json.loads(run("dint", "--only", "underflow", "--model", "tiny", "--json"))
    found = {row["weights"]: row for row in document["underflow"]}
    assert found["dINT4"]["rounded_to_zero"] < found["INT4"]["rounded_to_zero"]
    for row in found.values():
        whole = row["relative_mse"]
        assert whole * (1 - row["underflow_part"]) == pytest.approx(row["rest"])
        assert 0 < row["underflow_part"] < 1 and 0 < whole < 0.1
    assert document["seconds"].keys() == {"underflow"}


def test_times_are_told_when_asked_for(run):
    assert "fig5: 0" in run("dint", "--only", "fig5", "--times")
    assert " s\n" not in run("dint", "--only", "fig5")


# ------------------------------------------------------------------ mistakes


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        pytest.param(
            ("dint", "--only", "tabel2"),
            "unknown table of dint 'tabel2'; did you mean table2? Known: table2, power, w4a8, "
            "underflow, fig5",
            id="table",
        ),
        pytest.param(("dnt",), "unknown paper 'dnt'; did you mean dint", id="paper"),
        pytest.param(
            ("dint", "--fresh"),
            "--fresh needs --out, a folder for the rows that are measured",
            id="fresh without a folder",
        ),
        pytest.param(
            ("dint", "--tokens", "100"),
            "--tokens 100 and --window 512: a window has at least 2 tokens, and at least one "
            "window is read",
            id="less than a window",
        ),
        pytest.param(
            ("dint", "--only", "underflow", "--model", "no-such"), "no-such", id="unknown model"
        ),
    ],
)
def test_mistakes_are_told(run, arguments, message):
    with pytest.raises(InputError) as raised:
        run(*arguments)
    assert message in str(raised.value)


def test_a_window_longer_than_the_models_context(run):
    with pytest.raises(InputError, match="is longer than the context of tiny"):
        run("dint", "--only", "w4a8", "--model", "tiny", "--tokens", "99999", "--window", "99999")


def test_all_three_papers_are_there():
    assert list(PAPERS) == ["bitmod", "dint", "abq"]
    assert PaperSetting().shipped and not PaperSetting(model="tiny").shipped
    assert not PaperSetting(tokens=1024).shipped
