"""What every importer checks, and how signs of scales are taken into codes."""

import numpy as np
from jaxtyping import Bool, Float16, UInt8, UInt32

from bitwright.quant import FORMATS, InputError, QuantizedTensor


def check_array(
    name: str, array: np.ndarray, dtype: type, shape: tuple[int | None, ...] = (None, None)
) -> None:
    """InputError unless the array has the type and the shape; None stands for any length."""
    fits = array.ndim == len(shape) and all(
        want in (None, found) for want, found in zip(shape, array.shape, strict=False)
    )
    if array.dtype != dtype or not fits or 0 in array.shape:
        wanted = ", ".join("any" if want is None else str(want) for want in shape)
        raise InputError(
            f"{name} is {array.dtype} {list(array.shape)}, must be {np.dtype(dtype)} [{wanted}]; "
            "read it from a whole file, with the bits and group size it was written with"
        )


def check_scales(name: str, scales: Float16[np.ndarray, "n g"], what: str = "scale") -> None:
    """InputError at the first number [row, group] that is NaN or infinite."""
    # Bit patterns, as numpy's float16 arithmetic is many times slower.
    wrong = scales.view(np.uint16) & 0x7C00 == 0x7C00
    if wrong.any():
        row, group = np.argwhere(wrong)[0]
        raise InputError(
            f"{name}: the {what} of row {row}, group {group} is {scales[row, group]}, must be "
            "finite; the file is damaged or its quantisation failed, fetch or make it again"
        )


def signless(
    scales: Float16[np.ndarray, "n groups"],
) -> tuple[Bool[np.ndarray, "n groups"], Float16[np.ndarray, "n groups"]]:
    """Which finite scales are negative, and all magnitudes; -0.0 is not negative and stays."""
    bits = scales.view(np.uint16)
    negative = bits > 0x8000
    if negative.any():
        scales = (bits ^ negative * np.uint16(0x8000)).view(np.float16)
    return negative, scales


def words(array: np.ndarray) -> UInt32[np.ndarray, "rows columns"]:
    """An int32 matrix as contiguous unsigned words."""
    return np.ascontiguousarray(array).view(np.uint32)


def pack_rows(
    codes: UInt8[np.ndarray, "rows columns"], bits: int
) -> UInt32[np.ndarray, "rows words"]:
    """Each row as one stream of bits, low first, cut into little-endian words.

    columns * bits must be a multiple of 32.
    """
    digits = np.unpackbits(codes[..., None], axis=2, count=bits, bitorder="little")
    packed = np.packbits(digits.reshape(len(codes), -1), axis=1, bitorder="little")
    return packed.view("<u4")


def unpack_rows(
    packed: UInt32[np.ndarray, "rows words"], bits: int
) -> UInt8[np.ndarray, "rows columns"]:
    """What `pack_rows` packed; slow."""
    digits = np.unpackbits(packed.astype("<u4").view(np.uint8), axis=1, bitorder="little")
    return np.packbits(digits.reshape(len(packed), -1, bits), axis=2, bitorder="little")[..., 0]


def asymmetric(
    name: str,
    bits: int,
    codes: UInt8[np.ndarray, "n k"],
    zero_points: UInt8[np.ndarray, "n groups"],
    scales: Float16[np.ndarray, "n groups"],
    group_size: int,
) -> QuantizedTensor:
    """An integer tensor with zero points, (code - zero point) * scale, whatever the scales' signs.

    A tensor's scales have no sign. With M the largest code, (M - code) - (M - zero) is the negative
    of code - zero, so a group with a negative scale is reflected: its numbers stay what they were,
    only a weight of -0.0 becomes +0.0. `codes` may be changed.

    Raises:
        InputError: A scale is NaN or infinite.
    """
    check_scales(name, scales)
    negative, scales = signless(scales)
    if negative.any():
        top = (1 << bits) - 1
        zero_points = np.where(negative, top - zero_points, zero_points).astype(np.uint8)
        for row, group in np.argwhere(negative):
            codes[row, group * group_size : (group + 1) * group_size] ^= np.uint8(top)
    return QuantizedTensor(
        FORMATS[f"int{bits}-asym"], group_size, codes, "fp16", scales, zero_points=zero_points
    )


def exportable(
    tensor: object, names: tuple[str, ...], target: str, name: str = "tensor"
) -> QuantizedTensor:
    """The tensor, or InputError if it is not of one of these formats with FP16 scales.

    Args:
        tensor: What shall be written.
        names: Formats that the target can hold.
        target: What it is called in the message.
        name: What the tensor is called in the message.
    """
    if not isinstance(tensor, QuantizedTensor):
        raise InputError(
            f"{name} is a {type(tensor).__name__}, {target} takes a QuantizedTensor of format "
            f"{' or '.join(names)}"
        )
    if tensor.format != FORMATS.get(tensor.format.name) or tensor.format.name not in names:
        raise InputError(
            f"{name} is {tensor.format.name}, which {target} cannot hold; quantise to "
            f"{' or '.join(names)}"
        )
    if tensor.scale_format != "fp16":
        raise InputError(
            f"{name} has {tensor.scale_format} scales, {target} stores fp16 ones; quantise with "
            'scale_format "fp16"'
        )
    return tensor
