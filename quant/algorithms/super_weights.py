"""Super weights: the few scalars that a model cannot lose stay in FP16.

"The Super Weight in Large Language Models" (Yu et al., arXiv 2411.07191): in an early down
projection a single weight writes a huge activation that the rest of the model relies on. It is
found by one forward pass: where the largest input and the largest output of "ffn.down" both spike,
the output's row and the input's column name the weight. It is taken out and the search repeats.

The weight is set to 0 before rounding, so that it does not stretch its group's scale, and kept
beside the tensor with 48 bits: hardware adds value * x[column] to y[row]. A weight that makes up
less than half of the output's spike is no super weight (our condition: `share`). What is looked at
is the first calibration sequence; the spikes' threshold of 50 is that of the authors' script.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from .base import Algorithm, BlockTask, Phase

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Spike:
    """A super weight and what it does to its layer, at the token where the output spikes."""

    row: int
    column: int
    value: float
    input: float  #: the activation that it multiplies
    before: float  #: the output of its row
    after: float  #: the same without the weight


class KeepSuperWeights(Algorithm):
    """Finds the super weights of a block and sets them aside."""

    name: Literal["superweight"] = "superweight"
    phase: ClassVar[Phase] = "prepare"
    needs_format: ClassVar[bool] = False
    threshold: float = Field(default=50.0, gt=0)  #: what counts as a spike, absolute
    most: int = Field(default=4, ge=1)  #: per block
    share: float = Field(default=0.5, ge=0, le=1)  #: of the output's spike that it must make up

    def apply(self, block: BlockTask) -> None:
        places = find_super_weights(block, self.threshold, self.most, self.share)
        if places:
            block.set_aside["ffn.down"] = places
            where = ", ".join(f"[{row}, {column}]" for row, column in places)
            block.note(f"ffn.down: super weight {where} kept in FP16")


def find_super_weights(
    block: BlockTask, threshold: float, most: int, share: float
) -> tuple[tuple[int, int], ...]:
    """Row and column of each super weight of "ffn.down", in the order in which they are found."""
    import torch

    from bitwright.quant import block_forward, rotary_table

    assert block.probe is not None
    seen: dict[str, torch.Tensor] = {}

    def linear(name: str, x: torch.Tensor) -> torch.Tensor:
        if name == "ffn.down":
            seen["x"] = x.flatten(0, -2)
        return x @ block.weights[name].T

    rotary = rotary_table(block.config, block.probe.shape[1], block.probe.dtype)
    with torch.no_grad():
        block_forward(block.config, block.weights, block.probe, rotary, linear)
        found = spikes(seen["x"], block.weights["ffn.down"], threshold, most, share)
    return tuple((spike.row, spike.column) for spike in found)


def spikes(
    x: "torch.Tensor", down: "torch.Tensor", threshold: float, most: int, share: float
) -> tuple[Spike, ...]:
    """The super weights of one matrix, in the order in which they are found.

    Args:
        x: Its inputs [tokens, k].
        down: The weights [n, k].
        threshold: What the largest input and the largest output both exceed.
        most: How many to look for.
        share: Of the output's spike that a super weight makes up at least.
    """
    down = down.clone()
    found: list[Spike] = []
    while len(found) < most:
        y = x @ down.T
        if min(float(x.abs().max()), float(y.abs().max())) <= threshold:
            break
        token, row = divmod(int(y.abs().argmax()), y.shape[1])
        column = int(x.abs().amax(0).argmax())
        value, source = float(down[row, column]), float(x[token, column])
        known = any((spike.row, spike.column) == (row, column) for spike in found)
        # Below its share the output's spike has another cause; no weight is found twice.
        if abs(value * source) < share * float(y[token, row].abs()) or known:
            break
        down[row, column] = 0
        after = float(x[token] @ down[row])
        found.append(Spike(row, column, value, source, float(y[token, row]), after))
    return tuple(found)
