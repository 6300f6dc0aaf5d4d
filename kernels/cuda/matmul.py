"""The GPU kernels on numpy arrays: operands are moved to the device and results back.

The bit-plane GEMM gives integer sums and knows neither zero points nor scales. For activations
x = s_x (X - z_x) and weights w = s_w (W - z_w), the sum of products over a group of K elements is

    s_x s_w (Y - z_x SW - z_w SX + K z_x z_w)

with Y from `binary_group_sums`, SX and SW the row sums of the codes X and W over the same group,
and K the elements of the group without its padding. The caller applies that, and adds the groups.
"""

import ctypes

import numpy as np
from jaxtyping import Float16, Float32, Int32, UInt8, UInt32

from bitwright.quant import InputError

from .device import Device
from .gemm import Gemm
from .search import remembered_tile
from .tiles import Problem, Tile, default_tile

MOST_ROWS = 8  #: of activations in the weight-only GEMV
MOST_TABLES = 4


def binary_group_sums(
    x_planes: UInt32[np.ndarray, "p m words"],
    w_planes: UInt32[np.ndarray, "q n words"],
    *,
    group_size: int | None = None,
    x_signed: bool = False,
    w_signed: bool = False,
    tile: Tile | None = None,
    device: Device | None = None,
) -> Int32[np.ndarray, "groups m n"]:
    """Integer dot products per group of k: sum over planes of a_i b_j popcount(X_i AND W_j).

    a_i = 2**i and b_j = 2**j, the top plane's negative for two's complement operands. Sums are
    int32 and wrap. The last group may be shorter than the others.

    Args:
        x_planes: Activations, uint32 (`pack_planes`), 1 .. 8 planes.
        w_planes: Weights likewise, with as many words.
        group_size: Elements of k per sum, a multiple of 128; None for one sum over all of k.
        x_signed: Whether activations are two's complement.
        w_signed: Whether weights are two's complement.
        tile: Which instantiation; by default the one that `search_tile` found best on this device,
            else `default_tile`.
        device: Where; opened and closed here by default.

    Raises:
        InputError: Shapes or types do not fit, or there is no CUDA device.
    """
    for name, planes in (("x_planes", x_planes), ("w_planes", w_planes)):
        if planes.ndim != 3 or planes.dtype != np.uint32 or 0 in planes.shape:
            raise InputError(
                f"{name} are {planes.dtype} {planes.shape}; uint32 [planes, rows, words] is "
                "needed, as pack_planes gives it"
            )
    if x_planes.shape[2] != w_planes.shape[2]:
        raise InputError(
            f"x_planes have {x_planes.shape[2]} words of k and w_planes {w_planes.shape[2]}; "
            "they must have as many"
        )
    problem = Problem(
        m=x_planes.shape[1],
        n=w_planes.shape[1],
        k=32 * x_planes.shape[2],
        x_bits=x_planes.shape[0],
        w_bits=w_planes.shape[0],
        group_size=group_size,
        x_signed=x_signed,
        w_signed=w_signed,
    )
    if device is None:
        with Device.open() as device:
            return _group_sums(device, problem, x_planes, w_planes, tile)
    return _group_sums(device, problem, x_planes, w_planes, tile)


def _group_sums(
    device: Device, problem: Problem, x_planes: np.ndarray, w_planes: np.ndarray, tile: Tile | None
) -> np.ndarray:
    tile = tile or remembered_tile(problem, device.info) or default_tile(problem)
    with Gemm(device, problem, x_planes, w_planes) as gemm:
        gemm.launch(tile)
        return gemm.sums()


