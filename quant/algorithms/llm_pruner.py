"""LLM-Pruner: heads and feed-forward channels go, and the model really becomes smaller.

"LLM-Pruner: On the Structural Pruning of Large Language Models" (Ma et al., arXiv 2305.11627).
Coupled rows and columns form groups (`models/structure.py` says which). How much a group matters
is estimated from the gradient g of the language-model loss on a few calibration sequences, in each
matrix of the group along each of its rows or columns, and summed over all of them:

| importance | of a row or column w |
| --- | --- |
| vectorize | abs(sum of w g) |
| first | sum of abs(w g) |
| second | sum of abs(w^2 F) |
| mix | sum of abs(w g - w^2 F / 2) |

F is the mean over sequences of the squared gradient of one sequence's loss. The groups with the
smallest sums go, of equal ones the first: in every block the same share (scope "local"), or where
in the model they matter least ("global"). Blocks at both ends are kept whole: the authors' script
for a model of 32 keeps the first 4 and the last 2; here the default is one at either end.

What differs from the authors' code: only whole key-value heads go, each with all of its query
heads, so that a grouped-query model stays one; of a share that is no whole number of groups the
nearest is kept, halves upwards; `multiple` rounds the channels that stay, so that a block fills an
array of that width; biases do not count; the recovery by LoRA training is left out, so accuracies
are a lower bound of what the paper reports.
"""

from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from pydantic import Field

from bitwright.quant import InputError

from .base import Algorithm, Phase

if TYPE_CHECKING:
    import torch

    from bitwright.quant import LanguageModel, LlamaConfig, Structure

Importance = Literal["vectorize", "first", "second", "mix"]
#: Sums per key-value head with its query heads, and per feed-forward channel: float64.
Scores = tuple[np.ndarray, np.ndarray]


class LlmPruner(Algorithm):
    """Makes a model smaller before the rest of the recipe."""

    name: Literal["llmpruner"] = "llmpruner"
    phase: ClassVar[Phase] = "structure"
    needs_format: ClassVar[bool] = False
    ratio: float = Field(default=0.25, gt=0, lt=1)  #: of heads and channels that go, per block
    importance: Importance = "first"
    scope: Literal["local", "global"] = "local"
    keep_first: int = Field(default=1, ge=0)  #: blocks that stay whole
    keep_last: int = Field(default=1, ge=0)
    multiple: int = Field(default=1, ge=1)  #: of which the channels that stay are one
    sequences: int = Field(default=10, ge=1)  #: of the calibration's, or as many as it has
    length: int = Field(default=64, ge=2)  #: tokens of them, or as many as they have

    def blocks(self, config: "LlamaConfig") -> range:
        """The blocks that become smaller.

        Raises:
            InputError: There are none, a block would be emptied, or nothing would go.
        """
        kept = self.keep_first + self.keep_last
        if kept >= config.layers:
            raise InputError(
                f"llmpruner keeps {self.keep_first} first and {self.keep_last} last blocks of "
                f"{config.layers}; at most {config.layers - 1} together"
            )
        blocks = range(self.keep_first, config.layers - self.keep_last)
        for layer in blocks:
            own = config.of_block(layer)
            heads = kept_units(own.kv_heads, self.ratio, 1, "key-value heads")
            channels = kept_units(own.ffn, self.ratio, self.multiple, "feed-forward channels")
            if (heads, channels) != (own.kv_heads, own.ffn):
                return blocks
        raise InputError(
            f"llmpruner: ratio {self.ratio:g} takes nothing out in multiples of {self.multiple}; "
            f"at least {(np.ceil(500 * self.multiple / config.ffn) + 1) / 1000:.3f}"
        )


