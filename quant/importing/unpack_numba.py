"""Jitted unpacking of other tools' codes, tiles or blocks in parallel; plain arrays and ints only.

Codes of the word kernels lie across the rows of `out`. They are turned in a tile that stays in the
cache and leave it in runs, because rows of `out` are often a power of two apart, so that writing a
column of them would use few sets of the cache.

Several codes are moved at once as fields of a uint64, or of a uint32 of four codes; words and `out`
are little-endian, the first code in the low byte.
"""

import numpy as np
from numba import njit, prange

_TILE = 16  # columns of words of eight rows, one cache line of uint32
_DEPTH = 32  # uint64 words of a row in the buffer
_STREAMS = 64  # columns of words that are streams
_PAIRS = _STREAMS // 2  # two of them in a uint64
_RUN = 64  # words of a stream that are turned at a time

_ONES = np.uint64(0x0101010101010101)
_NIBBLES = np.uint64(0x0F0F0F0F0F0F0F0F)
_SEVENS = np.uint64(0x7F7F7F7F7F7F7F7F)


@njit(cache=True)
def _spread(x: np.uint64, bits: int) -> np.uint64:
    """Eight fields of `bits` bits, lowest first, to the eight bytes of a word."""
    half = np.uint64((1 << 4 * bits) - 1)
    quarter = np.uint64((1 << 2 * bits) - 1)
    field = np.uint64((1 << bits) - 1)
    x = (x | x << np.uint64(32 - 4 * bits)) & (half | half << np.uint64(32))
    x = (x | x << np.uint64(16 - 2 * bits)) & (quarter * np.uint64(0x0001000100010001))
    # quarter * 0x0001.. repeats the mask every 16 bits, field * 0x01.. every byte.
    return (x | x << np.uint64(8 - bits)) & (field * np.uint64(0x0101010101010101))


