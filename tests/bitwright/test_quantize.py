"""The quantize command, on a made-up model."""

import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import typer
from typer.testing import CliRunner

import bitwright
from bitwright.commands.quantize import quantize as command
from bitwright.quant import InputError, load_tensors, quantize

WEIGHTS = {
    f"blocks.{block}.{kind}": np.random.default_rng(block).normal(size=shape).astype(np.float32)
    for block in (0, 1)
    for kind, shape in {"attn.q": (8, 96), "ffn.up": (16, 96)}.items()
}


@pytest.fixture
def run(monkeypatch):
    model = SimpleNamespace(
        name="fake",
        linear_names=lambda: tuple(WEIGHTS),
        weight=lambda name: torch.from_numpy(WEIGHTS[name]),
    )
    monkeypatch.setattr("bitwright.quant.load_model", lambda name: model)
    app = typer.Typer()
    app.command()(command)
    return lambda *arguments: CliRunner().invoke(app, [str(word) for word in arguments])


def test_json_and_the_file(run, tmp_path):
    out = tmp_path / "q.safetensors"
    result = run("--model", "fake", "--recipe", "w3g64-bitmod", "--out", out, "--json")
    assert result.exit_code == 0
    answer = json.loads(result.stdout)
    tensors, metadata = load_tensors(out)
    assert tensors == {name: quantize(w, "bitmod3", 64) for name, w in WEIGHTS.items()}
    assert metadata == {
        "model": "fake",
        "recipe": "w3g64-bitmod",
        "version": bitwright.__version__,
    }
    # 96 columns are two groups, one of them ragged.
    assert answer["bits_per_weight"] == pytest.approx((96 * 3 + 2 * 10 + 32) / 96)
    errors = [tensors[name].dequantize() - w for name, w in WEIGHTS.items()]
    relative = sum((e.astype(np.float64) ** 2).sum() for e in errors)
    relative /= sum((w.astype(np.float64) ** 2).sum() for w in WEIGHTS.values())
    assert answer["relative_mse"] == pytest.approx(relative)
    assert {key: answer[key] for key in ("model", "recipe", "layers", "weights", "file")} == {
        "model": "fake",
        "recipe": "w3g64-bitmod",
        "layers": 4,
        "weights": 2 * (8 + 16) * 96,
        "file": str(out),
    }


def test_table(run, tmp_path):
    result = run("--recipe", "int4", "--out", tmp_path / "q.safetensors")
    assert result.exit_code == 0
    for row in ("attn.q", "ffn.up", "total"):
        assert row in result.stdout
    assert "4.1667" in result.stdout  # (96*4 + 16) / 96: one group of 96


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--recipe", "fp16"], "--recipe fp16 leaves the weights as they are; there is nothing to"),
        (["--recipe", "bitmod9"], "unknown recipe 'bitmod9'; nearest: bitmod4, bitmod3"),
        (["--out", "q.pt"], "--out q.pt must end in .safetensors"),
        (["--out", "none/q.safetensors"], "the folder none does not exist; make it first"),
    ],
)
def test_mistakes_leave_nothing_behind(run, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    result = run("--out", "q.safetensors", *arguments)
    assert isinstance(result.exception, InputError)
    assert re.search(re.escape(message), str(result.exception))
    assert not list(tmp_path.iterdir())
