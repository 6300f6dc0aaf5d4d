"""What `emit` writes: complete, parseable, and free of this package."""

import ast
import itertools
import json
import os
import re
import subprocess
import sys

import pytest

from bitwright.quant import InputError
from bitwright.rtl import ACTIVATION_CORNERS, DESIGNS, emit, verilog


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("emitted") / "new" / "bitmod"
    emit("bitmod", out, dots=5)
    return out


def test_files_are_all_there_and_nothing_else(folder):
    traces = json.loads((folder / "vectors" / "vectors.json").read_text())["traces"]
    top = {"bitmod_column_l4.v", "replay.py", "run.py", "Makefile", "README.md"}
    vectors = {f"vectors/{trace['file']}" for trace in traces} | {"vectors/vectors.json"}
    written = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    assert written == top | vectors
    assert {trace["name"] for trace in traces} >= {f"{m}_corner" for m in DESIGNS["bitmod"].modes}


def test_bench_imports_the_standard_library_and_cocotb_only(folder):
    allowed = sys.stdlib_module_names | {"cocotb", "cocotb_tools"}
    for path in folder.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                assert {alias.name.partition(".")[0] for alias in node.names} <= allowed
            elif isinstance(node, ast.ImportFrom):
                assert node.module.partition(".")[0] in allowed


def test_vectors_have_the_ports_of_the_verilog(folder):
    description = json.loads((folder / "vectors" / "vectors.json").read_text())
    text = (folder / f"{description['top']}.v").read_text()
    header = text[text.index("module ") : text.index(");")]
    ports = dict(description["inputs"])
    outputs = dict(description["outputs"])
    assert set(re.findall(r"\w+", header)) - {"module", description["top"]} == {
        *ports, "clk", *outputs,
    }  # fmt: skip
    assert outputs == {"ready": 1, "y_valid": 1, "y": 32}
    for name, width in ports.items():
        declared = re.search(rf"input(?:\[(\d+):0\])? {name};", text)
        assert int(declared[1] or 0) + 1 == width
    for trace in description["traces"]:
        lines = (folder / "vectors" / trace["file"]).read_text().splitlines()
        assert len(lines) == trace["cycles"]
        words = [[int(word, 16) for word in line.split()] for line in lines]
        assert all(word < 1 << sum(ports.values()) for word, _, _ in words)
        # The reset is not compared; after it y_valid always is, y with y_valid, ready with valid.
        assert words[0][2] == 0
        shift = sum(ports.values()) - ports["rst"] - ports["valid"]
        for word, wanted, mask in words[1:]:
            shown, valid = word >> shift & 1, wanted >> 32 & 1
            assert mask == shown << 33 | 1 << 32 | valid * 0xFFFFFFFF
        assert sum(wanted >> 32 & 1 for _, wanted, _ in words) == trace["dot_products"] > 0


def test_corner_trace_holds_every_code_with_every_activation_corner(folder):
    description = json.loads((folder / "vectors" / "vectors.json").read_text())
    shift, fields = sum(width for _, width in description["inputs"]), {}
    for name, width in description["inputs"]:
        shift -= width
        fields[name] = (shift, (1 << width) - 1)
    seen = set()
    for line in (folder / "vectors" / "int6_corner.hex").read_text().splitlines():
        word = int(line.split()[0], 16)
        values = {name: word >> low & mask for name, (low, mask) in fields.items()}
        if values["valid"]:
            seen |= {(values[f"code{i}"], values[f"act{i}"]) for i in range(4)}
    codes = [code & 0xFF for code in range(-32, 32)]
    assert seen >= set(itertools.product(codes, ACTIVATION_CORNERS.tolist()))


def test_same_seed_writes_the_same_bytes(folder, tmp_path):
    for path in emit("bitmod", tmp_path, dots=5):
        assert path.read_bytes() == (folder / path.relative_to(tmp_path)).read_bytes()


