"""Wanda: weights go by magnitude times the norm of their input, row by row, without an update.

"A Simple and Effective Pruning Approach for Large Language Models" (Sun et al., ICLR 2024, arXiv
2306.11695): the score of a weight is |W_ij| * ||X_j||, compared within its row. ||X_j|| is the root
of the mean square of channel j over the calibration tokens; the authors' code takes the mean over
sequences, which is a common factor and changes nothing.

The norms are those of the *quantised* stream, as in the authors' code: a block's inputs come
through the blocks before it as they were stored, pruned and (behind a format) rounded; within the
block all linears still are as they came. The authors calibrate on 128 sequences of 2048 tokens.

The pruned matrices are stored as `masked.py` says; `pruning.py` has what pruning steps share.
"""

from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from jaxtyping import Float32

from .base import BlockTask
from .pruning import Pruning

if TYPE_CHECKING:
    import torch

_TOKENS = 4096  #: that go through a block together


class Wanda(Pruning):
    """Prunes a block's linears by weights and inputs."""

    name: Literal["wanda"] = "wanda"
    reads_quantized_stream: ClassVar[bool] = True

    def apply(self, block: BlockTask) -> None:
        from bitwright.quant import SITE_OF, SITES

        norms = input_norms(block)
        for names in SITES.values():
            for name in names:
                scores = wanda_scores(block.to_round(name), norms[SITE_OF[name]])
                self.prune(block, name, scores)


def wanda_scores(
    w: Float32[np.ndarray, "n k"], norms: Float32[np.ndarray, " k"]
) -> Float32[np.ndarray, "n k"]:
    """|W_ij| * ||X_j||.

    >>> wanda_scores(np.array([[4, 0, 1, -1]], np.float32), np.array([1, 2, 8, 3], np.float32))
    array([[4., 0., 8., 3.]], dtype=float32)
    """
    return np.abs(w) * norms


def input_norms(block: BlockTask) -> dict[str, np.ndarray]:
    """Root mean square of every channel of every site's inputs: float32 [k] by site."""
    import torch

    from bitwright.quant import SITES, block_forward, rotary_table

    assert block.streams is not None
    stream = block.streams.quantized_in
    sites = {names[0]: site for site, names in SITES.items()}
    squares: dict[str, torch.Tensor] = {}

    def linear(name: str, x: "torch.Tensor") -> "torch.Tensor":
        if name in sites:
            here = x.reshape(-1, x.shape[-1]).square().sum(0, dtype=torch.float64)
            squares[sites[name]] = squares.get(sites[name], 0) + here
        return x @ block.weights[name].T

    rotary = rotary_table(block.config, stream.shape[1], stream.dtype)
    batch = max(1, _TOKENS // stream.shape[1])
    with torch.no_grad():
        for start in range(0, len(stream), batch):
            x = stream[start : start + batch]
            block_forward(block.config, block.weights, x, rotary, linear)
    tokens = stream.shape[0] * stream.shape[1]
    return {site: (total / tokens).sqrt().float().numpy() for site, total in squares.items()}
