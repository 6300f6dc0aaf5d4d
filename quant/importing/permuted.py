"""Tensors whose columns were sorted so that those of a group stand together."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Int64

from bitwright.quant import InputError, QuantizedTensor

from .wrapped import Wrapped

COLUMN_BITS = 32  #: of one entry of `columns` as GPTQ stores it (its g_idx)


@dataclass(frozen=True, eq=False)
class PermutedTensor(Wrapped):
    """Weights [n, k] of which `tensor` holds the columns in another order.

    Column j of `tensor` is column `columns[j]` of the weights, so a product takes its activations
    in that order: y = x[:, columns] @ tensor.T. Everything that works on a `QuantizedTensor` works
    on `tensor`, with the activations permuted.

    >>> import numpy as np
    >>> from bitwright.quant import PermutedTensor, quantize
    >>> tensor = quantize(np.array([[3.0, 7.0, 14.0, 10.0]]), "int4-sym", group_size=2)
    >>> PermutedTensor(tensor, np.array([0, 2, 3, 1])).dequantize()
    array([[ 3., 10.,  7., 14.]], dtype=float32)

    Raises:
        InputError: `columns` is no int64 permutation of 0 .. k - 1.
    """

    tensor: QuantizedTensor
    columns: Int64[np.ndarray, " k"]

    def __post_init__(self) -> None:
        k = self.tensor.k
        fits = self.columns.dtype == np.int64 and self.columns.shape == (k,)
        if not fits or not np.array_equal(np.sort(self.columns), np.arange(k)):
            raise InputError(
                f"columns ({self.columns.dtype} {self.columns.shape}) must be an int64 permutation "
                f"of 0 .. {k - 1}"
            )

    def dequantize(self) -> Float32[np.ndarray, "n k"]:
        """The weights, columns in their original order."""
        out = np.empty(self.shape, np.float32)
        out[:, self.columns] = self.tensor.dequantize()
        return out

    @property
    def bits_per_weight(self) -> float:
        """Stored bits per weight: those of the tensor, and 32 for each entry of `columns`."""
        return self.tensor.bits_per_weight + COLUMN_BITS / self.n

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, PermutedTensor):
            return NotImplemented
        return self.tensor == other.tensor and np.array_equal(self.columns, other.columns)

    __hash__ = None  # type: ignore[assignment]  # equal by content, and the content can change
