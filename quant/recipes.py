"""Recipes: one name that says how a model is quantised.

Grammar: `fp16`, `mxfp4`, `mxint8`, `nvfp4`, or `w{bits}[g{group}][a{bits}]-{type}[-s8|-s16]`,
where

- bits and type name a format: int-sym and int-asym (2 .. 8 bits; 2b and 1b: with bit balance),
  dint-sym and dint-asym (3 .. 8 bits), fp, fp-er, fp-ea and bitmod (3 and 4 bits), fp-e2m3 and
  fp-e3m2 (6 bits), fp-e4m3 and fp-e5m2 (8 bits), ternary (2 bits), binary (1 bit), flint (4 and 5
  bits), pot, ant and olive (4 bits);
- group is the number of columns per group; without it a row is one group ("per channel");
- a8 quantises the inputs of the linears, to symmetric integers per token, chosen as they come;
- s8 and s16 say how group scales are stored: INT8 with a channel scale, or FP16. Without them
  BitMoD takes s8 and all other formats s16, and the name leaves the default out.

Behind it, each with a "+": another way to quantise activations (`+a8-asym`, `+a8-tensor-static`,
`activations.py`), the key-value cache (`+kv4-asym`), and algorithms in the order in which they run
(`+awq`, `+gptq:act_order=true`, `algorithms/`). `+formats:choose=bitmod4|int8-sym,map=0110...`
gives every linear a format of its own (`algorithms/format_map.py`).

Short aliases mean group 128: a format name (`bitmod3`, `int4-asym`, `fp4-er`, `ternary`), and
`int4` for `int4-sym`, `dint4` for `dint4-sym`. `w4a8-dint` and `w4-int` leave "-sym" out.
`w2a8-abq` and `w2*a8-abq` are ABQ-LLM's: asymmetric integers, weights per channel, with `+abq`.
Formats with a fixed block have that block as their group and their own scales, so their name says
all.
"""

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializeAsAny,
    ValidationError,
    field_validator,
    model_validator,
)

from .activations import ActivationRecipe, KvRecipe, parse_activation, parse_kv
from .algorithms import ALGORITHMS, algorithm_class
from .algorithms.base import Algorithm
from .errors import InputError
from .formats import FORMATS, Format, ScaleFormat

if TYPE_CHECKING:
    from .algorithms.format_map import FormatMap
    from .algorithms.hadamard import Hadamard
    from .algorithms.llm_pruner import LlmPruner
    from .algorithms.random_hadamard import Turn
    from .algorithms.vqlogits import VqLogits

_ALIAS_GROUP = 128
#: Formats whose names have no number: the words say how many bits.
_NUMBERLESS = ("binary", "ternary")
#: How names with a number behind a hyphen are written in labels.
_WRITTEN = {"bitmod": "BitMoD", "ant": "ANT", "flint": "flint", "olive": "OliVe", "pot": "PoT"}
_SUFFIX: dict[str, ScaleFormat] = {"s8": "int8", "s16": "fp16"}
_NAME = re.compile(
    r"w(?P<bits>[0-9]{1,2}[b*]?)(?:g(?P<group>-?[0-9]{1,9}))?(?:a(?P<act>[0-9]{1,2}))?"
    r"-(?P<type>[a-z0-9-]+?)(?:-(?P<suffix>s8|s16))?"
)
#: Types that stand for asymmetric integers and an algorithm.
_METHODS = ("abq", "omniquant")


