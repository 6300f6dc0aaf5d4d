"""Pruned weights: the codes of those that are kept, and a mask that says where they stand.

Inside is a matrix in any weight format, or FP16 values. Zeros are exact in every format, those
that have no code for zero too: what is pruned is not stored, and is 0 whatever the format.

Stored, as far as the inner format has them:

| entry | type | content |
| --- | --- | --- |
| mask | U8 [bytes] | unstructured: a bit per weight, row after row, 1 = kept |
| index | U8 [bytes] | N:M: place 0 .. M - 1 of each kept weight in its run, ceil(log2 M) bits |
| values | F16 [kept] | without a format: the kept weights, row after row |
| codes | U8 [bytes] | with a format: codes of the kept weights, packed |
| group_scales ... tensor_scale | | all of the inner tensor's other entries, whole (`store.py`) |

True bits per weight: b(1 - p) + 1 with a bitmap at sparsity p, b N/M + ceil(log2 M) N/M with a
pattern (2:4: b/2 + 1), both with the scales of whole groups on top. For 4:8 a bitmap would be half
a bit smaller than the indices; hardware that picks inputs by multiplexers wants indices.

Formats whose scales cover blocks (MX, NVFP4) are masked like any other: the block's scale is that
of its kept weights. OliVe is refused: the code of a pruned neighbour says that a kept weight is an
outlier.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np
from jaxtyping import Bool, Float16, Float32

from bitwright.quant import (
    FORMATS,
    CompressedMatrix,
    Format,
    InputError,
    Operands,
    Pass,
    QuantizedTensor,
    pack_bits,
    unpack_bits,
)

#: Entries of the inner tensor that are stored as they are, and those that are packed.
_WHOLE = ("group_scales", "channel_scales", "tensor_scale")
_PACKED = ("zero_points", "selectors")


class Pattern(NamedTuple):
    """Of each run of `of` consecutive inputs `kept` are kept: N:M."""

    kept: int
    of: int

    @property
    def index_bits(self) -> int:
        """Bits that name a place in a run."""
        return (self.of - 1).bit_length()

    def __str__(self) -> str:
        return f"{self.kept}:{self.of}"


@dataclass(frozen=True, eq=False)
class MaskedMatrix(CompressedMatrix):
    """A matrix of which only the kept weights are stored.

    Args:
        inner: All weights [n, k] in a format, or FP16 values; what it holds at pruned places is
            never read.
        mask: Where weights are kept.
        pattern: N:M, if every run of M inputs keeps N.

    Raises:
        InputError: Shapes differ, OliVe, FP16 values that are not finite, a pattern that the mask
            does not follow, or groups that cut runs of the pattern.
    """

    method: ClassVar[str] = "masked"
    inner: QuantizedTensor | Float16[np.ndarray, "n k"]
    mask: Bool[np.ndarray, "n k"]
    pattern: Pattern | None = None

    def __post_init__(self) -> None:
        if self.mask.shape != self.inner.shape or self.mask.dtype != np.bool_:
            raise InputError(
                f"mask is {self.mask.dtype} {self.mask.shape}; weights {self.inner.shape} need a "
                "bool mask of their shape"
            )
        if isinstance(self.inner, QuantizedTensor):
            check_format(self.inner.format)
            if self.pattern is not None and self.inner.group_size < self.inner.k:
                check_group(self.inner.group_size, self.pattern)
        elif not np.isfinite(self.inner[self.mask]).all():
            raise InputError("kept weights are beyond FP16's range; prune behind a weight format")
        if self.pattern is not None:
            check_columns(self.mask.shape[1], self.pattern)
            runs = self.mask.reshape(-1, self.pattern.of).sum(1)
            if (runs != self.pattern.kept).any():
                where = int(np.argmax(runs != self.pattern.kept)) * self.pattern.of
                row, column = divmod(where, self.mask.shape[1])
                raise InputError(
                    f"the mask keeps {runs[where // self.pattern.of]} of the {self.pattern.of} "
                    f"weights from [{row}, {column}] on; {self.pattern} keeps {self.pattern.kept}"
                )

    @property
    def shape(self) -> tuple[int, int]:
        n, k = self.mask.shape
        return n, k

    @property
    def kept(self) -> int:
        """Number of weights that are kept."""
        return int(self.mask.sum())

    @property
    def code_bits(self) -> int:
        """Bits of a kept weight: its code, or 16."""
        return self.inner.format.bits if isinstance(self.inner, QuantizedTensor) else 16

    def dequantize(self) -> Float32[np.ndarray, "n k"]:
        inner = self.inner
        if isinstance(inner, QuantizedTensor):
            return np.where(self.mask, inner.dequantize(), np.float32(0))
        return np.where(self.mask, inner, np.float16(0)).astype(np.float32)

    def settings(self) -> dict[str, Any]:
        n, k = self.shape
        pattern = None if self.pattern is None else list(self.pattern)
        found: dict[str, Any] = {"n": n, "k": k, "pattern": pattern, "format": None}
        if isinstance(self.inner, QuantizedTensor):
            found |= {
                "format": self.inner.format.name,
                "group_size": self.inner.group_size,
                "scale_format": self.inner.scale_format,
            }
        return found

    def entries(self) -> dict[str, np.ndarray]:
        inner, found = self.inner, {}
        if self.pattern is None:
            found["mask"] = pack_bits(self.mask.view(np.uint8), 1)
        else:
            places = np.flatnonzero(self.mask) % self.pattern.of  # k is a multiple of M
            found["index"] = pack_bits(places.astype(np.uint8), self.pattern.index_bits)
        if not isinstance(inner, QuantizedTensor):
            return found | {"values": np.ascontiguousarray(inner[self.mask])}
        found["codes"] = pack_bits(inner.codes[self.mask], inner.format.bits)
        for name in _WHOLE:
            if getattr(inner, name) is not None:
                found[name] = np.ascontiguousarray(getattr(inner, name))
        for name, bits in _packed_bits(inner.format).items():
            if getattr(inner, name) is not None:
                found[name] = pack_bits(getattr(inner, name), bits)
        return found

    @classmethod
    def restored(cls, settings: Mapping[str, Any], entries: Mapping[str, np.ndarray]) -> Self:
        n, k = settings["n"], settings["k"]
        pattern = None if settings["pattern"] is None else Pattern(*settings["pattern"])
        if pattern is None:
            mask = unpack_bits(entries["mask"], 1, n * k).view(np.bool_).reshape(n, k)
        else:
            runs = n * k // pattern.of
            index = unpack_bits(entries["index"], pattern.index_bits, runs * pattern.kept)
            if index.max() >= pattern.of:
                raise InputError(f"index holds {index.max()}, outside 0 .. {pattern.of - 1}")
            whole = np.zeros((runs, pattern.of), bool)
            np.put_along_axis(whole, index.reshape(runs, pattern.kept), True, 1)
            mask = whole.reshape(n, k)
        if settings["format"] is None:
            values = np.zeros((n, k), np.float16)
            values[mask] = entries["values"]
            return cls(values, mask, pattern)
        format, group_size = FORMATS[settings["format"]], settings["group_size"]
        codes = np.zeros((n, k), np.uint8)
        codes[mask] = unpack_bits(entries["codes"], format.bits, int(mask.sum()))
        arrays: dict[str, Any] = {name: entries.get(name) for name in _WHOLE}
        groups = -(-k // group_size)
        for name, bits in _packed_bits(format).items():
            if name in entries:
                arrays[name] = unpack_bits(entries[name], bits, n * groups).reshape(n, groups)
        inner = QuantizedTensor(
            format=format,
            group_size=group_size,
            codes=codes,
            scale_format=settings["scale_format"],
            **arrays,
        )
        return cls(inner, mask, pattern)

    @property
    def nominal_bits(self) -> float:
        """Bits of the kept codes alone: mask and scales are left out."""
        n, k = self.shape
        return self.code_bits * self.kept / (n * k)

    def passes(self) -> tuple[Pass, ...]:
        """One product. N:M needs k N/M columns of inputs that the indices pick; a bitmap saves
        memory only, for lanes that work in lockstep wait for the fullest of them.
        """
        (n, k), format, group = self.shape, None, None
        if isinstance(self.inner, QuantizedTensor):
            format, group = self.inner.format.name, self.inner.group_size
            group = None if group >= k else group
        if self.pattern is None:
            return (Pass("kept weights in all columns", n, k, format, self.stored_bits, group),)
        kept, of = self.pattern
        group = None if group is None else group * kept // of
        return (
            Pass(f"{self.pattern} weights", n, k * kept // of, format, self.stored_bits, group),
        )

    def operands(self, x: np.ndarray) -> Operands:
        """Kept weights of a pattern stand side by side; their inputs are the first of each run.

        Which inputs a row takes is its PE's own choice; those shown are of the same kind.
        """
        (n, k), inner = self.shape, self.inner
        if isinstance(inner, QuantizedTensor):
            codes = np.where(self.mask, inner.codes, _zero_codes(inner))
        else:
            codes = np.where(self.mask, inner, np.float16(0)).astype(np.float32)
        if self.pattern is not None:
            kept, of = self.pattern
            codes = codes[self.mask].reshape(n, k * kept // of)
            x = np.ascontiguousarray(x[:, np.arange(k) % of < kept])
        if not isinstance(inner, QuantizedTensor):
            return ((x, codes),)
        size = inner.group_size * codes.shape[1] // k if self.pattern else inner.group_size
        return ((x, replace(inner, codes=codes.astype(np.uint8), group_size=size)),)


def _zero_codes(t: QuantizedTensor) -> np.ndarray:
    """The code of 0 at every place, uint8 [n, k]; the first code where a format has none."""
    if t.zero_points is not None:
        by_group = t.zero_points
    else:
        zeros = [
            next((code for code, value in enumerate(t.format.code_values(s)) if value == 0), 0)
            for s in range(t.format.choices)
        ]
        groups = np.zeros(t.group_scales.shape, np.uint8) if t.selectors is None else t.selectors
        by_group = np.array(zeros, np.uint8)[groups]
    return np.repeat(by_group, t.group_size, axis=1)[:, : t.k]


def mask_matrix(
    inner: QuantizedTensor | Float32[np.ndarray, "n k"],
    mask: Bool[np.ndarray, "n k"],
    pattern: Pattern | None = None,
) -> MaskedMatrix:
    """A pruned matrix of rounded weights, or of float weights that become FP16.

    Codes at pruned places become 0, as a file restores them.
    """
    if isinstance(inner, QuantizedTensor):
        check_format(inner.format)
        codes = np.where(mask, inner.codes, np.uint8(0))
        return MaskedMatrix(replace(inner, codes=codes), mask, pattern)
    with np.errstate(over="ignore"):
        return MaskedMatrix(np.where(mask, inner, 0).astype(np.float16), mask, pattern)


def check_format(format: Format) -> None:
    """Refuse formats whose weights cannot be masked one by one.

    Raises:
        InputError: OliVe, whose codes mean something in pairs only.
    """
    if format.kind == "olive":
        raise InputError(
            f"{format.name} stores weights in pairs, which a mask tears apart; prune behind "
            "another format"
        )


def check_columns(k: int, pattern: Pattern) -> None:
    """Refuse rows that are not whole runs of a pattern.

    Raises:
        InputError: k is no multiple of M (says the nearest that are).
    """
    if k % pattern.of:
        below = k // pattern.of * pattern.of
        near = " and ".join(str(size) for size in (below, below + pattern.of) if size)
        raise InputError(
            f"k (={k} inputs) is no multiple of {pattern.of}, which {pattern} needs; nearest: "
            f"{near}"
        )


def check_group(group_size: int, pattern: Pattern) -> None:
    """Refuse groups of scales that cut a run of a pattern in two.

    Raises:
        InputError: The group is no multiple of M (says the nearest that are).
    """
    if group_size % pattern.of:
        below = group_size // pattern.of * pattern.of
        near = " and ".join(str(size) for size in (below, below + pattern.of) if size)
        raise InputError(
            f"group size {group_size} is no multiple of {pattern.of}, which {pattern} needs; "
            f"nearest: {near}"
        )


def _packed_bits(format: Format) -> dict[str, int]:
    """Packed entries beside the codes, and the bits of an item."""
    return dict(zip(_PACKED, (format.zero_point_bits, format.selector_bits), strict=True))
