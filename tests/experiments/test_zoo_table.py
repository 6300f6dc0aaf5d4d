"""The zoo's rows that ship: recipes, bits by formula, sources; the file and the command."""

import json
from importlib import import_module
from math import prod

import pytest

from bitwright.commands.codesign import codesign as command
from bitwright.experiments import (
    ZOO,
    CodesignConfig,
    codesign,
    read_zoo_rows,
    write_bits_figure,
    write_results,
)
from bitwright.quant import Calibration, InputError, Text, load_model, load_text, resolve_recipe

table = import_module("bitwright.experiments.zoo_table")
ROWS = read_zoo_rows()
#: Linears of a block of smollm2, (n, k): q and o, k and v, gate and up, down.
SHAPES = [(576, 576)] * 2 + [(192, 576)] * 2 + [(1536, 576)] * 2 + [(576, 1536)]


def stored(format):
    """Bits of a matrix in a format, as its recipe says."""
    return resolve_recipe(format).stored_bits


def littlebit(n, k, bits=1.2):
    """Two paths of the largest rank, a multiple of 8, that the budget holds, and their scales."""
    rank = int((bits * n * k / 2 - 16 * (n + k)) / (n + k + 16)) // 8 * 8
    return 2 * (rank * (n + k + 16) + 16 * (n + k))


#: Recipe -> bits of an [n, k] matrix, by the formulas of the methods' papers and modules.
FORMULAS = {
    "fp16": lambda n, k: 16 * n * k,
    **{
        name: stored(name)
        for name in ("w4g64-int-sym-s8", "w4g64-bitmod", "w3g64-bitmod", "w4g64a8-dint-sym")
    },
    # A scale of 8 bits for 32 weights, 16, or 16 x 16; NVFP4 has one of 32 for all of them.
    **dict.fromkeys(
        ("mxfp4", "mxfp4+a4-mxfp", "mxfp4+a4-mxfp+rht"), lambda n, k: 4 * n * k + 8 * n * k // 32
    ),
    **dict.fromkeys(
        ("nvfp4", "nvfp4+rht", "nvfp4+stochastic", "nvfp4+a4-nvfp", "nvfp4+a4-nvfp+rht"),
        lambda n, k: 4 * n * k + 8 * n * k // 16 + 32,
    ),
    "w4g64-int-asym+a8-asym": lambda n, k: 4 * n * k + (16 + 4) * n * k // 64,
    "nvfp4+scales2d": lambda n, k: 4 * n * k + 8 * n * k // 256 + 32,
    "bitnet+a8": lambda n, k: 2 * n * k + 32,
    "dbllm+a8": lambda n, k: 2 * n * k + 32 * n * k // 64,
    **dict.fromkeys(("littlebit:bits=1.2+a8", "littlebit:steps=32,bits=1.2+a8"), littlebit),
    **dict.fromkeys(
        ("binarymos", "binarymos:steps=32"), lambda n, k: n * k + 16 * (4 * (n + k) + 4 * k)
    ),
    "anyprecision": lambda n, k: 8 * n * k + 16 * n * sum(2**b for b in range(3, 9)),
    "anyprecision:bits=3": lambda n, k: 8 * n * k + 16 * n * sum(2**b for b in range(3, 9)),
    "aqlm": lambda n, k: 2 * 8 * n * k // 8 + 16 * 2 * 256 * 8 + 16 * n,
    # Half of the weights, and two bits of an index for each, or a bitmap.
    "fp16+magnitude:pattern=2:4": lambda n, k: 8 * n * k + n * k,
    "fp16+wanda:pattern=2:4": lambda n, k: 8 * n * k + n * k,
    "w4g64-int-sym-s8+vqlogits:codes=16384": stored("w4g64-int-sym-s8"),  # of the blocks
    "fp16+wanda": lambda n, k: 8 * n * k + n * k,
    "w4g64-int-sym-s8+wanda:pattern=2:4": lambda n, k: (
        stored("w4g64-int-sym-s8")(n, k) - 2 * n * k + n * k
    ),
}  # fmt: skip
#: Those whose bits depend on the data: on salient columns, on groups and heads that are chosen.
DEPENDENT = {"billm+a8", "billm:mode=paper+a8", "finequant", "w4g64-int-sym-s8+llmpruner"}
#: Those whose shares their own tests check: the formula up to whole weights.
ABOUT = {"pbllm": (2.782, 0.001)}


def test_every_entry_has_one_row():
    assert [row.recipe for row in ROWS] == [entry.recipe for entry in ZOO]


