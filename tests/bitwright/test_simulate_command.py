"""`bitwright simulate`: batch, cache format, generation, files, and one line for each mistake."""

import csv
import json

import pytest

from bitwright.commands.simulate import simulate
from bitwright.quant import InputError


@pytest.fixture
def run(invoke, monkeypatch):
    """Call the command; no synthesis, which is tested with the RTL."""
    monkeypatch.setattr("bitwright.experiments.pe_area", lambda pe, technology: None)
    return lambda *arguments: invoke(simulate, *arguments)


def test_cycles_have_causes_and_a_vector_unit(run):
    answer = json.loads(run("--shape", "smollm2-135m", "--json"))
    parts = answer["compute_cycles"] + answer["stall_cycles"] + answer["vector_cycles"]
    assert answer["cycles"] == parts
    vector_busy = sum(row["busy_cycles"] for row in answer["vector"])
    waiting = sum(answer["stalls"].values())
    assert answer["cycles"] == answer["busy_cycles"] + waiting + vector_busy
    assert sum(answer["dram_bytes_by_operand"].values()) == answer["dram_bytes"]


def test_batch_and_cache_format_are_taken(run):
    plain = json.loads(run("--shape", "smollm2-135m", "--phase", "decode", "--json"))
    command = ["--phase", "decode", "--batch", "4", "--kv", "int8-sym", "--json"]
    other = json.loads(run("--shape", "smollm2-135m", *command))
    assert (other["batch"], other["tokens"]) == (4, 4)
    assert other["config"]["operands"]["cache"]["format"] == "int8-sym"
    moved = [answer["dram_bytes_by_operand"]["cache"] for answer in (plain, other)]
    assert 2 * moved[0] < moved[1] < 4 * moved[0]


def test_a_generation_tells_both_latencies(run):
    command = ["--shape", "smollm2-135m", "--tokens", "32", "--generate", "5"]
    answer = json.loads(run(*command, "--json"))
    assert answer["phase"] == "generation" and len(answer["steps"]) == 4
    assert answer["ttft_s"] == answer["prefill"]["latency_s"]
    decode = answer["latency_s"] - answer["ttft_s"]
    assert answer["tpot_s"]["mean"] == pytest.approx(decode / 4)
    text = run(*command)
    for words in ("time to first token", "time per output token", "32 tokens in, 5 out"):
        assert words in text
    once = run("--shape", "smollm2-135m", "--generate", "1")
    assert "time to first token" in once and "per output token" not in once


def test_the_table_shows_causes_operands_and_the_vector_unit(run):
    text = run("--shape", "smollm2-135m", "--dram", "ddr4-3200", "--batch", "2")
    for words in ("attn.softmax", "weights ", "cache ", "latency ", "of it standing", "batch 2"):
        assert words in text
    assert max(map(len, text.splitlines())) <= 120 and "…" not in text


def test_csv_has_products_and_vector_operations(run, tmp_path):
    path = tmp_path / "layers.csv"
    answer = json.loads(run("--shape", "smollm2-135m", "--csv", str(path), "--json"))
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert sum(int(row["cycles"]) for row in rows) == answer["cycles"]
    assert sum(int(row["dram_bytes"]) for row in rows) == answer["dram_bytes"]
    vector = [row for row in rows if row["kind"] == "vector"]
    assert [row["name"] for row in vector] == [row["name"] for row in answer["vector"]]
    energy = sum(float(row["dram_uJ"]) + float(row["dram_standing_uJ"]) for row in rows)
    assert energy == pytest.approx(answer["energy_uJ"]["dram"])
    leakage = sum(float(row["leakage_uJ"]) for row in rows)
    assert leakage == pytest.approx(answer["energy_uJ"]["leakage"])


