"""Exports: every format holds the same records, feasible or not, each number with its source."""

import csv
import errno
import json
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

import pytest

from bitwright.experiments import numbers, source_of, sweep
from bitwright.quant import InputError, atomic_path

exporting = import_module("bitwright.experiments.sweep.exporting")
DOCUMENT = {
    "version": 1,
    "name": "exported",
    "seed": 3,
    "fixed": {"shape": "smollm2-135m", "generate": 3, "prompt": 20},
    "axes": {
        "recipe": ["bitmod3", "w4g128-olive"],
        "rows": [8, 16, 32],
        "dram": ["hbm2", "ddr4-bitmod"],
    },
    "constraints": ["rows < 32", "latency_s < 0.0125"],
    "measure": {"area": False},
}


def spec_of(**parts):
    return sweep.parse_sweep({**DOCUMENT, **parts})


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    planned = sweep.plan_sweep(spec_of())
    with sweep.Store(tmp_path_factory.mktemp("store") / "s.sqlite") as store:
        store.want(planned.keys)
        sweep.run_sweep(planned, store, sweep.Here())
        yield store


@pytest.fixture(scope="module")
def planned():
    return sweep.plan_sweep(spec_of())


@pytest.fixture(scope="module")
def files(planned, store, tmp_path_factory):
    store.want(planned.keys)
    return sweep.export_sweep(planned, store, tmp_path_factory.mktemp("out")).files


def test_records_are_flat_and_have_what_is_agreed(files):
    document = json.loads(files["results.json"].read_text())
    assert set(document) == {"meta", "records", "provenance"}
    assert len(document["records"]) == 8
    first = document["records"][0]
    head = ["key", "name", "status", "error", "shape", "model", "recipe", "algorithm", "pe", "rows"]
    assert list(first)[: len(head)] == head
    assert {
        "bits_per_weight", "nominal_bits", "perplexity", "area_mm2", "prefill_latency_s",
        "prefill_tokens_per_s", "prefill_dram_bytes", "prefill_energy_uJ", "decode_latency_s",
        "decode_tokens_per_s", "decode_dram_bytes", "decode_energy_uJ", "prefill_logic_uJ",
        "decode_sram_uJ", "decode_dram_uJ", "decode_leakage_uJ", "prefill_busy_cycles",
        "decode_stall_cycles", "memory_energy_uJ", "ttft_s", "tpot_s", "latency_s", "tokens_per_s",
        "energy_per_token_uJ",
    } <= set(first)  # fmt: skip
    assert not any(isinstance(value, dict | list) for value in first.values())
    assert (first["name"], first["recipe"]) == ("w3g128-bitmod rows=8 hbm2", "w3g128-bitmod")
    assert first["nominal_bits"] == 3 and first["perplexity"] is first["prefill_energy_uJ"] is None


def test_meta_counts_what_became_of_the_points(files, planned):
    meta = json.loads(files["results.json"].read_text())["meta"]
    counts = meta["counts"]
    assert (counts["points"], counts["failed"], counts["skipped"], counts["equal"]) == (8, 4, 4, 0)
    assert counts["ok"] + counts["infeasible"] == 4 and counts["infeasible"] >= 1
    assert meta["sweep"]["axes"]["rows"] == [8, 16, 32] and meta["sweep"]["seed"] == 3
    assert meta["code"] == planned.plan.code and {"bitwright", "commit", "python"} <= set(meta)


def test_constraints_on_results_mark_points_and_another_sweep_may_judge_otherwise(planned, store):
    store.want(planned.keys)
    judged = {r["name"]: r for r in exporting.records(planned, store)}
    for record in judged.values():
        if record["status"] != "failed":
            assert (record["status"] == "ok") is (record["latency_s"] < 0.0125)
            assert record["error"] is None
    free = sweep.plan_sweep(spec_of(constraints=["rows < 32"]))
    assert free.keys == planned.keys
    statuses = [record["status"] for record in exporting.records(free, store)]
    assert statuses == ["ok"] * 4 + ["failed"] * 4


