"""`bitwright search` on the bundled model."""

import json

import pytest

from bitwright.commands.search import search
from bitwright.output import remembered
from bitwright.quant import InputError

QUICK = (
    *("--model", "tiny", "--formats", "bitmod3,bitmod4,int8-sym", "--tokens", "512"),
    *("--window", "128", "--generations", "5", "--population", "16", "--finalists", "1"),
    *("--calibration-maps", "5", "--prompt", "16", "--generate", "4"),
)


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BITWRIGHT_CACHE", str(tmp_path_factory.mktemp("cache")))
        # Synthesis of the PE takes minutes without a cache, and has tests of its own.
        patch.setattr("bitwright.experiments.pe_area", lambda pe, technology: None)
        yield


def test_json_is_the_file(invoke, tmp_path):
    arguments = (*QUICK, "--out", str(tmp_path), "--json")
    with remembered(["search", *arguments]):
        document = json.loads(invoke(search, *arguments))
    written = json.loads((tmp_path / "search.json").read_text())
    assert {**document, "bitwright": None, "commit": None} == {
        **written, "bitwright": None, "commit": None,
    }  # fmt: skip
    assert (tmp_path / "pareto.svg").exists()
    assert document["meta"]["config"]["budgets"] == {}
    assert document["meta"]["command"] == " ".join(["bitwright search", *QUICK])


def test_the_table_tells_models_proxy_hypervolume_and_gain(invoke, tmp_path):
    shown = " ".join(invoke(search, *QUICK, "--out", str(tmp_path)).split())
    for words in (
        "knee",
        "rank correlation",
        "hypervolume:",
        "uniform recipes alone",
        "search.csv",
    ):
        assert words in shown
    assert "at equal" in shown or "no mixed model that was measured" in shown


def test_budgets_reach_the_search(invoke, tmp_path):
    budgets = ("--max-bits", "4", "--max-latency-ms", "1000", "--max-energy-uj-per-token", "1e6")
    document = json.loads(invoke(search, *QUICK, *budgets, "--out", str(tmp_path), "--json"))
    assert document["meta"]["config"]["budgets"] == {
        "bits_per_weight": 4.0,
        "latency_s": 1.0,
        "energy_per_token_uJ": 1e6,
    }
    assert max(row["bits_per_weight"] for row in document["front"]) <= 4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--max-bits", "2"], "budget of 2 bits per weight cannot be held; the least that is poss"),
        (["--rows", "16,x"], "--rows is '16,x'; whole numbers separated by commas, as 16,32"),
        (["--scales", "s4"], "--scales is 's4'; s8 or s16"),
        (["--objective", "bits"], "--objective is bits; perplexity first, then one or more of"),
        (["--formats", "bitmod3"], "--formats names bitmod3; 2 to 36 formats"),
        (["--dram", "ddr9"], "ddr9"),
    ],
    ids=["bits", "rows", "scales", "objective", "formats", "dram"],
)
def test_mistakes_are_one_line(invoke, tmp_path, options, message):
    with pytest.raises(InputError) as caught:
        invoke(search, *QUICK, *options, "--out", str(tmp_path))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
