"""The block linears of a quantised model, computed as processing elements compute them.

Which PE runs a layer follows from the formats of its weights and of its activations (`choose_pe`).
`HardwareLinear` stands in for the linears of a forward pass, up to one of four stages, each with
the errors of those before it, so that the differences between the stages say where an error comes
from:

| stage | weights | activations | sums of groups | scales |
| --- | --- | --- | --- | --- |
| format | as stored | float32 | float64 | float64 |
| activations | as stored | as the PE takes them | float64 | float64 |
| accumulator | as stored | as the PE takes them | the PE's | float64 |
| scale unit | as stored | as the PE takes them | the PE's | the PE's |

Numbers in float64 are rounded once, to the float32 that the next operation reads. The accumulators
of integer PEs are exact, so their stage changes nothing but the order of float64 additions, and
`exact_product_bound` says by how much at most. That is far below float32's resolution and seldom
reaches y at all; where it does, an activation on a rounding threshold may change its code.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, get_args

import numpy as np
import torch

from bitwright.quant import (
    FORMATS,
    SITE_OF,
    ActivationRecipe,
    Format,
    InputError,
    LlamaConfig,
    Progress,
    QuantizedModel,
    QuantizedTensor,
    Recipe,
    quantize,
    quantize_activations,
)
from bitwright.sim import PE, PES, ant, btc, dint, dot, fp16, integer, pick

Stage = Literal["format", "activations", "accumulator", "scale unit"]
#: In the order in which errors are added.
STAGES: tuple[Stage, ...] = get_args(Stage)
_FP16 = "fp16"


class HardwareLinear:
    """Stands in for the block linears of a model: `linear(name, x[..., k]) -> y[..., n]`.

    Super weights are multiplied beside the PE: y[row] += (value - rounded) * x[column], in float32,
    with the activation that the PE gets.

    Args:
        quantized: The model; `quantized.model` is what the linears are called from.
        pes: The PE of each, of `pes_of`.
        stage: How far to go.
        tokens: Tokens that will go through all layers, for the progress.
        progress: Called after each layer.
    """

    def __init__(
        self,
        quantized: QuantizedModel,
        pes: Mapping[str, PE],
        stage: Stage = "scale unit",
        tokens: int = 0,
        progress: Progress | None = None,
    ) -> None:
        self._quantized, self._pes, self._stage = quantized, pes, stage
        self.macs = 0  #: multiply-accumulates done by PEs
        self._done, self._progress = 0, progress
        shapes = quantized.base.config.linear_shapes().values()
        self._total = tokens * sum(n * k for n, k in shapes)

    def __call__(self, name: str, x: torch.Tensor) -> torch.Tensor:
        _, number, local = name.split(".", 2)
        layer, pe = int(number), self._pes[name]
        block = self._quantized.blocks[layer]
        tensor = block.tensors.get(local)
        w = self._quantized.weights(layer, local) if tensor is None else tensor
        rows = x.detach().reshape(-1, x.shape[-1]).numpy()
        taken: Any = rows
        if self._stage != "format":
            recipe = self._quantized.recipe.activations
            limits = block.limits.get(SITE_OF[local]) if recipe and recipe.static else None
            taken = as_taken(rows, recipe, limits)
        kept = block.super_weights.get(local, ())
        macs = rows.shape[0] * w.shape[0] * w.shape[1]
        if self._stage in ("format", "activations"):
            weights = stored_values(pe, w)
            for one in kept:
                weights[one.row, one.column] = one.value
            y = taken_values(taken) @ weights.T
        else:
            y = pe.gemm(taken, w, exact_scales=self._stage == "accumulator")
            for one in kept:
                rounded = stored_values(pe, _row(w, one.row))[0, one.column]
                column = taken_values(taken)[:, one.column].astype(y.dtype)
                y[:, one.row] += y.dtype.type(one.value - rounded) * column
            self.macs += macs
        self._done += macs
        if self._progress:
            self._progress(self._done, max(self._total, self._done), f"{self._stage}, {name}")
        return torch.from_numpy(y.astype(np.float32, copy=False)).reshape(*x.shape[:-1], -1)


def _row(w: Any, row: int) -> Any:
    return w.rows([row]) if isinstance(w, QuantizedTensor) else w[row : row + 1]


def as_taken(
    rows: np.ndarray, recipe: ActivationRecipe | None, limits: tuple[float, float] | None = None
) -> Any:
    """Activations [m, k] as PEs take them: quantised, or rounded to FP16 for `recipe` None.

    Raises:
        InputError: They are not finite, or not in FP16.
    """
    if recipe is not None:
        return quantize_activations(rows, recipe, limits)
    with np.errstate(over="ignore"):
        half = rows.astype(np.float16)
    if not np.isfinite(half).all():
        row, column = np.argwhere(~np.isfinite(half))[0]
        raise InputError(
            f"activation {rows[row, column]} of token {row}, channel {column} is not finite in "
            "FP16; quantise activations (such as +a8), or scale the model's activations down"
        )
    return half


def taken_values(taken: Any) -> np.ndarray:
    """The numbers that activations stand for, exact in float64 [m, k]."""
    if isinstance(taken, QuantizedTensor):
        return dot.float64_values(taken)
    return np.asarray(taken, np.float64)


def stored_values(pe: PE, w: Any) -> np.ndarray:
    """The numbers that weights stand for on a PE, exact in float64 [n, k]."""
    if isinstance(pe, fp16.Fp16PE):
        return fp16.weight_bits(w).view(np.float16).astype(np.float64)
    if isinstance(w, QuantizedTensor):
        return dot.float64_values(w)
    return np.asarray(w, np.float64)


def exact_product_bound(x: np.ndarray, w: np.ndarray, groups: int) -> np.ndarray:
    """How far stages "activations" and "accumulator" of an integer PE lie apart, before rounding.

    The first rounds each of k products and their sum: whatever the order, its error is at most
    k u / (1 - k u) times S = sum |x| |w|, with u = 2**-53 (Higham, Accuracy and Stability of
    Numerical Algorithms, section 3.1). The second rounds the product of a group's two scales, its
    product with the exact integer of the group, and the sum over the groups: at most
    (groups + 1) u / (1 - (groups + 1) u) times S. With k u < 0.01 they differ by at most
    1.01 (k + groups + 1) u S.

    Args:
        x: Activations, float64 [m, k].
        w: Weights, float64 [n, k].
        groups: Groups of a row.
    """
    return (x.shape[1] + groups + 1) * 1.01 * 2.0**-53 * (np.abs(x) @ np.abs(w).T)


# ------------------------------------------------------------------ which PE


def pes_of(quantized: QuantizedModel, pe: str | None = None) -> dict[str, PE]:
    """The PE of every block linear, by the model's names.

    Args:
        quantized: The model.
        pe: The name of the one to use for all; None chooses by formats.

    Raises:
        InputError: An unknown name, or a layer that cannot be run (names it).
    """
    chosen = {}
    recipe = quantized.recipe
    _refuse_compressed(recipe)
    for block in quantized.blocks:
        for site_name in SITE_OF:
            full = f"blocks.{block.layer}.{site_name}"
            w = block.tensors.get(site_name)
            assert w is None or isinstance(w, QuantizedTensor)
            k = quantized.base.config.linear_shapes()[full][1]
            chosen[full] = _for_layer(full, w, k, recipe, pe)
    return chosen


def check_recipe(config: LlamaConfig, recipe: Recipe, pe: str | None = None) -> None:
    """Refuse a recipe that cannot run, before a model is quantised with it.

    Args:
        config: The model's shape.
        recipe: The recipe; where algorithms choose formats, all of them are tried.
        pe: As in `pes_of`.

    Raises:
        InputError: As `pes_of`.
    """
    _refuse_compressed(recipe)
    for layer in _layers(config, recipe):
        _for_layer(*layer, recipe, pe)


def sole_pe(config: LlamaConfig, recipe: Recipe) -> str:
    """The name in `PES` of the PE that runs all block linears of a recipe.

    Args:
        config: The model's shape.
        recipe: With activations of its own; FP16 activations leave a choice (see `choose_pe`).

    Raises:
        InputError: As `pes_of`; or the linears need several PEs, or one of a width that is not in
            `PES`.
    """
    _refuse_compressed(recipe)
    pes = [_for_layer(*layer, recipe, None) for layer in _layers(config, recipe)]
    if len({pe.name for pe in pes}) > 1:
        names = ", ".join(dict.fromkeys(pe.name for pe in pes))
        raise InputError(
            f"recipe {recipe.name} runs on several PEs ({names}); give all linears one format"
        )
    for name, pe in PES.items():
        if pe == pes[0]:
            return name
    raise InputError(
        f"recipe {recipe.name} runs on PE {pes[0].name}, which is none of {', '.join(PES)}; use "
        "widths of one of those, or bitwright evaluate --arithmetic pe"
    )


def _refuse_compressed(recipe: Recipe) -> None:
    if recipe.compressed:
        raise InputError(
            f"recipe {recipe.name} stores weights in a form of its own, whose sums are not those "
            "of one PE; use --arithmetic float"
        )


def _layers(
    config: LlamaConfig, recipe: Recipe
) -> Iterator[tuple[str, QuantizedTensor | None, int]]:
    """The first linear of every k: name, weights in each format that it can get, and k."""
    layers = {k: full for full, (_, k) in reversed(config.linear_shapes().items())}
    for k, full in reversed(layers.items()):
        for w in _examples(recipe, k):
            yield full, w, k


def _examples(recipe: Recipe, k: int) -> Iterator[QuantizedTensor | None]:
    """A row of zeros in every format that the recipe can give a layer; None for FP16."""
    if recipe.format_obj is None:
        yield None
        return
    names: Iterable[str] = (recipe.format_obj.name,)
    for step in recipe.steps:
        names = getattr(step, "formats", names)
    for name in names:
        format = FORMATS[name]
        scale_format = recipe.scale_format if format.block is None else None
        size = format.block or recipe.group_size or k
        yield quantize(np.zeros((1, k), np.float32), format, min(size, k), scale_format)


def _for_layer(full: str, w: QuantizedTensor | None, k: int, recipe: Recipe, pe: str | None) -> PE:
    try:
        if pe is None:
            planes_first = any(step.name == "abq" for step in recipe.steps)
            return choose_pe(w, k, recipe.activations, planes_first)
        return _named(pe, w, k, recipe.activations)
    except InputError as error:
        raise InputError(f"{full}: {error}") from None


def choose_pe(
    w: QuantizedTensor | None, k: int, act: ActivationRecipe | None, planes_first: bool = False
) -> PE:
    """The PE that runs a layer.

    Args:
        w: Its weights; None for FP16 weights.
        k: Its inputs.
        act: Its activations; None for FP16.
        planes_first: Prefer the Binary-TensorCore PE where an integer PE would do as well.

    Raises:
        InputError: None can. The message says what the weights run with.

    >>> from bitwright.quant import parse_activation
    >>> w = quantize(np.ones((1, 64)), "int4-sym", group_size=64)
    >>> a8, a6 = parse_activation("a8"), parse_activation("a6-asym")
    >>> [choose_pe(w, 64, act).name for act in (None, a8, a6)]
    ['fp16xint4', 'int4x8', 'btc']
    """
    if w is None:
        if act is None:
            return PES[_FP16]
        raise InputError(
            f"no PE runs FP16 weights with {act.name} activations; leave them in FP16, or quantise "
            "the weights"
        )
    pool = _pool(w.format, act, planes_first)
    reasons = []
    decoded = [pe for pe in pool if _runs(pe, w.format)]
    for pe in pool:
        reason = _refusal(pe, w, k, act)
        if reason is None:
            return pe
        if pe in decoded or (decoded and act is None and pe is PES["bitmod"]):
            reasons.append(reason)
    with_what = "FP16" if act is None else act.name
    text = f"no PE runs weight format {w.format.name} with {with_what} activations"
    if reasons:
        raise InputError(f"{text}: {'; '.join(reasons)}")
    raise InputError(f"{text}: none has a decoder for it; pe 'fp16' runs it dequantised")


def _pool(w: Format, act: ActivationRecipe | None, planes_first: bool) -> tuple[PE, ...]:
    """PEs, the one to prefer first, as wide as the formats ask for."""
    act_bits = 8 if act is None else min(max(act.format_obj.bits, 2), 8)
    bits = min(max(w.bits, 3), 8)
    multiplier = integer.IntegerPE(act_bits, 4 if w.bits <= 4 else 8)
    planes = btc.BtcPE(act_bits=act_bits)
    return (
        PES["bitmod"],
        PES["fp16xint4"],
        PES["fp16xint8"],
        dint.DintPE(bits=bits),
        dint.DintPE(bits=bits, asymmetric=True),
        *((planes, multiplier) if planes_first else (multiplier, planes)),
        PES["ternary"],
        PES["lut"],
        PES["ant"],
        ant.AntPE(bits=5),
        *(PES[name] for name in ("olive", "mxfp4", "mxint8", "nvfp4")),
    )


def _named(name: str, w: QuantizedTensor | None, k: int, act: ActivationRecipe | None) -> PE:
    by_name: dict[str, PE] = dict(PES)
    if w is not None:
        by_name |= {pe.name: pe for pe in _pool(w.format, act, False)}
    pe = by_name[name] if name in by_name else pick(PES, name, "pe")
    reason = _refusal(pe, w, k, act)
    if reason is not None:
        raise InputError(reason)
    return pe


def _runs(pe: PE, fmt: Format) -> bool:
    try:
        pe.step_cycles(fmt)
    except InputError:
        return False
    return True


def _refusal(pe: PE, w: QuantizedTensor | None, k: int, act: ActivationRecipe | None) -> str | None:
    """Why a PE cannot run a layer; None if it can."""
    if w is not None:
        try:
            pe.check(w)
        except InputError as error:
            return str(error)
    elif not isinstance(pe, fp16.Fp16PE):
        return f"the {pe.name} PE cannot run FP16 weights; use a recipe with quantised ones"
    name = _FP16 if act is None else act.format
    if name not in pe.act_formats:
        got = "FP16" if act is None else name
        return f"the {pe.name} PE takes {_listed(pe.act_formats)} activations, not {got}"
    if act is not None and act.granularity == "group" and w is not None:
        size = min(act.group_size or k, k)
        if size < k and size != w.group_size:
            return (
                f"the {pe.name} PE takes activations in one group, or in the weights' groups of "
                f"{w.group_size}, not in groups of {size}"
            )
    return None


def _listed(formats: tuple[str, ...]) -> str:
    """ "int8-sym"; "int2 .. int8" where there are many."""
    if formats == (_FP16,):
        return "FP16"
    if len(formats) <= 3:
        return " or ".join(formats)
    stems = sorted(name.partition("-")[0] for name in formats)
    return f"{stems[0]} .. {stems[-1]}"
