"""Language models of the Llama family: loading them and running them.

`load_model("tiny" | "smollm2" | path | hub name)` gives a `LanguageModel`; `list_models` says what
can be loaded by name.
"""

from .catalog import ModelInfo, list_models, load_model
from .llama import LanguageModel, Linear, LlamaConfig, Tokenizer
from .smollm2 import ModelUnavailable, fetch_model

__all__ = [
    "LanguageModel",
    "Linear",
    "LlamaConfig",
    "ModelInfo",
    "ModelUnavailable",
    "Tokenizer",
    "fetch_model",
    "list_models",
    "load_model",
]
