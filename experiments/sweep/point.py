"""One point: settings -> everything that decides it -> its row.

`Resolver` fills in what a point leaves out and gives its key, a hash of the resolved settings, of
what is measured, and of the code that computes: a point that was computed by other code, on another
model or text is another point. `run_chunk` computes points, in this process or in another one.

Work is shared through caches: tensors and perplexities (`measured`), syntheses, energies of the
logic on disk; recipes, areas, shapes and workloads in memory.
"""

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitwright.experiments import entry_lock, pe_area, sources_hash
from bitwright.quant import (
    InputError,
    Progress,
    Recipe,
    Text,
    cache_folder,
    load_text,
    resolve_recipe,
)
from bitwright.sim import (
    ARRAY_CAUSES,
    CAUSES,
    Accelerator,
    LogicEnergy,
    ModelShape,
    PEArea,
    SimulationResult,
    Workload,
    activation_format,
    decode,
    decode_parts,
    default_accelerator,
    load_shape,
    output_rows,
    prefill,
    simulate_model,
)

from .fields import RESULTS, SETTINGS, Row
from .spec import Measure, Spec, Value
from .words import one_line

if TYPE_CHECKING:
    from bitwright.quant import LanguageModel

_ARRAY = tuple(name for name, setting in SETTINGS.items() if setting.array)
_FLOATS = tuple(name for name, setting in SETTINGS.items() if setting.kind == "float")


@lru_cache(maxsize=1)
def code_hash() -> str:
    """A hash of the code and the tables that decide a row."""
    import bitwright.rtl
    import bitwright.sim

    tables = [
        f"{folder.__name__.rpartition('.')[2]}/data/{path.name}"
        for folder in (bitwright.sim, bitwright.rtl)
        for path in sorted((Path(str(folder.__file__)).parent / "data").iterdir())
        if path.suffix in (".csv", ".json")
    ]
    own = ("energy.py", "evaluation.py", "measured.py", "recording.py", "synthesised.py")
    mine = ("fields.py", "point.py")
    return sources_hash(
        *("quant", "sim", "rtl"),
        *(f"experiments/{name}" for name in own),
        *(f"experiments/sweep/{name}" for name in mine),
        *tables,
    )


@dataclass(frozen=True, slots=True)
class Plan:
    """What all points of a sweep share."""

    measure: Measure
    code: str  #: `code_hash` of the process that planned
    #: Of PEs by name and technology, from `prepare`: workers synthesise nothing.
    areas: tuple[tuple[str, str, PEArea | None], ...] = ()

    def area(self, pe: str, technology: str) -> PEArea | None:
        """Area of a PE; None: it is not measured, or cannot be."""
        return next((area for *of, area in self.areas if of == [pe, technology]), None)


# ------------------------------------------------------------------ settings


class Resolver:
    """Fills in settings and names points by what decides them."""

    def __init__(self, spec: Spec, names: Sequence[str]) -> None:
        """Points of a sweep, given as values of `names`.

        Raises:
            InputError: The text of the perplexity cannot be read.
        """
        self.names = tuple(names)
        self.plan = Plan(spec.measure, code_hash())
        self._fixed: dict[str, Any] = {
            name: spec.fixed.get(name) if spec.fixed.get(name) is not None else setting.default
            for name, setting in SETTINGS.items()
        }
        shared: list[Any] = [self.plan.code]
        if spec.measure.area or spec.measure.energy:
            shared.append(_tool_versions())
        if spec.measure.accuracy:
            text = load_text(spec.measure.text)
            content = hashlib.sha256(text.content.encode()).hexdigest()
            shared += [text.name, content, spec.measure.tokens, spec.measure.window]
        if spec.measure.energy:
            shared += [spec.measure.energy_layers, _model_identity(spec.measure.weights)]
        asked = (spec.measure.accuracy, spec.measure.area, spec.measure.energy)
        self._shared = json.dumps([asked, *shared])

    def settings(self, values: Sequence[Value]) -> dict[str, Any]:
        """All settings of a point; a recipe that is none stays as written, for it to fail later."""
        found = dict(self._fixed)
        for name, value in zip(self.names, values, strict=True):
            found[name] = SETTINGS[name].default if value is None else value
        recipe, algorithm, own_pe = _recipe_parts(found["recipe"], found["algorithm"])
        found["recipe"], found["algorithm"] = recipe, algorithm
        found["pe"] = found["pe"] or own_pe
        defaults = default_accelerator(found["pe"])
        for name in _ARRAY:
            if found[name] is None:
                found[name] = getattr(defaults, name)
        for name in _FLOATS:
            if found[name] is not None:
                found[name] = float(found[name])
        if found["generate"] is not None:
            found["context"] = None  # every step has its own
        return found

    def key(self, settings: Mapping[str, Any]) -> str:
        """The hash of all that decides a point."""
        shape, model = settings["shape"], settings["model"]
        identities = (
            shape and _shape_identity(shape),
            model and _model_identity(model),
            _technology_identity(settings["technology"]),
        )
        text = json.dumps([*settings.values(), identities])
        return hashlib.sha256(f"{self._shared}\0{text}".encode()).hexdigest()[:32]


