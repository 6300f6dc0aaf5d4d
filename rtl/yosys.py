"""Yosys in a process of its own, through the pyosys wheel, which includes ABC.

Yosys keeps its state in globals and ends the process on an error, so it never runs inside the
caller: `run_yosys` starts `python -P -m bitwright.rtl.yosys` in a folder that holds the inputs.
"""

import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

from bitwright.quant import InputError

from .tools import run_tool

_SCRIPT = "run.ys"


def yosys_version() -> str:
    """The version of pyosys.

    Raises:
        InputError: It is not installed.
    """
    if find_spec("pyosys") is None:
        raise InputError("synthesis needs pyosys, which is missing; install: pip install pyosys")
    return version("pyosys")


def run_yosys(
    script: str, inputs: Mapping[str, str], outputs: Sequence[str], *, timeout_s: float = 600
) -> tuple[str, dict[str, str]]:
    """Run a Yosys script on texts.

    Args:
        script: Yosys commands, one a line, that name inputs and outputs by their bare file names.
        inputs: File name -> text.
        outputs: Names of the files that the script writes.
        timeout_s: It is killed after this many seconds.

    Returns:
        The log, and file name -> text of the outputs that were written.

    Raises:
        InputError: pyosys is not installed.
        RuntimeError: Yosys failed; the message ends with its last lines.
    """
    yosys_version()
    with tempfile.TemporaryDirectory(prefix="bitwright-yosys-") as name:
        folder = Path(name)
        for file, text in {**inputs, _SCRIPT: script}.items():
            (folder / file).write_text(text, encoding="utf-8")
        # Yosys and ABC leave work and cache folders in TMPDIR: they go with this one.
        (folder / "tmp").mkdir()
        environment = {**os.environ, "TMPDIR": str(folder / "tmp")}
        command = [sys.executable, "-P", "-m", "bitwright.rtl.yosys"]
        log = run_tool("Yosys", command, folder, environment, timeout_s)
        written = {
            file: (folder / file).read_text(encoding="utf-8")
            for file in outputs
            if (folder / file).is_file()
        }
    return log, written


if __name__ == "__main__":
    from pyosys import libyosys

    libyosys.run_pass(f"script {_SCRIPT}", libyosys.Design())
