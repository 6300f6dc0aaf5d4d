"""Jitted unpacking of other tools' codes; plain arrays and ints only.

Words of eight codes are spread to eight bytes at once and stored as one little-endian uint64. What
comes out of the word kernels goes through a buffer of one tile, because rows of `out` are often a
power of two apart, so that writing a column of them would use few sets of the cache.
"""

import numpy as np
from numba import njit

_TILE = 16  # columns of words, one cache line of uint32
_DEPTH = 32  # uint64 words of a row in the buffer


@njit(cache=True, nogil=True)
def _spread(x: np.uint64, bits: int) -> np.uint64:
    """Eight fields of `bits` bits, lowest first, to the eight bytes of a word."""
    half = np.uint64((1 << 4 * bits) - 1)
    quarter = np.uint64((1 << 2 * bits) - 1)
    field = np.uint64((1 << bits) - 1)
    x = (x | x << np.uint64(32 - 4 * bits)) & (half | half << np.uint64(32))
    x = (x | x << np.uint64(16 - 2 * bits)) & (quarter * np.uint64(0x0001000100010001))
    # quarter * 0x0001.. repeats the mask every 16 bits, field * 0x01.. every byte.
    return (x | x << np.uint64(8 - bits)) & (field * np.uint64(0x0101010101010101))


@njit(cache=True, nogil=True)
def unpack_columns(
    words: np.ndarray,  # uint32 [k * bits / 32, n]: each column is a stream of bits, low first
    bits: int,  # 2, 3, 4 or 8
    out: np.ndarray,  # uint64 [n, k / 8], written: eight codes each, the first in the low byte
) -> None:
    """Codes of each column, eight at a time."""
    n, eights = out.shape
    buffer = np.empty((_DEPTH, _TILE), np.uint64)
    low = np.uint64((1 << 8 * bits) - 1) if bits < 8 else ~np.uint64(0)
    for first in range(0, n, _TILE):
        width = min(_TILE, n - first)
        for start in range(0, eights, _DEPTH):
            depth = min(_DEPTH, eights - start)
            for q in range(depth):
                bit = 8 * bits * (start + q)
                word = bit // 32
                shift = np.uint64(bit % 32)
                if bit % 32 + 8 * bits <= 32:
                    for j in range(width):
                        x = np.uint64(words[word, first + j]) >> shift
                        buffer[q, j] = _spread(x & low, bits)
                else:
                    for j in range(width):
                        x = np.uint64(words[word + 1, first + j]) << np.uint64(32)
                        x = (x | np.uint64(words[word, first + j])) >> shift
                        buffer[q, j] = _spread(x & low, bits)
            for j in range(width):
                for q in range(depth):
                    out[first + j, start + q] = buffer[q, j]


@njit(cache=True, nogil=True)
def gather_columns(
    codes: np.ndarray,  # uint8 [n, k]
    columns: np.ndarray,  # int64 [k]
    out: np.ndarray,  # uint8 [n, k], written
) -> None:
    """out = codes[:, columns], several times as fast as numpy."""
    for row in range(codes.shape[0]):
        source = codes[row]
        target = out[row]
        for j in range(len(columns)):
            target[j] = source[columns[j]]


@njit(cache=True, nogil=True)
def unpack_eights(
    words: np.ndarray,  # uint32 [k, n / 8]: eight 4-bit codes of one column of the matrix
    order: np.ndarray,  # int64 [8]: row, of eight, that each nibble of a word belongs to, low first
    out: np.ndarray,  # uint64 [n, k / 8], written: eight codes each, the first in the low byte
) -> None:
    """Codes of eight rows at a time, turned by transposing 8 x 8 bytes."""
    eights = out.shape[1]
    blocks = words.shape[1]
    buffer = np.empty((_DEPTH, 8, _TILE), np.uint64)
    bytes_ = np.uint64(0x00FF00FF00FF00FF)
    pairs = np.uint64(0x0000FFFF0000FFFF)
    halves = np.uint64(0x00000000FFFFFFFF)
    s8, s16, s32 = np.uint64(8), np.uint64(16), np.uint64(32)
    for first in range(0, blocks, _TILE):
        width = min(_TILE, blocks - first)
        for start in range(0, eights, _DEPTH):
            depth = min(_DEPTH, eights - start)
            for q in range(depth):
                k = 8 * (start + q)
                for j in range(width):
                    b = first + j
                    r0 = _spread(np.uint64(words[k, b]), 4)
                    r1 = _spread(np.uint64(words[k + 1, b]), 4)
                    r2 = _spread(np.uint64(words[k + 2, b]), 4)
                    r3 = _spread(np.uint64(words[k + 3, b]), 4)
                    r4 = _spread(np.uint64(words[k + 4, b]), 4)
                    r5 = _spread(np.uint64(words[k + 5, b]), 4)
                    r6 = _spread(np.uint64(words[k + 6, b]), 4)
                    r7 = _spread(np.uint64(words[k + 7, b]), 4)
                    # Bytes 0 2 4 6 of two rows and 1 3 5 7, then pairs of four, halves of eight.
                    a0, a1 = _zip(r0, r1, bytes_, s8)
                    a2, a3 = _zip(r2, r3, bytes_, s8)
                    a4, a5 = _zip(r4, r5, bytes_, s8)
                    a6, a7 = _zip(r6, r7, bytes_, s8)
                    b0, b2 = _zip(a0, a2, pairs, s16)
                    b1, b3 = _zip(a1, a3, pairs, s16)
                    b4, b6 = _zip(a4, a6, pairs, s16)
                    b5, b7 = _zip(a5, a7, pairs, s16)
                    buffer[q, 0, j], buffer[q, 4, j] = _zip(b0, b4, halves, s32)
                    buffer[q, 1, j], buffer[q, 5, j] = _zip(b1, b5, halves, s32)
                    buffer[q, 2, j], buffer[q, 6, j] = _zip(b2, b6, halves, s32)
                    buffer[q, 3, j], buffer[q, 7, j] = _zip(b3, b7, halves, s32)
            for j in range(width):
                for nibble in range(8):
                    row = 8 * (first + j) + order[nibble]
                    for q in range(depth):
                        out[row, start + q] = buffer[q, nibble, j]


