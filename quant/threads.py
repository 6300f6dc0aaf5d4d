"""Work spread over threads: rows of a matrix, or jobs that each keep to one thread.

Float32 sums depend in their last bits on how many threads torch shares them between, so that
number stays what the user chose (`OMP_NUM_THREADS`, `torch.set_num_threads`) for a whole run.
"""

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


def start_numba_pool() -> None:
    """Start numba's threads now, and leave torch its number of threads.

    Both use OpenMP, and numba sets the number for the calling thread when it starts: at its first
    parallel function, that is somewhere inside a run, whose sums would be shared otherwise behind
    it. Once it has started this changes nothing.
    """
    import numba
    import torch

    width = torch.get_num_threads()
    numba.get_num_threads()
    if torch.get_num_threads() != width:
        torch.set_num_threads(width)


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """So many threads for torch inside, and as many as before behind it."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


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
