"""The search from end to end.

1. Costs of every format in every linear, from one simulation per format and array.
2. Layer errors of every format (`sensitivity`), and perplexities of a few maps, which choose and
   calibrate the proxy of accuracy (`proxy`).
3. Candidates: uniform maps, the heuristic's path for every cost (`heuristic`), NSGA-II from there
   (`nsga`). Those within the budgets that no other beats are the front, by the proxy.
4. The knee and more of the front, and all uniform recipes, are quantised and their perplexity
   measured; hypervolume and gain are those of measured points.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

import bitwright
from bitwright.experiments import commit, shape_of, simulation_card
from bitwright.quant import (
    Calibration,
    InputError,
    LanguageModel,
    Progress,
    Recipe,
    ScaleFormat,
    Text,
    load_calibration_text,
    load_text,
    resolve_recipe,
)
from bitwright.sim import (
    PES,
    Accelerator,
    LogicEnergy,
    PEArea,
    default_accelerator,
    mixed_costs,
    pick,
)

from .fronts import gain, hypervolume, knee, nondominated, spread
from .heuristic import greedy_path
from .measuring import Measure
from .nsga import need_pymoo, nsga2
from .proxy import Proxy, best_proxy, fit, guided_maps, sample_maps, sums
from .sensitivity import sensitivity
from .space import (
    QUANTITIES,
    Space,
    arrays,
    bit_table,
    cost_table,
    linear_labels,
    refuse_infeasible,
    uniform_recipes,
)

Method = Literal["nsga2", "greedy", "both"]
METHODS = ("nsga2", "greedy", "both")
#: Maps that calibrate the proxy from the heuristic's path by each measure.
GUIDED = 2
#: Most members of the front that are told.
MOST = 100
#: The reference point of the hypervolume lies this much beyond the worst uniform recipe.
BEYOND = 1.1


@dataclass(frozen=True, slots=True)
class SearchConfig:
    """Everything that decides a search.

    Raises:
        InputError: What cannot be searched; names the option.
    """

    formats: tuple[str, ...] = ("bitmod3", "bitmod4", "int6-sym", "int8-sym")
    group_size: int = 64
    scale_format: ScaleFormat = "int8"
    pe: str = "bitmod"  #: runs all formats
    objectives: tuple[str, ...] = ("perplexity", "bits")  #: of `QUANTITIES`, perplexity first
    budgets: Mapping[str, float] = field(default_factory=dict)  #: quantity -> the most of it
    #: Fields of `Accelerator` -> values to choose from.
    array_options: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    method: Method = "both"
    generations: int = 200
    population: int = 100
    finalists: int = 4  #: measured beside the knee
    seed: int = 0
    max_tokens: int = 2048
    window: int = 512
    calibration_maps: int = 16  #: measured to calibrate the proxy, uniform ones counted
    calibration_sequences: int = 4
    prompt: int = 256
    generate: int = 64
    kl: bool = False  #: measure the divergence from the float model too

    def __post_init__(self) -> None:
        for name in self.objectives:
            if name not in QUANTITIES:
                raise InputError(f"--objective {name!r}; of {', '.join(QUANTITIES)}")
        wanted = self.objectives
        if wanted[:1] != ("perplexity",) or len(wanted) < 2 or len(set(wanted)) < len(wanted):
            raise InputError(
                f"--objective is {','.join(wanted)}; perplexity first, then one or more of "
                f"{', '.join(name for name in QUANTITIES if name != 'perplexity')}, each once"
            )
        if self.method not in METHODS:
            raise InputError(f"--method is {self.method!r}; one of {', '.join(METHODS)}")
        for name, value, least in (
            ("--group-size", self.group_size, 1),
            ("--finalists", self.finalists, 0),
            ("--population", self.population, 4),
            ("--generations", self.generations, 1),
            ("--calibration-maps", self.calibration_maps, 3),
            ("--calibration-sequences", self.calibration_sequences, 1),
            ("--prompt", self.prompt, 1),
            ("--generate", self.generate, 2),
            ("--seed", self.seed, 0),
        ):
            if value < least:
                raise InputError(f"{name} is {value}; at least {least}")
        for quantity, most in self.budgets.items():
            if not (math.isfinite(most) and most > 0):
                raise InputError(f"the budget of {quantity} is {most:g}; a number above 0")


@dataclass(frozen=True, slots=True)
class SearchAnswer:
    """What a search found; rows are as in search.json."""

    meta: dict[str, Any]
    front: list[dict[str, Any]]  #: nobody beats them by the proxy; cheapest first
    uniform: list[dict[str, Any]]
    hypervolume: dict[str, Any]
    knee: int  #: number in the front
    improvement: dict[str, Any]

    def document(self) -> dict[str, Any]:
        """The content of search.json."""
        return {name: getattr(self, name) for name in self.__slots__}


def run_search(
    model: LanguageModel,
    config: SearchConfig,
    *,
    text: Text | None = None,
    calibration_text: Text | None = None,
    pe_area: PEArea | None = None,
    logic: Sequence[LogicEnergy] | None = None,
    progress: Progress | None = None,
    command: str | None = None,
) -> SearchAnswer:
    """Search formats per linear of a model.

    What was measured is cached, so an interrupted search goes on where it stopped. The same model,
    texts and config give the same answer.

    Args:
        model: The float model; its shape runs on the arrays.
        config: What to search and how.
        text: Of the perplexity; None for the default one.
        calibration_text: Of the layer errors; None for the default one.
        pe_area: Area of the PE; None: not known, so no objective or budget of it.
        logic: Energy of the logic, one per format; None: energies are SRAM, DRAM and leakage.
        progress: Called as work goes on.
        command: That asked for it, for those who want it again; None: none is known.

    Raises:
        InputError: Something unknown, budgets that no candidate holds (says the least that is
            possible), a format that the PE cannot run, or a text too short.
    """
    need_pymoo()
    text = text or load_text()
    calibration_text = calibration_text or load_calibration_text()
    space = _costs(model, config, pe_area, logic)
    refuse_infeasible(space, config.budgets)
    most = max(config.calibration_maps, len(space.recipes))
    tell = _Steps(progress, 3 + most + config.finalists + 2)

    length = min(Calibration().length, config.window, model.config.context)
    calibration = Calibration(
        sequences=config.calibration_sequences, length=length, seed=config.seed
    )
    tables = sensitivity(model, space.recipes, calibration, calibration_text, tell.inside())
    maps = sample_maps(
        len(space.linears),
        len(space.recipes),
        guided_maps(space.stored_bits, tables, GUIDED),
        config.calibration_maps,
        config.seed,
    )
    measure = Measure(model, text, config.max_tokens, config.window, config.kl)
    tell.next("fp16")
    base = measure(resolve_recipe("fp16"))
    measured = []
    for row in maps:
        recipe = space.recipe([*row, 0])
        tell.next(recipe.label)
        measured.append(measure(recipe))
    nats = np.log([row["perplexity"] / base["perplexity"] for row in measured])
    first = len(space.recipes)  # of the guided maps, `GUIDED` by each measure
    guided = {
        name: range(first + GUIDED * place, first + GUIDED * (place + 1))
        for place, name in enumerate(tables)
    }
    tried = len(maps) >= first + GUIDED * len(tables)
    chosen, fits = best_proxy(tables, maps, nats, base["perplexity"], guided if tried else None)
    space = _with_proxy(space, tables[chosen.measure])

    objectives = [QUANTITIES[name] for name in config.objectives]
    tell.next("search")
    candidates, heuristic = _candidates(space, config, objectives, tell.inside())
    rows = _rows(space, candidates, chosen)
    uniform = _rows(space, space.uniform(), chosen, uniform=True)
    # Two names for one candidate would be confusing: a uniform map keeps its own.
    names = {_key(row): row["name"] for row in uniform}
    for row in rows:
        row["name"] = names.get(_key(row), row["name"])
    cost = objectives[1]
    bend = knee(np.array([[row[cost], row["predicted_perplexity"]] for row in rows]))
    taken = [bend, *(n for n, row in enumerate(rows) if row["name"] in names.values())]
    finalists = [bend, *spread(np.array([row[cost] for row in rows]), config.finalists, taken)]

    known: dict[str, dict[str, Any]] = {}
    for row in [*uniform, *(rows[number] for number in finalists)]:
        if row["recipe"] not in known:
            tell.next(row["name"])
            known[row["recipe"]] = measure(resolve_recipe(row["recipe"]))
    for row in [*uniform, *rows]:
        if row["recipe"] in known:
            row |= {key: known[row["recipe"]][key] for key in ("perplexity", "kl")}
    finals = [row for row in rows if row["perplexity"] is not None]
    real = [_measured_as(row, objectives) for row in uniform]
    real_front = real + [_measured_as(row, objectives) for row in finals]
    reference = BEYOND * np.max(real, axis=0)
    best = [[*uniform, *finals][n]["name"] for n in nondominated(np.array(real_front))]
    mixed = [row for row in finals if row["name"] not in names.values()]
    gains = {
        name: gain(uniform, mixed, name) for name in dict.fromkeys(("bits_per_weight", *objectives))
        if name != "proxy"
    }  # fmt: skip
    tell.next("done")
    return SearchAnswer(
        meta={
            "command": command,
            "model": model.name,
            "model_source": model.source,
            "text": text.name,
            "calibration_text": calibration_text.name,
            "config": asdict(config),
            "unquantised": {"perplexity": base["perplexity"], "bits_per_weight": 16.0},
            "proxy": {
                **asdict(chosen),
                "rule": "ln(perplexity / base) = linear * proxy + square * proxy**2, least squares",
                "measures": {
                    one.measure: {
                        "rank_correlation": one.rank_correlation,
                        "residual": one.residual,
                        "found": one.found,
                    }
                    for one in fits
                },
                "maps": [
                    {"recipe": space.recipe([*row, 0]).name, **found}
                    for row, found in zip(maps, measured, strict=True)
                ],
                **_divergences(tables[chosen.measure], maps, measured),
            },
            "finalists": _judged(finals),
            "measured_front": list(dict.fromkeys(best)),
            "heuristic_candidates": heuristic,
            "energy": space.costs[0].energy,
            "knee_rule": (
                f"farthest below the chord of the front in {cost} and predicted perplexity, "
                "logarithms scaled to 0 .. 1"
            ),
            "card": simulation_card(
                space.costs[0].example, None if logic is None else logic[0]
            ).to_dict(),
            "notes": list(space.costs[0].example.notes),
            "bitwright": bitwright.__version__,
            "commit": commit(),
            "seed": config.seed,
        },
        front=rows,
        uniform=uniform,
        hypervolume={
            "objectives": ["perplexity", *objectives[1:]],
            "reference": reference.tolist(),
            "reference_rule": f"{BEYOND:g} times the worst uniform recipe in each objective",
            "unit": "share of the box between the origin and the reference, by pymoo",
            "measured": hypervolume(np.array(real_front), reference),
            "uniform": hypervolume(np.array(real), reference),
            "predicted_front": hypervolume(
                np.array([_predicted_as(row, objectives) for row in rows]), reference
            ),
        },
        knee=bend,
        improvement=gains,
    )


def search_recipes(config: SearchConfig) -> tuple[Recipe, ...]:
    """One recipe per format of a search, in the order of its formats.

    Raises:
        InputError: An unknown format, or one that the PE cannot run.
    """
    recipes = uniform_recipes(config.formats, config.group_size, config.scale_format)
    unit = pick(PES, config.pe, "--pe")
    for recipe in recipes:
        unit.step_cycles(recipe.format_obj)
    return recipes


def _costs(
    model: LanguageModel,
    config: SearchConfig,
    pe_area: PEArea | None,
    logic: Sequence[LogicEnergy] | None,
) -> Space:
    """The space without a proxy."""
    recipes = search_recipes(config)
    base = default_accelerator(config.pe)
    shape = shape_of(model)
    costs = tuple(
        mixed_costs(
            shape,
            recipes,
            prompt=config.prompt,
            generate=config.generate,
            accelerator=array,
            pe_area=pe_area,
            logic=logic,
        )
        for array in arrays(base, config.array_options)
    )
    wanted = {*(QUANTITIES[name] for name in config.objectives), *config.budgets}
    if pe_area is None and "area_mm2" in wanted:
        raise InputError("the area of the array needs synthesis, which this installation lacks")
    bits, weights = bit_table(model.config, recipes)
    labels = linear_labels(model.config)
    return Space(recipes, labels, bits, weights, costs, np.zeros(bits.shape))


def _with_proxy(space: Space, table: np.ndarray) -> Space:
    from dataclasses import replace

    return replace(space, proxy=table)


def _candidates(
    space: Space, config: SearchConfig, objectives: list[str], progress: Progress | None
) -> tuple[np.ndarray, int]:
    """The front by the proxy, cheapest first, and how many maps the heuristic gave.

    Of a front of more than `MOST` members so many are taken.
    """
    paths = heuristic_candidates(space, [*objectives[1:], *config.budgets])
    found = [space.uniform()] if config.method == "nsga2" else [space.uniform(), paths]
    if config.method != "greedy":
        found.append(
            nsga2(
                space,
                objectives,
                config.budgets,
                np.concatenate(found),
                population=config.population,
                generations=config.generations,
                seed=config.seed,
                progress=progress,
            )
        )
    candidates = np.unique(np.concatenate(found), axis=0)
    values = space.evaluate(candidates)
    held = np.ones(len(candidates), bool)
    for quantity, most in config.budgets.items():
        held &= values[quantity] <= most
    if not held.any():
        least = {name: float(values[name].min()) for name in config.budgets}
        raise InputError(
            "no candidate holds all budgets together; one at a time the least found are "
            + ", ".join(f"{name} {value:.6g}" for name, value in least.items())
        )
    points = np.stack([values[name][held] for name in objectives], axis=1)
    front = nondominated(points)
    order = np.lexsort((points[front][:, 0], points[front][:, 1]))
    chosen = candidates[held][front[order]]
    if len(chosen) > MOST:  # as even as can be in the first cost, with both ends
        even = spread(points[front[order]][:, 1], MOST - 2, [0, len(chosen) - 1])
        chosen = chosen[[0, *even, len(chosen) - 1]]
    return chosen, len(paths)


def heuristic_candidates(space: Space, quantities: Sequence[str]) -> np.ndarray:
    """The heuristic's path for every cost on every array."""
    rows = []
    for array in range(len(space.costs)):
        for quantity in dict.fromkeys(quantities):
            table = cost_table(space, quantity, array)
            path = greedy_path(table.astype(np.float64), space.proxy)
            rows.append(np.column_stack([path, np.full(len(path), array)]))
    return np.concatenate(rows)


