"""BitMoD (HPCA 2025), latency and energy: Fig. 7 and 8 and the averages of section V, rebuilt.

The parts here run the rules of `bitmod-hpca25` on the paper's six models and five accelerators, put
the published numbers beside the results, and then take the simulator's simplifications away: each
alone from the published rules, and one after the other. About six seconds.

The bars of generation are a prefill of 256 tokens and 20 generated tokens. Bars named "Geo Mean" in
the authors' notebooks are arithmetic means; here both stand side by side. Speed-ups and energy
gains below are over the FP16 accelerator unless another is named.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import cache, partial
from statistics import geometric_mean, mean
from typing import Any

from bitwright.sim import (
    CORRECTIONS,
    PRESETS,
    Corrections,
    PublishedCost,
    load_shape,
    published_generation,
    published_pass,
)

from .bitmod_figures import draw_energies, draw_simplifications, draw_speedups
from .bitmod_published import (
    AVERAGES,
    CYCLES_SOURCE,
    DESIGNS,
    ENERGY_SOURCE,
    MODELS,
    SECTION,
    WORK,
    Key,
    published_bars,
)
from .rebuilt import Part, ShownTable
from .setting import PaperSetting

Study = Mapping[Key, PublishedCost]  #: design, work, model -> cost

SOURCE = (
    "BitMoD: Bit-serial Mixture-of-Datatype LLM Acceleration, HPCA 2025, arXiv 2411.11745: Fig. 7 "
    "and 8, section V"
)


def study(corrections: Corrections) -> Study:
    """All designs and models, prefill and generation, under corrected rules."""
    designs = PRESETS["bitmod-hpca25"].designs
    costs: dict[Key, PublishedCost] = {}
    for name in DESIGNS:
        for model in MODELS:
            shape, design = load_shape(model), designs[name]
            one_pass = published_pass(shape, design, "prefill", corrections=corrections)
            costs[name, "prefill", model] = one_pass.cost
            costs[name, "generation", model] = published_generation(
                shape, design, corrections=corrections
            )
    return costs


def areas(corrections: Corrections) -> dict[str, float]:
    """Area of each design's array, in mm2, encoders included where they are counted."""
    designs, shape = PRESETS["bitmod-hpca25"].designs, load_shape("opt-1.3b")
    runs = {
        name: published_pass(shape, designs[name], "prefill", corrections=corrections)
        for name in DESIGNS
    }
    return {name: run.array_mm2 + run.encoder_mm2 for name, run in runs.items()}


def ratios(
    costs: Study, design: str, over: str, work: str, value: Callable[[PublishedCost], float]
) -> list[float]:
    """How many times less a design takes than another, for each model."""
    return [value(costs[over, work, model]) / value(costs[design, work, model]) for model in MODELS]


def _cycles(cost: PublishedCost) -> float:
    return cost.cycles


def _energy(cost: PublishedCost) -> float:
    return cost.total_uj


# ------------------------------------------------------------------ beside the published figures


def figure_7(costs: Study) -> list[dict[str, Any]]:
    """One row per bar of Fig. 7: our cycles and speed-up beside the published ones."""
    bars = published_bars()
    rows = []
    for design, work, model in costs:
        ours, published = costs[design, work, model].cycles, bars[design, work, model].cycles
        base, published_base = costs["fp16", work, model], bars["fp16", work, model]
        rows.append(
            {
                "work": work,
                "design": design,
                "model": model,
                "cycles": ours,
                "published_cycles": published,
                "gap": ours / published - 1,
                "speedup": base.cycles / ours,
                "published_speedup": published_base.cycles / published,
                "source": CYCLES_SOURCE,
            }
        )
    return rows


def figure_8(costs: Study) -> list[dict[str, Any]]:
    """One row per bar of Fig. 8: our energies beside the published ones."""
    bars = published_bars()
    rows = []
    for key, cost in costs.items():
        design, work, model = key
        published, base = bars[key], bars["fp16", work, model]
        rows.append(
            {
                "work": work,
                "design": design,
                "model": model,
                "onchip_uJ": cost.on_chip_uj,
                "published_onchip_uJ": published.on_chip_uj,
                "onchip_gap": cost.on_chip_uj / published.on_chip_uj - 1,
                "total_uJ": cost.total_uj,
                "published_total_uJ": published.total_uj,
                "total_gap": cost.total_uj / published.total_uj - 1,
                "normalised": cost.total_uj / costs["fp16", work, model].total_uj,
                "published_normalised": published.total_uj / base.total_uj,
                "source": ENERGY_SOURCE,
            }
        )
    return rows


