"""Activations, keys and values in low bits: recipes with short names, and the quantisation itself.

What is quantised are the inputs of linear layers (`ActivationRecipe`), and keys and values
(`KvRecipe`), keys after the rotary embedding. Norms, the softmax and its output, the residual
stream and the element-wise product of a gated MLP stay in floating point.

Names, by a grammar like that of weight recipes:

    a{bits}[-{type}][-g{group}|-tensor[-static]]      kv{bits}[-{type}][-g{group}][-s8|-s16]

Bits and type name a format: nothing is int-sym, `asym` int-asym, and otherwise as in weight recipes
(`fp-e4m3`, `bitmod`, `mxfp`; bits are 2b and 1b with bit balance). What is left out is one scale
per token, chosen as the token comes; for keys and values one per token and head.
"""

import difflib
import math
import re
import sys
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from jaxtyping import Float32, UInt8
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from .errors import InputError
from .formats import FORMATS, Format, ScaleFormat
from .tensor import QuantizedTensor

if TYPE_CHECKING:
    import torch

#: About so many numbers are rounded at a time; they stay in the cache.
_BLOCK = 1 << 16
_SUFFIX: dict[str, ScaleFormat] = {"s8": "int8", "s16": "fp16"}


# ------------------------------------------------------------------ recipes


class ActivationRecipe(BaseModel):
    """How the inputs of linear layers are quantised; checked and immutable.

    >>> ActivationRecipe(format="int4-asym", granularity="group", group_size=64).name
    'a4-asym-g64'
    >>> ActivationRecipe(format="mxfp4").group_size  # a format with blocks brings its own
    32

    Raises:
        pydantic.ValidationError: Fields that contradict each other; its one line is in the message.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: str  #: a name in FORMATS
    granularity: Literal["token", "tensor", "group"] = "token"  #: what shares a scale
    group_size: int | None = Field(default=None, ge=1)  #: columns per group; "group" only
    static: bool = False  #: ranges come from calibration, not from the data; "tensor" only

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, fields: Any) -> Any:
        if not isinstance(fields, dict) or not isinstance(fields.get("format"), str):
            return fields
        format = _format(fields["format"])
        if format.block is None:
            return fields
        given = {key: value for key, value in fields.items() if value is not None}
        return {"granularity": "group", "group_size": format.block, **given}

    @model_validator(mode="after")
    def _check(self) -> "ActivationRecipe":
        format = self.format_obj
        if format.block is not None and self.granularity != "group":
            raise InputError(
                f"{format.name} has blocks of {format.block} columns, so granularity "
                f"{self.granularity!r} must be 'group'; leave it out"
            )
        if self.granularity == "group":
            if self.group_size is None:
                raise InputError("granularity 'group' needs a group_size; 128 is usual")
            format.check_group_size(self.group_size)
        elif self.group_size is not None:
            raise InputError(
                f"granularity {self.granularity!r} has no group_size (={self.group_size}); leave "
                "it out, or use granularity 'group'"
            )
        if self.static and self.granularity != "tensor":
            raise InputError(
                f"static ranges need granularity 'tensor', not {self.granularity!r}; a token's or "
                "group's range is known only when it comes"
            )
        if self.static and not _has_range(format):
            raise InputError(
                f"{format.name} takes more from the data than its range, so it cannot be static; "
                "leave -static out"
            )
        return self

    @property
    def format_obj(self) -> Format:
        """The format's row in FORMATS."""
        return FORMATS[self.format]

    @property
    def name(self) -> str:
        """The canonical name: equal recipes have equal names, and `parse_activation` reads them.

        >>> ActivationRecipe(format="int8-sym", granularity="tensor", static=True).name
        'a8-tensor-static'
        """
        name = f"a{_short(self.format_obj)}"
        if self.granularity == "tensor":
            return f"{name}-tensor{'-static' if self.static else ''}"
        if self.granularity == "group" and self.format_obj.block is None:
            return f"{name}-g{self.group_size}"
        return name


