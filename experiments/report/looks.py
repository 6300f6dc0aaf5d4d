"""What a design looks like in every figure: one table of colours, markers, hatchings.

A colour belongs to a family of number formats, whose recipe and PE share it. Colours are those of
Okabe and Ito ("Color Universal Design", 2008), which people with any colour vision tell apart. In
grey some of them come close, so no two families share a marker, and parts of a bar that are closer
than `LEAST_LIGHTNESS` differ in hatching; a test compares all pairs.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

from bitwright.quant import FORMATS

#: Least difference of CIE lightness L* (0 black .. 100 white) that counts as a different grey.
LEAST_LIGHTNESS = 8.0


@dataclass(frozen=True, slots=True)
class Look:
    """How one family is drawn."""

    colour: str  #: #rrggbb
    marker: str  #: matplotlib's
    symbol: str  #: the same marker, plotly's name


#: Families of number formats, in the order of legends.
FAMILIES: dict[str, Look] = {
    "fp16": Look("#000000", "s", "square"),
    "int": Look("#0072b2", "o", "circle"),
    "fp": Look("#009e73", "^", "triangle-up"),
    "bitmod": Look("#d55e00", "D", "diamond"),
    "dint": Look("#cc79a7", "v", "triangle-down"),
    "bit planes": Look("#56b4e9", "P", "cross"),
    "ant": Look("#e69f00", "<", "triangle-left"),
    "olive": Look("#f0e442", ">", "triangle-right"),
    "mx": Look("#0072b2", "X", "x"),
    "nvfp4": Look("#009e73", "*", "star"),
    "ternary": Look("#d55e00", "p", "pentagon"),
    "lut": Look("#cc79a7", "h", "hexagon"),
    "mixed": Look("#666666", "d", "diamond-tall"),
    "other": Look("#bbbbbb", "8", "octagon"),
}

#: Letters of a name -> family; of several that a name holds, the first in this order counts.
_WORDS = {
    "formats": "mixed",
    "mixed": "mixed",
    "bitmod": "bitmod",
    "dint": "dint",
    "nvfp": "nvfp4",
    "mxfp": "mx",
    "mxint": "mx",
    "olive": "olive",
    "ant": "ant",
    "flint": "ant",
    "pot": "ant",
    "ternary": "ternary",
    "abq": "bit planes",
    "btc": "bit planes",
    "binary": "bit planes",
    "billm": "bit planes",
    "dbllm": "bit planes",
    "pbllm": "bit planes",
    "littlebit": "bit planes",
    "binarymos": "bit planes",
    "bitnet": "ternary",
    "anyprecision": "lut",
    "aqlm": "lut",
    "lut": "lut",
    "int": "int",
    "xint": "int",
    "finequant": "int",
    "fp": "fp",
}

#: Parts of bars, the first at the bottom: colour, matplotlib's hatching, plotly's nearest pattern.
PARTS: tuple[tuple[str, str, str], ...] = (
    ("#222222", "", ""),
    ("#0072b2", "///", "/"),
    ("#d55e00", "", ""),
    ("#56b4e9", "...", "."),
    ("#e69f00", "", ""),
    ("#bbbbbb", "xxx", "x"),
    ("#f0e442", "", ""),
    ("#ffffff", "---", "-"),
    ("#009e73", "+++", "+"),
)

#: Bits of a format -> colour of a heat map; the fewer the lighter (cividis).
_BITS = {
    1: "#fee838",
    2: "#e1cc55",
    3: "#bcae6c",
    4: "#958f78",
    5: "#7c7b78",
    6: "#666970",
    8: "#35456c",
    16: "#00224e",
}
_HEAT_HATCHES = ("", "///", "...", "xxx", "\\\\\\", "++", "oo", "---")


def family(name: str) -> str:
    """The family of a recipe, a format or a PE.

    >>> [family(name) for name in ("fp16", "w4g128-int-asym+awq", "bitmod3", "w4-fp-s8", "btc")]
    ['fp16', 'int', 'bitmod', 'fp', 'bit planes']
    """
    head, _, steps = name.lower().partition("+")
    if re.search(r"(^|\+)(formats|mixed)\b", steps):
        return "mixed"
    if re.fullmatch(r"fp16(acc16)?", head):
        return "fp16"
    words = set(re.findall(r"[a-z]+", head))
    return next((kind for word, kind in _WORDS.items() if word in words), "other")


def lightness(colour: str) -> float:
    """CIE lightness L* of an sRGB colour, 0 to 100: what a grey print keeps of it.

    >>> round(lightness("#000000")), round(lightness("#777777")), round(lightness("#ffffff"))
    (0, 50, 100)
    """
    parts = [int(colour[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
    y = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
    return 116 * y ** (1 / 3) - 16 if y > 0.008856 else 903.3 * y


@dataclass(frozen=True, slots=True)
class FormatLook:
    """How one number format is drawn in a heat map."""

    bits: int | None  #: None: not a format of this package
    colour: str  #: of its width
    hatch: str  #: tells formats of one width apart


def bits_of(name: str) -> int | None:
    """Bits of a code of a format, None for an unknown one."""
    if name == "fp16":
        return 16
    return FORMATS[name].bits if name in FORMATS else None


def format_looks(names: Iterable[str]) -> dict[str, FormatLook]:
    """Looks of formats, widest last; unknown ones are white.

    >>> {name: (look.bits, look.hatch) for name, look in format_looks(["fp4", "int4-sym"]).items()}
    {'fp4': (4, ''), 'int4-sym': (4, '///')}
    """
    looks: dict[str, FormatLook] = {}
    for name in sorted(set(names), key=lambda name: (bits_of(name) or 99, name)):
        bits = bits_of(name)
        of_one_width = sum(look.bits == bits for look in looks.values())
        hatch = _HEAT_HATCHES[of_one_width % len(_HEAT_HATCHES)]
        if bits is None:
            looks[name] = FormatLook(None, "#ffffff", hatch)
        else:
            width = min(_BITS, key=lambda known: abs(known - bits))
            looks[name] = FormatLook(bits, _BITS[width], hatch)
    return looks
