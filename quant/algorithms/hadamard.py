"""Hadamard rotation of the residual stream, as a step of a recipe.

QuaRot (Ashkboos et al., NeurIPS 2024, arXiv 2404.00456): a rotated residual stream has no outlier
channels, and the rotation disappears in the weights. The matrices are in `hadamard_matrix.py`, what
happens to a block's weights in `rotation.py`. Only rotations that cost nothing at run time are
made: the residual stream, and values within a head.
"""

from typing import ClassVar, Literal

from pydantic import Field

from .base import Algorithm, Phase


class Hadamard(Algorithm):
    """Randomised Hadamard rotations, merged into the weights before anything else happens."""

    name: Literal["hadamard"] = "hadamard"
    phase: ClassVar[Phase] = "rotate"
    needs_format: ClassVar[bool] = False
    needs_data: ClassVar[bool] = False
    seed: int = Field(default=0, ge=0)  #: of the random signs
    heads: bool = True  #: rotate values within each head as well
