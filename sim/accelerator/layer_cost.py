"""What one product asks of the array and of its buffers, in closed form, for all products at once.

A product y[m, n] = x[m, k] @ w[n, k].T is computed in output tiles of at most `rows` tokens x
`cols` output channels, one after the other. Cycles of a tile whose sum runs over k inputs:

    D_g   = ceil(length of group g / lanes) * step          a group of k that ends in every PE
    tile  = sum over the groups of max(D_g, spacing)

`step` is the PE's own step, or longer where a port hands its operands over more slowly (cause
"port"). Where zero terms are left out a PE needs only a share of its own steps' cycles, the same
share in every group (`terms` gives it for a layer; groups are rounded up). `spacing` is what the
scale unit and the column accumulator need for a group while the next one computes; a shorter group
waits (cause "scale"), except the very first of a product. Pipeline and skew ("fill") and the
results behind the last step ("drain") are paid once per product.

Masked products (`workloads.Gemm`) take only what is needed, in whole tiles: of "scores" the tiles
that hold an output at or below the diagonal, of "values" the inputs that the last token of a row of
tiles sees.

Sizes are in bits, of operands as stored: codes, the scales and selectors of groups, and what each
row has once. Everything here is int64 and compiled; `mapping` checks that nothing overflows.
"""

from typing import NamedTuple

from numba import njit

NONE, SCORES, VALUES = 0, 1, 2  #: `Gemm.mask` as a number
SHARE = 1 << 16  #: the whole of a PE's own cycles, see `Product.share`
ONE_GROUP = 1 << 62  #: group size of an operand with one group per row


class Product(NamedTuple):
    """One product with its operands; all int."""

    m: int
    n: int
    k: int
    mask: int  #: NONE, SCORES or VALUES
    per_position: int  #: rows of x at one position
    pe_step: int  #: cycles of a step in the PE
    step: int  #: the same or more, with the ports
    group: int  #: of a sum that leaves the PEs, in columns of k
    w_bits: int  #: of a weight's code
    w_group: int  #: columns per group
    w_per_group: int  #: bits of a group's scale and choice
    w_per_row: int
    w_per_tensor: int
    x_bits: int  #: the same of the activations
    x_group: int
    x_per_group: int
    x_per_row: int
    x_per_tensor: int
    y_bits: int  #: bits of `y_elements` results
    y_elements: int
    port_step: int = 1  #: cycles of a step that the ports need
    share: int = SHARE  #: of the PE's own cycles that are taken, in parts of SHARE


class Array(NamedTuple):
    """An array with its buffers and its DRAM; all int."""

    rows: int
    cols: int
    lanes: int
    spacing: int
    fill: int
    drain: int
    x_capacity: int  #: bits of the activation buffer
    w_capacity: int  #: bits of the weight buffer
    rate_bits: int  #: DRAM moves `rate_bits` bits in `rate_cycles` cycles
    rate_cycles: int
    latency: int  #: cycles to the first bit from DRAM


class Work(NamedTuple):
    """What one repetition of a product takes on the array, DRAM left out."""

    tiles: int
    busy: int  #: cycles of steps
    port: int  #: cycles by which ports stretch the steps
    scale: int  #: cycles that groups wait
    w_read: int  #: bits read from the weight buffer
    x_read: int  #: bits read from the activation buffer
    y_made: int  #: bits of results


@njit(cache=True)
def ceil_div(value, divisor):  # type: ignore[no-untyped-def]
    """ceil(value / divisor) of numbers >= 0."""
    return (value + divisor - 1) // divisor


@njit(cache=True)
def w_row(p, k):  # type: ignore[no-untyped-def]
    """Bits of k weights of an output channel."""
    return k * p.w_bits + ceil_div(k, p.w_group) * p.w_per_group + p.w_per_row


@njit(cache=True)
def x_row(p, k):  # type: ignore[no-untyped-def]
    """Bits of k inputs of a token."""
    return k * p.x_bits + ceil_div(k, p.x_group) * p.x_per_group + p.x_per_row


