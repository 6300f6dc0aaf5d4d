"""How much memory it takes to quantise a model, from its shape, the recipe and the calibration.

`apply_recipe` goes block by block, so a model whose weights are read from disk needs memory for one
block, not for all. What each algorithm adds, with h, f and q the hidden, feed-forward and
query widths, k any of the four input widths of a block (h, q, h, f) and T the calibration tokens:

| step | holds, beside one block's weights |
| --- | --- |
| any | temporaries for the largest matrix, the packed block, and 12 MiB for libraries |
| any that reads data | the float stream before and behind the block, 2 x 4 T h bytes; a batch |
| hadamard | the block in float64, and a rotated embedding and output layer |
| awq | Gram matrices of all four inputs, 12 bytes x k**2 each; scaled and clipped weights |
| aqas | sampled rows of all four inputs; scaled weights |
| smoothquant, superweight | scaled weights |
| gptq, mixed | the quantised stream, 4 T h; the widest input, 4 T (f + 2 h); a Gram matrix |
| gptq | beside: a Hessian and its factor in float64, 64 bytes x k**2 |
| rht, scales2d, stochastic | twice the temporaries: elements, draws and turns in float64 |
| vqlogits | code vectors, 20 bytes x K h; distances of 1024 rows to them, 12 bytes x 1024 K |
| llmpruner | gradients of all blocks and their sums, 16 bytes a weight; the smaller copy |
| omniquant, abq | the quantised stream; each weight about 10 times in the graph of gradients |

The parts are not all alive at the same time, so that their sum is an upper bound: measured peaks
lie between a third of it and all of it (`tests/quant/test_streaming.py`). It leaves out what the
program and its libraries take before a model is loaded, the calibration text while it is cut
into tokens (some 200 bytes per token), and, of a model that is not streamed, freed arrays that are
kept for the next of their size (`freed_memory.py`).
"""

from typing import TYPE_CHECKING, Any

from .calibration import BATCH_TOKENS, Calibration
from .recipes import Recipe, resolve_recipe

if TYPE_CHECKING:
    from .models import LlamaConfig

#: Work space of the linear-algebra libraries, and freed memory that the allocator keeps.
_LIBRARIES = 12 << 20
#: Bytes per weight of the largest matrix while it is rounded, measured and reported: eight copies.
_ROUNDING = 32
#: Bytes per item that is packed, and the items that are packed at a time (`store.py`).
_PACKING, _PACKED = 24, 1 << 20
#: Bytes per element of a Hessian: itself, two copies, factor, inverse and half-size products.
_HESSIAN = 64
#: Bytes per element of a Gram matrix: float64 while it is summed, then float32.
_GRAM = 12
#: Copies of a weight, scaled, clipped, rounded and differentiated, that gradients need.
_LEARNING = 10
#: Rows of a vocabulary that a rotation has in float64 at a time.
_ROTATED_ROWS = 4096
#: Rows whose distances to all code vectors are in memory at a time (`algorithms/vqlogits.py`).
_CODEBOOK_ROWS = 1024


