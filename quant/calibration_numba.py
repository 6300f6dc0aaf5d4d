"""Jitted statistics of calibration inputs; plain arrays only."""

import numpy as np
from numba import njit, prange

#: Channels that one thread goes through all tokens with: their sums stay in its cache, and rows are
#: read in long runs.
_CHANNELS = 288


@njit(cache=True, parallel=True)
def add_ranges(x, low, high, magnitudes):  # type: ignore[no-untyped-def]
    """Take tokens into each channel's range and sum of magnitudes, in the order of the tokens.

    Args:
        x: float32 [tokens, k].
        low: float32 [k], updated. NaN is seen in `magnitudes` alone.
        high: float32 [k], updated.
        magnitudes: float64 [k], updated.
    """
    for block in prange((x.shape[1] + _CHANNELS - 1) // _CHANNELS):
        first = block * _CHANNELS
        last = min(first + _CHANNELS, x.shape[1])
        smallest, largest = low[first:last].copy(), high[first:last].copy()
        total = np.zeros(last - first, np.float64)
        for token in range(x.shape[0]):
            row = x[token, first:last]
            for j in range(last - first):
                smallest[j] = min(smallest[j], row[j])
                largest[j] = max(largest[j], row[j])
                total[j] += abs(np.float64(row[j]))
        low[first:last] = smallest
        high[first:last] = largest
        for j in range(last - first):
            magnitudes[first + j] += total[j]
