"""From a matrix product to jobs: in which order tiles are computed, and what stays in a buffer."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from bitwright.quant import InputError

from .model import ArrayConfig, Job

#: "activations": a block of row tiles stays while the weights stream past it; "weights": the other
#: way round; "stream": nothing stays, both operands are fetched again for every output tile.
Order = Literal["activations", "weights", "stream"]
ORDERS: tuple[Order, ...] = ("activations", "weights", "stream")


@dataclass(frozen=True, slots=True)
class JobPlan:
    """Jobs of a product, and what its ports carry meanwhile."""

    jobs: tuple[Job, ...]
    tiles: tuple[tuple[int, int], ...]  #: (row tile, column tile) in the order of the results
    x_tiles: tuple[int, ...]  #: row tiles whose words the port `x` carries, one after the other
    w_tiles: tuple[int, ...]  #: column tiles whose words the port `w` carries


@dataclass(frozen=True, slots=True)
class TileShape:
    """What an output tile needs: the fields that all jobs of a product share."""

    groups: int
    steps: int
    last_steps: int
    x_words: int = 1
    w_words: int = 1
    terms: int = 1

    @property
    def all_steps(self) -> int:
        return (self.groups - 1) * self.steps + self.last_steps


def plan_jobs(
    config: ArrayConfig, m_tiles: int, n_tiles: int, shape: TileShape, order: Order
) -> JobPlan:
    """Jobs for a product of `m_tiles` x `n_tiles` output tiles.

    The block that stays is the largest that fits its buffer twice, else the largest that fits once.

    Args:
        config: The engine.
        m_tiles: Row tiles: tokens over rows, rounded up.
        n_tiles: Column tiles: output channels over columns, rounded up.
        shape: Of a tile.
        order: What stays.

    Raises:
        InputError: Unknown order, a tile that does not fit where it has to stay, or counts beyond
            the job fields.
    """
    if order not in ORDERS:
        raise InputError(f"order is {order!r}; one of {', '.join(ORDERS)}")
    for name, value in (("m_tiles", m_tiles), ("n_tiles", n_tiles)):
        if value < 1:
            raise InputError(f"{name} is {value}; at least 1")
    if order == "stream":
        pairs = tuple((i, j) for i in range(m_tiles) for j in range(n_tiles))
        job = _job(shape, len(pairs), shape.x_words, 1, shape.w_words, 1)
        return JobPlan((job,), pairs, tuple(i for i, _ in pairs), tuple(j for _, j in pairs))
    x_tile, w_tile = shape.all_steps * shape.x_words, shape.all_steps * shape.w_words
    if order == "activations":
        kept, streamed, size = m_tiles, n_tiles, _block(x_tile, config.x_depth, m_tiles, "x")
        _block(w_tile, config.w_depth, 1, "w")
    else:
        kept, streamed, size = n_tiles, m_tiles, _block(w_tile, config.w_depth, n_tiles, "w")
        _block(x_tile, config.x_depth, 1, "x")
    jobs, pairs_list, passing = [], [], []
    for first, blocks, block in _blocks(kept, size):
        tiles = blocks * block * streamed
        if order == "activations":
            jobs.append(_job(shape, tiles, block * x_tile, streamed, w_tile, block))
        else:
            jobs.append(_job(shape, tiles, x_tile, block, block * w_tile, streamed))
        for start in range(first, first + blocks * block, block):
            for other in range(streamed):
                passing.append(other)
                pairs_list += [(own, other) for own in range(start, start + block)]
    staying = tuple(range(kept))
    if order == "activations":
        return JobPlan(tuple(jobs), tuple(pairs_list), staying, tuple(passing))
    swapped = tuple((i, j) for j, i in pairs_list)
    return JobPlan(tuple(jobs), swapped, tuple(passing), staying)


def _block(words: int, depth: int, tiles: int, operand: str) -> int:
    """Tiles that stay in a buffer together."""
    if words > depth:
        raise InputError(
            f"{operand}_depth is {depth} words; one tile takes {words}, so make the buffer larger "
            "or stream (order='stream')"
        )
    return min(tiles, max(depth // 2 // words, 1))


def _blocks(tiles: int, size: int) -> Iterator[tuple[int, int, int]]:
    """First tile, number of blocks and tiles of each: the whole blocks, then the rest."""
    whole, rest = divmod(tiles, size)
    if whole:
        yield 0, whole, size
    if rest:
        yield whole * size, 1, rest


def _job(
    shape: TileShape, tiles: int, x_window: int, x_uses: int, w_window: int, w_uses: int
) -> Job:
    return Job(
        tiles=tiles,
        groups=shape.groups,
        steps=shape.steps,
        last_steps=shape.last_steps,
        x_window=x_window,
        x_uses=x_uses,
        w_window=w_window,
        w_uses=w_uses,
        x_words=shape.x_words,
        w_words=shape.w_words,
        terms=shape.terms,
    )
