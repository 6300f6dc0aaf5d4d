"""INT4 for processors: the first of some 4-bit recipes that keeps the float model's perplexity.

After Shen et al., "Efficient LLM Inference on CPUs" (arXiv 2311.00502): every algorithm with every
group size, symmetric and asymmetric, is tried on all linears, and one is accepted that lies within
1 % of the float model. Their list also has TEQ and SignRound, which this package does not have.

Candidates are tried in the order of their true bits, or of the time that a token takes in all
linears on this processor; the first within the limit is the answer, and none behind it is measured.
Times are those of the package's kernels, with activations in float32 and quantised to 8 bits per
token and group; measured here and now, so they differ from run to run, and the rest does not.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import product
from typing import Any, Literal

import numba
import numpy as np

from bitwright.experiments import (
    accuracy_fingerprint,
    best_of,
    measured_accuracy,
    plan_calibration,
    processor_name,
    provenance,
)
from bitwright.kernels import matmul
from bitwright.quant import (
    LINEARS,
    SITES,
    InputError,
    LanguageModel,
    Progress,
    QuantizedTensor,
    Text,
    apply_recipe,
    load_calibration_text,
    load_text,
    parse_activation,
    quantize_activations,
    resolve_recipe,
)

Order = Literal["bits", "time"]
ORDERS = ("bits", "time")
#: Algorithm -> what it adds to a recipe; the cheapest to run first.
ALGORITHMS = {"RTN": "", "GPTQ": "+gptq", "AWQ": "+awq"}
GROUPS = (32, 128)
KINDS = ("sym", "asym")
#: Sequences of the calibration of GPTQ and AWQ.
SEQUENCES = 32


@dataclass(frozen=True, slots=True)
class CpuConfig:
    """Everything that decides a search.

    Raises:
        InputError: What cannot be searched; names the option.
    """

    within: float = 1.0  #: percent above the float model's perplexity that are accepted
    order: Order = "bits"
    max_tokens: int = 2048
    window: int = 512
    calibration_sequences: int = SEQUENCES
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.within < float("inf"):
            raise InputError(f"--within is {self.within:g}; a percentage from 0, 1 is usual")
        if self.order not in ORDERS:
            raise InputError(f"--order is {self.order!r}; {' or '.join(ORDERS)}")
        if self.calibration_sequences < 1:
            raise InputError(f"--calibration-sequences is {self.calibration_sequences}; at least 1")
        if self.seed < 0:
            raise InputError(f"--seed is {self.seed}; at least 0")


@dataclass(frozen=True, slots=True)
class Candidate:
    """One recipe, what it takes, and its perplexity once that is measured."""

    recipe: str
    algorithm: str
    weights: str  #: the recipe without its algorithm
    bits_per_weight: float  #: all that is stored, of all linears
    weight_only_ms: float  #: a token through all linears, activations in float32
    int8_ms: float  #: the same, activations quantised to 8 bits per token and group on the way
    perplexity: float | None = None  #: None: not measured, an earlier one was accepted
    above_percent: float | None = None  #: of the float model's perplexity

    @property
    def ms(self) -> float:
        """The shorter time of the two."""
        return min(self.weight_only_ms, self.int8_ms)


def ordered(candidates: Sequence[Candidate], order: Order) -> list[Candidate]:
    """By true bits or by time, the least first; equal ones stay in their order."""
    return sorted(candidates, key=lambda one: one.bits_per_weight if order == "bits" else one.ms)


def above(perplexity: float, base: float) -> float:
    """Percent that a perplexity lies above the float model's; negative below it."""
    return 100 * (perplexity / base - 1)


def first_within(
    candidates: Sequence[Candidate],
    base: float,
    within: float,
    measure: Callable[[str], float],
) -> tuple[list[Candidate], int]:
    """Measure one after the other until one is accepted.

    Args:
        candidates: In the order in which they are tried.
        base: The float model's perplexity.
        within: Percent above it that are accepted, the limit itself among them.
        measure: A recipe's perplexity.

    Returns:
        The candidates with what was measured, and the place of the accepted one.

    Raises:
        InputError: None is accepted (names the nearest and the way out).
    """
    found = list(candidates)
    for place, one in enumerate(candidates):
        perplexity = measure(one.recipe)
        over = above(perplexity, base)
        found[place] = replace(one, perplexity=perplexity, above_percent=over)
        if over <= within:
            return found, place
    nearest = min(found, key=lambda one: float(one.perplexity or 0))
    over = float(nearest.above_percent or 0)
    raise InputError(
        f"none of {len(found)} recipes lies within {within:g} % of the float model's perplexity of "
        f"{base:.3f}; the nearest is {nearest.recipe} with {nearest.perplexity:.3f}, {over:.2f} % "
        f"above: accept it with --within {_rounded_up(over):g}, or mix formats with bitwright "
        "search without --cpu"
    )


