"""The names of a sweep: what can be set, and what a point's record answers.

One table each. A setting is a knob of `bitwright simulate` under the same name as in its JSON; a
result is a number of a record, and says what must be measured for it to be there.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from bitwright.quant import FORMATS, InputError, resolve_recipe
from bitwright.sim import CAUSES, PES, find_dram, load_shape, pick

Kind = Literal["int", "float", "text"]


def _recipe(text: str) -> None:
    resolve_recipe(text).require_codes()


def _pe(text: str) -> None:
    pick(PES, text, "pe")


def _kv(text: str) -> None:
    if text != "fp16":
        pick(FORMATS, text, "kv")


def _ports(text: str) -> None:
    if text not in ("1r1w", "1rw"):
        raise InputError(f"sram_ports is {text!r}; 1r1w or 1rw")


def _technology(text: str) -> None:
    from bitwright.rtl import resolve_technology

    resolve_technology(text)


def _anything(text: str) -> None:
    pass


@dataclass(frozen=True, slots=True)
class Setting:
    """One thing that a sweep can set."""

    kind: Kind
    least: float = 1  #: numbers: the smallest allowed
    most: float = math.inf
    check: Callable[[str], Any] = _anything  #: texts: raises `InputError` for an unknown name
    array: bool = False  #: a field of `Accelerator`; its default is that of the PE's array
    default: int | float | str | None = None


SETTINGS: dict[str, Setting] = {
    "shape": Setting("text", check=load_shape),
    "model": Setting("text"),
    "recipe": Setting("text", check=_recipe, default="bitmod4"),
    "algorithm": Setting("text", default=""),
    "pe": Setting("text", check=_pe),
    "rows": Setting("int", most=65536, array=True),
    "cols": Setting("int", most=65536, array=True),
    "lanes": Setting("int", most=4096, array=True),
    "weight_buffer_kib": Setting("int", most=2**24, array=True),
    "activation_buffer_kib": Setting("int", most=2**24, array=True),
    "banks": Setting("int", most=1024, array=True),
    "sram_ports": Setting("text", check=_ports, array=True),
    "weight_lane_bits": Setting("int", most=1024, array=True),
    "activation_lane_bits": Setting("int", most=1024, array=True),
    "dram": Setting("text", check=find_dram, array=True),
    "clock_ps": Setting("float", least=1, most=1e9, array=True),
    "technology": Setting("text", check=_technology, default="nangate45"),
    "batch": Setting("int", most=2**20, default=1),
    "prompt": Setting("int", most=2**24, default=256),
    "generate": Setting("int", most=2**20),
    "context": Setting("int", most=2**24, default=256),
    "kv": Setting("text", check=_kv, default="fp16"),
    "voltage": Setting("float", least=0.01, most=10),
    "post_layout": Setting("float", least=0.01, most=100, default=1.0),
}

#: What must be on for a result to be there.
Needs = Literal["accuracy", "area", "energy", "generate"]


@dataclass(frozen=True, slots=True)
class Result:
    """One number of a record."""

    kind: Kind
    needs: tuple[Needs, ...] = ()
    best: Literal["least", "most"] = "least"  #: what an objective looks for


def _phase(phase: str) -> dict[str, Result]:
    return {
        f"{phase}_latency_s": Result("float"),
        f"{phase}_tokens_per_s": Result("float", best="most"),
        f"{phase}_dram_bytes": Result("int"),
        f"{phase}_energy_uJ": Result("float", ("energy",)),
        f"{phase}_logic_uJ": Result("float", ("energy",)),
        **{f"{phase}_{part}_uJ": Result("float") for part in ("sram", "dram", "leakage")},
        **{f"{phase}_{part}cycles": Result("int") for part in ("", "busy_", "stall_", "vector_")},
        **{f"{phase}_stall_{cause}_cycles": Result("int") for cause in CAUSES},
    }


RESULTS: dict[str, Result] = {
    "bits_per_weight": Result("float"),
    "nominal_bits": Result("int"),
    "perplexity": Result("float", ("accuracy",)),
    "area_mm2": Result("float", ("area",)),
    **_phase("prefill"),
    **_phase("decode"),
    "memory_energy_uJ": Result("float"),
    "ttft_s": Result("float", ("generate",)),
    "tpot_s": Result("float", ("generate",)),
    "latency_s": Result("float", ("generate",)),
    "tokens_per_s": Result("float", ("generate",), best="most"),
    "energy_uJ": Result("float", ("energy",)),
    "energy_per_token_uJ": Result("float", ("generate", "energy")),
}

#: The kind of every setting and result.
KINDS: dict[str, Kind] = {
    **{name: setting.kind for name, setting in SETTINGS.items()},
    **{name: result.kind for name, result in RESULTS.items()},
}

#: What a point's row in the store has, in order: hash of what decides it, "ok" or "failed", the
#: failure in one line or None, its settings, its results.
COLUMNS = ("key", "status", "error", *SETTINGS, *RESULTS)

Row = tuple[Any, ...]  #: values of COLUMNS
