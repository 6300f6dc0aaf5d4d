"""The schedule of `mapping`, phase by phase, in plain Python: slow, and the definition.

Nothing is counted in bulk here. Which tiles a masked product needs is found token by token, every
phase is an entry of a list with its loads and results, and a clock runs through the list while the
contents of both buffers are kept track of. `mapping` gives the same integers in closed form, for
every mapping it can try: its assumption is the swap that all buffers make together, and both have
it. What that assumption can cost is bounded by `bounds`: any schedule with these loads takes at
least `low`, and one without any overlap takes `high`.
"""

from dataclasses import dataclass, field

from .layer_cost import SCORES, SHARE, VALUES, Array, Product

_Tile = tuple[str, int, int]  # operand, number, columns of k


@dataclass(frozen=True, slots=True)
class Phase:
    """A streamed tile against a kept block."""

    block: int
    tile: _Tile
    tile_bits: int
    compute: int  #: cycles
    results: tuple[int, ...]  #: elements of each output tile, in order


@dataclass(slots=True)
class Stepped:
    """What a run through the phases gave."""

    compute: int = 0  #: cycles in which the array works, fill and drain left out
    dram: int = 0  #: cycles in which it waits for DRAM, the latency left out
    x_moved: int = 0  #: bits
    w_moved: int = 0
    y_moved: int = 0
    longest_transfers: int = 0  #: cycles of all transfers, each rounded up on its own
    first_load: int = 0  #: bits before the first phase
    phases: list[Phase] = field(default_factory=list)

    def load(self, operand: str, bits: int) -> None:
        """Count a load."""
        if operand == "x":
            self.x_moved += bits
        else:
            self.w_moved += bits


