"""Post-training quantisation algorithms, one file each.

`rtn.py`, `olive.py` and `block_scales.py` round; the others are steps of a recipe (`base.py`).
"""

from importlib import import_module

#: Name in recipes -> module and class.
ALGORITHMS: dict[str, tuple[str, str]] = {
    "llmpruner": ("llm_pruner", "LlmPruner"),
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
    "bitnet": ("bitnet", "BitNet"),
    "littlebit": ("littlebit", "LittleBit"),
    "binarymos": ("binarymos", "BinaryMoS"),
    "wanda": ("wanda", "Wanda"),
    "magnitude": ("magnitude", "Magnitude"),
    "anyprecision": ("anyprecision", "AnyPrecision"),
    "dbllm": ("dbllm", "DbLlm"),
    "aqlm": ("aqlm", "Aqlm"),
    "finequant": ("finequant", "FineQuant"),
    "billm": ("billm", "BiLlm"),
    "pbllm": ("pbllm", "PbLlm"),
    "rht": ("random_hadamard", "Rht"),
    "scales2d": ("scales2d", "Scales2d"),
    "stochastic": ("stochastic", "Stochastic"),
    "vqlogits": ("vqlogits", "VqLogits"),
}

#: Method -> module and class of the matrices that are stored in its own form (`compressed.py`).
MATRICES: dict[str, tuple[str, str]] = {
    "bitnet": ("bitnet", "BitNetMatrix"),
    "littlebit": ("littlebit", "LittleBitMatrix"),
    "binarymos": ("binarymos", "BinaryMoSMatrix"),
    "masked": ("masked", "MaskedMatrix"),
    "bitdelta": ("bitdelta", "DeltaMatrix"),
    "anyprecision": ("anyprecision", "AnyPrecisionMatrix"),
    "dbllm": ("dbllm", "DualBinary"),
    "deltacome": ("deltacome", "LowRankDelta"),
    "aqlm": ("aqlm", "AqlmMatrix"),
    "billm": ("billm", "BiLlmMatrix"),
    "pbllm": ("pbllm", "PbLlmMatrix"),
    "blocks": ("block_matrix", "BlockMatrix"),
    "vqlogits": ("vqlogits", "VqHead"),
}


def algorithm_class(name: str):  # type: ignore[no-untyped-def]
    """The class of an algorithm; its module loads now.

    Raises:
        KeyError: There is none of this name.
    """
    module, attribute = ALGORITHMS[name]
    return getattr(import_module(f".{module}", __name__), attribute)


def matrix_class(method: str):  # type: ignore[no-untyped-def]
    """The class of a method's matrices; its module loads now.

    Raises:
        KeyError: There is none of this name.
    """
    module, attribute = MATRICES[method]
    return getattr(import_module(f".{module}", __name__), attribute)
