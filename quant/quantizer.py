"""From float weights to a `QuantizedTensor`, for one matrix or for a whole model."""

import sys
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float32

from .algorithms.block_scales import quantize_blocks
from .algorithms.olive import olive
from .algorithms.rtn import rtn
from .errors import InputError
from .files import Progress
from .formats import FORMATS, Format, ScaleFormat
from .recipes import Recipe, resolve_recipe
from .tensor import QuantizedTensor

if TYPE_CHECKING:
    from .models import LanguageModel

#: Columns per group if neither the caller nor the recipe says (the group of all BitMoD results).
GROUP_SIZE = 128


def quantize(
    w: Any,
    format_or_recipe: str | Format | Recipe,
    group_size: int | None = None,
    scale_format: ScaleFormat | None = None,
    fp16_error: bool = False,
) -> QuantizedTensor:
    """Quantise a weight matrix by round-to-nearest.

    The rounding of each group is defined, operation by operation, in `algorithms/rtn.py`, for
    "olive4" in `algorithms/olive.py`. Codes are chosen with the float32 group scale delta; only
    afterwards is delta stored:

    - "fp16": as the nearest float16;
    - "int8": per row c = max(delta) / 255 in float32, and q = delta / c rounded half to even,
      0 .. 255. The scale of the group is then q * c; a group whose delta is below c / 2 becomes
      all zero.

    Formats with a fixed block (mxfp4, mxint8, nvfp4) go another way, `algorithms/block_scales.py`:
    the scale is stored first, and codes are chosen with the stored scale.

    An all-zero group has scale 0 and codes of zero (an E8M0 scale cannot be 0: the smallest one;
    binary codes cannot be 0: those of +1, times 0).

    Args:
        w: Finite weights [n, k] (output channel x input channel), or activations [m, k] (token x
            channel): anything that numpy converts, or a torch tensor. Converted to float32 first.
        format_or_recipe: A name in `FORMATS`, a recipe name such as "w4g64-int-asym", or the
            object itself.
        group_size: Columns per group; a shorter last group is a group of its own, and more than k
            means k (one group per row, "per channel"). None: as the recipe says; for a format its
            block, or 128.
        scale_format: "fp16" or "int8". None: as the recipe says, or the format's own.
        fp16_error: Choose special values in float16 as the released BitMoD quantiser does. Only
            for formats with special values.

    Raises:
        InputError: NaN or Inf in `w`, a shape that is not [n, k], a group size or scale format that
            the format does not have, an unknown format, or a scale outside float16.

    >>> qt = quantize(np.array([[0.0, 1.0, -7.0, 3.5]]), "int4-sym", group_size=2)
    >>> qt.codes, qt.scales()  # -7/1 is code 9; 3.5 lies halfway, and 4 is even
    (array([[0, 7, 9, 4]], dtype=uint8), array([[0.14282227, 1.        ]], dtype=float32))
    """
    format, group_size, scale_format = _plan(format_or_recipe, group_size, scale_format)
    weights = as_weights(w)
    group_size = min(group_size or weights.shape[1], weights.shape[1])
    format.check_group_size(group_size, weights.shape[1])
    if fp16_error and np.abs(weights).max() >= 65520:
        raise InputError(
            f"fp16_error needs weights within +-65504, the largest is {np.abs(weights).max()}"
        )
    if format.block is not None and not fp16_error:
        return quantize_blocks(weights, format)
    if format.kind == "olive" and not fp16_error:
        rounded = olive(weights, group_size)
    else:
        rounded = rtn(weights, format, group_size, fp16_error)
    group_scales, channel_scales = _store_scales(rounded.deltas, scale_format)
    return QuantizedTensor(
        format=format,
        group_size=group_size,
        codes=rounded.codes,
        scale_format=scale_format,
        group_scales=group_scales,
        channel_scales=channel_scales,
        zero_points=rounded.zero_points if format.zero_point_bits else None,
        selectors=rounded.selectors if format.selector_bits else None,
    )


