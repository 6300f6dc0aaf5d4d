"""The benchmark's document, from an emulated machine whose every measurement is one second."""

import json

import pytest

from bitwright.kernels import cuda
from bitwright.quant import InputError


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("BITWRIGHT_CACHE", str(tmp_path))


@pytest.fixture
def no_cublas(monkeypatch) -> None:
    def fail(**_: object) -> None:
        raise InputError("nvcc failed: cublas_v2.h: No such file or directory")

    monkeypatch.setattr(cuda.bench, "build_library", fail)


def test_the_document(emulated, no_cublas) -> None:
    told: list[tuple[int, int, str]] = []
    document = cuda.bench.benchmark(
        emulated,
        batches=(1, 2),
        shapes=((6, 128),),
        precisions=((2, 3),),
        tiles=cuda.TILES[:2],
        runs=1,
        progress=lambda *step: told.append(step),
    )
    assert json.loads(json.dumps(document)) == document | {
        "device": {**document["device"], "compute_capability": [8, 0]}
    }
    assert told[0] == (0, 4, "m1-n6-k128-x3s-w2s-gk")
    assert [done for done, _, _ in told] == [0, 1, 2, 3]
    assert [row["m"] for row in document["binary_gemm"]] == [1, 2]
    # One run takes a second: 2 * 2 * 6 * 128 operations are 3.072e-9 TOPS.
    row = document["binary_gemm"][1]
    assert row["precision"] == "w2a3" and row["tile"] == cuda.TILES[0].name
    assert (row["pack_us"], row["resident_us"], row["streamed_us"]) == (1e6, 1e6, 1e6)
    assert row["tops"] == pytest.approx(3.072e-9)
    assert row["tiles_refused"] == {}
    assert document["weight_only_gemv"][0]["precision"] == "w4a16-g128"
    assert emulated.memory == {}


def test_a_missing_baseline_is_said_and_not_invented(emulated, no_cublas, monkeypatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    document = cuda.bench.benchmark(
        emulated, batches=(1,), shapes=((4, 128),), precisions=(), tiles=(), runs=1
    )
    int8, fp16 = document["baselines"]
    reason = "nvcc failed: cublas_v2.h: No such file or directory"
    assert int8 == {"m": 1, "n": 4, "k": 128, "precision": "int8", "absent": reason}
    assert fp16["absent"] == f"{reason}; nor does torch find a CUDA device"


def test_shapes_and_precisions_are_the_papers() -> None:
    names = [f"w{w}a{x}" for w, x in cuda.bench.PRECISIONS]
    assert " ".join(names) == "w8a8 w7a7 w6a6 w5a5 w4a8 w3a8 w2a8 w4a4 w3a3 w2a4 w2a2"
    assert cuda.bench.BATCHES == (1, 4, 8)
    assert cuda.bench.SHAPES == ((4096, 4096), (11008, 4096), (4096, 11008))