def weight_only_gemv(
    x: Float16[np.ndarray, "m k"],
    codes: UInt8[np.ndarray, "n half"],
    scales: Float32[np.ndarray, "n groups"],
    tables: Float32[np.ndarray, "tables 16"],
    *,
    group_size: int,
    selectors: UInt8[np.ndarray, "n groups"] | None = None,
    zeros: Float32[np.ndarray, "n groups"] | None = None,
    warps_per_row: int = 1,
    device: Device | None = None,
) -> Float32[np.ndarray, "m n"]:
    """y[m, n] = x[m, k] @ w[n, k].T with w = scale * (table[selector][code] - zero), in float32.

    The error is at most r u / (1 - r u) times the sum of |scale| (|table| + |zero|) |x|, where
    u = 2**-24 and r = 37 + c + warps_per_row: one rounding in the difference, 32 in the sum of a
    chunk of 32 codes, c = ceil(ceil(k / 32) / (32 warps_per_row)) in a lane's sum of chunks, 5 in
    the shuffles and warps_per_row - 1 at last. Underflow would add to it. The bits of a result do
    not depend on timing.

    Args:
        x: Activations, 1 .. 8 rows.
        codes: 4-bit codes, two a byte (`pack_nibbles`), [n, ceil(k / 2)].
        scales: Group scales.
        tables: Value of each code, 1 .. 4 tables of 16 finite numbers.
        group_size: Columns per group, a multiple of 32; the last group may be shorter.
        selectors: Table of each group; table 0 by default.
        zeros: Subtracted from each group's values; 0 by default.
        warps_per_row: Warps that share a row of weights: 1, 2 or 4.
        device: Where; opened and closed here by default.

    Raises:
        InputError: Shapes, types or values do not fit, or there is no CUDA device.
    """
    if x.ndim != 2 or x.dtype != np.float16 or not 1 <= x.shape[0] <= MOST_ROWS or not x.shape[1]:
        raise InputError(
            f"x is {x.dtype} {x.shape}; float16 [m, k] with m in 1 .. {MOST_ROWS} is needed, "
            "split larger m"
        )
    k = x.shape[1]
    if codes.ndim != 2 or codes.dtype != np.uint8 or codes.shape[1] != -(-k // 2) or not len(codes):
        raise InputError(
            f"codes are {codes.dtype} {codes.shape}; uint8 [n, {-(-k // 2)}] is needed for "
            f"k = {k}, as pack_nibbles gives it"
        )
    if group_size < 32 or group_size % 32:
        raise InputError(f"group_size (={group_size}) must be a multiple of 32")
    if warps_per_row not in (1, 2, 4):
        raise InputError(f"warps_per_row (={warps_per_row}) must be 1, 2 or 4")
    if tables.ndim != 2 or tables.shape[1] != 16 or not 1 <= len(tables) <= MOST_TABLES:
        raise InputError(f"tables have shape {tables.shape}; [1 .. {MOST_TABLES}, 16] is needed")
    if tables.dtype != np.float32 or not np.isfinite(tables).all():
        raise InputError(f"tables are {tables.dtype}; 16 finite float32 numbers each are needed")
    grouped = (len(codes), -(-k // group_size))
    _check_grouped("scales", scales, np.float32, grouped)
    if zeros is not None:
        _check_grouped("zeros", zeros, np.float32, grouped)
    if selectors is not None:
        _check_grouped("selectors", selectors, np.uint8, grouped)
        if selectors.max() >= len(tables):
            raise InputError(
                f"selectors hold {selectors.max()}; with {len(tables)} tables they are "
                f"0 .. {len(tables) - 1}"
            )
    operands = (x, codes, scales, tables, selectors, zeros)
    if device is None:
        with Device.open() as device:
            return _gemv(device, *operands, group_size, warps_per_row)
    return _gemv(device, *operands, group_size, warps_per_row)


def _gemv(
    device: Device,
    x: np.ndarray,
    codes: np.ndarray,
    scales: np.ndarray,
    tables: np.ndarray,
    selectors: np.ndarray | None,
    zeros: np.ndarray | None,
    group_size: int,
    warps_per_row: int,
) -> np.ndarray:
    m, n = len(x), len(codes)
    padded = -(-x.shape[1] // 32) * 32  # a lane takes 32 codes; x is zero where there are none
    x = np.pad(x, ((0, 0), (0, padded - x.shape[1])))
    codes = np.pad(codes, ((0, 0), (0, padded // 2 - codes.shape[1])))
    y = device.malloc(4 * m * n)
    pointers = [
        None if array is None else device.upload(array)
        for array in (codes, scales, tables, selectors, zeros, x)
    ]
    try:
        device.call(
            "bitwright_weight_only_gemv",
            *(ctypes.c_void_p(pointer) for pointer in (*pointers, y)),
            *(m, n, padded, group_size, len(tables), warps_per_row),
            None,
        )
        return device.download(y, (m, n), np.float32)
    finally:
        for pointer in (*pointers, y):
            if pointer is not None:
                device.free(pointer)


def _check_grouped(name: str, array: np.ndarray, dtype: type, shape: tuple[int, int]) -> None:
    if array.shape != shape or array.dtype != dtype:
        raise InputError(
            f"{name} are {array.dtype} {array.shape}; "
            f"{np.dtype(dtype).name} {list(shape)} is needed"
        )
