"""The model of a command whose user named none."""

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bitwright.quant import LanguageModel

DEFAULT_MODEL = "smollm2"


def load_or_tiny(
    model: str, progress: Callable[[int, int, str], None] | None = None
) -> "LanguageModel":
    """The model of that name; where the default one cannot be fetched, `tiny`, which is told.

    Raises:
        InputError: Another model that cannot be loaded.
    """
    from bitwright.quant import ModelUnavailable, load_model

    try:
        return load_model(model, progress)
    except ModelUnavailable as error:
        if model != DEFAULT_MODEL:
            raise
        print(f"bitwright: {error}; using the bundled model tiny instead", file=sys.stderr)
        return load_model("tiny")
