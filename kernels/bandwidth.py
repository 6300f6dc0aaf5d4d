"""How fast this machine reads memory: what kernels that read weights once are measured against."""

import time

import numpy as np
from numba import prange

from .cpu import simd
from .cpu.layouts import aligned
from .cpu.simd import jit

_PARTS = 64


@jit(parallel=True)
def _read(data, sums):  # type: ignore[no-untyped-def]
    """Add up 64-byte vectors of data uint8 [parts, bytes]; sums int32 [parts, 16]."""
    for part in prange(data.shape[0]):
        a = b = simd.splat_i32(0)
        source = data[part]
        for at in range(0, source.shape[0], 128):
            simd.fetch(source, at + 4096)
            simd.fetch(source, at + 4160)
            a = simd.add_i32(a, simd.load_i32(source, at))
            b = simd.add_i32(b, simd.load_i32(source, at + 64))
        simd.store(sums[part], 0, simd.add_i32(a, b))


def memory_bandwidth(megabytes: int = 256, runs: int = 10) -> float:
    """Bytes read per nanosecond (GB/s), the best of several runs over one array, all threads."""
    data = aligned((_PARTS, (megabytes << 20) // _PARTS), np.uint8)
    data[:, ::4096] = 1  # every page is really there
    sums = np.zeros((_PARTS, 16), np.int32)
    times = []
    for _ in range(runs + 1):  # the first one compiles
        start = time.perf_counter()
        _read(data, sums)
        times.append(time.perf_counter() - start)
    assert sums.sum() == data[:, ::4096].size
    return data.nbytes / min(times[1:]) / 1e9
