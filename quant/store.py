"""Quantised tensors in a safetensors file, packed to their true bits.

Layout, version 1. For a tensor called NAME the file holds, as far as its format has them:

| entry | type | content |
| --- | --- | --- |
| NAME.codes | U8 [bytes] | n*k codes, `bits` bits each, row after row, packed |
| NAME.group_scales | F16 or U8 [n, groups] | FP16, INT8, E8M0 or E4M3 group scales |
| NAME.channel_scales | F32 [n] | with INT8 group scales |
| NAME.zero_points | U8 [bytes] | n*groups zero points, `bits` bits each, packed |
| NAME.selectors | U8 [bytes] | n*groups selectors, 1 or 2 bits each, packed |
| NAME.tensor_scale | F32 [1] | with E4M3 group scales |

A matrix in a method's own form (`compressed.py`) has that method's entries, which its file in
`algorithms/` describes. A float array called NAME, kept beside the tensors, is the entry NAME.float
(F32).

Packed fields form one stream of bits, least significant first: item i of width b takes the bits
i*b .. i*b + b - 1 of the stream, and bit p of the stream is bit p % 8 (of value 2**(p % 8)) of byte
p // 8. Unused bits of the last byte are 0. Rows and groups are not padded, so a file holds the
tensor's true bits, rounded up to whole bytes once per packed entry.

The header's metadata carries the caller's strings and, under "bitwright.", the layout version, the
formats (with their level tables: a file explains itself), the shape of each tensor, and a SHA-256
over all of these and the data, so that damage is found.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import UInt8

from .algorithms import matrix_class
from .compressed import CompressedMatrix
from .errors import InputError
from .files import atomic_path
from .formats import Format
from .tensor import STORED, QuantizedTensor


class StoredFile(NamedTuple):
    """What a file holds."""

    tensors: dict[str, QuantizedTensor | CompressedMatrix]
    floats: dict[str, np.ndarray]
    metadata: dict[str, str]


_LAYOUT = "1"
_PREFIX = "bitwright."
_PICKLES = (".pt", ".pth", ".bin", ".pkl", ".pickle", ".ckpt")
#: First bytes of a zip archive (torch.save) and of pickle protocols 2 to 5.
_PICKLE_STARTS = (b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05")
#: Fields of a format that its row in the file always has.
_FIELDS = ("name", "bits", "kind", "levels", "special_values", "source", "scale_format")
#: numpy's types as safetensors calls them.
_TYPES = {"|u1": "U8", "<f2": "F16", "<f4": "F32"}
#: Items packed at a time; a multiple of 8, so that blocks meet at byte boundaries.
_BLOCK = 1 << 20


def pack_bits(items: UInt8[np.ndarray, "..."], bits: int) -> UInt8[np.ndarray, " bytes"]:
    """Pack each item's low `bits` bits, least significant first; ceil(items * bits / 8) bytes.

    >>> pack_bits(np.array([1, 2, 7], np.uint8), 3)  # 0b11_010_001, then 0b1
    array([209,   1], dtype=uint8)
    """
    flat = items.reshape(-1)
    blocks = [
        np.packbits(
            np.unpackbits(flat[start : start + _BLOCK, None], axis=1, bitorder="little")[:, :bits],
            bitorder="little",
        )
        for start in range(0, len(flat), _BLOCK)
    ]
    return np.concatenate(blocks) if blocks else np.empty(0, np.uint8)


def unpack_bits(
    packed: UInt8[np.ndarray, " bytes"], bits: int, count: int
) -> UInt8[np.ndarray, " count"]:
    """The `count` items that `pack_bits` packed.

    Raises:
        InputError: `packed` has another length than `count` items take, or its unused bits are
            not 0.

    >>> unpack_bits(np.array([209, 1], np.uint8), 3, 3)
    array([1, 2, 7], dtype=uint8)
    """
    size = -(-count * bits // 8)
    if packed.shape != (size,):
        raise InputError(f"{count} items of {bits} bits take {size} bytes, not {packed.shape}")
    unused = 8 * size - count * bits
    if unused and packed[-1] >> (8 - unused):
        raise InputError("unused bits of the last byte are not 0")
    items = np.empty(count, np.uint8)
    for start in range(0, count, _BLOCK):
        part = items[start : start + _BLOCK]
        stream = packed[start * bits // 8 : -(-(start + len(part)) * bits // 8)]
        digits = np.unpackbits(stream, count=len(part) * bits, bitorder="little")
        part[:] = np.packbits(digits.reshape(-1, bits), axis=1, bitorder="little")[:, 0]
    return items


def save_tensors(
    path: str | Path,
    tensors: Mapping[str, QuantizedTensor | CompressedMatrix],
    metadata: Mapping[str, str],
    floats: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Write tensors and metadata to one safetensors file, whole or not at all.

    Args:
        path: The file; its name should end in ".safetensors".
        tensors: By layer name.
        metadata: Strings to keep with them, e.g. recipe and version; keys must not begin with
            "bitwright.".
        floats: Float32 arrays to keep beside them, e.g. norms that took a scale in.

    The same content gives the same bytes.

    Raises:
        InputError: The file cannot be written, or a metadata key is reserved.
    """
    for key, value in metadata.items():
        if key.startswith(_PREFIX) or not isinstance(value, str):
            raise InputError(
                f"metadata {key!r}={value!r}: values must be strings, keys not begin with {_PREFIX}"
            )
    formats: dict[str, Format] = {}
    index: dict[str, Any] = {}
    arrays: dict[str, np.ndarray] = {}
    for name, tensor in tensors.items():
        if isinstance(tensor, CompressedMatrix):
            own = tensor.entries()
            index[name] = {
                "method": tensor.method,
                "settings": tensor.settings(),
                "entries": list(own),
            }
            arrays |= {f"{name}.{entry}": array for entry, array in own.items()}
            continue
        if formats.setdefault(tensor.format.name, tensor.format) != tensor.format:
            raise InputError(f"tensors use different formats of the name {tensor.format.name!r}")
        index[name] = {
            "format": tensor.format.name,
            "n": tensor.n,
            "k": tensor.k,
            "group_size": tensor.group_size,
            "scale_format": tensor.scale_format,
        }
        arrays |= {f"{name}.{entry}": array for entry, array in _entries(tensor).items()}
    for name, array in (floats or {}).items():
        arrays[f"{name}.float"] = np.ascontiguousarray(array, np.float32)
    header = {
        **metadata,
        f"{_PREFIX}layout": _LAYOUT,
        f"{_PREFIX}formats": json.dumps({name: _row(row) for name, row in formats.items()}),
        f"{_PREFIX}tensors": json.dumps(index),
    }
    header[f"{_PREFIX}sha256"] = _digest(header, arrays)
    with atomic_path(path) as temporary:
        try:
            _write(temporary, header, arrays)
        except OSError as error:
            raise InputError(f"cannot write {path}: {error.strerror}") from None


