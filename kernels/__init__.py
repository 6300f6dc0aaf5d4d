"""Software kernels on quantised tensors.

`matmul` is for use: it plans (`planner.py`), packs and runs a product on a backend. The `..._dots`
functions give the PEs' numerics for streams of steps, bit for bit, and serve verification.
"""

if __name__ == "kernels":  # found by bare name: the repository root is on sys.path
    raise ModuleNotFoundError(
        "this folder is bitwright.kernels; start with the bitwright command, pytest or python -P",
        name="kernels",
    )

from typing import TYPE_CHECKING

from bitwright.lazy import lazy_exports

if TYPE_CHECKING:
    from . import cuda, integers, reference, scaling
    from .any_precision import AnyPrecisionTensor
    from .bandwidth import memory_bandwidth
    from .bitserial import bitserial_dots, bitserial_matmul
    from .cpu.layouts import pack_planes, pack_tiles
    from .decoder import Decoder
    from .dots import float_dots, half_dots, integer_dots, plane_dots
    from .planner import BACKENDS, METHODS, Operand, Plan, float_decode, plan
    from .product import matmul, packed, plan_for

_HOME = {
    "bitserial_dots": "bitserial",
    "bitserial_matmul": "bitserial",
    "float_decode": "planner",
    "float_dots": "dots",
    "half_dots": "dots",
    "integer_dots": "dots",
    "plane_dots": "dots",
    "AnyPrecisionTensor": "any_precision",
    "BACKENDS": "planner",
    "Decoder": "decoder",
    "METHODS": "planner",
    "Operand": "planner",
    "Plan": "planner",
    "cuda": "cuda",
    "integers": "integers",
    "matmul": "product",
    "memory_bandwidth": "bandwidth",
    "pack_planes": "cpu.layouts",
    "pack_tiles": "cpu.layouts",
    "packed": "product",
    "plan": "planner",
    "plan_for": "product",
    "reference": "reference",
    "scaling": "scaling",
}

__all__ = [
    "AnyPrecisionTensor",
    "BACKENDS",
    "Decoder",
    "METHODS",
    "Operand",
    "Plan",
    "bitserial_dots",
    "bitserial_matmul",
    "cuda",
    "float_decode",
    "float_dots",
    "half_dots",
    "integer_dots",
    "integers",
    "matmul",
    "memory_bandwidth",
    "pack_planes",
    "pack_tiles",
    "packed",
    "plan",
    "plan_for",
    "plane_dots",
    "reference",
    "scaling",
]

__getattr__ = lazy_exports(__name__, _HOME)
