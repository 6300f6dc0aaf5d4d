"""The same checks on a GPU, where there is one: they alone run the inline PTX."""

import ctypes
from collections.abc import Iterator

import numpy as np
import pytest

from bitwright.kernels import cuda, matmul, reference
from bitwright.quant import parse_activation, quantize, quantize_activations

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(cuda.no_device_reason() is not None, reason="no CUDA device"),
    pytest.mark.skipif(cuda.build.find_nvcc() is None, reason="skipped: nvcc is not installed"),
]


@pytest.fixture(scope="module")
def gpu() -> Iterator[cuda.Device]:
    with cuda.Device.open() as device:
        yield device


@pytest.mark.parametrize("tile", cuda.TILES, ids=lambda t: t.name)
def test_binary_gemm(gpu, check_gemm, tile: cuda.Tile) -> None:
    rng = np.random.default_rng(tile.index)
    for _ in range(20):
        groups, group_size = int(rng.integers(1, 4)), 128 * int(rng.integers(1, 17))
        check_gemm(
            gpu,
            rng,
            tile,
            m=int(rng.integers(1, 70)),
            n=int(rng.integers(1, 300)),
            k=int(group_size * groups - rng.integers(0, 100)),
            bits=(int(rng.integers(1, 9)), int(rng.integers(1, 9))),
            signed=(bool(rng.integers(2)), bool(rng.integers(2))),
            group_size=group_size if groups > 1 else None,
        )


@pytest.mark.parametrize("warps", [1, 2, 4])
@pytest.mark.parametrize("m", range(1, 9))
def test_weight_only_gemv(gpu, check_gemv, m: int, warps: int) -> None:
    rng = np.random.default_rng(m)
    for shape, group_size in (((m, 129, 4096), 128), ((m, 7, 11008), 64), ((m, 3, 33), 32)):
        check_gemv(gpu, rng, shape, group_size, 4, True, warps)


def test_packing(gpu) -> None:
    codes = np.random.default_rng(0).integers(0, 256, (33, 4000)).astype(np.uint8)
    wanted = cuda.pack_planes(codes, 8)
    pointers = gpu.upload(codes), gpu.malloc(wanted.nbytes)
    sizes = (*codes.shape, wanted.shape[2], 8, None)
    gpu.call("bitwright_pack_planes", *(ctypes.c_void_p(p) for p in pointers), *sizes)
    np.testing.assert_array_equal(gpu.download(pointers[1], wanted.shape, np.uint32), wanted)


def test_search_finds_no_wrong_tile(gpu, monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("BITWRIGHT_CACHE", str(tmp_path))
    problem = cuda.Problem(4, 4096, 4096, 8, 2, x_signed=True, w_signed=True)
    found = cuda.search_tile(problem, device=gpu)
    assert found.seconds > 0
    assert [t.refusal for t in found.trials] == [None] * len(cuda.TILES)


def test_matmul() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((11, 300)).astype(np.float16).astype(np.float32)
    w = quantize(rng.standard_normal((70, 300)).astype(np.float32), "int4-asym", group_size=128)
    acts = quantize_activations(x, parse_activation("a8-asym"))
    exact = reference.reference_integer(acts, w)
    np.testing.assert_array_equal(matmul(acts, w, "cuda", method="planes"), exact)
    error = np.abs(matmul(x, w, "cuda") - reference.reference_float(x, w))
    # Values and zero points of 15 and less are sums of their own: 30 |x| s beside |x w|.
    bound = reference.float_bound(x, np.full(w.shape, 30 * w.scales().max(), np.float32), 128)
    assert (error <= bound).all()
