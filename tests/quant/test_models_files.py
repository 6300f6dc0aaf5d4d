"""GGUF files and Hugging Face folders: the same model out of either, and clear refusals."""

import json
import math
import random
import re
from dataclasses import replace

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from bitwright.quant import InputError, LlamaConfig, load_model

CONFIG = LlamaConfig(
    layers=2,
    hidden=64,
    heads=4,
    kv_heads=2,
    head_dim=16,
    ffn=96,
    vocab=264,
    rope_base=5000.0,
    norm_eps=1e-5,
    tied_embeddings=True,
    context=128,
)
UNTIED = replace(CONFIG, tied_embeddings=False)
GGUF_NAMES = {
    "embed": "token_embd.weight",
    "final_norm": "output_norm.weight",
    "head": "output.weight",
    "attn.q": "attn_q",
    "attn.k": "attn_k",
    "attn.v": "attn_v",
    "attn.o": "attn_output",
    "ffn.gate": "ffn_gate",
    "ffn.up": "ffn_up",
    "ffn.down": "ffn_down",
}
HF_NAMES = {
    "embed": "model.embed_tokens.weight",
    "final_norm": "model.norm.weight",
    "head": "lm_head.weight",
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
BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
MERGES = [("t", "h"), ("th", "e"), ("Ġ", "the"), ("1", "2")]
VOCAB = [*BYTES, *("".join(pair) for pair in MERGES), "<|end|>"]  # 256 + 4 + 1


def random_weights(config, seed=0):
    generator = torch.Generator().manual_seed(seed)
    weights = {}
    for name, shape in config.weight_shapes().items():
        scale = 1 / math.sqrt(shape[-1]) if len(shape) == 2 else 1.0
        weights[name] = torch.randn(shape, generator=generator) * scale
    return weights


def named(table, layers, ours):
    """The name that a file format gives one of our tensors."""
    if not ours.startswith("blocks."):
        return table[ours]
    _, layer, part = ours.split(".", 2)
    suffix = "bias" if part.endswith(".bias") else "weight"
    part = part.removesuffix(".bias")
    return f"{layers}.{layer}.{table.get(part, part)}.{suffix}"


def interleaved(weight, heads):
    """The row order of llama.cpp's converter, written down anew: pair i of a head lies at rows
    2i and 2i + 1, its halves at i and i + h."""
    head_dim = len(weight) // heads
    half = head_dim // 2
    order = [h * head_dim + i + s * half for h in range(heads) for i in range(half) for s in (0, 1)]
    return weight[order]


def write_gguf(path, config, weights, architecture="llama", types=None, change=None, extra=()):
    """`types` maps our names to a GGUF block format; `change` edits {key: value} of the shape."""
    shape = {
        "block_count": config.layers,
        "context_length": config.context,
        "embedding_length": config.hidden,
        "feed_forward_length": config.ffn,
        "attention.head_count": config.heads,
        "attention.head_count_kv": config.kv_heads,
        "rope.freq_base": config.rope_base,
        "attention.layer_norm_rms_epsilon": config.norm_eps,
        "rope.dimension_count": config.head_dim,
    } | (change or {})
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in shape.items():
        if value is None:
            continue
        if isinstance(value, str):
            writer.add_string(f"{architecture}.{key}", value)
        elif isinstance(value, float):
            writer.add_float32(f"{architecture}.{key}", value)
        else:
            writer.add_uint32(f"{architecture}.{key}", value)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(VOCAB)
    writer.add_token_types([3 if token == "<|end|>" else 1 for token in VOCAB])
    writer.add_token_merges([" ".join(pair) for pair in MERGES])
    for ours, weight in [*weights.items(), *extra]:
        if architecture == "llama" and ".attn.q" in ours:
            weight = interleaved(weight, config.heads)
        if architecture == "llama" and ".attn.k" in ours:
            weight = interleaved(weight, config.kv_heads)
        name = named(GGUF_NAMES, "blk", ours) if (ours, weight) not in extra else ours
        data = weight.numpy()
        kind = (types or {}).get(ours)
        if kind is not None:
            data = gguf.quants.quantize(data, kind)
        writer.add_tensor(name, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_folder(folder, config, weights, model_type="llama", change=None, shards=1, extra=None):
    folder.mkdir(exist_ok=True)
    document = {
        "model_type": model_type,
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
        "hidden_act": "silu",
    } | (change or {})
    document = {key: value for key, value in document.items() if value is not ...}
    (folder / "config.json").write_text(json.dumps(document))
    tensors = {named(HF_NAMES, "model.layers", ours): w for ours, w in weights.items()}
    tensors |= extra or {}
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    if shards == 1:
        save_file(tensors, folder / "model.safetensors")
    else:
        names = sorted(tensors)
        parts = {f"model-{i}.safetensors": names[i::shards] for i in range(shards)}
        for file, keys in parts.items():
            save_file({key: tensors[key] for key in keys}, folder / file)
        index = {"weight_map": {key: file for file, keys in parts.items() for key in keys}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    tokenizer = Tokenizer(models.BPE({t: i for i, t in enumerate(VOCAB)}, MERGES))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<|end|>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    return folder


@pytest.fixture(scope="module")
def weights():
    return random_weights(CONFIG)


@pytest.fixture
def good_gguf(tmp_path, weights):
    return write_gguf(tmp_path / "good.gguf", CONFIG, weights)


@pytest.fixture
def good_folder(tmp_path, weights):
    return write_folder(tmp_path / "good", CONFIG, weights)


TOKENS = torch.arange(40).view(2, 20) * 6


def assert_same_model(a, b):
    assert replace(a.config, norm_eps=0.0) == replace(b.config, norm_eps=0.0)
    # A GGUF keeps the epsilon and the rotary factors as float32.
    assert a.config.norm_eps == pytest.approx(b.config.norm_eps, rel=2**-24)
    for name in a.config.weight_shapes():
        assert torch.equal(a.weight(name), b.weight(name)), name
    assert torch.allclose(a.logits(TOKENS), b.logits(TOKENS), rtol=0, atol=1e-5)


# --- the same model out of both ---


@pytest.mark.parametrize("config", [CONFIG, UNTIED], ids=["tied", "untied"])
def test_both_loaders_give_the_written_weights_and_the_same_logits(tmp_path, config):
    weights = random_weights(config)
    from_gguf = load_model(write_gguf(tmp_path / "m.gguf", config, weights))
    from_folder = load_model(write_folder(tmp_path / "m", config, weights))
    assert from_folder.config == config
    for name, weight in weights.items():
        assert torch.equal(from_folder.weight(name), weight)
    assert_same_model(from_gguf, from_folder)
    assert (from_gguf.name, from_folder.name) == ("m", "m")


def test_qwen2_has_biases_and_keeps_its_row_order(tmp_path):
    config = replace(UNTIED, biased=("q", "k", "v"))
    weights = random_weights(config)
    from_gguf = load_model(write_gguf(tmp_path / "q.gguf", config, weights, "qwen2"))
    from_folder = load_model(write_folder(tmp_path / "q", config, weights, "qwen2"))
    assert from_folder.config.biased == ("q", "k", "v")
    assert_same_model(from_gguf, from_folder)


def test_attention_bias_adds_all_four(tmp_path):
    config = replace(CONFIG, biased=("q", "k", "v", "o"))
    weights = random_weights(config)
    change = {"attention_bias": True}
    from_folder = load_model(write_folder(tmp_path / "b", config, weights, change=change))
    assert_same_model(load_model(write_gguf(tmp_path / "b.gguf", config, weights)), from_folder)


def test_shards_give_the_same_model(tmp_path, good_folder, weights):
    sharded = write_folder(tmp_path / "sharded", CONFIG, weights, shards=3)
    assert_same_model(load_model(sharded), load_model(good_folder))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_other_float_types_become_float32(tmp_path, weights, dtype):
    stored = {name: weight.to(dtype) for name, weight in weights.items()}
    model = load_model(write_folder(tmp_path / "m", CONFIG, stored))
    for name, weight in stored.items():
        assert torch.equal(model.weight(name), weight.float())


@pytest.mark.parametrize("kind", ["Q4_0", "Q4_1", "Q8_0", "F16", "BF16"])
def test_block_formats_are_dequantised(tmp_path, weights, kind):
    kind = gguf.GGMLQuantizationType[kind]
    types = {name: kind for name in CONFIG.linear_shapes()}
    model = load_model(write_gguf(tmp_path / "m.gguf", CONFIG, weights, types=types))
    for name, weight in weights.items():
        expected = weight.numpy()
        if name in types:
            expected = gguf.quants.dequantize(gguf.quants.quantize(expected, kind), kind)
        np.testing.assert_array_equal(model.weight(name).numpy(), expected)


def test_a_copy_of_the_tied_embedding_is_ignored(tmp_path, weights):
    extra = {"lm_head.weight": weights["embed"].clone()}
    model = load_model(write_folder(tmp_path / "m", CONFIG, weights, extra=extra))
    assert model.config.tied_embeddings


# --- rotary scaling ---

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 256,
}


def test_llama3_divisors_by_hand(tmp_path, weights):
    """Base 16, 8 pairs: wavelengths 2 pi 16**(i/8) are 6, 9, 13, 18, 25, 35.54, 50.27, 71.
    With original context 128: up to 128 / 4 = 32 kept, above 128 / 2 = 64 divided by 8; at 50.27
    smooth = (128 / 50.27 - 2) / (4 - 2) = 0.273, so 1 / (0.727 / 8 + 0.273) = 2.75; at 35.54
    smooth = (128 / 35.54 - 2) / 2 = 0.801, so 1 / (0.199 / 8 + 0.801) = 1.21."""
    scaling = LLAMA3 | {"low_freq_factor": 2.0, "original_max_position_embeddings": 128}
    change = {"rope_theta": 16.0, "rope_scaling": scaling}
    config = load_model(write_folder(tmp_path / "m", CONFIG, weights, change=change)).config
    expected = (1, 1, 1, 1, 1, 1.21, 2.75, 8)
    assert config.rope_divisors == pytest.approx(expected, abs=0.005)


def test_llama3_scaling_is_the_same_in_both(tmp_path, weights):
    folder = write_folder(tmp_path / "m", CONFIG, weights, change={"rope_scaling": LLAMA3})
    scaled = load_model(folder)
    factors = torch.tensor(scaled.config.rope_divisors)
    path = write_gguf(tmp_path / "m.gguf", CONFIG, weights, extra=[("rope_freqs.weight", factors)])
    from_gguf = load_model(path)
    assert from_gguf.config.rope_divisors == pytest.approx(scaled.config.rope_divisors, rel=2**-24)
    assert torch.allclose(from_gguf.logits(TOKENS), scaled.logits(TOKENS), rtol=0, atol=1e-5)


def test_linear_scaling_is_the_same_in_both(tmp_path, weights):
    change = {"rope_scaling": {"type": "linear", "factor": 4.0}}
    folder = write_folder(tmp_path / "m", CONFIG, weights, change=change)
    change = {"rope.scaling.type": "linear", "rope.scaling.factor": 4.0}
    path = write_gguf(tmp_path / "m.gguf", CONFIG, weights, change=change)
    assert load_model(folder).config.rope_divisors == (4.0,) * 8
    assert_same_model(load_model(path), load_model(folder))


def test_rope_parameters_of_newer_configs(tmp_path, weights):
    change = {"rope_theta": ..., "rope_parameters": {"rope_type": "default", "rope_theta": 77.0}}
    config = load_model(write_folder(tmp_path / "m", CONFIG, weights, change=change)).config
    assert (config.rope_base, config.rope_divisors) == (77.0, ())


def test_a_sliding_window_bounds_the_context(tmp_path, weights):
    change = {"sliding_window": 32}
    folder = write_folder(tmp_path / "m", CONFIG, weights, "mistral", change=change)
    assert load_model(folder).config.context == 32


# --- tokenizers ---

TEXTS = ["the 12 thethe", "naïve — 漢字 🙂", "tab\tand\n\n  spaces ", "x<|end|>the", ""]


@pytest.mark.parametrize("text", TEXTS)
def test_both_tokenizers_agree_and_round_trip(good_gguf, good_folder, text):
    a, b = load_model(good_gguf).tokenizer, load_model(good_folder).tokenizer
    assert a.encode(text) == b.encode(text)
    assert a.decode(a.encode(text)) == text
    assert b.decode(b.encode(text)) == text


def test_merges_digits_and_special_tokens(good_gguf):
    tokenizer = load_model(good_gguf).tokenizer
    spelled = [VOCAB[i] for i in tokenizer.encode("the the12<|end|>")]
    # Digits stay apart although a merge of 1 and 2 exists; no begin token.
    assert spelled == ["the", "Ġthe", "1", "2", "<|end|>"]


# --- refusals: GGUF ---


def assert_refused(source, message):
    with pytest.raises(InputError) as caught:
        load_model(source)
    assert re.search(message, str(caught.value)), str(caught.value)
    assert "\n" not in str(caught.value)
    assert str(source) in str(caught.value)


def test_a_file_that_is_no_gguf(tmp_path):
    (tmp_path / "m.gguf").write_bytes(b"<!DOCTYPE html>")
    assert_refused(tmp_path / "m.gguf", r"is not a GGUF file: it does not begin with 'GGUF'")


def test_an_empty_gguf(tmp_path):
    (tmp_path / "m.gguf").touch()
    assert_refused(tmp_path / "m.gguf", r"^cannot read .*m\.gguf: cannot mmap an empty file")


def test_another_gguf_version(good_gguf):
    good_gguf.write_bytes(b"GGUF\x01\0\0\0" + good_gguf.read_bytes()[8:])
    assert_refused(good_gguf, "GGUF version 1 is not supported; versions 2 and 3")


def test_a_gguf_cut_in_its_tensors(good_gguf):
    whole = good_gguf.read_bytes()
    good_gguf.write_bytes(whole[:-1000])
    assert_refused(good_gguf, r"is truncated: tensor .* ends at byte \d+, the file at \d+; fetch")


@pytest.mark.parametrize("part", range(20))
def test_a_gguf_cut_anywhere(good_gguf, part):
    whole = good_gguf.read_bytes()
    cut = 4 + part * (len(whole) - 100) // 20
    good_gguf.write_bytes(whole[:cut])
    assert_refused(good_gguf, f"is truncated.*{cut}")


def test_a_gguf_with_any_byte_of_its_header_changed(good_gguf, weights):
    """Loads or is refused in one line: no other exception, and no endless loop."""
    whole = good_gguf.read_bytes()
    header = len(whole) - sum(4 * weight.numel() for weight in weights.values())
    chooser = random.Random(0)
    refused = 0
    for _ in range(1000):
        changed = bytearray(whole)
        changed[chooser.randrange(4, header)] = chooser.choice([0, 1, 0x80, 0xFF])
        good_gguf.write_bytes(changed)
        try:
            load_model(good_gguf)
        except InputError as error:
            refused += 1
            assert "\n" not in str(error) and str(good_gguf) in str(error)
    assert refused > 100


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_gguf_weight_that_is_not_finite(tmp_path, weights, value):
    bad = weights["blocks.1.ffn.up"].clone()
    bad[3, 5] = value
    path = write_gguf(tmp_path / "m.gguf", CONFIG, weights | {"blocks.1.ffn.up": bad})
    assert_refused(
        path,
        rf"tensor blk\.1\.ffn_up\.weight holds {value} at \[3, 5\] \(1 NaN or infinite values\); "
        "weights must be finite",
    )


def test_a_gguf_without_a_tensor(tmp_path, weights):
    rest = {name: w for name, w in weights.items() if name != "blocks.1.ffn.down"}
    path = write_gguf(tmp_path / "m.gguf", CONFIG, rest)
    assert_refused(path, r"tensor blk\.1\.ffn_down\.weight is missing$")


def test_a_gguf_with_a_tensor_too_many(tmp_path, weights):
    extra = [("blk.0.attn_q_norm.weight", torch.ones(16))]
    path = write_gguf(tmp_path / "m.gguf", CONFIG, weights, extra=extra)
    assert_refused(path, r"tensor blk\.0\.attn_q_norm\.weight has no place in a Llama model")


def test_a_gguf_of_another_architecture(tmp_path, weights):
    path = write_gguf(tmp_path / "m.gguf", CONFIG, weights, "gpt2")
    assert_refused(path, r"architecture 'gpt2' is not Llama-like; can be one of llama, qwen2")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"expert_count": 8}, r"metadata llama\.expert_count is set; models with it are not"),
        ({"block_count": 1 << 31}, r"llama\.block_count is 2147483648, more than its 20 tensors"),
        ({"block_count": None}, r"metadata llama\.block_count is missing"),
        ({"block_count": "two"}, r"metadata llama\.block_count is 'two', must be of type int"),
        ({"attention.head_count": 0}, r"metadata llama\.attention\.head_count is 0"),
        ({"attention.head_count_kv": 3}, r"4 attention heads cannot share 3 key-value heads"),
        ({"feed_forward_length": 97}, r"shape \[96, 64\], the model's config needs \[97, 64\]"),
        ({"rope.dimension_count": 8}, r"rope\.dimension_count is 8, only the head size 16"),
        ({"rope.scaling.type": "yarn"}, r"rope scaling 'yarn' is not supported; none, linear"),
    ],
    ids=lambda value: "" if isinstance(value, str) else "-".join(map(str, value)),
)
def test_gguf_shapes_that_are_refused(tmp_path, weights, change, message):
    assert_refused(write_gguf(tmp_path / "m.gguf", CONFIG, weights, change=change), message)


