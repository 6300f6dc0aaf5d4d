"""Llama-family models in GGUF files.

The file's header is read here, because a corrupt one must end in one line rather than in a hang,
and because a 49,000-token vocabulary takes `gguf.GGUFReader` two seconds; the tensors' block
formats and their dequantisation are the `gguf` package's.
Layout: GGUF version 3, https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import math
import mmap
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch

from bitwright.quant import InputError, Progress

from .checks import checked, config_of
from .config import LlamaConfig
from .llama import LanguageModel
from .tokenizer import byte_level_bpe

# general.architecture -> does the converter permute q and k for interleaved rotary pairs?
_ARCHITECTURES = {"llama": True, "qwen2": False}
# Metadata that changes the forward pass in ways that a Llama does not know.
_UNSUPPORTED = (
    "expert_count",
    "logit_scale",
    "residual_scale",
    "embedding_scale",
    "attention.scale",
    "attention.clamp_kqv",
)
_VERSIONS = (2, 3)
_SCALARS = {
    0: "B",
    1: "b",
    2: "H",
    3: "h",
    4: "I",
    5: "i",
    6: "f",
    7: "?",
    10: "Q",
    11: "q",
    12: "d",
}
_STRING, _ARRAY = 8, 9
_LINEARS = {
    "attn.q": "attn_q",
    "attn.k": "attn_k",
    "attn.v": "attn_v",
    "attn.o": "attn_output",
    "ffn.gate": "ffn_gate",
    "ffn.up": "ffn_up",
    "ffn.down": "ffn_down",
    "attn_norm": "attn_norm",
    "ffn_norm": "ffn_norm",
}


@dataclass(frozen=True, slots=True)
class _TensorInfo:
    shape: tuple[int, ...]  #: row-major; the file lists dimensions the other way round
    type: gguf.GGMLQuantizationType
    offset: int  #: in the file


@dataclass(frozen=True, slots=True)
class GgufTensor:
    """A tensor of a GGUF file as it is stored."""

    type: str  #: e.g. "Q4_0"
    shape: tuple[int, ...]  #: row-major
    blocks: np.ndarray  #: uint8 [*shape[:-1], bytes of a row], in the file's mapped memory


class _Header:
    """Metadata and tensor directory of a GGUF file, every length checked against the file's."""

    def __init__(self, data: mmap.mmap, file: Path) -> None:
        self._data, self._at, self._file = data, 0, file
        if self._take(4) != b"GGUF":
            raise InputError(f"{file} is not a GGUF file: it does not begin with 'GGUF'")
        version = self._scalar("I")
        if version not in _VERSIONS:
            raise InputError(
                f"{file}: GGUF version {version} is not supported; versions 2 and 3 "
                "(little-endian) are"
            )
        tensor_count, field_count = self._scalar("Q"), self._scalar("Q")
        self.fields: dict[str, Any] = {}
        for _ in range(field_count):
            key = self._string()
            self.fields[key] = self._value(self._scalar("I"))
        directory = [self._tensor_info() for _ in range(tensor_count)]
        alignment = self.fields.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 1:
            raise InputError(f"{file} is corrupt: general.alignment is {alignment!r}")
        start = -(-self._at // alignment) * alignment
        self.tensors: dict[str, _TensorInfo] = {}
        for name, shape, kind, offset in directory:
            info = _TensorInfo(shape, kind, start + offset)
            if info.offset + _stored_bytes(info) > len(data):
                raise InputError(
                    f"{file} is truncated: tensor {name} ends at byte "
                    f"{info.offset + _stored_bytes(info)}, the file at {len(data)}; fetch it again"
                )
            self.tensors[name] = info

    def dequantised(self, name: str) -> torch.Tensor:
        """The tensor's values in float32, not sharing memory with the file."""
        info = self.tensors[name]
        try:
            values = gguf.quants.dequantize(self.rows(info), info.type)
        except NotImplementedError:
            raise InputError(
                f"{self._file}: tensor {name} has type {info.type.name}, "
                "which gguf cannot dequantise"
            ) from None
        return torch.from_numpy(values if values.flags.writeable else values.copy())

    def rows(self, info: _TensorInfo) -> np.ndarray:
        """The tensor's bytes [..., bytes of a row], sharing memory with the file."""
        raw = np.frombuffer(self._data, np.uint8, _stored_bytes(info), info.offset)
        block, size = gguf.GGML_QUANT_SIZES[info.type]
        return raw.reshape(*info.shape[:-1], info.shape[-1] // block * size)

    def _take(self, count: int) -> bytes:
        if count > len(self._data) - self._at:
            raise InputError(
                f"{self._file} is truncated or corrupt: its header needs {count} bytes at byte "
                f"{self._at}, the file ends at {len(self._data)}; fetch it again"
            )
        self._at += count
        return self._data[self._at - count : self._at]

    def _scalar(self, code: str) -> Any:
        return struct.unpack(f"<{code}", self._take(struct.calcsize(f"<{code}")))[0]

    def _string(self) -> str:
        at = self._at
        try:
            return self._take(self._scalar("Q")).decode("utf-8")
        except UnicodeDecodeError:
            raise InputError(
                f"{self._file} is corrupt: the text at byte {at} of its header is not UTF-8"
            ) from None

    def _value(self, kind: int) -> Any:
        if kind in _SCALARS:
            return self._scalar(_SCALARS[kind])
        if kind == _STRING:
            return self._string()
        if kind == _ARRAY:
            element, count = self._scalar("I"), self._scalar("Q")
            if element in _SCALARS:
                code = _SCALARS[element]
                raw = self._take(count * struct.calcsize(f"<{code}"))
                return list(struct.unpack(f"<{count}{code}", raw))
            if element == _STRING:
                return [self._string() for _ in range(count)]
            kind = element
        raise InputError(
            f"{self._file} is corrupt: value type {kind} before byte {self._at} of its header "
            "is unknown"
        )

    def _tensor_info(self) -> tuple[str, tuple[int, ...], gguf.GGMLQuantizationType, int]:
        name = self._string()
        dimensions = self._scalar("I")
        if not 1 <= dimensions <= 4:
            raise InputError(
                f"{self._file} is corrupt: tensor {name!r} has {dimensions} dimensions"
            )
        shape = tuple(self._scalar("Q") for _ in range(dimensions))[::-1]
        code = self._scalar("I")
        try:
            kind = gguf.GGMLQuantizationType(code)
        except ValueError:
            raise InputError(
                f"{self._file}: tensor {name!r} has type {code}, which gguf does not know"
            ) from None
        block, _ = gguf.GGML_QUANT_SIZES[kind]
        if 0 in shape or shape[-1] % block:
            raise InputError(
                f"{self._file} is corrupt: tensor {name!r} of type {kind.name} has shape "
                f"{list(shape)}; rows must be multiples of {block}"
            )
        return name, shape, kind, self._scalar("Q")


def _stored_bytes(info: _TensorInfo) -> int:
    block, size = gguf.GGML_QUANT_SIZES[info.type]
    return math.prod(info.shape) // block * size


def _opened(path: Path) -> _Header:
    try:
        with path.open("rb") as handle:
            data = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:  # ValueError: an empty file cannot be mapped
        raise InputError(f"cannot read {path}: {error}") from None
    return _Header(data, path)


def gguf_tensors(path: Path) -> dict[str, GgufTensor]:
    """All tensors of a GGUF file as they are stored, whatever its model.

    Raises:
        InputError: The file cannot be read, or is truncated or corrupt.
    """
    header = _opened(path)
    return {
        name: GgufTensor(info.type.name, info.shape, header.rows(info))
        for name, info in header.tensors.items()
    }


def load_gguf(
    path: Path, name: str, source: str, progress: Progress | None = None
) -> LanguageModel:
    """The model in a GGUF file, dequantised to float32.

    Raises:
        InputError: The file is truncated or corrupt, its architecture or a feature of it is not
            supported, a tensor is missing, or a weight is NaN or infinite.
    """
    header = _opened(path)
    config = _config(header, path)
    permuted = _ARCHITECTURES[header.fields["general.architecture"]]
    shapes = config.weight_shapes()
    names = {ours: _gguf_name(ours) for ours in shapes}
    _refuse_others(header, set(names.values()), path)
    weights: dict[str, torch.Tensor] = {}
    for ours, shape in shapes.items():
        weight = checked(header.dequantised(names[ours]), names[ours], shape, path)
        if permuted and ours.removesuffix(".bias").endswith((".attn.q", ".attn.k")):
            weight = _halves_from_pairs(weight, config.head_dim)
        weights[ours] = weight
        if progress:
            progress(len(weights), len(shapes), f"load {name}")
    tokenizer = _tokenizer(header, path)
    if tokenizer.vocab_size > config.vocab:
        raise InputError(
            f"{path}: {tokenizer.vocab_size} tokens but {config.vocab} rows of embedding"
        )
    return LanguageModel(name, config, weights, tokenizer, source)


def _config(header: _Header, file: Path) -> LlamaConfig:
    fields = header.fields
    architecture = fields.get("general.architecture")
    if architecture not in _ARCHITECTURES:
        raise InputError(
            f"{file}: architecture {architecture!r} is not Llama-like; "
            f"can be one of {', '.join(_ARCHITECTURES)}"
        )

    def get(key: str, kind: type, default: Any = None) -> Any:
        key = f"{architecture}.{key}"
        value = fields.get(key, default)
        if value is None:
            raise InputError(f"{file}: metadata {key} is missing")
        if kind is float and isinstance(value, int):
            value = float(value)
        if type(value) is not kind:
            raise InputError(
                f"{file}: metadata {key} is {value!r}, must be of type {kind.__name__}"
            )
        return value

    embedding = header.tensors.get("token_embd.weight")
    if embedding is None or len(embedding.shape) != 2:
        raise InputError(f"{file}: tensor token_embd.weight is missing or not a matrix")
    for key in _UNSUPPORTED:
        if fields.get(f"{architecture}.{key}"):
            raise InputError(
                f"{file}: metadata {architecture}.{key} is set; models with it are not supported"
            )
    heads, hidden = get("attention.head_count", int), get("embedding_length", int)
    if heads < 1:
        raise InputError(f"{file}: metadata {architecture}.attention.head_count is {heads}")
    head_dim = get("attention.key_length", int, hidden // heads)
    for key in ("attention.value_length", "rope.dimension_count"):
        if (other := get(key, int, head_dim)) != head_dim:
            raise InputError(
                f"{file}: metadata {architecture}.{key} is {other}, only the head size "
                f"{head_dim} is supported"
            )
    biased = tuple(
        letter
        for letter, theirs in (("q", "q"), ("k", "k"), ("v", "v"), ("o", "output"))
        if f"blk.0.attn_{theirs}.bias" in header.tensors
    )
    context = get("context_length", int)
    layers = get("block_count", int)
    if layers > len(header.tensors):
        raise InputError(
            f"{file}: metadata {architecture}.block_count is {layers}, more than its "
            f"{len(header.tensors)} tensors make"
        )
    return config_of(
        file,
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=get("attention.head_count_kv", int, heads),
        head_dim=head_dim,
        ffn=get("feed_forward_length", int),
        vocab=embedding.shape[0],
        rope_base=get("rope.freq_base", float, 10_000.0),
        norm_eps=get("attention.layer_norm_rms_epsilon", float),
        tied_embeddings="output.weight" not in header.tensors,
        context=min(context, get("attention.sliding_window", int, 0) or context),
        rope_divisors=_rope_divisors(header, get, head_dim, file),
        biased=biased,
    )


def _rope_divisors(header: _Header, get: Any, head_dim: int, file: Path) -> tuple[float, ...]:
    """Llama 3's factors come as a tensor, linear scaling as one number."""
    scaling = get("rope.scaling.type", str, "none")
    if "rope_freqs.weight" in header.tensors and scaling == "none":
        name = "rope_freqs.weight"
        return tuple(checked(header.dequantised(name), name, (head_dim // 2,), file).tolist())
    if scaling == "none":
        return ()
    if scaling == "linear" and "rope_freqs.weight" not in header.tensors:
        return (get("rope.scaling.factor", float),) * (head_dim // 2)
    raise InputError(
        f"{file}: rope scaling {scaling!r} is not supported; none, linear and llama3 are"
    )


def _gguf_name(ours: str) -> str:
    if ours in ("embed", "final_norm", "head"):
        return {"embed": "token_embd", "final_norm": "output_norm", "head": "output"}[
            ours
        ] + ".weight"
    _, layer, part = ours.split(".", 2)
    suffix = "bias" if part.endswith(".bias") else "weight"
    return f"blk.{layer}.{_LINEARS[part.removesuffix('.bias')]}.{suffix}"


def _refuse_others(header: _Header, known: set[str], file: Path) -> None:
    """A tensor that the forward pass would not use means another model."""
    missing = sorted(known - header.tensors.keys())
    if missing:
        raise InputError(
            f"{file}: tensor {missing[0]} is missing"
            + (f", and {len(missing) - 1} more" if len(missing) > 1 else "")
        )
    extra = sorted(header.tensors.keys() - known - {"rope_freqs.weight"})
    if extra:
        raise InputError(
            f"{file}: tensor {extra[0]} has no place in a Llama model; its architecture "
            "is not supported"
        )


def _halves_from_pairs(weight: torch.Tensor, head_dim: int) -> torch.Tensor:
    """Undo the converter's row order (0, h, 1, h+1, ...) in each head of 2h rows."""
    by_pair = weight.unflatten(0, (-1, head_dim // 2, 2))  # (heads, pair, half, ...)
    return by_pair.transpose(1, 2).flatten(0, 2).contiguous()


def _tokenizer(header: _Header, file: Path) -> Any:
    fields = header.fields
    kind = fields.get("tokenizer.ggml.model")
    if kind != "gpt2":
        raise InputError(
            f"{file}: tokenizer {kind!r} is not supported, only 'gpt2' (byte-level BPE) is; "
            "load the Hugging Face folder instead"
        )
    lists = []
    for key, element in (("tokens", str), ("merges", str), ("token_type", int)):
        values = fields.get(f"tokenizer.ggml.{key}")
        if not isinstance(values, list) or not all(isinstance(v, element) for v in values):
            raise InputError(f"{file}: metadata tokenizer.ggml.{key} is missing or not a list")
        lists.append(values)
    tokens, merges, token_types = lists
    if len(set(tokens)) != len(tokens) or len(token_types) != len(tokens):
        raise InputError(
            f"{file} is corrupt: tokens repeat, or {len(tokens)} tokens have "
            f"{len(token_types)} types"
        )
    return byte_level_bpe(
        tokens, merges, token_types, fields.get("tokenizer.ggml.pre", "gpt-2"), file
    )