def averages(costs: Study) -> list[dict[str, Any]]:
    """The averages that the paper prints, averaged as it does, and their true geometric means."""
    rows = []
    for entry in AVERAGES:
        value = _energy if entry.energy else _cycles
        as_published = []
        for work in entry.work:
            if entry.energy:
                # The notebook averages energies normalised to FP16 and inverts the mean.
                share = [
                    mean(1 / ratio for ratio in ratios(costs, design, "fp16", work, value))
                    for design in (entry.over, entry.design)
                ]
                as_published.append(share[0] / share[1])
            else:
                as_published.append(mean(ratios(costs, entry.design, entry.over, work, value)))
        ours = mean(as_published)
        digits = len(str(entry.published).partition(".")[2])
        equal = round(ours, digits) == entry.published
        true = [
            ratio
            for work in entry.work
            for ratio in ratios(costs, entry.design, entry.over, work, value)
        ]
        rows.append(
            {
                "what": entry.what,
                "design": entry.design,
                "over": entry.over,
                "work": " and ".join(entry.work),
                "published": entry.published,
                "ours": ours,
                "gap": ours / entry.published - 1,
                "equal_as_printed": equal,
                "geometric_mean": geometric_mean(true),
                "explanation": "" if equal else entry.remark or "not known",
                "source": entry.source,
            }
        )
    return rows


# ------------------------------------------------------------------ simplifications, one by one


def simplifications() -> Iterator[dict[str, Any]]:
    """What every simplification was worth: alone from the published rules, and cumulatively.

    One row per step, work and design; `step` "published" is the rules as they are.
    """
    base = _published_rules()
    yield from _step("alone", "published", base, base, Corrections())
    for name in CORRECTIONS:
        only = replace(Corrections(), **{name: True})
        yield from _step("alone", name, study(only), base, only)
    together = Corrections()
    yield from _step("together", "published", base, base, together)
    before = base
    for name in CORRECTIONS:
        together = replace(together, **{name: True})
        after = study(together)
        yield from _step("together", name, after, before, together)
        before = after


def _step(
    series: str, name: str, costs: Study, before: Study, corrections: Corrections
) -> Iterator[dict[str, Any]]:
    what, source = CORRECTIONS.get(name, ("the rules behind the figures", SOURCE))
    area = areas(corrections)
    for work in WORK:
        for design in DESIGNS:

            def changed(
                value: Callable[[PublishedCost], float],
                design: str = design,
                work: str = work,
            ) -> float:
                return geometric_mean(
                    value(costs[design, work, model]) / value(before[design, work, model])
                    for model in MODELS
                )

            yield {
                "series": series,
                "step": name,
                "work": work,
                "design": design,
                "cycles_factor": changed(_cycles),
                "energy_factor": changed(_energy),
                "speedup": geometric_mean(ratios(costs, design, "fp16", work, _cycles)),
                "energy_gain": geometric_mean(ratios(costs, design, "fp16", work, _energy)),
                "array_mm2": area[design],
                "what": what,
                "source": source,
            }


# ------------------------------------------------------------------ tables for people


@cache
def _published_rules() -> Study:
    return study(Corrections())


def part_fig7(setting: PaperSetting) -> Part:
    """Fig. 7."""
    bars = figure_7(_published_rules())
    exact = sum(row["cycles"] == row["published_cycles"] for row in bars)
    note = (
        f"cycles: {exact} of {len(bars)} bars equal the published ones exactly; source: "
        f"{CYCLES_SOURCE}"
    )
    return Part(
        (_bar_table("Fig. 7: speed-up over FP16", bars, "speedup", (note,)),),
        {"fig7": bars},
        {"fig7": partial(draw_speedups, bars)},
        {
            "rules": PRESETS["bitmod-hpca25"].source,
            "models": list(MODELS),
            "bars": len(bars),
            "bars_with_equal_cycles": exact,
        },
    )


def part_fig8(setting: PaperSetting) -> Part:
    """Fig. 8."""
    bars = figure_8(_published_rules())
    worst = max(bars, key=lambda row: abs(row["total_gap"]))
    on_chip = max(bars, key=lambda row: abs(row["onchip_gap"]))
    note = (
        f"largest gap to the published total energy {100 * worst['total_gap']:+.2f} %, on chip "
        f"{100 * on_chip['onchip_gap']:+.2f} % ({DESIGNS[on_chip['design']]}, "
        f"{MODELS[on_chip['model']]}: its SRAM port width is interpolated); "
        f"source: {ENERGY_SOURCE}"
    )
    title = "Fig. 8: total energy over FP16's (lower is better)"
    return Part(
        (_bar_table(title, bars, "normalised", (note,)),),
        {"fig8": bars},
        {"fig8": partial(draw_energies, bars)},
        {
            "largest_total_energy_gap": worst["total_gap"],
            "largest_onchip_energy_gap": on_chip["onchip_gap"],
        },
    )


def part_averages(setting: PaperSetting) -> Part:
    """The averages that section V prints."""
    rows = averages(_published_rules())
    return Part((_average_table(rows),), {"averages": rows})


def part_simplifications(setting: PaperSetting) -> Part:
    """What each simplification of the published simulator was worth."""
    steps = list(simplifications())
    tables = (
        *(
            _step_table(title, steps, series, work)
            for series, title in (
                ("alone", "One simplification less, {}"),
                ("together", "Simplifications taken away one after the other, {}"),
            )
            for work in WORK
        ),
        _legend(),
        _area_table(steps),
    )
    return Part(
        tables,
        {"simplifications": steps},
        {"simplifications": partial(draw_simplifications, steps)},
    )


