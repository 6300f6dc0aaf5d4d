"""Processing element models, arrays, memories, workloads and their cost.

`PES` holds the processing elements; `simulate` runs a workload on an accelerator.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .pe import PE, PES, bitmod

_HOME = {"PE": "pe", "PES": "pe"}
_MODULES = {"bitmod": "pe.bitmod"}

__all__ = ["PE", "PES", "bitmod"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        value = getattr(import_module(f".{_HOME[name]}", __name__), name)
    elif name in _MODULES:
        value = import_module(f".{_MODULES[name]}", __name__)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value
