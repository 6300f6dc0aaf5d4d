"""How fast the GPU kernels are: a JSON document of times measured on this machine's device.

    bitwright bench cuda --out benchmarks/cuda.json

Shapes and precisions are those of ABQ-LLM's kernel figure (arXiv 2408.08554). For each, the fastest
tile with the right result is searched; then packing the activations into planes on the device and
the product are timed apart from each other. Resident weights are the same array in every run, as
in the paper, so that small ones stay in the L2 cache; of streamed weights so many copies take turns
that every run reads DRAM. TOPS = 2 m n k / t of resident runs. Baselines are cuBLAS' INT8 and FP16
products, timed likewise; where cuBLAS cannot be used the document says why, and times FP16 with
torch if that finds the device. Every number in the document was measured.
"""

import ctypes
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import numpy as np

from bitwright.quant import InputError, Progress

from .build import build_library, content_hash
from .device import Device, clocks
from .gemm import Gemm
from .planes import pack_nibbles, pack_planes
from .search import TIMED_RUNS, WARMUP_RUNS, device_measure, search_tile
from .tiles import TILES, Problem, Tile

BATCHES = (1, 4, 8)
SHAPES = ((4096, 4096), (11008, 4096), (4096, 11008))  #: (n, k)
#: (w_bits, x_bits), in the figure's order.
PRECISIONS = (
    (8, 8), (7, 7), (6, 6), (5, 5), (4, 8), (3, 8), (2, 8), (4, 4), (3, 3), (2, 4), (2, 2),
)  # fmt: skip
GEMV_GROUP = 128
STREAMED_CACHES = 4  #: copies of the weights fill the L2 cache this many times


