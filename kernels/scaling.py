"""From exact group sums to y: the float32 arithmetic outside a PE.

y = fl32(y + fl32(fl32(I) * fl32(fl32(sx * sw) * unit))) for each group in turn, with the integer I
of a group (docs/numerics.md, "Outside the PE").
"""

import numpy as np
from numba import njit, prange


@njit(cache=True, parallel=True)
def _scaled(sums, sx, sw, unit, y):  # type: ignore[no-untyped-def]
    for row in prange(y.shape[0]):
        for group in range(sums.shape[0]):
            for column in range(y.shape[1]):
                scale = sx[row, group] * sw[column, group] * unit
                y[row, column] += np.float32(sums[group, row, column]) * scale


def scaled(sums: np.ndarray, sx: np.ndarray, sw: np.ndarray, unit: float) -> np.ndarray:
    """y float32 [m, n].

    Args:
        sums: Exact integers of any type, [groups, m, n].
        sx: Scales of activations, float32 [m, groups].
        sw: Scales of weights, float32 [n, groups].
        unit: Of the sums; a power of two.
    """
    y = np.zeros(sums.shape[1:], np.float32)
    _scaled(sums, sx, sw, np.float32(unit), y)
    return y


def corrected(
    sums: np.ndarray,
    x_bias: np.ndarray,
    x_sums: np.ndarray,
    w_bias: np.ndarray,
    w_sums: np.ndarray,
    lengths: np.ndarray,
) -> np.ndarray:
    """Sums of (s - z)(u - b) from sums of s u: sum s u - b sum s - z (sum u - K b).

    Args:
        sums: int32 or int64 [groups, m, n].
        x_bias: z, int32 [m, groups].
        x_sums: Sums of s, int32 [m, groups].
        w_bias: b, int32 [n, groups].
        w_sums: Sums of u, int32 [n, groups].
        lengths: K of each group, int32 [groups].
    """
    left = w_sums - lengths * w_bias
    return (
        sums
        - (x_sums.T[:, :, None] * w_bias.T[:, None, :]).astype(sums.dtype)
        - (x_bias.T[:, :, None] * left.T[:, None, :]).astype(sums.dtype)
    )
