"""BiLLM: one bit a weight, two for salient columns, and a bit that says which scale.

"BiLLM: Pushing the Limit of Post-Training Quantization for LLMs" (Huang et al., ICML 2024, arXiv
2402.04291; Aaronhuang-778/BiLLM, bigptq.py and utils/). Columns are worked on in blocks of 128. In
each block some columns are salient and get two binary planes, the second for what the first leaves
(`residual_planes`); the other weights are split by magnitude into an inner and an outer part with a
binary scale each. Scales are one a row and block. Errors of a block, divided by U_jj, move into
later blocks through U, the Cholesky factor of the inverse Hessian (`gptq.py`); nothing moves inside
a block, for its masks are found before it is rounded. Saliency is s = w^2 / U_jj^2.

Paper and authors' code differ; `mode` says which runs:

- "code": the number of salient columns and the split minimise the error of binarising s itself,
  with two planes for salient columns and for the rest; every plane has a mean beside its scale.
- "paper": both minimise the error of W, with two planes for salient columns and one for the rest;
  no means. Columns are ranked by s all the same. This is our reading of the paper's formulas. Two
  planes nearly always beat one, so that it tends to take all the columns it may: 1 + r is near 1.4.

`feedback=false` moves no errors and needs no data; without a Hessian s = w, so that columns are
ranked by magnitude. Both modes try 1 to 49 salient columns and 81 thresholds, the quantiles 0.10 to
0.90 of the magnitudes, zeros of salient columns included, as in the authors' code.

| entry | type | content |
|---|---|---|
| signs | uint8 | the first plane, a bit a weight row by row; 1: +1 |
| second | uint8 | a bit a weight: salient columns the second plane, others 1 in the outer part |
| salient | uint8 | a bit a column |
| scales | float16 [blocks, n, S] | alpha of inner, outer, salient, second; code: four means too |

True bits per weight: 2 + 16 S blocks / k + ceil(k / 8) 8 / (n k): 3.0 with means (S = 8) and 2.5
without (S = 4), whatever the share r of salient columns. The authors count 1 + r.

Hardware pays for the mask: inner and outer part are a product each, and where there are means the
mask is a third, for the sum of activations differs from row to row. The second plane of the salient
columns comes to them. A PE with two accumulators and a bit that chooses would save the second.
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
    VectorWork,
    pack_bits,
    plane_tensor,
    unpack_bits,
)

from .base import Algorithm, BlockTask, Phase
from .gptq import _factorise

Mode = Literal["code", "paper"]

MOST_SALIENT = 49  #: columns a block: the authors' limit is 50, and their loop leaves it out
QUANTILES = np.linspace(0.1, 0.9, 81)
#: Weights that a search works on together.
_CHUNK = 1 << 14
#: Places in the last axis of `scales`; means follow in the same order.
INNER, OUTER, SALIENT, SECOND = range(4)


class BiLlm(Algorithm):
    """Binary weights with salient columns and a split by magnitude."""

    name: Literal["billm"] = "billm"
    phase: ClassVar[Phase] = "round"
    own_form: ClassVar[bool] = True
    needs_format: ClassVar[bool] = False
    mode: Mode = "code"  #: whose search for the masks, and whether there are means
    feedback: bool = True  #: whether errors move into later blocks; needs data
    block: int = Field(default=128, ge=1)  #: columns of a block
    damping: float = Field(default=0.01, gt=0)  #: times the mean diagonal, added to the Hessian

    @property
    def needs_data(self) -> bool:  # type: ignore[override]
        return self.feedback

    @property
    def reads_quantized_stream(self) -> bool:  # type: ignore[override]
        return self.feedback

    def round(
        self, block: BlockTask, name: str, w: np.ndarray, stats: SiteStats | None
    ) -> "BiLlmMatrix":
        """Weights [n, k] as planes, masks and scales."""
        hessian = None if stats is None or stats.gram is None else stats.hessian
        return billm(w, hessian, self.mode, self.feedback, self.block, self.damping)


@dataclass(frozen=True, eq=False)
class BiLlmMatrix(CompressedMatrix):
    """Planes, masks and scales; see the table of the module."""

    signs: Bool[np.ndarray, "n k"]
    second: Bool[np.ndarray, "n k"]
    salient: Bool[np.ndarray, " k"]
    scales: Float16[np.ndarray, "blocks n S"]
    block: int

    method: ClassVar[str] = "billm"

    @property
    def shape(self) -> tuple[int, int]:
        n, k = self.signs.shape
        return n, k

    @property
    def mode(self) -> Mode:
        """Only the authors' code has means."""
        return "code" if self.scales.shape[2] == 8 else "paper"

    def dequantize(self) -> Float32[np.ndarray, "n k"]:
        w = np.empty(self.shape, np.float32)
        for number, scales in enumerate(self.scales):
            part = slice(number * self.block, (number + 1) * self.block)
            w[:, part] = values(
                self.signs[:, part], self.second[:, part], self.salient[part], scales
            )
        return w

    def settings(self) -> dict[str, Any]:
        n, k = self.shape
        return {"n": n, "k": k, "block": self.block, "mode": self.mode}

    def entries(self) -> dict[str, np.ndarray]:
        return {
            "signs": pack_bits(self.signs.astype(np.uint8), 1),
            "second": pack_bits(self.second.astype(np.uint8), 1),
            "salient": pack_bits(self.salient.astype(np.uint8), 1),
            "scales": self.scales,
        }

    @classmethod
    def restored(cls, settings: Mapping[str, Any], entries: Mapping[str, np.ndarray]) -> Self:
        n, k, block = settings["n"], settings["k"], settings["block"]
        wanted = (-(-k // block), n, 8 if settings["mode"] == "code" else 4)
        if entries["scales"].shape != wanted:
            raise InputError(f"scales are {entries['scales'].shape}; need {wanted}")
        signs, second = (
            unpack_bits(entries[name], 1, n * k).reshape(n, k).astype(bool)
            for name in ("signs", "second")
        )
        salient = unpack_bits(entries["salient"], 1, k).astype(bool)
        return cls(signs, second, salient, entries["scales"], block)

    @property
    def nominal_bits(self) -> float:
        return 1 + float(self.salient.mean())

    def passes(self) -> tuple[Pass, ...]:
        """Both parts with their scales, the mask where means need its sums, the second plane.

        Signs under a mask are ternary: a part is 0 where the other one is. Signs are read with the
        first part, the mask with the second, and stay for what follows.
        """
        n, k = self.shape
        columns, blocks = int(self.salient.sum()), len(self.scales)
        scale, group = 16 * n * blocks, min(self.block, k)  # bits of a scale of all rows, columns
        rest = [
            Pass("outer part", n, k, "ternary", n * (k - columns) + scale, group),
            Pass(
                "second plane", n, columns, "binary", n * columns + 2 * scale, -(-columns // blocks)
            ),
        ]
        if self.mode == "code":
            rest.insert(1, Pass("mask", n, k, "ternary", 4 * scale, group))
        first = self.stored_bits - sum(one.bits for one in rest)
        return (Pass("inner part", n, k, "ternary", first, group), *rest)

    def operands(self, x: np.ndarray) -> Operands:
        outer = self.second & ~self.salient
        signs = np.where(self.signs, 1, -1)
        parts = [np.where(outer, 0, signs), np.where(outer, signs, 0)]
        if self.mode == "code":
            parts.append(outer)
        found = [(x, plane_tensor(part, "ternary", self.block)) for part in parts]
        columns = int(self.salient.sum())
        second = plane_tensor(
            self.second[:, self.salient], "binary", -(-columns // len(self.scales))
        )
        return (*found, (np.ascontiguousarray(x[:, self.salient]), second))

    def vector_work(self) -> tuple[VectorWork, ...]:
        """Inputs of the salient columns put side by side, and sums of the parts' results."""
        gather = VectorWork("gather salient inputs", "gather", int(self.salient.sum()))
        return (gather, *super().vector_work())


def billm(
    w: Float32[np.ndarray, "n k"],
    hessian: np.ndarray | None = None,
    mode: Mode = "code",
    feedback: bool = True,
    block: int = 128,
    damping: float = 0.01,
) -> BiLlmMatrix:
    """Weights in BiLLM's form.

    Args:
        w: Weights, one row an output channel.
        hessian: 2 / tokens * sum x x^T [k, k]; None: columns are ranked by magnitude.
        mode: "code" or "paper", see the module.
        feedback: Whether errors of a block move into later ones; needs the Hessian.
        block: Columns of a block; the last one may have fewer.
        damping: Times the Hessian's mean diagonal, added to its diagonal.

    Raises:
        InputError: Feedback without a Hessian, a Hessian of another shape, numbers that are not
            finite, or a scale outside FP16.
    """
    w = np.array(w, np.float32)
    n, k = w.shape
    _check_finite("w", w)
    if block < 1:
        raise InputError(f"block (={block}) must be at least 1 column; 128 is usual")
    u, dead = None, np.zeros(k, bool)
    if hessian is not None:
        if hessian.shape != (k, k):
            raise InputError(f"hessian has shape {hessian.shape}; w has {k} columns: ({k}, {k})")
        _check_finite("hessian", hessian)
        h = np.array(hessian, np.float64)
        dead = np.diagonal(h) == 0
        w[:, dead] = 0
        u = _factorise(h, dead, np.arange(k), damping).u
    elif feedback:
        raise InputError("feedback needs a Hessian; give one, or set feedback to false")
    blocks = -(-k // block)
    scales = np.empty((blocks, n, 8 if mode == "code" else 4), np.float16)
    signs, second, salient = np.empty((n, k), bool), np.empty((n, k), bool), np.empty(k, bool)
    for number in range(blocks):
        first, last = number * block, min((number + 1) * block, k)
        part = slice(first, last)
        diagonal = None if u is None else np.diagonal(u)[part]
        salient[part], outer = masks(w[:, part], diagonal, mode)
        signs[:, part], second[:, part], scales[number] = planes(
            w[:, part], salient[part], outer, mode == "code"
        )
        if feedback and last < k:
            assert u is not None and diagonal is not None
            q = values(signs[:, part], second[:, part], salient[part], scales[number])
            errors = (w[:, part] - q) / diagonal
            errors[:, dead[part]] = 0  # their inputs are 0
            w[:, last:] -= errors @ u[part, last:]
            if not np.isfinite(w[:, last:]).all():
                raise InputError("the compensated weights exceed float32; scale the weights down")
    return BiLlmMatrix(signs, second, salient, scales, block)


def _check_finite(name: str, matrix: np.ndarray) -> None:
    if not np.isfinite(matrix).all():
        row, column = np.argwhere(~np.isfinite(matrix))[0]
        raise InputError(f"{name}[{row}, {column}] is {matrix[row, column]}; it must be finite")


# -------------------------------------------------------------------------- masks


def masks(
    w: Float32[np.ndarray, "n c"], diagonal: Float32[np.ndarray, " c"] | None, mode: Mode
) -> tuple[Bool[np.ndarray, " c"], Bool[np.ndarray, "n c"]]:
    """A block's salient columns, and its outer part among the other columns.

    `diagonal` is that of U; None: s = w.
    """
    s = w if diagonal is None else np.square(w / diagonal)
    s = s / max(float(np.abs(s).max()), 1e-30)  # no search depends on the unit
    order = np.argsort(-np.abs(s).sum(axis=0, dtype=np.float64), kind="stable")
    code = mode == "code"
    target = s if code else w
    columns = count_salient(target[:, order], 2 if code else 1, code)
    salient = np.zeros(w.shape[1], bool)
    salient[order[:columns]] = True
    outer = np.zeros(w.shape, bool)
    if not salient.all():
        threshold = split_point(target[:, ~salient], code, columns * len(w))
        outer[:, ~salient] = np.abs(target[:, ~salient]) >= threshold
    return salient, outer


def count_salient(x: Float32[np.ndarray, "n c"], rest_order: int, means: bool) -> int:
    """How many leading columns to give two planes and a scale of their own: the least error."""
    counts = range(1, min(MOST_SALIENT, x.shape[1]) + 1)
    errors = np.zeros(len(counts))
    for rows in _rows(x):
        for place, count in enumerate(counts):
            errors[place] += residual_error(rows[:, :count], 2, means)
            errors[place] += residual_error(rows[:, count:], rest_order, means)
    return counts[int(np.argmin(errors))]


def _rows(x: np.ndarray) -> list[np.ndarray]:
    """Rows in parts that stay in the cache."""
    step = max(1, _CHUNK // x.shape[1])
    return [x[start : start + step] for start in range(0, len(x), step)]


def residual_error(x: Float32[np.ndarray, "n c"], order: int, means: bool) -> float:
    """Squared error of `order` binary planes, each with a scale a row; 0 without columns."""
    if not x.size:
        return 0.0
    r = x.copy()
    size = np.empty_like(r)
    for _ in range(order):
        if means:
            r -= _mean(r)
        np.abs(r, out=size)
        r -= np.copysign(_mean(size), r, out=size)
    return float(np.einsum("ij,ij->", r, r))


def _mean(x: np.ndarray) -> np.ndarray:
    return np.einsum("ij->i", x)[:, None] / np.float32(x.shape[1])


def split_point(x: Float32[np.ndarray, "n c"], means: bool, zeros: int = 0) -> float:
    """The threshold on |x| with the least error, if both sides get a binary scale a row.

    Args:
        x: The weights, or their saliency.
        means: Whether each side has a mean beside its scale.
        zeros: Zeros to count in the quantiles beside |x|.
    """
    magnitudes = np.abs(x)
    pool = np.concatenate([np.zeros(zeros, np.float32), magnitudes.reshape(-1)])
    candidates = np.quantile(pool, QUANTILES).astype(np.float32)
    errors = np.zeros(len(candidates))
    for rows, sizes in zip(_rows(x), _rows(magnitudes), strict=True):
        for place, candidate in enumerate(candidates):
            errors[place] += split_error(rows, sizes, candidate, means)
    return float(candidates[int(np.argmin(errors))])


def split_error(x: np.ndarray, magnitudes: np.ndarray, threshold: np.float32, means: bool) -> float:
    """Squared error of a split, but for what no split changes: sum r^2 - (sum |r|)^2 / count."""
    inner = (magnitudes < threshold).astype(np.float32)
    count = inner.sum(axis=1)
    counts = np.maximum(np.stack([count, x.shape[1] - count]), 1)
    power = 0.0
    if means:
        sums = np.einsum("ij,ij->i", x, inner)
        mu = np.stack([sums, x.sum(axis=1) - sums]) / counts
        r = x - mu[1][:, None] - inner * (mu[0] - mu[1])[:, None]
        power = float(np.einsum("ij,ij->", r, r))
        magnitudes = np.abs(r)
    sums = np.einsum("ij,ij->i", magnitudes, inner)
    both = np.stack([sums, magnitudes.sum(axis=1) - sums])
    return power - float((np.square(both) / counts).sum(dtype=np.float64))


# ------------------------------------------------------------------------- planes


def residual_planes(
    w: Float32[np.ndarray, "n c"], mask: Bool[np.ndarray, "n c"], order: int, means: bool
) -> tuple[Bool[np.ndarray, "order n c"], Float16[np.ndarray, "order n"], np.ndarray]:
    """Planes of signs, scales and means of the weights under a mask, row by row.

    Each plane binarises what those before leave, with scales as stored. Signs of 0 are +1; rows
    without weights have scale and mean 0.

    Raises:
        InputError: A scale is outside FP16.
    """
    count = np.maximum(mask.sum(axis=1), 1)
    signs = np.empty((order, *w.shape), bool)
    alphas, mus = np.zeros((order, len(w)), np.float16), np.zeros((order, len(w)), np.float16)
    r = np.where(mask, w, np.float32(0))
    for plane in range(order):
        if means:
            mus[plane] = _stored(r.sum(axis=1, dtype=np.float64) / count)
            r = np.where(mask, r - mus[plane].astype(np.float32)[:, None], np.float32(0))
        alphas[plane] = _stored(np.abs(r).sum(axis=1, dtype=np.float64) / count)
        signs[plane] = r >= 0
        alpha = alphas[plane].astype(np.float32)[:, None]
        r = np.where(mask, r - np.where(signs[plane], alpha, -alpha), np.float32(0))
    return signs, alphas, mus


def _stored(scales: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore", under="ignore"):
        stored = scales.astype(np.float16)
    if not np.isfinite(stored).all():
        worst = scales[~np.isfinite(stored)][0]
        raise InputError(f"a scale (={worst:.3g}) exceeds FP16 (65504); scale the weights down")
    return stored


def planes(
    w: Float32[np.ndarray, "n c"],
    salient: Bool[np.ndarray, " c"],
    outer: Bool[np.ndarray, "n c"],
    means: bool,
) -> tuple[Bool[np.ndarray, "n c"], Bool[np.ndarray, "n c"], Float16[np.ndarray, "n S"]]:
    """A block as stored: signs, second bits (`outer` or second plane) and scales."""
    signs, second = np.empty(w.shape, bool), outer.copy()
    scales = np.zeros((len(w), 8), np.float16)
    twice = np.broadcast_to(salient, w.shape)
    for place, mask in ((INNER, ~outer & ~twice), (OUTER, outer & ~twice)):
        made, alphas, mus = residual_planes(w, mask, 1, means)
        signs[mask] = made[0][mask]
        scales[:, place], scales[:, place + 4] = alphas[0], mus[0]
    made, alphas, mus = residual_planes(w, twice, 2, means)
    signs[:, salient], second[:, salient] = made[:, :, salient]
    scales[:, [SALIENT, SECOND]], scales[:, [SALIENT + 4, SECOND + 4]] = alphas.T, mus.T
    return signs, second, scales if means else np.ascontiguousarray(scales[:, :4])


def values(
    signs: np.ndarray, second: np.ndarray, salient: np.ndarray, scales: np.ndarray
) -> Float32[np.ndarray, "n c"]:
    """The weights that a block's planes stand for."""
    by_place = scales.astype(np.float32).T[:, :, None]
    alpha = by_place[:4]
    mu = by_place[4:] if len(by_place) == 8 else np.zeros_like(alpha)

    def plane(bits: np.ndarray, place: int) -> np.ndarray:
        return np.where(bits, alpha[place], -alpha[place]) + mu[place]

    single = np.where(second, plane(signs, OUTER), plane(signs, INNER))
    double = plane(signs, SALIENT) + plane(second, SECOND)
    return np.where(salient, double, single)
