"""Fine-tuned models as small differences from a base that many of them share.

Of a fine-tuned model the matrices of the blocks are compressed, as differences from the base's
(BitDelta, `algorithms/bitdelta.py`; Delta-CoMe, `algorithms/deltacome.py`). Embedding, norms,
biases and output layer are kept as the fine-tuned model has them, and only those that differ from
the base's cost anything. A server keeps one base and, per tenant, what `DeltaModel.stored_bits`
counts.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from .algorithms.bitdelta import DeltaMatrix, compress_matrix
from .algorithms.deltacome import LowRankDelta, compress_low_rank, plan_bands
from .errors import InputError
from .files import Progress

if TYPE_CHECKING:
    import torch

    from .models import LanguageModel, Linear

_FLOAT_BITS = 16  #: of a weight that is kept as the fine-tuned model has it


class BitDelta(BaseModel):
    """Signs and a scale per plane."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    planes: int = Field(default=1, ge=1, le=16)  #: each on what those before it leave

    def compress(self, delta: np.ndarray) -> DeltaMatrix:
        """One matrix' difference."""
        return compress_matrix(delta, self.planes)


class DeltaCome(BaseModel):
    """Singular vectors in bands of falling precision; factors are rounded to nearest."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    budget: float = Field(default=1 / 16, gt=0, le=1)  #: codes' share of the matrix in FP16
    leading: tuple[tuple[int, int], ...] = ((8, 2), (3, 32))  #: (bits, ranks) of the first bands
    last_bits: int = Field(default=2, ge=2, le=8)  #: of the band that fills the budget

    def compress(self, delta: np.ndarray) -> LowRankDelta:
        """One matrix' difference."""
        n, k = delta.shape
        plan = plan_bands(n, k, self.budget, self.leading, self.last_bits)
        return compress_low_rank(delta, plan)


@dataclass(frozen=True)
class DeltaModel:
    """A fine-tuned model as a base and compressed differences.

    `perplexity(delta.model)` reads with merged weights; `perplexity(delta.base_ends, linear=
    delta.linear())` with two paths, as a server of many tenants computes.
    """

    base: "LanguageModel"
    method: BitDelta | DeltaCome
    tensors: (
        dict[str, DeltaMatrix] | dict[str, LowRankDelta]
    )  #: by the model's names, "blocks.0.attn.q"
    floats: "dict[str, torch.Tensor]"  #: embedding, norms, biases and head that differ

    @property
    def base_ends(self) -> "LanguageModel":
        """The base with the fine-tuned model's own embedding, norms, biases and head."""
        return self.base.with_weights(self.floats)

    @property
    def model(self) -> "LanguageModel":
        """The model with differences added to the base's weights."""
        import torch

        merged = {
            name: self.base.weight(name) + torch.from_numpy(tensor.dequantize())
            for name, tensor in self.tensors.items()
        }
        return self.base.with_weights({**self.floats, **merged})

    def linear(self) -> "Linear":
        """The linears by two paths: the base's product, and those of the compressed difference."""
        import torch

        ready: dict[str, list[list[torch.Tensor]]] = {}

        def linear(name: str, x: torch.Tensor) -> torch.Tensor:
            if name not in ready:
                ready[name] = [
                    [torch.from_numpy(matrix) for matrix in chain]
                    for chain in self.tensors[name].chains()
                ]
            y = x @ self.base.weight(name).T
            for chain in ready[name]:
                z = x
                for matrix in chain:
                    z = z @ matrix.T
                y = y + z
            return y

        return linear

    @property
    def delta_bits(self) -> int:
        """Stored bits of the compressed matrices: what a tenant adds for them."""
        return sum(tensor.stored_bits for tensor in self.tensors.values())

    @property
    def kept_bits(self) -> int:
        """Bits of what the tenant has of its own beside the matrices, in FP16."""
        return sum(_FLOAT_BITS * w.numel() for w in self.floats.values())

    @property
    def stored_bits(self) -> int:
        """All bits that a tenant adds to the base."""
        return self.delta_bits + self.kept_bits

    @property
    def bits_per_weight(self) -> float:
        """`delta_bits` per weight of the compressed matrices."""
        sizes = sum(n * k for n, k in (tensor.shape for tensor in self.tensors.values()))
        return self.delta_bits / sizes


def compress_delta(
    base: "LanguageModel",
    tuned: "LanguageModel",
    method: BitDelta | DeltaCome | None = None,
    progress: Progress | None = None,
) -> DeltaModel:
    """A fine-tuned model as a compressed difference from its base.

    Args:
        base: The model that was fine-tuned; all tenants share it.
        tuned: The fine-tuned model, of the same shape.
        method: How differences are stored; None for BitDelta with one plane.
        progress: Called after each matrix.

    Raises:
        InputError: The models differ in shape (names the first difference), a difference is NaN or
            infinite, or a budget is not met (names the layer).
    """
    method = method or BitDelta()
    _same_shape(base, tuned)
    linears = base.config.linear_shapes()
    tensors: dict[str, Any] = {}
    for done, name in enumerate(linears, 1):
        delta = (tuned.weight(name) - base.weight(name)).detach().numpy()
        try:
            tensors[name] = method.compress(delta)
        except InputError as error:
            raise InputError(f"layer {name}: {error}") from None
        if progress:
            progress(done, len(linears), f"difference: {name}")
    floats = {}
    for name in tuned.config.weight_shapes():
        if name not in linears and not tuned.weight(name).equal(base.weight(name)):
            floats[name] = tuned.weight(name)
    return DeltaModel(base, method, tensors, floats)


def _same_shape(base: "LanguageModel", tuned: "LanguageModel") -> None:
    ours, theirs = base.config.weight_shapes(), tuned.config.weight_shapes()
    for name in [*ours, *(name for name in theirs if name not in ours)]:
        if ours.get(name) != theirs.get(name):
            raise InputError(
                f"base {base.name} and fine-tuned {tuned.name} differ in {name}: "
                f"{_size(ours.get(name))} against {_size(theirs.get(name))}; a difference needs "
                "models of one shape"
            )
    for field in ("heads", "kv_heads", "rope_base", "rope_divisors", "norm_eps"):
        if getattr(base.config, field) != getattr(tuned.config, field):
            raise InputError(
                f"base {base.name} and fine-tuned {tuned.name} differ in {field}: "
                f"{getattr(base.config, field)} against {getattr(tuned.config, field)}; a "
                "difference needs models of one shape"
            )


def _size(shape: tuple[int, ...] | None) -> str:
    return "none" if shape is None else str(list(shape))