@njit(cache=True, parallel=True)
def unpack_columns(
    words: np.ndarray,  # uint32 [k * bits / 32, n]: each column is a stream of bits, low first
    bits: int,  # 2, 3, 4 or 8
    columns: np.ndarray,  # uint64 [k]: code that comes at each place; empty: as they are
    out: np.ndarray,  # uint32 [n, k / 4], written: four codes each
) -> None:
    """Codes of each column of words as a row.

    A change of order is made while a word's codes still lie across the rows, where all rows of a
    tile take the same steps; behind the unpacking it would move single bytes.
    """
    n = out.shape[0]
    width = 4 if bits == 3 else bits  # of a code's place in the tile, where none crosses a word
    each = 8 // width  # fours of codes in a word
    count = out.shape[1] // each
    for tile in prange((n + _STREAMS - 1) // _STREAMS):
        first = tile * _STREAMS
        streams = min(_STREAMS, n - first)
        held = np.empty((count, _STREAMS), np.uint32)
        if bits == 3:
            _hold_wider(words, first, streams, held)
        else:
            _hold(words, first, streams, held)
        if len(columns):
            sorted_ = np.empty_like(held)
            _reorder(held.view(np.uint64), width, columns, sorted_.view(np.uint64))
            held = sorted_
        turned = np.empty((_STREAMS, _RUN), np.uint32)
        for start in range(0, count, _RUN):
            depth = min(_RUN, count - start)
            _turn(held[start : start + depth], turned)
            for j in range(streams):
                source = turned[j, :depth]
                target = out[first + j, start * each : (start + depth) * each]
                if width == 2:
                    _spread_row(source, 2, target)
                elif width == 4:
                    _spread_row(source, 4, target)
                else:
                    target[:] = source


@njit(cache=True)
def _hold(words: np.ndarray, first: int, streams: int, held: np.ndarray) -> None:
    """held[:, :streams] = words[:, first : first + streams]; uint32."""
    for row in range(words.shape[0]):
        source, target = words[row], held[row]
        for j in range(streams):
            target[j] = source[first + j]


@njit(cache=True)
def _hold_wider(words: np.ndarray, first: int, streams: int, held: np.ndarray) -> None:
    """The same for 3-bit codes, three words of which become four: a code gets four bits."""
    last = words.shape[0] - 1
    for row in range(held.shape[0]):
        word, bit = 24 * row // 32, 24 * row % 32
        low, high, target = words[word], words[min(word + 1, last)], held[row]
        down, up = np.uint64(bit), np.uint64(32 - bit)
        for j in range(streams):
            x = np.uint64(low[first + j]) >> down | np.uint64(high[first + j]) << up
            target[j] = _widen(x)


@njit(cache=True)
def _widen(x: np.uint64) -> np.uint32:
    """Eight fields of three bits, lowest first, to four bits each; bits above are left out."""
    x = (x & np.uint64(0xFFF)) | (x & np.uint64(0xFFF000)) << np.uint64(4)
    x = (x & np.uint64(0x003F003F)) | (x & np.uint64(0x0FC00FC0)) << np.uint64(2)
    return np.uint32((x & np.uint64(0x07070707)) | (x & np.uint64(0x38383838)) << np.uint64(1))


@njit(cache=True)
def _reorder(
    held: np.ndarray,  # uint64 [words, pairs]: words of two streams each, none crossed by a code
    width: int,  # bits of a code: 2, 4 or 8
    columns: np.ndarray,  # uint64 [codes of a stream]: code that comes at each place
    out: np.ndarray,  # uint64 [words, pairs], written
) -> None:
    """The streams with their codes in another order."""
    each = 32 // width
    for word in range(out.shape[0]):
        out[word] = 0
        for code in range(0, each, 4):
            _add_four(held, width, columns, each * word + code, width * code, out[word])


@njit(cache=True)
def _add_four(
    held: np.ndarray, width: int, columns: np.ndarray, at: int, bit: int, out: np.ndarray
) -> None:
    """Codes columns[at], .. columns[at + 3] of all streams to bits `bit` and up of `out`."""
    w, up = np.uint64(width), np.uint64(bit)
    s5, low = np.uint64(5), np.uint64(31)
    # The right shift moves bits of a pair's upper stream into the lower one: the mask drops them.
    field = (np.uint64(1) << w) - np.uint64(1)
    mask = field | field << np.uint64(32)
    b0, b1, b2, b3 = w * columns[at], w * columns[at + 1], w * columns[at + 2], w * columns[at + 3]
    r0, r1, r2, r3 = held[b0 >> s5], held[b1 >> s5], held[b2 >> s5], held[b3 >> s5]
    b0, b1, b2, b3 = b0 & low, b1 & low, b2 & low, b3 & low
    for j in range(_PAIRS):
        x = (r0[j] >> b0 & mask) | (r1[j] >> b1 & mask) << w
        y = (r2[j] >> b2 & mask) | (r3[j] >> b3 & mask) << w
        out[j] |= (x | y << (w + w)) << up


@njit(cache=True)
def _turn(held: np.ndarray, out: np.ndarray) -> None:
    """out[:, :len(held)] = held.T; uint32."""
    for j in range(out.shape[0]):
        target = out[j]
        for i in range(held.shape[0]):
            target[i] = held[i, j]


@njit(cache=True)
def _spread_row(words: np.ndarray, bits: int, out: np.ndarray) -> None:
    """Codes of uint32 words, 2 or 4 bits each, to a byte each: uint32 of four codes."""
    each = 8 // bits
    mask = np.uint64((1 << 4 * bits) - 1)
    for i in range(len(words)):
        for four in range(each):
            out[each * i + four] = _spread(words[i] >> np.uint64(4 * bits * four) & mask, bits)


@njit(cache=True, parallel=True)
def unpack_eights(
    words: np.ndarray,  # uint32 [k, n / 8]: eight 4-bit codes of one column of the matrix
    order: np.ndarray,  # int64 [8]: row, of eight, that each nibble of a word belongs to, low first
    out: np.ndarray,  # uint64 [n, k / 8], written: eight codes each, the first in the low byte
) -> None:
    """Codes of eight rows at a time, turned by transposing 8 x 8 bytes."""
    eights = out.shape[1]
    blocks = words.shape[1]
    bytes_ = np.uint64(0x00FF00FF00FF00FF)
    pairs = np.uint64(0x0000FFFF0000FFFF)
    halves = np.uint64(0x00000000FFFFFFFF)
    s8, s16, s32 = np.uint64(8), np.uint64(16), np.uint64(32)
    for tile in prange((blocks + _TILE - 1) // _TILE):
        first = tile * _TILE
        width = min(_TILE, blocks - first)
        buffer = np.empty((_DEPTH, 8, _TILE), np.uint64)
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


@njit(cache=True)
def _zip(
    a: np.uint64, b: np.uint64, mask: np.uint64, shift: np.uint64
) -> tuple[np.uint64, np.uint64]:
    """Fields of a and b under `mask`, b's moved up beside a's; and those above it, a's down."""
    return (a & mask) | (b & mask) << shift, (a >> shift & mask) | (b & ~mask)


@njit(cache=True)
def _eight(raw: np.ndarray, block: int, at: int) -> np.uint64:
    """Bytes at .. at + 7 of a block as a word, which may lie at any address: one read."""
    first = np.uint64(at)  # an unsigned index cannot count from the end, so nothing is checked
    x = np.uint64(0)
    for i in range(8):
        x |= np.uint64(raw[block, first + np.uint64(i)]) << np.uint64(8 * i)
    return x


@njit(cache=True, parallel=True)
def decode_nibbles(
    raw: np.ndarray,  # uint8 [blocks, size]
    start: int,  # byte of a block where its 16 bytes of codes begin
    flips: np.ndarray,  # uint8 [blocks]: 15 where codes are reflected, else 0
    out: np.ndarray,  # uint64 [blocks, 4], written: eight codes each
) -> None:
    """Low nibbles are codes 0 .. 15 of a block, high nibbles codes 16 .. 31."""
    for block in prange(raw.shape[0]):
        flip = np.uint64(flips[block]) * _ONES
        for half in range(2):
            x = _eight(raw, block, start + 8 * half)
            out[block, half] = (x & _NIBBLES) ^ flip
            out[block, 2 + half] = (x >> np.uint64(4) & _NIBBLES) ^ flip


@njit(cache=True, parallel=True)
def decode_bytes(
    raw: np.ndarray,  # uint8 [blocks, 34]
    flips: np.ndarray,  # uint8 [blocks]: 255 where codes are negated, else 0
    out: np.ndarray,  # uint64 [blocks, 4], written: eight codes each
) -> None:
    """Codes in two's complement behind two bytes of scale."""
    for block in prange(raw.shape[0]):
        flip = np.uint64(flips[block]) * _ONES
        for quarter in range(4):
            x = _eight(raw, block, 2 + 8 * quarter) ^ flip
            # -x is ~x + 1. Added to seven bits of each byte, it carries into none beside it.
            out[block, quarter] = ((x & _SEVENS) + (flip & _ONES)) ^ (x & ~_SEVENS)


@njit(cache=True, parallel=True)
def decode_crumbs(
    raw: np.ndarray,  # uint8 [blocks, 66]: 64 bytes of codes, then the scale
    flips: np.ndarray,  # uint8 [blocks]: 255 where codes are negated, else 0
    out: np.ndarray,  # uint8 [blocks, 256], written: two's complement in 2 bits
    bad: np.ndarray,  # uint8 [blocks], written: not 0 where a field is 3, which would mean 2
) -> None:
    """Field f of byte i of a half is code 32 * f + i of that half; 0 .. 2 mean -1 .. 1."""
    for block in prange(raw.shape[0]):
        flip = flips[block]
        seen = np.uint8(0)
        for half in range(2):
            for i in range(32):
                byte = raw[block, 32 * half + i]
                seen |= byte & byte >> np.uint8(1)  # only 3 has both bits
                for field in range(4):
                    code = byte >> np.uint8(2 * field) & np.uint8(3)
                    at = 128 * half + 32 * field + i
                    out[block, at] = _ternary(code, flip)
        bad[block] = seen & np.uint8(0x55)


@njit(cache=True, parallel=True)
def decode_trits(
    raw: np.ndarray,  # uint8 [blocks, 54]: 48 bytes of five trits, 4 of four, then the scale
    flips: np.ndarray,  # uint8 [blocks]: 255 where codes are negated, else 0
    out: np.ndarray,  # uint8 [blocks, 256], written: two's complement in 2 bits
) -> None:
    """Trit t of a byte b is the whole part of 3 * (b * 3**t mod 256) / 256, and means that - 1.

    Trit t of byte i of a part is code `bytes of the part` * t + i of that part; parts have 32, 16
    and 4 bytes.
    """
    for block in prange(raw.shape[0]):
        flip = flips[block]
        _decode_part(raw, block, 0, 32, 5, flip, out, 0)
        _decode_part(raw, block, 32, 16, 5, flip, out, 160)
        _decode_part(raw, block, 48, 4, 4, flip, out, 240)


@njit(cache=True)
def _decode_part(
    raw: np.ndarray,
    block: int,
    first: int,  # byte of the block
    width: int,  # bytes
    trits: int,  # of a byte
    flip: np.uint8,
    out: np.ndarray,
    at: int,  # code of the block
) -> None:
    for i in range(width):
        x = np.uint16(raw[block, first + i])
        for trit in range(trits):
            # Of three times the fraction, the whole part is a digit, and the rest goes on.
            x = np.uint16((x & np.uint16(255)) * np.uint16(3))
            out[block, at + width * trit + i] = _ternary(np.uint8(x >> np.uint16(8)), flip)


@njit(cache=True)
def _ternary(digit: np.uint8, flip: np.uint8) -> np.uint8:
    """digit - 1, negated where flip is 255, in two's complement of 2 bits."""
    return np.uint8((np.uint8(digit - np.uint8(1)) ^ flip) - flip) & np.uint8(3)