def _plan(
    format_or_recipe: str | Format | Recipe,
    group_size: int | None,
    scale_format: ScaleFormat | None,
) -> tuple[Format, int | None, ScaleFormat]:
    """Format, group size (None: the whole row) and scale format that the arguments ask for."""
    if group_size is not None and group_size < 1:
        raise InputError(f"group_size (={group_size}) must be at least 1; 128 is usual")
    if isinstance(format_or_recipe, str) and format_or_recipe in FORMATS:
        format_or_recipe = FORMATS[format_or_recipe]
    if isinstance(format_or_recipe, Format):
        format = format_or_recipe
        format.check_scale_format(scale_format or format.scale_format)
        default = format.block or GROUP_SIZE
        return format, group_size or default, scale_format or format.scale_format
    recipe = resolve_recipe(format_or_recipe)
    if recipe.steps:
        raise InputError(
            f"recipe {recipe.name!r} needs a model and data for {recipe.steps[0].name}; use "
            "apply_recipe, or leave its algorithms out"
        )
    if recipe.format_obj is None:
        raise InputError(f"recipe {recipe.name!r} leaves weights as they are; nothing to quantise")
    if scale_format is not None:
        recipe.format_obj.check_scale_format(scale_format)
    return (
        recipe.format_obj,
        group_size or recipe.group_size,
        scale_format or recipe.scale_format or recipe.format_obj.scale_format,
    )


def as_weights(w: Any) -> Float32[np.ndarray, "n k"]:
    """A finite, C-ordered float32 matrix of the same values.

    Raises:
        InputError: Not a matrix of real numbers, empty, or not finite in float32.
    """
    torch = sys.modules.get("torch")  # a torch tensor can only come from a loaded torch
    if torch is not None and isinstance(w, torch.Tensor):
        w = w.detach().to("cpu", torch.float32).numpy()
    array = np.asarray(w)
    if array.dtype.kind not in "fiub":
        raise InputError(f"w has type {array.dtype}; real numbers are needed")
    if array.ndim != 2 or 0 in array.shape:
        raise InputError(
            f"w has shape {array.shape}; a matrix [output channels, input channels] is needed"
        )
    with np.errstate(over="ignore"):  # what overflows float32 is reported below
        weights = np.ascontiguousarray(array, np.float32)
    finite = np.isfinite(weights)
    if not finite.all():
        row, column = np.argwhere(~finite)[0]
        raise InputError(
            f"w[{row}, {column}] is {array[row, column]}; weights must be finite float32 numbers"
        )
    return weights


def _store_scales(
    deltas: Float32[np.ndarray, "n groups"], scale_format: ScaleFormat
) -> tuple[np.ndarray, np.ndarray | None]:
    """Group scales and channel scales as stored; see `quantize`."""
    if not np.isfinite(deltas).all():
        raise InputError("the spread of a group of weights exceeds float32; scale the weights down")
    if scale_format == "int8":
        channel_scales = deltas.max(axis=1) / np.float32(255)
        divisors = np.where(channel_scales == 0, np.float32(1), channel_scales)
        ratios = np.clip(np.rint(deltas / divisors[:, None]), 0, 255)
        return ratios.astype(np.uint8), channel_scales
    with np.errstate(over="ignore", under="ignore"):
        group_scales = deltas.astype(np.float16)
    wrong = ~np.isfinite(group_scales) | ((group_scales == 0) & (deltas > 0))
    if wrong.any():
        row, group = np.argwhere(wrong)[0]
        raise InputError(
            f"the scale of row {row}, group {group} (={deltas[row, group]:.3g}) is outside FP16 "
            "(6e-08 .. 65504); use scale_format='int8' (-s8 in a recipe) or rescale the weights"
        )
    return group_scales, None


def quantize_model(
    model: "LanguageModel", recipe: str | Recipe, progress: Progress | None = None
) -> dict[str, QuantizedTensor]:
    """Round every block linear layer of a model; embedding and output layer stay as they are.

    For recipes without algorithms; `apply_recipe` takes all of them.

    Args:
        model: Its `linear_names()` and `weight(name)` are used.
        recipe: A recipe or its name; how it quantises activations does not matter here.
        progress: Called after each layer as progress(layers done, layers, layer name).

    Returns:
        Layer name to tensor, in the model's order; empty for the recipe "fp16".

    Raises:
        InputError: An unknown recipe, one with algorithms, or weights that cannot be quantised
            (names the layer).
    """
    recipe = resolve_recipe(recipe)
    if recipe.steps:
        raise InputError(
            f"recipe {recipe.name!r} changes more than each tensor on its own; use apply_recipe"
        )
    if recipe.format_obj is None:
        return {}
    tensors: dict[str, QuantizedTensor] = {}
    names = model.linear_names()
    for done, name in enumerate(names, start=1):
        try:
            tensors[name] = quantize(model.weight(name), recipe)
        except InputError as error:
            raise InputError(f"layer {name}: {error}") from None
        if progress is not None:
            progress(done, len(names), name)
    return tensors
