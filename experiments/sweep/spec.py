"""The file of a sweep: its schema, and reading one.

    version: 1
    name: dram-and-array
    sampling: {method: grid}           # grid | list | random | latin-hypercube
    fixed: {shape: llama-2-7b}         # settings that all points share
    axes:                              # settings that differ
      recipe: [bitmod3, bitmod4]
      cols: {from: 16, to: 64, step: 16}
    constraints: ["rows * cols <= 1024", "area_mm2 <= 10"]

YAML is read by the safe loader, which makes plain values only. Everything is checked before any
point runs: keys, names, ranges, and that what objectives and constraints ask for is measured.
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from bitwright.quant import InputError, resolve_recipe

from .constraints import Constraint, parse_constraint
from .fields import RESULTS, SETTINGS, Needs
from .words import nearest, one_line, short

VERSION = 1  #: of the file's schema
_LARGEST_FILE = 16 * 2**20  # bytes
_MOST_POINTS = 2_000_000

Value = int | float | str | None


class _Part(BaseModel):
    """A mapping of the file: no unknown keys, nothing turned into another type."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, populate_by_name=True)


class Sampling(_Part):
    """How points are taken from the axes."""

    method: Literal["grid", "list", "random", "latin-hypercube"] = "grid"
    points: int | None = Field(
        default=None, ge=1, le=_MOST_POINTS
    )  #: of random and Latin hypercube

    @model_validator(mode="after")
    def _check(self) -> "Sampling":
        drawn = self.method in ("random", "latin-hypercube")
        if drawn and self.points is None:
            raise InputError(
                f"sampling.method {self.method} needs sampling.points, how many to draw"
            )
        if not drawn and self.points is not None:
            raise InputError(
                f"sampling.points is for random and latin-hypercube, not for {self.method}"
            )
        return self


class Range(_Part):
    """Numbers from one to another."""

    low: int | float = Field(alias="from")
    high: int | float = Field(alias="to")
    step: int | float | None = None  #: between neighbours
    count: int | None = Field(
        default=None, ge=1, le=_MOST_POINTS
    )  #: how many, both ends among them
    scale: Literal["linear", "log2"] = "linear"  #: log2: even steps of the logarithm


class Measure(_Part):
    """What is measured at each point."""

    accuracy: bool = False  #: perplexity of `model` under the recipe
    area: bool = True  #: from synthesis of the PE
    energy: bool = False  #: switching of the logic, on a model's own tensors
    tokens: int = Field(default=2048, ge=2)  #: that the perplexity reads
    window: int = Field(default=512, ge=2)  #: its context length
    text: str | None = None  #: UTF-8 file or wikitext2; None: the default text
    weights: str = "smollm2"  #: model on whose tensors energy is measured, for points without one
    energy_layers: int = Field(default=3, ge=1)  #: layers that stand for all


class Spec(_Part):
    """A sweep as its file says it."""

    version: Literal[1]
    name: str = "sweep"
    seed: int = Field(default=0, ge=0, lt=2**63)
    sampling: Sampling = Sampling()
    fixed: dict[str, Value] = {}
    axes: dict[str, Annotated[list[Value] | Range, Field(union_mode="left_to_right")]] = {}
    points: list[dict[str, Value]] = []
    constraints: list[str] = []
    measure: Measure = Measure()
    objectives: list[str] = []

    @property
    def parsed_constraints(self) -> list[Constraint]:
        """The constraints, read."""
        return [parse_constraint(text) for text in self.constraints]


# ------------------------------------------------------------------ reading


class _Loader(yaml.SafeLoader):
    """The safe loader; a key that stands twice is an error and not the last one's."""


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen = set()
    for key, _ in node.value:
        if isinstance(key, yaml.ScalarNode) and key.value in seen:
            raise yaml.constructor.ConstructorError(
                None, None, f"the key {key.value!r} stands twice", key.start_mark
            )
        seen.add(key.value if isinstance(key, yaml.ScalarNode) else id(key))
    return yaml.SafeLoader.construct_mapping(loader, node, deep=True)


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def read_yaml(path: str | Path, what: str) -> dict[str, Any]:
    """The mapping in a YAML file, safely loaded.

    Args:
        path: The file.
        what: It is, for messages: "sweep".

    Raises:
        InputError: It cannot be read, is no YAML, or holds no mapping.
    """
    path = Path(path)
    try:
        if path.stat().st_size > _LARGEST_FILE:
            raise InputError(f"{path} has {path.stat().st_size:,} bytes; no {what} is that long")
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"cannot read {path}: {error.strerror}; name the file of a {what}"
        ) from None
    except UnicodeDecodeError:
        raise InputError(f"{path} is not UTF-8 text; name the file of a {what}") from None
    try:
        document = yaml.load(text, _Loader)  # a SafeLoader
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = "" if mark is None else f", line {mark.line + 1}"
        reason = getattr(error, "problem", None) or str(error) or "nested too deeply"
        raise InputError(f"{path}{where}: no YAML: {one_line(reason)}") from None
    if not isinstance(document, dict):
        raise InputError(f"{path} holds no mapping; a {what} has keys like version: and name:")
    return document


