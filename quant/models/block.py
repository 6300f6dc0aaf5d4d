"""One transformer block of the Llama family: norm, attention, norm, feed-forward.

Everything here is a function of the block's weights, given by their local names ("attn.q",
"ffn_norm"), so that a pass can run block by block with only one block in memory.
"""

import math
from collections.abc import Callable, Iterator, Mapping

import torch
import torch.nn.functional as F

from .config import LlamaConfig

#: linear(name, x[..., k]) -> [..., n]: stands in for `x @ weight(name).T`.
Linear = Callable[[str, torch.Tensor], torch.Tensor]
#: observe(name, x[m, k], w[n, k]): told the operands of a product y = x @ w.T.
Observe = Callable[[str, torch.Tensor, torch.Tensor], None]
#: cache(name, y) -> y: what the key-value cache gives back of the keys ("blocks.0.attn.k", after
#: the rotation) or values ("blocks.0.attn.v") [batch, kv_heads, t, head_dim] put into it.
Cache = Callable[[str, torch.Tensor], torch.Tensor]
Weights = Mapping[str, torch.Tensor]
Rotary = tuple[torch.Tensor, torch.Tensor]


def block_forward(
    config: LlamaConfig,
    weights: Weights,
    x: torch.Tensor,
    rotary: Rotary,
    linear: Linear,
    *,
    cache: Cache | None = None,
    observe: Observe | None = None,
    prefix: str = "",
) -> torch.Tensor:
    """The residual stream behind a block.

    Args:
        config: The model's shape.
        weights: Norms and biases by local name; `linear` knows the matrices.
        x: Residual stream [batch, t, hidden].
        rotary: Of `rotary_table`.
        linear: Computes the linears, by prefixed name; biases are added here.
        cache: Stands for the key-value cache.
        observe: Told the operands of attention.
        prefix: Put before the local names for `linear`, `cache` and `observe`: "blocks.0.".
    """
    h = norm(config, weights["attn_norm"], x)
    q, k, v = (_project(letter, weights, linear, prefix, h) for letter in "qkv")
    y = attention(config, q, k, v, rotary, cache=cache, observe=observe, prefix=prefix)
    x = x + _project("o", weights, linear, prefix, y)
    h = norm(config, weights["ffn_norm"], x)
    gated = F.silu(linear(f"{prefix}ffn.gate", h)) * linear(f"{prefix}ffn.up", h)
    return x + linear(f"{prefix}ffn.down", gated)


def block_stages(
    config: LlamaConfig,
    weights: Weights,
    x: torch.Tensor,
    rotary: Rotary,
    batch: int,
    cache: Cache | None = None,
) -> Iterator[tuple[str, torch.Tensor]]:
    """A block in its four stages over many sequences, for weights that change on the way.

    Yields each site's name and its inputs [sequences, t, k]. When the generator goes on it reads
    the weights of that site's linears from `weights` as they are then, so that inputs of later
    stages already pass through quantised earlier ones. `x` becomes the block's output in place.

    Args:
        config: The model's shape.
        weights: All of the block's weights by local name.
        x: Residual stream [sequences, t, hidden]; overwritten.
        rotary: Of `rotary_table`.
        batch: Sequences computed at a time.
        cache: Stands for the key-value cache; names have no prefix.
    """

    def linear(name: str, y: torch.Tensor) -> torch.Tensor:
        return y @ weights[name].T

    parts = range(0, len(x), batch)
    h = torch.cat([norm(config, weights["attn_norm"], x[i : i + batch]) for i in parts])
    yield "attn_in", h
    mixed = torch.empty(*x.shape[:2], config.heads * config.head_dim, dtype=x.dtype)
    for i in parts:
        q, k, v = (_project(c, weights, linear, "", h[i : i + batch]) for c in "qkv")
        mixed[i : i + batch] = attention(config, q, k, v, rotary, cache=cache)
    yield "attn_out", mixed
    for i in parts:
        x[i : i + batch] += _project("o", weights, linear, "", mixed[i : i + batch])
    del mixed
    h = torch.cat([norm(config, weights["ffn_norm"], x[i : i + batch]) for i in parts])
    yield "ffn_in", h
    gated = torch.empty(*x.shape[:2], config.ffn, dtype=x.dtype)
    for i in parts:
        y = h[i : i + batch]
        gated[i : i + batch] = F.silu(linear("ffn.gate", y)) * linear("ffn.up", y)
    del h
    yield "ffn_out", gated
    for i in parts:
        x[i : i + batch] += linear("ffn.down", gated[i : i + batch])


def norm(config: LlamaConfig, weight: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """RMS norm over the hidden dimension."""
    return F.rms_norm(x, (config.hidden,), weight, config.norm_eps)


def attention(
    config: LlamaConfig,
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    rotary: Rotary,
    *,
    cache: Cache | None = None,
    observe: Observe | None = None,
    prefix: str = "",
) -> torch.Tensor:
    """Causal grouped-query attention on projected q, k, v [batch, t, heads * head_dim]."""
    batch, t, _ = q.shape
    q = rotate(split_heads(config, q), rotary)
    k = rotate(split_heads(config, k), rotary)
    v = split_heads(config, v)
    if cache is not None:
        k, v = cache(f"{prefix}attn.k", k), cache(f"{prefix}attn.v", v)
    # Query head h reads key-value head h // (heads / kv_heads).
    share = config.heads // config.kv_heads
    if observe is not None:
        _observe_attention(prefix, q, k, v, share, observe)
    k, v = shared_heads(k, share), shared_heads(v, share)
    y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
    return y.transpose(1, 2).reshape(batch, t, -1)


def split_heads(config: LlamaConfig, y: torch.Tensor) -> torch.Tensor:
    """[batch, t, heads * head_dim] to [batch, heads, t, head_dim]."""
    return y.view(*y.shape[:2], -1, config.head_dim).transpose(1, 2)


def shared_heads(y: torch.Tensor, share: int) -> torch.Tensor:
    """[batch, kv_heads, t, head_dim] to [batch, kv_heads * share, t, head_dim], each repeated."""
    batch, heads, t, head_dim = y.shape
    return y[:, :, None].expand(batch, heads, share, t, head_dim).reshape(batch, -1, t, head_dim)


def rotary_table(config: LlamaConfig, t: int, dtype: torch.dtype) -> Rotary:
    """Cosines and sines [t, head_dim / 2] of position x frequency, from float64 angles."""
    exponent = torch.arange(0, config.head_dim, 2, dtype=torch.float64) / config.head_dim
    frequency = config.rope_base**-exponent
    if config.rope_divisors:
        frequency = frequency / torch.tensor(config.rope_divisors, dtype=torch.float64)
    angle = torch.outer(torch.arange(t, dtype=torch.float64), frequency)
    return angle.cos().to(dtype), angle.sin().to(dtype)


def rotate(x: torch.Tensor, rotary: Rotary) -> torch.Tensor:
    """Turn pair (i, i + head_dim/2) of each head by its position's angle."""
    cos, sin = rotary
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


def _project(
    letter: str, weights: Weights, linear: Linear, prefix: str, y: torch.Tensor
) -> torch.Tensor:
    out = linear(f"{prefix}attn.{letter}", y)
    bias = weights.get(f"attn.{letter}.bias")
    return out if bias is None else out + bias


def _observe_attention(
    prefix: str,
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
        prefix: Of the names.
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
            observe(f"{prefix}attn.scores", rows, key)
            scores = (rows @ key.T / math.sqrt(head_dim)).masked_fill(unseen, -math.inf)
            observe(f"{prefix}attn.values", scores.softmax(dim=-1), value.T)