def _bar_table(
    title: str, rows: Iterable[Mapping[str, Any]], value: str, notes: tuple[str, ...]
) -> ShownTable:
    found = {(row["design"], row["work"], row["model"]): row for row in rows}
    lines = []
    for work in WORK:
        for design in list(DESIGNS)[1:]:
            bars = [found[design, work, model] for model in MODELS]
            ours = [bar[value] for bar in bars]
            published = [bar[f"published_{value}"] for bar in bars]
            cells = []
            for one, other in zip(ours, published, strict=True):
                differs = f"{one:.3f}" != f"{other:.3f}"
                cells.append(f"{one:.3f}" + (f" ({other:.3f})" if differs else ""))
            cells += [f"{x:.3f}" for x in (mean(ours), mean(published), geometric_mean(ours))]
            lines.append((f"{work}, {DESIGNS[design]}", *cells))
    models = (label.replace("Llama-2-", "Llama-2\n") for label in MODELS.values())
    models = (label.replace("Llama-3-", "Llama-3\n") for label in models)
    columns = ("", *models, "mean", "published\nmean", "geomean")
    brackets = "in brackets: published, where these digits differ; mean: as in the notebook, whose "
    brackets += 'bars "Geo Mean" are arithmetic means'
    return ShownTable(title, columns, tuple(lines), (brackets, *notes))


def _average_table(rows: Iterable[Mapping[str, Any]]) -> ShownTable:
    rows = list(rows)
    lines = tuple(
        (
            f"{row['what']}, {DESIGNS[row['design']]} over {DESIGNS[row['over']]}, {row['work']}",
            f"{row['published']:g}",
            f"{row['ours']:.4f}",
            f"{100 * row['gap']:+.2f} %",
            "equal" if row["equal_as_printed"] else "differs",
            f"{row['geometric_mean']:.4f}",
        )
        for row in rows
    )
    notes = tuple(
        f"{row['what']} over {DESIGNS[row['over']]}, {row['work']}: {row['explanation']}"
        for row in rows
        if row["explanation"]
    )
    return ShownTable(
        "Averages over six models",
        ("", "published", "ours", "gap", "as printed", "geomean"),
        lines,
        (*notes, f"source: {SECTION}; ours is averaged as the notebooks do"),
    )


def _step_table(
    title: str, steps: Iterable[Mapping[str, Any]], series: str, work: str
) -> ShownTable:
    found = {
        (row["step"], row["design"]): row
        for row in steps
        if row["series"] == series and row["work"] == work
    }
    lines = []
    for name in dict.fromkeys(step for step, _ in found):
        fp16, lossy = found[name, "fp16"], found[name, "bitmod-lossy"]
        others = [found[name, design] for design in list(DESIGNS)[1:]]
        lossless = found[name, "bitmod-lossless"]
        values = (
            *(row["cycles_factor"] for row in (fp16, lossy)),
            *(row["speedup"] for row in others),
            *(row["energy_factor"] for row in (fp16, lossy)),
            *(row["energy_gain"] for row in (lossless, lossy)),
        )
        lines.append((name.replace("_", " "), *(f"{value:.3f}" for value in values)))
    short = [label.removeprefix("BitMoD ") for label in list(DESIGNS.values())[1:]]
    columns = (
        *("", "cycles\nFP16", "cycles\nLY"),
        *(f"speed-up\n{label}" for label in short),
        *("energy\nFP16", "energy\nLY", "gain\nLL", "gain\nLY"),
    )
    base = {"alone": "the published rules", "together": "the line above"}[series]
    note = (
        f"cycles, energy: factor on {base}; speed-up, gain of energy: over FP16; geometric means "
        "over six models"
    )
    notes = [note]
    if series == "alone" and work == "generation":
        notes.append(
            "growing cache: the scores of a decode step have n = 1 in the published shapes, so "
            "that the keys cost nothing, however many there are"
        )
    return ShownTable(title.format(work), columns, tuple(lines), tuple(notes))


def _legend() -> ShownTable:
    """What each simplification is replaced by, in words."""
    lines = tuple(
        (name.replace("_", " "), f"{what}\n[{source}]")
        for name, (what, source) in CORRECTIONS.items()
    )
    unknown = (
        "no step, because nothing is known to take their place: the group scales of ANT and OliVe, "
        "how their 8-bit multipliers take 16-bit keys and values, bank conflicts, PE energy that "
        "depends on the data"
    )
    return ShownTable("Steps: what is modelled instead", ("", ""), lines, (unknown,), prose=True)


def _area_table(steps: Iterable[Mapping[str, Any]]) -> ShownTable:
    found = {
        (row["step"], row["design"]): row["array_mm2"]
        for row in steps
        if row["series"] == "together" and row["work"] == "prefill"
    }
    lines = tuple(
        (label, *(f"{found[step, design]:.3f}" for design in DESIGNS))
        for label, step in (
            ("published", "published"),
            ("with term encoders", "encoders"),
            ("and place and route", "place_and_route"),
        )
    )
    return ShownTable(
        "Area of the array in mm2",
        ("", *DESIGNS.values()),
        lines,
        ("the published comparison is near equal area: 768 FP16 PEs against 1024 of the others",),
    )
