"""The decoder's definition in numpy: every operation one after the other, float32 throughout.

`Decoder` gives the same bits. Linears go through `matmul` on activations quantised per token, so
only what lies between them is written here.
"""

import numpy as np

from bitwright.kernels import matmul
from bitwright.quant import QuantizedModel

from .cpu.decoding import EXP_RANGE, LN2_HIGH, LN2_LOW, LOG2_E, ROUNDER, TAYLOR

F32 = np.float32


def exp(x: np.ndarray) -> np.ndarray:
    """exp of float32 numbers, clipped to -87 .. 87; see `cpu/decoding.py`."""
    x = np.maximum(np.minimum(x, EXP_RANGE), -EXP_RANGE)
    shifted = x * LOG2_E + ROUNDER
    n = shifted - ROUNDER
    r = x - n * LN2_HIGH
    r = r - n * LN2_LOW
    p = np.full_like(x, TAYLOR[0])
    for coefficient in TAYLOR[1:]:
        p = p * r + coefficient
    return (p.view(np.int32) + (shifted.view(np.int32) << 23)).view(np.float32)


def in_order(values: np.ndarray) -> np.float32:
    """The float32 sum of a row, added from the first to the last."""
    return np.add.accumulate(values, dtype=np.float32)[-1]


def rms_norm(x: np.ndarray, weight: np.ndarray, eps: np.float32) -> np.ndarray:
    """x [hidden] over its root mean square, times the weight."""
    factor = F32(1) / np.sqrt(in_order(x * x) / F32(len(x)) + eps)
    return x * factor * weight


def hidden_states(quantized: QuantizedModel, tokens: list[int]) -> np.ndarray:
    """The residual stream behind all blocks, float32 [tokens, hidden]."""
    config, weights = quantized.base.config, quantized.model
    act = quantized.recipe.activations
    half, share = config.head_dim // 2, config.heads // config.kv_heads
    cos, sin = (part.numpy() for part in quantized.base.rotary(len(tokens)))
    eps, shrink = F32(config.norm_eps), F32(1 / np.sqrt(config.head_dim))
    x = weights.weight("embed").numpy()[tokens].copy()

    def rotated(heads: np.ndarray, at: int) -> np.ndarray:
        a, b = heads[:, :half], heads[:, half:]
        turned = (a * cos[at] - b * sin[at], b * cos[at] + a * sin[at])
        return np.concatenate(turned, axis=1)

    for block in quantized.blocks:
        norms = [block.floats[name].numpy() for name in ("attn_norm", "ffn_norm")]

        def linear(name: str, rows: np.ndarray, block=block) -> np.ndarray:  # type: ignore[no-untyped-def]
            y = matmul(rows, block.tensors[name], activations=act)
            bias = block.floats.get(f"{name}.bias")
            return y if bias is None else y + bias.numpy()

        h = np.stack([rms_norm(row, norms[0], eps) for row in x])
        q, k, v = (linear(f"attn.{letter}", h) for letter in "qkv")
        keys = [rotated(k[t].reshape(config.kv_heads, -1), t) for t in range(len(tokens))]
        mixed = np.empty_like(q)
        for t in range(len(tokens)):
            queries = rotated(q[t].reshape(config.heads, -1), t)
            for head, query in enumerate(queries):
                seen = np.stack([keys[s][head // share] for s in range(t + 1)])
                scores = np.zeros(t + 1, np.float32)
                for d in range(config.head_dim):
                    scores = scores + query[d] * seen[:, d]
                scores = exp(scores * shrink - (scores * shrink).max())
                y = np.zeros(config.head_dim, np.float32)
                start = head // share * config.head_dim
                for s in range(t + 1):
                    y = y + scores[s] * v[s, start : start + config.head_dim]
                place = slice(head * config.head_dim, (head + 1) * config.head_dim)
                mixed[t, place] = y / in_order(scores)
        x = x + linear("attn.o", mixed)
        h = np.stack([rms_norm(row, norms[1], eps) for row in x])
        gate, up = linear("ffn.gate", h), linear("ffn.up", h)
        x = x + linear("ffn.down", gate / (F32(1) + exp(F32(0) - gate)) * up)
    return x
