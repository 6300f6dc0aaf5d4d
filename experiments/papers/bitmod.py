"""BitMoD (HPCA 2025): Tables I, II and V to XII, Figs. 7 to 10, and the averages of section V.

Accuracy tables are made on the model at hand (`accuracy.py`), areas by synthesis as ratios to an
FP16 PE, cycles and energies by the rules of the published simulator (`bitmod_speed.py`).
"""

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from bitwright.experiments import accuracy_study as study
from bitwright.rtl import comparison
from bitwright.sim import PRESETS, load_shape, published_pass

from . import bitmod_speed as speed
from .accuracy import AccuracyTable, zero_shot_part
from .cases import BASE, Key, own
from .hardware import TECHNOLOGIES, area, beside, draw_ratios, power_part, shown, synthesised
from .published import gap, published, published_value, read_published
from .rebuilt import Paper, Part, ShownTable
from .setting import PaperSetting

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SOURCE = (
    "BitMoD: Bit-serial Mixture-of-Datatype LLM Acceleration, HPCA 2025, arXiv 2411.11745: Tables "
    "I, II, V to XII, Fig. 7 to 10, section V"
)


def _rtn(weights: str) -> Key:
    """A row of the accuracy study, rounded to nearest."""
    return "bitmod", "RTN", weights


_GROUPS = "groups of the paper: 128 columns"
_NO_3_BITS = "ANT and OliVe at 3 bits: their value sets are not at hand, the package has none"
_TABLES = (
    AccuracyTable(
        "bitmod",
        "bitmod_accuracy",
        "I",
        "Table I: 4-bit types, per channel and per group",
        {
            "INT4-sym, channel": own("INT4-sym, channel"),
            "INT4-asym, channel": own("INT4-asym, channel"),
            "FP4, channel": own("FP4, channel"),
            "Flint, channel": own("flint, channel"),
            "INT4-sym": own("INT4-sym"),
            "INT4-asym": _rtn("INT4"),
            "FP4": _rtn("FP4"),
            "Flint": own("flint"),
        },
        "VI",
        f"{_GROUPS}; which published value stands in which column was checked for plausibility "
        "only",
        name="table1",
    ),
    AccuracyTable(
        "bitmod",
        "bitmod_accuracy",
        "II",
        "Table II: 6-bit types",
        {name: own(name) for name in ("INT6-sym", "INT6-asym", "E2M3", "E3M2")},
        "VI",
        _GROUPS,
        name="table2",
    ),
    AccuracyTable(
        "bitmod",
        "bitmod_accuracy",
        "V",
        "Table V: INT4-asym, bits of a group's scale",
        {
            "FP16": _rtn("INT4"),
            "INT8": own("INT4-asym, INT8 scales"),
            **{f"INT{b}": own(f"INT4-asym, INT{b} scales") for b in (6, 4, 2)},
        },
        "VI",
        f"{_GROUPS}; our second-level scales are unsigned, 2**b - 1 steps, where the paper's Eq. 1 "
        "is symmetric",
        name="table5",
    ),
    AccuracyTable(
        "bitmod",
        "bitmod_accuracy",
        "VI",
        "Table VI: types at 4 and 3 bits",
        {
            "FP16": BASE,
            "ANT, 4 bits": own("ANT4"),
            "OliVe, 4 bits": own("OliVe4"),
            "MX-FP4, 4 bits": own("MX-FP4"),
            "INT4-asym, 4 bits": _rtn("INT4"),
            "BitMoD, 4 bits": _rtn("BitMoD4"),
            "ANT, 3 bits": None,
            "OliVe, 3 bits": None,
            "MX-FP3, 3 bits": own("MX-FP3"),
            "INT3-asym, 3 bits": _rtn("INT3"),
            "BitMoD, 3 bits": _rtn("BitMoD3"),
        },
        "VI",
        f"{_GROUPS}, of MX 32",
        _NO_3_BITS,
        name="table6",
    ),
    AccuracyTable(
        "bitmod",
        "bitmod_accuracy",
        "VIII",
        "Table VIII: extra resolution and extra asymmetry",
        {
            f"FP{b}{e}": own(f"FP{b}{e}") if e else _rtn(f"FP{b}")
            for b in (4, 3)
            for e in ("", "-ER", "-EA")
        },
        "VI",
        _GROUPS,
        name="table8",
    ),
    AccuracyTable(
        "bitmod",
        "bitmod_accuracy",
        "IX",
        "Table IX: special values of FP3",
        {
            "±5, ±6": own("FP3 with +-5, +-6"),
            "±3, ±5": own("FP3 with +-3, +-5"),
            "±3, ±6": _rtn("BitMoD3"),
        },
        "VI",
        _GROUPS,
        name="table9",
    ),
    AccuracyTable(
        "bitmod",
        "bitmod_accuracy",
        "XI",
        "Table XI: with other algorithms",
        {
            f"{label}, W{b}": key
            for b in (4, 3)
            for label, key in (
                ("AWQ", ("bitmod", "AWQ", f"INT{b}")),
                ("OmniQuant", ("bitmod", "OmniQuant", f"INT{b}")),
                ("GPTQ", ("bitmod", "GPTQ", f"INT{b}")),
                ("QuaRot", own(f"INT{b}", "QuaRot")),
                ("BitMoD+AWQ", ("bitmod", "AWQ", f"BitMoD{b}")),
                ("BitMoD+OmniQuant", ("bitmod", "OmniQuant", f"BitMoD{b}")),
            )
        },
        "VI",
        f"{_GROUPS}; learned in 32 steps a block; QuaRot here is a rotation of the weights with "
        "GPTQ, without online rotations",
        name="table11",
    ),
    AccuracyTable(
        "bitmod",
        "bitmod_accuracy",
        "XII",
        "Table XII: with SmoothQuant's INT8 activations",
        {
            f"{label}, {acts} activations": key
            for label, ours in (
                ("INT8", "INT8"),
                ("INT4-asym", "INT4"),
                ("BitMoD 4", "BitMoD4"),
                ("INT3-asym", "INT3"),
                ("BitMoD 3", "BitMoD3"),
            )
            for acts, key in (
                ("FP16", own("INT8") if ours == "INT8" else _rtn(ours)),
                ("INT8", own(ours, "SmoothQuant A8")),
            )
        },
        "VI",
        f"{_GROUPS}; one value of the paper's table (Llama-3-8B, BitMoD 3, FP16 activations: 9.09) "
        "contradicts its Table VI (8.96)",
        name="table12",
    ),
)