@pytest.mark.slow
@pytest.mark.simulator
def test_runner_works_outside_this_package_and_fails_on_a_fault(tmp_path):
    emit("fp16acc16", tmp_path, dots=20)
    source = tmp_path / "fp16acc16_mac.v"
    (tmp_path / "work").mkdir()
    # No repository, no editable install: only what the folder holds and cocotb.
    block = "import sys; sys.modules['bitwright'] = None; import runpy; "
    run = f"{block}runpy.run_path({str(tmp_path / 'run.py')!r}, run_name='__main__')"
    command = [sys.executable, "-P", "-c", run, "--log", "simulator.log"]
    environment = {k: v for k, v in os.environ.items() if k != "PYTEST_CURRENT_TEST"}
    done = subprocess.run(command, cwd=tmp_path / "work", env=environment, timeout=300, check=False)
    report = json.loads((tmp_path / "report.json").read_text())
    assert done.returncode == 0
    traces = report["traces"].values()
    assert all(t["mismatches"] == 0 and t["results"] > 0 for t in traces)
    assert all(hits > 0 for hits in report["coverage"]["fp16"].values())
    # A trace that expects something else must make it fail.
    trace = next((tmp_path / "vectors").glob("*_random.hex"))
    lines = trace.read_text().splitlines()
    at = next(i for i, line in enumerate(lines) if int(line.split()[1], 16) >> 32 & 1)
    word, wanted, mask = lines[at].split()
    lines[at] = f"{word} {int(wanted, 16) ^ 1:x} {mask}"
    trace.write_text("\n".join(lines) + "\n")
    assert source.is_file()
    done = subprocess.run(command, cwd=tmp_path / "work", env=environment, timeout=300, check=False)
    report = json.loads((tmp_path / "report.json").read_text())
    assert done.returncode == 1
    assert sum(t["mismatches"] for t in report["traces"].values()) == 1
    # And so must a bin that no trace hits.
    trace.write_text("\n".join([*lines[:at], f"{word} {wanted} {mask}", *lines[at + 1 :]]) + "\n")
    description = json.loads((tmp_path / "vectors" / "vectors.json").read_text())
    description["bins"]["fp16"].append("what nothing hits")
    (tmp_path / "vectors" / "vectors.json").write_text(json.dumps(description))
    done = subprocess.run(command, cwd=tmp_path / "work", env=environment, timeout=300, check=False)
    report = json.loads((tmp_path / "report.json").read_text())
    assert done.returncode == 1
    assert sum(t["mismatches"] for t in report["traces"].values()) == 0
    assert report["coverage"]["fp16"]["what nothing hits"] == 0
    log = (tmp_path / "work" / "simulator.log").read_text()
    assert "bin never hit in mode fp16: what nothing hits" in log
    assert "1 coverage bins were never hit" in log


@pytest.mark.slow
@pytest.mark.simulator
def test_make_builds_runs_and_cleans_without_this_package(tmp_path):
    folder, blocker = tmp_path / "emitted", tmp_path / "blocker" / "bitwright"
    emit("int4", folder, dots=20)
    written = set(folder.rglob("*"))
    blocker.mkdir(parents=True)
    (blocker / "__init__.py").write_text("raise ImportError('not here')\n")
    environment = {k: v for k, v in os.environ.items() if k != "PYTEST_CURRENT_TEST"}
    environment["PYTHONPATH"] = str(blocker.parent)
    python = f"PYTHON={sys.executable}"
    probe = [sys.executable, "-c", "import bitwright"]
    blocked = subprocess.run(probe, cwd=folder, env=environment, capture_output=True, check=False)
    assert blocked.returncode == 1

    def make(*arguments):
        command = ["make", *arguments]
        done = subprocess.run(
            command, cwd=folder, env=environment, timeout=300, check=False, capture_output=True
        )
        return done.returncode

    assert make(python) == 0
    report = json.loads((folder / "report.json").read_text())
    assert all(trace["mismatches"] == 0 for trace in report["traces"].values())
    assert all(hits > 0 for hits in report["coverage"]["int4-sym"].values())
    vectors = json.loads((folder / "vectors" / "vectors.json").read_text())
    for trace in vectors["traces"]:
        trace["covers"].pop("dot product of one step", None)
    (folder / "vectors" / "vectors.json").write_text(json.dumps(vectors))
    assert make(python) != 0
    assert make("clean") == 0
    assert set(folder.rglob("*")) == written


def test_unknown_pe_names_the_nearest():
    with pytest.raises(InputError, match=r"unknown PE 'bitmode'; did you mean bitmod\? there are:"):
        emit("bitmode", "nowhere")


def test_folder_that_is_a_file(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="output folder .*file cannot be written"):
        emit("bitmod", tmp_path / "file")


def test_verilog_is_one_flat_module():
    text = verilog("bitmod")
    assert re.findall(r"^module (\w+)", text, re.M) == ["bitmod_column_l4"]
