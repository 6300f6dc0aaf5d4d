"""A Llama-family language model: one forward pass, whatever file the weights came from.

Pre-norm blocks of grouped-query attention with rotary positions and a SwiGLU feed-forward, RMS norm
throughout (Touvron et al. 2023). Rotary pairs are the two halves of a head, as in Hugging Face
checkpoints; loaders of other layouts reorder the rows.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F

from bitwright.quant import InputError

#: linear(name, x[..., k]) -> [..., n]: stands in for `x @ weight(name).T`.
Linear = Callable[[str, torch.Tensor], torch.Tensor]
#: observe(name, x[m, k], w[n, k]): told the operands of a product y = x @ w.T.
Observe = Callable[[str, torch.Tensor, torch.Tensor], None]


class Tokenizer(Protocol):
    """Text to token ids and back; `encode` adds no begin or end token."""

    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: list[int]) -> str: ...


@dataclass(frozen=True, slots=True)
class LlamaConfig:
    """Shape of one model; checked when made."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int
    rope_base: float
    norm_eps: float
    tied_embeddings: bool  #: the output layer is the embedding
    context: int  #: longest sequence the model was made for, in tokens
    rope_divisors: tuple[float, ...] = ()  #: divides each rotary frequency; empty: none
    biased: tuple[str, ...] = ()  #: attention linears with a bias, of "q", "k", "v", "o"

    def __post_init__(self) -> None:
        for field in (
            "layers",
            "hidden",
            "heads",
            "kv_heads",
            "head_dim",
            "ffn",
            "vocab",
            "context",
        ):
            if getattr(self, field) < 1:
                raise InputError(
                    f"model config: {field} is {getattr(self, field)}, must be positive"
                )
        if self.heads % self.kv_heads:
            raise InputError(
                f"model config: {self.heads} attention heads cannot share {self.kv_heads} "
                "key-value heads evenly"
            )
        if self.head_dim % 2:
            raise InputError(f"model config: head_dim {self.head_dim} is odd; rotary needs pairs")
        if not (self.rope_base > 0 and self.norm_eps >= 0):
            raise InputError(
                f"model config: rope base {self.rope_base} must be positive and norm epsilon "
                f"{self.norm_eps} not negative"
            )
        if self.rope_divisors and len(self.rope_divisors) != self.head_dim // 2:
            raise InputError(
                f"model config: {len(self.rope_divisors)} rotary factors given, "
                f"head_dim {self.head_dim} needs {self.head_dim // 2}"
            )
        if not all(divisor > 0 for divisor in self.rope_divisors):
            raise InputError("model config: rotary factors must be positive")

    def linear_shapes(self) -> dict[str, tuple[int, int]]:
        """Name and [n, k] of every linear layer in the blocks, in order of use."""
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        shapes: dict[str, tuple[int, int]] = {}
        for layer in range(self.layers):
            block = f"blocks.{layer}"
            shapes[f"{block}.attn.q"] = (q, self.hidden)
            shapes[f"{block}.attn.k"] = (kv, self.hidden)
            shapes[f"{block}.attn.v"] = (kv, self.hidden)
            shapes[f"{block}.attn.o"] = (self.hidden, q)
            shapes[f"{block}.ffn.gate"] = (self.ffn, self.hidden)
            shapes[f"{block}.ffn.up"] = (self.ffn, self.hidden)
            shapes[f"{block}.ffn.down"] = (self.hidden, self.ffn)
        return shapes

    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every tensor of the model: what a loader has to supply."""
        shapes: dict[str, tuple[int, ...]] = {"embed": (self.vocab, self.hidden)}
        for name, shape in self.linear_shapes().items():
            shapes[name] = shape
            if name.split(".")[-2] == "attn" and name.split(".")[-1] in self.biased:
                shapes[f"{name}.bias"] = shape[:1]
        for layer in range(self.layers):
            shapes[f"blocks.{layer}.attn_norm"] = (self.hidden,)
            shapes[f"blocks.{layer}.ffn_norm"] = (self.hidden,)
        shapes["final_norm"] = (self.hidden,)
        if not self.tied_embeddings:
            shapes["head"] = (self.vocab, self.hidden)
        return shapes


class LanguageModel:
    """A causal language model in float32 with replaceable linear layers.

    The forward pass follows the weights' dtype, and builds a graph for gradients only if a weight
    asks for one; loaded weights do not.
    """

    def __init__(
        self,
        name: str,
        config: LlamaConfig,
        weights: Mapping[str, torch.Tensor],
        tokenizer: Tokenizer,
        source: str,
    ) -> None:
        self.name = name
        self.config = config
        self.tokenizer = tokenizer
        self.source = source  #: where the weights come from, and what to bear in mind
        self._weights = dict(weights)

    def linear_names(self) -> tuple[str, ...]:
        """The block linears in order of use: "blocks.0.attn.q", ..., "blocks.0.ffn.down", ..."""
        return tuple(self.config.linear_shapes())

    def weight(self, name: str) -> torch.Tensor:
        """The float32 tensor of that name: a linear's [n, k], or another of `weight_shapes()`."""
        return self._weights[name]

    def logits(
        self,
        tokens: torch.Tensor,
        linear: Linear | None = None,
        *,
        observe: Observe | None = None,
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
                - "lm_head": the last hidden states [batch * t, hidden] and [vocab, hidden].

        Returns:
            [batch, t, vocab]

        Raises:
            InputError: More positions than the model's context.
        """
        hidden = self.hidden(tokens, linear, observe=observe)
        if observe is not None:
            observe("lm_head", hidden.flatten(0, 1), self._head_weight)
        return self.head(hidden)

    def head(self, hidden: torch.Tensor) -> torch.Tensor:
        """The output layer: [..., hidden] to [..., vocab]."""
        return hidden @ self._head_weight.T

    def hidden(
        self,
        tokens: torch.Tensor,
        linear: Linear | None = None,
        *,
        observe: Observe | None = None,
    ) -> torch.Tensor:
        """`logits` up to the output layer: [batch, t, hidden] after the last norm."""
        config = self.config
        if tokens.shape[1] > config.context:
            raise InputError(
                f"{tokens.shape[1]} tokens do not fit the context of model {self.name}, "
                f"which is {config.context}; use a shorter window"
            )
        if linear is None:
            linear = self._linear
        if observe is not None:
            linear = self._observed(linear, observe)
        x = F.embedding(tokens, self._weights["embed"])
        rotary = self._rotary(tokens.shape[1], x.dtype)
        for layer in range(config.layers):
            block = f"blocks.{layer}"
            h = self._norm(f"{block}.attn_norm", x)
            x = x + self._attention(block, h, rotary, linear, observe)
            h = self._norm(f"{block}.ffn_norm", x)
            gated = F.silu(linear(f"{block}.ffn.gate", h)) * linear(f"{block}.ffn.up", h)
            x = x + linear(f"{block}.ffn.down", gated)
        return self._norm("final_norm", x)

    @property
    def _head_weight(self) -> torch.Tensor:
        return self._weights["embed" if self.config.tied_embeddings else "head"]

    def _observed(self, linear: Linear, observe: Observe) -> Linear:
        def observed(name: str, x: torch.Tensor) -> torch.Tensor:
            observe(name, x.flatten(0, -2), self._weights[name])
            return linear(name, x)

        return observed

    def _linear(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return x @ self._weights[name].T

    def _norm(self, name: str, x: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(x, (self.config.hidden,), self._weights[name], self.config.norm_eps)

    def _attention(
        self,
        block: str,
        x: torch.Tensor,
        rotary: tuple[torch.Tensor, torch.Tensor],
        linear: Linear,
        observe: Observe | None,
    ) -> torch.Tensor:
        config = self.config
        batch, t, _ = x.shape

        def project(letter: str, y: torch.Tensor) -> torch.Tensor:
            name = f"{block}.attn.{letter}"
            out = linear(name, y)
            return out + self._weights[f"{name}.bias"] if letter in config.biased else out

        def split(y: torch.Tensor) -> torch.Tensor:  # (batch, heads, t, head_dim)
            return y.view(batch, t, -1, config.head_dim).transpose(1, 2)

        q = _rotate(split(project("q", x)), *rotary)
        k = _rotate(split(project("k", x)), *rotary)
        v = split(project("v", x))
        # Query head h reads key-value head h // (heads / kv_heads).
        share = config.heads // config.kv_heads
        if observe is not None:
            _observe_attention(block, q, k, v, share, observe)
        k, v = k.repeat_interleave(share, dim=1), v.repeat_interleave(share, dim=1)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return project("o", y.transpose(1, 2).reshape(batch, t, -1))

    def _rotary(self, t: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines [t, head_dim / 2] of position x frequency, from float64 angles."""
        config = self.config
        exponent = torch.arange(0, config.head_dim, 2, dtype=torch.float64) / config.head_dim
        frequency = config.rope_base**-exponent
        if config.rope_divisors:
            frequency = frequency / torch.tensor(config.rope_divisors, dtype=torch.float64)
        angle = torch.outer(torch.arange(t, dtype=torch.float64), frequency)
        return angle.cos().to(dtype), angle.sin().to(dtype)


def _rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Turn pair (i, i + head_dim/2) of each head by its position's angle."""
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


def _observe_attention(
    block: str,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    share: int,
    observe: Observe,
) -> None:
    """Tell `observe` the two products of attention, see `LanguageModel.logits`.

    The pass itself never forms the probabilities (its attention is one fused operation), so they
    are computed here once more.

    Args:
        block: Prefix of the names.
        q: [batch, kv_heads * share, t, head_dim]
        k: [batch, kv_heads, t, head_dim]
        v: Like `k`.
        share: Query heads per key-value head.
        observe: What to tell.
    """
    t, head_dim = q.shape[2:]
    unseen = torch.ones(t, t, dtype=torch.bool).triu(1).repeat_interleave(share, dim=0)
    for queries, keys, values in zip(q, k, v, strict=True):
        for shared, key, value in zip(queries.split(share), keys, values, strict=True):
            rows = shared.transpose(0, 1).reshape(t * share, head_dim)
            observe(f"{block}.attn.scores", rows, key)
            scores = (rows @ key.T / math.sqrt(head_dim)).masked_fill(unseen, -math.inf)
            observe(f"{block}.attn.values", scores.softmax(dim=-1), value.T)