def part_table7(setting: PaperSetting) -> Part:
    """Table VII: mean change of zero-shot accuracy."""
    rows = {
        "INT4-asym": _rtn("INT4"),
        "BitMoD, 4 bits": _rtn("BitMoD4"),
        "INT3-asym": _rtn("INT3"),
        "BitMoD, 3 bits": _rtn("BitMoD3"),
    }
    title = "Table VII: change of zero-shot accuracy, points"
    return zero_shot_part("table7", "bitmod", title, "bitmod_accuracy", "VII", rows, setting)


# ------------------------------------------------------------------ areas

_HARDWARE = "bitmod_hardware"
_NODE = (
    "open cells before layout instead of TSMC 28 nm; scaled by (45/28)**2 the published FP16 PE is "
    "more than twice ours, which is built for area and not for 1 GHz"
)
_ACCUMULATOR = next(row.why for row in comparison.PUBLISHED if row.pe == "fp16xint8")
_ENCODERS = (
    "the column accumulators that ours shares are left out here, as in the paper's encoders; ours "
    "also subtracts zero points"
)


def _hardware(table: str, row: str, quantity: str) -> tuple[float, str]:
    return published_value(_HARDWARE, table=table, row=row, quantity=quantity)


def part_table10(setting: PaperSetting) -> Part:
    """Table X: tiles of 8 x 8 BitMoD PEs and of 6 x 8 FP16 PEs."""
    value = {
        (row["row"], row["quantity"]): float(row["value"])
        for row in published(_HARDWARE, table="X")
    }
    source = published(_HARDWARE, table="X")[0]["source"]
    serial, plain = value["BitMoD", "PEs"], value["FP16", "PEs"]
    theirs = {
        "area of a PE over FP16's": (value["BitMoD", "PE array"] / serial)
        / (value["FP16", "PE array"] / plain),
        "encoders over the PE array": value["BitMoD", "encoders"] / value["BitMoD", "PE array"],
        "tile over the FP16 tile": value["BitMoD", "total"] / value["FP16", "total"],
    }
    rows = []
    for technology in TECHNOLOGIES:
        pe = area("bitmod", technology)
        blocks = synthesised("bitmod", technology, "encoder").blocks
        encoders = 8 * next(block.area_um2 for block in blocks if block.block == "encoder")
        for base in ("fp16acc16", "fp16"):
            other = area(base, technology)
            accumulator = {"fp16acc16": "FP16", "fp16": "binary32"}[base]
            ours = {
                "area of a PE over FP16's": pe / other,
                "encoders over the PE array": encoders / (serial * pe),
                "tile over the FP16 tile": (serial * pe + encoders) / (plain * other),
            }
            for quantity, number in ours.items():
                if base == "fp16" and quantity.startswith("encoders"):
                    continue  # the baseline has no part in it
                rows.append(
                    beside(
                        quantity,
                        f"{technology}, {accumulator} adder",
                        number,
                        theirs[quantity],
                        _ENCODERS if quantity.startswith("encoders") else _NODE,
                        f"{source} (ratios derived)",
                        f"bitwright synth bitmod: {pe:.1f} um2; {base}: {other:.1f} um2; encoder "
                        f"of a column: {encoders / 8:.1f} um2",
                    )
                )
    rows.sort(key=lambda row: list(theirs).index(row["quantity"]))
    title = "Table X: area of a tile, 64 BitMoD PEs and 8 encoders against 48 FP16 PEs"
    return Part((shown(title, rows, digits=3),), {"table10": rows})


