"""How operands lie in memory for the kernels of this folder. All arrays are 64-byte aligned.

**Tiles** (`pack_tiles`): weights of any width, for the integer and the floating-point kernels. Rows
are padded to 16, each group's columns to 32. A tile of 16 rows x 32 columns of b-bit codes takes b
vectors of 64 bytes: exactly its bits. The code is cut into *fields* of 4, 2 and 1 bits, low ones
first (`FIELDS`); a field of f bits takes f vectors. Byte 4 r + c of a vector holds, for row r, the
columns 4 j + c of 8 / f *quads* j, quad s of them at bit f s:

    code of row r, column 4 j + c = all fields of (vector[j // (8/f)][4 r + c] >> f (j % (8/f)))

So a vector, shifted and masked, is 16 rows x 4 columns, which is what a four-way byte product adds
up per row, and its 32-bit words, shifted, are 16 rows x 1 column.

**Rows** (`pack_rows`): activations, int8 or float32 [m, columns], groups padded alike, with zeros.

**Planes** (`pack_planes`): bit planes of weights for AND + popcount, rows padded to 8, groups to 64
columns: uint64 [n/8, words, planes, 8 rows]; element i of a group is bit i % 64 of word i // 64.
`pack_plane_rows` is the same for activations, uint64 [m, words, planes].

**Indices** (`pack_nibbles`): two numbers 0 .. 15 a byte for look-up kernels, rows padded to 64:
uint8 [n/64, indices/2, 64 rows], the earlier index in the low bits.
"""

from functools import lru_cache

import numpy as np
from numba import prange

from . import simd
from .simd import BYTES, jit

ROWS, COLUMNS = 16, 32  #: of a tile
WORD = 64  #: columns of a word of a plane
PLANE_ROWS = 8
LOOKUP_ROWS = 64
#: Widths of the fields of a code, low bits first, by the code's bits.
FIELDS: dict[int, tuple[int, ...]] = {
    1: (1,),
    2: (2,),
    3: (2, 1),
    4: (4,),
    5: (4, 1),
    6: (4, 2),
    7: (4, 2, 1),
    8: (8,),
}


def aligned(shape: tuple[int, ...], dtype: type) -> np.ndarray:
    """Zeros whose first byte lies on a multiple of 64."""
    size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
    room = np.zeros(size + BYTES, np.uint8)
    start = -room.ctypes.data % BYTES
    return room[start : start + size].view(dtype).reshape(shape)


