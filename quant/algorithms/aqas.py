"""AQAS: scales that minimise the output error with weights and activations quantised.

Lee et al., EMNLP 2023 (arXiv 2311.05161): per input channel,

    s* = argmin_s E | Q_W(W diag(s)) Q_X(diag(s)^-1 X) - W X |**2

AWQ has the same objective with X as it is; SmoothQuant sets s without a search. The paper's search
space is not known to us; this one is the project's own choice: AWQ's 20 candidates (mean|X|**ratio,
see `awq.py`), and, with `family="both"`, 20 of SmoothQuant's (alpha = 0.05, 0.1, ..., 1). The first
candidate is no scaling. The error is measured on a seeded sample of the calibration tokens.
"""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np
from pydantic import Field

from bitwright.quant import Need

from .awq import awq_scales
from .base import Algorithm, BlockTask, Phase
from .smoothquant import smoothing_scales

if TYPE_CHECKING:
    import torch


class Aqas(Algorithm):
    """Scale search with both operands quantised."""

    name: Literal["aqas"] = "aqas"
    phase: ClassVar[Phase] = "prepare"
    needs: ClassVar[frozenset[Need]] = frozenset({"sample"})
    grid: int = Field(default=20, ge=1)  #: candidates per family
    family: Literal["both", "awq", "smooth"] = "both"  #: which candidates are tried

    def apply(self, block: BlockTask) -> None:
        from bitwright.quant import SITES

        for site in SITES:
            block.scale_inputs(site, self._search(block, site))

    def _search(self, block: BlockTask, site: str) -> np.ndarray:
        best, least = np.ones_like(block.stats[site].mean_abs), np.inf
        exact = sampled_outputs(block, site)
        for scale in self._candidates(block, site):
            scale = block.tie(site, scale)
            error = sampled_error(block, site, scale, exact)
            if error < least:
                best, least = scale, error
        return best

    def _candidates(self, block: BlockTask, site: str) -> Iterator[np.ndarray]:
        from bitwright.quant import SITES

        stats = block.stats[site]
        if self.family == "smooth":
            yield np.ones_like(stats.mean_abs)
        else:
            for step in range(self.grid):
                yield awq_scales(stats, step / self.grid)
        if self.family != "awq":
            weights = [block.matrix(name) for name in SITES[site]]
            for step in range(self.grid):
                scale = smoothing_scales(stats, weights, (step + 1) / self.grid)
                yield scale / np.float32(np.sqrt(float(scale.max()) * float(scale.min())))


def sampled_outputs(block: BlockTask, site: str) -> "dict[str, torch.Tensor]":
    """Exact outputs [rows, n] of a site's linears for the sampled rows."""
    import torch

    from bitwright.quant import SITES

    sample = block.stats[site].sample
    assert sample is not None
    x = torch.from_numpy(sample)
    return {name: x @ torch.from_numpy(block.matrix(name)).T for name in SITES[site]}


def sampled_error(
    block: BlockTask, site: str, scale: np.ndarray, exact: "Mapping[str, torch.Tensor]"
) -> float:
    """AQAS's objective on the sampled rows: squared error of Q(W s) Q(x / s) against W x.

    With activations that are not quantised it is AWQ's objective over these rows.

    Args:
        block: Its recipe says how both operands are quantised.
        site: Whose linears.
        scale: [k].
        exact: Of `sampled_outputs`.
    """
    import torch

    from bitwright.quant import fake_activations

    stats, recipe = block.stats[site], block.recipe.activations
    assert stats.sample is not None
    x = torch.from_numpy(stats.sample) / torch.from_numpy(scale)
    if recipe is not None:
        limits = None
        if recipe.static:
            low, high = float((stats.low / scale).min()), float((stats.high / scale).max())
            limits = (min(low, 0.0), max(high, 0.0))
        x = fake_activations(x, recipe, limits)
    total = 0.0
    for name, y in exact.items():
        rounded = torch.from_numpy(block.round(block.matrix(name) * scale, name).dequantize())
        error = torch.addmm(y, x, rounded.T, beta=-1).flatten()
        total += float(error @ error)
    return total
