"""Writing files whole or not at all, and where cached files live."""

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from platformdirs import user_cache_path

from .errors import InputError

#: Called by long work as progress(done, total, what).
Progress = Callable[[int, int, str], None]


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """A temporary name beside `path`, renamed to it when the block ends well, else removed.

    Raises:
        InputError: The folder does not exist or cannot be written.
    """
    path = Path(path)
    try:
        handle, name = tempfile.mkstemp(
            prefix=f".{path.name}.", suffix=path.suffix, dir=path.parent
        )
    except OSError as error:
        raise InputError(
            f"cannot write {path}: {error.strerror}; choose a folder that exists and can be written"
        ) from None
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp makes files private; results are as readable as the umask allows.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | Path, text: str) -> None:
    """Write `text` as UTF-8, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def output_folder(path: str | Path) -> Path:
    """Make the folder if it is missing and check that it can be written.

    Raises:
        InputError: It cannot be made or written, or a file has that name.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InputError(
            f"output folder {folder} cannot be written: {error.strerror}; choose another with --out"
        ) from None
    return folder


def cache_folder(*parts: str) -> Path:
    """A folder for files that can be made again, e.g. `cache_folder("synthesis")`.

    It lies under $BITWRIGHT_CACHE if that is set, else under the user's cache folder.
    """
    base = os.environ.get("BITWRIGHT_CACHE")
    root = Path(base) if base else user_cache_path("bitwright")
    return output_folder(root.joinpath(*parts))
