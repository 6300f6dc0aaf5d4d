"""Accuracy of a model under one recipe, with float or with the PEs' own arithmetic."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from bitwright.quant import (
    Agreement,
    Calibration,
    InputError,
    LanguageModel,
    Linear,
    PerplexityResult,
    Progress,
    QuantizedBlock,
    QuantizedModel,
    QuantizedTensor,
    Recipe,
    Text,
    agreement,
    apply_recipe,
    load_calibration_text,
    load_text,
    perplexity,
    resolve_recipe,
)
from bitwright.sim import fp16

from .hardware_linear import STAGES, HardwareLinear, Stage, check_recipe, pes_of

Arithmetic = Literal["fake", "pe"]
#: Said of models with quantised activations: there a step that only changes last bits of float32
#: moves the perplexity about as much as another draw of the activations' rounding would.
_CHANCE = (
    "a last bit can move an activation's code and all rounding behind it: steps below the "
    "activations' may be chance"
)


@dataclass(frozen=True, slots=True)
class Part:
    """One step of the ladder from the unquantised model to the PEs' arithmetic."""

    name: str  #: "unquantised", "cache", or a stage of `hardware_linear`
    perplexity: float  #: with this step and all before it
    nll: float  #: likewise, in nats per token
    perplexity_change: float  #: against the step before; 0 for the first
    nll_change: float  #: likewise


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One recipe's accuracy on one text."""

    model: str
    recipe: Recipe
    arithmetic: Arithmetic
    result: PerplexityResult
    bits_per_weight: float  #: of all block linears, all metadata counted
    nominal_bits: float  #: of a weight, as the method's authors count; 16 for FP16 weights
    macs: int  #: multiply-accumulates done in the PEs' arithmetic; 0 for fake quantisation
    calibration: Calibration | None = None  #: None: no data was needed
    calibration_text: str | None = None  #: name of the text
    notes: tuple[str, ...] = ()  #: what a user should know, a line each
    pes: tuple[str, ...] = ()  #: names of the PEs used, each once
    parts: tuple[Part, ...] = ()  #: the ladder, if it was asked for; its last step is `result`
    agreement: Agreement | None = None  #: with the unquantised model, if it was asked for


def bits_per_weight(tensors: dict[str, QuantizedTensor]) -> float:
    """True bits per weight over all tensors; 16 for none, which stands for FP16 weights."""
    weights = sum(qt.n * qt.k for qt in tensors.values())
    if not weights:
        return 16.0
    return sum(qt.bits_per_weight * qt.n * qt.k for qt in tensors.values()) / weights


