"""A Llama-family language model: one forward pass, whatever file the weights came from.

Pre-norm blocks of grouped-query attention with rotary positions and a SwiGLU feed-forward, RMS norm
throughout (Touvron et al. 2023). Rotary pairs are the two halves of a head, as in Hugging Face
checkpoints; loaders of other layouts reorder the rows.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Protocol

import torch
import torch.nn.functional as F

from bitwright.quant import InputError, start_numba_pool

from .block import Cache, Linear, Observe, Rotary, block_forward, norm, rotary_table
from .config import LlamaConfig
from .structure import Structure, narrowed_block

#: Weights of a block that are no linears.
_BLOCK_VECTORS = ("attn_norm", "ffn_norm")


class Tokenizer(Protocol):
    """Text to token ids and back; `encode` adds no begin or end token."""

    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: list[int]) -> str: ...


class LanguageModel:
    """A causal language model in float32 with replaceable linear layers.

    The forward pass follows the weights' dtype, and builds a graph for gradients only if a weight
    asks for one; loaded weights do not. `weights` may read its tensors from disk when they are
    asked for: a pass needs those of one block at a time.
    """

    def __init__(
        self,
        name: str,
        config: LlamaConfig,
        weights: Mapping[str, torch.Tensor],
        tokenizer: Tokenizer,
        source: str,
        *,
        streamed: bool = False,
        token_rows: torch.Tensor | None = None,
    ) -> None:
        start_numba_pool()  # or it would change torch's threads in the middle of a pass
        self.name = name
        self.config = config
        self.tokenizer = tokenizer
        self.source = source  #: where the weights come from, and what to bear in mind
        self.streamed = streamed  #: whether weights are read when they are asked for
        self._weights = weights
        #: int64 [vocab]: the row of the output layer that scores each token; None: its own.
        self.token_rows = token_rows

    def linear_names(self) -> tuple[str, ...]:
        """The block linears in order of use: "blocks.0.attn.q", ..., "blocks.0.ffn.down", ..."""
        return tuple(self.config.linear_shapes())

    def weight(self, name: str) -> torch.Tensor:
        """The float32 tensor of that name: a linear's [n, k], or another of `weight_shapes()`."""
        return self._weights[name]

    def block_weights(self, layer: int) -> dict[str, torch.Tensor]:
        """All weights of a block by local name: "attn.q", "attn_norm", "attn.q.bias", ..."""
        vectors = self._block_vectors(layer)
        prefix = f"blocks.{layer}."
        names = [n.removeprefix(prefix) for n in self.linear_names() if n.startswith(prefix)]
        return {**{n: self._weights[prefix + n] for n in names}, **vectors}

    def _block_vectors(self, layer: int) -> dict[str, torch.Tensor]:
        names = [*_BLOCK_VECTORS, *(f"attn.{letter}.bias" for letter in self.config.biased)]
        return {name: self._weights[f"blocks.{layer}.{name}"] for name in names}

    def with_weights(self, changed: Mapping[str, torch.Tensor]) -> "LanguageModel":
        """This model with some weights replaced; a "head" of its own unties the embedding."""
        config = self.config
        if "head" in set(changed) and config.tied_embeddings:
            config = replace(config, tied_embeddings=False)
        return LanguageModel(
            self.name,
            config,
            _Overlaid(self._weights, changed),
            self.tokenizer,
            self.source,
            streamed=self.streamed,
            token_rows=self.token_rows,
        )

    def with_head(self, rows: torch.Tensor, token_rows: torch.Tensor) -> "LanguageModel":
        """This model with an output layer whose rows tokens share.

        Args:
            rows: [rows, hidden]
            token_rows: int64 [vocab]: the row of each token.
        """
        model = self.with_weights({"head": rows})
        model.token_rows = token_rows
        return model

    def narrowed(self, structure: Structure) -> "LanguageModel":
        """The smaller model of the heads and feed-forward channels that `structure` keeps.

        Raises:
            InputError: A structure of another model.
        """
        structure.check(self.config)
        changed: dict[str, torch.Tensor] = {}
        for layer in range(self.config.layers):
            block = narrowed_block(self.config, self.block_weights(layer), structure, layer)
            changed |= {f"blocks.{layer}.{name}": w for name, w in block.items()}
        return LanguageModel(
            self.name,
            replace(self.config, blocks=structure.sizes(self.config)),
            _Overlaid(self._weights, changed),
            self.tokenizer,
            self.source,
            streamed=self.streamed,
        )

    def logits(
        self,
        tokens: torch.Tensor,
        linear: Linear | None = None,
        *,
        observe: Observe | None = None,
        cache: Cache | None = None,
    ) -> torch.Tensor:
        """Scores for the token after each position.

        Args:
            tokens: int64 [batch, t]; position 0 is the first token of each row.
            linear: Computes the block linears instead of the float32 product, e.g. through a
                processing element's arithmetic. Norms, attention and the output layer stay here.
            observe: Told the operands of every product in order of use; they are views of what the
                pass computes with, not to be written to:

                - "blocks.0.attn.q" and the other names of `linear_names`: inputs [batch * t, k] and
                  the model's weight [n, k], also where `linear` uses another one;
                - "blocks.0.attn.scores", once per row of the batch and key-value head: the queries
                  that read it, rotated and unscaled, [t * share, head_dim], and its keys
                  [t, head_dim]. The share = heads / kv_heads query heads stand one after the other
                  at each position;
                - "blocks.0.attn.values", likewise: the attention probabilities [t * share, t] of
                  these queries, zero after their own position, and the values, one channel per row,
                  [head_dim, t];
                - "lm_head": the last hidden states [batch * t, hidden] and [vocab, hidden], or
                  fewer rows where tokens share them.
            cache: Stands for the key-value cache, e.g. a quantised one: gets keys (rotated) and
                values [batch, kv_heads, t, head_dim] and gives back what attention reads.

        Returns:
            [batch, t, vocab]

        Raises:
            InputError: More positions than the model's context.
        """
        hidden = self.hidden(tokens, linear, observe=observe, cache=cache)
        if observe is not None:
            observe("lm_head", hidden.flatten(0, 1), self.head_weight)
        return self.head(hidden)

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        """The output layer: [..., hidden] to [..., vocab]."""
        scores = hidden @ self.head_weight.T
        return scores if self.token_rows is None else scores[..., self.token_rows]

    def hidden(
        self,
        tokens: torch.Tensor,
        linear: Linear | None = None,
        *,
        observe: Observe | None = None,
        cache: Cache | None = None,
    ) -> torch.Tensor:
        """`logits` up to the output layer: [batch, t, hidden] after the last norm."""
        x = self.embed(tokens)
        rotary = self.rotary(tokens.shape[1], x.dtype)
        for layer in range(self.config.layers):
            x = self.block(layer, x, rotary, linear, observe=observe, cache=cache)
        return norm(self.config, self._weights["final_norm"], x)

    def embed(self, tokens: torch.Tensor) -> torch.Tensor:
        """The residual stream before the first block, [batch, t, hidden].

        Raises:
            InputError: More positions than the model's context.
        """
        if tokens.shape[1] > self.config.context:
            raise InputError(
                f"{tokens.shape[1]} tokens do not fit the context of model {self.name}, "
                f"which is {self.config.context}; use a shorter window"
            )
        return F.embedding(tokens, self._weights["embed"])

    def rotary(self, t: int, dtype: torch.dtype = torch.float32) -> Rotary:
        """Cosines and sines of positions 0 .. t - 1."""
        return rotary_table(self.config, t, dtype)

    def block(
        self,
        layer: int,
        x: torch.Tensor,
        rotary: Rotary,
        linear: Linear | None = None,
        *,
        observe: Observe | None = None,
        cache: Cache | None = None,
    ) -> torch.Tensor:
        """The residual stream [batch, t, hidden] behind block `layer`; see `logits`."""
        linear = self._linear if linear is None else linear
        if observe is not None:
            linear = self._observed(linear, observe)
        return block_forward(
            self.config.of_block(layer),
            self._block_vectors(layer),
            x,
            rotary,
            linear,
            cache=cache,
            observe=observe,
            prefix=f"blocks.{layer}.",
        )

    @property
    def head_weight(self) -> torch.Tensor:
        """The output layer: [vocab, hidden], or the rows that tokens share (`token_rows`)."""
        return self._weights["embed" if self.config.tied_embeddings else "head"]

    def _observed(self, linear: Linear, observe: Observe) -> Linear:
        def observed(name: str, x: torch.Tensor) -> torch.Tensor:
            observe(name, x.flatten(0, -2), self._weights[name])
            return linear(name, x)

        return observed

    def _linear(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return x @ self._weights[name].T


class _Overlaid(Mapping[str, torch.Tensor]):
    """Weights of which some are replaced; the others are read when they are asked for."""

    def __init__(
        self, base: Mapping[str, torch.Tensor], changed: Mapping[str, torch.Tensor]
    ) -> None:
        self._base, self._changed, self._names = base, changed, set(changed)

    def __getitem__(self, name: str) -> torch.Tensor:
        return self._changed[name] if name in self._names else self._base[name]

    def __iter__(self):  # type: ignore[no-untyped-def]
        return iter({**dict.fromkeys(self._base), **dict.fromkeys(self._changed)})

    def __len__(self) -> int:
        return len(set(self._base) | set(self._changed))
