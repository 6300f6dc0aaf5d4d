"""GPTQ checkpoints as AutoGPTQ and GPTQModel write them: layers of int32 words.

A layer of k inputs and n outputs has, `bits` being 2, 3, 4 or 8,

| entry | type | content |
| --- | --- | --- |
| qweight | int32 [k * bits / 32, n] | each column: the codes of one output, a stream of bits |
| qzeros | int32 [groups, n * bits / 32] | each row: the zero points of one group, likewise |
| scales | float16 [groups, n] | |
| g_idx | int32 [k] | group of each input |

A stream takes codes in order, `bits` bits each, from the low end of its words on; 32 codes of 3
bits so fill three words, two codes lying across their borders. A weight is (code - zero) * scale.

Format version 1, checkpoint_format "gptq", stores zero - 1; version 2, "gptq_v2", the zero itself.
A stored number of all ones is told differently by different readers of version 1 (as 0, as 2**bits,
or with a carry into the next zero), because writers differed in how they took 1 from a zero of 0.
It is refused unless the caller says that GPTQModel wrote it, which takes 1 from all zeros of a word
in one subtraction (3 bits: from each, modulo 8), and so is undone by one addition.

Where columns were quantised by falling activation ("act-order", desc_act), g_idx is not sorted;
columns are then put together by group, and the order is kept beside the tensor.

The tools compute weights in float16. Code - zero has 9 bits and a scale 11, so the product is exact
in float32 (24), and theirs is the number given here rounded once to float16: at most half a unit in
float16's last place away.

Layout after the sources of AutoGPTQ (nn_modules/qlinear) and GPTQModel (utils/model.py).
"""

from typing import Literal

import numpy as np
from jaxtyping import Float16, Int32, Int64, UInt8, UInt32

from bitwright.quant import InputError, QuantizedTensor

from .checks import asymmetric, check_array, exportable, pack_rows, unpack_rows, words
from .permuted import PermutedTensor

#: Widths that exist, and the formats they become.
BITS = (2, 3, 4, 8)
FORMAT_NAMES = tuple(f"int{bits}-asym" for bits in BITS)
Version = Literal["gptq", "gptq_v2"]
VERSIONS = ("gptq", "gptq_v2")


