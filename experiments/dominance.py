"""Points that no other beats."""

import numpy as np


def nondominated(points: np.ndarray) -> np.ndarray:
    """Numbers of the points [points, objectives] that no other beats, ascending.

    All objectives are to be small; of equal points the first stays.

    >>> nondominated(np.array([[1, 4], [2, 2], [3, 3], [4, 1], [2, 2]])).tolist()
    [0, 1, 3]
    """
    kept: list[int] = []
    order = np.lexsort((np.arange(len(points)), *points.T[::-1]))
    for number in order:  # whoever beats a point stands before it
        rivals = points[kept]
        if not (rivals <= points[number]).all(axis=1).any():
            kept.append(int(number))
    return np.array(sorted(kept), np.int64)
