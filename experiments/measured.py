"""Measured accuracies, and the quantised tensors behind them, kept by what decides them.

Both caches are content-addressed: their keys are hashes of the weights, the recipe, the text and
the code that computes, so that runs, sweeps and processes share work and nothing outlives its code.
A measurement is locked while it runs: who wants the same one waits and reads it.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from bitwright.quant import (
    Calibration,
    InputError,
    LanguageModel,
    QuantizedModel,
    Recipe,
    Text,
    apply_recipe,
    cache_folder,
    load_calibration_text,
    load_quantized,
    write_text,
)

from .cache_lock import entry_lock
from .evaluation import evaluate, plan_calibration
from .provenance import accuracy_sources_hash


def accuracy_fingerprint(model: LanguageModel, text: Text) -> str:
    """A hash of the weights and of the text's tokens."""
    digest = hashlib.blake2b(digest_size=16)
    _add_weights(digest, model)
    digest.update(json.dumps(model.tokenizer.encode(text.content)).encode())
    return digest.hexdigest()


def _add_weights(digest: Any, model: LanguageModel) -> None:
    for name in model.config.weight_shapes():
        digest.update(model.weight(name).contiguous().numpy().tobytes())


def measured_accuracy(
    model: LanguageModel,
    recipe: Recipe,
    text: Text,
    *,
    max_tokens: int,
    window: int,
    fingerprint: str | None = None,
    calibration: Calibration | None = None,
) -> dict[str, Any]:
    """Perplexity and true bits of one recipe, cached by everything that decides them.

    The cache is also what lets an interrupted run go on where it stopped.

    Args:
        model: The float model.
        recipe: What to quantise to.
        text: What is read.
        max_tokens: Tokens to read.
        window: Context length.
        fingerprint: `accuracy_fingerprint` of model and text; None: it is computed.
        calibration: As in `quantised`.

    Returns:
        perplexity, bits_per_weight, nominal_bits, parameters_kept, text, tokens and window.

    Raises:
        InputError: As `apply_recipe` and `evaluate`.
    """
    fingerprint = fingerprint or accuracy_fingerprint(model, text)
    key = hashlib.sha256()
    for part in (
        accuracy_sources_hash(),
        fingerprint,
        recipe.model_dump_json(),
        text.name,
        str(max_tokens),
        str(window),
        *_asked(recipe, calibration),
    ):
        key.update(part.encode() + b"\0")
    path = cache_folder("accuracy") / f"{key.hexdigest()[:32]}.json"
    answer = _load(path)
    if answer is not None:
        return answer
    with entry_lock(path):
        answer = _load(path)  # who held the lock may have measured it
        if answer is None:
            answer = _measure(model, recipe, text, max_tokens, window, calibration)
            write_text(path, json.dumps(answer))
    return answer


def _measure(
    model: LanguageModel,
    recipe: Recipe,
    text: Text,
    max_tokens: int,
    window: int,
    calibration: Calibration | None,
) -> dict[str, Any]:
    quantized = quantised(model, recipe, calibration)
    result = evaluate(
        model, text=text, max_tokens=max_tokens, window=window, quantized=quantized
    ).result
    return {
        "perplexity": result.perplexity,
        "bits_per_weight": quantized.bits_per_weight,
        "nominal_bits": quantized.nominal_bits,
        "parameters_kept": quantized.parameters_kept,
        "text": result.text_name,
        "tokens": result.tokens,
        "window": result.window,
    }


def used_calibration(
    model: LanguageModel, recipe: Recipe, calibration: Calibration | None = None
) -> Calibration | None:
    """What a recipe is calibrated on; None: it looks at no data.

    Args:
        model: The float model.
        recipe: What to quantise to.
        calibration: That was asked for; None: the default one.
    """
    if not recipe.needs_data:
        return None
    return calibration or plan_calibration(model, 0)


def _asked(recipe: Recipe, calibration: Calibration | None) -> list[str]:
    """What a calibration adds to the key of a cache; the default one adds nothing."""
    if calibration is None or not recipe.needs_data:
        return []
    return [calibration.model_dump_json()]


def quantised(
    model: LanguageModel, recipe: Recipe, calibration: Calibration | None = None
) -> QuantizedModel:
    """A model under a recipe, its tensors from the cache if it was quantised before.

    An interrupted quantisation goes on behind its last finished block. Recipes that leave weights
    alone or need no data are quantised in memory: that takes no longer than reading them back.

    Args:
        model: The float model.
        recipe: What to quantise to.
        calibration: What a recipe that needs data is calibrated on; None: the default one.

    Raises:
        InputError: As `apply_recipe`.
    """
    if recipe.plain:
        return apply_recipe(model, recipe)
    asked = _asked(recipe, calibration)
    digest = hashlib.blake2b(digest_size=16)
    _add_weights(digest, model)
    text = load_calibration_text().name
    for part in (accuracy_sources_hash(), recipe.model_dump_json(), text, *asked):
        digest.update(part.encode() + b"\0")
    folder = cache_folder("quantised") / digest.hexdigest()
    with entry_lock(folder):
        try:
            found = load_quantized(folder, model)
            for _ in found.blocks:
                pass  # blocks are read when they are looked at: now, to find damage
            return found
        except InputError:
            pass  # not there, not finished, or damaged: `apply_recipe` mends it
        return apply_recipe(model, recipe, folder=folder, calibration=calibration)


def _load(path: Path) -> dict[str, Any] | None:
    try:
        answer: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None  # not there, or damaged
    return answer
