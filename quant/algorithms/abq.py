"""ABQ-LLM: distribution correction on top of learned clipping and scales.

Zeng et al., AAAI 2025 (arXiv 2408.08554); the losses as in the authors' code (bytedance/ABQ-LLM,
algorithm/quantize/abq_llm.py and utils.py). To OmniQuant's mean square errors, to the float block
on the float stream and on the quantised stream, it adds

- the attention loss |KL(A_q || A)| + |KL(A || A_q)| between attention maps averaged over heads;
  `mode="code"` applies a softmax to the averaged maps once more, as the released code does, and
  `mode="paper"` takes them as the probabilities they are;
- the double-log-cosine loss -log|mean cos(d_q, d)| for both float outputs d;

and a rank-1 compensation a b^T of "ffn.down" in the first three and last four blocks, which is
added before rounding and so costs nothing at run time. The maps A are those of the float block on
the float stream (the released code's choice is not known to us).

Bit balance for 2 bits is a number format: `int2b-asym`, five levels stored in 3 bits.
"""

import math
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from .base import BlockTask
from .learning import Example, LearnedAlgorithm, learn

if TYPE_CHECKING:
    import torch


class Abq(LearnedAlgorithm):
    """Learned clipping and scales under distribution correction. The authors train 20 to 40 epochs
    of 128 x 2048 tokens."""

    name: Literal["abq"] = "abq"
    correction: bool = True  #: the attention and cosine losses
    compensation: bool = True  #: rank-1 addition in the first three and last four blocks
    mode: Literal["paper", "code"] = "paper"
    compensation_rate: float = Field(default=1e-2, gt=0)

    def apply(self, block: BlockTask) -> None:
        ends = block.layer <= 2 or block.layer >= block.config.layers - 4
        learn(
            block,
            self._loss,
            self.schedule(self.compensation_rate),
            clip=True,
            scale=self.learns_scales(block),
            compensate=self.compensation and ends,
            on_nan=self.on_nan,
            name=self.name,
        )

    def _loss(self, block: BlockTask, example: Example) -> "torch.Tensor":
        import torch.nn.functional as F

        loss = F.mse_loss(example.out, example.float_out)
        loss = loss + F.mse_loss(example.out, example.float_out_here)
        if not self.correction:
            return loss
        maps = [
            attention_map(block, *qk) for qk in (example.queries_keys, example.float_queries_keys)
        ]
        loss = loss + attention_loss(*maps, again=self.mode == "code")
        for target in (example.float_out, example.float_out_here):
            loss = loss + log_cosine_loss(example.out, target)
        return loss


def attention_map(block: BlockTask, q: "torch.Tensor", k: "torch.Tensor") -> "torch.Tensor":
    """Causal attention probabilities averaged over heads, [batch, t, t], of projections."""
    import torch

    from bitwright.quant import rotary_table, rotate, shared_heads, split_heads

    config = block.config
    rotary = rotary_table(config, q.shape[1], q.dtype)
    q, k = rotate(split_heads(config, q), rotary), rotate(split_heads(config, k), rotary)
    k = shared_heads(k, config.heads // config.kv_heads)
    scores = q @ k.transpose(-1, -2) / math.sqrt(config.head_dim)
    unseen = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    return scores.masked_fill(unseen, -math.inf).softmax(-1).mean(1)


def attention_loss(
    quantized: "torch.Tensor", exact: "torch.Tensor", *, again: bool
) -> "torch.Tensor":
    """|KL(quantized || exact)| + |KL(exact || quantized)|, mean over rows, of maps [batch, t, t].

    Args:
        quantized: Rows of probabilities.
        exact: The same of the float block.
        again: Apply a softmax to the rows first, as the released code does.
    """
    import torch

    if again:
        logs = [rows.log_softmax(-1) for rows in (quantized, exact)]
    else:
        tiny = torch.finfo(quantized.dtype).tiny  # masked places are 0 in both maps
        logs = [rows.clamp(min=tiny).log() for rows in (quantized, exact)]
    total = torch.zeros((), dtype=quantized.dtype)
    for log_p, log_r in (logs, logs[::-1]):
        total = total + (log_p.exp() * (log_p - log_r)).sum(-1).mean().abs()
    return total


def log_cosine_loss(out: "torch.Tensor", target: "torch.Tensor") -> "torch.Tensor":
    """-log|mean cos(out, target)| over tokens, of [batch, t, hidden]."""
    import torch.nn.functional as F

    return -F.cosine_similarity(out, target, dim=-1).mean().abs().log()
