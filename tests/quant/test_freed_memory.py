"""Freed memory that is kept: what is asked of the C library, and that others are left alone."""

from importlib import import_module
from types import SimpleNamespace

import pytest

module = import_module("bitwright.quant.freed_memory")


def test_thresholds_are_raised_and_memory_is_given_back(monkeypatch):
    asked = []
    library = SimpleNamespace(
        mallopt=lambda name, value: asked.append((name, value)),
        malloc_trim=lambda keep: asked.append(("trim", keep)),
    )
    monkeypatch.setattr(module.ctypes, "CDLL", lambda name: library)
    with pytest.raises(KeyError), module.freed_memory_kept():
        assert asked == [(-3, 32 << 20), (-1, 2**31 - 1)]
        raise KeyError
    assert asked[2:] == [(-1, 128 << 10), ("trim", 0)]


def test_a_library_without_mallopt_is_left_alone(monkeypatch):
    monkeypatch.setattr(module.ctypes, "CDLL", lambda name: SimpleNamespace())
    with module.freed_memory_kept():
        pass


def test_freed_memory_goes_back_from_now_on(monkeypatch):
    asked = []
    library = SimpleNamespace(
        mallopt=lambda name, value: asked.append((name, value)),
        malloc_trim=lambda keep: asked.append(("trim", keep)),
    )
    monkeypatch.setattr(module.ctypes, "CDLL", lambda name: library)
    module.return_freed_memory()
    assert asked == [(-3, 128 << 10), (-1, 128 << 10), ("trim", 0)]
    monkeypatch.setattr(module.ctypes, "CDLL", lambda name: SimpleNamespace())
    module.return_freed_memory()
    assert len(asked) == 3