def part_blocks(setting: PaperSetting) -> Part:
    """Blocks of the BitMoD PE, as shares of their sum."""
    names = {
        "exponent match": "align",
        "bit-serial multiply": "multiply",
        "group accumulate": "accumulate",
        "dequantise": "scale",
    }
    theirs = {name: _hardware("blocks", name, "area") for name in names}
    total = sum(value for value, _ in theirs.values())
    why = (
        "shares of the blocks mapped alone, each with the registers it ends in; ours rounds to odd "
        "and to nearest even where the authors' Verilog truncates"
    )
    rows = []
    for technology in TECHNOLOGIES:
        blocks = {
            b.block: b.area_um2 for b in synthesised("bitmod", technology, *names.values()).blocks
        }
        own_total = sum(blocks[block] for block in names.values())
        for name, block in names.items():
            value, source = theirs[name]
            share = blocks[block] / own_total
            rows.append(beside(name, technology, share, value / total, why, source))
    title = "Blocks of the BitMoD PE: share of the area"
    return Part((shown(title, rows, digits=3),), {"blocks": rows})


def part_fig10(setting: PaperSetting) -> Part:
    """Fig. 10: areas of PEs over the FP16 x FP16 PE's."""
    base, source = _hardware("Fig. 10", "FP-FP", "area")
    pairs: tuple[tuple[str, str, str | None], ...] = (
        ("FP16 x INT8", "FP-INT8", "fp16xint8"),
        ("FP16 x INT8 or 2 FP4", "FP-INT8 or 2 FP4", None),
        ("BitMoD", "BitMoD", "bitmod"),
    )
    no_pe = "no PE of that kind here"
    rows = []
    for words, name, pe in pairs:
        theirs, _ = _hardware("Fig. 10", name, "area")
        for technology in TECHNOLOGIES:
            ours = None if pe is None else area(pe, technology) / area("fp16", technology)
            rows.append(
                beside(
                    words,
                    technology,
                    ours,
                    theirs / base,
                    {None: no_pe, "fp16xint8": _ACCUMULATOR}.get(pe, _NODE),
                    f"{source} (ratios derived)",
                )
            )
    for technology in TECHNOLOGIES:
        ours = area("fp16xint4", technology) / area("fp16", technology)
        rows.append(beside("FP16 x INT4", technology, ours, None, "not in the figure", ""))
    title = "Fig. 10: area of a PE over the FP16 x FP16 PE's"
    note = (
        "the paper's BitMoD PE has 1793.7 um2 with registers counted per block, 1517.0 in Table X "
        "and 1507.7 in the simulator"
    )
    return Part(
        (shown(title, rows, (note,), digits=3),),
        {"fig10": rows},
        {"fig10": partial(draw_ratios, title, "area over FP16 x FP16", rows)},
    )


