"""Products of quantised weights in torch, on CUDA or the processor.

Thin: `operands.py` lays weights out and scales exact sums; here are the four functions between.
Each is exact, or within `reference.float_bound`, for its own reason:

- float: weights are rounded once and multiplied by torch. It obeys `float_bound` as long as
  `torch.get_float32_matmul_precision()` is "highest", as it is by default.
- integer: in float64, where sums below 2**53 are exact in any order, on any device and whatever
  precision torch is allowed. (`torch._int_mm` takes only weights that fit a signed byte, and on
  CUDA only some shapes; float32 would be exact for short groups only, and TF32 or bfloat16 may
  stand in for it.)
- planes: in int64 words. torch has neither popcount nor a logical shift of int64; see `_popcount`.
- lookup: integers gathered from tables.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch

from bitwright.quant import InputError, QuantizedTensor

from . import operands
from .bitserial import bitserial_dots
from .steps import weight_steps

Tensor = torch.Tensor


def pack(
    w: QuantizedTensor,
    method: str,
    compiled: bool = False,
    device: torch.device | str | None = None,
) -> Callable[[Any], np.ndarray]:
    """Weights prepared for a method of `bitwright.kernels.planner`, on a device.

    Args:
        w: Weights.
        method: "float" (called with float32 [m, k]), "integer", "planes" or "lookup" (with a
            QuantizedTensor of activations), or "bitserial" (with real numbers [m, k]; computed on
            the processor).
        compiled: Let torch.compile make one kernel of each function; not for "bitserial". Needs
            a C++ compiler, on CUDA Triton.
        device: None takes CUDA where torch has it, else the processor.

    Returns:
        Called with activations, gives y float32 [m, n] in numpy.

    Raises:
        InputError: The method does not take the weights.
    """
    if method == "bitserial":
        if compiled:
            raise InputError(
                "compiled is True, and method bitserial has no compiled form; leave it"
            )
        steps = weight_steps(w)
        return lambda x: steps.product(x, bitserial_dots)
    return operands.pack(w, method, _library(_device(device), compiled))


def _device(device: torch.device | str | None) -> torch.device:
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(device)


@cache
def _library(device: torch.device, compiled: bool) -> operands.Library:
    def put(array: np.ndarray) -> Tensor:
        # A copy, since torch shares memory with writable arrays only.
        return torch.tensor(array, device=device)

    def get(tensor: Tensor) -> np.ndarray:
        return tensor.cpu().numpy()

    functions: dict[str, Callable[..., Any]] = {
        "float": _float,
        "integer": _integer,
        "planes": _planes,
        "lookup": _lookup,
    }
    if compiled:
        functions = {method: _compiled(function) for method, function in functions.items()}
    return operands.Library(
        name="torch-compiled" if compiled else "torch",
        put=put,
        get=get,
        functions=functions,
        word=np.int64,
        number=lambda low, high: np.float64,
        sum_bits=53,
        # What fits the processor's cache; CUDA needs enough for all of its cores.
        panel=1 << (24 if device.type == "cuda" else 18),
    )


@cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function through torch.compile: once for all tensors, with sizes as variables."""
    compiled = torch.compile(function, dynamic=True, fullgraph=True)

    def call(*arguments: Any) -> Any:
        # An axis of length 1 is always compiled on its own (m = 1, one group, one code to a byte,
        # ...), and their combinations are more than the 8 variants that torch allows.
        with torch._dynamo.config.patch(recompile_limit=256):
            return compiled(*arguments)

    return call


# ------------------------------------------------------------------ functions; see operands.py


def _decoded(words: Tensor, grid: Tensor, tables: Tensor) -> Tensor:
    """Numbers [n, G, L] from bytes of codes."""
    rows = grid[..., None].to(torch.int32) * 256 + words.to(torch.int32)
    return torch.nn.functional.embedding(rows, tables).flatten(2)


def _float(x: Tensor, scale: Tensor, words: Tensor, grid: Tensor, tables: Tensor) -> Tensor:
    weights = _decoded(words, grid, tables) * scale[..., None]
    return x @ weights.flatten(1).T


def _integer(x: Tensor, words: Tensor, grid: Tensor, tables: Tensor) -> Tensor:
    return torch.einsum("mgl,ngl->gmn", x.to(tables.dtype), _decoded(words, grid, tables))


def _planes(x: Tensor, x_weights: Tensor, w: Tensor, w_weights: Tensor) -> Tensor:
    both = x[:, None, :, None] & w[None, :, None]  # [m, n, P, Q, G, W]
    factors = (x_weights[:, None] * w_weights)[..., None, None]
    return (_popcount(both) * factors).sum((2, 3, 5)).permute(2, 0, 1)


def _popcount(v: Tensor) -> Tensor:
    """Ones of each int64 word, its sign bit included.

    Counts of four bits are added up in fields of four, then of bytes in fields of eight. The
    arithmetic shift repeats the sign bit only where the mask has zeros, and no sum reaches the
    sign: 0x4444... in fields of four, 8, 16, 32 and 64 in bytes. So nothing overflows.
    """
    ones = 0x1111_1111_1111_1111
    v = (v & ones) + (v >> 1 & ones) + (v >> 2 & ones) + (v >> 3 & ones)
    bytes_ = 0x0F0F_0F0F_0F0F_0F0F
    v = (v & bytes_) + (v >> 4 & bytes_)
    v = v + (v >> 32)
    v = v + (v >> 16)
    return v + (v >> 8) & 0x7F


def _lookup(x: Tensor, indices: Tensor, signs: Tensor | None, patterns: Tensor) -> Tensor:
    m, groups, sets, _ = x.shape
    n = indices.shape[0]
    # Sums by set and index, all rows of activations side by side: [G J 16, m].
    tables = (x[:, :, :, None].to(torch.int32) * patterns).sum(-1, dtype=torch.int32)
    tables = tables.flatten(1).T.contiguous()
    index = torch.stack([indices & 15, indices >> 4], -1).flatten(1).to(torch.int32)
    starts = 16 * torch.arange(groups * sets, dtype=torch.int32, device=index.device)
    sums = torch.nn.functional.embedding(index + starts, tables)  # [n, G J, m]
    if signs is not None:
        bits = signs[..., None] >> torch.arange(8, dtype=torch.uint8, device=signs.device) & 1
        sums = sums * (1 - 2 * bits.flatten(1)[:, : groups * sets, None].to(torch.int32))
    return sums.view(n, groups, sets, m).sum(2, dtype=torch.int32).permute(1, 2, 0)
