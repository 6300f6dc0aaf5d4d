"""Formats with a fixed block and a small floating-point scale: mxfp4, mxint8 and nvfp4.

The scale of a block is rounded and stored first; elements are then rounded to nearest with the
*stored* scale, ties to the code with an even last bit, and saturate at the largest element. Minus
zero is never produced. A shorter last block of a row is a block.

**MX** (OCP Microscaling Formats v1.0, "Conversion from vector of scalars to MX-compliant format"):

1. X = 2**e, e = floor(log2(max|w|)) - emax, emax the exponent of the largest power of two among the
   elements: 2 for E2M1, 0 for INT8; e is clipped to -127 .. 127, so a block with max|w| below
   2**-125 (INT8: 2**-127) loses bits. An all-zero block, which the specification leaves open, has
   e = -127.
2. elements: w / X, exact in float64, then rounded. Saturation can happen: max|w| / X reaches twice
   the largest power of two, which neither E2M1 (6) nor INT8 (127/64) holds. INT8 never takes
   -128/64.

**NVFP4**, as NVIDIA's reference does it (TransformerEngine, quantization_nvfp4.py); every operation
is one float32 operation:

1. G = 6 * 448 / max|w| over the tensor (1 for zeros); the tensor scale is g = 1 / G;
2. per block: d = max|w| / 6; s = d * G, at most 448, rounded to E4M3, the code that is stored;
3. elements: w * (1 / (s * g)), clipped to +-6, then rounded. A block whose s rounds to 0 gets codes
   of 0, where the reference may give any code: the value is 0 all the same.

The weight is element * (s * g), the product in brackets rounded first.

Two things can differ, for all of these formats. **Tiles**: several rows share the scale of a block,
which is then that of the tile's largest magnitude (a shorter last tile of rows is a tile).
**Stochastic rounding** of elements: between two neighbouring levels lo <= |x| < hi, hi is taken
with probability (|x| - lo) / (hi - lo), so the mean of many roundings is x; what saturates stays
saturated, as in rounding to nearest.
"""

import numpy as np
from jaxtyping import Float, Float32, UInt8

from bitwright.quant import Format, InputError, QuantizedTensor, scale_code_values

#: Largest E2M1 and E4M3 numbers.
E2M1_MAX, E4M3_MAX = 6.0, 448.0
#: Where all steps of NVFP4 stay finite and none of its factors is clipped: max|w| of a tensor.
NVFP4_RANGE = (2.0**-107, 2.0**127)


