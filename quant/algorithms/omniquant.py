"""OmniQuant: learned clipping and learned equivalent transformation.

Shao et al., ICLR 2024 (arXiv 2308.13137). The block's output on the quantised stream is pulled to
that of the float block on the float stream by mean square error; with `aug_loss` also to that of
the float block on the quantised stream. Scales are learned where activations are quantised, as in
the authors' scripts for Llama; shifts (OPT only) and the scale between queries and keys, which
changes nothing where the cache stays in float, are left out. See `learning.py` for what is learned.
"""

from typing import TYPE_CHECKING, Literal

from .base import BlockTask
from .learning import Example, LearnedAlgorithm, learn

if TYPE_CHECKING:
    import torch


class OmniQuant(LearnedAlgorithm):
    """Learned clipping (LWC) and scales (LET). The authors train 128 x 2048 tokens, 20 epochs."""

    name: Literal["omniquant"] = "omniquant"
    clip: bool = True  #: learn clipping
    aug_loss: bool = False

    def apply(self, block: BlockTask) -> None:
        learn(
            block,
            self._loss,
            self.schedule(),
            clip=self.clip,
            scale=self.learns_scales(block),
            on_nan=self.on_nan,
            name=self.name,
        )

    def _loss(self, block: BlockTask, example: Example) -> "torch.Tensor":
        import torch.nn.functional as F

        loss = F.mse_loss(example.out, example.float_out)
        return loss + F.mse_loss(example.out, example.float_out_here) if self.aug_loss else loss
