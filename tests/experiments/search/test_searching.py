"""A whole search on the bundled model."""

import csv
import json
from dataclasses import replace
from importlib import import_module

import pytest

from bitwright.experiments import SearchConfig, evaluate, run_search, write_search
from bitwright.quant import LINEARS, InputError, apply_recipe, load_model, resolve_recipe
from bitwright.sim import PEArea

searching = import_module("bitwright.experiments.search.searching")
measuring = import_module("bitwright.experiments.search.measuring")
FORMATS = ("bitmod3", "bitmod4", "int8-sym")
CONFIG = SearchConfig(
    formats=FORMATS,
    max_tokens=512,
    window=128,
    generations=15,
    population=24,
    finalists=2,
    calibration_maps=5,
    calibration_sequences=2,
    prompt=16,
    generate=4,
)
AREA = PEArea(pe_um2=1000.0, source="made up")
KEYS = {
    *("name", "recipe", "bits_per_weight", "perplexity", "proxy", "predicted_perplexity"),
    *("latency_s", "decode_latency_s", "energy_per_token_uJ", "dram_bytes", "area_mm2", "formats"),
}


@pytest.fixture(scope="module")
def tiny():
    return load_model("tiny")


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BITWRIGHT_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def answer(tiny):
    return run_search(tiny, CONFIG, pe_area=AREA)


def test_rows_have_the_keys_that_others_read(answer):
    for row in [*answer.front, *answer.uniform]:
        assert row.keys() >= KEYS
    assert len({row["name"] for row in answer.front}) == len(answer.front)
    assert [row["name"] for row in answer.uniform] == list(FORMATS)
    assert 0 <= answer.knee < len(answer.front)
    assert answer.meta["seed"] == 0
    assert {"config", "bitwright", "commit", "card"} <= answer.meta.keys()


def test_nobody_in_the_front_is_beaten(answer):
    points = [(row["bits_per_weight"], row["proxy"]) for row in answer.front]
    assert points == sorted(points)
    assert all(a[1] > b[1] for a, b in zip(points, points[1:], strict=False))


def test_a_name_of_the_front_reproduces_bits_and_perplexity(tiny, answer):
    knee = answer.front[answer.knee]
    made = apply_recipe(tiny, knee["recipe"])
    assert made.bits_per_weight == knee["bits_per_weight"]
    chosen = [tensor.format.name for tensor in made.tensors.values()]
    assert chosen == list(knee["formats"].values())
    assert list(knee["formats"])[:8] == [*(f"0.{name}" for name in LINEARS), "1.attn.q"]
    read = evaluate(tiny, quantized=made, max_tokens=512, window=128).result
    assert read.perplexity == knee["perplexity"]


def test_uniform_recipes_and_finalists_are_measured(answer):
    assert all(row["perplexity"] is not None for row in answer.uniform)
    measured = [row for row in answer.front if row["perplexity"] is not None]
    mixed = [row for row in measured if "formats:" in row["recipe"]]
    assert len(mixed) == CONFIG.finalists + 1
    assert answer.front[answer.knee]["perplexity"] is not None
    # Measured points can only add to what uniform recipes cover.
    volume = answer.hypervolume
    assert 0 < volume["uniform"] <= volume["measured"] < 1
    worst = max(row["perplexity"] for row in answer.uniform)
    assert volume["reference"][0] == pytest.approx(1.1 * worst)


def test_a_second_run_measures_nothing_and_says_the_same(tiny, answer, monkeypatch):
    for module, name in ((measuring, "evaluate"), (measuring, "quantised")):
        monkeypatch.setattr(module, name, None)
    monkeypatch.setattr(import_module("bitwright.experiments.measured"), "evaluate", None)
    assert run_search(tiny, CONFIG, pe_area=AREA).document() == answer.document()


def test_an_interrupted_search_goes_on(tiny, monkeypatch, tmp_path):
    monkeypatch.setenv("BITWRIGHT_CACHE", str(tmp_path))
    module = import_module("bitwright.experiments.measured")
    config, calls = replace(CONFIG, finalists=0, method="greedy"), []
    whole = module.evaluate

    def stops(*arguments, **named):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return whole(*arguments, **named)

    monkeypatch.setattr(module, "evaluate", stops)
    with pytest.raises(KeyboardInterrupt):
        run_search(tiny, config)
    done = run_search(tiny, config)
    # fp16, five maps (three of them uniform) and the knee, which may be one of them: once each.
    assert len(calls) in (7, 8)
    assert done.front[0]["area_mm2"] is None


def test_seeds_change_the_search(tiny, answer):
    maps = [run["recipe"] for run in answer.meta["proxy"]["maps"]]
    other = run_search(tiny, replace(CONFIG, seed=1, finalists=0), pe_area=AREA)
    assert [run["recipe"] for run in other.meta["proxy"]["maps"]][:3] == maps[:3]
    assert [row["recipe"] for row in other.front] != [row["recipe"] for row in answer.front]