def _rows(
    space: Space, candidates: np.ndarray, proxy: Proxy, uniform: bool = False
) -> list[dict[str, Any]]:
    """Rows of search.json, accuracies not measured yet."""
    values = space.evaluate(candidates)
    rows = []
    for number, candidate in enumerate(candidates):
        array = int(candidate[-1])
        recipe = space.recipe(candidate)
        name = str(recipe.format) if uniform else f"mixed-{number:03d}"
        if uniform and len(space.costs) > 1:
            name += f"-array{array}"
        area = float(values["area_mm2"][number])
        rows.append(
            {
                "name": name,
                "recipe": recipe.name,
                "bits_per_weight": float(values["bits_per_weight"][number]),
                "perplexity": None,
                "kl": None,
                "proxy": float(values["proxy"][number]),
                "predicted_perplexity": float(proxy.perplexity(values["proxy"][number])),
                "latency_s": float(values["latency_s"][number]),
                "decode_latency_s": float(values["decode_latency_s"][number]),
                "energy_per_token_uJ": float(values["energy_per_token_uJ"][number]),
                "dram_bytes": int(values["dram_bytes"][number]),
                "area_mm2": None if math.isnan(area) else area,
                "array": _array(space.costs[array].accelerator),
                "formats": space.named_formats(candidate),
            }
        )
    return rows