@njit(cache=True, nogil=True)
def _zip(
    a: np.uint64, b: np.uint64, mask: np.uint64, shift: np.uint64
) -> tuple[np.uint64, np.uint64]:
    """Fields of a and b under `mask`, b's moved up beside a's; and those above it, a's down."""
    return (a & mask) | (b & mask) << shift, (a >> shift & mask) | (b & ~mask)


@njit(cache=True, nogil=True)
def decode_nibbles(
    raw: np.ndarray,  # uint8 [blocks, size]
    start: int,  # byte of a block where its 16 bytes of codes begin
    flips: np.ndarray,  # uint8 [blocks]: 15 where codes are reflected, else 0
    out: np.ndarray,  # uint8 [blocks, 32], written
) -> None:
    """Low nibbles are codes 0 .. 15 of a block, high nibbles codes 16 .. 31."""
    for block in range(raw.shape[0]):
        flip = flips[block]
        source = raw[block, start : start + 16]
        target = out[block]
        for i in range(16):
            target[i] = (source[i] & np.uint8(15)) ^ flip
        for i in range(16):
            target[16 + i] = (source[i] >> np.uint8(4)) ^ flip


@njit(cache=True, nogil=True)
def decode_bytes(
    raw: np.ndarray,  # uint8 [blocks, 34]
    flips: np.ndarray,  # uint8 [blocks]: 255 where codes are negated, else 0
    out: np.ndarray,  # uint8 [blocks, 32], written
) -> None:
    """Codes in two's complement behind two bytes of scale."""
    for block in range(raw.shape[0]):
        flip = flips[block]
        source = raw[block, 2:34]
        target = out[block]
        for i in range(32):
            target[i] = (source[i] ^ flip) - flip  # -x is ~x + 1


@njit(cache=True, nogil=True)
def decode_crumbs(
    raw: np.ndarray,  # uint8 [blocks, 66]: 64 bytes of codes, then the scale
    flips: np.ndarray,  # uint8 [blocks]: 255 where codes are negated, else 0
    out: np.ndarray,  # uint8 [blocks, 256], written: two's complement in 2 bits
) -> int:
    """Field f of byte i of a half is code 32 * f + i of that half; the first bad block, or -1.

    A field 0 .. 2 means -1 .. 1; 3 means 2, which makes a block bad.
    """
    bad = -1
    for block in range(raw.shape[0]):
        flip = flips[block]
        seen = np.uint8(0)
        for half in range(2):
            source = raw[block, 32 * half : 32 * half + 32]
            for field in range(4):
                shift = np.uint8(2 * field)
                at = 128 * half + 32 * field
                target = out[block, at : at + 32]
                for i in range(32):
                    code = source[i] >> shift & np.uint8(3)
                    seen |= code & code >> np.uint8(1)  # only 3 has both bits
                    target[i] = ((code - np.uint8(1) ^ flip) - flip) & np.uint8(3)
        if seen & np.uint8(1) and bad < 0:
            bad = block
    return bad


@njit(cache=True, nogil=True)
def decode_trits(
    raw: np.ndarray,  # uint8 [blocks, 54]: 48 bytes of five trits, 4 of four, then the scale
    flips: np.ndarray,  # uint8 [blocks]: 255 where codes are negated, else 0
    out: np.ndarray,  # uint8 [blocks, 256], written: two's complement in 2 bits
) -> None:
    """Trit t of a byte b is the whole part of 3 * (b * 3**t mod 256) / 256, and means that - 1.

    Trit t of byte i of a part is code `bytes of the part` * t + i of that part; parts have 32, 16
    and 4 bytes.
    """
    for block in range(raw.shape[0]):
        flip = flips[block]
        source = raw[block]
        target = out[block]
        three = np.uint8(1)
        for trit in range(5):
            for i in range(32):
                target[32 * trit + i] = _trit(source[i], three, flip)
            for i in range(16):
                target[160 + 16 * trit + i] = _trit(source[32 + i], three, flip)
            if trit < 4:
                for i in range(4):
                    target[240 + 4 * trit + i] = _trit(source[48 + i], three, flip)
            three = np.uint8(three * np.uint8(3))


@njit(cache=True, nogil=True)
def _trit(byte: np.uint8, three: np.uint8, flip: np.uint8) -> np.uint8:
    fraction = np.uint16(np.uint8(byte * three))
    digit = np.uint8(np.uint16(fraction * np.uint16(3)) >> np.uint16(8))
    return np.uint8(np.uint8(np.uint8(digit - np.uint8(1)) ^ flip) - flip) & np.uint8(3)
