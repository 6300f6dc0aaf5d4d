"""Weights and activations as the bit-serial PE takes them: steps of four lanes, group by group.

numpy alone, so that every library's twin of the PE's arithmetic (`bitserial_dots`) can use it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from bitwright.quant import FORMATS, InputError, QuantizedTensor

_LANES = 4


@dataclass(frozen=True)
class WeightSteps:
    """Weights of the bit-serial PE."""

    group_size: int
    values: np.ndarray  #: int16 [n, steps, 4]: integers, or half units of FP3 and FP4
    ends: np.ndarray  #: bool [steps]: the last step of a group
    scales: np.ndarray  #: uint8 [n, steps]: scale of the step's group
    channel_scales: np.ndarray  #: float32 [n], the unit of the values in them
    terms: int  #: term cycles of a step
    half_units: bool

    @property
    def nbytes(self) -> int:
        """Bytes that a product reads, activations left out."""
        return self.values.nbytes + self.scales.nbytes + self.channel_scales.nbytes

    def product(self, x: Any, dots: Callable[..., np.ndarray]) -> np.ndarray:
        """y float32 [m, n] through a library's `bitserial_dots`.

        Args:
            x: Activations [m, k], FP16 or rounded to it.
            dots: As `bitwright.kernels.bitserial_dots`.

        Raises:
            InputError: An activation is not finite in FP16.
        """
        acts = _lanes(fp16_bits(x), self.group_size)
        acc = dots(
            acts[:, None],
            self.values[None],
            self.ends,
            self.scales,
            terms=self.terms,
            half_units=self.half_units,
        )
        return acc * self.channel_scales


def weight_steps(w: QuantizedTensor) -> WeightSteps:
    """Weights for the bit-serial PE.

    Raises:
        InputError: The scale format is not int8, or the PE has no terms for the values.
    """
    if w.scale_format != "int8" or w.channel_scales is None:
        raise InputError(
            f"scale_format {w.scale_format} has no bit-serial arithmetic; use scale_format int8"
        )
    format = w.format
    half_units = format.kind == "levels" and format.levels in (
        FORMATS["fp3"].levels,
        FORMATS["fp4"].levels,
    )
    if not half_units and format.kind not in ("int-sym", "int-asym"):
        raise InputError(
            f"weight format {format.name} has no bit-serial arithmetic; use integers, FP3 or FP4"
        )
    bits_needed = format.bits + (format.kind == "int-asym")
    if bits_needed > 8:
        raise InputError(
            f"weight format {format.name} needs {bits_needed} bits, and the bit-serial PE has 8; "
            "use a symmetric or narrower one"
        )
    values = _lanes((w.values() * (2 if half_units else 1)).astype(np.int16), w.group_size)
    lengths = [
        -(-(min(start + w.group_size, w.k) - start) // _LANES)
        for start in range(0, w.k, w.group_size)
    ]
    ends = np.zeros(sum(lengths), bool)
    ends[np.cumsum(lengths) - 1] = True
    return WeightSteps(
        group_size=w.group_size,
        values=values,
        ends=ends,
        scales=np.repeat(w.group_scales, lengths, axis=1),
        channel_scales=w.channel_scales * np.float32(0.5 if half_units else 1),
        terms=2 if half_units else -(-bits_needed // 2),
        half_units=half_units,
    )


def fp16_bits(x: Any) -> np.ndarray:
    """Activations [m, k] rounded to FP16, as patterns, uint16.

    Raises:
        InputError: One is not finite then (names it).
    """
    with np.errstate(over="ignore"):
        half = np.asarray(x).astype(np.float16)
    if not np.isfinite(half).all():
        row, column = (int(i) for i in np.argwhere(~np.isfinite(half))[0])
        raise InputError(
            f"x[{row}, {column}] is {np.asarray(x)[row, column]}, which is not finite in FP16; "
            "activations must lie in -65504 .. 65504 for this kernel"
        )
    return half.view(np.uint16)


def _lanes(rows: np.ndarray, group_size: int) -> np.ndarray:
    """[rows, k] as [rows, steps, 4], zeros behind each group's columns."""
    parts = []
    for start in range(0, rows.shape[1], group_size):
        part = rows[:, start : start + group_size]
        parts.append(np.pad(part, ((0, 0), (0, -part.shape[1] % _LANES))))
    return np.concatenate(parts, axis=1).reshape(len(rows), -1, _LANES)
