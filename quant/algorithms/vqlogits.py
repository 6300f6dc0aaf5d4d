"""VQ-Logits: an output layer of few code vectors that many tokens share (`vqlogits`).

VQ-Logits (Shao et al., arXiv 2505.10202) replaces the V rows of the output layer by K code vectors
and a map from tokens to codes: scores are h C^T, and a token has the score of its code. The paper
trains the model with them. **What runs here is the form without training**: the code vectors are
the k-means centres of a trained output layer's rows, rounded to FP16, and every token takes the
nearest of them.

All tokens of a code are equally likely, whatever the model reads: n tokens of one code have a
probability of at most 1 / n each, and a loss of at least log n (`floor`). That bounds what this
form can reach, however good the rest of the model is.

A softmax over all tokens needs no scores of all tokens: with n_c tokens of code c its denominator
is the sum of n_c exp(L_c) (`log_normaliser`).

k-means is Lloyd's algorithm from centres of k-means++ (Arthur and Vassilvitskii, SODA 2007): each
next centre is drawn in proportion to its squared distance from those before. From 128 codes on so
many centres are drawn at once, without repetition, that 64 rounds are enough (in the manner of
Bahmani et al., VLDB 2012). A centre that loses all its rows stays where it is. The same seed gives
the same codes, wherever the block linears' quantisation stands.

| entry | type | content |
| --- | --- | --- |
| codebook | F16 [K, d] | code vectors |
| map_0, map_1 ... | U8 [bytes] | bits 0 .. 7, 8 .. 15 ... of each token's code, packed |

True bits: 16 K d + V ceil(log2 K), each entry rounded up to a byte. `nominal_bits` counts the code
vectors alone: 16 K / V. Where the model's embedding and output layer are one matrix, the embedding
stays, and these bits come on top of it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import numpy as np
from jaxtyping import Float, Float16, Float32, Float64, Int64
from pydantic import Field

from bitwright.quant import (
    CompressedMatrix,
    InputError,
    Operands,
    Pass,
    pack_bits,
    unpack_bits,
)

from .base import Algorithm, Phase

#: Rows whose distances to all centres are in memory at a time.
_ROWS = 1024
#: Rounds in which centres are drawn, from twice as many codes on.
_ROUNDS = 64


class VqLogits(Algorithm):
    """Gives the output layer a codebook, whatever the recipe does to the blocks."""

    name: Literal["vqlogits"] = "vqlogits"
    phase: ClassVar[Phase] = "head"
    needs_format: ClassVar[bool] = False
    needs_data: ClassVar[bool] = False
    codes: int = Field(default=1024, ge=1)  #: code vectors, at most the tokens of the vocabulary
    iterations: int = Field(default=10, ge=0)  #: of Lloyd's algorithm at most
    seed: int = Field(default=0, ge=0)  #: of the first centres

    def check(self, vocab: int) -> None:
        """Refuse a codebook larger than the output layer, before any work.

        Args:
            vocab: Tokens, which are the rows of the output layer.

        Raises:
            InputError: More codes than tokens.
        """
        _check_codes(self.codes, vocab)

    def compress(self, head: Float32[np.ndarray, "vocab hidden"]) -> "VqHead":
        """The output layer as code vectors and a map.

        Raises:
            InputError: More codes than rows, or rows beyond FP16's range.
        """
        vocab = len(head)
        _check_codes(self.codes, vocab)
        if self.codes == vocab:  # nothing to share: the rows as they are
            return VqHead(_as_fp16(head), np.arange(vocab))
        centres = kmeans(head, self.codes, self.seed, self.iterations)
        codebook = _as_fp16(centres)
        return VqHead(codebook, nearest(head, codebook.astype(np.float32))[0])


@dataclass(frozen=True, eq=False)
class VqHead(CompressedMatrix):
    """An output layer [V, d] whose rows are those of a codebook.

    Raises:
        InputError: Shapes or types that do not fit, or a code that the codebook does not have.
    """

    method: ClassVar[str] = "vqlogits"
    codebook: Float16[np.ndarray, "codes hidden"]
    token_codes: Int64[np.ndarray, " vocab"]  #: the code of each token

    def __post_init__(self) -> None:
        if self.codebook.ndim != 2 or 0 in self.codebook.shape or self.codebook.dtype != np.float16:
            raise InputError(
                f"codebook is {self.codebook.dtype} {self.codebook.shape}; float16 [codes, hidden] "
                "is needed"
            )
        if self.token_codes.ndim != 1 or self.token_codes.dtype != np.int64:
            raise InputError(f"token_codes are {self.token_codes.dtype}; int64 [vocab] is needed")
        _check_codes(self.codes, len(self.token_codes))
        if self.token_codes.min() < 0 or self.token_codes.max() >= self.codes:
            raise InputError(
                f"token_codes hold {self.token_codes.min()} .. {self.token_codes.max()}, outside "
                f"0 .. {self.codes - 1}"
            )

    @property
    def codes(self) -> int:
        """Code vectors, K."""
        return len(self.codebook)

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.token_codes), self.codebook.shape[1]

    def counts(self) -> Int64[np.ndarray, " codes"]:
        """Tokens of each code; 0 where no token has it."""
        return np.bincount(self.token_codes, minlength=self.codes)

    def floor(self, tokens: Int64[np.ndarray, "*any"]) -> Float64[np.ndarray, "*any"]:
        """The least loss, in nats, that each of these tokens can have: log of its code's tokens."""
        return np.log(self.counts())[self.token_codes[tokens]]

    def describe(self) -> str:
        """A line for reports."""
        vocab, most = len(self.token_codes), int(self.counts().max())
        return (
            f"output layer: {self.codes:,} code vectors for {vocab:,} tokens, "
            f"{self.bits_per_weight:.3f} bits/weight; at most {most:,} tokens share one, where no "
            f"probability exceeds 1/{most:,}"
        )

    def dequantize(self) -> Float32[np.ndarray, "vocab hidden"]:
        return self.codebook.astype(np.float32)[self.token_codes]

    def settings(self) -> dict[str, Any]:
        vocab, hidden = self.shape
        return {"codes": self.codes, "vocab": vocab, "hidden": hidden}

    def entries(self) -> dict[str, np.ndarray]:
        found: dict[str, np.ndarray] = {"codebook": np.ascontiguousarray(self.codebook)}
        for name, shift, width in _parts(self.codes):
            bits = (self.token_codes >> shift & 255).astype(np.uint8)
            found[name] = pack_bits(bits, width)
        return found

    @classmethod
    def restored(cls, settings: Mapping[str, Any], entries: Mapping[str, np.ndarray]) -> Self:
        codebook, vocab = entries["codebook"], settings["vocab"]
        if codebook.shape != (settings["codes"], settings["hidden"]):
            raise InputError(f"codebook is {codebook.shape}, not as the settings say")
        token_codes = np.zeros(vocab, np.int64)
        for name, shift, width in _parts(len(codebook)):
            token_codes |= unpack_bits(entries[name], width, vocab).astype(np.int64) << shift
        return cls(codebook, token_codes)

    @property
    def nominal_bits(self) -> float:
        """Bits of the code vectors per weight of the output layer; the map is left out."""
        return 16 * self.codes / len(self.token_codes)

    def passes(self) -> tuple[Pass, ...]:
        """One product with the codebook; the map spreads its results behind it."""
        codes, hidden = self.codebook.shape
        return (Pass("code vectors", codes, hidden, None, self.stored_bits),)

    def operands(self, x: np.ndarray) -> Operands:
        return ((x, self.codebook.astype(np.float32)),)


