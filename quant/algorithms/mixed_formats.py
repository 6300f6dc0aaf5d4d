"""A format of its own for every linear: the candidate with the least output error.

Formats that choose per group (BitMoD's special values, ANT's types) do so in rounding; this step
chooses per layer among formats of the same or other widths. ANT (Guo et al., MICRO 2022) chooses a
type per tensor by mean square error of the weights; here the error is that of the layer's output.
"""

from typing import ClassVar, Literal

import numpy as np
from pydantic import field_validator

from bitwright.quant import FORMATS, InputError, QuantizedTensor, SiteStats

from .base import Algorithm, BlockTask, Phase, gram_error


class MixedFormats(Algorithm):
    """Rounds to nearest in every candidate format and keeps the best."""

    name: Literal["mixed"] = "mixed"
    phase: ClassVar[Phase] = "round"
    reads_quantized_stream: ClassVar[bool] = True
    formats: tuple[str, ...]  #: names of formats, tried in this order; the first wins ties

    @field_validator("formats", mode="before")
    @classmethod
    def _known(cls, formats: object) -> object:
        names = (formats,) if isinstance(formats, str) else formats
        if isinstance(names, list | tuple):
            for name in names:
                if name not in FORMATS:
                    raise InputError(f"unknown format {name!r}; formats are named as in FORMATS")
        return names

    def round(
        self, block: BlockTask, name: str, w: np.ndarray, stats: SiteStats
    ) -> QuantizedTensor:
        """The codes of weights [n, k], whose inputs gave `stats` with a Gram matrix."""
        from bitwright.quant import quantize

        assert stats.gram is not None
        best, least = None, np.inf
        for candidate in self.formats:
            format = FORMATS[candidate]
            size = format.block or block.recipe.group_size or w.shape[1]
            scales = block.recipe.scale_format if format.block is None else None
            tensor = quantize(w, format, size, scales)
            error = gram_error(tensor.dequantize() - w, stats.gram)
            if best is None or error < least:
                best, least = tensor, error
        assert best is not None
        return best
