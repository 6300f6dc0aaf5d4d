"""FineQuant: rounding without calibration data, in groups as coarse as each matrix allows.

Kim et al. (arXiv 2308.09723): INT4 or INT8 weights, symmetric, rounded to nearest, with a group
size that is chosen for each matrix from its weights alone. The paper's exact rule is not at hand;
**the rule here is this project's own reading**:

- Sizes tried are `minimum` times powers of two below k, and k itself (one group per row).
- R(G) is the mean of the largest magnitude of a weight's group, over all weights.
- Chosen is the largest G with R(G) <= (1 + alpha) * R(minimum).
- A matrix whose squared error at INT4 and G = minimum, relative to its mean square, exceeds
  `limit` is stored as INT8 in the same groups. The default limit of 0.03 is our choice too: drawn
  normal weights have 0.0116 in groups of 64.

The result is an ordinary `QuantizedTensor` whose group size is the matrix' own:

| entry | type | content |
| --- | --- | --- |
| codes | U8 [bytes] | two's complement, 4 or 8 bits each |
| group_scales | F16 [n, groups] | largest magnitude / 7 or / 127 |

True bits per weight: 4 + 16 / G or 8 + 16 / G, where G divides k.
"""

from typing import ClassVar, Literal

import numpy as np
from jaxtyping import Float32
from pydantic import Field

from bitwright.quant import QuantizedTensor, SiteStats

from .base import Algorithm, BlockTask, Phase


class FineQuant(Algorithm):
    """A group size for each matrix, and INT8 where INT4 loses too much."""

    name: Literal["finequant"] = "finequant"
    phase: ClassVar[Phase] = "round"
    own_form: ClassVar[bool] = True
    needs_format: ClassVar[bool] = False
    needs_data: ClassVar[bool] = False
    alpha: float = Field(default=0.1, ge=0)  #: by how much coarser groups may widen the range
    minimum: int = Field(default=64, ge=1)  #: columns of the smallest group
    limit: float = Field(default=0.03, ge=0)  #: relative squared error up to which INT4 is kept

    def round(
        self, block: BlockTask, name: str, w: Float32[np.ndarray, "n k"], stats: SiteStats | None
    ) -> QuantizedTensor:
        """Weights [n, k] in groups of their own size."""
        from bitwright.quant import quantize

        finest = quantize(w, "int4-sym", self.minimum)
        format = "int4-sym" if finest.relative_mse(w) <= self.limit else "int8-sym"
        return quantize(w, format, group_size(w, self.alpha, self.minimum))


def mean_range(w: Float32[np.ndarray, "n k"], size: int) -> float:
    """R(G): the largest magnitude of a weight's group, mean over all weights.

    >>> mean_range(np.array([[1, -2, 0, 4]], np.float32), 2), mean_range(np.eye(2), 1)
    (3.0, 0.5)
    """
    k = w.shape[1]
    starts = np.arange(0, k, size)
    largest = np.maximum.reduceat(np.abs(w), starts, axis=1)
    widths = np.diff(np.append(starts, k))  # a shorter last group counts by its weights
    return float((largest.mean(axis=0, dtype=np.float64) * widths).sum() / k)


def group_sizes(k: int, minimum: int) -> list[int]:
    """Sizes tried, ascending; k alone if it is no larger than the smallest.

    >>> group_sizes(576, 64), group_sizes(48, 64)
    ([64, 128, 256, 512, 576], [48])
    """
    sizes = []
    size = minimum
    while size < k:
        sizes.append(size)
        size *= 2
    return [*sizes, k]


def group_size(w: Float32[np.ndarray, "n k"], alpha: float = 0.1, minimum: int = 64) -> int:
    """The largest size whose range is within 1 + alpha of the smallest size's."""
    sizes = group_sizes(w.shape[1], minimum)
    most = (1 + alpha) * mean_range(w, sizes[0])
    return max(size for size in sizes if size == sizes[0] or mean_range(w, size) <= most)
