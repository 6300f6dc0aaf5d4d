"""GPTQ as a step of a recipe; the recursion itself is in `gptq.py`.

A block's linears are rounded in the order in which data flows through them, and the inputs that
give a linear's Hessian come through the quantised blocks and linears before it (Frantar et al.,
ICLR 2023; "true sequential" in the authors' code). That takes a single pass over the data.
"""

from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from bitwright.quant import QuantizedTensor, SiteStats

from .base import Algorithm, BlockTask, Phase
from .gptq import gptq


class GptqStep(Algorithm):
    """Error-compensated rounding, column by column."""

    name: Literal["gptq"] = "gptq"
    phase: ClassVar[Phase] = "round"
    reads_quantized_stream: ClassVar[bool] = True
    act_order: bool = False  #: columns by falling input energy, with groups fixed beforehand
    damping: float = Field(default=0.01, gt=0)  #: times the mean diagonal, added to the Hessian

    def round(
        self, block: BlockTask, name: str, w: np.ndarray, stats: SiteStats
    ) -> QuantizedTensor:
        """The codes of weights [n, k], whose inputs gave `stats` with a Gram matrix."""
        recipe = block.recipe
        format = recipe.format_obj
        assert format is not None and recipe.scale_format is not None
        result = gptq(
            w,
            stats.hessian,
            format,
            min(recipe.group_size or w.shape[1], w.shape[1]),
            recipe.scale_format,
            act_order=self.act_order,
            damping=self.damping,
        )
        if result.damping_raised:
            block.note(
                f"{name}: Hessian is singular; damping raised from {self.damping:g} to "
                f"{result.damping:g}"
            )
        return result.tensor
