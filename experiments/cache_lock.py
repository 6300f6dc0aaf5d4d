"""Locks on cache entries: what several processes want is made by one of them."""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bitwright.quant import cache_folder


@contextmanager
def entry_lock(path: Path) -> Iterator[None]:
    """Hold the lock that stands for a cache entry; it ends with the process at the latest.

    Args:
        path: The entry, a file or folder, there or not.
    """
    import fcntl

    name = hashlib.sha256(str(path.absolute()).encode()).hexdigest()[:32]
    handle = os.open(cache_folder("locks") / name, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError:  # a file system without locks: the work may be done twice, to one result
            pass
        yield
    finally:
        os.close(handle)
