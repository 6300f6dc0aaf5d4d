"""Bit planes: numpy's packing, the GPU's packing on the emulated machine, and the reference."""

import ctypes
from typing import Any

import numpy as np
import pytest

from bitwright.kernels import cuda
from bitwright.quant import InputError


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("signed", [False, True])
def test_planes_hold_every_code(bits: int, signed: bool) -> None:
    low = -(1 << bits - 1) if signed else 0
    codes = np.arange(low, low + (1 << bits))[None]
    planes = cuda.pack_planes(codes, bits)
    assert planes.shape == (bits, 1, 8 if bits == 8 else 4)
    np.testing.assert_array_equal(cuda.unpack_planes(planes, signed)[:, : codes.size], codes)


def test_element_k_is_bit_k_of_its_word() -> None:
    for k in (0, 31, 32, 129):
        codes = np.zeros((1, 130), np.uint8)
        codes[0, k] = 1
        planes = cuda.pack_planes(codes, 1)
        assert np.flatnonzero(planes[0, 0]) == k // 32
        assert planes[0, 0, k // 32] == 1 << k % 32


@pytest.mark.parametrize("bits", [1, 3, 8])
@pytest.mark.parametrize(("rows", "k"), [(1, 1), (3, 127), (7, 300)])
def test_packing_on_the_gpu_gives_the_same_planes(emulated, bits: int, rows: int, k: int) -> None:
    codes = np.random.default_rng(k).integers(0, 1 << bits, (rows, k)).astype(np.uint8)
    wanted = cuda.pack_planes(codes, bits)
    source, target = emulated.upload(codes), emulated.malloc(wanted.nbytes)
    pointers = (ctypes.c_void_p(source), ctypes.c_void_p(target))
    emulated.call("bitwright_pack_planes", *pointers, rows, k, wanted.shape[2], bits, None)
    np.testing.assert_array_equal(emulated.download(target, wanted.shape, np.uint32), wanted)
    emulated.free(target)


def test_reference_is_the_product_of_the_codes() -> None:
    rng = np.random.default_rng(0)
    x, w = rng.integers(-8, 8, (3, 512)), rng.integers(0, 8, (5, 512))
    planes = cuda.pack_planes(x, 4), cuda.pack_planes(w, 3)
    sums = cuda.reference_sums(*planes, group_words=8, x_signed=True)
    np.testing.assert_array_equal(sums[0], x[:, :256] @ w[:, :256].T)
    np.testing.assert_array_equal(sums.sum(0), x @ w.T)


def test_reference_wraps() -> None:
    planes = cuda.pack_planes(np.full((1, 33280), 255), 8)
    assert cuda.reference_sums(planes, planes).tolist() == [[[2164032000 - 2**32]]]


@pytest.mark.parametrize(
    ("codes", "bits", "message"),
    [
        (np.array([[4]]), 2, r"code 4 does not fit in bits \(=2\)"),
        (np.array([[-3]]), 2, r"code -3 does not fit"),
        (np.array([[1]]), 9, r"bits \(=9\) must be in 1 .. 8"),
        (np.array([1]), 1, r"shape \(1,\)"),
        (np.array([[0.5]]), 1, "integers are needed"),
    ],
)
def test_codes_are_checked(codes: np.ndarray, bits: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        cuda.pack_planes(codes, bits)


def test_nibbles_are_checked() -> None:
    with pytest.raises(InputError, match="codes hold 16; 4-bit codes are 0 .. 15"):
        cuda.pack_nibbles(np.array([[3, 16]]))


def test_problem_sizes() -> None:
    """300 elements in groups of 128: three groups of four words, the last one mostly padding."""
    problem = cuda.Problem(2, 3, 300, 8, 2, group_size=128, x_signed=True)
    assert (problem.groups, problem.group_words, problem.words) == (3, 4, 12)
    assert problem.operations == 2 * 2 * 3 * 300
    assert problem.key == "m2-n3-k300-x8s-w2-g128"
    assert cuda.Problem(1, 1, 300, 1, 1).words == 12


def test_tiles_fit_what_blocks_may_have() -> None:
    assert len({t.name for t in cuda.TILES}) == len(cuda.TILES)
    for tile in cuda.TILES:
        assert 32 <= 32 * tile.row_warps * tile.col_warps <= 1024
        assert tile.rows >= 8 and tile.cols >= 8


def test_default_tile_computes_the_least_padding() -> None:
    problem = cuda.Problem(8, 64, 4096, 8, 4)
    chosen = cuda.tiles.default_tile(problem).mma_bits(problem)
    assert chosen == min(t.mma_bits(problem) for t in cuda.TILES) == 8 * 8 * 64 * 4 * 4096


def test_groups_of_128_take_a_depth_of_128() -> None:
    assert cuda.tiles.default_tile(cuda.Problem(1, 4096, 4096, 8, 4, group_size=128)).depth == 128


def test_default_tile_has_room_for_many_rows() -> None:
    problem = cuda.Problem(100_000, 64, 128, 8, 1)
    assert not cuda.TILES[0].fits(problem)
    assert cuda.tiles.default_tile(problem).fits(problem)
    with pytest.raises(InputError, match=r"m \(=10000000\) has more rows than a grid"):
        cuda.tiles.default_tile(cuda.Problem(10_000_000, 64, 128, 8, 1))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"m": 0}, r"m \(=0\) must be at least 1"),
        ({"w_bits": 9}, r"w_bits \(=9\) must be in 1 .. 8"),
        ({"group_size": 96}, r"group_size \(=96\) must be a multiple of 128"),
        ({"k": 1 << 23, "group_size": 128}, "makes 65536 groups of k .*; a grid has at most 65535"),
    ],
)
def test_problems_are_checked(change: dict[str, int], message: str) -> None:
    sizes: dict[str, Any] = {"m": 1, "n": 1, "k": 128, "x_bits": 1, "w_bits": 1}
    with pytest.raises(InputError, match=message):
        cuda.Problem(**{**sizes, **change})
