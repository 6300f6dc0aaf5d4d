"""What results of all kinds have in common: their origin, sources, cards, stacks of bars."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

import bitwright
from bitwright.sim import CAUSES

from .documents import Meta, Source
from .explored import Point, Stack, Value
from .values import label, plain, text_of

PHASES = ("prefill", "decode")
_WORDS = {
    "fill": "fill",
    "port": "waiting for ports",
    "conflict": "bank conflicts",
    "scale": "waiting for scales",
    "drain": "drain",
    "dram": "waiting for DRAM",
    "latency": "DRAM latency",
}


def origin(meta: Meta) -> str:
    return (
        f"bitwright {label(meta.bitwright)}, commit {label(meta.commit)}, seed {meta.seed}, "
        f"shown by bitwright {bitwright.__version__}"
    )


def settings(meta: Meta) -> dict[str, Value]:
    """What the run's description says in single values."""
    extra = meta.model_extra or {}
    return {label(key): plain(v) for key, v in extra.items() if not isinstance(v, dict | list)}


def command(meta: Meta) -> str | None:
    return None if meta.command is None else text_of(meta.command)


def sources(rows: Sequence[Source]) -> list[tuple[str, str]]:
    """Sources without the numbers of records, each once."""
    pairs = ((re.sub(r"\[\d+\]", "[]", row.quantity), row.source) for row in rows)
    return list(dict.fromkeys((label(quantity), text_of(source)) for quantity, source in pairs))


def _card(card: Mapping[str, Any]) -> dict[str, str]:
    """A calibration card's lines; sources and what is not modelled in lines of their own."""
    lines: dict[str, str] = {}
    for name, value in card.items():
        if name == "sources" and isinstance(value, dict):
            lines |= {f"source of {label(k)}": text_of(str(v)) for k, v in value.items()}
        elif isinstance(value, list):
            lines[label(name.replace("_", " "))] = text_of("; ".join(map(str, value)))
        elif value:
            lines[label(name.replace("_", "-"))] = text_of(str(value))
    return lines


def cards(value: Any) -> dict[str, dict[str, str]]:
    """Cards by design: a card, or a mapping of them."""
    if not isinstance(value, dict):
        return {}
    if "technology" in value:
        return {"all": _card(value)}
    return {label(name): _card(card) for name, card in value.items() if isinstance(card, dict)}


def vector_busy(point: dict[str, Value], phase: str) -> int | None:
    """Cycles in which the vector unit computes: what is neither computing nor waiting."""
    names = ("cycles", "busy_cycles", *(f"stall_{cause}_cycles" for cause in CAUSES))
    values = [point.get(f"{phase}_{name}") for name in names]
    if not all(isinstance(value, int) for value in values):
        return None
    whole, *parts = (int(value) for value in values if value is not None)
    return whole - sum(parts)


def phase_stacks(points: Sequence[Point]) -> list[Stack]:
    """Energy and latency of the phases, as far as the points know them."""
    columns = {name for point in points for name, value in point.items() if value is not None}
    stacks = []
    for phase in PHASES:
        parts = {
            part if part in ("logic", "leakage") else part.upper(): f"{phase}_{part}_uJ"
            for part in ("logic", "sram", "dram", "leakage")
        }
        stacks.append(Stack(f"energy, {phase}", "mJ", parts, 1e-3))
    for phase in PHASES:
        parts = {"computing": f"{phase}_busy_cycles"}
        detailed = {_WORDS[c]: f"{phase}_stall_{c}_cycles" for c in CAUSES}
        if columns & set(detailed.values()):
            parts |= detailed | {"vector unit computing": f"{phase}_vector_busy_cycles"}
        else:
            parts |= {"waiting": f"{phase}_stall_cycles"}
        stacks.append(Stack(f"latency, {phase}", "ms", parts, 1e-9, "clock_ps"))
    return [stack for stack in stacks if columns & set(stack.parts.values())]


def axes_of(points: Sequence[Point], wanted: Sequence[str]) -> tuple[str, str]:
    """The first two of the columns wanted that tell points apart."""

    def apart(name: str) -> bool:
        values = {point.get(name) for point in points} - {None}
        return len(values) > 1 and all(isinstance(value, int | float) for value in values)

    named = list(dict.fromkeys(wanted))
    useful = [name for name in named if apart(name)]
    useful += [name for name in named if name not in useful]
    return useful[0], useful[1]
