"""The low-bit zoo: one recipe for each method, so that all can be compared in one run.

Methods whose papers train run here as their initialisation or post-training form, two of them also
after a short distillation; `ran` says so, and that their accuracy is a lower bound of what the
paper reports.
"""

from dataclasses import dataclass

from bitwright.quant import Recipe, resolve_recipe


@dataclass(frozen=True, slots=True)
class ZooEntry:
    """A method as it is compared."""

    recipe: str  #: its activations are those that the PE takes which fits its products
    source: str  #: the paper
    ran: str  #: what of the paper runs here


_WHOLE = "as published, without fine-tuning"
_START = "the initialisation; the paper trains behind it"
_TRAINED = "k-means of a trained output layer; the paper trains the codebook"
_TURNED = "weights and inputs turned"
_NVFP4 = "NVFP4 pre-training, arXiv 2509.25149"
_SHORT = "32 steps of distillation per block; the paper trains whole corpora"

ZOO: tuple[ZooEntry, ...] = (
    ZooEntry("fp16", "baseline", "nothing to do"),
    ZooEntry("w4g64-int-sym-s8", "baseline", "round-to-nearest"),
    ZooEntry("w4g64-bitmod", "BitMoD, HPCA 2025", "round-to-nearest"),
    ZooEntry("w3g64-bitmod", "BitMoD, HPCA 2025", "round-to-nearest"),
    ZooEntry("w4g64a8-dint-sym", "dINT, arXiv 2311.05161", "round-to-nearest"),
    ZooEntry("w4g64-int-asym+a8-asym", "ABQ-LLM, arXiv 2408.08554", "round-to-nearest"),
    ZooEntry("mxfp4", "OCP Microscaling Formats 1.0", "round-to-nearest"),
    ZooEntry("mxfp4+a4-mxfp", "OCP Microscaling Formats 1.0", "round-to-nearest"),
    ZooEntry("mxfp4+a4-mxfp+rht", _NVFP4, _TURNED),
    ZooEntry("nvfp4", _NVFP4, "its format of weights"),
    ZooEntry("nvfp4+rht", _NVFP4, _TURNED),
    ZooEntry("nvfp4+scales2d", _NVFP4, "a scale per 16 x 16 weights"),
    ZooEntry("nvfp4+stochastic", _NVFP4, "there for gradients"),
    ZooEntry("nvfp4+a4-nvfp", _NVFP4, "its format of weights and activations"),
    ZooEntry("nvfp4+a4-nvfp+rht", _NVFP4, _TURNED),
    ZooEntry("bitnet+a8", "BitNet b1.58, arXiv 2402.17764", "absmean ternary of trained weights"),
    ZooEntry("dbllm+a8", "DB-LLM, arXiv 2402.11960", "a form of ours without training"),
    ZooEntry("pbllm", "PB-LLM, arXiv 2310.00034", "without training"),
    ZooEntry("billm+a8", "BiLLM, arXiv 2402.04291, released code", _WHOLE),
    ZooEntry("billm:mode=paper+a8", "BiLLM, arXiv 2402.04291, as described", _WHOLE),
    ZooEntry("littlebit:bits=1.2+a8", "LittleBit, arXiv 2506.13771", _START),
    ZooEntry("littlebit:steps=32,bits=1.2+a8", "LittleBit, arXiv 2506.13771", _SHORT),
    ZooEntry("binarymos", "BinaryMoS, arXiv 2406.12311", _START),
    ZooEntry("binarymos:steps=32", "BinaryMoS, arXiv 2406.12311", _SHORT),
    ZooEntry("anyprecision:bits=3", "Any-Precision LLM, arXiv 2402.10517", _WHOLE),
    ZooEntry("anyprecision", "Any-Precision LLM, arXiv 2402.10517", _WHOLE),
    ZooEntry("aqlm", "AQLM, arXiv 2401.06118", "without fine-tuning of blocks"),
    ZooEntry("finequant", "FineQuant, arXiv 2308.09723", "group sizes by our reading of the rule"),
    ZooEntry("fp16+magnitude:pattern=2:4", "baseline", _WHOLE),
    ZooEntry("fp16+wanda", "Wanda, arXiv 2306.11695", _WHOLE),
    ZooEntry("fp16+wanda:pattern=2:4", "Wanda, arXiv 2306.11695", _WHOLE),
    ZooEntry("w4g64-int-sym-s8+wanda:pattern=2:4", "Wanda, arXiv 2306.11695", _WHOLE),
    ZooEntry("w4g64-int-sym-s8+vqlogits:codes=16384", "VQ-Logits, arXiv 2505.10202", _TRAINED),
    ZooEntry(
        "w4g64-int-sym-s8+llmpruner",
        "LLM-Pruner, arXiv 2305.11627",
        "its removal at ratio 0.25, key-value heads whole; the paper trains behind it",
    ),
)


#: Sequences that methods are calibrated on in the zoo: a quarter of the usual, to save hours.
ZOO_SEQUENCES = 32


def zoo_recipes(vocab: int | None = None) -> tuple[Recipe, ...]:
    """The recipes of all entries, in order.

    Args:
        vocab: Rows of the model's output layer; entries with more code vectors are left out.
    """
    recipes = (resolve_recipe(entry.recipe) for entry in ZOO)
    return tuple(
        recipe
        for recipe in recipes
        if vocab is None or all(getattr(step, "codes", 0) <= vocab for step in recipe.steps)
    )
