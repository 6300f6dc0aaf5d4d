"""What README and docs show is what the commands print."""

import platform
import re
import runpy
from pathlib import Path
from types import SimpleNamespace

import pytest

ROOT = Path(__file__).resolve().parents[1]
refresh = SimpleNamespace(**runpy.run_path(str(ROOT / "docs" / "refresh.py")))

SHOWN = [
    pytest.param(shown, id=f"{path.name}: {shown.command}"[:90])
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    for shown in refresh.shown_commands(path)
]


def test_there_are_commands_to_check():
    assert len(SHOWN) >= 6


@pytest.mark.slow
@pytest.mark.timeout(3600)  # with empty caches `all` means dozens of builds and mappings
@pytest.mark.parametrize("shown", SHOWN)
def test_a_command_prints_what_is_shown(shown):
    made_with = re.search(r"topics of Python ([\d.]+\d)", shown.output)
    if made_with and made_with[1] != platform.python_version():
        pytest.skip(f"shows the help topics of Python {made_with[1]}; others differ in their text")
    if "smollm2" in shown.command or shown.command.startswith("bitwright codesign --out"):
        from bitwright.quant import ModelUnavailable, fetch_model

        try:
            fetch_model()
        except ModelUnavailable as error:
            pytest.skip(str(error))
    assert refresh.differences(shown.output, refresh.run(shown.command)) == []


def test_the_python_example_prints_what_its_comments_say(capsys):
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    exec(compile(example, "README.md", "exec"), {})
    expected = re.findall(r"^print\(.*# ([\d.]+):", example, re.M)
    assert len(expected) == 2
    assert capsys.readouterr().out.split() == expected


def test_differences_are_seen():
    assert refresh.differences("│ a 1.00 │", "a 1.005") == []
    assert refresh.differences("a 1.00", "a 1.05") == ["1.00 shown, 1.05 printed"]
    assert refresh.differences("a 1", "b 1") == ["a shown, b printed"]
    assert refresh.differences("a", "a b") == ["1 words shown, 2 printed"]
    assert refresh.differences("40,000 x", "41,000 x") == ["40,000 shown, 41,000 printed"]
