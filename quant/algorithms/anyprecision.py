"""Any-Precision LLM: one stored matrix whose leading bits are good narrower matrices themselves.

Park et al., ICML 2024 (arXiv 2402.10517). Every row of weights is sorted and clustered into
2**seed_bits values (weighted 1-D k-means); for each further bit every cluster is cut in two, by
optimal weighted 2-means. The label of a weight at b bits is the top b bits of its label at
`parent` bits, so that bit planes, the most significant first, hold all widths at once, and a run
at b bits reads b planes and the 2**b centroids of each row for that width.

Two choices differ from the authors' code (SNU-ARC/any-precision-llm):

- Weights of the clustering. The authors take squared gradients of the loss, summed over samples
  (diagonal Fisher information), one for each weight. Here it is the mean square of the column's
  input, which is the diagonal of the layer's Hessian up to a factor: nothing is
  differentiated, and all rows share it. `sensitivity=none` weighs all alike and needs no data. As
  with the authors a weight of exactly 0 does not count, and a row that then weighs nothing is
  clustered with weights 1.
- The seed is the optimum, by dynamic programming, where the authors run up to 50 Lloyd iterations
  from a random start: the same bits every time, and never worse.

Stored entries of a matrix [n, k]:

| entry | type | content |
| --- | --- | --- |
| planes | U8 [parent, ceil(n*k/8)] | bit planes of the labels, the most significant first |
| tables | F16 [n, sum over b of 2**b] | centroids of the widths b = seed_bits .. parent in turn |

True bits per weight: parent + 16 * sum(2**b, b = seed_bits .. parent) / k, planes rounded up to
bytes; `traffic_bits` is what a run at b bits reads: b + 16 * 2**b / k per weight.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self

import numpy as np
from jaxtyping import Float16, Float32, Float64, Int32, UInt8
from pydantic import Field, model_validator

from bitwright.quant import (
    CompressedMatrix,
    InputError,
    Pass,
    SiteStats,
    pack_bits,
    spread_rows,
    unpack_bits,
)

from .base import Algorithm, BlockTask, Phase

#: What clustering a weight costs, in weights of round-to-nearest.
_COST = 50
#: Rows whose prefix sums are made together.
_ROWS = 256


class AnyPrecision(Algorithm):
    """Clusters rows at a seed width and splits the clusters up to the parent width."""

    name: Literal["anyprecision"] = "anyprecision"
    phase: ClassVar[Phase] = "round"
    own_form: ClassVar[bool] = True
    needs_format: ClassVar[bool] = False
    seed_bits: int = Field(default=3, ge=1, le=8)  #: width of the first clustering
    parent: int = Field(default=8, ge=1, le=8)  #: width that is stored
    bits: int = Field(default=4, ge=1, le=8)  #: width it is run at
    sensitivity: Literal["inputs", "none"] = "inputs"  #: what weighs a column's errors

    @property
    def needs_data(self) -> bool:  # type: ignore[override]
        """Whether columns are weighed by their inputs."""
        return self.sensitivity == "inputs"

    @property
    def reads_quantized_stream(self) -> bool:  # type: ignore[override]
        """Whether columns are weighed by their inputs."""
        return self.sensitivity == "inputs"

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.parent < self.seed_bits:
            raise ValueError(
                f"parent (={self.parent}) must be at least seed_bits (={self.seed_bits})"
            )
        if not self.seed_bits <= self.bits <= self.parent:
            raise ValueError(
                f"bits (={self.bits}) must be in seed_bits .. parent "
                f"(={self.seed_bits} .. {self.parent}), the widths that are stored"
            )
        return self

    def round(
        self, block: BlockTask, name: str, w: Float32[np.ndarray, "n k"], stats: SiteStats | None
    ) -> "AnyPrecisionMatrix":
        """The labels and centroids of weights [n, k], whose inputs gave `stats`."""
        weights = None
        if self.sensitivity == "inputs":
            assert stats is not None
            weights = np.diagonal(stats.hessian)
        return cluster(w, weights, self.seed_bits, self.parent, self.bits)


@dataclass(frozen=True, eq=False)
class AnyPrecisionMatrix(CompressedMatrix):
    """Labels at the parent width and the centroids of every width, run at one of them.

    Raises:
        InputError: Widths, shapes or types do not fit together.
    """

    method: ClassVar[str] = "anyprecision"

    seed_bits: int  #: narrowest width
    parent: int  #: widest, that of `labels`
    bits: int  #: width it is run at
    labels: UInt8[np.ndarray, "n k"]
    tables: Float16[np.ndarray, "n entries"]  #: of the widths seed_bits .. parent side by side

    def __post_init__(self) -> None:
        if not 1 <= self.seed_bits <= self.bits <= self.parent <= 8:
            raise InputError(
                f"bits (={self.bits}) must be in seed_bits .. parent "
                f"(={self.seed_bits} .. {self.parent}), and these in 1 .. 8"
            )
        n, entries = self.labels.shape[0], table_entries(self.seed_bits, self.parent)
        if self.tables.dtype != np.float16 or self.tables.shape != (n, entries):
            raise InputError(
                f"tables are {self.tables.dtype} {self.tables.shape}; {self.seed_bits} .. "
                f"{self.parent} bits of {n} rows need float16 ({n}, {entries})"
            )
        if not np.isfinite(self.tables).all():
            raise InputError("tables must be finite")

    @property
    def shape(self) -> tuple[int, int]:
        """(n, k)."""
        n, k = self.labels.shape
        return n, k

    def at(self, bits: int) -> "AnyPrecisionMatrix":
        """The same stored matrix, run at another width.

        Raises:
            InputError: The width is not stored.
        """
        return replace(self, bits=bits)

    def labels_at(self, bits: int) -> UInt8[np.ndarray, "n k"]:
        """Labels of `bits` bits: the leading bits of what is stored."""
        return self.labels >> np.uint8(self.parent - bits)

    def centroids(self, bits: int) -> Float16[np.ndarray, "n centroids"]:
        """The 2**bits centroids of each row for a width that is stored, ascending."""
        start = (1 << bits) - (1 << self.seed_bits)
        return self.tables[:, start : start + (1 << bits)]

    def dequantize(self) -> Float32[np.ndarray, "n k"]:
        """The weights at the width it is run at."""
        table = self.centroids(self.bits).astype(np.float32)
        return np.take_along_axis(table, self.labels_at(self.bits).astype(np.intp), axis=1)

    def settings(self) -> dict[str, Any]:
        """Shape and widths."""
        n, k = self.shape
        return {
            "n": n,
            "k": k,
            "seed_bits": self.seed_bits,
            "parent": self.parent,
            "bits": self.bits,
        }

    def entries(self) -> dict[str, np.ndarray]:
        """As the module's table says."""
        planes = [pack_bits(self.labels >> shift & 1, 1) for shift in reversed(range(self.parent))]
        return {"planes": np.stack(planes), "tables": np.ascontiguousarray(self.tables)}

    @classmethod
    def restored(cls, settings: Mapping[str, Any], entries: Mapping[str, np.ndarray]) -> Self:
        """The equal matrix from its planes and tables."""
        n, k, parent = settings["n"], settings["k"], settings["parent"]
        planes = entries["planes"]
        if planes.dtype != np.uint8 or planes.ndim != 2 or len(planes) != parent:
            raise InputError(f"planes are {planes.dtype} {planes.shape}; {parent} rows are needed")
        labels = np.zeros(n * k, np.uint8)
        for plane in planes:
            labels = labels << 1 | unpack_bits(plane, 1, n * k)
        widths = {key: settings[key] for key in ("seed_bits", "parent", "bits")}
        return cls(**widths, labels=labels.reshape(n, k), tables=entries["tables"])

    @property
    def nominal_bits(self) -> float:
        """The width it is run at."""
        return self.bits

    def passes(self) -> tuple[Pass, ...]:
        """One FP16 product, behind the look-up; it reads the planes and the table of its width."""
        return (Pass("looked-up weights", *self.shape, None, self.traffic_bits()),)

    def traffic_bits(self, bits: int | None = None) -> int:
        """Stored bits that a run at a width reads: its planes and its table.

        Args:
            bits: A width that is stored; None for the one it is run at.

        Raises:
            InputError: The width is not stored.
        """
        bits = self.bits if bits is None else bits
        if not self.seed_bits <= bits <= self.parent:
            raise InputError(
                f"bits (={bits}) must be in {self.seed_bits} .. {self.parent}, which are stored"
            )
        n, k = self.shape
        return bits * 8 * -(-n * k // 8) + 16 * n * (1 << bits)


def table_entries(seed_bits: int, parent: int) -> int:
    """Centroids of a row, those of all widths together.

    >>> table_entries(3, 8), table_entries(3, 4)
    (504, 24)
    """
    return (2 << parent) - (1 << seed_bits)


def cluster(
    w: Float32[np.ndarray, "n k"],
    weights: np.ndarray | None = None,
    seed_bits: int = 3,
    parent: int = 8,
    bits: int = 4,
) -> AnyPrecisionMatrix:
    """Weights clustered row by row at all widths.

    Args:
        w: Finite weights.
        weights: Not negative, [k]: what a squared error in each column counts; None for 1.
        seed_bits: Narrowest width.
        parent: Widest.
        bits: Width the matrix is run at.

    Raises:
        InputError: Weights outside FP16, or `weights` that are negative or do not fit.
    """
    n, k = w.shape
    weights = np.ones(k) if weights is None else np.asarray(weights, np.float64)
    if weights.shape != (k,) or not np.isfinite(weights).all() or weights.min() < 0:
        raise InputError(
            f"weights of the columns must be {k} finite numbers, not negative; they have shape "
            f"{weights.shape} and begin at {weights.min():g}"
        )
    if not np.abs(w).max() < 65504:
        raise InputError(
            f"the largest weight is {np.abs(w).max():g}; centroids are FP16, up to 65504: scale "
            "the weights down"
        )
    labels = np.empty((n, k), np.uint8)
    tables = np.empty((n, table_entries(seed_bits, parent)), np.float16)

    def work(first: int, last: int) -> None:
        for start in range(first, last, _ROWS):
            rows = slice(start, min(start + _ROWS, last))
            labels[rows], tables[rows] = _cluster_rows(w[rows], weights, seed_bits, parent)

    spread_rows(work, n, k * _COST)
    return AnyPrecisionMatrix(seed_bits, parent, bits, labels, tables)


def _cluster_rows(
    w: np.ndarray, weights: Float64[np.ndarray, " k"], seed_bits: int, parent: int
) -> tuple[np.ndarray, np.ndarray]:
    """Labels and tables of some rows."""
    from .anyprecision_numba import cluster_rows

    n, k = w.shape
    order = np.argsort(w, axis=1, kind="stable")
    x = np.take_along_axis(w, order, axis=1).astype(np.float64)
    each = np.where(x != 0, weights[order], 0.0)
    each[each.sum(axis=1) == 0] = 1.0
    sums = prefix_sums(x, each)
    widths = parent - seed_bits + 1
    borders = np.zeros((n, widths, (1 << parent) + 1), np.int32)
    cluster_rows(sums, seed_bits, parent, borders)
    table: list[np.ndarray] = []
    for width in range(widths):
        count = 1 << (seed_bits + width)
        above = None if width == 0 else table[-1]
        table.append(centroids(x, sums, borders[:, width, : count + 1], above))
    # The label of a sorted value is the number of inner borders at or before it.
    marks = np.zeros((n, k + 1), np.int32)
    np.add.at(marks, (np.arange(n)[:, None], borders[:, -1, 1:-1]), 1)
    labels = np.empty((n, k), np.uint8)
    np.put_along_axis(labels, order, np.cumsum(marks[:, :k], axis=1).astype(np.uint8), axis=1)
    return labels, np.concatenate(table, axis=1).astype(np.float16)


def prefix_sums(
    x: Float64[np.ndarray, "n k"], weights: Float64[np.ndarray, "n k"]
) -> Float64[np.ndarray, "n three k1"]:
    """Sums of weight, weight * x and weight * x**2 of the first j values of each row."""
    sums = np.zeros((len(x), 3, x.shape[1] + 1))
    for power in range(3):
        np.cumsum(weights * x**power, axis=1, out=sums[:, power, 1:])
    return sums


def centroids(
    x: Float64[np.ndarray, "n k"],
    sums: Float64[np.ndarray, "n three k1"],
    borders: Int32[np.ndarray, "n clusters1"],
    above: Float64[np.ndarray, "n parents"] | None,
) -> Float64[np.ndarray, "n clusters"]:
    """Weighted means of clusters.

    A cluster whose values weigh nothing takes the value in its middle; an empty one its parent's
    centroid (`above`), or in the seed the value nearest to its place.
    """
    starts, stops = borders[:, :-1], borders[:, 1:]
    parts = [np.take_along_axis(part, borders, axis=1) for part in (sums[:, 0], sums[:, 1])]
    weight, total = (part[:, 1:] - part[:, :-1] for part in parts)
    middle = np.minimum((starts + stops) // 2, x.shape[1] - 1)
    lone = np.take_along_axis(x, middle, axis=1)
    if above is not None:
        lone = np.where(starts == stops, np.repeat(above, 2, axis=1), lone)
    with np.errstate(divide="ignore", invalid="ignore"):
        mean = total / weight
    first = np.take_along_axis(x, np.minimum(starts, x.shape[1] - 1), axis=1)
    last = np.take_along_axis(x, np.maximum(stops - 1, 0), axis=1)
    # Sums that cancel may leave a mean just outside of its cluster.
    mean = np.clip(mean, first, last)
    return np.where((weight > 0) & (stops > starts), mean, lone)


def segment_cost(x: np.ndarray, weights: np.ndarray) -> float:
    """Weighted squared error of values around their weighted mean."""
    total = weights.sum()
    if total == 0:
        return 0.0
    return float((weights * (x - (weights * x).sum() / total) ** 2).sum())


def seed_reference(x: np.ndarray, weights: np.ndarray, clusters: int) -> list[int]:
    """Borders of the clusters of sorted values with the least error: every cut is tried.

    Twin of `seed_borders` in `anyprecision_numba.py`.
    """
    k = len(x)
    best = [segment_cost(x[:j], weights[:j]) for j in range(k + 1)]
    cuts = []
    for _ in range(1, clusters):
        totals = [
            [best[i] + segment_cost(x[i:j], weights[i:j]) for i in range(j + 1)]
            for j in range(k + 1)
        ]
        cuts.append([int(np.argmin(row)) for row in totals])
        best = [min(row) for row in totals]
    borders = [k]
    for cut in reversed(cuts):
        borders.append(cut[borders[-1]])
    return [0, *reversed(borders)]


def split_reference(x: np.ndarray, weights: np.ndarray, borders: list[int]) -> list[int]:
    """Borders with every cluster cut in two; twin of `split` in `anyprecision_numba.py`."""
    children = []
    for a, b in zip(borders[:-1], borders[1:], strict=True):
        cuts = [b, *range(a + 1, b)]  # that which leaves all on the left first: it wins a tie
        costs = [
            segment_cost(x[a:i], weights[a:i]) + segment_cost(x[i:b], weights[i:b]) for i in cuts
        ]
        children += [a, cuts[int(np.argmin(costs))]]
    return [*children, borders[-1]]
