"""From layer errors to perplexity: which measure tells it best, and how it follows from it.

A model's proxy is the sum of its linears' errors. Perplexities of a few maps, measured, say how the
logarithm of the perplexity over that of the unquantised model depends on it:

    ln(perplexity / perplexity of the float model) = a p + b p**2,  a, b >= 0

by least squares (scipy's nnls): rising, and 0 where nothing is quantised. Which measure of
`sensitivity` is taken is not told by the least residual: a search looks where a proxy errs in its
favour, and random maps hide what is wrong about single linears. So each measure guides the
heuristic to some maps of about the same bits, these are measured, and the one whose own maps read
best is taken. Of measures that were not tried so, the least residual decides. For small errors a
linear rule is the theorem of HIGGS (Malinovskii et al., arXiv 2411.17525); the square takes in that
errors of many linears together are not small any more.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from bitwright.quant import InputError

from .fronts import spread
from .heuristic import greedy_path


@dataclass(frozen=True, slots=True)
class Proxy:
    """A measure of error and its calibration."""

    measure: str  #: of `MEASURES`
    base: float  #: what the proxy 0 gives: the perplexity of the unquantised model
    linear: float  #: a
    square: float  #: b
    rank_correlation: float  #: Spearman's, between proxy and measured value
    residual: float  #: root of the mean square, in nats
    points: int  #: maps measured
    found: float | None = None  #: mean nats of the maps that it guided to; None: none measured

    def nats(self, proxy: Any) -> Any:
        """What a proxy adds to the loss."""
        return self.linear * proxy + self.square * proxy * proxy

    def perplexity(self, proxy: Any) -> Any:
        """The perplexity that a proxy predicts."""
        return self.base * np.exp(self.nats(proxy))


def fit(measure: str, values: np.ndarray, nats: np.ndarray, base: float) -> Proxy:
    """Calibrate one measure.

    Args:
        measure: Its name.
        values: Proxies of the maps that were measured.
        nats: What each of them added to the loss, or its divergence.
        base: Perplexity of the unquantised model.

    Raises:
        InputError: Fewer than three maps, or all of them alike.
    """
    from scipy.optimize import nnls

    largest = float(values.max(initial=0.0))
    if len(values) < 3 or largest <= 0:
        raise InputError(
            f"{len(values)} maps calibrate the proxy; at least 3 with some error are needed"
        )
    x = values / largest  # both columns of the same size
    (a, b), norm = nnls(np.stack([x, x * x], axis=1), nats)
    return Proxy(
        measure=measure,
        base=base,
        linear=float(a / largest),
        square=float(b / largest**2),
        rank_correlation=rank_correlation(values, nats),
        residual=float(norm / np.sqrt(len(values))),
        points=len(values),
    )


def best_proxy(
    tables: Mapping[str, np.ndarray],
    maps: np.ndarray,
    nats: np.ndarray,
    base: float,
    guided: Mapping[str, Sequence[int]] | None = None,
) -> tuple[Proxy, list[Proxy]]:
    """The measure that guides best, and all of them in the tables' order.

    Args:
        tables: Measure -> errors [linears, formats].
        maps: The maps that were measured, int [maps, linears].
        nats: As in `fit`.
        base: As in `fit`.
        guided: Measure -> numbers of the maps that it guided to; None: the residual decides.
    """
    fits = []
    for name, table in tables.items():
        own = list((guided or {}).get(name, ()))
        found = float(nats[own].mean()) if own else None
        fits.append(replace(fit(name, sums(table, maps), nats, base), found=found))
    if any(one.found is None for one in fits):
        return min(fits, key=lambda one: one.residual), fits
    return min(fits, key=lambda one: one.found or 0.0), fits


def sums(table: np.ndarray, maps: np.ndarray) -> np.ndarray:
    """Proxies of maps [maps, linears], float64 [maps]."""
    return table[np.arange(maps.shape[1]), maps].sum(axis=1)


def rank_correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Spearman's correlation, ties sharing their mean rank; 0 if either is constant.

    >>> rank_correlation(np.array([1, 2, 3, 4]), np.array([1.0, 10.0, 9.0, 100.0]))
    0.8
    """
    from scipy.stats import rankdata

    a, b = (rankdata(values) - (len(values) + 1) / 2 for values in (one, other))
    spread = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / spread if spread else 0.0


def guided_maps(bits: np.ndarray, tables: Mapping[str, np.ndarray], each: int) -> list[np.ndarray]:
    """Maps on the heuristic's path by every measure, `each` of them, evenly between its ends."""
    maps = []
    for table in tables.values():
        path = greedy_path(bits.astype(np.float64), table)
        maps += [path[number] for number in spread(sums(bits, path), each, [])]
    return maps


def sample_maps(
    linears: int, formats: int, guided: Sequence[np.ndarray], count: int, seed: int
) -> np.ndarray:
    """Maps to calibrate on: the uniform ones, guided ones, then random ones up to `count`.

    Every random map draws how often it takes each format (evenly among all shares) and then a
    format for every linear.
    """
    rng = np.random.default_rng(seed)
    maps = [*(np.full(linears, number) for number in range(formats)), *guided]
    while len(maps) < count:
        shares = rng.dirichlet(np.ones(formats))
        maps.append(rng.choice(formats, size=linears, p=shares))
    return np.array(maps[: max(count, formats)])
