"""One scale for a square tile of weights, in place of one for a row of a block (`scales2d`).

NVFP4 pre-training (Abecassis et al., arXiv 2509.25149) gives 16 x 16 weights one scale, so that W
and its transpose, which the backward pass reads, have the same codes. For inference it saves bits:
8 bits a scale over 256 weights instead of 16, 4.03 bits per weight instead of 4.5, at the price of
a coarser fit. MX formats get tiles of 32 x 32 the same way, which is this project's extension.
"""

from typing import ClassVar, Literal

from .block_rounding import BlockRounding


class Scales2d(BlockRounding):
    """As many rows share a scale as a block has columns."""

    name: Literal["scales2d"] = "scales2d"
    own_storage: ClassVar[bool] = True