def load_sweep(path: str | Path) -> Spec:
    """The sweep in a YAML file, checked.

    Raises:
        InputError: The file cannot be read, or something in it is unknown, out of range or
            contradicts the rest; the message names the file and the place.
    """
    document = read_yaml(path, "sweep")
    try:
        return parse_sweep(document)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def parse_sweep(document: Mapping[str, Any]) -> Spec:
    """A sweep from plain values, checked.

    Raises:
        InputError: As `load_sweep`.
    """
    version = document.get("version")
    if version is None:
        raise InputError(f"version is missing; write version: {VERSION} first")
    if type(version) is not int or version != VERSION:
        newer = type(version) is int and version > VERSION
        hint = "update bitwright to read it" if newer else f"write version: {VERSION}"
        raise InputError(f"version is {short(version)}, this bitwright reads {VERSION}; {hint}")
    _check_keys(document)
    try:
        spec = Spec.model_validate(dict(document))
    except ValidationError as error:
        raise InputError(_told(error)) from None
    _check_values(spec)
    _check_asked(spec)
    return spec


def _check_keys(document: Mapping[str, Any]) -> None:
    """Unknown keys, with the nearest known one."""
    _known(document, Spec.model_fields, "key")
    for name, part in (("sampling", Sampling), ("measure", Measure)):
        if isinstance(document.get(name), dict):
            _known(document[name], part.model_fields, f"key of {name}")
    for name in ("fixed", "axes"):
        if isinstance(document.get(name), dict):
            _known(document[name], SETTINGS, f"setting of {name}")
    for axis, value in _items(document.get("axes")):
        if isinstance(value, dict):
            _known(
                value, [f.alias or n for n, f in Range.model_fields.items()], f"key of axes.{axis}"
            )
        elif not isinstance(value, list):
            raise InputError(
                f"axes.{axis} is {short(value)}; a list or {{from, to, step}}, and a single value "
                "goes under fixed"
            )
    points = document.get("points")
    for place, point in enumerate(points if isinstance(points, list) else ()):
        if isinstance(point, dict):
            _known(point, SETTINGS, f"setting of points[{place}]")


def _items(value: Any) -> list[tuple[Any, Any]]:
    return list(value.items()) if isinstance(value, dict) else []


def _known(found: Mapping[Any, Any], known: Any, what: str) -> None:
    for name in found:
        if name not in known:
            raise InputError(nearest(name, known, what))


def _told(error: ValidationError) -> str:
    """The first thing that is wrong, on one line."""
    first = error.errors()[0]
    cause = first.get("ctx", {}).get("error")
    if isinstance(cause, InputError):
        return str(cause)
    # A value that is none of several types is told once, by its place, not by those types.
    place = ""
    for part in first["loc"]:
        if isinstance(part, int):
            place += f"[{part}]"
        elif part not in ("int", "float", "str", "Range") and not part.startswith("list["):
            place += f".{part}" if place else part
    reason = first["msg"][0].lower() + first["msg"][1:]
    return f"{place} is {short(first['input'])}: {reason}"


# ------------------------------------------------------------------ checking


def _check_values(spec: Spec) -> None:
    method = spec.sampling.method
    if method == "list":
        if spec.axes:
            raise InputError("sampling.method list takes points, not axes; leave axes out")
        if not spec.points:
            raise InputError("sampling.method list needs points: a list of settings each")
    elif spec.points:
        raise InputError(f"points go with sampling.method list, not with {method}; use axes")
    elif not spec.axes:
        raise InputError("there are no axes: name at least one setting with its values under axes")
    for name, value in spec.fixed.items():
        if name in spec.axes:
            raise InputError(f"{name} is in fixed and in axes; leave it in one of them")
        check_value(name, value, f"fixed.{name}")
    for name, axis in spec.axes.items():
        if isinstance(axis, Range):
            _check_range(name, axis, method)
            continue
        if not axis:
            raise InputError(f"axes.{name} is empty: a grid over it has no point; give it values")
        for place, value in enumerate(axis):
            check_value(name, value, f"axes.{name}[{place}]")
        if len(set(map(repr, axis))) < len(axis):
            raise InputError(f"axes.{name} has a value twice; leave one of them out")
    for place, point in enumerate(spec.points):
        for name, value in point.items():
            check_value(name, value, f"points[{place}].{name}")
    for place, row in enumerate(_rows(spec)):
        if row.get("shape") is None and row.get("model") is None:
            where = f"points[{place}]" if spec.points else "fixed"
            raise InputError(f"nothing to run: name a shape or a model in {where} or axes")
    _check_algorithms(spec)


