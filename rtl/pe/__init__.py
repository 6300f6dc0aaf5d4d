"""RTL generators of the processing elements, and what verifies them.

A new PE is a file here, one in `sim/pe/` and a row in `DESIGNS`.
"""

import difflib
import re
from collections.abc import Callable, Mapping

from bitwright.quant import InputError

from . import bitmod, fp16, heap, logic
from .ant import AntDesign, AntPE
from .bitmod import BitmodDesign
from .blocks import Mxfp4Design, Mxint8Design, Nvfp4Design
from .btc import BtcDesign, BtcPE
from .decoders import Decoder
from .design import Design, TensorCase
from .dint import DintDesign, DintPE
from .dot import DotDesign
from .fp16 import Fp16Config, Fp16Design
from .fp16int import Fp16IntDesign, Fp16IntPE
from .integer import IntegerDesign, IntegerPE
from .lut import LutDesign
from .olive import OliveDesign, OlivePE
from .ternary import TernaryDesign, TernaryPE

DESIGNS: Mapping[str, Design] = {
    design.name: design
    for design in (
        BitmodDesign(),
        DintDesign(),
        DintDesign(DintPE(asymmetric=True)),
        DintDesign(DintPE(lanes=16)),
        BtcDesign(),
        BtcDesign(BtcPE(unrolled=(8, 2))),
        Fp16Design(),
        Fp16Design(Fp16Config(acc="fp16")),
        IntegerDesign(),
        IntegerDesign(IntegerPE(lanes=16)),
        IntegerDesign(IntegerPE(weight_bits=4)),
        IntegerDesign(IntegerPE(4, 4)),
        Fp16IntDesign(),
        Fp16IntDesign(Fp16IntPE(8)),
        AntDesign(),
        OliveDesign(),
        Mxfp4Design(),
        Mxint8Design(),
        Nvfp4Design(),
        TernaryDesign(),
        LutDesign(),
    )
}

#: Shapes beyond those of `DESIGNS`, by name: pattern -> design of its match.
VARIANTS: Mapping[str, Callable[[re.Match[str]], Design]] = {
    r"dint(\d)(-asym)?(?:-dot(\d+))?": lambda m: DintDesign(
        DintPE(bits=int(m[1]), asymmetric=bool(m[2]), lanes=int(m[3] or 1))
    ),
    r"int(\d)(?:x(\d))?(?:-dot(\d+))?": lambda m: IntegerDesign(
        IntegerPE(act_bits=int(m[2] or m[1]), weight_bits=int(m[1]), lanes=int(m[3] or 1))
    ),
    r"btc(?:-k(\d+))?(?:-w(\d)a(\d))?": lambda m: BtcDesign(
        BtcPE(k_slice=int(m[1] or 128), unrolled=(int(m[3]), int(m[2])) if m[2] else None)
    ),
    r"fp16xint(\d)": lambda m: Fp16IntDesign(Fp16IntPE(int(m[1]))),
    r"ant(5?)(?:-dot(\d+))?": lambda m: AntDesign(AntPE(bits=int(m[1] or 4), lanes=int(m[2] or 1))),
    r"olive-dot(\d+)": lambda m: OliveDesign(OlivePE(lanes=int(m[1]))),
    r"ternary-dot(\d+)": lambda m: TernaryDesign(TernaryPE(lanes=int(m[1]))),
}


def find_design(pe: str) -> Design:
    """The design of that name, one of `DESIGNS` or a variant such as dint6-asym or btc-w4a4.

    Raises:
        InputError: There is none; the message names the nearest. Or the shape cannot be built.

    >>> find_design("dint5").name, find_design("btc-k64-w2a4").top
    ('dint5', 'btc_k64_w2a4_l64_acc32_s2')
    """
    if pe in DESIGNS:
        return DESIGNS[pe]
    for pattern, make in VARIANTS.items():
        match = re.fullmatch(pattern, pe)
        if match:
            return make(match)
    near = difflib.get_close_matches(pe, DESIGNS, n=1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise InputError(f"unknown PE {pe!r}; {hint}there are: {', '.join(DESIGNS)}")


__all__ = [
    "DESIGNS",
    "Decoder",
    "Design",
    "DintDesign",
    "DintPE",
    "DotDesign",
    "TensorCase",
    "bitmod",
    "find_design",
    "fp16",
    "heap",
    "logic",
]