class KvRecipe(BaseModel):
    """How keys and values are quantised: each vector of a head at a position on its own.

    `scale_format` may be left out: it is then the format's own.

    >>> [KvRecipe(format=name).name for name in ("int8-sym", "int4-asym", "bitmod4")]
    ['kv8', 'kv4-asym', 'kv4-bitmod']

    Raises:
        pydantic.ValidationError: Fields that contradict each other; its one line is in the message.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: str  #: a name in FORMATS
    group_size: int | None = Field(default=None, ge=1)  #: None: the whole vector, or the block
    scale_format: ScaleFormat | None = None  #: filled in

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, fields: Any) -> Any:
        if not isinstance(fields, dict) or not isinstance(fields.get("format"), str):
            return fields
        format = _format(fields["format"])
        given = {key: value for key, value in fields.items() if value is not None}
        return {"group_size": format.block, "scale_format": format.scale_format, **given}

    @model_validator(mode="after")
    def _check(self) -> "KvRecipe":
        format = self.format_obj
        if format.scale_format == "e4m3":
            raise InputError(
                f"{format.name} has one scale for a whole tensor, and a cached vector must not "
                "depend on later ones; use mxfp4"
            )
        if self.group_size is not None:
            format.check_group_size(self.group_size)
        format.check_scale_format(str(self.scale_format))
        return self

    @property
    def format_obj(self) -> Format:
        """The format's row in FORMATS."""
        return FORMATS[self.format]

    @property
    def name(self) -> str:
        """The canonical name: equal recipes have equal names, and `parse_kv` reads them.

        >>> KvRecipe(format="bitmod3", group_size=32, scale_format="fp16").name
        'kv3-bitmod-g32-s16'
        """
        format = self.format_obj
        name = f"kv{_short(format)}"
        if self.group_size is not None and format.block is None:
            name += f"-g{self.group_size}"
        if self.scale_format != format.scale_format:
            name += "-s8" if self.scale_format == "int8" else "-s16"
        return name

    def stored_bits(self, vectors: int, head_dim: int) -> int:
        """Bits that so many vectors take, keys or values, all metadata counted.

        >>> KvRecipe(format="int4-asym").stored_bits(2, 64)  # 2 * (64*4 + 16 + 4)
        552
        """
        return self.format_obj.stored_bits(vectors, head_dim, self.group_size, self.scale_format)


def parse_activation(text: str) -> ActivationRecipe:
    """The recipe of this name.

    Raises:
        InputError: No such recipe (says the nearest names), or one that contradicts itself. "a16"
            is none: it leaves activations as they are, which is the caller's business.

    >>> parse_activation("a8") == ActivationRecipe(format="int8-sym")
    True
    >>> parse_activation("a8-fp-e4m3-tensor").granularity
    'tensor'
    """
    match = re.fullmatch(
        r"a(?P<short>.+?)(?:-g(?P<group>[0-9]{1,9})|(?P<tensor>-tensor)(?P<static>-static)?)?", text
    )
    if match is None or match["short"] not in _names():
        raise InputError(f"unknown activations {text!r}; {_nearest(text, 'a')}")
    fields: dict[str, Any] = {"format": _names()[match["short"]]}
    if match["group"] is not None:
        fields |= {"granularity": "group", "group_size": _group(text, match["group"])}
    elif match["tensor"] is not None:
        fields |= {"granularity": "tensor", "static": match["static"] is not None}
    try:
        return ActivationRecipe(**fields)
    except ValidationError as error:
        raise InputError(f"activations {text!r}: {_line(error)}") from None


def parse_kv(text: str) -> KvRecipe:
    """The recipe of this name.

    Raises:
        InputError: As `parse_activation`.

    >>> parse_kv("kv4-asym-g32").group_size, parse_kv("kv4-bitmod").scale_format
    (32, 'int8')
    """
    match = re.fullmatch(
        r"kv(?P<short>.+?)(?:-g(?P<group>[0-9]{1,9}))?(?:-(?P<suffix>s8|s16))?", text
    )
    if match is None or match["short"] not in _names():
        raise InputError(f"unknown keys and values {text!r}; {_nearest(text, 'kv')}")
    fields: dict[str, Any] = {
        "format": _names()[match["short"]],
        "group_size": None if match["group"] is None else _group(text, match["group"]),
        "scale_format": _SUFFIX.get(match["suffix"]),
    }
    try:
        return KvRecipe(**fields)
    except ValidationError as error:
        raise InputError(f"keys and values {text!r}: {_line(error)}") from None


