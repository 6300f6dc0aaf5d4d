"""Which attention heads and feed-forward channels of a model stay, and the blocks without the rest.

What belongs together goes together. A feed-forward channel is a row of "ffn.gate", the same row of
"ffn.up" and the same column of "ffn.down". With grouped-query attention a *group* is a key-value
head with all query heads that read it: rows of "attn.q", "attn.k" and "attn.v" (and of their
biases) and columns of "attn.o". Only whole groups go, so the number of query heads per key-value
head stays, and with it which query head reads which key-value head.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from bitwright.quant import InputError

from .config import LlamaConfig


@dataclass(frozen=True, slots=True)
class Structure:
    """What is kept of each block, numbered as in the original model, in rising order."""

    heads: tuple[tuple[int, ...], ...]  #: key-value heads, each with its query heads
    channels: tuple[tuple[int, ...], ...]  #: feed-forward channels

    def check(self, config: LlamaConfig) -> None:
        """Refuse a structure of another model.

        Raises:
            InputError: Other numbers of blocks, or a block that keeps nothing or what is not there.
        """
        for what, kept, name in (
            ("key-value heads", self.heads, "kv_heads"),
            ("channels", self.channels, "ffn"),
        ):
            if len(kept) != config.layers:
                raise InputError(
                    f"structure: {what} of {len(kept)} blocks given, the model has {config.layers}"
                )
            for layer, own in enumerate(kept):
                units = getattr(config.of_block(layer), name)
                if not own or list(own) != sorted(set(own)) or own[0] < 0 or own[-1] >= units:
                    raise InputError(
                        f"structure: {what} of blocks.{layer} must be rising numbers from 0 to "
                        f"{units - 1}, at least one"
                    )

    def sizes(self, config: LlamaConfig) -> tuple[tuple[int, int, int], ...]:
        """(heads, kv_heads, ffn) of each block; empty if all blocks stay as they are."""
        share = config.heads // config.kv_heads
        found = tuple(
            (share * len(heads), len(heads), len(channels))
            for heads, channels in zip(self.heads, self.channels, strict=True)
        )
        whole = (config.heads, config.kv_heads, config.ffn)
        return () if not config.blocks and all(size == whole for size in found) else found

    def to_dict(self) -> dict[str, Any]:
        """Lists, for JSON."""
        return {"heads": list(map(list, self.heads)), "channels": list(map(list, self.channels))}

    @classmethod
    def from_dict(cls, found: Mapping[str, Iterable[Iterable[int]]]) -> "Structure":
        """From `to_dict`."""
        heads, channels = (
            tuple(tuple(int(number) for number in own) for own in found[what])
            for what in ("heads", "channels")
        )
        return cls(heads, channels)


def narrowed_block(
    config: LlamaConfig, weights: Mapping[str, torch.Tensor], structure: Structure, layer: int
) -> dict[str, torch.Tensor]:
    """A block's linears, by local name, and their biases: what is kept of them, as copies."""
    own = config.of_block(layer)
    heads = np.array(structure.heads[layer])
    values = torch.from_numpy(_spread(heads, own.head_dim))
    queries = torch.from_numpy(_spread(heads, own.head_dim * (own.heads // own.kv_heads)))
    channels = torch.tensor(structure.channels[layer])
    out = {
        "attn.q": weights["attn.q"][queries],
        "attn.k": weights["attn.k"][values],
        "attn.v": weights["attn.v"][values],
        "attn.o": weights["attn.o"][:, queries],
        "ffn.gate": weights["ffn.gate"][channels],
        "ffn.up": weights["ffn.up"][channels],
        "ffn.down": weights["ffn.down"][:, channels],
    }
    for letter, rows in (("q", queries), ("k", values), ("v", values)):
        if letter in config.biased:
            out[f"attn.{letter}.bias"] = weights[f"attn.{letter}.bias"][rows]
    return {name: w.contiguous() for name, w in out.items()}


def _spread(units: np.ndarray, width: int) -> np.ndarray:
    """The rows of units of `width` rows each."""
    return (units[:, None] * width + np.arange(width)).reshape(-1)
