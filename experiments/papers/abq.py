"""ABQ-LLM (AAAI 2025): accuracy at WxAy, kernel speed, memory, and a PE of its arithmetic.

The paper's kernels run on a GPU; ours here are the processor's, measured for the package, and a PE
(Binary-TensorCore) that is this project's own. Where the device differs the gap says so and no
more.
"""

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import bitwright
from bitwright.experiments import accuracy_study as study
from bitwright.experiments import committed_kernels
from bitwright.quant import FORMATS, InputError
from bitwright.sim import ModelShape, btc, load_shape

from .accuracy import PERPLEXITY, AccuracyTable, claim_rows, claim_table, zero_shot_part
from .cases import BASE, Key, own
from .hardware import TECHNOLOGIES, area, beside, draw_ratios, shown
from .published import gap, published, read_published
from .rebuilt import Paper, Part, ShownTable
from .setting import PaperSetting

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SOURCE = (
    "ABQ-LLM: arbitrary-bit quantised inference, AAAI 2025, arXiv 2408.08554: Tables 2, 3, 4 and "
    "the figures of speed, as they stand in the authors' repository bytedance/ABQ-LLM"
)
_OMNI = "without correction"  # of the study: OmniQuant, which ABQ-LLM starts from
_ABQ = "with correction"
_FEW_STEPS = (
    "learned in 32 steps a block, where the paper gives thousands; at two bits a model of this "
    "size does not work at all and only the order says anything"
)
_NO_METHOD = (
    "SmoothQuant, AffineQuant and I-LLM rows: not among the study's methods at these widths"
)


def _table2_rows() -> dict[str, Key | None]:
    rows: dict[str, Key | None] = {}
    for row in published("abq_accuracy", table="2", quantity=PERPLEXITY):
        widths, method = row["row"].split(", ")
        ours = {"OmniQuant": _OMNI, "ABQ": _ABQ}.get(method)
        rows[row["row"]] = None if ours is None else ("abq", ours, widths)
    return rows


def part_table2(setting: PaperSetting) -> Part:
    """Table 2: weights and activations; with the study's W3A8, which the paper's table lacks."""
    part = AccuracyTable(
        *("abq", "abq_accuracy", "2", "Table 2: WxAy, per channel and per token"),
        _table2_rows(),
        base_table="4",
        reason=_FEW_STEPS,
        missing=_NO_METHOD,
        name="table2",
    ).part(setting)
    cases = [case for case in study.cases(setting.config()) if case.table == "abq"]
    found = setting.rows([BASE, *(case.key for case in cases)])
    claims = claim_rows(study.check_claims(list(found.values())))
    every: list[dict[str, Any]] = [
        {
            "weights": case.weights,
            "method": case.method,
            "recipe": found[case.key].recipe,
            "ours": found[case.key].perplexity,
            "kl": found[case.key].kl,
            "top1": found[case.key].top1,
            "bits_per_weight": found[case.key].bits_per_weight,
        }
        for case in cases
    ]
    widths = list(dict.fromkeys(case.weights for case in cases))
    methods = list(dict.fromkeys(case.method for case in cases))
    value = {(row["weights"], row["method"]): row["ours"] for row in every}
    ours = ShownTable(
        f"All of ours, perplexity; {setting.label()}",
        ("", *methods),
        tuple((w, *(study.show_perplexity(value[w, m]) for m in methods)) for w in widths),
        ("without correction: OmniQuant; with it: ABQ-LLM; W3A8: published value not at hand",),
    )
    claimed = claim_table("What the paper says of Table 2", claims)
    return Part(
        (*part.tables, ours, claimed),
        {**part.data, "study": every, "claims": claims},
        part.figures,
    )


def part_table3(setting: PaperSetting) -> Part:
    """Table 3: zero-shot averages."""
    rows: dict[str, Key] = {}
    for row in published("abq_accuracy", table="3"):
        widths, method = row["row"].split(", ")
        rows[row["row"]] = ("abq", {"OmniQuant": _OMNI, "ABQ": _ABQ}[method], widths)
    title = "Table 3: zero-shot averages"
    return zero_shot_part("table3", "abq", title, "abq_accuracy", "3", rows, setting)


