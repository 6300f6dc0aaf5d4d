"""The jobs that join everything: evaluation through the PE, the co-design run, benchmarks."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .benchmark import bench, bench_document
    from .codesigning import (
        Codesign,
        CodesignConfig,
        codesign,
        default_recipes,
        pareto,
        write_results,
    )
    from .evaluation import Arithmetic, Evaluation, evaluate

_HOME = {
    "Arithmetic": "evaluation",
    "Codesign": "codesigning",
    "CodesignConfig": "codesigning",
    "Evaluation": "evaluation",
    "bench": "benchmark",
    "bench_document": "benchmark",
    "codesign": "codesigning",
    "default_recipes": "codesigning",
    "evaluate": "evaluation",
    "pareto": "codesigning",
    "write_results": "codesigning",
}

__all__ = [
    "Arithmetic",
    "Codesign",
    "CodesignConfig",
    "Evaluation",
    "bench",
    "bench_document",
    "codesign",
    "default_recipes",
    "evaluate",
    "pareto",
    "write_results",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value
