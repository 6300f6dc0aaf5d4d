"""A CPU that runs the CUDA kernels: `simt.hpp` and they, behind the interface of a device."""

import ctypes
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bitwright.kernels import cuda

HERE = Path(__file__).parent
MARGIN = 64  #: guard bytes on both sides of an allocation
GUARD = 0xC3
INVALID_VALUE = 1
LAUNCH_FAILURE = 719


class EmulatedDevice(cuda.Device):
    """Host memory with guards, and kernels that run on the emulated machine."""

    def __init__(self, library: ctypes.CDLL, sm_count: int = 108) -> None:
        info = cuda.DeviceInfo(0, "emulated", (8, 0), sm_count, 1 << 10, 1000.0, 1000.0, "0.0", "")
        super().__init__(info, library)
        self.memory: dict[int, np.ndarray] = {}
        self.sizes: dict[int, int] = {}
        self.set(1, late_copies=False)

    def set(self, seed: int, *, late_copies: bool) -> None:
        """Choose the order of threads and the moment of copies."""
        self.seed, self.late_copies = seed, late_copies

    def seconds(self, launch: Callable[[], None]) -> float:
        launch()
        return 1.0  # an emulated machine has no speed

    def malloc(self, size_bytes: int) -> int:
        raw = np.full(size_bytes + 2 * MARGIN + 16, GUARD, np.uint8)
        pointer = raw.ctypes.data + MARGIN
        pointer += -pointer % 16
        at = pointer - raw.ctypes.data
        self.memory[pointer] = raw
        raw[at : at + size_bytes] = 0x7E  # undefined
        self.sizes[pointer] = size_bytes
        self._held.add(pointer)
        return pointer

    def _inside(self, pointer: int) -> np.ndarray:
        """Memory from `pointer`, which may lie inside an allocation, to the allocation's end."""
        for begin, raw in self.memory.items():
            if begin <= pointer < begin + self.sizes[begin]:
                at = pointer - raw.ctypes.data
                return raw[at : at + self.sizes[begin] - (pointer - begin)]
        raise AssertionError("no allocation")

    def free(self, pointer: int) -> None:
        self._held.remove(pointer)
        raw, size = self.memory.pop(pointer), self.sizes.pop(pointer)
        at = pointer - raw.ctypes.data
        assert (raw[:at] == GUARD).all() and (raw[at + size :] == GUARD).all(), "write outside"

    def write(self, pointer: int, array: np.ndarray) -> None:
        self._inside(pointer)[: array.nbytes] = np.ascontiguousarray(array).view(np.uint8).ravel()

    def download(self, pointer: int, shape: tuple[int, ...], dtype: type) -> np.ndarray:
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        return self._inside(pointer)[:size].copy().view(dtype).reshape(shape)

    def status(self, name: str, *args: Any) -> int:
        self.library.simt_set(self.seed, int(self.late_copies))
        for pointer, size in self.sizes.items():
            self.library.simt_region(ctypes.c_void_p(pointer), ctypes.c_size_t(size))
        return super().status(name, *args)

    def error_text(self, code: int) -> str:
        if code == LAUNCH_FAILURE:
            return self.library.simt_error().decode()
        return {INVALID_VALUE: "cudaErrorInvalidValue"}[code]


Compile = Callable[..., ctypes.CDLL]


def compile_emulator(sources: Path, output: Path, optimise: str = "-O1") -> ctypes.CDLL:
    """The kernels in folder `sources` with the emulator, as a library."""
    command = ["g++", "-std=c++17", optimise, "-Wall", "-Wextra", "-Werror", "-U_FORTIFY_SOURCE"]
    command += ["-fPIC", "-shared", f"-I{sources}", f"-I{HERE}"]
    subprocess.run([*command, str(HERE / "emulator.cpp"), "-o", str(output)], check=True)
    library = ctypes.CDLL(str(output))
    library.simt_error.restype = ctypes.c_char_p
    library.simt_mma_count.restype = ctypes.c_longlong
    return library


@pytest.fixture(scope="session")
def emulator_compiler() -> Compile:
    if shutil.which("g++") is None:
        pytest.skip("skipped: g++ is not installed")
    if sys.platform != "linux":
        pytest.skip("skipped: the emulated machine's fibers need Linux")
    return compile_emulator


