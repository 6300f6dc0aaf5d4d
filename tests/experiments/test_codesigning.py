"""The co-design run on the bundled model: records, files, caching, determinism."""

import csv
import json
import re
from dataclasses import replace
from importlib import import_module

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


PLACED = {
    "fp16": "fp16",
    "w4g64-bitmod": "bitmod",
    "mxfp4": "fp16",
    "mxfp4+a4-mxfp": "mxfp4",
    "nvfp4+a4-nvfp": "nvfp4",
    "mxint8+a8-mxint": "mxint8",
    "w4-int+a8": "int4x8",
    "w4-int+a4": "int4",
    "w8-int+a8+kv8": "int8",
    "w4-dint+a8+kv4-dint-sym": "dint4",
    "w4-dint-asym+a8": "dint4-asym",
    "w4g64-int-asym+a8-asym+kv8-asym": "btc",
    "w2a8-abq": "btc",
    "w4-ant+a4-ant": "ant",
    "w4-olive+a4-olive": "olive",
}
codesigning = import_module("bitwright.experiments.codesigning")


@pytest.mark.parametrize("name", PLACED)
def test_formats_of_weights_and_activations_decide_the_pe(model, name):
    assert codesigning._pe_name(model, resolve_recipe(name)) == PLACED[name]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "w5-dint+a8",
            "recipe w5a8-dint-sym runs on PE dint5, which is none of bitmod, dint4, dint4-asym, ",
        ),
        (
            "w4-int+a8+kv8",
            "the int4x8 PE cannot run weight format int8-sym; it runs int2-sym, int3-sym, int4-sym",
        ),
        (
            "w4-int-sym+a8+mixed:formats=int4-sym|dint4-sym",
            "recipe w4a8-int-sym+mixed:formats=int4-sym|dint4-sym runs on several PEs (int4x8, "
            "dint4); give all linears one format",
        ),
        (
            "fp16+a8",
            "blocks.0.attn.q: no PE runs FP16 weights with a8 activations; leave them in FP16, or ",
        ),
        (
            "bitnet+a8+kv4",
            "recipe bitnet+a8+kv4: with weights in a form of their own the accelerator keeps keys "
            "and values in FP16; leave kv4 out, or use bitwright evaluate",
        ),
    ],
)
def test_what_no_single_pe_runs_is_refused(model, config, name, message):
    with pytest.raises(InputError) as caught:
        codesign(model, replace(config, recipes=(resolve_recipe(name),)))
    assert str(caught.value).startswith(message)


def test_activations_and_cache_are_those_of_the_recipe(model, config):
    """Products of attention move the cache's bits, and the array is the PE's, at equal area."""
    names = ("w4-dint+a8", "w4-dint+a8+kv4-dint-sym", "mxfp4+a4-mxfp", "nvfp4+rht+a4-nvfp")
    answer = codesign(model, replace(config, recipes=tuple(map(resolve_recipe, names))))
    wide, narrow, mx, nv = answer.records
    assert [record["pe"] for record in answer.records] == ["dint4", "dint4", "mxfp4", "nvfp4"]
    assert narrow["decode"]["dram_bytes"] < wide["decode"]["dram_bytes"]
    assert narrow["perplexity"] != wide["perplexity"]
    for record in answer.records:
        assert record["decode"]["energy_uJ"]["logic"] > 0
        areas = answer.meta["pe_area_um2"]
        pes = record["prefill"]["config"]["rows"] * record["prefill"]["config"]["cols"]
        assert pes * areas[record["pe"]] <= 32 * 32 * areas["bitmod"] * 1.2
    note = "output layer, keys and values: stored and moved as 16 bits, computed in the PE's mxfp4"
    assert mx["decode"]["notes"][0].startswith(note)
    assert nv["compressed"] and not mx["compressed"]