def _format(name: str) -> Format:
    if name in FORMATS:
        return FORMATS[name]
    near = difflib.get_close_matches(name.lower(), list(FORMATS), n=3, cutoff=0.5)
    hint = f"nearest: {', '.join(near)}" if near else f"there are {', '.join(FORMATS)}"
    raise InputError(f"unknown format {name!r}; {hint}")


def _has_range(format: Format) -> bool:
    """Whether a group's largest and smallest number decide its scale and zero point.

    And whether the upper half of a number tells its level; those of NormalFloat have too many bits.
    """
    return (
        format.kind != "olive"
        and format.choices == 1
        and format.scale_rule == "absmax"
        and format.block is None
        and not (format.kind == "levels" and _midpoints(format)[1])
    )


def _midpoints(format: Format) -> tuple[np.ndarray, bool]:
    """Halves between neighbouring levels, float32, and whether any has more than 16 bits."""
    grid = np.array(format.grid(), np.float32)
    mids = (grid[1:] + grid[:-1]) / np.float32(2)
    return mids, bool((mids.view(np.uint32) & 0xFFFF).any())


def _short(format: Format) -> str:
    """A format's name with its bits in front, as in recipe names: "8", "4-asym", "8-fp-e4m3"."""
    match = re.fullmatch(r"([a-z]+?)([0-9]+b?)?(?:-(.+))?", format.name)
    assert match is not None
    stem, number, rest = match.groups()
    words = [number or str(format.bits), stem, rest]
    if stem == "int":
        words = [number, None if rest == "sym" else rest]
    return "-".join(word for word in words if word)


@lru_cache(maxsize=1)
def _names() -> dict[str, str]:
    """Short name to name in FORMATS; "8-int-sym" and "8-int-asym" are read as well."""
    full = {f"{_short(row)}": name for name, row in FORMATS.items()}
    for name, row in FORMATS.items():
        if row.kind in ("int-sym", "int-asym"):
            number, _, rest = name.removeprefix("int").partition("-")
            full[f"{number}-int-{rest}"] = name
    return full


def _group(text: str, digits: str) -> int:
    if int(digits) < 1:
        raise InputError(f"{text!r}: group size {digits} must be at least 1")
    return int(digits)


def _line(error: ValidationError) -> str:
    """The one line of an InputError that pydantic wrapped."""
    first = error.errors()[0]
    return str(first["ctx"]["error"]) if "error" in first.get("ctx", {}) else first["msg"]


def _nearest(text: str, prefix: str) -> str:
    if text == f"{prefix}16":
        return "16 bits are no recipe: leave it out"
    ends = ("", "-g64", "-g128", *(("-tensor", "-tensor-static") if prefix == "a" else ()))
    names = [f"{prefix}{_short(row)}{end}" for row in FORMATS.values() for end in ends]
    near = difflib.get_close_matches(text.lower(), names, n=3, cutoff=0.5)
    if near:
        return f"nearest: {', '.join(near)}"
    usual = {"a": "a8, a8-asym, a4-asym-g64 or a8-tensor", "kv": "kv8, kv4-asym or kv4-bitmod-g32"}
    return f"such names are {usual[prefix]}, for example"


# ------------------------------------------------------------------ quantisation


