"""The tile shapes of the bit-plane GEMM, read from `tiles.cuh`, and the problems they solve."""

import re
from dataclasses import dataclass
from pathlib import Path

from bitwright.quant import InputError

from .planes import WORDS_ALIGNED, check_bits

GRID_LIMIT = 65535  #: blocks along a grid's y and z (CUDA programming guide, compute capabilities)


@dataclass(frozen=True, slots=True)
class Problem:
    """One product: activations [m, k] of x_bits by weights [n, k] of w_bits."""

    m: int
    n: int
    k: int
    x_bits: int  #: bit planes of the activations, 1 .. 8
    w_bits: int  #: bit planes of the weights, 1 .. 8
    group_size: int | None = None  #: elements of k per sum, a multiple of 128; None: all of k
    x_signed: bool = False  #: two's complement activations
    w_signed: bool = False  #: two's complement weights

    def __post_init__(self) -> None:
        for name in ("m", "n", "k"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} (={getattr(self, name)}) must be at least 1")
        check_bits("x_bits", self.x_bits)
        check_bits("w_bits", self.w_bits)
        if self.group_size is not None and (self.group_size < 1 or self.group_size % 128):
            raise InputError(
                f"group_size (={self.group_size}) must be a multiple of 128, the instruction's k; "
                "sum smaller groups with another kernel"
            )
        if self.groups > GRID_LIMIT:
            raise InputError(
                f"group_size (={self.group_size}) makes {self.groups} groups of k (={self.k}); a "
                f"grid has at most {GRID_LIMIT}, use larger groups"
            )

    @property
    def group_words(self) -> int:
        """32-bit words of k per group; without groups all of k, filled up to 128 bits."""
        size = self.group_size or self.k
        return -(-size // (32 * WORDS_ALIGNED)) * WORDS_ALIGNED

    @property
    def groups(self) -> int:
        """Sums per result; the last group is filled up with zeros."""
        return -(-self.k // (32 * self.group_words))

    @property
    def words(self) -> int:
        """32-bit words of a bit-plane row."""
        return self.groups * self.group_words

    @property
    def operations(self) -> int:
        """2 m n k, the operations that TOPS count."""
        return 2 * self.m * self.n * self.k

    @property
    def key(self) -> str:
        """The problem as one word, e.g. "m1-n4096-k4096-x8s-w2-g128"."""
        signs = ("s" if self.x_signed else "", "s" if self.w_signed else "")
        return (
            f"m{self.m}-n{self.n}-k{self.k}-x{self.x_bits}{signs[0]}-w{self.w_bits}{signs[1]}"
            f"-g{self.group_size or 'k'}"
        )


@dataclass(frozen=True, slots=True)
class Tile:
    """One instantiation of the GEMM; `tiles.cuh` explains the numbers."""

    index: int  #: place in the table, the kernel's argument
    mma: int  #: 8: m8n8k128, 16: m16n8k256
    rows: int  #: bit-plane rows of x per block
    cols: int  #: bit-plane rows of w per block
    depth: int  #: elements of k per step
    row_warps: int
    col_warps: int
    stages: int  #: of the copy pipeline

    @property
    def name(self) -> str:
        """E.g. "mma8-8x64x512-w1x4-s4"."""
        return (
            f"mma{self.mma}-{self.rows}x{self.cols}x{self.depth}"
            f"-w{self.row_warps}x{self.col_warps}-s{self.stages}"
        )

    def fits(self, problem: Problem) -> bool:
        """Whether CUDA allows the grid of blocks that a problem takes."""
        return -(-problem.m // (self.rows // problem.x_bits)) <= GRID_LIMIT

    def blocks(self, problem: Problem) -> int:
        """Thread blocks that a problem takes."""
        block_m, block_n = self.rows // problem.x_bits, self.cols // problem.w_bits
        return -(-problem.m // block_m) * -(-problem.n // block_n) * problem.groups

    def mma_bits(self, problem: Problem) -> int:
        """Single-bit products computed for a problem, those of padding included."""
        depth = -(-problem.group_words * 32 // self.depth) * self.depth
        return self.blocks(problem) * self.rows * self.cols * depth


def _read_table() -> tuple[Tile, ...]:
    text = (Path(__file__).parent / "tiles.cuh").read_text(encoding="utf-8")
    rows = re.findall(r"TILE\((\d+(?:, \d+){6})\)", text)
    return tuple(Tile(i, *map(int, row.split(", "))) for i, row in enumerate(rows))


#: All tiles, in the order of the library's table.
TILES = _read_table()


def default_tile(problem: Problem) -> Tile:
    """A tile to begin with, until `search_tile` has measured: the least padding, then 64 columns.

    Raises:
        InputError: No tile's grid has room for m.

    >>> default_tile(Problem(1, 4096, 4096, 8, 2)).name
    'mma8-8x64x512-w1x4-s4'
    """
    fitting = [t for t in TILES if t.fits(problem)]
    if not fitting:
        raise InputError(f"m (={problem.m}) has more rows than a grid of any tile; split it")
    return min(fitting, key=lambda t: (t.mma_bits(problem), abs(t.cols - 64), -t.depth, -t.rows))
