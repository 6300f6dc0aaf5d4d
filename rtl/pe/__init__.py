"""RTL generators of the processing elements, and what verifies them.

A new PE is a file here, one in `sim/pe/` and a row in `DESIGNS`.
"""

from collections.abc import Mapping

from . import heap, logic
from .ant import AntDesign
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
from .olive import OliveDesign
from .ternary import TernaryDesign

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

__all__ = [
    "DESIGNS",
    "Decoder",
    "Design",
    "DintDesign",
    "DintPE",
    "DotDesign",
    "TensorCase",
    "heap",
    "logic",
]