class Recipe(BaseModel):
    """How a model is quantised: checked and immutable.

    `name` and `scale_format` may be left out: they follow from the rest, and a name that disagrees
    with the rest is refused.

    >>> Recipe(format="bitmod3", group_size=64).name
    'w3g64-bitmod'
    >>> resolve_recipe("int4-asym").model_dump()  # doctest: +NORMALIZE_WHITESPACE
    {'name': 'w4g128-int-asym', 'format': 'int4-asym', 'group_size': 128, 'scale_format': 'fp16',
     'activations': None, 'kv': None, 'steps': ()}
    >>> resolve_recipe("w4a8-dint+awq:clip=false+gptq").steps  # doctest: +NORMALIZE_WHITESPACE
    (Awq(name='awq', scale=True, clip=False, grid=20), GptqStep(name='gptq', act_order=False,
     damping=0.01))
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = ""  #: canonical: equal recipes have equal names
    format: str | None  #: a name in FORMATS; None leaves the weights in FP16
    group_size: int | None = Field(default=None, ge=1)  #: None: one group per row, or the block
    scale_format: ScaleFormat | None = None  #: None only for fp16
    activations: ActivationRecipe | None = None  #: inputs of the linears; None: as they are
    kv: KvRecipe | None = None  #: keys and values; None: as they are
    steps: tuple[SerializeAsAny[Algorithm], ...] = ()  #: algorithms, in order

    @field_validator("steps", mode="before")
    @classmethod
    def _named_steps(cls, steps: Any) -> Any:
        if not isinstance(steps, list | tuple):
            return steps
        return tuple(_step(**step) if isinstance(step, Mapping) else step for step in steps)

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
            return fields
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
        return {**fields, "group_size": group_size, "scale_format": scale_format}

    @model_validator(mode="after")
    def _check(self) -> "Recipe":
        _check_formatless(self.format, self.steps)
        _check_order(self.steps)
        _check_map(self.format, self.group_size, self.scale_format, self.steps)
        _check_together(self.format, self.activations, self.steps)
        canonical = self._canonical()
        if self.name not in ("", canonical):
            raise InputError(f"name {self.name!r} disagrees with the recipe {canonical!r}")
        object.__setattr__(self, "name", canonical)
        return self

    def _canonical(self) -> str:
        format, act = self.format_obj, self.activations
        # "a8" alone stands in the head, where there is one with room for it.
        in_head = act is not None and re.fullmatch(r"a[0-9]", act.name) is not None
        in_head = in_head and format is not None and format.block is None
        written = "" if act is None else act.name
        own = self.own_form
        parts = ["fp16" if own is None else own.written()]
        if format is not None:
            assert self.scale_format is not None
            parts = [_name(format, self.group_size, self.scale_format, written if in_head else "")]
        if written and not in_head:
            parts.append(written)
        if self.kv is not None:
            parts.append(self.kv.name)
        return "+".join([*parts, *(step.written() for step in self.steps if step is not own)])

    @property
    def weights_only(self) -> "Recipe":
        """The same weight format, rounded to nearest, with float activations."""
        return Recipe(
            format=self.format, group_size=self.group_size, scale_format=self.scale_format
        )

    @property
    def plain(self) -> bool:
        """Whether only weights are quantised, each tensor on its own: no data is needed."""
        return self.activations is None and self.kv is None and not self.steps

    @property
    def rotation(self) -> "Hadamard | None":
        """The step that rotates the residual stream, if there is one."""
        return next((step for step in self.steps if step.phase == "rotate"), None)  # type: ignore[return-value]

    @property
    def head(self) -> "VqLogits | None":
        """The step that changes the output layer, if there is one."""
        return next((step for step in self.steps if step.phase == "head"), None)  # type: ignore[return-value]

    @property
    def input_turn(self) -> "Turn | None":
        """How hardware turns the inputs of linears whose weights are turned, if they are."""
        return next((step.turn for step in self.steps if step.name == "rht"), None)  # type: ignore[attr-defined]

    @property
    def structure(self) -> "LlmPruner | None":
        """The step that makes the model smaller, if there is one."""
        return next((step for step in self.steps if step.phase == "structure"), None)  # type: ignore[return-value]

    @property
    def without_structure(self) -> "Recipe":
        """What is left to do with the smaller model."""
        steps = tuple(step for step in self.steps if step.phase != "structure")
        return Recipe(
            format=self.format,
            group_size=self.group_size,
            scale_format=self.scale_format,
            activations=self.activations,
            kv=self.kv,
            steps=steps,
        )

    @property
    def needs_data(self) -> bool:
        """Whether it is calibrated: a step looks at data, or activations have static ranges."""
        static = self.activations is not None and self.activations.static
        return static or any(step.needs_data for step in self.steps)

    @property
    def own_form(self) -> Algorithm | None:
        """The step that gives weights a form of its own, in place of a format, if there is one."""
        return next((step for step in self.steps if step.own_form), None)

    @property
    def keeps_weights(self) -> bool:
        """Whether the weights of linears stay FP16 matrices."""
        return self.format is None and not self.compressed

    @property
    def compressed(self) -> bool:
        """Whether matrices are stored in a method's form, as `CompressedMatrix`."""
        return any(step.own_form or step.own_storage or step.prunes for step in self.steps)

    def require_codes(self) -> None:
        """Refuse recipes whose matrices' sizes are known from a model's weights only.

        Raises:
            InputError: Matrices in a form of their own, or a model that becomes smaller.
        """
        if self.structure is not None:
            raise InputError(
                f"recipe {self.name} makes the model smaller, which depends on its weights; use "
                "bitwright codesign --recipes with a model"
            )
        if self.compressed:
            raise InputError(
                f"recipe {self.name} stores weights in a form of its own, whose size and cost "
                "depend on the weights; use bitwright codesign --recipes with a model"
            )

    @property
    def format_map(self) -> "FormatMap | None":
        """The step that gives every linear a format of its own, if there is one."""
        return next((step for step in self.steps if step.name == "formats"), None)  # type: ignore[return-value]

    def uniform_of(self, layer: int, linear: str) -> "Recipe":
        """What rounds one linear's weights: its own format, or the recipe's."""
        if self.format_map is None:
            return self.weights_only
        name = self.format_map.format_of(layer, linear)
        if FORMATS[name].block is not None:  # which has its own groups and scales
            return Recipe(format=name)
        return Recipe(format=name, group_size=self.group_size, scale_format=self.scale_format)

    @property
    def format_obj(self) -> Format | None:
        """The format's row in FORMATS; None for fp16."""
        return None if self.format is None else FORMATS[self.format]

    @property
    def nominal_bits(self) -> int:
        """Bits of one weight code, metadata left out; 16 for fp16.

        Of matrices in a method's form `QuantizedModel.nominal_bits` tells.
        """
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
        own = self.own_form
        if format is None:
            words = ["FP16" if own is None else own.short()]
        else:
            words = [_format_label(format)]
            if format.block is None and self.group_size is None:
                words.append("per channel")
            elif format.block is None and self.group_size != _ALIAS_GROUP:
                words.append(f"g{self.group_size}")
            if self.scale_format != format.scale_format:
                words.append("s8" if self.scale_format == "int8" else "s16")
        if self.activations is not None:
            words.append(self.activations.name.upper())
        if self.kv is not None:
            words.append(self.kv.name.upper())
        others = (f"+ {step.short()}" for step in self.steps if step is not own)
        return " ".join([*words, *others])

    def stored_bits(self, n: int, k: int) -> int:
        """Bits that an [n, k] weight matrix takes under this recipe, all metadata counted.

        >>> [resolve_recipe(name).stored_bits(1, 128) for name in ("fp16", "bitmod3")]
        [2048, 426]
        """
        self.require_codes()
        if self.format_obj is None:
            return 16 * n * k
        return self.format_obj.stored_bits(n, k, self.group_size, self.scale_format)


