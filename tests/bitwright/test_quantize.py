"""The quantize command, on a made-up model."""

import json
import re
import sys

import numpy as np
import pytest
import torch
import typer
from typer.testing import CliRunner

import bitwright
from bitwright.__main__ import main
from bitwright.commands.quantize import quantize as command
from bitwright.quant import (
    Calibration,
    InputError,
    LanguageModel,
    LlamaConfig,
    apply_recipe,
    load_calibration_text,
    load_quantized,
    load_tensors,
    peak_parts,
    quantize,
)

CONFIG = LlamaConfig(2, 96, 4, 2, 24, 160, 256, 10_000.0, 1e-5, True, 128)
KINDS = ["attn.q", "attn.k", "attn.v", "attn.o", "ffn.gate", "ffn.up", "ffn.down"]
FEW = ["--calibration-sequences", "4", "--calibration-length", "16"]


class Bytes:
    def encode(self, text):
        return list(text.encode())

    def decode(self, ids):
        return bytes(ids).decode()


@pytest.fixture
def model():
    generator = torch.Generator().manual_seed(0)
    weights = {
        name: torch.randn(shape, generator=generator) / (shape[-1] ** 0.5 if shape[1:] else 1)
        for name, shape in CONFIG.weight_shapes().items()
    }
    return LanguageModel("fake", CONFIG, weights, Bytes(), "made up")


@pytest.fixture
def asked():
    """How load_model was called."""
    return []


@pytest.fixture
def run(monkeypatch, model, asked):
    def load(name, progress=None, *, stream=False):
        asked.append((name, stream))
        return model

    monkeypatch.setattr("bitwright.quant.load_model", load)
    app = typer.Typer()
    app.command()(command)
    return lambda *arguments: CliRunner().invoke(app, [str(word) for word in arguments])


def answer(result):
    assert result.exit_code == 0, result.exception
    return json.loads(result.stdout)


