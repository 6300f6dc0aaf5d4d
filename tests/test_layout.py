"""The root folders and the installed package stay in step, and imports point one way."""

import ast
import doctest
import importlib
import pkgutil
import re
import tomllib
from pathlib import Path

import pytest

import bitwright

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = ("quant", "kernels", "sim", "rtl", "experiments")
#: What each folder may import (docs/architecture.md).
MAY_IMPORT = {
    "quant": set(),
    "kernels": {"quant"},
    "sim": {"quant", "kernels"},
    "rtl": {"quant", "sim"},
    "experiments": {"quant", "kernels", "sim", "rtl"},
}
MODULES = [
    m.name
    for folder in FOLDERS
    for m in pkgutil.walk_packages(
        importlib.import_module(f"bitwright.{folder}").__path__, f"bitwright.{folder}."
    )
    if ".rtl.bench." not in m.name  # run inside the simulator
]


def python_files(folder):
    return sorted((ROOT / folder).rglob("*.py"))


def imported_modules(path):
    """Absolute imports of a file, `from bitwright import x` told as bitwright.x."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            if node.module == "bitwright":
                yield from (f"bitwright.{alias.name}" for alias in node.names)
            yield node.module


def test_every_package_is_listed():
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    on_disk = {
        "bitwright." + ".".join(p.parent.relative_to(ROOT).parts)
        for folder in FOLDERS
        for p in (ROOT / folder).rglob("__init__.py")
    }
    assert set(config["packages"]) == on_disk | {"bitwright", "bitwright.commands"}
    assert set(config["package-dir"]) == {"bitwright"} | {f"bitwright.{f}" for f in FOLDERS}


@pytest.mark.parametrize("folder", FOLDERS)
def test_imports_point_one_way(folder):
    allowed = MAY_IMPORT[folder] | {folder}
    wrong = []
    for path in python_files(folder):
        for name in imported_modules(path):
            parts = name.split(".")
            if parts[0] == "bitwright" and len(parts) > 1 and parts[1] in FOLDERS:
                if parts[1] not in allowed:
                    wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert not wrong


@pytest.mark.parametrize("folder", FOLDERS)
def test_folders_are_reached_through_their_face(folder):
    """`from bitwright.quant import x`, never `from bitwright.quant.inner import x`."""
    wrong = []
    for path in [*python_files(folder), *python_files("bitwright")]:
        for name in imported_modules(path):
            parts = name.split(".")
            if parts[0] == "bitwright" and len(parts) > 2 and parts[1] in FOLDERS:
                wrong.append(f"{path.relative_to(ROOT)} imports {name}")
    assert not wrong


@pytest.mark.parametrize("folder", FOLDERS)
def test_no_import_by_bare_folder_name(folder):
    bare = re.compile(rf"^\s*(?:import|from)\s+{folder}\b", re.M)
    files = [f for d in (*FOLDERS, "tests", "bitwright") for f in python_files(d)]
    found = [str(f.relative_to(ROOT)) for f in files if bare.search(f.read_text())]
    assert not found, f"use bitwright.{folder} in {found}"


@pytest.mark.parametrize("folder", FOLDERS)
def test_everything_a_face_lists_is_there(folder):
    face = importlib.import_module(f"bitwright.{folder}")
    assert len(set(face.__all__)) == len(face.__all__)
    for name in face.__all__:
        assert getattr(face, name) is not None


@pytest.mark.parametrize("name", ["bitwright", *MODULES])
def test_doctests(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_version():
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert bitwright.__version__ == config["project"]["version"]