def from_gptq(
    qweight: Int32[np.ndarray, "rows n"],
    qzeros: Int32[np.ndarray, "groups words"],
    scales: Float16[np.ndarray, "groups n"],
    g_idx: Int32[np.ndarray, " k"] | None = None,
    *,
    bits: int,
    group_size: int | None = None,
    version: Version = "gptq",
    carry: bool = False,
    name: str = "tensor",
) -> QuantizedTensor | PermutedTensor:
    """One layer, exactly.

    Args:
        qweight: Codes.
        qzeros: Zero points.
        scales: FP16 scales; a group with a negative one is reflected.
        g_idx: Group of each column; None if groups are consecutive.
        bits: Width of a code: 2, 3, 4 or 8.
        group_size: Columns per group; None or -1: told by g_idx, or as even as the scales say.
        version: "gptq" (stored zeros are one less) or "gptq_v2".
        carry: GPTQModel wrote this version 1 (see above).
        name: What messages call the layer.

    Returns:
        A tensor "intB-asym" [n, k], with the order of its columns if groups are not consecutive.

    Raises:
        InputError: Types, shapes, bits or groups do not fit together, a stored zero is ambiguous,
            or a scale is NaN or infinite.

    >>> import numpy as np
    >>> codes = np.full((1, 4), 0x04030201, np.int32)  # 1 2 3 4 in each of four columns
    >>> zeros = np.array([[0x01010101]], np.int32)  # 2, stored as 1
    >>> from_gptq(codes, zeros, np.ones((1, 4), np.float16), bits=8).dequantize()[0]
    array([-1.,  0.,  1.,  2.], dtype=float32)
    """
    if bits not in BITS:
        raise InputError(f"{name}: bits {bits!r} is not one of {', '.join(map(str, BITS))}")
    if version not in VERSIONS:
        raise InputError(f"{name}: version {version!r} is not one of {', '.join(VERSIONS)}")
    check_array(f"{name}.qweight", qweight, np.int32)
    rows, n = qweight.shape
    if rows * 32 % bits:
        raise InputError(
            f"{name}.qweight has {rows} rows of words, which hold no whole number of {bits}-bit "
            "codes; bits must be those it was written with"
        )
    k = rows * 32 // bits
    if n * bits % 32:
        raise InputError(
            f"{name}.qweight has {n} columns, whose {bits}-bit zero points fill no whole words; "
            "bits must be those it was written with"
        )
    check_array(f"{name}.scales", scales, np.float16, (None, n))
    groups = len(scales)
    check_array(f"{name}.qzeros", qzeros, np.int32, (groups, n * bits // 32))
    if g_idx is not None:
        check_array(f"{name}.g_idx", g_idx, np.int32, (k,))
    size, columns = _groups(name, g_idx, k, groups, group_size)
    codes = unpack_codes(words(qweight), bits, columns)
    zeros = _zeros(name, words(qzeros), bits, version, carry).T
    tensor = asymmetric(
        name, bits, codes, np.ascontiguousarray(zeros), np.ascontiguousarray(scales.T), size
    )
    return tensor if columns is None else PermutedTensor(tensor, columns)


def unpack_codes(
    packed: UInt32[np.ndarray, "rows n"], bits: int, columns: Int64[np.ndarray, " k"] | None = None
) -> UInt8[np.ndarray, "n k"]:
    """The streams of the columns, one row of codes each.

    Args:
        packed: The words.
        bits: Width of a code: 2, 3, 4 or 8.
        columns: The code of a stream that comes at each place, 0 .. k - 1; None: as they are.
    """
    from .unpack_numba import unpack_columns

    rows, n = packed.shape
    order = np.empty(0, np.uint64) if columns is None else columns.astype(np.uint64)
    out = np.empty((n, rows * 8 // bits), "<u4")
    unpack_columns(packed, bits, order, out)
    return out.view(np.uint8)


def unpack_codes_reference(
    packed: UInt32[np.ndarray, "rows n"], bits: int, columns: Int64[np.ndarray, " k"] | None = None
) -> UInt8[np.ndarray, "n k"]:
    """What `unpack_codes` computes, bit by bit."""
    codes = unpack_rows(np.ascontiguousarray(packed.T), bits)
    return codes if columns is None else codes[:, columns]


def _groups(
    name: str, g_idx: np.ndarray | None, k: int, groups: int, group_size: int | None
) -> tuple[int, np.ndarray | None]:
    """Columns per group, and the order that puts groups together if they are not."""
    if group_size in (None, -1):
        if g_idx is None:
            group_size = -(-k // groups)
        else:
            group_size = int(np.unique(g_idx, return_counts=True)[1].max())
    assert group_size is not None
    if not 1 <= group_size or -(-k // min(group_size, k)) != groups:
        raise InputError(
            f"{name}.scales has {groups} groups, but {k} columns in groups of {group_size} make "
            f"{-(-k // max(group_size, 1))}; group_size must be that of the file"
        )
    group_size = min(group_size, k)
    consecutive = np.arange(k) // group_size
    if g_idx is None or np.array_equal(g_idx, consecutive):
        return group_size, None
    columns = np.argsort(g_idx, kind="stable")
    if not np.array_equal(g_idx[columns], consecutive):
        raise InputError(
            f"{name}.g_idx does not name each of {groups} groups for {group_size} columns (its "
            f"values are {g_idx.min()} .. {g_idx.max()}); groups of unequal sizes have no format"
        )
    return group_size, columns


def _zeros(
    name: str, packed: UInt32[np.ndarray, "groups words"], bits: int, version: str, carry: bool
) -> UInt8[np.ndarray, "groups n"]:
    stored = unpack_codes(np.ascontiguousarray(packed.T), bits)
    if version == "gptq_v2":
        return stored
    top = (1 << bits) - 1
    ambiguous = stored == top
    if ambiguous.any() and not carry:
        group, row = np.argwhere(ambiguous)[0]
        raise InputError(
            f"{name}.qzeros: the stored zero point of row {row}, group {group} is {top}, which "
            "readers of version 1 tell differently; if GPTQModel wrote it, pass carry=True, else "
            "save it as gptq_v2"
        )
    if carry and bits != 3:
        ones = np.uint32(0xFFFFFFFF // top)  # 1 in every field; uint32 arrays wrap
        return unpack_codes(np.ascontiguousarray((packed + ones).T), bits)
    return (stored + np.uint8(1)) & np.uint8(top)


def to_gptq(
    tensor: QuantizedTensor | PermutedTensor, version: Version = "gptq"
) -> dict[str, np.ndarray]:
    """The arrays of a layer: "qweight", "qzeros", "scales" and "g_idx".

    `from_gptq` with the tensor's bits and group size gives the equal tensor back.

    Raises:
        InputError: The format is not int2-, int3-, int4- or int8-asym with FP16 scales, codes or
            zero points do not fill whole words, or version 1 cannot hold a zero point of 0.
    """
    if version not in VERSIONS:
        raise InputError(f"version {version!r} is not one of {', '.join(VERSIONS)}")
    columns = None
    if isinstance(tensor, PermutedTensor):
        columns, tensor = tensor.columns, tensor.tensor
    tensor = exportable(tensor, FORMAT_NAMES, "GPTQ")
    bits = tensor.format.bits
    for what, count in (("n", tensor.n), ("k", tensor.k)):
        if count * bits % 32:
            raise InputError(
                f"{what} (={count}) must be a multiple of {32 if bits == 3 else 32 // bits}: GPTQ "
                f"puts {bits}-bit codes in whole 32-bit words"
            )
    zeros = tensor.zero_points
    assert zeros is not None
    if version == "gptq":
        if not zeros.all():
            row, group = np.argwhere(zeros == 0)[0]
            raise InputError(
                f"the zero point of row {row}, group {group} is 0, which GPTQ version 1 cannot "
                'hold; use version "gptq_v2"'
            )
        zeros = zeros - np.uint8(1)
    groups = (np.arange(tensor.k) // tensor.group_size).astype(np.int32)
    codes, g_idx = tensor.codes, groups
    if columns is not None:
        codes, g_idx = np.empty_like(codes), np.empty_like(groups)
        codes[:, columns], g_idx[columns] = tensor.codes, groups
    return {
        "qweight": np.ascontiguousarray(pack_rows(codes, bits).T).view(np.int32),
        "qzeros": pack_rows(np.ascontiguousarray(zeros.T), bits).view(np.int32),
        "scales": np.ascontiguousarray(tensor.group_scales.T),
        "g_idx": g_idx,
    }
