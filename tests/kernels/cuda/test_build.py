"""Compiling: the command, the cache and its errors with a stand-in for nvcc, and nvcc itself."""

import ctypes
import os
import subprocess
from pathlib import Path

import pytest

from bitwright.kernels import cuda
from bitwright.quant import InputError

build = cuda.build


@pytest.fixture(autouse=True)
def own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("BITWRIGHT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def nvcc_script(monkeypatch, tmp_path):
    """Put a shell script in nvcc's place."""

    def install(text: str) -> None:
        script = tmp_path / "nvcc"
        script.write_text(f"#!/bin/sh\n{text}\n")
        script.chmod(0o755)
        monkeypatch.setattr(build, "find_nvcc", lambda: str(script))

    return install


def test_a_missing_nvcc_is_told_with_the_way_out(monkeypatch) -> None:
    monkeypatch.setattr(build, "find_nvcc", lambda: None)
    with pytest.raises(InputError, match="nvcc is not installed; install the CUDA toolkit .* PATH"):
        cuda.build_library()


def test_nvcc_is_found_by_path_then_home(monkeypatch, tmp_path) -> None:
    nvcc = tmp_path / "bin" / "nvcc"
    nvcc.parent.mkdir()
    nvcc.write_text("")
    nvcc.chmod(0o755)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert build.find_nvcc() == str(nvcc)
    monkeypatch.setenv("PATH", str(nvcc.parent))
    assert build.find_nvcc() == str(nvcc)


def test_the_first_error_is_told(nvcc_script) -> None:
    nvcc_script('[ "$1" = --version ] || { echo note >&2; echo "a.cu(3): error: x" >&2; exit 1; }')
    with pytest.raises(InputError, match=r"failed: a.cu\(3\): error: x; CUDA 12.0 or newer"):
        cuda.build_library()


def test_a_built_library_is_kept(nvcc_script, tmp_path) -> None:
    nvcc_script(
        'if [ "$1" = --version ]; then echo 1; exit; fi\n'
        f'echo run >> {tmp_path}/log\nwhile [ "$1" != -o ]; do shift; done; echo library > "$2"'
    )
    first = cuda.build_library()
    assert first.read_text() == "library\n"
    assert cuda.build_library() == first
    assert (tmp_path / "log").read_text() == "run\n"
    assert cuda.build_library(architectures=("80",)) != first


def test_the_hash_is_that_of_the_sources(monkeypatch, kernel_copy, tmp_path) -> None:
    hashes = {cuda.content_hash()}
    source = kernel_copy(tmp_path, set(), {})
    monkeypatch.setattr(build, "FOLDER", source)
    hashes.add(cuda.content_hash())
    assert len(hashes) == 1
    with (source / "ptx.cuh").open("a") as file:
        file.write("// changed\n")
    hashes.add(cuda.content_hash())
    assert len(hashes) == 2


def test_the_command_names_every_architecture_and_source() -> None:
    command = build.nvcc_command("nvcc", Path("out.so"), libraries=("cublas",))
    targets = [a.split("code=")[-1] for a in command if a.startswith("-gencode")]
    assert targets == ["sm_80", "sm_86", "sm_89", "sm_90", "compute_90"]
    sources = {Path(a).name for a in command if a.endswith(".cu")}
    assert sources == {p.name for p in build.FOLDER.glob("*.cu")} - {"cublas.cu"}
    assert command[-3:] == ["-o", "out.so", "-lcublas"]


NVCC = build.find_nvcc()
needs_nvcc = pytest.mark.skipif(NVCC is None, reason="skipped: nvcc is not installed")


@pytest.mark.slow
@needs_nvcc
def test_nvcc_compiles_everything(tmp_path) -> None:
    """For one architecture; the library loads without a GPU and has the table of tiles."""
    library = ctypes.CDLL(str(cuda.build_library(architectures=("80",))))
    assert library.bitwright_tiles() == len(cuda.TILES)
    for name in ("malloc", "binary_gemm_runs", "pack_planes_runs", "weight_only_gemv_runs"):
        assert hasattr(library, f"bitwright_{name}")
    if cuda.no_device_reason() == "no CUDA device":
        pointer = ctypes.c_void_p()
        assert library.bitwright_malloc(ctypes.byref(pointer), ctypes.c_size_t(16)) != 0


@pytest.mark.slow
@needs_nvcc
def test_the_instructions_are_those_of_the_binary_tensor_cores(tmp_path, kernel_copy) -> None:
    assert NVCC is not None
    source = kernel_copy(tmp_path, set(), {})
    tiles = "TILE(8, 8, 32, 128, 1, 4, 2) TILE(16, 16, 32, 256, 1, 4, 2)"
    (source / "tiles.cuh").write_text(f"#define BITWRIGHT_TILES(TILE) {tiles}\n")
    output = tmp_path / "gemm.ptx"
    command = [NVCC, "-std=c++17", "-O3", "-ptx", "-arch=compute_80"]
    subprocess.run([*command, str(source / "binary_gemm.cu"), "-o", str(output)], check=True)
    text = output.read_text()
    # One warp's columns are 8 wide and its depth is one instruction's, in both tiles.
    for shape in ("m8n8k128", "m16n8k256"):
        assert text.count(f"mma.sync.aligned.{shape}.row.col.s32.b1.b1.s32.and.popc") == 1
    assert "cp.async.cg.shared.global" in text
    assert os.path.getsize(output) > 0
