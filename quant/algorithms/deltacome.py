"""Delta-CoMe: what fine-tuning added to a matrix, as singular vectors in fewer and fewer bits.

"Delta-CoMe: Training-Free Delta-Compression with Mixed-Precision for Large Language Models" (Ping
et al., NeurIPS 2024): Delta = U S V^T; bands of singular vectors, the leading ones first, take
8, 3 and 2 bits, and the tail none. The authors' plan for 4096 x 4096 is 2 ranks of 8 bits, 32 of 3
and 968 of 2, which is the bits of a sixteenth of the matrix in FP16; here the last band has as many
ranks as the budget leaves, which gives that plan.

Factors are asymmetric integers with groups of 128 along each factor's inputs. Without data they are
*rounded to nearest*. With the Hessian of the layer's inputs GPTQ chooses the codes, as the authors
do, columns by falling diagonal (act-order): those of V^T for inputs x, then those of U for what
reaches it, S V^T x of the rounded V^T. The authors add each band to the base before they gather the
next one's inputs; here all bands read the inputs of the fine-tuned model.

Stored for band 0, 1, ... (the integers as `store.py` has them; 16 bits: one F16 array `left`,
`right` each):

| entry | type | content |
| --- | --- | --- |
| B.values | F16 [ranks] | singular values (the authors keep BF16) |
| B.left.codes, B.left.group_scales, B.left.zero_points | U8, F16, U8 | U of the band, [n, ranks] |
| B.right.codes, ... | U8, F16, U8 | V^T of the band, [ranks, k] |

True bits: per band ranks * (16 + bits * (n + k)), and 16 + bits for each group.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
from jaxtyping import Float16, Float32

from bitwright.quant import (
    FORMATS,
    CompressedMatrix,
    InputError,
    Operands,
    Pass,
    QuantizedTensor,
    VectorWork,
    pack_bits,
    quantize,
    unpack_bits,
)

from .gptq import gptq

_GROUP = 128
_SMALLEST = 2.0**-24  #: FP16 number, and so scale
Factor = QuantizedTensor | Float16[np.ndarray, "rows columns"]


class Band(NamedTuple):
    """Neighbouring singular vectors of one precision."""

    left: Factor  #: [n, ranks]
    values: Float16[np.ndarray, " ranks"]
    right: Factor  #: [ranks, k]

    @property
    def bits(self) -> int:
        """Of a factor's element."""
        return self.left.format.bits if isinstance(self.left, QuantizedTensor) else 16

    @property
    def ranks(self) -> int:
        """Singular vectors."""
        return len(self.values)


@dataclass(frozen=True, eq=False)
class LowRankDelta(CompressedMatrix):
    """The difference of two matrices as bands of singular vectors."""

    method: ClassVar[str] = "deltacome"
    bands: tuple[Band, ...]

    @property
    def shape(self) -> tuple[int, int]:
        return self.bands[0].left.shape[0], self.bands[0].right.shape[1]

    def chains(self) -> list[tuple[np.ndarray, ...]]:
        """Matrices that an input goes through, one after the other; results are added."""
        return [
            (_floats(band.right), _floats(band.left) * band.values.astype(np.float32))
            for band in self.bands
        ]

    def dequantize(self) -> Float32[np.ndarray, "n k"]:
        """The difference it stands for, bands added in order."""
        total = np.zeros(self.shape, np.float32)
        for right, left in self.chains():
            total += left @ right
        return total

    def settings(self) -> dict[str, Any]:
        n, k = self.shape
        return {"n": n, "k": k, "bands": [[band.bits, band.ranks] for band in self.bands]}

    def entries(self) -> dict[str, np.ndarray]:
        found: dict[str, np.ndarray] = {}
        for number, band in enumerate(self.bands):
            found[f"{number}.values"] = band.values
            found |= _stored(band.left, f"{number}.left") | _stored(band.right, f"{number}.right")
        return found

    @classmethod
    def restored(cls, settings: Mapping[str, Any], entries: Mapping[str, np.ndarray]) -> Self:
        n, k = settings["n"], settings["k"]
        return cls(
            tuple(
                Band(
                    _restored(entries, f"{number}.left", bits, n, ranks),
                    entries[f"{number}.values"],
                    _restored(entries, f"{number}.right", bits, ranks, k),
                )
                for number, (bits, ranks) in enumerate(settings["bands"])
            )
        )

    @property
    def nominal_bits(self) -> float:
        """16 times the budget: bits of the factors' codes alone."""
        n, k = self.shape
        return 16 * budget([(band.bits, band.ranks) for band in self.bands], n, k)

    def passes(self) -> tuple[Pass, ...]:
        """Two thin products per band: to the ranks, and from them; singular values between."""
        (n, k), found = self.shape, []
        for number, band in enumerate(self.bands):
            for what, rows, columns, factor, more in (
                ("V", band.ranks, k, band.right, band.values.nbytes),
                ("U", n, band.ranks, band.left, 0),
            ):
                bits = 8 * (more + sum(array.nbytes for array in _stored(factor, "").values()))
                whole = isinstance(factor, QuantizedTensor)
                format = factor.format.name if isinstance(factor, QuantizedTensor) else None
                group = _GROUP if whole and columns > _GROUP else None
                found.append(Pass(f"{what} of band {number}", rows, columns, format, bits, group))
        return tuple(found)

    def operands(self, x: np.ndarray) -> Operands:
        found = []
        for band in self.bands:
            ranks = x @ _floats(band.right).T * band.values.astype(np.float32)
            found += [(x, band.right), (ranks, band.left)]
        return tuple(found)

    def vector_work(self) -> tuple[VectorWork, ...]:
        """Singular values between the factors; every band's results join those of the base."""
        ranks = sum(band.ranks for band in self.bands)
        return (
            VectorWork("scale ranks", "scale", ranks),
            VectorWork("add bands", "accumulate", self.shape[0], len(self.bands)),
        )