@njit(cache=True)
def y_size(p, elements):  # type: ignore[no-untyped-def]
    """Bits of so many results."""
    return ceil_div(elements * p.y_bits, p.y_elements)


@njit(cache=True)
def tile_k(p, high, i):  # type: ignore[no-untyped-def]
    """Inputs that row i of tiles, `high` tokens each, sums over."""
    if p.mask != VALUES:
        return p.k
    return min((min((i + 1) * high, p.m) - 1) // p.per_position + 1, p.k)


@njit(cache=True)
def tile_count(p, high, wide, i):  # type: ignore[no-untyped-def]
    """Tiles, `wide` channels each, that row i of tiles needs; they are the first ones."""
    if p.mask != SCORES:
        return ceil_div(p.n, wide)
    seen = (min((i + 1) * high, p.m) - 1) // p.per_position + 1
    return ceil_div(min(seen, p.n), wide)


@njit(cache=True)
def tile_cycles(p, a, k):  # type: ignore[no-untyped-def]
    """Cycles of one tile over k inputs: (busy, port, scale)."""
    whole, rest = k // p.group, k % p.group
    own, port = group_cycles(p, a, min(p.group, k))
    busy, port, scale = whole * own, whole * port, whole * max(a.spacing - own - port, 0)
    if rest:
        own, more = group_cycles(p, a, rest)
        busy, port, scale = busy + own, port + more, scale + max(a.spacing - own - more, 0)
    return busy, port, scale


@njit(cache=True)
def group_cycles(p, a, length):  # type: ignore[no-untyped-def]
    """Cycles of a group of k: (the PE's own, what the ports add)."""
    steps = ceil_div(length, a.lanes)
    own = ceil_div(steps * p.pe_step * p.share, SHARE)
    return own, max(steps * p.port_step - own, 0)


@njit(cache=True)
def tile_time(p, a, k):  # type: ignore[no-untyped-def]
    """Cycles of one tile over k inputs."""
    busy, port, scale = tile_cycles(p, a, k)
    return busy + port + scale


@njit(cache=True)
def first_wait(p, a, k):  # type: ignore[no-untyped-def]
    """Cycles that the first group of a product need not wait; its tile sums over k inputs."""
    own, port = group_cycles(p, a, min(p.group, k))
    return max(a.spacing - own - port, 0)


@njit(cache=True)
def work(p, a, high, wide):  # type: ignore[no-untyped-def]
    """The `Work` of a product in tiles of `high` tokens x `wide` channels."""
    tiles = busy = port = scale = w_read = x_read = y_made = 0
    rows = ceil_div(p.m, high)
    if p.mask == NONE:
        cols = ceil_div(p.n, wide)
        busy, port, scale = tile_cycles(p, a, p.k)
        tiles = rows * cols
        busy, port, scale = tiles * busy, tiles * port, tiles * scale
        w_read, x_read = rows * p.n * w_row(p, p.k), cols * p.m * x_row(p, p.k)
        y_made = y_size(p, p.m * p.n)
    else:
        elements = 0
        for i in range(rows):
            k, cols = tile_k(p, high, i), tile_count(p, high, wide, i)
            tokens, channels = min(high, p.m - i * high), min(cols * wide, p.n)
            tile_busy, tile_port, tile_scale = tile_cycles(p, a, k)
            tiles += cols
            busy += cols * tile_busy
            port += cols * tile_port
            scale += cols * tile_scale
            w_read += channels * w_row(p, k)
            x_read += cols * tokens * x_row(p, k)
            elements += tokens * channels
        y_made = y_size(p, elements)
    scale -= first_wait(p, a, tile_k(p, high, 0))
    w_read += p.w_per_tensor
    x_read += p.x_per_tensor
    return Work(tiles, busy, port, scale, w_read, x_read, y_made)
