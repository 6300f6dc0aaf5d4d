"""Weight matrices in forms that are no codes of a format times scales: what all of them can do.

Binary planes with masks, low-rank binary factors, codebooks, kept weights with a bitmap: a method
of this kind has a class derived from `CompressedMatrix` in its file in `algorithms/`. Model, files,
evaluation and simulator see nothing but this face: the numbers it stands for, what it stores, to
the byte, and the products that hardware computes for it.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from jaxtyping import Float32

from .formats import FORMATS
from .tensor import QuantizedTensor

#: What entries of a file may be.
STORED_TYPES = (np.uint8, np.float16, np.float32)
#: Inputs float32 [tokens, k] and weights [n, k] of each pass.
Operands = tuple[tuple[np.ndarray, QuantizedTensor | np.ndarray], ...]


@dataclass(frozen=True, slots=True)
class Pass:
    """A product [m, k] x [k, n] that hardware computes for a matrix, in one of the PEs' formats.

    The results of a matrix' passes are added, or one feeds the next; `what` says which.
    """

    what: str  #: such as "signs", "salient columns" or "latent": unique within a matrix
    n: int
    k: int
    format: str | None  #: of the PE's weights, a name in FORMATS; None: FP16
    bits: int  #: stored bits that are read for it, in all passes at most `stored_bits`
    group_size: int | None = None  #: columns after which a sum leaves the PEs; None: a row

    def __post_init__(self) -> None:
        assert self.n > 0 < self.k and self.bits > 0, self
        assert self.format is None or self.format in FORMATS, self


@dataclass(frozen=True, slots=True)
class VectorWork:
    """What the vector unit does for a token in front of, between or behind a matrix' passes."""

    what: str  #: such as "add planes": unique within a matrix
    function: str  #: as in `bitwright.sim.workload.vector`
    length: int  #: elements
    times: int = 1  #: repetitions
    shared: bool = False  #: on inputs alone: once for all linears that have the same inputs

    def __post_init__(self) -> None:
        assert self.length > 0 < self.times, self


class CompressedMatrix(ABC):
    """Weights [n, k] (output channel x input channel) as a method stores them."""

    method: ClassVar[str]  #: name of the algorithm that makes it, as in recipes

    @property
    @abstractmethod
    def shape(self) -> tuple[int, int]:
        """(n, k)."""

    @abstractmethod
    def dequantize(self) -> Float32[np.ndarray, "n k"]:
        """The weights it stands for."""

    @property
    def varies(self) -> bool:
        """Whether the weights depend on the token: no matrix stands for them, `forward` does."""
        return False

    def forward(self, x: Float32[np.ndarray, "tokens k"]) -> Float32[np.ndarray, "tokens n"]:
        """Its product with activations."""
        y: np.ndarray = x @ self.dequantize().T
        return y

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """What JSON says to read the entries: sizes and choices, no data."""

    @abstractmethod
    def entries(self) -> dict[str, np.ndarray]:
        """All that is stored, packed (`pack_bits`): contiguous uint8, float16 or float32 arrays."""

    @classmethod
    @abstractmethod
    def restored(cls, settings: Mapping[str, Any], entries: Mapping[str, np.ndarray]) -> Self:
        """The equal matrix from what `settings` and `entries` gave.

        Raises:
            InputError: They contradict each other.
        """

    @property
    @abstractmethod
    def nominal_bits(self) -> float:
        """Bits per weight as the method's authors count them."""

    @abstractmethod
    def passes(self) -> tuple[Pass, ...]:
        """The products that hardware computes for it."""

    def operands(self, x: Float32[np.ndarray, "tokens k"]) -> Operands:
        """Inputs and weights of every pass, in order, for activations of the matrix.

        What switches in the netlists when energy is measured: codes are the stored ones, scales are
        ones where they come behind the product. FP16 weights are float32 [n, k]. By default: one
        product with decoded weights.
        """
        return ((x, self.dequantize()),)

    def vector_work(self) -> tuple[VectorWork, ...]:
        """What the vector unit does beside them: by default it adds their results."""
        more = len(self.passes()) - 1
        return (VectorWork("add results", "accumulate", self.shape[0], more),) if more else ()

    @property
    def stored_bits(self) -> int:
        """True bits: those of the packed entries, to the byte."""
        return 8 * sum(array.nbytes for array in self.entries().values())

    @property
    def bits_per_weight(self) -> float:
        """True stored bits per weight, all metadata counted."""
        n, k = self.shape
        return self.stored_bits / (n * k)

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        mine, theirs = self.entries(), other.entries()
        return (
            self.settings() == other.settings()
            and mine.keys() == theirs.keys()
            and all(
                mine[key].dtype == theirs[key].dtype and np.array_equal(mine[key], theirs[key])
                for key in mine
            )
        )

    __hash__ = None  # type: ignore[assignment]  # equal by content, and the content can change


def plane_tensor(
    codes: np.ndarray,
    format: str,
    group_size: int | None = None,
    scales: np.ndarray | None = None,
) -> QuantizedTensor:
    """Codes [n, k] as weights of a pass.

    Args:
        codes: As the format stores them, or ternary numbers -1, 0 and 1.
        format: "binary" (0: -1, 1: +1), "ternary" or another with FP16 scales and no zero points.
        group_size: Columns after which a sum leaves the PEs; None: a row.
        scales: [n, groups], or [n, 1] for all groups; None: ones.
    """
    fmt = FORMATS[format]
    n, k = codes.shape
    size = k if group_size is None else min(group_size, k)
    stored = np.ones((n, -(-k // size)), np.float16)
    if scales is not None:
        stored[:] = np.abs(scales)
    codes = (codes.astype(np.int8) & ((1 << fmt.bits) - 1)).astype(np.uint8)
    return QuantizedTensor(fmt, size, np.ascontiguousarray(codes), "fp16", stored)