def _rounded_up(percent: float) -> float:
    """To a tenth, so that it is accepted."""
    return float(np.ceil(10 * percent) / 10)


def run_cpu_search(
    model: LanguageModel,
    config: CpuConfig,
    *,
    text: Text | None = None,
    progress: Progress | None = None,
    command: str | None = None,
) -> dict[str, Any]:
    """Find the recipe; the answer is the document of cpu.json.

    Perplexities are cached, so an interrupted search goes on where it stopped.

    Args:
        model: The float model.
        config: How to search.
        text: Of the perplexity; None for the default one.
        progress: Called as work goes on.
        command: That asked for it; None: none is known.

    Raises:
        InputError: No recipe is within the limit, or a text too short.
    """
    text = text or load_text()
    calibration = plan_calibration(
        model, config.window, sequences=config.calibration_sequences, seed=config.seed
    )
    fingerprint = accuracy_fingerprint(model, text)
    steps = len(ALGORITHMS) * len(GROUPS) * len(KINDS) + len(GROUPS) * len(KINDS) + 3
    done = 0

    def tell(what: str) -> None:
        nonlocal done
        if progress:
            progress(done, steps, what)
        done += 1

    def measure(name: str) -> float:
        tell(name)
        found = measured_accuracy(
            model,
            resolve_recipe(name),
            text,
            max_tokens=config.max_tokens,
            window=config.window,
            fingerprint=fingerprint,
            calibration=calibration,
        )
        return float(found["perplexity"])

    base = measure("fp16")
    tell("time of the float model")
    float_ms = _float_ms(model)
    candidates = []
    for group, kind in product(GROUPS, KINDS):
        weights = f"w4g{group}-int-{kind}"
        tell(f"time of {weights}")
        bits, weight_only, int8 = _times(model, weights, group)
        candidates += [
            Candidate(
                resolve_recipe(weights + step).name, algorithm, weights, bits, weight_only, int8
            )
            for algorithm, step in ALGORITHMS.items()
        ]
    found, place = first_within(ordered(candidates, config.order), base, config.within, measure)
    chosen = found[place]
    of = resolve_recipe(chosen.weights).group_size
    with_int8 = chosen.weights + f"+a8-g{of}" + ALGORITHMS[chosen.algorithm]
    rounded = measure(with_int8)
    return {
        "meta": {
            "command": command,
            "model": model.name,
            "model_source": model.source,
            "text": text.name,
            "calibration_text": load_calibration_text().name,
            "calibration": calibration.model_dump(),
            "config": asdict(config),
            "rule": "the first whose perplexity is at most `within` percent above the float "
            "model's",
            "machine": {
                "processor": processor_name(),
                "cores": os.cpu_count(),
                "threads": numba.get_num_threads(),
            },
            **provenance.provenance(config.seed),
        },
        "float": {"perplexity": base, "linears_ms": float_ms},
        "chosen": {
            **asdict(chosen),
            "int8_recipe": resolve_recipe(with_int8).name,
            "int8_perplexity": rounded,
            "int8_above_percent": above(rounded, base),
            "speedup": float_ms / chosen.ms,
        },
        "candidates": [asdict(one) for one in found],
    }


# ------------------------------------------------------------------ times


def _float_ms(model: LanguageModel) -> float:
    """Milliseconds of a token through all linears as float32 matrices, by torch."""
    import torch

    weights = [
        block[name]
        for block in map(model.block_weights, range(model.config.layers))
        for name in LINEARS
    ]
    inputs = {w.shape[1]: torch.ones(1, w.shape[1]) for w in weights}

    def token() -> None:
        for w in weights:
            inputs[w.shape[1]] @ w.T

    return 1e3 * best_of(token)


def _times(model: LanguageModel, weights: str, group: int) -> tuple[float, float, float]:
    """True bits, and milliseconds of a token through all linears: weight-only and INT8.

    What codes the weights have changes no time: they are rounded to nearest.
    """
    quantized = apply_recipe(model, weights)
    rng = np.random.default_rng(0)
    # Linears that share an input, with it: their activations are quantised once.
    sites: list[tuple[np.ndarray, list[Any]]] = []
    for block in quantized.blocks:
        for names in SITES.values():
            tensors = [block.tensors[name] for name in names]
            assert all(isinstance(one, QuantizedTensor) for one in tensors)
            x = rng.standard_normal((1, tensors[0].shape[1])).astype(np.float32)
            sites.append((x, tensors))
    act = parse_activation(f"a8-g{group}")

    def token() -> None:
        for x, tensors in sites:
            for one in tensors:
                matmul(x, one)

    def token_int8() -> None:
        for x, tensors in sites:
            rounded = quantize_activations(x, act)
            for one in tensors:
                matmul(rounded, one)

    return quantized.bits_per_weight, 1e3 * best_of(token), 1e3 * best_of(token_int8)
