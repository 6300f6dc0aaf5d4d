"""Compile the CUDA sources of this folder with nvcc, once per content.

The library has plain C entry points and stands in the cache folder, under a hash of sources, flags
and compiler.
"""

import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from bitwright.quant import InputError, cache_folder

FOLDER = Path(__file__).parent
#: Compute capabilities with machine code of their own; newer ones compile the last one's PTX.
ARCHITECTURES = ("80", "86", "89", "90")
#: The kernels' sources. `cublas.cu` is a library of its own: it needs cuBLAS.
SOURCES = ("binary_gemm.cu", "pack.cu", "runtime.cu", "weight_only_gemv.cu")
FLAGS = ("-std=c++17", "-O3", "-shared", "-Xcompiler", "-fPIC,-fvisibility=hidden")
NO_NVCC = (
    "nvcc is not installed; install the CUDA toolkit (12.0 or newer, "
    "https://developer.nvidia.com/cuda-downloads) and put its bin folder on PATH, or set CUDA_HOME"
)


def find_nvcc() -> str | None:
    """Path of nvcc: on PATH, else under $CUDA_HOME, else in /usr/local/cuda; None if nowhere."""
    homes = [os.environ.get("CUDA_HOME"), "/usr/local/cuda"]
    places = [Path(home) / "bin" / "nvcc" for home in homes if home]
    return shutil.which("nvcc") or next((str(p) for p in places if os.access(p, os.X_OK)), None)


def content_hash(
    sources: tuple[str, ...] = SOURCES, architectures: tuple[str, ...] = ARCHITECTURES
) -> str:
    """16 hex digits of everything of ours that decides what a library does: sources and flags."""
    digest = hashlib.sha256(repr((FLAGS, architectures, sources)).encode())
    for path in sorted([*FOLDER.glob("*.cuh"), *(FOLDER / name for name in sources)]):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def nvcc_command(
    nvcc: str,
    output: Path,
    sources: tuple[str, ...] = SOURCES,
    architectures: tuple[str, ...] = ARCHITECTURES,
    libraries: tuple[str, ...] = (),
) -> list[str]:
    """The compiler's argument list: machine code for `architectures`, and PTX of the last one."""
    codes = [(a, f"sm_{a}") for a in architectures]
    codes.append((architectures[-1], f"compute_{architectures[-1]}"))
    targets = [f"-gencode=arch=compute_{arch},code={code}" for arch, code in codes]
    files = [str(FOLDER / name) for name in sources]
    return [nvcc, *FLAGS, *targets, *files, "-o", str(output), *(f"-l{x}" for x in libraries)]


def build_library(
    *,
    sources: tuple[str, ...] = SOURCES,
    architectures: tuple[str, ...] = ARCHITECTURES,
    libraries: tuple[str, ...] = (),
) -> Path:
    """Path of the compiled library; compiles it (minutes) unless the cache has it.

    Args:
        sources: Files of this folder.
        architectures: Compute capabilities without the point, rising.
        libraries: Names for the linker's -l.

    Raises:
        InputError: nvcc is missing, or fails; its first error line is told.
    """
    nvcc = find_nvcc()
    if nvcc is None:
        raise InputError(NO_NVCC)
    version = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=False)
    compiler = hashlib.sha256(version.stdout.encode()).hexdigest()[:8]
    folder = cache_folder("cuda", f"{content_hash(sources, architectures)}-{compiler}")
    library = folder / "libbitwright_cuda.so"
    if library.exists():
        return library
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        output = Path(scratch) / library.name
        command = nvcc_command(nvcc, output, sources, architectures, libraries)
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode != 0:
            raise InputError(
                f"nvcc ({nvcc}) failed: {_first_error(result.stderr + result.stdout)}; "
                "CUDA 12.0 or newer and a host compiler that it supports are needed"
            )
        os.replace(output, library)  # whole or not at all, also with two builds at once
    return library


def _first_error(output: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower() or "cannot find" in line]
    return (errors or lines or ["no message"])[0]
