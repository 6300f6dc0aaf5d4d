"""Work spread over threads: rows of a matrix, or jobs that each keep to one thread."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

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


@contextmanager
def single_threads() -> Iterator[ThreadPoolExecutor]:
    """A pool as wide as torch's; what runs in it uses one thread each, in torch and numba too.

    For many products of middling size: two at a time on a thread each take less than one after the
    other on two threads, which wait for each other between the steps.
    """
    import torch

    width = torch.get_num_threads()
    with ThreadPoolExecutor(width, initializer=_keep_to_one) as pool:
        try:
            yield pool
        finally:
            torch.set_num_threads(width)  # what threads of later pools start with


def _keep_to_one() -> None:
    import numba
    import torch

    torch.set_num_threads(1)
    numba.set_num_threads(1)
