"""Tensors with a float offset per group, as block formats with a minimum have them."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32

from bitwright.quant import InputError, QuantizedTensor

from .wrapped import Wrapped

OFFSET_BITS = 16  #: of one offset as stored: FP16


@dataclass(frozen=True, eq=False)
class OffsetTensor(Wrapped):
    """Weights [n, k]: those of `tensor` plus one offset per group.

    A product needs no third kind of multiplication: with group_sums(x) [tokens, groups] the sums
    of x over each group's columns, y = x @ tensor.T + group_sums(x) @ offsets.T.

    >>> import numpy as np
    >>> from bitwright.quant import FORMATS, OffsetTensor, QuantizedTensor
    >>> two = QuantizedTensor(FORMATS["int2-asym"], 2, np.array([[0, 3, 1, 2]], np.uint8), "fp16",
    ...     np.array([[1, 2]], np.float16), zero_points=np.zeros((1, 2), np.uint8))
    >>> OffsetTensor(two, np.array([[-1.5, 4]], np.float32)).dequantize()
    array([[-1.5,  1.5,  6. ,  8. ]], dtype=float32)

    Raises:
        InputError: The offsets are not float32 [n, groups], finite, and FP16 numbers.
    """

    tensor: QuantizedTensor
    offsets: Float32[np.ndarray, "n groups"]  #: FP16 numbers

    def __post_init__(self) -> None:
        shape = (self.tensor.n, self.tensor.groups)
        if self.offsets.dtype != np.float32 or self.offsets.shape != shape:
            raise InputError(
                f"offsets are {self.offsets.dtype} {self.offsets.shape}, must be float32 {shape}, "
                "one per group"
            )
        with np.errstate(over="ignore"):
            half = self.offsets.astype(np.float16)
        # What overflows differs from its half. numpy's own float16 arithmetic is slow.
        if not np.isfinite(self.offsets).all() or (half != self.offsets).any():
            raise InputError("offsets must be finite FP16 numbers; round them to float16 first")

    def dequantize(self) -> Float32[np.ndarray, "n k"]:
        """The weights: each product rounded to float32, then each sum.

        The product is exact wherever codes have at most 13 bits, as scales have 11.
        """
        out = self.tensor.dequantize()
        size = self.tensor.group_size
        for group in range(self.groups):
            out[:, group * size : (group + 1) * size] += self.offsets[:, group, None]
        return out

    @property
    def bits_per_weight(self) -> float:
        """Stored bits per weight: those of the tensor, and 16 for each group's offset.

        The tensor's zero points count although Q4_1 has none (4 bits a group).
        """
        return self.tensor.bits_per_weight + OFFSET_BITS * self.groups / self.k

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, OffsetTensor):
            return NotImplemented
        return self.tensor == other.tensor and np.array_equal(self.offsets, other.offsets)

    __hash__ = None  # type: ignore[assignment]  # equal by content, and the content can change
