"""The definition of every method, in plain numpy: slow, short, and shared with no kernel."""

import numpy as np

from bitwright.quant import QuantizedTensor


def reference_sums(x: QuantizedTensor, w: QuantizedTensor) -> tuple[np.ndarray, float]:
    """Exact dot products of each group, int64 [groups, m, n], and what one unit is worth."""
    unit = _unit(w.values())
    left = x.values().astype(np.int64)
    right = (w.values().astype(np.float64) / unit).astype(np.int64)
    size = w.group_size
    parts = [left[:, a : a + size] @ right[:, a : a + size].T for a in range(0, w.k, size)]
    return np.stack(parts), unit


def _unit(values: np.ndarray) -> float:
    unit = 1.0
    while (values / unit % 1).any():
        unit /= 2
    return unit


def reference_integer(x: QuantizedTensor, w: QuantizedTensor) -> np.ndarray:
    """y float32 [m, n] of the methods integer, planes and lookup."""
    sums, unit = reference_sums(x, w)
    y = np.zeros(sums.shape[1:], np.float32)
    for group, total in enumerate(sums):
        sx = x.scales()[:, min(group, x.groups - 1)]
        scale = np.outer(sx, w.scales()[:, group]) * np.float32(unit)
        y = y + total.astype(np.float32) * scale
    return y


def reference_float(x: np.ndarray, w: QuantizedTensor) -> np.ndarray:
    """x @ w.T in float64 [m, n], from which the method float errs by at most `float_bound`."""
    return np.asarray(x, np.float64) @ w.dequantize().astype(np.float64).T


def reference_limbs(x: np.ndarray, group_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Activations in fixed point, as `cpu/fixed_point.py` says.

    Args:
        x: float32 [m, k], finite.
        group_size: Columns of a group.

    Returns:
        Limbs int64 [3, m, k], the lowest first, -128 .. 127; and the step of each group, float64
        [m, groups], a power of two: the least of which the group's largest number has at most 127 *
        (65536 + 256 + 1), and 2**-120 at least.
    """
    m, k = x.shape
    starts = np.arange(0, k, group_size)
    largest = np.maximum.reduceat(np.abs(x.astype(np.float64)), starts, axis=1)
    exponents = np.maximum(np.frexp(np.where(largest > 0, largest, 1e-300))[1] - 23, -120)
    exponents += largest > 127 * 65793 * np.ldexp(1.0, exponents)
    steps = np.ldexp(1.0, exponents)
    q = np.rint(x / np.repeat(steps, group_size, axis=1)[:, :k]).astype(np.int64)
    limbs = np.empty((3, m, k), np.int64)
    for place in range(2):
        limbs[place] = (q + 128) % 256 - 128
        q = (q - limbs[place]) // 256
    limbs[2] = q
    return limbs, steps


def reference_fixed(x: np.ndarray, w: QuantizedTensor) -> np.ndarray:
    """y float32 [m, n] of `cpu/fixed_point.py`, for groups whose sums float32 holds."""
    unit = _unit(w.values())
    right = (w.values().astype(np.float64) / unit).astype(np.int64)
    size = min(w.group_size, w.k)
    limbs, steps = reference_limbs(x, size)
    y = np.zeros((len(x), w.n), np.float32)
    for group, start in enumerate(range(0, w.k, size)):
        part = slice(start, start + size)
        low, middle, high = (limb[:, part] @ right[:, part].T for limb in limbs)
        total = (high * 256 + middle).astype(np.float32).astype(np.float64)
        total = (total * 256 + low).astype(np.float32)  # exact before it is rounded
        step = (steps[:, group] * unit).astype(np.float32)
        y = y + total * np.outer(step, w.scales()[:, group])
    return y


def float_bound(x: np.ndarray, w: np.ndarray, group_size: int | None = None) -> np.ndarray:
    """How far the method float may lie from x @ w.T in any order of its sums: float64 [m, n].

    Let u = 2**-24, G the number of groups and K the columns of the longest. A term x v s is
    rounded at most K + G + 1 times: v s once where weights are dequantised first, or the group's
    sum times s once where they are not; the product x v once (not at all in a fused
    multiply-add); K - 1 times in the sum of the group, in any order; G - 1 times in the sum over
    groups; and once more because w is v s rounded to float32. K <= k, and two further roundings
    are allowed, so

        |y - x @ w.T| <= 1.01 (k + G + 3) u sum_k |x w|

    while 1.01 covers higher orders as long as (k + G + 3) u stays below 0.01 (Higham, Accuracy and
    Stability of Numerical Algorithms, section 3.1).

    Below 2**-126 a loss is not relative, and some libraries count such numbers as 0. Then each
    product and each sum loses at most 2**-126 (k + G in all), an activation 2**-126 |w|, and a
    weight or a scale 2**-126 |x v| with |v| below 2**16. Where the scale comes last, a product x v
    loses at most 2**-150 s, less than 2**-126 |w| since v is at least 2**-16 or 0.

    Args:
        x: Activations [m, k].
        w: `dequantize()` of the weights [n, k].
        group_size: Columns of a group; None: k.
    """
    left, right = np.abs(x.astype(np.float64)), np.abs(w.astype(np.float64))
    k = w.shape[1]
    count = k + -(-k // min(group_size or k, k))
    lost = 2.0**-126 * (count + right.sum(1)) + 2.0**-110 * left.sum(1)[:, None]
    return 1.01 * (count + 3) * 2.0**-24 * (left @ right.T) + lost