def quantize_blocks(
    w: Float32[np.ndarray, "n k"],
    format: Format,
    tile_rows: int = 1,
    random: np.random.Generator | None = None,
) -> QuantizedTensor:
    """Quantise `w` to a format with a fixed block, as this module defines it.

    Args:
        w: Finite weights or activations.
        format: One with a `block`.
        tile_rows: Consecutive rows, from the first on, that share the scales of their blocks; they
            are repeated in the result, a row for each row of `w`.
        random: Rounds stochastically, with one draw per element; None: to nearest.

    Raises:
        InputError: "e4m3" scales with magnitudes that NVFP4's float32 steps do not carry.

    >>> from bitwright.quant import FORMATS
    >>> qt = quantize_blocks(np.array([[3.0, -0.8, 7.9, 0.2]], np.float32), FORMATS["mxfp4"])
    >>> qt.group_scales, qt.values()  # max 7.9: X = 2**(2 - 2); 7.9 saturates
    (array([[127]], dtype=uint8), array([[ 3., -1.,  6.,  0.]], dtype=float32))
    """
    assert format.block is not None
    n, k = w.shape
    size = min(format.block, k)
    groups = -(-k // size)
    # (n, groups, size); the columns that fill up a short last block are 0 and change nothing.
    blocks = np.pad(w, ((0, 0), (0, groups * size - k))).reshape(n, groups, size)
    largest = np.abs(blocks).max(axis=2)
    if tile_rows > 1:
        tops = np.maximum.reduceat(largest, np.arange(0, n, tile_rows), axis=0)
        largest = np.repeat(tops, tile_rows, axis=0)[:n]
    tensor_scale = None
    if format.scale_format == "e8m0":
        group_scales, elements = _mx(blocks, largest, format)
    else:
        group_scales, elements, tensor_scale = _nvfp4(blocks, largest)
    if random is None:
        codes = _nearest_code(elements, format)
    else:
        codes = stochastic_codes(elements, format, random.random(elements.shape))
    return QuantizedTensor(
        format=format,
        group_size=size,
        codes=np.ascontiguousarray(codes.reshape(n, -1)[:, :k]),
        scale_format=format.scale_format,
        group_scales=group_scales,
        tensor_scale=tensor_scale,
    )


def _mx(
    blocks: Float32[np.ndarray, "n groups size"],
    largest: Float32[np.ndarray, "n groups"],
    format: Format,
) -> tuple[UInt8[np.ndarray, "n groups"], Float[np.ndarray, "n groups size"]]:
    """E8M0 codes, and elements before rounding."""
    # frexp reads the exponent field: floor(log2) without the error that a logarithm has.
    exponent = np.frexp(largest)[1] - 1 - (int(np.frexp(format.absmax())[1]) - 1)
    exponent = np.where(largest == 0, -127, np.clip(exponent, -127, 127))
    elements = np.ldexp(blocks.astype(np.float64), -exponent[:, :, None])
    return (exponent + 127).astype(np.uint8), elements


def _nvfp4(
    blocks: Float32[np.ndarray, "n groups size"],
    largest: Float32[np.ndarray, "n groups"],
) -> tuple[
    UInt8[np.ndarray, "n groups"],
    Float32[np.ndarray, "n groups size"],
    Float32[np.ndarray, " one"],
]:
    """E4M3 codes, elements before rounding, and the tensor scale."""
    whole = largest.max()
    low, high = NVFP4_RANGE
    if whole != 0 and not low <= whole <= high:
        raise InputError(
            f"nvfp4 needs a largest magnitude in {low:.2g} .. {high:.2g}, that of w is "
            f"{whole:.3g}; rescale it"
        )
    one, top = np.float32(1), np.float32(E2M1_MAX)
    encode = one if whole == 0 else np.float32(E2M1_MAX * E4M3_MAX) / whole
    decode = one / encode
    scales = np.minimum(largest / top * encode, np.float32(E4M3_MAX))
    table = np.array(scale_code_values("e4m3")[:127])
    codes = _nearest_even(scales, table)
    stored = table[codes].astype(np.float32) * decode
    with np.errstate(divide="ignore"):
        factor = np.where(stored == 0, np.float32(0), one / stored)
    elements = np.clip(blocks * factor[:, :, None], -top, top)
    return codes, elements, np.array([decode], np.float32)


def _nearest_code(
    elements: Float[np.ndarray, "n groups size"], format: Format
) -> UInt8[np.ndarray, "n groups size"]:
    """Codes of the nearest levels, saturating; the levels are the same on both sides of zero."""
    half = format.special_code
    magnitudes = np.array(format.levels[:half])
    return _signed(_nearest_even(np.abs(elements), magnitudes), elements, format)


def stochastic_codes(
    elements: Float[np.ndarray, "n groups size"],
    format: Format,
    draws: Float[np.ndarray, "n groups size"],
) -> UInt8[np.ndarray, "n groups size"]:
    """Codes of one of the two neighbouring levels, the larger magnitude where the draw says so.

    Args:
        elements: Weights over their scale.
        format: Whose levels are the same on both sides of zero.
        draws: Uniform in [0, 1), one for each element.

    >>> from bitwright.quant import FORMATS
    >>> draws = np.array([[[0.0, 0.5, 0.59, 0.61]]])
    >>> stochastic_codes(np.full((1, 1, 4), 2.6), FORMATS["nvfp4"], draws)  # 2 is code 4, 3 code 5
    array([[[5, 5, 5, 4]]], dtype=uint8)
    """
    levels = np.array(format.levels[: format.special_code])
    x = np.minimum(np.abs(elements).astype(np.float64), levels[-1])
    lower = np.minimum(np.searchsorted(levels, x, side="right") - 1, len(levels) - 2)
    up = draws < (x - levels[lower]) / (levels[lower + 1] - levels[lower])
    return _signed((lower + up).astype(np.uint8), elements, format)


def _signed(
    codes: UInt8[np.ndarray, "n groups size"],
    elements: Float[np.ndarray, "n groups size"],
    format: Format,
) -> UInt8[np.ndarray, "n groups size"]:
    """Codes of magnitudes with the sign of the elements; zero has none."""
    return np.where((elements < 0) & (codes > 0), _negative(format)[codes], codes)


def _negative(format: Format) -> UInt8[np.ndarray, " magnitudes"]:
    """The code of minus each magnitude code: sign and magnitude, or two's complement."""
    code_of = {value: code for code, value in enumerate(format.levels)}
    codes = [code_of[-value] if value else 0 for value in format.levels[: format.special_code]]
    return np.array(codes, np.uint8)


def _nearest_even(
    x: Float[np.ndarray, "*shape"], levels: Float[np.ndarray, " levels"]
) -> UInt8[np.ndarray, "*shape"]:
    """Index of the level nearest to x; the even one if two are, the last one beyond all.

    Levels ascend from 0; their index is their code, so an even index is an even last bit.
    """
    mids = (levels[1:] + levels[:-1]) / 2
    below = np.searchsorted(mids, x, side="left")  # midpoints below x
    tie = mids[np.minimum(below, len(mids) - 1)] == x
    return (below + (tie & (below % 2 == 1))).astype(np.uint8)
