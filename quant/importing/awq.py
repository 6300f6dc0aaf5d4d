"""AWQ checkpoints as AutoAWQ writes them in its GEMM layout: 4-bit codes in int32 words.

A layer of k inputs and n outputs has

| entry | type | content |
| --- | --- | --- |
| qweight | int32 [k, n / 8] | codes of eight outputs |
| qzeros | int32 [groups, n / 8] | zero points of eight outputs |
| scales | float16 [groups, n] | |

Nibbles of a word, from the low end on, belong to outputs 0, 2, 4, 6, 1, 3, 5, 7 of its eight. A
weight is (code - zero) * scale. The tools compute it in float16; the product (5 bits times 11) is
exact in float32, so theirs is the number given here rounded once, at most half a unit in float16's
last place away.

Layout after AutoAWQ (modules/linear/gemm.py).
"""

import numpy as np
from jaxtyping import Float16, Int32, UInt8, UInt32

from bitwright.quant import InputError, QuantizedTensor

from .checks import asymmetric, check_array, exportable, pack_rows, unpack_rows, words

#: Output, of a word's eight, that each nibble belongs to, from the low end on.
ORDER = (0, 2, 4, 6, 1, 3, 5, 7)


def from_awq(
    qweight: Int32[np.ndarray, "k words"],
    qzeros: Int32[np.ndarray, "groups words"],
    scales: Float16[np.ndarray, "groups n"],
    *,
    group_size: int | None = None,
    name: str = "tensor",
) -> QuantizedTensor:
    """One layer, exactly, as "int4-asym" [n, k].

    Args:
        qweight: Codes.
        qzeros: Zero points.
        scales: FP16 scales; a group with a negative one is reflected.
        group_size: Columns per group; None or -1: as even as the scales say.
        name: What messages call the layer.

    Raises:
        InputError: Types, shapes or groups do not fit together, or a scale is NaN or infinite.

    >>> import numpy as np
    >>> word = np.array([[0x76543210]], np.int32)
    >>> from_awq(word, word * 0, np.ones((1, 8), np.float16)).dequantize().T
    array([[0., 4., 1., 5., 2., 6., 3., 7.]], dtype=float32)
    """
    check_array(f"{name}.qweight", qweight, np.int32)
    k, blocks = qweight.shape
    check_array(f"{name}.scales", scales, np.float16, (None, 8 * blocks))
    groups = len(scales)
    check_array(f"{name}.qzeros", qzeros, np.int32, (groups, blocks))
    if group_size in (None, -1):
        group_size = -(-k // groups)
    assert group_size is not None
    if not 1 <= group_size or -(-k // min(group_size, k)) != groups:
        raise InputError(
            f"{name}.scales has {groups} groups, but {k} columns in groups of {group_size} make "
            f"{-(-k // max(group_size, 1))}; group_size must be that of the file"
        )
    zeros = unpack_codes(words(qzeros))
    return asymmetric(
        name,
        4,
        unpack_codes(words(qweight)),
        zeros,
        np.ascontiguousarray(scales.T),
        min(group_size, k),
    )


def unpack_codes(packed: UInt32[np.ndarray, "k blocks"]) -> UInt8[np.ndarray, "n k"]:
    """Codes of all words, one row per output."""
    from .unpack_numba import unpack_eights

    k, blocks = packed.shape
    eights = -(-k // 8)
    if short := 8 * eights - k:
        packed = np.concatenate([packed, np.zeros((short, blocks), np.uint32)])
    out = np.empty((8 * blocks, eights), "<u8")
    unpack_eights(packed, np.array(ORDER), out)
    codes = out.view(np.uint8)
    return codes[:, :k].copy() if short else codes


def unpack_codes_reference(packed: UInt32[np.ndarray, "k blocks"]) -> UInt8[np.ndarray, "n k"]:
    """What `unpack_codes` computes, nibble by nibble."""
    nibbles = unpack_rows(packed, 4).reshape(*packed.shape, 8)
    codes = np.empty_like(nibbles)
    codes[..., list(ORDER)] = nibbles
    return np.ascontiguousarray(codes.reshape(len(packed), -1).T)


def to_awq(tensor: QuantizedTensor) -> dict[str, np.ndarray]:
    """The arrays of a layer: "qweight", "qzeros" and "scales".

    `from_awq` with the tensor's group size gives the equal tensor back.

    Raises:
        InputError: The format is not int4-asym with FP16 scales, or n is no multiple of 8.
    """
    tensor = exportable(tensor, ("int4-asym",), "AWQ")
    if tensor.n % 8:
        raise InputError(f"n (={tensor.n}) must be a multiple of 8 for AWQ's words of eight rows")
    assert tensor.zero_points is not None
    return {
        "qweight": _packed(tensor.codes),
        "qzeros": _packed(tensor.zero_points),
        "scales": np.ascontiguousarray(tensor.group_scales.T),
    }


def _packed(rows: UInt8[np.ndarray, "n columns"]) -> Int32[np.ndarray, "columns words"]:
    eights = rows.T.reshape(rows.shape[1], -1, 8)[..., list(ORDER)]
    return pack_rows(eights.reshape(rows.shape[1], -1), 4).view(np.int32)