def part_table4(setting: PaperSetting) -> Part:
    """Table 4: weights alone."""
    rows: dict[str, Key | None] = {"FP16": BASE}
    for row in published("abq_accuracy", table="4", quantity=PERPLEXITY):
        if row["row"] != "FP16":
            widths, method = row["row"].split(", ")
            rows[row["row"]] = own(widths, {"OmniQuant": _OMNI, "ABQ": _ABQ}[method])
    return AccuracyTable(
        *("abq", "abq_accuracy", "4", "Table 4: weights alone, per channel", rows),
        base_table="4",
        reason=_FEW_STEPS,
        missing="- : not among the rows that ship; --fresh --out FOLDER measures them",
        name="table4",
    ).part(setting)


# ------------------------------------------------------------------ kernels

_CHECKOUT = Path(bitwright.__file__).resolve().parents[1]  #: with benchmarks/, in a checkout
#: Column of the published figure -> our kernel.
_KERNELS = {
    "w8a8": "W8A8",
    "w4a8": "W4A8",
    "w3a8": "W3A8",
    "w2a8": "W2A8",
    "w2a8, bit planes": "W2A8 planes",
    "w4a4, bit planes": "W4A4 planes",
}
_DEVICE = (
    "the published device is a GPU (not named in the figure), its baseline CUTLASS W8A8, and its "
    "speed-ups follow the bytes of the weights; ours is a processor, its baseline our own W8A8 "
    "kernel in the same run; there unpacking costs as much as the bytes saved where these lie in "
    "the cache, and bit planes cost p x q passes"
)
_OTHER_BASE = "published over CUTLASS W4A4, which has no counterpart here: no gap"


def part_kernels(setting: PaperSetting) -> Part:
    """The kernel speed table: published speed-ups beside the processor kernels' own."""
    document = committed_kernels(kernels=None)
    found = {(r["kernel"], r["m"], r["n"], r["k"]): r for r in document["results"]}
    rows: list[dict[str, Any]] = []
    for m in (1, 4, 8):
        for shape in ("4096x4096", "4096x11008", "11008x4096"):
            n, k = map(int, shape.split("x"))
            base = found["W8A8", m, n, k]
            for column, kernel in _KERNELS.items():
                ours = found[kernel, m, n, k]
                name = column.partition(",")[0]
                (theirs,) = published("abq_kernels", m=str(m), shape=shape, kernel=name)
                speedup = base["ms"] / ours["ms"]
                same = not name.startswith("w4a4")
                value = float(theirs["value"])
                rows.append(
                    {
                        "m": m,
                        "shape": shape,
                        "kernel": column,
                        "ours": speedup,
                        "ours_ms": ours["ms"],
                        "ours_over_float32": ours["speedup_vs_torch_float32"],
                        "published": value,
                        "gap": gap(speedup, value) if same else None,
                        "reason": _DEVICE if same else _OTHER_BASE,
                        "source": theirs["source"],
                    }
                )
    machine = document["machine"]
    notes = (
        "ours / published: speed-up over the 8-bit kernel of the same device; in brackets ours "
        "over torch float32",
        f"device of ours: {machine['processor']}, {machine['threads']} threads; of the published: "
        "a GPU",
        f"why: {_DEVICE}; {_OTHER_BASE}",
        "shapes as printed, taken as n x k",
        "raw run: bitwright bench kernels --committed",
        *(f"published: {source}" for source in dict.fromkeys(row["source"] for row in rows)),
    )
    value_of = {(row["m"], row["shape"], row["kernel"]): row for row in rows}
    lines = []
    for m, shape in dict.fromkeys((row["m"], row["shape"]) for row in rows):
        cells = [value_of[m, shape, column] for column in _KERNELS]
        lines.append(
            (
                f"m = {m}, {shape}",
                *(
                    f"{c['ours']:.2f} / {c['published']:.2f} ({c['ours_over_float32']:.1f})"
                    for c in cells
                ),
            )
        )
    heads = ("", *(column.replace(", ", "\n") for column in _KERNELS))
    table = ShownTable(
        "Kernel speed; ours: a processor, published: a GPU", heads, tuple(lines), notes
    )
    devices, device_data = _devices()
    return Part(
        (table, *devices),
        {"kernels": rows, **device_data},
        {"kernels": partial(_draw_kernels, rows)},
        {"kernel_machine": machine},
    )


