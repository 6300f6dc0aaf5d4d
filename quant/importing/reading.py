"""One front door to files of other tools."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from bitwright.quant import InputError, QuantizedTensor

from .awq import from_awq
from .gguf import BLOCKS, from_gguf_blocks
from .gptq import BITS, VERSIONS, from_gptq
from .offset import OffsetTensor
from .permuted import PermutedTensor

ImportedTensor = QuantizedTensor | OffsetTensor | PermutedTensor

#: Where a checkpoint says how it was quantised, the first that is there first.
_CONFIGS = ("quantize_config.json", "quant_config.json", "config.json")
_METHODS = ("gptq", "awq")
_DTYPES = {"I32": np.int32, "F16": np.float16}
#: GGUF's types that are not quantised.
_PLAIN = ("F16", "F32", "F64", "BF16", "I8", "I16", "I32", "I64")


def import_tensors(
    path: str | Path, names: Iterable[str] | None = None
) -> dict[str, ImportedTensor]:
    """The quantised tensors in another tool's file, exactly, under their names there.

    Args:
        path: A .gguf file; or a GPTQ or AWQ checkpoint: a folder of .safetensors, or one such file,
            with quantize_config.json, quant_config.json or a config.json with quantization_config
            beside it.
        names: Only these, e.g. where a file also has types that cannot be imported; None: all that
            are quantised. A layer's name is what stands before ".qweight".

    Returns:
        By name: a `QuantizedTensor`; for GGUF's Q4_1 an `OffsetTensor`; for a GPTQ layer whose
        columns are not in groups one after the other a `PermutedTensor`. Float tensors are left
        out.

    Raises:
        InputError: There is no such file, it is damaged, a pickle, or of a method, type or shape
            that has no format here, or it has no tensor of a name.
    """
    path = Path(path)
    wanted = None if names is None else set(names)
    if path.suffix.lower() == ".gguf":
        found = _from_gguf(path, wanted)
    elif path.is_dir() or path.suffix.lower() == ".safetensors":
        found = _from_checkpoint(path, wanted)
    else:
        raise InputError(
            f"cannot import {path}: give a .gguf file, a .safetensors file or a folder of them; "
            "pickles are never opened"
        )
    if wanted is not None and (missing := sorted(wanted - found.keys())):
        raise InputError(f"{path} has no quantised tensor {missing[0]}; leave names out to see all")
    if not found:
        raise InputError(f"{path} holds no quantised tensors; quantise its model here instead")
    return found


def _from_gguf(path: Path, wanted: set[str] | None) -> dict[str, ImportedTensor]:
    from bitwright.quant import gguf_tensors  # which brings the models, and torch with them

    found: dict[str, ImportedTensor] = {}
    for name, tensor in gguf_tensors(path).items():
        if tensor.type in _PLAIN or (wanted is not None and name not in wanted):
            continue
        if tensor.type not in BLOCKS:
            raise InputError(
                f"{path}: tensor {name} has type {tensor.type}; types that can be imported are "
                f"{', '.join(BLOCKS)}; leave it out with names"
            )
        if tensor.blocks.ndim != 2:
            raise InputError(
                f"{path}: tensor {name} has shape {list(tensor.shape)}, must be a matrix; leave it "
                "out with names"
            )
        found[name] = from_gguf_blocks(tensor.blocks, tensor.type, f"{path}: tensor {name}")
    return found


def _from_checkpoint(path: Path, wanted: set[str] | None) -> dict[str, ImportedTensor]:
    folder = path if path.is_dir() else path.parent
    files = sorted(folder.glob("*.safetensors")) if path.is_dir() else [path]
    if not files:
        raise InputError(f"{path} holds no .safetensors file; pickles are never opened")
    config, source = _config(folder)
    method = str(config.get("quant_method", "awq" if "w_bit" in config else "gptq")).lower()
    if method not in _METHODS:
        raise InputError(
            f"{source}: quant_method {method!r} cannot be imported; {' and '.join(_METHODS)} can"
        )
    entries = _Entries(files)
    suffix = ".qweight"
    layers = [key.removesuffix(suffix) for key in entries.where if key.endswith(suffix)]
    read = _gptq_layer if method == "gptq" else _awq_layer
    return {
        layer: read(entries, layer, config, source)
        for layer in layers
        if wanted is None or layer in wanted
    }


def _gptq_layer(
    entries: "_Entries", layer: str, config: dict[str, Any], source: Path
) -> QuantizedTensor | PermutedTensor:
    version = str(config.get("checkpoint_format", config.get("format", "gptq"))).lower()
    if version not in VERSIONS:
        raise InputError(
            f"{source}: checkpoint_format {version!r} cannot be imported; {' and '.join(VERSIONS)} "
            "can"
        )
    bits = _integer(config, source, "bits")
    if bits not in BITS:
        raise InputError(f"{source}: bits {bits} is not one of {', '.join(map(str, BITS))}")
    g_idx = entries.get(f"{layer}.g_idx")
    if g_idx is None and config.get("desc_act") is not False:
        raise InputError(
            f"{entries.where[f'{layer}.qweight']}: {layer}.g_idx is missing, though {source} does "
            "not say desc_act false; its columns may have any order, fetch the whole checkpoint"
        )
    meta = config.get("meta")
    writers = meta.get("quantizer", ()) if isinstance(meta, dict) else ()
    writers = [writers] if isinstance(writers, str) else writers
    return from_gptq(
        entries[f"{layer}.qweight"],
        entries[f"{layer}.qzeros"],
        entries[f"{layer}.scales"],
        g_idx,
        bits=bits,
        group_size=_integer(config, source, "group_size"),
        version=version,  # type: ignore[arg-type]  # checked above
        carry=any(str(writer).lower().startswith("gptqmodel") for writer in writers),
        name=f"{entries.where[f'{layer}.qweight']}: {layer}",
    )


def _awq_layer(
    entries: "_Entries", layer: str, config: dict[str, Any], source: Path
) -> QuantizedTensor:
    version = str(config.get("version", "gemm")).lower()
    if version != "gemm":
        raise InputError(f"{source}: version {version!r} cannot be imported; 'gemm' can")
    bits = _integer(config, source, "bits", "w_bit")
    if bits != 4:
        raise InputError(f"{source}: bits {bits} must be 4, the only width of AWQ's GEMM layout")
    return from_awq(
        entries[f"{layer}.qweight"],
        entries[f"{layer}.qzeros"],
        entries[f"{layer}.scales"],
        group_size=_integer(config, source, "group_size", "q_group_size"),
        name=f"{entries.where[f'{layer}.qweight']}: {layer}",
    )


def _integer(config: dict[str, Any], source: Path, *keys: str) -> int:
    for key in keys:
        if key in config:
            value = config[key]
            if type(value) is not int:
                raise InputError(f"{source}: {key} is {value!r}, must be an integer")
            return value
    raise InputError(f"{source}: {keys[0]} is missing; add what the layers were quantised with")


def _config(folder: Path) -> tuple[dict[str, Any], Path]:
    """How the checkpoint was quantised, and the file that says so."""
    for name in _CONFIGS:
        file = folder / name
        if not file.is_file():
            continue
        try:
            document = json.loads(file.read_bytes())
        except (OSError, ValueError) as error:
            raise InputError(f"cannot read {file} as JSON: {error}") from None
        if name == "config.json" and isinstance(document, dict):
            document = document.get("quantization_config")
            if document is None:
                continue
        if not isinstance(document, dict):
            raise InputError(f"{file} holds no object that says how the model was quantised")
        return document, file
    raise InputError(
        f"{folder} does not say how it was quantised; quantize_config.json, quant_config.json or a "
        "config.json with quantization_config must lie beside the tensors"
    )


class _Entries:
    """Arrays of several safetensors files by name, read when they are asked for."""

    def __init__(self, files: list[Path]) -> None:
        from safetensors import SafetensorError, safe_open

        self.where: dict[str, Path] = {}  #: file of each entry
        self._opened: dict[Path, Any] = {}
        for file in files:
            try:
                opened = safe_open(file, framework="np")
            except (SafetensorError, OSError) as error:
                raise InputError(
                    f"{file} is missing, truncated or not a safetensors file: {error}"
                ) from None
            self._opened[file] = opened
            for key in opened.keys():
                if key in self.where:
                    raise InputError(
                        f"{file}: {key} is also in {self.where[key]}; name one of the files"
                    )
                self.where[key] = file

    def get(self, key: str) -> np.ndarray | None:
        """The array, or None if there is none."""
        return self[key] if key in self.where else None

    def __getitem__(self, key: str) -> np.ndarray:
        if key not in self.where:
            raise InputError(
                f"{min(self._opened)}: {key} is missing; fetch the whole checkpoint again"
            )
        file = self.where[key]
        dtype = self._opened[file].get_slice(key).get_dtype()
        if dtype not in _DTYPES:  # numpy has no type for some of the others
            raise InputError(
                f"{file}: {key} is {dtype}, must be {' or '.join(_DTYPES)}; save the checkpoint in "
                "float16 with int32 words"
            )
        array: np.ndarray = self._opened[file].get_tensor(key)
        return array
