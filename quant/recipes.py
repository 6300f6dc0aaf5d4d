"""Recipes: one name that says how a model's weights are quantised.

Grammar: `fp16`, `mxfp4`, `mxint8`, `nvfp4`, or `w{bits}[g{group}]-{type}[-s8|-s16]`, where

- bits and type name a format: int-sym and int-asym (2 .. 8 bits), dint-sym and dint-asym (3 .. 8
  bits), fp, fp-er, fp-ea and bitmod (3 and 4 bits), fp-e2m3 and fp-e3m2 (6 bits), ternary (2 bits),
  binary (1 bit), flint (4 and 5 bits), pot, ant and olive (4 bits);
- group is the number of columns per group; without it a row is one group ("per channel");
- s8 and s16 say how group scales are stored: INT8 with a channel scale, or FP16. Without them
  BitMoD takes s8 and all other formats s16, and the name leaves the default out.

Short aliases mean group 128: a format name (`bitmod3`, `int4-asym`, `fp4-er`, `ternary`), and
`int4` for `int4-sym`, `dint4` for `dint4-sym`. Formats with a fixed block have that block as their
group and their own scales, so their name says all.
"""

import difflib
import re
from collections.abc import Iterable
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from .errors import InputError
from .formats import FORMATS, Format, ScaleFormat

_ALIAS_GROUP = 128
#: Formats whose names have no number: the words say how many bits.
_NUMBERLESS = ("binary", "ternary")
#: How names with a number behind a hyphen are written in labels.
_WRITTEN = {"bitmod": "BitMoD", "ant": "ANT", "flint": "flint", "olive": "OliVe", "pot": "PoT"}
_SUFFIX: dict[str, ScaleFormat] = {"s8": "int8", "s16": "fp16"}
_NAME = re.compile(
    r"w(?P<bits>[0-9]{1,2})(?:g(?P<group>-?[0-9]{1,9}))?-(?P<type>[a-z0-9-]+?)"
    r"(?:-(?P<suffix>s8|s16))?"
)


class Recipe(BaseModel):
    """How the block linear layers of a model are quantised; checked and immutable.

    `name` and `scale_format` may be left out: they follow from the rest, and a name that disagrees
    with the rest is refused.

    >>> Recipe(format="bitmod3", group_size=64).name
    'w3g64-bitmod'
    >>> resolve_recipe("int4-asym").model_dump()  # doctest: +NORMALIZE_WHITESPACE
    {'name': 'w4g128-int-asym', 'format': 'int4-asym', 'group_size': 128, 'scale_format': 'fp16',
     'algorithm': 'rtn'}
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = ""  #: canonical: equal recipes have equal names
    format: str | None  #: a name in FORMATS; None leaves the weights in FP16
    group_size: int | None = Field(default=None, ge=1)  #: None: one group per row, or the block
    scale_format: ScaleFormat | None = None  #: None only for fp16
    algorithm: Literal["rtn"] = "rtn"

    @model_validator(mode="before")
    @classmethod
    def _complete(cls, fields: Any) -> Any:
        if not isinstance(fields, dict):
            return fields
        name = fields.get("format")
        if name is None:
            unused = [field for field in ("group_size", "scale_format") if fields.get(field)]
            if unused:
                raise InputError(f"fp16 has no {' and no '.join(unused)}")
            if fields.get("name") not in (None, "", "fp16"):
                raise InputError(f"name {fields['name']!r} disagrees with the recipe 'fp16'")
            return {**fields, "name": "fp16"}
        if name not in FORMATS:
            raise InputError(f"unknown format {name!r}; {_nearest(str(name), FORMATS)}")
        format = FORMATS[name]
        scale_format = fields.get("scale_format") or format.scale_format
        group_size = fields.get("group_size")
        if group_size is None:
            group_size = format.block
        if isinstance(group_size, int) and group_size > 0:
            format.check_group_size(group_size)
        if isinstance(scale_format, str):
            format.check_scale_format(scale_format)
        canonical = _name(format, group_size, scale_format)
        if fields.get("name") not in (None, "", canonical):
            raise InputError(f"name {fields['name']!r} disagrees with the recipe {canonical!r}")
        return {
            **fields,
            "name": canonical,
            "group_size": group_size,
            "scale_format": scale_format,
        }

    @property
    def format_obj(self) -> Format | None:
        """The format's row in FORMATS; None for fp16."""
        return None if self.format is None else FORMATS[self.format]

    @property
    def nominal_bits(self) -> int:
        """Bits of one weight code, metadata left out; 16 for fp16."""
        return 16 if self.format_obj is None else self.format_obj.bits

    @property
    def label(self) -> str:
        """Short name for tables and figures.

        >>> names = ("fp16", "bitmod3", "w4-int-asym", "w6g32-fp-e2m3-s8")
        >>> [resolve_recipe(name).label for name in names]
        ['FP16', 'BitMoD-3', 'INT4-asym per channel', 'FP6-E2M3 g32 s8']
        >>> [resolve_recipe(name).label for name in ("dint4", "w2-ternary", "w4-olive", "mxfp4")]
        ['dINT4-sym', 'Ternary per channel', 'OliVe-4 per channel', 'MXFP4']
        """
        format = self.format_obj
        if format is None:
            return "FP16"
        words = [_format_label(format)]
        if format.block is not None:
            return words[0]
        if self.group_size is None:
            words.append("per channel")
        elif self.group_size != _ALIAS_GROUP:
            words.append(f"g{self.group_size}")
        if self.scale_format != format.scale_format:
            words.append("s8" if self.scale_format == "int8" else "s16")
        return " ".join(words)

    def stored_bits(self, n: int, k: int) -> int:
        """Bits that an [n, k] weight matrix takes under this recipe, all metadata counted.

        >>> [resolve_recipe(name).stored_bits(1, 128) for name in ("fp16", "bitmod3")]
        [2048, 426]
        """
        if self.format_obj is None:
            return 16 * n * k
        return self.format_obj.stored_bits(n, k, self.group_size, self.scale_format)


