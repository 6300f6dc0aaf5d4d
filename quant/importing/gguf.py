"""Block formats of GGUF files: rows of blocks, each with its own FP16 scale d.

| type | columns | bytes of a block, in order | a weight |
| --- | --- | --- | --- |
| Q4_0 | 32 | d; 16 of two codes | (code - 8) * d |
| Q4_1 | 32 | d, m (FP16); 16 of two codes | code * d + m |
| Q8_0 | 32 | d; 32 codes, two's complement | code * d |
| TQ1_0 | 256 | 48 of five trits, 4 of four; d | (trit - 1) * d |
| TQ2_0 | 256 | 64 of four codes; d | (code - 1) * d |

Two codes: the low nibble of byte i is column i, the high one column 16 + i. Four codes, per half of
32 bytes: field f (bits 2f, 2f + 1) of byte i is column 32 * f + i of the half. Trits: the byte is a
fraction of 256, whose ternary digit t is column w * t + i for byte i of w = 32, 16 or 4 bytes.

They become int4-asym (zero point 8; for Q4_1 zero point 0 and an `OffsetTensor`), int8-sym and
ternary. Numbers are those of the `gguf` package's dequantisation, bit for bit; only the sign of
zeros can differ. Scales of a tensor have no sign, so a block with d < 0 is reflected (int4: 15 -
code, zero point 7 or 15) or negated, and a -0.0 that came of d < 0 is +0.0 (a sum in Q4_1 only if m
is -0.0). A Q8_0 tensor with code -128 in a block with d < 0 (128 has no 8-bit code) becomes
int8-asym. TQ2_0's code 3 would mean 2, which no writer produces, and is refused.

Layouts after the `gguf` package (quants.py); sizes https://github.com/ggml-org/ggml, ggml-common.h.
"""

import numpy as np
from jaxtyping import Float16, UInt8

from bitwright.quant import FORMATS, InputError, QuantizedTensor

from .checks import check_scales, exportable, signless
from .offset import OffsetTensor

#: Columns and bytes of a block.
BLOCKS = {
    "Q4_0": (32, 18),
    "Q4_1": (32, 20),
    "Q8_0": (32, 34),
    "TQ1_0": (256, 54),
    "TQ2_0": (256, 66),
}
_THREES = (1, 3, 9, 27, 81)


def from_gguf_blocks(
    blocks: UInt8[np.ndarray, "n bytes"], type: str, name: str = "tensor"
) -> QuantizedTensor | OffsetTensor:
    """A matrix stored in blocks, exactly.

    Args:
        blocks: The bytes of each row.
        type: "Q4_0", "Q4_1", "Q8_0", "TQ1_0" or "TQ2_0".
        name: What messages call the matrix.

    Raises:
        InputError: Another type, rows that are no whole number of blocks, a scale or minimum that
            is NaN or infinite, or a TQ2_0 code of 3.

    >>> import numpy as np
    >>> half = np.array([0x00, 0x38], np.uint8)  # FP16 0.5
    >>> block = np.concatenate([half, np.arange(-16, 16, dtype=np.int8).view(np.uint8)])
    >>> from_gguf_blocks(block[None], "Q8_0").dequantize()[0, :3]
    array([-8. , -7.5, -7. ], dtype=float32)
    """
    if type not in BLOCKS:
        raise InputError(f"{name} has type {type}; types that can be imported are {_allowed()}")
    columns, size = BLOCKS[type]
    if blocks.dtype != np.uint8 or blocks.ndim != 2 or 0 in blocks.shape or blocks.shape[1] % size:
        raise InputError(
            f"{name}: blocks are {blocks.dtype} {list(blocks.shape)}, must be uint8 [n, bytes], "
            f"rows of whole {type} blocks of {size} bytes"
        )
    n, groups = blocks.shape[0], blocks.shape[1] // size
    raw = np.ascontiguousarray(blocks).reshape(-1, size)
    at = size - 2 if type.startswith("TQ") else 0
    scales = _halves(raw, at, n)
    check_scales(name, scales)
    negative, scales = signless(scales)
    codes = _codes(name, raw, type, negative).reshape(n, groups * columns)
    if type == "Q8_0" and negative.any() and _overflows(raw, negative):
        flipped = np.where(negative, np.uint8(255), np.uint8(0)).reshape(-1, 1)
        codes = (raw[:, 2:] ^ np.uint8(128) ^ flipped).reshape(codes.shape)
        zeros = np.uint8(128) - negative.astype(np.uint8)
        return QuantizedTensor(
            FORMATS["int8-asym"], columns, codes, "fp16", scales, zero_points=zeros
        )
    if not type.startswith("Q4"):
        row = FORMATS["int8-sym" if type == "Q8_0" else "ternary"]
        return QuantizedTensor(row, columns, codes, "fp16", scales)
    zeros = np.uint8(8 if type == "Q4_0" else 0) ^ negative * np.uint8(15)
    tensor = QuantizedTensor(
        FORMATS["int4-asym"], columns, codes, "fp16", scales, zero_points=zeros
    )
    if type == "Q4_0":
        return tensor
    minima = _halves(raw, 2, n)
    check_scales(name, minima, "minimum")
    return OffsetTensor(tensor, minima.astype(np.float32))


