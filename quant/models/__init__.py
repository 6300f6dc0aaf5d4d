"""Language models of the Llama family: loading them and running them.

`load_model("tiny" | "smollm2" | path | hub name)` gives a `LanguageModel`; `list_models` says what
can be loaded by name.
"""

from .block import (
    Cache,
    Linear,
    Rotary,
    attention,
    block_forward,
    block_stages,
    norm,
    rotary_table,
    rotate,
    shared_heads,
    split_heads,
)
from .catalog import ModelInfo, list_models, load_model
from .config import SITE_OF, SITES, LlamaConfig
from .hf_saving import save_folder
from .llama import LanguageModel, Tokenizer
from .smollm2 import ModelUnavailable, fetch_model
from .structure import Structure

__all__ = [
    "Cache",
    "LanguageModel",
    "Linear",
    "LlamaConfig",
    "ModelInfo",
    "ModelUnavailable",
    "Rotary",
    "Structure",
    "SITES",
    "SITE_OF",
    "Tokenizer",
    "attention",
    "block_forward",
    "block_stages",
    "fetch_model",
    "list_models",
    "load_model",
    "norm",
    "rotary_table",
    "rotate",
    "save_folder",
    "shared_heads",
    "split_heads",
]