def test_a_gguf_with_another_tokenizer(good_gguf):
    whole = good_gguf.read_bytes()
    good_gguf.write_bytes(whole.replace(b"\4\0\0\0\0\0\0\0gpt2", b"\4\0\0\0\0\0\0\0bert"))
    assert_refused(good_gguf, r"tokenizer 'bert' is not supported, only 'gpt2' \(byte-level BPE\)")
    good_gguf.write_bytes(whole.replace(b"smollm", b"tekken"))
    assert_refused(good_gguf, r"pre-tokenizer 'tekken' is not known; can be one of gpt-2, smollm")


# --- refusals: Hugging Face folders ---


def test_a_truncated_safetensors(good_folder):
    file = good_folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    assert_refused(good_folder, r"model\.safetensors is missing, truncated or not a safetensors")


def test_a_corrupt_safetensors(good_folder):
    (good_folder / "model.safetensors").write_bytes(b"\xff" * 4096)
    assert_refused(good_folder, r"model\.safetensors is missing, truncated or not a safetensors")


def test_a_missing_shard(tmp_path, weights):
    folder = write_folder(tmp_path / "m", CONFIG, weights, shards=3)
    (folder / "model-1.safetensors").unlink()
    assert_refused(folder, r"model-1\.safetensors is missing, truncated or not a safetensors")


