"""Models written as Hugging Face folders, and read again."""

import json
from dataclasses import replace

import pytest
import torch

from bitwright.quant import InputError, LanguageModel, LlamaConfig, load_model, save_folder

CONFIG = LlamaConfig(
    layers=1,
    hidden=16,
    heads=2,
    kv_heads=1,
    head_dim=8,
    ffn=24,
    vocab=256,
    rope_base=5_000.0,
    norm_eps=1e-6,
    tied_embeddings=False,
    context=32,
)


def made(config):
    generator = torch.Generator().manual_seed(0)
    weights = {
        name: torch.randn(shape, generator=generator)
        for name, shape in config.weight_shapes().items()
    }
    return LanguageModel("made", config, weights, load_model("tiny").tokenizer, "random")


@pytest.mark.parametrize(
    "config",
    [
        CONFIG,
        replace(CONFIG, tied_embeddings=True),
        replace(CONFIG, biased=("q", "k", "v")),
        replace(CONFIG, biased=("q", "k", "v", "o")),
        replace(CONFIG, rope_divisors=(4.0,) * 4),
    ],
    ids=["plain", "tied", "qwen2", "biased", "linear rope"],
)
def test_what_is_written_is_read(config, tmp_path):
    model = made(config)
    save_folder(model, tmp_path / "m")
    again = load_model(tmp_path / "m")
    assert again.config == config
    for name in config.weight_shapes():
        assert torch.equal(again.weight(name), model.weight(name))
    ids = torch.arange(20)[None]
    assert torch.equal(again.logits(ids), model.logits(ids))


def test_bytes_are_tokens_in_the_folder_too(tmp_path):
    model = load_model("tiny")
    save_folder(model, tmp_path / "m")
    again = load_model(tmp_path / "m")
    text = "".join(map(chr, range(256))) + "  def f(x):\r\n\té漢字 🙂"
    ids = model.tokenizer.encode(text)
    assert again.tokenizer.encode(text) == ids
    assert again.tokenizer.decode(ids) == text == model.tokenizer.decode(ids)
    assert set(range(128)) <= set(ids)


def test_a_second_model_replaces_the_first_but_nothing_else(tmp_path):
    model = made(CONFIG)
    save_folder(model, tmp_path)
    first = (tmp_path / "model.safetensors").read_bytes()
    save_folder(model, tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == first
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(InputError) as found:
        save_folder(model, tmp_path)
    assert str(found.value) == f"folder {tmp_path} holds notes.txt; choose an empty folder"


def test_what_no_config_describes(tmp_path):
    with pytest.raises(InputError, match="^model made divides its rotary frequencies one by one"):
        save_folder(made(replace(CONFIG, rope_divisors=(1.0, 1.0, 2.0, 4.0))), tmp_path / "m")
    with pytest.raises(
        InputError, match=r"^model made has biases in \('q',\); no config says that"
    ):
        save_folder(made(replace(CONFIG, biased=("q",))), tmp_path / "m")
    assert not (tmp_path / "m").exists()


def test_the_document_names_the_architecture(tmp_path):
    save_folder(made(replace(CONFIG, biased=("q", "k", "v"))), tmp_path)
    document = json.loads((tmp_path / "config.json").read_text())
    assert document["architectures"] == ["Qwen2ForCausalLM"]
    assert document["model_type"] == "qwen2"
