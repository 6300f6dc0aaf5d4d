"""The co-design run on the bundled model: records, files, caching, determinism."""

import csv
import json
import re
from dataclasses import replace

import pytest

from bitwright.experiments import (
    CodesignConfig,
    codesign,
    default_recipes,
    numbers,
    pareto,
    source_of,
    write_results,
)
from bitwright.quant import InputError, load_model, resolve_recipe

RECORD_KEYS = {"perplexity", "bits_per_weight", "config", "model", "text", "seed", "commit"}
SIMULATE_KEYS = {
    "cycles",
    "compute_cycles",
    "stall_cycles",
    "latency_s",
    "dram_bytes",
    "energy_uJ",
    "area_mm2",
    "tokens_per_s",
    "layers",
}


@pytest.fixture(scope="module")
def config():
    names = ("fp16", "w8g64-int-sym-s8", "w4g64-bitmod", "w3g64-bitmod", "w3g64-int-sym-s8")
    return CodesignConfig(
        recipes=tuple(resolve_recipe(name) for name in names),
        max_tokens=1024,
        window=256,
        verify_level=None,
    )


@pytest.fixture(scope="module")
def model():
    return load_model("tiny")


@pytest.fixture(scope="module")
def answer(model, config):
    return codesign(model, config)


def test_default_recipes_run_on_the_pes_at_one_group_size():
    recipes = default_recipes(32)
    assert len(recipes) == 10
    assert {r.group_size for r in recipes} == {None, 32}
    assert {r.scale_format for r in recipes} == {None, "int8"}


def test_records_hold_what_is_agreed(answer, config):
    assert [r["recipe"] for r in answer.records] == [r.name for r in config.recipes]
    for record in answer.records:
        assert {
            "perplexity",
            "bits_per_weight",
            "config",
            "model",
            "text",
            "seed",
            "commit",
        } <= set(record)
        for phase in ("prefill", "decode"):
            assert SIMULATE_KEYS <= set(record[phase])
            energy = record[phase]["energy_uJ"]
            parts = [energy[part] for part in ("logic", "sram", "dram", "leakage")]
            assert min(parts) > 0 and energy["total"] == pytest.approx(sum(parts))
            assert record[phase]["config"]["clock_ps"] == answer.meta["clock_ps"]


def test_arrays_have_equal_area_and_one_clock(answer):
    by_pe = {r["pe"]: r["prefill"]["area_breakdown_mm2"] for r in answer.records}
    bitmod = by_pe["bitmod"]["array"] + by_pe["bitmod"]["encoders"]
    fp16 = by_pe["fp16"]["array"] + by_pe["fp16"]["encoders"]
    two_rows = 2 * 32 * answer.meta["pe_area_um2"]["fp16"] * 1e-6
    assert 0 <= bitmod - fp16 < two_rows


def test_fewer_bits_are_faster_and_smaller_and_cost_perplexity(answer):
    records = {r["recipe"]: r for r in answer.records}
    order = [records[n] for n in ("fp16", "w8g64-int-sym-s8", "w4g64-bitmod", "w3g64-bitmod")]
    for phase in ("prefill", "decode"):
        latencies = [r[phase]["latency_s"] for r in order if r["pe"] == "bitmod"]
        traffic = [r[phase]["dram_bytes"] for r in order]
        assert latencies == sorted(latencies, reverse=True)
        assert traffic == sorted(traffic, reverse=True)
    bits = [r["bits_per_weight"] for r in order]
    assert bits == sorted(bits, reverse=True)
    assert order[-1]["perplexity"] > order[0]["perplexity"]


def test_files_are_written_whole_and_agree(answer, tmp_path):
    paths = write_results(answer, tmp_path / "out")
    figures = ["energy.png", "energy.svg", "pareto.png", "pareto.svg"]
    assert sorted(paths) == [*figures, "report.html", "results.csv", "results.json"]
    document = json.loads(paths["results.json"].read_text())
    assert document == json.loads(json.dumps(answer.document()))
    rows = list(csv.DictReader(paths["results.csv"].read_text().splitlines()))
    assert [float(row["perplexity"]) for row in rows] == [r["perplexity"] for r in answer.records]
    assert [int(row["decode_cycles"]) for row in rows] == [
        r["decode"]["cycles"] for r in answer.records
    ]
    assert paths["pareto.png"].read_bytes().startswith(b"\x89PNG")
    for record in answer.records:
        for figure in ("pareto.svg", "energy.svg"):
            assert record["label"] in paths[figure].read_text()


