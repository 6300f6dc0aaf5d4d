"""Papers rebuilt: tables and figures from our own runs, the published value beside each.

One module per paper, with a function `rebuild() -> Rebuilt`; `PAPERS` lists them.
"""

from collections.abc import Callable
from difflib import get_close_matches

from bitwright.quant import InputError

from .bitmod import rebuild as rebuild_bitmod
from .rebuilt import Rebuilt, ShownTable, write_paper

__all__ = ["PAPERS", "Rebuilt", "ShownTable", "find_paper", "write_paper"]

#: What `bitwright paper NAME` runs, by name.
PAPERS: dict[str, Callable[[], Rebuilt]] = {"bitmod": rebuild_bitmod}


def find_paper(name: str) -> Callable[[], Rebuilt]:
    """What rebuilds the paper of that name.

    Raises:
        InputError: Unknown name; the nearest and all known ones are told.
    """
    if name not in PAPERS:
        near = get_close_matches(name.lower(), PAPERS, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]}? Known" if near else "known"
        raise InputError(f"unknown paper {name!r}; {hint}: {', '.join(PAPERS)}")
    return PAPERS[name]
