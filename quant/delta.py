"""Fine-tuned models as small differences from a base that many of them share.

Of a fine-tuned model the matrices of the blocks are compressed, as differences from the base's
(BitDelta, `algorithms/bitdelta.py`; Delta-CoMe, `algorithms/deltacome.py`). Embedding, norms,
biases and output layer are kept as the fine-tuned model has them, and only those that differ from
the base's cost anything. A server keeps one base and, per tenant, what `DeltaModel.stored_bits`
counts.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from .algorithms.bitdelta import DeltaMatrix, compress_matrix
from .algorithms.deltacome import LowRankDelta, compress_low_rank, plan_bands
from .calibration import BATCH_TOKENS, Calibration, SiteCollector, calibration_tokens
from .errors import InputError
from .files import Progress
from .text import Text

if TYPE_CHECKING:
    import torch

    from .models import LanguageModel, Linear

_FLOAT_BITS = 16  #: of a weight that is kept as the fine-tuned model has it


class BitDelta(BaseModel):
    """Signs and a scale per plane."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    planes: int = Field(default=1, ge=1, le=16)  #: each on what those before it leave

    @property
    def needs_data(self) -> bool:
        """It never does."""
        return False

    def compress(self, delta: np.ndarray, hessian: np.ndarray | None = None) -> DeltaMatrix:
        """One matrix' difference; no inputs are looked at."""
        return compress_matrix(delta, self.planes)


class DeltaCome(BaseModel):
    """Singular vectors in bands of falling precision."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    budget: float = Field(default=1 / 16, gt=0, le=1)  #: codes' share of the matrix in FP16
    leading: tuple[tuple[int, int], ...] = ((8, 2), (3, 32))  #: (bits, ranks) of the first bands
    last_bits: int = Field(default=2, ge=2, le=8)  #: of the band that fills the budget
    #: How factors get their codes; "gptq", the authors' way, reads calibration data.
    rounding: Literal["nearest", "gptq"] = "nearest"

    @property
    def needs_data(self) -> bool:
        """Whether it reads the layers' inputs."""
        return self.rounding == "gptq"

    def compress(self, delta: np.ndarray, hessian: np.ndarray | None = None) -> LowRankDelta:
        """One matrix' difference; the Hessian of its inputs only with "gptq"."""
        n, k = delta.shape
        plan = plan_bands(n, k, self.budget, self.leading, self.last_bits)
        return compress_low_rank(delta, plan, hessian if self.needs_data else None)


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
    *,
    calibration: Calibration | None = None,
    text: Text | str | None = None,
) -> DeltaModel:
    """A fine-tuned model as a compressed difference from its base.

    Args:
        base: The model that was fine-tuned; all tenants share it.
        tuned: The fine-tuned model, of the same shape.
        method: How differences are stored; None for BitDelta with one plane.
        progress: Called after each matrix.
        calibration: Tokens on which the fine-tuned model's inputs are gathered, where the method
            reads them; None for 16 sequences of 512, or of its context if that is less.
        text: To calibrate on, best one of the fine-tuning domain; None for the default
            calibration text.

    Raises:
        InputError: A calibration text that is too short, models that differ in shape (names the
            first difference), a difference that is NaN or infinite, or a budget that is not met
            (names the layer).
    """
    method = method or BitDelta()
    _same_shape(base, tuned)
    linears = base.config.linear_shapes()
    tensors: dict[str, Any] = {}
    inputs = _Inputs(tuned, calibration, text) if method.needs_data else None
    for done, name in enumerate(linears, 1):
        delta = (tuned.weight(name) - base.weight(name)).detach().numpy()
        try:
            hessian = None if inputs is None else inputs.hessian(name)
            tensors[name] = method.compress(delta, hessian)
        except InputError as error:
            raise InputError(f"layer {name}: {error}") from None
        if progress:
            progress(done, len(linears), f"difference: {name}")
    floats = {}
    for name in tuned.config.weight_shapes():
        if name not in linears and not tuned.weight(name).equal(base.weight(name)):
            floats[name] = tuned.weight(name)
    return DeltaModel(base, method, tensors, floats)


class _Inputs:
    """Hessians of a model's layers, gathered block by block as they are asked for, in order."""

    def __init__(
        self, model: "LanguageModel", calibration: Calibration | None, text: Text | str | None
    ) -> None:
        if calibration is None:
            calibration = Calibration(sequences=16, length=min(512, model.config.context))
        ids = calibration_tokens(model, calibration, text)
        self._model, self._layer = model, -1
        self._x = model.embed(ids)
        self._rotary = model.rotary(ids.shape[1])
        self._batch = max(1, BATCH_TOKENS // ids.shape[1])
        self._hessians: dict[str, np.ndarray] = {}

    def hessian(self, name: str) -> np.ndarray:
        """Of a linear's inputs."""
        from .models import SITE_OF

        _, number, local = name.split(".", 2)
        while self._layer < int(number):
            self._layer += 1
            self._gather()
        return self._hessians[SITE_OF[local]]

    def _gather(self) -> None:
        import torch

        from .models import SITES

        prefix = f"blocks.{self._layer}."
        first = {prefix + names[0]: site for site, names in SITES.items()}
        found = {
            site: SiteCollector(self._model.weight(name).shape[1], {"gram"})
            for name, site in first.items()
        }

        def linear(name: str, y: "torch.Tensor") -> "torch.Tensor":
            if name in first:
                found[first[name]].add(y)
            return y @ self._model.weight(name).T

        with torch.no_grad():
            for start in range(0, len(self._x), self._batch):
                part = slice(start, start + self._batch)
                self._x[part] = self._model.block(self._layer, self._x[part], self._rotary, linear)
        self._hessians = {site: one.stats().hessian for site, one in found.items()}


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
