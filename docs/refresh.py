"""Run the commands shown in a Markdown file and put their output below them.

    python docs/refresh.py README.md            rewrite the output of every command
    python docs/refresh.py README.md synth      only of commands that contain "synth"

A command is the first line of a ```console block, after "$ ". tests/test_docs.py runs the same
commands and compares what they print.
"""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

BLOCK = re.compile(r"^```console\n\$ (?P<command>.+)\n(?P<output>(?:.*\n)*?)```$", re.M)
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?(?:e[+-]?\d+)?%?")
_FRAME = re.compile(r"[─-╿]+")


class Shown(NamedTuple):
    """A command and the output shown below it."""

    command: str
    output: str


def shown_commands(path: Path) -> list[Shown]:
    """Every console block of a Markdown file."""
    text = path.read_text(encoding="utf-8")
    return [Shown(m["command"], m["output"]) for m in BLOCK.finditer(text)]


def run(command: str) -> str:
    """What `bitwright ...` prints on stdout, run in an empty folder.

    Raises:
        RuntimeError: The command fails.
    """
    program, *arguments = command.split()
    assert program == "bitwright", command
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "bitwright", *arguments],
            cwd=folder,
            capture_output=True,
            text=True,
            env={**os.environ, "COLUMNS": "120"},
        )
    if done.returncode:
        raise RuntimeError(f"{command}: exit {done.returncode}\n{done.stderr}")
    return "".join(f"{line.rstrip()}\n" for line in done.stdout.splitlines())


def differences(shown: str, printed: str, tolerance: float = 0.01) -> list[str]:
    """What differs: words exactly, numbers by more than the relative tolerance.

    Frames and spacing do not count. Perplexities and areas are the same on one machine but may
    differ in the last digits between CPUs and tool builds, hence the tolerance.
    """
    ours, theirs = ([*_words(text)] for text in (shown, printed))
    if len(ours) != len(theirs):
        return [f"{len(ours)} words shown, {len(theirs)} printed"]
    wrong = []
    for a, b in zip(ours, theirs, strict=True):
        numbers = [_number(word) for word in (a, b)]
        if None not in numbers:
            x, y = numbers
            if abs(x - y) > tolerance * max(abs(x), abs(y)):
                wrong.append(f"{a} shown, {b} printed")
        elif a != b:
            wrong.append(f"{a} shown, {b} printed")
    return wrong


def _words(text: str) -> list[str]:
    # A synthesis hash names the tools' exact versions and a Python version names the machine's.
    text = re.sub(r"synthesis [0-9a-f]{12}|Python \d+\.\d+\.\d+", "", text)
    return _FRAME.sub(" ", text).split()


def _number(word: str) -> float | None:
    word = word.strip("(),;:")
    return float(word.rstrip("%").replace(",", "")) if _NUMBER.fullmatch(word) else None


def main() -> None:
    """Rewrite the file named first; further arguments select commands."""
    path, wanted = Path(sys.argv[1]), sys.argv[2:]

    def fill(match: re.Match[str]) -> str:
        command = match["command"]
        if wanted and not any(word in command for word in wanted):
            return match[0]
        print(command, file=sys.stderr)
        return f"```console\n$ {command}\n{run(command)}```"

    path.write_text(BLOCK.sub(fill, path.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
