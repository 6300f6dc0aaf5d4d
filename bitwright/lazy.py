"""Package faces whose parts load on first use."""

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def lazy_exports(package: str, home: Mapping[str, str]) -> Callable[[str], Any]:
    """A module `__getattr__` for a package's `__init__`.

    Args:
        package: Name of the package.
        home: Exported name -> submodule that holds it. A name equal to the submodule's last part
            exports the submodule itself.
    """

    def getattr_(name: str) -> Any:
        if name not in home:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module = import_module(f".{home[name]}", package)
        value = module if home[name].rpartition(".")[2] == name else getattr(module, name)
        setattr(sys.modules[package], name, value)
        return value

    return getattr_