def resolve_recipe(text: str | Recipe) -> Recipe:
    """The recipe of this name or alias; a recipe is returned as it is.

    Raises:
        InputError: No such recipe (says the nearest names), a group below 1, or an algorithm or
            option that there is not.

    >>> resolve_recipe("w3g64-bitmod-s16").scale_format, resolve_recipe("bitmod3").name
    ('fp16', 'w3g128-bitmod')
    >>> resolve_recipe("w2*a8-abq").name, resolve_recipe("w4a8-dint").name
    ('w2b-int-asym+a8-asym+abq', 'w4a8-dint-sym')
    """
    if isinstance(text, Recipe):
        return text
    head, *parts = text.split("+")
    own = _own_form(head, text)
    fields: dict[str, Any] = {"format": None}
    method = ""
    if not own:
        fields, method = _head(head, text)
    steps: list[Algorithm] = []
    for part in [*([method] if method else []), *parts]:
        if re.match(r"a[0-9]", part):
            if fields.get("activations"):
                raise InputError(f"recipe {text!r} quantises activations twice; keep one of them")
            fields["activations"] = parse_activation(part)
        elif re.match(r"kv[0-9]", part):
            if fields.get("kv"):
                raise InputError(f"recipe {text!r} quantises the cache twice; keep one of them")
            fields["kv"] = parse_kv(part)
        else:
            steps.append(_parse_step(part, text))
    last = next((i for i, step in enumerate(steps) if step.phase == "head"), len(steps))
    steps[last:last] = own
    try:
        _check_formatless(fields["format"], steps)
        _check_order(steps)
        _check_map(fields["format"], fields.get("group_size"), fields.get("scale_format"), steps)
        _check_together(fields["format"], fields.get("activations"), steps)
    except InputError as error:
        raise InputError(f"recipe {text!r}: {error}") from None
    return Recipe(**fields, steps=tuple(steps))


