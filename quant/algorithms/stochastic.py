"""Stochastic rounding of elements in block formats, with a seed (`stochastic`).

An element between two levels takes the upper one with the probability of its distance from the
lower one, so that the mean over many seeds is the element itself (NVFP4 pre-training, Abecassis et
al., arXiv 2509.25149, rounds gradients so and weights to nearest). The error of one rounding is
larger than that of the nearest level; what it buys is that errors do not add up.

Unbiased is what does not saturate: elements beyond the largest level (MX scales can leave up to a
third of the largest magnitude outside, NVFP4's only what the scale's own rounding cuts) stay at it.

The draws of a matrix depend on the seed, the block's number and the linear's name, so the order in
which matrices are rounded does not matter.
"""

import zlib
from typing import Literal

import numpy as np
from pydantic import Field

from .block_rounding import BlockRounding


class Stochastic(BlockRounding):
    """Random, unbiased rounding in place of rounding to nearest."""

    name: Literal["stochastic"] = "stochastic"
    seed: int = Field(default=0, ge=0)  #: of the draws

    def generator(self, layer: int, linear: str) -> np.random.Generator:
        """The draws of one matrix."""
        return np.random.default_rng([self.seed, layer, zlib.crc32(linear.encode())])
