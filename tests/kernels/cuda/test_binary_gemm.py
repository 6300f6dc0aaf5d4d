"""The bit-plane GEMM's kernel and host code on the emulated machine, bit for bit against numpy.

What runs is the very source that nvcc compiles, apart from ptx.cuh; the reference multiplies the
codes as int64 and never sees a bit plane.
"""

import ctypes

import numpy as np
import pytest

from bitwright.kernels import cuda
from bitwright.quant import InputError

BITS = (1, 2, 3, 4, 8)


@pytest.mark.parametrize("tile", cuda.TILES, ids=lambda t: t.name)
def test_random_shapes(emulated, check_gemm, tile: cuda.Tile) -> None:
    """m, n and k that fill no tile, groups from less than a step to more than the pipeline."""
    rng = np.random.default_rng(tile.index)
    for trial in range(8):
        emulated.set(int(rng.integers(1, 1 << 31)), late_copies=trial % 2 == 1)
        groups = int(rng.integers(1, 4))
        group_size = 128 * int(rng.integers(1, 9))
        check_gemm(
            emulated,
            rng,
            tile,
            m=int(rng.integers(1, 20)),
            n=int(rng.integers(1, 70)),
            k=int(group_size * groups - rng.integers(0, 100)),  # a ragged last group
            bits=(int(rng.integers(1, 9)), int(rng.integers(1, 9))),
            signed=(bool(rng.integers(2)), bool(rng.integers(2))),
            group_size=group_size if groups > 1 else None,
        )


@pytest.mark.parametrize("x_bits", BITS)
@pytest.mark.parametrize("w_bits", BITS)
@pytest.mark.parametrize("x_signed", [False, True], ids=["ux", "sx"])
@pytest.mark.parametrize("w_signed", [False, True], ids=["uw", "sw"])
def test_all_precisions(emulated, check_gemm, x_bits, w_bits, x_signed, w_signed) -> None:
    """Both instructions: m8n8k128 with its smallest tile, m16n8k256 with its smallest."""
    rng = np.random.default_rng(100 * x_bits + w_bits)
    for tile in (cuda.TILES[0], cuda.TILES[11]):
        check_gemm(
            emulated,
            rng,
            tile,
            m=3,
            n=11,
            k=300,
            bits=(x_bits, w_bits),
            signed=(x_signed, w_signed),
        )


@pytest.mark.parametrize("tile", [cuda.TILES[3], cuda.TILES[10]], ids=lambda t: t.name)
def test_sums_wrap_at_32_bits(emulated, tile: cuda.Tile) -> None:
    """33280 * 255 * 255 = 2164032000 is more than 2**31 - 1."""
    ones = np.full((1, 33280), 255, np.uint8)
    planes = cuda.pack_planes(ones, 8)
    got = cuda.binary_group_sums(planes, planes, tile=tile, device=emulated)
    assert got.tolist() == [[[2164032000 - 2**32]]]


def test_one_bit_twos_complement_is_minus_one(emulated) -> None:
    ones = cuda.pack_planes(np.ones((1, 5), np.uint8), 1)
    got = cuda.binary_group_sums(ones, ones, x_signed=True, device=emulated)
    assert got.tolist() == [[[-5]]]


def test_most_negative_codes(emulated) -> None:
    lowest = cuda.pack_planes(np.full((2, 130), -128), 8)
    got = cuda.binary_group_sums(lowest, lowest, x_signed=True, w_signed=True, device=emulated)
    assert (got == 130 * 128 * 128).all()


def test_the_last_block_writes_nothing_outside(emulated, check_gemm) -> None:
    """The device's guards see it: 9 rows and 33 columns leave every block ragged."""
    rng = np.random.default_rng(0)
    for tile in cuda.TILES:
        check_gemm(emulated, rng, tile, m=9, n=33, k=128, bits=(3, 5), signed=(True, True))


def test_the_library_and_python_have_the_same_tiles(emulator: ctypes.CDLL) -> None:
    assert emulator.bitwright_tiles() == len(cuda.TILES)
    for tile in cuda.TILES:
        numbers = (ctypes.c_int * 7)()
        assert emulator.bitwright_tile(tile.index, numbers) == 0
        shape = (tile.mma, tile.rows, tile.cols, tile.depth, tile.row_warps, tile.col_warps)
        assert tuple(numbers) == (*shape, tile.stages)
    assert emulator.bitwright_tile(len(cuda.TILES), numbers) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"group_words": 6},
        {"k_words": 12},
        {"x_bits": 9},
        {"w_bits": 0},
        {"m": 0},
        {"tile": len(cuda.TILES)},
        {"tile": -1},
        {"groups": 65536},
    ],
    ids=lambda c: next(iter(c)),
)
def test_entry_point_refuses(emulator: ctypes.CDLL, change: dict[str, int]) -> None:
    a = {"tile": 0, "m": 1, "n": 1, "k_words": 8, "group_words": 8, "x_bits": 1, "w_bits": 1}
    a |= {"k_words": 4 * change["groups"], "group_words": 4} if "groups" in change else change
    sizes = (a["m"], a["n"], a["k_words"], a["group_words"], a["x_bits"], a["w_bits"])
    assert emulator.bitwright_binary_gemm(a["tile"], None, None, None, *sizes, 0, 0, None) == 1


