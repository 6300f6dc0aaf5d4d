"""Weights read block by block: the same model, and the memory that the formula states."""

import json
import os
import re
import shutil
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import replace
from importlib import import_module

import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from bitwright.quant import (
    Calibration,
    InputError,
    LlamaConfig,
    apply_recipe,
    load_model,
    load_quantized,
    peak_bytes,
    peak_parts,
    perplexity,
)

BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())  # 256 characters, one per byte
SMALL = LlamaConfig(
    layers=3,
    hidden=32,
    heads=4,
    kv_heads=2,
    head_dim=8,
    ffn=64,
    vocab=len(BYTES),
    rope_base=10_000.0,
    norm_eps=1e-5,
    tied_embeddings=True,
    context=512,
)
PARTS = {
    "attn.q": "self_attn.q_proj",
    "attn.k": "self_attn.k_proj",
    "attn.v": "self_attn.v_proj",
    "attn.o": "self_attn.o_proj",
    "ffn.gate": "mlp.gate_proj",
    "ffn.up": "mlp.up_proj",
    "ffn.down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}
ENDS = {"embed": "model.embed_tokens", "final_norm": "model.norm", "head": "lm_head"}


def their_name(ours):
    if ours in ENDS:
        return f"{ENDS[ours]}.weight"
    _, layer, part = ours.split(".", 2)
    return f"model.layers.{layer}.{PARTS[part]}.weight"


def write_folder(folder, config, dtype=torch.float32, change=None, shards=1):
    """A Hugging Face folder of random weights and a tokenizer of bytes."""
    folder.mkdir()
    document = {
        "model_type": "llama",
        "num_hidden_layers": config.layers,
        "hidden_size": config.hidden,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "intermediate_size": config.ffn,
        "vocab_size": config.vocab,
        "rope_theta": config.rope_base,
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tied_embeddings,
        "max_position_embeddings": config.context,
    }
    (folder / "config.json").write_text(json.dumps(document))
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for ours, shape in config.weight_shapes().items():
        w = torch.randn(shape, generator=generator) / shape[-1] ** 0.5
        tensors[their_name(ours)] = (w if len(shape) == 2 else torch.ones(shape)).to(dtype)
    tensors |= change or {}
    names = sorted(tensors)
    parts = {f"model-{i}.safetensors": names[i::shards] for i in range(shards)}
    for file, keys in parts.items():
        save_file({key: tensors[key] for key in keys}, folder / file)
    tokenizer = Tokenizer(models.BPE({byte: i for i, byte in enumerate(BYTES)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


# --- the same model ---


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("shards", [1, 3])
def test_the_same_weights(tmp_path, dtype, shards):
    config = replace(SMALL, tied_embeddings=False)
    folder = write_folder(tmp_path / "m", config, dtype, shards=shards)
    whole, streamed = load_model(folder), load_model(folder, stream=True)
    assert (streamed.name, streamed.config, streamed.source) == (
        whole.name,
        whole.config,
        whole.source,
    )
    for name in config.weight_shapes():
        assert streamed.weight(name).dtype == torch.float32
        assert torch.equal(streamed.weight(name), whole.weight(name)), name
    tokens = torch.arange(20)[None]
    assert torch.equal(streamed.logits(tokens), whole.logits(tokens))


@pytest.fixture
def reads(monkeypatch):
    """Names of the tensors read, in order."""
    from importlib import import_module

    place = import_module("bitwright.quant.models.hf_folder")._Place
    read, seen = place.read, []

    def counted(self):
        seen.append(self.key)
        return read(self)

    monkeypatch.setattr(place, "read", counted)
    return seen


def test_nothing_is_read_before_it_is_asked_for(tmp_path, reads):
    model = load_model(write_folder(tmp_path / "m", SMALL), stream=True)
    assert reads == []
    model.weight("blocks.2.ffn.up")
    assert reads == ["model.layers.2.mlp.up_proj.weight"]


def test_a_pass_reads_each_tensor_once_and_keeps_one_block(tmp_path, reads):
    model = load_model(write_folder(tmp_path / "m", SMALL), stream=True)
    model.logits(torch.arange(8)[None])
    assert sorted(reads) == sorted(their_name(name) for name in SMALL.weight_shapes())
    model.logits(torch.arange(8)[None])
    # Embedding and last norm stay, the three blocks come anew.
    assert len(reads) == 2 * len(SMALL.weight_shapes()) - 2
    model.weight("blocks.2.attn.q")  # still there
    assert len(reads) == 2 * len(SMALL.weight_shapes()) - 2


def test_asking_which_weights_there_are_reads_none(tmp_path, reads):
    weights = load_model(write_folder(tmp_path / "m", SMALL), stream=True)._weights
    assert set(weights) == set(SMALL.weight_shapes()) and len(weights) == len(set(weights))
    assert "embed" in weights and "head" not in weights
    assert reads == []


def test_the_same_quantised_model(tmp_path):
    folder = write_folder(tmp_path / "m", SMALL)
    calibration = Calibration(sequences=4, length=32)
    made = [
        apply_recipe(
            load_model(folder, stream=stream), "w4g16a8-int-asym+awq+gptq", calibration=calibration
        )
        for stream in (False, True)
    ]
    assert made[0].tensors == made[1].tensors
    tokens = list(range(256))
    results = [perplexity(q.model, tokens=tokens, window=64, linear=q.linear()) for q in made]
    assert results[0] == results[1]


def test_evaluation_reads_a_stored_model_block_by_block(tmp_path, reads):
    model = load_model(write_folder(tmp_path / "m", SMALL), stream=True)
    apply_recipe(model, "w4g16-int-asym", folder=tmp_path / "q")
    q = load_quantized(tmp_path / "q", model)
    reads.clear()
    perplexity(q.model, tokens=list(range(128)), window=64, linear=q.linear())
    norms = ("input_layernorm", "post_attention_layernorm")
    assert set(reads) - {"model.norm.weight"} == {
        "model.embed_tokens.weight",
        *(f"model.layers.{layer}.{norm}.weight" for layer in range(3) for norm in norms),
    }


# --- what is refused, at once ---


@pytest.mark.parametrize("model", ["tiny", "smollm2"])
def test_models_that_are_no_folders(model):
    message = f"model {model}: only folders of safetensors can be read block by block; load it"
    with pytest.raises(InputError, match=f"^{message} whole$"):
        load_model(model, stream=True)


def test_a_file(tmp_path):
    (tmp_path / "m.gguf").touch()
    with pytest.raises(InputError, match="m.gguf: only folders of safetensors can be read block"):
        load_model(tmp_path / "m.gguf", stream=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"model.layers.1.mlp.up_proj.weight": torch.zeros(64, 31)},
            r"tensor model\.layers\.1\.mlp\.up_proj\.weight has shape \[64, 31\], the model's "
            r"config needs \[64, 32\]$",
        ),
        (
            {"model.norm.weight": torch.zeros(32, dtype=torch.int8)},
            r"tensor model\.norm\.weight is stored as I8; weights must be F64, F32, F16, BF16$",
        ),
        (
            {"model.layers.3.mlp.up_proj.weight": torch.zeros(64, 32)},
            r"tensor model\.layers\.3\.mlp\.up_proj\.weight has no place in a Llama model",
        ),
    ],
    ids=["shape", "type", "too many"],
)
@pytest.mark.parametrize("stream", [False, True])
def test_headers_are_checked_when_the_model_is_loaded(tmp_path, reads, change, message, stream):
    folder = write_folder(tmp_path / "m", SMALL, change=change)
    with pytest.raises(InputError, match=message):
        load_model(folder, stream=stream)
    assert reads == []


def test_a_truncated_file(tmp_path):
    folder = write_folder(tmp_path / "m", SMALL)
    file = folder / "model-0.safetensors"
    file.write_bytes(file.read_bytes()[:-4])
    with pytest.raises(InputError, match="model-0.safetensors is missing, truncated or not a saf"):
        load_model(folder, stream=True)


# --- what is refused when it is read ---


def test_a_weight_that_is_not_finite(tmp_path):
    bad = torch.ones(64, 32)
    bad[3, 5] = torch.nan
    change = {"model.layers.1.mlp.up_proj.weight": bad}
    model = load_model(write_folder(tmp_path / "m", SMALL, change=change), stream=True)
    with pytest.raises(
        InputError, match=r"model\.layers\.1\.mlp\.up_proj\.weight holds nan at \[3, 5\]"
    ):
        apply_recipe(model, "w4-int-sym")


def test_a_file_that_has_changed(tmp_path):
    folder = write_folder(tmp_path / "m", SMALL)
    model = load_model(folder, stream=True)
    os.utime(folder / "model-0.safetensors", ns=(0, 0))
    with pytest.raises(
        InputError, match="model-0.safetensors has changed since the model was loaded; load it aga"
    ):
        model.weight("embed")


def test_a_file_that_is_gone(tmp_path):
    folder = write_folder(tmp_path / "m", SMALL)
    model = load_model(folder, stream=True)
    (folder / "model-0.safetensors").unlink()
    with pytest.raises(InputError, match="^cannot read .*model-0.safetensors: No such file or dir"):
        model.weight("embed")


# --- memory ---

CHILD = """
import ctypes, gc, json, re, sys
from pathlib import Path
from bitwright.quant import (
    Calibration, apply_recipe, load_calibration_text, load_model, load_quantized, perplexity
)

def memory(what):
    return 1024 * int(re.search(what + r":\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

def start():
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what was freed before must not hide growth
    Path("/proc/self/clear_refs").write_text("5")  # the peak is that from now on
    return memory("VmRSS")

def run(folder, stream, out, calibration):
    model = load_model(folder, stream=stream)
    apply_recipe(model, recipe, calibration=calibration, text=text, folder=out)
    return model

def read(out, model):
    q = load_quantized(out, model)
    perplexity(q.model, tokens=tokens, window=64, linear=q.linear(), cache=q.cache())

large, small, out, recipe, stream, sequences, length = sys.argv[1:]
calibration = Calibration(sequences=int(sequences), length=int(length))
text = load_calibration_text().content[: calibration.tokens + 1]
tokens = list(range(256))
# Once with a small model: libraries are loaded and loops compiled before anything is counted.
warm = calibration.model_copy(update={"sequences": 2, "length": 16})
read(out + "-warm", run(small, True, out + "-warm", warm))
before = start()
model = run(large, stream == "stream", out, calibration)
quantised = memory("VmHWM") - before
before = start()
read(out, model)
print(json.dumps({"quantise": quantised, "evaluate": memory("VmHWM") - before}))
"""


def measure(tmp_path, config, recipe, stream="stream"):
    """Peak growth of the resident memory of a process: its own, and pages of files it maps."""
    large = write_folder(tmp_path / "large", config)
    small = write_folder(tmp_path / "small", SMALL)
    how = (
        large,
        small,
        tmp_path / "out",
        recipe,
        stream,
        CALIBRATION.sequences,
        CALIBRATION.length,
    )
    done = subprocess.run(
        [sys.executable, "-c", CHILD, *map(str, how)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    shutil.rmtree(large)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def counts_memory():
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
        with open("/proc/self/status") as file:
            return re.search("VmHWM", file.read()) is not None
    except OSError:
        return False


needs_proc = pytest.mark.skipif(not counts_memory(), reason="/proc does not count peak memory")
WIDE = replace(SMALL, hidden=256, head_dim=64, ffn=512)  # a block takes 2.25 MiB
CALIBRATION = Calibration(sequences=4, length=64)
LIBRARIES = 12 << 20  # a part of what is stated for any model


def model_bytes(config):
    return 4 * sum(torch.Size(shape).numel() for shape in config.weight_shapes().values())


def larger(stated):
    """A model of two and a half times as many bytes."""
    block = model_bytes(replace(WIDE, layers=2)) - model_bytes(replace(WIDE, layers=1))
    return replace(WIDE, layers=5 * stated // (2 * block))


@needs_proc
@pytest.mark.slow
@pytest.mark.timeout(1800)  # half a minute each on an idle machine
@pytest.mark.parametrize(
    "recipe",
    [
        "w4g64-int-asym",
        "w3g128-bitmod",
        "w4g64-int-asym+hadamard",
        "w4g64a8-int-asym+smoothquant",
        "w4g64-int-asym+awq:grid=2",
        "w4g64a8-int-asym+aqas:grid=2,family=awq",
        "w4g64-int-asym+gptq",
        "w4g64-int-asym+mixed:formats=int4-asym|fp4",
        "w4g64-int-asym+hadamard+awq:grid=2+gptq",
        "w4g64-int-asym+omniquant:sequences=2,epochs=1",
        "w4g64a8-int-asym+abq:sequences=2,epochs=1",
    ],
)
def test_a_model_larger_than_the_memory_it_takes(tmp_path, recipe):
    """What is measured is resident memory: anonymous pages and those of mapped files alike, that is
    all that the process could need a machine to have. Limits that the kernel enforces (RLIMIT_DATA,
    RLIMIT_AS) count address space, much of which is never touched, such as stacks of threads."""
    stated = peak_bytes(WIDE, recipe, CALIBRATION)  # however many layers there are
    config = larger(stated)
    assert model_bytes(config) > 2.4 * stated == 2.4 * peak_bytes(config, recipe, CALIBRATION)
    found = measure(tmp_path, config, recipe)
    print(recipe, {key: value >> 10 for key, value in found.items()}, stated >> 10)
    assert found["quantise"] <= stated
    assert found["quantise"] >= (stated - LIBRARIES) / 4  # a bound, but no empty one
    # Embedding, a block's codes and float weights, activations of 256 tokens and logits of 64.
    block = sum(n * k for n, k in WIDE.linear_shapes().values()) // WIDE.layers

    assert found["evaluate"] <= 4 * (3 * block + 256 * 4 * (512 + 4 * 256) + 64 * 256 * 4) + 2**22


@pytest.mark.parametrize("stream", [True, False])
def test_only_a_model_in_memory_keeps_freed_memory(tmp_path, monkeypatch, stream):
    kept = []

    @contextmanager
    def noted():
        kept.append(True)
        yield

    monkeypatch.setattr(import_module("bitwright.quant.pipeline"), "freed_memory_kept", noted)
    model = load_model(write_folder(tmp_path / "m", SMALL), stream=stream)
    for changed in (model, model.with_weights({})):
        apply_recipe(changed, "w4-int-sym")
    assert kept == ([] if stream else [True, True])


@needs_proc
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_measure_sees_a_model_that_is_loaded_whole(tmp_path):
    stated = peak_bytes(WIDE, "w4g64-int-asym", CALIBRATION)
    found = measure(tmp_path, larger(stated), "w4g64-int-asym", "whole")
    assert found["quantise"] > 2 * stated


def test_parts_by_hand():
    """Hidden 8, 2 heads of 4, one key-value head, ffn 16, vocabulary 10: a block has
    2 * 8 * 8 + 2 * 8 * 4 + 3 * 8 * 16 = 576 weights; 3 sequences of 5 tokens."""
    config = LlamaConfig(2, 8, 2, 1, 4, 16, 10, 1e4, 1e-5, True, 64)
    calibration = Calibration(sequences=3, length=5, sample_tokens=7)
    rounding = (32 + 24) * 8 * 16
    assert peak_parts(config, "w4-int-sym") == {
        "libraries": LIBRARIES,
        "embedding": 4 * 10 * 8,
        "block": 4 * 576 + 576 * 5 // 2,
        "rounding": rounding,
    }
    assert peak_parts(config, "w4-int-sym", streamed=False, stored=False) == {
        "libraries": LIBRARIES,
        "model": 4 * (2 * 576 + 10 * 8),
        "block": 576 * 5 // 2,
        "rounding": rounding,
        "finished blocks": 2 * 576 * 9 // 4,
    }
    batch = 4 * 15 * (8 * 8 + 4 * 16)
    assert peak_parts(config, "w4-int-sym+awq+gptq", calibration) == {
        "libraries": LIBRARIES,
        "embedding": 4 * 10 * 8,
        "block": 4 * 576 * 4 + 576 * 5 // 2,  # as read, scaled, clipped and rounded; two of codes
        "rounding": rounding,
        "streams": 4 * 15 * 8 * 3,
        "batch": batch,
        "inputs": 4 * 15 * (16 + 2 * 8),
        "Gram matrices": 12 * (8**2 + 8**2 + 8**2 + 16**2) + 12 * (8**2 + 16**2),
        "Hessian": 64 * 16**2,
    }
    assert peak_parts(config, "w4-int-sym+aqas", calibration)["samples"] == (
        4 * 7 * (2 * (8 + 8 + 8 + 16) + 3 * 16)
    )
    assert peak_parts(config, "w4-int-sym+hadamard")["rotation"] == 16 * 10 * 8 + 24 * 8**2


def test_learning_needs_more_with_more_sequences_in_a_step():
    config = replace(SMALL, layers=2)
    calibration = Calibration(sequences=16, length=64)
    sizes = [
        peak_parts(config, f"w4-int-asym+omniquant:batch={batch}", calibration)["learning"]
        for batch in (1, 2, 16, 32)
    ]
    assert sizes[0] < sizes[1] < sizes[2] == sizes[3]  # there are only 16 sequences
