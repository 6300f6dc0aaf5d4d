"""Jitted loops of `learning.py`: clipping by group, and the gradient of rounding."""

import numpy as np
from numba import njit, prange


@njit(cache=True, parallel=True)
def clip_groups(w, low, high, size, out):  # type: ignore[no-untyped-def]
    """out = w [n, k] clipped to [low, high] [n, groups] of its group."""
    n, k = w.shape
    for row in prange(n):
        for column in range(k):
            group = column // size
            out[row, column] = min(max(w[row, column], low[row, group]), high[row, group])


@njit(cache=True, parallel=True)
def rounding_gradient(g, w, values, low, high, delta, size, to_w, to_low, to_high, to_delta):  # type: ignore[no-untyped-def]
    """Gradients in the weights [n, k] and, summed in float64, in the bounds and scales [n, groups].

    A clipped weight passes its gradient to the bound, another one to itself; the scale gets
    (values - clipped) / delta of it.
    """
    n, k = w.shape
    groups = low.shape[1]
    for row in prange(n):
        for group in range(groups):
            below, above, spread = 0.0, 0.0, 0.0
            bottom, top, scale = low[row, group], high[row, group], delta[row, group]
            for column in range(group * size, min((group + 1) * size, k)):
                x, slope = w[row, column], g[row, column]
                to_w[row, column] = slope
                if x > top:
                    above += slope
                    to_w[row, column] = 0.0
                    x = top
                elif x < bottom:
                    below += slope
                    to_w[row, column] = 0.0
                    x = bottom
                if scale > 0:
                    spread += slope * ((values[row, column] - x) / scale)
            to_low[row, group] = np.float32(below)
            to_high[row, group] = np.float32(above)
            to_delta[row, group] = np.float32(spread)
