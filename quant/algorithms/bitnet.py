"""BitNet b1.58: ternary weights with one scale a matrix, in the layouts of bitnet.cpp.

"The Era of 1-bit LLMs" (Ma et al., arXiv 2402.17764): gamma = max(mean |W|, 1e-5) and codes
clip(round(W / gamma), -1, 1); a weight is code * gamma. Activations are INT8, one scale a token
(`quantize_tokens`), so a product is an exact int32 sum times gamma / s (`bitlinear`). The paper
trains its models with these weights from the start. Here the same rounding is applied to a model
that was trained without it, which is a lower bound of what the format can do, and a very bad one.

How codes are stored is an option; the layouts are those of bitnet.cpp (Wang et al., arXiv
2410.16144; microsoft/BitNet, utils/convert-hf-to-gguf-bitnet.py and docs/codegen.md):

| entry | type | content |
|---|---|---|
| weights | uint8 | i2s: n k / 4 bytes (`pack_i2s`); tl1: n k / 4 (`pack_tl1`) |
| triples, signs, pairs | uint8 | tl2, in place of weights (`pack_tl2`) |
| gamma | float32 [1] | the scale |

True bits per weight: 2 + 32 / (n k) for i2s and tl1; for tl2 with three = 48 * (k // 48) columns
in triples (5 three / 3 + 2 (k - three)) / k + 32 / (n k), which is 1.667 where 48 divides k. The
authors count log2(3) = 1.58. The kernels that bitnet.cpp generates cut rows and columns into tiles
of their own and order them for one machine; what is stored here is the same code in row order.

The scale is stored and never derived again: the mean of |code * gamma| is below gamma.

Look-up evaluation (`tl1_dot`, `tl2_dot`) never multiplies: all rows share tables of the sums that
pairs (9 entries) or triples (14, and a sign) of activations can have. Sums are int16 and are added
up in int16 as long as they surely fit (`largest_tile`), then in int32. Results are exactly the
int32 sums of the naive product. The fast kernels are in `bitwright.kernels`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import gcd
from typing import Any, ClassVar, Literal, Self, get_args

import numpy as np
from jaxtyping import Float32, Int8, Int16, Int32, UInt8
from pydantic import Field

from bitwright.quant import (
    CompressedMatrix,
    InputError,
    Operands,
    Pass,
    SiteStats,
    as_weights,
    pack_bits,
    plane_tensor,
    unpack_bits,
)

from .base import Algorithm, BlockTask, Phase

Layout = Literal["i2s", "tl1", "tl2"]
#: Who reads a Hugging Face checkpoint: their linear's class says what `weight_scale` does.
LinearClass = Literal["autobitlinear", "bitlinear"]

I2S_BLOCK = 128  #: consecutive weights of an I2_S block
TL2_TILE = 48  #: columns: 16 triples, whose signs fill a uint16
SMALLEST_GAMMA = 1e-5

#: The two weights of a TL1 index, [9, 2]: 3 w0 + w1 + 4 from 0 on.
PAIRS = np.array([(a, b) for a in (-1, 0, 1) for b in (-1, 0, 1)], np.int16)
#: The three weights of a TL2 index, [14, 3]: |9 w0 + 3 w1 + w2| from 0 on.
TRIPLES = np.array(
    [(a, b, c) for a in (0, 1) for b in (-1, 0, 1) for c in (-1, 0, 1)][4:], np.int16
)


class BitNet(Algorithm):
    """Ternary weights by their mean magnitude, one scale a matrix."""

    name: Literal["bitnet"] = "bitnet"
    phase: ClassVar[Phase] = "round"
    own_form: ClassVar[bool] = True
    needs_format: ClassVar[bool] = False
    needs_data: ClassVar[bool] = False
    layout: Layout = Field(default="i2s")  #: how codes are stored

    def round(
        self, block: BlockTask, name: str, w: np.ndarray, stats: SiteStats | None
    ) -> "BitNetMatrix":
        """Weights [n, k] as codes and gamma."""
        check_shape(self.layout, *w.shape)
        codes, gamma = ternary(w)
        return BitNetMatrix(codes, gamma, self.layout)


@dataclass(frozen=True, eq=False)
class BitNetMatrix(CompressedMatrix):
    """Ternary codes times one scale.

    Raises:
        InputError: The layout cannot take the shape; see `check_shape`.
    """

    codes: Int8[np.ndarray, "n k"]  #: -1, 0 or 1
    gamma: np.float32
    layout: Layout = "i2s"

    method: ClassVar[str] = "bitnet"

    def __post_init__(self) -> None:
        check_shape(self.layout, *self.codes.shape)

    @property
    def shape(self) -> tuple[int, int]:
        n, k = self.codes.shape
        return n, k

    def dequantize(self) -> Float32[np.ndarray, "n k"]:
        return self.codes.astype(np.float32) * self.gamma

    def settings(self) -> dict[str, Any]:
        n, k = self.shape
        return {"n": n, "k": k, "layout": self.layout}

    def entries(self) -> dict[str, np.ndarray]:
        gamma = np.array([self.gamma], np.float32)
        if self.layout == "tl2":
            triples, signs, pairs = pack_tl2(self.codes)
            return {"triples": triples, "signs": signs, "pairs": pairs, "gamma": gamma}
        pack = pack_i2s if self.layout == "i2s" else pack_tl1
        return {"weights": pack(self.codes), "gamma": gamma}

    @classmethod
    def restored(cls, settings: Mapping[str, Any], entries: Mapping[str, np.ndarray]) -> Self:
        layout, n, k = settings["layout"], settings["n"], settings["k"]
        if layout == "tl2":
            codes = unpack_tl2(entries["triples"], entries["signs"], entries["pairs"], n, k)
        else:
            unpack = unpack_i2s if layout == "i2s" else unpack_tl1
            codes = unpack(entries["weights"], n, k)
        if entries["gamma"].shape != (1,):
            raise InputError(f"gamma is {entries['gamma'].shape}; one float32 number")
        return cls(codes, np.float32(entries["gamma"][0]), layout)

    @property
    def nominal_bits(self) -> float:
        return 1.58

    def passes(self) -> tuple[Pass, ...]:
        return (Pass("weights", *self.shape, "ternary", self.stored_bits),)

    def operands(self, x: np.ndarray) -> Operands:
        return ((x, plane_tensor(self.codes, "ternary")),)


def ternary(w: Float32[np.ndarray, "n k"]) -> tuple[Int8[np.ndarray, "n k"], np.float32]:
    """Codes and gamma of weights: max(mean |w|, 1e-5), and w / gamma rounded half to even.

    >>> ternary(np.array([[0.5, -0.1, 0.0, -1.4]], np.float32))
    (array([[ 1,  0,  0, -1]], dtype=int8), np.float32(0.5))

    Raises:
        InputError: Weights that are not finite.
    """
    w = as_weights(w)
    gamma = np.float32(max(np.abs(w).mean(dtype=np.float64), SMALLEST_GAMMA))
    return np.clip(np.rint(w / gamma), -1, 1).astype(np.int8), gamma


def check_shape(layout: str, n: int, k: int) -> None:
    """Whether a layout takes matrices [n, k].

    Blocks of I2_S run over the end of rows, as in the authors' converter, so n * k must be a
    multiple of 128; where k is one too, each row begins a block. TL1 and TL2 need whole bytes of
    two pairs in each row: k a multiple of 4.

    Raises:
        InputError: It does not, with the nearest k that it takes.
    """
    if layout not in get_args(Layout):
        raise InputError(f"layout is {layout!r}; one of {', '.join(get_args(Layout))}")
    step = I2S_BLOCK // gcd(n, I2S_BLOCK) if layout == "i2s" else 4
    if k % step or k < 1:
        nearest = max(step, (2 * k + step) // (2 * step) * step)
        why = f"{n} rows in blocks of {I2S_BLOCK} weights" if layout == "i2s" else "2 pairs a byte"
        raise InputError(
            f"layout {layout} cannot take k = {k} columns: {why} need a multiple of {step}; the "
            f"nearest is {nearest}"
        )


# ------------------------------------------------------------------------ layouts


def pack_i2s(codes: Int8[np.ndarray, "n k"]) -> UInt8[np.ndarray, " bytes"]:
    """I2_S: u = code + 1; byte p of a block is u[p] << 6 | u[32+p] << 4 | u[64+p] << 2 | u[96+p].

    Raises:
        InputError: n * k is no multiple of 128.
    """
    check_shape("i2s", *codes.shape)
    u = (_ternary(codes) + 1).astype(np.uint8).reshape(-1, 4, 32)
    return (u[:, 0] << 6 | u[:, 1] << 4 | u[:, 2] << 2 | u[:, 3]).reshape(-1)


def unpack_i2s(packed: UInt8[np.ndarray, " bytes"], n: int, k: int) -> Int8[np.ndarray, "n k"]:
    """The codes that `pack_i2s` packed.

    Raises:
        InputError: Another number of bytes, or a code 3, which nothing writes.
    """
    check_shape("i2s", n, k)
    _check_size("i2s", packed, n * k // 4)
    u = np.stack([packed.reshape(-1, 32) >> shift & 3 for shift in (6, 4, 2, 0)], axis=1)
    return _codes_below_3("i2s", u).reshape(n, k)


def pack_tl1(codes: Int8[np.ndarray, "n k"]) -> UInt8[np.ndarray, " bytes"]:
    """TL1: a pair is the nibble 3 w0 + w1 + 4, 0 to 8; the first of two pairs in the high one.

    Raises:
        InputError: k is no multiple of 4.
    """
    check_shape("tl1", *codes.shape)
    return _nibbles(tl1_index(codes))


def unpack_tl1(packed: UInt8[np.ndarray, " bytes"], n: int, k: int) -> Int8[np.ndarray, "n k"]:
    """The codes that `pack_tl1` packed.

    Raises:
        InputError: Another number of bytes, or a nibble above 8.
    """
    check_shape("tl1", n, k)
    return PAIRS[_tl1_stored(packed, n, k)].astype(np.int8).reshape(n, k)


def pack_tl2(
    codes: Int8[np.ndarray, "n k"],
) -> tuple[
    UInt8[np.ndarray, " bytes"], UInt8[np.ndarray, " sign_bytes"], UInt8[np.ndarray, " pair_bytes"]
]:
    """TL2: triples v = 9 w0 + 3 w1 + w2 as nibbles |v| and sign bits, and what is left as pairs.

    Returns:
        Nibbles of the first 48 * (k // 48) columns, 0 to 13, two a byte with the first in the high
        half; their sign bits (1: v < 0), 16 a little-endian uint16, least significant first; the
        remaining columns as in `pack_tl1`. All row by row.

    Raises:
        InputError: k is no multiple of 4.
    """
    check_shape("tl2", *codes.shape)
    three = triple_columns(codes.shape[1])
    index, negative = tl2_index(codes[:, :three])
    return _nibbles(index), pack_bits(negative, 1), _nibbles(tl1_index(codes[:, three:]))


def unpack_tl2(
    triples: UInt8[np.ndarray, " bytes"],
    signs: UInt8[np.ndarray, " sign_bytes"],
    pairs: UInt8[np.ndarray, " pair_bytes"],
    n: int,
    k: int,
) -> Int8[np.ndarray, "n k"]:
    """The codes that `pack_tl2` packed.

    Raises:
        InputError: Another number of bytes, a triple's nibble above 13 or a pair's above 8.
    """
    check_shape("tl2", n, k)
    three = triple_columns(k)
    index, negative = _tl2_stored(triples, signs, n, three)
    out = np.empty((n, k), np.int8)
    out[:, :three] = np.where(negative[..., None], -TRIPLES[index], TRIPLES[index]).reshape(n, -1)
    out[:, three:] = PAIRS[_tl1_stored(pairs, n, k - three)].reshape(n, -1)
    return out


def triple_columns(k: int) -> int:
    """Leading columns that TL2 stores as triples: whole tiles of 48."""
    return k // TL2_TILE * TL2_TILE


def tl1_index(codes: Int8[np.ndarray, "n k"]) -> UInt8[np.ndarray, "n pairs"]:
    """3 w0 + w1 + 4 of each pair of columns; k is even.

    >>> tl1_index(np.array([[1, -1, 0, 1, -1, -1, 1, 1]], np.int8))
    array([[6, 5, 0, 8]], dtype=uint8)
    """
    pairs = _ternary(codes).reshape(len(codes), -1, 2)
    return (3 * pairs[..., 0] + pairs[..., 1] + 4).astype(np.uint8)


def tl2_index(
    codes: Int8[np.ndarray, "n k"],
) -> tuple[UInt8[np.ndarray, "n triples"], UInt8[np.ndarray, "n triples"]]:
    """|9 w0 + 3 w1 + w2| of each triple of columns, and 1 where it is negative; 3 divides k.

    >>> tl2_index(np.array([[1, -1, 0, -1, 1, 1]], np.int8))
    (array([[6, 5]], dtype=uint8), array([[0, 1]], dtype=uint8))
    """
    v = _ternary(codes).reshape(len(codes), -1, 3) @ np.array([9, 3, 1], np.int8)
    return np.abs(v).astype(np.uint8), (v < 0).astype(np.uint8)


def _ternary(codes: np.ndarray) -> np.ndarray:
    wrong = (codes < -1) | (codes > 1)
    if wrong.any():
        raise InputError(f"codes hold {codes[wrong][0]}; ternary codes are -1, 0 and 1")
    return codes.astype(np.int8)


def _nibbles(index: np.ndarray) -> np.ndarray:
    flat = index.reshape(-1, 2)
    return flat[:, 0] << 4 | flat[:, 1]


def _from_nibbles(layout: str, packed: np.ndarray, count: int, largest: int) -> np.ndarray:
    _check_size(layout, packed, count // 2)
    index = np.stack([packed >> 4, packed & 15], axis=1).reshape(-1)
    if index.size and index.max() > largest:
        raise InputError(f"layout {layout}: nibble {index.max()}; the largest is {largest}")
    return index


def _tl1_stored(packed: np.ndarray, n: int, k: int) -> np.ndarray:
    return _from_nibbles("tl1", packed, n * k // 2, 8).reshape(n, k // 2)


def _tl2_stored(
    triples: np.ndarray, signs: np.ndarray, n: int, three: int
) -> tuple[np.ndarray, np.ndarray]:
    count = n * three // 3
    index = _from_nibbles("tl2", triples, count, 13).reshape(n, three // 3)
    return index, unpack_bits(signs, 1, count).reshape(index.shape)


def _check_size(layout: str, packed: np.ndarray, size: int) -> None:
    if packed.dtype != np.uint8 or packed.shape != (size,):
        raise InputError(
            f"layout {layout}: {packed.dtype} {list(packed.shape)}; needs uint8 [{size}]"
        )


def _codes_below_3(what: str, u: np.ndarray) -> np.ndarray:
    if (u == 3).any():
        raise InputError(f"{what}: a weight has the code 3; codes are weight + 1, 0 to 2")
    return u.astype(np.int8) - np.int8(1)


# ------------------------------------------------------------------- arithmetic


def quantize_tokens(
    x: Float32[np.ndarray, "tokens k"],
) -> tuple[Int8[np.ndarray, "tokens k"], Float32[np.ndarray, " tokens"]]:
    """INT8 activations, and the scale s of each token: s = 127 / max(|x|, 1e-5), round(x s)."""
    s = np.float32(127) / np.maximum(np.abs(x).max(1), np.float32(1e-5))
    return np.clip(np.rint(x * s[:, None]), -128, 127).astype(np.int8), s


def bitlinear(
    x: Float32[np.ndarray, "tokens k"], matrix: BitNetMatrix
) -> Float32[np.ndarray, "tokens n"]:
    """The product as hardware computes it: exact int32 sums of INT8 tokens, then gamma / s."""
    codes, s = quantize_tokens(x)
    sums = codes.astype(np.int32) @ matrix.codes.T.astype(np.int32)
    return sums.astype(np.float32) * matrix.gamma / s[:, None]


def largest_tile(terms: int, largest: int = 128) -> int:
    """Look-ups of `terms` activations each, |x| <= `largest`, whose sum surely fits int16.

    >>> largest_tile(2, 127), largest_tile(2), largest_tile(3, 127), largest_tile(3)
    (129, 127, 86, 85)
    """
    return int(np.iinfo(np.int16).max) // (terms * largest)


def tl1_tables(x: Int8[np.ndarray, " k"]) -> Int16[np.ndarray, "pairs 9"]:
    """Sums of each pair (a, b): -a-b, -a, -a+b, -b, 0, b, a-b, a, a+b."""
    return x.astype(np.int16).reshape(-1, 2) @ PAIRS.T


def tl2_tables(x: Int8[np.ndarray, " k"]) -> Int16[np.ndarray, "triples 14"]:
    """Sums of each triple (a, b, c) for 9 w0 + 3 w1 + w2 = 0 to 13: 0, c, b-c, b, b+c, a-b-c ..."""
    return x.astype(np.int16).reshape(-1, 3) @ TRIPLES.T


def tl1_dot(
    packed: UInt8[np.ndarray, " bytes"], n: int, x: Int8[np.ndarray, " k"], tile: int | None = None
) -> Int32[np.ndarray, " n"]:
    """Sums of n rows in TL1 with activations, by look-up.

    Args:
        packed: Of `pack_tl1`.
        n: Rows.
        x: Activations.
        tile: Pairs whose sums are added in int16; None: as many as surely fit.

    Raises:
        InputError: A shape, or a tile whose sums might not fit int16.
    """
    check_shape("tl1", n, len(x))
    index = _tl1_stored(packed, n, len(x))
    tables = tl1_tables(x)
    return _added(tables[np.arange(len(tables)), index], _tile(2, x, tile))


def tl2_dot(
    triples: UInt8[np.ndarray, " bytes"],
    signs: UInt8[np.ndarray, " sign_bytes"],
    pairs: UInt8[np.ndarray, " pair_bytes"],
    n: int,
    x: Int8[np.ndarray, " k"],
    tile: int | None = None,
) -> Int32[np.ndarray, " n"]:
    """Sums of n rows in TL2 with activations, by look-up; arguments as of `tl1_dot`.

    A sum t of a negative triple is (t + m) ^ m with m = -1, of another one with m = 0. `tile` is
    in triples; the remaining pairs are added as TL1's are.
    """
    check_shape("tl2", n, len(x))
    three = triple_columns(len(x))
    index, negative = _tl2_stored(triples, signs, n, three)
    tables = tl2_tables(x[:three])
    m = -negative.astype(np.int16)
    sums = (tables[np.arange(len(tables)), index] + m) ^ m
    total = _added(sums, _tile(3, x, tile))
    return total + (tl1_dot(pairs, n, x[three:]) if three < len(x) else np.int32(0))


def _tile(terms: int, x: np.ndarray, tile: int | None) -> int:
    if tile is None:
        return largest_tile(terms)
    largest = int(np.abs(x.astype(np.int16)).max(initial=1))
    most = largest_tile(terms, largest)
    if not 1 <= tile <= most:
        what = {2: "pairs", 3: "triples"}[terms]
        raise InputError(
            f"tile is {tile} {what}; 1 to {most}, whose sums fit int16 with activations up to "
            f"{largest}"
        )
    return tile


def _added(sums: np.ndarray, tile: int) -> np.ndarray:
    """int16 [n, look-ups] -> int32 [n]: in int16 within a tile, in int32 across tiles."""
    total = np.zeros(len(sums), np.int32)
    for start in range(0, sums.shape[1], tile):
        total += sums[:, start : start + tile].sum(1, dtype=np.int16)
    return total


# ------------------------------------------------------ Hugging Face checkpoints


def unpack_hf_bitnet(
    packed: UInt8[np.ndarray, "quarter k"],
    weight_scale: float | np.ndarray,
    linear_class: LinearClass = "autobitlinear",
    layout: Layout = "i2s",
) -> BitNetMatrix:
    """A linear of a packed BitNet checkpoint on the Hugging Face Hub.

    Bits 2 q and 2 q + 1 of byte [r, j] are weight + 1 of row q * n / 4 + r, column j (microsoft/
    BitNet, utils/convert-hf-to-gguf-bitnet.py; huggingface/transformers, integrations/bitnet.py).

    Args:
        packed: "weight", [n / 4, k].
        weight_scale: "weight_scale", one number.
        linear_class: "linear_class" of the checkpoint's quantization_config. Outputs of an
            "autobitlinear" are multiplied by weight_scale, so it is gamma; those of a "bitlinear"
            are divided, so gamma is its inverse (huggingface/transformers, integrations/bitnet.py).
        layout: How the result is stored.

    Raises:
        InputError: Another type or shape, a code of 3, or a scale that is not one positive, finite
            number.
    """
    if not isinstance(packed, np.ndarray) or packed.dtype != np.uint8 or packed.ndim != 2:
        found = f"{packed.dtype} {list(packed.shape)}" if isinstance(packed, np.ndarray) else packed
        raise InputError(f"packed is {found}; needs uint8 [n / 4, k], 4 rows in a byte")
    if linear_class not in get_args(LinearClass):
        written = ", ".join(get_args(LinearClass))
        raise InputError(f"linear_class is {linear_class!r}; one of {written}")
    scale = np.asarray(weight_scale, np.float32).reshape(-1)
    if scale.size != 1 or not np.isfinite(scale[0]) or scale[0] <= 0:
        raise InputError(f"weight_scale is {weight_scale}; one positive, finite number a matrix")
    u = np.concatenate([packed >> shift & 3 for shift in (0, 2, 4, 6)])
    if (u == 3).any():
        row, column = np.argwhere(u == 3)[0]
        raise InputError(f"packed: weight [{row}, {column}] has the code 3, must be 0 to 2")
    gamma = scale[0] if linear_class == "autobitlinear" else np.float32(1) / scale[0]
    return BitNetMatrix(u.astype(np.int8) - np.int8(1), gamma, layout)