def test_rows_are_the_zoos():
    known = {entry.recipe: entry for entry in ZOO}
    for row in ROWS:
        assert row.entry is known[row.recipe] and row.label == resolve_recipe(row.recipe).label
        document = row.document()
        assert document["ran"] == row.entry.ran and document["source"] == row.entry.source


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.recipe)
def test_bits_are_those_of_the_formula(row):
    weights = sum(map(prod, SHAPES))
    if row.recipe in FORMULAS:
        bits = sum(FORMULAS[row.recipe](*shape) for shape in SHAPES)
        assert row.bits_per_weight == pytest.approx(bits / weights, rel=1e-12)
    elif row.recipe in ABOUT:
        bits, within = ABOUT[row.recipe]
        assert row.bits_per_weight == pytest.approx(bits, rel=within)
    else:
        assert row.recipe in DEPENDENT and 1 < row.bits_per_weight < 16


def test_every_recipe_has_its_formula_or_a_reason():
    kinds = [set(FORMULAS), set(ABOUT), DEPENDENT]
    assert set.union(*kinds) == {entry.recipe for entry in ZOO}
    assert sum(map(len, kinds)) == len(ZOO)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.recipe)
def test_every_number_has_its_source(row):
    assert row.made_by["model"] == "smollm2" and row.made_by["bitwright"]
    for name in ("model_source", "text", "calibration_text", "commit", "python", "comparison"):
        assert row.made_by[name]
    for name in ("tokens", "window", "seed", "clock_ps", "prefill_tokens", "context"):
        assert row.made_by[name] == ROWS[0].made_by[name]  # comparable
    assert (row.calibration is not None) == resolve_recipe(row.recipe).needs_data
    for part in ("source of logic energy", "source of PE area"):
        words = part.removeprefix("source of ")
        assert "synthesis" in row.card["sources"][words]
    assert "CACTI 7" in row.card["sram"] and "pJ/bit" in row.card["dram"]
    for phase in (row.prefill, row.decode):
        energy = phase["energy_uJ"]
        parts = [energy[part] for part in ("logic", "sram", "dram", "leakage")]
        assert min(parts) > 0 and energy["total"] == pytest.approx(sum(parts))
        assert phase["latency_s"] > 0 and phase["dram_bytes"] > 0


# ------------------------------------------------------------------ from a run to the file


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of two recipes of the zoo and one other, and its folder."""
    names = ("fp16+magnitude:pattern=2:4", "fp16", "w8g64-int-sym-s8")
    recipes = tuple(map(resolve_recipe, names))
    config = CodesignConfig(recipes, max_tokens=256, window=128, verify_level=None)
    text = Text("the beginning", load_text().content[:2000])
    answer = codesign(load_model("tiny"), config, text)
    folder = tmp_path_factory.mktemp("zoo")
    write_results(answer, folder)
    return answer, folder


def test_results_become_rows_and_come_back(run, tmp_path):
    answer, folder = run
    table._main([str(folder / "results.json"), str(tmp_path / "rows.jsonl")])
    rows = read_zoo_rows(tmp_path / "rows.jsonl")
    assert [row.recipe for row in rows] == ["fp16", "fp16+magnitude:pattern=2:4"]  # zoo's order
    records = {record["recipe"]: record for record in answer.records}
    for row in rows:
        record = records[row.recipe]
        for name in ("perplexity", "bits_per_weight", "nominal_bits", "pe", "area_mm2"):
            assert getattr(row, name) == record[name]
        for name in ("latency_s", "dram_bytes", "energy_uJ"):
            assert row.prefill[name] == record["prefill"][name]
            assert row.decode[name] == record["decode"][name]
        assert row.card == json.loads(json.dumps(answer.meta["card"][row.recipe]))
        assert row.made_by["text"] == "the beginning" and row.made_by["tokens"] == 256
    table.write_rows(rows, tmp_path / "again.jsonl")
    assert read_zoo_rows(tmp_path / "again.jsonl") == rows


def test_the_figure_is_that_of_the_run(run, tmp_path):
    """Of the same records, the figure of the rows is the run's, byte for byte."""
    answer, folder = run
    document = answer.document()
    kept = [one for one in document["records"] if one["recipe"] != "w8g64-int-sym-s8"]
    rows = table.zoo_rows({**document, "records": kept})
    paths = write_bits_figure(rows, tmp_path)
    assert sorted(paths) == ["bits.png", "bits.svg"]
    only = type(answer)(answer.meta, kept, answer.provenance)
    write_results(only, tmp_path / "run")
    for name, path in paths.items():
        assert path.read_bytes() == (tmp_path / "run" / name).read_bytes()


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({}, "'meta' is missing; make one with bitwright codesign --recipes zoo"),
        ({"meta": {}, "records": []}, "'model' is missing"),
        ([], "is missing; make one with bitwright codesign --recipes zoo"),
    ],
    ids=["empty", "no meta", "list"],
)
def test_other_documents_are_refused(tmp_path, document, message):
    (tmp_path / "results.json").write_text(json.dumps(document))
    with pytest.raises(InputError) as caught:
        table._main([str(tmp_path / "results.json"), str(tmp_path / "rows.jsonl")])
    assert str(caught.value).startswith(f"{tmp_path}/results.json: no results.json of a co-design")
    assert message in str(caught.value) and not (tmp_path / "rows.jsonl").exists()