@pytest.fixture(scope="session")
def emulator(emulator_compiler: Compile, tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return emulator_compiler(cuda.build.FOLDER, tmp_path_factory.mktemp("simt") / "simt.so")


@pytest.fixture
def emulated(emulator: ctypes.CDLL) -> EmulatedDevice:
    return EmulatedDevice(emulator)


@pytest.fixture
def make_emulated() -> Callable[[ctypes.CDLL], EmulatedDevice]:
    return EmulatedDevice


@pytest.fixture
def kernel_copy() -> Callable[[Path, set[str], dict[str, tuple[str, str]]], Path]:
    """The sources in a folder of their own, some of them empty, some with a passage replaced."""

    def copy(folder: Path, empty: set[str], changes: dict[str, tuple[str, str]]) -> Path:
        source = folder / "cuda"
        shutil.copytree(
            cuda.build.FOLDER, source, ignore=shutil.ignore_patterns("*.py", "__pycache__")
        )
        for name in empty:
            (source / name).write_text("")
        for name, (right, wrong) in changes.items():
            text = (source / name).read_text()
            assert text.count(right) == 1, right
            (source / name).write_text(text.replace(right, wrong))
        return source

    return copy


@pytest.fixture
def check_gemm() -> Callable[..., None]:
    return _check_gemm


@pytest.fixture
def check_gemv() -> Callable[..., None]:
    return _check_gemv


@pytest.fixture
def gemv_operands() -> Callable[..., dict[str, Any]]:
    return _gemv_operands


def numbers(codes: np.ndarray, bits: int, signed: bool) -> np.ndarray:
    """Codes as the integers that they mean."""
    values = codes.astype(np.int64)
    return np.where(values >> bits - 1 & signed == 1, values - (1 << bits), values)


def wrapped_sums(x: np.ndarray, w: np.ndarray, group_size: int) -> np.ndarray:
    starts = range(0, x.shape[1], group_size)
    sums = np.stack([x[:, k : k + group_size] @ w[:, k : k + group_size].T for k in starts])
    return ((sums + 2**31) % 2**32 - 2**31).astype(np.int32)


def random_codes(rng: np.random.Generator, rows: int, k: int, bits: int) -> np.ndarray:
    return rng.integers(0, 1 << bits, (rows, k)).astype(np.uint8)


def _check_gemm(
    device: cuda.Device,
    rng: np.random.Generator,
    tile: cuda.Tile | None,
    *,
    m: int,
    n: int,
    k: int,
    bits: tuple[int, int],
    signed: tuple[bool, bool],
    group_size: int | None = None,
) -> None:
    x, w = random_codes(rng, m, k, bits[0]), random_codes(rng, n, k, bits[1])
    got = cuda.binary_group_sums(
        cuda.pack_planes(x, bits[0]),
        cuda.pack_planes(w, bits[1]),
        group_size=group_size,
        x_signed=signed[0],
        w_signed=signed[1],
        tile=tile,
        device=device,
    )
    wanted = wrapped_sums(
        numbers(x, bits[0], signed[0]), numbers(w, bits[1], signed[1]), group_size or k
    )
    np.testing.assert_array_equal(got, wanted)


def _gemv_operands(
    rng: np.random.Generator, m: int, n: int, k: int, group_size: int, tables: int, zeros: bool
) -> dict[str, Any]:
    groups = -(-k // group_size)
    return {
        "x": rng.standard_normal((m, k)).astype(np.float16),
        "codes": rng.integers(0, 16, (n, k)).astype(np.uint8),
        "scales": rng.uniform(2**-8, 2, (n, groups)).astype(np.float32),
        "tables": rng.uniform(-8, 8, (tables, 16)).astype(np.float32),
        "group_size": group_size,
        "selectors": rng.integers(0, tables, (n, groups)).astype(np.uint8) if tables > 1 else None,
        "zeros": rng.uniform(0, 15, (n, groups)).astype(np.float32) if zeros else None,
    }


def _check_gemv(
    device: cuda.Device,
    rng: np.random.Generator,
    shape: tuple[int, int, int],
    group_size: int,
    tables: int,
    zeros_too: bool,
    warps: int,
) -> None:
    """A random product of shape (m, n, k) against float64.

    The bound. Let u = 2**-24, and p_k = |scale| (|table| + |zero|) |x| the size of product k. The
    difference table - zero is rounded once. A lane's sum of a chunk is a chain of 32 fused
    multiply-adds, so product k passes at most 32 more roundings; scale * chunk + sum is one fused
    multiply-add, and at most c = ceil(chunks / (32 S)) of them follow one another in a lane. Five
    shuffles and S - 1 additions of warps come last. Every product thus passes at most r = 1 + 32
    + c + 5 + S - 1 roundings, and the error is at most gamma_r = r u / (1 - r u) times the sum of
    p_k (Higham, Accuracy and Stability of Numerical Algorithms, lemma 3.1). Underflow would add
    to it. Here a product that is not zero is at least 2**-22 (a difference of float32 numbers
    near 1) * 2**-24 * 2**-8, far above 2**-126.
    """
    a = _gemv_operands(rng, *shape, group_size, tables, zeros_too)
    u = 2.0**-24
    codes = cuda.pack_nibbles(a["codes"])
    got = cuda.weight_only_gemv(**{**a, "codes": codes}, warps_per_row=warps, device=device)
    n, k = a["codes"].shape
    group = np.arange(k) // a["group_size"]
    selectors = a["selectors"] if a["selectors"] is not None else np.zeros((n, group[-1] + 1), int)
    zeros = a["zeros"] if a["zeros"] is not None else np.zeros((n, group[-1] + 1))
    values = a["tables"].astype(np.float64)[selectors[:, group], a["codes"]]
    scales, zeros = a["scales"].astype(np.float64)[:, group], zeros.astype(np.float64)[:, group]
    x = a["x"].astype(np.float64)
    wanted = x @ (scales * (values - zeros)).T
    size = np.abs(x) @ (np.abs(scales) * (np.abs(values) + np.abs(zeros))).T
    chunks = (k + 31) // 32
    roundings = 1 + 32 + (chunks + 32 * warps - 1) // (32 * warps) + 5 + warps - 1
    # 2**-50: the reference's own error, k products in float64
    bound = (roundings * u / (1 - roundings * u) + k * 2.0**-50) * size
    assert got.dtype == np.float32 and got.shape == wanted.shape
    assert (np.abs(got - wanted) <= bound).all()
