"""Rotating a Llama-family model without changing its function, so that outlier channels spread.

A hidden state x becomes x R with an orthonormal R [hidden, hidden]. RMS norm divides by a length,
which R keeps, so the two commute once the norm's weight has moved into the linears behind it
(SliceGPT, Ashkboos et al., arXiv 2401.15024). What reads the residual stream then takes R.T in, and
what writes to it applies R, all beforehand and in the weights; the model runs as before, with other
numbers. With `head`, an orthonormal H [head_dim, head_dim], the value heads and hence the input of
the output projection turn as well. This is the part of QuaRot (Ashkboos et al., arXiv 2404.00456)
that costs nothing at run time.

QuaRot's online rotations are left out: of the input of the down projection, of queries and keys
behind their rotary positions, and of the value heads among each other. Products of two channels,
rotary positions and the attention of each head commute with no such rotation, so it would have to
be computed for every token at run time, by hardware beside the array. Down's input keeps its
outliers, and so do queries and keys.

`hadamard_matrix.orthogonal` gives matrices for R and H.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from bitwright.quant import InputError

if TYPE_CHECKING:
    import torch

    from bitwright.quant import LlamaConfig

#: Which linears read the output of a norm.
_READERS = {"attn_norm": ("attn.q", "attn.k", "attn.v"), "ffn_norm": ("ffn.gate", "ffn.up")}
#: Which linears add to the residual stream.
_WRITERS = ("attn.o", "ffn.down")
_BIASES = ("attn.q.bias", "attn.k.bias", "attn.v.bias", "attn.o.bias")
#: How far R @ R.T may be off: a rotation stored in float32 passes, one in float16 does not.
_TOLERANCE = 1e-5
#: Rows of a vocabulary that are in float64 at a time.
_ROWS = 4096


def rotate_block(
    weights: Mapping[str, "torch.Tensor"],
    config: "LlamaConfig",
    residual: "torch.Tensor",
    head: "torch.Tensor | None",
) -> dict[str, "torch.Tensor"]:
    """The weights of one block whose input and output are x R instead of x.

    Each result is computed in float64 and rounded once, to the dtype of the tensor it replaces.

    ============ ==================== ========================================================
    name         y = x @ W.T + b      becomes
    ============ ==================== ========================================================
    attn_norm    norm                 ones; likewise ffn_norm
    attn.q, k    [n, hidden]          W diag(norm) R; the biases stay
    ffn.gate, up [ffn, hidden]        W diag(norm) R
    attn.v       [kv heads, hidden]   W diag(norm) R, then the rows of each head H.T W; bias b H
    attn.o       [hidden, heads]      R.T W, then the columns of each head W H; bias b R
    ffn.down     [hidden, ffn]        R.T W
    ============ ==================== ========================================================

    All heads turn by the same H, so it does not matter which query heads share a value head.

    Args:
        weights: The block's tensors by local name: the seven linears and two norms of the table,
            and any of "attn.q.bias", "attn.k.bias", "attn.v.bias" and "attn.o.bias".
        config: Shape of the model.
        residual: R, orthonormal, [hidden, hidden]; the same for all blocks and `rotate_ends`.
        head: H, orthonormal, [head_dim, head_dim]; None leaves values as they are.

    Returns:
        New tensors for the same names; the ones given are not written to, and may be among the
        result where nothing changes.

    Raises:
        InputError: A tensor is missing, or is one that this module cannot rotate; a rotation has
            the wrong shape or is not orthonormal.
    """
    import torch

    _check_names(weights)
    like = weights["attn.q"]
    r = _orthonormal("residual", residual, config.hidden, like)
    exact = {name: tensor.double() for name, tensor in weights.items()}
    for norm, readers in _READERS.items():
        for name in readers:
            exact[name] = exact[name] * exact[norm] @ r
        exact[norm] = torch.ones_like(exact[norm])
    for name in _WRITERS:
        exact[name] = r.T @ exact[name]
    if "attn.o.bias" in exact:
        exact["attn.o.bias"] = exact["attn.o.bias"] @ r
    if head is not None:
        h = _orthonormal("head", head, config.head_dim, like)
        values = exact["attn.v"].reshape(config.kv_heads, config.head_dim, config.hidden)
        exact["attn.v"] = (h.T @ values).flatten(0, 1)
        if "attn.v.bias" in exact:
            bias = exact["attn.v.bias"].reshape(config.kv_heads, config.head_dim)
            exact["attn.v.bias"] = (bias @ h).flatten()
        outputs = exact["attn.o"].reshape(config.hidden, config.heads, config.head_dim)
        exact["attn.o"] = (outputs @ h).flatten(1)
    return {name: tensor.to(weights[name].dtype) for name, tensor in exact.items()}


def rotate_ends(
    embed: "torch.Tensor",
    final_norm: "torch.Tensor",
    head_weight: "torch.Tensor",
    residual: "torch.Tensor",
) -> tuple["torch.Tensor", "torch.Tensor", "torch.Tensor"]:
    """Embedding, final norm and output layer of a model whose blocks `rotate_block` has rotated.

    The embedding becomes E R, the norm ones and the output layer W diag(norm) R, each computed in
    float64 and rounded once to its dtype. A tied model becomes an untied one, since its output
    layer takes the norm in and its embedding does not: pass the embedding twice, and give the
    model a configuration without tied embeddings.

    Args:
        embed: [vocab, hidden]
        final_norm: [hidden]
        head_weight: [vocab, hidden]; `embed` itself if the model is tied.
        residual: R, as in `rotate_block`.

    Raises:
        InputError: `residual` has the wrong shape or is not orthonormal.
    """
    import torch

    r = _orthonormal("residual", residual, len(final_norm), embed)
    ones = torch.ones_like(final_norm)
    return _turned(embed, ones, r), ones, _turned(head_weight, final_norm, r)


def _turned(w: "torch.Tensor", norm: "torch.Tensor", r: "torch.Tensor") -> "torch.Tensor":
    """W diag(norm) R in the dtype of W, some rows at a time: a vocabulary is large in float64."""
    import torch

    parts = [(part.double() * norm.double() @ r).to(w.dtype) for part in w.split(_ROWS)]
    return torch.cat(parts)


def _check_names(weights: Mapping[str, "torch.Tensor"]) -> None:
    linears = [name for readers in _READERS.values() for name in readers] + [*_WRITERS]
    missing = {*linears, *_READERS} - weights.keys()
    if missing:
        raise InputError(f"block to rotate: no weight named {sorted(missing)[0]}")
    unknown = weights.keys() - {*linears, *_READERS, *_BIASES}
    if unknown:
        raise InputError(
            f"block to rotate: {sorted(unknown)[0]} is not a weight of a Llama block; how it would "
            "rotate is not known"
        )


def _orthonormal(
    name: str, matrix: "torch.Tensor", order: int, like: "torch.Tensor"
) -> "torch.Tensor":
    """The rotation in float64 on the device of `like`, once it is seen to be one."""
    import torch

    if tuple(matrix.shape) != (order, order):
        raise InputError(
            f"{name} rotation has shape {list(matrix.shape)}; this model needs [{order}, {order}]"
        )
    r = matrix.to(like.device, torch.float64)
    # Only the identity brings a random vector back, except with probability 0; this spares the
    # product R @ R.T, which would cost as much as rotating a linear.
    probe = torch.from_numpy(np.random.default_rng(0).standard_normal(order)).to(like.device)
    error = float((r @ (r.T @ probe) - probe).abs().max())
    if not error <= _TOLERANCE:  # NaN is an error too
        raise InputError(
            f"{name} rotation is not orthonormal: R @ R.T moves a vector of unit variance by "
            f"{error:.2g}, more than {_TOLERANCE:g}"
        )
    return r