def quantize_activations(
    x: Any, recipe: ActivationRecipe, limits: tuple[float, float] | None = None
) -> QuantizedTensor:
    """Quantise the input of a linear layer, exactly as a PE takes it.

    Per token and per group it is `quantize`. Per tensor, one scale (and zero point) is chosen for
    all tokens by the same rules, so that the result is that of `quantize` on the array as one long
    row, in its own shape; every row of the tensor repeats the scale. With static ranges, `limits`
    take the place of the data's minimum and maximum: scale and zero point follow from them, and
    what lies outside saturates at the first or last code.

    NVFP4's float32 scale is that of the whole array, tokens together.

    Args:
        x: Finite activations [m, k] (token x channel): anything that numpy converts, or a torch
            tensor. Converted to float32 first.
        recipe: How.
        limits: Minimum and maximum of the static range, in the unit of `x`; a range that does not
            hold 0 is extended to it. For static recipes, and only for them.

    Returns:
        A tensor [m, k], tokens as rows.

    Raises:
        InputError: NaN or Inf in `x` (names token and channel), another shape, `limits` where there
            must be none or none where there must be some, or a scale outside float16.

    >>> static = parse_activation("a4-tensor-static")
    >>> qt = quantize_activations(np.array([[0.5, -9.0], [3.0, 8.0]]), static, limits=(-7.0, 2.0))
    >>> qt.codes, qt.group_scales  # the scale is 7/7; -9 and 8 saturate; 0.5 lies halfway to 0
    (array([[0, 9],
           [3, 7]], dtype=uint8), array([[1.],
           [1.]], dtype=float16))
    """
    acts, low, high = _finite(x)
    if recipe.static and limits is None:
        raise InputError(
            f"activations {recipe.name} need limits, the range that calibration has seen; see "
            "RangeObserver"
        )
    if limits is not None:
        if not recipe.static:
            raise InputError(
                f"activations {recipe.name} find their range themselves; leave limits out, or use "
                "a recipe with -static"
            )
        low, high = (np.float32(limit) for limit in limits)
        if not (np.isfinite(low) and np.isfinite(high) and low <= high):
            raise InputError(f"limits {limits} must be finite, the smaller one first")
    format = recipe.format_obj
    if recipe.granularity == "tensor":
        if not _has_range(format):
            return _flattened(acts, recipe)
        return _ranged(acts, recipe, low.reshape(1, 1), high.reshape(1, 1))
    if recipe.granularity == "token" and format.kind == "levels" and _has_range(format):
        # The same as `quantize`, which compares every number with every midpoint.
        ends = acts.min(axis=1, keepdims=True), acts.max(axis=1, keepdims=True)
        return _ranged(acts, recipe, *ends)
    # `group_size` beyond k is k, and so is "token".
    return _quantize(acts, recipe.name, format, recipe.group_size or acts.shape[1])


def fake_activations(
    x: "torch.Tensor", recipe: ActivationRecipe, limits: tuple[float, float] | None = None
) -> "torch.Tensor":
    """Activations as they are after quantising and dequantising.

    Args:
        x: Activations [..., k], k channels; all other axes are tokens. Gradients stop here.
        recipe: How.
        limits: As in `quantize_activations`.

    Returns:
        float32, in the shape and on the device of `x`.

    Raises:
        InputError: As `quantize_activations`; tokens are counted through all axes but the last.
    """
    import torch

    if x.ndim == 0 or x.numel() == 0:
        raise InputError(f"activations have shape {tuple(x.shape)}; [..., channels] is needed")
    rows = x.detach().reshape(-1, x.shape[-1])
    values = quantize_activations(rows, recipe, limits).dequantize()
    return torch.from_numpy(values).reshape(x.shape).to(x.device)


def fake_kv(y: "torch.Tensor", recipe: KvRecipe) -> "torch.Tensor":
    """Keys (after the rotary embedding) or values as they are read back from a quantised cache.

    Every vector of a head at a position is quantised on its own, in groups along the head, so that
    a vector never depends on later ones and a cache can be filled token by token.

    Args:
        y: Keys or values [batch, kv_heads, t, head_dim]. Gradients stop here.
        recipe: How; a group size beyond head_dim is head_dim.

    Returns:
        float32, in the shape and on the device of `y`.

    Raises:
        InputError: NaN or Inf (names where), another number of axes, or a scale outside float16.
    """
    import torch

    if y.ndim != 4 or y.numel() == 0:
        raise InputError(
            f"keys or values have shape {tuple(y.shape)}; [batch, kv_heads, t, head_dim] is needed"
        )
    rows, _, _ = _finite(y.detach().reshape(-1, y.shape[-1]), tuple(y.shape))
    size = recipe.group_size or y.shape[-1]
    qt = _quantize(rows, recipe.name, recipe.format_obj, size, recipe.scale_format)
    return torch.from_numpy(qt.dequantize()).reshape(y.shape).to(y.device)


