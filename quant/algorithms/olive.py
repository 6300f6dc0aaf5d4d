"""OliVe: 4-bit integers, and outliers that take the place of their neighbours.

After OliVe (Guo et al., ISCA 2023, arXiv 2304.07493) and the authors' code (clevercool/
ANT-Quantization, olive_quantization, quant_modules.py). `olive_reference` is the definition, one
group at a time; `olive` is its jitted twin. For a group of weights w:

1. In float64: T = |mean| + 3 * std, the larger end of mean +- 3 std; std has the divisor size - 1
   and is 0 for one weight; sums by folding (`fold`).
2. For i = 24, 25, .. 48: the largest normal value is alpha = T * i / 32, so delta = T * i / 224,
   rounded to float32. A delta of 0 is left out.
3. x = w / delta in float32. The weight is an *outlier* if |x| > 9.5, halfway between the largest
   normal value 7 and the smallest abfloat 12. Columns 2j and 2j+1 are a pair. Of two outliers the
   one with the smaller |w| becomes the victim, the second if both are alike; the victim of a single
   outlier is the other one. The last column of an odd number has no partner and is never an
   outlier.
4. Outlier: the abfloat nearest to |x| (12 16 24 32 48 64 96, the last one beyond), ties to the
   smaller one, with the sign of x. Victim: code 8, value 0. All others: x rounded half to even,
   clipped to +-7.
5. In float64: squares (w - value * delta)**2, summed by folding. The smallest sum wins; in a tie
   the smaller delta.

If no delta is left, delta and all codes are 0.

Where this differs from the authors' code: groups instead of rows or tensors; steps of 1/32 instead
of 0.02, which are exact and contain 1; ties (theirs go to the more positive value, and from normal
to outlier); of two outliers theirs keeps the first, whatever its size.
"""

import numpy as np
from jaxtyping import Float32

from bitwright.quant import spread_rows

from .rtn import Rounded, empty, fold

#: Candidates for the largest normal value, in 32nds of the threshold T.
FIRST_STEP, LAST_STEP = 24, 48
#: Abfloat magnitudes of codes 1 .. 7, see `olive_pair_values`.
ABFLOAT = np.array([12, 16, 24, 32, 48, 64, 96], np.float32)
_MIDS = (ABFLOAT[1:] + ABFLOAT[:-1]) / np.float32(2)
#: Halfway between the largest normal value and the smallest outlier.
_BOUNDARY = np.float32(9.5)


def olive_reference(w: Float32[np.ndarray, "n k"], group_size: int) -> Rounded:
    """Round `w` as this module defines it; slow and plain.

    Args:
        w: Finite weights.
        group_size: Columns per group, even or k; the last group of a row may be shorter.

    >>> w = np.array([[1.0, -1.0, 0.5, 40.0, -0.5, 1.0, 1.0, -1.0] + [0.5, -0.5] * 60], np.float32)
    >>> olive_reference(w, 128).codes[0, :8]  # the neighbour of 40 is its victim
    array([ 1, 15,  8,  4,  0,  1,  1, 15], dtype=uint8)
    """
    n, k = w.shape
    groups = -(-k // group_size)
    result = empty(n, k, groups)
    for row in range(n):
        for group in range(groups):
            columns = slice(group * group_size, min((group + 1) * group_size, k))
            codes, delta = _group(w[row, columns])
            result.codes[row, columns] = codes
            result.deltas[row, group] = delta
    return result


def threshold(w: np.ndarray) -> float:
    """T of a group: the larger end of mean +- 3 standard deviations."""
    wide = w.astype(np.float64)
    mean = fold(wide) / len(w)
    deviation = wide - mean
    variance = fold(deviation * deviation) / max(1, len(w) - 1)
    return float(np.abs(mean) + 3.0 * np.sqrt(variance))


def _group(w: np.ndarray) -> tuple[np.ndarray, np.float32]:
    spread_of_w = threshold(w)
    best = np.zeros(len(w), np.uint8), np.float32(0)
    least = np.inf
    for step in range(FIRST_STEP, LAST_STEP + 1):
        delta = np.float32(spread_of_w * step / 224.0)
        if delta == 0:
            continue
        codes, values = _encode(w, delta)
        error = w.astype(np.float64) - values * np.float64(delta)
        total = fold(error * error)
        if total < least:
            least = total
            best = codes, delta
    return best


def _encode(w: np.ndarray, delta: np.float32) -> tuple[np.ndarray, np.ndarray]:
    """Codes and values of one group under one delta."""
    codes = np.empty(len(w), np.uint8)
    values = np.empty(len(w))
    for i, weight in enumerate(w):
        x = weight / delta
        partner = i ^ 1
        paired = partner < len(w)
        outlier = paired and abs(x) > _BOUNDARY
        outlier_beside = paired and abs(w[partner] / delta) > _BOUNDARY
        larger = not paired or (abs(weight), i % 2 == 0) > (abs(w[partner]), partner % 2 == 0)
        if outlier_beside and not (outlier and larger):
            codes[i], values[i] = 8, 0.0
        elif outlier:
            index = int(np.searchsorted(_MIDS, abs(x), side="left"))
            codes[i] = (8 if x < 0 else 0) + index + 1
            values[i] = ABFLOAT[index] if x > 0 else -ABFLOAT[index]
        else:
            values[i] = np.clip(np.rint(x), -7, 7)
            codes[i] = int(values[i]) & 15
    return codes, values


def olive(w: Float32[np.ndarray, "n k"], group_size: int) -> Rounded:
    """The jitted twin of `olive_reference`, with the rows of a large matrix spread over threads."""
    from .olive_numba import round_olive

    w = np.ascontiguousarray(w)
    n, k = w.shape
    result = empty(n, k, -(-k // group_size))
    steps = (FIRST_STEP, LAST_STEP)

    def work(first: int, last: int) -> None:
        round_olive(w, first, last, group_size, *steps, ABFLOAT, _MIDS, *result[:2])

    spread_rows(work, n, k)
    return result