def resolve_recipe(text: str | Recipe) -> Recipe:
    """The recipe of this name or alias; a recipe is returned as it is.

    Raises:
        InputError: No such recipe (says the nearest names), or a group below 1.

    >>> resolve_recipe("w3g64-bitmod-s16").scale_format, resolve_recipe("bitmod3").name
    ('fp16', 'w3g128-bitmod')
    """
    if isinstance(text, Recipe):
        return text
    if text == "fp16":
        return Recipe(format=None)
    alias = f"{text}-sym" if re.fullmatch(r"d?int[0-9]", text) else text
    if alias in FORMATS:
        return Recipe(format=alias, group_size=FORMATS[alias].block or _ALIAS_GROUP)
    match = _NAME.fullmatch(text)
    format = None if match is None else _format_name(int(match["bits"]), match["type"])
    if match is None or format not in FORMATS:
        raise InputError(f"unknown recipe {text!r}; {_nearest(text, _examples())}")
    group = None if match["group"] is None else int(match["group"])
    if group is not None and group < 1:
        raise InputError(
            f"recipe {text!r}: group size {group} must be at least 1; leave g{group} out for one "
            "group per row"
        )
    row, scale_format = FORMATS[format], _SUFFIX.get(match["suffix"])
    try:
        row.check_group_size(group or row.block or _ALIAS_GROUP)
        row.check_scale_format(scale_format or row.scale_format)
    except InputError as error:
        raise InputError(f"recipe {text!r}: {error}") from None
    return Recipe(format=format, group_size=group, scale_format=scale_format)


def _format_name(bits: int, kind: str) -> str:
    """ "int-asym" and 4 give "int4-asym"; "bitmod" and 3 "bitmod3"; "ternary" and 2 "ternary"."""
    if kind in _NUMBERLESS and bits == FORMATS[kind].bits:
        return kind
    stem, dash, rest = kind.partition("-")
    return f"{stem}{bits}{dash}{rest}"


def _format_label(format: Format) -> str:
    """A format's name as the field writes it: "BitMoD-3", "INT4-asym", "Ternary"."""
    stem = format.name.removesuffix(str(format.bits))
    if stem in _WRITTEN:
        return f"{_WRITTEN[stem]}-{format.bits}"
    if stem in _NUMBERLESS:
        return stem.capitalize()
    if stem.startswith("dint"):
        return f"dINT{format.name[4:]}"
    return format.name.upper().replace("-SYM", "-sym").replace("-ASYM", "-asym")


def _name(format: Format, group_size: int | None, scale_format: str) -> str:
    if format.block is not None:
        return format.name
    stem, dash, rest = format.name.partition("-")
    group = "" if group_size is None else f"g{group_size}"
    suffix = {"int8": "-s8", "fp16": "-s16"}.get(scale_format, "")
    return (
        f"w{format.bits}{group}-{stem.removesuffix(str(format.bits))}{dash}{rest}"
        f"{'' if scale_format == format.scale_format else suffix}"
    )


def _examples() -> list[str]:
    """Names to compare an unknown one with: every alias and every name at group 128."""
    formats = FORMATS.values()
    names = [_name(format, _ALIAS_GROUP, format.scale_format) for format in formats]
    short = [name.removesuffix("-sym") for name in FORMATS if name.endswith("-sym")]
    return ["fp16", *FORMATS, *short, *names]


def _nearest(text: str, names: Iterable[str]) -> str:
    near = difflib.get_close_matches(text.lower(), list(names), n=3, cutoff=0.5)
    if near:
        return f"nearest: {', '.join(near)}"
    return "recipes are called fp16, bitmod3, int4-asym or w4g64-int-sym, for example"
