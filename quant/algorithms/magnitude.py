"""Magnitude pruning: the smallest weights go, whatever their inputs; the baseline of Wanda's paper.

Unstructured, weights compete within their whole matrix, so rows lose different shares; a row that
would lose all its weights is refused, unless `empty_rows` allows it. With a pattern N:M each run of
M keeps its N largest. No data is read. The pruned matrices are stored as `masked.py` says.
"""

from typing import ClassVar, Literal

import numpy as np

from .base import BlockTask
from .pruning import Pruning


class Magnitude(Pruning):
    """Prunes a block's linears by their weights alone."""

    name: Literal["magnitude"] = "magnitude"
    needs_data: ClassVar[bool] = False
    by_row: ClassVar[bool] = False
    empty_rows: bool = False  #: whether rows may lose all their weights; a note says which do

    def apply(self, block: BlockTask) -> None:
        from bitwright.quant import SITE_OF

        for name in SITE_OF:
            self.prune(block, name, np.abs(block.to_round(name)), self.empty_rows)
