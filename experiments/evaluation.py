"""Perplexity of a model under one recipe, with float or with the PE's own arithmetic."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch

from bitwright.quant import (
    InputError,
    LanguageModel,
    PerplexityResult,
    Progress,
    QuantizedTensor,
    Recipe,
    perplexity,
    quantize_model,
)
from bitwright.sim import PES

Arithmetic = Literal["fake", "pe"]
Linear = Callable[[str, torch.Tensor], torch.Tensor]


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One recipe's accuracy on one text."""

    model: str
    recipe: Recipe
    arithmetic: Arithmetic
    result: PerplexityResult
    bits_per_weight: float  #: of the quantised layers, all metadata counted
    macs: int  #: multiply-accumulates done in the PE's arithmetic; 0 for fake quantisation


def bits_per_weight(tensors: dict[str, QuantizedTensor]) -> float:
    """True bits per weight over all tensors; 16 for none, which stands for FP16 weights."""
    weights = sum(qt.n * qt.k for qt in tensors.values())
    if not weights:
        return 16.0
    return sum(qt.bits_per_weight * qt.n * qt.k for qt in tensors.values()) / weights


def fake_linear(tensors: dict[str, QuantizedTensor]) -> Linear:
    """Layers as float32 products with the dequantised weights."""
    weights = {name: torch.from_numpy(qt.dequantize()) for name, qt in tensors.items()}
    return lambda name, x: x @ weights[name].T


class PELinear:
    """Layers as the PE computes them; counts the multiply-accumulates done.

    Args:
        model: The model whose layers these are.
        tensors: Its quantised layers; empty for FP16 weights.
        tokens: Most tokens that will go through all layers, for the progress.
        progress: Called after each layer.
    """

    def __init__(
        self,
        model: LanguageModel,
        tensors: dict[str, QuantizedTensor],
        tokens: int = 0,
        progress: Progress | None = None,
    ) -> None:
        self._model, self._tensors = model, tensors
        self._progress = progress
        self._total = tokens * sum(n * k for n, k in model.config.linear_shapes().values())
        self.macs = 0

    def __call__(self, name: str, x: torch.Tensor) -> torch.Tensor:
        rows = x.reshape(-1, x.shape[-1]).numpy()
        if self._tensors:
            operand: Any = self._tensors[name]
            y = PES["bitmod"].gemm(rows, operand)
        else:
            operand = self._model.weight(name).numpy()
            y = PES["fp16"].gemm(rows, operand)
        self.macs += rows.shape[0] * operand.shape[0] * operand.shape[1]
        if self._progress:
            self._progress(self.macs, max(self._total, self.macs), f"{name} through the PE")
        return torch.from_numpy(y).reshape(*x.shape[:-1], -1)


def evaluate(
    model: LanguageModel,
    recipe: Recipe,
    *,
    text: Any = None,
    max_tokens: int = 4096,
    window: int = 512,
    arithmetic: Arithmetic = "fake",
    tensors: dict[str, QuantizedTensor] | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Quantise a model's block linear layers and measure its perplexity.

    Args:
        model: The model; embedding, norms and output layer stay as they are.
        recipe: What to quantise to; fp16 evaluates the weights as they are.
        text: A `Text`, or None for the default one.
        max_tokens: Tokens to read; only whole windows count.
        window: Context length.
        arithmetic: "fake" multiplies in float32 with dequantised weights; "pe" runs every block
            linear layer through the PE's model (fp16 recipe: the fp16 PE, else the bitmod PE).
        tensors: The quantised layers, if they are at hand already.
        progress: Called as work goes on.

    Raises:
        InputError: Unknown arithmetic, a recipe that the PE cannot run, or a text too short.
    """
    if arithmetic not in ("fake", "pe"):
        raise InputError(f"arithmetic {arithmetic!r} is not known; choose fake or pe")
    if tensors is None:
        tensors = quantize_model(model, recipe, progress)
    linear: Linear | None
    if arithmetic == "pe":
        linear = PELinear(model, tensors, max_tokens, progress)
        progress = None  # the layers tell more than the windows do
        for qt in tensors.values():  # refuse what cannot run before any work
            PES["bitmod"].check(qt)
    else:
        linear = fake_linear(tensors) if tensors else None
    result = perplexity(
        model, text, window=window, max_tokens=max_tokens, linear=linear, progress=progress
    )
    return Evaluation(
        model=model.name,
        recipe=recipe,
        arithmetic=arithmetic,
        result=result,
        bits_per_weight=bits_per_weight(tensors),
        macs=linear.macs if isinstance(linear, PELinear) else 0,
    )