def test_an_index_that_lists_too_much(tmp_path, weights):
    folder = write_folder(tmp_path / "m", CONFIG, weights, shards=2)
    index = folder / "model.safetensors.index.json"
    document = json.loads(index.read_text())
    document["weight_map"]["model.extra.weight"] = "model-0.safetensors"
    index.write_text(json.dumps(document))
    assert_refused(folder, r"model-0\.safetensors: tensor model\.extra\.weight is missing, which")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth", "m.ckpt"])
def test_pickles_are_refused_not_loaded(good_folder, name):
    (good_folder / "model.safetensors").rename(good_folder / name)
    assert_refused(good_folder, f"holds weights only as {re.escape(name)}: pickle checkpoints can")
    assert_refused(good_folder / name, "pickle checkpoints can run any code and are never loaded")


def test_a_folder_without_weights(good_folder):
    (good_folder / "model.safetensors").unlink()
    assert_refused(good_folder, r"holds no \*\.safetensors file")


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_safetensors_weight_that_is_not_finite(tmp_path, weights, value):
    bad = weights["final_norm"].clone()
    bad[2:4] = value
    folder = write_folder(tmp_path / "m", CONFIG, weights | {"final_norm": bad})
    assert_refused(
        folder, rf"tensor model\.norm\.weight holds {value} at \[2\] \(2 NaN or infinite values\)"
    )