def part_power(setting: PaperSetting) -> Part:
    """Table X and Fig. 10, powers: on a model's tensors."""
    designs = ("BitMoD-4", "FP16")
    title = "Powers of Table X and Fig. 10"
    return power_part(designs, title, ("bitmod PE", "fp16 PE"), setting)


# ------------------------------------------------------------------ Fig. 9

_PARETO_SOURCE = (
    "perplexity and energy-delay product per token; that Fig. 9 is drawn from this file is our "
    "reading"
)
_OUR_ROWS: dict[tuple[str, str], Key] = {
    ("BitMoD", "3"): _rtn("BitMoD3"),
    ("BitMoD", "4"): _rtn("BitMoD4"),
    ("BitMoD", "6"): own("INT6-sym"),
    ("BitMoD", "8"): own("INT8"),
    ("ANT", "4"): own("ANT4"),
    ("OliVe", "4"): own("OliVe4"),
}
_MODELS = {"Phi-2": "phi-2", "Llama-2-7B": "llama-2-7b"}
#: Weight bits that the published cycles follow: group scales included, but not at 8 bits.
_BITS = {"3": 3.0625, "4": 4.0625, "5": 5.0625, "6": 6.0625, "8": 8.0}


def part_fig9(setting: PaperSetting) -> Part:
    """Fig. 9: perplexity against energy-delay product, per weight width."""
    found = setting.rows([BASE, *_OUR_ROWS.values()])
    designs = PRESETS["bitmod-hpca25"].designs
    rows: list[dict[str, Any]] = []
    for label in dict.fromkeys(row["row"] for row in published(_HARDWARE, table="Fig. 9")):
        design, bits, model = label.split(", ")
        bits = bits.removesuffix(" bits")
        theirs = {row["quantity"]: row for row in published(_HARDWARE, table="Fig. 9", row=label)}
        cycles = energy = None
        if design == "BitMoD":
            run = published_pass(
                load_shape(_MODELS[model]),
                designs["bitmod-lossy"],
                "decode",
                weight_bits=_BITS[bits],
            )
            cycles, energy = run.cost.cycles, run.cost.on_chip_uj
        ours = found.get(_OUR_ROWS.get((design, bits), BASE))
        ours = ours if (design, bits) in _OUR_ROWS else None
        published_edp = None
        if "cycles" in theirs:
            published_edp = float(theirs["cycles"]["value"]) * float(
                theirs["on-chip energy"]["value"]
            )
        edp = None if cycles is None or energy is None else cycles * energy
        rows.append(
            {
                "design": design,
                "bits": int(bits),
                "model": model,
                "cycles": cycles,
                "published_cycles": int(theirs["cycles"]["value"]) if published_edp else None,
                "onchip_uJ": energy,
                "edp": edp,
                "published_edp": published_edp,
                "gap": None if edp is None or published_edp is None else gap(edp, published_edp),
                "ours": None if ours is None else ours.perplexity,
                "published": float(theirs["perplexity"]["value"]),
                "reason": ""
                if design == "BitMoD"
                else "the preset has these designs at the figures' precisions alone",
                "source": theirs["perplexity"]["source"],
            }
        )
    lines = tuple(
        (
            f"{row['design']}, {row['bits']} bits, {row['model']}",
            "-" if row["edp"] is None else f"{row['edp']:.4g}",
            "-" if row["published_edp"] is None else f"{row['published_edp']:.4g}",
            "" if row["gap"] is None else f"{100 * row['gap']:+.3f} %",
            "-" if row["ours"] is None else study.show_perplexity(row["ours"]),
            f"{row['published']:.2f}",
        )
        for row in rows
    )
    notes = (
        "energy-delay product per token: cycles x on-chip uJ, by the rules of bitmod-hpca25",
        "perplexities of ours are another model's; 6 and 8 bits: symmetric integers, as the paper "
        "runs them",
        setting.note("bitmod", found.values()),
        f"published: {rows[0]['source']}; {_PARETO_SOURCE}",
    )
    table = ShownTable(
        f"Fig. 9: perplexity against energy-delay product; ours: {setting.label()}",
        ("", "EDP", "published", "gap", "perplexity", "published"),
        lines,
        notes,
    )
    return Part((table,), {"fig9": rows}, {"fig9": partial(_draw_pareto, rows)})


