"""Writing a model as a Hugging Face folder: what `load_folder` reads, and other programs too."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer as HubTokenizer
from tokenizers import decoders, models, pre_tokenizers

from bitwright.quant import InputError, Progress, atomic_path, output_folder, write_text

from .config import LlamaConfig
from .hf_folder import _their_name
from .llama import LanguageModel, Tokenizer
from .tokenizer import BpeTokenizer, ByteTokenizer


def save_folder(model: LanguageModel, folder: str | Path, progress: Progress | None = None) -> None:
    """Write config.json, model.safetensors (float32) and tokenizer.json.

    `load_model(folder)` gives the same weights, logits and tokens. A folder that holds other files
    is refused, so that no two models mix.

    Args:
        model: Of the Llama family, as all are here.
        folder: Made if it is missing.
        progress: Called once the weights are written.

    Raises:
        InputError: The folder holds something else or cannot be written, or the model has rotary
            divisors or biases that no config of this kind describes.
    """
    config, tokenizer = _config(model), _tokenizer(model.tokenizer)
    path = output_folder(folder)
    ours = {"config.json", "model.safetensors", "tokenizer.json"}
    other = sorted(one.name for one in path.iterdir() if one.name not in ours)
    if other:
        raise InputError(f"folder {path} holds {other[0]}; choose an empty folder")
    tensors = {
        _their_name(name): model.weight(name).detach().to(torch.float32).contiguous()
        for name in model.config.weight_shapes()
    }
    with atomic_path(path / "model.safetensors") as temporary:
        save_file(tensors, temporary, metadata={"format": "pt"})
    write_text(path / "tokenizer.json", tokenizer.to_str())
    write_text(path / "config.json", json.dumps(config, indent=1) + "\n")
    if progress:
        progress(1, 1, f"write {path}")


def _config(model: LanguageModel) -> dict[str, Any]:
    config = model.config
    kinds = {(): "llama", ("q", "k", "v"): "qwen2", ("q", "k", "v", "o"): "llama"}
    if config.biased not in kinds:
        raise InputError(f"model {model.name} has biases in {config.biased}; no config says that")
    return {
        "architectures": ["Qwen2ForCausalLM" if len(config.biased) == 3 else "LlamaForCausalLM"],
        "model_type": kinds[config.biased],
        "attention_bias": len(config.biased) == 4,
        "hidden_act": "silu",
        "hidden_size": config.hidden,
        "intermediate_size": config.ffn,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "vocab_size": config.vocab,
        "max_position_embeddings": config.context,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_base,
        "rope_scaling": _scaling(model.name, config),
        "tie_word_embeddings": config.tied_embeddings,
        "torch_dtype": "float32",
    }


def _scaling(name: str, config: LlamaConfig) -> dict[str, Any] | None:
    if not config.rope_divisors:
        return None
    if len(set(config.rope_divisors)) > 1:
        raise InputError(
            f"model {name} divides its rotary frequencies one by one, and a config has only the "
            "rule behind them, which is not known here; it cannot be written as a folder"
        )
    return {"rope_type": "linear", "factor": config.rope_divisors[0]}


def _tokenizer(tokenizer: Tokenizer) -> HubTokenizer:
    if isinstance(tokenizer, BpeTokenizer):
        return tokenizer.inner
    if not isinstance(tokenizer, ByteTokenizer):
        raise InputError(f"a {type(tokenizer).__name__} cannot be written as tokenizer.json")
    letters = byte_letters()
    made = HubTokenizer(models.BPE(vocab={letters[b]: b for b in range(256)}, merges=[]))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    made.decoder = decoders.ByteLevel()
    return made


def byte_letters() -> list[str]:
    """The letter that byte-level tokenizers write for each byte (GPT-2's table).

    Printable Latin-1 characters stand for themselves, the others for those from 256 on, in order.

    >>> letters = byte_letters()
    >>> letters[65], letters[0], letters[32], len(set(letters))
    ('A', 'Ā', 'Ġ', 256)
    """
    plain = {*range(33, 127), *range(161, 173), *range(174, 256)}
    letters, next_one = [], 256
    for byte in range(256):
        if byte in plain:
            letters.append(chr(byte))
        else:
            letters.append(chr(next_one))
            next_one += 1
    return letters
