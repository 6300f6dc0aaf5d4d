"""Papers rebuilt: tables and figures from our own runs, the published value beside each.

One module per paper with its `PAPER`: parts, one per table or figure, that are rebuilt alone or
together. `PAPERS` lists them. Published numbers lie in data/, each with its source.
"""

from bitwright.sim import pick

from .abq import PAPER as ABQ
from .bitmod import PAPER as BITMOD
from .dint import PAPER as DINT
from .rebuilt import Paper, Part, Rebuilt, ShownTable, write_paper
from .setting import PaperSetting

__all__ = [
    "PAPERS",
    "Paper",
    "Part",
    "Rebuilt",
    "PaperSetting",
    "ShownTable",
    "find_paper",
    "write_paper",
]

#: What `bitwright paper NAME` runs, by name.
PAPERS: dict[str, Paper] = {paper.name: paper for paper in (BITMOD, DINT, ABQ)}


def find_paper(name: str) -> Paper:
    """The paper of that name.

    Raises:
        InputError: Unknown name; the nearest and all known ones are told.
    """
    return pick(PAPERS, name, "paper")