def _devices() -> tuple[tuple[ShownTable, ...], dict[str, Any]]:
    """GPU measurements kept in benchmarks/ of a checkout, if there are any."""
    tables: list[ShownTable] = []
    rows: list[dict[str, Any]] = []
    for path in sorted((_CHECKOUT / "benchmarks").glob("*.json")):
        try:
            document = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f"cannot read {path}: {error}; mend or remove it") from None
        found = list(_gemms(document))
        if not found:
            continue
        rows += [{"file": path.name, **row} for row in found]
        lines = tuple(
            (row["precision"], f"{row['m']} x {row['n']} x {row['k']}", f"{row['resident_us']:.1f}")
            for row in found
        )
        tables.append(
            ShownTable(f"On the device of benchmarks/{path.name}", ("", "m x n x k", "us"), lines)
        )
    return tuple(tables), {"device_kernels": rows} if rows else {}


def _gemms(document: Any) -> Any:
    """Rows of `bitwright bench cuda` anywhere in a document."""
    if isinstance(document, dict):
        if {"precision", "m", "n", "k", "resident_us"} <= set(document):
            names = ("precision", "m", "n", "k", "resident_us")
            yield {name: document[name] for name in names}
        else:
            for value in document.values():
                yield from _gemms(value)
    elif isinstance(document, list):
        for value in document:
            yield from _gemms(value)


def _draw_kernels(rows: Sequence[dict[str, Any]]) -> "Figure":
    from .drawing import new_figure

    figure, panels = new_figure(3, 7.0)
    shapes = list(dict.fromkeys(row["shape"] for row in rows))
    for axes, shape in zip(panels, shapes, strict=True):
        for number, m in enumerate((1, 4, 8)):
            own_rows = [row for row in rows if row["m"] == m and row["shape"] == shape]
            at = [place + (number - 1) * 0.26 for place in range(len(own_rows))]
            axes.bar(
                at,
                [row["ours"] for row in own_rows],
                0.26,
                **{"color": ("#555555", "#aaaaaa", "#e0e0e0")[number], "edgecolor": "black"},
                **{"linewidth": 0.5, "label": f"m = {m}"},
            )
            compared = [(x, r["published"]) for x, r in zip(at, own_rows, strict=True) if r["gap"]]
            axes.plot(
                [x for x, _ in compared],
                [y for _, y in compared],
                **{"linestyle": "", "marker": "o", "markersize": 4, "markerfacecolor": "none"},
                **{"markeredgecolor": "#d95f02"},
                label="published, a GPU" if number == 2 else None,
            )
        axes.set_xticks(range(len(_KERNELS)), list(_KERNELS), fontsize=7)
        axes.set_ylabel(f"over 8-bit kernel\n{shape}", fontsize=8)
    panels[0].legend(fontsize=7, ncols=4)
    return figure


# ------------------------------------------------------------------ end to end

_BITS = {"FP16": 16, "W8A8 (SmoothQuant)": 8, "W2A8 (ABQ)": 2}
_SHAPES = {"LLaMA-7B": "llama-7b", "LLaMA-30B": "llama-30b"}
_MEMORY = (
    "ours: weights at their width (embedding and output layer in FP16), FP16 keys and values of "
    "the tokens; scales, activations, work space and the prompt are not counted"
)
_TRAFFIC = (
    "ours: bytes of weights that a token reads, FP16 over the design's: the bound of a device that "
    "waits for memory alone; attention, activations and launches take the rest of the published "
    "time"
)


def weight_bytes(shape: ModelShape, bits: int) -> float:
    """Bytes of all weights, those outside the blocks in FP16."""
    ends = shape.vocab * shape.hidden * (1 if shape.tied_embeddings else 2)
    return shape.layers * _block_weights(shape) * bits / 8 + 2 * ends


def _block_weights(shape: ModelShape) -> int:
    width, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    matrices = 3 if shape.gated else 2
    return shape.hidden * (2 * width + 2 * kv + matrices * shape.ffn)