def row_bits(product: Product, operand: str, k: int) -> int:
    """Bits of one token of x or one channel of w with k columns."""
    code, group, per_group, per_row = (
        (product.x_bits, product.x_group, product.x_per_group, product.x_per_row)
        if operand == "x"
        else (product.w_bits, product.w_group, product.w_per_group, product.w_per_row)
    )
    return k * code + -(-k // group) * per_group + per_row


def transfer(array: Array, bits: int) -> int:
    """Cycles in which DRAM moves so many bits."""
    return -(-bits * array.rate_cycles // array.rate_bits)


def groups_of(product: Product, k: int) -> list[int]:
    """Lengths of the groups of k columns."""
    return [min(product.group, k - start) for start in range(0, k, min(product.group, k))]


def tile_cycles(product: Product, array: Array, k: int, first: bool = False) -> int:
    """Cycles of one output tile; the first group of a product does not wait."""
    cycles = 0
    for number, length in enumerate(groups_of(product, k)):
        steps = -(-length // array.lanes)
        own = -(-steps * product.pe_step * product.share // SHARE)
        steps = max(own, steps * product.port_step)
        cycles += steps if first and number == 0 else max(steps, array.spacing)
    return cycles


class _Tiles:
    """A product cut into tiles of `high` tokens x `wide` channels."""

    def __init__(self, product: Product, high: int, wide: int) -> None:
        self.product = product
        self.tokens = [
            range(start, min(start + high, product.m)) for start in range(0, product.m, high)
        ]
        self.channels = [
            range(start, min(start + wide, product.n)) for start in range(0, product.n, wide)
        ]

    def k(self, i: int) -> int:
        """Inputs that some token of row i of tiles sees."""
        p = self.product
        if p.mask == VALUES:
            return max(min(token // p.per_position + 1, p.k) for token in self.tokens[i])
        return p.k

    def needed(self, i: int, j: int) -> bool:
        """Whether tile j of row i of tiles holds an output that is needed."""
        p = self.product
        if p.mask == SCORES:
            return any(token // p.per_position >= self.channels[j][0] for token in self.tokens[i])
        return True

    def x_bits(self, i: int) -> int:
        return len(self.tokens[i]) * row_bits(self.product, "x", self.k(i))

    def w_bits(self, j: int, k: int) -> int:
        return len(self.channels[j]) * row_bits(self.product, "w", k)

    def outputs(self, i: int, j: int) -> int:
        return len(self.tokens[i]) * len(self.channels[j])


def step_through(
    product: Product, array: Array, order: str, block: int, high: int, wide: int
) -> Stepped:
    """Run one repetition of a product under a mapping.

    Args:
        product: The product.
        array: The hardware.
        order: "keep x", "keep w" or "stream".
        block: Tiles kept.
        high: Tokens of a tile.
        wide: Channels of a tile.
    """
    tiles = _Tiles(product, high, wide)
    if order == "stream":
        return _stream(tiles, array)
    kept = "x" if order == "keep x" else "w"
    found = Stepped()
    count = len(tiles.tokens) if kept == "x" else len(tiles.channels)
    blocks = [range(start, min(start + block, count)) for start in range(0, count, block)]
    block_bits = []
    for number, members in enumerate(blocks):
        if kept == "x":
            k = max(tiles.k(i) for i in members)
            block_bits.append(sum(tiles.x_bits(i) for i in members))
            for j in range(len(tiles.channels)):
                used = [i for i in members if tiles.needed(i, j)]
                if used:
                    cycles = sum(
                        tile_cycles(product, array, tiles.k(i), not found.phases and i == used[0])
                        for i in used
                    )
                    tile = ("w", j, k)
                    results = tuple(tiles.outputs(i, j) for i in used)
                    found.phases.append(Phase(number, tile, tiles.w_bits(j, k), cycles, results))
        else:
            block_bits.append(sum(tiles.w_bits(j, product.k) for j in members))
            for i in range(len(tiles.tokens)):
                used = [j for j in members if tiles.needed(i, j)]
                if used:
                    k = tiles.k(i)
                    cycles = sum(
                        tile_cycles(product, array, k, not found.phases and j == used[0])
                        for j in used
                    )
                    results = tuple(tiles.outputs(i, j) for j in used)
                    found.phases.append(
                        Phase(number, ("x", i, k), tiles.x_bits(i), cycles, results)
                    )
    _run(product, array, found, kept, block_bits)
    return found


def _run(product: Product, array: Array, found: Stepped, kept: str, block_bits: list[int]) -> None:
    """The clock through the phases; all buffers swap together."""
    streamed = "w" if kept == "x" else "x"
    x_room = array.x_capacity - _result_room(product, array)
    room = {"x": x_room, "w": array.w_capacity}
    first = found.phases[0]
    tensor = product.x_per_tensor + product.w_per_tensor
    found.first_load = tensor + block_bits[0] + first.tile_bits
    found.load(kept, block_bits[0])
    found.load(streamed, first.tile_bits)
    found.load("x", product.x_per_tensor)
    found.load("w", product.w_per_tensor)
    found.dram += transfer(array, found.first_load)
    idle = 0
    for number, phase in enumerate(found.phases):
        after = found.phases[number + 1] if number + 1 < len(found.phases) else None
        assert block_bits[phase.block] <= room[kept]
        assert phase.tile_bits <= room[streamed]
        coming = 0
        if after is not None and after.tile[:2] != phase.tile[:2]:
            coming = after.tile_bits
        elif after is not None:  # the same tile, of which more columns may be needed
            coming = after.tile_bits - phase.tile_bits
        fits = min(coming, room[streamed] - phase.tile_bits)
        late = 0 if after is not None else phase.results[-1]
        results = _result_bits(product, sum(phase.results) - late)
        moving = transfer(array, fits + results)
        found.compute += phase.compute
        found.dram += max(moving - phase.compute, 0) + transfer(array, coming - fits)
        idle += max(phase.compute - moving, 0)
        found.load(streamed, coming)
        found.y_moved += results
        found.longest_transfers += moving + transfer(array, coming - fits)
        if after is not None and after.block != phase.block:
            size = block_bits[after.block]
            space = room[kept] - block_bits[phase.block]
            early = transfer(array, size)
            if size > space:
                early = space * array.rate_cycles // array.rate_bits
            found.dram += transfer(array, size) - min(idle, early)
            found.longest_transfers += transfer(array, size)
            found.load(kept, size)
            idle = 0
    _last_results(product, array, found, found.phases[-1].results[-1])


def _stream(tiles: _Tiles, array: Array) -> Stepped:
    product, found = tiles.product, Stepped()
    needed = [
        (i, j)
        for i in range(len(tiles.tokens))
        for j in range(len(tiles.channels))
        if tiles.needed(i, j)
    ]
    step = min(array.lanes, tiles.k(0))
    lead = len(tiles.tokens[0]) * row_bits(product, "x", step)
    lead += len(tiles.channels[0]) * row_bits(product, "w", step)
    found.first_load = lead + product.x_per_tensor + product.w_per_tensor
    found.load("x", product.x_per_tensor)
    found.load("w", product.w_per_tensor)
    found.dram += transfer(array, found.first_load)
    for number, (i, j) in enumerate(needed):
        k = tiles.k(i)
        x_bits, w_bits = tiles.x_bits(i), tiles.w_bits(j, k)
        found.load("x", x_bits)
        found.load("w", w_bits)
        late = number + 1 == len(needed)
        results = 0 if late else _result_bits(product, tiles.outputs(i, j))
        compute = tile_cycles(product, array, k, number == 0)
        moving = transfer(array, x_bits + w_bits - (0 if number else lead) + results)
        found.compute += compute
        found.dram += max(moving - compute, 0)
        found.y_moved += results
        found.longest_transfers += moving
        found.phases.append(Phase(number, ("x", i, k), x_bits + w_bits, compute, ()))
    _last_results(product, array, found, tiles.outputs(*needed[-1]))
    return found


def _last_results(product: Product, array: Array, found: Stepped, elements: int) -> None:
    bits = _result_bits(product, elements)
    found.dram += transfer(array, bits)
    found.y_moved += bits
    found.longest_transfers += transfer(array, found.first_load) + transfer(array, bits)


def _result_bits(product: Product, elements: int) -> int:
    return -(-elements * product.y_bits // product.y_elements)


def _result_room(product: Product, array: Array) -> int:
    """Bits that two tiles of results take in the activation buffer."""
    return 2 * _result_bits(product, min(array.rows, product.m) * min(array.cols, product.n))


def bounds(product: Product, array: Array, found: Stepped) -> tuple[int, int]:
    """Cycles, fill, drain and latency left out, that no schedule with these loads undercuts, and
    that the schedule without any overlap takes."""
    moved = found.x_moved + found.w_moved + found.y_moved
    low = max(transfer(array, moved), transfer(array, found.first_load) + found.compute)
    return low, found.compute + found.longest_transfers