def test_a_folder_without_a_tensor(tmp_path, weights):
    rest = {name: w for name, w in weights.items() if ".o" not in name}
    folder = write_folder(tmp_path / "m", CONFIG, rest)
    assert_refused(
        folder, r"tensor model\.layers\.0\.self_attn\.o_proj\.weight is missing, and 1 more$"
    )


def test_a_folder_with_a_tensor_too_many(tmp_path, weights):
    extra = {"model.layers.0.self_attn.q_norm.weight": torch.ones(16)}
    folder = write_folder(tmp_path / "m", CONFIG, weights, extra=extra)
    assert_refused(folder, r"self_attn\.q_norm\.weight has no place in a Llama model")


def test_weights_stored_as_integers(tmp_path, weights):
    stored = weights | {"embed": torch.zeros(CONFIG.vocab, CONFIG.hidden, dtype=torch.int8)}
    folder = write_folder(tmp_path / "m", CONFIG, stored)
    assert_refused(
        folder, r"tensor model\.embed_tokens\.weight is stored as I8; weights must be F64"
    )


@pytest.mark.parametrize(
    "change, message",
    [
        ({"model_type": "gpt2"}, "model_type 'gpt2' is not Llama-like; can be one of llama, mis"),
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'; only models with 'silu' are supported"),
        ({"mlp_bias": True}, "mlp_bias is True; only models with False"),
        ({"quantization_config": {"bits": 4}}, "quantization_config is .*; only models with None"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5; only models with 1.0"),
        ({"rope_scaling": {"rope_type": "yarn"}}, "rope scaling 'yarn' is not supported; can be"),
        ({"rope_scaling": {"type": "linear"}}, "factor is None, must be a positive number"),
        ({"rope_scaling": "twice"}, "rotary scaling is 'twice', must be one object for all lay"),
        ({"rope_parameters": {"full_attention": {}}}, "rotary scaling is .*, must be one object"),
        (
            {"rope_scaling": LLAMA3 | {"low_freq_factor": 4.0}},
            "low_freq_factor 4.0 must be less than high_freq_factor 4.0",
        ),
        ({"rope_theta": -1}, "rope_theta is -1, must be a positive number"),
        ({"hidden_size": ...}, "hidden_size is missing"),
        ({"hidden_size": "64"}, "hidden_size is '64', must be of type int"),
        ({"num_attention_heads": 0}, "num_attention_heads is 0, must be positive"),
        ({"num_key_value_heads": 3}, "4 attention heads cannot share 3 key-value heads evenly"),
        ({"num_hidden_layers": 10**9}, "1000000000 layers, but the folder holds only 20 tensors"),
        ({"intermediate_size": 97}, r"shape \[96, 64\], the model's config needs \[97, 64\]"),
        ({"vocab_size": 263}, r"shape \[264, 64\], the model's config needs \[263, 64\]"),
    ],
    ids=lambda value: "" if isinstance(value, str) else "-".join(map(str, value)),
)
def test_configs_that_are_refused(tmp_path, weights, change, message):
    assert_refused(write_folder(tmp_path / "m", CONFIG, weights, change=change), message)


def test_a_config_that_is_no_json(good_folder):
    (good_folder / "config.json").write_text("{")
    assert_refused(good_folder, r"config\.json is not JSON: ")
    (good_folder / "config.json").write_text("[]")
    assert_refused(good_folder, r"config\.json holds a list, must hold an object")
    (good_folder / "config.json").unlink()
    assert_refused(good_folder, r"cannot read .*config\.json: No such file or directory")


def test_a_folder_without_a_usable_tokenizer(good_folder):
    (good_folder / "tokenizer.json").write_text("{}")
    assert_refused(good_folder, r"tokenizer\.json is not a tokenizer: ")
    (good_folder / "tokenizer.json").unlink()
    assert_refused(good_folder, r"tokenizer\.json is missing; a Hugging Face model folder needs it")


def test_more_tokens_than_embedding_rows(tmp_path):
    config = replace(CONFIG, vocab=260)
    folder = write_folder(tmp_path / "m", config, random_weights(config))
    assert_refused(folder, r"tokenizer\.json has 261 tokens, the embedding 260 rows")
    path = write_gguf(tmp_path / "m.gguf", config, random_weights(config))
    assert_refused(path, r"261 tokens but 260 rows of embedding")