def log_normaliser(
    scores: Float[np.ndarray, "... codes"], counts: Int64[np.ndarray, " codes"]
) -> Float64[np.ndarray, "..."]:
    """Log of the softmax' denominator over all tokens, from the scores of codes.

    A token's log-likelihood is its code's score less this.

    >>> import math
    >>> total = log_normaliser(np.array([0.0, math.log(2)]), np.array([3, 1]))
    >>> round(math.exp(total), 9)  # three tokens of weight 1 and one of 2
    5.0
    """
    held = counts > 0  # a code without tokens has no part
    scores = scores.astype(np.float64)[..., held]
    top = scores.max(axis=-1, keepdims=True)
    total = (counts[held] * np.exp(scores - top)).sum(axis=-1)
    return np.log(total) + top[..., 0]


def kmeans(
    rows: Float32[np.ndarray, "n d"], codes: int, seed: int, iterations: int
) -> Float32[np.ndarray, "codes d"]:
    """Centres of `rows`, at most as many as there are rows; see the module.

    Args:
        rows: Finite.
        codes: Centres, 1 .. n.
        seed: Of the first centres.
        iterations: At most; it ends early where no row changes its centre.
    """
    centres = rows[first_centres(rows, codes, seed)]
    before: np.ndarray | None = None
    for _ in range(iterations):
        own, _ = nearest(rows, centres)
        if before is not None and np.array_equal(own, before):
            break
        centres, before = _means(rows, own, centres), own
    return centres