def peak_parts(
    config: "LlamaConfig",
    recipe: str | Recipe,
    calibration: Calibration | None = None,
    *,
    streamed: bool = True,
    stored: bool = True,
) -> dict[str, int]:
    """Bytes by what they are for; what a recipe does not need is left out.

    Args:
        config: Shape of the model.
        recipe: What is applied.
        calibration: Which tokens; None if no data is needed.
        streamed: Whether weights are read block by block; otherwise all are in memory.
        stored: Whether finished blocks go to a folder; otherwise they stay in memory.
    """
    recipe = resolve_recipe(recipe)
    h, f, q = config.hidden, config.ffn, config.heads * config.head_dim
    block = 2 * h * q + 2 * h * config.kv_heads * config.head_dim + 3 * h * f
    largest = h * max(f, q)
    ends = config.vocab * h
    prepared = any(step.phase == "prepare" or step.trains_blocks for step in recipe.steps)
    runs_quantized = any(step.reads_quantized_stream for step in recipe.steps)
    parts = {"libraries": _LIBRARIES}
    if not streamed:
        vocabularies = 1 if config.tied_embeddings else 2
        parts["model"] = 4 * (config.layers * block + vocabularies * ends)
    rotated = recipe.rotation is not None
    parts["embedding"] = 4 * ends * (streamed + rotated * (2 + (not config.tied_embeddings)))
    if rotated:
        parts["rotation"] = 16 * min(config.vocab, _ROTATED_ROWS) * h + 24 * h**2
    copies = streamed + 4 * rotated + 2 * prepared + runs_quantized
    # Codes of this block and of the one before, a byte each, and their scales.
    parts["block"] = 4 * block * copies + (5 * block // 2 if recipe.format else 4 * block)
    copies = 1 + any(step.block_formats for step in recipe.steps)
    parts["rounding"] = _ROUNDING * largest * copies + _PACKING * min(largest, _PACKED)
    if recipe.head is not None:
        codes = recipe.head.codes
        # Centres in sums, means and two roundings; distances of some rows to all of them.
        parts["codebook"] = 20 * codes * h + 12 * _CODEBOOK_ROWS * codes
        parts["codebook"] += 4 * ends * (streamed and not config.tied_embeddings)
    if not stored:
        # A byte per code, scales, and all of it packed when it is written to one file.
        parts["finished blocks"] = config.layers * block * (9 if recipe.format else 16) // 4
    if recipe.structure is not None:  # a gradient and its sum, twice for squares, of all blocks
        parts["gradients"] = 4 * config.layers * block * 4
    if calibration is not None:
        parts |= _calibrated_parts(config, recipe, calibration)
    return {what: size for what, size in parts.items() if size}


def _calibrated_parts(
    config: "LlamaConfig", recipe: Recipe, calibration: Calibration
) -> dict[str, int]:
    """What comes with calibration data."""
    h, f, q = config.hidden, config.ffn, config.heads * config.head_dim
    kv, wide = config.kv_heads * config.head_dim, max(h, q)
    block = 2 * h * q + 2 * h * kv + 3 * h * f
    prepare = [step for step in recipe.steps if step.phase == "prepare" or step.trains_blocks]
    rounds = [s.name for s in recipe.steps if s.phase == "round" and not s.trains_blocks]
    runs_quantized = any(step.reads_quantized_stream for step in recipe.steps)
    static = recipe.activations is not None and recipe.activations.static
    tokens = calibration.tokens
    parts: dict[str, int] = {}
    streams = 2 * bool(prepare or static) + runs_quantized
    parts["streams"] = 4 * tokens * h * streams
    batch = min(tokens, max(calibration.length, BATCH_TOKENS))
    parts["batch"] = 4 * batch * (8 * wide + 4 * f)
    if runs_quantized:
        parts["inputs"] = 4 * tokens * (f + 2 * wide)
    squares = (2 * h**2 + q**2 + f**2) * any("gram" in step.needs for step in prepare)
    squares += (h**2 + max(f, q) ** 2) * bool(rounds)
    parts["Gram matrices"] = _GRAM * squares
    if "gptq" in rounds:
        parts["Hessian"] = _HESSIAN * max(h, q, f) ** 2
    if any("sample" in step.needs for step in prepare):
        rows = min(tokens, calibration.sample_tokens)
        parts["samples"] = 4 * rows * (2 * (2 * h + q + f) + 3 * max(wide, f))
    learned: Any = next((step for step in prepare if step.name in ("omniquant", "abq")), None)
    if learned is not None:
        seen = min(learned.sequences, calibration.sequences) * calibration.length
        step_tokens = min(learned.batch, calibration.sequences) * calibration.length
        graph = 4 * step_tokens * (16 * wide + 8 * f)
        maps = 32 * step_tokens * calibration.length * config.heads * (learned.name == "abq")
        parts["learning"] = 4 * (_LEARNING * block + seen * (3 * h + 2 * q + 2 * kv))
        parts["learning"] += graph + maps
    distilled: Any = next((step for step in recipe.steps if step.trains_blocks), None)
    if distilled is not None:
        step_tokens = min(distilled.batch, calibration.sequences) * calibration.length
        latent = block * max(1.0, getattr(distilled, "bits", 1.0))  # factors grow with the budget
        graph = 4 * step_tokens * (24 * wide + 16 * f)
        parts["learning"] = int(4 * _LEARNING * latent) + graph
    return {what: size for what, size in parts.items() if size}


def peak_bytes(
    config: "LlamaConfig",
    recipe: str | Recipe,
    calibration: Calibration | None = None,
    *,
    streamed: bool = True,
    stored: bool = True,
) -> int:
    """The sum of `peak_parts`: what quantising takes at most, beside the program itself.

    >>> from bitwright.quant import LlamaConfig
    >>> llama8b = LlamaConfig(32, 4096, 32, 8, 128, 14336, 128256, 5e5, 1e-5, False, 8192)
    >>> [peak_bytes(llama8b, recipe) >> 30 for recipe in ("int4", "int4+hadamard")]
    [5, 14]
    """
    return sum(peak_parts(config, recipe, calibration, streamed=streamed, stored=stored).values())
