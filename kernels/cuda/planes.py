"""Bit planes and packed nibbles, as the CUDA kernels read them, and their reference in numpy."""

import numpy as np
from jaxtyping import Int32, Integer, UInt8, UInt32

from bitwright.quant import InputError

#: k is padded with zeros to a multiple of this many words: the copies of the kernel are 16 bytes.
WORDS_ALIGNED = 4


def pack_planes(codes: Integer[np.ndarray, "rows k"], bits: int) -> UInt32[np.ndarray, "b rows w"]:
    """Bit planes of codes, [bits, rows, words], words = 4 * ceil(k / 128).

    Bit k % 32 of word k // 32 in plane i is bit i of code k. Elements from k are zero.

    Args:
        codes: Integers whose low `bits` bits count: unsigned, or two's complement.
        bits: Width, 1 .. 8.

    Raises:
        InputError: `bits` or the shape is not allowed, or a code does not fit.

    >>> pack_planes(np.array([[1, 2, 3]]), 2)[:, 0, 0]
    array([5, 6], dtype=uint32)
    """
    codes = np.asarray(codes)
    check_bits("bits", bits)
    if codes.ndim != 2 or 0 in codes.shape:
        raise InputError(f"codes have shape {codes.shape}; a matrix [rows, k] is needed")
    if not np.issubdtype(codes.dtype, np.integer):
        raise InputError(f"codes are {codes.dtype}; integers are needed")
    low, high = int(codes.min()), int(codes.max())
    if low < -(1 << bits - 1) or high >= 1 << bits:
        wrong = low if low < -(1 << bits - 1) else high
        raise InputError(f"code {wrong} does not fit in bits (={bits}); give more bits, up to 8")
    rows, k = codes.shape
    words = -(-k // (32 * WORDS_ALIGNED)) * WORDS_ALIGNED
    low_bits = codes.astype(np.uint8)  # of two's complement codes, their low 8 bits
    planes = np.zeros((bits, rows, words * 4), np.uint8)
    for i in range(bits):
        packed = np.packbits(low_bits >> i & 1, axis=1, bitorder="little")
        planes[i, :, : packed.shape[1]] = packed
    return planes.view("<u4").astype(np.uint32, copy=False)


def unpack_planes(
    planes: UInt32[np.ndarray, "b rows w"], signed: bool
) -> Int32[np.ndarray, "rows k"]:
    """The numbers that planes stand for, int32 [rows, 32 * words]; the top plane is negative if
    `signed`.

    >>> unpack_planes(pack_planes(np.array([[1, -2, -1]]), 2), True)[0, :4]
    array([ 1, -2, -1,  0], dtype=int32)
    """
    bits, rows, words = planes.shape
    values = np.zeros((rows, 32 * words), np.int32)
    for i, plane in enumerate(np.ascontiguousarray(planes, "<u4")):
        ones = np.unpackbits(plane.view(np.uint8), axis=1, bitorder="little")
        weight = -(1 << i) if signed and i == bits - 1 else 1 << i
        values += ones.astype(np.int32) * np.int32(weight)
    return values


def reference_sums(
    x_planes: UInt32[np.ndarray, "p m w"],
    w_planes: UInt32[np.ndarray, "q n w"],
    *,
    group_words: int | None = None,
    x_signed: bool = False,
    w_signed: bool = False,
) -> Int32[np.ndarray, "groups m n"]:
    """What the bit-plane GEMM must give: int32 [groups, m, n], wrapped.

    The planes are put together again and multiplied in float64, which is exact: sums stay below
    2**16 * k, far from 2**53.

    Args:
        x_planes: Planes of the activations.
        w_planes: Planes of the weights, as many words.
        group_words: Words of k per group, dividing the words; all by default.
        x_signed: Whether the top plane of x is negative.
        w_signed: Whether the top plane of w is negative.
    """
    words = x_planes.shape[2]
    group_words = group_words or words
    x = unpack_planes(x_planes, x_signed).astype(np.float64)
    w = unpack_planes(w_planes, w_signed).astype(np.float64)
    step = 32 * group_words
    starts = range(0, 32 * words, step)
    sums = np.stack([x[:, k : k + step] @ w[:, k : k + step].T for k in starts])
    return sums.astype(np.int64).astype(np.int32)


def pack_nibbles(codes: Integer[np.ndarray, "n k"]) -> UInt8[np.ndarray, "n half"]:
    """Two 4-bit codes a byte, the even one in the low nibble; uint8 [n, ceil(k / 2)].

    Raises:
        InputError: A code is outside 0 .. 15.

    >>> pack_nibbles(np.array([[1, 2, 15]]))
    array([[33, 15]], dtype=uint8)
    """
    codes = np.asarray(codes)
    if codes.ndim != 2 or 0 in codes.shape:
        raise InputError(f"codes have shape {codes.shape}; a matrix [n, k] is needed")
    if codes.min() < 0 or codes.max() > 15:
        wrong = codes[(codes < 0) | (codes > 15)].flat[0]
        raise InputError(f"codes hold {wrong}; 4-bit codes are 0 .. 15")
    even = np.pad(codes.astype(np.uint8), ((0, 0), (0, codes.shape[1] % 2)))
    return even[:, 0::2] | even[:, 1::2] << 4


def check_bits(name: str, bits: int) -> None:
    """Refuse a number of planes that the kernels do not have."""
    if not 1 <= bits <= 8:
        raise InputError(f"{name} (={bits}) must be in 1 .. 8")