def benchmark(
    device: Device | None = None,
    *,
    batches: Sequence[int] = BATCHES,
    shapes: Sequence[tuple[int, int]] = SHAPES,
    precisions: Sequence[tuple[int, int]] = PRECISIONS,
    tiles: Sequence[Tile] = TILES,
    runs: int = TIMED_RUNS,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """The document, ready for JSON: times in microseconds per run.

    Args:
        device: Where; opened and closed here by default.
        batches: Rows of activations.
        shapes: (n, k) of the weights.
        precisions: (w_bits, x_bits).
        tiles: Which ones the search tries.
        runs: Timed runs; 10 more warm up.
        progress: Called before each measurement.

    Raises:
        InputError: There is no CUDA device, or nvcc is missing.
    """
    if device is None:
        with Device.open() as device:
            return benchmark(
                device,
                batches=batches,
                shapes=shapes,
                precisions=precisions,
                tiles=tiles,
                runs=runs,
                progress=progress,
            )
    total = len(shapes) * len(batches) * (len(precisions) + 1)
    done = 0

    def tell(what: str) -> None:
        nonlocal done
        if progress:
            progress(done, total, what)
        done += 1

    rng = np.random.default_rng(0)
    document: dict[str, Any] = {
        "what": "bit-plane GEMM and weight-only GEMV on a GPU",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "device": asdict(device.info),
        "sources": content_hash(),
        "protocol": {"warmup_runs": WARMUP_RUNS, "timed_runs": runs, "times": "microseconds"},
        "clocks_mhz_before": clocks(device.info),
        "binary_gemm": [],
        "weight_only_gemv": [],
        "baselines": [],
    }
    with _baselines(device) as baselines:
        for n, k in shapes:
            w_codes = rng.integers(0, 256, (n, k)).astype(np.uint8)
            w_planes = pack_planes(w_codes, 8)
            for m in batches:
                x_codes = rng.integers(0, 256, (m, k)).astype(np.uint8)
                for w_bits, x_bits in precisions:
                    problem = Problem(m, n, k, x_bits, w_bits, x_signed=True, w_signed=True)
                    tell(problem.key)
                    x = x_codes & (1 << x_bits) - 1
                    row = _gemm_row(device, problem, x, w_planes[:w_bits], tiles, runs)
                    document["binary_gemm"].append(row)
                tell(f"m{m}-n{n}-k{k} weight-only and baselines")
                document["weight_only_gemv"].append(_gemv_row(device, m, w_codes, runs))
                document["baselines"] += [baseline(m, n, k, runs) for baseline in baselines]
    document["clocks_mhz_after"] = clocks(device.info)
    return document


def _gemm_row(
    device: Device,
    problem: Problem,
    x_codes: np.ndarray,
    w_planes: np.ndarray,
    tiles: Sequence[Tile],
    runs: int,
) -> dict[str, Any]:
    x = pack_planes(x_codes, problem.x_bits)
    measure = device_measure(device, runs=runs)
    found = search_tile(
        problem, device=device, measure=measure, tiles=tiles, operands=(x, w_planes)
    )
    with Gemm(device, problem, x, w_planes, _copies(device, w_planes.nbytes)) as gemm:
        streamed = measure(found.tile, lambda n: gemm.launch(found.tile, n))
    return {
        "m": problem.m,
        "n": problem.n,
        "k": problem.k,
        "precision": f"w{problem.w_bits}a{problem.x_bits}",
        "tile": found.tile.name,
        "tiles_refused": {t.tile.name: t.refusal for t in found.trials if t.refusal},
        "pack_us": 1e6 * _pack_seconds(device, problem, x_codes, runs),
        **_times(found.seconds, streamed, problem.operations),
    }


def _times(resident: float, streamed: float, operations: int) -> dict[str, float]:
    return {
        "resident_us": 1e6 * resident,
        "streamed_us": 1e6 * streamed,
        "tops": operations / resident / 1e12,
    }


def _copies(device: Device, weight_bytes: int) -> int:
    return 1 + -(-STREAMED_CACHES * device.info.l2_bytes // weight_bytes)


def _pack_seconds(device: Device, problem: Problem, x_codes: np.ndarray, runs: int) -> float:
    source = device.upload(x_codes)
    target = device.malloc(4 * problem.x_bits * problem.m * problem.words)
    pointers = (ctypes.c_void_p(source), ctypes.c_void_p(target))
    sizes = (problem.m, problem.k, problem.words, problem.x_bits, None)

    def launch(n: int) -> None:
        device.call("bitwright_pack_planes_runs", n, *pointers, *sizes)

    try:
        return _seconds_per_run(device, launch, runs)
    finally:
        device.free(source)
        device.free(target)


def _seconds_per_run(device: Device, launch: Callable[[int], None], runs: int) -> float:
    launch(WARMUP_RUNS)
    return device.seconds(lambda: launch(runs)) / runs


def _gemv_row(device: Device, m: int, w_codes: np.ndarray, runs: int) -> dict[str, Any]:
    """4-bit weights in groups of 128 without zero points, with the best number of warps per row."""
    n, k = w_codes.shape
    groups = -(-k // GEMV_GROUP)
    arrays = (
        pack_nibbles(w_codes & 15),
        np.full((n, groups), 2**-6, np.float32),
        np.arange(-8, 8, dtype=np.float32)[None],
        np.ones((m, k), np.float16),
    )
    held = [device.upload(array) for array in arrays]
    held.append(device.malloc(4 * m * n))
    codes, scales, table, x, y = (ctypes.c_void_p(pointer) for pointer in held)
    seconds = {}
    try:
        for warps in (1, 2, 4):

            def launch(count: int, warps: int = warps) -> None:
                device.call(
                    "bitwright_weight_only_gemv_runs",
                    *(count, codes, scales, table, None, None, x, y),
                    *(m, n, k, GEMV_GROUP, 1, warps, None),
                )

            seconds[warps] = _seconds_per_run(device, launch, runs)
    finally:
        for pointer in held:
            device.free(pointer)
    best = min(seconds, key=lambda warps: seconds[warps])
    return {
        "m": m,
        "n": n,
        "k": k,
        "precision": f"w4a16-g{GEMV_GROUP}",
        "warps_per_row": best,
        "resident_us": 1e6 * seconds[best],
        "tops": 2 * m * n * k / seconds[best] / 1e12,
    }


#: One baseline's row for (m, n, k, runs).
Baseline = Callable[[int, int, int, int], dict[str, Any]]


@contextmanager
def _baselines(device: Device) -> Iterator[list[Baseline]]:
    """cuBLAS' products; without cuBLAS, torch's FP16 one or rows that say why there is none."""
    handle = ctypes.c_void_p()
    try:
        library = ctypes.CDLL(str(build_library(sources=("cublas.cu",), libraries=("cublas",))))
        code = library.bitwright_cublas_create(ctypes.byref(handle))
        reason = f"cublasCreate failed with status {code - 100000}" if code else None
    except (InputError, OSError) as error:
        reason = str(error)
    if reason is not None:
        yield [_absent("int8", reason), _torch_baseline(reason)]
        return
    try:
        yield [_cublas_baseline(device, library, handle, int8) for int8 in (True, False)]
    finally:
        library.bitwright_cublas_destroy(handle)


def _absent(name: str, reason: str) -> Baseline:
    return lambda m, n, k, runs: {"m": m, "n": n, "k": k, "precision": name, "absent": reason}


def _cublas_baseline(
    device: Device, library: ctypes.CDLL, handle: ctypes.c_void_p, int8: bool
) -> Baseline:
    version = ctypes.c_int()
    library.bitwright_cublas_version(handle, ctypes.byref(version))
    dtype, out_bytes, name = (np.int8, 4, "int8") if int8 else (np.float16, 2, "fp16")

    def measure(m: int, n: int, k: int, runs: int) -> dict[str, Any]:
        row = {"m": m, "n": n, "k": k, "precision": name, "library": f"cuBLAS {version.value}"}
        w = np.ones((n, k), dtype)
        copies = _copies(device, w.nbytes)
        held = [device.upload(np.ones((m, k), dtype)), device.malloc(copies * w.nbytes)]
        held.append(device.malloc(out_bytes * m * n))
        try:
            for copy in range(copies):
                device.write(held[1] + copy * w.nbytes, w)
            pointers = [ctypes.c_void_p(pointer) for pointer in held]
            seconds = []
            for count in (1, copies):
                sizes = (count, int(int8), *pointers, m, n, k)
                code = library.bitwright_cublas_runs(handle, 1, *sizes)
                if code != 0:
                    return {**row, "absent": f"cublasGemmEx failed with status {code - 100000}"}

                def launch(times: int, sizes: tuple[Any, ...] = sizes) -> None:
                    failure = library.bitwright_cublas_runs(handle, times, *sizes)
                    assert failure == 0, failure

                seconds.append(_seconds_per_run(device, launch, runs))
            result = device.download(held[2], (m, n), np.int32 if int8 else np.float16)
            # Sums of k ones, exact before they are rounded to float16.
            if not (result == np.array(k).astype(result.dtype)).all():
                return {**row, "absent": "cublasGemmEx gives a wrong result"}
            return {**row, **_times(seconds[0], seconds[1], 2 * m * n * k)}
        finally:
            for pointer in held:
                device.free(pointer)

    return measure


def _torch_baseline(reason: str) -> Baseline:
    try:
        import torch

        usable = torch.cuda.is_available()
    except (ImportError, RuntimeError):
        usable = False
    if not usable:
        return _absent("fp16", f"{reason}; nor does torch find a CUDA device")

    def measure(m: int, n: int, k: int, runs: int) -> dict[str, Any]:
        x = torch.ones((m, k), dtype=torch.float16, device="cuda")
        w = torch.ones((n, k), dtype=torch.float16, device="cuda")
        events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]
        for _ in range(WARMUP_RUNS):
            x @ w.T
        events[0].record()
        for _ in range(runs):
            x @ w.T
        events[1].record()
        torch.cuda.synchronize()
        seconds = events[0].elapsed_time(events[1]) / 1000 / runs
        return {
            "m": m,
            "n": n,
            "k": k,
            "precision": "fp16",
            "library": f"torch {torch.__version__}, its launches included",
            "resident_us": 1e6 * seconds,
            "tops": 2 * m * n * k / seconds / 1e12,
        }

    return measure
