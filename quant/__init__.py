"""Number formats, quantised tensors, language models and their perplexity.

Start with `quantize` (an array and a format name to a `QuantizedTensor`) and `load_model`.
"""

from typing import TYPE_CHECKING

from bitwright.lazy import lazy_exports

if TYPE_CHECKING:
    from .algorithms.rtn import rtn_reference
    from .errors import InputError
    from .evaluation import PerplexityResult, perplexity
    from .files import Progress, atomic_path, cache_folder, output_folder, write_text
    from .formats import FORMATS, Format, ScaleFormat, olive_pair_values, scale_code_values
    from .models import (
        LanguageModel,
        LlamaConfig,
        ModelUnavailable,
        fetch_model,
        list_models,
        load_model,
    )
    from .quantizer import quantize, quantize_model
    from .recipes import Recipe, resolve_recipe
    from .store import load_tensors, save_tensors
    from .tensor import STORED, QuantizedTensor
    from .text import Text, load_text

# Names load when they are first used, so that numpy-only work never waits for torch.
_HOME = {
    "rtn_reference": "algorithms.rtn",
    "InputError": "errors",
    "Progress": "files",
    "atomic_path": "files",
    "cache_folder": "files",
    "output_folder": "files",
    "write_text": "files",
    "FORMATS": "formats",
    "Format": "formats",
    "ScaleFormat": "formats",
    "olive_pair_values": "formats",
    "scale_code_values": "formats",
    "LanguageModel": "models",
    "LlamaConfig": "models",
    "ModelUnavailable": "models",
    "fetch_model": "models",
    "list_models": "models",
    "load_model": "models",
    "PerplexityResult": "evaluation",
    "perplexity": "evaluation",
    "quantize": "quantizer",
    "quantize_model": "quantizer",
    "Recipe": "recipes",
    "resolve_recipe": "recipes",
    "load_tensors": "store",
    "save_tensors": "store",
    "QuantizedTensor": "tensor",
    "STORED": "tensor",
    "Text": "text",
    "load_text": "text",
}

__all__ = [
    "FORMATS",
    "Format",
    "InputError",
    "LanguageModel",
    "LlamaConfig",
    "ModelUnavailable",
    "PerplexityResult",
    "Progress",
    "QuantizedTensor",
    "Recipe",
    "STORED",
    "ScaleFormat",
    "Text",
    "atomic_path",
    "cache_folder",
    "fetch_model",
    "list_models",
    "load_model",
    "load_tensors",
    "load_text",
    "olive_pair_values",
    "output_folder",
    "perplexity",
    "quantize",
    "quantize_model",
    "resolve_recipe",
    "rtn_reference",
    "save_tensors",
    "scale_code_values",
    "write_text",
]

__getattr__ = lazy_exports(__name__, _HOME)