def part_e2e(setting: PaperSetting) -> Part:
    """The end-to-end figure: memory from shapes, and what traffic alone bounds the speed-up to."""
    rows: list[dict[str, Any]] = []
    latency = {
        (row["tokens"], row["model"], row["design"]): float(row["value"])
        for row in read_published("abq_end_to_end")
        if row["quantity"] == "latency, s"
    }
    for row in published("abq_end_to_end", quantity="memory, GB"):
        shape, tokens = load_shape(_SHAPES[row["model"]]), int(row["tokens"])
        cache = 2 * 2 * shape.layers * shape.kv_heads * shape.head_dim * tokens
        ours = (weight_bytes(shape, _BITS[row["design"]]) + cache) / 1e9
        where = f"{row['model']}, {tokens} tokens, {row['design']}"
        source = row["source"]
        rows.append(beside("memory, GB", where, ours, float(row["value"]), _MEMORY, source))
    for (tokens_, model, design), seconds in latency.items():
        if design == "FP16":
            continue
        shape = load_shape(_SHAPES[model])
        read = {
            bits: shape.layers * _block_weights(shape) * bits / 8 + 2 * shape.vocab * shape.hidden
            for bits in (16, _BITS[design])
        }
        rows.append(
            beside(
                "speed-up over FP16",
                f"{model}, {tokens_} tokens, {design}",
                read[16] / read[_BITS[design]],
                latency[tokens_, model, "FP16"] / seconds,
                _TRAFFIC,
                rows[0]["source"],
            )
        )
    note = (
        "1 GB = 1e9 bytes; tokens: the x axis of the figure, taken as the output length; LLaMA-30B "
        "was published on two devices together"
    )
    title = "End to end: memory and speed-up, from the models' shapes"
    return Part((shown(title, rows, (note,)),), {"end_to_end": rows})


# ------------------------------------------------------------------ the PE

_OWN_PE = "the paper has no hardware: a PE of its arithmetic is this project's own"


def part_pe(setting: PaperSetting) -> Part:
    """Cycles and area of the Binary-TensorCore PE at the paper's widths."""
    rows: list[dict[str, Any]] = []
    for widths, (act_bits, weights) in (
        ("W2A8", (8, "int2-asym")),
        ("W2*A8", (8, "int2b-asym")),
        ("W3A8", (8, "int3-asym")),
        ("W4A4", (4, "int4-asym")),
        ("W6A6", (6, "int6-asym")),
        ("W8A8", (8, "int8-asym")),
    ):
        unit = btc.BtcPE(act_bits=act_bits)
        cycles = unit.step_cycles(FORMATS[weights])
        for technology in TECHNOLOGIES:
            rows.append(
                {
                    "widths": widths,
                    "technology": technology,
                    "cycles": cycles,
                    "macs": unit.k_slice,
                    "area_um2": area("btc", technology),
                    "um2_per_mac": area("btc", technology) * cycles / unit.k_slice,
                    "over_int8": area("btc", technology)
                    * cycles
                    / unit.k_slice
                    / area("int8", technology),
                    "published": None,
                    "gap": None,
                    "reason": _OWN_PE,
                    "source": "",
                }
            )
    lines = []
    for widths in dict.fromkeys(row["widths"] for row in rows):
        own_rows = [row for row in rows if row["widths"] == widths]
        lines.append(
            (
                widths,
                f"{own_rows[0]['cycles']} for {own_rows[0]['macs']}",
                *(f"{row['um2_per_mac']:.1f} ({row['over_int8']:.2f})" for row in own_rows),
                "not at hand",
            )
        )
    note = (
        "um2 per multiply-accumulate a cycle, area x cycles / 128, before layout; in brackets over "
        "the INT8 MAC of the same technology"
    )
    table = ShownTable(
        "Binary-TensorCore PE: cycles are activation bits x weight bits per 128 products",
        ("", "cycles", *TECHNOLOGIES, "published"),
        tuple(lines),
        (note, _OWN_PE),
    )
    named = [
        {"quantity": r["widths"], "where": r["technology"], "ours": r["over_int8"]} for r in rows
    ]
    marks = [{**row, "published": None} for row in named]
    draw = partial(draw_ratios, "Binary-TensorCore PE", "area per MAC over INT8's", marks)
    return Part((table,), {"pe": rows}, {"pe": draw})


PAPER = Paper(
    "abq",
    SOURCE,
    {
        "table2": part_table2,
        "table3": part_table3,
        "table4": part_table4,
        "kernels": part_kernels,
        "end-to-end": part_e2e,
        "pe": part_pe,
    },
)