def _allowed() -> str:
    return ", ".join(BLOCKS)


def _halves(raw: UInt8[np.ndarray, "blocks size"], at: int, n: int) -> Float16[np.ndarray, "n g"]:
    """The FP16 number at byte `at` of each block."""
    return raw.view("<f2")[:, at // 2].copy().reshape(n, -1)


def _overflows(raw: UInt8[np.ndarray, "blocks 34"], negative: np.ndarray) -> bool:
    return bool((raw[negative.reshape(-1), 2:] == 128).any())


def _codes(
    name: str, raw: UInt8[np.ndarray, "blocks size"], type: str, negative: np.ndarray
) -> UInt8[np.ndarray, "blocks columns"]:
    from .unpack_numba import decode_bytes, decode_crumbs, decode_nibbles, decode_trits

    flips = negative.reshape(-1) * np.uint8(15 if type.startswith("Q4") else 255)
    out = np.empty((len(raw), BLOCKS[type][0]), np.uint8)
    if type == "Q8_0":
        decode_bytes(raw, flips, out.view("<u8"))
    elif type == "TQ1_0":
        decode_trits(raw, flips, out)
    elif type == "TQ2_0":
        bad = np.empty(len(raw), np.uint8)
        decode_crumbs(raw, flips, out, bad)
        if bad.any():
            row, group = np.argwhere(bad.reshape(negative.shape))[0]
            raise InputError(
                f"{name}: row {row}, group {group} holds a TQ2_0 code of 3, must be 0 .. 2; "
                "the file is damaged, fetch it again"
            )
    else:
        decode_nibbles(raw, BLOCKS[type][1] - 16, flips, out.view("<u8"))
    return out


def codes_reference(
    raw: UInt8[np.ndarray, "blocks size"], type: str, negative: np.ndarray
) -> UInt8[np.ndarray, "blocks columns"]:
    """What the jitted decoders write, by array operations."""
    flip = negative.reshape(-1, 1)
    if type.startswith("Q4"):
        packed = raw[:, -16:]
        codes = np.concatenate([packed & 15, packed >> 4], axis=1)
        return np.where(flip, 15 - codes, codes)
    if type == "Q8_0":
        values = raw[:, 2:].astype(np.int64)
    elif type == "TQ2_0":
        halves = raw[:, :64].reshape(-1, 2, 1, 32)
        values = (halves >> np.array([0, 2, 4, 6], np.uint8)[:, None] & 3).astype(np.int64) - 1
    else:
        parts = [
            raw[:, None, first:last] * np.array(_THREES[:trits], np.uint8)[:, None]
            for first, last, trits in ((0, 32, 5), (32, 48, 5), (48, 52, 4))
        ]
        digits = np.concatenate([part.reshape(len(raw), -1) for part in parts], axis=1)
        values = (digits.astype(np.int64) * 3 >> 8) - 1
    values = values.reshape(len(raw), -1)
    mask = 255 if type == "Q8_0" else 3
    return (np.where(flip, -values, values) & mask).astype(np.uint8)


def to_gguf_blocks(
    tensor: QuantizedTensor | OffsetTensor, type: str
) -> UInt8[np.ndarray, "n bytes"]:
    """The blocks of a tensor whose numbers the type can hold, as `from_gguf_blocks` takes them.

    Groups may be several blocks wide: their scale is repeated. Where they are one block wide, what
    `from_gguf_blocks` gives is the equal tensor, but for int4-sym (int4-asym), int8-asym (int8-sym
    where that holds it) and codes that mean the same. Blocks that were imported come out as they
    were, but for those of Q8_0, TQ1_0 and TQ2_0 with d < 0, which are negated, and TQ1_0's bytes
    that no writer produces.

    Args:
        tensor: int4-asym or int4-sym (Q4_0), an `OffsetTensor` of int4-asym (Q4_1), int8-sym or
            int8-asym (Q8_0), ternary (TQ1_0, TQ2_0), with FP16 scales.
        type: A type of `from_gguf_blocks`.

    Raises:
        InputError: Another type or format, k or the group size is no multiple of the block, or
            numbers that the type cannot hold.
    """
    if type not in BLOCKS:
        raise InputError(f"type {type!r} cannot be written; can be one of {_allowed()}")
    columns = BLOCKS[type][0]
    minima: np.ndarray | None = None
    if type == "Q4_1":
        if not isinstance(tensor, OffsetTensor):
            raise InputError("Q4_1 takes an OffsetTensor; Q4_0 holds int4-asym")
        minima, tensor = tensor.offsets, tensor.tensor
    names = {
        "Q4_0": ("int4-asym", "int4-sym"),
        "Q4_1": ("int4-asym",),
        "Q8_0": ("int8-sym", "int8-asym"),
    }
    tensor = exportable(tensor, names.get(type, ("ternary",)), type)
    n, k = tensor.shape
    if k % columns or (tensor.group_size % columns and tensor.groups > 1):
        raise InputError(
            f"{type} has blocks of {columns} columns, of which k (={k}) and group_size "
            f"(={tensor.group_size}) must be multiples; quantise with group_size {columns}"
        )
    group = np.arange(0, k, columns) // tensor.group_size  # of each block
    scales = tensor.group_scales[:, group]
    values, negated = _integers(tensor, type)
    scales = np.where(negated[:, group], -scales, scales).astype("<f2")
    raw = values.reshape(n * len(group), columns)
    parts = [scales.reshape(-1, 1).view(np.uint8)]
    if minima is not None:
        parts.append(minima[:, group].astype("<f2").reshape(-1, 1).view(np.uint8))
    if type == "Q8_0":
        parts.append(raw.astype(np.int8).view(np.uint8))
    elif type == "TQ2_0":
        quarters = (raw + 1).astype(np.uint8).reshape(-1, 2, 4, 32)
        shifted = quarters << np.array([0, 2, 4, 6], np.uint8)[:, None]
        parts.insert(0, np.bitwise_or.reduce(shifted, axis=2).reshape(-1, 64))
    elif type == "TQ1_0":
        parts.insert(0, _trit_bytes(raw + 1))
    else:
        codes = raw.astype(np.uint8)
        parts.append(codes[:, :16] | codes[:, 16:] << np.uint8(4))
    return np.concatenate(parts, axis=1).reshape(n, -1)


def _integers(tensor: QuantizedTensor, type: str) -> tuple[np.ndarray, np.ndarray]:
    """Stored integers [n, k] of the type, and which groups' scales are to be negated."""
    none = np.zeros((tensor.n, tensor.groups), bool)
    if type.startswith("TQ"):
        return tensor.values().astype(np.int16), none
    if type == "Q8_0" and tensor.zero_points is None:
        return tensor.values().astype(np.int16), none
    if tensor.zero_points is None:  # int4-sym: value + 8
        return (tensor.codes ^ np.uint8(8)).astype(np.int16), none
    zeros = tensor.zero_points
    plain, reflected = {"Q4_0": (8, 7), "Q4_1": (0, 15), "Q8_0": (128, 127)}[type]
    negated = zeros == reflected
    wrong = ~negated & (zeros != plain)
    if wrong.any():
        row, group = np.argwhere(wrong)[0]
        raise InputError(
            f"the zero point of row {row}, group {group} is {zeros[row, group]}, {type} holds "
            f"{plain} (or {reflected}, with d < 0); quantise to "
            f"{'int8-sym' if type == 'Q8_0' else 'int4-sym'} instead"
        )
    flips = np.where(negated, tensor.format.qmax, 0).astype(np.uint8)
    of = np.arange(tensor.k) // tensor.group_size
    codes = (tensor.codes ^ flips[:, of]).astype(np.int16)
    return codes - 128 if type == "Q8_0" else codes, negated


def _trit_bytes(trits: np.ndarray) -> UInt8[np.ndarray, "blocks 52"]:
    """Trits [blocks, 256], 0 .. 2, as the fractions of 256 whose ternary digits they are."""
    parts = []
    for first, width, count in ((0, 32, 5), (160, 16, 5), (240, 4, 4)):
        digits = trits[:, first : first + width * count].reshape(-1, count, width)
        weights = 243 // (3 * np.array(_THREES[:count]))  # 81, 27, .. for the first, second, ..
        number = (digits * weights[:, None]).sum(axis=1)
        # Rounded up, so that the digits come back as whole parts.
        parts.append((number * 256 + 242) // 243)
    return np.concatenate(parts, axis=1).astype(np.uint8)
