"""Matrix product with a quantised tensor: dequantise, then torch's float32 product."""

from typing import Any

import numpy as np
from jaxtyping import Float

from bitwright.quant import InputError, QuantizedTensor


def matmul(
    x: Float[np.ndarray, "m k"], qt: QuantizedTensor, backend: str = "torch"
) -> Float[np.ndarray, "m n"]:
    """y[m, n] = x[m, k] @ qt.dequantize()[n, k].T in float32.

    Args:
        x: Activations; computed in float32.
        qt: Weights.
        backend: "torch", the only one yet.

    Raises:
        InputError: Unknown backend, or k differs.
    """
    import torch

    if backend != "torch":
        raise InputError(f"backend {backend!r} is not known; the backend there is: torch")
    if x.ndim != 2 or x.shape[1] != qt.k:
        raise InputError(f"x has shape {x.shape}; it must be [m, k] with k = {qt.k}")
    weights = torch.from_numpy(qt.dequantize())
    product: Any = torch.from_numpy(np.ascontiguousarray(x, np.float32)) @ weights.T
    return product.numpy()
