"""What an algorithm is, and the block that algorithms work on.

A recipe lists algorithms; `quant/pipeline.py` takes a model through them block by block. Those of
the phase "prepare" change a block's float weights without changing its function (equivalent
transformations), bound weights before rounding (clipping), or set weights aside. One of the phase
"structure" makes the whole model smaller before any of that. One of the phase "round" may then
choose the codes; without it weights are rounded to nearest. One of the phase "head" changes the
output layer, when all blocks are done.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict

from bitwright.quant import InputError

if TYPE_CHECKING:
    import torch

    from bitwright.quant import (
        CompressedMatrix,
        LlamaConfig,
        Need,
        Progress,
        QuantizedTensor,
        Recipe,
        SiteStats,
    )

Phase = Literal["structure", "rotate", "prepare", "round", "head"]


class Algorithm(BaseModel):
    """One step of a recipe: its options are its fields."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str  #: as written in recipes, behind "+"
    phase: ClassVar[Phase] = "prepare"
    #: Whether it looks at calibration data at all.
    needs_data: ClassVar[bool] = True
    #: Whether it learns for one format, the recipe's, in all linears.
    one_format: ClassVar[bool] = False
    #: What it wants of the float model's inputs beside ranges.
    needs: ClassVar[frozenset["Need"]] = frozenset()
    #: Whether it works on the recipe's weight format: most do.
    needs_format: ClassVar[bool] = True
    #: Whether weights get a form of its own, in place of a format: it rounds, and leads the name.
    own_form: ClassVar[bool] = False
    #: Whether matrices keep the recipe's format but are stored in a form of their own.
    own_storage: ClassVar[bool] = False
    #: Whether it works on formats with a fixed block only (nvfp4, mxfp4, mxint8).
    block_formats: ClassVar[bool] = False
    #: The only steps that it goes with; None: it does not say.
    goes_with: ClassVar[tuple[str, ...] | None] = None
    #: Whether it takes weights out (`BlockTask.masks`).
    prunes: ClassVar[bool] = False
    #: Whether it reads the inputs that quantised blocks before this one give.
    reads_quantized_stream: ClassVar[bool] = False

    def options(self) -> dict[str, Any]:
        """The options that differ from the defaults."""
        return {
            key: value
            for key in type(self).model_fields
            if key != "name"
            and (value := getattr(self, key)) != type(self).model_fields[key].default
        }

    def written(self) -> str:
        """As in a recipe's name: "gptq" or "gptq:act_order=true"."""
        options = ",".join(f"{key}={_written(value)}" for key, value in self.options().items())
        return self.name + (f":{options}" if options else "")

    def short(self) -> str:
        """For tables and figures; as written, where that is short."""
        return self.written()

    @property
    def trains_blocks(self) -> bool:
        """Whether it makes all matrices of a block together (`forms`), not one by one (`round`)."""
        return False

    def forms(self, block: "BlockTask") -> "Mapping[str, CompressedMatrix]":
        """All of the block's matrices by local name; the block has its streams."""
        raise NotImplementedError

    def apply(self, block: "BlockTask") -> None:
        """Prepare a block, before it is rounded; algorithms that round have `round` instead."""
        raise NotImplementedError


