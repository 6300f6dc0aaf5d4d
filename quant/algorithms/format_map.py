"""A format of its own for every linear, written down: what a search over mixed precision finds.

    w4g64-bitmod+formats:choose=bitmod4|int8-sym,map=0001000...

One digit per linear says which of the formats it gets, layer by layer in the order of `LINEARS`
(with `choose` of a single name, all of them). Digits go on behind 9 with a, b, ... z. Groups and
their scales are those that the recipe's head says; formats with a block have their own. Formats
that no linear gets are left out of the name, and the others stand in the order in which the map
first names them, so that equal maps have equal names. No data is needed.
"""

from typing import Any, ClassVar, Literal

import numpy as np
from pydantic import model_validator

from bitwright.quant import FORMATS, InputError, QuantizedTensor, SiteStats

from .base import Algorithm, BlockTask, Phase

#: Linears of a block by local name, in order of use.
LINEARS = ("attn.q", "attn.k", "attn.v", "attn.o", "ffn.gate", "ffn.up", "ffn.down")
_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"


class FormatMap(Algorithm):
    """Rounds every linear to nearest in the format that its digit names."""

    name: Literal["formats"] = "formats"
    phase: ClassVar[Phase] = "round"
    needs_data: ClassVar[bool] = False
    choose: tuple[str, ...]  #: names of formats, at most 36
    map: str  #: a digit per linear

    @model_validator(mode="before")
    @classmethod
    def _canonical(cls, fields: Any) -> Any:
        """Checked, and with the formats in the order in which the map first names them."""
        if not isinstance(fields, dict):
            return fields
        choose, digits = fields.get("choose", ()), fields.get("map", "")
        names = (choose,) if isinstance(choose, str) else tuple(choose)
        if not names or not digits:
            raise InputError("formats needs choose=format|format and map=0110..., a digit a linear")
        for name in names:
            if name not in FORMATS:
                raise InputError(f"unknown format {name!r}; formats are named as in FORMATS")
        if len(set(names)) < len(names) or len(names) > len(_DIGITS):
            raise InputError(
                f"choose has {len(names)} formats; at most {len(_DIGITS)}, each of them once"
            )
        allowed = _DIGITS[: len(names)]
        wrong = next((digit for digit in digits if digit not in allowed), None)
        if wrong is not None:
            raise InputError(
                f"map has the digit {wrong!r}; the {len(names)} formats of choose are "
                f"{allowed[0]} to {allowed[-1]}"
            )
        order = list(dict.fromkeys(digits))
        moved = {old: _DIGITS[new] for new, old in enumerate(order)}
        return {
            **fields,
            "choose": tuple(names[allowed.index(digit)] for digit in order),
            "map": "".join(moved[digit] for digit in digits),
        }

    @classmethod
    def of(cls, names: tuple[str, ...], numbers: Any) -> "FormatMap":
        """The map that gives linear i the format `names[numbers[i]]`."""
        return cls(choose=names, map="".join(_DIGITS[int(number)] for number in numbers))

    @property
    def formats(self) -> tuple[str, ...]:
        """The formats that there are."""
        return self.choose

    @property
    def chosen(self) -> tuple[str, ...]:
        """The format of every linear, layer by layer."""
        return tuple(self.choose[_DIGITS.index(digit)] for digit in self.map)

    def short(self) -> str:
        """ "formats 84 bitmod3, 126 bitmod4"."""
        counts = {name: self.chosen.count(name) for name in self.choose}
        return "formats " + ", ".join(f"{count} {name}" for name, count in counts.items())

    def format_of(self, layer: int, linear: str) -> str:
        """The format of a linear, by its local name."""
        return self.chosen[layer * len(LINEARS) + LINEARS.index(linear)]

    def check(self, layers: int) -> None:
        """Refuse a map for another number of layers.

        Raises:
            InputError: Says how many digits are needed.
        """
        needed = layers * len(LINEARS)
        if len(self.map) != needed:
            raise InputError(
                f"map of formats has {len(self.map)} digits; the model has {layers} layers of "
                f"{len(LINEARS)} linears, so {needed} are needed"
            )

    def round(
        self, block: BlockTask, name: str, w: np.ndarray, stats: SiteStats | None
    ) -> QuantizedTensor:
        """The codes of weights [n, k]; `stats` are not read."""
        return block.round(w, name)
