"""DB-LLM's flexible dual binarisation: two planes of {0, 1}, each with a scale of its own.

"DB-LLM: Accurate Dual-Binarization for Efficient LLMs" (Chen et al., arXiv 2402.11960): a weight
is alpha1 b1 + alpha2 b2 with bits b1, b2. From a 2-bit step s the scales begin as alpha1 = 2 s and
alpha2 = -s, so that the levels are -s, 0, s and 2 s; a product is two sums of the activations whose
bit is set, with no zero point. The paper then trains the scales by distillation, and its authors
published no code. What runs here is a post-training form of our own (FDB-PTQ), which is not in the
paper and looks at no data: s by a search for the least squared error (`best_step`), then in turns
the nearest of the four levels and the least-squares scales of each group, until nothing changes
(`refit`). `refit=false` stops at the beginning, -s to 2 s. Published results do not apply to it.

| entry | type | content |
|---|---|---|
| plane1, plane2 | uint8 | bits b1 and b2 row by row, least significant first |
| alpha1, alpha2 | float16 [n, groups] | their scales |

True bits per weight: 2 + 32 / G with G columns a group; G = k where `group` is 0. The authors count
2 bits. Hardware computes a binary product a plane; PEs whose binary weights are +-1 get
sum b x = (sum +-x + sum x) / 2 of a {0, 1} plane, PEs that AND and count take it as it is.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import numpy as np
from jaxtyping import Bool, Float16, Float32
from pydantic import Field

from bitwright.quant import (
    CompressedMatrix,
    InputError,
    Operands,
    Pass,
    SiteStats,
    pack_bits,
    plane_tensor,
    unpack_bits,
)

from .base import Algorithm, BlockTask, Phase

#: Steps that are tried: the group's largest magnitude times 2^(-j / 12), down to 1 / 32 of it.
COARSE = 2.0 ** (-np.arange(61) / 12)
#: Then these times the best of them.
FINE = 2.0 ** (np.arange(-5, 6) / 60)
#: Rounds of `refit`; nearly all groups are stable long before.
MOST_ROUNDS = 100
#: Weights that are worked on together: they stay in the cache.
_CHUNK = 1 << 17


class DbLlm(Algorithm):
    """Two {0, 1} planes with free scales for each group of columns."""

    name: Literal["dbllm"] = "dbllm"
    phase: ClassVar[Phase] = "round"
    own_form: ClassVar[bool] = True
    needs_format: ClassVar[bool] = False
    needs_data: ClassVar[bool] = False
    group: int = Field(default=64, ge=0)  #: columns of a group; 0: the whole row
    refit: bool = True  #: whether scales are fitted beyond 2 s and -s

    def round(
        self, block: BlockTask, name: str, w: np.ndarray, stats: SiteStats | None
    ) -> "DualBinary":
        """Weights [n, k] as two planes and their scales."""
        return dual_binary(w, self.group, self.refit)


@dataclass(frozen=True, eq=False)
class DualBinary(CompressedMatrix):
    """Planes b1 and b2, and alpha1 and alpha2 of each group of columns."""

    plane1: Bool[np.ndarray, "n k"]
    plane2: Bool[np.ndarray, "n k"]
    alpha1: Float16[np.ndarray, "n groups"]
    alpha2: Float16[np.ndarray, "n groups"]

    method: ClassVar[str] = "dbllm"

    @property
    def shape(self) -> tuple[int, int]:
        n, k = self.plane1.shape
        return n, k

    @property
    def group_size(self) -> int:
        """Columns of a group."""
        return self.shape[1] // self.alpha1.shape[1]

    def dequantize(self) -> Float32[np.ndarray, "n k"]:
        n, k = self.shape
        bits = (n, -1, self.group_size)
        first = self.plane1.reshape(bits) * self.alpha1[..., None].astype(np.float32)
        second = self.plane2.reshape(bits) * self.alpha2[..., None].astype(np.float32)
        return (first + second).reshape(n, k)

    def settings(self) -> dict[str, Any]:
        n, k = self.shape
        return {"n": n, "k": k, "group": self.group_size}

    def entries(self) -> dict[str, np.ndarray]:
        return {
            "plane1": pack_bits(self.plane1.astype(np.uint8), 1),
            "plane2": pack_bits(self.plane2.astype(np.uint8), 1),
            "alpha1": self.alpha1,
            "alpha2": self.alpha2,
        }

    @classmethod
    def restored(cls, settings: Mapping[str, Any], entries: Mapping[str, np.ndarray]) -> Self:
        n, k = settings["n"], settings["k"]
        groups = k // group_columns(settings["group"], k)
        for name in ("alpha1", "alpha2"):
            if entries[name].shape != (n, groups):
                raise InputError(f"{name} is {entries[name].shape}; needs {(n, groups)}")
        plane1, plane2 = (
            unpack_bits(entries[name], 1, n * k).reshape(n, k).astype(bool)
            for name in ("plane1", "plane2")
        )
        return cls(plane1, plane2, entries["alpha1"], entries["alpha2"])

    @property
    def nominal_bits(self) -> float:
        return 2.0

    @property
    def densities(self) -> tuple[float, float]:
        """Share of ones in each plane: hardware skips words without any."""
        return float(self.plane1.mean()), float(self.plane2.mean())

    def passes(self) -> tuple[Pass, ...]:
        half = self.stored_bits // 2
        return tuple(
            Pass(what, *self.shape, "binary", half, self.group_size)
            for what in ("plane 1", "plane 2")
        )

    def operands(self, x: np.ndarray) -> Operands:
        planes = (self.plane1, self.alpha1), (self.plane2, self.alpha2)
        return tuple(
            (x, plane_tensor(one, "binary", self.group_size, alpha)) for one, alpha in planes
        )


def dual_binary(w: Float32[np.ndarray, "n k"], group: int = 64, refit: bool = True) -> DualBinary:
    """Weights as two planes.

    Args:
        w: Weights, one row an output channel.
        group: Columns of a group, which divide k; 0: a group is a row.
        refit: Whether scales are fitted; the error of no group is larger with it.

    Raises:
        InputError: `group` does not divide k, a weight is not finite, or a group's scale is outside
            FP16.
    """
    n, k = w.shape
    size = group_columns(group, k)
    if not np.isfinite(w).all():
        row, column = np.argwhere(~np.isfinite(w))[0]
        raise InputError(f"w[{row}, {column}] is {w[row, column]}; weights must be finite")
    groups = np.ascontiguousarray(w, np.float32).reshape(-1, size)
    alphas = np.empty((len(groups), 2), np.float16)
    planes = np.empty((2, *groups.shape), bool)
    step = max(1, _CHUNK // size)
    for start in range(0, len(groups), step):
        part = slice(start, start + step)
        alphas[part], planes[:, part] = _fit(groups[part], refit)
    alpha1, alpha2 = (np.ascontiguousarray(alphas[:, i].reshape(n, -1)) for i in (0, 1))
    return DualBinary(planes[0].reshape(n, k), planes[1].reshape(n, k), alpha1, alpha2)


def group_columns(group: int, k: int) -> int:
    """Columns of a group; 0 stands for k.

    Raises:
        InputError: They do not divide k; names the nearest number that does.
    """
    size = group or k
    if size < 1 or k % size:
        divisors = [d for d in range(1, k + 1) if k % d == 0]
        nearest = min(divisors, key=lambda d: (abs(d - size), d))
        raise InputError(
            f"group (={group}) must divide the k = {k} columns; the nearest that does is "
            f"{nearest}, and 0 makes a row one group"
        )
    return size


def _fit(groups: np.ndarray, with_refit: bool) -> tuple[np.ndarray, np.ndarray]:
    """FP16 scales [rows, 2] and planes [2, rows, size] of rows that are a group each."""
    alphas = _stored(np.outer(best_step(groups), (2, -1)))
    planes = split(groups, alphas)
    if not with_refit:
        return alphas, planes
    fitted = _stored(refit(groups, alphas, planes))
    nearest = assign(groups, fitted)
    # FP16 can undo a small gain.
    better = _errors(groups, fitted, nearest) < _errors(groups, alphas, planes)
    return np.where(better[:, None], fitted, alphas), np.where(better[:, None], nearest, planes)


def _stored(alphas: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore", under="ignore"):
        stored = alphas.astype(np.float16)
    wrong = ~np.isfinite(stored) | ((stored == 0) & (alphas != 0))
    if wrong.any():
        raise InputError(
            f"a group's scale (={alphas[wrong][0]:.3g}) is outside FP16 (6e-08 .. 65504); rescale "
            "the weights"
        )
    return stored


def best_step(groups: Float32[np.ndarray, "rows size"]) -> Float32[np.ndarray, " rows"]:
    """The s with the least squared error of levels -s, 0, s and 2 s; 0 for rows of zeros."""
    largest = np.abs(groups).max(axis=1)
    best = largest.copy()
    for factors in (COARSE, FINE):
        middle = largest if factors is COARSE else best
        least = np.full(len(groups), np.inf)
        best = middle.copy()
        for factor in factors:
            s = (middle * np.float32(factor))[:, None]
            with np.errstate(invalid="ignore", divide="ignore"):
                error = groups - np.clip(np.rint(groups / s), -1, 2) * s
            squares = np.einsum("ij,ij->i", error, error)
            lower = squares < least
            least[lower], best[lower] = squares[lower], s[lower, 0]
    return np.where(largest > 0, best, np.float32(0))


def split(groups: np.ndarray, alphas: np.ndarray) -> Bool[np.ndarray, "2 rows size"]:
    """The planes of the paper's rule, H(t) = 1 for t >= 0; no bits in rows whose scales are 0.

    b1 = H(w - (alpha1 + alpha2) / 2) and b2 = H(-(w - alpha1 b1 - alpha2 / 2)), for alpha1 > 0 and
    alpha2 < 0.
    """
    alpha1, alpha2 = (alphas[:, i, None].astype(np.float32) for i in (0, 1))
    b1 = groups >= (alpha1 + alpha2) / 2
    b2 = groups - alpha1 * b1 <= alpha2 / 2
    return np.stack([b1, b2]) & (alpha1 != 0)


def assign(groups: np.ndarray, alphas: np.ndarray) -> Bool[np.ndarray, "2 rows size"]:
    """The planes of the nearest of 0, alpha1, alpha2, alpha1 + alpha2, any scales; the first one
    of equally near levels."""
    alpha1, alpha2 = (alphas[:, i, None].astype(np.float32) for i in (0, 1))
    nearest = np.abs(groups)
    planes = np.zeros((2, *groups.shape), bool)
    for bits, level in (((1, 0), alpha1), ((0, 1), alpha2), ((1, 1), alpha1 + alpha2)):
        distance = np.abs(groups - level)
        closer = distance < nearest
        np.minimum(nearest, distance, out=nearest)
        for plane, bit in zip(planes, bits, strict=True):
            plane[closer] = bit
    return planes


def least_squares(groups: np.ndarray, alphas: np.ndarray, planes: np.ndarray) -> np.ndarray:
    """The scales with the least squared error for given planes: 2 x 2 equations a row.

    Scales that the planes leave open stay as they are: that of a plane without ones, and the second
    one where both planes are the same.
    """
    b1, b2 = planes
    ones1, ones2, both = (b.sum(axis=1).astype(np.float64) for b in (b1, b2, b1 & b2))
    sum1 = np.einsum("ij,ij->i", groups, b1, dtype=np.float64)
    sum2 = np.einsum("ij,ij->i", groups, b2, dtype=np.float64)
    alpha1, alpha2 = alphas[:, 0].astype(np.float64), alphas[:, 1].astype(np.float64)
    determinant = ones1 * ones2 - both * both
    free = determinant > 0
    safe = np.where(free, determinant, 1)
    new1 = np.where(free, (sum1 * ones2 - sum2 * both) / safe, alpha1)
    new2 = np.where(free, (sum2 * ones1 - sum1 * both) / safe, alpha2)
    only1, only2 = ~free & (ones1 > 0), ~free & (ones1 == 0) & (ones2 > 0)
    # Both planes are the same in `only1` if the second one has ones at all.
    new1 = np.where(only1, sum1 / np.maximum(ones1, 1) - alpha2 * (ones2 > 0), new1)
    new2 = np.where(only2, sum2 / np.maximum(ones2, 1), new2)
    return np.stack([new1, new2], axis=1)


def refit(groups: np.ndarray, alphas: np.ndarray, planes: np.ndarray) -> np.ndarray:
    """Scales after nearest levels and least squares in turns, until no bit of a row changes."""
    alphas, planes = alphas.astype(np.float64), planes.copy()
    active = np.arange(len(groups))
    for _ in range(MOST_ROUNDS):
        alphas[active] = least_squares(groups[active], alphas[active], planes[:, active])
        nearest = assign(groups[active], alphas[active])
        changed = (nearest != planes[:, active]).any(axis=(0, 2))
        planes[:, active] = nearest
        active = active[changed]
        if not len(active):
            break
    return alphas


def _errors(groups: np.ndarray, alphas: np.ndarray, planes: np.ndarray) -> np.ndarray:
    """Squared error of each row, as stored."""
    scales = alphas.astype(np.float32)
    error = groups - planes[0] * scales[:, :1] - planes[1] * scales[:, 1:]
    return np.einsum("ij,ij->i", error, error, dtype=np.float64)