def _draw_pareto(rows: Sequence[dict[str, Any]]) -> "Figure":
    from .drawing import new_figure

    figure, panels = new_figure(2, 5.0)
    for axes, model in zip(panels, _MODELS, strict=True):
        own_rows = [row for row in rows if row["model"] == model and row["edp"] is not None]
        axes.plot(
            [row["edp"] for row in own_rows],
            [row["published"] for row in own_rows],
            **{"marker": "o", "markerfacecolor": "none", "color": "#d95f02"},
            label=f"published perplexity, {model}",
        )
        axes.plot(
            [row["edp"] for row in own_rows if row["ours"] is not None],
            [row["ours"] for row in own_rows if row["ours"] is not None],
            **{"marker": "s", "color": "black", "linestyle": "--"},
            label="perplexity of the model at hand",
        )
        for row in own_rows:
            axes.annotate(f"{row['bits']}", (row["edp"], row["published"]), fontsize=7)
        axes.set_xlabel(f"energy-delay product per token of {model}, cycles x uJ")
        axes.set_ylabel("perplexity")
        axes.set_yscale("log")
        axes.legend(fontsize=7)
    return figure


def mean_increase(row: str) -> float:
    """Mean of a row's published perplexities over FP16's, both texts: what Table VI prints."""
    rows = [r for r in read_published("bitmod_accuracy") if r["table"] == "VI"]
    base = {(r["model"], r["quantity"]): float(r["value"]) for r in rows if r["row"] == "FP16"}
    own_values = [
        float(r["value"]) - base[r["model"], r["quantity"]]
        for r in rows
        if r["row"] == row and r["model"] != "mean of six"
    ]
    return sum(own_values) / len(own_values)


def part_table6(setting: PaperSetting) -> Part:
    """Table VI with its last column, the mean increase over FP16, made again from its rows."""
    part = _PARTS["table6"](setting)
    rows: list[dict[str, Any]] = []
    for row in published("bitmod_accuracy", table="VI", model="mean of six"):
        again, printed = mean_increase(row["row"]), float(row["value"])
        rows.append(
            {
                "row": row["row"],
                "ours": again,
                "published": printed,
                "gap": gap(again, printed) if printed else None,
                "reason": "ours: the mean made again from the table's own rows, six models and two "
                "texts",
                "source": row["source"],
            }
        )
    lines = tuple(
        (
            row["row"],
            f"{row['ours']:.2f}",
            f"{row['published']:.2f}",
            "" if row["gap"] is None else f"{100 * row['gap']:+.1f} %",
        )
        for row in rows
    )
    mean = ShownTable(
        "Table VI, last column: mean increase of perplexity",
        ("", "from its rows", "published", "gap"),
        lines,
        (f"published: {rows[0]['source']}",),
    )
    return Part((*part.tables, mean), {**part.data, "table6_mean": rows}, part.figures)


_PARTS = {table.name: table.part for table in _TABLES}
PAPER = Paper(
    "bitmod",
    SOURCE,
    {
        **{name: _PARTS[name] for name in ("table1", "table2", "table5")},
        "table6": part_table6,
        "table7": part_table7,
        **{name: _PARTS[name] for name in ("table8", "table9")},
        "table10": part_table10,
        "blocks": part_blocks,
        "power": part_power,
        **{name: _PARTS[name] for name in ("table11", "table12")},
        "fig7": speed.part_fig7,
        "fig8": speed.part_fig8,
        "fig9": part_fig9,
        "fig10": part_fig10,
        "averages": speed.part_averages,
        "simplifications": speed.part_simplifications,
    },
)
