"""Maps measured for real: quantised, and read a text with. Everything is cached."""

import hashlib
import json
from typing import Any

from bitwright.experiments import (
    accuracy_fingerprint,
    evaluate,
    measured_accuracy,
    quantised,
    sources_hash,
)
from bitwright.quant import LanguageModel, Recipe, Text, cache_folder, write_text


class Measure:
    """Perplexities, and divergences if wanted, of recipes on one model and text.

    Args:
        model: The float model.
        text: What to read.
        max_tokens: Tokens to read.
        window: Context length.
        kl: Whether the divergence from the float model is measured too.
    """

    def __init__(
        self, model: LanguageModel, text: Text, max_tokens: int, window: int, kl: bool = False
    ) -> None:
        self._model, self._text, self._kl = model, text, kl
        self._tokens, self._window = max_tokens, window
        self._fingerprint = accuracy_fingerprint(model, text)

    def __call__(self, recipe: Recipe) -> dict[str, Any]:
        """ "perplexity", "bits_per_weight" and "kl" (None: not wanted) of a recipe."""
        found = measured_accuracy(
            self._model,
            recipe,
            self._text,
            max_tokens=self._tokens,
            window=self._window,
            fingerprint=self._fingerprint,
        )
        answer = {name: found[name] for name in ("perplexity", "bits_per_weight")}
        return {**answer, "kl": self._divergence(recipe) if self._kl else None}

    def _divergence(self, recipe: Recipe) -> float:
        """Mean KL(float model || quantised model) in nats per predicted token."""
        if recipe.format is None:
            return 0.0
        key = json.dumps(
            {
                "code": sources_hash("quant"),
                "model and text": self._fingerprint,
                "text": self._text.name,
                "recipe": recipe.name,
                "tokens": [self._tokens, self._window],
            }
        )
        name = f"{hashlib.sha256(key.encode()).hexdigest()[:32]}.json"
        path = cache_folder("divergence") / name
        try:
            return float(json.loads(path.read_text(encoding="utf-8"))["kl"])
        except (OSError, ValueError, KeyError):
            pass  # not there, or damaged: measure
        agreed = evaluate(
            self._model,
            text=self._text,
            max_tokens=self._tokens,
            window=self._window,
            quantized=quantised(self._model, recipe),
            compare=True,
        ).agreement
        assert agreed is not None
        write_text(path, json.dumps({"kl": agreed.kl}))
        return agreed.kl
