"""`bitwright evaluate`: keys, tables and mistakes."""

import json
import re

import pytest

import bitwright
from bitwright.commands.evaluate import evaluate
from bitwright.quant import Calibration, InputError, apply_recipe, load_model

TINY = ("--model", "tiny", "--tokens", "128", "--window", "128")


def document(invoke, *arguments):
    return json.loads(invoke(evaluate, *TINY, *arguments, "--json"))


def test_all_keys_are_there_and_null_where_nothing_was_asked_for(invoke):
    found = document(invoke)
    assert set(found) == set(
        "bitwright commit model recipe arithmetic perplexity tokens predicted_tokens window "
        "bits_per_weight nominal_bits text bos pe pe_macs parts kl top1 block_errors "
        "reference_perplexity perplexity_ratio_interval calibration notes config version seed "
        "model_source".split()
    )
    assert (found["model"], found["recipe"], found["arithmetic"]) == ("tiny", "fp16", "fake")
    assert (found["tokens"], found["predicted_tokens"], found["window"]) == (128, 127, 128)
    assert (found["bits_per_weight"], found["nominal_bits"], found["bos"]) == (16.0, 16, False)
    assert (found["pe"], found["pe_macs"], found["notes"], found["seed"]) == ([], 0, [], 0)
    for key in ("parts", "kl", "top1", "block_errors", "calibration", "reference_perplexity"):
        assert found[key] is None
    assert found["version"] == found["bitwright"] == bitwright.__version__
    assert re.fullmatch(r"none|[0-9a-f]{12}(\+changes)?", found["commit"])
    assert "pydoc_data" in found["text"]


def test_the_pe_splits_by_default_and_comparing_adds_agreement(invoke):
    found = document(invoke, "--recipe", "w4g64a8-dint", "--arithmetic", "pe", "--compare")
    assert found["pe"] == ["dint4"] and found["pe_macs"] > 0
    assert [part["name"] for part in found["parts"]] == [
        "unquantised", "format", "activations", "accumulator", "scale unit",
    ]  # fmt: skip
    assert found["parts"][-1]["perplexity"] == found["perplexity"]
    assert found["parts"][0]["perplexity"] == found["reference_perplexity"]
    total = sum(part["nll_change"] for part in found["parts"])
    assert total == pytest.approx(found["parts"][-1]["nll"] - found["parts"][0]["nll"], abs=1e-12)
    assert 0 < found["kl"] < 1 and 0.5 < found["top1"] < 1
    assert len(found["block_errors"]) == 5 and all(0 < e < 1 for e in found["block_errors"])
    assert found["perplexity_ratio_interval"] is None  # one window tells nothing


def test_no_split_leaves_the_ladder_out(invoke):
    arguments = ("--recipe", "w4g64-bitmod", "--arithmetic", "pe", "--no-split")
    found = document(invoke, *arguments)
    assert found["parts"] is None and found["pe"] == ["bitmod"]


def test_a_pe_can_be_named(invoke):
    arguments = ("--recipe", "w4-int+a8", "--arithmetic", "pe", "--no-split", "--pe", "btc")
    assert document(invoke, *arguments)["pe"] == ["btc"]


def test_several_windows_give_an_interval(invoke):
    found = json.loads(
        invoke(
            evaluate, "--model", "tiny", "--tokens", "256", "--window", "64", "--recipe", "int4",
            "--compare", "--json",
        )
    )  # fmt: skip
    low, high = found["perplexity_ratio_interval"]
    assert low <= found["perplexity"] / found["reference_perplexity"] <= high


@pytest.mark.parametrize(
    ("length", "tokens"), [((), 512), (("--calibration-length", "slac"), 128)], ids=["512", "slac"]
)
def test_calibration_is_planned_and_told(invoke, tmp_path, length, tokens):
    path = tmp_path / "calibration.txt"
    path.write_text("All work and no play makes Jack a dull boy. " * 60)
    found = document(
        invoke, "--recipe", "w4g64-int+awq", "--calibration-text", str(path),
        "--calibration-sequences", "2", "--seed", "3", *length,
    )  # fmt: skip
    assert found["calibration"] == {
        "text": "calibration.txt",
        "sequences": 2,
        "length": tokens,
        "seed": 3,
        "sample_tokens": Calibration().sample_tokens,
    }
    assert found["seed"] == 3


def test_a_quantised_folder_is_evaluated(invoke, tmp_path):
    apply_recipe(load_model("tiny"), "w4g64a8-dint", folder=tmp_path)
    folder = document(invoke, "--quantized", str(tmp_path))
    recipe = document(invoke, "--recipe", "w4g64a8-dint")
    assert folder == recipe


def test_people_get_tables_and_notes(invoke):
    shown = invoke(evaluate, *TINY, "--recipe", "w4g64a8-dint", "--arithmetic", "pe", "--compare")
    assert "pe (dint4)" in shown
    for row in ("unquantised", "activations", "scale unit", "all"):
        assert re.search(rf"^│ {row} ", shown, re.MULTILINE)
    assert "KL, nats" in shown and "top-1" in shown
    assert "relative squared error" in shown
    assert shown.splitlines()[-1].startswith("note: a last bit can move an activation's code")


MISTAKES = [
    (("--quantized", "x", "--recipe", "fp16"), "--quantized and --recipe exclude each other"),
    (
        ("--quantized", "x", "--seed", "1", "--calibration-length", "slac"),
        "--quantized is a finished model; leave --calibration-length and --seed out",
    ),
    (("--quantized", "nowhere"), "cannot read nowhere"),
    (("--pe", "btc"), "--pe btc needs --arithmetic pe"),
    (("--split",), "--split needs --arithmetic pe"),
    (("--seed", "-1"), "--seed is -1; 0 or more"),
    (
        ("--calibration-sequences", "0"),
        "--calibration-sequences is 0; at least 1, 128 is usual",
    ),
    (
        ("--calibration-length", "long"),
        "--calibration-length is 'long'; a number of tokens from 2, or slac for --window",
    ),
    (
        ("--calibration-length", "1"),
        "--calibration-length is '1'; a number of tokens from 2, or slac for --window",
    ),
    (("--calibration-text", "nowhere.txt"), "cannot read text nowhere.txt"),
    (
        ("--recipe", "w4a8-dint", "--arithmetic", "pe", "--pe", "dint44"),
        "blocks.0.attn.q: unknown pe 'dint44'; did you mean dint4",
    ),
    (
        ("--recipe", "w4-dint+a4", "--arithmetic", "pe"),
        "blocks.0.attn.q: no PE runs weight format dint4-sym with a4 activations: the dint4 PE "
        "takes int8-sym activations, not int4-sym",
    ),
]


@pytest.mark.parametrize(("arguments", "message"), MISTAKES, ids=[m[:40] for _, m in MISTAKES])
def test_mistakes_are_one_line(invoke, arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as refused:
        invoke(evaluate, *TINY, *arguments)
    assert str(refused.value).startswith(message)
    assert "\n" not in str(refused.value)