@pytest.mark.parametrize(
    ("x", "w", "group_size", "message"),
    [
        ((9, 1, 4), (1, 1, 4), None, r"x_bits \(=9\) must be in 1 .. 8"),
        ((1, 1, 4), (1, 1, 8), None, "x_planes have 4 words of k and w_planes 8"),
        ((1, 1), (1, 1, 4), None, "x_planes are uint32"),
        ((1, 1, 4), (1, 1, 4), 64, r"group_size \(=64\) must be a multiple of 128"),
    ],
)
def test_operands_are_checked(x, w, group_size, message) -> None:
    with pytest.raises(InputError, match=message):
        cuda.binary_group_sums(np.ones(x, np.uint32), np.ones(w, np.uint32), group_size=group_size)


# Faults planted in the kernel, each of which the emulated machine must notice. The order of threads
# and copies is drawn, hence several draws.
FAULTS = {
    "no barrier before a stage is filled again": (
        "        __syncthreads();\n        copy_step",
        "        copy_step",
    ),
    "one copy too few waited for": ("copy_wait<T::STAGES - 2>", "copy_wait<T::STAGES - 1>"),
    "no barrier before the result tile": (
        "copy_wait<0>();\n    __syncthreads();",
        "copy_wait<0>();",
    ),
    "registers of A in another order": (
        "8 * (r % 2);\n                    a[i][r] = x[row * T::PITCH + k + lane % 4 + 4 * (r /",
        "8 * (r / 2);\n                    a[i][r] = x[row * T::PITCH + k + lane % 4 + 4 * (r %",
    ),
    "registers of C in another order": (
        "lane / 4 + 8 * (r / 2);\n                const int col = warp_col + j * Mma::N + 2",
        "lane / 4 + 8 * (r % 2);\n                const int col = warp_col + j * Mma::N + 2",
    ),
    "rows read beyond the operand": ("row < rows &&", "row <= rows &&"),
    "words of the next group taken in": ("&& at < end", "&& at < end + 4"),
    "columns written beyond n": (" || first_n + n >= args.n) continue", ") continue"),
}


ONE_TILE = cuda.Tile(0, 16, 32, 64, 256, 2, 2, 3)


@pytest.mark.parametrize("fault", [*FAULTS, None])
def test_planted_faults_are_noticed(
    kernel_copy, emulator_compiler, make_emulated, check_gemm, tmp_path, fault
) -> None:
    """And the kernel as it is has none."""
    changes = {} if fault is None else {"binary_gemm.cuh": FAULTS[fault]}
    source = kernel_copy(tmp_path, {"weight_only_gemv.cu", "pack.cu"}, changes)
    table = "#define BITWRIGHT_TILES(TILE) TILE(16, 32, 64, 256, 2, 2, 3)\n"
    (source / "tiles.cuh").write_text(table)
    library = emulator_compiler(source, tmp_path / "fault.so", "-O0")
    rng = np.random.default_rng(0)
    shape = {"m": 11, "n": 35, "k": 3200, "bits": (3, 2), "signed": (False, True)}
    found = 0
    for trial in range(6):
        device = make_emulated(library)
        device.set(trial + 1, late_copies=trial % 2 == 1)
        try:
            check_gemm(device, rng, ONE_TILE, **shape, group_size=1664)
        except (AssertionError, RuntimeError):
            found += 1
    assert (found > 0) == (fault is not None)


def test_seeds_and_late_copies_make_no_difference(emulated) -> None:
    """Nothing in a right kernel depends on the order of threads or the moment of a copy."""
    planes = [
        cuda.pack_planes(np.random.default_rng(r).integers(0, 16, (r, 1500)), 4) for r in (5, 40)
    ]
    results = set()
    for seed in range(1, 5):
        emulated.set(seed, late_copies=seed % 2 == 0)
        results.add(cuda.binary_group_sums(*planes, device=emulated).tobytes())
    assert len(results) == 1