def _own_form(head: str, text: str) -> list[Algorithm]:
    """The step that a name begins with in place of a format; empty if it begins with a format."""
    name = head.partition(":")[0]
    if name not in ALGORITHMS or not algorithm_class(name).own_form:
        return []
    return [_parse_step(head, text)]


def _head(head: str, text: str) -> tuple[dict[str, Any], str]:
    """The fields that the part before the first "+" gives, and the algorithm it stands for."""
    if head == "fp16":
        return {"format": None}, ""
    alias = f"{head}-sym" if re.fullmatch(r"d?int[0-9]", head) else head
    if alias in FORMATS:
        return {"format": alias, "group_size": FORMATS[alias].block or _ALIAS_GROUP}, ""
    weights, colon, options = head.partition(":")
    match = _NAME.fullmatch(weights)
    kind, method = ("", "") if match is None else (match["type"], "")
    if kind in _METHODS:
        kind, method = "int-asym", kind + colon + options
    elif colon:  # options belong to an algorithm
        match = None
    elif kind in ("int", "dint"):
        kind = f"{kind}-sym"
    format = None if match is None else _format_name(match["bits"].replace("*", "b"), kind)
    if match is None or format not in FORMATS:
        raise InputError(f"unknown recipe {text!r}; {_nearest(head, _examples())}")
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
        act = None
        if match["act"] is not None and match["act"] != "16":
            act = parse_activation(f"a{match['act']}" + ("-asym" if method else ""))
    except InputError as error:
        raise InputError(f"recipe {text!r}: {error}") from None
    fields = {"format": format, "group_size": group, "scale_format": scale_format}
    return {**fields, "activations": act}, method


def _parse_step(part: str, text: str) -> Algorithm:
    """ "gptq:act_order=true,damping=0.05" as an algorithm."""
    name, _, written = part.partition(":")
    options: dict[str, Any] = {}
    for item in written.split(",") if written else []:
        key, equals, value = item.partition("=")
        if not equals or not key:
            raise InputError(
                f"recipe {text!r}: {item!r} is no option; write {name}:key=value,key=value"
            )
        options[key] = tuple(value.split("|")) if "|" in value else value
    try:
        return _step(name=name, **options)
    except InputError as error:
        raise InputError(f"recipe {text!r}: {error}") from None


def _step(name: str = "", **options: Any) -> Algorithm:
    if name not in ALGORITHMS:
        raise InputError(f"unknown algorithm {name!r}; there are {', '.join(ALGORITHMS)}")
    kind = algorithm_class(name)
    try:
        algorithm: Algorithm = kind(**options)
    except ValidationError as error:
        first = error.errors()[0]
        if first["type"] == "value_error" and not first["loc"]:  # of options together
            raise InputError(first["msg"].removeprefix("Value error, ")) from None
        option = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            known = ", ".join(key for key in kind.model_fields if key != "name")
            raise InputError(f"algorithm {name} has no option {option!r}; it has {known}") from None
        raise InputError(
            f"option {option} of {name} is {first['input']!r}: "
            f"{first['msg'].lower().removeprefix('value error, ')}"
        ) from None
    return algorithm


def _check_formatless(format: str | None, steps: Iterable[Algorithm]) -> None:
    """Without a format only what needs none; a form of its own only without a format.

    Raises:
        InputError: A step that has nothing to work on.
    """
    own = next((step.name for step in steps if step.own_form), None)
    if format is not None:
        if own is not None:
            raise InputError(
                f"{own} has its own form of weights and takes no {format}; begin the recipe with "
                f"{own}"
            )
        return
    pruning = next((step.name for step in steps if step.prunes), None)
    if own is not None and pruning is not None:
        raise InputError(f"{own} has its own form of weights; it does not go with {pruning}")
    compressed = own is not None or pruning is not None
    for step in steps:
        if step.needs_format:
            if own is not None:
                raise InputError(f"{step.name} needs a weight format; it does not go with {own}")
            raise InputError(f"fp16 leaves weights as they are; {step.name} has nothing to do")
        if not compressed and step.phase not in ("structure", "rotate", "head"):
            raise InputError(f"fp16 leaves weights as they are; {step.name} has nothing to do")


