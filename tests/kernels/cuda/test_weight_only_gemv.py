"""The weight-only GEMV's kernel and host code on the emulated machine, against float64.

`check_gemv` in conftest.py derives the bound.
"""

from typing import Any

import numpy as np
import pytest

from bitwright.kernels import cuda
from bitwright.quant import InputError


@pytest.mark.parametrize("m", range(1, 9))
@pytest.mark.parametrize("warps", [1, 2, 4])
def test_every_instantiation(emulated, check_gemv, m: int, warps: int) -> None:
    rng = np.random.default_rng(10 * m + warps)
    for group_size, k, tables, zeros in (
        (32, 32, 1, False),
        (64, 200, 4, True),  # a ragged last group, k no multiple of a lane's 32 codes
        (128, 128 * 33 + 1, 2, True),  # an odd k, more chunks than lanes
        (4224, 4224, 3, False),
    ):
        emulated.set(int(rng.integers(1, 1 << 31)), late_copies=False)
        n = int(rng.integers(1, 7))
        check_gemv(emulated, rng, (m, n, k), group_size, tables, zeros, warps)


def test_integers_are_exact(emulated) -> None:
    """Small integers need no rounding, so every code must land on its own activation."""
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 16, (5, 96))
    x = rng.integers(-8, 8, (3, 96)).astype(np.float16)
    table = np.arange(-8, 8, dtype=np.float32)[None]
    ones = np.ones((5, 3), np.float32)
    got = cuda.weight_only_gemv(
        x, cuda.pack_nibbles(codes), ones, table, group_size=32, device=emulated, zeros=2 * ones
    )
    np.testing.assert_array_equal(got, x.astype(int) @ (codes - 10).T)


def test_all_halves_keep_their_value(emulated) -> None:
    """Every finite binary16 number, subnormal ones too, through a weight of 1."""
    halves = np.arange(1 << 16, dtype=np.uint16).view(np.float16)
    rows_of_31 = halves[np.isfinite(halves)].reshape(-1, 31)
    table = np.array([[0.0, *[1.0] * 15]], np.float32)
    one_hot = cuda.pack_nibbles(np.eye(31, dtype=np.uint8))
    scales = np.ones((31, 1), np.float32)
    for start in range(0, len(rows_of_31), 8):
        rows = rows_of_31[start : start + 8]
        got = cuda.weight_only_gemv(rows, one_hot, scales, table, group_size=32, device=emulated)
        np.testing.assert_array_equal(got, rows.astype(np.float32))


def test_schedules_give_the_same_bits(emulated, gemv_operands) -> None:
    a = gemv_operands(np.random.default_rng(1), 3, 4, 2048, 128, 4, True)
    a["codes"] = cuda.pack_nibbles(a["codes"])
    results = []
    for seed in (1, 2, 3):
        emulated.set(seed, late_copies=False)
        results.append(cuda.weight_only_gemv(**a, warps_per_row=4, device=emulated).tobytes())
    assert len(set(results)) == 1


GOOD = {
    "x": np.ones((1, 64), np.float16),
    "codes": np.zeros((2, 32), np.uint8),
    "scales": np.ones((2, 2), np.float32),
    "tables": np.ones((1, 16), np.float32),
    "group_size": 32,
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": np.ones((9, 64), np.float16)}, r"m in 1 .. 8 is needed, split larger m"),
        ({"x": np.ones((1, 64), np.float32)}, "x is float32"),
        ({"codes": np.zeros((2, 64), np.uint8)}, r"uint8 \[n, 32\] is needed for k = 64"),
        ({"group_size": 48}, r"group_size \(=48\) must be a multiple of 32"),
        ({"warps_per_row": 3}, r"warps_per_row \(=3\) must be 1, 2 or 4"),
        ({"tables": np.ones((5, 16), np.float32)}, r"\[1 .. 4, 16\] is needed"),
        ({"tables": np.full((1, 16), np.nan, np.float32)}, "finite float32 numbers"),
        ({"scales": np.ones((2, 1), np.float32)}, r"scales are float32 \(2, 1\); float32 \[2, 2\]"),
        ({"selectors": np.ones((2, 2), np.uint8)}, "selectors hold 1; with 1 tables"),
        ({"zeros": np.ones((2, 2))}, "zeros are float64"),
    ],
)
def test_operands_are_checked(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        cuda.weight_only_gemv(**{**GOOD, **change})


FAULTS = {
    "no barrier before the warps' sums are added": (
        "    __syncthreads();\n    // The first lanes",
        "    // The first lanes",
    ),
    "a row beyond n": ("if (n < args.n) {", "if (n <= args.n) {"),
}


@pytest.mark.parametrize("fault", [*FAULTS, None])
def test_planted_faults_are_noticed(
    kernel_copy, emulator_compiler, make_emulated, check_gemv, tmp_path, fault
) -> None:
    """And the kernel as it is has none."""
    changes = {} if fault is None else {"weight_only_gemv.cuh": FAULTS[fault]}
    source = kernel_copy(tmp_path, {"binary_gemm.cu", "pack.cu"}, changes)
    library = emulator_compiler(source, tmp_path / "fault.so", "-O0")
    found = 0
    for trial in range(6):
        device = make_emulated(library)
        device.set(trial + 1, late_copies=False)
        rng = np.random.default_rng(trial)
        try:
            check_gemv(device, rng, (2, 3, 4096), 128, 2, True, 2)
        except (AssertionError, RuntimeError):
            found += 1
    assert (found > 0) == (fault is not None)