def budget(plan: Sequence[tuple[int, int]], n: int, k: int) -> float:
    """Share of an FP16 matrix [n, k] that the codes of (bits, ranks) bands take.

    >>> budget([(8, 2), (3, 32), (2, 968)], 4096, 4096)
    0.0625
    """
    return sum(bits * ranks for bits, ranks in plan) * (n + k) / (16 * n * k)


def plan_bands(
    n: int, k: int, share: float, leading: Sequence[tuple[int, int]], last_bits: int
) -> list[tuple[int, int]]:
    """(bits, ranks) of all bands: the leading ones, and a last one that fills the budget.

    Raises:
        InputError: The leading bands alone take more than the budget, or more ranks than there are.

    >>> plan_bands(4096, 4096, 1 / 16, [(8, 2), (3, 32)], 2)
    [(8, 2), (3, 32), (2, 968)]
    """
    taken, ranks = budget(leading, n, k), sum(r for _, r in leading)
    most = min(n, k)
    if taken > share or ranks > most:
        raise InputError(
            f"budget {share:g} of [{n}, {k}] is not met: the leading bands take {taken:.4g} and "
            f"{ranks} of {most} ranks; raise the budget or give them fewer ranks"
        )
    left = int(round(share * 16 * n * k / (n + k), 6) - sum(b * r for b, r in leading)) // last_bits
    last = min(left, most - ranks)
    return [*leading, *([(last_bits, last)] if last else [])]


def compress_low_rank(
    delta: Float32[np.ndarray, "n k"],
    plan: Sequence[tuple[int, int]],
    hessian: Float32[np.ndarray, "k k"] | None = None,
) -> LowRankDelta:
    """A difference as bands of (bits, ranks), the largest singular values first.

    Args:
        delta: The difference.
        plan: Bits 2 .. 8 of asymmetric integers, or 16 for FP16.
        hessian: Of the layer's inputs, sum of x x^T up to a factor, for GPTQ; None: to nearest.

    Raises:
        InputError: Not finite, bits that there are not, or more ranks than the matrix has.
    """
    n, k = delta.shape
    if not np.isfinite(delta).all():
        row, column = np.argwhere(~np.isfinite(delta))[0]
        raise InputError(f"the difference at [{row}, {column}] is NaN or infinite")
    total = sum(ranks for _, ranks in plan)
    if not plan or min(ranks for _, ranks in plan) < 1 or total > min(n, k):
        raise InputError(f"bands {list(plan)} do not fit [{n}, {k}], which has {min(n, k)} ranks")
    wrong = next((bits for bits, _ in plan if bits not in (*range(2, 9), 16)), None)
    if wrong is not None:
        raise InputError(f"bands have 2 .. 8 or 16 bits, not {wrong}")
    u, s, vt = np.linalg.svd(np.asarray(delta, np.float32), full_matrices=False)
    bands, start = [], 0
    for bits, ranks in plan:
        part = slice(start, start + ranks)
        start += ranks
        values = s[part].astype(np.float16)
        right = rounded_factor(vt[part], bits, hessian)
        middle = None
        if hessian is not None:  # of the rounded V^T's outputs, scaled: what U multiplies
            scaled = values.astype(np.float32)[:, None] * _floats(right)
            middle = scaled @ hessian @ scaled.T
        left = rounded_factor(u[:, part], bits, middle)
        bands.append(Band(left, values, right))
    return LowRankDelta(tuple(bands))


def rounded_factor(w: np.ndarray, bits: int, hessian: np.ndarray | None = None) -> Factor:
    """A factor in integers of so many bits (16: FP16), to nearest or by GPTQ for its inputs."""
    w = np.array(w, np.float32)
    if bits == 16:
        return w.astype(np.float16)
    format, group = FORMATS[f"int{bits}-asym"], min(_GROUP, w.shape[1])
    for start in range(0, w.shape[1], group):
        part = w[:, start : start + group]
        spread = part.max(1).clip(min=0) - part.min(1).clip(max=0)
        part[spread < format.qmax * _SMALLEST] = 0  # nothing, beside vectors of length 1
    if hessian is None:
        return quantize(w, format.name, group_size=group)
    return gptq(w, hessian, format, group, "fp16", act_order=True).tensor


def _floats(factor: Factor) -> np.ndarray:
    if isinstance(factor, QuantizedTensor):
        return factor.dequantize()
    return factor.astype(np.float32)


def _stored(factor: Factor, name: str) -> dict[str, np.ndarray]:
    if not isinstance(factor, QuantizedTensor):
        return {name: np.ascontiguousarray(factor)}
    assert factor.zero_points is not None
    return {
        f"{name}.codes": pack_bits(factor.codes, factor.format.bits),
        f"{name}.group_scales": np.ascontiguousarray(factor.group_scales),
        f"{name}.zero_points": pack_bits(factor.zero_points, factor.format.zero_point_bits),
    }


def _restored(
    entries: Mapping[str, np.ndarray], name: str, bits: int, rows: int, columns: int
) -> Factor:
    if bits == 16:
        return entries[name]
    format, group = FORMATS[f"int{bits}-asym"], min(_GROUP, columns)
    groups = -(-columns // group)
    codes = unpack_bits(entries[f"{name}.codes"], bits, rows * columns).reshape(rows, columns)
    zeros = unpack_bits(entries[f"{name}.zero_points"], format.zero_point_bits, rows * groups)
    return QuantizedTensor(
        format=format,
        group_size=group,
        codes=codes,
        scale_format="fp16",
        group_scales=entries[f"{name}.group_scales"],
        zero_points=zeros.reshape(rows, groups),
    )
