"""AQLM: groups of weights are sums of learned codewords (additive quantisation).

Egiazarian et al., ICML 2024 (arXiv 2401.06118). A group of `group` weights of a row is its row's
scale times the sum of one codeword out of each of `codebooks` codebooks of 2**bits entries. Codes
and codebooks are fitted to the layer's output error tr(D G D^T), D the weights' error and G the
Gram matrix of the calibration inputs: from residual k-means on, fitting codebooks to fixed codes
and searching codes for fixed codebooks take turns.

What differs from the authors' code (Vahe1994/AQLM):

- Codebooks are fitted by conjugate gradients on the least-squares problem that fixed codes leave,
  the same every time; the authors take 100 Adam steps, on codebooks and scales. Scales stay the
  norms of the rows here.
- The beam holds alternatives of one input group's codes while its codebooks are gone through and
  is closed with the best one; the authors carry it on from group to group. With beam=1, the
  default of both, that is the same search.
- k-means learns from at most 64 groups a codeword, drawn with the seed.
- Nothing is tuned after a block, nor end to end: their published figures include that.
- A few `epochs`, 3 by default; the authors run until the error stops falling.

Stored entries of a matrix [n, k]:

| entry | type | content |
| --- | --- | --- |
| codes | U8 [bytes] | low min(bits, 8) bits of n * k / group * codebooks codes, packed |
| high_codes | U8 [bytes] | what is above, bits - 8 bits each, packed; with more than 8 bits |
| codebooks | F16 [codebooks, 2**bits, group] | codewords |
| scales | F16 [n] | of rows |

True bits: n * k / group * codebooks * bits + 16 * codebooks * 2**bits * group + 16 * n.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, Self

import numpy as np
from jaxtyping import Float16, Float32, UInt16
from pydantic import Field

from bitwright.quant import CompressedMatrix, InputError, Pass, SiteStats, pack_bits, unpack_bits

from .base import Algorithm, BlockTask, Phase, gram_error

#: Groups per codeword that k-means learns from.
_SAMPLE = 64


class Aqlm(Algorithm):
    """Residual k-means, then codebooks and codes in turns."""

    name: Literal["aqlm"] = "aqlm"
    phase: ClassVar[Phase] = "round"
    own_form: ClassVar[bool] = True
    needs_format: ClassVar[bool] = False
    reads_quantized_stream: ClassVar[bool] = True
    codebooks: int = Field(default=2, ge=1, le=8)  #: codewords that are added
    bits: int = Field(default=8, ge=1, le=16)  #: of a code
    group: int = Field(default=8, ge=1, le=64)  #: weights of a codeword
    beam: int = Field(default=1, ge=1, le=16)  #: alternatives kept in the search
    epochs: int = Field(default=3, ge=0)  #: turns of fit and search
    steps: int = Field(default=10, ge=1)  #: conjugate gradient steps of a fit
    kmeans: int = Field(default=10, ge=1)  #: iterations at most
    seed: int = Field(default=0, ge=0)  #: of k-means' start and of the search's order

    def round(
        self, block: BlockTask, name: str, w: Float32[np.ndarray, "n k"], stats: SiteStats | None
    ) -> "AqlmMatrix":
        """Codes and codebooks of weights [n, k], whose inputs gave `stats` with a Gram matrix."""
        assert stats is not None and stats.gram is not None
        return fit(w, stats.gram / np.float32(stats.tokens), self).matrix


@dataclass(frozen=True, eq=False)
class AqlmMatrix(CompressedMatrix):
    """Codes, codebooks and scales of rows.

    Raises:
        InputError: Shapes or types do not fit together.
    """

    method: ClassVar[str] = "aqlm"

    codes: UInt16[np.ndarray, "n groups codebooks"]
    codebooks: Float16[np.ndarray, "codebooks entries g"]
    scales: Float16[np.ndarray, " n"]

    def __post_init__(self) -> None:
        count, entries, _ = self.codebooks.shape
        if entries & (entries - 1) or entries < 2:
            raise InputError(f"codebooks have {entries} entries; a power of two is needed")
        if self.codes.shape[0::2] != (len(self.scales), count):
            raise InputError(
                f"codes have shape {self.codes.shape}; {len(self.scales)} scales and {count} "
                f"codebooks need ({len(self.scales)}, groups, {count})"
            )
        if self.codes.max() >= entries:
            raise InputError(f"codes hold {self.codes.max()}, outside 0 .. {entries - 1}")
        for name, array in (("codebooks", self.codebooks), ("scales", self.scales)):
            if array.dtype != np.float16 or not np.isfinite(array).all():
                raise InputError(f"{name} must be finite float16 numbers")

    @property
    def shape(self) -> tuple[int, int]:
        """(n, k)."""
        n, groups, _ = self.codes.shape
        return n, groups * self.codebooks.shape[2]

    @property
    def bits(self) -> int:
        """Of a code."""
        return self.codebooks.shape[1].bit_length() - 1

    def dequantize(self) -> Float32[np.ndarray, "n k"]:
        """The sums of codewords times the scales."""
        return decoded(
            self.codes, self.codebooks.astype(np.float32), self.scales.astype(np.float32)
        )

    def settings(self) -> dict[str, Any]:
        """Shape."""
        n, k = self.shape
        return {"n": n, "k": k}

    def entries(self) -> dict[str, np.ndarray]:
        """As the module's table says."""
        low = (self.codes & 255).astype(np.uint8)
        entries = {"codes": pack_bits(low, min(self.bits, 8))}
        if self.bits > 8:
            entries["high_codes"] = pack_bits((self.codes >> 8).astype(np.uint8), self.bits - 8)
        return {
            **entries,
            "codebooks": np.ascontiguousarray(self.codebooks),
            "scales": np.ascontiguousarray(self.scales),
        }

    @classmethod
    def restored(cls, settings: Mapping[str, Any], entries: Mapping[str, np.ndarray]) -> Self:
        """The equal matrix from its entries."""
        n, k, books = settings["n"], settings["k"], entries["codebooks"]
        count, size, g = books.shape
        bits = size.bit_length() - 1
        shape = (n, k // g, count)
        items = n * (k // g) * count
        codes = unpack_bits(entries["codes"], min(bits, 8), items).astype(np.uint16)
        if bits > 8:
            high = unpack_bits(entries["high_codes"], bits - 8, items)
            codes |= high.astype(np.uint16) << 8
        return cls(codes.reshape(shape), books, entries["scales"])

    @property
    def nominal_bits(self) -> float:
        """All that is stored, as the authors count: codes, codebooks and scales."""
        return nominal_bits(
            *self.shape, self.codebooks.shape[0], self.bits, self.codebooks.shape[2]
        )

    def passes(self) -> tuple[Pass, ...]:
        """One FP16 product with the decoded weights; tables are another way, `by_tables`."""
        return (Pass("decoded weights", *self.shape, None, self.stored_bits),)

    def by_tables(self, x: Float32[np.ndarray, " k"]) -> Float32[np.ndarray, " n"]:
        """The product with a vector, without decoding: sums of tabled products of codewords.

        The table holds <x_j, c> of every input group j and codeword c: codebooks * 2**bits * k
        multiplications, then codebooks / group additions a weight. To a row's exact product it
        errs by at most (k * codebooks + 2) * 2**-24 * |scale| * sum |x| |codeword|, as does
        the decoded product, to first order: so many roundings lie on the way of a term.
        """
        from .aqlm_numba import look_up

        books = self.codebooks.astype(np.float32)
        parts = np.ascontiguousarray(x, np.float32).reshape(-1, books.shape[2])
        tables = np.ascontiguousarray(np.einsum("jt,mct->jmc", parts, books))
        out = np.empty(len(self.scales), np.float32)
        look_up(self.codes, tables, self.scales.astype(np.float32), out)
        return out


def nominal_bits(n: int, k: int, codebooks: int, bits: int, group: int) -> float:
    """Stored bits per weight of a layer: codes, FP16 codebooks, FP16 scales of rows.

    >>> [round(nominal_bits(4096, 4096, *way), 3) for way in ((1, 16, 8), (2, 8, 8), (8, 8, 32))]
    [2.504, 2.008, 2.066]
    """
    codes = n * k / group * codebooks * bits
    return (codes + 16 * codebooks * 2**bits * group + 16 * n) / (n * k)


class Fit(NamedTuple):
    """What a fit gave."""

    matrix: AqlmMatrix
    losses: tuple[float, ...]  #: tr(D G D^T) after k-means and each search


def fit(w: Float32[np.ndarray, "n k"], gram: Float32[np.ndarray, "k k"], options: Aqlm) -> Fit:
    """Codes and codebooks of a layer.

    Args:
        w: Finite weights.
        gram: Symmetric; a mean of x x^T.
        options: How.

    Raises:
        InputError: k is no multiple of the group, codebooks have more entries than the layer has
            groups, or a row's norm is outside FP16.
    """
    n, k = w.shape
    _check(n, k, options)
    norms = np.sqrt(np.square(w, dtype=np.float64).sum(axis=1))
    if norms.max() >= 65504:
        row = int(norms.argmax())
        raise InputError(
            f"the norm of row {row} is {norms[row]:g}; scales are FP16, up to 65504: scale the "
            "weights down"
        )
    stored = norms.astype(np.float16)
    scales = stored.astype(np.float32)
    gram = np.ascontiguousarray(gram, np.float32)
    rng = np.random.default_rng([options.seed, n, k])
    safe = np.where(scales == 0, np.float32(1), scales)
    points = (w / safe[:, None]).reshape(-1, options.group)
    codes, books = residual_kmeans(points, options.codebooks, options.bits, options.kmeans, rng)
    codes = codes.reshape(n, k // options.group, options.codebooks)
    books = _rounded(books)
    losses = [gram_error(decoded(codes, books, scales) - w, gram)]
    for _ in range(options.epochs):
        books = _rounded(fit_codebooks(w, gram, codes, books, scales, options.steps))
        search(w, gram, codes, books, scales, options.beam, rng)
        losses.append(gram_error(decoded(codes, books, scales) - w, gram))
    return Fit(AqlmMatrix(codes, books.astype(np.float16), stored), tuple(losses))


def _check(n: int, k: int, options: Aqlm) -> None:
    if k % options.group:
        divisors = [g for g in range(1, 65) if k % g == 0]
        near = min(divisors, key=lambda g: (abs(g - options.group), g))
        raise InputError(
            f"k (={k}, the columns) must be a multiple of group (={options.group}); the nearest "
            f"group that divides it is {near}"
        )
    groups = n * k // options.group
    if 1 << options.bits > groups:
        most = groups.bit_length() - 1
        way = f"use bits={most} at most" if most else "use a smaller group"
        raise InputError(
            f"a codebook of bits={options.bits} has {1 << options.bits} entries, but [{n}, {k}] "
            f"has only {groups} groups of {options.group}; {way}"
        )


def _rounded(books: np.ndarray) -> Float32[np.ndarray, "codebooks entries g"]:
    """As they are stored, so that codes are searched with what decodes them."""
    return np.clip(books, -65504, 65504).astype(np.float16).astype(np.float32)


def decoded(
    codes: UInt16[np.ndarray, "n groups codebooks"],
    codebooks: Float32[np.ndarray, "codebooks entries g"],
    scales: Float32[np.ndarray, " n"],
) -> Float32[np.ndarray, "n k"]:
    """The weights of codes."""
    from .aqlm_numba import decode

    out = np.empty((len(codes), codes.shape[1] * codebooks.shape[2]), np.float32)
    decode(codes, codebooks, scales, out)
    return out


def residual_kmeans(
    points: Float32[np.ndarray, "points g"],
    codebooks: int,
    bits: int,
    iterations: int,
    rng: np.random.Generator,
) -> tuple[UInt16[np.ndarray, "points codebooks"], Float32[np.ndarray, "codebooks entries g"]]:
    """Codes and codebooks: each codebook is k-means on what those before it leave."""
    rest = points.copy()
    codes = np.empty((len(points), codebooks), np.uint16)
    books = np.empty((codebooks, 1 << bits, points.shape[1]), np.float32)
    for m in range(codebooks):
        books[m] = kmeans(rest, 1 << bits, iterations, rng)
        codes[:, m] = nearest_entries(rest, books[m])
        rest -= books[m][codes[:, m]]
    return codes, books


def kmeans(
    points: Float32[np.ndarray, "points g"],
    entries: int,
    iterations: int,
    rng: np.random.Generator,
) -> Float32[np.ndarray, "entries g"]:
    """Centroids by Lloyd's iterations from points drawn at random; single weights: the optimum.

    An empty cluster keeps its centroid.
    """
    if points.shape[1] == 1:
        from .anyprecision import cluster

        if entries <= 256:
            bits = entries.bit_length() - 1
            one = cluster(points.reshape(1, -1), None, bits, bits, bits)
            return one.centroids(bits).astype(np.float32).reshape(-1, 1)
    count = min(len(points), _SAMPLE * entries)
    sample = points[rng.choice(len(points), count, replace=False)]
    centroids = sample[:entries].copy()
    last: np.ndarray | None = None
    for _ in range(iterations):
        labels = nearest_entries(sample, centroids)
        if last is not None and np.array_equal(labels, last):
            break
        last = labels
        sizes = np.bincount(labels, minlength=entries)
        for t in range(points.shape[1]):
            total = np.bincount(labels, sample[:, t], entries)
            centroids[:, t] = np.where(sizes > 0, total / np.maximum(sizes, 1), centroids[:, t])
    return centroids


def nearest_entries(
    points: Float32[np.ndarray, "points g"], centroids: Float32[np.ndarray, "entries g"]
) -> UInt16[np.ndarray, " points"]:
    """Number of the nearest centroid of each point."""
    from .aqlm_numba import nearest

    labels = np.empty(len(points), np.uint16)
    halves = np.square(centroids).sum(axis=1) / np.float32(2)
    nearest(np.ascontiguousarray(points), np.ascontiguousarray(centroids.T), halves, labels)
    return labels


def fit_codebooks(
    w: Float32[np.ndarray, "n k"],
    gram: Float32[np.ndarray, "k k"],
    codes: UInt16[np.ndarray, "n groups codebooks"],
    codebooks: Float32[np.ndarray, "codebooks entries g"],
    scales: Float32[np.ndarray, " n"],
    steps: int,
) -> Float32[np.ndarray, "codebooks entries g"]:
    """Codebooks of less loss for fixed codes: conjugate gradients, preconditioned by use.

    The weights are linear in the codebooks, so that the loss is a quadratic; every step lowers it.
    """
    from .aqlm_numba import gather

    diagonal = np.broadcast_to(np.diagonal(gram), w.shape)
    use = np.empty(codebooks.shape)
    gather(np.ascontiguousarray(diagonal * scales[:, None]), codes, scales, use)
    inverse = np.divide(1.0, use, out=np.zeros_like(use), where=use > 0)

    def half_gradient(error: np.ndarray) -> np.ndarray:
        out = np.empty(codebooks.shape)
        gather(error @ gram, codes, scales, out)
        return out

    books = codebooks.astype(np.float64)
    residual = -half_gradient(decoded(codes, codebooks, scales) - w)
    step = inverse * residual
    power = float((residual * step).sum())
    direction = step
    for _ in range(steps):
        if power <= 0:
            break
        turned = half_gradient(decoded(codes, direction.astype(np.float32), scales))
        curvature = float((direction * turned).sum())
        if curvature <= 0:
            break
        books += power / curvature * direction
        residual -= power / curvature * turned
        step = inverse * residual
        last, power = power, float((residual * step).sum())
        direction = step + power / last * direction
    return books.astype(np.float32)


def search(
    w: Float32[np.ndarray, "n k"],
    gram: Float32[np.ndarray, "k k"],
    codes: UInt16[np.ndarray, "n groups codebooks"],
    codebooks: Float32[np.ndarray, "codebooks entries g"],
    scales: Float32[np.ndarray, " n"],
    beam: int,
    rng: np.random.Generator,
    search_one: Callable[..., None] | None = None,
) -> None:
    """Codes of less loss for fixed codebooks, in place; groups and codebooks in random order.

    Args:
        search_one: Chooses one group's codes; None for the jitted `search_group`.
    """
    from .aqlm_numba import search_group

    search_one = search_group if search_one is None else search_one
    g = codebooks.shape[2]
    error = decoded(codes, codebooks, scales) - w
    columns = np.ascontiguousarray(codebooks.transpose(0, 2, 1))
    change = np.empty((len(w), g), np.float32)
    for group in rng.permutation(codes.shape[1]):
        here = slice(group * g, (group + 1) * g)
        own = np.ascontiguousarray(gram[here, here])
        squares = ((codebooks @ own) * codebooks).sum(axis=2)
        chosen = np.ascontiguousarray(codes[:, group])
        slopes = error @ gram[:, here]
        order = rng.permutation(codebooks.shape[0])
        search_one(chosen, slopes, own, codebooks, columns, squares, scales, order, beam, change)
        codes[:, group] = chosen
        error[:, here] += change


def search_group_reference(
    codes: np.ndarray,
    slopes: np.ndarray,
    gram: np.ndarray,
    codebooks: np.ndarray,
    columns: np.ndarray,
    squares: np.ndarray,
    scales: np.ndarray,
    order: np.ndarray,
    beam: int,
    change: np.ndarray,
) -> None:
    """Twin of `search_group` in `aqlm_numba.py`: all replacements, sorted by their loss."""
    count, entries, _ = codebooks.shape

    def words(some: list[int]) -> np.ndarray:
        return sum((codebooks[m, some[m]] for m in range(count)), np.zeros(len(gram)))

    for row, start in enumerate(codes.astype(int).tolist()):

        def loss(some: list[int], row: int = row, start: list[int] = start) -> float:
            d = scales[row] * (words(some) - words(start))
            return float(2 * d @ slopes[row] + d @ gram @ d)

        kept = [start]
        for m in order:
            candidates = []
            for one in kept:
                # The old code first: sorting keeps it there in a tie.
                values = [one[m], *(c for c in range(entries) if c != one[m])]
                candidates += [[*one[:m], value, *one[m + 1 :]] for value in values]
            kept = sorted(candidates, key=loss)[:beam]
        change[row] = scales[row] * (words(kept[0]) - words(start))
        codes[row] = kept[0]