@lru_cache(maxsize=4096)
def _recipe_parts(recipe: str, algorithm: str) -> tuple[str, str, str]:
    """Canonical name with algorithms, the algorithms alone, and the PE that is usual for it."""
    name = f"{recipe}+{algorithm}" if algorithm else recipe
    try:
        found = resolve_recipe(name)
    except InputError:
        return name, algorithm, "bitmod"
    steps = "+".join(step.written() for step in found.steps)
    return found.name, steps, "fp16" if found.format is None else "bitmod"


@lru_cache(maxsize=1024)
def _shape_identity(shape: str) -> str:
    return hashlib.sha256(repr(load_shape(shape)).encode()).hexdigest()[:16]


@lru_cache(maxsize=64)
def _model_identity(model: str) -> list[Any]:
    """What tells a model from others without loading it."""
    path = Path(model)
    if not path.exists():
        return [model]
    files = [path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file())
    return [[str(p.resolve()), p.stat().st_size, p.stat().st_mtime_ns] for p in files]


@lru_cache(maxsize=64)
def _technology_identity(name: str) -> str:
    from bitwright.rtl import resolve_technology

    return resolve_technology(name).digest


def _tool_versions() -> str:
    """Versions of what maps the netlists."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("pyosys")
    except PackageNotFoundError:
        return ""


# ------------------------------------------------------------------ running


def run_chunk(plan: Plan, chunk: Sequence[tuple[str, Row]], seconds: float) -> list[Row]:
    """Rows of the first points of a chunk: of as many as are done in `seconds`, but at least one.

    A point that fails gives a row with its error; nothing is raised for it.

    Args:
        plan: Of the sweep.
        chunk: Key and settings (values in the order of SETTINGS) of each point.
        seconds: When to stop.

    Raises:
        InputError: This process runs other code than the one that planned.
    """
    if plan.code != code_hash():
        raise InputError(
            f"the worker runs other code ({code_hash()}) than the sweep ({plan.code}); install the "
            "same bitwright on both"
        )
    rows: list[Row] = []
    end = time.monotonic() + seconds
    for key, values in chunk:
        settings = dict(zip(SETTINGS, values, strict=True))
        try:
            results = compute(settings, plan)
            rows.append((key, "ok", None, *values, *(results.get(name) for name in RESULTS)))
        except InputError as error:
            rows.append(failed(key, values, str(error)))
        except Exception as error:
            rows.append(failed(key, values, f"{type(error).__name__}: {error}"))
        if time.monotonic() > end:
            break
    return rows


def failed(key: str, values: Row, error: str) -> Row:
    """The row of a point that failed."""
    return (key, "failed", one_line(error), *values, *(None for _ in RESULTS))


def compute(settings: Mapping[str, Any], plan: Plan) -> dict[str, Any]:
    """The results of a point; those that are not measured are left out.

    Args:
        settings: All of SETTINGS, resolved.
        plan: What to measure, and areas.

    Raises:
        InputError: A recipe that the PE cannot run, a buffer too small, and so on.
    """
    measure = plan.measure
    recipe = _recipe(settings["recipe"])
    accelerator = replace(
        default_accelerator(settings["pe"]), **{name: settings[name] for name in _ARRAY}
    )
    if settings["shape"] is not None:
        shape = _shape(settings["shape"])
    else:
        shape = _model_shape(settings["model"])
    area = plan.area(settings["pe"], settings["technology"])

    def passes(logic: LogicEnergy | None) -> dict[str, Any]:
        def run(work: Workload) -> SimulationResult:
            return simulate_model(
                work,
                recipe,
                kv_format=settings["kv"],
                accelerator=accelerator,
                pe_area=area,
                logic=logic,
            )

        return _passes(run, output_rows(shape, recipe), settings, measure.area)

    found = passes(None)  # tells what cannot run before any long work
    if measure.energy:
        found = passes(_logic(settings, accelerator, measure))
    found["bits_per_weight"] = _stored_bits_per_weight(shape, recipe)
    found["nominal_bits"] = recipe.nominal_bits
    if measure.accuracy:
        found |= _accuracy(settings["model"], recipe, measure)
    return found


def _passes(
    run: Callable[[Workload], SimulationResult],
    shape: ModelShape,
    settings: Mapping[str, Any],
    with_area: bool,
) -> dict[str, Any]:
    """Prefill and decode: a step at `context` positions, or all steps of a generation.

    The steps of a generation are those of `simulate_generation`: the linear layers once, times the
    steps, and attention at every context.
    """
    batch, prompt, generate = settings["batch"], settings["prompt"], settings["generate"]
    quantise = (activation_format(settings["pe"]) is not None, settings["kv"] != "fp16")
    first = run(_prefill(shape, prompt, batch, generate is not None, *quantise))
    start = _totals(first)
    if generate is None:
        step = run(_decode(shape, settings["context"], batch, *quantise))
        rest, made = _totals(step), 1
    elif generate == 1:
        rest, made = {name: value and 0 for name, value in start.items()}, 0
    else:
        made = generate - 1
        linear, attention = map(run, _steps(shape, prompt, generate, batch, *quantise))
        rest = _steps_together(made, _totals(linear), _totals(attention))
    clock_ps = first.clock_ps
    found: dict[str, Any] = {"area_mm2": first.area.total if with_area else None}
    phases = (("prefill", start, batch * prompt), ("decode", rest, batch * made))
    for phase, total, tokens in phases:
        seconds = total["cycles"] * clock_ps * 1e-12
        found |= {f"{phase}_{name}": value for name, value in total.items()}
        found[f"{phase}_latency_s"] = seconds
        found[f"{phase}_tokens_per_s"] = tokens / seconds if tokens else None
    found["memory_energy_uJ"] = sum(total["sram_uJ"] + total["dram_uJ"] for total in (start, rest))
    if start["energy_uJ"] is not None:
        found["energy_uJ"] = start["energy_uJ"] + rest["energy_uJ"]
    if generate is not None:
        latency_s = (start["cycles"] + rest["cycles"]) * clock_ps * 1e-12
        found["ttft_s"] = first.latency_s
        found["tpot_s"] = found["decode_latency_s"] / made if made else None
        found["latency_s"] = latency_s
        found["tokens_per_s"] = batch * generate / latency_s
        if start["energy_uJ"] is not None:
            found["energy_per_token_uJ"] = found["energy_uJ"] / (batch * generate)
    return found


def _totals(result: SimulationResult) -> dict[str, Any]:
    """Sums over a pass; no row of it is built."""
    stalls = result.stalls
    compute_cycles = result.compute_cycles
    sram_uj, dram_uj, leakage_uj = result.sram_uj, result.dram_uj, result.leakage_uj or 0.0
    logic_uj = result.logic_uj
    vector_cycles = result.vector_cycles
    array_cycles = result.cycles - vector_cycles
    return {
        "cycles": array_cycles + vector_cycles,
        "busy_cycles": compute_cycles - sum(stalls[cause] for cause in ARRAY_CAUSES),
        "stall_cycles": array_cycles - compute_cycles,
        "vector_cycles": vector_cycles,
        **{f"stall_{cause}_cycles": stalls[cause] for cause in CAUSES},
        "dram_bytes": result.dram_bytes,
        "logic_uJ": logic_uj,
        "sram_uJ": sram_uj,
        "dram_uJ": dram_uj,
        "leakage_uJ": leakage_uj,
        "energy_uJ": None if logic_uj is None else logic_uj + sram_uj + dram_uj + leakage_uj,
    }


def _steps_together(
    steps: int, linear: Mapping[str, Any], attention: Mapping[str, Any]
) -> dict[str, Any]:
    return {
        name: None if value is None else steps * value + attention[name]
        for name, value in linear.items()
    }


# ------------------------------------------------------------------ what points share

_recipe = lru_cache(maxsize=4096)(resolve_recipe)
_shape = lru_cache(maxsize=1024)(load_shape)


@lru_cache(maxsize=1024)
def _prefill(
    shape: ModelShape, prompt: int, batch: int, generates: bool, inputs: bool, cache: bool
) -> Workload:
    return prefill(
        shape,
        prompt,
        batch=batch,
        logits="last" if generates else "all",
        quantise_inputs=inputs,
        quantise_cache=cache,
    )


@lru_cache(maxsize=1024)
def _decode(shape: ModelShape, context: int, batch: int, inputs: bool, cache: bool) -> Workload:
    return decode(shape, context, batch=batch, quantise_inputs=inputs, quantise_cache=cache)


@lru_cache(maxsize=64)
def _steps(
    shape: ModelShape, prompt: int, generate: int, batch: int, inputs: bool, cache: bool
) -> tuple[Workload, Workload]:
    contexts = range(prompt + 1, prompt + generate)
    return decode_parts(shape, contexts, batch=batch, quantise_inputs=inputs, quantise_cache=cache)


_area = lru_cache(maxsize=1024)(pe_area)


def area_source(pe: str, technology: str) -> str:
    """Where the area of a PE comes from."""
    area = _area(pe, technology)
    return "this installation has no synthesis" if area is None else area.source


def prepare(plan: Plan, settings: Iterable[Row], progress: Progress | None = None) -> Plan:
    """What many points need, made once before they start: models fetched, PEs synthesised.

    Args:
        plan: Of the sweep.
        settings: Of its points, values in the order of SETTINGS.
        progress: Called as it goes on.

    Returns:
        The plan with the areas.

    Raises:
        ModelUnavailable: A model is not here and cannot be fetched.
    """
    names = list(SETTINGS)
    pe, technology, model = (names.index(name) for name in ("pe", "technology", "model"))
    pairs, models = set(), set()
    for row in settings:
        pairs.add((row[pe], row[technology]))
        models.add(row[model] or (plan.measure.weights if plan.measure.energy else None))
    if "smollm2" in models:
        from bitwright.quant import fetch_model

        fetch_model(progress)
    areas = []
    for done, (unit, cells) in enumerate(sorted(pairs) if plan.measure.area else ()):
        if progress:
            progress(done, len(pairs), f"synthesise {unit} on {cells}")
        areas.append((unit, cells, _area(unit, cells)))
    return replace(plan, areas=tuple(areas))


@lru_cache(maxsize=2)
def _model(name: str) -> "LanguageModel":
    from bitwright.quant import load_model

    return load_model(name)


@lru_cache(maxsize=64)
def _model_shape(name: str) -> ModelShape:
    from bitwright.experiments import shape_of

    return shape_of(_model(name))


@lru_cache(maxsize=2)
def _text(source: str | None) -> Text:
    return load_text(source)


@lru_cache(maxsize=8)
def _fingerprint(model: str, text: str | None) -> str:
    from bitwright.experiments import accuracy_fingerprint

    return accuracy_fingerprint(_model(model), _text(text))


@lru_cache(maxsize=1024)
def _accuracy(model: str, recipe: Recipe, measure: Measure) -> dict[str, Any]:
    from bitwright.experiments import measured_accuracy

    answer = measured_accuracy(
        _model(model),
        recipe,
        _text(measure.text),
        max_tokens=measure.tokens,
        window=measure.window,
        fingerprint=_fingerprint(model, measure.text),
    )
    if not math.isfinite(answer["perplexity"]):
        raise InputError(f"the perplexity under {recipe.name} is not finite")
    return {name: answer[name] for name in ("perplexity", "bits_per_weight")}


def _logic(settings: Mapping[str, Any], accelerator: Accelerator, measure: Measure) -> LogicEnergy:
    usual = default_accelerator(accelerator.pe).lanes
    if accelerator.lanes != usual:
        raise InputError(
            f"lanes is {accelerator.lanes}: energy is measured on {accelerator.pe} PEs of {usual} "
            "lanes; leave lanes or measure.energy out"
        )
    one = _logic_energy(
        settings["model"] or measure.weights,
        settings["recipe"],
        settings["pe"],
        settings["technology"],
        settings["voltage"],
        settings["kv"],
        measure.energy_layers,
    )
    return replace(one, post_layout=settings["post_layout"])


@lru_cache(maxsize=1024)
def _logic_energy(
    model: str,
    recipe: str,
    pe: str,
    technology: str,
    voltage: float | None,
    kv: str,
    layers: int,
) -> LogicEnergy:
    from bitwright.experiments import logic_energy
    from bitwright.rtl import resolve_technology

    name = hashlib.sha256(repr((model, recipe, pe, technology, voltage, kv, layers)).encode())
    with entry_lock(cache_folder("energy") / name.hexdigest()[:32]):
        return logic_energy(
            model,
            recipe,
            pe,
            resolve_technology(technology),
            voltage=voltage,
            layers=layers,
            kv_format=None if kv == "fp16" else kv,
        )


@lru_cache(maxsize=4096)
def _stored_bits_per_weight(shape: ModelShape, recipe: Recipe) -> float:
    """True bits per weight over the linear layers of a block; all blocks are alike."""
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    matrices = [(queries, shape.hidden), (keys, shape.hidden), (keys, shape.hidden)]
    matrices += [(shape.hidden, queries)]
    inner = [(shape.ffn, shape.hidden)] * (2 if shape.gated else 1) + [(shape.hidden, shape.ffn)]
    matrices += shape.experts * inner
    bits = sum(recipe.stored_bits(n, k) for n, k in matrices)
    return bits / sum(n * k for n, k in matrices)
