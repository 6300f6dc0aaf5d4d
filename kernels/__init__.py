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
    from .planner import BACKENDS, METHODS, PANEL_ROWS, Operand, Plan, plan
    from .product import matmul, packed, plan_for
    from .steps import fp16_bits

_HOME = {
    "bitserial_dots": "bitserial",
    "bitserial_matmul": "bitserial",
    "float_dots": "dots",
    "half_dots": "dots",
    "integer_dots": "dots",
    "plane_dots": "dots",
    "AnyPrecisionTensor": "any_precision",
    "BACKENDS": "planner",
    "Decoder": "decoder",
    "METHODS": "planner",
    "PANEL_ROWS": "planner",
    "Operand": "planner",
    "Plan": "planner",
    "cuda": "cuda",
    "fp16_bits": "steps",
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
    "PANEL_ROWS",
    "Operand",
    "Plan",
    "bitserial_dots",
    "bitserial_matmul",
    "cuda",
    "float_dots",
    "fp16_bits",
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