def _array(accelerator: Accelerator) -> dict[str, Any]:
    names = ("pe", "rows", "cols", "weight_buffer_kib", "activation_buffer_kib", "dram")
    return {name: getattr(accelerator, name) for name in names}


def _key(row: Mapping[str, Any]) -> tuple[str, str]:
    return row["recipe"], str(row["array"])


def _measured_as(row: Mapping[str, Any], objectives: Sequence[str]) -> list[float]:
    return [row["perplexity"], *(row[name] for name in objectives[1:])]


def _predicted_as(row: Mapping[str, Any], objectives: Sequence[str]) -> list[float]:
    return [row["predicted_perplexity"], *(row[name] for name in objectives[1:])]


def _judged(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """How far the prediction was off on the members of the front that were measured."""
    errors = [row["predicted_perplexity"] / row["perplexity"] - 1 for row in rows]
    return {
        "measured": len(rows),
        "largest_prediction_error": max((abs(error) for error in errors), default=None),
    }


def _divergences(
    table: np.ndarray, maps: np.ndarray, measured: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """How well the proxy tells the divergence, where it was measured."""
    if any(row["kl"] is None for row in measured):
        return {}
    found = fit("kl", sums(table, maps), np.array([row["kl"] for row in measured]), 1.0)
    return {"kl": {"rank_correlation": found.rank_correlation, "residual": found.residual}}


class _Steps:
    """One progress for steps of about the same length."""

    def __init__(self, progress: Progress | None, steps: int) -> None:
        self._progress, self._steps, self._done = progress, steps, 0

    def next(self, what: str) -> None:
        """The step before is done, and this one begins."""
        self._done = min(self._done + 1, self._steps)
        if self._progress:
            self._progress(1000 * self._done, 1000 * self._steps, what)

    def inside(self) -> Progress | None:
        """Progress within the step that has begun."""
        if self._progress is None:
            return None
        tell, done, steps = self._progress, self._done, self._steps

        def part(now: int, total: int, what: str) -> None:
            tell(1000 * done + 1000 * now // max(1, total), 1000 * steps, what)

        return part
