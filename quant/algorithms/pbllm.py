"""PB-LLM: a small share of the weights in 8 bits, wherever they are, and the others binary.

"PB-LLM: Partially Binarized Large Language Models" (Shang et al., arXiv 2310.00034;
hahnyuan/PB-LLM, gptq_pb/), its form without training. The weights of largest saliency in the whole
matrix are salient: |w|, or w^2 / U_jj^2 with U, the Cholesky factor of the inverse Hessian. They
are coded per row in 8 bits, asymmetric, between the row's least and largest weight, 0 included. The
others are alpha sign(w - mu) + mu with a scale and a mean per row. Columns are then rounded one by
one with GPTQ's error compensation; the masks and scales are those of the weights before it.

In the authors' code alpha and mu are means over the whole row, with zeros where weights are
salient, which they mark as doubtful themselves: `masked_mean=true` does that, and by default the
means are over the binary weights alone. Ties of saliency go to the later weight: exactly
floor((1 - salient) n k) weights are binary, where the code compares with a threshold.

| entry | type | content |
|---|---|---|
| mask | uint8 | a bit a weight row by row; 1: salient |
| signs | uint8 | a bit a binary weight, in the same order; 1: +1 |
| codes | uint8 | a byte a salient weight, in the same order |
| alpha, mu, scale | float16 [n] | of the binary weights, and the step of the codes |
| zero | uint8 [n] | the code of 0 |

True bits per weight, with the share r of salient weights: 8 r + (1 - r) + 1 + 56 / k, signs and
mask filled up to whole bytes. The authors count 8 r + (1 - r).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import numpy as np
from jaxtyping import Bool, Float16, Float32, UInt8
from pydantic import Field

from bitwright.quant import (
    CompressedMatrix,
    InputError,
    Operands,
    Pass,
    SiteStats,
    pack_bits,
    unpack_bits,
)

from .base import Algorithm, BlockTask, Phase
from .gptq import _factorise

Metric = Literal["magnitude", "hessian"]

#: Columns after which errors move on to all later ones.
BLOCK = 128


class PbLlm(Algorithm):
    """Binary weights, but for the most salient ones."""

    name: Literal["pbllm"] = "pbllm"
    phase: ClassVar[Phase] = "round"
    own_form: ClassVar[bool] = True
    needs_format: ClassVar[bool] = False
    reads_quantized_stream: ClassVar[bool] = True
    salient: float = Field(default=0.1, ge=0, le=1)  #: share of weights in 8 bits
    metric: Metric = "magnitude"  #: what makes a weight salient
    masked_mean: bool = False  #: whether salient weights count as zeros in the row's means
    damping: float = Field(default=0.01, gt=0)  #: times the mean diagonal, added to the Hessian

    def round(
        self, block: BlockTask, name: str, w: np.ndarray, stats: SiteStats | None
    ) -> "PbLlmMatrix":
        """Weights [n, k] as a mask, signs and codes."""
        assert stats is not None
        return pbllm(w, stats.hessian, self.salient, self.metric, self.masked_mean, self.damping)


@dataclass(frozen=True, eq=False)
class PbLlmMatrix(CompressedMatrix):
    """Signs and codes, of which `mask` says which counts; both are 0 where they do not."""

    mask: Bool[np.ndarray, "n k"]
    signs: Bool[np.ndarray, "n k"]
    codes: UInt8[np.ndarray, "n k"]
    alpha: Float16[np.ndarray, " n"]
    mu: Float16[np.ndarray, " n"]
    scale: Float16[np.ndarray, " n"]
    zero: UInt8[np.ndarray, " n"]

    method: ClassVar[str] = "pbllm"

    @property
    def shape(self) -> tuple[int, int]:
        n, k = self.mask.shape
        return n, k

    def dequantize(self) -> Float32[np.ndarray, "n k"]:
        alpha, mu, scale, zero = (
            row.astype(np.float32)[:, None] for row in (self.alpha, self.mu, self.scale, self.zero)
        )
        binary = np.where(self.signs, alpha, -alpha) + mu
        return np.where(self.mask, (self.codes.astype(np.float32) - zero) * scale, binary)

    def settings(self) -> dict[str, Any]:
        n, k = self.shape
        return {"n": n, "k": k}

    def entries(self) -> dict[str, np.ndarray]:
        return {
            "mask": pack_bits(self.mask.astype(np.uint8), 1),
            "signs": pack_bits(self.signs[~self.mask].astype(np.uint8), 1),
            "codes": self.codes[self.mask],
            "alpha": self.alpha,
            "mu": self.mu,
            "scale": self.scale,
            "zero": self.zero,
        }

    @classmethod
    def restored(cls, settings: Mapping[str, Any], entries: Mapping[str, np.ndarray]) -> Self:
        n, k = settings["n"], settings["k"]
        rows = [entries[name] for name in ("alpha", "mu", "scale", "zero")]
        for name, row in zip(("alpha", "mu", "scale", "zero"), rows, strict=True):
            if row.shape != (n,):
                raise InputError(f"{name} is {row.shape}; needs {(n,)}")
        mask = unpack_bits(entries["mask"], 1, n * k).reshape(n, k).astype(bool)
        count = int(mask.sum())
        if entries["codes"].shape != (count,):
            raise InputError(f"codes are {entries['codes'].shape}; the mask has {count} ones")
        signs, codes = np.zeros((n, k), bool), np.zeros((n, k), np.uint8)
        signs[~mask] = unpack_bits(entries["signs"], 1, n * k - count)
        codes[mask] = entries["codes"]
        alpha, mu, scale, zero = rows
        return cls(mask, signs, codes, alpha, mu, scale, zero)

    @property
    def nominal_bits(self) -> float:
        return 1 + 7 * float(self.mask.mean())

    def passes(self) -> tuple[Pass, ...]:
        """Signs of all columns, and as many columns of 8 bits as rows have salient weights."""
        n, k = self.shape
        count = int(self.mask.sum())
        eight = 8 * count + 24 * n
        if count == 0:
            return (Pass("signs", n, k, "binary", self.stored_bits),)
        if count == n * k:
            return (Pass("salient weights", n, k, "int8-sym", self.stored_bits),)
        return (
            Pass("signs", n, k, "binary", self.stored_bits - eight),
            Pass("salient weights", n, -(-count // n), "int8-sym", eight),
        )

    def operands(self, x: np.ndarray) -> Operands:
        """Decoded values. Salient weights stand side by side, row after row, and meet the inputs
        that are salient in most rows: a row's own choice of inputs is one of its PE."""
        w = self.dequantize()
        n, count = len(w), int(self.mask.sum())
        binary, salient = np.where(self.mask, np.float32(0), w), w[self.mask]
        if count in (0, w.size):
            return ((x, w),)
        columns = -(-count // n)
        side = np.zeros(n * columns, np.float32)
        side[:count] = salient
        often = np.sort(np.argsort(-self.mask.sum(0), kind="stable")[:columns])
        return (x, binary), (np.ascontiguousarray(x[:, often]), side.reshape(n, columns))


def pbllm(
    w: Float32[np.ndarray, "n k"],
    hessian: np.ndarray | None = None,
    salient: float = 0.1,
    metric: Metric = "magnitude",
    masked_mean: bool = False,
    damping: float = 0.01,
) -> PbLlmMatrix:
    """Weights in PB-LLM's form.

    Args:
        w: Weights, one row an output channel.
        hessian: 2 / tokens * sum x x^T [k, k]; None: weights are rounded without compensation.
        salient: Share of weights in 8 bits, 0 to 1.
        metric: "magnitude", or "hessian", which needs one.
        masked_mean: Whether salient weights count as zeros in the means of a row.
        damping: Times the Hessian's mean diagonal, added to its diagonal.

    Raises:
        InputError: The metric needs a Hessian, the Hessian has another shape, numbers are not
            finite, or a scale is outside FP16.
    """
    w = np.array(w, np.float32)
    n, k = w.shape
    if not np.isfinite(w).all():
        row, column = np.argwhere(~np.isfinite(w))[0]
        raise InputError(f"w[{row}, {column}] is {w[row, column]}; it must be finite")
    if not 0 <= salient <= 1:
        raise InputError(f"salient (={salient}) must be in 0 .. 1; 0.1 is usual")
    u, dead = np.eye(k, dtype=np.float32), np.zeros(k, bool)
    if hessian is not None:
        if hessian.shape != (k, k) or not np.isfinite(hessian).all():
            raise InputError(f"hessian {hessian.shape} must be finite and have shape ({k}, {k})")
        h = np.array(hessian, np.float64)
        dead = np.diagonal(h) == 0
        w[:, dead] = 0
        u = _factorise(h, dead, np.arange(k), damping).u
    elif metric == "hessian":
        raise InputError("metric hessian needs a Hessian; give one, or use metric magnitude")
    mask = salient_mask(
        np.square(w / np.diagonal(u)) if metric == "hessian" else np.abs(w), salient
    )
    alpha, mu = binary_scales(w, mask, masked_mean)
    scale, zero = high_scales(w)
    rows = [one.astype(np.float32) for one in (alpha, mu, scale, zero)]
    signs, codes = np.zeros((n, k), bool), np.zeros((n, k), np.uint8)
    for first in range(0, k, BLOCK):
        last = min(first + BLOCK, k)
        errors = np.empty((n, last - first), np.float32)
        for j in range(first, last):
            signs[:, j], codes[:, j], q = _column(w[:, j], mask[:, j], *rows)
            errors[:, j - first] = 0 if dead[j] else (w[:, j] - q) / u[j, j]
            if hessian is not None:
                w[:, j + 1 : last] -= np.outer(errors[:, j - first], u[j, j + 1 : last])
        if hessian is not None:
            w[:, last:] -= errors @ u[first:last, last:]
    return PbLlmMatrix(mask, signs, codes, alpha, mu, scale, zero)


def _column(
    w: np.ndarray,
    mask: np.ndarray,
    alpha: np.ndarray,
    mu: np.ndarray,
    scale: np.ndarray,
    zero: np.ndarray,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Signs, codes and values of a column."""
    sign = (w >= mu) & ~mask
    step = np.where(scale > 0, scale, np.float32(1))
    code = np.where(mask, np.clip(np.rint(w / step) + zero, 0, 255), 0)
    q = np.where(mask, (code - zero) * scale, np.where(sign, alpha, -alpha) + mu)
    return sign, code.astype(np.uint8), q


def salient_mask(saliency: Float32[np.ndarray, "n k"], share: float) -> Bool[np.ndarray, "n k"]:
    """Where weights are salient: all but the floor((1 - share) n k) of least saliency."""
    # 1 - 0.9 is not 0.1: what is a whole number but for rounding counts as one.
    binary = int(np.floor((1 - share) * saliency.size + 1e-6))
    mask = np.ones(saliency.size, bool)
    mask[np.argsort(saliency, axis=None, kind="stable")[:binary]] = False
    return mask.reshape(saliency.shape)


def binary_scales(
    w: Float32[np.ndarray, "n k"], mask: Bool[np.ndarray, "n k"], masked_mean: bool
) -> tuple[Float16[np.ndarray, " n"], Float16[np.ndarray, " n"]]:
    """alpha and mu of each row's binary weights; see the module for `masked_mean`."""
    low = np.where(mask, np.float32(0), w)
    counted = np.ones_like(mask) if masked_mean else ~mask
    count = np.maximum(counted.sum(axis=1), 1)
    mu = _stored(low.sum(axis=1, dtype=np.float64) / count)
    away = np.abs(low - mu.astype(np.float32)[:, None]) * counted
    return _stored(away.sum(axis=1, dtype=np.float64) / count), mu


def high_scales(
    w: Float32[np.ndarray, "n k"],
) -> tuple[Float16[np.ndarray, " n"], UInt8[np.ndarray, " n"]]:
    """Step and code of 0 of each row in 8 bits, asymmetric, from all its weights."""
    low, high = np.minimum(w.min(axis=1), 0), np.maximum(w.max(axis=1), 0)
    scale = _stored((high.astype(np.float64) - low) / 255)
    step = np.where(scale > 0, scale.astype(np.float32), 1)
    return scale, np.clip(np.rint(-low / step), 0, 255).astype(np.uint8)


def _stored(scales: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore", under="ignore"):
        stored = scales.astype(np.float16)
    if not np.isfinite(stored).all():
        worst = scales[~np.isfinite(stored)][0]
        raise InputError(f"a scale (={worst:.3g}) exceeds FP16 (65504); scale the weights down")
    return stored