def evaluate(
    model: LanguageModel,
    recipe: Recipe | str | None = None,
    *,
    text: Text | str | None = None,
    max_tokens: int = 4096,
    window: int = 512,
    arithmetic: Arithmetic = "fake",
    pe: str | None = None,
    split: bool = False,
    compare: bool = False,
    calibration: Calibration | None = None,
    calibration_text: Text | str | None = None,
    quantized: QuantizedModel | None = None,
    tensors: dict[str, QuantizedTensor] | None = None,
    progress: Progress | None = None,
) -> Evaluation:
    """Quantise a model's block linear layers and measure how well it still reads a text.

    Args:
        model: The float model.
        recipe: What to quantise to, or its name; fp16 evaluates the weights as they are.
        text: What to read; None for the default text.
        max_tokens: Tokens to read; only whole windows count.
        window: Context length.
        arithmetic: "fake" multiplies in float32 with dequantised weights and activations; "pe" runs
            every block linear through the model of a PE. Activations that the recipe leaves alone
            are then rounded to FP16.
        pe: The name of the PE that runs all layers; None chooses by formats.
        split: Measure the ladder from the unquantised model to the PE's arithmetic: as many
            passes again as it has steps, one of them through the PE. Only with "pe".
        compare: Measure the agreement with the unquantised model.
        calibration: Tokens to calibrate on, where the recipe needs data; see `apply_recipe`.
        calibration_text: Text to calibrate on; None for the default one.
        quantized: The quantised model, if it is at hand already; then leave out the recipe and the
            calibration.
        tensors: The quantised layers, if they are at hand already, of a recipe without algorithms.
        progress: Called as work goes on.

    Raises:
        InputError: Unknown arithmetic, options that contradict each other, a recipe that no PE or
            not this one can run, a text too short, or as `apply_recipe`. Where it can be told from
            the arguments, it is told before any work.
    """
    if arithmetic not in ("fake", "pe"):
        raise InputError(f"arithmetic {arithmetic!r} is not known; choose fake or pe")
    if arithmetic == "fake" and (pe is not None or split):
        what = f"pe {pe!r}" if pe is not None else "split"
        raise InputError(f"{what} needs arithmetic 'pe'; 'fake' computes in float32")
    text = load_text() if text is None else text
    _refuse_early(model, text, window, max_tokens)
    if quantized is None:
        recipe = resolve_recipe(recipe or "fp16")
        if arithmetic == "pe":
            check_recipe(model.config, recipe, pe)
        if tensors is not None:
            quantized = assembled(model, recipe, tensors)
    elif recipe is not None and resolve_recipe(recipe) != quantized.recipe:
        raise InputError(
            f"recipe {resolve_recipe(recipe).name} is not that of the quantised model, "
            f"{quantized.recipe.name}; leave it out"
        )
    passes = 1 + split * (len(STAGES) + 1) + (quantized is None)
    shares = _Shares(progress, passes)
    if quantized is None:
        assert recipe is not None
        quantized = apply_recipe(
            model,
            recipe,
            calibration=calibration,
            text=calibration_text,
            progress=shares.next(),
        )
    read = _Reader(model, quantized, text, window, max_tokens)
    if arithmetic == "fake":
        answer, agreed = read.judged(quantized.linear(), compare, shares.next())
        return _evaluation(quantized, arithmetic, answer, agreed)
    pes = pes_of(quantized, pe)
    final = HardwareLinear(quantized, pes, tokens=max_tokens, progress=shares.next())
    answer, agreed = read.judged(final, compare)
    parts: tuple[Part, ...] = ()
    if split:
        # Weights of an FP16 PE come with their scales applied: there is no scale unit.
        unscaled = all(isinstance(unit, fp16.Fp16PE) for unit in pes.values())
        base = _as_result(agreed, agreed.reference_perplexity) if agreed else None
        steps = [("unquantised", base or read.unquantised(shares.next()))]
        for stage in STAGES[:-1]:
            if stage == "accumulator" and quantized.recipe.kv is not None:
                steps.append(("cache", read.stage(pes, "activations", True, shares.next())))
            if stage == "accumulator" and unscaled:
                steps.append((stage, answer))
                continue
            cached = stage == "accumulator"
            steps.append((stage, read.stage(pes, stage, cached, shares.next())))
        parts = ladder([*steps, (STAGES[-1], answer)])
    names = tuple(dict.fromkeys(unit.name for unit in pes.values()))
    return _evaluation(quantized, arithmetic, answer, agreed, final.macs, names, parts)


def ladder(steps: Sequence[tuple[str, PerplexityResult]]) -> tuple[Part, ...]:
    """Steps with the change that each brings. All changes together are the whole change."""
    parts = []
    before = steps[0][1]
    for name, result in steps:
        parts.append(
            Part(
                name,
                result.perplexity,
                result.nll,
                result.perplexity - before.perplexity,
                result.nll - before.nll,
            )
        )
        before = result
    return tuple(parts)


def plan_calibration(
    model: LanguageModel,
    window: int,
    *,
    sequences: int | None = None,
    length: int | Literal["slac"] | None = None,
    seed: int = 0,
    text: Text | str | None = None,
) -> Calibration:
    """What to calibrate on.

    Args:
        model: Its tokenizer counts, and its context bounds the default length.
        window: Context length of the evaluation.
        sequences: None for 128, or as many as the text has.
        length: Tokens of a sequence; None for 512. "slac" takes the window: "sequence-length-aware
            calibration" (Lee et al., EMNLP 2023), as activations grow with the position.
        seed: Chooses the sequences.
        text: As in `apply_recipe`.
    """
    text = load_calibration_text() if text is None else text
    if length is None:
        length = min(Calibration().length, model.config.context)
    elif length == "slac":
        length = window
    if sequences is None:
        content = text.content if isinstance(text, Text) else text
        there = len(model.tokenizer.encode(content)) // length
        sequences = max(1, min(Calibration().sequences, there))
    return Calibration(sequences=sequences, length=length, seed=seed)


