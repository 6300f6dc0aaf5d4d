"""Random Hadamard transformation of short blocks along the inputs of each linear (`rht`).

x W^T = (x R) (W R)^T for an orthonormal R. Here R is block-diagonal, `order` columns each: random
signs, then Sylvester's Hadamard matrix over the root of the order (NVFP4 pre-training, Abecassis et
al., arXiv 2509.25149, uses order 16; there it turns both inputs of one product in training). An
outlier's magnitude spreads over its block, and nothing but the block has to be known.

Whether that helps depends on the format. Measured on drawn heavy-tailed weights (Student's t, 4
degrees of freedom), the squared error of MXFP4, whose scales are powers of two and cut off large
elements, falls by a quarter, and that of MXINT8 by half. That of NVFP4 rises by a tenth: its scales
fit the largest weight of a block, and E2M1 is fine where most weights are.

The step `hadamard` turns the residual stream by one large matrix that disappears in the weights
beforehand. This one is not merged into anything: hardware turns the inputs of every linear, order
columns at a time, with additions alone but for one factor. So it reaches the inputs of the down
projection as well, and it can follow `hadamard`.

Here inputs stay in float, so the model's numbers are those of the weights turned back. The signs
come from the seed and the number of inputs alone: linears that share inputs share the turn.
"""

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from jaxtyping import Float32, Float64
from pydantic import Field, field_validator

from bitwright.quant import InputError

from .block_rounding import BlockRounding
from .hadamard_matrix import hadamard


@dataclass(frozen=True, slots=True)
class Turn:
    """A randomised Hadamard transformation of blocks of columns.

    >>> x = np.zeros((1, 16), np.float32); x[0, 3] = 16
    >>> sorted(set(np.abs(Turn(16, 0).apply(x)).flat))  # spread evenly: 16 / sqrt(16)
    [np.float32(4.0)]
    """

    order: int  #: columns of a block, a power of two
    seed: int  #: of the signs

    def check(self, k: int) -> None:
        """Refuse columns that are no whole blocks.

        Raises:
            InputError: k is no multiple of the order (says the largest order that divides it).
        """
        if k % self.order:
            best = k & -k  # the largest power of two that divides k
            way = f"rht:order={best}" if best > 1 else "a model of another shape"
            raise InputError(f"k (={k} inputs) is no multiple of {self.order}; use {way}")

    def signs(self, k: int) -> Float64[np.ndarray, " k"]:
        """+1 or -1 of each column."""
        return np.random.default_rng(self.seed).choice([-1.0, 1.0], k)

    def apply(self, x: Float32[np.ndarray, "m k"]) -> Float32[np.ndarray, "m k"]:
        """x R, computed in float64 and rounded once."""
        self.check(x.shape[1])
        return self._mixed(x * self.signs(x.shape[1])).astype(np.float32)

    def undo(self, x: Float32[np.ndarray, "m k"]) -> Float32[np.ndarray, "m k"]:
        """x R^T, computed in float64 and rounded once."""
        self.check(x.shape[1])
        return (self._mixed(x.astype(np.float64)) * self.signs(x.shape[1])).astype(np.float32)

    def _mixed(self, x: Float64[np.ndarray, "m k"]) -> Float64[np.ndarray, "m k"]:
        """Every block times the Hadamard matrix, which is symmetric, over the root of the order."""
        mixed = x.reshape(-1, self.order) @ hadamard(self.order).astype(np.float64)
        return mixed.reshape(x.shape) / np.sqrt(self.order)


class Rht(BlockRounding):
    """Codes of turned weights, for inputs that are turned alike."""

    name: Literal["rht"] = "rht"
    own_storage: ClassVar[bool] = True
    order: int = Field(default=16, ge=2, le=4096)  #: columns that are mixed: a power of two
    seed: int = Field(default=0, ge=0)  #: of the signs

    @field_validator("order")
    @classmethod
    def _power_of_two(cls, order: int) -> int:
        if order & (order - 1):
            below = 1 << order.bit_length() - 1
            raise ValueError(f"must be a power of two, nearest: {below} and {2 * below}")
        return order

    @property
    def turn(self) -> Turn:
        return Turn(self.order, self.seed)
