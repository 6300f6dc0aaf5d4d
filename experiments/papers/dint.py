"""dINT (EMNLP 2023): its MAC unit, the W4A8 comparison, and what underflow costs.

The paper's body is not at hand. Of its numbers there are two ratios of MAC units and one bound of
the W4A8 perplexities, as third parties give them; everything else is ours alone and says so.
"""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from bitwright.experiments import accuracy_study as study
from bitwright.quant import FORMATS, quantize
from bitwright.rtl import comparison

from .accuracy import claim_rows, claim_table
from .cases import BASE
from .hardware import TECHNOLOGIES, area, beside, draw_ratios, power_part, shown
from .published import published_value
from .rebuilt import Paper, Part, ShownTable
from .setting import PaperSetting

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SOURCE = (
    "dINT, AQAS and SLAC (Lee et al., EMNLP 2023, arXiv 2311.05161); of its numbers only what "
    "third parties tell is at hand"
)
_MAC = {"table": "2", "row": "INT8 MAC over dINT4 x INT8 MAC"}
_NOT_AT_HAND = "the paper's table is not at hand; ours alone"
#: Smaller unit, baseline, words, and whether the published ratio is of this pair.
_PAIRS = (
    ("dint4", "int8", "dINT4 x INT8 MAC", True),
    ("dint4-dot16", "int8-dot16", "the same, 16 lanes to an accumulator", True),
    ("dint4-asym", "int8", "dINT4 x INT8 MAC with zero point", True),
    ("int4x8", "int8", "INT4 x INT8 MAC", False),
    ("int4", "int8", "INT4 x INT4 MAC", False),
    ("int8", "fp16", "INT8 MAC, over FP16 MAC", False),
)


def part_mac(setting: PaperSetting) -> Part:
    """Table 2: how many times smaller than an INT8 MAC, by synthesis on three technologies."""
    theirs, source = published_value("dint", **_MAC, quantity="area")
    reasons = {(row.pe, row.baseline): row.why for row in comparison.PUBLISHED}
    rows = []
    for pe, base, words, same in _PAIRS:
        why = reasons.get((pe, base), reasons["dint4", "int8"]) if same else _NOT_AT_HAND
        for technology in TECHNOLOGIES:
            rows.append(
                beside(
                    words,
                    technology,
                    area(base, technology) / area(pe, technology),
                    theirs if same else None,
                    why,
                    source if same else "",
                    f"bitwright synth {pe}: {area(pe, technology):.1f} um2; {base}: "
                    f"{area(base, technology):.1f} um2",
                )
            )
    title = "Table 2: times smaller than an INT8 x INT8 MAC (area, before layout)"
    return Part(
        (shown(title, rows),),
        {"table2": rows},
        {"table2": partial(draw_ratios, title, "area of INT8 MAC over that of the unit", rows)},
    )


def part_power(setting: PaperSetting) -> Part:
    """Table 2: how many times less power than an INT8 MAC, on a model's tensors."""
    return power_part(
        ("dINT4", "INT8"),
        "Table 2: power of an INT8 MAC over that of a dINT4 MAC",
        ("power of an INT8",),
        setting,
    )


# ------------------------------------------------------------------ W4A8

_BOUND = {
    "table": "W4A8",
    "row": "AQAS + dINT4 + OPTQ",
    "quantity": "perplexity above FP16, upper bound for all models but OPT-125M",
}
_SMALL = (
    "the bound is for models of 1.3 to 66 billion parameters and OPT-125M is excepted; the default "
    "model has 135 million"
)


def part_w4a8(setting: PaperSetting) -> Part:
    """The W4A8 comparison: formats x scale searches, what the paper claims checked one by one."""
    cases = [case for case in study.cases(setting.config()) if case.table == "dint"]
    found = setting.rows([BASE, *(case.key for case in cases)])
    base = found[BASE].perplexity
    rows = [
        {
            "weights": case.weights,
            "method": case.method,
            "recipe": found[case.key].recipe,
            "ours": found[case.key].perplexity,
            "ours_over_fp16": found[case.key].perplexity / base,
            "kl": found[case.key].kl,
            "published": None,
            "gap": None,
            "reason": _NOT_AT_HAND,
            "source": "",
        }
        for case in cases
    ]
    bound, source = published_value("dint", **_BOUND)
    best = found["dint", "AQAS+SLAC+GPTQ", "dINT4"].perplexity - base
    limit = [beside("AQAS + SLAC + dINT4 + OPTQ", "over FP16", best, bound, _SMALL, source)]
    verdicts = study.check_claims(list(found.values()))
    claims = claim_rows(verdicts)
    formats = list(dict.fromkeys(case.weights for case in cases))
    methods = list(dict.fromkeys(case.method for case in cases))
    table = {(row["method"], row["weights"]): row for row in rows}
    lines = tuple(
        (
            method,
            *(
                f"{table[method, w]['ours']:.2f} ({table[method, w]['ours_over_fp16']:.2f})"
                for w in formats
            ),
            "not at hand",
        )
        for method in methods
    )
    notes = (
        f"perplexity, in brackets times FP16 ({base:.2f}); published perplexities per model are "
        "not at hand",
        setting.note("dint", found.values()),
    )
    shown_rows = ShownTable(
        f"W4A8, weights per channel; ours: {setting.label()}",
        ("", *formats, "published"),
        lines,
        notes,
    )
    return Part(
        (
            shown_rows,
            shown("W4A8, the whole pipeline: perplexity above that of FP16", limit),
            claim_table("What the paper says of W4A8", claims),
        ),
        {"w4a8": rows, "w4a8_bound": limit, "w4a8_claims": claims},
        {"w4a8": partial(_draw_w4a8, rows, setting.label())},
    )


