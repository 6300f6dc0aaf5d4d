"""Rows of a matrix spread over threads."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

#: Rows go to threads of at least this many weights each.
_WEIGHTS_PER_THREAD = 1 << 18


def spread_rows(work: Callable[[int, int], None], n: int, k: int) -> None:
    """work(first, last) over all rows; the jitted loops release the interpreter lock.

    Args:
        work: Does rows first to last - 1.
        n: Rows.
        k: Weights of a row, or what their work is worth in weights of round-to-nearest.
    """
    from numba import get_num_threads

    threads = max(1, min(get_num_threads(), n, n * k // _WEIGHTS_PER_THREAD))
    if threads == 1:
        return work(0, n)
    bounds = [n * part // threads for part in range(threads + 1)]
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(work, bounds[:-1], bounds[1:]))