class RangeObserver:
    """The smallest and the largest number seen, for static ranges.

    >>> observer = RangeObserver()
    >>> observer.update(np.array([[1.0, 3.0]]))
    >>> observer.update(np.array([2.0]))
    >>> observer.limits  # 0 is always inside
    (0.0, 3.0)
    """

    def __init__(self) -> None:
        self._low, self._high = math.inf, -math.inf

    def update(self, x: Any) -> None:
        """See more activations, of any shape: an array or a torch tensor.

        Raises:
            InputError: NaN or Inf (names token and channel), or no numbers at all.
        """
        array = np.atleast_1d(_array(x))
        _, low, high = _finite(array.reshape(-1, array.shape[-1]) if array.size else array)
        self._low, self._high = min(self._low, float(low)), max(self._high, float(high))

    @property
    def limits(self) -> tuple[float, float]:
        """Minimum and maximum of everything seen and of 0.

        Raises:
            InputError: Nothing was seen.
        """
        if self._low > self._high:
            raise InputError("no activations were seen; run calibration text through the model")
        return min(self._low, 0.0), max(self._high, 0.0)


def _array(x: Any) -> np.ndarray:
    torch = sys.modules.get("torch")  # a torch tensor can only come from a loaded torch
    if torch is not None and isinstance(x, torch.Tensor):
        x = x.detach().to("cpu", torch.float32).numpy()
    return np.asarray(x)


def _finite(
    x: Any, shape: tuple[int, ...] = ()
) -> tuple[Float32[np.ndarray, "m k"], np.float32, np.float32]:
    """A finite C-ordered matrix, its minimum and its maximum.

    `shape` is that of keys or values, if they are what `x` holds.
    """
    array = _array(x)
    if array.dtype.kind not in "fiub":
        raise InputError(f"activations have type {array.dtype}; real numbers are needed")
    if array.ndim != 2 or 0 in array.shape:
        raise InputError(f"activations have shape {array.shape}; [tokens, channels] is needed")
    with np.errstate(over="ignore"):  # what overflows float32 is reported below
        acts = np.ascontiguousarray(array, np.float32)
    low, high = acts.min(), acts.max()  # NaN if there is one
    if np.isfinite(low) and np.isfinite(high):
        return acts, low, high
    row, column = np.argwhere(~np.isfinite(acts))[0]
    where = f"activation of token {row}, channel {column}"
    if shape:
        batch, head, position = np.unravel_index(row, shape[:-1])
        where = f"key or value of batch {batch}, head {head}, position {position}, channel {column}"
    raise InputError(f"{where} is {array[row, column]}; finite float32 numbers are needed")


def _quantize(
    acts: Float32[np.ndarray, "m k"],
    name: str,
    format: Format,
    group_size: int,
    scale_format: ScaleFormat | None = None,
) -> QuantizedTensor:
    from .quantizer import quantize  # which needs recipes, and those need this module

    try:
        return quantize(acts, format, min(group_size, acts.shape[1]), scale_format)
    except InputError as error:
        raise InputError(f"{name}: {str(error).partition(';')[0]}; rescale x") from None


def _flattened(acts: Float32[np.ndarray, "m k"], recipe: ActivationRecipe) -> QuantizedTensor:
    """One scale for all, where more than the range decides it."""
    m, k = acts.shape
    if recipe.format_obj.kind == "olive" and k % 2 and m > 1:
        raise InputError(
            f"{recipe.name}: {recipe.format} codes columns in pairs, so k (={k}) must be even for "
            "one scale per tensor"
        )
    flat = _quantize(acts.reshape(1, -1), recipe.name, recipe.format_obj, acts.size)

    def every_row(of_tensor: np.ndarray | None) -> Any:
        return None if of_tensor is None else np.repeat(of_tensor, m, axis=0)

    return QuantizedTensor(
        format=flat.format,
        group_size=k,
        codes=flat.codes.reshape(m, k),
        scale_format=flat.scale_format,
        group_scales=every_row(flat.group_scales),
        channel_scales=every_row(flat.channel_scales),
        zero_points=every_row(flat.zero_points),
        selectors=every_row(flat.selectors),
    )


