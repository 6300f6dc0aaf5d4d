"""Tables of perplexities: the paper's models beside the model at hand.

Perplexities of different models and texts cannot be compared as they are. What is compared is how
many times the unquantised model's perplexity a row has, there and here; `gap` is the difference of
the two, relative to the published one, for the nearest of the paper's models: the one of the same
name, or else the smallest, since small models lose more. Beside that stands how many of the orders
that all of the paper's models agree on come out here.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import combinations
from typing import TYPE_CHECKING, Any

from bitwright.experiments import accuracy_study as study

from .cases import BASE, Key
from .published import gap, published, show_gap
from .rebuilt import Part, ShownTable
from .setting import PaperSetting

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PERPLEXITY = "WikiText-2 perplexity"
_OTHER_MODEL = (
    "another model and another text: ratios to the unquantised model are compared, and a small "
    "model loses more"
)
_SAME_MODEL = (
    "ratios to the unquantised model are compared; text, window and tokens are told in the note"
)


@dataclass(frozen=True, slots=True)
class AccuracyTable:
    """A published table of perplexities and how its rows are made here."""

    paper: str  #: as in `bitwright paper NAME`
    file: str  #: of the published values
    table: str  #: in that file
    title: str
    #: Published row -> the case here; None: the package has no such format.
    rows: Mapping[str, Key | None]
    #: Table in the same file with the rows "FP16" of the paper's models.
    base_table: str
    reason: str = ""  #: for what differs beyond the model
    missing: str = ""  #: why some rows have no case
    name: str = field(default="")  #: of the part and its CSV file

    def part(self, setting: PaperSetting) -> Part:
        """The table rebuilt."""
        wanted = [key for key in self.rows.values() if key is not None]
        found = setting.rows([BASE, *wanted])
        rows = self.compare(found, setting.model)
        notes = self._notes(rows, setting, found)
        shown = self._shown(rows, setting, notes)
        return Part((shown,), {self.name: rows}, {self.name: partial(draw, shown.title, rows)})

    def compare(self, found: Mapping[Key, study.StudyRow], model: str) -> list[dict[str, Any]]:
        """One row per row and model of the published table."""
        base = found[BASE].perplexity
        bases = {
            row["model"]: float(row["value"])
            for row in published(self.file, table=self.base_table, row="FP16", quantity=PERPLEXITY)
        }
        models = self.models()
        near = nearest(model, models)
        same = _plain(near) in _plain(model)
        why = "; ".join(filter(None, (_SAME_MODEL if same else _OTHER_MODEL, self.reason)))
        rows = []
        for label, key in self.rows.items():
            ours = None if key is None else found.get(key)
            ratio = None if ours is None else ours.perplexity / base
            for row in published(self.file, table=self.table, row=label, quantity=PERPLEXITY):
                value, theirs = float(row["value"]), bases[row["model"]]
                rows.append(
                    {
                        "row": label,
                        "recipe": "" if ours is None else ours.recipe,
                        "ours": None if ours is None else ours.perplexity,
                        "ours_over_fp16": ratio,
                        "published_model": row["model"],
                        "published": value,
                        "published_over_fp16": value / theirs,
                        "gap": None if ratio is None else gap(ratio, value / theirs),
                        "nearest": row["model"] == near,
                        "reason": why if ours is not None else self.missing or "not measured",
                        "source": row["source"],
                    }
                )
        return rows

    def models(self) -> list[str]:
        """The paper's models in the table's order, smallest first."""
        rows = published(self.file, table=self.table, quantity=PERPLEXITY)
        return list(dict.fromkeys(row["model"] for row in rows))

    def _notes(
        self,
        rows: Sequence[Mapping[str, Any]],
        setting: PaperSetting,
        found: Mapping[Key, study.StudyRow],
    ) -> tuple[str, ...]:
        alike, agreed = orders(rows)
        near = next(row["published_model"] for row in rows if row["nearest"])
        sources = dict.fromkeys(row["source"] for row in rows)
        first = next(row["reason"] for row in rows if row["ours"] is not None)
        return (
            f"in brackets: times FP16; gap: of ours to that of {near}; {first}",
            f"order: {agreed} of {alike} pairs of rows that all of the paper's models order alike "
            "come out so here",
            *([self.missing] if any(row["ours"] is None for row in rows) and self.missing else []),
            setting.note(self.paper, found.values()),
            f"published, WikiText-2: {'; '.join(sources)}",
        )

    def _shown(
        self, rows: Sequence[Mapping[str, Any]], setting: PaperSetting, notes: tuple[str, ...]
    ) -> ShownTable:
        models = self.models()
        lines = []
        for label in self.rows:
            own = {row["published_model"]: row for row in rows if row["row"] == label}
            any_row = next(iter(own.values()))
            gaps = [row["gap"] for row in own.values() if row["nearest"] and row["gap"] is not None]
            lines.append(
                (
                    label,
                    _cell(any_row["ours"], any_row["ours_over_fp16"]),
                    *(
                        _cell(own[m]["published"], own[m]["published_over_fp16"])
                        if m in own
                        else ""
                        for m in models
                    ),
                    show_gap(gaps[0]) if gaps else "",
                )
            )
        heads = [re.sub(r"^(LLaMA|Llama-[23])-", r"\1\n", model) for model in models]
        title = f"{self.title}; ours: {setting.label()}"
        return ShownTable(title, ("", "ours", *heads, "gap"), tuple(lines), notes)


def _cell(perplexity: float | None, ratio: float | None) -> str:
    if perplexity is None or ratio is None:
        return "-"
    times = f"{ratio:.2f}" if ratio < 100 else f"{ratio:.3g}"
    return f"{study.show_perplexity(perplexity)} ({times})"


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def nearest(model: str, models: Sequence[str]) -> str:
    """The published model of the same name, or else the first, which is the smallest.

    >>> nearest("models/Llama-2-7b-hf", ["OPT-1.3B", "Llama-2-7B"]), nearest("tiny", ["OPT-1.3B"])
    ('Llama-2-7B', 'OPT-1.3B')
    """
    return next((name for name in models if _plain(name) in _plain(model)), models[0])


def orders(rows: Sequence[Mapping[str, Any]]) -> tuple[int, int]:
    """Pairs of rows that all published models order alike, and how many ours orders so too."""
    labels = list(dict.fromkeys(row["row"] for row in rows if row["ours"] is not None))
    ours = {row["row"]: row["ours"] for row in rows}
    theirs = {(row["row"], row["published_model"]): row["published"] for row in rows}
    models = list(dict.fromkeys(row["published_model"] for row in rows))
    alike = agreed = 0
    for one, other in combinations(labels, 2):
        signs = {
            (theirs[one, m] > theirs[other, m]) - (theirs[one, m] < theirs[other, m])
            for m in models
            if (one, m) in theirs and (other, m) in theirs
        }
        if len(signs) == 1 and signs != {0}:
            alike += 1
            agreed += (ours[one] > ours[other]) - (ours[one] < ours[other]) in signs
    return alike, agreed


def draw(title: str, rows: Sequence[Mapping[str, Any]]) -> "Figure":
    """Perplexity over the unquantised model's: bars ours, hollow markers the paper's models."""
    from .drawing import new_figure

    figure, (axes,) = new_figure(1, 4.0)
    labels = list(dict.fromkeys(row["row"] for row in rows))
    ours = {row["row"]: row["ours_over_fp16"] for row in rows}
    axes.bar(
        range(len(labels)),
        [ours[label] or 0.0 for label in labels],
        **{"color": "#c7c7c7", "edgecolor": "black", "linewidth": 0.5, "label": "ours"},
    )
    models = list(dict.fromkeys(row["published_model"] for row in rows))
    for model, marker in zip(models, "osD^vP", strict=False):
        points = [
            (labels.index(row["row"]), row["published_over_fp16"])
            for row in rows
            if row["published_model"] == model
        ]
        axes.plot(
            [x for x, _ in points],
            [y for _, y in points],
            **{"linestyle": "", "marker": marker, "markersize": 4, "markerfacecolor": "none"},
            **{"markeredgecolor": "#d95f02", "label": f"published, {model}"},
        )
    axes.set_yscale("log")
    axes.set_xticks(range(len(labels)), labels, rotation=30, ha="right", fontsize=7)
    axes.set_ylabel("perplexity over that of FP16")
    axes.set_title(title, fontsize=8)
    axes.grid(alpha=0.3, axis="y")
    axes.legend(fontsize=7)
    return figure


# ------------------------------------------------------------------ first choices for zero-shot

_STAND_IN = (
    "zero-shot tasks need data that is not at hand; instead stands how many first choices of the "
    "next token change, in points, which is no accuracy: only orders can be compared, there is no "
    "gap. With data: bitwright.quant.zero_shot_scores"
)


def zero_shot_part(
    name: str,
    paper: str,
    title: str,
    file: str,
    table: str,
    rows: Mapping[str, Key],
    setting: PaperSetting,
) -> Part:
    """A table of zero-shot accuracies beside changed first choices of the model at hand."""
    found = setting.rows([BASE, *rows.values()])
    data: list[dict[str, Any]] = []
    for row in published(file, table=table):
        ours = found.get(rows[row["row"]])
        data.append(
            {
                "row": row["row"],
                "published_model": row["model"],
                "ours": None if ours is None else -100 * (1 - ours.top1),
                "quantity": row["quantity"],
                "published": float(row["value"]),
                "gap": None,
                "reason": _STAND_IN,
                "source": row["source"],
            }
        )
    models = list(dict.fromkeys(row["published_model"] for row in data))
    lines = []
    for label in rows:
        own = {row["published_model"]: row for row in data if row["row"] == label}
        ours = next(iter(own.values()))["ours"]
        lines.append(
            (
                label,
                "-" if ours is None else f"{ours:+.1f}",
                *(f"{own[m]['published']:.2f}" if m in own else "" for m in models),
            )
        )
    notes = (
        _STAND_IN,
        setting.note(paper, found.values()),
        f"published: {data[0]['quantity']}; {data[0]['source']}",
    )
    shown = ShownTable(
        f"{title}; ours: {setting.label()}",
        ("", "ours, points", *(f"published, {model}" for model in models)),
        tuple(lines),
        notes,
    )
    return Part((shown,), {name: data})


def claim_rows(verdicts: Sequence[study.Verdict]) -> list[dict[str, Any]]:
    """What a paper says of the order of its rows, and whether ours have it."""
    return [
        {
            "source": verdict.claim.source,
            "says": verdict.claim.says,
            "holds": verdict.holds,
            "of": len(verdict.claim.pairs),
            "numbers": verdict.numbers,
        }
        for verdict in verdicts
    ]


def claim_table(title: str, claims: Sequence[dict[str, Any]]) -> ShownTable:
    """Orderings that a paper reports and whether they hold here."""
    lines = tuple(
        (claim["says"], f"{claim['holds']} of {claim['of']}", claim["numbers"]) for claim in claims
    )
    sources = dict.fromkeys(claim["source"] for claim in claims)
    return ShownTable(
        title,
        ("the paper says", "holds", "perplexities"),
        lines,
        (f"claims: {'; '.join(sources)}",),
        prose=True,
    )
