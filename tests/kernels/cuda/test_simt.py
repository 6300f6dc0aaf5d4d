"""The emulated mma instructions against the PTX ISA's own formulas, element by element.

The formulas are written down here as "Matrix Fragments for mma.m8n8k128" and "... mma.m16n8k256"
give them: row and column of element i of a lane's fragment, 32 one-bit elements to a register.
"""

import ctypes

import numpy as np
import pytest

#: (rows of A, k, registers of A, B and C)
SHAPES = {8: (8, 128, 1, 1, 2), 16: (16, 256, 4, 2, 4)}


def place_a(mma: int, lane: int, i: int) -> tuple[int, int]:
    group, thread = lane >> 2, lane % 4
    if mma == 8:
        return group, thread * 32 + i
    row = group if 0 <= i < 32 or 64 <= i < 96 else group + 8
    return row, thread * 32 + (i & 0x1F) + (0 if i < 64 else 128)


def place_b(mma: int, lane: int, i: int) -> tuple[int, int]:
    group, thread = lane >> 2, lane % 4
    if mma == 8:
        return thread * 32 + i, group
    return thread * 32 + (i & 0x1F) + (0 if i < 32 else 128), group


def place_c(mma: int, lane: int, i: int) -> tuple[int, int]:
    group, thread = lane >> 2, lane % 4
    row = group if i < 2 else group + 8
    return row, thread * 2 + (i & 0x1)


def registers(bits: list[int]) -> list[int]:
    """Elements, low to high, as 32-bit registers."""
    return [
        sum(bit << i for i, bit in enumerate(bits[start : start + 32]))
        for start in range(0, len(bits), 32)
    ]


@pytest.mark.parametrize("mma", [8, 16])
def test_fragments_are_those_of_the_isa(emulator: ctypes.CDLL, mma: int) -> None:
    rows, depth, a_registers, b_registers, c_registers = SHAPES[mma]
    rng = np.random.default_rng(mma)
    a, b = rng.integers(0, 2, (rows, depth)), rng.integers(0, 2, (depth, 8))
    c = rng.integers(-(2**31), 2**31, (rows, 8))
    lanes = range(32)
    a_words = [
        registers([int(a[place_a(mma, lane, i)]) for i in range(32 * a_registers)])
        for lane in lanes
    ]
    b_words = [
        registers([int(b[place_b(mma, lane, i)]) for i in range(32 * b_registers)])
        for lane in lanes
    ]
    c_words = [[int(c[place_c(mma, lane, i)]) for i in range(c_registers)] for lane in lanes]
    arrays = [np.array(a_words, np.uint32), np.array(b_words, np.uint32)]
    arrays.append(np.array(c_words, np.int32))
    assert emulator.simt_mma(mma, *(ctypes.c_void_p(x.ctypes.data) for x in arrays)) == 0
    wanted = (c + a @ b).astype(np.int32)  # wraps
    for lane in lanes:
        for i in range(c_registers):
            assert arrays[2][lane, i] == wanted[place_c(mma, lane, i)]


def test_mma_instructions_are_counted_per_warp(emulator: ctypes.CDLL) -> None:
    zeros = [np.zeros((32, 4), np.uint32) for _ in range(3)]
    before = emulator.simt_mma_count()
    assert emulator.simt_mma(16, *(ctypes.c_void_p(x.ctypes.data) for x in zeros)) == 0
    assert emulator.simt_mma_count() == before + 1