def _ranged(
    acts: Float32[np.ndarray, "m k"],
    recipe: ActivationRecipe,
    low: Float32[np.ndarray, "rows 1"],
    high: Float32[np.ndarray, "rows 1"],
) -> QuantizedTensor:
    """Scales from ranges, of every token or one for all; operations as in `algorithms/rtn.py`."""
    format = recipe.format_obj
    low, high = np.minimum(low, np.float32(0)), np.maximum(high, np.float32(0))
    zeros = np.zeros_like(low)
    with np.errstate(over="ignore"):
        if format.zero_point_bits:
            qmax = np.float32(format.qmax)
            deltas = (high - low) / qmax
            zeros = np.clip(np.rint(-low / np.where(deltas == 0, np.float32(1), deltas)), 0, qmax)
        else:
            deltas = np.maximum(-low, high) / np.float32(format.absmax())
        stored = deltas.astype(np.float16)
    wrong = ~np.isfinite(stored) | ((stored == 0) & (deltas > 0))
    if wrong.any():
        row = int(np.argmax(wrong))
        which = f"of row {row}, group 0 " if recipe.granularity == "token" else ""
        raise InputError(
            f"{recipe.name}: the scale {which}(={deltas[row, 0]:.3g}) is outside FP16 "
            "(6e-08 .. 65504); rescale x"
        )
    m, k = acts.shape
    repeats = m // len(low)
    points = np.repeat(zeros.astype(np.uint8), repeats, axis=0)
    return QuantizedTensor(
        format=format,
        group_size=k,
        codes=_round(acts, format, deltas, zeros),
        scale_format="fp16",
        group_scales=np.repeat(stored, repeats, axis=0),
        zero_points=points if format.zero_point_bits else None,
    )


def _round(
    acts: Float32[np.ndarray, "m k"],
    format: Format,
    deltas: Float32[np.ndarray, "rows 1"],
    zeros: Float32[np.ndarray, "rows 1"],
) -> UInt8[np.ndarray, "m k"]:
    """Codes under scales, one per token or one for all, that may be too small: then they saturate.

    Under a scale of 0 all codes are 0.
    """
    m, k = acts.shape
    codes = np.empty((m, k), np.uint8)
    table = _code_table(format) if format.kind == "levels" else None
    divisors = np.broadcast_to(np.where(deltas == 0, np.float32(np.inf), deltas), (m, 1))
    zeros = np.broadcast_to(zeros, (m, 1))
    step = max(1, _BLOCK // k)
    with np.errstate(over="ignore", under="ignore"):
        for start in range(0, m, step):
            rows = slice(start, start + step)
            x = acts[rows] / divisors[rows]
            if table is not None:
                codes[rows] = table[_top_half(x)]
                continue
            q = np.rint(x)
            if format.kind == "int-sym":
                np.clip(q, -format.qmax, format.qmax, out=q)
                codes[rows] = q.astype(np.int8).view(np.uint8) & ((1 << format.bits) - 1)
                continue
            q += zeros[rows]
            np.clip(q, 0, format.qmax, out=q)
            codes[rows] = q
            if format.kind == "dint-asym":
                size = np.abs(x)
                near = (size > np.float32(0.25)) & (size < np.float32(0.75))
                codes[rows][near] = np.where(x[near] > 0, format.qmax + 1, format.qmax + 2)
    return codes


def _top_half(x: Float32[np.ndarray, "rows k"]) -> np.ndarray:
    """The upper 16 bits of each float32's pattern, that less one where x is above 0."""
    bits = x.view(np.int32)
    return (bits - (bits > 0)) >> 16 & 0xFFFF


@lru_cache(maxsize=64)
def _code_table(format: Format) -> UInt8[np.ndarray, " 65536"]:
    """Code of the nearest level, an exact midpoint to the lower one, by `_top_half`.

    A midpoint m has no more bits than the upper half of a float32 (levels have few). So x > m can
    be told from that half: for positive x the pattern before x has an upper half of m's or more;
    for negative x, whose patterns count downwards, x's own has less than m's.
    """
    grid = np.array(format.grid(), np.float32)
    mids = (grid[1:] + grid[:-1]) / np.float32(2)
    assert not (mids.view(np.uint32) & 0xFFFF).any()
    halves = (np.arange(1 << 15, dtype=np.uint32) << 16).view(np.float32)
    ranks = (
        np.searchsorted(mids, halves, side="right"),  # midpoints up to the pattern's number
        np.searchsorted(mids, -halves, side="left"),  # midpoints below it
    )
    return np.array(format.grid_codes(), np.uint8)[np.concatenate(ranks)]