def test_a_run_without_the_zoo_has_no_rows(run):
    answer, _ = run
    others = [one for one in answer.records if one["recipe"] == "w8g64-int-sym-s8"]
    with pytest.raises(InputError, match="^it holds no recipe of the zoo; make it with codesign"):
        table.zoo_rows({**answer.document(), "records": others})


def test_bad_files_of_rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    with pytest.raises(InputError, match=f"^cannot read {path}: "):
        read_zoo_rows(path)
    table.write_rows(ROWS[:1], path)
    good = path.read_text()
    path.write_text(good + "{}\n")
    with pytest.raises(InputError, match="rows.jsonl, line 2 is no row of the zoo; remove it$"):
        read_zoo_rows(path)
    path.write_text(good.replace('"recipe": "fp16"', '"recipe": "w5-int-sym"'))
    with pytest.raises(InputError, match="line 1: w5-int-sym is not in the zoo; remove it$"):
        read_zoo_rows(path)


# ------------------------------------------------------------------ the command


def test_the_command_shows_and_draws_the_rows(invoke, tmp_path):
    shown = invoke(command, "--recipes", "zoo", "--committed", "--out", str(tmp_path))
    for row in ROWS:
        assert f"{row.bits_per_weight:.3f}" in shown
        assert f"{row.decode['latency_s'] * 1e3:.2f}" in shown
    words = " ".join(shown.split())
    for row in ROWS:
        assert row.entry.ran in words
    assert "round-to-nearest: w4g64-int-sym-s8, w4g64-bitmod, w3g64-bitmod" in words
    assert "pydoc_data.topics" in shown and "--json has the sources" in shown
    assert (tmp_path / "bits.png").read_bytes().startswith(b"\x89PNG")
    assert ROWS[0].label in (tmp_path / "bits.svg").read_text()
    document = json.loads(invoke(command, "--recipes", "zoo", "--committed", "--json"))
    assert [row["recipe"] for row in document["rows"]] == [row.recipe for row in ROWS]
    assert document["rows"][0]["ran"] == ZOO[0].ran and document["files"] == []
    assert document["rows"][0]["card"] == ROWS[0].card


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--committed"],
            "--committed is for --recipes zoo, which is not given; the zoo's rows alone ship with "
            "the package",
        ),
        (
            ["--committed", "--recipes", "fp16"],
            "--committed is for --recipes zoo, which is 'fp16'; the zoo's rows alone ship with the "
            "package",
        ),
        (
            ["--calibration-sequences", "0"],
            "--calibration-sequences is 0; at least 1, 128 is usual",
        ),
        (["--calibration-length", "1"], "--calibration-length is 1; at least 2, 512 is usual"),
        (["--seed", "-1"], "--seed is -1; at least 0"),
    ],
    ids=["alone", "others", "sequences", "length", "seed"],
)
def test_mistakes_are_one_line(invoke, arguments, message):
    with pytest.raises(InputError) as caught:
        invoke(command, "--model", "tiny", *arguments)
    assert str(caught.value) == message


def test_calibration_reaches_the_methods(tmp_path, monkeypatch):
    """What was asked for is used, is told, and is another entry of the cache."""
    monkeypatch.setenv("BITWRIGHT_CACHE", str(tmp_path))
    model = load_model("tiny")
    text = Text("the beginning", load_text().content[:2000])
    found = []
    recipes = tuple(map(resolve_recipe, ("fp16", "fp16+wanda")))
    for sequences in (2, 3):
        few = Calibration(sequences=sequences, length=32)
        config = CodesignConfig(
            recipes, max_tokens=256, window=128, verify_level=None, energy_layers=0,
            calibration=few,
        )  # fmt: skip
        plain, pruned = codesign(model, config, text).records
        assert plain["calibration"] is None and pruned["calibration"] == few.model_dump()
        found.append((plain["perplexity"], pruned["perplexity"]))
    assert found[0][0] == found[1][0] and found[0][1] != found[1][1]
    # fp16 once, wanda twice
    assert len(list((tmp_path / "accuracy").iterdir())) == 3
