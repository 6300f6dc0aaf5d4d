"""Software kernels on quantised tensors.

`matmul` is for use; `bitserial_matmul` gives the bit-serial PE's numerics, bit for bit.
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
    from .matmul_torch import matmul

_HOME = {
    "bitserial_dots": "bitserial",
    "bitserial_matmul": "bitserial",
    "matmul": "matmul_torch",
}

__all__ = ["bitserial_dots", "bitserial_matmul", "matmul"]

__getattr__ = lazy_exports(__name__, _HOME)