def first_centres(
    rows: Float32[np.ndarray, "n d"], codes: int, seed: int
) -> Int64[np.ndarray, " codes"]:
    """Numbers of the rows that k-means begins with, all different: k-means++."""
    random = np.random.default_rng(seed)
    chosen = [int(random.integers(len(rows)))]
    distance = np.full(len(rows), np.inf)
    step = max(1, codes // _ROUNDS)
    new = chosen
    while len(chosen) < codes:
        distance = np.minimum(distance, nearest(rows, rows[new])[1])
        distance[chosen] = 0
        wanted = min(step, codes - len(chosen))
        apart = int(np.count_nonzero(distance))
        count = min(wanted, apart)
        drawn: list[int] = []
        if count:
            odds = distance / distance.sum()
            drawn = random.choice(len(rows), count, replace=False, p=odds).tolist()
        if count < wanted:  # the rest repeat rows that are chosen: any will do
            left = np.setdiff1d(np.arange(len(rows)), chosen + drawn)
            drawn += left[: wanted - count].tolist()
        chosen, new = chosen + drawn, drawn
    return np.array(chosen)


def nearest(
    rows: Float32[np.ndarray, "n d"], centres: Float32[np.ndarray, "codes d"]
) -> tuple[Int64[np.ndarray, " n"], Float64[np.ndarray, " n"]]:
    """The nearest centre of each row, the first of several, and its squared distance."""
    half = np.square(centres).sum(axis=1) / 2
    own = np.empty(len(rows), np.int64)
    distance = np.empty(len(rows))
    for start in range(0, len(rows), _ROWS):
        part = rows[start : start + _ROWS]
        # |x - c|^2 / 2 less |x|^2 / 2, which is the same for all centres
        own[start : start + _ROWS] = found = (half - part @ centres.T).argmin(axis=1)
        distance[start : start + _ROWS] = np.square(part - centres[found], dtype=np.float64).sum(
            axis=1
        )
    return own, distance


def _means(rows: np.ndarray, own: np.ndarray, centres: np.ndarray) -> np.ndarray:
    """The mean of each centre's rows, summed in float64; a centre without rows stays."""
    order = np.argsort(own, kind="stable")
    sums = np.zeros(centres.shape)
    for start in range(0, len(rows), _ROWS):
        part = order[start : start + _ROWS]
        held, starts = np.unique(own[part], return_index=True)
        sums[held] += np.add.reduceat(rows[part], starts, axis=0, dtype=np.float64)
    counts = np.bincount(own, minlength=len(centres))[:, None]
    means = np.divide(sums, counts, out=sums, where=counts > 0)
    return np.where(counts > 0, means.astype(np.float32), centres)


def _parts(codes: int) -> list[tuple[str, int, int]]:
    """Entries of the map: name, first bit and number of bits."""
    bits = (codes - 1).bit_length()
    return [(f"map_{i}", 8 * i, min(8, bits - 8 * i)) for i in range(-(-bits // 8))]


def _check_codes(codes: int, vocab: int) -> None:
    if codes > vocab:
        raise InputError(
            f"codes (={codes}) of vqlogits must be at most the {vocab} rows of the output layer; "
            f"nearest: {vocab}"
        )


def _as_fp16(rows: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        found = rows.astype(np.float16)
    if not np.isfinite(found).all():
        raise InputError("rows of the output layer are beyond FP16's range; vqlogits needs FP16")
    return found