def test_csv_and_parquet_hold_the_same(files):
    parquet = pytest.importorskip("pyarrow.parquet")
    records = json.loads(files["results.json"].read_text())["records"]
    rows = list(csv.DictReader(files["results.csv"].read_text().splitlines()))
    assert [list(row) for row in rows] == [list(record) for record in records]
    for row, record in zip(rows, records, strict=True):
        for name, value in record.items():
            assert row[name] == ("" if value is None else str(value)), name
    table = parquet.read_table(files["results.parquet"])
    assert table.to_pylist() == records
    kinds = {name: str(table.schema.field(name).type) for name in ("rows", "latency_s", "dram")}
    assert kinds == {"rows": "int64", "latency_s": "double", "dram": "string"}


def test_the_same_rows_give_the_same_bytes(files, planned, store, tmp_path):
    store.want(planned.keys)
    again = sweep.export_sweep(planned, store, tmp_path).files
    assert sorted(again) == ["results.csv", "results.json", "results.parquet"]
    for name, path in again.items():
        assert path.read_bytes() == files[name].read_bytes(), name


def test_every_number_has_a_source(files):
    document = json.loads(files["results.json"].read_text())
    paths = list(numbers(document))
    assert len(paths) > 280
    assert [path for path in paths if not source_of(path, document["provenance"])] == []
    for path, words in (
        ("records[0].rows", "a setting of the sweep"),
        ("records[0].decode_dram_uJ", "1200 pJ per 64 bits"),
        ("records[0].decode_sram_uJ", "CACTI 7"),
        ("records[0].bits_per_weight", "counted"),
        ("records[0].latency_s", "bitwright verify"),
        ("records[0].memory_energy_uJ", "sum of SRAM"),
    ):
        assert words in (source_of(path, document["provenance"]) or ""), path


def test_areas_name_their_synthesis(tmp_path):
    planned = sweep.plan_sweep(
        spec_of(axes={"rows": [8]}, measure={"area": True}, constraints=["area_mm2 < 1000"])
    )
    with sweep.Store(tmp_path / "s.sqlite") as store:
        store.want(planned.keys)
        planned = planned.prepared()
        sweep.run_sweep(planned, store, sweep.Here())
        paths = sweep.export_sweep(planned, store, tmp_path).files
    document = json.loads(paths["results.json"].read_text())
    assert document["records"][0]["area_mm2"] > 0
    said = source_of("records[0].area_mm2", document["provenance"]) or ""
    assert "bitmod on nangate45: " in said and "synthesis " in said and "CACTI 7" in said


@pytest.mark.parametrize("which", ["results.json", "results.csv", "results.parquet"])
def test_a_full_disk_leaves_what_was_there(which, files, planned, store, tmp_path, monkeypatch):
    """/dev/full: the kernel's own "No space left on device"."""
    store.want(planned.keys)
    sweep.export_sweep(planned, store, tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    @contextmanager
    def full(path):
        if path.name == which:
            yield Path("/dev/full")
        else:
            with atomic_path(path) as temporary:
                yield temporary

    monkeypatch.setattr(exporting, "atomic_path", full)
    other = sweep.plan_sweep(spec_of(name="other"))
    with pytest.raises(InputError) as told:
        sweep.export_sweep(other, store, tmp_path)
    text = str(told.value)
    assert text.startswith(f"cannot write the results to {tmp_path}: ") and "\n" not in text
    assert "No space left on device" in text and "the store keeps all points" in text
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before
    assert errno.ENOSPC == 28


def test_without_pyarrow_one_line_says_how_to_get_it(planned, store, tmp_path, monkeypatch):
    monkeypatch.setattr(exporting, "find_spec", lambda name: None)
    store.want(planned.keys)
    done = sweep.export_sweep(planned, store, tmp_path)
    assert sorted(done.files) == ["results.csv", "results.json"]
    assert sweep.INSTALL_PARQUET == (
        "no results.parquet: pyarrow is missing; pip install 'bitwright[parquet]'"
    )
