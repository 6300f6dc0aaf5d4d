"""What becomes of freed arrays: kept for the next of their size, or given back to the system.

Given back, the next array is filled with zeros again, page by page: a tenth of the time of
calibrating a small model on two cores. Kept, they count as the process's memory. Left alone, glibc
does something between: each large array that is freed raises the size from which arrays are given
back, up to 32 MiB, and what is below stays in pieces. On other C libraries nothing changes.
"""

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

#: Parameters of mallopt(3), from malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
#: The largest threshold that glibc takes: larger arrays go back to the system as before.
_LARGEST = 32 << 20
#: From this size on arrays are given back, and so much of what is free may stay: glibc's defaults.
_USUAL = 128 << 10


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Within the block memory is not given back to the system; behind it what is free is."""
    library = ctypes.CDLL(None)
    if not (hasattr(library, "mallopt") and hasattr(library, "malloc_trim")):
        yield
        return
    library.mallopt(_MMAP_THRESHOLD, _LARGEST)
    library.mallopt(_TRIM_THRESHOLD, 2**31 - 1)
    try:
        yield
    finally:
        library.mallopt(_TRIM_THRESHOLD, _USUAL)
        library.malloc_trim(0)


def return_freed_memory() -> None:
    """From now on every freed array goes back to the system at once; what is free goes now.

    It stays so: glibc cannot be told to begin adjusting again.
    """
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt") and hasattr(library, "malloc_trim"):
        library.mallopt(_MMAP_THRESHOLD, _USUAL)
        library.mallopt(_TRIM_THRESHOLD, _USUAL)
        library.malloc_trim(0)
