"""RTL generators of the processing elements, and what verifies them.

A new PE is a file here, one in `sim/pe/` and a row in `DESIGNS`.
"""

from collections.abc import Mapping

from .bitmod import BitmodDesign
from .design import Design, TensorCase

DESIGNS: Mapping[str, Design] = {design.name: design for design in (BitmodDesign(),)}

__all__ = ["DESIGNS", "Design", "TensorCase"]
