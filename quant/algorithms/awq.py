"""AWQ: activation-aware scales and clipping, both searched.

Lin et al., MLSys 2024 (arXiv 2306.00978). **Scales:** channels with large inputs get larger
weights, so that rounding hurts them less: s = mean|X|**ratio for 20 ratios 0, 0.05, ..., 0.95,
normalised by sqrt(max s * min s); the ratio with the least output error wins. **Clipping:** every
group of weights is clipped at max|w| * (1 - i/20), i = 0 .. 9, and the least error of the group's
own product wins; queries and keys are not clipped.

As the paper has it activations are not quantised in the search, so that the error of a linear over
all calibration tokens is exactly tr(E G E^T), with E the weights' error and G the Gram matrix of
the inputs; the released code (llm-awq) runs a few hundred tokens instead, through the whole
attention or feed-forward module for queries, keys, values, gate and up. Ratio 0 is plain rounding:
a search can only improve on it. Values' scales are searched for grouped queries too, tied between
the heads that share a value; the released code leaves those out.
"""

from concurrent.futures import Executor
from functools import partial
from typing import ClassVar, Literal

import numpy as np
from pydantic import Field

from bitwright.quant import Need, SiteStats

from .base import Algorithm, BlockTask, Phase, gram_error

#: Linears that are not clipped: rounding them feeds a softmax (llm-awq, auto_clip.py).
UNCLIPPED = ("attn.q", "attn.k")
#: Parts of a linear's rows, each of which can end a search that is already worse than another.
_PARTS = 4


class Awq(Algorithm):
    """Scale search and clip search; each can be left out."""

    name: Literal["awq"] = "awq"
    phase: ClassVar[Phase] = "prepare"
    needs: ClassVar[frozenset[Need]] = frozenset({"gram"})
    scale: bool = True  #: search scales
    clip: bool = True  #: search clipping
    grid: int = Field(default=20, ge=1)  #: ratios tried, and steps of clipping from 1 down to 1/2

    def apply(self, block: BlockTask) -> None:
        from bitwright.quant import SITES, single_threads

        with single_threads() as pool:
            if self.scale:
                for site in SITES:
                    block.scale_inputs(site, search_scale(block, site, self.grid, pool))
            if self.clip:
                done = [
                    pool.submit(clip_weights, block, name, block.stats[site], self.grid)
                    for site, names in SITES.items()
                    for name in names
                    if name not in UNCLIPPED
                ]
                for one in done:
                    one.result()


def awq_scales(stats: SiteStats, ratio: float) -> np.ndarray:
    """mean|X|**ratio, normalised; float32 [k], ones for ratio 0 and 1 for dead channels."""
    # A floor keeps channels that hardly ever fire from getting scales of almost nothing.
    means = np.maximum(stats.mean_abs.astype(np.float64), 1e-4)
    scales = np.maximum(means**ratio, 1e-4)
    live = ~stats.dead
    if live.any():
        scales = scales / np.sqrt(scales[live].max() * scales[live].min())
    return np.where(live, scales, 1.0).astype(np.float32)


def search_scale(block: BlockTask, site: str, grid: int, pool: Executor) -> np.ndarray:
    """The scales [k] with the least output error of the site's linears together; ties: first.

    Ratios are tried side by side in `pool`, of `single_threads`.
    """
    import torch

    scales = [block.tie(site, awq_scales(block.stats[site], step / grid)) for step in range(grid)]
    best, least = np.ones_like(scales[0]), np.inf
    width = torch.get_num_threads()
    for start in range(0, grid, width):
        some = scales[start : start + width]
        errors = pool.map(partial(output_error, block, site, limit=least), some)
        for scale, error in zip(some, errors, strict=True):
            if error < least:
                best, least = scale, error
    return best


def output_error(block: BlockTask, site: str, scale: np.ndarray, limit: float = np.inf) -> float:
    """Squared output error of a site's linears if inputs were scaled so: AWQ's objective.

    sum over linears and tokens of |Q(W diag(s)) diag(s)^-1 x - W x|**2. The sum only grows, so that
    one that reaches `limit` is given back unfinished.
    """
    from bitwright.quant import SITES

    gram = block.stats[site].gram
    assert gram is not None
    total = 0.0
    for name in SITES[site]:
        w = block.matrix(name)
        error = block.round(w * scale, name).dequantize()
        error /= scale
        error -= w
        for rows in np.array_split(error, _PARTS):
            total += gram_error(rows, gram)
            if total >= limit:
                return total
    return total


def clip_weights(block: BlockTask, name: str, stats: SiteStats, grid: int) -> None:
    """Clip each group of a linear's weights where its rounded product is nearest to the exact one.

    Only the group's own columns count: the error of a row's group is e^T G_gg e, G_gg being the
    Gram matrix of the group's inputs.
    """
    import torch

    assert stats.gram is not None
    w = block.matrix(name)
    n, k = w.shape
    size = min(block.recipe.group_size or k, k)
    starts = range(0, k, size)
    largest = np.stack([np.abs(w[:, a : a + size]).max(1) for a in starts], axis=1)
    best = largest.copy()
    least = np.full(largest.shape, np.inf)
    for step in range((grid + 1) // 2):
        bound = (largest * np.float32(1 - step / grid)).astype(np.float32)
        error = block.round(_clip(w, bound, size), name).dequantize()
        error -= w
        for group, a in enumerate(starts):
            e = error[:, a : a + size]
            own = stats.gram[a : a + size, a : a + size]
            product = (torch.from_numpy(e) @ torch.from_numpy(own)).numpy()
            total = np.einsum("nk,nk->n", product, e, dtype=np.float64)
            better = total < least[:, group]
            least[better, group] = total[better]
            best[better, group] = bound[better, group]
    block.clipped[name] = _clip(w, best, size)


def _clip(w: np.ndarray, bounds: np.ndarray, size: int) -> np.ndarray:
    """Weights [n, k] within plus and minus the bounds [n, groups] of their groups."""
    wide = np.repeat(bounds, size, axis=1)[:, : w.shape[1]]
    clipped = np.minimum(w, wide)
    return np.maximum(clipped, np.negative(wide, out=wide), out=clipped)
