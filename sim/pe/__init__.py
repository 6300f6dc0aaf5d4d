"""Processing elements: each file holds one PE's definition and its fast model.

A new PE is a file here, one in `rtl/pe/` and a row in `PES`.
"""

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from bitwright.quant import Format

from .ant import AntPE
from .bitmod import BitmodPE
from .blocks import Mxfp4PE, Mxint8PE, Nvfp4PE
from .btc import BtcPE
from .dint import DintPE
from .fp16 import Fp16Config, Fp16PE
from .fp16int import Fp16IntPE
from .integer import IntegerPE
from .lut import LutPE
from .olive import OlivePE
from .ternary import TernaryPE


class PE(Protocol):
    """What arrays, evaluation and verification ask of a PE."""

    @property
    def name(self) -> str:
        """Its name in tables and on the command line."""

    @property
    def lanes(self) -> int:
        """Multiply-accumulates of one step."""

    def step_cycles(self, fmt: Format | None) -> int:
        """Cycles of one step for weights of this format (None: FP16)."""

    def check(self, qt: Any) -> None:
        """Refuse a tensor that the PE cannot run."""

    @property
    def act_formats(self) -> tuple[str, ...]:
        """Names of the activation formats that it runs; "fp16" for plain numbers."""

    def gemm(self, x: Any, w: Any, exact_scales: bool = False) -> np.ndarray:
        """y[m, n] = x[m, k] @ w[n, k].T as the hardware gives it, float32.

        With `exact_scales` its accumulators, to which the scales are applied in float64.
        """

    def reference(self, x: Any, w: Any, exact_scales: bool = False) -> np.ndarray:
        """The same through the slow definition."""


PES: Mapping[str, PE] = {
    pe.name: pe
    for pe in (
        BitmodPE(),
        DintPE(),
        DintPE(asymmetric=True),
        DintPE(lanes=16),
        BtcPE(),
        BtcPE(unrolled=(8, 2)),
        Fp16PE(),
        Fp16PE(Fp16Config(acc="fp16")),
        IntegerPE(),
        IntegerPE(lanes=16),
        IntegerPE(weight_bits=4),
        IntegerPE(4, 4),
        Fp16IntPE(),
        Fp16IntPE(8),
        AntPE(),
        OlivePE(),
        Mxfp4PE(),
        Mxint8PE(),
        Nvfp4PE(),
        TernaryPE(),
        LutPE(),
    )
}

__all__ = ["PE", "PES"]
