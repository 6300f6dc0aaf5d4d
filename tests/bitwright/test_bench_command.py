"""`bitwright bench kernels` and `bench cuda`."""

import json
import sys
from importlib import import_module
from types import SimpleNamespace

import pytest

from bitwright.__main__ import main

KEYS = {
    "kernel", "backend", "bits", "act_bits", "m", "n", "k", "ms", "torch_float32_ms",
    "torch_bfloat16_ms", "speedup_vs_torch_float32", "gb_per_s", "bandwidth_fraction",
}  # fmt: skip


def run(monkeypatch, capsys, *arguments):
    """Exit code, stdout and stderr of a command, run in this process."""
    monkeypatch.setattr(sys, "argv", ["bitwright", "bench", *arguments])
    with pytest.raises(SystemExit) as stop:
        main()
    captured = capsys.readouterr()
    return stop.value.code or 0, captured.out, captured.err


def test_bench_kernels_measures_what_is_asked_for(monkeypatch, capsys, tmp_path):
    out = tmp_path / "kernels.json"
    code, printed, _ = run(
        monkeypatch, capsys, "kernels", "--shapes", "48,64 32,96", "--rows", "1,3", "--no-text",
        "--only", "W4A8; binary, look-up", "--json", "--out", str(out),
    )  # fmt: skip
    assert code == 0
    document = json.loads(printed)
    rows = document["results"]
    assert [(row["kernel"], row["n"], row["k"], row["m"]) for row in rows] == [
        (kernel, n, k, m)
        for n, k in ((48, 64), (32, 96))
        for kernel in ("W4A8", "binary, look-up")
        for m in (1, 3)
    ]
    for row in rows:
        assert set(row) == KEYS
        ratio = row["torch_float32_ms"] / row["ms"]
        assert row["speedup_vs_torch_float32"] == pytest.approx(ratio)
        assert 0 < row["bandwidth_fraction"] and document["machine"]["memory_gb_per_s"] > 0
    assert document["text"] == [] and document["made_by"]["seed"] == 0
    assert json.loads(out.read_text())["results"] == rows


def test_the_shipped_measurement_has_every_kernel_and_shape(monkeypatch, capsys):
    from bitwright.experiments import KERNELS

    code, printed, _ = run(monkeypatch, capsys, "kernels", "--committed", "--json")
    document = json.loads(printed)
    assert code == 0
    found = {(row["kernel"], row["n"], row["k"], row["m"]) for row in document["results"]}
    wanted = {
        (kernel, n, k, m)
        for kernel in KERNELS
        for n, k in ((4096, 4096), (11008, 4096), (4096, 11008))
        for m in (1, 4, 8, 64, 256)
    }
    assert wanted <= found
    assert {row["what"].split(",")[0] for row in document["text"]} >= {"smollm2 w4g64a8-int-asym"}


def test_llama_cpp_is_measured_where_it_is_installed(monkeypatch, tmp_path):
    """A stand-in counts what it is asked to do; the package itself has to be compiled."""
    asked = []

    class Llama:
        def __init__(self, path, **options):
            asked.append((path, options["n_ctx"] >= 256 + 100))

        def reset(self):
            asked.append("reset")

        def eval(self, tokens):
            asked.append(len(tokens))

    monkeypatch.setitem(sys.modules, "llama_cpp", SimpleNamespace(Llama=Llama))
    module = import_module("bitwright.experiments.benchmark_kernels")
    file = tmp_path / "model.gguf"
    file.write_bytes(bytes(3_000_000))
    monkeypatch.setattr(module, "fetch_model", lambda: file)
    row = module._llama_cpp(list(range(256)))
    assert row.what == "llama.cpp, Q4_1" and row.mb_per_token == 3.0
    assert asked[0] == (str(file), True)
    assert asked[1:] == 4 * ["reset", 256, *([1] * 100)]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (
            ("kernels", "--only", "W5A5"),
            "kernel 'W5A5' is not known; there are: W4A8; W4A8 dINT4; ",
        ),
        (("kernels", "--shapes", "64"), "--shapes has '64'; give n,k such as 4096,4096"),
        (("kernels", "--rows", "1,two"), "--rows has 'two'; whole numbers are needed"),
        (
            ("kernels", "--out", "missing/k.json"),
            "--out missing/k.json: there is no folder missing",
        ),
        (("kernels", "--rows", "0"), "size 0 must be positive; give shapes as n,k and rows as m"),
    ],
)
def test_mistakes_end_with_one_line(monkeypatch, capsys, arguments, text):
    code, printed, error = run(monkeypatch, capsys, *arguments)
    assert code == 2 and printed == ""
    assert text in error and len(error.strip().splitlines()) == 1


def test_bench_cuda_says_that_there_is_no_device_and_writes_nothing(monkeypatch, capsys, tmp_path):
    from bitwright.kernels import cuda

    monkeypatch.setattr(cuda.device, "find_devices", lambda: [])
    code, printed, error = run(monkeypatch, capsys, "cuda", "--out", str(tmp_path / "cuda.json"))
    assert code == 2 and printed == "" and "no CUDA device; " in error
    assert list(tmp_path.iterdir()) == []
