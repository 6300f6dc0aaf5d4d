"""Runs an emitted cocotb bench in a folder of its own; the simulator that it builds is cached."""

import json
import shutil
import sys
import tempfile
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Any

from bitwright.quant import atomic_path, cache_folder

from .tools import digest, run_tool
from .verilator import environment, find


def run_bench(
    top: str, files: Mapping[str, str], traces: Set[str], timeout_s: float
) -> tuple[dict[str, Any], RuntimeError | None]:
    """Run a bench and read its report.

    Args:
        top: Name of the module, whose Verilog is the file of that name.
        files: File name -> text, as `emission.bench_files` and its vectors have them.
        traces: Names of the traces that must have run.
        timeout_s: The bench is stopped after this many seconds.

    Returns:
        The report, and the failure with which the bench ended, None if all was equal: a mismatch or
        an empty coverage bin is one, which the report tells apart.

    Raises:
        InputError: Verilator or what it needs is missing.
        RuntimeError: The bench did not come to run all traces, or compared no result.
    """
    variables = environment()
    variables.pop("PYTEST_CURRENT_TEST", None)
    key = digest(find().version, sys.executable, files["run.py"], files[f"{top}.v"])
    cached = cache_folder("bench") / f"{top}-{key[:24]}"
    with tempfile.TemporaryDirectory(prefix="bitwright-bench-") as name:
        folder = Path(name)
        (folder / "vectors").mkdir()
        for file, text in files.items():
            (folder / file).write_text(text, encoding="utf-8")
        program = folder / "sim_build" / top
        if cached.is_file():
            program.parent.mkdir()
            shutil.copyfile(cached, program)
            program.chmod(0o755)
        failure = None
        try:
            command = [sys.executable, "run.py", "--log", "simulator.log"]
            run_tool("the cocotb bench", command, folder, variables, timeout_s)
        except RuntimeError as error:  # also how it says that something differs
            failure = error
        path = folder / "report.json"
        report: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.is_file() else {}
        if set(report.get("traces", ())) != traces:
            raise failure or RuntimeError("the cocotb bench ran only some of its traces")
        if not cached.is_file() and program.is_file():
            with atomic_path(cached) as temporary:
                shutil.copyfile(program, temporary)
    if not any(count["results"] for count in report["traces"].values()):
        raise RuntimeError("the cocotb bench compared no result")
    return report, failure