def test_figures_show_both_phases(run, tmp_path):
    run("--shape", "smollm2-135m", "--phase", "decode", "--figures", str(tmp_path / "out"))
    files = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert len(files) == 9 and {"roofline.svg", "energy.pdf", "latency.png"} <= set(files)
    drawn = (tmp_path / "out" / "latency.svg").read_text()
    assert "prefill of 256 tokens" in drawn and "decode step at 256 positions" in drawn
    run("--shape", "smollm2-135m", "--generate", "9", "--figures", str(tmp_path / "gen"))
    assert "decode step at 264 positions" in (tmp_path / "gen" / "latency.svg").read_text()


def test_a_config_json_is_taken(run, tmp_path):
    config = {"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4}
    config |= {"num_hidden_layers": 2, "intermediate_size": 128, "vocab_size": 256}
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    answer = json.loads(run("--shape", str(tmp_path), "--tokens", "8", "--json"))
    assert [row["n"] for row in answer["layers"][:1]] == [64]


def test_an_onnx_file_is_taken(run, tmp_path):
    onnx = pytest.importorskip("onnx")
    helper = onnx.helper
    float32 = onnx.TensorProto.FLOAT
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], "product")],
        "one",
        [helper.make_tensor_value_info("x", float32, [6, 32])],
        [helper.make_tensor_value_info("y", float32, [6, 10])],
        [helper.make_tensor("w", float32, [32, 10], [0.0] * 320)],
    )
    path = tmp_path / "one.onnx"
    onnx.save(helper.make_model(graph), str(path))
    (row,) = json.loads(run("--shape", str(path), "--json"))["layers"]
    assert (row["m"], row["n"], row["k"]) == (6, 10, 32)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--generate 4 --phase decode", "--phase decode does not go with --generate 4, which"),
        ("--generate 0", "generate is 0; at least 1"),
        ("--batch 0", "batch is 0"),
        ("--kv int9", "unknown kv_format 'int9'"),
        ("--kv mxfp4", "bitmod PE cannot run weight format mxfp4"),
        ("--phase train", "phase is 'train'; one of prefill, decode"),
        ("--shape llama", "unknown shape"),
        ("--shape no.onnx", "no.onnx"),
        ("--shape no.csv", "no.csv: no such file"),
        ("--activation-buffer 1 --lanes 8", "SRAM"),
        ("--preset bitmod-hpca25 --design ant --batch 2", "--batch does not go with --preset"),
        ("--preset bitmod-hpca25 --design ant --kv int8-sym", "--kv does not go with --preset"),
        ("--preset bitmod-hpca25 --design ant --generate 2", "--generate does not go with"),
        ("--figures /proc/nowhere", "output folder /proc/nowhere cannot be written"),
    ],
)
def test_mistakes_are_one_line(run, arguments, message):
    given = arguments.split()
    shape = [] if "--shape" in given else ["--shape", "smollm2-135m"]
    with pytest.raises(InputError, match=message) as caught:
        run(*shape, *given)
    assert "\n" not in str(caught.value)


def test_rows_of_a_file_take_no_batch_and_generate_nothing(run, tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("m,n,k\n4,64,128\n", encoding="utf-8")
    with pytest.raises(InputError, match="--batch 2 takes a model shape; the rows of"):
        run("--shape", str(path), "--batch", "2")
    with pytest.raises(InputError, match="--generate 3 takes a model shape, not"):
        run("--shape", str(path), "--generate", "3")
    assert "rows of a file" in run("--shape", str(path))


def test_a_map_of_formats_runs_without_the_energy_of_one(invoke):
    digits = "01" * 105
    recipe = f"w3g64-bitmod+formats:choose=bitmod3|bitmod4,map={digits}"
    arguments = ("--shape", "smollm2-135m", "--recipe", recipe)
    document = json.loads(invoke(simulate, *arguments, "--tokens", "4", "--json"))
    counts = {row["name"]: row["count"] for row in document["layers"]}
    assert (counts["attn.q bitmod3"], counts["attn.q bitmod4"]) == (15, 15)
    assert document["energy_uJ"]["logic"] is None
    with pytest.raises(InputError, match="--energy measures one format; leave it out for a recipe"):
        invoke(simulate, *arguments, "--energy")
