"""Software kernels on quantised tensors.

`matmul` is for use; `bitserial_matmul` and the `..._dots` functions give the PEs' numerics, bit for
bit.
"""

if __name__ == "kernels":  # found by bare name: the repository root is on sys.path
    raise ModuleNotFoundError(
        "this folder is bitwright.kernels; start with the bitwright command, pytest or python -P",
        name="kernels",
    )

from typing import TYPE_CHECKING

from bitwright.lazy import lazy_exports

if TYPE_CHECKING:
    from .bitserial import bitserial_dots, bitserial_matmul
    from .dots import float_dots, half_dots, integer_dots, plane_dots
    from .matmul_torch import matmul

_HOME = {
    "bitserial_dots": "bitserial",
    "bitserial_matmul": "bitserial",
    "float_dots": "dots",
    "half_dots": "dots",
    "integer_dots": "dots",
    "plane_dots": "dots",
    "matmul": "matmul_torch",
}

__all__ = [
    "bitserial_dots",
    "bitserial_matmul",
    "float_dots",
    "half_dots",
    "integer_dots",
    "matmul",
    "plane_dots",
]

__getattr__ = lazy_exports(__name__, _HOME)