# ------------------------------------------------------------------ helpers


class _Reader:
    """Forward passes of one model over one text."""

    def __init__(
        self,
        model: LanguageModel,
        quantized: QuantizedModel,
        text: Text | str,
        window: int,
        max_tokens: int,
    ) -> None:
        self._model, self._quantized = model, quantized
        self._how: dict[str, Any] = {"text": text, "window": window, "max_tokens": max_tokens}

    def judged(
        self, linear: Linear, compare: bool, progress: Progress | None = None
    ) -> tuple[PerplexityResult, Agreement | None]:
        """The quantised model's perplexity with these linears, and its agreement if wanted."""
        quantized, cache = self._quantized.model, self._quantized.cache()
        if not compare:
            how = {**self._how, "linear": linear, "cache": cache, "progress": progress}
            return perplexity(quantized, **how), None
        agreed = agreement(
            self._model, quantized, linear=linear, cache=cache, progress=progress, **self._how
        )
        return _as_result(agreed, agreed.perplexity), agreed

    def unquantised(self, progress: Progress | None) -> PerplexityResult:
        """The float model's perplexity."""
        return perplexity(self._model, progress=progress, **self._how)

    def stage(
        self, pes: Any, stage: Stage, cached: bool, progress: Progress | None
    ) -> PerplexityResult:
        """The perplexity with linears up to a stage, and the cache as the recipe says or float."""
        tokens = self._how["max_tokens"]
        linear = HardwareLinear(self._quantized, pes, stage, tokens, progress)
        cache = self._quantized.cache() if cached else None
        return perplexity(self._quantized.model, linear=linear, cache=cache, **self._how)


def _as_result(agreed: Agreement, value: float) -> PerplexityResult:
    return PerplexityResult(
        perplexity=value,
        nll=math.log(value),
        tokens=agreed.tokens,
        predicted_tokens=agreed.predicted_tokens,
        window=agreed.window,
        text_name=agreed.text_name,
        bos=agreed.bos,
    )


def _evaluation(
    quantized: QuantizedModel,
    arithmetic: Arithmetic,
    result: PerplexityResult,
    agreed: Agreement | None,
    macs: int = 0,
    pes: tuple[str, ...] = (),
    parts: tuple[Part, ...] = (),
) -> Evaluation:
    return Evaluation(
        model=quantized.base.name,
        recipe=quantized.recipe,
        arithmetic=arithmetic,
        result=result,
        bits_per_weight=quantized.bits_per_weight,
        nominal_bits=quantized.nominal_bits,
        macs=macs,
        calibration=quantized.calibration,
        calibration_text=quantized.calibration_text,
        notes=(*quantized.notes, *([_CHANCE] if parts and quantized.recipe.activations else [])),
        pes=pes,
        parts=parts,
        agreement=agreed,
    )


def assembled(
    model: LanguageModel, recipe: Recipe, tensors: dict[str, QuantizedTensor]
) -> QuantizedModel:
    """A quantised model from tensors by the model's names; everything else stays as it is."""
    blocks = []
    for layer in range(model.config.layers):
        weights, prefix = model.block_weights(layer), f"blocks.{layer}."
        own = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
        floats = {name: w for name, w in weights.items() if name not in own}
        blocks.append(QuantizedBlock(layer, own, floats))
    return QuantizedModel(model, recipe, blocks)


def _refuse_early(model: LanguageModel, text: Text | str, window: int, max_tokens: int) -> None:
    """Raise what `perplexity` would raise once the model is quantised."""
    content = text.content if isinstance(text, Text) else text
    fits = 2 <= window <= min(model.config.context, max_tokens)
    if not fits or len(model.tokenizer.encode(content)) < window:
        perplexity(model, text, window=window, max_tokens=max_tokens)


class _Shares:
    """One progress for several passes of about the same length."""

    def __init__(self, progress: Progress | None, passes: int) -> None:
        self._progress, self._passes, self._started = progress, passes, 0

    def next(self) -> Callable[[int, int, str], None] | None:
        """The progress of the next pass."""
        if self._progress is None:
            return None
        tell, before = self._progress, self._started * 1000
        self._started += 1
        whole = max(self._passes, self._started) * 1000

        def part(done: int, total: int, what: str) -> None:
            tell(before + 1000 * done // max(1, total), whole, what)

        return part