def kept_units(units: int, ratio: float, multiple: int, what: str) -> int:
    """How many of a block's units stay: the multiple nearest units * (1 - ratio), halves upwards.

    Raises:
        InputError: None would stay, or there are fewer units than `multiple`.
    """
    if multiple > units:
        raise InputError(
            f"llmpruner: multiple {multiple} exceeds the {units} {what} of a block; at most {units}"
        )
    # A product such as 10 * (1 - 0.45) may fall short of its half by rounding.
    kept = multiple * int(units * (1 - ratio) / multiple + 0.5 + 1e-9)
    if kept == 0:
        largest = int(1000 * (1 - multiple / (2 * units))) / 1000
        in_multiples = "" if multiple == 1 else f" in multiples of {multiple}"
        nearest = f"at most {largest:g}" if largest > 0 else "use a smaller multiple"
        raise InputError(
            f"llmpruner: ratio {ratio:g} empties a block of {units} {what}{in_multiples}; {nearest}"
        )
    return min(kept, units // multiple * multiple)


def prune_structure(model: "LanguageModel", step: LlmPruner, ids: "torch.Tensor") -> "Structure":
    """What LLM-Pruner keeps of a model; `model.narrowed` makes the smaller model of it.

    Args:
        model: All of its weights are in memory: gradients need them at once.
        step: The options.
        ids: Calibration tokens, int64 [sequences, t]; the first of them are used.

    Raises:
        InputError: Options that do not fit the model, or one that is streamed.
    """
    from bitwright.quant import Structure

    config = model.config
    blocks = step.blocks(config)
    if model.streamed:
        raise InputError(
            f"llmpruner needs gradients of all blocks of model {model.name} at once; load it "
            "without streaming"
        )
    scores = importances(model, ids[: step.sequences, : step.length], blocks, step.importance)
    heads = [tuple(range(config.of_block(i).kv_heads)) for i in range(config.layers)]
    channels = [tuple(range(config.of_block(i).ffn)) for i in range(config.layers)]
    for kept, part, multiple, what in (
        (heads, 0, 1, "key-value heads"),
        (channels, 1, step.multiple, "feed-forward channels"),
    ):
        own = {layer: scores[layer][part] for layer in blocks}
        counts = _counts(own, step.ratio, multiple, step.scope, what)
        for layer in blocks:
            order = np.argsort(own[layer], kind="stable")
            stay = np.sort(order[len(order) - counts[layer] :])
            kept[layer] = tuple(int(unit) for unit in stay)
    return Structure(tuple(heads), tuple(channels))


def importances(
    model: "LanguageModel",
    ids: "torch.Tensor",
    blocks: range,
    kind: Importance = "first",
) -> dict[int, Scores]:
    """How much each group of heads and each feed-forward channel of some blocks matters.

    Args:
        model: The model; nothing of it is changed.
        ids: int64 [sequences, t]; each sequence's loss is the mean over its t - 1 predicted tokens.
        blocks: Which blocks.
        kind: Which estimate, see the module.

    Raises:
        InputError: A gradient is NaN or infinite.
    """
    from bitwright.quant import SITE_OF

    names = [f"blocks.{layer}.{name}" for layer in blocks for name in SITE_OF]
    gradients, squares = _gradients(model, ids, names, kind in ("second", "mix"))
    found: dict[int, Scores] = {}
    for layer in blocks:
        config, prefix = model.config.of_block(layer), f"blocks.{layer}."

        def score(name: str, axis: int, prefix: str = prefix) -> np.ndarray:
            full = prefix + name
            return _score(model.weight(full), gradients[full], squares.get(full), kind, axis)

        heads = np.zeros(config.kv_heads)
        for name, axis in (("attn.q", 1), ("attn.k", 1), ("attn.v", 1), ("attn.o", 0)):
            heads += score(name, axis).reshape(config.kv_heads, -1).sum(1)
        channels = score("ffn.gate", 1) + score("ffn.up", 1) + score("ffn.down", 0)
        if not (np.isfinite(heads).all() and np.isfinite(channels).all()):
            raise InputError(f"blocks.{layer}: gradients of the loss are NaN or infinite")
        found[layer] = heads, channels
    return found


def _gradients(
    model: "LanguageModel", ids: "torch.Tensor", names: list[str], per_sequence: bool
) -> "tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]":
    """Of the mean loss over sequences; and the mean squares of each sequence's, if asked for."""
    import torch
    import torch.nn.functional as F

    with torch.enable_grad():
        leaves = {name: model.weight(name).detach().requires_grad_() for name in names}
        live = model.with_weights(leaves)
        sums: dict[str, torch.Tensor] = {}
        squares: dict[str, torch.Tensor] = {}
        for row in ids:
            loss = F.cross_entropy(live.logits(row[None, :-1])[0], row[1:])
            parts = torch.autograd.grad(loss, list(leaves.values()))
            for name, part in zip(names, parts, strict=True):
                sums[name] = sums[name].add_(part) if name in sums else part.clone()
                if per_sequence:
                    power = part.square_()
                    squares[name] = squares[name].add_(power) if name in squares else power
    return (
        {name: total / len(ids) for name, total in sums.items()},
        {name: total / len(ids) for name, total in squares.items()},
    )


def _score(
    w: "torch.Tensor",
    g: "torch.Tensor",
    squares: "torch.Tensor | None",
    kind: Importance,
    axis: int,
) -> np.ndarray:
    """Of each row (axis 1) or column (axis 0) of a matrix, float64."""
    import torch

    if kind == "vectorize":
        return (w * g).sum(axis, dtype=torch.float64).abs().numpy()
    if kind == "first":
        terms = w * g
    else:
        assert squares is not None
        curved = w.square() * squares
        terms = curved if kind == "second" else w * g - curved / 2
    found: np.ndarray = terms.abs().sum(axis, dtype=torch.float64).numpy()
    return found


def _counts(
    scores: dict[int, np.ndarray], ratio: float, multiple: int, scope: str, what: str
) -> dict[int, int]:
    """How many units of each block stay."""
    counts = {layer: kept_units(len(own), ratio, multiple, what) for layer, own in scores.items()}
    if scope == "local":
        return counts
    everywhere = np.concatenate(list(scores.values()))
    stay = np.zeros(len(everywhere), bool)
    stay[np.argsort(everywhere, kind="stable")[len(everywhere) - sum(counts.values()) :]] = True
    start = 0
    for layer, own in scores.items():
        wanted = int(stay[start : start + len(own)].sum())
        start += len(own)
        nearest = multiple * int(wanted / multiple + 0.5)
        counts[layer] = min(max(nearest, multiple), len(own) // multiple * multiple)
    return counts
