"""What the steps `rht`, `scales2d` and `stochastic` share: together they round to a block format.

Each says one thing (a basis, tiles of scales, how elements round), and they go together in any
order: weights are turned first, then tiles get their scales, then elements are rounded.
"""

from typing import ClassVar

import numpy as np
from jaxtyping import Float32

from bitwright.quant import FORMATS, CompressedMatrix, QuantizedTensor, SiteStats

from .base import Algorithm, BlockTask, Phase
from .block_scales import quantize_blocks


class BlockRounding(Algorithm):
    """One of the steps that say how the recipe's block format is reached."""

    phase: ClassVar[Phase] = "round"
    needs_data: ClassVar[bool] = False
    block_formats: ClassVar[bool] = True
    goes_with: ClassVar[tuple[str, ...] | None] = (
        "hadamard",
        "superweight",
        "rht",
        "scales2d",
        "stochastic",
        "vqlogits",
    )

    def round(
        self, block: BlockTask, name: str, w: Float32[np.ndarray, "n k"], stats: SiteStats | None
    ) -> QuantizedTensor | CompressedMatrix:
        """Weights [n, k] as all steps of this kind in the recipe want them."""
        from .block_matrix import BlockMatrix
        from .random_hadamard import Rht
        from .scales2d import Scales2d
        from .stochastic import Stochastic

        assert block.recipe.format is not None
        format = FORMATS[block.recipe.format]
        turn, rows, random = None, 1, None
        for step in block.recipe.steps:
            if isinstance(step, Rht):
                turn = step.turn
            elif isinstance(step, Scales2d):
                rows = format.block or 1
            elif isinstance(step, Stochastic):
                random = step.generator(block.layer, name)
        tensor = quantize_blocks(w if turn is None else turn.apply(w), format, rows, random)
        if turn is None and rows == 1:
            return tensor
        return BlockMatrix(tensor, rows, turn)