def test_json_and_the_file(run, model, tmp_path):
    out = tmp_path / "q.safetensors"
    found = answer(run("--model", "fake", "--recipe", "w3g64-bitmod", "--out", out, "--json"))
    weights = {name: model.weight(name).numpy() for name in model.linear_names()}
    tensors, metadata = load_tensors(out)
    assert tensors == {name: quantize(w, "bitmod3", 64) for name, w in weights.items()}
    expected = {"model": "fake", "recipe": "w3g64-bitmod", "version": bitwright.__version__}
    assert {key: metadata[key] for key in expected} == expected
    # 96 columns are two groups, 160 three; the last is ragged.
    size = sum(w.size for w in weights.values())
    bits = sum(w.size * 3 + len(w) * (-(-w.shape[1] // 64) * 10 + 32) for w in weights.values())
    assert found["bits_per_weight"] == pytest.approx(bits / size)
    errors = [tensors[name].dequantize() - w for name, w in weights.items()]
    relative = sum((e.astype(np.float64) ** 2).sum() for e in errors)
    relative /= sum((w.astype(np.float64) ** 2).sum() for w in weights.values())
    assert found["relative_mse"] == pytest.approx(relative)
    parts = peak_parts(CONFIG, "w3g64-bitmod", streamed=False, stored=False)
    del found["commit"], found["bits_per_weight"], found["relative_mse"]
    assert found == {
        "bitwright": bitwright.__version__,
        "model": "fake",
        "recipe": "w3g64-bitmod",
        "nominal_bits": 3,
        "layers": 14,
        "weights": size,
        "relative_output_mse": None,
        "calibration": None,
        "seed": 0,
        "notes": [],
        "peak_bytes": sum(parts.values()),
        "peak_parts": parts,
        "file": str(out),
        "version": bitwright.__version__,
    }
    assert [path.name for path in tmp_path.iterdir()] == ["q.safetensors"]


@pytest.mark.parametrize("name", ["q.safetensors", "q"])
def test_any_recipe_to_a_file_or_a_folder(run, model, tmp_path, name):
    recipe = "w4g32a8-int-asym+awq:grid=2+gptq"
    options = ["--model", "fake", "--recipe", recipe, *FEW, "--seed", "3", "--json"]
    found = answer(run(*options, "--out", tmp_path / name))
    calibration = Calibration(sequences=4, length=16, seed=3)
    text = load_calibration_text()
    q = apply_recipe(model, recipe, calibration=calibration, text=text)
    stored = load_quantized(tmp_path / name, model)
    assert stored.tensors == q.tensors
    assert stored.calibration == calibration
    assert found["calibration"] == {"text": text.name, **calibration.model_dump()}
    assert (found["seed"], found["nominal_bits"]) == (3, 4)
    assert found["bits_per_weight"] == pytest.approx(q.bits_per_weight)
    outputs = [row.relative_output_mse for row in q.report]
    assert found["relative_output_mse"] == pytest.approx(np.mean(outputs))
    parts = peak_parts(CONFIG, recipe, calibration, streamed=False, stored=name == "q")
    assert found["peak_parts"] == parts


def test_super_weights_count_among_the_bits(run, model, tmp_path):
    recipe = "w4g32-int-sym+superweight:threshold=0.1,most=2,share=0"
    found = answer(run("--recipe", recipe, *FEW, "--out", tmp_path / "q", "--json"))
    stored = load_quantized(tmp_path / "q", model)
    assert any(block.super_weights.get("ffn.down") for block in stored.blocks)
    assert found["bits_per_weight"] == pytest.approx(stored.bits_per_weight)
    assert found["notes"] == list(stored.notes)
    assert re.match(r"blocks\.0: ffn\.down: super weight \[", found["notes"][0])


def test_a_text_of_ones_own(run, model, tmp_path):
    (tmp_path / "mine.txt").write_text("What is calibrated on. " * 10)
    options = ["--recipe", "w4-int-sym+smoothquant", "--calibration-text", tmp_path / "mine.txt"]
    found = answer(run(*options, "--out", tmp_path / "q", "--json"))
    assert found["calibration"] == {
        "text": "mine.txt",
        # 230 bytes are one sequence as long as the context.
        **Calibration(sequences=1, length=128).model_dump(),
    }


def test_streaming(run, asked, tmp_path):
    found = answer(run("--stream", "--recipe", "int4", "--out", tmp_path / "q", "--json"))
    assert asked == [("smollm2", True)]
    assert found["peak_parts"] == peak_parts(CONFIG, "int4")


def test_table(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = run("--recipe", "int4", "--out", "q.safetensors")
    assert result.exit_code == 0
    for row in [*KINDS, "total"]:
        assert row in result.stdout
    assert "4.1667" in result.stdout  # (96*4 + 16) / 96: one group of 96
    assert "output MSE" not in result.stdout
    assert result.stdout.endswith("\nwrote q.safetensors\n")
    assert re.search(
        r"peak memory: at most about 1[3-9] MiB beside the program's own \(libraries 12\)",
        result.stdout,
    )


def test_table_with_outputs_and_notes(run, tmp_path, model):
    for layer in range(2):
        model.weight(f"blocks.{layer}.attn_norm")[:3] = 0
    options = ["--recipe", "w4g32-int-asym+gptq", *FEW, "--out", tmp_path / "q"]
    result = run(*options)
    assert result.exit_code == 0
    assert "output MSE" in result.stdout
    note = "note: blocks.0: attn_in: 3 of 96 input channels are zero in all 64 tokens (first: 0)"
    assert note in result.stdout.replace("\n", " ")
    assert "more note" not in result.stdout


def test_many_notes_are_cut(run, tmp_path, monkeypatch):
    monkeypatch.setattr("bitwright.commands.quantize._NOTES", 1)
    recipe = "w4g32-int-sym+superweight:threshold=0.1,most=1,share=0"
    result = run("--recipe", recipe, *FEW, "--out", tmp_path / "q")
    assert result.stdout.count("note: blocks") == 1
    assert re.search(r"and \d+ more notes; --json has them", result.stdout)


def test_the_same_command_goes_on(run, tmp_path, model, monkeypatch):
    """Stops in block 1, goes on there, and ends as a run that was never stopped."""
    options = ["--recipe", "w4g32-int-asym+gptq", *FEW, "--json", "--out"]
    whole = answer(run(*options, tmp_path / "whole"))
    good = model.weight("blocks.1.ffn.down").clone()
    model.weight("blocks.1.ffn.down")[0, 0] = torch.inf
    result = run(*options, tmp_path / "q")
    assert isinstance(result.exception, InputError)
    assert sorted(path.name for path in (tmp_path / "q").iterdir()) == [
        "block-0000.safetensors",
        "plan.json",
        "streams.safetensors",
    ]
    model.weight("blocks.1.ffn.down")[:] = good
    assert answer(run(*options, tmp_path / "q")) == {**whole, "file": str(tmp_path / "q")}
    for path in (tmp_path / "whole").iterdir():
        assert (tmp_path / "q" / path.name).read_bytes() == path.read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--recipe", "fp16"], "--recipe fp16 rounds no weights, so there is nothing to write;"),
        (["--recipe", "fp16+a8"], "--recipe fp16+a8 rounds no weights, so there is nothing to"),
        (["--recipe", "bitmod9"], "unknown recipe 'bitmod9'; nearest: bitmod4, bitmod3"),
        (["--out", "q.pt"], "--out q.pt must end in .safetensors, or name a folder"),
        (["--out", "q.GGUF"], "--out q.GGUF must end in .safetensors, or name a folder"),
        (["--out", "none/q.safetensors"], "the folder none does not exist; make it first"),
        (["--seed", "-1"], "--seed is -1; at least 0, 0 is usual"),
        (
            ["--calibration-sequences", "0"],
            "--calibration-sequences is 0; at least 1, 128 is usual",
        ),
        (["--calibration-length", "1"], "--calibration-length is 1; at least 2, 512 is usual"),
        (["--calibration-text", "none.txt"], "cannot read text none.txt: No such file or direct"),
        (
            ["--recipe", "w4-int-sym+gptq", "--calibration-length", "129", "--out", "q"],
            "calibration length 129 exceeds the context of model fake, which is 128; use shorter",
        ),
        (
            ["--recipe", "w4-int-sym+gptq", "--calibration-sequences", "99999", "--out", "q"],
            "are needed, ",
        ),
    ],
)
def test_mistakes_leave_nothing_behind(run, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    result = run("--out", "q.safetensors", *arguments)
    assert isinstance(result.exception, InputError)
    assert re.search(re.escape(message), str(result.exception))
    assert "\n" not in str(result.exception)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_called_a_file(run, tmp_path):
    (tmp_path / "q.safetensors").mkdir()
    result = run("--out", tmp_path / "q.safetensors")
    message = r"q\.safetensors is a folder; a name in \.safetensors means a file$"
    assert re.search(message, str(result.exception))


def test_another_recipes_folder(run, tmp_path):
    assert run("--recipe", "int4", "--out", tmp_path / "q").exit_code == 0
    result = run("--recipe", "int3", "--out", tmp_path / "q")
    assert re.search(
        r"holds a run with another recipe \('w4g128-int-sym', not 'w3g128-int-sym'\); choose",
        str(result.exception),
    )


def test_a_mistake_is_one_line_and_exit_2(monkeypatch, capsys, tmp_path):
    words = ["quantize", "--model", "tiny", "--stream", "--out", str(tmp_path / "q")]
    monkeypatch.setattr(sys, "argv", ["bitwright", *words])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err == (
        "bitwright: model tiny: only folders of safetensors can be read block by block; load it "
        "whole\n"
    )
    assert not list(tmp_path.iterdir())
