"""OmniQuant: learned clipping and learned equivalent transformation.

Shao et al., ICLR 2024 (arXiv 2308.13137). The block's output on the quantised stream is pulled to
that of the float block on the float stream by mean square error; with `aug_loss` also to that of
the float block on the quantised stream. Scales are learned where activations are quantised, as in
the authors' scripts for Llama; shifts (OPT only) and the scale between queries and keys, which
changes nothing where the cache stays in float, are left out. See `learning.py` for what is learned.
"""

from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from .base import Algorithm, BlockTask, Phase
from .learning import Example, OnNan, Schedule, learn

if TYPE_CHECKING:
    import torch


class OmniQuant(Algorithm):
    """Learned clipping (LWC) and scales (LET). The authors train 128 x 2048 tokens, 20 epochs."""

    name: Literal["omniquant"] = "omniquant"
    phase: ClassVar[Phase] = "prepare"
    reads_quantized_stream: ClassVar[bool] = True
    sequences: int = Field(default=32, ge=1)  #: calibration sequences trained on
    epochs: int = Field(default=10, ge=1)
    batch: int = Field(default=2, ge=1)  #: sequences per step
    scale: Literal["auto", "on", "off"] = (
        "auto"  #: learn scales; auto: if activations are quantised
    )
    clip: bool = True  #: learn clipping
    aug_loss: bool = False
    scale_rate: float = Field(default=5e-3, gt=0)
    clip_rate: float = Field(default=1e-2, gt=0)
    on_nan: OnNan = "restore"

    def apply(self, block: BlockTask) -> None:
        learned = (
            block.recipe.activations is not None if self.scale == "auto" else self.scale == "on"
        )
        learn(
            block,
            self._loss,
            Schedule(self.sequences, self.epochs, self.batch, self.scale_rate, self.clip_rate),
            clip=self.clip,
            scale=learned,
            on_nan=self.on_nan,
            name=self.name,
        )

    def _loss(self, block: BlockTask, example: Example) -> "torch.Tensor":
        import torch.nn.functional as F

        loss = F.mse_loss(example.out, example.float_out)
        return loss + F.mse_loss(example.out, example.float_out_here) if self.aug_loss else loss