def padded(length: int, unit: int) -> int:
    """The next multiple of `unit`.

    >>> padded(33, 32), padded(64, 32)
    (64, 64)
    """
    return -(-length // unit) * unit


@lru_cache(maxsize=256)
def group_starts(k: int, group_size: int, unit: int = COLUMNS) -> np.ndarray:
    """Where each group starts among padded columns, and where the last one ends; int64.

    >>> group_starts(70, 40).tolist()
    [0, 64, 96]
    """
    lengths = [min(group_size, k - start) for start in range(0, k, group_size)]
    starts = np.cumsum([0, *(padded(length, unit) for length in lengths)], dtype=np.int64)
    starts.flags.writeable = False  # callers share it
    return starts


def pack_rows(x: np.ndarray, group_size: int, dtype: type, unit: int = COLUMNS) -> np.ndarray:
    """Activations [m, k] with every group padded by zeros to a multiple of `unit` columns."""
    starts = group_starts(x.shape[1], group_size, unit)
    out = aligned((len(x), int(starts[-1])), dtype)
    if starts[-1] == x.shape[1]:
        out[:] = x
        return out
    for group, first in enumerate(range(0, x.shape[1], group_size)):
        part = x[:, first : first + group_size]
        out[:, starts[group] : starts[group] + part.shape[1]] = part
    return out


def pack_tiles(codes: np.ndarray, bits: int, group_size: int, fill: int = 0) -> np.ndarray:
    """Codes [n, k] as tiles.

    Args:
        codes: uint8 [n, k], below 2**bits.
        bits: 1 .. 8.
        group_size: Columns of a group.
        fill: The code in padded columns and rows.

    Returns:
        uint8 [n/16, columns/32, bits, 64].
    """
    n, k = codes.shape
    wide = _padded(codes, group_size, COLUMNS, ROWS, fill)
    rows, columns = wide.shape
    tiles = aligned((rows // ROWS, columns // COLUMNS, bits, BYTES), np.uint8)
    _pack_tiles(wide.view(np.uint32), bits, tiles)
    return tiles


def _padded(codes: np.ndarray, group_size: int, unit: int, rows: int, fill: int = 0) -> np.ndarray:
    """Codes with whole groups of `unit` columns and a multiple of `rows` rows, C-ordered uint8."""
    n, k = codes.shape
    starts = group_starts(k, group_size, unit)
    if starts[-1] == k and n % rows == 0 and codes.flags.c_contiguous:
        return codes
    wide = np.full((padded(n, rows), int(starts[-1])), fill, np.uint8)
    for group, first in enumerate(range(0, k, group_size)):
        part = codes[:, first : first + group_size]
        wide[:n, starts[group] : starts[group] + part.shape[1]] = part
    return wide


@jit(parallel=True)
def _pack_tiles(words, bits, tiles):  # type: ignore[no-untyped-def]
    """words: four codes each, uint32 [rows, columns/4]."""
    for tile in prange(tiles.shape[0]):
        quads = np.empty((8, ROWS), np.uint32)
        for at in range(tiles.shape[1]):
            for row in range(ROWS):
                for j in range(8):
                    quads[j, row] = words[ROWS * tile + row, 8 * at + j]
            low = vector = 0
            rest = bits
            while rest:
                # The widest field of 4, 2 and 1 bits that still fits; 8 bits are one field.
                width = 8 if rest == 8 else (4 if rest >= 4 else (2 if rest >= 2 else 1))
                for part in range(width):
                    total = simd.splat_i8(0)
                    for s in range(8 // width):
                        field = simd.load_i8(quads, 64 * (part * (8 // width) + s))
                        field = simd.shr_i8(field, low)
                        field = simd.and_i8(field, simd.splat_i8((1 << width) - 1))
                        total = simd.or_i8(total, simd.shl_i8(field, width * s))
                    simd.store(tiles[tile, at], 64 * (vector + part), total)
                low += width
                vector += width
                rest -= width


def unpack_tiles(tiles: np.ndarray, n: int, k: int, group_size: int) -> np.ndarray:
    """The codes of `pack_tiles`, uint8 [n, k]; plain numpy."""
    bits = tiles.shape[2]
    blocks = np.zeros((*tiles.shape[:2], ROWS, COLUMNS), np.uint8)
    low = vector = 0
    for width in FIELDS[bits]:
        quads = 8 // width
        for part in range(width):
            bytes_ = tiles[:, :, vector + part].reshape(*tiles.shape[:2], ROWS, 4)
            for s in range(quads):
                column = 4 * (part * quads + s)
                field = bytes_ >> width * s & (1 << width) - 1
                blocks[..., column : column + 4] |= field << low
        low += width
        vector += width
    wide = blocks.transpose(0, 2, 1, 3).reshape(len(tiles) * ROWS, -1)
    starts = group_starts(k, group_size)
    lengths = [min(group_size, k - first) for first in range(0, k, group_size)]
    parts = [wide[:n, a : a + length] for a, length in zip(starts, lengths, strict=False)]
    return np.concatenate(parts, axis=1)


def pack_planes(codes: np.ndarray, bits: int, group_size: int) -> np.ndarray:
    """Bit planes of weights, of codes uint8 [n, k]: uint64 [n/8, words, bits, 8]."""
    wide = _padded(codes, group_size, WORD, PLANE_ROWS)
    shape = len(wide) // PLANE_ROWS, wide.shape[1] // WORD, bits, PLANE_ROWS
    out = aligned(shape, np.uint64)
    _pack_planes(wide, out)
    return out


@jit(parallel=True)
def _pack_planes(codes, out):  # type: ignore[no-untyped-def]
    for tile in prange(out.shape[0]):
        for row in range(PLANE_ROWS):
            source = codes[PLANE_ROWS * tile + row]
            for word in range(out.shape[1]):
                vector = simd.load_i8(source, WORD * word)
                for plane in range(out.shape[2]):
                    out[tile, word, plane, row] = np.uint64(simd.bits_of(vector, plane))


def pack_plane_rows(codes: np.ndarray, bits: int, group_size: int) -> np.ndarray:
    """Bit planes of activations, of codes uint8 [m, k]: uint64 [m, words, bits]."""
    wide = _padded(codes, group_size, WORD, 1)
    out = aligned((len(wide), wide.shape[1] // WORD, bits), np.uint64)
    _pack_plane_rows(wide, out)
    return out


@jit()
def _pack_plane_rows(codes, out):  # type: ignore[no-untyped-def]
    for row in range(out.shape[0]):
        for word in range(out.shape[1]):
            vector = simd.load_i8(codes[row], WORD * word)
            for plane in range(out.shape[2]):
                out[row, word, plane] = np.uint64(simd.bits_of(vector, plane))


def unpack_planes(words: np.ndarray, n: int, k: int, group_size: int) -> np.ndarray:
    """The codes of `pack_planes`, uint8 [n, k]; plain numpy."""
    tiles, count, q, rows = words.shape
    ordered = np.ascontiguousarray(words.transpose(0, 3, 2, 1)).reshape(tiles * rows, q, count)
    bits = np.unpackbits(ordered.astype("<u8").view(np.uint8), axis=2, bitorder="little")
    wide = (bits << np.arange(q, dtype=np.uint8)[:, None]).sum(axis=1, dtype=np.uint8)
    starts = group_starts(k, group_size, WORD)
    lengths = [min(group_size, k - first) for first in range(0, k, group_size)]
    parts = [wide[:n, a : a + length] for a, length in zip(starts, lengths, strict=False)]
    return np.concatenate(parts, axis=1)


def pack_nibbles(indices: np.ndarray) -> np.ndarray:
    """Indices 0 .. 15, uint8 [n, count], as uint8 [n/64, count/2, 64]; padded with index 0."""
    n, count = indices.shape
    wide = np.zeros((padded(n, LOOKUP_ROWS), padded(count, 2)), np.uint8)
    wide[:n, :count] = indices
    both = wide[:, ::2] | wide[:, 1::2] << 4
    out = aligned((len(wide) // LOOKUP_ROWS, both.shape[1], LOOKUP_ROWS), np.uint8)
    out[:] = both.reshape(len(out), LOOKUP_ROWS, -1).transpose(0, 2, 1)
    return out