def _write(path: Path, header: Mapping[str, str], arrays: Mapping[str, np.ndarray]) -> None:
    """A safetensors file; the library's own writer shuffles the metadata."""
    # Widest items first, as the library has it, so that each array is aligned.
    names = sorted(arrays, key=lambda name: (-arrays[name].itemsize, name))
    document: dict[str, Any] = {"__metadata__": dict(header)}
    end = 0
    for name in names:
        array = arrays[name]
        start, end = end, end + array.nbytes
        document[name] = {
            "dtype": _TYPES[array.dtype.str],
            "shape": array.shape,
            "data_offsets": (start, end),
        }
    text = json.dumps(document, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            file.write(arrays[name].data)


def _row(format: Format) -> dict[str, Any]:
    """A format's fields; those that came later only where they say something."""
    return {
        field.name: getattr(format, field.name)
        for field in fields(format)
        if field.name in _FIELDS or getattr(format, field.name) != field.default
    }


def _entries(tensor: QuantizedTensor) -> dict[str, np.ndarray]:
    """What one tensor stores, packed."""
    format = tensor.format
    entries = {
        "codes": pack_bits(tensor.codes, format.bits),
        "group_scales": np.ascontiguousarray(tensor.group_scales),
    }
    if tensor.channel_scales is not None:
        entries["channel_scales"] = np.ascontiguousarray(tensor.channel_scales)
    if tensor.zero_points is not None:
        entries["zero_points"] = pack_bits(tensor.zero_points, format.zero_point_bits)
    if tensor.selectors is not None:
        entries["selectors"] = pack_bits(tensor.selectors, format.selector_bits)
    if tensor.tensor_scale is not None:
        entries["tensor_scale"] = np.ascontiguousarray(tensor.tensor_scale)
    return entries


def _digest(header: Mapping[str, str], arrays: Mapping[str, np.ndarray]) -> str:
    """SHA-256 over the metadata (but the digest itself), and each array's name, type and bytes."""
    sha = hashlib.sha256()
    kept = {key: value for key, value in header.items() if key != f"{_PREFIX}sha256"}
    sha.update(json.dumps(kept, sort_keys=True).encode())
    for name in sorted(arrays):
        array = arrays[name]
        sha.update(f"{name} {array.dtype.str} {array.shape}".encode())
        sha.update(array.data)
    return sha.hexdigest()


def load_tensors(
    path: str | Path,
) -> tuple[dict[str, QuantizedTensor | CompressedMatrix], dict[str, str]]:
    """Read what `save_tensors` wrote: the equal tensors, in the same order, and the metadata.

    Raises:
        InputError: As `load_file`.
    """
    stored = load_file(path)
    return stored.tensors, stored.metadata


def load_file(path: str | Path) -> StoredFile:
    """Read what `save_tensors` wrote: the equal tensors, the float arrays and the metadata.

    Raises:
        InputError: No such file, a pickle (never opened), a truncated or damaged file, or a
            safetensors file that something else wrote.
    """
    path = Path(path)
    header, arrays = _read(path)
    try:
        floats = {
            name.removesuffix(".float"): arrays.pop(name)
            for name in sorted(arrays)
            if name.endswith(".float")
        }
        tensors = _restore(header, arrays)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise InputError(f"{path} contradicts itself ({error}); write it again") from None
    own = {key: value for key, value in header.items() if not key.startswith(_PREFIX)}
    return StoredFile(tensors, floats, own)


def verify_file(path: str | Path) -> None:
    """Read what `save_tensors` wrote, only to see that it is whole.

    Raises:
        InputError: As `load_file`.
    """
    _read(Path(path))


def _read(path: Path) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    """Header and entries of a file whose digest is right."""
    from safetensors import SafetensorError, safe_open

    _refuse_pickles(path)
    try:
        with safe_open(path, framework="np") as file:
            header = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"{path} is no complete safetensors file ({error}); it may be cut short or damaged, "
            "write it again with bitwright quantize"
        ) from None
    layout = header.get(f"{_PREFIX}layout")
    if layout != _LAYOUT:
        found = "no bitwright layout" if layout is None else f"bitwright layout {layout!r}"
        raise InputError(
            f"{path} has {found}, this version reads {_LAYOUT!r}; write it with bitwright quantize"
        )
    arrays = _arrays(path)
    if header.get(f"{_PREFIX}sha256") != _digest(header, arrays):
        raise InputError(
            f"{path} is damaged: its content does not match its SHA-256; write it again with "
            "bitwright quantize"
        )
    return header, arrays


