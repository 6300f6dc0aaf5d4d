"""SmoothQuant: move the difficulty of outlier channels from activations into weights.

Xiao et al., ICML 2023 (arXiv 2211.10438), equation 4: channel j of a linear's inputs is divided by

    s_j = max|X_j|**alpha / max|W_j|**(1 - alpha)

and the weights' columns are multiplied by it. Only inputs that a norm makes are scaled, as in the
authors' code. The BitMoD study uses alpha 0.85 (authors' repo BitMoD-HPCA-25, SmoothQuant-BitMoD).
"""

from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from pydantic import Field

from .base import Algorithm, BlockTask, Phase

if TYPE_CHECKING:
    from bitwright.quant import SiteStats

#: Smallest scale and smallest magnitude, as in the authors' code.
FLOOR = 1e-5


class SmoothQuant(Algorithm):
    """The scales follow from ranges alone; nothing is searched."""

    name: Literal["smoothquant"] = "smoothquant"
    phase: ClassVar[Phase] = "prepare"
    alpha: float = Field(default=0.5, ge=0, le=1)  #: share of the difficulty that weights take

    def apply(self, block: BlockTask) -> None:
        from bitwright.quant import SITES

        for site in ("attn_in", "ffn_in"):
            weights = [block.matrix(name) for name in SITES[site]]
            block.scale_inputs(site, smoothing_scales(block.stats[site], weights, self.alpha))


def smoothing_scales(stats: "SiteStats", weights: list[np.ndarray], alpha: float) -> np.ndarray:
    """max|X_j|**alpha / max|W_j|**(1 - alpha) per channel, float32 [k]; 1 for dead channels.

    Args:
        stats: Of the inputs.
        weights: Every matrix [n, k] that reads them.
        alpha: 0 .. 1.
    """
    inputs = np.maximum(stats.absmax, FLOOR).astype(np.float64)
    columns = np.maximum(np.max([np.abs(w).max(0) for w in weights], axis=0), FLOOR)
    scales = np.maximum(inputs**alpha / columns.astype(np.float64) ** (1 - alpha), FLOOR)
    return np.where(stats.dead, 1.0, scales).astype(np.float32)
