"""The jobs that join everything: evaluation through the PE, the co-design run, benchmarks."""

from typing import TYPE_CHECKING

from bitwright.lazy import lazy_exports

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
    from .evaluation import Arithmetic, Evaluation, PELinear, evaluate
    from .provenance import commit

_HOME = {
    "Arithmetic": "evaluation",
    "Codesign": "codesigning",
    "CodesignConfig": "codesigning",
    "Evaluation": "evaluation",
    "PELinear": "evaluation",
    "bench": "benchmark",
    "bench_document": "benchmark",
    "codesign": "codesigning",
    "commit": "provenance",
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
    "PELinear",
    "bench",
    "bench_document",
    "codesign",
    "commit",
    "default_recipes",
    "evaluate",
    "pareto",
    "write_results",
]

__getattr__ = lazy_exports(__name__, _HOME)
