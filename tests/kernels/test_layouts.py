"""Packed layouts: round trips, worked examples, alignment."""

from importlib import import_module

import numpy as np
import pytest

any_precision, layouts, lookup = (
    import_module(f"bitwright.kernels.cpu.{name}")
    for name in ("any_precision", "layouts", "lookup")
)
RNG = np.random.default_rng(0)


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("shape", [(1, 1), (16, 32), (17, 33), (40, 100)])
def test_tiles_round_trip_and_take_exactly_the_bits(bits, shape):
    codes = RNG.integers(0, 1 << bits, shape).astype(np.uint8)
    for size in (shape[1], 32, 40):
        tiles = layouts.pack_tiles(codes, bits, size)
        assert tiles.ctypes.data % 64 == 0
        assert np.array_equal(layouts.unpack_tiles(tiles, *shape, min(size, shape[1])), codes)
    if shape == (16, 32):
        assert tiles.nbytes * 8 == bits * codes.size


def test_a_tile_by_hand():
    """Five bits: the low four of column 5, row 2 are in the high half of byte 4*2+1."""
    codes = np.zeros((16, 32), np.uint8)
    codes[2, 5] = 0b10110
    tile = layouts.pack_tiles(codes, 5, 32)[0, 0]
    expected = np.zeros((5, 64), np.uint8)
    expected[0, 9] = 0b0110 << 4  # quad 1 is in the upper bits of the first vector
    expected[4, 9] = 1 << 1  # and its top bit is bit 1 of the last one
    assert np.array_equal(tile, expected)


def test_padding_is_the_fill():
    tiles = layouts.pack_tiles(np.zeros((1, 1), np.uint8), 4, 1, fill=9)
    assert layouts.unpack_tiles(tiles, 16, 32, 32).tolist() == [[0] + [9] * 31] + [[9] * 32] * 15


def test_planes_by_hand():
    """Element 65 is bit 1 of word 1; rows stand beside each other."""
    codes = np.zeros((3, 70), np.uint8)
    codes[2, 65] = 2
    words = layouts.pack_planes(codes, 2, 70)
    assert words.shape == (1, 2, 2, 8) and words.ctypes.data % 64 == 0
    assert words[0, 1, 1, 2] == 2 and np.count_nonzero(words) == 1
    rows = layouts.pack_plane_rows(codes, 2, 70)
    assert rows.shape == (3, 2, 2) and rows[2, 1, 1] == 2 and np.count_nonzero(rows) == 1


@pytest.mark.parametrize("bits", range(1, 9))
def test_planes_round_trip(bits):
    codes = RNG.integers(0, 1 << bits, (19, 200)).astype(np.uint8)
    for size in (200, 64, 70):
        words = layouts.pack_planes(codes, bits, size)
        assert np.array_equal(layouts.unpack_planes(words, 19, 200, size), codes)


def test_groups_are_padded_each():
    x = np.arange(70, dtype=np.float32)[None] + 1
    wide = layouts.pack_rows(x, 40, np.float32)
    assert wide.shape == (1, 96)
    assert np.array_equal(wide[0, :40], x[0, :40]) and not wide[0, 40:64].any()
    assert np.array_equal(wide[0, 64:94], x[0, 40:]) and not wide[0, 94:].any()


def test_triples_are_those_of_tl2():
    """Worked examples of the TL2 index: |9 w0 + 3 w1 + w2| and whether it is negative."""
    for weights, index, negative in [
        ((1, -1, 0), 6, 0),
        ((-1, 1, 1), 5, 1),
        ((-1, -1, -1), 13, 1),
        ((0, -1, 1), 2, 1),
        ((0, 0, 0), 0, 0),
    ]:
        value = 9 * weights[0] + 3 * weights[1] + weights[2]
        assert (abs(value), int(value < 0)) == (index, negative)
        sign = -1 if negative else 1
        assert (sign * lookup.TRIPLES[index]).tolist() == list(weights)


def test_all_triples_with_all_signs():
    """Every ternary triple against one row of activations: 27 rows, exhaustive."""
    triples = np.array([(a, b, c) for a in (-1, 0, 1) for b in (-1, 0, 1) for c in (-1, 0, 1)])
    weights = np.concatenate([triples, np.zeros_like(triples)], axis=1)
    acts = np.array([[-128, 127, -77, 1, 2, 3]], np.int8)
    values = weights.reshape(27, 2, 3) @ np.array([9, 3, 1])
    words = layouts.pack_nibbles(np.abs(values).astype(np.uint8))
    signs = lookup.pack_signs(values < 0)
    tables = layouts.aligned((1, 2, 2, 16), np.uint8)
    lookup.ternary_tables(acts, lookup.TRIPLES, tables)
    raw = layouts.aligned((1, 1, 64), np.int32)
    lookup.lookup_sums(words, signs, tables, np.array([0, 2]), True, raw)
    sums = np.empty(64, np.int64)
    sums[lookup.ORDER] = raw[0, 0]
    assert np.array_equal(sums[:27], weights @ acts[0].astype(np.int64))


def test_look_ups_do_not_overflow_16_bits():
    """As many of the largest sums as are added before they are widened, and one byte more."""
    indices = lookup._RUN + 2
    acts = np.full((1, 4 * indices), -128, np.int8)
    words = layouts.pack_nibbles(np.full((1, indices), 15, np.uint8))
    tables = layouts.aligned((1, indices, 2, 16), np.uint8)
    lookup.binary_tables(acts, tables)
    raw = layouts.aligned((1, 1, 64), np.int32)
    none = np.zeros((1, 1, 2), np.uint32)
    lookup.lookup_sums(words, none, tables, np.array([0, indices]), False, raw)
    assert raw[0, 0, 0] == -512 * indices


def test_any_precision_planes_by_hand():
    codes = np.zeros((1, 200), np.uint8)
    codes[0, 128 + 16 * 3 + 5] = 0b100  # of 8 bits: bit 2 is plane 5 from the top
    planes = any_precision.pack_any_planes(codes, 8)
    assert planes.shape == (8, 1, 4)
    assert planes[5, 0, 2] == 1 << 4 * 5 + 3 and np.count_nonzero(planes) == 1