def _written(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return "|".join(value) if isinstance(value, tuple) else str(value)


@dataclass(frozen=True, slots=True)
class SuperWeight:
    """A weight that stays in FP16 beside its tensor: y[row] += (value - rounded) * x[column]."""

    row: int
    column: int
    value: float  #: an FP16 number

    BITS: ClassVar[int] = 48  #: 16 for the value, 32 for the place


@dataclass
class Streams:
    """Residual streams around a block, float32 [sequences, t, hidden]."""

    float_in: "torch.Tensor"  #: of the float model
    float_out: "torch.Tensor"
    quantized_in: "torch.Tensor"  #: of the model whose earlier blocks are quantised


@dataclass
class BlockTask:
    """A block on its way: weights so far, what is known of its inputs, and what was decided."""

    layer: int
    config: "LlamaConfig"
    recipe: "Recipe"
    weights: dict[str, "torch.Tensor"]  #: current float weights by local name
    stats: "Mapping[str, SiteStats]"  #: of the inputs of each site, in step with `weights`
    streams: Streams | None = None  #: for algorithms that read the quantised stream
    #: The first calibration sequence's residual stream before the block [1, t, hidden].
    probe: "torch.Tensor | None" = None
    #: Weight matrices clipped before rounding, by local name; absent: as in `weights`.
    clipped: dict[str, np.ndarray] = field(default_factory=dict)
    #: Places (row, column) of weights that are kept in FP16 beside their tensor.
    set_aside: dict[str, tuple[tuple[int, int], ...]] = field(default_factory=dict)
    #: Where weights are kept, bool [n, k], by local name; absent: everywhere.
    masks: dict[str, np.ndarray] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)  #: what a user should know, a line each
    progress: "Progress | None" = None

    def matrix(self, name: str) -> np.ndarray:
        """The float weights [n, k] of a linear, before clipping."""
        return np.ascontiguousarray(self.weights[name].detach().numpy())

    def to_round(self, name: str) -> np.ndarray:
        """The weights [n, k] that rounding gets: clipped, and 0 where they are set aside."""
        w = self.clipped[name] if name in self.clipped else self.matrix(name)
        if name in self.set_aside:
            w = w.copy()
            for row, column in self.set_aside[name]:
                w[row, column] = 0
        return w

    def super_weights(self, name: str) -> tuple[SuperWeight, ...]:
        """The weights that are set aside, with their values."""
        w = self.weights[name]
        return tuple(
            SuperWeight(row, column, float(np.float16(w[row, column].item())))
            for row, column in self.set_aside.get(name, ())
        )

    def round(self, w: np.ndarray, name: str) -> "QuantizedTensor":
        """Weights [n, k] rounded to nearest in the format that the recipe gives this linear."""
        from bitwright.quant import quantize

        return quantize(w, self.recipe.uniform_of(self.layer, name))

    def note(self, text: str) -> None:
        """Keep a line for the report."""
        self.notes.append(f"blocks.{self.layer}: {text}")

    # ------------------------------------------------- equivalent transformation

    def tie(self, site: str, scale: np.ndarray) -> np.ndarray:
        """Scales as the site can have them: those of heads that share values are made equal.

        The inputs of "attn.o" are values of key-value heads, mixed; query heads that share one
        take the geometric mean of their scales.
        """
        config = self.config
        if site != "attn_out" or config.heads == config.kv_heads:
            return scale
        heads = scale.reshape(config.kv_heads, -1, config.head_dim)
        shared = np.exp(np.log(heads).mean(1, keepdims=True))
        return np.broadcast_to(shared, heads.shape).reshape(-1).astype(scale.dtype)

    def scale_inputs(self, site: str, scale: np.ndarray) -> None:
        """Divide the inputs of a site by `scale` [k] > 0 and multiply its weights' columns.

        The block's function stays the same; see `scaled_weights`. Clipped weights of what changes
        are dropped.
        """
        import torch

        if not (np.isfinite(scale).all() and (scale > 0).all()):
            raise InputError(f"scales of {site} in block {self.layer} must be positive and finite")
        s = torch.from_numpy(np.ascontiguousarray(scale, np.float32))
        if site == "attn_out":
            heads = s.view(self.config.kv_heads, -1, self.config.head_dim)
            if not torch.equal(heads, heads[:, :1].expand_as(heads)):
                raise InputError(
                    f"scales of attn_out in block {self.layer} differ between heads that share "
                    "values; tie them first"
                )
        changed = scaled_weights(self.config, self.weights, {site: s})
        for name, w in changed.items():
            if w is not self.weights[name]:
                self.weights[name] = w
                self.clipped.pop(name, None)
        if site in self.stats:
            self.stats[site].rescale(scale)


def scaled_weights(
    config: "LlamaConfig",
    weights: "Mapping[str, torch.Tensor]",
    scales: "Mapping[str, torch.Tensor]",
) -> "dict[str, torch.Tensor]":
    """A block's weights with the inputs of some sites divided by scales [k]: the same function.

    The linears of the site take the scales in by columns; what makes their inputs takes the
    division: the norm in front, or the rows of "attn.v" and "ffn.up" (SmoothQuant; AWQ). Scales of
    "attn_out" must be equal in heads that share values. Differentiable in the scales.
    """
    from bitwright.quant import SITES

    out = dict(weights)
    for site, s in scales.items():
        for name in SITES[site]:
            out[name] = out[name] * s
        if site in ("attn_in", "ffn_in"):
            norm = "attn_norm" if site == "attn_in" else "ffn_norm"
            out[norm] = out[norm] / s
            continue
        source = "ffn.up"
        if site == "attn_out":
            source = "attn.v"
            s = s.view(config.kv_heads, -1, config.head_dim)[:, 0].reshape(-1)
        out[source] = out[source] / s[:, None]
        if f"{source}.bias" in out:
            out[f"{source}.bias"] = out[f"{source}.bias"] / s
    return out


def gram_error(error: np.ndarray, gram: np.ndarray, block: int = 384) -> float:
    """Sum of squares of `error @ x` over all tokens whose sum of x x^T is `gram`: tr(E G E^T).

    `gram` is symmetric: block rows of it are read from the diagonal on, and what is right of the
    diagonal counts twice. That saves up to half of the products.
    """
    import torch

    e, g = torch.from_numpy(error), torch.from_numpy(gram)
    total = 0.0
    for i in range(0, error.shape[1], block):
        product = e[:, i : i + block] @ g[i : i + block, i:]
        product[:, block:] *= 2
        total += float(product.mul_(e[:, i:]).sum(dtype=torch.float64))
    return total