def _check_order(steps: Iterable[Algorithm]) -> None:
    """Rotation first, rounding behind what prepares it, the output layer last; each once.

    Raises:
        InputError: Another order.
    """
    order = {"structure": 0, "rotate": 1, "prepare": 2, "round": 3, "head": 4}
    seen: list[Algorithm] = []
    for step in steps:
        if any(step.name == other.name for other in seen):
            raise InputError(f"{step.name} stands twice; keep one of them")
        if seen and order[step.phase] < order[seen[-1].phase]:
            raise InputError(f"{step.name} must come before {seen[-1].name}; write it first")
        pruned = next((other.name for other in seen if other.prunes), None)
        if pruned is not None and step.prunes:
            raise InputError(f"{pruned} and {step.name} both take weights out; keep one of them")
        both = seen and step.block_formats and seen[-1].block_formats  # each says one thing
        if seen and step.phase == "round" == seen[-1].phase and not both:
            raise InputError(f"{seen[-1].name} and {step.name} both choose codes; keep one of them")
        seen.append(step)
    learned = next((step.name for step in seen if step.one_format), None)
    if learned is not None and any(step.name == "formats" for step in seen):
        raise InputError(f"{learned} learns for one format; it does not go with formats")


def _check_together(
    format: str | None, activations: ActivationRecipe | None, steps: Iterable[Algorithm]
) -> None:
    """Steps for block formats find one, and what says which steps it goes with finds no other.

    Raises:
        InputError: Another format or step, or ranges of inputs that are turned afterwards.
    """
    steps = tuple(steps)
    for step in steps:
        if step.block_formats and (format is None or FORMATS[format].block is None):
            names = [row.name for row in FORMATS.values() if row.block is not None]
            raise InputError(
                f"{step.name} works on formats with a fixed block, not on {format or 'fp16'}; "
                f"begin the recipe with one of {', '.join(names)}"
            )
        for other in steps:
            if step.goes_with is not None and other.name not in (step.name, *step.goes_with):
                fine = [name for name in step.goes_with if name != step.name]
                raise InputError(
                    f"{step.name} does not go with {other.name}; it goes with {', '.join(fine)}"
                )
        if step.name == "rht" and activations is not None and activations.static:
            raise InputError(
                f"rht turns inputs, whose ranges are then others than the static ones of "
                f"{activations.name}; leave -static out"
            )


def _check_map(
    own: str | None, group: int | None, scales: ScaleFormat | None, steps: Iterable[Algorithm]
) -> None:
    """A map of formats uses the recipe's own format, and all of them take its groups and scales.

    Raises:
        InputError: Another one.
    """
    for step in steps:
        if step.name != "formats":
            continue
        names = step.choose  # type: ignore[attr-defined]
        if own not in names:
            raise InputError(
                f"the map of formats does not use the recipe's own, {own}; begin the recipe with "
                f"one of {', '.join(names)}"
            )
        rows = [FORMATS[name] for name in names if FORMATS[name].block is None]
        if rows and own is not None and FORMATS[own].block is not None:
            raise InputError(
                f"{own} has its own groups and says none for {rows[0].name}; begin the recipe "
                f"with {rows[0].name}"
            )
        for row in rows:
            row.check_group_size(group or _ALIAS_GROUP)
            row.check_scale_format(scales or row.scale_format)


def _format_name(bits: str, kind: str) -> str:
    """ "int-asym" and 4 give "int4-asym"; "bitmod" and 3 "bitmod3"; "ternary" and 2 "ternary"."""
    if kind in _NUMBERLESS and bits == str(FORMATS[kind].bits):
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


def _name(format: Format, group_size: int | None, scale_format: str, act: str = "") -> str:
    if format.block is not None:
        return format.name
    stem, dash, rest = format.name.partition("-")
    number = re.search(r"[0-9]+b?$", stem)
    bits = str(format.bits) if number is None else number[0]
    group = "" if group_size is None else f"g{group_size}"
    suffix = {"int8": "-s8", "fp16": "-s16"}.get(scale_format, "")
    return (
        f"w{bits}{group}{act}-{stem.removesuffix(bits)}{dash}{rest}"
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
