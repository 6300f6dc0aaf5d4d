"""Weights in a block format (nvfp4, mxfp4, mxint8) whose scales or basis are others.

Codes are those of the format. Two things can differ, as the steps `scales2d` and `rht` ask:

- **tiles**: so many rows share one scale per block of columns, and it is stored once;
- **turn**: the codes stand for W R, with R the block-diagonal randomised Hadamard matrix of
  `random_hadamard.py`. Inputs are turned by the same R, so x W^T = (x R) (W R)^T; `dequantize`
  gives the weights back in their own basis, which is the same product without quantised inputs.

Stored:

| entry | type | content |
| --- | --- | --- |
| codes | U8 [bytes] | n*k codes, 4 or 8 bits each, row after row, packed |
| group_scales | U8 [tiles, groups] | E4M3 or E8M0 code of each tile's scale |
| tensor_scale | F32 [1] | with E4M3 scales |

A turn stores nothing: its signs follow from the seed, which the settings hold. True bits per
weight with whole tiles of r rows and blocks of c columns: b + 8 / (r c), and 32 bits a tensor with
E4M3 scales: nvfp4 4.5 with rows of their own, 4.03125 with tiles of 16 x 16. Hardware that wants a
scale per row repeats it when it loads a tile.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np
from jaxtyping import Float32

from bitwright.quant import (
    FORMATS,
    CompressedMatrix,
    InputError,
    Operands,
    Pass,
    QuantizedTensor,
    VectorWork,
    pack_bits,
    unpack_bits,
)

from .random_hadamard import Turn


@dataclass(frozen=True, eq=False)
class BlockMatrix(CompressedMatrix):
    """Codes of a block format with scales of tiles, in their own or in a turned basis.

    Args:
        inner: The codes [n, k], with the scale of a tile in each of its rows.
        tile_rows: Rows of a tile; 1: every row has its own scales.
        turn: Which; None: codes stand for the weights as they are.

    Raises:
        InputError: No block format, no rows in a tile, rows of a tile that differ in a scale, or
            columns that are no whole blocks of the turn.
    """

    method: ClassVar[str] = "blocks"
    inner: QuantizedTensor
    tile_rows: int = 1
    turn: Turn | None = None

    def __post_init__(self) -> None:
        if self.inner.format.block is None:
            raise InputError(f"{self.inner.format.name} has no fixed block of weights")
        if self.tile_rows < 1:
            raise InputError(f"tile_rows (={self.tile_rows}) must be at least 1")
        if not np.array_equal(self._repeated(self._tiles(), self.inner.n), self.inner.group_scales):
            raise InputError(f"scales differ within a tile of {self.tile_rows} rows")
        if self.turn is not None:
            self.turn.check(self.inner.k)

    def _tiles(self) -> np.ndarray:
        return np.ascontiguousarray(self.inner.group_scales[:: self.tile_rows])

    def _repeated(self, tiles: np.ndarray, n: int) -> np.ndarray:
        return np.repeat(tiles, self.tile_rows, axis=0)[:n]

    @property
    def shape(self) -> tuple[int, int]:
        return self.inner.shape

    def dequantize(self) -> Float32[np.ndarray, "n k"]:
        w = self.inner.dequantize()
        return w if self.turn is None else self.turn.undo(w)

    def settings(self) -> dict[str, Any]:
        turn = None if self.turn is None else [self.turn.order, self.turn.seed]
        format, (n, k) = self.inner.format.name, self.shape
        return {"format": format, "n": n, "k": k, "tile_rows": self.tile_rows, "turn": turn}

    def entries(self) -> dict[str, np.ndarray]:
        found = {
            "codes": pack_bits(self.inner.codes, self.inner.format.bits),
            "group_scales": self._tiles(),
        }
        if self.inner.tensor_scale is not None:
            found["tensor_scale"] = np.ascontiguousarray(self.inner.tensor_scale)
        return found

    @classmethod
    def restored(cls, settings: Mapping[str, Any], entries: Mapping[str, np.ndarray]) -> Self:
        format, n, k = FORMATS[settings["format"]], settings["n"], settings["k"]
        assert format.block is not None
        scales = np.repeat(entries["group_scales"], settings["tile_rows"], axis=0)
        if not 0 <= len(scales) - n < settings["tile_rows"]:
            raise InputError(f"group_scales of {len(scales)} rows do not cover {n} rows in tiles")
        inner = QuantizedTensor(
            format=format,
            group_size=min(format.block, k),
            codes=unpack_bits(entries["codes"], format.bits, n * k).reshape(n, k),
            scale_format=format.scale_format,
            group_scales=np.ascontiguousarray(scales[:n]),
            tensor_scale=entries.get("tensor_scale"),
        )
        turn = None if settings["turn"] is None else Turn(*settings["turn"])
        return cls(inner, settings["tile_rows"], turn)

    @property
    def nominal_bits(self) -> float:
        """Bits of a code."""
        return self.inner.format.bits

    def passes(self) -> tuple[Pass, ...]:
        """One product in the format."""
        what = "codes" if self.turn is None else "codes of turned inputs"
        group = self.inner.group_size if self.inner.groups > 1 else None
        n, k = self.shape
        return (Pass(what, n, k, self.inner.format.name, self.stored_bits, group),)

    def operands(self, x: np.ndarray) -> Operands:
        return ((x if self.turn is None else self.turn.apply(x), self.inner),)

    def vector_work(self) -> tuple[VectorWork, ...]:
        """Signs of the inputs, then a stage of sums and differences for each bit of the order.

        The root of the order joins a scale.
        """
        if self.turn is None:
            return ()
        stages = self.turn.order.bit_length() - 1
        return (VectorWork("turn inputs", "butterfly", self.shape[1], 1 + stages, shared=True),)