def _check_algorithms(spec: Spec) -> None:
    """With no recipe an algorithm may give weights a form of its own: it has no cost in a sweep.

    A recipe and an algorithm that do not go together at all are left to their points.
    """
    seen = set()
    for place, row in enumerate(_rows(spec)):
        recipes, algorithms = (_listed(row.get(name)) for name in ("recipe", "algorithm"))
        where = f"points[{place}].algorithm" if spec.points else "algorithm"
        for recipe in recipes or [SETTINGS["recipe"].default]:
            for algorithm in algorithms:
                pair = (recipe or SETTINGS["recipe"].default, algorithm)
                if not algorithm or pair in seen:
                    continue
                seen.add(pair)
                try:
                    found = resolve_recipe("+".join(map(str, pair)))
                except InputError:
                    continue
                try:
                    found.require_codes()
                except InputError as error:
                    raise InputError(f"{where} {algorithm}: {error}") from None


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _rows(spec: Spec) -> list[dict[str, Any]]:
    """What is set: by each listed point, or by all axes together."""
    if spec.points:
        return [{**spec.fixed, **point} for point in spec.points]
    return [{**spec.fixed, **spec.axes}]


def check_value(name: str, value: Value, where: str) -> None:
    """Check one value of a setting.

    Raises:
        InputError: Another kind than the setting's, out of range, or an unknown name.
    """
    setting = SETTINGS[name]
    if value is None:
        return  # the default
    if setting.kind == "text":
        if not isinstance(value, str):
            raise InputError(f"{where} is {short(value)}; a text, in quotes if need be")
        try:
            setting.check(value)
        except InputError as error:
            raise InputError(f"{where}: {error}") from None
        return
    whole = setting.kind == "int"
    if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
        raise InputError(f"{where} is {short(value)}; {'a whole' if whole else 'a'} number")
    if not setting.least <= value <= setting.most:  # false for NaN too
        raise InputError(f"{where} is {value!r}; {setting.least:g} to {setting.most:g}")


def _check_range(name: str, axis: Range, method: str) -> None:
    where, setting = f"axes.{name}", SETTINGS[name]
    if setting.kind == "text":
        raise InputError(f"{where} is a range, but {name} takes names; give a list")
    check_value(name, axis.low, f"{where}.from")
    check_value(name, axis.high, f"{where}.to")
    if axis.high < axis.low:
        raise InputError(
            f"{where} goes from {axis.low} to {axis.high}: it is empty; from is the smaller one"
        )
    if axis.step is not None:
        if axis.count is not None or axis.scale == "log2":
            raise InputError(f"{where}.step does not go with count or log2; give one of them")
        if not (axis.step > 0 and math.isfinite(axis.step)):
            raise InputError(f"{where}.step is {axis.step}; above 0")
        if setting.kind == "int" and not isinstance(axis.step, int):
            raise InputError(f"{where}.step is {axis.step}; a whole number, as {name} is")
    elif axis.count is None and axis.scale == "linear" and method == "grid":
        raise InputError(f"{where} needs a step or a count for a grid")


def _check_asked(spec: Spec) -> None:
    """Objectives and constraints name what is there and is measured."""
    asked = {f"objective {name!r}": {name} for name in spec.objectives}
    for name in spec.objectives:
        if name not in RESULTS:
            raise InputError(nearest(name, RESULTS, "objective"))
    if len(set(spec.objectives)) < len(spec.objectives):
        raise InputError("objectives name a result twice; leave one of them out")
    asked |= {f"constraint {rule.text!r}": set(rule.names) for rule in spec.parsed_constraints}
    given = {*spec.fixed, *spec.axes, *(name for point in spec.points for name in point)}
    measured: dict[Needs, bool] = {
        "accuracy": spec.measure.accuracy,
        "area": spec.measure.area,
        "energy": spec.measure.energy,
        "generate": "generate" in given,
    }
    for what, names in asked.items():
        for name in sorted(names & RESULTS.keys()):
            for need in RESULTS[name].needs:
                if not measured[need]:
                    way = "a setting generate" if need == "generate" else f"measure.{need}: true"
                    raise InputError(f"{what} needs {name}, which is not measured; add {way}")
    if spec.measure.accuracy:
        for place, row in enumerate(_rows(spec)):
            if row.get("model") is None:
                where = f"points[{place}]" if spec.points else "fixed or axes"
                raise InputError(f"measure.accuracy needs a model in {where}, such as tiny")
    for name in ("voltage", "post_layout"):
        if name in given and not spec.measure.energy:
            raise InputError(f"{name} changes only energies; add measure.energy: true, or leave it")