def _draw_w4a8(rows: Sequence[dict[str, Any]], label: str) -> "Figure":
    from .drawing import new_figure

    figure, (axes,) = new_figure(1, 3.6)
    formats = list(dict.fromkeys(row["weights"] for row in rows))
    methods = list(dict.fromkeys(row["method"] for row in rows))
    for number, weights in enumerate(formats):
        own = {row["method"]: row["ours"] for row in rows if row["weights"] == weights}
        axes.bar(
            [place + (number - 1) * 0.26 for place in range(len(methods))],
            [own[method] for method in methods],
            0.26,
            **{"color": ("#555555", "#aaaaaa", "#e0e0e0")[number], "edgecolor": "black"},
            **{"linewidth": 0.5, "label": weights},
        )
    axes.set_xticks(range(len(methods)), methods, fontsize=8)
    axes.set_ylabel("perplexity")
    axes.set_title(f"W4A8, {label}", fontsize=9)
    axes.legend(fontsize=7)
    return figure


# ------------------------------------------------------------------ underflow and levels

_FORMATS = {"INT4": "int4-asym", "FP4": "fp4", "dINT4": "dint4-asym"}
_UNDERFLOW = (
    "the paper's figure of output errors is not at hand; here the error of the weights alone, per "
    "channel, over all block matrices"
)


def part_underflow(setting: PaperSetting) -> Part:
    """Weights that round to zero, and their part of the error (the paper's error model, Eq. 4)."""
    model = setting.loaded()
    names = [
        name
        for name, shape in model.config.weight_shapes().items()
        if name.startswith("blocks.") and len(shape) == 2
    ]
    rows: list[dict[str, Any]] = []
    for label, format in _FORMATS.items():
        zeros = weights = 0
        lost = error = power = 0.0
        for name in names:
            w = model.weight(name).numpy()
            back = quantize(w, format, w.shape[1], "fp16").dequantize()
            under = (back == 0) & (w != 0)
            squares = np.square(w.astype(np.float64))
            zeros += int(under.sum())
            weights += w.size
            lost += float(squares[under].sum())
            error += float(np.square(back.astype(np.float64) - w).sum())
            power += float(squares.sum())
        rows.append(
            {
                "weights": label,
                "rounded_to_zero": zeros / weights,
                "relative_mse": error / power,
                "underflow_part": lost / error,
                "rest": (error - lost) / power,
                "published": None,
                "gap": None,
                "reason": _UNDERFLOW,
                "source": "",
            }
        )
    lines = tuple(
        (
            row["weights"],
            f"{100 * row['rounded_to_zero']:.1f} %",
            f"{row['relative_mse']:.5f}",
            f"{100 * row['underflow_part']:.1f} %",
            f"{row['rest']:.5f}",
            "not at hand",
        )
        for row in rows
    )
    columns = ("", "rounded to 0", "relative MSE", "of it underflow", "the rest", "published")
    table = ShownTable(
        f"Underflow (error model, Eq. 4); ours: {setting.label()}", columns, lines, (_UNDERFLOW,)
    )
    return Part((table,), {"underflow": rows})


def part_fig5(setting: PaperSetting) -> Part:
    """Fig. 5: levels of INT4, FP4 and dINT4, the largest magnitude scaled to 1."""
    rows: list[dict[str, Any]] = []
    for label, name in (("INT4", "int4-sym"), ("FP4", "fp4"), ("dINT4", "dint4-sym")):
        format = FORMATS[name]
        grid = format.grid()
        rows.append(
            {
                "format": label,
                "levels": len(grid),
                "smallest": min(abs(v) for v in grid if v) / format.absmax(),
                "widest_step": max(b - a for a, b in zip(grid, grid[1:], strict=False))
                / format.absmax(),
                "values": " ".join(f"{value / format.absmax():+.3f}" for value in grid),
                "source": format.source,
            }
        )
    lines = tuple(
        (row["format"], str(row["levels"]), f"{row['smallest']:.3f}", f"{row['widest_step']:.3f}")
        for row in rows
    )
    note = (
        "as a third-party summary tells the figure: INT4 evenly spaced, FP4 dense near zero and "
        "coarse at large magnitudes, dINT4 between, with a value of its own for small ones; the "
        "codes are this package's choice"
    )
    table = ShownTable(
        "Fig. 5: levels, the largest magnitude scaled to 1",
        ("", "levels", "smallest but 0", "widest step"),
        lines,
        (note,),
    )
    return Part((table,), {"fig5": rows}, {"fig5": partial(_draw_levels, rows)})


def _draw_levels(rows: Sequence[dict[str, Any]]) -> "Figure":
    from .drawing import new_figure

    figure, (axes,) = new_figure(1, 2.2)
    for place, row in enumerate(rows):
        values = [float(value) for value in row["values"].split()]
        axes.plot(values, [-place] * len(values), linestyle="-", marker="|", color="black")
    axes.set_yticks([-place for place in range(len(rows))], [row["format"] for row in rows])
    axes.set_xlabel("value over the largest magnitude")
    return figure


PAPER = Paper(
    "dint",
    SOURCE,
    {
        "table2": part_mac,
        "power": part_power,
        "w4a8": part_w4a8,
        "underflow": part_underflow,
        "fig5": part_fig5,
    },
)
