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