def _arrays(path: Path) -> dict[str, np.ndarray]:
    """All entries of a file whose header `safe_open` has checked.

    Ordinary reads: of what goes through the library's memory map, the map's pages would count as
    the process's memory beside the copies.
    """
    numpy_types = {name: code for code, name in _TYPES.items()}
    arrays: dict[str, np.ndarray] = {}
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        document = json.loads(file.read(length))
        document.pop("__metadata__", None)
        for name, entry in document.items():
            if entry["dtype"] not in numpy_types:
                raise InputError(f"{path} holds {name} as {entry['dtype']}; write it again")
            start, end = entry["data_offsets"]
            code = np.dtype(numpy_types[entry["dtype"]])
            file.seek(8 + length + start)
            items = np.fromfile(file, code, (end - start) // code.itemsize)
            arrays[name] = items.reshape(entry["shape"])
    return arrays


def _refuse_pickles(path: Path) -> None:
    try:
        with path.open("rb") as file:
            start = file.read(9)
    except OSError as error:
        raise InputError(
            f"cannot read {path}: {error.strerror}; give a file written by bitwright quantize"
        ) from None
    # A safetensors file begins with the length of its header, which can look like anything, but
    # the header itself begins with a brace at byte 8.
    pickled = start.startswith(_PICKLE_STARTS) and start[8:] not in (b"", b"{")
    if path.suffix.lower() in _PICKLES or pickled:
        raise InputError(
            f"{path} is a pickle checkpoint; loading one can run any program, so they are refused: "
            "use safetensors or GGUF"
        )


def _restore(
    header: Mapping[str, str], arrays: Mapping[str, np.ndarray]
) -> dict[str, QuantizedTensor | CompressedMatrix]:
    formats = {
        name: Format(
            **row
            | {what: tuple(row[what]) for what in ("levels", "special_values")}
            | {"alternatives": tuple(map(tuple, row.get("alternatives", ())))}
        )
        for name, row in json.loads(header[f"{_PREFIX}formats"]).items()
    }
    unread = set(arrays)
    tensors: dict[str, QuantizedTensor | CompressedMatrix] = {}
    for name, entry in json.loads(header[f"{_PREFIX}tensors"]).items():
        if "method" in entry:
            names = [f"{name}.{what}" for what in entry["entries"]]
            unread -= set(names)
            found = {what: arrays[key] for what, key in zip(entry["entries"], names, strict=True)}
            tensors[name] = matrix_class(entry["method"]).restored(entry["settings"], found)
            continue
        format = formats[entry["format"]]
        n, k, group_size = entry["n"], entry["k"], entry["group_size"]
        groups = -(-k // group_size)
        own: dict[str, Any] = {what: arrays.get(f"{name}.{what}") for what in STORED}
        unread -= {f"{name}.{what}" for what in STORED}
        for what, bits, columns in (
            ("codes", format.bits, k),
            ("zero_points", format.zero_point_bits, groups),
            ("selectors", format.selector_bits, groups),
        ):
            packed = own[what]
            if packed is not None:
                own[what] = unpack_bits(packed, bits, n * columns).reshape(n, columns)
            elif bits:
                raise InputError(f"{name}.{what} is missing")
        tensors[name] = QuantizedTensor(
            format=format, group_size=group_size, scale_format=entry["scale_format"], **own
        )
    if unread:
        raise InputError(f"it holds {min(unread)}, which belongs to no tensor")
    return tensors
