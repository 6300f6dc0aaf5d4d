"""LittleBit: a matrix as two thin binary factors with three scale vectors, below one bit a weight.

"LittleBit: Ultra Low-Bit Quantization via Latent Factorization" (Lee et al., arXiv 2506.13771;
written from its equations). W [n, k] ~ U V with U [n, r] and V [r, k] from the truncated SVD, each
factor with the root of the singular values. Signs of both are kept, and for each the rank-1
approximation of its magnitudes (`rank_one`): rows u1, latent u2 of |U|, latent v1, columns v2 of
|V|. The two latent vectors merge into one:

    W ~ diag(u1) sign(U) diag(u2 v1) sign(V) diag(v2)

A second path of the same form takes what the first leaves over (`residual`). The paper trains from
here (quantisation-aware, against the float model); by default what is here is the initialisation
alone. With `steps` factors and scales are trained block by block (`distilling.py`), far less than
the paper trains: the gradient of a sign is that of tanh(100 u), or passes where |u| is at most 1
(`gradient=straight`), the authors' alternative.

| entry, of "main" and "residual" | type | content |
|---|---|---|
| .u | uint8 | signs of U [n, r], a bit each, 1 is +1, row by row |
| .v | uint8 | signs of V [r, k], likewise |
| .row, .latent, .column | float16 | [n], [r], [k] |

True bits: r (n + k + 16) + 16 (n + k) a path. Of a budget of b bits a weight the rank is what is
left after the vectors, rounded down to a multiple of 8. The authors' code (SamsungLabs/LittleBit)
takes at least 8, which exceeds the budget of small matrices: such budgets are refused here. Its
own factor for the ranks of "attn.k" and "attn.v" is left out (1), and its SVD is randomised, while
this one is exact.

Hardware computes two binary products a path, with a latent vector of r numbers between them that is
scaled and, for integer PEs, quantised again: a choice that the paper does not make, not modelled.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
from jaxtyping import Float16, Float32, UInt8
from pydantic import Field

from bitwright.quant import (
    CompressedMatrix,
    InputError,
    Operands,
    Pass,
    SiteStats,
    VectorWork,
    as_weights,
    pack_bits,
    plane_tensor,
    unpack_bits,
)

from .base import BlockTask
from .distilling import Distilled, Student, half, smooth_sign, straight_sign, trained
from .rank_one import rank_one, to_half

if TYPE_CHECKING:
    import torch

STEP = 8  #: ranks are multiples of it, and at least it
Gradient = Literal["smooth", "straight"]


class LittleBit(Distilled):
    """Binary factors of a rank that a budget allows."""

    name: Literal["littlebit"] = "littlebit"
    bits: float = Field(default=1.0, ge=0.1, le=2.0)  #: a weight, scales counted; paper: 0.1 to 1
    residual: bool = True  #: a second path for what the first leaves over
    gradient: Gradient = "smooth"  #: of signs, in training

    def round(
        self, block: BlockTask, name: str, w: np.ndarray, stats: SiteStats | None
    ) -> "LittleBitMatrix":
        """Weights [n, k] as factors."""
        return littlebit(w, self.bits, residual=self.residual)

    def student(self, block: BlockTask, name: str, w: np.ndarray) -> "LittleBitStudent":
        """The initialised linear, ready for training."""
        return LittleBitStudent(w, self.bits, self.residual, self.gradient)


@dataclass(frozen=True, eq=False)
class Factors:
    """One path: diag(row) sign(U) diag(latent) sign(V) diag(column)."""

    u: UInt8[np.ndarray, "n r"]  #: 1: +1, 0: -1
    v: UInt8[np.ndarray, "r k"]
    row: Float16[np.ndarray, " n"]
    latent: Float16[np.ndarray, " r"]
    column: Float16[np.ndarray, " k"]

    @property
    def rank(self) -> int:
        return len(self.latent)

    def product(self) -> Float32[np.ndarray, "n k"]:
        """The matrix it stands for."""
        u = _plus_minus(self.u) * self.row.astype(np.float32)[:, None]
        v = _plus_minus(self.v) * self.column.astype(np.float32)
        return (u * self.latent.astype(np.float32)) @ v

    def forward(self, x: Float32[np.ndarray, "tokens k"]) -> Float32[np.ndarray, "tokens n"]:
        """Its product with activations, in the order in which hardware computes it."""
        latent = (x * self.column.astype(np.float32)) @ _plus_minus(self.v).T
        y = (latent * self.latent.astype(np.float32)) @ _plus_minus(self.u).T
        return y * self.row.astype(np.float32)


@dataclass(frozen=True, eq=False)
class LittleBitMatrix(CompressedMatrix):
    """One path of binary factors, or two whose results are added."""

    main: Factors
    residual: Factors | None
    bits: float  #: the budget

    method: ClassVar[str] = "littlebit"

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.main.row), len(self.main.column)

    def dequantize(self) -> Float32[np.ndarray, "n k"]:
        w = self.main.product()
        return w if self.residual is None else w + self.residual.product()

    def forward(self, x: Float32[np.ndarray, "tokens k"]) -> Float32[np.ndarray, "tokens n"]:
        """Outputs of activations, path by path."""
        y = self.main.forward(x)
        return y if self.residual is None else y + self.residual.forward(x)

    def settings(self) -> dict[str, Any]:
        n, k = self.shape
        residual = self.residual is not None
        return {"n": n, "k": k, "rank": self.main.rank, "residual": residual, "bits": self.bits}

    def entries(self) -> dict[str, np.ndarray]:
        return {
            f"{path}.{name}": array
            for path, factors in self._paths()
            for name, array in {
                "u": pack_bits(factors.u, 1),
                "v": pack_bits(factors.v, 1),
                "row": factors.row,
                "latent": factors.latent,
                "column": factors.column,
            }.items()
        }

    @classmethod
    def restored(cls, settings: Mapping[str, Any], entries: Mapping[str, np.ndarray]) -> Self:
        n, k, r = settings["n"], settings["k"], settings["rank"]

        def path(of: str) -> Factors:
            vectors = [entries[f"{of}.{name}"] for name in ("row", "latent", "column")]
            if [vector.shape for vector in vectors] != [(n,), (r,), (k,)]:
                raise InputError(f"{of}: scales do not fit {n} x {k} weights of rank {r}")
            u = unpack_bits(entries[f"{of}.u"], 1, n * r).reshape(n, r)
            v = unpack_bits(entries[f"{of}.v"], 1, r * k).reshape(r, k)
            return Factors(u, v, *vectors)

        residual = path("residual") if settings["residual"] else None
        return cls(path("main"), residual, settings["bits"])

    @property
    def nominal_bits(self) -> float:
        return self.bits

    def passes(self) -> tuple[Pass, ...]:
        """Two a path, the second of what the first gives; results of the paths are added."""
        n, k = self.shape
        made = []
        for path, one in self._paths():
            r, before = one.rank, "" if path == "main" else "residual "
            made += [
                Pass(f"{before}latent", r, k, "binary", 16 * k + 8 * -(-r * k // 8)),
                Pass(f"{before}outputs", n, r, "binary", 16 * (n + r) + 8 * -(-n * r // 8)),
            ]
        return tuple(made)

    def operands(self, x: np.ndarray) -> Operands:
        made = []
        for _, one in self._paths():
            inputs = x * one.column.astype(np.float32)
            latent = inputs @ _plus_minus(one.v).T * one.latent.astype(np.float32)
            made += [
                (inputs, plane_tensor(one.v, "binary")),
                (latent, plane_tensor(one.u, "binary")),
            ]
        return tuple(made)

    def vector_work(self) -> tuple[VectorWork, ...]:
        """Three scales a path, and the sum of the paths."""
        n, k = self.shape
        paths = self._paths()
        latent = sum(one.rank for _, one in paths)
        made = [
            VectorWork("scale inputs", "scale", k, len(paths)),
            VectorWork("scale latents", "scale", latent),
            VectorWork("scale outputs", "scale", n, len(paths)),
        ]
        if len(paths) > 1:
            made.append(VectorWork("add paths", "accumulate", n))
        return tuple(made)

    def _paths(self) -> list[tuple[str, Factors]]:
        paths = [("main", self.main)]
        return paths if self.residual is None else [*paths, ("residual", self.residual)]


def littlebit(
    w: Float32[np.ndarray, "n k"], bits: float, *, residual: bool = True
) -> LittleBitMatrix:
    """Weights as factors of the rank that `bits` a weight allow.

    Raises:
        InputError: Weights that are not finite, or a budget that allows no rank of 8, or one above
            min(n, k).
    """
    return _matrix([factors for _, _, factors in _initial_paths(w, bits, residual)], bits)


def _initial_paths(
    w: np.ndarray, bits: float, residual: bool
) -> list[tuple[np.ndarray, np.ndarray, Factors]]:
    """U, V and what is stored of them, of each path."""
    w = as_weights(w)
    n, k = w.shape
    rank = rank_of(n, k, bits, residual=residual)
    u, v = svd_factors(w, rank)
    paths = [(u, v, _stored_factors(u, v))]
    if residual:
        u, v = svd_factors(w - paths[0][2].product(), rank)
        paths.append((u, v, _stored_factors(u, v)))
    return paths


def _matrix(paths: list[Factors], bits: float) -> LittleBitMatrix:
    return LittleBitMatrix(paths[0], paths[1] if len(paths) > 1 else None, bits)


class LittleBitStudent(Student):
    """Latent factors U, V and three scale vectors a path, in training."""

    def __init__(self, w: np.ndarray, bits: float, residual: bool, gradient: Gradient) -> None:
        self.bits = bits
        self.sign = smooth_sign if gradient == "smooth" else straight_sign
        #: U, V, row, latent, column of each path
        self.paths = [
            [trained(one) for one in (u, v, factors.row, factors.latent, factors.column)]
            for u, v, factors in _initial_paths(w, bits, residual)
        ]

    def parameters(self) -> "list[torch.Tensor]":
        return [p for path in self.paths for p in path]

    def product(self, x: "torch.Tensor") -> "torch.Tensor":
        results = []
        for u, v, row, latent, column in self.paths:
            z = ((x * half(column)) @ self.sign(v).T) * half(latent)
            results.append((z @ self.sign(u).T) * half(row))
        return results[0] if len(results) == 1 else results[0] + results[1]

    def stored(self) -> LittleBitMatrix:
        paths = []
        for path in self.paths:
            u, v, row, latent, column = (p.detach().numpy() for p in path)
            paths.append(
                Factors(
                    (u >= 0).astype(np.uint8),
                    (v >= 0).astype(np.uint8),
                    to_half(row, "row scales"),
                    to_half(latent, "latent scales"),
                    to_half(column, "column scales"),
                )
            )
        return _matrix(paths, self.bits)


def rank_of(n: int, k: int, bits: float, *, residual: bool = True) -> int:
    """The largest multiple of 8 whose factors and scales take at most `bits` a weight.

    With p paths (n k bits - 16 p (n + k)) / (p (n + k + 16)), rounded down.

    Raises:
        InputError: It is below 8 or above min(n, k).

    >>> [rank_of(4096, 4096, bits) for bits in (1.0, 0.55, 0.1)]
    [1000, 544, 80]
    """
    paths = 2 if residual else 1
    left = n * k * bits - 16 * paths * (n + k)
    rank = int(left / (paths * (n + k + 16))) // STEP * STEP if left > 0 else 0
    if rank < STEP:
        least = paths * (STEP * (n + k + 16) + 16 * (n + k)) / (n * k)
        raise InputError(
            f"bits={bits:g} leave {n} x {k} weights no rank of {STEP}, the least: it takes "
            f"{ceil(least * 1000) / 1000:g} bits a weight"
            + (", scales of two paths counted; residual=false takes half" if residual else "")
        )
    _check_rank(rank, n, k)
    return rank


def dual_svid(w: Float32[np.ndarray, "n k"], rank: int) -> Factors:
    """Signs of both factors of the truncated SVD, and rank-1 approximations of their magnitudes.

    Raises:
        InputError: `rank` below 1 or above min(n, k), or a scale beyond FP16.
    """
    _check_rank(rank, *w.shape)
    return _stored_factors(*svd_factors(w, rank))


def _stored_factors(u: np.ndarray, v: np.ndarray) -> Factors:
    u1, u2 = rank_one(np.abs(u))
    v1, v2 = rank_one(np.abs(v))
    return Factors(
        (u >= 0).astype(np.uint8),
        (v >= 0).astype(np.uint8),
        to_half(u1, "row scales"),
        to_half(u2 * v1, "latent scales"),
        to_half(v2, "column scales"),
    )


def svd_factors(
    w: Float32[np.ndarray, "n k"], rank: int
) -> tuple[Float32[np.ndarray, "n r"], Float32[np.ndarray, "r k"]]:
    """U = P sqrt(S) and V = sqrt(S) Q^T of W ~ P S Q^T, the `rank` largest singular values."""
    p, s, q = np.linalg.svd(w, full_matrices=False)
    root = np.sqrt(s[:rank])
    return p[:, :rank] * root, root[:, None] * q[:rank]


def _check_rank(rank: int, n: int, k: int) -> None:
    if not 1 <= rank <= min(n, k):
        raise InputError(
            f"rank {rank} of {n} x {k} weights; 1 to min(n, k) = {min(n, k)}: ask for fewer bits"
        )


def _plus_minus(bits: np.ndarray) -> np.ndarray:
    return bits.astype(np.float32) * 2 - 1
