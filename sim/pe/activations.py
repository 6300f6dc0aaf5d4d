"""FP16 activations as the PEs take them."""

from typing import Any

import numpy as np

from bitwright.quant import InputError


def fp16_bits(x: Any) -> np.ndarray:
    """FP16 bit patterns, uint16 of the same shape; other types are rounded to nearest even.

    Raises:
        InputError: A value is not finite in FP16; the PEs have no encoding for it.
    """
    with np.errstate(over="ignore"):
        half = np.asarray(x).astype(np.float16)
    if not np.isfinite(half).all():
        where = tuple(int(i) for i in np.argwhere(~np.isfinite(half))[0])
        raise InputError(
            f"activation {np.asarray(x)[where]} at {where} is not finite in FP16; "
            "activations must lie in -65504 .. 65504"
        )
    return half.view(np.uint16)


def decode_fp16_array(bits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Signed significand (-2047..2047) and exponent E (1..30), both int32, of FP16 patterns."""
    wide = bits.astype(np.int32)
    exponent = (wide >> 10) & 31
    significand = (wide & 0x3FF) | ((exponent != 0).astype(np.int32) << 10)
    return np.where(wide >> 15, -significand, significand), np.maximum(exponent, 1)