def test_the_front_holds_the_budgets(tiny, answer):
    budgets = {"bits_per_weight": 4.0, "latency_s": answer.uniform[1]["latency_s"]}
    found = run_search(tiny, replace(CONFIG, budgets=budgets, finalists=0), pe_area=AREA)
    for row in found.front:
        assert row["bits_per_weight"] <= 4.0
        assert row["latency_s"] <= budgets["latency_s"]
    assert len(found.front) > 1


def test_arrays_are_searched_too(tiny):
    config = replace(
        CONFIG,
        objectives=("perplexity", "latency", "area"),
        array_options={"rows": (8, 16), "cols": (16, 32)},
        finalists=1,
    )
    found = run_search(tiny, config, pe_area=AREA)
    sizes = {(row["array"]["rows"], row["array"]["cols"]) for row in found.front}
    assert len(sizes) > 1
    assert len(found.uniform) == 4 * len(FORMATS)
    assert len(found.hypervolume["reference"]) == 3


def test_divergence_is_measured_on_request(tiny, answer):
    found = run_search(tiny, replace(CONFIG, kl=True, finalists=0), pe_area=AREA)
    assert all(row["kl"] > 0 for row in found.uniform)
    assert found.uniform[0]["kl"] > found.uniform[1]["kl"] > found.uniform[2]["kl"]
    assert -1 <= found.meta["proxy"]["kl"]["rank_correlation"] <= 1
    assert all(row["kl"] is None for row in answer.uniform)


def test_files(answer, tmp_path):
    paths = write_search(answer, tmp_path / "out")
    assert set(paths) == {"search.json", "search.csv", "pareto.png", "pareto.svg"}
    document = json.loads(paths["search.json"].read_text())
    assert document == json.loads(json.dumps(answer.document()))
    assert list(document) == ["meta", "front", "uniform", "hypervolume", "knee", "improvement"]
    with paths["search.csv"].open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(answer.front) + len(answer.uniform)
    assert resolve_recipe(rows[-1]["recipe"]).name == answer.front[-1]["recipe"]
    again = write_search(answer, tmp_path / "again")
    assert all(again[name].read_bytes() == path.read_bytes() for name, path in paths.items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"objectives": ("bits", "latency")}, "perplexity first, then one or more of bits, lat"),
        ({"objectives": ("perplexity", "speed")}, "--objective 'speed'; of perplexity, bits"),
        ({"method": "best"}, "--method is 'best'; one of nsga2, greedy, both"),
        ({"population": 3}, "--population is 3; at least 4"),
        ({"generate": 1}, "--generate is 1; at least 2"),
        ({"budgets": {"latency_s": 0.0}}, "the budget of latency_s is 0; a number above 0"),
        ({"budgets": {"bits_per_weight": 2.0}}, "budget of 2 bits per weight cannot be held; the"),
        ({"budgets": {"latency_s": 1e-9}}, "budget of 1e-06 ms cannot be held; the least that"),
        ({"objectives": ("perplexity", "area")}, "the area of the array needs synthesis"),
        ({"formats": ("bitmod4", "ternary")}, "ternary"),
        ({"pe": "bitmodd"}, "did you mean bitmod"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_mistakes_are_told_before_the_work(tiny, monkeypatch, change, message):
    monkeypatch.setattr(searching, "sensitivity", None)  # the first long step
    with pytest.raises(InputError) as caught:
        run_search(tiny, replace(CONFIG, **change))
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_budgets_that_exclude_each_other_are_told():
    import numpy as np

    optimisers = import_module("bitwright.experiments.search.searching")
    space = _opposed()
    config = replace(CONFIG, budgets={"bits_per_weight": 3.0, "latency_s": 10.0}, method="greedy")
    with pytest.raises(InputError, match="no candidate holds all budgets together; one at a time"):
        optimisers._candidates(space, config, ["proxy", "bits_per_weight"], None)
    assert np.isfinite(space.evaluate(space.uniform())["latency_s"]).all()


def _opposed():
    """One linear whose format with fewer bits takes longer."""
    import numpy as np

    from bitwright.sim import CostTable, MixedCosts, default_accelerator

    spaces = import_module("bitwright.experiments.search.space")
    cycles = np.array([[20, 10]])
    table = CostTable(cycles, cycles, cycles * 1.0, 0, 0, 0.0)
    nothing = CostTable(cycles * 0, cycles * 0, cycles * 0.0, 0, 0, 0.0)
    cost = MixedCosts(
        ("a", "b"), table, nothing, steps=1, tokens=1, clock_ps=1e12, area_mm2=None,
        energy="made up", accelerator=default_accelerator("bitmod"), example=None,
    )  # fmt: skip
    recipes = (resolve_recipe("w3g64-bitmod"), resolve_recipe("w4g64-bitmod"))
    return spaces.Space(
        recipes, ("0.attn.q",), np.array([[3, 4]]), 1, (cost,), np.array([[1.0, 0.5]])
    )
