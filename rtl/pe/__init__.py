"""RTL generators of the processing elements, and what verifies them.

A new PE is a file here, one in `sim/pe/` and a row in `DESIGNS`.
"""

from collections.abc import Mapping

from .bitmod import BitmodDesign
from .design import Design, TensorCase
from .fp16 import Fp16Config, Fp16Design

DESIGNS: Mapping[str, Design] = {
    design.name: design
    for design in (BitmodDesign(), Fp16Design(), Fp16Design(Fp16Config(acc="fp16")))
}

__all__ = ["DESIGNS", "Design", "TensorCase"]