def test_every_number_has_a_source(answer):
    """Each number of results.json, and those that come from netlists name the netlist."""
    document = answer.document()
    paths = list(numbers(document))
    assert len(paths) > 1000
    unknown = [path for path in paths if not source_of(path, document["provenance"])]
    assert unknown == []
    logic = [path for path in paths if path.endswith("energy_uJ.logic")]
    assert len(logic) == 2 * len(answer.records)
    for path in logic:
        said = source_of(path, document["provenance"]) or ""
        assert re.search(r"synthesis [0-9a-f]{12}, on tiny's own tensors", said), path
    for path, words in (
        ("records[1].prefill.energy_uJ.sram", "CACTI 7"),
        ("records[1].decode.energy_uJ.dram", "18.75 pJ/bit"),
        ("records[0].perplexity", "pydoc_data.topics"),
        ("records[2].prefill.layers[3].sram_uJ", "CACTI 7"),
        ("meta.clock_ps", "synthesis"),
    ):
        assert path in paths and words in (source_of(path, document["provenance"]) or "")


def test_every_record_has_a_calibration_card(answer):
    for record in answer.records:
        card = answer.meta["card"][record["recipe"]]
        assert card["technology"] == "nangate45" and card["voltage"] == "1.1 V"
        assert card["post_layout"] == "1 (none)" and "fF/um" in card["wires"]
        assert "CACTI 7" in card["sram"] and "pJ/bit" in card["dram"]
        assert any("glitches" in line for line in card["not_modelled"])


def test_energy_follows_its_settings(model, config, answer):
    """Post-layout multiplies the logic alone; a lower supply lowers it by its square."""
    recipe = config.recipes[2]
    one = replace(config, recipes=(recipe,), post_layout=1.5)
    low = replace(config, recipes=(recipe,), voltage=0.55)
    none = replace(config, recipes=(recipe,), energy_layers=0)
    base, more, less, without = (
        entry["decode"]["energy_uJ"]
        for entry in (answer.records[2], *(codesign(model, c).records[0] for c in (one, low, none)))
    )
    assert more["logic"] == pytest.approx(1.5 * base["logic"])
    assert less["logic"] == pytest.approx(base["logic"] / 4)
    assert more["sram"] == base["sram"] and less["dram"] == base["dram"]
    assert without["logic"] is None and without["total"] is None


def test_the_same_run_gives_the_same_bytes(answer, model, config, tmp_path):
    first = write_results(answer, tmp_path / "a")
    second = write_results(codesign(model, config), tmp_path / "b")
    for name, path in first.items():
        assert path.read_bytes() == second[name].read_bytes(), name


def test_an_interrupted_run_goes_on_where_it_stopped(model, config, monkeypatch, tmp_path):
    monkeypatch.setenv("BITWRIGHT_CACHE", str(tmp_path))
    recipes = tuple(resolve_recipe(n) for n in ("w4g64-bitmod", "w3g64-bitmod"))
    short = replace(config, recipes=recipes, max_tokens=256)

    def stop_at_the_second(done, total, what):
        if what == "w3g64-bitmod":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        codesign(model, short, progress=stop_at_the_second)
    kept = list((tmp_path / "accuracy").iterdir())
    assert len(kept) == 1
    before = kept[0].stat().st_mtime_ns
    assert len(codesign(model, short).records) == 2
    assert kept[0].stat().st_mtime_ns == before  # measured once


def test_pareto_front_by_hand():
    points = [(1.0, 9.0), (2.0, 5.0), (3.0, 6.0), (4.0, 4.0), (4.0, 7.0)]
    records = [{"perplexity": p, "decode": {"latency_s": s}} for s, p in points]
    assert [r["perplexity"] for r in pareto(records, "decode")] == [9.0, 5.0, 4.0]


def test_a_recipe_no_pe_runs_is_refused_before_the_work(model, config):
    bad = replace(config, recipes=(resolve_recipe("w8g64-int-asym-s8"),))
    with pytest.raises(InputError, match="the bitmod PE cannot run weight format int8-asym"):
        codesign(model, bad)


def test_recipes_that_quantise_activations_are_refused():
    from importlib import import_module

    pe_name = import_module("bitwright.experiments.codesigning")._pe_name
    message = (
        "recipe w4a8-dint-sym: the PEs of the co-design run take FP16 activations and cache; leave "
        "their quantisation out, or use bitwright evaluate --arithmetic pe"
    )
    with pytest.raises(InputError) as caught:
        pe_name(resolve_recipe("w4a8-dint"))
    assert str(caught.value) == message
