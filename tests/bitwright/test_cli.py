"""The command line: instant help, one line and exit 2 for a user's mistake, JSON on stdout."""

import json
import re
import subprocess
import sys

import pytest

import bitwright
from bitwright.__main__ import COMMANDS, main


def run(monkeypatch, capsys, *arguments):
    """Exit code, stdout and stderr of a command, run in this process."""
    monkeypatch.setattr(sys, "argv", ["bitwright", *arguments])
    with pytest.raises(SystemExit) as stop:
        main()
    captured = capsys.readouterr()
    return stop.value.code or 0, captured.out, captured.err


def test_help_lists_every_command_without_loading_the_heavy_libraries():
    probe = (
        "import sys\nfrom bitwright.__main__ import main\nsys.argv = ['bitwright', '--help']\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "heavy = ('torch', 'numba', 'pyrtl', 'cocotb', 'pyosys')\n"
        "print('loaded:', *[m for m in heavy if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", probe], capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1].split() == ["loaded:"]
    for command in COMMANDS:
        assert f" {command.replace('_', '-')} " in done.stdout


MISTAKES = [
    (
        ("evaluate", "--model", "tinny"),
        "model 'tinny' is neither a name nor an existing path; did you mean tiny?",
    ),
    (
        ("evaluate", "--model", "tiny", "--recipe", "w4g64-bitmood"),
        "w4g64-bitmood",
    ),
    (
        ("evaluate", "--model", "tiny", "--recipe", "w4g0-bitmod"),
        "w4g0-bitmod",
    ),
    (
        ("evaluate", "--model", "tiny", "--arithmetic", "exact"),
        "arithmetic 'exact' is not known; choose fake or pe",
    ),
    (
        ("evaluate", "--model", "tiny", "--tokens", "100"),
        "100 tokens are less than one window of 512",
    ),
    (
        ("evaluate", "--model", "tiny", "--text", "a.txt", "--dataset", "wikitext2"),
        "--text and --dataset exclude each other; give one of them",
    ),
    (
        ("evaluate", "--model", "tiny", "--recipe", "w8g64-int-asym-s8", "--arithmetic", "pe"),
        "the bitmod PE cannot run weight format int8-asym",
    ),
    (
        ("evaluate", "--model", "tiny", "--recipe", "w4g64-int-asym", "--arithmetic", "pe"),
        "scale_format fp16 does not run on the bitmod PE",
    ),
    (
        ("codesign", "--model", "tiny", "--group-size", "-1"),
        "--group-size is -1; at least 1, 64 or 128 are usual",
    ),
    (
        ("codesign", "--model", "tiny", "--rows", "0"),
        "--rows is 0; at least 1",
    ),
    (
        ("codesign", "--model", "tiny", "--out", "/dev/null/results"),
        "output folder /dev/null/results cannot be written: Not a directory",
    ),
    (
        ("codesign", "--model", "tiny", "--recipes", "fp16,w8g64-int-asym-s8"),
        "the bitmod PE cannot run weight format int8-asym",
    ),
]


@pytest.mark.parametrize(
    ("arguments", "message"), MISTAKES, ids=lambda v: " ".join(v) if isinstance(v, tuple) else "-"
)
def test_mistakes_are_one_line_and_exit_2(monkeypatch, capsys, tmp_path, arguments, message):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(monkeypatch, capsys, *arguments)
    assert code == 2
    assert out == ""
    assert err.startswith("bitwright: ") and err.count("\n") == 1
    assert message in err
    assert not list(tmp_path.rglob("*.json"))  # nothing half-written


def test_evaluate_prints_the_agreed_json_keys(monkeypatch, capsys):
    arguments = ("evaluate", "--model", "tiny", "--recipe", "bitmod4", "--tokens", "512", "--json")
    code, out, _ = run(monkeypatch, capsys, *arguments)
    document = json.loads(out)
    assert code == 0
    assert document["model"] == "tiny"
    assert document["recipe"] == "w4g128-bitmod"
    assert document["arithmetic"] == "fake"
    assert (document["tokens"], document["window"]) == (512, 512)
    assert 4 < document["bits_per_weight"] < 5
    assert 1 < document["perplexity"] < 256
    assert document["bitwright"] == bitwright.__version__
    assert re.fullmatch(r"none|[0-9a-f]{12}(\+changes)?", document["commit"])


def test_codesign_falls_back_to_tiny_and_says_so(monkeypatch, capsys, tmp_path):
    from bitwright import quant

    def offline(name, progress=None, load=quant.load_model):
        if name == "smollm2":
            raise quant.ModelUnavailable("cannot fetch smollm2: no network")
        return load(name)

    monkeypatch.setattr(quant, "load_model", offline)
    options = ("--no-verify", "--recipes", "fp16", "--tokens", "512", "--json")
    code, out, err = run(monkeypatch, capsys, "codesign", *options, "--out", str(tmp_path))
    assert code == 0
    assert err == (
        "bitwright: cannot fetch smollm2: no network; using the bundled model tiny instead\n"
    )
    document = json.loads(out)
    written = json.loads((tmp_path / "results.json").read_text())
    assert {key: document[key] for key in written} == written
    assert document["meta"]["model"] == "tiny"
    assert [record["recipe"] for record in document["records"]] == ["fp16"]


def test_a_mismatch_ends_codesign_with_1(monkeypatch, capsys, tmp_path):
    from bitwright import rtl

    row = rtl.VerifyRow("bitmod", "int8", "quick", "netlist", "model", vectors=10, mismatches=1)
    monkeypatch.setattr("bitwright.experiments.codesigning.verify", lambda *a, **k: [row])
    options = ("--model", "tiny", "--recipes", "fp16", "--tokens", "512")
    code, out, _ = run(monkeypatch, capsys, "codesign", *options, "--out", str(tmp_path))
    assert code == 1
    assert "20 vectors, 2 mismatches" in out
