"""Llama-family models in Hugging Face folders: config.json, *.safetensors, tokenizer.json.

A model can be loaded whole, or its weights read when they are asked for, of which one block's stay
in memory. Reading then goes through ordinary reads: a private memory map, which `safe_open` makes
for torch, may not be larger than the machine's memory, and what it has read counts as the process's
own memory for as long as the file is open.
"""

import json
import math
import os
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from bitwright.quant import InputError, Progress

from .checks import check_shape, checked, config_of
from .config import LlamaConfig
from .llama import LanguageModel
from .tokenizer import from_tokenizer_json

# model_type -> attention linears that have a bias unless `attention_bias` says otherwise.
_MODEL_TYPES: dict[str, tuple[str, ...]] = {
    "llama": (),
    "mistral": (),
    "qwen2": ("q", "k", "v"),
}
_LINEARS = {
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
#: As safetensors calls the types that weights may have.
_FLOATS = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
}
#: Checkpoints that run code when they are read.
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")


def load_folder(
    folder: Path, name: str, source: str, progress: Progress | None = None, *, stream: bool = False
) -> LanguageModel:
    """The model in a Hugging Face folder, in float32.

    Args:
        folder: Which.
        name: What to call the model.
        source: Where it comes from, in words.
        progress: Called per tensor.
        stream: Read a tensor when it is asked for, and keep the embedding, the last norm, the
            output layer and one block. What files and their headers tell is checked now, whether
            weights are finite when they are read.

    Raises:
        InputError: A file is missing, truncated or corrupt, the architecture or a feature of it is
            not supported, the weights are only there as pickles, or one is NaN or infinite.
    """
    config = _config(folder / "config.json")
    tensors = _Tensors(folder, stream)
    if config.layers > len(tensors.files):
        raise InputError(
            f"{folder / 'config.json'}: {config.layers} layers, but the folder holds only "
            f"{len(tensors.files)} tensors"
        )
    shapes = config.weight_shapes()
    names = {ours: _their_name(ours) for ours in shapes}
    tensors.refuse_others(set(names.values()), config)
    for ours, shape in shapes.items():
        tensors.check(names[ours], shape)
    weights: Mapping[str, torch.Tensor]
    if stream:
        weights = _Streamed({ours: tensors.place(key) for ours, key in names.items()})
    else:
        weights = {}
        for ours, shape in shapes.items():
            weights[ours] = tensors.read(names[ours], shape)
            if progress:
                progress(len(weights), len(shapes), f"load {name}")
    tokenizer = from_tokenizer_json(folder / "tokenizer.json")
    if tokenizer.vocab_size > config.vocab:
        raise InputError(
            f"{folder / 'tokenizer.json'} has {tokenizer.vocab_size} tokens, "
            f"the embedding {config.vocab} rows"
        )
    return LanguageModel(name, config, weights, tokenizer, source, streamed=stream)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file."""
    try:
        document = json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    except ValueError as error:  # not JSON, or not UTF-8
        raise InputError(f"{path} is not JSON: {error}") from None
    if not isinstance(document, dict):
        raise InputError(f"{path} holds a {type(document).__name__}, must hold an object")
    return document


class _Tensors:
    """The tensors of all the folder's safetensors files, read one by one."""

    def __init__(self, folder: Path, stream: bool) -> None:
        # Read-only for numpy; for torch the map is private, see the module's docstring.
        framework = "np" if stream else "pt"
        self._places: dict[Path, dict[str, _Place]] = {}
        index = folder / "model.safetensors.index.json"
        if index.is_file():
            weight_map = read_json(index).get("weight_map")
            if not isinstance(weight_map, dict) or not weight_map:
                raise InputError(f"{index} has no weight_map")
            self.files = {
                str(key): folder / Path(str(file)).name for key, file in weight_map.items()
            }
            self._open = {
                file: _opened(file, framework) for file in sorted(set(self.files.values()))
            }
            for key, file in self.files.items():
                if key not in self._open[file].keys():
                    raise InputError(f"{file}: tensor {key} is missing, which {index.name} lists")
            return
        found = sorted(folder.glob("*.safetensors"))
        if not found:
            pickles = sorted(p.name for p in folder.iterdir() if p.suffix in PICKLES)
            if pickles:
                raise InputError(
                    f"{folder} holds weights only as {pickles[0]}: pickle checkpoints can run any "
                    "code and are never loaded; convert them to safetensors"
                )
            raise InputError(f"{folder} holds no *.safetensors file")
        self._open = {file: _opened(file, framework) for file in found}
        self.files = {key: file for file, opened in self._open.items() for key in opened.keys()}

    def refuse_others(self, known: set[str], config: LlamaConfig) -> None:
        """A tensor that the forward pass would not use means another model."""
        missing = sorted(known - self.files.keys())
        if missing:
            raise InputError(
                f"{next(iter(self._open)).parent}: tensor {missing[0]} is missing"
                + (f", and {len(missing) - 1} more" if len(missing) > 1 else "")
            )
        for key in sorted(self.files.keys() - known):
            # A copy of the embedding, and a table that follows from the config, change nothing.
            if key == "lm_head.weight" and config.tied_embeddings:
                continue
            if key.endswith(".rotary_emb.inv_freq"):
                continue
            raise InputError(
                f"{self.files[key]}: tensor {key} has no place in a Llama model; its "
                "architecture is not supported"
            )

    def check(self, key: str, shape: tuple[int, ...]) -> None:
        """Refuse another type or shape; reads the header alone."""
        file = self.files[key]
        stored = self._open[file].get_slice(key)
        if stored.get_dtype() not in _FLOATS:
            raise InputError(
                f"{file}: tensor {key} is stored as {stored.get_dtype()}; weights must be "
                f"{', '.join(_FLOATS)}"
            )
        check_shape(tuple(stored.get_shape()), key, shape, file)

    def read(self, key: str, shape: tuple[int, ...]) -> torch.Tensor:
        file = self.files[key]
        try:
            tensor = self._open[file].get_tensor(key)
        except SafetensorError as error:
            raise InputError(f"{file} is corrupt at tensor {key}: {error}") from None
        return checked(tensor.to(torch.float32), key, shape, file)

    def place(self, key: str) -> "_Place":
        """Where a tensor lies."""
        file = self.files[key]
        if file not in self._places:
            self._places[file] = _places(file)
        return self._places[file][key]


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a tensor lies, and what it is."""

    file: Path
    key: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    start: int  #: first byte in the file
    stamp: tuple[int, int]  #: size and time of the last change of the file when it was opened

    def read(self) -> torch.Tensor:
        """The tensor in float32; InputError if it is not finite or the file has changed."""
        tensor = torch.empty(self.shape, dtype=self.dtype)
        try:
            with self.file.open("rb") as file:
                if _stamp(os.fstat(file.fileno())) != self.stamp:
                    raise InputError(
                        f"{self.file} has changed since the model was loaded; load it again"
                    )
                file.seek(self.start)
                # Raw bytes: numpy has no bfloat16.
                done = file.readinto(tensor.view(-1).view(torch.uint8).numpy().data)
        except OSError as error:
            raise InputError(f"cannot read {self.file}: {error.strerror}") from None
        if done != tensor.nbytes:
            raise InputError(f"{self.file} is truncated at tensor {self.key}")
        return checked(tensor.to(torch.float32), self.key, self.shape, self.file)


def _places(file: Path) -> dict[str, _Place]:
    """All float tensors of a file that `safe_open` has found to be whole."""
    with file.open("rb") as opened:
        stamp = _stamp(os.fstat(opened.fileno()))
        (length,) = struct.unpack("<Q", opened.read(8))
        header = json.loads(opened.read(length))
    return {
        key: _Place(
            file,
            key,
            tuple(entry["shape"]),
            _FLOATS[entry["dtype"]],
            8 + length + entry["data_offsets"][0],
            stamp,
        )
        for key, entry in header.items()
        if key != "__metadata__" and entry["dtype"] in _FLOATS
    }


def _stamp(status: os.stat_result) -> tuple[int, int]:
    return status.st_size, status.st_mtime_ns


class _Streamed(Mapping[str, torch.Tensor]):
    """Weights that are read when they are asked for; of blocks the one used last stays."""

    def __init__(self, places: Mapping[str, _Place]) -> None:
        self._places = places
        self._ends: dict[str, torch.Tensor] = {}
        self._block: dict[str, torch.Tensor] = {}
        self._layer = ""

    def __getitem__(self, name: str) -> torch.Tensor:
        kept = self._ends
        if name.startswith("blocks."):
            layer = name.split(".", 2)[1]
            if layer != self._layer:
                self._layer, self._block = layer, {}
            kept = self._block
        if name not in kept:
            kept[name] = self._places[name].read()
        return kept[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._places)

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, name: object) -> bool:
        return name in self._places  # Mapping's own would read it


def _opened(file: Path, framework: str) -> Any:
    try:
        return safe_open(file, framework=framework)
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"{file} is missing, truncated or not a safetensors file: {error}"
        ) from None


def _their_name(ours: str) -> str:
    if ours in ("embed", "final_norm", "head"):
        theirs = {"embed": "model.embed_tokens", "final_norm": "model.norm", "head": "lm_head"}
        return theirs[ours] + ".weight"
    _, layer, part = ours.split(".", 2)
    suffix = "bias" if part.endswith(".bias") else "weight"
    return f"model.layers.{layer}.{_LINEARS[part.removesuffix('.bias')]}.{suffix}"


def _config(file: Path) -> LlamaConfig:
    document = read_json(file)
    model_type = document.get("model_type")
    if model_type not in _MODEL_TYPES:
        raise InputError(
            f"{file}: model_type {model_type!r} is not Llama-like; "
            f"can be one of {', '.join(_MODEL_TYPES)}"
        )

    def get(key: str, kind: type, default: Any = None) -> Any:
        value = document.get(key)
        if value is None:
            value = default
        if value is None:
            raise InputError(f"{file}: {key} is missing")
        if kind is float and isinstance(value, int):
            value = float(value)
        if type(value) is not kind:
            raise InputError(f"{file}: {key} is {value!r}, must be of type {kind.__name__}")
        return value

    for key, plain in (
        ("hidden_act", "silu"),
        ("mlp_bias", False),
        ("use_sliding_window", False),
        ("partial_rotary_factor", 1.0),
        ("quantization_config", None),
    ):
        if document.get(key, plain) not in (plain, None):
            raise InputError(
                f"{file}: {key} is {document[key]!r}; only models with {plain!r} are supported"
            )
    biased = _MODEL_TYPES[model_type]
    if get("attention_bias", bool, False):
        biased = ("q", "k", "v", "o")
    heads, hidden = get("num_attention_heads", int), get("hidden_size", int)
    if heads < 1:
        raise InputError(f"{file}: num_attention_heads is {heads}, must be positive")
    head_dim = get("head_dim", int, hidden // heads)
    context = get("max_position_embeddings", int)
    if model_type == "mistral":
        # Within the sliding window, attention is the ordinary causal one.
        context = min(context, get("sliding_window", int, context))
    base, divisors = _rotary(document, get, head_dim, file)
    return config_of(
        file,
        layers=get("num_hidden_layers", int),
        hidden=hidden,
        heads=heads,
        kv_heads=get("num_key_value_heads", int, heads),
        head_dim=head_dim,
        ffn=get("intermediate_size", int),
        vocab=get("vocab_size", int),
        rope_base=base,
        norm_eps=get("rms_norm_eps", float),
        tied_embeddings=get("tie_word_embeddings", bool, False),
        context=context,
        rope_divisors=divisors,
        biased=biased,
    )


def _rotary(
    document: dict[str, Any], get: Any, head_dim: int, file: Path
) -> tuple[float, tuple[float, ...]]:
    """Base and frequency divisors; newer configs keep both under `rope_parameters`."""
    scaling = document.get("rope_parameters") or document.get("rope_scaling") or {}
    if not isinstance(scaling, dict) or any(isinstance(v, dict) for v in scaling.values()):
        raise InputError(
            f"{file}: rotary scaling is {scaling!r}, must be one object for all layers"
        )
    base = scaling.get("rope_theta", document.get("rope_theta", 10_000.0))
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    needs = {
        "default": (),
        "linear": ("factor",),
        "llama3": (
            "factor",
            "low_freq_factor",
            "high_freq_factor",
            "original_max_position_embeddings",
        ),
    }
    if kind not in needs:
        raise InputError(
            f"{file}: rope scaling {kind!r} is not supported; can be one of {', '.join(needs)}"
        )
    numbers = [base] + [scaling.get(key) for key in needs[kind]]
    for key, number in zip(("rope_theta", *needs[kind]), numbers, strict=True):
        plain = isinstance(number, int | float) and not isinstance(number, bool)
        if not plain or not 0 < number < math.inf:
            raise InputError(f"{file}: {key} is {number!r}, must be a positive number")
    if kind == "linear":
        return float(base), (float(numbers[1]),) * (head_dim // 2)
    if kind == "llama3":
        if numbers[2] >= numbers[3]:
            raise InputError(
                f"{file}: low_freq_factor {numbers[2]} must be less than "
                f"high_freq_factor {numbers[3]}"
            )
        return float(base), llama3_divisors(float(base), head_dim, *map(float, numbers[1:]))
    return float(base), ()


def llama3_divisors(
    base: float, head_dim: int, factor: float, low: float, high: float, original_context: float
) -> tuple[float, ...]:
    """What Llama 3.1 divides each rotary frequency by.

    Wavelengths below original_context / high stay, those above original_context / low are
    divided by `factor`, and between the two the frequency is interpolated.
    """
    divisors = []
    for pair in range(head_dim // 2):
        wavelength = 2 * math.pi * base ** (2 * pair / head_dim)
        if wavelength < original_context / high:
            divisors.append(1.0)
        elif wavelength > original_context / low:
            divisors.append(factor)
        else:
            smooth = (original_context / wavelength - low) / (high - low)
            divisors.append(1 / ((1 - smooth) / factor + smooth))
    return tuple(divisors)
