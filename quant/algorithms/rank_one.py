"""The best rank-1 approximation of a matrix without negative numbers, as two scale vectors.

Methods that keep the signs of a matrix and scales of its rows and columns start from it: the
rank-1 SVD of |W| is sigma u v^T, and the scales are sqrt(sigma) u and sqrt(sigma) v, which have
equal length and no negative numbers.
"""

import numpy as np
from jaxtyping import Float32

from bitwright.quant import InputError


def rank_one(
    a: Float32[np.ndarray, "n k"],
) -> tuple[Float32[np.ndarray, " n"], Float32[np.ndarray, " k"]]:
    """Scales of rows and columns whose outer product is nearest to `a` (Frobenius).

    They come from the largest eigenvector of the smaller Gram matrix, in float64; of the two signs
    that it can have the one without negative numbers is taken.

    >>> rows, columns = rank_one(np.array([[2.0, 4.0], [2.0, 4.0]], np.float32))
    >>> np.outer(rows, columns).round(5).tolist()
    [[2.0, 4.0], [2.0, 4.0]]
    """
    wide = a.shape[0] <= a.shape[1]
    b = (a if wide else a.T).astype(np.float64)
    u = np.abs(np.linalg.eigh(b @ b.T)[1][:, -1])
    v = b.T @ u  # sigma times the other vector
    sigma = np.linalg.norm(v)
    root = np.sqrt(sigma)
    scaled_v = v / root if sigma else np.zeros_like(v)
    short, long = (u * root).astype(np.float32), scaled_v.astype(np.float32)
    return (short, long) if wide else (long, short)


def to_half(scales: Float32[np.ndarray, "..."], what: str) -> np.ndarray:
    """Scales as FP16.

    Raises:
        InputError: One is too large for it.
    """
    with np.errstate(over="ignore"):
        half = scales.astype(np.float16)
    if not np.isfinite(half).all():
        largest = float(np.abs(scales).max())
        raise InputError(f"{what}: a scale of {largest:g} is beyond FP16's largest, 65504")
    return half
