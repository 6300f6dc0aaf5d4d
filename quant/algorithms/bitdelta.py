"""BitDelta: what fine-tuning added to a matrix, as signs and one scale.

"BitDelta: Your Fine-Tune May Only Be Worth One Bit" (Liu et al., NeurIPS 2024, arXiv 2402.10193):
Delta = W_tuned - W_base becomes alpha * S with S = +1 where Delta >= 0 and -1 elsewhere, and
alpha = mean |Delta|, which minimises the squared error. Further planes repeat this on what the
planes before leave (iterated BitDelta). The authors then train the scales alone, by distillation
(100 to 200 steps of AdamW); that is not run here, so these are the scales before it.

Stored:

| entry | type | content |
| --- | --- | --- |
| signs | U8 [planes, bytes] | a bit per weight and plane, row after row, 1 = +1 |
| scales | F32 [planes] | alpha of each plane |

True bits: planes * (n k + 32), n k rounded up to whole bytes. The authors' kernel packs 32 signs
along k into an integer; this file holds one stream of bits, with the same number of them.

A model is compressed by `quant/delta.py`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from jaxtyping import Float32, UInt8

from bitwright.quant import (
    CompressedMatrix,
    InputError,
    Operands,
    Pass,
    VectorWork,
    pack_bits,
    plane_tensor,
    unpack_bits,
)


@dataclass(frozen=True, eq=False)
class DeltaMatrix(CompressedMatrix):
    """The difference of two matrices as planes of signs, each with a scale.

    Raises:
        InputError: No planes, signs or scales of another number of planes or type, or a scale that
            is negative or not finite.
    """

    method: ClassVar[str] = "bitdelta"
    n: int
    k: int
    signs: UInt8[np.ndarray, "planes bytes"]  #: packed, 1 = +1
    scales: Float32[np.ndarray, " planes"]

    def __post_init__(self) -> None:
        planes = len(self.scales)
        wanted = (planes, -(-self.n * self.k // 8))
        if not planes or self.signs.shape != wanted or self.signs.dtype != np.uint8:
            raise InputError(
                f"signs are {self.signs.dtype} {self.signs.shape}; {planes} planes of "
                f"[{self.n}, {self.k}] need uint8 {wanted}"
            )
        if self.scales.dtype != np.float32 or not np.isfinite(self.scales).all():
            raise InputError(f"scales must be finite float32 numbers, not {self.scales}")
        if (self.scales < 0).any():
            raise InputError(f"scales must not be negative; they are {self.scales}")

    @property
    def shape(self) -> tuple[int, int]:
        return self.n, self.k

    def plane(self, number: int) -> Float32[np.ndarray, "n k"]:
        """One plane's signs: -1 and +1."""
        bits = unpack_bits(self.signs[number], 1, self.n * self.k).reshape(self.n, self.k)
        return bits.astype(np.float32) * 2 - 1

    def dequantize(self) -> Float32[np.ndarray, "n k"]:
        """The difference it stands for, planes added in order."""
        total = np.zeros(self.shape, np.float32)
        for number, scale in enumerate(self.scales):
            total += scale * self.plane(number)
        return total

    def chains(self) -> list[tuple[np.ndarray, ...]]:
        """Matrices that an input goes through, one after the other; results are added."""
        return [(scale * self.plane(number),) for number, scale in enumerate(self.scales)]

    def settings(self) -> dict[str, Any]:
        return {"n": self.n, "k": self.k}

    def entries(self) -> dict[str, np.ndarray]:
        return {"signs": self.signs, "scales": self.scales}

    @classmethod
    def restored(cls, settings: Mapping[str, Any], entries: Mapping[str, np.ndarray]) -> Self:
        return cls(settings["n"], settings["k"], entries["signs"], entries["scales"])

    @property
    def nominal_bits(self) -> float:
        """A bit per plane; scales are left out."""
        return float(len(self.scales))

    def passes(self) -> tuple[Pass, ...]:
        """A binary product per plane, added to that of the base, which all tenants share."""
        bits = 8 * self.signs.shape[1] + 32
        return tuple(
            Pass(f"signs {number}", self.n, self.k, "binary", bits)
            for number in range(len(self.scales))
        )

    def operands(self, x: np.ndarray) -> Operands:
        planes = (self.plane(number) > 0 for number in range(len(self.scales)))
        return tuple((x, plane_tensor(one, "binary")) for one in planes)

    def vector_work(self) -> tuple[VectorWork, ...]:
        """Every plane's results join those of the base."""
        return (VectorWork("add planes", "accumulate", self.n, len(self.scales)),)


def compress_matrix(delta: Float32[np.ndarray, "n k"], planes: int = 1) -> DeltaMatrix:
    """A difference as `planes` planes of signs, each plane on what those before it leave.

    The mean magnitude is summed in float64 and stored in float32; so is what is left.

    >>> matrix = compress_matrix(np.array([[1, -3], [0, 4]], np.float32))
    >>> matrix.scales, matrix.dequantize()  # the sign of 0 is +1
    (array([2.], dtype=float32), array([[ 2., -2.],
           [ 2.,  2.]], dtype=float32))

    Raises:
        InputError: `planes` is below 1, or the difference is NaN or infinite.
    """
    if planes < 1:
        raise InputError(f"planes is {planes}; at least 1 is needed")
    rest = np.array(delta, np.float32)
    if not np.isfinite(rest).all():
        row, column = np.argwhere(~np.isfinite(rest))[0]
        raise InputError(f"the difference at [{row}, {column}] is NaN or infinite")
    signs, scales = [], []
    for _ in range(planes):
        positive = rest >= 0
        scale = np.float32(np.abs(rest).mean(dtype=np.float64))
        signs.append(pack_bits(positive.view(np.uint8), 1))
        scales.append(scale)
        rest -= np.where(positive, scale, -scale)
    n, k = rest.shape
    return DeltaMatrix(n, k, np.stack(signs), np.array(scales, np.float32))
