"""Papers rebuilt: tables and figures from our own runs, the published value beside each.

One module per paper, with a function `rebuild() -> Rebuilt`; `PAPERS` lists them.
"""

from collections.abc import Callable

from bitwright.sim import pick

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
    return pick(PAPERS, name, "paper")
