"""Post-training quantisation algorithms, one file each.

`rtn.py`, `olive.py` and `block_scales.py` round; the others are steps of a recipe (`base.py`).
"""

from importlib import import_module

#: Name in recipes -> module and class.
ALGORITHMS: dict[str, tuple[str, str]] = {
    "hadamard": ("hadamard", "Hadamard"),
    "superweight": ("super_weights", "KeepSuperWeights"),
    "smoothquant": ("smoothquant", "SmoothQuant"),
    "awq": ("awq", "Awq"),
    "aqas": ("aqas", "Aqas"),
    "omniquant": ("omniquant", "OmniQuant"),
    "abq": ("abq", "Abq"),
    "mixed": ("mixed_formats", "MixedFormats"),
    "formats": ("format_map", "FormatMap"),
    "gptq": ("gptq_step", "GptqStep"),
}


def algorithm_class(name: str):  # type: ignore[no-untyped-def]
    """The class of an algorithm; its module loads now.

    Raises:
        KeyError: There is none of this name.
    """
    module, attribute = ALGORITHMS[name]
    return getattr(import_module(f".{module}", __name__), attribute)
